//! `cvlanctl tenant …`

use crate::Global;
use crate::client::{Client, LIST_MAX, segment};
use crate::failure::Failure;
use crate::print::{Column, Names, Noun, number, talk, text, time};
use crate::prompt::confirm;
use crate::target::{Doomed, Target, find};
use clap::Subcommand;
use clap::builder::RangedU64ValueParser;
use serde_json::json;

/// What can be done with tenants.
#[derive(Subcommand)]
pub enum Verb {
    /// Create one: cvlanctl tenant create acme --display-name "ACME Inc."
    Create {
        /// Its slug: a-z, 0-9 and -; part of names, it never changes
        slug: String,
        /// Its name for people
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
    },
    /// Those you may see
    List(Filter),
    /// All of one
    Get(Target),
    /// Give it another name for people
    Rename {
        #[command(flatten)]
        target: Target,
        /// Its new name
        display_name: String,
    },
    /// Delete one that has no CVLANs and users
    Delete(Doomed),
}

/// What a list is about.
#[derive(clap::Args, Default)]
pub struct Filter {
    /// Only those whose names, addresses or ids have this in them
    #[arg(short, long, value_name = "TEXT")]
    pub q: Option<String>,
    /// By which field; - in front = descending
    #[arg(long, value_name = "FIELD", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = LIST_MAX, hide_default_value = true, value_parser = limit_range())]
    pub limit: usize,
}

impl Filter {
    /// As a query, with more parameters of the noun's own.
    pub fn query(&self, more: &[(&str, Option<&str>)]) -> String {
        let own = [("q", self.q.as_deref()), ("sort", self.sort.as_deref())];
        let set = own.iter().chain(more).filter_map(|(name, value)| Some((name, (*value)?)));
        let pairs: Vec<_> = set.map(|(name, value)| format!("{name}={}", crate::client::encoded(value))).collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }
}

/// From 1 to [`LIST_MAX`].
pub fn limit_range() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=LIST_MAX as u64)
}

/// A tenant, as people see it.
pub const NOUN: Noun = Noun {
    name: "tenant",
    path: "tenants",
    key: "slug",
    columns: &[
        Column { name: "slug", wide: false, value: |i, _| text(i, "slug") },
        Column { name: "name", wide: false, value: |i, _| text(i, "name") },
        Column { name: "cvlans", wide: false, value: |i, _| number(i, "cvlanCount").to_string() },
        Column { name: "nodes", wide: false, value: |i, _| number(i, "nodeCount").to_string() },
        Column { name: "created", wide: false, value: |i, _| time(i, "createdAt") },
        Column { name: "updated", wide: true, value: |i, _| time(i, "updatedAt") },
        Column { name: "revision", wide: true, value: |i, _| text(i, "revision") },
        Column { name: "id", wide: true, value: |i, _| text(i, "id") },
    ],
};

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let (mut client, none) = (Client::open(global)?, Names::default());
        match self {
            Self::Create { slug, display_name } => {
                let name = display_name.unwrap_or_default();
                let made = client.post("/tenants", Some(json!({"slug": slug, "name": name}))).await?;
                NOUN.row(global, &made, &none)
            }
            Self::List(filter) => {
                let items = client.list(&format!("/tenants{}", filter.query(&[])), filter.limit).await?;
                NOUN.list(global, items, &none)
            }
            Self::Get(Target { target }) => NOUN.sheet(global, &find(&mut client, &NOUN, "", &target).await?, &none),
            Self::Rename { target, display_name } => {
                let id = text(&find(&mut client, &NOUN, "", &target.target).await?, "id");
                let made = client.patch(&format!("/tenants/{}", segment(&id)?), json!({"name": display_name})).await?;
                NOUN.row(global, &made, &none)
            }
            Self::Delete(Doomed { target, yes }) => {
                let item = find(&mut client, &NOUN, "", &target).await?;
                let slug = NOUN.name_of(&item);
                confirm(&format!("delete tenant {slug}"), yes)?;
                client.delete(&format!("/tenants/{}", segment(&text(&item, "id"))?)).await?;
                talk(&format!("tenant {slug} is deleted"));
                Ok(())
            }
        }
    }
}

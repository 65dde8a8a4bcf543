//! `cvlanctl cvlan …`

use crate::Global;
use crate::client::{Client, LIST_MAX, segment};
use crate::failure::Failure;
use crate::print::{Column, Names, Noun, number, talk, text, time};
use crate::prompt::confirm;
use crate::target::{Doomed, Target, find};
use crate::tenant::Filter;
use clap::Subcommand;
use serde_json::json;

/// What can be done with CVLANs.
#[derive(Subcommand)]
pub enum Verb {
    /// Create one: cvlanctl cvlan create office --ipv4 10.20.0.0/24 --ipv6 auto
    Create {
        /// Unique in the tenant: a-z, 0-9 and -
        name: String,
        /// Its IPv4 network; none = the next free private /24
        #[arg(long, value_name = "CIDR")]
        ipv4: Option<String>,
        /// Its IPv6 network, or auto for a /64 of your own (RFC 4193); none = no IPv6
        #[arg(long, value_name = "CIDR|auto")]
        ipv6: Option<String>,
    },
    /// The tenant's
    List(Filter),
    /// All of one
    Get(Target),
    /// Give it another name
    Rename {
        #[command(flatten)]
        target: Target,
        /// Its new name
        name: String,
    },
    /// Delete one that has no nodes
    Delete(Doomed),
}

/// A CVLAN, as people see it.
pub const NOUN: Noun = Noun {
    name: "cvlan",
    path: "cvlans",
    key: "name",
    columns: &[
        Column { name: "name", wide: false, value: |i, _| text(i, "name") },
        Column { name: "ipv4", wide: false, value: |i, _| text(i, "ipv4Cidr") },
        Column { name: "ipv6", wide: false, value: |i, _| text(i, "ipv6Cidr") },
        Column { name: "nodes", wide: false, value: |i, _| number(i, "nodeCount").to_string() },
        Column { name: "created", wide: false, value: |i, _| time(i, "createdAt") },
        Column { name: "updated", wide: true, value: |i, _| time(i, "updatedAt") },
        Column { name: "revision", wide: true, value: |i, _| text(i, "revision") },
        Column { name: "id", wide: true, value: |i, _| text(i, "id") },
    ],
};

/// The names of the tenant's CVLANs, where a table shows them.
pub async fn names(client: &mut Client, global: &Global, home: &str) -> Result<Names, Failure> {
    match global.output {
        crate::Format::Table | crate::Format::Wide => {
            Ok(Names::of(&client.list(&format!("{home}/cvlans"), LIST_MAX).await?))
        }
        crate::Format::Json | crate::Format::Yaml | crate::Format::Name => Ok(Names::default()),
    }
}

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let (mut client, none) = (Client::open(global)?, Names::default());
        let home = client.tenant_path(global)?;
        match self {
            Self::Create { name, ipv4, ipv6 } => {
                let (ipv4, ipv6) = (ipv4.unwrap_or_default(), ipv6.unwrap_or_default());
                let body = json!({"name": name, "ipv4Cidr": ipv4, "ipv6Cidr": ipv6});
                NOUN.row(global, &client.post(&format!("{home}/cvlans"), Some(body)).await?, &none)
            }
            Self::List(filter) => {
                let items = client.list(&format!("{home}/cvlans{}", filter.query(&[])), filter.limit).await?;
                NOUN.list(global, items, &none)
            }
            Self::Get(Target { target }) => NOUN.sheet(global, &find(&mut client, &NOUN, &home, &target).await?, &none),
            Self::Rename { target, name } => {
                let id = text(&find(&mut client, &NOUN, &home, &target.target).await?, "id");
                let made = client.patch(&format!("{home}/cvlans/{}", segment(&id)?), json!({"name": name})).await?;
                NOUN.row(global, &made, &none)
            }
            Self::Delete(Doomed { target, yes }) => {
                let item = find(&mut client, &NOUN, &home, &target).await?;
                let name = NOUN.name_of(&item);
                confirm(&format!("delete CVLAN {name} ({})", text(&item, "ipv4Cidr")), yes)?;
                client.delete(&format!("{home}/cvlans/{}", segment(&text(&item, "id"))?)).await?;
                talk(&format!("CVLAN {name} is deleted"));
                Ok(())
            }
        }
    }
}

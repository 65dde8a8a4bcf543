//! `cvlanctl context …`

use crate::Global;
use crate::client::{Client, segment};
use crate::context::Store;
use crate::failure::Failure;
use crate::print::{Column, Names, Noun, talk, text};
use clap::Subcommand;
use serde_json::json;

/// What can be done with contexts.
#[derive(Subcommand)]
pub enum Verb {
    /// Those there are; * is the current one
    List,
    /// Make one the current one
    Use {
        /// Its name
        name: String,
    },
    /// Forget one, its session and its pin
    Delete {
        /// Its name
        name: String,
    },
    /// Make a tenant the default: what -t says where it is absent
    Tenant {
        /// Slug or id; none = no default
        slug: Option<String>,
    },
}

/// How a context is shown; its tokens never are.
const NOUN: Noun = Noun {
    name: "context",
    path: "contexts",
    key: "name",
    columns: &[
        Column {
            name: "current",
            wide: false,
            value: |i, _| text(i, "current").replace("true", "*").replace("false", ""),
        },
        Column { name: "name", wide: false, value: |i, _| text(i, "name") },
        Column { name: "url", wide: false, value: |i, _| text(i, "url") },
        Column { name: "user", wide: false, value: |i, _| text(i, "user") },
        Column { name: "tenant", wide: false, value: |i, _| text(i, "tenant") },
        Column { name: "session", wide: false, value: |i, _| text(i, "session") },
        Column { name: "others", wide: true, value: |i, _| text(i, "urls") },
        Column { name: "pin", wide: true, value: |i, _| text(i, "caPin") },
        Column { name: "checkpoint", wide: true, value: |i, _| text(i, "checkpoint") },
    ],
};

fn unknown(name: &str) -> Failure {
    Failure::new("context_not_found", format!("there is no context {name:?}"))
        .hint("`cvlanctl context list` shows them")
}

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let store = Store::of_environment()?;
        match self {
            Self::List => {
                let contexts = store.read()?;
                let item = |(name, c): (&String, &crate::context::Context)| {
                    json!({
                        "current": *name == contexts.current, "name": name, "url": c.url, "user": c.user, "tenant": c.tenant,
                        "session": if c.refresh_token.is_empty() { "logged out" } else { "logged in" },
                        "urls": c.urls, "caPin": c.ca_pin, "checkpoint": c.checkpoint,
                    })
                };
                NOUN.list(global, contexts.contexts.iter().map(item).collect(), &Names::default())
            }
            Self::Use { name } => {
                store.change(|c| {
                    if !c.contexts.contains_key(&name) {
                        return Err(unknown(&name));
                    }
                    c.current.clone_from(&name);
                    Ok(())
                })?;
                talk(&format!("context {name:?} is the current one"));
                Ok(())
            }
            Self::Delete { name } => {
                store.change(|c| {
                    c.contexts.remove(&name).ok_or_else(|| unknown(&name))?;
                    if c.current == name {
                        c.current.clear();
                    }
                    Ok(())
                })?;
                talk(&format!("context {name:?} is forgotten"));
                Ok(())
            }
            Self::Tenant { slug } => tenant_default(global, slug).await,
        }
    }
}

async fn tenant_default(global: &Global, slug: Option<String>) -> Result<(), Failure> {
    let mut client = Client::open(global)?;
    let slug = match slug {
        Some(slug) => text(&client.get(&format!("/tenants/{}", segment(&slug)?)).await?, "slug"),
        None => String::new(),
    };
    client.remember(|c| c.tenant.clone_from(&slug))?;
    talk(&match slug.as_str() {
        "" => "commands have no default tenant now".to_owned(),
        slug => format!("commands are about tenant {slug} now, where -t does not say otherwise"),
    });
    Ok(())
}

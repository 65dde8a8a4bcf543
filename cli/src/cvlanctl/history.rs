//! `cvlanctl history NOUN NAME`: everything that happened to one thing. The log knows it also after it is gone.

use crate::Global;
use crate::client::{Client, LIST_MAX, segment};
use crate::event::{pages, show};
use crate::failure::Failure;
use crate::print::{Noun, talk, text};
use crate::target::find;
use crate::{cvlan, member, node, tenant, token, user, what};
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::collections::BTreeMap;

/// `cvlanctl history`
#[derive(Args)]
#[command(after_help = "\
Examples:
  cvlanctl -t acme history node web-1
  cvlanctl history tenant acme
  cvlanctl history member founder
  cvlanctl -t acme history cvlan office -o json")]
pub struct History {
    /// What it is
    noun: Kind,
    /// Id, name or the start of one; names of what is gone count too
    target: String,
    #[command(flatten)]
    whose: user::Whose,
}

/// Things with a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Tenant,
    Cvlan,
    Node,
    Token,
    User,
    Member,
}

impl Kind {
    fn noun(self) -> &'static Noun {
        match self {
            Self::Tenant => &tenant::NOUN,
            Self::Cvlan => &cvlan::NOUN,
            Self::Node => &node::NOUN,
            Self::Token => &token::NOUN,
            Self::User => &user::NOUN,
            Self::Member => &member::NOUN,
        }
    }
}

impl History {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut client = Client::open(global)?;
        let noun = self.noun.noun();
        let home = match self.noun {
            Kind::Tenant | Kind::Member => String::new(),
            Kind::User => self.whose.home(&client, global)?,
            Kind::Cvlan | Kind::Node | Kind::Token => client.tenant_path(global)?,
        };
        let exact = client.get(&format!("{home}/{}/{}", noun.path, segment(&self.target)?)).await;
        let id = match exact {
            Ok(item) => text(&item, "id"),
            // The exact name of what is gone is meant before the start of a name that there is.
            Err(failure) if failure.is_unresolved(noun) => {
                match called(&mut client, noun, &home, &self.target).await? {
                    Some(id) => id,
                    None => text(&find(&mut client, noun, &home, &self.target).await?, "id"),
                }
            }
            Err(failure) => return Err(failure),
        };
        // Without the noun: a member's doors are told of by the cluster's own events.
        let path = format!("/log/events?id={id}");
        let (events, complete_from) = pages(&mut client, &path, LIST_MAX, |_| true).await?;
        if complete_from > 1 {
            talk(&format!("warning: the audit is being rebuilt; events before {complete_from} are not in it yet"));
        }
        show(&mut client, global, events).await
    }
}

/// The id of the only thing that is or was once called so, or else whose id or a name starts so.
async fn called(client: &mut Client, noun: &Noun, home: &str, wanted: &str) -> Result<Option<String>, Failure> {
    let tenant = match home {
        "" => String::new(),
        home => text(&client.get(home).await?, "id"),
    };
    let ours = |event: &Value| noun.name == "tenant" || text(event, "tenantId") == tenant;
    let path = format!("/log/events?noun={}", noun.name);
    let (events, _) = pages(client, &path, LIST_MAX, ours).await?;
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in &events {
        names.entry(what::subject(event)).or_default().extend(what::named(event));
    }
    let pick = |fits: &dyn Fn(&str) -> bool| -> Vec<_> {
        names.iter().filter(|(id, names)| fits(id) || names.iter().any(|n| fits(n))).map(|(id, _)| id.clone()).collect()
    };
    let mut found = pick(&|name| name == wanted);
    if found.is_empty() {
        found = pick(&|name| name.starts_with(wanted));
    }
    if found.len() > 1 {
        let detail = format!("{} {} are or were once called {wanted:?}: {}", found.len(), noun.path, found.join(", "));
        return Err(Failure::new("name_ambiguous", detail).hint("name one by its id"));
    }
    Ok(found.pop())
}

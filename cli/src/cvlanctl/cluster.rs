//! `cvlanctl cluster …`

use crate::Global;
use crate::backup;
use crate::client::{Client, secret_lost, segment};
use crate::failure::Failure;
use crate::member::NOUN;
use crate::print::{Format, Names, document, lines, talk, text, time};
use crate::prompt::confirm;
use crate::target::{Doomed, Target, find};
use crate::token::seconds_parse;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// What can be done with the cluster.
#[derive(Subcommand)]
#[command(after_help = "\
From one controller to three:
  cvlanctl cluster add m2                  prints a token and the line to start m2 with
  cvlanctl cluster add m3
  cvlanctl cluster status                  m2 and m3 follow, and vote as soon as both have caught up

Three members go on when one is lost, five when two are. With two, the second only follows: two that vote would need
both. Whatever a command says, any member takes it; writes go to the leader by themselves.")]
pub enum Verb {
    /// Its members: who leads, who votes, who follows, how far each is
    Status,
    /// Let one more controller in: prints its join token, once
    Add(Add),
    /// Remove one for good; refused where too few would be left to decide
    #[command(after_help = "\
A member that is lost is removed and replaced:
  cvlanctl cluster remove m2
  cvlanctl cluster add m2                  and start it with an empty --data-dir
The removed one stops by itself, if it still runs. Its id does not come back.")]
    Remove(Doomed),
    /// Let a follower vote now; by itself that happens where the number of voters stays 1, 3 or 5
    Promote(Target),
    /// The log of the running cluster as a file, from which `cvlan-api restore` makes a controller
    Backup(backup::Backup),
    /// Let another member lead: before maintenance of the one that does
    #[command(after_help = "A leader that is stopped with SIGTERM hands over by itself.")]
    Transfer {
        /// A voter's name or id; none = the one that has most of the log
        target: Option<String>,
    },
}

/// `cvlanctl cluster add`
#[derive(Args)]
#[command(after_help = "\
The token is shown once. -o name prints it alone:
  T=$(cvlanctl cluster add m2 -o name)
  ssh m2 CVLAN_JOIN_TOKEN=\"$T\" cvlan-api --cluster-listen 0.0.0.0:8445 --advertise-cluster m2.example:8445")]
pub struct Add {
    /// Its name, unique in the cluster
    name: String,
    /// For how long it may join: 60s to 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds_parse)]
    expires: u64,
}

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let (mut client, none) = (Client::open(global)?, Names::default());
        match self {
            Self::Status => {
                let mut body = client.get("/cluster/members").await?;
                let items = match body.get_mut("items").map(Value::take) {
                    Some(Value::Array(items)) => items,
                    Some(_) | None => Vec::new(),
                };
                client.learn(&items)?;
                NOUN.list(global, items, &none)
            }
            Self::Backup(backup) => backup.run(client, global).await,
            Self::Add(add) => add.run(client, global).await,
            Self::Remove(Doomed { target, yes }) => {
                let item = find(&mut client, &NOUN, "", &target).await?;
                let name = NOUN.name_of(&item);
                confirm(&format!("remove member {name} ({}) for good", text(&item, "address")), yes)?;
                client.delete(&format!("/cluster/members/{}", segment(&text(&item, "id"))?)).await?;
                talk(&format!("member {name} is removed; its --data-dir is of no use any more"));
                Ok(())
            }
            Self::Promote(Target { target }) => {
                let id = text(&find(&mut client, &NOUN, "", &target).await?, "id");
                let path = format!("/cluster/members/{}/promote", segment(&id)?);
                NOUN.row(global, &client.post(&path, None).await?, &none)
            }
            Self::Transfer { target } => {
                let to = match target {
                    Some(target) => text(&find(&mut client, &NOUN, "", &target).await?, "id"),
                    None => String::new(),
                };
                let leader = client.post("/cluster/transfer-leader", Some(json!({"to": to}))).await?;
                NOUN.row(global, &leader, &none)
            }
        }
    }
}

impl Add {
    async fn run(self, mut client: Client, global: &Global) -> Result<(), Failure> {
        let body = json!({"name": self.name, "expiresInSeconds": self.expires.to_string()});
        let made = client.post("/cluster/members", Some(body)).await?;
        let token = text(&made, "joinToken");
        if token.is_empty() {
            return Err(secret_lost("cvlanctl cluster remove", made.get("member")));
        }
        match global.output {
            Format::Name => lines([token]),
            Format::Json | Format::Yaml => document(global.output, &made),
            Format::Table | Format::Wide => {
                talk(&format!(
                    "member {} may join until {}. Its token holds the way into the cluster and is shown this once.\n\
                     On its machine, with HOST as the other members reach it:\n",
                    self.name,
                    made.get("member").map(|m| time(m, "expiresAt")).unwrap_or_default(),
                ));
                lines([format!(
                    "CVLAN_JOIN_TOKEN={token} cvlan-api --cluster-listen 0.0.0.0:8445 --advertise-cluster HOST:8445"
                )])
            }
        }
    }
}

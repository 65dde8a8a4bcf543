//! `cvlanctl node …`

use crate::Global;
use crate::client::{Client, segment};
use crate::cvlan;
use crate::failure::Failure;
use crate::import::import;
use crate::print::{Column, Noun, talk, text, time};
use crate::prompt::confirm;
use crate::target::{Doomed, Target, find};
use crate::tenant::Filter;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

/// What can be done with nodes.
#[derive(Subcommand)]
pub enum Verb {
    /// Add a plain WireGuard device, which runs no agent
    #[command(after_help = "\
Example:
  cvlanctl node create printer --cvlan office --wg-public-key \"$(wg pubkey < key)\" --tag iot

Machines that run cvlan-ctrl come with a token instead:
  cvlanctl token create --cvlan office --expires 24h")]
    Create {
        /// Unique in the CVLAN: a-z, 0-9 and -
        name: String,
        /// The CVLAN it is in
        #[arg(long, value_name = "CVLAN")]
        cvlan: String,
        /// Its WireGuard public key, base64
        #[arg(long, value_name = "KEY")]
        wg_public_key: String,
        /// A tag; say it again for more
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
        /// HOST:PORT of its WireGuard socket, best first; say it again for more
        #[arg(long = "endpoint", value_name = "HOST:PORT")]
        endpoints: Vec<String>,
    },
    /// Add many plain WireGuard devices from a file, all of a request (500) or none
    #[command(after_help = "\
The file is JSON: an array, or one object after the other, with the fields of POST nodes:
  {\"name\": \"printer\", \"wgPublicKey\": \"…\", \"cvlan\": \"office\", \"tags\": [\"iot\"], \"endpoints\": [\"192.0.2.1:51820\"]}

Example:
  cvlanctl node import devices.json --cvlan office")]
    Import {
        /// Its path; - reads standard input
        file: String,
        /// The CVLAN of devices that name none
        #[arg(long, value_name = "CVLAN")]
        cvlan: Option<String>,
    },
    /// The tenant's
    List {
        #[command(flatten)]
        filter: Filter,
        /// Only this CVLAN's
        #[arg(long, value_name = "CVLAN")]
        cvlan: Option<String>,
        /// Only those of this status
        #[arg(long, value_enum)]
        status: Option<Status>,
    },
    /// All of one
    Get(Target),
    /// Give it another name
    Rename {
        #[command(flatten)]
        target: Target,
        /// Its new name
        name: String,
    },
    /// Keep it out until it is enabled again; it keeps its addresses
    Disable(Target),
    /// Let it in again
    Enable(Target),
    /// Delete one: its stream ends, its peers forget it
    Delete(Doomed),
}

/// May it take part?
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Status {
    /// Yes
    Active,
    /// No
    Disabled,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
        }
    }
}

/// A node, as people see it.
pub const NOUN: Noun = Noun {
    name: "node",
    path: "nodes",
    key: "name",
    columns: &[
        Column { name: "name", wide: false, value: |i, _| text(i, "name") },
        Column { name: "cvlan", wide: false, value: |i, n| n.name(&text(i, "cvlanId")) },
        Column { name: "ipv4", wide: false, value: |i, _| text(i, "ipv4") },
        Column { name: "ipv6", wide: false, value: |i, _| text(i, "ipv6") },
        Column { name: "status", wide: false, value: |i, _| text(i, "status") },
        Column { name: "presence", wide: false, value: presence },
        Column { name: "tags", wide: false, value: |i, _| text(i, "tags") },
        Column { name: "endpoints", wide: true, value: |i, _| text(i, "endpoints") },
        Column { name: "seen", wide: true, value: |i, _| time(i, "lastSeenAt") },
        Column { name: "hostname", wide: true, value: |i, _| text(i, "hostname") },
        Column { name: "os", wide: true, value: |i, _| text(i, "os") },
        Column { name: "agent", wide: true, value: |i, _| text(i, "agentVersion") },
        Column { name: "wg-key", wide: true, value: |i, _| text(i, "wgPublicKey") },
        Column { name: "created", wide: true, value: |i, _| time(i, "createdAt") },
        Column { name: "updated", wide: true, value: |i, _| time(i, "updatedAt") },
        Column { name: "token", wide: true, value: |i, _| text(i, "tokenId") },
        Column { name: "revision", wide: true, value: |i, _| text(i, "revision") },
        Column { name: "id", wide: true, value: |i, _| text(i, "id") },
    ],
};

/// A plain WireGuard device never says that it is there.
fn presence(item: &Value, _: &crate::print::Names) -> String {
    let by_hand = text(item, "tokenId").is_empty();
    let online = item.get("online").and_then(Value::as_bool).unwrap_or_default();
    match (by_hand, online) {
        (true, _) => "-",
        (false, true) => "online",
        (false, false) => "offline",
    }
    .to_owned()
}

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut client = Client::open(global)?;
        let home = client.tenant_path(global)?;
        let item = match self {
            Self::List { filter, cvlan, status } => return list(client, global, &home, filter, cvlan, status).await,
            Self::Get(Target { target }) => {
                let item = find(&mut client, &NOUN, &home, &target).await?;
                let names = cvlan::names(&mut client, global, &home).await?;
                return NOUN.sheet(global, &item, &names);
            }
            Self::Import { file, cvlan } => {
                return import(client, global, &home, &file, cvlan.as_deref()).await;
            }
            Self::Delete(doomed) => return delete(client, &home, doomed).await,
            Self::Create { name, cvlan, wg_public_key, tags, endpoints } => {
                let cvlan = text(&find(&mut client, &cvlan::NOUN, &home, &cvlan).await?, "id");
                let body = json!({
                    "cvlan": cvlan, "name": name, "wgPublicKey": wg_public_key, "tags": tags, "endpoints": endpoints,
                });
                client.post(&format!("{home}/nodes"), Some(body)).await?
            }
            Self::Rename { target, name } => change(&mut client, &home, &target, json!({"name": name})).await?,
            Self::Disable(target) => {
                change(&mut client, &home, &target, json!({"status": Status::Disabled.name()})).await?
            }
            Self::Enable(target) => {
                change(&mut client, &home, &target, json!({"status": Status::Active.name()})).await?
            }
        };
        let names = cvlan::names(&mut client, global, &home).await?;
        NOUN.row(global, &item, &names)
    }
}

async fn list(
    mut client: Client,
    global: &Global,
    home: &str,
    filter: Filter,
    cvlan: Option<String>,
    status: Option<Status>,
) -> Result<(), Failure> {
    let cvlan = match cvlan {
        Some(cvlan) => Some(text(&find(&mut client, &cvlan::NOUN, home, &cvlan).await?, "id")),
        None => None,
    };
    let query = filter.query(&[("cvlan", cvlan.as_deref()), ("status", status.map(Status::name))]);
    let items = client.list(&format!("{home}/nodes{query}"), filter.limit).await?;
    let names = cvlan::names(&mut client, global, home).await?;
    NOUN.list(global, items, &names)
}

async fn change(client: &mut Client, home: &str, target: &Target, body: Value) -> Result<Value, Failure> {
    let id = text(&find(client, &NOUN, home, &target.target).await?, "id");
    client.patch(&format!("{home}/nodes/{}", segment(&id)?), body).await
}

async fn delete(mut client: Client, home: &str, Doomed { target, yes }: Doomed) -> Result<(), Failure> {
    let item = find(&mut client, &NOUN, home, &target).await?;
    let name = NOUN.name_of(&item);
    confirm(&format!("delete node {name} ({})", text(&item, "ipv4")), yes)?;
    client.delete(&format!("{home}/nodes/{}", segment(&text(&item, "id"))?)).await?;
    talk(&format!("node {name} is deleted"));
    Ok(())
}

//! `cvlanctl user …`: a tenant's users, or the global ones.

use crate::Global;
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::print::{Column, Names, Noun, talk, text, time};
use crate::prompt::{self, confirm};
use crate::target::{Doomed, Target, find};
use crate::tenant::Filter;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

/// What can be done with users.
#[derive(Subcommand)]
pub enum Verb {
    /// Create one: cvlanctl -t acme user create ada --role tenantadmin
    Create {
        /// Login name: a-z, 0-9 and . _ @ -
        name: String,
        /// What it may do
        #[arg(long, value_enum)]
        role: Role,
        /// Read the password from stdin, one line
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        whose: Whose,
    },
    /// The tenant's, or the global ones
    List {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        whose: Whose,
    },
    /// All of one
    Get {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        whose: Whose,
    },
    /// Delete one; all its sessions end
    Delete {
        #[command(flatten)]
        doomed: Doomed,
        #[command(flatten)]
        whose: Whose,
    },
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Everything, everywhere; always a global user
    Superadmin,
    /// Everything in its tenant
    Tenantadmin,
    /// Networks and machines of its tenant
    Member,
    /// Look at them
    Readonly,
    /// Look at everything, the log too; global users everywhere
    Auditor,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Superadmin => "superadmin",
            Self::Tenantadmin => "tenantadmin",
            Self::Member => "member",
            Self::Readonly => "readonly",
            Self::Auditor => "auditor",
        }
    }
}

/// A tenant's or nobody's.
#[derive(Args)]
pub struct Whose {
    /// The cluster's users, not a tenant's; so it is too where no tenant is named
    #[arg(long)]
    pub global: bool,
}

impl Whose {
    /// The path that such users are below.
    pub fn home(&self, client: &Client, global: &Global) -> Result<String, Failure> {
        match self.global || client.tenant(global).is_empty() {
            true => Ok(String::new()),
            false => client.tenant_path(global),
        }
    }
}

/// A user, as people see it.
pub const NOUN: Noun = Noun {
    name: "user",
    path: "users",
    key: "name",
    columns: &[
        Column { name: "name", wide: false, value: |i, _| text(i, "name") },
        Column { name: "role", wide: false, value: |i, _| text(i, "role") },
        Column { name: "created", wide: false, value: |i, _| time(i, "createdAt") },
        Column { name: "updated", wide: true, value: |i, _| time(i, "updatedAt") },
        Column { name: "tenant", wide: true, value: |i, _| text(i, "tenantId") },
        Column { name: "revision", wide: true, value: |i, _| text(i, "revision") },
        Column { name: "id", wide: true, value: |i, _| text(i, "id") },
    ],
};

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let (mut client, none) = (Client::open(global)?, Names::default());
        match self {
            Self::Create { name, role, password_stdin, whose } => {
                let home = whose.home(&client, global)?;
                let password = if password_stdin {
                    let [password] = prompt::stdin_lines()?;
                    password
                } else {
                    prompt::password_new(&name).await?
                };
                let body = json!({"name": name, "role": role.name(), "password": password});
                NOUN.row(global, &client.post(&format!("{home}/users"), Some(body)).await?, &none)
            }
            Self::List { filter, whose } => {
                let home = whose.home(&client, global)?;
                let items = client.list(&format!("{home}/users{}", filter.query(&[])), filter.limit).await?;
                NOUN.list(global, items, &none)
            }
            Self::Get { target, whose } => {
                let home = whose.home(&client, global)?;
                NOUN.sheet(global, &find(&mut client, &NOUN, &home, &target.target).await?, &none)
            }
            Self::Delete { doomed: Doomed { target, yes }, whose } => {
                let home = whose.home(&client, global)?;
                let item = find(&mut client, &NOUN, &home, &target).await?;
                let name = NOUN.name_of(&item);
                confirm(&format!("delete user {name} ({})", text(&item, "role")), yes)?;
                client.delete(&format!("{home}/users/{}", segment(&text(&item, "id"))?)).await?;
                talk(&format!("user {name} is deleted"));
                Ok(())
            }
        }
    }
}

//! `cvlanctl token …`

use crate::Global;
use crate::client::{Client, secret_lost, segment};
use crate::cvlan;
use crate::failure::Failure;
use crate::print::{Column, Format, Noun, document, lines, number, talk, text, time};
use crate::prompt::confirm;
use crate::target::{Doomed, Target, find};
use crate::tenant::Filter;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

/// What can be done with tokens.
#[derive(Subcommand)]
pub enum Verb {
    /// Create one: cvlanctl token create --cvlan office --expires 24h --max-uses 10
    Create(Create),
    /// The tenant's; never their secrets
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
    /// All of one, except its secret
    Get(Target),
    /// Make one worthless; nodes that came with it stay
    Delete(Doomed),
}

/// `cvlanctl token create`
#[derive(Args)]
#[command(after_help = "\
The secret is shown once. -o name prints it alone:
  T=$(cvlanctl token create --cvlan office --expires 1h -o name)
  ssh web-1 cvlan-ctrl --token \"$T\"")]
pub struct Create {
    /// The CVLAN that machines land in
    #[arg(long, value_name = "CVLAN")]
    cvlan: String,
    /// For how long it lets machines in: 90s, 30m, 24h, 7d, 1d12h
    #[arg(long, value_name = "TIME", value_parser = seconds_parse)]
    expires: u64,
    /// How many machines it lets in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max_uses: u32,
    /// A tag of those machines; say it again for more
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// Does it let machines in?
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Status {
    /// Yes
    Active,
    /// Its time is over
    Expired,
    /// As many came as may
    #[value(name = "used_up", alias = "used-up")]
    UsedUp,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::UsedUp => "used_up",
        }
    }
}

/// A token, as people see it.
pub const NOUN: Noun = Noun {
    name: "token",
    path: "tokens",
    key: "id",
    columns: &[
        Column { name: "id", wide: false, value: |i, _| text(i, "id") },
        Column { name: "cvlan", wide: false, value: |i, n| n.name(&text(i, "cvlanId")) },
        Column { name: "status", wide: false, value: |i, _| text(i, "status") },
        Column { name: "uses", wide: false, value: |i, _| format!("{}/{}", number(i, "uses"), number(i, "maxUses")) },
        Column { name: "expires", wide: false, value: |i, _| time(i, "expiresAt") },
        Column { name: "tags", wide: false, value: |i, _| text(i, "tags") },
        Column { name: "note", wide: false, value: |i, _| text(i, "note") },
        Column { name: "created", wide: true, value: |i, _| time(i, "createdAt") },
        Column { name: "revision", wide: true, value: |i, _| text(i, "revision") },
    ],
};

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut client = Client::open(global)?;
        let home = client.tenant_path(global)?;
        match self {
            Self::Create(create) => create.run(client, global, &home).await,
            Self::List { filter, cvlan, status } => {
                let cvlan = match cvlan {
                    Some(cvlan) => Some(text(&find(&mut client, &cvlan::NOUN, &home, &cvlan).await?, "id")),
                    None => None,
                };
                let query = filter.query(&[("cvlan", cvlan.as_deref()), ("status", status.map(Status::name))]);
                let items = client.list(&format!("{home}/tokens{query}"), filter.limit).await?;
                let names = cvlan::names(&mut client, global, &home).await?;
                NOUN.list(global, items, &names)
            }
            Self::Get(Target { target }) => {
                let item = find(&mut client, &NOUN, &home, &target).await?;
                let names = cvlan::names(&mut client, global, &home).await?;
                NOUN.sheet(global, &item, &names)
            }
            Self::Delete(Doomed { target, yes }) => {
                let item = find(&mut client, &NOUN, &home, &target).await?;
                let id = NOUN.name_of(&item);
                confirm(&format!("delete token {id}"), yes)?;
                client.delete(&format!("{home}/tokens/{}", segment(&id)?)).await?;
                talk(&format!("token {id} is deleted; nodes that came with it stay"));
                Ok(())
            }
        }
    }
}

impl Create {
    async fn run(self, mut client: Client, global: &Global, home: &str) -> Result<(), Failure> {
        let network = find(&mut client, &cvlan::NOUN, home, &self.cvlan).await?;
        let body = json!({
            "cvlan": text(&network, "id"), "maxUses": self.max_uses, "expiresInSeconds": self.expires.to_string(),
            "tags": self.tags, "note": self.note.unwrap_or_default(),
        });
        let made = client.post(&format!("{home}/tokens"), Some(body)).await?;
        for warning in made.get("warnings").and_then(Value::as_array).into_iter().flatten() {
            talk(&format!("warning: {}", warning.as_str().unwrap_or_default()));
        }
        let secret = text(&made, "secret");
        if secret.is_empty() {
            return Err(secret_lost("cvlanctl token delete", made.get("token")));
        }
        match global.output {
            Format::Name => lines([secret]),
            Format::Json | Format::Yaml => document(global.output, &made),
            Format::Table | Format::Wide => {
                talk(&format!(
                    "a token for {} machine(s) into CVLAN {}, good until {}. Its secret is shown this once.\n\
                     On each machine, as root:\n",
                    self.max_uses,
                    text(&network, "name"),
                    made.get("token").map(|t| time(t, "expiresAt")).unwrap_or_default(),
                ));
                lines(["cvland &".to_owned(), format!("cvlan-ctrl --token {secret}")])
            }
        }
    }
}

/// 90s, 30m, 24h, 7d, 1d12h → seconds.
pub fn seconds_parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time; say 90s, 30m, 24h, 7d or 1d12h");
    let (mut total, mut digits) = (0u64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        total = count.checked_mul(unit).and_then(|s| total.checked_add(s)).ok_or_else(wrong)?;
        digits.clear();
    }
    if total == 0 || !digits.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, wanted) in [
            ("90s", Some(90)),
            ("30m", Some(1800)),
            ("24h", Some(86_400)),
            ("7d", Some(604_800)),
            ("1d12h", Some(129_600)),
            ("", None),
            ("0s", None),
            ("24", None),
            ("h", None),
            ("-1h", None),
            ("1.5h", None),
            ("1h30", None),
            ("99999999999999999999d", None),
            ("999999999999999999d", None),
        ] {
            assert_eq!(seconds_parse(text).ok(), wanted, "{text}");
        }
    }
}

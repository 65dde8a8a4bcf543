//! `cvlanctl log …`: the log itself.

use crate::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::print::{Column, Format, Names, Noun, document, number, sheet, text};
use clap::Subcommand;
use indicatif::ProgressBar;
use serde_json::Value;
use std::time::Duration;

/// What can be done with the log.
#[derive(Subcommand)]
pub enum Verb {
    /// Make a checkpoint: the state's digest at one event, computed by every replica
    Checkpoint,
    /// The last checkpoints, newest first
    Checkpoints,
    /// Replay every event from the first and compare with every checkpoint; exit status 1 where they differ
    Verify,
}

const CHECKPOINT: Noun = Noun {
    name: "checkpoint",
    path: "checkpoints",
    key: "seq",
    columns: &[
        Column { name: "seq", wide: false, value: |i, _| text(i, "seq") },
        Column { name: "digest", wide: false, value: |i, _| text(i, "digest") },
        Column { name: "root", wide: true, value: |i, _| text(i, "root") },
    ],
};

impl Verb {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut client = Client::open(global)?;
        match self {
            Self::Checkpoint => {
                let made = client.post("/log/checkpoint", None).await?;
                CHECKPOINT.row(global, &made, &Names::default())
            }
            Self::Checkpoints => {
                let items = match client.get("/log/checkpoints").await?.get_mut("items").map(Value::take) {
                    Some(Value::Array(items)) => items,
                    Some(_) | None => Vec::new(),
                };
                CHECKPOINT.list(global, items, &Names::default())
            }
            Self::Verify => verify(client.patient(), global).await,
        }
    }
}

async fn verify(mut client: Client, global: &Global) -> Result<(), Failure> {
    // Draws on a terminal's stderr, and nothing elsewhere.
    let spinner = ProgressBar::new_spinner().with_message("replaying the log from its first event");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let answer = client.post("/log/verify", None).await;
    spinner.finish_and_clear();
    let report = answer?;
    let (ok, problem) = (report.get("ok").and_then(Value::as_bool).unwrap_or_default(), text(&report, "problem"));
    match global.output {
        Format::Json | Format::Yaml => document(global.output, &report)?,
        Format::Table | Format::Wide | Format::Name => sheet(&[
            ("result", if ok { "ok: every event replays to the state that runs" } else { "DIFFERS" }.to_owned()),
            ("events", format!("{} in {} entries", number(&report, "events"), number(&report, "entries"))),
            ("digest", text(&report, "digest")),
            ("root", text(&report, "root")),
            ("checkpoint", checkpoint(&report)),
            ("took", format!("{} ms", number(&report, "millis"))),
        ])?,
    }
    match ok {
        true => Ok(()),
        false => Err(Failure::new("log_differs", problem)
            .hint("keep this member's data folder as it is; another member or a backup has the truth")),
    }
}

fn checkpoint(report: &Value) -> String {
    match number(report, "checkpointSeq") {
        0 => "none yet; `cvlanctl log checkpoint` makes one".to_owned(),
        seq => format!("{} at event {seq}, replayed to the same", text(report, "checkpointDigest")),
    }
}

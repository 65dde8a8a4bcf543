//! `cvlanctl log …`: the log itself.

use crate::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::print::{Column, Format, Names, Noun, document, number, sheet, text};
use crate::proof;
use clap::Subcommand;
use cvlan_core::log::stats;
use cvlan_proto::v1::LogStats;
use indicatif::ProgressBar;
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What can be done with the log.
#[derive(Subcommand)]
pub enum Verb {
    /// Make a checkpoint: the state's digest at one event, computed by every replica
    Checkpoint,
    /// The last checkpoints, newest first
    Checkpoints,
    /// The log in numbers, as the member that answers has it: events, bytes, snapshots, the last backup, sinks
    Stats,
    /// Check the log, or an export of it: every event, every checkpoint, who signed it; exit status 1 where they differ
    Verify(proof::Verify),
    /// The record as a file that proves itself
    Export(proof::Export),
    /// The keys that members sign the log's tree heads with; -o name: the voters' alone, as --keys takes them
    Keys,
    /// A signed tree head to keep: with it, later, a cut end and a rewritten history are seen
    Note {
        /// Of the tree of so many events [default: all]
        size: Option<u64>,
    },
    /// Prove that an event is in the log, and check the proof
    Proof(proof::Prove),
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
        match self {
            Self::Verify(args) => match args.run(global)? {
                Some(trust) => verify(Client::open(global)?.patient(), global, &trust).await,
                None => Ok(()),
            },
            Self::Stats => stats(global).await,
            Self::Export(args) => args.run(global).await,
            Self::Keys => proof::keys(global).await,
            Self::Note { size } => proof::note(global, size).await,
            Self::Proof(args) => args.run(global).await,
            Self::Checkpoint => {
                let mut client = Client::open(global)?;
                let made = client.post("/log/checkpoint", None).await?;
                CHECKPOINT.row(global, &made, &Names::default())
            }
            Self::Checkpoints => {
                let mut client = Client::open(global)?;
                let items = match client.get("/log/checkpoints").await?.get_mut("items").map(Value::take) {
                    Some(Value::Array(items)) => items,
                    Some(_) | None => Vec::new(),
                };
                CHECKPOINT.list(global, items, &Names::default())
            }
        }
    }
}

async fn stats(global: &Global) -> Result<(), Failure> {
    let answer = Client::open(global)?.get("/log/stats").await?;
    if matches!(global.output, Format::Json | Format::Yaml) {
        return document(global.output, &answer);
    }
    let stats: LogStats = serde_json::from_value(answer)
        .map_err(|e| Failure::new("answer_unknown", format!("the controller's answer is not understood: {e}")))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let mut facts = vec![("member", stats.member_id.to_string())];
    facts.extend(stats::facts(&stats, now));
    sheet(&facts)
}

async fn verify(mut client: Client, global: &Global, trust: &proof::Trust) -> Result<(), Failure> {
    // Draws on a terminal's stderr, and nothing elsewhere.
    let spinner = ProgressBar::new_spinner().with_message("replaying the log");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let answer = client.post("/log/verify", None).await;
    spinner.finish_and_clear();
    let report = answer?;
    let (ok, problem) = (report.get("ok").and_then(Value::as_bool).unwrap_or_default(), text(&report, "problem"));
    // What does not replay proves nothing.
    let proven = match ok {
        true => proof::live(&mut client, trust, number(&report, "events"), &text(&report, "root")).await?,
        false => Vec::new(),
    };
    let result = if ok { "ok: every event replays to the state that runs" } else { "DIFFERS" };
    // Those that were replayed.
    let events = (number(&report, "events") + 1).saturating_sub(number(&report, "fromSeq").max(1));
    let mut facts = vec![
        ("result", result.to_owned()),
        ("events", format!("{events} in {} entries", number(&report, "entries"))),
        ("replayed", replayed(&report)),
        ("digest", text(&report, "digest")),
        ("root", text(&report, "root")),
        ("checkpoint", checkpoint(&report)),
        ("took", format!("{} ms", number(&report, "millis"))),
    ];
    facts.extend(proven);
    match global.output {
        Format::Json | Format::Yaml => document(global.output, &report)?,
        Format::Table | Format::Wide | Format::Name => sheet(&facts)?,
    }
    match ok {
        true => Ok(()),
        false => Err(Failure::new("log_differs", problem)
            .hint("keep this member's data folder as it is; another member or a backup has the truth")),
    }
}

fn replayed(report: &Value) -> String {
    match number(report, "fromSeq") {
        0 | 1 => "from the first event".to_owned(),
        from => format!("from event {from} on; of what was before, the state is kept"),
    }
}

fn checkpoint(report: &Value) -> String {
    match number(report, "checkpointSeq") {
        0 => "none yet; `cvlanctl log checkpoint` makes one".to_owned(),
        seq => format!("{} at event {seq}, replayed to the same", text(report, "checkpointDigest")),
    }
}

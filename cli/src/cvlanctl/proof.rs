//! `cvlanctl log export|verify|keys|note|proof`: the record as a file, and what proves it, checked here and not there.

use crate::Global;
use crate::client::{self, Client, encoded};
use crate::failure::Failure;
use crate::print::{Column, Format, Names, Noun, document, lines, number, sheet, talk, text};
use clap::{Args, ValueEnum};
use cvlan_core::id::Seq;
use cvlan_core::log::export::{Checker, ExportFault, ExportReport, FORMAT, MAGIC, majority};
use cvlan_core::log::held::{HeldError, held_read, reaches};
use cvlan_core::log::merkle::Hash;
use cvlan_core::log::note::{NOTE_MAX, Note, TreeHead, Verifier};
use cvlan_core::log::proof::{continued, included};
use cvlan_core::log::records::{RECORD_MAX, Splitter};
use cvlan_proto::v1::ExportRecord;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Redacted events that are named.
const REDACTED_NAMED: usize = 12;
/// The longest line: a record with its bytes in base64, and to read.
const LINE_MAX: usize = 4 * RECORD_MAX;
/// Read from a file at once, bytes.
const PIECE: usize = 1 << 20;

/// The form of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// One JSON object a line, with each event to read
    #[default]
    Ndjson,
    /// Compact
    Binary,
}

/// `cvlanctl log export`
#[derive(Args)]
#[command(after_help = "\
Examples:
  cvlanctl log export all.ndjson                     everything that you may audit
  cvlanctl -t acme log export acme.ndjson            acme's events; hashes stand for the others
  cvlanctl log export --form binary all.cvx          compact: quicker to check
  cvlanctl log export - | jq -c '.event.decoded // empty'
  cvlanctl log verify all.ndjson --keys voters.keys  offline, whenever you like")]
pub struct Export {
    /// Where to; - = stdout. The file appears once it is whole
    file: PathBuf,
    /// ndjson or binary
    #[arg(long, value_enum, default_value_t, value_name = "FORM", hide_possible_values = true)]
    form: Form,
    /// The first event that is shown; hashes stand for those before
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// The last event [default: the newest]
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    /// Show the tree at this event too, so that a note that you hold from then can be compared
    #[arg(long, value_name = "SEQ", value_delimiter = ',')]
    since: Vec<u64>,
}

/// Who signs, and what was signed before.
#[derive(Args, Clone, Debug, Default)]
pub struct Trust {
    /// The voters' keys, NAME+HASH+KEY, one a line: more than half of them must have signed
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// A note that you kept from before, by `cvlanctl log note`; may be given several times
    #[arg(long, value_name = "FILE")]
    held: Vec<PathBuf>,
}

/// `cvlanctl log verify`
#[derive(Args)]
#[command(after_help = "\
Examples:
  cvlanctl log verify                                the controller replays its log and compares every checkpoint
  cvlanctl log verify --keys voters.keys --held old.note
                                                     and the voters sign that it continues what they signed before
  cvlanctl log verify all.ndjson --keys voters.keys  a file, without a controller
What cannot be seen: that the end was cut off, or that a majority of the voters rewrote history together, unless you hold a
note from before (`cvlanctl log note > held.note`).")]
pub struct Verify {
    /// An export; without one, the log of the controller
    file: Option<PathBuf>,
    /// The event from which on the export shows what there is, where that is not the first
    #[arg(long, value_name = "SEQ", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(hide_default_value = true, requires = "file")]
    from: u64,
    #[command(flatten)]
    trust: Trust,
}

/// `cvlanctl log proof`
#[derive(Args)]
pub struct Prove {
    /// The event
    seq: u64,
    /// In the tree of so many events [default: all]
    #[arg(long, value_name = "SEQ")]
    size: Option<u64>,
    #[command(flatten)]
    trust: Trust,
}

const KEY: Noun = Noun {
    name: "key",
    path: "keys",
    key: "verifier",
    columns: &[
        Column { name: "member", wide: false, value: |i, _| text(i, "memberName") },
        Column { name: "id", wide: false, value: |i, _| text(i, "memberId") },
        Column { name: "votes", wide: false, value: |i, _| text(i, "voter") },
        Column { name: "verifier", wide: false, value: |i, _| text(i, "verifier") },
    ],
};

pub fn io(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |e| Failure::new("file", format!("{}: {e}", path.display()))
}

/// The voters' keys in a file; of no file, none.
pub fn keys_read(path: Option<&Path>) -> Result<Vec<Verifier>, Failure> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    Verifier::parse_all(&text).map_err(|e| Failure::new("key_invalid", format!("{}: {e}", path.display())))
}

impl Trust {
    fn keys(&self) -> Result<Vec<Verifier>, Failure> {
        keys_read(self.keys.as_deref())
    }

    fn held(&self) -> Result<Vec<TreeHead>, Failure> {
        let read = |path: &PathBuf| {
            let mut bytes = Vec::new();
            let file = File::open(path).map_err(io(path))?;
            file.take(NOTE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io(path))?;
            held_read(&bytes).map_err(|e| Failure::new("note_invalid", format!("{}: {e}", path.display())))
        };
        self.held.iter().map(read).collect()
    }
}

/// The keys that count, or everybody's as a table.
pub async fn keys(global: &Global) -> Result<(), Failure> {
    let mut client = Client::open(global)?;
    let answer = client.get("/log/keys").await?;
    if matches!(global.output, Format::Json | Format::Yaml) {
        return document(global.output, &answer);
    }
    let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    // Names alone are what `--keys` takes: those who do not vote do not count.
    let votes = |item: &Value| item.get("voter").and_then(Value::as_bool).unwrap_or_default();
    let items = items.into_iter().filter(|item| global.output != Format::Name || votes(item)).collect();
    KEY.list(global, items, &Names::default())
}

/// A signed tree head to keep.
pub async fn note(global: &Global, size: Option<u64>) -> Result<(), Failure> {
    let mut client = Client::open(global)?;
    let proof = client.get(&format!("/log/proof{}", size.map(|n| format!("?size={n}")).unwrap_or_default())).await?;
    let (signers, voters) =
        (proof.get("signers").and_then(Value::as_array).map_or(0, Vec::len), number(&proof, "voters"));
    if signers as u64 * 2 <= voters {
        talk(&format!("cvlanctl: {signers} of {voters} voters have signed it: that is no majority; try again later"));
    }
    lines([text(&proof, "note").trim_end_matches('\n').to_owned()])
}

impl Prove {
    /// Does it.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let (known, held) = (self.trust.keys()?, self.trust.held()?);
        let mut client = Client::open(global)?;
        let mut path = format!("/log/proof?seq={}", self.seq);
        if let Some(size) = self.size {
            path.push_str(&format!("&size={size}"));
        }
        let proof = client.get(&path).await?;
        let (size, signed) = checked(&proof, &known)?;
        let (leaf, hashes) = (hash(&proof, "leaf")?, path_of(&proof, "inclusion")?);
        if number(&proof, "seq") != self.seq || !included(leaf, self.seq - 1, size.size, &size.root, &hashes) {
            return Err(Failure::new(
                "proof_wrong",
                format!("the controller's proof that event {} is in the log is wrong", self.seq),
            ));
        }
        let continues = continues(&mut client, &size, &held).await?;
        if matches!(global.output, Format::Json | Format::Yaml) {
            return document(global.output, &proof);
        }
        sheet(&[
            ("result", format!("ok: event {} is in the log of {} events", self.seq, size.size)),
            ("leaf", hex::encode(leaf)),
            ("path", format!("{} hashes", hashes.len())),
            ("root", hex::encode(size.root)),
            ("signed by", signed),
            ("continues", continues),
        ])
    }
}

/// The tree head of a proof, and who signed it.
fn checked(proof: &Value, known: &[Verifier]) -> Result<(TreeHead, String), Failure> {
    let wrong = |e: &dyn ToString| Failure::new("note_invalid", e.to_string());
    let note = Note::parse(text(proof, "note").as_bytes()).map_err(|e| wrong(&e))?;
    let head = TreeHead::parse(note.text()).map_err(|e| wrong(&e))?;
    if head.size != number(proof, "size") || head.root != hash(proof, "root")? {
        return Err(wrong(&"the note is not of the tree that is proven"));
    }
    let signers = match known {
        [] => unknown_keys(),
        known => majority(&note, known).map_err(|e| Failure::new("not_signed", e))?.join(", "),
    };
    Ok((head, signers))
}

pub fn unknown_keys() -> String {
    "not looked at: name the voters' keys with --keys".to_owned()
}

/// The controller proves that its log of `head` continues what was held.
async fn continues(client: &mut Client, head: &TreeHead, held: &[TreeHead]) -> Result<String, Failure> {
    for old in held {
        reaches(old, head.size).map_err(|e| differs(e.to_string()))?;
        if old.size == 0 {
            continue;
        }
        let proof = client.get(&format!("/log/proof?size={}&since={}", head.size, old.size)).await?;
        let path = path_of(&proof, "consistency")?;
        if !continued(old.size, &old.root, head.size, &head.root, &path) {
            return Err(differs(HeldError::Rewritten { size: old.size }.to_string()));
        }
    }
    Ok(match held {
        [] => String::new(),
        held => held.iter().map(|old| format!("event {}", old.size)).collect::<Vec<_>>().join(", "),
    })
}

fn differs(detail: String) -> Failure {
    Failure::new("log_differs", detail)
}

/// The running log: what it has signed now, and that this continues what was held.
pub async fn live(
    client: &mut Client,
    trust: &Trust,
    size: u64,
    root: &str,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let (known, held) = (trust.keys()?, trust.held()?);
    if known.is_empty() && held.is_empty() {
        return Ok(Vec::new());
    }
    let proof = client.get(&format!("/log/proof?size={size}")).await?;
    let (head, signed) = checked(&proof, &known)?;
    if hex::encode(head.root) != root {
        return Err(differs(format!(
            "the events replay to root {root}, and another one was signed: {}",
            hex::encode(head.root)
        )));
    }
    Ok(vec![("signed by", signed), ("continues", continues(client, &head, &held).await?)])
}

fn hash(proof: &Value, name: &str) -> Result<Hash, Failure> {
    unhex(&text(proof, name)).ok_or_else(|| Failure::new("proof_wrong", format!("{name} is no hash")))
}

fn unhex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).ok().map(|()| hash)
}

fn path_of(proof: &Value, name: &str) -> Result<Vec<Hash>, Failure> {
    let items = proof.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let path: Option<Vec<Hash>> = items.iter().map(|item| unhex(item.as_str()?)).collect();
    path.ok_or_else(|| Failure::new("proof_wrong", format!("{name} is no path of hashes")))
}

impl Export {
    /// Does it; what comes is checked on its way.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut client = Client::open(global)?;
        let form = if self.form == Form::Binary { "binary" } else { "ndjson" };
        let mut path = format!("/log/export?form={form}");
        let since: Vec<String> = self.since.iter().map(u64::to_string).collect();
        // Only a tenant that is named narrows it.
        for (name, value) in [
            ("tenant", global.tenant.clone()),
            ("from", self.from.map(|n| n.to_string())),
            ("to", self.to.map(|n| n.to_string())),
            ("since", (!since.is_empty()).then(|| since.join(","))),
        ] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encoded(&value)));
            }
        }
        let mut stream = client.stream(&path, "*/*").await?;
        let stdout = self.file == Path::new("-");
        let beside = self.file.with_added_extension("part");
        let mut out: Box<dyn Write> = match stdout {
            true => Box::new(std::io::stdout().lock()),
            false => Box::new(private(&beside).map_err(io(&beside))?),
        };
        if stream.headers().contains_key("cvlan-no-majority") {
            talk(
                "cvlanctl: too few voters could be asked to sign it: it cannot be verified with --keys; export again later",
            );
        }
        let (mut check, bar) = (Check::new(Vec::new(), Vec::new(), self.from.unwrap_or(1)), bar());
        let lost =
            |why: String| Failure::new("unreachable", format!("the export was cut off: {why}")).hint("begin it again");
        while let Some(piece) = client::piece(&mut stream).await.map_err(lost)? {
            out.write_all(piece.as_ref())?;
            check.take(piece.as_ref()).map_err(fault)?;
            check.show(&bar);
        }
        out.flush()?;
        drop(out);
        bar.finish_and_clear();
        let report = check.finish().map_err(fault)?;
        if !stdout {
            File::open(&beside).and_then(|file| file.sync_all()).map_err(io(&beside))?;
            std::fs::rename(&beside, &self.file).map_err(io(&self.file))?;
            return print(global, &report);
        }
        Ok(())
    }
}

impl Verify {
    /// What to check beside the log itself; the file, if there is one, is checked.
    pub fn run(self, global: &Global) -> Result<Option<Trust>, Failure> {
        let Some(path) = self.file else { return Ok(Some(self.trust)) };
        let (mut check, bar) = (Check::new(self.trust.keys()?, self.trust.held()?, self.from), bar());
        let mut file = File::open(&path).map_err(io(&path))?;
        let mut piece = vec![0; PIECE];
        loop {
            let length = file.read(&mut piece).map_err(io(&path))?;
            let Some(piece) = piece.get(..length).filter(|piece| !piece.is_empty()) else { break };
            check.take(piece).map_err(fault)?;
            check.show(&bar);
        }
        bar.finish_and_clear();
        print(global, &check.finish().map_err(fault)?)?;
        Ok(None)
    }
}

/// A new file for this user alone, whatever is left there of one that was cut off: the record names people, and what they did.
fn private(path: &Path) -> std::io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn fault(fault: ExportFault) -> Failure {
    Failure::new("log_differs", fault.to_string()).hint("do not trust this file; export again, and look who had it")
}

pub fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} events  {per_sec}  {eta}") {
        bar.set_style(style);
    }
    bar
}

fn print(global: &Global, report: &ExportReport) -> Result<(), Failure> {
    if matches!(global.output, Format::Json | Format::Yaml) {
        let report = json!({
            "ok": true,
            "epoch": report.epoch,
            "tenantId": report.tenant_id,
            "to": report.to.0.to_string(),
            "events": report.events.to_string(),
            "from": report.from.0.to_string(),
            "redacted": report.redacted.iter().map(|seq| seq.0.to_string()).collect::<Vec<_>>(),
            "hidden": report.hidden.to_string(),
            "root": hex::encode(report.root),
            "signers": report.signers,
            "checkpoints": report.checkpoints.to_string(),
            "held": report.held.to_string(),
        });
        return document(global.output, &report);
    }
    let named = report.redacted.iter().take(REDACTED_NAMED).map(|seq| seq.0.to_string()).collect::<Vec<_>>().join(", ");
    let redacted = match report.redacted.len() {
        0 => String::new(),
        n if n > REDACTED_NAMED => {
            format!("{n} ({named}, …): that they happened is proven, what is shown of them is not")
        }
        _ => format!("{named}: that they happened is proven, what is shown of them is not"),
    };
    let from = match report.from.0 {
        1 => String::new(),
        from => format!("{from}: what happened before is not shown"),
    };
    sheet(&[
        ("result", "ok: the root stands for every event that is shown".to_owned()),
        ("log", format!("{}.{}", report.epoch, report.to)),
        ("from", from),
        ("tenant", report.tenant_id.clone()),
        ("events", format!("{} shown, {} hidden", report.events, report.hidden)),
        ("redacted", redacted),
        ("root", hex::encode(report.root)),
        ("signed by", report.signers.as_ref().map_or_else(unknown_keys, |names| names.join(", "))),
        ("compared", format!("{} checkpoints in it, {} held", report.checkpoints, report.held)),
    ])
}

/// Cuts what comes into records, whichever form it has.
struct Check {
    checker: Checker,
    binary: Splitter,
    /// A line that is not whole yet.
    line: Vec<u8>,
    /// `None` = nothing has come yet.
    lines: Option<bool>,
}

impl Check {
    fn new(known: Vec<Verifier>, held: Vec<TreeHead>, from: u64) -> Self {
        let (checker, binary) = (Checker::new(known, held, Seq(from)), Splitter::new(MAGIC, FORMAT));
        Self { checker, binary, line: Vec::new(), lines: None }
    }

    fn show(&self, bar: &ProgressBar) {
        let (done, all) = self.checker.progress();
        bar.set_length(all);
        bar.set_position(done);
    }

    fn take(&mut self, piece: &[u8]) -> Result<(), ExportFault> {
        let Some(first) = piece.first() else { return Ok(()) };
        match *self.lines.get_or_insert(*first == b'{') {
            true => self.lines(piece),
            false => self.records(piece),
        }
    }

    fn records(&mut self, piece: &[u8]) -> Result<(), ExportFault> {
        self.binary.push(piece);
        while let Some((record, _)) = self.binary.take().map_err(|what| self.checker.unreadable(&what))? {
            self.checker.record(record)?;
        }
        Ok(())
    }

    fn lines(&mut self, mut piece: &[u8]) -> Result<(), ExportFault> {
        while let Some(end) = piece.iter().position(|b| *b == b'\n') {
            let (line, rest) = piece.split_at(end + 1);
            self.line.extend_from_slice(line);
            let record = serde_json::from_slice::<ExportRecord>(&self.line);
            self.checker.record(record.map_err(|e| self.checker.unreadable(&format!("it does not parse: {e}")))?)?;
            self.line.clear();
            piece = rest;
        }
        self.line.extend_from_slice(piece);
        match self.line.len() > LINE_MAX {
            true => Err(self.checker.unreadable("it is longer than any that is ever written")),
            false => Ok(()),
        }
    }

    fn finish(self) -> Result<ExportReport, ExportFault> {
        let cut = match self.lines {
            None => return Err(self.checker.unreadable("the file is empty")),
            Some(true) => !self.line.is_empty(),
            Some(false) => !self.binary.is_empty(),
        };
        match cut {
            true => Err(self.checker.unreadable("it is cut off")),
            false => self.checker.finish(),
        }
    }
}

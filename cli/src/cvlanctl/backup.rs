//! `cvlanctl cluster backup`: the log as a file, checked on its way, and gone on with where it was cut off.

use crate::Global;
use crate::client::{self, Client};
use crate::failure::Failure;
use crate::print::{Format, document, sheet, talk, text};
use crate::proof::{bar, io, keys_read as keys, unknown_keys};
use clap::Args;
use cvlan_core::id::Seq;
use cvlan_core::log::backup::{BackupFault, BackupReport, Checker, FORMAT, MAGIC, end};
use cvlan_core::log::records::{Splitter, record_write};
use cvlan_proto::v1::BackupRecord;
use cvlan_proto::v1::backup_record::Kind;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Read from a file at once, bytes.
const PIECE: usize = 1 << 20;

/// What was cut off longer ago is begun anew: a backup is to have what there is now.
const PART_MAX: Duration = Duration::from_secs(3600);

/// `cvlanctl cluster backup`
#[derive(Args)]
#[command(after_help = "\
The file holds every event, or the state before the oldest that is kept and those from there on, and no key: keep a copy of keys/ of a member that votes beside it, in a safe place.
  cvlanctl cluster backup --to cvlan.cvbackup
  cvlan-api restore --from cvlan.cvbackup --keys safe/keys --data-dir /var/lib/cvlan
It is written to FILE.part first; where that is there, and is of this log, the same command goes on with it.")]
pub struct Backup {
    /// The file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The voters' keys (`log keys -o name`): more than half of them must have signed
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Throw away a FILE.part that is not of this log, and begin anew
    #[arg(long)]
    force: bool,
}

impl Backup {
    /// Does it.
    pub async fn run(self, mut client: Client, global: &Global) -> Result<(), Failure> {
        let known = keys(self.keys.as_deref())?;
        let beside = self.to.with_added_extension("part");
        // It has hashes of passwords.
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&beside);
        let mut file = open.map_err(io(&beside))?;
        file.try_lock().map_err(|e| io(&beside)(e.into()))?;
        let mut checker = Checker::new(known.clone());
        let mut whole = held(&mut file, &mut checker).map_err(io(&beside))?;
        if let Some(why) = foreign(&mut client, &mut file, &checker).await? {
            let said = format!("{} {why}", beside.display());
            if !self.force {
                return Err(Failure::new("backup_other", format!("{said}: it is not gone on with")).hint(
                    "move it away to keep it, it may be all that is left; --force throws it away and begins anew",
                ));
            }
            talk(&format!("{said}: beginning anew"));
            whole = 0;
        }
        let age = file.metadata().and_then(|m| m.modified()).map_err(io(&beside))?.elapsed().unwrap_or_default();
        if age > PART_MAX {
            talk(&format!("{} is too old to go on with: beginning anew", beside.display()));
            whole = 0;
        }
        // Without all of the state that it begins with it is hardly begun.
        if whole > 0 && checker.has_state() {
            let (done, all) = checker.progress();
            talk(&format!("going on with {}: {done} of {all} events are there", beside.display()));
        } else {
            (checker, whole) = (Checker::new(known.clone()), 0);
        }
        file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io(&beside))?;
        let (done, all) = checker.progress();
        if done < all || all == 0 {
            match fetch(&mut client, &mut checker, &mut file, &beside).await {
                // What comes next is not kept any more, or not by the member that answers.
                Err(f) if f.code == "history_gone" && done > 0 => {
                    talk(&format!("{} cannot be gone on with ({}): beginning anew", beside.display(), f.detail));
                    checker = Checker::new(known);
                    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(io(&beside))?;
                    fetch(&mut client, &mut checker, &mut file, &beside).await?;
                }
                fetched => fetched?,
            }
        }
        let mut last = Vec::new();
        let record = end(checker.entries(), checker.progress().0);
        record_write(&record, &mut last);
        checker.record(record).map_err(fault)?;
        let report = checker.finish().map_err(fault)?;
        file.write_all(&last).and_then(|()| file.sync_all()).map_err(io(&beside))?;
        std::fs::rename(&beside, &self.to).map_err(io(&self.to))?;
        let folder = self.to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
        print(global, &report)
    }
}

/// Why what is there of a file is not the beginning of a backup of this log, if it is not: another log's may be all that is
/// left of it.
async fn foreign(client: &mut Client, file: &mut File, checker: &Checker) -> Result<Option<String>, Failure> {
    let Some(header) = checker.header() else {
        let begin = [MAGIC.as_slice(), &[FORMAT]].concat();
        let mut found = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.take(begin.len() as u64).read_to_end(&mut found)?;
        return Ok((!begin.starts_with(&found)).then(|| "is no backup".to_owned()));
    };
    let epoch = text(&client.get("/cluster").await?, "epoch");
    if header.epoch != epoch {
        return Ok(Some(format!("is of epoch {}, and the cluster is in {epoch}", header.epoch)));
    }
    let (done, to) = (checker.progress().0, header.to_seq);
    let beyond =
        |to| Ok(Some(format!("has event {to}, and the cluster has not come so far: it is of another history")));
    // What the tree of this log comes to there, whoever signs it: the file is checked against the note at its end.
    for (size, root) in [(done, Some(checker.root())), (to, None)].into_iter().filter(|(size, _)| *size > 0) {
        match client.get(&format!("/log/proof?size={size}")).await {
            Err(f) if f.code == "seq_beyond" => return beyond(size),
            proof => {
                let proof = proof?;
                if root.is_some_and(|root| text(&proof, "root") != hex::encode(root)) {
                    return Ok(Some(format!("begins with {size} events of another history than the cluster's")));
                }
            }
        }
    }
    Ok(None)
}

/// What lacks up to the end, which is the caller's to write: whoever goes on has counted more than the controller.
async fn fetch(client: &mut Client, checker: &mut Checker, file: &mut File, beside: &Path) -> Result<(), Failure> {
    let wanted = checker.header().map(|header| (header.epoch.clone(), header.to_seq));
    let mut path = "/cluster/backup".to_owned();
    match &wanted {
        Some((_, to)) => path.push_str(&format!("?from={}&to={to}", checker.progress().0 + 1)),
        None => file.write_all(&[MAGIC.as_slice(), &[FORMAT]].concat()).map_err(io(beside))?,
    }
    let (mut records, bar, mut ended) = (Splitter::new(MAGIC, FORMAT), bar(), false);
    let mut stream = client.stream(&path, "*/*").await?;
    if stream.headers().contains_key("cvlan-no-majority") {
        talk(
            "cvlanctl: too few voters could be asked to sign it: it cannot be checked with their keys; back up again later",
        );
    }
    let lost = |why: &str| {
        Failure::new("unreachable", format!("the backup was cut off: {why}"))
            .hint("the same command goes on with it, and says why where you may not have it any more")
    };
    while let Some(piece) = client::piece(&mut stream).await.map_err(|why| lost(&why))? {
        records.push(piece.as_ref());
        while let Some((record, bytes)) = records.take::<BackupRecord>().map_err(|what| fault(checker.fault(what)))? {
            match (&record.kind, &wanted) {
                (Some(Kind::Header(header)), Some((epoch, to))) => {
                    if (&header.epoch, &header.to_seq) != (epoch, to) {
                        return Err(Failure::new("epoch_other", "the cluster began another epoch since"));
                    }
                }
                (Some(Kind::End(_)), _) => ended = true,
                (Some(Kind::Header(_) | Kind::State(_) | Kind::Entry(_)) | None, _) => {
                    checker.record(record).map_err(fault)?;
                    file.write_all(&bytes).map_err(io(beside))?;
                }
            }
        }
        let (done, all) = checker.progress();
        bar.set_length(all);
        bar.set_position(done);
    }
    bar.finish_and_clear();
    if ended { Ok(()) } else { Err(lost("the controller ended it")) }
}

fn fault(fault: BackupFault) -> Failure {
    Failure::new("backup_invalid", fault.to_string()).hint("remove what is there of it, and begin anew")
}

/// Reads what is there already, up to the last whole record that is in order; returns how long that is, bytes.
fn held(file: &mut File, checker: &mut Checker) -> std::io::Result<u64> {
    let (mut records, mut piece, mut whole) = (Splitter::new(MAGIC, FORMAT), vec![0; PIECE], 0);
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(whole);
        }
        records.push(piece.get(..length).unwrap_or_default());
        loop {
            let (record, bytes) = match records.take::<BackupRecord>() {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(_) => return Ok(whole),
            };
            // The end is written anew.
            if matches!(record.kind, Some(Kind::End(_))) || checker.record(record).is_err() {
                return Ok(whole);
            }
            let begin = if whole == 0 { MAGIC.len() as u64 + 1 } else { 0 };
            whole += begin + bytes.len() as u64;
        }
    }
}

fn print(global: &Global, report: &BackupReport) -> Result<(), Failure> {
    if matches!(global.output, Format::Json | Format::Yaml) {
        let report = json!({
            "epoch": report.epoch.to_string(),
            "fromSeq": report.from.to_string(),
            "events": report.events.to_string(),
            "entries": report.entries.to_string(),
            "root": hex::encode(report.root),
            "signers": report.signers,
            "memberId": report.header.member_id.to_string(),
            "timeMs": report.header.time_ms.to_string(),
        });
        return document(global.output, &report);
    }
    sheet(&[
        ("result", "ok: every event is the one that the root stands for".to_owned()),
        ("log", format!("{}.{}", report.epoch, report.events)),
        ("history", history(report)),
        ("entries", report.entries.to_string()),
        ("root", hex::encode(report.root)),
        ("signed by", report.signers.as_ref().map_or_else(unknown_keys, |names| names.join(", "))),
        ("keys", "none are in it: keep a copy of keys/ of a member that votes in a safe place".to_owned()),
    ])
}

/// From where on the events are in it.
fn history(report: &BackupReport) -> String {
    match report.from {
        Seq(1) => "whole: from the first event".to_owned(),
        from => format!(
            "from event {from}, behind the state after event {}; the member that sent it can replay none older",
            from.0 - 1
        ),
    }
}

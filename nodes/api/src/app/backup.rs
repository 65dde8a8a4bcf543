//! Backups: the log as it is here, as a stream, or by itself into a folder.
//!
//! ```text
//!  signed tree head ─► header ─► state, if history begins with one ─► entries, page by page ─► end    (cvlan_core::log::backup)
//!  --backup-dir: every so often ─► .NAME.part ─► read back and checked ─► NAME ─► those beyond --backup-keep are removed
//! ```

use super::proof::beyond;
use super::{App, now_ms};
use crate::problem::Problem;
use bytes::Bytes;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_core::log::backup::{BackupFault, BackupReport, Checker, FORMAT, MAGIC, Part, begins, end, record};
use cvlan_core::log::entry_decode;
use cvlan_core::log::note::Verifier;
use cvlan_core::log::records::{Splitter, record_write};
use cvlan_core::rules::timestamp;
use cvlan_proto::v1::backup_record::Kind;
use cvlan_proto::v1::{
    BackupBase, BackupEntry, BackupHeader, BackupMembers, BackupRecord, BackupState, BackupVoters, LogBackup,
};
use cvlan_raft::{Base, HistoryError, Item, Members, Reading, Restored};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::sleep;

/// Entries read at once.
const PAGE: usize = 1024;
/// Read from a file at once, bytes.
const PIECE: usize = 1 << 20;
/// Bytes of a state in one record.
const STATE: usize = 256 << 10;
/// What a backup's name ends with.
const ENDING: &str = "cvbackup";
/// What one that is not whole ends with.
const PART: &str = ".part";
/// After a backup that failed.
const AGAIN: Duration = Duration::from_secs(300);

/// Backups that a member makes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Where to.
    pub folder: PathBuf,
    /// How often.
    pub every: Duration,
    /// How many stay.
    pub keep: usize,
}

/// The newest backup that came to its end.
#[derive(Default)]
pub struct Made(Mutex<Option<LogBackup>>);

impl Made {
    /// Which; `None` where this member knows of none.
    pub fn last(&self) -> Option<LogBackup> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One was sent to a caller, up to this event.
    pub fn sent(&self, seq: u64) {
        self.set(LogBackup { seq, time: Some(timestamp(now_ms())), file: String::new() });
    }

    fn set(&self, backup: LogBackup) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(backup);
    }
}

/// Entries of the log, as records of a backup.
pub struct Backup {
    app: Arc<App>,
    /// What is to be sent first.
    begin: Option<Vec<u8>>,
    /// What is left of the state that it begins with.
    state: Bytes,
    next: u64,
    to: u64,
    entries: u64,
    /// What is to be sent stays.
    reading: Reading,
    /// A majority of the voters signed it.
    pub signed: bool,
}

impl Backup {
    /// Of the log up to `to`, an entry's last event; to go on with one that was cut off: from the entry that begins with
    /// event `from`.
    pub async fn begin(app: Arc<App>, from: u64, to: Option<u64>) -> Result<Self, Problem> {
        let reading = app.log.history_reading(Seq(if from == 1 { app.log.status().history_from } else { from }));
        let base = if from == 1 { app.log.backup_base().await? } else { None };
        let mut head = app.log.head();
        let upto = to;
        let to = to.unwrap_or(head.seq.0);
        if to == 0 || to > head.seq.0 {
            return Err(beyond("to", to, head.seq));
        }
        if from == 0 || from > to {
            return Err(beyond("from", from, Seq(to)));
        }
        let next = base.as_ref().map_or(from, |base| base.seq.0 + 1);
        reading.at(Seq(next));
        if next > to + 1 {
            return Err(HistoryError::Gone { first: Seq(next) }.into());
        }
        let mut to = to;
        if let Some(base) = &base {
            if upto.is_some_and(|upto| upto != head.seq.0) {
                let detail =
                    format!("history begins with event {next}: a backup with the state before it goes up to now");
                return Err(Problem::invalid("seq_within", detail));
            }
            // One at least is to follow that says what the state is.
            if head.machine.system.checkpoints.last().is_none_or(|last| last.seq <= base.seq.0) {
                app.log.checkpoint().await?;
                app.log.linearize().await?;
                head = app.log.head();
            }
            to = head.seq.0;
        }
        // Before the first byte, so that what is not here any more is an answer of its own.
        app.log.entries_from(Seq(next), 1).await?;
        let signed = app.notary.collect(&app.voters, Seq(to)).await?;
        let valid = signed.valid;
        let header = BackupHeader {
            epoch: head.epoch.to_string(),
            to_seq: to,
            note: signed.note.to_string(),
            member_id: app.member.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time_ms: head.time_ms,
            base: base.as_ref().map(base_said),
        };
        let state = base.map(|base| base.packed).unwrap_or_default();
        let mut begin = [MAGIC.as_slice(), &[FORMAT]].concat();
        record_write(&record(Kind::Header(header)), &mut begin);
        Ok(Self { app, begin: Some(begin), state, next, to, entries: 0, reading, signed: valid })
    }

    /// Its last event.
    pub fn to(&self) -> u64 {
        self.to
    }

    /// The next piece; `None` after the last.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        if let Some(begin) = self.begin.take() {
            return Ok(Some(begin.into()));
        }
        let mut out = Vec::new();
        if !self.state.is_empty() {
            let piece = self.state.split_to(STATE.min(self.state.len()));
            record_write(&record(Kind::State(BackupState { piece })), &mut out);
            return Ok(Some(out.into()));
        }
        if self.next > self.to + 1 {
            return Ok(None);
        }
        if self.next == self.to + 1 {
            // Whoever goes on with one that was cut off counts the entries itself.
            record_write(&end(self.entries, self.to), &mut out);
            self.next += 1;
            return Ok(Some(out.into()));
        }
        self.reading.at(Seq(self.next));
        for item in self.app.log.backup_from(Seq(self.next), PAGE).await? {
            let entry = match item {
                Item::Members(members) => {
                    record_write(&record(Kind::Entry(members_entry(members))), &mut out);
                    continue;
                }
                Item::Frame(entry) => entry,
            };
            if entry.first_seq.0 != self.next {
                let detail = format!("no entry begins with event {}", self.next);
                return Err(Problem::invalid("seq_within", detail));
            }
            let events = entry_decode(&entry.frame).map_err(Problem::internal)?.events.len() as u64;
            (self.next, self.entries) = (self.next + events, self.entries + 1);
            record_write(&record(Kind::Entry(BackupEntry { frame: entry.frame, members: None })), &mut out);
            if self.next > self.to {
                break;
            }
        }
        if self.next > self.to + 1 {
            return Err(Problem::invalid("seq_within", format!("event {} is within an entry", self.to)));
        }
        match out.is_empty() {
            true => Err(Problem::internal(format!("event {} is not here", self.next))),
            false => Ok(Some(out.into())),
        }
    }
}

fn base_said(base: &Base) -> BackupBase {
    BackupBase {
        seq: base.seq.0,
        roots: base.tree.roots().iter().map(|root| Bytes::copy_from_slice(root)).collect(),
        digest: Bytes::copy_from_slice(&base.digest),
        length: base.length,
        packed_length: base.packed.len() as u64,
    }
}

fn members_entry(Members { voters, addresses }: Members) -> BackupEntry {
    let voters = voters.into_iter().map(|set| BackupVoters { ids: set.into_iter().collect() }).collect();
    let members = Some(BackupMembers { voters, addresses });
    BackupEntry { members, ..BackupEntry::default() }
}

/// What a log is made of again.
pub fn restored(BackupEntry { frame, members }: BackupEntry) -> Restored {
    match members {
        None => Restored::Frame(frame),
        Some(BackupMembers { voters, addresses }) => {
            let voters = voters.into_iter().map(|set| set.ids.into_iter().collect()).collect();
            Restored::Members(Members { voters, addresses })
        }
    }
}

/// Why a file is no backup to use.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The disk.
    #[error("{file}: {source}")]
    Io {
        /// Its path.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("{file}: {fault}")]
    Fault {
        /// Its path.
        file: String,
        /// Where, and what.
        fault: BackupFault,
    },
}

/// A backup's file, read entry by entry.
pub struct Reader {
    path: PathBuf,
    file: File,
    records: Splitter,
    /// Until the end.
    checker: Option<Checker>,
    /// After it.
    report: Option<BackupReport>,
    /// Was read, and not taken.
    ahead: Option<Part>,
    piece: Vec<u8>,
}

impl Reader {
    /// Opens one. `known`: the voters' keys; none = signatures are not looked at.
    pub fn open(path: &Path, known: Vec<Verifier>) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(|source| BackupError::Io { file: path.display().to_string(), source })?;
        let (checker, records) = (Some(Checker::new(known)), Splitter::new(MAGIC, FORMAT));
        Ok(Self { path: path.to_owned(), file, records, checker, report: None, ahead: None, piece: vec![0; PIECE] })
    }

    /// The state that it begins with, if it has one; before the first entry.
    pub fn base(&mut self) -> Result<Option<Base>, BackupError> {
        let mut packed = Vec::new();
        loop {
            match self.part()? {
                Some(Part::State(piece)) => packed.extend_from_slice(&piece),
                other => {
                    self.ahead = other;
                    break;
                }
            }
        }
        let report = self.report.as_ref().map(|report| &report.header);
        let header = report.or_else(|| self.checker.as_ref().and_then(Checker::header));
        let said = header.and_then(|header| header.base.as_ref());
        Ok(said.and_then(|base| {
            let (tree, digest) = (begins(base)?, base.digest.as_ref().try_into().ok()?);
            Some(Base { seq: Seq(base.seq), tree, digest, length: base.length, packed: packed.into() })
        }))
    }

    /// The next entry; `None` after the end, where all is in order.
    pub fn entry(&mut self) -> Result<Option<BackupEntry>, BackupError> {
        loop {
            match self.part()? {
                Some(Part::Entry(entry)) => return Ok(Some(entry)),
                Some(Part::State(_)) => {}
                None => return Ok(None),
            }
        }
    }

    fn part(&mut self) -> Result<Option<Part>, BackupError> {
        if let Some(part) = self.ahead.take() {
            return Ok(Some(part));
        }
        let file = self.path.display().to_string();
        let fault = |fault| BackupError::Fault { file: file.clone(), fault };
        while let Some(checker) = &mut self.checker {
            match self.records.take::<BackupRecord>().map_err(|what| fault(checker.fault(what)))? {
                Some((record, _)) => {
                    if let Some(part) = checker.record(record).map_err(fault)? {
                        return Ok(Some(part));
                    }
                }
                None => {
                    let read = self.file.read(&mut self.piece);
                    let length = read.map_err(|source| BackupError::Io { file: file.clone(), source })?;
                    self.records.push(self.piece.get(..length).unwrap_or_default());
                    if length == 0 {
                        if !self.records.is_empty() {
                            return Err(fault(checker.fault("the file ends within a record: it was cut off")));
                        }
                        self.report = self.checker.take().map(Checker::finish).transpose().map_err(fault)?;
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Reads a backup through.
pub fn check(path: &Path, known: Vec<Verifier>) -> Result<BackupReport, BackupError> {
    let mut reader = Reader::open(path, known)?;
    while reader.entry()?.is_some() {}
    reader.report.ok_or_else(|| BackupError::Fault {
        file: path.display().to_string(),
        fault: Checker::default().fault("it was not read to its end"),
    })
}

/// Makes backups for as long as the controller runs.
pub async fn keep(app: Arc<App>, schedule: Schedule) {
    let (mut last, mut wait) = (None, first(&app, &schedule).await);
    loop {
        sleep(wait).await;
        wait = schedule.every;
        let head = app.log.head().checkpoint();
        if last == Some(head) {
            continue;
        }
        match once(&app, &schedule).await {
            Ok((path, seq)) => {
                let head = Checkpoint { seq: Seq(seq), ..head };
                app.backups.set(LogBackup { seq, time: Some(timestamp(now_ms())), file: file_name(&path) });
                tracing::info!(path = %path.display(), "a backup was made, and read back");
                last = Some(head);
            }
            Err(why) => {
                tracing::error!(why, "no backup was made");
                wait = wait.min(AGAIN);
            }
        }
    }
}

/// What this member's backups of this epoch are called, after the time of their last event.
fn ours(app: &App) -> String {
    let epoch = app.log.head().epoch.to_string();
    format!("-{}-m{}-", epoch.get(..8).unwrap_or_default(), app.member)
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(job).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// A member that starts again goes on with the one that it made last.
async fn first(app: &App, schedule: &Schedule) -> Duration {
    let (folder, ours) = (schedule.folder.clone(), ours(app));
    let newest = move || {
        let Some(path) = made(&folder, &ours)?.pop() else { return Ok(None) };
        let at = std::fs::metadata(&path)?.modified()?;
        Ok(Some((file_name(&path), at)))
    };
    let Ok(Some((file, at))) = blocking(newest).await else { return Duration::ZERO };
    // Its last event is the last thing in its name.
    let seq = file.trim_end_matches(ENDING).trim_end_matches('.').rsplit('-').next().and_then(|seq| seq.parse().ok());
    let time_ms = at.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
    app.backups.set(LogBackup { seq: seq.unwrap_or_default(), time: Some(timestamp(time_ms)), file });
    at.elapsed().map_or(Duration::ZERO, |age| schedule.every.saturating_sub(age))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// One, checked; then those that are too many go.
async fn once(app: &Arc<App>, schedule: &Schedule) -> Result<(PathBuf, u64), String> {
    let told = |problem: Problem| problem.detail.into_owned();
    let mut backup = Backup::begin(app.clone(), 1, None).await.map_err(told)?;
    if !backup.signed {
        return Err("too few voters could be asked to sign it".to_owned());
    }
    let (folder, keep, ours) = (schedule.folder.clone(), schedule.keep, ours(app));
    // A log's time never goes back: in order by name.
    let name = format!("{:015}{ours}{:012}.{ENDING}", app.log.head().time_ms, backup.to);
    let (path, beside) = (folder.join(&name), folder.join(format!(".{name}{PART}")));
    let (part, due, mine) = (beside.clone(), app.log.status().log_bytes + backup.state.len() as u64, ours.clone());
    let mut file = blocking(move || begun(&folder, &part, due, &mine)).await?;
    let written = async {
        while let Some(piece) = backup.piece().await.map_err(told)? {
            // Synced piece by piece: all of it at once would hold up the log's own syncs.
            file = blocking(move || piece_write(file, &piece)).await?;
        }
        let (from, to, folder) = (beside.clone(), path.clone(), schedule.folder.clone());
        blocking(move || {
            file.sync_all()?;
            check(&from, Vec::new()).map_err(io::Error::other)?;
            std::fs::rename(&from, &to)?;
            File::open(&folder)?.sync_all()?;
            if let Err(error) = thin(&folder, &ours, keep, &to) {
                tracing::warn!(%error, "old backups were not removed");
            }
            Ok(())
        })
        .await
    };
    let written = written.await;
    if written.is_err() {
        let _ = blocking(move || std::fs::remove_file(beside)).await;
    }
    written.map(|()| (path, backup.to))
}

/// Makes the part, where there is room for all of it; one that a crash left is removed.
fn begun(folder: &Path, part: &Path, due: u64, ours: &str) -> io::Result<File> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if name.starts_with('.') && name.contains(ours) && name.ends_with(PART) {
            std::fs::remove_file(folder.join(name))?;
        }
    }
    let room = rustix::fs::statvfs(folder)?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free < due {
        let text = format!("{} has {free} bytes left, and the log has {due}", folder.display());
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    File::create(part)
}

fn piece_write(mut file: File, piece: &[u8]) -> io::Result<File> {
    file.write_all(piece)?;
    file.sync_data()?;
    Ok(file)
}

/// Those of this member and epoch, oldest first.
fn made(folder: &Path, ours: &str) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        let is = |rest: &str| rest.starts_with(ours) && rest.ends_with(ENDING);
        if name.split_at_checked(15).is_some_and(|(time, rest)| time.bytes().all(|b| b.is_ascii_digit()) && is(rest)) {
            all.push(folder.join(name));
        }
    }
    all.sort();
    Ok(all)
}

/// Removes the oldest, never the one that was just made.
fn thin(folder: &Path, ours: &str, keep: usize, newest: &Path) -> io::Result<()> {
    let all = made(folder, ours)?;
    let old = all.iter().take(all.len().saturating_sub(keep)).filter(|path| *path != newest);
    old.map(std::fs::remove_file).try_for_each(|removed| match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    })
}

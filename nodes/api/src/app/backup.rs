//! Backups: the log as it is here, as a stream, or by itself into a folder.
//!
//! ```text
//!  signed tree head ─► header ─► entries, page by page ─► end                 (cvlan_core::log::backup)
//!  --backup-dir: every so often ─► NAME.part ─► read back and checked ─► NAME ─► those beyond --backup-keep are removed
//! ```

use super::App;
use super::proof::beyond;
use crate::problem::Problem;
use bytes::Bytes;
use cvlan_core::id::Seq;
use cvlan_core::log::backup::{BackupFault, BackupReport, Checker, FORMAT, MAGIC, end, record};
use cvlan_core::log::entry_decode;
use cvlan_core::log::note::Verifier;
use cvlan_core::log::records::{Splitter, record_write};
use cvlan_proto::v1::backup_record::Kind;
use cvlan_proto::v1::{BackupEntry, BackupHeader, BackupMembers, BackupRecord, BackupVoters};
use cvlan_raft::{Item, Members, Restored};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Entries read at once.
const PAGE: usize = 1024;
/// Read from a file at once, bytes.
const PIECE: usize = 1 << 20;
/// What a backup's name ends with.
const ENDING: &str = "cvbackup";
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

/// Entries of the log, as records of a backup.
pub struct Backup {
    app: Arc<App>,
    /// What is to be sent first.
    begin: Option<Vec<u8>>,
    next: u64,
    to: u64,
    entries: u64,
}

impl Backup {
    /// Of the log up to `to`, an entry's last event; to go on with one that was cut off: from the entry that begins with
    /// event `from`.
    pub async fn begin(app: Arc<App>, from: u64, to: Option<u64>) -> Result<Self, Problem> {
        let head = app.log.head();
        let to = to.unwrap_or(head.seq.0);
        if to == 0 || to > head.seq.0 {
            return Err(beyond("to", to, head.seq));
        }
        if from == 0 || from > to {
            return Err(beyond("from", from, Seq(to)));
        }
        // Before the first byte, so that what is not here any more is an answer of its own.
        app.log.entries_from(Seq(1), 1).await?;
        let signed = app.notary.collect(&app.voters, Seq(to)).await?;
        let header = BackupHeader {
            epoch: head.epoch.to_string(),
            to_seq: to,
            note: signed.note.to_string(),
            member_id: app.member.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time_ms: head.time_ms,
        };
        let mut begin = [MAGIC.as_slice(), &[FORMAT]].concat();
        record_write(&record(Kind::Header(header)), &mut begin);
        Ok(Self { app, begin: Some(begin), next: from, to, entries: 0 })
    }

    /// The next piece; `None` after the last.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        if let Some(begin) = self.begin.take() {
            return Ok(Some(begin.into()));
        }
        if self.next > self.to + 1 {
            return Ok(None);
        }
        let mut out = Vec::new();
        if self.next == self.to + 1 {
            // Whoever goes on with one that was cut off counts the entries itself.
            record_write(&end(self.entries, self.to), &mut out);
            self.next += 1;
            return Ok(Some(out.into()));
        }
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
    piece: Vec<u8>,
}

impl Reader {
    /// Opens one. `known`: the voters' keys; none = signatures are not looked at.
    pub fn open(path: &Path, known: Vec<Verifier>) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(|source| BackupError::Io { file: path.display().to_string(), source })?;
        let (checker, records) = (Some(Checker::new(known)), Splitter::new(MAGIC, FORMAT));
        Ok(Self { path: path.to_owned(), file, records, checker, report: None, piece: vec![0; PIECE] })
    }

    /// The next entry; `None` after the end, where all is in order.
    pub fn entry(&mut self) -> Result<Option<BackupEntry>, BackupError> {
        let file = self.path.display().to_string();
        let fault = |fault| BackupError::Fault { file: file.clone(), fault };
        while let Some(checker) = &mut self.checker {
            match self.records.take::<BackupRecord>().map_err(|what| fault(checker.fault(what)))? {
                Some((record, _)) => {
                    if let Some(entry) = checker.record(record).map_err(fault)? {
                        return Ok(Some(entry));
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
    let mut last = None;
    loop {
        let head = app.log.head().checkpoint();
        let wait = match last == Some(head) {
            true => schedule.every,
            false => match once(&app, &schedule).await {
                Ok(path) => {
                    tracing::info!(path = %path.display(), "a backup was made, and read back");
                    last = Some(head);
                    schedule.every
                }
                Err(why) => {
                    tracing::error!(why, "no backup was made");
                    schedule.every.min(AGAIN)
                }
            },
        };
        sleep(wait).await;
    }
}

/// One, checked; then those that are too many go.
async fn once(app: &Arc<App>, schedule: &Schedule) -> Result<PathBuf, String> {
    let told = |problem: Problem| problem.detail.into_owned();
    let mut backup = Backup::begin(app.clone(), 1, None).await.map_err(told)?;
    let epoch = app.log.head().epoch.to_string();
    // In the order of time by name.
    let name =
        format!("{:015}-{}-{:012}.{ENDING}", crate::app::now_ms(), epoch.get(..8).unwrap_or_default(), backup.to);
    let (path, beside) = (schedule.folder.join(&name), schedule.folder.join(format!(".{name}.part")));
    let io = |e: std::io::Error| format!("{}: {e}", beside.display());
    std::fs::create_dir_all(&schedule.folder).map_err(io)?;
    let written = async {
        let mut file = File::create(&beside).map_err(io)?;
        while let Some(piece) = backup.piece().await.map_err(told)? {
            // Synced piece by piece: all of it at once would hold up the log's own syncs.
            file = tokio::task::spawn_blocking(move || piece_write(file, &piece))
                .await
                .map_err(|e| e.to_string())?
                .map_err(io)?;
        }
        let (from, to, folder, keep) = (beside.clone(), path.clone(), schedule.folder.clone(), schedule.keep);
        let finish = move || -> Result<(), String> {
            let io = |e: std::io::Error| format!("{}: {e}", from.display());
            file.sync_all().map_err(io)?;
            check(&from, Vec::new()).map_err(|e| e.to_string())?;
            std::fs::rename(&from, &to).map_err(io)?;
            File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io)?;
            thin(&folder, keep).map_err(io)
        };
        tokio::task::spawn_blocking(finish).await.map_err(|e| e.to_string())?
    };
    let written = written.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.map(|()| path)
}

fn piece_write(mut file: File, piece: &[u8]) -> std::io::Result<File> {
    file.write_all(piece)?;
    file.sync_data()?;
    Ok(file)
}

/// Removes the oldest of what we made.
fn thin(folder: &Path, keep: usize) -> std::io::Result<()> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (ours, dot) = (path.extension().is_some_and(|e| e == ENDING), name.starts_with('.'));
        if ours && !dot && name.as_bytes().get(..15).is_some_and(|ms| ms.iter().all(u8::is_ascii_digit)) {
            all.push(path);
        }
    }
    all.sort();
    all.iter().take(all.len().saturating_sub(keep)).try_for_each(std::fs::remove_file)
}

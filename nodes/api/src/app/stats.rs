//! The log of this member in numbers; the folder's half of them also while it does not run.

use super::{App, Output};
use crate::problem::Problem;
use cvlan_core::id::Seq;
use cvlan_core::machine::Machine as _;
use cvlan_core::rules::timestamp;
use cvlan_core::{Rules, State};
use cvlan_proto::v1::{LogSink, LogSnapshot, LogStats};
use cvlan_raft::{Head, HistoryError, LogStore};
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Now.
pub async fn stats(app: &App, head: &Head<State>) -> Result<Output<LogStats>, Problem> {
    let raft = app.log.status();
    // What is the first one may be gone by the time that it is read.
    let first = match app.log.history(Seq(raft.history_from), 1).await {
        Err(HistoryError::Gone { first }) => app.log.history(first, 1).await?,
        read => read?,
    };
    let first_time = match first.first() {
        Some((_, bytes)) => Some(timestamp(Rules::time_ms(&Rules::decode(bytes).map_err(Problem::internal)?))),
        None => None,
    };
    let data = app.data.clone();
    let on_disk = move || Ok::<_, io::Error>((snapshots(&data)?, segments(&data)?, LogStore::found(&data)?));
    let on_disk = tokio::task::spawn_blocking(on_disk).await.map_err(Problem::internal)?;
    let (snapshots, of_database, store) = on_disk.map_err(Problem::internal)?;
    let (log_bytes, segments) = match store {
        Some(LogStore::Sled) => of_database,
        Some(LogStore::Wal) | None => (raft.log_bytes, raft.segments),
    };
    let sinks = app.sinks.iter().map(|sink| LogSink {
        number: sink.number() as u32,
        sink: sink.name().to_owned(),
        seq: sink.seq(),
        skipped: sink.skipped(),
        problem: sink.why().unwrap_or_default(),
    });
    let body = LogStats {
        member_id: raft.member,
        epoch: head.epoch.to_string(),
        events: head.seq.0,
        // They are numbered from 0.
        entries: raft.applied_index + 1,
        log_bytes,
        segments,
        first_seq: first.first().map_or(raft.history_from, |(seq, _)| seq.0),
        first_time,
        tree_size: head.tree.size(),
        tree_root: hex::encode(head.root),
        snapshots,
        last_backup: app.backups.last(),
        sinks: sinks.collect(),
        store: store.unwrap_or_default().to_string(),
    };
    Ok(Output::read(head, body))
}

/// Those of a data folder, oldest first.
pub fn snapshots(data: &Path) -> io::Result<Vec<LogSnapshot>> {
    let mut all = Vec::new();
    for (name, meta) in files(&data.join("snapshots"))? {
        let Some(seq) = name.strip_suffix(".snap").and_then(|seq| seq.parse().ok()) else { continue };
        let age = meta.modified()?.duration_since(UNIX_EPOCH);
        let time = Some(timestamp(age.map_or(0, |age| age.as_millis() as u64)));
        all.push(LogSnapshot { seq, time, bytes: meta.len() });
    }
    all.sort_by_key(|snapshot| snapshot.seq);
    Ok(all)
}

/// Bytes and number of the files that hold the log of a data folder: segments, those that came from other members, or a
/// database's.
pub fn segments(data: &Path) -> io::Result<(u64, u64)> {
    let mut all = files(&data.join("log"))?;
    all.append(&mut files(&data.join("past"))?);
    all.retain(|(name, _)| name.ends_with(".seg"));
    all.append(&mut files(&data.join("log/sled"))?);
    all.retain(|(_, meta)| meta.is_file());
    Ok(all.iter().fold((0, 0), |(bytes, count), (_, meta)| (bytes + meta.len(), count + 1)))
}

/// Files of a folder; none where it is not there.
fn files(folder: &Path) -> io::Result<Vec<(String, std::fs::Metadata)>> {
    let found = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let mut all = Vec::new();
    for entry in found {
        let entry = entry?;
        match entry.metadata() {
            // Removed since.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            meta => all.push((entry.file_name().to_string_lossy().into_owned(), meta?)),
        }
    }
    Ok(all)
}

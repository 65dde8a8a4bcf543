//! What keeps the log, side by side: batches of 1 KiB entries, one after the other, each durable before the next.

use super::{Bench, Sample};
use anyhow::{anyhow, ensure};
use bytes::Bytes;
use cvlan_core::grammar::Rng;
use cvlan_raft::store::bare::BareLog;
use cvlan_raft::{Limits, LogStore, Plant};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Bytes of an entry.
const ENTRY: usize = 1024;

/// A sled disk lets go of its folder once all its threads have ended.
const LET_GO: Duration = Duration::from_secs(10);

/// `store_wal_b{BATCH}`.
pub(super) fn wal<const BATCH: usize>(bench: &Bench) -> anyhow::Result<Sample> {
    writes(bench, LogStore::Wal, BATCH)
}

/// `store_sled_b{BATCH}`.
pub(super) fn sled<const BATCH: usize>(bench: &Bench) -> anyhow::Result<Sample> {
    writes(bench, LogStore::Sled, BATCH)
}

fn writes(bench: &Bench, store: LogStore, batch: usize) -> anyhow::Result<Sample> {
    let folder = bench.folder()?;
    let log = open(store, folder.path())?;
    let mut rng = Rng(1);
    let entries: Vec<Bytes> = (0..batch.max(64)).map(|_| Bytes::from(rng.bytes::<ENTRY>().to_vec())).collect();
    let (tx, rx) = sync_channel(1);
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < bench.length() {
        let tx = tx.clone();
        log.append(entries.iter().cycle().skip(count % 64).take(batch).cloned(), move |result| drop(tx.send(result)))?;
        rx.recv()??;
        count += batch;
    }
    let seconds = started.elapsed().as_secs_f64();
    log.close()?;
    let (used, held) = sizes(store, &folder.path().join("log"))?;
    let started = Instant::now();
    let log = open(store, folder.path())?;
    let opened = started.elapsed();
    ensure!(log.count() == count as u64, "{} entries of {count} are there", log.count());
    log.close()?;
    let payload = (count * ENTRY) as f64;
    let keys = vec![
        ("batch", batch.to_string()),
        ("entries", count.to_string()),
        ("disk_per_byte", format!("{:.3}", used as f64 / payload)),
        ("held_per_byte", format!("{:.3}", held as f64 / payload)),
        ("open_ms", format!("{:.1}", opened.as_secs_f64() * 1e3)),
        ("open_ms_per_100_mb", format!("{:.0}", opened.as_secs_f64() * 1e3 / payload * 1e8)),
    ];
    Ok(Sample::new(count as f64 / seconds, keys))
}

fn open(store: LogStore, folder: &Path) -> anyhow::Result<BareLog> {
    let end = Instant::now() + LET_GO;
    loop {
        match LogStore::open(Some(store), folder) {
            Err(cvlan_raft::OpenError::Locked { .. }) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            disk => return BareLog::open(disk?, &Limits::default(), Plant::default()).map_err(|e| anyhow!("{e}")),
        }
    }
}

/// Bytes that hold something, and bytes that the disk has given: of segments, the end is prepared ahead.
fn sizes(store: LogStore, folder: &Path) -> anyhow::Result<(u64, u64)> {
    let (mut used, mut held) = (0, 0);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let (more_used, more_held) = if meta.is_dir() {
            sizes(store, &entry.path())?
        } else if store == LogStore::Wal {
            let bytes = std::fs::read(entry.path())?;
            (bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1), meta.blocks() * 512)
        } else {
            (meta.len(), meta.blocks() * 512)
        };
        used += more_used;
        held += more_held;
    }
    Ok((used, held))
}

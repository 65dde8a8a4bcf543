//! Reading a long log again: recovery from its first event, the scan that checks it, and what it takes on disk.

use super::write::{Fleet, Real, lot, once, open};
use super::{Bench, Sample, folder_bytes, on_tokio};
use anyhow::{anyhow, ensure};
use cvlan_core::Rules;
use cvlan_core::id::Seq;
use cvlan_core::log::{CompactRange, entry_decode};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Callers that fill the log.
const CALLERS: usize = 32;

/// Events that one caller writes, one by one.
const SINGLE: u64 = 5_000;

/// Entries of one page of a scan.
const PAGE: usize = 256;

/// A log of bulks without a snapshot, closed in order.
pub(super) struct LongLog {
    pub(super) folder: TempDir,
    pub(super) events: u64,
    entries: u64,
    root: [u8; 32],
}

impl LongLog {
    pub(super) fn make(bench: &Bench) -> anyhow::Result<Self> {
        on_tokio(async {
            let folder = bench.folder()?;
            let member = open::<Rules>(folder.path(), false).await?;
            member.writable(Duration::from_secs(10)).await;
            let fleet = Fleet::found(&member).await?;
            fill(&member, &fleet, bench.events()).await?;
            let (head, entries) = (member.head(), member.status().entries);
            member.shutdown().await;
            let log = Self { folder, events: head.seq.0, entries, root: head.root };
            ensure!(log.per_entry() >= 16.0, "{} events in {entries} entries: not what a replay reads", log.events);
            Ok(log)
        })
    }

    fn per_entry(&self) -> f64 {
        self.events as f64 / self.entries.max(1) as f64
    }

    pub(super) fn keys(&self) -> Vec<(&'static str, String)> {
        vec![("events", self.events.to_string()), ("events_per_entry", format!("{:.1}", self.per_entry()))]
    }
}

/// Bulks until the log has so many events.
pub(super) async fn fill(member: &Real<Rules>, fleet: &Arc<Fleet>, events: u64) -> anyhow::Result<()> {
    let fillers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (member, fleet) = (member.clone(), fleet.clone());
            tokio::spawn(async move {
                let mut n = 1;
                while member.head().seq.0 < events {
                    lot(member.clone(), fleet.clone(), caller, n).await?;
                    n += 1;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for filler in fillers {
        filler.await??;
    }
    Ok(())
}

/// From the first event to a member that has applied all: reading, checks, decoding, state, tree.
pub(super) fn apply(bench: &Bench) -> anyhow::Result<Sample> {
    let log = bench.long_log()?;
    on_tokio(async {
        let started = Instant::now();
        let member = open::<Rules>(log.folder.path(), false).await?;
        let seconds = started.elapsed().as_secs_f64();
        let applied = member.head();
        member.shutdown().await;
        ensure!(
            (applied.seq.0, applied.root) == (log.events, log.root),
            "applied up to event {} of {}",
            applied.seq,
            log.events
        );
        Ok(Sample::new(log.events as f64 / seconds, log.keys()))
    })
}

/// Every entry read, its checksum and its place in the chain of roots checked, every event a leaf of the tree.
pub(super) fn scan(bench: &Bench) -> anyhow::Result<Sample> {
    let log = bench.long_log()?;
    on_tokio(async {
        let member = open::<Rules>(log.folder.path(), false).await?;
        let started = Instant::now();
        let (tree, bytes) = scan_all(&member, log.events).await?;
        let seconds = started.elapsed().as_secs_f64();
        member.shutdown().await;
        ensure!(tree.root() == log.root, "the scan ends at another root");
        let mut keys = log.keys();
        keys.push(("mb_per_s", format!("{:.1}", bytes as f64 / 1e6 / seconds)));
        Ok(Sample::new(log.events as f64 / seconds, keys))
    })
}

async fn scan_all(member: &Real<Rules>, events: u64) -> anyhow::Result<(CompactRange, u64)> {
    let (mut tree, mut bytes) = (CompactRange::default(), 0);
    while tree.size() < events {
        let due = tree.size() + 1;
        let page = member.entries_from(Seq(due), PAGE).await?;
        ensure!(!page.is_empty(), "no entry holds event {due}");
        for entry in page {
            let decoded = entry_decode(&entry.frame).map_err(|error| anyhow!("event {}: {error}", entry.first_seq))?;
            ensure!(decoded.first_seq == tree.size() + 1, "event {} after {}", decoded.first_seq, tree.size());
            ensure!(decoded.prev_root.as_ref() == tree.root(), "event {}: another history", decoded.first_seq);
            for event in &decoded.events {
                bytes += event.len() as u64;
                tree.push(event);
            }
        }
    }
    Ok((tree, bytes))
}

/// Bytes that the log's files hold for each byte of events: frames, records, blocks. What is prepared ahead is a key of
/// its own.
pub(super) fn disk_per_event(bench: &Bench) -> anyhow::Result<Sample> {
    let log = bench.long_log()?;
    on_tokio(on_disk(log.folder.path(), log.events, log.keys()))
}

/// The same where one caller waits for each write: every event is an entry of its own, and a block.
pub(super) fn disk_per_event_single(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let member = open::<Rules>(folder.path(), false).await?;
        member.writable(Duration::from_secs(10)).await;
        let fleet = Fleet::found(&member).await?;
        for n in 1..=SINGLE.min(bench.events()) {
            member.write(fleet.command(once(0, n))).await.map_err(|error| anyhow!("{error}"))?;
        }
        let (events, entries) = (member.head().seq.0, member.status().entries);
        member.shutdown().await;
        drop(member);
        ensure!(events < entries + entries / 50, "{events} events in {entries} entries: not one by one");
        on_disk(folder.path(), events, vec![("events", events.to_string()), ("entries", entries.to_string())]).await
    })
}

async fn on_disk(folder: &Path, events: u64, mut keys: Vec<(&'static str, String)>) -> anyhow::Result<Sample> {
    let member = open::<Rules>(folder, false).await?;
    let (_, encoded) = scan_all(&member, events).await?;
    member.shutdown().await;
    let mut written = 0;
    for entry in std::fs::read_dir(folder.join("log"))? {
        let bytes = std::fs::read(entry?.path())?;
        written += bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    }
    let allocated = folder_bytes(folder)?;
    keys.extend([
        ("bytes_per_event", format!("{:.0}", encoded as f64 / events as f64)),
        ("allocated", format!("{:.3}", allocated as f64 / encoded as f64)),
    ]);
    Ok(Sample::new(written as f64 / encoded as f64, keys))
}

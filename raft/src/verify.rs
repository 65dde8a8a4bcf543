//! Replay of the log from its first event, or from the state that history begins with, to see that it is what it says: every
//! checksum, every number, every root, and the digest at every attested checkpoint.

use crate::base;
use crate::disk::{Disk, Lane, on_disk};
use crate::error::{HistoryError, OpenError, VerifyError};
use crate::head::{Head, Noted};
use crate::options::Plant;
use crate::replay::{Done, Replay, probe};
use crate::replica::Shared;
use crate::status::Stats;
use crate::store::open;
use crate::store::snapshot::{self, Snapshot};
use crate::store::wal::{Setup, Wal, index};
use crate::sync::lock;
use crate::types::Entry;
use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::{CompactRange, entry_decode};
use cvlan_core::machine::Machine;
use openraft::{AsyncRuntime, EntryPayload};
use std::sync::Arc;

/// A `Checkpointed` in the log; the replay found the same at its seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointChecked {
    /// The `CheckpointOpened` event.
    pub seq: Seq,
    /// Merkle root after it.
    pub root: [u8; 32],
    /// SHA-256 of the canonical state after it.
    pub digest: [u8; 32],
}

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// The log's incarnation.
    pub epoch: Epoch,
    /// The first event that was replayed: 1, or the one after the state that history begins with.
    pub from: Seq,
    /// Entries with events that were applied.
    pub entries: u64,
    /// Entries of Raft's log up to there: also changes of members and empty ones.
    pub all_entries: u64,
    /// Entries that were skipped, as apply does: they continue another history.
    pub skipped: u64,
    /// Events up to the last one.
    pub events: u64,
    /// The last event.
    pub seq: Seq,
    /// Merkle root after it.
    pub root: [u8; 32],
    /// SHA-256 of the canonical state after it.
    pub digest: [u8; 32],
    /// Every attested checkpoint up to there.
    pub checkpoints: Vec<CheckpointChecked>,
}

/// Replays what a member has applied, page by page, beside its writes.
pub(crate) async fn live<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    to: Option<Seq>,
) -> Result<VerifyReport, VerifyError> {
    let end = index(&lock(&shared.place).last).map_or(0, |last| last + 1);
    let oldest = shared.wal.oldest();
    let base = base::find(shared, oldest).await?;
    let mut check = Check::<M>::begin(base.map(|base| base.snapshot));
    if to.is_some_and(|to| to < check.base) {
        return Err(HistoryError::Gone { first: Seq(check.base.0 + 1) }.into());
    }
    check.replay.to = to;
    check.known = lock(&shared.place).skipped.clone();
    let mut from = check.next(oldest);
    while from < end && !check.reached() {
        let entries = crate::reading::page(shared, from, end).await?;
        let Some(last) = entries.last() else { break };
        from = last.log_id.index + 1;
        check = on_disk::<RT, _>(&shared.disk, Lane::Work, move |_| check.page(&entries))
            .await
            .map_err(|_| HistoryError::Stopped)??;
    }
    let report = on_disk::<RT, _>(&shared.disk, Lane::Work, move |_| check.report()).await;
    report.map_err(|_| HistoryError::Stopped)?
}

/// Replays the log of a folder that no member has open; changes nothing in it.
pub async fn verify_dir<M: Machine, RT: AsyncRuntime>(disk: Arc<dyn Disk>) -> Result<VerifyReport, VerifyError> {
    read_dir::<M, RT>(disk, |_| {}, |_, _| {}).await
}

/// The same, and tells the tree of the events that it begins with, and then every one that follows with its bytes, in order.
pub async fn read_dir<M: Machine, RT: AsyncRuntime>(
    disk: Arc<dyn Disk>,
    begins: impl FnOnce(&CompactRange) + Send + 'static,
    mut each: impl FnMut(Seq, &Bytes) + Send + 'static,
) -> Result<VerifyReport, VerifyError> {
    let jobs = disk.clone();
    let report = on_disk::<RT, _>(&disk, Lane::Log, move |files| {
        let setup = Setup {
            member: None,
            segment_bytes: crate::options::Limits::default().segment_bytes,
            tail_bytes: 0,
            plant: Plant::default(),
            probe: Arc::new(probe::<M>),
        };
        let state = open::open(files, &setup)?;
        let wal =
            Wal::new(jobs, Arc::new(crate::clock::SystemClock::default()), Arc::new(Stats::default()), setup, state);
        let oldest = wal.oldest();
        let base = if oldest == 0 { None } else { snapshot::base::<M>(files, oldest, false)? };
        let mut check = Check::<M>::begin(base.map(|base| base.snapshot));
        begins(&check.replay.head.tree);
        let mut failed = None;
        wal.visit(check.next(oldest)..u64::MAX, &mut |entry| {
            let before = check.replay.head.seq;
            failed = check.entry(&entry).err();
            if let EntryPayload::Normal(frame) = &entry.payload
                && check.replay.head.seq > before
                && let Ok(entry) = entry_decode(&frame.0)
            {
                entry.events.iter().zip(entry.first_seq..).for_each(|(bytes, seq)| each(Seq(seq), bytes));
            }
            failed.is_none()
        })
        .map_err(OpenError::io("reading history"))?;
        failed.map_or_else(|| check.report(), Err)
    });
    report.await.map_err(|_| HistoryError::Stopped)?
}

struct Check<M: Machine> {
    replay: Replay<M>,
    /// The last event of the state that it begins with.
    base: Seq,
    /// Entries that the member knows to be no part of history.
    known: Vec<u64>,
    /// The first of those that it does not.
    other: Option<u64>,
    entries: u64,
    opened: Vec<CheckpointChecked>,
    checkpoints: Vec<CheckpointChecked>,
}

impl<M: Machine> Check<M> {
    /// Begins with the first event, or with a state.
    fn begin(base: Option<Snapshot<M::State>>) -> Self {
        let mut replay = Replay::default();
        if let Some(Snapshot { meta, skipped: _, head }) = base {
            (replay.place.last, replay.place.membership) = (meta.last_log_id, meta.last_membership);
            replay.head = head;
        }
        Self {
            base: replay.head.seq,
            known: Vec::new(),
            other: None,
            replay,
            entries: 0,
            opened: Vec::new(),
            checkpoints: Vec::new(),
        }
    }

    /// The first entry to replay, of those from `oldest` on.
    fn next(&self, oldest: u64) -> u64 {
        index(&self.replay.place.last).map_or(oldest, |last| last + 1)
    }

    fn reached(&self) -> bool {
        self.replay.to.is_some_and(|to| self.replay.head.seq >= to)
    }

    fn page(mut self, entries: &[Entry]) -> Result<Self, VerifyError> {
        for entry in entries {
            if self.reached() {
                break;
            }
            self.entry(entry)?;
        }
        Ok(self)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), VerifyError> {
        let wrong = |seq: Seq, detail: String| VerifyError::Entry { index: entry.log_id.index, seq, detail };
        let due = Seq(self.replay.head.seq.0 + 1);
        match self.replay.entry(entry).map_err(|fault| wrong(due, fault.to_string()))? {
            Done::Nothing => {}
            // Nothing goes before the first event.
            Done::Skipped if due == Seq(1) => return Err(HistoryError::Gone { first: first_seq(entry) }.into()),
            Done::Skipped if self.known.binary_search(&entry.log_id.index).is_ok() => {}
            Done::Skipped => self.other = self.other.or(Some(entry.log_id.index)),
            Done::Folded { noted, .. } => {
                self.entries += 1;
                for note in noted {
                    self.note(note).map_err(|(seq, detail)| wrong(seq, detail))?;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, note: Noted<M::State>) -> Result<(), (Seq, String)> {
        match note {
            Noted::Opened(head) => {
                let Head { seq, root, .. } = head;
                self.opened.push(CheckpointChecked { seq, root, digest: head.digest::<M>() });
            }
            Noted::Checkpointed { seq, root, digest } => {
                let attested = CheckpointChecked { seq, root, digest };
                // Opened before what is replayed.
                if seq <= self.base && self.base.0 > 0 {
                    return Ok(());
                }
                let Some(at) = self.opened.iter().position(|opened| opened.seq == seq) else {
                    return Err((seq, "a checkpoint is attested that was not opened".into()));
                };
                let found = self.opened.swap_remove(at);
                if found != attested {
                    let hex = |c: &CheckpointChecked| {
                        format!("root {} digest {}", hex::encode(c.root), hex::encode(c.digest))
                    };
                    return Err((seq, format!("attested {}, found {}", hex(&attested), hex(&found))));
                }
                self.checkpoints.push(found);
            }
        }
        Ok(())
    }

    fn report(self) -> Result<VerifyReport, VerifyError> {
        // Nothing fits a state that is none of this log.
        if let (Some(index), 1.., 0) = (self.other, self.base.0, self.entries) {
            let detail = "it does not continue the state that history begins with".to_owned();
            return Err(VerifyError::Entry { index, seq: Seq(self.base.0 + 1), detail });
        }
        let Head { epoch, seq, root, .. } = self.replay.head;
        Ok(VerifyReport {
            epoch,
            from: Seq(self.base.0 + 1),
            entries: self.entries,
            all_entries: index(&self.replay.place.last).map_or(0, |last| last + 1),
            skipped: self.replay.place.skipped.len() as u64,
            events: seq.0,
            seq,
            root,
            digest: self.replay.head.digest::<M>(),
            checkpoints: self.checkpoints,
        })
    }
}

fn first_seq(entry: &Entry) -> Seq {
    match &entry.payload {
        EntryPayload::Normal(frame) => entry_decode(&frame.0).map_or(Seq(0), |entry| Seq(entry.first_seq)),
        EntryPayload::Blank | EntryPayload::Membership(_) => Seq(0),
    }
}

//! Recovery: the state is rebuilt here, from any good snapshot and the history after it, before openraft starts.
//!
//! ```text
//! log/ scanned, torn tail cut ─► newest usable snapshot ─► entries after it up to what is known to be committed ─► openraft
//! ```
//! What lies above is applied once Raft says that it is committed.

use crate::clock::Clock;
use crate::disk::{Disk, Files};
use crate::error::OpenError;
use crate::options::{Limits, Plant};
use crate::replay::{self, Done, Fault, Replay, Step, probe, unpack};
use crate::replica::Kept;
use crate::status::Stats;
use crate::store::wal::{Setup, Wal, index, size};
use crate::store::{open, snapshot};
use crate::types::{Entry, LogId, SnapshotMeta};
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::entry_decode;
use cvlan_core::machine::Machine;
use openraft::EntryPayload;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

/// What a folder came to.
pub(crate) struct Recovered<M: Machine> {
    pub(crate) wal: Arc<Wal>,
    pub(crate) replay: Replay<M>,
    pub(crate) kept: Option<Kept<M::State>>,
    /// Bytes and events after the snapshot.
    pub(crate) grown: [u64; 2],
    /// The first event that can be read.
    pub(crate) history_from: Seq,
}

/// What recovery needs besides the files.
pub(crate) struct From {
    pub(crate) member: u64,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) limits: Limits,
    pub(crate) plant: Plant,
    /// Everything in the log, committed or not.
    pub(crate) whole: bool,
}

/// Opens a folder; on the disk's lane.
pub(crate) fn recover<M: Machine>(files: &dyn Files, from: From) -> Result<Recovered<M>, OpenError> {
    let setup = Setup {
        member: Some(from.member),
        segment_bytes: from.limits.segment_bytes,
        tail_bytes: from.limits.tail_bytes,
        plant: from.plant,
        probe: Arc::new(probe::<M>),
    };
    let state = open::open(files, &setup)?;
    let wal = Wal::new(from.disk, from.clock, from.stats, setup, state);
    let oldest = wal.oldest();
    let usable = |next: u64| next >= oldest;
    let found = snapshot::newest::<M>(files, oldest)?;
    if let Some(snapshot) = &found
        && let Some(expected) = epoch::<M>(&wal, snapshot.meta.last_log_id.map_or(0, |last| last.index))?
        && snapshot.head.epoch != expected
        && snapshot.head.seq.0 > 0
    {
        let (snapshot, found) = (snapshot.head.seq, snapshot.head.epoch);
        return Err(OpenError::WrongEpoch { snapshot, found, expected });
    }
    let known = from.limits.known_level::<M>();
    if let Some(level) = found.as_ref().map(|snapshot| snapshot.head.feature_level).filter(|level| *level > known) {
        return Err(OpenError::Newer { what: "the feature level of the log".into(), found: level, known });
    }
    let mut replay = Replay::<M>::default();
    let kept = found.map(|snapshot| {
        replay.place.last = snapshot.meta.last_log_id;
        replay.place.membership = snapshot.meta.last_membership.clone();
        replay.place.skipped = snapshot.skipped;
        replay.head = snapshot.head.clone();
        Kept { meta: snapshot.meta, head: Arc::new(snapshot.head), made_us: None, written: true }
    });
    let start = next(&replay.place.last);
    if !usable(start) {
        return Err(OpenError::Incomplete(format!(
            "the log begins with entry {oldest} and there is no snapshot of it"
        )));
    }
    let marks = wal.marks();
    if marks.committed < replay.place.last {
        wal.committed(replay.place.last);
    }
    // What is purged was applied, and so was committed.
    let end = if from.whole { u64::MAX } else { next(&marks.committed.max(marks.purged)) };
    let (replay, grown) = fold(replay, &wal, start..end, known)?;
    // openraft wants a snapshot of at least what is purged; where those on disk are older or damaged, the state that was
    // just rebuilt is one.
    let covers = |kept: &Kept<M::State>| kept.meta.last_log_id >= marks.purged;
    let kept = kept.filter(covers).or_else(|| {
        let (place, head) = (&replay.place, Arc::new(replay.head.clone()));
        let meta = SnapshotMeta { last_log_id: place.last, last_membership: place.membership.clone() };
        marks.purged.map(|_| Kept { meta, head, made_us: None, written: false })
    });
    let history_from = history_from(&wal, &replay)?;
    wal.prepare();
    Ok(Recovered { wal, replay, kept, grown, history_from })
}

/// The first event of the oldest entry that can be read, up to what is applied.
fn history_from<M: Machine>(wal: &Wal, replay: &Replay<M>) -> Result<Seq, OpenError> {
    let mut found = Seq(replay.head.seq.0 + 1);
    let end = next(&replay.place.last);
    // A snapshot that the log does not reach up to: what is below is no history.
    if index(&wal.marks().last) < index(&replay.place.last) {
        return Ok(found);
    }
    wal.visit(wal.oldest()..end, &mut |entry| {
        if let EntryPayload::Normal(frame) = &entry.payload
            && replay.place.skipped.binary_search(&entry.log_id.index).is_err()
            && let Ok(entry) = entry_decode(&frame.0)
        {
            found = Seq(entry.first_seq);
            return false;
        }
        true
    })
    .map_err(OpenError::io("reading history"))?;
    Ok(found)
}

/// The log's epoch after its entry `last`, by that entry or the first one after it that has events.
fn epoch<M: Machine>(wal: &Wal, last: u64) -> Result<Option<Epoch>, OpenError> {
    let mut found = None;
    wal.visit(last.max(wal.oldest())..u64::MAX, &mut |entry| {
        if let EntryPayload::Normal(frame) = &entry.payload {
            // What cannot be read is named by the replay.
            let read = replay::read::<M>(frame).ok();
            found = read.map(|read| if entry.log_id.index == last { read.epoch } else { read.continues });
        }
        found.is_none()
    })
    .map_err(OpenError::io("reading history"))?;
    Ok(found)
}

/// Entries that are read ahead of the fold.
const AHEAD: usize = 64;

type Grown = [u64; 2];

/// Folds entries in a thread of its own, the slower one, while this one reads and checks those after them, and frees those
/// that were folded.
fn fold<M: Machine>(
    mut replay: Replay<M>,
    wal: &Wal,
    entries: Range<u64>,
    known: u32,
) -> Result<(Replay<M>, Grown), OpenError> {
    let (tx, rx) = sync_channel(AHEAD);
    let (spent, free) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let folded = scope.spawn(move || {
            let mut grown = [0; 2];
            for (bytes, step) in rx {
                if let Done::Folded { events, .. } = replay.step(&step) {
                    let [all_bytes, all_events] = &mut grown;
                    *all_bytes += bytes as u64;
                    *all_events += events as u64;
                }
                // Where there is no room it is freed here.
                let _ = spent.try_send(step);
            }
            (replay, grown)
        });
        let mut failed = None;
        let read = wal.visit(entries, &mut |entry| {
            free.try_iter().for_each(drop);
            match unpack::<M>(&entry).and_then(|step| known_step::<M>(step, known)) {
                Ok(step) => tx.send((size(&entry), step)).is_ok(),
                Err(fault) => {
                    failed = Some(unreadable(&entry, fault));
                    false
                }
            }
        });
        drop(tx);
        let folded = folded.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.map_err(OpenError::io("reading history"))?;
        failed.map_or(Ok(folded), Err)
    })
}

type Unpacked<M> = (LogId, Step<<M as Machine>::Event>);

fn known_step<M: Machine>(step: Unpacked<M>, known: u32) -> Result<Unpacked<M>, Fault> {
    if let (_, Step::Read(read)) = &step {
        read.level_known(known)?;
    }
    Ok(step)
}

fn unreadable(entry: &Entry, fault: Fault) -> OpenError {
    let record = format!("entry {}", entry.log_id);
    match fault {
        Fault::Event { source, .. } => OpenError::Unreadable { record, source },
        Fault::Level { level, known } => OpenError::Newer { what: record, found: level, known },
        Fault::Frame(_) | Fault::Epoch | Fault::Number { .. } => {
            OpenError::Damaged { record, detail: fault.to_string() }
        }
    }
}

fn next(id: &Option<crate::types::LogId>) -> u64 {
    index(id).map_or(0, |index| index + 1)
}

//! Applies entries to a head that nobody else holds: recovery, and the check of a log. The rule by which an entry is
//! skipped is [`Head::fits`], the same as everywhere.

use crate::head::{Head, Members, Noted};
use crate::types::{Entry, Frame, LogId, Membership};
use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::{EntryError, Hash, entry_decode, leaf_hash};
use cvlan_core::machine::{Machine, SystemFact, Unreadable};
use openraft::{BasicNode, EntryPayload, StoredMembership};
use std::sync::Arc;

/// Where a head is in the Raft log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Membership,
    /// Entries skipped.
    pub(crate) skipped: Vec<u64>,
}

/// Why an entry cannot be applied: the member must stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Its frame is not what was written.
    #[error("{0}")]
    Frame(EntryError),
    /// Its epoch is not 16 bytes.
    #[error("its epoch is not 16 bytes")]
    Epoch,
    /// An event of a kind that this version does not know.
    #[error("event {seq}: {source}")]
    Event { seq: u64, source: Unreadable },
    /// The log goes on at a level of features that this version does not know.
    #[error(
        "it raises the feature level to {level}, and this version knows level {known}: it has to be upgraded first"
    )]
    Level { level: u32, known: u32 },
    /// An event is numbered otherwise than its entry says.
    #[error("event {seq} has number {found}")]
    Number { seq: u64, found: Seq },
}

/// An entry's frame, read.
pub(crate) struct Read<E> {
    pub(crate) epoch: Epoch,
    /// The epoch of the history that it continues: its own, unless it begins one.
    pub(crate) continues: Epoch,
    pub(crate) first_seq: Seq,
    pub(crate) prev_root: Vec<u8>,
    pub(crate) events: Vec<E>,
    pub(crate) raw: Vec<Bytes>,
    pub(crate) leaves: Vec<Hash>,
    /// What it raises the level of features to.
    level: u32,
}

impl<E> Read<E> {
    /// An error where the log goes on at a level that is above the known one.
    pub(crate) fn level_known(&self, known: u32) -> Result<(), Fault> {
        if self.level > known { Err(Fault::Level { level: self.level, known }) } else { Ok(()) }
    }
}

/// Reads an entry's frame.
pub(crate) fn read<M: Machine>(frame: &Frame) -> Result<Read<M::Event>, Fault> {
    let entry = entry_decode(&frame.0).map_err(Fault::Frame)?;
    let epoch = entry.epoch.as_slice().try_into().map_err(|_| Fault::Epoch)?;
    let raw = entry.events;
    let mut events = Vec::with_capacity(raw.len());
    for (bytes, seq) in raw.iter().zip(entry.first_seq..) {
        let event = M::decode(bytes).map_err(|source| Fault::Event { seq, source })?;
        if M::seq(&event).0 != seq {
            return Err(Fault::Number { seq, found: M::seq(&event) });
        }
        events.push(event);
    }
    let leaves = raw.iter().map(|bytes| leaf_hash(bytes)).collect();
    let epoch = Epoch(epoch);
    let continues = match events.first().and_then(M::event_fact) {
        Some(SystemFact::EpochBegun { previous, .. }) => previous,
        Some(_) | None => epoch,
    };
    let level = events.iter().filter_map(M::event_level).max().unwrap_or(1);
    let first_seq = Seq(entry.first_seq);
    Ok(Read { epoch, continues, first_seq, prev_root: entry.prev_root, events, raw, leaves, level })
}

/// Number and time of a frame's first event.
pub(crate) fn probe<M: Machine>(frame: &Frame) -> Option<(Seq, u64)> {
    let entry = entry_decode(&frame.0).ok()?;
    let event = M::decode(entry.events.first()?).ok()?;
    Some((Seq(entry.first_seq), M::time_ms(&event)))
}

/// An entry, read.
pub(crate) enum Step<E> {
    Blank,
    Membership(openraft::Membership<u64, BasicNode>),
    Read(Read<E>),
}

/// Reads an entry: what can be done before it is its turn.
pub(crate) fn unpack<M: Machine>(entry: &Entry) -> Result<(LogId, Step<M::Event>), Fault> {
    let step = match &entry.payload {
        EntryPayload::Blank => Step::Blank,
        EntryPayload::Membership(membership) => Step::Membership(membership.clone()),
        EntryPayload::Normal(frame) => Step::Read(read::<M>(frame)?),
    };
    Ok((entry.log_id, step))
}

/// What an entry did to a head.
pub(crate) enum Done<M: Machine> {
    /// It carries no events.
    Nothing,
    /// It continues another history.
    Skipped,
    /// Its events were folded.
    Folded { events: usize, noted: Vec<Noted<M::State>> },
}

/// A head that is being folded in place.
pub(crate) struct Replay<M: Machine> {
    pub(crate) head: Head<M::State>,
    pub(crate) place: Place,
    /// Events after this one are left out.
    pub(crate) to: Option<Seq>,
}

impl<M: Machine> Default for Replay<M> {
    fn default() -> Self {
        Self { head: Head::default(), place: Place::default(), to: None }
    }
}

impl<M: Machine> Replay<M> {
    /// Applies the next entry.
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<Done<M>, Fault> {
        unpack::<M>(entry).map(|step| self.step(&step))
    }

    /// Applies the next entry, which was read before.
    pub(crate) fn step(&mut self, (id, step): &(LogId, Step<M::Event>)) -> Done<M> {
        let id = *id;
        let done = match step {
            Step::Blank => Done::Nothing,
            Step::Membership(membership) => {
                self.place.membership = StoredMembership::new(Some(id), membership.clone());
                self.head.members = Arc::new(Members::from(&self.place.membership));
                Done::Nothing
            }
            Step::Read(read) => self.fold(read),
        };
        if let Done::Skipped = done {
            tracing::warn!(entry = %id, "skipped: it continues another history");
            self.place.skipped.push(id.index);
        }
        self.place.last = Some(id);
        done
    }

    fn fold(&mut self, read: &Read<M::Event>) -> Done<M> {
        if !self.head.fits(read.continues, read.first_seq, &read.prev_root) {
            return Done::Skipped;
        }
        let wanted = self.to.map_or(usize::MAX, |to| (to.0 + 1).saturating_sub(read.first_seq.0) as usize);
        let events = read.events.len().min(wanted);
        let folded = read.events.iter().zip(read.leaves.iter().copied()).take(events);
        let noted = self.head.fold_entry::<M>(read.epoch, folded);
        Done::Folded { events, noted }
    }
}

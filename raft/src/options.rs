//! What a member is opened with.

use crate::clock::{Clock, SystemClock};
use crate::disk::Disk;
use crate::head::Head;
use crate::peer::Known;
use crate::peer::codec::ADDED;
use bytes::Bytes;
use cvlan_core::machine::Machine;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A version that is played and is older than this level knows nothing that was added to the protocol.
const ADDED_WITH: u32 = 2;

/// Bounds, each with its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of a segment of the log, bytes: 64 MiB.
    pub segment_bytes: u64,
    /// Newest entries that are kept in memory, bytes: 16 MiB (more while they are not durable).
    pub tail_bytes: usize,
    /// Commands that wait to be decided; further ones are refused as busy: 16,384.
    pub queue: usize,
    /// Commands decided together into one entry: 512.
    pub entry_commands: usize,
    /// Where a turn has about so many events to come, they are encoded beside, by a thread that has to be woken for it: 256.
    pub encode_beside: usize,
    /// An entry takes no further command beyond this many bytes of events: 1 MiB.
    pub entry_bytes: usize,
    /// Bytes of events of one command: 4 MiB.
    pub command_bytes: usize,
    /// Entries on their way at once: 4.
    pub in_flight: usize,
    /// What one member sends another goes in parts of so many bytes, where it may be long: 64 KiB.
    pub part_bytes: usize,
    /// How long a command waits for a leader, ms: 2,000.
    pub leader_wait_ms: u64,
    /// A snapshot is made after this many bytes of log: 64 MiB …
    pub snapshot_bytes: u64,
    /// … or this many events, whichever is first: 200,000; where making one takes long, later.
    pub snapshot_events: u64,
    /// The leader attests a checkpoint this often, ms, where something else changed: 60,000; 0 = only on demand.
    pub checkpoint_ms: u64,
    /// Snapshots kept, at least 2: 3.
    pub snapshots_kept: usize,
    /// Entries that the purge marker stays behind the snapshot, so that a short absence never costs one: 1,000,000.
    pub purge_behind: u64,
    /// A member whose history begins late asks the others for what came before this often, ms: 10,000; 0 = never.
    pub backfill_ms: u64,
    /// Bytes of one piece of it, about: 32 MiB.
    pub backfill_bytes: u64,
    /// Events older than this need not be kept, ms; 0: all are kept.
    pub history_ms: u64,
    /// How often the leader sees to it, and every member to what it may let go of, ms: 60,000.
    pub history_check_ms: u64,
    /// Plays a version that knows features up to this level; `None`: this one.
    pub level: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            tail_bytes: 16 << 20,
            queue: 16_384,
            entry_commands: 512,
            encode_beside: 256,
            entry_bytes: 1 << 20,
            command_bytes: 4 << 20,
            in_flight: 4,
            part_bytes: 64 << 10,
            leader_wait_ms: 2_000,
            snapshot_bytes: 64 << 20,
            snapshot_events: 200_000,
            checkpoint_ms: 60_000,
            snapshots_kept: 3,
            purge_behind: 1_000_000,
            backfill_ms: 10_000,
            backfill_bytes: 32 << 20,
            history_ms: 0,
            history_check_ms: 60_000,
            level: None,
        }
    }
}

impl Limits {
    /// The highest level of features that is known here.
    pub(crate) fn known_level<M: Machine>(&self) -> u32 {
        self.level.unwrap_or(M::LEVEL)
    }

    /// What is known here.
    pub(crate) fn known<M: Machine>(&self) -> Known {
        let level = self.known_level::<M>();
        let added = if self.level.is_some_and(|played| played < ADDED_WITH) { 0 } else { ADDED };
        Known { level, added }
    }

    /// Within what the formats can hold: an entry's frame is at most 8 MiB, and something has to move at all.
    pub(crate) fn sane(mut self) -> Self {
        self.segment_bytes = self.segment_bytes.max(4 << 10);
        self.queue = self.queue.max(1);
        self.entry_commands = self.entry_commands.max(1);
        self.entry_bytes = self.entry_bytes.clamp(1, 2 << 20);
        self.command_bytes = self.command_bytes.clamp(1, 4 << 20);
        self.in_flight = self.in_flight.max(1);
        self.part_bytes = self.part_bytes.max(1);
        self.snapshots_kept = self.snapshots_kept.max(2);
        self
    }
}

/// Raft's clocks, milliseconds. A leader is missed after `election_max_ms` + a random time between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats: 150.
    pub heartbeat_ms: u64,
    /// Shortest election timeout: 400.
    pub election_min_ms: u64,
    /// Longest election timeout: 700.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 150, election_min_ms: 400, election_max_ms: 700 }
    }
}

/// Bugs planted on purpose, for the simulation to find. All off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plant {
    /// The log is written but never synced.
    pub skip_fsync: bool,
    /// The log says "durable" before it has written.
    pub early_ack: bool,
    /// A follower reports entries before it has them: one acknowledgement counts as a majority.
    pub wrong_quorum: bool,
    /// An entry is applied though it continues another history, if its number fits.
    pub wrong_root: bool,
    /// Heads that were decided on and lost are decided on once more, where the number of what follows fits. Breaks nothing
    /// as long as such an entry is skipped for its root.
    pub no_fence: bool,
    /// A new term begins with the head of the one that was lost, and what it decides is applied unseen.
    pub lost_head: bool,
    /// Entries are applied in another order than that of the log.
    pub out_of_order: bool,
    /// A linearizable read asks nobody.
    pub stale_read: bool,
    /// The uncommitted tail below an installed snapshot stays as history.
    pub kept_tail: bool,
    /// A leader that crashed leads again without an election.
    pub leader_restore: bool,
    /// Outcomes of numbered commands are forgotten at a new term.
    pub forgotten_once: bool,
    /// History goes that the log does not let go of.
    pub kept_goes: bool,
    /// History goes that is held.
    pub held_goes: bool,
    /// The leader raises the level of features to what it knows itself.
    pub level_early: bool,
}

/// An entry that was applied, as observers see it.
pub struct Applied<M: Machine> {
    /// The head after it.
    pub head: Arc<Head<M::State>>,
    /// Its events, in order; none where a snapshot took the place of entries: then everything may have changed.
    pub events: Events<M::Event>,
    /// Their bytes, in order.
    pub raw: Arc<[Bytes]>,
    /// Its place in the Raft log.
    pub index: u64,
}

/// Called after each applied entry, in order, before the writers get their answers: must be quick and must not block.
pub type Observer<M> = Arc<dyn Fn(&Applied<M>) + Send + Sync>;

/// Events of one command or entry; cheap to clone, reads as a slice.
pub struct Events<E> {
    all: Arc<Vec<E>>,
    range: Range<usize>,
}

impl<E> Events<E> {
    pub(crate) fn new(all: Arc<Vec<E>>, range: Range<usize>) -> Self {
        Self { all, range }
    }

    pub(crate) fn of(all: Vec<E>) -> Self {
        let range = 0..all.len();
        Self { all: Arc::new(all), range }
    }
}

impl<E> Clone for Events<E> {
    fn clone(&self) -> Self {
        Self { all: self.all.clone(), range: self.range.clone() }
    }
}

impl<E> Deref for Events<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        self.all.get(self.range.clone()).unwrap_or_default()
    }
}

impl<E: std::fmt::Debug> std::fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.deref().fmt(f)
    }
}

/// What a member is opened with.
pub struct Options<M: Machine> {
    /// Id of this member; never used for another one.
    pub member: u64,
    /// Where other members reach it.
    pub address: String,
    /// Its storage.
    pub disk: Arc<dyn Disk>,
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// Makes it the only voter of a new cluster if the folder is empty.
    pub initialize: bool,
    /// Called for every entry that is applied after the recovery.
    pub observers: Vec<Observer<M>>,
    /// Bounds.
    pub limits: Limits,
    /// Raft's clocks.
    pub timing: Timing,
    /// Planted bugs.
    pub plant: Plant,
}

impl<M: Machine> Options<M> {
    /// The only member of a new or existing log on `disk`, with the machine's clocks and the default bounds.
    pub fn single(disk: Arc<dyn Disk>) -> Self {
        Self {
            member: 1,
            address: String::new(),
            disk,
            clock: Arc::new(SystemClock::default()),
            initialize: true,
            observers: Vec::new(),
            limits: Limits::default(),
            timing: Timing::default(),
            plant: Plant::default(),
        }
    }
}

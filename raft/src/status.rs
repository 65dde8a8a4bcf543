//! What a member says about itself: counters that cost an atomic each, and a summary.

use crate::sync::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets of a [`Histogram`]: bucket `n` counts values in `[2^(n-1), 2^n)`, bucket 0 the zeros.
pub const BUCKETS: usize = 32;

/// Counts values by their power of two.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

/// What a [`Histogram`] has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By power of two.
    pub buckets: [u64; BUCKETS],
    /// Sum of the values.
    pub sum: u64,
}

impl Histogram {
    /// Counts one value.
    pub fn add(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        if let Some(count) = self.buckets.get(bucket.min(BUCKETS - 1)) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            buckets: std::array::from_fn(|n| self.buckets.get(n).map_or(0, |c| c.load(Relaxed))),
            sum: self.sum.load(Relaxed),
        }
    }
}

impl Counts {
    /// Values counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bound of the bucket in which the `q`-quantile lies; 0 of nothing.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = (self.count() as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return (1u64 << n) - 1;
            }
        }
        0
    }
}

/// Counters of a member.
#[derive(Debug, Default)]
pub struct Stats {
    /// Duration of each group commit of the log (write + sync), µs.
    pub sync_us: Histogram,
    /// Bytes of each group commit.
    pub sync_bytes: Histogram,
    /// Events of each entry.
    pub entry_events: Histogram,
    /// From the proposal of an entry of this member's to its application here, µs: durable on a majority in between.
    pub commit_us: Histogram,
    /// Entries proposed by this member.
    pub entries: AtomicU64,
    /// Commands answered: carried out, without effect, rejected.
    pub commands: AtomicU64,
    /// Entries skipped because they continued another history.
    pub skipped: AtomicU64,
    /// Requests of other members that those may not make.
    pub not_allowed: AtomicU64,
    /// Duration of the last snapshot (save, compress, write), µs.
    pub snapshot_us: AtomicU64,
    /// Why the last snapshot could not be written.
    pub(crate) snapshot_error: Mutex<Option<String>>,
}

impl Stats {
    pub(crate) fn snapshot_failed(&self, why: Option<String>) {
        *lock(&self.snapshot_error) = why;
    }
}

/// What a member does in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decides.
    Leader,
    /// Votes, follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Has stopped.
    Stopped,
}

impl Role {
    /// Stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        }
    }
}

/// Another member, as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its id.
    pub id: u64,
    /// Where it is reached; empty where that is not known.
    pub address: String,
    /// It decides with the others.
    pub voter: bool,
    /// How long ago something came from it, ms; `None` where nothing did since the start.
    pub heard_ms: Option<u64>,
    /// How long ago it answered, ms; one that asks and does not answer does not count as alive.
    pub answered_ms: Option<u64>,
    /// Its wall clock less this one's, ms.
    pub skew_ms: Option<i64>,
    /// The last entry that it is known to have; known to the leader alone.
    pub matched: Option<u64>,
    /// Entries that it lacks; known to the leader alone.
    pub behind: Option<u64>,
}

/// A summary, as of now.
#[derive(Clone, Debug)]
pub struct Status {
    /// What it does.
    pub role: Role,
    /// Its id.
    pub member: u64,
    /// Raft's term.
    pub term: u64,
    /// Who leads.
    pub leader: Option<u64>,
    /// It was removed from the cluster: it serves no writes.
    pub removed: bool,
    /// The first event that can be read here.
    pub history_from: u64,
    /// Level of features that the log is at.
    pub feature_level: u32,
    /// The highest one that this version knows.
    pub known_level: u32,
    /// The other members.
    pub peers: Vec<PeerStatus>,
    /// True where this member leads and its term is open for commands.
    pub writable: bool,
    /// Last entry in its log.
    pub last_index: u64,
    /// Last entry known to be committed.
    pub committed_index: u64,
    /// Last entry applied.
    pub applied_index: u64,
    /// Last entry that the purge marker covers.
    pub purged_index: u64,
    /// Bytes of all segments, preallocated ones included.
    pub log_bytes: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Last entry in the newest snapshot.
    pub snapshot_index: Option<u64>,
    /// Last event in it.
    pub snapshot_seq: Option<u64>,
    /// Its age, ms, if it was made since the start.
    pub snapshot_age_ms: Option<u64>,
    /// Why the last snapshot could not be written.
    pub snapshot_error: Option<String>,
    /// Commands that wait.
    pub queue: usize,
    /// Entries on their way.
    pub in_flight: usize,
    /// The log has no room to grow.
    pub disk_full: bool,
    /// The checkpoint at which this replica's state was found to differ.
    pub diverged: Option<u64>,
    /// Why the member stopped.
    pub fatal: Option<String>,
    /// Duration of group commits, µs.
    pub sync_us: Counts,
    /// Bytes of group commits.
    pub sync_bytes: Counts,
    /// Events of entries.
    pub entry_events: Counts,
    /// From the proposal of entries to their application, µs.
    pub commit_us: Counts,
    /// Entries proposed here.
    pub entries: u64,
    /// Commands answered here.
    pub commands: u64,
    /// Entries skipped here.
    pub skipped: u64,
    /// Requests of other members, refused here, that those may not make.
    pub not_allowed: u64,
}

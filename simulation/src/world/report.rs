//! What is told of a seed.

use crate::ledger::Violation;

/// What happened, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ends of the process in the middle of what it did.
    pub crashes: u64,
    /// Those at a call of the disk.
    pub at_call: u64,
    /// Power cuts among them.
    pub cuts: u64,
    /// Ends in order.
    pub stops: u64,
    /// Ends while the recovery ran.
    pub in_recovery: u64,
    /// Snapshots that were damaged while the process was down.
    pub damaged: u64,
    /// Calls of the disk that failed.
    pub failed: u64,
    /// Times the disk was full.
    pub full: u64,
    /// Answers that said so.
    pub full_answers: u64,
    /// Commands that were sent again.
    pub retries: u64,
    /// Commands that were done.
    pub done: u64,
    /// Commands that were refused.
    pub refused: u64,
    /// Answers to a command that had been carried out before.
    pub repeated: u64,
    /// Checkpoints attested.
    pub checkpoints: u64,
    /// Calls of the disk.
    pub calls: u64,
    /// Segments of the log at the end.
    pub segments: u64,
    /// Events at the end.
    pub events: u64,
    /// Last entry that the purge marker covers at the end.
    pub purged: u64,
    /// Last event of the newest snapshot at the end.
    pub snapshot: u64,
}

impl Counts {
    /// Adds another seed's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            crashes,
            at_call,
            cuts,
            stops,
            in_recovery,
            damaged,
            failed,
            full,
            full_answers,
            retries,
            done,
            refused,
            repeated,
            checkpoints,
            calls,
            segments,
            events,
            purged,
            snapshot,
        } = other;
        self.crashes += crashes;
        self.at_call += at_call;
        self.cuts += cuts;
        self.stops += stops;
        self.in_recovery += in_recovery;
        self.damaged += damaged;
        self.failed += failed;
        self.full += full;
        self.full_answers += full_answers;
        self.retries += retries;
        self.done += done;
        self.refused += refused;
        self.repeated += repeated;
        self.checkpoints += checkpoints;
        self.calls += calls;
        self.segments += segments;
        self.events += events;
        self.purged += purged;
        self.snapshot += snapshot;
    }
}

/// How a seed went.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// Over the trace and the final state.
    pub digest: [u8; 32],
    /// Lines of the trace.
    pub lines: u64,
    /// The trace, if it was kept.
    pub text: Option<String>,
    /// Virtual time, ms.
    pub virtual_ms: u64,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// What happened.
    pub counts: Counts,
}

//! The schedule of faults: drawn from the seed before anything runs, so that a failing seed can be run with fewer of them.
//!
//! ```text
//! forming │ round: faults ……… healed, a write must succeed │ round │ … │ calm: everything must come to its end
//!    15 s │ 60 s each                                                │ 45 s and more
//! ```

use cvlan_core::grammar::Rng;
use std::fmt;

/// The cluster is formed by then, ms.
pub const FORMED_MS: u64 = 15_000;

/// Length of a round, ms.
pub const ROUND_MS: u64 = 60_000;

/// Faults begin within this much of a round, ms.
const FAULTS_MS: u64 = 36_000;

/// Everything that was wrong in a round is over by then, and a write must succeed, ms.
pub const HEALED_MS: u64 = 47_000;

/// Faults in a round.
const FAULTS: u64 = 7;

/// Whom it hits; drawn beforehand, found when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever leads then.
    Leader,
    /// One of the voters.
    Voter(u64),
    /// One of all machines.
    Any(u64),
}

/// Which way a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both.
    Both,
    /// What the victim sends is held back.
    Out,
    /// What is sent to the victim is held back.
    In,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The process ends at the n-th call of its disk from then on.
    CrashAtCall(Who, u64, bool),
    /// The process ends, in the middle of things; with the machine's power or not.
    Crash(Who, bool),
    /// The power of all machines goes at once.
    Blackout,
    /// The member is stopped in order.
    Stop(Who),
    /// A newest snapshot is damaged while its member is down.
    DamageSnapshot(Who),
    /// The log of one member is damaged while it is down.
    DamageLog(Who),
    /// The disk of one member is lost.
    Wipe(Who),
    /// A voter leaves and comes back as another member.
    Replace(Who),
    /// The disk has so many bytes of room.
    Full(Who, u64),
    /// All calls of the disk are slow.
    SlowDisk(Who),
    /// The n-th call of the disk fails.
    FailedCall(Who, u64),
    /// One machine hears or reaches nobody.
    Isolate(Who, Way),
    /// Two groups of machines, by the bits of a mask.
    Split(u64, Way),
    /// The connections of one machine break.
    Break(Who),
    /// The connections of one machine swallow what it sends.
    Swallow(Who),
    /// Frames of one machine take so much longer, ms.
    SlowNet(Who, u64),
    /// The wall clock of one machine jumps, ms.
    Clock(Who, i64),
    /// Another voter is asked to lead.
    Transfer,
    /// A learner is added, or one leaves.
    Learner,
    /// A voter that is cut off from the others, for long, while they go on; then it comes back.
    LeftBehind(Who),
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it begins, ms.
    pub at_ms: u64,
    /// How long it lasts, or the machine is down, ms.
    pub for_ms: u64,
    /// What.
    pub what: What,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} ms, for {} ms: {:?}", self.at_ms, self.for_ms, self.what)
    }
}

/// Rounds in so many minutes.
pub fn rounds(minutes: u64) -> u64 {
    minutes.saturating_sub(1).max(1)
}

/// The schedule for so many minutes.
pub fn draw(mut rng: Rng, minutes: u64) -> Vec<Fault> {
    let mut all = Vec::new();
    for round in 0..rounds(minutes) {
        let mut faults: Vec<_> = (0..FAULTS).map(|_| fault(&mut rng)).collect();
        // Two at once, now and then, or right after each other.
        for fault in &mut faults {
            fault.at_ms += FORMED_MS + round * ROUND_MS;
        }
        if let [first, second, ..] = faults.as_mut_slice()
            && rng.one_in(2)
        {
            second.at_ms = first.at_ms + rng.below(first.for_ms + 200);
        }
        faults.sort_by_key(|fault| fault.at_ms);
        all.extend(faults);
    }
    all
}

fn who(rng: &mut Rng) -> Who {
    match rng.below(5) {
        0 | 1 => Who::Leader,
        2 | 3 => Who::Voter(rng.next()),
        _ => Who::Any(rng.next()),
    }
}

fn way(rng: &mut Rng) -> Way {
    match rng.below(4) {
        0 => Way::Out,
        1 => Way::In,
        _ => Way::Both,
    }
}

/// Most are short: what is met in the first milliseconds after a fault matters most.
fn length(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 | 1 => 10 + rng.below(390),
        2 => 300 + rng.below(1_700),
        _ => 1_000 + rng.below(6_000),
    }
}

fn fault(rng: &mut Rng) -> Fault {
    let (at_ms, mut for_ms) = (rng.below(FAULTS_MS), length(rng));
    let whom = who(rng);
    let what = match rng.below(40) {
        0..=5 => What::CrashAtCall(whom, 1 + rng.below(60), rng.one_in(2)),
        6..=9 => What::Crash(whom, !rng.one_in(3)),
        10 | 11 => What::Blackout,
        12 | 13 => What::Stop(whom),
        14 => What::DamageSnapshot(whom),
        15 => What::DamageLog(whom),
        16 => What::Wipe(whom),
        17 => What::Replace(whom),
        18 | 19 => What::Full(whom, rng.below(20_000)),
        20 => What::SlowDisk(whom),
        21 => What::FailedCall(whom, 1 + rng.below(30)),
        22..=26 => What::Isolate(whom, way(rng)),
        27 | 28 => What::Split(rng.next(), way(rng)),
        29 | 30 => What::Break(whom),
        31 => What::Swallow(whom),
        32 => What::SlowNet(whom, 1 + rng.below(400)),
        33 => What::Clock(whom, rng.below(7_200_000) as i64 - 3_600_000),
        34 | 35 => What::Transfer,
        36 => What::Learner,
        _ => {
            for_ms = 3_000 + rng.below(5_000);
            What::LeftBehind(whom)
        }
    };
    Fault { at_ms, for_ms, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_minutes_have_fifty_faults_that_end_in_time() {
        for seed in 0..50 {
            let faults = draw(Rng(seed), 10);
            assert!(faults.len() >= 50, "{}", faults.len());
            for fault in &faults {
                let within = (fault.at_ms - FORMED_MS) % ROUND_MS;
                assert!(within + fault.for_ms + 1_000 < HEALED_MS, "{fault}");
            }
            assert_eq!(faults, draw(Rng(seed), 10));
        }
    }
}

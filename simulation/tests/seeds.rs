//! Many seeds on the real log: no broken promise; and the bugs that are planted into it are found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cvlan_raft::Plant;
use cvlan_sim::runner::{Summary, reproduce, seeds};
use cvlan_sim::world::{Counts, Report, Setup};
use std::ops::RangeInclusive;
use std::sync::Mutex;

const THREADS: usize = 2;

/// Runs seeds, with a line of progress for every fifth of them.
fn play(what: &str, range: RangeInclusive<u64>, setup: &Setup, each: &(dyn Fn(&Report) + Sync)) -> Summary {
    let total = range.end() - range.start() + 1;
    let done = Mutex::new((0u64, 0u32));
    let summary = seeds(range, THREADS, setup, &|report| {
        each(report);
        let mut done = done.lock().unwrap();
        done.0 += 1;
        done.1 += u32::from(report.violation.is_some());
        if done.0.is_multiple_of((total / 5).max(1)) {
            eprintln!("{what}: {} of {total} seeds, {} with a violation", done.0, done.1);
        }
    });
    eprintln!("{what}: {}", summary.line());
    summary
}

/// What all seeds together must have met, or the simulation has become blind to it.
fn check_reach(sum: &Counts, seeds: u64) {
    let reached = [
        ("crashes", sum.crashes, 8 * seeds),
        ("crashes at a call of the disk", sum.at_call, 2 * seeds),
        ("crashes in a recovery", sum.in_recovery, seeds / 2),
        ("power cuts", sum.cuts, 5 * seeds),
        ("stops in order", sum.stops, seeds / 4),
        ("damaged snapshots", sum.damaged, seeds),
        ("failed calls", sum.failed, seeds / 10),
        ("full disks", sum.full, seeds / 10),
        ("answers that the disk is full", sum.full_answers, 10),
        ("commands sent again", sum.retries, seeds),
        ("commands that had been carried out before", sum.repeated, seeds),
        ("refused commands", sum.refused, 50 * seeds),
        ("checkpoints", sum.checkpoints, 2 * seeds),
        ("segments", sum.segments, 3 * seeds),
        ("events", sum.events, 150 * seeds),
        ("purged entries", sum.purged, 20 * seeds),
        ("events in snapshots", sum.snapshot, 20 * seeds),
    ];
    for (what, met, least) in reached {
        assert!(met >= least, "only {met} {what} in {seeds} seeds; at least {least} were due");
    }
}

#[test]
fn two_hundred_seeds_break_no_promise() {
    let setup = Setup::default();
    let sum = Mutex::new(Counts::default());
    let summary = play("no bug", 1..=200, &setup, &|report| {
        let (counts, sum) = (&report.counts, &mut *sum.lock().unwrap());
        assert!(counts.done + counts.refused >= 500, "seed {}: {counts:?}", report.seed);
        assert!(counts.crashes >= 8, "seed {}: {counts:?}", report.seed);
        sum.add(counts);
    });
    if let Some((seed, violation)) = summary.failed.first_key_value() {
        panic!("{} seeds failed; seed {seed}: {violation}\n  {}", summary.failed.len(), reproduce(*seed, &setup));
    }
    check_reach(&sum.into_inner().unwrap(), summary.seeds);
}

/// Runs seeds with a planted bug, and says how many of them noticed.
fn found(what: &str, plant: Plant) {
    let summary = play(what, 1..=100, &Setup { plant, ..Setup::default() }, &|_| {});
    let (first, violation) = summary.failed.first_key_value().expect("a planted bug was not found in 100 seeds");
    eprintln!(
        "{what}: found in {} of {} seeds, first in seed {first}: {violation}",
        summary.failed.len(),
        summary.seeds
    );
    assert!(summary.failed.len() >= 50, "found in {} of 100 seeds: the checks have become weak", summary.failed.len());
}

#[test]
fn a_skipped_fsync_is_found() {
    found("skip-fsync", Plant { skip_fsync: true, ..Plant::default() });
}

#[test]
fn an_acknowledgement_before_durability_is_found() {
    found("early-ack", Plant { early_ack: true, ..Plant::default() });
}

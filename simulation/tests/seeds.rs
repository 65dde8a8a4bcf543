//! Many seeds on the real log, of one member and of clusters: no broken promise, and nothing of it has become blind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cvlan_sim::report::{Report, Tally};
use cvlan_sim::runner::{Summary, seeds};
use cvlan_sim::setup::{Setup, reproduce};
use std::ops::RangeInclusive;
use std::sync::Mutex;

const THREADS: usize = 2;

/// Runs seeds, with a line of progress for every fifth of them; none may fail.
fn play(what: &str, range: RangeInclusive<u64>, setup: &Setup, each: &(dyn Fn(&Report) + Sync)) -> Summary {
    let total = range.end() - range.start() + 1;
    let done = Mutex::new((0u64, 0u32));
    let summary = seeds(range, THREADS, setup, false, &|report| {
        each(report);
        let mut done = done.lock().unwrap();
        done.0 += 1;
        done.1 += u32::from(report.violation.is_some());
        if done.0.is_multiple_of((total / 5).max(1)) {
            eprintln!("{what}: {} of {total} seeds, {} with a violation", done.0, done.1);
        }
    });
    eprintln!("{what}: {}\n  {}", summary.line(), summary.counts.line());
    if let Some((seed, violation)) = summary.failed.first_key_value() {
        panic!("{} seeds failed; seed {seed}: {violation}\n  {}", summary.failed.len(), reproduce(*seed, setup));
    }
    summary
}

/// What all seeds together must have met, or the simulation has become blind to it.
fn check_reach(sum: &Tally, due: &[(&str, u64)]) {
    for (what, least) in due {
        assert!(sum.get(what) >= *least, "only {} × {what}; at least {least} were due", sum.get(what));
    }
}

#[test]
fn one_member_keeps_its_promises() {
    let setup = Setup::alone();
    let summary = play("one member", 1..=175, &setup, &|report| {
        let counts = &report.counts;
        assert!(counts.get("done") + counts.get("refused") >= 500, "seed {}: {counts:?}", report.seed);
        assert!(counts.get("crashes") >= 8, "seed {}: {counts:?}", report.seed);
    });
    let seeds = summary.seeds;
    check_reach(
        &summary.counts,
        &[
            ("crashes", 8 * seeds),
            ("at_call", 2 * seeds),
            ("in_recovery", seeds / 2),
            ("cuts", 5 * seeds),
            ("stops", seeds / 4),
            ("damaged", seeds),
            ("failed", seeds / 10),
            ("full", seeds / 10),
            ("full_answers", 10),
            ("retries", seeds),
            ("repeated", seeds),
            ("refused", 50 * seeds),
            ("checkpoints", 2 * seeds),
            ("segments", 3 * seeds),
            ("events", 150 * seeds),
            ("purged", 20 * seeds),
            ("snapshot", 20 * seeds),
        ],
    );
}

#[test]
fn clusters_keep_their_promises() {
    let setup = Setup { minutes: 4, commands: 800, ..Setup::cluster() };
    let summary = play("clusters", 1..=25, &setup, &|report| {
        let counts = &report.counts;
        assert!(counts.get("done") + counts.get("refused") >= 800, "seed {}: {counts:?}", report.seed);
        assert!(counts.get("faults") >= 20, "seed {}: {counts:?}", report.seed);
    });
    let seeds = summary.seeds;
    check_reach(
        &summary.counts,
        &[
            ("lives", 12 * seeds),
            ("unsynced", 2 * seeds),
            ("stops", seeds / 2),
            ("damaged_snapshots", seeds / 10),
            ("damaged_logs", seeds / 10),
            ("wiped", seeds / 10),
            ("replaced", seeds / 10),
            ("added", 3 * seeds),
            ("members_removed", seeds / 2),
            ("removed", seeds / 10),
            ("transfers", seeds / 10),
            ("retries", 10 * seeds),
            ("repeated", seeds),
            ("without_effect", seeds),
            ("reads", 300 * seeds),
            ("snapshots", seeds),
            ("checkpoints", 10 * seeds),
            ("streams", 50 * seeds),
            ("maps_checked", 20 * seeds),
            ("endpoints", seeds),
            ("events", 300 * seeds),
            ("proofs", 2 * seeds),
            ("replays", seeds),
            ("history_trimmed", seeds),
            ("trims", 4 * seeds),
            ("files_gone", 3 * seeds),
            ("events_gone", 300 * seeds),
            ("proofs_of_gone", seeds / 4),
            ("proofs_late", seeds / 10),
            ("exported", 10 * seeds),
            ("held", 10 * seeds),
            ("older_lives", seeds),
            ("upgrades", seeds / 2),
            ("levels_raised", seeds / 8),
            ("older_refused", seeds / 10),
        ],
    );
}

/// Every seed that ever failed is run again, as it failed: `tests/corpus/seeds.txt` has the arguments, a line each.
#[test]
fn seeds_that_failed_before_do_not_fail_again() {
    let corpus = include_str!("corpus/seeds.txt");
    let lines = corpus.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    for line in lines.filter(|line| !line.is_empty()) {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cvlan-sim"))
            .args(["run", "--no-shrink"])
            .args(line.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

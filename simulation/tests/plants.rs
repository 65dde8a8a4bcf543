//! Bugs that are planted into the real code: the checks find each of them, within a bounded number of seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cvlan_sim::runner::seeds;
use cvlan_sim::setup::{PLANTS, Setup};

const THREADS: usize = 2;

/// Seeds within which a cluster must show a bug.
const WITHIN: u64 = 40;

/// Without it no entry whose number fits and whose root does not gets into a log, so that `wrong_root` needs it; alone it
/// breaks nothing, as such entries are skipped.
const NO_FENCE: &str = "no_fence";

fn planted(names: &[&str]) -> Setup {
    let setup = Setup { minutes: 4, commands: 800, ..Setup::cluster() };
    names.iter().fold(setup, |setup, name| setup.with_plant(name).unwrap())
}

#[test]
fn every_bug_is_found_in_a_cluster() {
    let mut missed = Vec::new();
    for (name, _) in PLANTS.iter().filter(|(name, _)| *name != NO_FENCE) {
        let setup = if *name == "wrong_root" { planted(&[name, NO_FENCE]) } else { planted(&[name]) };
        let summary = seeds(1..=WITHIN, THREADS, &setup, true, &|_| {});
        match summary.failed.first_key_value() {
            Some((seed, violation)) => {
                eprintln!("{name}: seed {seed}, {:.1} s: {violation}", summary.wall.as_secs_f64())
            }
            None => missed.push(*name),
        }
    }
    assert!(missed.is_empty(), "not found in {WITHIN} seeds: {missed:?}");
}

#[test]
fn what_was_decided_on_a_lost_head_is_skipped_for_its_root() {
    let summary = seeds(1..=WITHIN, THREADS, &planted(&[NO_FENCE]), false, &|_| {});
    assert_eq!(summary.failed, Default::default());
    assert!(summary.counts.get("skipped") > 0, "{:?}", summary.counts);
}

#[test]
fn a_disk_that_lies_is_found_in_most_seeds_of_one_member() {
    for name in ["skip_fsync", "early_ack"] {
        let setup = Setup::alone().with_plant(name).unwrap();
        let summary = seeds(1..=20, THREADS, &setup, false, &|_| {});
        eprintln!("{name}: found in {} of {} seeds", summary.failed.len(), summary.seeds);
        assert!(summary.failed.len() >= 10, "{name}: found in {} of 20 seeds", summary.failed.len());
    }
}

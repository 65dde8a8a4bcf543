//! The same seed gives the same trace: in one process, in two, and step by step of the scheduler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cvlan_sim::setup::{Setup, run};
use std::collections::BTreeSet;
use std::process::{Command, Output};

const SEEDS: std::ops::RangeInclusive<u64> = 301..=306;

fn cvlan_sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cvlan-sim")).args(arguments).output().unwrap()
}

fn last_line(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap().lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_seed_twice_in_one_process_is_the_same_to_the_last_step() {
    let setup = Setup { text: true, schedule: true, commands: 300, crashes: 5, ..Setup::alone() };
    let mut digests = BTreeSet::new();
    for seed in SEEDS {
        let (one, two) = (run(seed, &setup), run(seed, &setup));
        let differ =
            one.text.iter().flat_map(|t| t.lines()).zip(two.text.iter().flat_map(|t| t.lines())).find(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}");
        assert_eq!((one.digest, one.lines), (two.digest, two.lines), "seed {seed}");
        assert!(one.lines > 10_000, "seed {seed}: {} lines", one.lines);
        digests.insert(one.digest);
    }
    assert_eq!(digests.len(), SEEDS.count(), "seeds differ from each other");
}

#[test]
fn a_seed_in_two_processes_is_the_same_whatever_runs_beside_it() {
    let alone = cvlan_sim(&["run", "--alone", "--seeds", "301..307"]);
    let beside = cvlan_sim(&["seeds", "--alone", "--from", "301", "--to", "306", "--threads", "3"]);
    assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
    assert!(last_line(&alone).strip_prefix("digest ").is_some_and(|hex| hex.len() == 64), "{}", last_line(&alone));
    assert_eq!(last_line(&alone), last_line(&beside));
}

#[test]
fn a_cluster_twice_in_one_process_is_the_same_to_the_last_step() {
    let setup = Setup { text: true, schedule: true, minutes: 2, commands: 200, ..Setup::cluster() };
    for seed in [11, 12] {
        let (one, two) = (run(seed, &setup), run(seed, &setup));
        let lines = |text: &Option<String>| text.clone().unwrap_or_default();
        let (one_text, two_text) = (lines(&one.text), lines(&two.text));
        assert_eq!(one_text.lines().zip(two_text.lines()).find(|(a, b)| a != b), None, "seed {seed}");
        assert_eq!((one.digest, one.lines), (two.digest, two.lines), "seed {seed}");
        assert!(one.lines > 50_000, "seed {seed}: {} lines", one.lines);
    }
}

#[test]
fn a_cluster_in_two_processes_is_the_same_whatever_runs_beside_it() {
    let alone = cvlan_sim(&["run", "--minutes", "2", "--seeds", "21..23"]);
    let beside = cvlan_sim(&["seeds", "--minutes", "2", "--from", "21", "--to", "22", "--threads", "3"]);
    assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
    assert_eq!(last_line(&alone), last_line(&beside));
}

#[test]
fn a_violation_is_one_exit_code_and_one_line_to_run_it_again() {
    let output = cvlan_sim(&["run", "--alone", "--seeds", "1..20", "--plant", "skip_fsync"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let again =
        text.lines().find(|line| line.trim_start().starts_with("cargo run -q -p cvlan-sim -- run --seed ")).unwrap();
    let arguments: Vec<&str> = again.split(" -- ").nth(1).unwrap().split(' ').collect();
    let trace = std::env::temp_dir().join(format!("cvlan-sim-{}.txt", std::process::id()));
    let path = trace.to_str().unwrap();
    let arguments: Vec<&str> = arguments.into_iter().map(|a| if a == "trace.txt" { path } else { a }).collect();
    let repeated = cvlan_sim(&arguments);
    assert_eq!(repeated.status.code(), Some(1));
    let violation = |text: &str| text.lines().find(|line| line.contains("VIOLATION")).map(str::to_owned);
    assert_eq!(violation(&String::from_utf8(repeated.stdout).unwrap()), violation(&text));
    let written = std::fs::read_to_string(&trace).unwrap();
    std::fs::remove_file(&trace).unwrap();
    assert!(written.lines().count() > 100, "the trace has {} lines", written.lines().count());
}

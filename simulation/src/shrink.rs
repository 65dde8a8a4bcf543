//! Fewer faults that break a promise just as well: easier to understand than fifty.

use crate::report::Report;
use crate::setup::{Setup, run};
use std::collections::BTreeSet;

/// Runs that a search may take.
pub const RUNS: usize = 60;

/// Leaves out what it can of the schedule of a seed that fails: first what began after the end, then halves, then less and
/// less, down to single faults. `each` hears of every run. Returns the setup with the faults that are left, and its report.
pub fn shrink(seed: u64, setup: &Setup, failed: Report, each: &dyn Fn(usize, usize)) -> (Setup, Report) {
    let mut best = failed;
    let mut left: Vec<usize> = match &setup.only {
        Some(only) => only.iter().copied().collect(),
        None => (0..best.faults.len()).collect(),
    };
    let with = |faults: &[usize]| Setup { only: Some(BTreeSet::from_iter(faults.iter().copied())), ..setup.clone() };
    let (mut runs, mut piece) = (0, left.len());
    while piece > 0 && runs < RUNS {
        let (mut at, mut less) = (0, false);
        while at < left.len() && runs < RUNS {
            let fewer: Vec<usize> =
                left.iter().enumerate().filter(|(n, _)| !(at..at + piece).contains(n)).map(|(_, f)| *f).collect();
            runs += 1;
            let report = run(seed, &with(&fewer));
            each(runs, left.len());
            if report.violation.is_some() {
                (best, left, less) = (report, fewer, true);
            } else {
                at += piece;
            }
        }
        if piece == 1 && !less {
            break;
        }
        piece = if less && piece == 1 { 1 } else { piece / 2 };
    }
    (with(&left), best)
}

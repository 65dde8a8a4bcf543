//! What is told of a seed, by either world.

use crate::ledger::Violation;
use crate::trace::Mark;
use std::collections::BTreeMap;

/// What happened, counted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// Counts one more.
    pub fn one(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// Counts `n` more.
    pub fn add(&mut self, what: &'static str, n: u64) {
        if n > 0 {
            *self.0.entry(what).or_default() += n;
        }
    }

    /// Sets what is not counted but measured: the larger of the two stays.
    pub fn most(&mut self, what: &'static str, n: u64) {
        let most = self.0.entry(what).or_default();
        *most = n.max(*most);
    }

    /// How often; 0 for what never happened.
    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// Adds another seed's.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, n)| self.add(what, *n));
    }

    /// All of it, in the order of names.
    pub fn line(&self) -> String {
        let all: Vec<String> = self.0.iter().map(|(what, n)| format!("{what} {n}")).collect();
        all.join(", ")
    }
}

/// How a seed went.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// Over the trace.
    pub digest: [u8; 32],
    /// Lines of the trace.
    pub lines: u64,
    /// The trace, if it was kept.
    pub text: Option<String>,
    /// What the picture is drawn from, if the trace was kept.
    pub marks: Vec<Mark>,
    /// The schedule of faults, a line each; of one member, none.
    pub faults: Vec<String>,
    /// Virtual time, ms.
    pub virtual_ms: u64,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// What happened.
    pub counts: Tally,
}

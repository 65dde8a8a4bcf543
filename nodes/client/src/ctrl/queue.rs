//! What the data daemon is to be told next: changes in order where they lead there, all of it where they don't.

use cvlan_core::id::Checkpoint;
use cvlan_link::sync::Effect;
use cvlan_proto::v1;
use std::collections::VecDeque;
use uuid::Uuid;

/// Changes that are kept; beyond it, all of it is sent.
const CHANGES_MAX: usize = 64;

/// What the data daemon runs, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Running {
    /// Nobody knows: it was just met, or failed.
    Unknown,
    /// Nothing.
    Down,
    /// What the store had at this checkpoint.
    At(Checkpoint),
}

/// From one checkpoint to another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub from: Checkpoint,
    pub to: Checkpoint,
    pub own: Option<v1::Self_>,
    pub upserts: Vec<v1::Peer>,
    pub removed: Vec<Uuid>,
}

impl Change {
    /// Only the checkpoint moves.
    pub fn is_empty(&self) -> bool {
        self.own.is_none() && self.upserts.is_empty() && self.removed.is_empty()
    }
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// It runs what the store has.
    Nothing,
    /// Take it down.
    Down,
    /// Send all that the store has.
    Whole,
    /// Send this.
    Patch(Box<Change>),
}

/// Changes since the last whole configuration.
#[derive(Default)]
pub(crate) struct Queue(VecDeque<Change>);

impl Queue {
    /// The store went from `before` by `effect`.
    pub fn push(&mut self, before: Option<Checkpoint>, effect: Effect) {
        match (before, effect) {
            (Some(from), Effect::Patch { checkpoint: to, own, upserts, removed }) => {
                self.0.push_back(Change { from, to, own, upserts, removed });
            }
            (Some(from), Effect::Advance(to)) => {
                self.0.push_back(Change { from, to, own: None, upserts: Vec::new(), removed: Vec::new() });
            }
            (_, Effect::Replace { .. } | Effect::Patch { .. } | Effect::Advance(_)) => self.0.clear(),
            (_, Effect::Redirect { .. } | Effect::Bye { .. }) => {}
        }
        if self.0.len() > CHANGES_MAX {
            self.0.clear();
        }
    }

    /// The store starts anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What to do, where the store stands at `durable`.
    pub fn next(&mut self, running: Running, durable: Option<Checkpoint>) -> Step {
        let Some(durable) = durable else {
            return if running == Running::Down { Step::Nothing } else { Step::Down };
        };
        let Running::At(running) = running else {
            self.0.clear();
            return Step::Whole;
        };
        while let Some(change) = self.0.pop_front() {
            if change.from == running {
                return Step::Patch(Box::new(change));
            }
        }
        if running == durable { Step::Nothing } else { Step::Whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cp(seq: u64) -> Checkpoint {
        format!("000102030405060708090a0b0c0d0e0f.{seq}").parse().unwrap()
    }

    fn patch(seq: u64) -> Effect {
        Effect::Patch { checkpoint: cp(seq), own: None, upserts: vec![v1::Peer::default()], removed: vec![] }
    }

    fn change(from: u64, to: u64) -> Step {
        let (own, upserts, removed) = (None, vec![v1::Peer::default()], vec![]);
        Step::Patch(Box::new(Change { from: cp(from), to: cp(to), own, upserts, removed }))
    }

    #[test]
    fn changes_lead_there_or_all_of_it_is_sent() {
        let replace = || Effect::Replace { checkpoint: cp(5), own: None, peers: vec![] };
        let check = |name: &str, effects: Vec<(Option<u64>, Effect)>, running, durable: Option<u64>, steps: &[Step]| {
            let mut queue = Queue::default();
            for (before, effect) in effects {
                queue.push(before.map(cp), effect);
            }
            let mut running = running;
            for (at, step) in steps.iter().enumerate() {
                let got = queue.next(running, durable.map(cp));
                assert_eq!(got, *step, "{name}, step {at}");
                running = match got {
                    Step::Nothing => running,
                    Step::Down => Running::Down,
                    Step::Whole => Running::At(cp(durable.unwrap())),
                    Step::Patch(change) => Running::At(change.to),
                };
            }
        };
        use Running::{At, Down, Unknown};
        check("nothing anywhere", vec![], Down, None, &[Step::Nothing]);
        check("met without a map", vec![], Unknown, None, &[Step::Down, Step::Nothing]);
        check("met with a map", vec![(None, replace())], Unknown, Some(5), &[Step::Whole, Step::Nothing]);
        check("after a wipe", vec![], At(cp(5)), None, &[Step::Down, Step::Nothing]);
        check("a map later", vec![(Some(4), replace())], At(cp(4)), Some(5), &[Step::Whole, Step::Nothing]);
        let two = || vec![(Some(5), patch(6)), (Some(6), patch(8))];
        check("changes", two(), At(cp(5)), Some(8), &[change(5, 6), change(6, 8), Step::Nothing]);
        check("some seen", two(), At(cp(6)), Some(8), &[change(6, 8), Step::Nothing]);
        check("all seen", two(), At(cp(8)), Some(8), &[Step::Nothing]);
        check("a hole", two(), At(cp(3)), Some(8), &[Step::Whole, Step::Nothing]);
        check("met in between", two(), Unknown, Some(8), &[Step::Whole, Step::Nothing]);
        let same = vec![(Some(5), patch(5))];
        check("a change that goes nowhere", same, At(cp(5)), Some(5), &[change(5, 5), Step::Nothing]);
        let many = (5..200).map(|seq| (Some(seq), patch(seq + 1))).collect();
        check("too many", many, At(cp(5)), Some(200), &[Step::Whole, Step::Nothing]);
        let mut queue = Queue::default();
        queue.push(Some(cp(5)), Effect::Advance(cp(9)));
        let Step::Patch(step) = queue.next(At(cp(5)), Some(cp(9))) else { panic!() };
        assert!(step.is_empty() && step.to == cp(9));
    }
}

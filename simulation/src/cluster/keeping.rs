//! How long history is kept: in some seeds for a while only, and on some of their machines no event goes before it was written
//! elsewhere.
//!
//! ```text
//! leader: historyTrimmed ─► each member: files go ◄── seen many times a second: nothing but what the log lets go of
//! `--history-export`, as it could be: reads what is to go ─► written ─► lets go of it; sometimes it stalls
//! ```
//! What was written outlives the process, as a folder does. Where a snapshot takes the place of history, that goes too, and
//! comes back from other members.

use super::machine::{Called, Machine, Up};
use super::{CALL_LIMIT, Cluster};
use crate::lock;
use crate::runtime::{NodeRt, sleep_us};
use cvlan_core::grammar::Rng;
use cvlan_core::id::Seq;
use cvlan_core::machine::{Machine as _, SystemFact};
use cvlan_core::{Rules, State};
use cvlan_proto::v1::Event;
use cvlan_raft::{HistoryError, Limits, Member};
use std::sync::{Arc, Mutex};

/// Events that are written at once, at most.
const PAGE: u64 = 60;

/// What a seed does with history.
pub(super) struct Keeping {
    /// Machines that hold it until it is written, by bits.
    exporters: u64,
    rng: Mutex<Rng>,
}

/// What is known of the history of a machine's member.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Where it began when it was last seen; 0 before that.
    from: u64,
    /// The log lets go of what is before this event, as was applied in any of its lives: recovery may end before that.
    let_go: u64,
    /// Since then a snapshot has taken the place of all before this event.
    jumped: u64,
    /// It was never whole since it began late: there may be no tree of what is before.
    late: bool,
    /// Written elsewhere up to this event.
    written: u64,
}

impl History {
    /// An entry, or a snapshot, was applied.
    pub(super) fn applied(&mut self, state: &State) {
        self.let_go = self.let_go.max(Rules::history_from(state).0);
    }

    /// A snapshot took the place of all up to this event.
    pub(super) fn jumps(&mut self, seq: u64) {
        self.jumped = self.jumped.max(seq + 1);
    }

    /// Takes what is seen, as long as nothing is gone from it but what is before event `free`: by how much it became shorter.
    fn seen(&mut self, from: u64, free: u64) -> Result<u64, String> {
        let (before, jumped) = (std::mem::replace(&mut self.from, from), std::mem::take(&mut self.jumped));
        self.late = from > 1 && (self.late || before == 0 || jumped > 0);
        match before {
            0 => Ok(0),
            _ if from <= before || from <= jumped => Ok(0),
            _ if from <= free => Ok(from - before),
            _ => Err(format!("history began at event {before} and begins at {from}; nothing from {free} on may go")),
        }
    }
}

impl Keeping {
    /// One seed in two lets go of history; then files are short and snapshots frequent, so that it really goes.
    pub(super) fn draw(mut rng: Rng, plain: bool, limits: &mut Limits) -> Self {
        let mut exporters = 0;
        if rng.one_in(2) && !plain {
            limits.history_ms = 15_000 + rng.below(90_000);
            limits.history_check_ms = 1_000 + rng.below(5_000);
            limits.segment_bytes = 1024 * (4 + rng.below(20));
            limits.snapshot_events = 30 + rng.below(120);
            limits.snapshots_kept = 2;
            limits.purge_behind = rng.below(60);
            exporters = if rng.one_in(3) { 0 } else { rng.next() };
        }
        Self { exporters, rng: Mutex::new(rng) }
    }

    /// The first event that a machine's member must not let go of, whatever the log says.
    pub(super) fn holds(&self, machine: &Machine) -> Option<u64> {
        (self.exporters >> machine.at & 1 == 1).then(|| machine.now().history.written + 1)
    }

    fn below(&self, n: u64) -> u64 {
        lock(&self.rng).below(n)
    }
}

/// The first event that the log does not let go of, as a member has applied it.
fn let_go(member: &Member<Rules, NodeRt>) -> u64 {
    Rules::history_from(&member.head().machine).0
}

impl Cluster {
    /// Where a member's history begins, now or as it was opened: nothing goes but what the log lets go of and nobody holds.
    pub(super) fn history_seen(&self, machine: &Machine, member: &Member<Rules, NodeRt>, opened: bool) {
        let status = member.status();
        let held = self.keeping.holds(machine).unwrap_or(u64::MAX);
        let seen = {
            let mut now = machine.now();
            // A snapshot that came right before the process ended.
            if let Some(seq) = status.snapshot_seq.filter(|seq| opened && seq + 1 == status.history_from) {
                now.history.jumps(seq);
            }
            now.history.applied(&member.head().machine);
            let let_go = now.history.let_go;
            now.history.seen(status.history_from, let_go.min(held)).map(|gone| (gone, held < let_go))
        };
        match seen {
            Ok((gone, holds)) => self.count(|c| {
                c.add("trims", u64::from(gone > 0));
                c.add("events_gone", gone);
                c.add("held", u64::from(holds));
            }),
            Err(why) => self.ledger.broken(format!("s{} m{}: {why}", machine.at, status.member)),
        }
    }

    /// A member says that event `from` is gone.
    pub(super) fn gone(&self, up: &Up, from: u64, first: Seq) {
        let begins = up.member.status().history_from;
        if begins <= from {
            self.ledger.broken(format!("s{} has history from event {begins} on; asked for {from}: {first}", up.at));
        }
    }

    /// The first event that a member has to have, if any other one has it.
    pub(super) fn history_due(&self, up: &Up) -> u64 {
        let held = self.machines.get(up.at).and_then(|machine| self.keeping.holds(machine));
        let_go(&up.member).min(held.unwrap_or(u64::MAX))
    }

    /// There may be no tree of all events on this machine.
    pub(super) fn tree_is_late(&self, up: &Up) -> bool {
        self.machines.get(up.at).is_some_and(|machine| machine.now().history.late)
    }

    /// Writes what is to go, from where it got to, as long as the process lives.
    pub(super) async fn export(self: Arc<Self>, up: Up) {
        let Some(machine) = self.machines.get(up.at).cloned() else { return };
        loop {
            let stalls = self.keeping.below(15) == 0 && !self.is_calm();
            let rest_ms = if stalls { 10_000 + self.keeping.below(60_000) } else { 200 + self.keeping.below(2_000) };
            sleep_us(rest_ms * 1000).await;
            if self.over() || up.process.is_dead() {
                return;
            }
            let from = machine.now().history.written + 1;
            let (to, begins) = (let_go(&up.member) - 1, up.member.status().history_from);
            if from > to {
                continue;
            }
            let written = if begins > from {
                // Either it comes from the others, or nobody has it.
                if !up.member.history_sought() {
                    continue;
                }
                self.count(|c| c.one("exports_lost"));
                to.min(begins - 1)
            } else {
                let limit = (to - from + 1).min(1 + self.keeping.below(PAGE));
                let read =
                    move |member: Member<Rules, NodeRt>| async move { member.history(Seq(from), limit as usize).await };
                match up.call(CALL_LIMIT, read).await {
                    Called::Done(Ok(events)) => {
                        self.ledger.read_back(&events);
                        self.count(|c| c.add("exported", events.len() as u64));
                        events.last().map_or(from - 1, |(last, _)| last.0)
                    }
                    Called::Done(Err(HistoryError::Gone { first })) => {
                        self.gone(&up, from, first);
                        continue;
                    }
                    Called::Done(Err(_)) | Called::Gone | Called::Late => continue,
                }
            };
            if !up.process.is_dead() {
                machine.now().history.written = written;
                up.member.history_hold(Seq(written + 1));
            }
        }
    }

    /// The log lets go of nothing younger than it has to keep, and never twice of the same.
    pub(super) fn kept_long_enough(&self, events: &[Event]) -> Result<(), String> {
        let (history_ms, mut before) = (self.limits.history_ms, 1);
        for event in events {
            let Some(SystemFact::HistoryTrimmed { first }) = Rules::event_fact(event) else { continue };
            let last = (first.0 as usize).checked_sub(2).and_then(|at| events.get(at));
            let is_old = last.is_some_and(|last| Rules::time_ms(last) + history_ms <= Rules::time_ms(event));
            if history_ms == 0 || first.0 <= before || first.0 > event.seq || !is_old {
                return Err(format!("event {} lets go of what is before event {first}, too early", event.seq));
            }
            before = first.0;
            self.count(|c| c.one("history_trimmed"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_goes_where_it_may_and_where_a_snapshot_takes_its_place() {
        let mut history = History::default();
        assert_eq!((history.seen(1, 1), history.late), (Ok(0), false));
        assert_eq!((history.seen(40, 41), history.late), (Ok(39), false), "trimmed, and the tree of it is there");
        assert!(history.seen(42, 41).is_err());
        history.jumps(99);
        assert_eq!((history.seen(70, 41), history.late), (Ok(0), true), "already filled up again, a part of it");
        assert!(history.seen(71, 41).is_err(), "that was once");
        assert_eq!((history.seen(41, 41), history.late), (Ok(0), true));
        assert_eq!((history.seen(1, 41), history.late), (Ok(0), false), "whole again");
        let mut joined = History::default();
        assert_eq!((joined.seen(500, 1), joined.late), (Ok(0), true));
    }
}

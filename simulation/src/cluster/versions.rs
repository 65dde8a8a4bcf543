//! Two versions: in some seeds the members begin with one that knows the first level of features alone, and are upgraded one by
//! one.
//!
//! ```text
//! all older ─► starts bring either one ─► the roll: each is stopped and upgraded ─► the level rises ─► the older one refuses
//! ```
//! Before the level is raised a member may be put back; afterwards it must refuse, or stop once it comes to that event.

use super::machine::Machine;
use super::schedule::FORMED_MS;
use super::{CALL_LIMIT, Cluster};
use crate::lock;
use crate::runtime::{now_us, sleep_us};
use crate::setup::Setup;
use cvlan_core::grammar::Rng;
use cvlan_core::machine::{Machine as _, SystemFact};
use cvlan_core::system::HISTORY_LEVEL;
use cvlan_core::{Rules, State};
use cvlan_proto::v1::Event;
use cvlan_raft::Head;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The level that the older version knows.
pub(super) const OLDER: u32 = 1;

/// Starts, one in so many, bring the other version.
const OTHER: u64 = 6;

/// Once all members have the newer version, the level rises within this, ms.
const RISES_MS: u64 = 30_000;

/// Whoever ran the older version for so long was heard of by who leads, µs.
const HEARD_US: u64 = 30_000_000;

/// Which versions a seed has.
pub(super) struct Versions {
    /// Members begin with the older one.
    pub(super) mixed: bool,
    /// They are upgraded one by one from then on, ms.
    roll_ms: u64,
    pub(super) levels: Arc<Mutex<Levels>>,
    rng: Mutex<Rng>,
}

/// What is known of levels.
#[derive(Default)]
pub(super) struct Levels {
    /// Members that run the older version, and since when, µs.
    older: BTreeMap<u64, u64>,
    /// The log is at the newest level.
    raised: bool,
    /// A member of the older version has said so, while nobody had seen it yet.
    said: bool,
}

impl Versions {
    /// One seed in three has both.
    pub(super) fn draw(mut rng: Rng, setup: &Setup) -> Self {
        let mixed = rng.one_in(3) && !setup.plain;
        let roll_ms = FORMED_MS + rng.below(setup.minutes * 30_000);
        Self { mixed, roll_ms, levels: Arc::default(), rng: Mutex::new(rng) }
    }

    /// A member's process has ended.
    pub(super) fn ends(&self, member: u64) {
        lock(&self.levels).older.remove(&member);
    }

    /// A member is at this level.
    pub(super) fn seen(&self, level: u32) {
        if level > OLDER {
            lock(&self.levels).raised = true;
        }
    }

    fn below(&self, n: u64) -> u64 {
        lock(&self.rng).below(n)
    }
}

/// The level rises with this event, although a member that runs the older version was there for long.
pub(super) fn raised_early(levels: &Mutex<Levels>, head: &Head<State>, event: &Event) -> Option<String> {
    let level = Rules::event_level(event).filter(|level| *level > OLDER)?;
    let mut levels = lock(levels);
    if std::mem::replace(&mut levels.raised, true) {
        return None;
    }
    let long =
        |(member, since): &(&u64, &u64)| head.members.addresses.contains_key(member) && *since + HEARD_US < now_us();
    let (member, _) = levels.older.iter().find(long)?;
    Some(format!("event {} raises the level to {level}, yet member {member} does not know it", event.seq))
}

impl Cluster {
    /// A process starts, of the version that is installed by now.
    pub(super) fn version_starts(&self, machine: &Machine, member: u64) {
        let versions = &self.versions;
        if !versions.mixed {
            return;
        }
        // The cluster is formed by the older one.
        let other = versions.below(OTHER) == 0 && now_us() / 1000 > FORMED_MS;
        let (rolled, mut levels) = (now_us() / 1000 >= versions.roll_ms, lock(&versions.levels));
        let mut now = machine.now();
        now.older = match now.older {
            _ if self.is_calm() => false,
            true => !(rolled || levels.raised || other),
            // Somebody puts it back. While all are being upgraded, nobody does.
            false => other && (!rolled || levels.raised),
        };
        now.runs_older = now.older;
        if now.older {
            levels.older.insert(member, now_us());
            self.trace.line(format_args!("s{} m{member} starts with the older version", machine.at));
        }
        self.count(|c| c.add("older_lives", u64::from(now.older)));
    }

    /// Whether a member that does not go on for its version is right: it has the older one, and the log is at a higher level.
    pub(super) fn older_refuses(&self, machine: &Machine, how: &'static str) -> bool {
        let mut now = machine.now();
        if !now.runs_older {
            return false;
        }
        let mut levels = lock(&self.versions.levels);
        levels.said |= !levels.raised;
        now.rests_until_us = now_us() + 200_000;
        self.count(|c| c.one(how));
        true
    }

    /// Where a member has said that the log is at a higher level, it was seen by now.
    pub(super) fn level_was_raised(&self) -> Result<(), String> {
        let levels = lock(&self.versions.levels);
        match levels.said && !levels.raised {
            true => Err("a member of the older version did not go on, and the level has not been raised".into()),
            false => Ok(()),
        }
    }

    /// One member after the other is upgraded.
    pub(super) async fn roll(self: Arc<Self>) {
        self.sleep_until(self.versions.roll_ms).await;
        while !self.is_calm() && !self.over() {
            if let Some(machine) = self.older() {
                self.upgrade(&machine).await;
            }
            sleep_us(1_000_000 + self.versions.below(4_000_000)).await;
        }
    }

    fn older(&self) -> Option<Arc<Machine>> {
        self.machines.iter().find(|machine| machine.up().is_some() && machine.now().runs_older).cloned()
    }

    async fn upgrade(&self, machine: &Machine) {
        let Some(up) = machine.up() else { return };
        {
            let mut now = machine.now();
            (now.older, now.stopping) = (false, true);
        }
        up.call(CALL_LIMIT, |member| async move { member.shutdown().await }).await;
        self.count(|c| c.one("upgrades"));
        if !up.process.is_dead() {
            machine.kill(&self.net, false, 100 + self.versions.below(1_000));
        }
    }

    /// Nothing is wrong any more, and all have the newer version: the level rises.
    pub(super) async fn level_settles(&self) -> Result<(), String> {
        if !self.versions.mixed {
            return Ok(());
        }
        while let Some(machine) = self.older() {
            self.upgrade(&machine).await;
            sleep_us(2_000_000).await;
        }
        let until = now_us() + RISES_MS * 1000;
        while !lock(&self.versions.levels).raised {
            if now_us() > until {
                return Err(format!("the level was not raised for {RISES_MS} ms, with nothing wrong any more"));
            }
            sleep_us(100_000).await;
        }
        Ok(())
    }

    /// No kind of event is in the log before its level is.
    pub(super) fn levels_in_order(&self, events: &[Event], head: &Head<State>) -> Result<(), String> {
        let mut level = OLDER;
        for event in events {
            if let Some(raised) = Rules::event_level(event) {
                self.count(|c| c.add("levels_raised", u64::from(event.seq > 1)));
                if raised < level || raised > Rules::LEVEL || event.seq == 1 && self.versions.mixed && raised > OLDER {
                    return Err(format!("event {} moves the level from {level} to {raised}", event.seq));
                }
                level = raised;
            }
            let due = match Rules::event_fact(event) {
                Some(SystemFact::HistoryTrimmed { .. }) => HISTORY_LEVEL,
                Some(_) | None => OLDER,
            };
            if due > level {
                return Err(format!("event {} is of level {due}, and the log is at {level}", event.seq));
            }
        }
        match (level, head.feature_level) {
            (Rules::LEVEL, Rules::LEVEL) => Ok(()),
            (level, at) => Err(format!("by its events the log is at level {level}, by its head at {at}")),
        }
    }
}

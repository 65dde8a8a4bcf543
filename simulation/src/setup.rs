//! What a seed is run with, and the line that runs it again.

use crate::report::Report;
use crate::{cluster, world};
use cvlan_raft::Plant;
use std::collections::BTreeSet;
use std::fmt::Write;

/// A planted bug's name and its switch.
pub type Planted = (&'static str, fn(&mut Setup) -> &mut bool);

/// Bugs that can be planted, by name: the checks have to find each.
pub const PLANTS: [Planted; 16] = [
    ("skip_fsync", |setup| &mut setup.plant.skip_fsync),
    ("early_ack", |setup| &mut setup.plant.early_ack),
    ("wrong_quorum", |setup| &mut setup.plant.wrong_quorum),
    ("wrong_root", |setup| &mut setup.plant.wrong_root),
    ("no_fence", |setup| &mut setup.plant.no_fence),
    ("lost_head", |setup| &mut setup.plant.lost_head),
    ("out_of_order", |setup| &mut setup.plant.out_of_order),
    ("stale_read", |setup| &mut setup.plant.stale_read),
    ("kept_tail", |setup| &mut setup.plant.kept_tail),
    ("leader_restore", |setup| &mut setup.plant.leader_restore),
    ("forgotten_once", |setup| &mut setup.plant.forgotten_once),
    ("kept_goes", |setup| &mut setup.plant.kept_goes),
    ("held_goes", |setup| &mut setup.plant.held_goes),
    ("level_early", |setup| &mut setup.plant.level_early),
    ("two_sessions", |setup| &mut setup.two_sessions),
    ("lost_tombstone", |setup| &mut setup.lost_tombstone),
];

/// What a seed is run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// One member instead of a cluster.
    pub alone: bool,
    /// One member: commands of all clients together. A cluster: at least so many.
    pub commands: u64,
    /// One member: ends of the process, at least.
    pub crashes: u64,
    /// A cluster: virtual time, minutes.
    pub minutes: u64,
    /// A cluster: all of history is kept, and all members have one version, in every seed.
    pub plain: bool,
    /// A cluster: only these faults of the schedule, by their place in it.
    pub only: Option<BTreeSet<usize>>,
    /// Bugs planted into raft/.
    pub plant: Plant,
    /// A bug planted into a cluster's shell: a stream that ends takes the node's session with it, also one elsewhere.
    pub two_sessions: bool,
    /// A bug planted there: deltas never name who is gone.
    pub lost_tombstone: bool,
    /// Keep the trace's text.
    pub text: bool,
    /// Let every decision of the scheduler go into the digest; slow.
    pub schedule: bool,
}

impl Setup {
    /// One member.
    pub fn alone() -> Self {
        Self { alone: true, commands: 512, ..Self::cluster() }
    }

    /// A cluster.
    pub fn cluster() -> Self {
        Self {
            alone: false,
            commands: 2_000,
            crashes: 10,
            minutes: 10,
            plain: false,
            only: None,
            plant: Plant::default(),
            two_sessions: false,
            lost_tombstone: false,
            text: false,
            schedule: false,
        }
    }

    /// The same with a bug planted; `None` where there is none of this name.
    pub fn with_plant(mut self, name: &str) -> Option<Self> {
        let (_, bug) = PLANTS.iter().find(|(known, _)| *known == name)?;
        *bug(&mut self) = true;
        Some(self)
    }

    /// Names of the bugs that are planted.
    pub fn planted(&self) -> Vec<&'static str> {
        let mut copy = self.clone();
        PLANTS.iter().filter(|(_, bug)| *bug(&mut copy)).map(|(name, _)| *name).collect()
    }

    /// The arguments of `cvlan-sim run` for one seed of it.
    pub fn arguments(&self, seed: u64) -> String {
        let mut line = format!("--seed {seed}");
        // Writing into a String cannot fail.
        let _ = match self.alone {
            true => write!(line, " --alone --commands {} --crashes {}", self.commands, self.crashes),
            false => write!(line, " --minutes {} --commands {}", self.minutes, self.commands),
        };
        if self.plain {
            line.push_str(" --plain");
        }
        for name in self.planted() {
            let _ = write!(line, " --plant {name}");
        }
        if let Some(only) = &self.only {
            let places: Vec<String> = only.iter().map(usize::to_string).collect();
            let _ = write!(line, " --faults {}", places.join(","));
        }
        line
    }
}

/// Runs one seed on this thread.
pub fn run(seed: u64, setup: &Setup) -> Report {
    if setup.alone { world::run(seed, setup) } else { cluster::run(seed, setup) }
}

/// The line that runs one seed again.
pub fn reproduce(seed: u64, setup: &Setup) -> String {
    format!("cargo run -q -p cvlan-sim -- run {} --trace trace.txt", setup.arguments(seed))
}

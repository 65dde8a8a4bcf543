//! What a seed is run with, and the line that runs it again.

use crate::report::Report;
use crate::{cluster, world};
use cvlan_raft::Plant;
use std::collections::BTreeSet;
use std::fmt::Write;

/// A planted bug's name and its switch.
pub type Planted = (&'static str, fn(&mut Plant) -> &mut bool);

/// Bugs that can be planted, by name: the checks have to find each.
pub const PLANTS: [Planted; 10] = [
    ("skip_fsync", |plant| &mut plant.skip_fsync),
    ("early_ack", |plant| &mut plant.early_ack),
    ("wrong_quorum", |plant| &mut plant.wrong_quorum),
    ("wrong_root", |plant| &mut plant.wrong_root),
    ("lost_head", |plant| &mut plant.lost_head),
    ("out_of_order", |plant| &mut plant.out_of_order),
    ("stale_read", |plant| &mut plant.stale_read),
    ("kept_tail", |plant| &mut plant.kept_tail),
    ("leader_restore", |plant| &mut plant.leader_restore),
    ("forgotten_once", |plant| &mut plant.forgotten_once),
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
    /// A cluster: only these faults of the schedule, by their place in it.
    pub only: Option<BTreeSet<usize>>,
    /// Planted bugs.
    pub plant: Plant,
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
            only: None,
            plant: Plant::default(),
            text: false,
            schedule: false,
        }
    }

    /// The same with a bug planted; `None` where there is none of this name.
    pub fn with_plant(mut self, name: &str) -> Option<Self> {
        let (_, bug) = PLANTS.iter().find(|(known, _)| *known == name)?;
        *bug(&mut self.plant) = true;
        Some(self)
    }

    /// The arguments of `cvlan-sim run` for one seed of it.
    pub fn arguments(&self, seed: u64) -> String {
        let mut line = format!("--seed {seed}");
        // Writing into a String cannot fail.
        let _ = match self.alone {
            true => write!(line, " --alone --commands {} --crashes {}", self.commands, self.crashes),
            false => write!(line, " --minutes {} --commands {}", self.minutes, self.commands),
        };
        let mut plant = self.plant;
        for (name, bug) in PLANTS.iter().filter(|(_, bug)| *bug(&mut plant)) {
            let _ = bug;
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

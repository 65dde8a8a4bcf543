//! One seed of a cluster: machines on a network, their operator, clients, readers and agents, a schedule of faults, and the
//! checks.
//!
//! ```text
//! schedule ─► faults ─► machines (disk, clock, power, process ─► the real member) ◄─► net ◄─► machines
//!    │                     ▲ any of them                    │ observers
//!    └► bursts of tickets ─► clients, readers, agents ──────┴─► ledger ─► checks: in every round, and once all is calm
//!                          ▲ operator: forms it, adds, promotes, removes, replaces what lost its disk
//! ```
//! Faults may be as many as they like, but for one: a disk is lost only while no other one is. That, and nothing else, is
//! what a majority can promise.

mod agent;
mod checks;
mod client;
mod fault;
mod keeping;
mod machine;
mod operator;
mod presence;
pub mod schedule;
mod versions;

use crate::disk::SEATS;
use crate::ledger::Ledger;
use crate::lock;
use crate::net::Net;
use crate::report::{Report, Tally};
use crate::runtime::{NodeRt, now_us, sleep_us};
use crate::setup::Setup;
use crate::trace::Trace;
use cvlan_core::Command;
use cvlan_core::grammar::{Grammar, Rng};
use cvlan_core::id::Epoch;
use cvlan_raft::Limits;
use futures_util::future::{Either, join_all, select};
use keeping::Keeping;
use machine::{Machine, Up};
use openraft::AsyncRuntime;
use schedule::{FORMED_MS, Fault, HEALED_MS, ROUND_MS};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;
use versions::Versions;

/// The member that makes the cluster.
const FOUNDER: u64 = 1;

/// Writers at once.
const CLIENTS: u64 = 12;

/// Those who read, linearizably.
const READERS: u64 = 3;

/// Agents that sync.
const AGENTS: u64 = 6;

/// Commands that are sent without any fault near, a second.
const CALM_RATE: u64 = 1;

/// A call to a member that runs is answered within this.
const CALL_LIMIT: Duration = Duration::from_secs(15);

/// A write is answered within this, whatever is wrong: a leader is waited for 2 s, and so is a majority.
const WRITE_LIMIT: Duration = Duration::from_secs(6);

/// Once nothing is wrong any more, a write must succeed within this, ms.
const PROGRESS_MS: u64 = 10_000;

/// Virtual time that a seed may take beyond its minutes, s.
const EXTRA_S: u64 = 180;

/// Runs one seed on this thread.
pub fn run(seed: u64, setup: &Setup) -> Report {
    let trace = Trace::new(setup.text);
    let cluster = Arc::new(Cluster::new(seed, setup, trace.clone()));
    let (virtual_ms, panic) = crate::runner::stage(seed, setup, &trace, cluster.clone().play());
    let report = Report {
        seed,
        digest: trace.hash(),
        lines: trace.count(),
        text: trace.text(),
        marks: trace.marks(),
        faults: cluster.faults.iter().map(ToString::to_string).collect(),
        virtual_ms,
        // What follows from a panic is of less interest than the panic.
        violation: panic.or(cluster.ledger.violation()),
        counts: lock(&cluster.counts).clone(),
    };
    cluster.dismantle();
    drop(cluster);
    crate::runner::over(report, &trace)
}

/// See the module.
pub(crate) struct Cluster {
    setup: Setup,
    trace: Trace,
    ledger: Arc<Ledger>,
    net: Net,
    machines: Vec<Arc<Machine>>,
    /// Machines that are meant to vote, and to learn, at first.
    shape: (usize, usize),
    limits: Limits,
    keeping: Keeping,
    versions: Versions,
    epoch: Epoch,
    bootstrap: Command,
    faults: Vec<Fault>,
    grammar: Mutex<Grammar>,
    rng: Mutex<Rng>,
    counts: Mutex<Tally>,
    tickets: Mutex<Tickets>,
    last_member: AtomicU64,
    /// Sessions of agents that go on.
    sessions: presence::Sessions,
    /// Members that were to be removed, and whether they are known to be out.
    gone: Mutex<BTreeMap<u64, bool>>,
    /// A disk was lost, and is not made good yet.
    loss: AtomicBool,
    /// No fault begins any more.
    calm: AtomicBool,
    over: AtomicBool,
}

/// Commands that may be sent now.
#[derive(Default)]
struct Tickets {
    left: u64,
    given: u64,
    closed: bool,
    wakers: Vec<Waker>,
}

impl Cluster {
    fn new(seed: u64, setup: &Setup, trace: Trace) -> Self {
        // Streams of random numbers of their own, so that fewer faults leave the rest as alike as can be.
        let stream = |n: u64| Rng(Rng(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next());
        let mut rng = stream(1);
        let mut grammar = Grammar::new(stream(2).next());
        let bootstrap = Grammar::numbered(grammar.bootstrap(), u64::MAX, 1);
        let shape = [(3, 1), (3, 2), (5, 1), (4, 1), (3, 0)].get(rng.below(5) as usize).copied().unwrap_or((3, 1));
        let mut limits = limits(&mut rng);
        let keeping = Keeping::draw(stream(5), setup.plain, &mut limits);
        let versions = Versions::draw(stream(6), setup);
        let faults = schedule::draw(stream(3), setup.minutes);
        trace.line(format_args!("seed {seed} {shape:?} {limits:?}"));
        let machines: Vec<_> =
            (0..SEATS).map(|at| Arc::new(Machine::new(at, rng.below(2_000) as i64 - 1_000))).collect();
        machines.iter().for_each(|machine| machine.now().older = versions.mixed);
        Self {
            setup: setup.clone(),
            ledger: Arc::new(Ledger::new(trace.clone(), true)),
            net: Net::new(stream(4), trace.clone()),
            trace,
            machines,
            shape,
            limits,
            keeping,
            versions,
            epoch: Epoch(rng.bytes()),
            bootstrap,
            faults,
            grammar: Mutex::new(grammar),
            rng: Mutex::new(rng),
            counts: Mutex::default(),
            tickets: Mutex::default(),
            last_member: AtomicU64::new(FOUNDER),
            sessions: Arc::default(),
            gone: Mutex::default(),
            loss: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Members hold their observers, those their machines, and these, as the doors, the members again: what was running at
    /// the end would hold itself for ever.
    fn dismantle(&self) {
        for machine in &self.machines {
            self.net.listen(machine.at, None);
            machine.forget();
        }
    }

    fn draw(&self, n: u64) -> u64 {
        lock(&self.rng).below(n)
    }

    fn one_in(&self, n: u64) -> bool {
        lock(&self.rng).one_in(n)
    }

    fn count(&self, add: impl FnOnce(&mut Tally)) {
        add(&mut lock(&self.counts));
    }

    fn over(&self) -> bool {
        self.over.load(Relaxed)
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Relaxed)
    }

    /// A member that is open, any.
    fn any(&self) -> Option<Up> {
        let up: Vec<Up> = self.machines.iter().filter_map(|machine| machine.up()).collect();
        let at = self.draw(up.len() as u64) as usize;
        up.into_iter().nth(at)
    }

    /// The whole seed; virtual time, ms.
    async fn play(self: Arc<Self>) -> u64 {
        for machine in &self.machines {
            let _life = NodeRt::spawn(self.clone().run_machine(machine.clone()));
        }
        let story = pin!(self.clone().story());
        let limit = Duration::from_secs(self.setup.minutes * 60 + EXTRA_S);
        let broken = async {
            while self.ledger.violation().is_none() {
                sleep_us(100_000).await;
            }
        };
        match NodeRt::timeout(limit, select(story, pin!(broken))).await {
            Ok(Either::Left((Err(violation), _))) => self.ledger.broken(violation),
            Ok(_) => {}
            Err(_) => self.ledger.broken(format!("stuck: {} commands have an outcome", self.ledger.answered())),
        }
        self.over.store(true, Relaxed);
        self.close_tickets();
        for machine in &self.machines {
            machine.kill(&self.net, true, 0);
        }
        now_us() / 1000
    }

    async fn story(self: Arc<Self>) -> Result<(), String> {
        self.form().await?;
        let clients = (1..=CLIENTS).map(|session| NodeRt::spawn(self.clone().client(session)));
        let clients: Vec<_> = clients.collect();
        let readers: Vec<_> = (0..READERS).map(|_| NodeRt::spawn(self.clone().reader())).collect();
        let agents: Vec<_> = (0..AGENTS).map(|n| NodeRt::spawn(self.clone().agent(n))).collect();
        let _chores = NodeRt::spawn(self.clone().chores());
        let _pace = NodeRt::spawn(self.clone().pace());
        if self.versions.mixed {
            let _roll = NodeRt::spawn(self.clone().roll());
        }
        let only = |place: &usize| self.setup.only.as_ref().is_none_or(|only| only.contains(place));
        let faults = (0..self.faults.len()).filter(only);
        let faults: Vec<_> = faults.map(|place| NodeRt::spawn(self.clone().fault(place))).collect();
        for round in 0..schedule::rounds(self.setup.minutes) {
            self.sleep_until(FORMED_MS + round * ROUND_MS + HEALED_MS).await;
            self.probe(1_000 + round).await?;
        }
        self.sleep_until(FORMED_MS + schedule::rounds(self.setup.minutes) * ROUND_MS).await;
        join_all(faults).await;
        self.settle().await?;
        self.level_settles().await?;
        self.probe(2_000).await?;
        let given = lock(&self.tickets).given;
        self.give_tickets(self.setup.commands.saturating_sub(given));
        self.sleep_until(self.setup.minutes * 60_000).await;
        self.close_tickets();
        join_all(clients).await;
        join_all(readers).await;
        let agents = join_all(agents).await;
        self.finish(agents.into_iter().flatten().collect()).await
    }

    async fn sleep_until(&self, ms: u64) {
        sleep_us((ms * 1000).saturating_sub(now_us())).await;
    }

    /// Commands at all times, whatever happens.
    async fn pace(self: Arc<Self>) {
        while !self.over() {
            sleep_us(1_000_000 / CALM_RATE).await;
            self.give_tickets(1);
        }
    }

    /// So many more commands may be sent.
    fn give_tickets(&self, n: u64) {
        let wakers = {
            let mut tickets = lock(&self.tickets);
            tickets.left += n;
            tickets.given += n;
            std::mem::take(&mut tickets.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn close_tickets(&self) {
        lock(&self.tickets).closed = true;
        self.give_tickets(0);
    }

    /// Waits for a ticket; false once there are no more.
    async fn ticket(&self) -> bool {
        std::future::poll_fn(|cx| {
            let mut tickets = lock(&self.tickets);
            if tickets.left > 0 {
                tickets.left -= 1;
                return Poll::Ready(true);
            }
            if tickets.closed {
                return Poll::Ready(false);
            }
            tickets.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Bounds of a cluster that are small enough to be met within minutes.
fn limits(rng: &mut Rng) -> Limits {
    Limits {
        leader_wait_ms: 1_000 + rng.below(2_000),
        snapshot_bytes: 32 << (10 + rng.below(4)),
        snapshot_events: 60 + rng.below(500),
        purge_behind: rng.below(100),
        segment_bytes: 1024 * (16 + rng.below(240)),
        part_bytes: 1 << 10,
        ..crate::world::limits(rng)
    }
}

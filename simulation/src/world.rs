//! One seed: a process that is started, used, ended and started again, its clients, and the checks.
//!
//! ```text
//! life ─► boot on the platter ─► open ─► writable ─► check the recovery ─┬─► chores, until the life's end
//!   ▲                                         clients ────────────────────┘             │
//!   └── power cut or not, a damaged snapshot, some time ◄──────── at a call, by quota, in order, of itself
//! ```
//! Clients draw commands from core's grammar, number them, and send one again, under the same number, until its outcome
//! is known. The last life has no faults: everything must come to its end in it.

mod client;

use crate::clock::SimClock;
use crate::disk::{Faults, Platter, SimDisk};
use crate::ledger::{Ledger, Violation, short};
use crate::lock;
use crate::report::{Report, Tally};
use crate::runtime::{NodeRt, Process, now_us, sleep_us};
use crate::setup::Setup;
use crate::trace::Trace;
use cvlan_core::grammar::{Grammar, Rng};
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::{Command, Rules, State};
use cvlan_raft::types::Cfg;
use cvlan_raft::{
    Answer, Head, Limits, Member, NoTransport, Options, Plant, Role, Timing, VerifyReport, WriteError, verify_dir,
};
use futures_util::future::{Either, join, join_all, select};
use openraft::AsyncRuntime;
use openraft::async_runtime::OneshotSender;
use openraft::type_config::TypeConfigExt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Clients at once.
pub const CLIENTS: u64 = 8;

/// Virtual time that a seed may take, seconds.
const VIRTUAL_LIMIT_S: u64 = 300;

/// Virtual time within which a member without faults must be writable, and a command must have an outcome, ms.
const PATIENCE_MS: u64 = 20_000;

/// Runs one seed on this thread.
pub fn run(seed: u64, setup: &Setup) -> Report {
    let trace = Trace::new(setup.text);
    let world = Arc::new(World::new(seed, setup, trace.clone()));
    let (virtual_ms, panic) = crate::runner::stage(seed, setup, &trace, world.clone().play());
    let counts = lock(&world.counts).clone();
    let report = Report {
        seed,
        digest: trace.hash(),
        lines: trace.count(),
        text: trace.text(),
        marks: Vec::new(),
        faults: Vec::new(),
        virtual_ms,
        // What follows from a panic is of less interest than the panic.
        violation: panic.or(world.ledger.violation()),
        counts,
    };
    drop(world);
    crate::runner::over(report, &trace)
}

struct World {
    setup: Setup,
    trace: Trace,
    ledger: Arc<Ledger>,
    platter: Arc<Mutex<Platter>>,
    clock: Arc<SimClock>,
    limits: Limits,
    rng: Mutex<Rng>,
    grammar: Mutex<Grammar>,
    epoch: Epoch,
    bootstrap: Command,
    /// The member, its process and its disk, from open to end.
    up: Mutex<Option<Up>>,
    counts: Mutex<Tally>,
    /// The member is told to stop.
    stopping: AtomicBool,
}

/// A process with an open member.
#[derive(Clone)]
struct Up {
    member: Member<Rules, NodeRt>,
    process: Arc<Process>,
    disk: Arc<SimDisk>,
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// At a call of the disk.
    AtCall,
    /// By the world, in the middle of things.
    Killed,
    /// In order.
    InOrder,
    /// The member stopped, or could not start, after a failed call or on a full disk.
    Failed,
    /// All is done, in the last life.
    Finished,
}

/// What is planned for a life.
struct Plan {
    faults: Faults,
    /// The life ends once so many commands have an outcome.
    quota: usize,
    in_order: bool,
    fill: bool,
    last: bool,
}

impl World {
    fn new(seed: u64, setup: &Setup, trace: Trace) -> Self {
        let mut rng = Rng(seed);
        let mut grammar = Grammar::new(rng.next());
        let bootstrap = Grammar::numbered(grammar.bootstrap(), u64::MAX, 1);
        let limits = limits(&mut rng);
        trace.line(format_args!("seed {seed} {limits:?}"));
        Self {
            setup: setup.clone(),
            ledger: Arc::new(Ledger::new(trace.clone(), false)),
            trace,
            platter: Arc::default(),
            clock: Arc::new(SimClock::new(rng.below(400) as i64 - 200)),
            limits,
            epoch: Epoch(rng.bytes()),
            grammar: Mutex::new(grammar),
            bootstrap,
            up: Mutex::new(None),
            counts: Mutex::default(),
            stopping: AtomicBool::new(false),
            rng: Mutex::new(rng),
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

    /// The whole seed; virtual time, ms.
    async fn play(self: Arc<Self>) -> u64 {
        let lives = async {
            let clients = (1..=CLIENTS).map(|session| self.client(session));
            join(join_all(clients), self.lives()).await;
        };
        if NodeRt::timeout(Duration::from_secs(VIRTUAL_LIMIT_S), lives).await.is_err() {
            self.ledger.broken(format!(
                "stuck: {} of {} commands have an outcome",
                self.ledger.answered(),
                self.setup.commands
            ));
        }
        now_us() / 1000
    }

    async fn lives(&self) {
        let mut life = 0;
        loop {
            let crashes = lock(&self.counts).get("crashes");
            let plan = self.plan(life, crashes);
            let floor = self.ledger.floor();
            let end = self.live(&plan, floor).await;
            self.trace.line(format_args!("life {life} ended: {end:?}"));
            if end == End::Finished || self.ledger.violation().is_some() {
                return;
            }
            self.between(end).await;
            life += 1;
        }
    }

    /// The commands are spread over the planned lives, so that each one ends under load.
    fn plan(&self, life: u64, crashes: u64) -> Plan {
        let last = crashes >= self.setup.crashes || life >= 8 * self.setup.crashes;
        if last {
            return Plan { faults: Faults::default(), quota: usize::MAX, in_order: false, fill: false, last };
        }
        let rng = &mut *lock(&self.rng);
        let calls = if rng.one_in(3) { 40 } else { 240 };
        let die_at = (!rng.one_in(3)).then(|| 1 + rng.below(calls));
        let fail_at = rng.one_in(8).then(|| 1 + rng.below(200));
        let slow_until = if rng.one_in(6) { rng.below(100) } else { 0 };
        let quota = (self.setup.commands * (crashes + 1) / (self.setup.crashes + 1)) as usize;
        Plan {
            faults: Faults { die_at, fail_at, slow_until },
            quota,
            in_order: rng.one_in(8),
            fill: rng.one_in(6),
            last,
        }
    }

    /// From boot to end.
    async fn live(&self, plan: &Plan, floor: u64) -> End {
        let process = Arc::new(Process::default());
        let rng = Rng(self.draw(u64::MAX));
        let disk = SimDisk::start(0, self.platter.clone(), process.clone(), self.trace.clone(), rng, plan.faults);
        let (tx, ended) = Cfg::<NodeRt>::oneshot::<()>();
        disk.on_end(move || {
            let _ = tx.send(());
        });
        self.ledger.starts(1);
        self.stopping.store(false, Relaxed);
        let life = pin!(self.life(plan, floor, &process, &disk));
        let end = match select(ended, life).await {
            Either::Left(_) => End::AtCall,
            Either::Right((end, _)) => end,
        };
        let opened = lock(&self.up).take().is_some();
        disk.end();
        let crashed = end == End::AtCall || end == End::Killed || end == End::Failed;
        self.count(|c| {
            c.add("calls", disk.calls());
            c.add("crashes", u64::from(crashed));
            c.add("at_call", u64::from(end == End::AtCall));
            c.add("in_recovery", u64::from(crashed && !opened));
            c.add("stops", u64::from(end == End::InOrder));
            c.add("failed", u64::from(disk.has_failed()));
            c.add("faults", u64::from(end != End::Finished) + u64::from(disk.has_failed()));
        });
        end
    }

    async fn life(&self, plan: &Plan, floor: u64, process: &Arc<Process>, disk: &Arc<SimDisk>) -> End {
        let options = self.options(disk.clone(), plan.last);
        let opened = process.spawn(Member::open(options, NoTransport)).await;
        let member = match opened {
            Ok(Ok(member)) => member,
            Ok(Err(error)) if disk.has_failed() => {
                self.trace.line(format_args!("not opened: {error}"));
                return End::Failed;
            }
            Ok(Err(error)) => {
                self.ledger.broken(format!("the log does not open: {}: {error}", error.code()));
                return End::Failed;
            }
            // A panic; the hook has it.
            Err(_) => return End::Failed,
        };
        *lock(&self.up) = Some(Up { member: member.clone(), process: process.clone(), disk: disk.clone() });
        let watch = pin!(self.watch(plan, &member, disk));
        let work = pin!(self.work(plan, floor, &member));
        match select(watch, work).await {
            Either::Left((end, _)) => end,
            Either::Right((end, _)) => end,
        }
    }

    /// Ends the life by its plan, or where the member has stopped.
    async fn watch(&self, plan: &Plan, member: &Member<Rules, NodeRt>, disk: &SimDisk) -> End {
        loop {
            sleep_us(500 + self.draw(3000)).await;
            if self.ledger.violation().is_some() {
                return End::Killed;
            }
            let status = member.status();
            let stopped = status.fatal.is_some() || status.role == Role::Stopped;
            if stopped && !self.stopping.load(Relaxed) {
                if !disk.has_failed() {
                    self.ledger.broken(format!("the member stopped: {:?}", status.fatal));
                }
                return End::Failed;
            }
            if self.ledger.answered() >= plan.quota {
                if plan.in_order {
                    self.stopping.store(true, Relaxed);
                    member.shutdown().await;
                    return End::InOrder;
                }
                return End::Killed;
            }
        }
    }

    /// What is done in a life beside its clients.
    async fn work(&self, plan: &Plan, floor: u64, member: &Member<Rules, NodeRt>) -> End {
        if let Err(violation) = self.recovered(floor, member).await {
            self.ledger.broken(violation);
        }
        let fill = async {
            if plan.fill {
                self.fill_disk(member).await;
            }
        };
        if plan.last {
            let all = async {
                while (self.ledger.answered() as u64) < self.setup.commands {
                    sleep_us(2000).await;
                }
            };
            join(all, self.chores(member, 3)).await;
            if let Err(violation) = self.finish(member).await {
                self.ledger.broken(violation);
            }
            return End::Finished;
        }
        join(fill, self.chores(member, 20)).await;
        std::future::pending().await
    }

    /// Once the member is writable, everything that was shown or acknowledged must be there.
    async fn recovered(&self, floor: u64, member: &Member<Rules, NodeRt>) -> Result<(), Violation> {
        let before = self.ledger.head();
        while !member.is_bootstrapped() {
            match member.bootstrap(self.epoch, self.bootstrap.clone()).await {
                Ok(_) | Err(WriteError::AlreadyBootstrapped) => {}
                Err(WriteError::NoLeader | WriteError::DiskFull | WriteError::Stopped | WriteError::Busy) => {
                    sleep_us(5000).await;
                }
                Err(error) => return Err(format!("bootstrap: {}", error.code())),
            }
        }
        if !member.writable(Duration::from_millis(PATIENCE_MS)).await {
            return Err(format!("not writable after {PATIENCE_MS} ms: {:?}", member.status()));
        }
        let head = member.head();
        self.trace.line(format_args!("recovered to event {} {}, of at least {floor}", head.seq, short(&head.root)));
        if head.seq.0 < floor {
            return Err(format!(
                "after the recovery there are {} events; {floor} had been shown or acknowledged",
                head.seq
            ));
        }
        self.read_back(member, head.seq.0).await;
        self.ledger.check_head(&head);
        self.replays(member, &head).await?;
        match before {
            Some(before) => self.replays(member, &before).await,
            None => Ok(()),
        }
    }

    /// A fresh replay of the log up to this head leads to this head.
    async fn replays(&self, member: &Member<Rules, NodeRt>, head: &Head<State>) -> Result<(), Violation> {
        let digest = head.digest::<Rules>();
        match member.log_verify(Some(head.seq)).await {
            Ok(report) => self.same(head, digest, &report),
            Err(error) if error.code() == "entry_wrong" || error.code() == "data_folder_damaged" => {
                Err(format!("log verify: {error}"))
            }
            // The process may be about to stop.
            Err(error) => {
                self.trace.line(format_args!("log verify: {error}"));
                Ok(())
            }
        }
    }

    fn same(&self, head: &Head<State>, digest: [u8; 32], report: &VerifyReport) -> Result<(), Violation> {
        self.trace.line(format_args!("replayed to event {}: {}", report.seq, short(&report.digest)));
        if (report.seq, report.root, report.epoch) != (head.seq, head.root, self.epoch) {
            return Err(format!(
                "a replay ends at event {} {}, the head is {} {}",
                report.seq,
                short(&report.root),
                head.seq,
                short(&head.root)
            ));
        }
        if report.digest != digest {
            return Err(format!(
                "a replay to event {} has digest {}, the head {}",
                head.seq,
                short(&report.digest),
                short(&digest)
            ));
        }
        match report.checkpoints.iter().find(|c| self.ledger.root_at(c.seq.0) != Some(c.root)) {
            Some(wrong) => Err(format!("the checkpoint at event {} has root {}", wrong.seq, short(&wrong.root))),
            None => Ok(()),
        }
    }

    /// The whole history against what is known of it.
    async fn read_back(&self, member: &Member<Rules, NodeRt>, upto: u64) {
        let mut from = 1;
        while from <= upto {
            let page = 1 + self.draw(200);
            match member.history(Seq(from), page as usize).await {
                Ok(events) if !events.is_empty() => {
                    self.ledger.read_back(&events);
                    from += events.len() as u64;
                }
                Ok(_) => return self.ledger.broken(format!("history has no event {from} of {upto}")),
                Err(error) if error.code() == "history_gone" => return self.ledger.broken(error.to_string()),
                Err(error) => return self.trace.line(format_args!("history: {error}")),
            }
        }
    }

    /// Checkpoints, snapshots, questions about the past, a wall clock that jumps.
    async fn chores(&self, member: &Member<Rules, NodeRt>, most: u64) {
        for _ in 0..most {
            sleep_us(self.draw(25_000)).await;
            match self.draw(8) {
                0 | 1 => match member.checkpoint().await {
                    Ok(attested) => {
                        let seq = attested.checkpoint.seq.0;
                        self.trace.line(format_args!("checkpoint {seq} {}", short(&attested.digest)));
                        self.count(|c| c.one("checkpoints"));
                        if self.ledger.root_at(seq).is_some_and(|root| root != attested.root) {
                            self.ledger.broken(format!("the checkpoint at event {seq} has another root"));
                        }
                    }
                    Err(error) => self.trace.line(format_args!("checkpoint: {}", error.code())),
                },
                2 => {
                    let made = member.snapshot().await;
                    self.trace.line(format_args!("snapshot: {}", made.err().map_or("made", |e| e.code())));
                }
                3 => self.ask_time(member).await,
                4 => {
                    let by_ms = self.draw(20_000_000) as i64 - 10_000_000;
                    self.trace.line(format_args!("the wall clock jumps by {by_ms} ms"));
                    self.clock.jump(by_ms);
                }
                _ => {
                    let upto = self.ledger.len().min(member.head().seq.0);
                    let from = 1 + self.draw(upto);
                    if let Ok(events) = member.history(Seq(from), 20).await {
                        self.ledger.read_back(&events);
                    }
                }
            }
        }
    }

    /// Time → seq is the last event at or before it.
    async fn ask_time(&self, member: &Member<Rules, NodeRt>) {
        let seq = 1 + self.draw(self.ledger.len().min(member.head().seq.0));
        let Some(time) = self.ledger.time_of(seq) else { return };
        if let Ok(found) = member.seq_at_time(time).await {
            let after = self.ledger.time_of(found.0 + 1);
            if self.ledger.time_of(found.0) != Some(time) || after.is_some_and(|after| after <= time) {
                self.ledger.broken(format!("event {found} is not the last one at {time} ms; {seq} is at that time"));
            }
        }
    }

    /// The disk is full for a while: nothing is lost, reads go on, and so do writes once there is room.
    async fn fill_disk(&self, member: &Member<Rules, NodeRt>) {
        sleep_us(self.draw(40_000)).await;
        let room = self.draw(2 * self.limits.segment_bytes);
        self.trace.line(format_args!("the disk is full but for {room} bytes"));
        self.count(|c| c.one("full"));
        lock(&self.platter).set_room(Some(room));
        sleep_us(50_000 + self.draw(300_000)).await;
        self.read_back(member, self.ledger.len().min(member.head().seq.0)).await;
        lock(&self.platter).set_room(None);
        self.trace.line(format_args!("the disk has room again"));
    }

    /// All is done: the last checks, a stop in order, a power cut, and a look at the folder from outside.
    async fn finish(&self, member: &Member<Rules, NodeRt>) -> Result<(), Violation> {
        let attested = member.checkpoint().await.map_err(|error| format!("the last checkpoint: {}", error.code()))?;
        let head = self.quiet(member).await;
        self.read_back(member, head.seq.0).await;
        self.ledger.check_head(&head);
        self.ledger.check_all(&head)?;
        self.replays(member, &head).await?;
        if self.ledger.len() != head.seq.0 {
            return Err(format!("{} events are known, the head is at {}", self.ledger.len(), head.seq));
        }
        let status = member.status();
        self.count(|c| {
            c.add("segments", status.segments);
            c.add("purged", status.purged_index);
            c.add("events", head.seq.0);
            c.add("snapshot", status.snapshot_seq.unwrap_or_default());
            c.one("checkpoints");
        });
        self.stopping.store(true, Relaxed);
        member.shutdown().await;
        *lock(&self.up) = None;
        self.cut_power();
        let process = Arc::new(Process::default());
        let rng = Rng(self.draw(u64::MAX));
        let disk = SimDisk::start(0, self.platter.clone(), process.clone(), self.trace.clone(), rng, Faults::default());
        let report = verify_dir::<Rules, NodeRt>(disk.clone()).await.map_err(|error| format!("verify: {error}"))?;
        disk.end();
        let digest = head.digest::<Rules>();
        self.same(&head, digest, &report)?;
        let seq = attested.checkpoint.seq;
        let checked =
            report.checkpoints.iter().any(|c| (c.seq, c.root, c.digest) == (seq, attested.root, attested.digest));
        if checked { Ok(()) } else { Err(format!("the replay does not know the checkpoint at event {seq}")) }
    }

    /// The head once nothing moves it any more.
    async fn quiet(&self, member: &Member<Rules, NodeRt>) -> Arc<Head<State>> {
        loop {
            let head = member.head();
            sleep_us(100_000).await;
            if member.head().seq == head.seq {
                return head;
            }
        }
    }

    fn cut_power(&self) {
        let unsynced = lock(&self.platter).power_cut(&mut Rng(self.draw(u64::MAX)));
        self.trace.line(format_args!("power cut: {unsynced} files and folders had something that was not synced"));
        self.count(|c| c.one("cuts"));
    }

    /// While the process is down.
    async fn between(&self, end: End) {
        lock(&self.platter).set_room(None);
        if end != End::InOrder && !self.one_in(3) || self.one_in(6) {
            self.cut_power();
        }
        let newest = lock(&self.platter).list("snapshots").into_iter().rev().find(|name| name.ends_with(".snap"));
        if let Some(name) = newest
            && self.one_in(3)
        {
            let name = format!("snapshots/{name}");
            self.trace.line(format_args!("damage {name}"));
            let _ = lock(&self.platter).damage(&name, &mut Rng(self.draw(u64::MAX)));
            self.count(|c| c.one("damaged"));
        }
        sleep_us(self.draw(60_000)).await;
    }

    fn options(&self, disk: Arc<SimDisk>, last: bool) -> Options<Rules> {
        let ledger = self.ledger.clone();
        Options {
            member: 1,
            address: "one:8445".to_owned(),
            disk,
            clock: self.clock.clone(),
            initialize: true,
            observers: vec![Arc::new(move |applied| ledger.observe(1, applied))],
            limits: self.limits.clone(),
            timing: Timing { heartbeat_ms: 15, election_min_ms: 40, election_max_ms: 70 },
            plant: if last { Plant::default() } else { self.setup.plant },
        }
    }
}

/// What a write came to; `None` = nothing within the patience.
type Sent = Option<Result<Answer<Rules>, WriteError<cvlan_core::Rejection>>>;

/// Small bounds of one member, so that a short history has many segments, snapshots and purges.
pub(crate) fn limits(rng: &mut Rng) -> Limits {
    let segment_bytes = 512 * (8 + rng.below(64));
    let tail_bytes = 1 << (9 + rng.below(8));
    let queue = 4 + rng.below(64) as usize;
    let entry_commands = 1 + rng.below(16) as usize;
    Limits {
        segment_bytes,
        tail_bytes,
        queue,
        entry_commands,
        encode_beside: if entry_commands.is_multiple_of(2) { 2 } else { usize::MAX },
        entry_bytes: 256 << rng.below(6),
        command_bytes: 64 << 10,
        in_flight: 1 + rng.below(6) as usize,
        leader_wait_ms: 50 + rng.below(300),
        snapshot_bytes: 4096 << rng.below(5),
        snapshot_events: 10 + rng.below(150),
        checkpoint_ms: 20_000,
        snapshots_kept: 2 + rng.below(2) as usize,
        purge_behind: rng.below(60),
        backfill_ms: 500,
        backfill_bytes: segment_bytes / 2,
        ..Limits::default()
    }
}

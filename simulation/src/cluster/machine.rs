//! A machine of the cluster: a disk, a clock, power, and the lives of the member that runs on it.
//!
//! ```text
//! idle ─► a member is assigned ─► boot ─► open ─► up, watched ─► ended: killed, at a call, stopped, removed
//!   ▲                              ▲                                │
//!   └─ removed, wiped ─────────────┴── power cut or not, some rest ─┘
//! ```

use super::Cluster;
use super::keeping::History;
use super::presence::{Stays, ended_early};
use super::versions;
use crate::clock::SimClock;
use crate::disk::{Faults, Platter, SimDisk};
use crate::lock;
use crate::net::{Door, Net};
use crate::runtime::{NodeRt, Process, now_us, sleep_us};
use crate::trace::Sign;
use cvlan_core::Rules;
use cvlan_core::grammar::Rng;
use cvlan_core::id::{CvlanId, MemberId, Seq, TenantId};
use cvlan_core::map::scopes;
use cvlan_raft::types::Cfg;
use cvlan_raft::{Applied, Member, Options, Role, Status, Timing};
use futures_util::future::{Either, select};
use openraft::AsyncRuntime;
use openraft::async_runtime::OneshotSender;
use openraft::type_config::TypeConfigExt;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// See the module.
pub struct Machine {
    /// Which one; also its seat and its address.
    pub at: usize,
    /// What is on its disk.
    pub platter: Arc<Mutex<Platter>>,
    /// Its clocks.
    pub clock: Arc<SimClock>,
    now: Mutex<Now>,
}

/// How a machine is.
#[derive(Default)]
pub struct Now {
    /// Who runs on it.
    pub member: Option<u64>,
    /// It is meant to vote.
    pub voter: bool,
    /// The member, from open to end.
    pub up: Option<Up>,
    /// The disk, from boot to end.
    pub disk: Option<Arc<SimDisk>>,
    /// It boots no sooner, µs.
    pub rests_until_us: u64,
    /// At its next end the power goes too.
    pub power: Option<bool>,
    /// Something was done to its disk that may stop it.
    pub hurt: bool,
    /// Its log was damaged on purpose: it may not open.
    pub damaged: bool,
    /// It does not open any more: it has to be replaced.
    pub lost: bool,
    /// It is being stopped in order.
    pub stopping: bool,
    /// Its member is being replaced: the seat is nobody else's.
    pub reserved: bool,
    /// Its member was taken into the cluster, and nobody asks for that any more: from now on it can be removed.
    pub joined: bool,
    /// What is installed is the older version; and so was what runs.
    pub older: bool,
    /// See there.
    pub(super) runs_older: bool,
    /// What is known of its member's history.
    pub(super) history: History,
    /// Scopes with their last event, for the streams of agents.
    woken: BTreeMap<(TenantId, CvlanId), u64>,
    /// The streams of agents.
    pub(super) stays: Stays,
    /// The last event of a snapshot that was installed: it concerns all scopes.
    installed: u64,
}

/// A process with an open member.
#[derive(Clone)]
pub struct Up {
    /// On which machine.
    pub at: usize,
    /// The member.
    pub member: Member<Rules, NodeRt>,
    /// Its process.
    pub process: Arc<Process>,
}

/// What became of a call.
pub enum Called<T> {
    /// It was answered.
    Done(T),
    /// The process ended before.
    Gone,
    /// It was not answered within the limit.
    Late,
}

impl Up {
    /// Calls the member as a part of its process, so that nothing of the call outlives that.
    pub async fn call<T, F>(&self, limit: Duration, call: impl FnOnce(Member<Rules, NodeRt>) -> F) -> Called<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let running = self.process.spawn(call(self.member.clone()));
        let answered = pin!(NodeRt::timeout(limit, running));
        match select(answered, pin!(self.process.gone())).await {
            Either::Left((Ok(Ok(done)), _)) => Called::Done(done),
            // A panic; the hook has it.
            Either::Left((Ok(Err(_)), _)) | Either::Right(_) => Called::Gone,
            Either::Left((Err(_), _)) => Called::Late,
        }
    }
}

impl Machine {
    /// A machine with an empty disk, on which nothing runs.
    pub fn new(at: usize, drift_ppm: i64) -> Self {
        Self { at, platter: Arc::default(), clock: Arc::new(SimClock::new(drift_ppm)), now: Mutex::default() }
    }

    /// How it is.
    pub fn now(&self) -> MutexGuard<'_, Now> {
        lock(&self.now)
    }

    /// The member, if it is open.
    pub fn up(&self) -> Option<Up> {
        self.now().up.clone()
    }

    /// Ends the process now, with the machine's power or not; it rests for a while.
    pub fn kill(&self, net: &Net, power: bool, rest_ms: u64) {
        let disk = {
            let mut now = self.now();
            now.power = Some(power);
            now.rests_until_us = now_us() + rest_ms * 1000;
            now.disk.clone()
        };
        if power {
            net.power(self.at, false);
        }
        if let Some(disk) = disk {
            disk.end();
        }
    }

    /// Ends what runs here and empties the disk; returns who it was.
    pub fn wipe(&self, net: &Net) -> Option<u64> {
        self.kill(net, true, 0);
        let mut now = self.now();
        *lock(&self.platter) = Platter::default();
        (now.damaged, now.lost, now.hurt, now.joined) = (false, false, false, false);
        now.history = History::default();
        now.member.take()
    }

    /// Nothing runs here any more; for the end of the seed.
    pub fn forget(&self) {
        let (up, disk) = {
            let mut now = self.now();
            (now.up.take(), now.disk.take())
        };
        drop((up, disk));
    }

    /// A new member runs here from now on.
    pub fn assign(&self, member: u64) {
        let mut now = self.now();
        (now.member, now.reserved, now.joined) = (Some(member), false, false);
        now.history = History::default();
        now.rests_until_us = now_us();
    }

    /// The last event that concerned a scope here.
    pub fn woken(&self, scope: (TenantId, CvlanId)) -> u64 {
        let now = self.now();
        now.woken.get(&scope).copied().unwrap_or_default().max(now.installed)
    }

    fn applied(&self, applied: &Applied<Rules>) {
        let mut now = self.now();
        now.history.applied(&applied.head.machine);
        if applied.events.is_empty() {
            now.installed = applied.head.seq.0;
            now.history.jumps(applied.head.seq.0);
        }
        for event in applied.events.iter() {
            if let Some(scope) = scopes(&applied.head.machine, event) {
                now.woken.insert(scope, event.seq);
            }
        }
    }

    fn boots(&self) -> Option<u64> {
        let now = self.now();
        now.member.filter(|_| now_us() >= now.rests_until_us && !now.lost)
    }
}

impl Cluster {
    /// The lives of one machine, until the seed is over.
    pub(super) async fn run_machine(self: Arc<Self>, machine: Arc<Machine>) {
        while !self.over() {
            match machine.boots() {
                Some(member) => self.life(&machine, member).await,
                None => sleep_us(5_000).await,
            }
        }
    }

    async fn life(self: &Arc<Self>, machine: &Arc<Machine>, member: u64) {
        let at = machine.at;
        let process = Arc::new(Process::default());
        let rng = Rng(self.draw(u64::MAX));
        let disk =
            SimDisk::start(at, machine.platter.clone(), process.clone(), self.trace.clone(), rng, Faults::default());
        let (tx, ended) = Cfg::<NodeRt>::oneshot::<()>();
        let (net, victim) = (self.net.clone(), machine.clone());
        disk.on_end(move || {
            if victim.now().power == Some(true) {
                net.power(victim.at, false);
            }
            let _ = tx.send(());
        });
        self.net.power(at, true);
        self.ledger.starts(member);
        self.version_starts(machine, member);
        {
            let mut now = machine.now();
            (now.disk, now.stopping, now.power, now.installed) = (Some(disk.clone()), false, None, 0);
            now.woken.clear();
        }
        let lives = pin!(self.lives(machine, member, &process, &disk));
        let why = match select(ended, lives).await {
            Either::Left(_) => "killed",
            Either::Right((why, _)) => why,
        };
        self.net.listen(at, None);
        let power = {
            let mut now = machine.now();
            (now.up, now.disk) = (None, None);
            now.stays.end(&self.sessions);
            now.hurt = false;
            now.power.take().unwrap_or_default()
        };
        disk.end();
        self.versions.ends(member);
        self.count(|c| {
            c.add("calls", disk.calls());
            c.add("files_gone", disk.gone());
            c.one("lives");
        });
        self.trace.mark(Some(at), Sign::Down, format_args!("m{member} ended: {why}, power: {power}"));
        if power {
            let unsynced = lock(&machine.platter).power_cut(&mut Rng(self.draw(u64::MAX)));
            self.trace.line(format_args!("s{at} {unsynced} files and folders had something that was not synced"));
            self.count(|c| c.add("unsynced", unsynced as u64));
        }
    }

    async fn lives(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        member: u64,
        process: &Arc<Process>,
        disk: &Arc<SimDisk>,
    ) -> &'static str {
        let options = self.options(machine, member, disk.clone());
        let opened = process.spawn(Member::open(options, self.net.transport(machine.at, member))).await;
        let open = match opened {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => {
                self.trace.line(format_args!("s{} m{member} does not open: {error}", machine.at));
                if error.code() == "data_folder_newer" && self.older_refuses(machine, "older_refused") {
                    return "an older version";
                }
                let mut now = machine.now();
                now.rests_until_us = now_us() + 200_000;
                if now.damaged {
                    now.lost = true;
                } else if !now.hurt && !disk.has_failed() {
                    drop(now);
                    self.ledger.broken(format!("member {member} does not open: {}: {error}", error.code()));
                }
                return "not opened";
            }
            // A panic; the hook has it.
            Err(_) => return "panic",
        };
        if let Some(from) = self.keeping.holds(machine) {
            open.history_hold(Seq(from));
        }
        self.history_seen(machine, &open, true);
        self.trace.mark(Some(machine.at), Sign::Up, format_args!("m{member} is open at event {}", open.head().seq));
        self.net.listen(machine.at, Some(Door { member: open.clone(), process: process.clone() }));
        let up = Up { at: machine.at, member: open.clone(), process: process.clone() };
        machine.now().up = Some(up.clone());
        if self.keeping.holds(machine).is_some() {
            let _written = NodeRt::spawn(self.clone().export(up.clone()));
        }
        let _told = NodeRt::spawn(self.clone().presence(up, MemberId(member)));
        // What was committed when all went down at once is shown by nobody: it is read.
        while self.ledger.len() < open.head().seq.0 {
            match open.history(Seq(self.ledger.len() + 1), 200).await {
                Ok(events) if !events.is_empty() => self.ledger.read_back(&events),
                Ok(_) | Err(_) => break,
            }
        }
        self.watch(machine, &open, disk).await
    }

    /// Watches a member from outside; returns why it has ended.
    async fn watch(&self, machine: &Machine, member: &Member<Rules, NodeRt>, disk: &SimDisk) -> &'static str {
        let mut led = None;
        loop {
            sleep_us(100_000 + self.draw(100_000)).await;
            let status = member.status();
            self.check_bounds(&status);
            self.history_seen(machine, member, false);
            let leads = (status.role == Role::Leader).then_some(status.term);
            if leads != led {
                let sign = leads.map_or(Sign::Follows, Sign::Leads);
                let what = format_args!("m{} is {} in term {}", status.member, status.role.name(), status.term);
                self.trace.mark(Some(machine.at), sign, what);
                led = leads;
            }
            if status.removed {
                self.count(|c| c.one("removed"));
                member.shutdown().await;
                let mut now = machine.now();
                now.member = None;
                *lock(&machine.platter) = Platter::default();
                return "removed";
            }
            let stopped = status.fatal.is_some() || status.role == Role::Stopped;
            if stopped
                && status.fatal.as_ref().is_some_and(|why| why.contains("feature level"))
                && self.older_refuses(machine, "older_stopped")
            {
                return "an older version";
            }
            if stopped && !machine.now().stopping {
                if !machine.now().hurt && !disk.has_failed() {
                    self.ledger.broken(format!("member {} stopped: {:?}", status.member, status.fatal));
                }
                machine.now().rests_until_us = now_us() + 300_000;
                return "stopped of itself";
            }
        }
    }

    fn check_bounds(&self, status: &Status) {
        if let Some(seq) = status.diverged {
            self.ledger.broken(format!("member {} found at event {seq} that its state differs", status.member));
        }
        self.versions.seen(status.feature_level);
        if status.feature_level > status.known_level {
            let (level, known) = (status.feature_level, status.known_level);
            self.ledger.broken(format!("member {} runs at level {level}, and knows {known}", status.member));
        }
        // What was in flight may have to wait again.
        let waiting = self.limits.queue + (self.limits.in_flight + 1) * self.limits.entry_commands;
        if status.queue > waiting || status.in_flight > self.limits.in_flight {
            self.ledger.broken(format!(
                "member {} has {} commands that wait and {} entries in flight",
                status.member, status.queue, status.in_flight
            ));
        }
        self.count(|c| c.most("most_connections", self.net.connections() as u64));
    }

    fn options(&self, machine: &Arc<Machine>, member: u64, disk: Arc<SimDisk>) -> Options<Rules> {
        let (ledger, here, sessions) = (self.ledger.clone(), machine.clone(), self.sessions.clone());
        let levels = self.versions.levels.clone();
        let mut limits = self.limits.clone();
        limits.level = machine.now().runs_older.then_some(versions::OLDER);
        Options {
            member,
            address: crate::net::address(machine.at),
            disk,
            clock: machine.clock.clone(),
            initialize: member == super::FOUNDER,
            observers: vec![Arc::new(move |applied| {
                ledger.observe(member, applied);
                here.applied(applied);
                applied.events.iter().filter_map(|e| ended_early(&sessions, e)).for_each(|early| ledger.broken(early));
                let early = applied.events.iter().find_map(|e| versions::raised_early(&levels, &applied.head, e));
                early.into_iter().for_each(|early| ledger.broken(early));
            })],
            limits,
            timing: Timing::default(),
            plant: self.setup.plant,
        }
    }
}

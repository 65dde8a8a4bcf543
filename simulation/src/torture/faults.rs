//! The faults, one after another, each under the load of all writers: begin, hold, heal, and then writes must go through
//! every door again.

use super::failover::{Probe, Seen, seen};
use super::load::Load;
use super::members::{Members, PATIENCE};
use super::net::{MEMBERS, Net, Way};
use super::slow::{Late, Slow};
use anyhow::{Context, bail};
use cvlan_core::grammar::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// A fault is held so long: from … to, ms.
const HOLD_MS: (u64, u64) = (1500, 4500);
/// On a full disk the log has room to the end of its segment; it is waited so long until it says no.
const FULL: Duration = Duration::from_secs(15);
/// Nothing is wrong for so long before the next.
const CALM: Duration = Duration::from_millis(500);
/// Fresh requests run so long before a leader is killed or stopped, and after.
const AROUND: Duration = Duration::from_millis(500);

/// Whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever leads then.
    Leader,
    /// One of the others.
    Follower,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, then a restart.
    Kill(Who),
    /// kill -9 of all at once, then a restart.
    KillAll,
    /// SIGTERM, then a restart.
    Term(Who),
    /// SIGSTOP, then SIGCONT.
    Freeze(Who),
    /// Cut off from the others.
    Cut(Who, Way),
    /// Leader and one follower do not reach each other; the third one reaches both.
    CutPair(Way),
    /// So many percent of all packets between members are lost.
    Loss(u32),
    /// All that members say to each other comes late.
    SlowAll,
    /// What it says, or is told, comes late.
    Slow(Who, Way),
    /// No room on its disk.
    Full(Who),
    /// Its disk is lost: removed, and a new member in its place.
    Replace(Who),
    /// Somebody else is asked to lead.
    Transfer,
}

/// Each of them once.
const ALL: &[Fault] = &[
    Fault::Kill(Who::Leader),
    Fault::Kill(Who::Follower),
    Fault::KillAll,
    Fault::Term(Who::Leader),
    Fault::Term(Who::Follower),
    Fault::Freeze(Who::Leader),
    Fault::Freeze(Who::Follower),
    Fault::Cut(Who::Leader, Way::Both),
    Fault::Cut(Who::Leader, Way::Out),
    Fault::Cut(Who::Leader, Way::In),
    Fault::Cut(Who::Follower, Way::Both),
    Fault::CutPair(Way::Both),
    Fault::CutPair(Way::In),
    Fault::Loss(5),
    Fault::Loss(20),
    Fault::SlowAll,
    Fault::Slow(Who::Leader, Way::Out),
    Fault::Slow(Who::Leader, Way::In),
    Fault::Slow(Who::Follower, Way::Both),
    Fault::Full(Who::Leader),
    Fault::Full(Who::Follower),
    Fault::Replace(Who::Leader),
    Fault::Replace(Who::Follower),
    Fault::Transfer,
];

impl Who {
    fn text(self) -> &'static str {
        match self {
            Self::Leader => "the leader",
            Self::Follower => "a follower",
        }
    }
}

impl Fault {
    fn text(self) -> String {
        let cut = |way| match way {
            Way::Both => "cut off",
            Way::Out => "not heard by the others",
            Way::In => "deaf to the others",
        };
        match self {
            Self::Kill(who) => format!("kill -9 of {}", who.text()),
            Self::KillAll => "kill -9 of all three".to_owned(),
            Self::Term(who) => format!("SIGTERM of {}", who.text()),
            Self::Freeze(who) => format!("SIGSTOP of {}", who.text()),
            Self::Cut(who, way) => format!("{} is {}", who.text(), cut(way)),
            Self::CutPair(Way::Both) => "leader and a follower are cut from each other".to_owned(),
            Self::CutPair(_) => "the leader is deaf to a follower".to_owned(),
            Self::Loss(percent) => format!("{percent} % of all packets are lost"),
            Self::SlowAll => "all that members say comes late".to_owned(),
            Self::Slow(who, Way::Both) => format!("{} says and hears all late", who.text()),
            Self::Slow(who, Way::Out) => format!("what {} says comes late", who.text()),
            Self::Slow(who, Way::In) => format!("{} hears all late", who.text()),
            Self::Full(who) => format!("the disk of {} is full", who.text()),
            Self::Replace(who) => format!("the disk of {} is lost: removed, replaced", who.text()),
            Self::Transfer => "another one is asked to lead".to_owned(),
        }
    }
}

/// See the module.
pub struct Torture {
    net: Net,
    /// The members.
    pub members: Members,
    /// The writers.
    pub load: Arc<Load>,
    rng: Rng,
    begin: Instant,
    bag: Vec<Fault>,
    /// Connections can be sent through the hub.
    slows: bool,
    /// The longest time without an acknowledged write.
    pub longest: Duration,
    /// Faults so far.
    pub faults: usize,
    /// Every kill -9 of the leader.
    pub kills: Vec<Seen>,
    /// Every SIGTERM of the leader.
    pub terms: Vec<Seen>,
}

fn ms(us: u64) -> u64 {
    us / 1000
}

impl Torture {
    /// Nothing is wrong yet.
    pub fn new(net: Net, members: Members, load: Arc<Load>, seed: u64) -> anyhow::Result<Self> {
        let slows = net.redirect(&[]);
        net.heal()?;
        if let Err(error) = &slows {
            eprintln!("SKIPPED: delays: {error:#}");
        }
        Ok(Self {
            slows: slows.is_ok(),
            net,
            members,
            load,
            rng: Rng(seed),
            begin: Instant::now(),
            bag: Vec::new(),
            longest: Duration::ZERO,
            faults: 0,
            kills: Vec::new(),
            terms: Vec::new(),
        })
    }

    /// The next fault: all of them, in an order of the seed, before any comes again.
    pub fn draw(&mut self) -> Fault {
        if self.bag.is_empty() {
            let (disks, slows) = (self.members.disks, self.slows);
            let can = |fault: &Fault| match fault {
                Fault::Full(_) => disks,
                Fault::SlowAll | Fault::Slow(..) => slows,
                _ => true,
            };
            self.bag = ALL.iter().copied().filter(can).collect();
        }
        let at = self.rng.below(self.bag.len() as u64) as usize;
        self.bag.swap_remove(at)
    }

    /// One fault, to the end, and a line about it.
    pub async fn play(&mut self, fault: Fault) -> anyhow::Result<()> {
        let before = self.load.acks();
        let at = self.begin.elapsed().as_secs_f64();
        let told = async {
            self.load.pause_begin();
            let told = self.fault(fault).await?;
            self.net.heal()?;
            self.calm().await?;
            anyhow::Ok(told)
        };
        let told = told.await.with_context(|| format!("{:.1} s: {}", at, fault.text()))?;
        let (pause, acks) = (self.load.pause(), self.load.acks());
        self.longest = self.longest.max(pause);
        self.faults += 1;
        eprintln!(
            "[{at:7.1} s] {:<48} {told:<44} {acks:>7} writes (+{}), longest pause {} ms",
            fault.text(),
            acks - before,
            pause.as_millis()
        );
        if let Some(first) = self.load.violations().first() {
            bail!("{first}");
        }
        Ok(())
    }

    /// Everybody is well, and every door takes writes.
    pub async fn calm(&mut self) -> anyhow::Result<()> {
        for at in 0..MEMBERS {
            self.members.ready(at).await?;
        }
        self.load.progress(PATIENCE).await?;
        sleep(CALM).await;
        self.members.alive()
    }

    async fn hold(&mut self) {
        sleep(Duration::from_millis(HOLD_MS.0 + self.rng.below(HOLD_MS.1 - HOLD_MS.0))).await;
    }

    /// Who leads, and one of the others.
    async fn two(&mut self) -> anyhow::Result<(usize, usize)> {
        let leader = self.members.leader(&self.load.doors).await?;
        let other = (leader + 1 + self.rng.below(MEMBERS as u64 - 1) as usize) % MEMBERS;
        Ok((leader, other))
    }

    async fn victim(&mut self, who: Who) -> anyhow::Result<usize> {
        let (leader, other) = self.two().await?;
        Ok(if who == Who::Leader { leader } else { other })
    }

    async fn fault(&mut self, fault: Fault) -> anyhow::Result<String> {
        let who = match fault {
            Fault::Kill(who) | Fault::Term(who) | Fault::Freeze(who) => who,
            Fault::Cut(who, _) | Fault::Slow(who, _) | Fault::Full(who) | Fault::Replace(who) => who,
            Fault::CutPair(_) | Fault::Loss(_) | Fault::SlowAll | Fault::KillAll | Fault::Transfer => Who::Leader,
        };
        let at = self.victim(who).await?;
        let name = self.members.name(at).to_owned();
        match fault {
            Fault::Kill(Who::Leader) => {
                let seen = self.leader_killed(at).await?;
                return Ok(format!("{name}, the next write after {} ms", ms(seen.next_us)));
            }
            Fault::Term(Who::Leader) => {
                let seen = self.leader_stopped(at).await?;
                return Ok(format!("{name}, {} ms, {} of {} failed", ms(seen.gap_us), seen.failed, seen.writes));
            }
            Fault::Kill(Who::Follower) => {
                self.members.kill(at)?;
                self.hold().await;
                self.members.start(at, None)?;
            }
            Fault::Term(Who::Follower) => {
                self.stop(at).await?;
                self.hold().await;
                self.members.start(at, None)?;
            }
            Fault::KillAll => {
                (0..MEMBERS).try_for_each(|at| self.members.kill(at))?;
                (0..MEMBERS).try_for_each(|at| self.members.start(at, None))?;
                return Ok(String::new());
            }
            Fault::Freeze(_) => {
                self.members.freeze(at)?;
                self.hold().await;
                self.members.thaw(at)?;
            }
            Fault::Cut(_, way) => {
                self.net.cut(at, None, way, 100)?;
                self.hold().await;
            }
            Fault::CutPair(way) => {
                let other = (at + 1 + self.rng.below(MEMBERS as u64 - 1) as usize) % MEMBERS;
                self.net.cut(at, Some(other), way, 100)?;
                self.hold().await;
                return Ok(format!("{name}, {}", self.members.name(other)));
            }
            Fault::Loss(percent) => {
                (0..MEMBERS).try_for_each(|at| self.net.cut(at, None, Way::Out, percent))?;
                self.hold().await;
                return Ok(String::new());
            }
            Fault::SlowAll => return self.slow(Late::All).await,
            Fault::Slow(_, way) => {
                let told = self.slow(Late::Of(at, way)).await?;
                return Ok(format!("{name}, {told}"));
            }
            Fault::Full(_) => {
                self.load.full(at);
                self.members.fill(at)?;
                let end = Instant::now() + FULL;
                let mut felt = false;
                while !felt && Instant::now() < end {
                    sleep(Duration::from_millis(50)).await;
                    felt = self.load.full(at);
                }
                self.hold().await;
                self.members.room(at)?;
                return Ok(format!("{name}, its log {}", if felt { "takes nothing" } else { "has room still" }));
            }
            Fault::Replace(_) => {
                let through = (at + 1) % MEMBERS;
                self.members.wipe(&self.load.doors, at, through).await?;
                self.members.join(&self.load.doors, at, through).await?;
                self.members.three_vote(&self.load.doors).await?;
                return Ok(format!("{name} by {}", self.members.name(at)));
            }
            Fault::Transfer => {
                let to = (at + 1 + self.rng.below(MEMBERS as u64 - 1) as usize) % MEMBERS;
                self.members.transfer(&self.load.doors, to).await?;
                return Ok(format!("{name} to {}", self.members.name(to)));
            }
        }
        Ok(name)
    }

    /// It is held twice as long: the members have to connect anew first, and again afterwards.
    async fn slow(&mut self, late: Late) -> anyhow::Result<String> {
        let slow = Slow::start(late, Rng(self.rng.next())).await?;
        self.net.redirect(slow.ways())?;
        self.hold().await;
        self.hold().await;
        let (connections, bytes) = slow.carried();
        if bytes == 0 {
            bail!("nothing went the slow way, {connections} connections");
        }
        Ok(format!("{connections} connections, {} KB late", bytes / 1000))
    }

    async fn stop(&mut self, at: usize) -> anyhow::Result<()> {
        self.members.terminate(at)?;
        let status = self.members.ended(at).await?;
        if !status.success() {
            bail!("{} was stopped by SIGTERM and says {status}", self.members.name(at));
        }
        Ok(())
    }

    /// kill -9 of the leader under fresh requests through the others; it is back afterwards.
    pub async fn leader_killed(&mut self, at: usize) -> anyhow::Result<Seen> {
        let probe = Probe::start(&self.load, at).await;
        sleep(AROUND).await;
        let at_us = self.load.now_us();
        self.members.kill(at)?;
        let since_us = self.load.now_us();
        let end = Instant::now() + PATIENCE;
        while !probe.acked_since(since_us) {
            if Instant::now() > end {
                bail!("no write is acknowledged in {PATIENCE:?}");
            }
            sleep(Duration::from_millis(2)).await;
        }
        sleep(AROUND).await;
        let seen = seen(&probe.end().await, at_us, since_us);
        self.members.start(at, None)?;
        self.kills.push(seen);
        Ok(seen)
    }

    /// SIGTERM of the leader under fresh requests through the others; it is back afterwards.
    pub async fn leader_stopped(&mut self, at: usize) -> anyhow::Result<Seen> {
        let probe = Probe::start(&self.load, at).await;
        sleep(AROUND).await;
        let at_us = self.load.now_us();
        self.stop(at).await?;
        sleep(AROUND).await;
        let seen = seen(&probe.end().await, at_us, at_us);
        self.members.start(at, None)?;
        self.terms.push(seen);
        Ok(seen)
    }
}

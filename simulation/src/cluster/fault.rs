//! Carries out the schedule.

use super::Cluster;
use super::machine::Machine;
use super::operator::Loss;
use super::schedule::{Fault, Way, What, Who};
use crate::disk::Faults;
use crate::lock;
use crate::net::Effect;
use crate::runtime::{now_us, sleep_us};
use crate::trace::Sign;
use cvlan_raft::Role;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Cluster {
    /// One fault of the schedule, from begin to end, with commands all around it.
    pub(super) async fn fault(self: Arc<Self>, place: usize) {
        let Some(fault) = self.faults.get(place).copied() else { return };
        let burst = 1 + self.setup.commands / self.faults.len().max(1) as u64;
        let before_ms = self.draw(60);
        self.sleep_until(fault.at_ms.saturating_sub(before_ms)).await;
        self.give_tickets(burst / 2);
        self.sleep_until(fault.at_ms).await;
        if self.over() {
            return;
        }
        self.count(|c| c.one("faults"));
        let ends_us = now_us() + fault.for_ms * 1000;
        self.trace.mark(self.lane(fault.what), Sign::Fault(ends_us), format_args!("fault {place}: {:?}", fault.what));
        self.give_tickets(burst - burst / 2);
        self.carry_out(fault).await;
    }

    /// Where the picture shows it.
    fn lane(&self, what: What) -> Option<usize> {
        let who = match what {
            What::CrashAtCall(who, ..)
            | What::Crash(who, _)
            | What::Stop(who)
            | What::DamageSnapshot(who)
            | What::DamageLog(who)
            | What::Wipe(who)
            | What::Replace(who)
            | What::Full(who, _)
            | What::SlowDisk(who)
            | What::FailedCall(who, _)
            | What::Isolate(who, _)
            | What::Break(who)
            | What::Swallow(who)
            | What::SlowNet(who, _)
            | What::Clock(who, _)
            | What::LeftBehind(who) => who,
            What::Blackout | What::Split(..) | What::Transfer | What::Learner => return None,
        };
        self.find(who).map(|machine| machine.at)
    }

    /// Whom it hits now.
    pub(super) fn find(&self, who: Who) -> Option<Arc<Machine>> {
        let living: Vec<_> = self.machines.iter().filter(|m| m.now().member.is_some()).cloned().collect();
        let voters: Vec<_> = living.iter().filter(|m| m.now().voter).cloned().collect();
        let nth = |of: &[Arc<Machine>], n: u64| of.get(n.checked_rem(of.len() as u64)? as usize).cloned();
        match who {
            Who::Leader => self.leader().or_else(|| voters.first().cloned()),
            Who::Voter(n) => nth(&voters, n),
            Who::Any(n) => nth(&living, n),
        }
    }

    /// The machine whose member leads in the highest term.
    pub(super) fn leader(&self) -> Option<Arc<Machine>> {
        let leads = self.machines.iter().filter_map(|machine| {
            let status = machine.up()?.member.status();
            (status.role == Role::Leader).then_some((status.term, machine))
        });
        leads.max_by_key(|(term, _)| *term).map(|(_, machine)| machine.clone())
    }

    async fn carry_out(self: &Arc<Self>, fault: Fault) {
        let for_us = fault.for_ms * 1000;
        match fault.what {
            What::CrashAtCall(who, calls, power) => self.with(who, |victim| {
                let mut now = victim.now();
                (now.power, now.rests_until_us) = (Some(power), now_us() + for_us);
                if let Some(disk) = &now.disk {
                    disk.plan(|so_far, faults| faults.die_at = Some(so_far + calls));
                }
            }),
            What::Crash(who, power) => self.with(who, |victim| victim.kill(&self.net, power, fault.for_ms)),
            What::Blackout => {
                for machine in &self.machines {
                    machine.kill(&self.net, true, fault.for_ms + self.draw(300));
                }
            }
            What::Stop(who) => self.stop(who, fault.for_ms).await,
            What::DamageSnapshot(who) => self.lose(who, Loss::Snapshot).await,
            What::DamageLog(who) => self.lose(who, Loss::Log).await,
            What::Wipe(who) => self.lose(who, Loss::Disk).await,
            What::Replace(who) => self.replace_voter(who).await,
            What::Full(who, room) => self.disk_fault(who, for_us, Some(room), |_, _| {}).await,
            What::SlowDisk(who) => self.disk_fault(who, for_us, None, |_, faults| faults.slow_until = u64::MAX).await,
            What::FailedCall(who, calls) => {
                self.disk_fault(who, for_us, None, |so_far, faults| faults.fail_at = Some(so_far + calls)).await;
            }
            What::Isolate(who, way) => {
                if let Some(victim) = self.find(who) {
                    self.part(BTreeSet::from([victim.at]), way, for_us).await;
                }
            }
            What::Split(mask, way) => {
                let group = (0..self.machines.len()).filter(|at| mask >> at & 1 == 1).collect();
                self.part(group, way, for_us).await;
            }
            What::Break(who) => self.disturb(who, false),
            What::Swallow(who) => self.disturb(who, true),
            What::SlowNet(who, ms) => {
                let Some(victim) = self.find(who) else { return };
                let others = (0..self.machines.len()).filter(|at| *at != victim.at);
                let slow: Vec<_> = others.map(|at| self.net.begin(Effect::Slow(victim.at, at, ms * 1000))).collect();
                sleep_us(for_us).await;
                slow.into_iter().for_each(|number| self.net.end(number));
            }
            What::Clock(who, by_ms) => self.with(who, |victim| victim.clock.jump(by_ms)),
            What::Transfer => self.transfer().await,
            What::Learner => self.learner().await,
            What::LeftBehind(who) => self.left_behind(who, for_us).await,
        }
    }

    fn with(&self, who: Who, hit: impl FnOnce(&Machine)) {
        if let Some(victim) = self.find(who) {
            hit(&victim);
        }
    }

    async fn stop(&self, who: Who, rest_ms: u64) {
        let Some(victim) = self.find(who) else { return };
        let Some(up) = victim.up() else { return };
        victim.now().stopping = true;
        up.call(super::CALL_LIMIT, |member| async move { member.shutdown().await }).await;
        self.count(|c| c.one("stops"));
        if !up.process.is_dead() {
            victim.kill(&self.net, self.one_in(3), rest_ms);
        }
    }

    async fn disk_fault(&self, who: Who, for_us: u64, room: Option<u64>, plan: impl FnOnce(u64, &mut Faults)) {
        let Some(victim) = self.find(who) else { return };
        let Some(disk) = victim.now().disk.clone() else { return };
        disk.plan(plan);
        if room.is_some() {
            lock(&victim.platter).set_room(room);
        }
        sleep_us(for_us).await;
        lock(&victim.platter).set_room(None);
        disk.plan(|_, faults| (faults.slow_until, faults.fail_at) = (0, None));
    }

    /// A group of machines is parted from the others.
    async fn part(&self, group: BTreeSet<usize>, way: Way, for_us: u64) {
        let others: BTreeSet<usize> = (0..self.machines.len()).filter(|at| !group.contains(at)).collect();
        let mut cuts = Vec::new();
        if way != Way::In {
            cuts.push(self.net.begin(Effect::Cut(group.clone(), others.clone())));
        }
        if way != Way::Out {
            cuts.push(self.net.begin(Effect::Cut(others, group)));
        }
        sleep_us(for_us).await;
        cuts.into_iter().for_each(|number| self.net.end(number));
    }

    fn disturb(&self, who: Who, swallow: bool) {
        let Some(victim) = self.find(who) else { return };
        for at in (0..self.machines.len()).filter(|at| *at != victim.at) {
            self.net.disturb(victim.at, at, swallow);
        }
    }

    /// Cut off with what it has not passed on yet, while the others go on and purge what it would need; then it comes
    /// back, restarted or not.
    async fn left_behind(&self, who: Who, for_us: u64) {
        let Some(victim) = self.find(who) else { return };
        let group = BTreeSet::from([victim.at]);
        let busy = async {
            for _ in 0..4 {
                sleep_us(for_us / 5).await;
                self.give_tickets(20);
                if let Some(leader) = self.leader().and_then(|machine| machine.up()) {
                    leader.call(super::CALL_LIMIT, |member| async move { member.snapshot().await.is_ok() }).await;
                }
            }
        };
        futures_util::future::join(self.part(group, Way::Both, for_us), busy).await;
        if self.one_in(3) {
            victim.kill(&self.net, self.one_in(2), self.draw(200));
        }
    }
}

//! Who runs the cluster: forms it, adds and removes members, replaces what has lost its disk, and hands leadership over.

use super::machine::{Called, Machine, Now};
use super::schedule::Who;
use super::{CALL_LIMIT, Cluster, FOUNDER};
use crate::lock;
use crate::net::address;
use crate::runtime::{NodeRt, now_us, sleep_us};
use cvlan_core::Rules;
use cvlan_core::grammar::Rng;
use cvlan_raft::{Member, WriteError};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard};

/// A change of the members is given up after so long, ms; while all is calm, that is a broken promise.
const CHANGE_MS: u64 = 25_000;

/// Looks at a damaged machine, 20 ms apart, until it has opened or given up: longer than any rest.
const DAMAGE_LOOKS: u32 = 3_000;

/// What is lost of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// All of it.
    Disk,
    /// A bit of the log.
    Log,
    /// The newest snapshot.
    Snapshot,
}

type Handle = Member<Rules, NodeRt>;

impl Cluster {
    /// The founder, its first entry, and the others one by one.
    pub(super) async fn form(&self) -> Result<(), String> {
        let Some(founder) = self.machines.first() else { return Ok(()) };
        founder.now().voter = true;
        founder.assign(FOUNDER);
        founder.now().joined = true;
        loop {
            if let Some(up) = founder.up() {
                let (epoch, command) = (self.epoch, self.bootstrap.clone());
                let made =
                    up.call(CALL_LIMIT, move |member| async move { member.bootstrap(epoch, command).await }).await;
                match made {
                    Called::Done(Ok(_) | Err(WriteError::AlreadyBootstrapped)) => break,
                    Called::Done(Err(error)) => self.trace.line(format_args!("bootstrap: {}", error.code())),
                    Called::Gone | Called::Late => {}
                }
            }
            if now_us() > CHANGE_MS * 1000 {
                return Err("the founder does not take its first command".into());
            }
            sleep_us(5_000).await;
        }
        let (voters, learners) = self.shape;
        for machine in self.machines.iter().take(voters + learners).skip(1) {
            if !self.join(machine, machine.at < voters).await {
                return Err(format!("s{} could not join while nothing was wrong", machine.at));
            }
        }
        Ok(())
    }

    /// Asks some member until one does it; false after [`CHANGE_MS`].
    async fn ask<F>(&self, what: String, call: impl Fn(Handle) -> F) -> bool
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let until = now_us() + CHANGE_MS * 1000;
        while now_us() < until && !self.over() {
            if let Some(up) = self.any() {
                match up.call(CALL_LIMIT, &call).await {
                    Called::Done(Ok(())) => {
                        self.trace.line(format_args!("{what}: done by s{}", up.at));
                        return true;
                    }
                    Called::Done(Err(code)) => self.trace.line(format_args!("{what}: s{} says {code}", up.at)),
                    Called::Gone => {}
                    Called::Late => {
                        self.ledger.broken(format!("{what}: s{} had no answer for {CALL_LIMIT:?}", up.at));
                    }
                }
            }
            sleep_us(50_000 + self.draw(200_000)).await;
        }
        false
    }

    /// A new member on an empty machine.
    async fn join(&self, machine: &Arc<Machine>, voter: bool) -> bool {
        let id = self.last_member.fetch_add(1, Relaxed) + 1;
        machine.now().voter = voter;
        machine.assign(id);
        self.enlist(machine.at, id, voter).await
    }

    /// Makes a member part of the cluster; done twice, it is the same.
    async fn enlist(&self, at: usize, id: u64, voter: bool) -> bool {
        let added = self.ask(format!("add m{id} on s{at}"), move |member: Handle| async move {
            member.learner_add(id, address(at)).await.map_err(|error| error.code().to_owned())
        });
        if !added.await {
            return false;
        }
        self.count(|c| c.one("added"));
        if let Some(machine) = self.machines.get(at) {
            machine.now().joined = true;
        }
        if !voter {
            return true;
        }
        let promoted = self.ask(format!("promote m{id} on s{at}"), move |member: Handle| async move {
            member.promote(id).await.map_err(|error| error.code().to_owned())
        });
        let promoted = promoted.await;
        self.count(|c| c.add("promoted", u64::from(promoted)));
        promoted
    }

    /// A member leaves.
    async fn remove(&self, id: u64) -> bool {
        let removed = self.ask(format!("remove m{id}"), move |member: Handle| async move {
            member.member_remove(id).await.map_err(|error| error.code().to_owned())
        });
        // Whether one that had no answer in time is out, only asking again can tell.
        let removed = removed.await;
        lock(&self.gone).insert(id, removed);
        self.count(|c| c.add("members_removed", u64::from(removed)));
        removed
    }

    /// Whom it hits, if it may be removed: a removal beside a join that is still asked for is undone by that join.
    fn find_joined(&self, who: Who) -> Option<Arc<Machine>> {
        self.find(who).filter(|machine| machine.now().joined)
    }

    /// A disk is lost, or damaged: one at a time in the whole cluster. What does not open is replaced; where the one that is
    /// to vote in its place could not, no other is lost in this seed: of two voters that would be the majority.
    pub(super) async fn lose(&self, who: Who, loss: Loss) {
        if self.loss.swap(true, Relaxed) {
            return;
        }
        let mut whole = true;
        if let Some(victim) = self.find_joined(who) {
            match loss {
                Loss::Disk => self.count(|c| c.one("wiped")),
                Loss::Log | Loss::Snapshot => self.damage(&victim, loss).await,
            }
            if loss == Loss::Disk || victim.now().lost {
                whole = self.replace(&victim).await;
            }
            victim.now().damaged = false;
        }
        self.loss.store(!whole || self.machines.iter().any(|machine| machine.now().lost), Relaxed);
    }

    /// Damage while the member is down: to the newest snapshot, or to one bit of what was written and synced to the log
    /// long ago. It must be noticed. Without that snapshot a log goes on from an older one, or from its first entry; a
    /// log that begins later may have no other.
    async fn damage(&self, victim: &Machine, loss: Loss) {
        let whole = victim.up().is_some_and(|up| up.member.status().history_from <= 1);
        victim.kill(&self.net, true, 300);
        sleep_us(1_000).await;
        let damaged = {
            let (mut platter, mut rng) = (lock(&victim.platter), Rng(self.draw(u64::MAX)));
            let names = |folder: &str, end: &str| {
                let all = platter.list(folder).into_iter().filter(|name| name.ends_with(end));
                all.map(|name| format!("{folder}/{name}")).collect::<Vec<_>>()
            };
            let (logs, snapshots) = (names("log", ".seg"), names("snapshots", ".snap"));
            match loss {
                Loss::Snapshot => snapshots.last().filter(|name| platter.damage(name, &mut rng).is_ok()).cloned(),
                Loss::Log | Loss::Disk => {
                    logs.first().filter(|name| platter.damage_early(name, &mut rng).is_some()).cloned()
                }
            }
        };
        let Some(name) = damaged else { return };
        self.trace.line(format_args!("s{} damage {name}", victim.at));
        self.count(|c| c.one(if loss == Loss::Log { "damaged_logs" } else { "damaged_snapshots" }));
        victim.now().damaged = loss == Loss::Log || !whole;
        // It opens or it does not; a busy disk takes its time, and a blackout meanwhile more.
        for _ in 0..DAMAGE_LOOKS {
            sleep_us(20_000).await;
            if victim.now().lost || victim.up().is_some() {
                return;
            }
        }
    }

    /// What a machine had is gone: its member is removed, and another one starts there from nothing.
    async fn replace(&self, victim: &Arc<Machine>) -> bool {
        let voter = victim.now().voter;
        let Some(old) = victim.wipe(&self.net) else { return true };
        victim.now().reserved = true;
        if !self.remove(old).await {
            // Nobody may start there before the old one is out; the calm will see to it.
            let mut now = victim.now();
            (now.member, now.lost, now.reserved) = (Some(old), true, false);
            return false;
        }
        self.count(|c| c.one("replaced"));
        self.join(victim, voter).await
    }

    /// A voter, the leader too, is removed in order, notices it, and comes back under a new id.
    pub(super) async fn replace_voter(&self, who: Who) {
        if self.loss.swap(true, Relaxed) {
            return;
        }
        let found = self.find_joined(who).and_then(|victim| {
            let (member, voter) = {
                let now = victim.now();
                (now.member, now.voter)
            };
            Some((victim, member?, voter))
        });
        let mut whole = true;
        if let Some((victim, old, voter)) = found
            && self.remove(old).await
        {
            victim.now().reserved = true;
            for _ in 0..200 {
                if victim.now().member.is_none() {
                    break;
                }
                sleep_us(50_000).await;
            }
            // One that is cut off does not hear of it; it is taken away.
            if victim.now().member == Some(old) {
                self.count(|c| c.one("removed_unheard"));
                victim.wipe(&self.net);
            }
            whole = self.join(&victim, voter).await;
        }
        self.loss.store(!whole || self.machines.iter().any(|machine| machine.now().lost), Relaxed);
    }

    pub(super) async fn learner(&self) {
        let is_learner = |now: MutexGuard<'_, Now>| now.member.is_some() && !now.voter && now.joined;
        let learner = self.machines.iter().find(|machine| is_learner(machine.now())).cloned();
        let id = learner.as_ref().and_then(|machine| machine.now().member);
        match id.filter(|_| self.one_in(2)) {
            Some(id) => drop(self.remove(id).await),
            None => {
                let is_free = |now: MutexGuard<'_, Now>| now.member.is_none() && now.disk.is_none() && !now.reserved;
                let free = self.machines.iter().find(|machine| is_free(machine.now())).cloned();
                // One seat stays free.
                if let Some(machine) = free.filter(|machine| machine.at + 1 < self.machines.len()) {
                    self.join(&machine, false).await;
                }
            }
        }
    }

    pub(super) async fn transfer(&self) {
        let Some(up) = self.any() else { return };
        let to =
            self.find(Who::Voter(self.draw(8))).and_then(|machine| machine.now().member).filter(|_| self.one_in(2));
        let asked = up.call(CALL_LIMIT, move |member| async move { member.transfer(to).await.map_err(|e| e.code()) });
        match asked.await {
            Called::Done(Ok(leader)) => {
                self.trace.line(format_args!("m{leader} took over, of {to:?}"));
                self.count(|c| c.one("transfers"));
            }
            Called::Done(Err(code)) => self.trace.line(format_args!("no transfer to {to:?}: {code}")),
            Called::Gone => {}
            Called::Late => self.ledger.broken(format!("a transfer had no answer for {CALL_LIMIT:?}")),
        }
    }

    /// Everything that is wrong is put right, as an operator would; then it must work.
    pub(super) async fn settle(&self) -> Result<(), String> {
        self.calm.store(true, Relaxed);
        self.net.heal();
        for machine in &self.machines {
            lock(&machine.platter).set_room(None);
        }
        sleep_us(3_000_000).await;
        for machine in &self.machines {
            let (member, lost, voter) = {
                let now = machine.now();
                (now.member, now.lost, now.voter)
            };
            let out = member.and_then(|id| lock(&self.gone).get(&id).copied());
            let whole = match (member, out) {
                (Some(_), Some(false)) => self.replace(machine).await,
                (Some(_), Some(true)) => {
                    self.leaves(machine).await?;
                    !voter || self.join(machine, true).await
                }
                (Some(_), None) if lost => self.replace(machine).await,
                (Some(id), None) => self.enlist(machine.at, id, voter).await,
                (None, _) => !voter || self.join(machine, true).await,
            };
            if !whole {
                return Err(format!("the member on s{} cannot be made whole while nothing is wrong", machine.at));
            }
        }
        Ok(())
    }

    /// Who was removed, and can hear of it, stops; one that was gone before it had heard of anybody is taken away.
    async fn leaves(&self, machine: &Machine) -> Result<(), String> {
        if machine.up().is_some_and(|up| up.member.head().members.addresses.is_empty()) {
            self.count(|c| c.one("removed_unheard"));
            machine.wipe(&self.net);
            return Ok(());
        }
        for _ in 0..200 {
            if machine.now().member.is_none() {
                return Ok(());
            }
            sleep_us(50_000).await;
        }
        Err(format!("member {:?} was removed, and runs on on s{}", machine.now().member, machine.at))
    }
}

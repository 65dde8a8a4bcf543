//! Presence, as a controller's shell tells it: which streams are open at each member, and what the log is told of them.
//!
//! ```text
//! an agent: arrive ─► stay (one session) ─► leave        each member: due? ─► Report        who leads: Expire of who is gone
//! ```
//! The truth is kept beside: no session ends in the log while it goes on, and once all is quiet a node is online where
//! it has a stream, and nowhere else.

use super::machine::{Called, Machine, Up};
use super::{CALL_LIMIT, Cluster};
use crate::lock;
use crate::runtime::{now_us, sleep_us};
use cvlan_core::grammar::Rng;
use cvlan_core::id::{CommandId, MemberId, NodeId, TenantId};
use cvlan_core::map::place;
use cvlan_core::presence::{Open, PresenceCommand, Transition, due, transitions};
use cvlan_core::{Command, Meta, State, Wish};
use cvlan_proto::v1::Event;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// Presence is right within this once nothing is wrong any more, ms; and stays so for the second number.
const SETTLE_MS: (u64, u64) = (10_000, 1_000);

/// Sessions that go on, of all members.
pub(super) type Sessions = Arc<Mutex<BTreeSet<u64>>>;

/// A node at one member.
#[derive(Debug)]
pub(super) struct Stay {
    session: u64,
    told: bool,
    streams: u64,
}

/// What a process knows of its streams.
#[derive(Debug, Default)]
pub(super) struct Stays {
    open: BTreeMap<NodeId, Stay>,
    /// Who left, for the planted bug alone.
    left: BTreeSet<NodeId>,
}

impl Stays {
    /// The process has ended, and all its streams with it.
    pub(super) fn end(&mut self, sessions: &Sessions) {
        let mut sessions = lock(sessions);
        for stay in std::mem::take(self).open.into_values() {
            sessions.remove(&stay.session);
        }
    }
}

/// One stream of an agent.
pub(super) struct Stream {
    machine: Arc<Machine>,
    sessions: Sessions,
    node: NodeId,
    session: u64,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut now = self.machine.now();
        // Where the process has ended, the stay has too.
        let Some(stay) = now.stays.open.get_mut(&self.node).filter(|stay| stay.session == self.session) else { return };
        stay.streams -= 1;
        if stay.streams == 0 {
            now.stays.open.remove(&self.node);
            now.stays.left.insert(self.node);
            lock(&self.sessions).remove(&self.session);
        }
    }
}

/// A session that the log ends while it goes on.
pub(super) fn ended_early(sessions: &Sessions, event: &Event) -> Option<String> {
    let sessions = lock(sessions);
    let mut ends = transitions(event)?.iter().filter(|t| !t.online);
    let early = ends.find(|t| sessions.contains(&t.session))?;
    Some(format!("event {} ends session {:x} of node {}, which goes on", event.seq, early.session, early.node_id))
}

impl Cluster {
    /// A stream of this node opens; it goes on with the session of another one that is open there.
    pub(super) fn arrive(&self, up: &Up, node: NodeId) -> Option<Stream> {
        let machine = self.machines.get(up.at)?.clone();
        let fresh = self.draw(u64::MAX);
        let session = {
            let mut now = machine.now();
            if up.process.is_dead() {
                return None;
            }
            let stay = now.stays.open.entry(node).or_insert(Stay { session: fresh, told: false, streams: 0 });
            (stay.told, stay.streams) = (false, stay.streams + 1);
            lock(&self.sessions).insert(stay.session);
            stay.session
        };
        Some(Stream { machine, sessions: self.sessions.clone(), node, session })
    }

    /// A member tells of its streams, as long as its process lives.
    pub(super) async fn presence(self: Arc<Self>, up: Up, member: MemberId) {
        while !self.over() && !up.process.is_dead() {
            sleep_us(100_000 + self.draw(300_000)).await;
            for wish in self.presence_due(&up, member) {
                let meta = Meta { id: CommandId(Rng(self.draw(u64::MAX)).uuid()), ..Meta::default() };
                // The member numbers it.
                let command = Command { meta, wish: Wish::Presence(wish.clone()) };
                if self.tell(&up, command).await {
                    self.count(|c| c.one("presence"));
                    self.told(&up, &wish);
                }
            }
        }
    }

    /// A command that is sent once; true where it was answered well. What became of one without an answer is asked for
    /// by the next.
    pub(super) async fn tell(&self, up: &Up, command: Command) -> bool {
        let (highest, sent) = (self.ledger.highest(), command.clone());
        let called = up.call(CALL_LIMIT, |member| async move { member.write(sent).await }).await;
        let Called::Done(Ok(answer)) = called else { return false };
        self.ledger.done(&command, &answer, highest);
        true
    }

    fn told(&self, up: &Up, wish: &PresenceCommand) {
        let (Some(machine), PresenceCommand::Report { transitions, .. }) = (self.machines.get(up.at), wish) else {
            return;
        };
        let mut now = machine.now();
        for t in transitions.iter().filter(|t| t.online) {
            if let Some(stay) = now.stays.open.get_mut(&t.node).filter(|stay| stay.session == t.session) {
                stay.told = true;
            }
        }
    }

    fn presence_due(&self, up: &Up, member: MemberId) -> Vec<PresenceCommand> {
        let head = up.member.head();
        let (state, leads) = (&head.machine, up.member.status().writable);
        let mut wishes = Vec::new();
        if leads {
            let seated = |id: &MemberId| self.machines.iter().any(|machine| machine.now().member == Some(id.0));
            let gone = state.online_members().into_iter().filter(|id| !seated(id));
            wishes.extend(gone.map(|member| PresenceCommand::Expire { member }));
        }
        let Some(machine) = self.machines.get(up.at) else { return wishes };
        let mut now = machine.now();
        let mut all: BTreeMap<TenantId, Vec<Transition>> = BTreeMap::new();
        let nodes: BTreeSet<NodeId> = now.stays.open.keys().copied().chain(state.online_at(member)).collect();
        for node in nodes {
            let stay = now.stays.open.get_mut(&node);
            let open = stay.as_ref().map(|stay| Open { session: stay.session, told: stay.told });
            match (due(state, member, node, open), stay) {
                (Some((tenant, transition)), _) => all.entry(tenant).or_default().push(transition),
                // A command whose outcome was not known may have been carried out.
                (None, Some(stay)) => stay.told |= state.presence(node).is_some_and(|p| p.member == member),
                (None, None) => {}
            }
        }
        let report = |(tenant, transitions)| PresenceCommand::Report { tenant, member, transitions };
        wishes.extend(all.into_iter().map(report));
        let left = std::mem::take(&mut now.stays.left);
        if self.setup.two_sessions {
            wishes.extend(left.into_iter().filter_map(|node| planted(state, node)));
        }
        wishes
    }

    /// Waits until the log says of every node what is so.
    pub(super) async fn presence_settles(&self) -> Result<(), String> {
        let (within, still) = SETTLE_MS;
        let (until, mut right_since) = (now_us() + within * 1000, None);
        loop {
            match self.presence_wrong() {
                None => {
                    let since = *right_since.get_or_insert_with(now_us);
                    if now_us() >= since + still * 1000 {
                        return Ok(());
                    }
                }
                Some(wrong) if now_us() > until => return Err(wrong),
                Some(_) => right_since = None,
            }
            sleep_us(50_000).await;
        }
    }

    fn presence_wrong(&self) -> Option<String> {
        let head = self.ledger.head()?;
        let mut open: BTreeMap<NodeId, BTreeSet<u64>> = BTreeMap::new();
        for machine in &self.machines {
            let now = machine.now();
            for node in now.stays.open.keys() {
                open.entry(*node).or_default().extend(now.member);
            }
        }
        let wrong = head.machine.nodes().map(|node| node.id).find(|node| {
            let said = head.machine.presence(*node).filter(|p| p.online).map(|p| p.member.0);
            let at = open.get(node);
            said.map_or(at.is_some(), |member| !at.is_some_and(|at| at.contains(&member)))
        })?;
        Some(format!(
            "at event {} node {wrong} is {:?} in the log, and has streams at {:?}",
            head.seq,
            head.machine.presence(wrong),
            open.get(&wrong)
        ))
    }

    /// Nodes come, move and go, each time until the log has it.
    pub(super) async fn presence_follows(&self, nodes: &BTreeSet<NodeId>) -> Result<(), String> {
        let arrive = || {
            let may = |node: &&NodeId| self.ledger.head().is_some_and(|head| place(&head.machine, **node).is_ok());
            let all = nodes.iter().filter(may).filter_map(|node| self.arrive(&self.any()?, *node));
            all.collect::<Vec<Stream>>()
        };
        let here = arrive();
        self.count(|c| c.add("presence_checked", here.len() as u64));
        self.presence_settles().await?;
        let there = arrive();
        sleep_us(self.draw(1_000_000)).await;
        drop(here);
        self.presence_settles().await?;
        drop(there);
        self.presence_settles().await
    }
}

/// The planted bug: whoever left, the node's session ends, also one that it has elsewhere.
fn planted(state: &State, node: NodeId) -> Option<PresenceCommand> {
    let tenant = state.node_tenant(node)?;
    let has = state.presence(node).filter(|p| p.online)?;
    let transitions = vec![Transition { node, session: has.session, online: false }];
    Some(PresenceCommand::Report { tenant, member: has.member, transitions })
}

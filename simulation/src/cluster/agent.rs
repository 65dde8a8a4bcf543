//! Agents: each follows one node's map through any member, by core's session on that side and the agents' own on this.
//!
//! ```text
//! asleep ─► an old copy restored? ─► a member ─► hello ─► maps, deltas ─► checked against the state they come from
//!    ▲                                                        │
//!    └── moved on, in the middle of things, or once quiet ◄───┘ then: what it has = what a fresh full map gives
//! ```

use super::Cluster;
use super::machine::Up;
use crate::runtime::{now_us, sleep_us};
use cvlan_core::grammar::Rng;
use cvlan_core::id::{Checkpoint, CommandId, NodeId};
use cvlan_core::map::place;
use cvlan_core::node::{NodeCommand, Status};
use cvlan_core::sync::{Output, Session, Upward, View};
use cvlan_core::{Actor, Command, Meta, State, Wish};
use cvlan_link::sync::{Effect, Session as Client};
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use cvlan_raft::Head;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A stream that has nothing to do looks for changes this often, µs.
const LOOK_US: u64 = 40_000;

/// What an agent keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    pub(super) node: NodeId,
    have: Option<Checkpoint>,
    own: Option<v1::Self_>,
    peers: BTreeMap<String, v1::Peer>,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The process, or the agent's patience.
    Cut,
    /// Nothing has moved for a while.
    Quiet,
    /// The node may not talk.
    Refused,
}

impl Local {
    fn take(&mut self, effect: Effect) {
        match effect {
            Effect::Replace { checkpoint, own, peers } => {
                (self.have, self.own) = (Some(checkpoint), own);
                self.peers = peers.into_iter().map(|peer| (peer.node_id.clone(), peer)).collect();
            }
            Effect::Patch { checkpoint, own, upserts, removed } => {
                self.have = Some(checkpoint);
                self.own = own.or(self.own.take());
                removed.iter().for_each(|id| drop(self.peers.remove(&id.to_string())));
                self.peers.extend(upserts.into_iter().map(|peer| (peer.node_id.clone(), peer)));
            }
            Effect::Advance(checkpoint) => self.have = Some(checkpoint),
            Effect::Redirect { .. } | Effect::Bye { .. } => {}
        }
    }
}

impl Cluster {
    /// One agent, until all is calm; returns what it has then.
    pub(super) async fn agent(self: Arc<Self>, agent: u64) -> Option<Local> {
        let mut local = Local::default();
        let mut old = Local::default();
        while !self.is_calm() && !self.over() {
            sleep_us(self.draw(if self.one_in(3) { 15_000_000 } else { 500_000 })).await;
            if local.node.is_nil() {
                local = Local { node: self.some_node()?, ..Local::default() };
                old = local.clone();
            }
            // A machine restored from its backup, or cloned.
            match self.draw(8) {
                0 => local = old.clone(),
                1 => old = local.clone(),
                _ => {}
            }
            let Some(up) = self.any() else { continue };
            let patience_us = self.draw(8_000_000);
            let end = self.stream(agent, &up, &mut local, patience_us).await;
            self.count(|c| c.one("streams"));
            if end == End::Refused && self.one_in(2) {
                local = Local::default();
            }
        }
        Some(local)
    }

    fn some_node(&self) -> Option<NodeId> {
        let head = self.ledger.head()?;
        let nodes: BTreeSet<NodeId> = head.machine.nodes().map(|node| node.id).collect();
        nodes.iter().nth(self.draw(nodes.len() as u64) as usize).copied().or(Some(NodeId::default()))
    }

    /// One stream; ends when it is cut, refused, or quiet after the patience is over.
    async fn stream(&self, agent: u64, up: &Up, local: &mut Local, patience_us: u64) -> End {
        let now_ms = || now_us() / 1000;
        let until = now_us() + patience_us;
        let _open = self.arrive(up, local.node);
        let mut server = Session::new(local.node, now_ms());
        let mut client = Client::new(local.have);
        let endpoints = if self.one_in(3) { vec![format!("203.0.113.{agent}:51820")] } else { Vec::new() };
        let mut said = server.handle(now_ms(), client.hello(endpoints));
        let (mut seen, mut still_us) = (0, 0);
        while !self.over() {
            if up.process.is_dead() {
                return End::Cut;
            }
            if let Ok(Upward::Endpoints(endpoints)) = &said {
                self.endpoints(up, local.node, endpoints.clone()).await;
            }
            said = Ok(Upward::Nothing);
            let head = up.member.head();
            let view = View { epoch: head.epoch, seq: head.seq, state: &head.machine };
            let mut moved = false;
            while let Some(output) = server.poll(now_ms(), view) {
                let frame = match output {
                    Output::Send(frame) if self.setup.lost_tombstone => without_tombstones(frame),
                    Output::Send(frame) => frame,
                    Output::Close(_) => return End::Refused,
                };
                moved = true;
                self.check_frame(local.node, &head.machine, &frame);
                // The connection may end between two parts.
                if self.one_in(40) {
                    return End::Cut;
                }
                match client.handle(frame) {
                    Ok(Some(effect)) => {
                        local.take(effect);
                        self.count(|c| c.one("maps_and_deltas"));
                        let checkpoint = local.have.map(|have| have.to_string()).unwrap_or_default();
                        let ack = SyncFrame { frame: Some(Frame::Ack(v1::Ack { checkpoint })) };
                        let _ = server.handle(now_ms(), ack);
                    }
                    Ok(None) => {}
                    Err(error) => self.ledger.broken(format!("agent {agent} on s{}: {error}", up.at)),
                }
            }
            still_us = if moved || head.seq.0 != seen { 0 } else { still_us + LOOK_US };
            if now_us() > until {
                // Twice the time that changes are gathered for.
                if still_us > 2 * LOOK_US && local.have.is_some_and(|have| have.seq <= head.seq) {
                    self.check_map(agent, up, local, &head);
                    return End::Quiet;
                }
                if now_us() > until + 2_000_000 {
                    return End::Cut;
                }
            }
            // A node that may not talk any more has no scope to be woken by: its own end is looked for.
            let wake = place(&head.machine, local.node).map_or(true, |here| {
                let scope = (here.tenant.record.id, here.cvlan.record.id);
                self.machines.get(up.at).is_some_and(|machine| machine.woken(scope) > seen)
            });
            if wake {
                server.wake(now_ms());
            }
            seen = head.seq.0;
            sleep_us(LOOK_US).await;
        }
        End::Cut
    }

    /// An agent's endpoints become a command of its own.
    async fn endpoints(&self, up: &Up, node: NodeId, endpoints: Vec<String>) {
        let head = up.member.head();
        let Ok(here) = place(&head.machine, node) else { return };
        let id = CommandId(Rng(self.draw(u64::MAX)).uuid());
        let meta = Meta { id, actor: Actor::Node(node, "agent".to_owned()), ..Meta::default() };
        let wish = Wish::Node(NodeCommand::Endpoints { tenant: here.tenant.record.id, id: node, endpoints });
        // It says so once more when it connects again.
        if self.tell(up, Command { meta, wish }).await {
            self.count(|c| c.one("endpoints"));
        }
    }

    /// Nothing for a node that may not talk, nobody of another tenant or CVLAN.
    fn check_frame(&self, node: NodeId, state: &State, frame: &SyncFrame) {
        let peers = match &frame.frame {
            Some(Frame::Map(map)) => &map.peers,
            Some(Frame::Delta(delta)) => &delta.upserts,
            _ => return,
        };
        let Ok(here) = place(state, node) else {
            return self.ledger.broken(format!("node {node} is sent a map although it may not talk"));
        };
        let stranger = peers.iter().find(|peer| {
            // One that has gone since the map was begun is no stranger.
            let id = NodeId::of(&peer.node_id);
            let other = state.node_find(id).filter(|(_, other)| other.status == Status::Active);
            other.is_some_and(|(tenant, other)| {
                (tenant.record.id, other.cvlan) != (here.tenant.record.id, here.node.cvlan)
            })
        });
        if let Some(stranger) = stranger {
            self.ledger.broken(format!("node {node} is told of {}, of another network", stranger.node_id));
        }
    }

    /// What the agent has must be what a fresh full map of the same state gives.
    fn check_map(&self, agent: u64, up: &Up, local: &Local, head: &Head<State>) {
        let Some(fresh) = self.fresh(local.node, head) else { return };
        self.count(|c| c.one("maps_checked"));
        if (&fresh.own, &fresh.peers) != (&local.own, &local.peers) {
            self.ledger.broken(format!(
                "agent {agent} of node {} on s{} has {} peers at {:?}, a fresh map at event {} gives {}",
                local.node,
                up.at,
                local.peers.len(),
                local.have.map(|have| have.to_string()),
                head.seq,
                fresh.peers.len()
            ));
        }
    }

    fn fresh(&self, node: NodeId, head: &Head<State>) -> Option<Local> {
        let mut fresh = Local { node, ..Local::default() };
        let (mut server, mut client) = (Session::new(node, 0), Client::new(None));
        server.handle(0, client.hello(Vec::new())).ok()?;
        let view = View { epoch: head.epoch, seq: head.seq, state: &head.machine };
        while let Some(output) = server.poll(0, view) {
            let Output::Send(frame) = output else { return None };
            match client.handle(frame) {
                Ok(effect) => effect.into_iter().for_each(|effect| fresh.take(effect)),
                Err(error) => self.ledger.broken(format!("a fresh map of node {node}: {error}")),
            }
        }
        Some(fresh)
    }

    /// Every agent, through any member, from whatever it has.
    pub(super) async fn agents_converge(&self, agents: Vec<Local>) -> Result<(), String> {
        for (agent, mut local) in (0..).zip(agents) {
            for _ in 0..20 {
                let Some(up) = self.any() else { return Err("no member is up".into()) };
                match self.stream(agent, &up, &mut local, 200_000).await {
                    End::Cut => continue,
                    End::Refused if place(&up.member.head().machine, local.node).is_ok() => {
                        return Err(format!("agent {agent} is refused although its node may talk"));
                    }
                    End::Quiet | End::Refused => break,
                }
            }
        }
        Ok(())
    }
}

/// The planted bug.
fn without_tombstones(mut frame: SyncFrame) -> SyncFrame {
    if let Some(Frame::Delta(delta)) = &mut frame.frame {
        delta.removed.clear();
    }
    frame
}

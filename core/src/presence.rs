//! Presence: which nodes are connected, and to which member. In the log, so that every member says the same and it
//! outlives them; no configuration, so that neither a node's revision nor any agent's map knows of it.
//!
//! ```text
//!  stream opens, ends ─► due(state, member, node, open) ─► Report ─► PresenceChanged ─► the node's Presence
//!  member silent, or none any more ──────────────────────► Expire ─┘
//! ```
//! A session is one stay of a node at one member. The newest `online` counts; `offline` counts only for the session
//! that the node has: an agent that moved on is not sent away by the member that it left.

use crate::command::{Actor, Meta};
use crate::id::{MemberId, NodeId, TenantId};
use crate::rejection::Rejection;
use crate::rules::{Fact, Stamp};
use crate::state::{State, TenantState};
use cvlan_proto::v1::{self, event::Body, presence_event::Kind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Transitions of one command.
pub const TRANSITIONS_MAX: usize = 512;

/// A node's last session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// It goes on.
    pub online: bool,
    /// With whom.
    pub member: MemberId,
    /// Which.
    pub session: u64,
    /// Event time of its beginning, or of its end.
    pub since_ms: u64,
}

/// A session that begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Whose.
    pub node: NodeId,
    /// Unique: random, or counted from a random number.
    pub session: u64,
    /// It begins.
    pub online: bool,
}

/// A stream that is open, as the member that has it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its session.
    pub session: u64,
    /// The log took it once: who is said to have the node since then has it.
    pub told: bool,
}

/// Wishes about presence; members' own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PresenceCommand {
    /// What a member's streams say; what is so already, or no longer counts, is left out.
    Report {
        /// Whose nodes.
        tenant: TenantId,
        /// Who says so.
        member: MemberId,
        /// At most [`TRANSITIONS_MAX`].
        transitions: Vec<Transition>,
    },
    /// A member is gone: its sessions end, [`TRANSITIONS_MAX`] a command.
    Expire {
        /// Which.
        member: MemberId,
    },
}

impl State {
    /// A node's last session; `None` where it never had one.
    pub fn presence(&self, node: NodeId) -> Option<&Presence> {
        self.node_find(node)?.0.presence.get(&node)
    }

    /// Nodes that are connected to this member, by id.
    pub fn online_at(&self, member: MemberId) -> impl Iterator<Item = NodeId> + '_ {
        let all = self.online.range((member, NodeId::default())..);
        all.take_while(move |(at, _)| *at == member).map(|(_, node)| *node)
    }

    /// Members that nodes are connected to, by id.
    pub fn online_members(&self) -> Vec<MemberId> {
        let mut found = Vec::new();
        let mut from = Some(0);
        while let Some(id) = from {
            let next = self.online.range((MemberId(id), NodeId::default())..).next().map(|(member, _)| *member);
            found.extend(next);
            from = next.and_then(|member| member.0.checked_add(1));
        }
        found
    }
}

/// The sessions that began and ended with this event; `None` where it is of something else.
pub fn transitions(event: &v1::Event) -> Option<&[v1::PresenceTransition]> {
    match &event.body {
        Some(Body::Presence(e)) => Some(e.kind.as_ref().map_or(&[], |Kind::Changed(changed)| &changed.transitions)),
        _ => None,
    }
}

/// What this member is to tell of a node, and whose the node is; `None` where the state says it, or where it is
/// another member's to say. Asked again whenever a stream or the state changes, it brings both together.
pub fn due(state: &State, member: MemberId, node: NodeId, open: Option<Open>) -> Option<(TenantId, Transition)> {
    let tenant = state.node_tenant(node)?;
    let known = state.presence(node).filter(|p| p.online);
    let (session, online) = match (open, known) {
        (Some(open), Some(p)) if p.member == member => (open.session != p.session).then_some((open.session, true)),
        // It may have moved there: only who has not been heard yet contradicts.
        (Some(open), Some(_)) => (!open.told).then_some((open.session, true)),
        (Some(open), None) => Some((open.session, true)),
        (None, Some(p)) if p.member == member => Some((p.session, false)),
        (None, Some(_) | None) => None,
    }?;
    Some((tenant, Transition { node, session, online }))
}

pub(crate) fn decide(state: &State, meta: &Meta, command: &PresenceCommand) -> Result<Vec<Fact>, Rejection> {
    match meta.actor {
        Actor::System => {}
        Actor::User(..) | Actor::Node(..) | Actor::Token(_) => {
            return Err(Rejection::forbidden("forbidden", "only members say who is connected to them"));
        }
    }
    match command {
        PresenceCommand::Report { tenant, member, transitions } => {
            if transitions.len() > TRANSITIONS_MAX {
                return Err(Rejection::invalid(
                    "too_many_transitions",
                    format!("{} transitions, of at most {TRANSITIONS_MAX} a command", transitions.len()),
                ));
            }
            let counted = state.tenants.get(tenant).map(|home| counted(home, *member, transitions));
            Ok(fact(*tenant, *member, counted.unwrap_or_default()).into_iter().collect())
        }
        PresenceCommand::Expire { member } => {
            let mut ends: BTreeMap<TenantId, Vec<Transition>> = BTreeMap::new();
            for node in state.online_at(*member).take(TRANSITIONS_MAX) {
                if let (Some(tenant), Some(p)) = (state.node_tenant(node), state.presence(node)) {
                    ends.entry(tenant).or_default().push(Transition { node, session: p.session, online: false });
                }
            }
            Ok(ends.into_iter().filter_map(|(tenant, ends)| fact(tenant, *member, ends)).collect())
        }
    }
}

/// Those that change something, each against what those before it made.
fn counted(home: &TenantState, member: MemberId, transitions: &[Transition]) -> Vec<Transition> {
    let mut now: BTreeMap<NodeId, Option<(MemberId, u64)>> = BTreeMap::new();
    let changes = |t: &&Transition| {
        let has = now
            .entry(t.node)
            .or_insert_with(|| home.presence.get(&t.node).filter(|p| p.online).map(|p| (p.member, p.session)));
        let own = *has == Some((member, t.session));
        let counts = home.nodes.contains_key(&t.node) && own != t.online;
        if counts {
            *has = t.online.then_some((member, t.session));
        }
        counts
    };
    transitions.iter().filter(changes).copied().collect()
}

fn fact(tenant: TenantId, member: MemberId, transitions: Vec<Transition>) -> Option<Fact> {
    if transitions.is_empty() {
        return None;
    }
    let transition =
        |t: Transition| v1::PresenceTransition { node_id: t.node.text(), session: t.session, online: t.online };
    let transitions = transitions.into_iter().map(transition).collect();
    let changed = Kind::Changed(v1::PresenceChanged { member_id: member.0, transitions });
    Some(Fact { tenant, body: Body::Presence(v1::PresenceEvent { kind: Some(changed) }) })
}

pub(crate) fn apply(state: &mut State, stamp: Stamp, tenant: TenantId, event: &v1::PresenceEvent) {
    let Some(Kind::Changed(e)) = &event.kind else { return };
    let member = MemberId(e.member_id);
    for t in &e.transitions {
        let presence = Presence { online: t.online, member, session: t.session, since_ms: stamp.time_ms };
        insert(state, tenant, NodeId::of(&t.node_id), presence);
    }
}

/// Puts a node's last session, and what is derived from it, into the state.
pub(crate) fn insert(state: &mut State, tenant: TenantId, node: NodeId, presence: Presence) {
    let Some(home) = state.tenant_mut(tenant).filter(|home| home.nodes.contains_key(&node)) else { return };
    if let Some(before) = home.presence.insert(node, presence).filter(|p| p.online) {
        state.online.remove(&(before.member, node));
    }
    if presence.online {
        state.online.insert((presence.member, node));
    }
}

/// It goes with its node.
pub(crate) fn remove(state: &mut State, tenant: TenantId, node: NodeId) {
    let Some(last) = state.tenant_mut(tenant).and_then(|home| home.presence.remove(&node)) else { return };
    state.online.remove(&(last.member, node));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Wish;
    use crate::given::{World, given, machine, node, tenant, token, user};
    use crate::id::{CvlanId, Seq};
    use crate::machine::Machine as _;
    use crate::map::scopes;
    use crate::node::NodeCommand;
    use crate::rules::Rules;

    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(7);

    fn say(node: NodeId, session: u64, online: bool) -> Transition {
        Transition { node, session, online }
    }

    fn report(member: MemberId, transitions: &[Transition]) -> Wish {
        Wish::Presence(PresenceCommand::Report { tenant: tenant(1), member, transitions: transitions.to_vec() })
    }

    /// Nodes 1 and 2 of tenant 1.
    fn two() -> World {
        let mut w = given();
        w.register(machine(1)).unwrap();
        w.register(machine(2)).unwrap();
        w
    }

    impl World {
        /// How many transitions the event has; 0 = no event.
        fn said(&mut self, member: MemberId, these: &[Transition]) -> usize {
            match self.ok(report(member, these)).as_slice() {
                [] => 0,
                [event] => transitions(event).unwrap().len(),
                more => panic!("{more:?}"),
            }
        }

        fn at(&self, n: u128) -> Option<(MemberId, u64)> {
            self.state.presence(node(n)).filter(|p| p.online).map(|p| (p.member, p.session))
        }
    }

    #[test]
    fn only_the_session_that_a_node_has_can_end_it() {
        let mut w = two();
        // member, session, online; does it change anything, where the node is then
        for (member, session, online, changes, then) in [
            (A, 1, false, false, None),
            (A, 1, true, true, Some((A, 1))),
            (A, 1, true, false, Some((A, 1))),
            (B, 2, true, true, Some((B, 2))),
            // It has left A, which sees that late.
            (A, 1, false, false, Some((B, 2))),
            (A, 2, false, false, Some((B, 2))),
            (B, 3, true, true, Some((B, 3))),
            (B, 2, false, false, Some((B, 3))),
            (B, 3, false, true, None),
            (B, 3, false, false, None),
        ] {
            w.now_ms += 1_000;
            let (seq, now) = (w.seq, w.now_ms);
            assert_eq!(w.said(member, &[say(node(1), session, online)]), usize::from(changes), "{member} {session}");
            assert_eq!((w.at(1), w.seq - seq), (then, u64::from(changes)), "{member} {session} {online}");
            assert!(!changes || w.state.presence(node(1)).unwrap().since_ms == now);
        }
        assert_eq!((w.state.online.len(), w.state.online_members()), (0, vec![]));
    }

    #[test]
    fn a_command_has_one_event_with_what_changes() {
        let mut w = two();
        let both = [say(node(1), 1, true), say(node(2), 2, true), say(node(9), 3, true), say(node(1), 1, true)];
        assert_eq!(w.said(A, &both), 2, "a node that is not there, and one that is online already, are left out");
        assert_eq!(w.state.online_at(A).collect::<Vec<_>>(), [node(1), node(2)]);
        // In one command each is decided after those before it.
        assert_eq!(w.said(B, &[say(node(1), 4, true), say(node(1), 4, false), say(node(1), 1, false)]), 2);
        assert_eq!((w.at(1), w.at(2)), (None, Some((A, 2))));
        let many = vec![say(node(1), 1, true); TRANSITIONS_MAX + 1];
        assert_eq!(w.code(report(A, &many)), "too_many_transitions");
        let elsewhere = PresenceCommand::Report { tenant: tenant(9), member: A, transitions: both.to_vec() };
        assert_eq!(w.ok(Wish::Presence(elsewhere)).len(), 0);
        let others = PresenceCommand::Report { tenant: tenant(2), member: A, transitions: both.to_vec() };
        assert_eq!(w.ok(Wish::Presence(others)).len(), 0, "another tenant's node");
    }

    #[test]
    fn a_lost_members_sessions_end_and_no_other() {
        let mut w = two();
        w.said(A, &[say(node(1), 1, true)]);
        w.said(B, &[say(node(2), 2, true)]);
        assert_eq!(w.state.online_members(), [A, B]);
        let expire = |member| Wish::Presence(PresenceCommand::Expire { member });
        assert_eq!((w.ok(expire(B)).len(), w.ok(expire(B)).len(), w.ok(expire(MemberId(9))).len()), (1, 0, 0));
        assert_eq!((w.at(1), w.at(2), w.state.online_members()), (Some((A, 1)), None, vec![A]));
    }

    #[test]
    fn presence_is_no_configuration_and_goes_with_its_node() {
        let mut w = two();
        let before = w.state.tenants[&tenant(1)].nodes[&node(1)].clone();
        let place = w.state.tenants[&tenant(1)].cvlans[&before.cvlan].clone();
        w.now_ms += 5_000;
        let events = w.ok(report(A, &[say(node(1), 1, true)]));
        let home = &w.state.tenants[&tenant(1)];
        assert_eq!(*home.nodes[&node(1)], *before);
        assert!(!home.cvlans[&CvlanId(before.cvlan.0)].scope.any_after(Seq(w.seq - 1)));
        assert_eq!(home.cvlans[&before.cvlan].scope, place.scope);
        assert_eq!((scopes(&w.state, &events[0]), Rules::touched(&events[0])), (None, vec![]));

        let delete = || Wish::Node(NodeCommand::Delete { tenant: tenant(1), id: node(1) });
        w.ok(delete());
        assert_eq!((w.state.presence(node(1)), w.state.online.len()), (None, 0));
        assert_eq!(w.said(A, &[say(node(1), 1, false)]), 0);
    }

    #[test]
    fn nobody_from_outside_says_who_is_there() {
        for actor in [Actor::User(user(1), String::new()), Actor::Node(node(1), String::new()), Actor::Token(token(1))]
        {
            let mut w = two();
            for wish in [report(A, &[say(node(1), 1, true)]), Wish::Presence(PresenceCommand::Expire { member: A })] {
                assert_eq!(w.when(actor.clone(), wish).unwrap_err().code, "forbidden");
            }
        }
    }

    #[test]
    fn what_a_member_is_to_tell() {
        let open = |session, told| Some(Open { session, told });
        let (on, off) = (|session| Some((session, true)), |session| Some((session, false)));
        // What the state has, what is open at A, what A says.
        for (has, open, says) in [
            (None, None, None),
            (None, open(1, false), on(1)),
            // Expired by mistake.
            (None, open(1, true), on(1)),
            (Some((A, 1)), open(1, false), None),
            (Some((A, 1)), open(2, true), on(2)),
            (Some((A, 1)), None, off(1)),
            // It comes from B; later it has gone there.
            (Some((B, 1)), open(2, false), on(2)),
            (Some((B, 1)), open(2, true), None),
            (Some((B, 1)), None, None),
        ] {
            let mut w = two();
            if let Some((member, session)) = has {
                w.said(member, &[say(node(1), session, true)]);
            }
            let due = due(&w.state, A, node(1), open);
            assert_eq!(
                due,
                says.map(|(session, online)| (tenant(1), say(node(1), session, online))),
                "{has:?} {open:?}"
            );
        }
        assert_eq!(due(&two().state, A, node(9), open(1, false)), None, "no such node");
    }
}

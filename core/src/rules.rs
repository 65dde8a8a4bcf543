//! [`Rules`]: our [`Machine`]. Sends each command and event to its noun, and makes the envelope around every fact.
//!
//! A noun is one file with `decide`, `apply` and `touched`, and one line in each `match` below.

use crate::command::{Actor, Command, Meta, Wish};
use crate::id::{CommandId, CvlanId, MemberId, NodeId, Seq, TenantId, TokenId, UserId};
use crate::machine::{Context, Machine, Once, Sender, SystemFact, Unreadable};
use crate::node::NodeCommand;
use crate::rejection::Rejection;
use crate::state::State;
use crate::{cvlan, forwarded, idempotency, member, node, presence, save, system, tenant, token, user};
use cvlan_proto::v1::{Event, event::Body};
use cvlan_proto::{Message, Timestamp};

/// CVLAN as a deterministic state machine.
#[derive(Clone, Copy, Debug)]
pub enum Rules {}

/// A fact before it has its envelope.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Whose; nil = the cluster's.
    pub(crate) tenant: TenantId,
    pub(crate) body: Body,
}

/// What `apply` needs of the envelope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) seq: Seq,
    pub(crate) time_ms: u64,
}

/// A thing that events touch: views and deltas are keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A tenant.
    Tenant(TenantId),
    /// A CVLAN of a tenant.
    Cvlan(TenantId, CvlanId),
    /// A node of a tenant.
    Node(TenantId, NodeId),
    /// A token of a tenant.
    Token(TenantId, TokenId),
    /// A user of a tenant; nil = global.
    User(TenantId, UserId),
    /// A member of the cluster.
    Member(MemberId),
}

impl Machine for Rules {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Key = Key;

    const LEVEL: u32 = system::HISTORY_LEVEL;

    fn decide(state: &State, ctx: &Context, command: &Command) -> Result<Vec<Event>, Rejection> {
        let meta = &command.meta;
        if let Some(given) = &meta.idempotency {
            idempotency::before(state, &meta.actor, given, ctx.time_ms)?;
        }
        let facts = match &command.wish {
            Wish::System(c) => system::decide(state, ctx, meta, c),
            Wish::Tenant(c) => tenant::decide(state, ctx, meta, c),
            Wish::Cvlan(c) => cvlan::decide(state, ctx, meta, c),
            Wish::Node(c) => node::decide(state, ctx, meta, c),
            Wish::Token(c) => token::decide(state, ctx, meta, c),
            Wish::User(c) => user::decide(state, ctx, meta, c),
            Wish::Member(c) => member::decide(state, ctx, meta, c),
            Wish::Presence(c) => presence::decide(state, meta, c),
        }?;
        if let (Some(_), Some(first)) = (&meta.idempotency, facts.first()) {
            idempotency::room(state, first.tenant, ctx.time_ms)?;
        }
        Ok(envelopes(state, ctx, meta, facts))
    }

    fn weight(command: &Command) -> usize {
        match &command.wish {
            Wish::Node(NodeCommand::Create { devices, .. }) => devices.len(),
            _ => 1,
        }
    }

    fn from_member(command: &Command, from: Sender) -> Result<(), &'static str> {
        forwarded::from_member(command, from)
    }

    fn apply(state: &mut State, event: &Event) {
        let stamp = Stamp { seq: Seq(event.seq), time_ms: Self::time_ms(event) };
        let id = tenant_of(event);
        idempotency::apply(state, stamp, event);
        match &event.body {
            Some(Body::System(e)) => system::apply(state, e),
            Some(Body::Tenant(e)) => tenant::apply(state, stamp, e),
            Some(Body::Cvlan(e)) => cvlan::apply(state, stamp, id, e),
            Some(Body::Node(e)) => node::apply(state, stamp, id, e),
            Some(Body::Token(e)) => token::apply(state, stamp, id, e),
            Some(Body::User(e)) => user::apply(state, stamp, id, e),
            Some(Body::Member(e)) => member::apply(state, stamp, e),
            Some(Body::Presence(e)) => presence::apply(state, stamp, id, e),
            None => {}
        }
        if let Some(home) = state.tenant_mut(id) {
            home.events = event.tenant_seq;
        }
    }

    fn encode(event: &Event, into: &mut Vec<u8>) {
        // A Vec grows as needed, so encoding into it cannot fail.
        let _ = event.encode(into);
    }

    fn encoded_len(event: &Event) -> usize {
        event.encoded_len()
    }

    fn decode(bytes: &[u8]) -> Result<Event, Unreadable> {
        let unreadable = |detail: String| Unreadable { what: "event", detail };
        let event = Event::decode(bytes).map_err(|e| unreadable(e.to_string()))?;
        if known(&event) {
            return Ok(event);
        }
        Err(unreadable(format!(
            "event {} is of a kind that this version does not know; it was written by a newer one",
            event.seq
        )))
    }

    fn seq(event: &Event) -> Seq {
        Seq(event.seq)
    }

    fn time_ms(event: &Event) -> u64 {
        event.time.as_ref().map(timestamp_ms).unwrap_or_default()
    }

    fn once(command: &Command) -> Option<Once> {
        command.meta.once
    }

    fn number(command: &mut Command, once: Once) {
        command.meta.once.get_or_insert(once);
    }

    fn event_once(event: &Event) -> Option<Once> {
        (event.session != 0).then_some(Once { session: event.session, n: event.session_n })
    }

    fn same_command(previous: &Event, next: &Event) -> bool {
        previous.command_id == next.command_id
    }

    fn system(fact: SystemFact, id: [u8; 16]) -> Command {
        let meta = Meta { id: CommandId(uuid::Uuid::from_bytes(id)), actor: Actor::System, ..Meta::default() };
        Command { meta, wish: Wish::System(system::SystemCommand::Fact(fact)) }
    }

    fn event_level(event: &Event) -> Option<u32> {
        match &event.body {
            Some(Body::System(e)) => system::level_of(e),
            _ => None,
        }
    }

    fn history_from(state: &State) -> Seq {
        state.system.history_from.max(Seq(1))
    }

    fn event_fact(event: &Event) -> Option<SystemFact> {
        match &event.body {
            Some(Body::System(e)) => system::fact_of(e),
            _ => None,
        }
    }

    fn touched(event: &Event) -> Vec<Key> {
        let id = tenant_of(event);
        match &event.body {
            Some(Body::System(e)) => system::touched(e),
            Some(Body::Tenant(e)) => tenant::touched(e),
            Some(Body::Cvlan(e)) => cvlan::touched(id, e),
            Some(Body::Node(e)) => node::touched(id, e),
            Some(Body::Token(e)) => token::touched(id, e),
            Some(Body::User(e)) => user::touched(id, e),
            Some(Body::Member(e)) => member::touched(e),
            // No view and no delta has it.
            Some(Body::Presence(_)) | None => Vec::new(),
        }
    }

    fn save(state: &State, into: &mut Vec<u8>) {
        save::save(state, into);
    }

    fn load(bytes: &[u8]) -> Result<State, Unreadable> {
        save::load(bytes)
    }
}

/// Whose event it is; nil = the cluster's.
pub fn tenant_of(event: &Event) -> TenantId {
    TenantId::of(&event.tenant_id)
}

fn known(event: &Event) -> bool {
    match &event.body {
        Some(Body::System(e)) => e.kind.is_some(),
        Some(Body::Tenant(e)) => e.kind.is_some(),
        Some(Body::Cvlan(e)) => e.kind.is_some(),
        Some(Body::Node(e)) => e.kind.is_some(),
        Some(Body::Token(e)) => e.kind.is_some(),
        Some(Body::User(e)) => e.kind.is_some(),
        Some(Body::Member(e)) => e.kind.is_some(),
        Some(Body::Presence(e)) => e.kind.is_some(),
        None => false,
    }
}

fn envelopes(state: &State, ctx: &Context, meta: &Meta, facts: Vec<Fact>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::with_capacity(facts.len());
    // Few: most commands are about one tenant.
    let mut counts: Vec<(TenantId, u64)> = Vec::new();
    for (i, fact) in facts.into_iter().enumerate() {
        let (tenant_id, tenant_seq) = if fact.tenant.is_nil() {
            (String::new(), 0)
        } else {
            let before = || state.tenants.get(&fact.tenant).map_or(0, |t| t.events);
            let seq = match counts.iter_mut().find(|(tenant, _)| *tenant == fact.tenant) {
                Some((_, seq)) => {
                    *seq += 1;
                    *seq
                }
                None => {
                    let seq = before() + 1;
                    counts.push((fact.tenant, seq));
                    seq
                }
            };
            (fact.tenant.text(), seq)
        };
        let once = meta.once.filter(|_| i == 0);
        let given = meta.idempotency.as_ref().filter(|_| i == 0);
        events.push(Event {
            seq: ctx.next_seq.0 + i as u64,
            time: Some(timestamp(ctx.time_ms)),
            tenant_seq,
            tenant_id,
            actor: Some(meta.actor.to_proto()),
            command_id: meta.id.text(),
            request_id: meta.request_id.clone(),
            reason: meta.reason.clone(),
            source: meta.source.clone(),
            idempotency_key: given.map(|g| g.key.clone()).unwrap_or_default(),
            body_hash: given.map(|g| g.body_hash.to_vec()).unwrap_or_default(),
            session: once.map_or(0, |o| o.session),
            session_n: once.map_or(0, |o| o.n),
            body: Some(fact.body),
        });
    }
    events
}

/// `If-Match`: the thing's last change must be the one that the caller saw.
pub(crate) fn fresh(meta: &Meta, revision: Seq) -> Result<(), Rejection> {
    match meta.if_revision {
        Some(seen) if seen != revision.0 => Err(Rejection::stale(
            "revision_mismatch",
            format!("it changed since: its revision is {revision}, you saw {seen}; read it again"),
        )),
        Some(_) | None => Ok(()),
    }
}

/// Milliseconds since 1970 → the wire's form.
pub fn timestamp(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}

/// The wire's form → milliseconds since 1970; anything before counts as 0.
pub fn timestamp_ms(t: &Timestamp) -> u64 {
    u64::try_from(t.seconds)
        .unwrap_or_default()
        .saturating_mul(1000)
        .saturating_add(u64::try_from(t.nanos / 1_000_000).unwrap_or_default())
}

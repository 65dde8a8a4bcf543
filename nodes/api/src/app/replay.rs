//! A request that was carried out before, under the caller's `Idempotency-Key`: what came of it, from the log.
//!
//! ```text
//!  key ─► state: its first event ─► the command's events ─► the thing they are about, as it was after the last of them:
//!                                    unchanged since? the state │ else folded again from its own events, by the audit
//! ```
//! Counts of other things (nodes of a CVLAN) and what is no change of it (presence, roles in Raft) are those of now.

use super::{App, Output};
use crate::problem::Problem;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_core::idempotency::Idempotency;
use cvlan_core::machine::Machine;
use cvlan_core::rules::{Key, tenant_of};
use cvlan_core::{Actor, Rules, State};
use cvlan_projections::AuditQuery;
use cvlan_proto::v1::{Event, event::Body, node_event};
use cvlan_raft::{Head, HistoryError};
use http::StatusCode;
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

/// Events of one thing that are folded for one answer, at most.
const FOLD_MAX: usize = 4096;
/// Events read at once.
const BATCH: usize = 128;

/// What a request came to.
pub struct Past {
    /// Its last event.
    pub at: Checkpoint,
    /// That event's time, milliseconds since 1970.
    pub time_ms: u64,
    /// What it is about.
    pub key: Key,
    /// A state that has the thing as it was then.
    pub state: State,
    /// The state of now.
    pub head: Arc<Head<State>>,
}

impl Past {
    /// The answer of then.
    pub fn output<T>(&self, body: T) -> Output<T> {
        Output { body, at: self.at, time_ms: self.time_ms, revision: None, total: None }
    }
}

/// It was done, but there is nothing left to answer from.
pub fn gone(first: Seq) -> Problem {
    let detail =
        format!("this was carried out as event {first}, but this member cannot say any more what came of it; look");
    Problem::new(StatusCode::GONE, "idempotency_answer_gone", detail)
}

/// The first event of the same request, if it was carried out and this member knows it. `now_ms`: a key that has ended
/// by then is none.
pub fn find(head: &Head<State>, actor: &Actor, given: &Idempotency, now_ms: u64) -> Result<Option<Seq>, Problem> {
    Ok(head.machine.used_keys.seen(actor, given, now_ms)?)
}

/// What the request whose first event this is came to.
pub async fn past(app: &App, first: Seq) -> Result<Past, Problem> {
    let head = app.log.head();
    let events = command(app, first).await?;
    let (Some(event), Some(last)) = (events.first(), events.last()) else { return Err(gone(first)) };
    let key = Rules::touched(event).first().copied().ok_or_else(|| gone(first))?;
    let seq = Seq(last.seq);
    let at = Checkpoint { epoch: head.epoch, seq };
    let unchanged = revision(&head.machine, &key).is_some_and(|revision| revision <= seq);
    let state = if unchanged { head.machine.clone() } else { folded(app, event, &key, at, first).await? };
    Ok(Past { at, time_ms: Rules::time_ms(last), key, state, head })
}

/// All events of the request whose first one this is.
pub async fn all(app: &App, first: Seq) -> Result<Output<Vec<Event>>, Problem> {
    let (epoch, events) = (app.log.head().epoch, command(app, first).await?);
    let last = events.last().ok_or_else(|| gone(first))?;
    let (at, time_ms) = (Checkpoint { epoch, seq: Seq(last.seq) }, Rules::time_ms(last));
    Ok(Output { body: events, at, time_ms, revision: None, total: None })
}

/// The events of a command.
async fn command(app: &App, first: Seq) -> Result<Vec<Event>, Problem> {
    let (mut from, mut found): (Seq, Vec<Event>) = (first, Vec::new());
    loop {
        let page = match app.log.history(from, BATCH).await {
            Err(HistoryError::Gone { .. }) => return Err(gone(first)),
            page => page?,
        };
        for (seq, bytes) in &page {
            let event = Rules::decode(bytes).map_err(Problem::internal)?;
            if found.last().is_some_and(|before| !Rules::same_command(before, &event)) {
                return Ok(found);
            }
            found.push(event);
            from = Seq(seq.0 + 1);
        }
        if page.is_empty() {
            return Ok(found);
        }
    }
}

/// The thing's last change.
fn revision(state: &State, key: &Key) -> Option<Seq> {
    let home = |tenant| state.tenants.get(tenant);
    match key {
        Key::Tenant(id) => home(id).map(|t| t.record.revision),
        Key::Cvlan(t, id) => home(t).and_then(|t| t.cvlans.get(id)).map(|c| c.record.revision),
        Key::Node(t, id) => home(t).and_then(|t| t.nodes.get(id)).map(|n| n.revision),
        Key::Token(t, id) => home(t).and_then(|t| t.tokens.get(id)).map(|t| t.revision),
        Key::User(_, id) => state.users.get(id).map(|u| u.revision),
        Key::Member(id) => state.members.get(id).map(|m| m.revision),
    }
}

/// Noun and id, as the audit has them.
fn subject(key: &Key) -> (&'static str, Uuid) {
    match key {
        Key::Tenant(id) => ("tenant", id.0),
        Key::Cvlan(_, id) => ("cvlan", id.0),
        Key::Node(_, id) => ("node", id.0),
        Key::Token(_, id) => ("token", id.0),
        Key::User(_, id) => ("user", id.0),
        Key::Member(id) => ("member", id.uuid()),
    }
}

/// A state of the thing and what it is in, folded from their own events up to `at`.
async fn folded(app: &App, event: &Event, key: &Key, at: Checkpoint, first: Seq) -> Result<State, Problem> {
    app.views.reach(at).await?;
    let mut events = of_thing(app, key, at.seq, first).await?;
    let tenant = tenant_of(event);
    if !tenant.is_nil() && !matches!(key, Key::Tenant(_) | Key::User(..)) {
        events.extend(of_thing(app, &Key::Tenant(tenant), at.seq, first).await?);
    }
    let cvlan = events.iter().find_map(|(_, event)| match &event.body {
        Some(Body::Node(n)) => match &n.kind {
            Some(node_event::Kind::Created(created)) => Some(created.cvlan_id.parse()),
            _ => None,
        },
        _ => None,
    });
    if let (Key::Node(..), Some(Ok(cvlan))) = (key, cvlan) {
        events.extend(of_thing(app, &Key::Cvlan(tenant, cvlan), at.seq, first).await?);
    }
    events.sort_by_key(|(seq, _)| *seq);
    let mut state = State::default();
    events.iter().for_each(|(_, event)| Rules::apply(&mut state, event));
    Ok(state)
}

/// Events about one thing, up to `last`, oldest first.
async fn of_thing(app: &App, key: &Key, last: Seq, first: Seq) -> Result<Vec<(Seq, Event)>, Problem> {
    let (noun, id) = subject(key);
    let mut seqs: BTreeSet<Seq> = BTreeSet::new();
    let mut from = Some(Seq(1));
    while let Some(start) = from.filter(|start| *start <= last) {
        let limit = cvlan_projections::LIMIT_MAX;
        let query = AuditQuery {
            noun: noun.to_owned(),
            id: Some(id),
            from: start,
            oldest_first: true,
            limit,
            ..AuditQuery::default()
        };
        let page = app.views.read(move |v| v.audit(&query)).await?;
        seqs.extend(page.seqs.iter().copied().filter(|seq| *seq <= last));
        if seqs.len() > FOLD_MAX {
            return Err(gone(first));
        }
        from = page.next;
    }
    let mut events = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let page = match app.log.history(seq, 1).await {
            Err(HistoryError::Gone { .. }) => return Err(gone(first)),
            page => page?,
        };
        for (seq, bytes) in page {
            events.push((seq, Rules::decode(&bytes).map_err(Problem::internal)?));
        }
    }
    Ok(events)
}

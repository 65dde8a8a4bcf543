//! Table `audit`: which event touched what. Bodies are read from the log. Presence is in the log alone: it would drown
//! the rest.
//!
//! The only fold over events. It covers a range of the log that ends at the view's checkpoint and grows backwards after
//! a rebuild; answers say where it starts.

use crate::error::Error;
use crate::list::{Ask, LIMIT_DEFAULT, LIMIT_MAX, Sql};
use crate::table::{Cell, Kind, Table, Tables, Value, int, no_status};
use cvlan_core::Rules;
use cvlan_core::id::{Checkpoint, Seq, TenantId};
use cvlan_core::machine::Machine;
use cvlan_core::rules::{Key, tenant_of};
use cvlan_proto::v1::{self, Event, event::Body};
use std::sync::OnceLock;
use uuid::Uuid;

pub(crate) static TABLE: Table = Table {
    name: "audit",
    columns: &[
        ("seq", Kind::Int),
        ("tenant", Kind::Id),
        ("actor", Kind::IdOrNull),
        ("noun", Kind::Text),
        // A member's id is its number in 16 bytes.
        ("id", Kind::IdOrNull),
        ("kind", Kind::Text),
        ("time_ms", Kind::Int),
    ],
    indexes: &[
        ("audit_by_tenant", "(tenant, seq)"),
        ("audit_by_id", "(id, seq) WHERE id IS NOT NULL"),
        ("audit_by_actor", "(actor, seq) WHERE actor IS NOT NULL"),
    ],
    once: true,
    home: "tenant",
    sorts: &[("seq", "seq")],
    by_cvlan: false,
    status: no_status,
    texts: OnceLock::new(),
};

/// What of the audit is asked for. `Default` = the newest of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only this tenant's; nil = only the cluster's own.
    pub tenant: Option<TenantId>,
    /// Only this noun's: system, tenant, cvlan, node, token, user, member. Empty = all.
    pub noun: String,
    /// Only events about this thing.
    pub id: Option<Uuid>,
    /// Only what this user, node or token did.
    pub actor: Option<Uuid>,
    /// Start here; 0 = at the end that the order starts from.
    pub from: Seq,
    /// Oldest first; else newest first.
    pub oldest_first: bool,
    /// Events, at most [`LIMIT_MAX`]; 0 = [`LIMIT_DEFAULT`].
    pub limit: usize,
}

/// One page of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditPage {
    /// The events' numbers, in the order asked for.
    pub seqs: Vec<Seq>,
    /// Goes into the next [`AuditQuery::from`]; `None` = this was the last page.
    pub next: Option<Seq>,
    /// The first event that the audit knows of; 1 = it is complete.
    pub complete_from: Seq,
    /// How fresh the page is.
    pub checkpoint: Checkpoint,
}

/// Adds one event; `about` is the first thing that it touches.
pub(crate) fn insert(tables: &mut impl Tables, event: &Event, about: Option<&Key>) -> Result<(), Error> {
    if matches!(event.body, Some(Body::Presence(_))) {
        return Ok(());
    }
    let (noun, kind) = kind_of(event);
    let actor = event.actor.as_ref().and_then(|a| Uuid::parse_str(&a.id).ok());
    let row: [Cell<'_>; 7] = [
        event.seq.into(),
        tenant_of(event).0.into(),
        actor.into(),
        noun.into(),
        about.map(subject).into(),
        kind.into(),
        Rules::time_ms(event).into(),
    ];
    tables.put(&TABLE, &row)
}

/// One page.
pub(crate) fn page(db: &impl Ask, query: &AuditQuery) -> Result<AuditPage, Error> {
    let limit = if query.limit == 0 { LIMIT_DEFAULT } else { query.limit.min(LIMIT_MAX) };
    let mut seqs = Vec::new();
    db.ask(&statement(query, limit), &mut |row| {
        seqs.push(Seq(row.number()?));
        Ok(true)
    })?;
    let next = if seqs.len() > limit { seqs.pop() } else { None };
    let (checkpoint, complete_from) = crate::meta::read(db)?;
    Ok(AuditPage { seqs, next, complete_from, checkpoint })
}

pub(crate) fn statement(query: &AuditQuery, limit: usize) -> Sql {
    let mut sql = Sql { text: "SELECT seq FROM audit WHERE seq ".to_owned(), args: Vec::new() };
    sql.push(if query.oldest_first { ">= " } else { "<= " });
    let from = if query.from.0 == 0 && !query.oldest_first { u64::MAX } else { query.from.0 };
    sql.arg(Value::Int(int(from)));
    if let Some(tenant) = query.tenant {
        sql.push(" AND tenant = ");
        sql.arg(Value::Bytes(tenant.0.as_bytes().to_vec()));
    }
    if !query.noun.is_empty() {
        sql.push(" AND noun = ");
        sql.arg(Value::Text(query.noun.clone()));
    }
    for (column, id) in [("id", query.id), ("actor", query.actor)] {
        if let Some(id) = id {
            sql.push(&format!(" AND {column} = "));
            sql.arg(Value::Bytes(id.as_bytes().to_vec()));
        }
    }
    sql.push(if query.oldest_first { " ORDER BY seq LIMIT " } else { " ORDER BY seq DESC LIMIT " });
    sql.arg(Value::Int(int(limit as u64 + 1)));
    sql
}

/// The thing that the event is about: the first that it touches.
fn subject(key: &Key) -> Uuid {
    match key {
        Key::Tenant(id) => id.0,
        Key::Cvlan(_, id) => id.0,
        Key::Node(_, id) => id.0,
        Key::Token(_, id) => id.0,
        Key::User(_, id) => id.0,
        Key::Member(id) => id.uuid(),
    }
}

/// Noun and verb of an event; an event kind that this version does not know never gets here.
fn kind_of(event: &Event) -> (&'static str, &'static str) {
    use v1::{
        cvlan_event as c, member_event as m, node_event as n, presence_event as p, system_event as s,
        tenant_event as t, token_event as k, user_event as u,
    };
    let Some(body) = &event.body else { return ("", "") };
    match body {
        Body::System(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                s::Kind::Bootstrapped(_) => "bootstrapped",
                s::Kind::CheckpointOpened(_) => "checkpoint_opened",
                s::Kind::Checkpointed(_) => "checkpointed",
                s::Kind::AdvertisementChanged(_) => "advertisement_changed",
                s::Kind::EpochBegun(_) => "epoch_begun",
                s::Kind::HistoryTrimmed(_) => "history_trimmed",
                s::Kind::FeatureLevelRaised(_) => "feature_level_raised",
            });
            ("system", verb.unwrap_or_default())
        }
        Body::Tenant(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                t::Kind::Created(_) => "created",
                t::Kind::Updated(_) => "updated",
                t::Kind::Deleted(_) => "deleted",
            });
            ("tenant", verb.unwrap_or_default())
        }
        Body::Cvlan(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                c::Kind::Created(_) => "created",
                c::Kind::Updated(_) => "updated",
                c::Kind::Deleted(_) => "deleted",
            });
            ("cvlan", verb.unwrap_or_default())
        }
        Body::Node(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                n::Kind::Created(_) => "created",
                n::Kind::Updated(_) => "updated",
                n::Kind::Deleted(_) => "deleted",
                n::Kind::EndpointsChanged(_) => "endpoints_changed",
            });
            ("node", verb.unwrap_or_default())
        }
        Body::Token(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                k::Kind::Created(_) => "created",
                k::Kind::Deleted(_) => "deleted",
            });
            ("token", verb.unwrap_or_default())
        }
        Body::User(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                u::Kind::Created(_) => "created",
                u::Kind::PasswordChanged(_) => "password_changed",
                u::Kind::Deleted(_) => "deleted",
            });
            ("user", verb.unwrap_or_default())
        }
        Body::Presence(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                p::Kind::Changed(_) => "changed",
            });
            ("presence", verb.unwrap_or_default())
        }
        Body::Member(e) => {
            let verb = e.kind.as_ref().map(|kind| match kind {
                m::Kind::Admitted(_) => "admitted",
                m::Kind::Joined(_) => "joined",
                m::Kind::Removed(_) => "removed",
            });
            ("member", verb.unwrap_or_default())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{Lists, World, both};

    #[test]
    fn every_shape_prepares() {
        let mut db = rusqlite::Connection::open_in_memory().unwrap();
        crate::sqlite::create(&mut db).unwrap();
        shapes().iter().for_each(|sql| crate::list::tests::prepares(&db, sql));
    }

    /// All that can be asked of the audit.
    pub(crate) fn shapes() -> Vec<String> {
        let shape = |bits: u32| {
            let some = |bit: u32| (bits & bit != 0).then_some(Uuid::nil());
            let query = AuditQuery {
                tenant: some(1).map(TenantId),
                noun: if bits & 2 != 0 { "node".into() } else { String::new() },
                id: some(4),
                actor: some(8),
                oldest_first: bits & 16 != 0,
                ..AuditQuery::default()
            };
            statement(&query, 9).text
        };
        (0..32).map(shape).collect()
    }

    fn audited(event: &Event) -> bool {
        !matches!(event.body, Some(Body::Presence(_)))
    }

    #[test]
    fn pages_are_what_the_log_says() {
        let world = World::new(21, 400);
        assert!(!world.events.iter().all(audited));
        let folder = tempfile::tempdir().unwrap();
        for views in both(&world, folder.path()) {
            pages(&world, &*views);
        }
    }

    fn pages(world: &World, views: &dyn Lists) {
        let tenant = *world.state.tenants.keys().next().unwrap();
        let node = *world.state.tenants.values().find_map(|t| t.nodes.keys().next()).unwrap();
        let by = |e: &Event| e.actor.as_ref().and_then(|a| Uuid::parse_str(&a.id).ok());
        let token = world.events.iter().find_map(by).unwrap();

        type Fits = Box<dyn Fn(&Event) -> bool>;
        let cases: [(AuditQuery, Fits); 6] = [
            (AuditQuery::default(), Box::new(audited)),
            (
                AuditQuery { tenant: Some(tenant), ..AuditQuery::default() },
                Box::new(move |e| audited(e) && tenant_of(e) == tenant),
            ),
            (
                AuditQuery { tenant: Some(TenantId::default()), ..AuditQuery::default() },
                Box::new(|e| e.tenant_id.is_empty()),
            ),
            (
                AuditQuery { noun: "node".into(), ..AuditQuery::default() },
                Box::new(|e| matches!(e.body, Some(Body::Node(_)))),
            ),
            (
                AuditQuery { id: Some(node.0), ..AuditQuery::default() },
                Box::new(move |e| Rules::touched(e).first().map(subject) == Some(node.0)),
            ),
            (AuditQuery { actor: Some(token), ..AuditQuery::default() }, Box::new(move |e| by(e) == Some(token))),
        ];
        for (query, fits) in cases {
            for oldest_first in [true, false] {
                for limit in [1, 7, 1000] {
                    let mut wanted: Vec<_> = world.events.iter().filter(|e| fits(e)).map(|e| Seq(e.seq)).collect();
                    if !oldest_first {
                        wanted.reverse();
                    }
                    let (mut found, mut query) = (Vec::new(), AuditQuery { oldest_first, limit, ..query.clone() });
                    loop {
                        let page = views.audit(&query).unwrap();
                        assert!(page.seqs.len() <= limit);
                        assert_eq!(page.complete_from, Seq(1));
                        found.extend(page.seqs);
                        let Some(next) = page.next else { break };
                        query.from = next;
                    }
                    assert_eq!(found, wanted, "{query:?}");
                }
            }
        }
    }

    #[test]
    fn every_kind_of_event_has_a_noun_and_a_verb() {
        let world = World::new(31, 800);
        let kinds: std::collections::BTreeSet<_> = world.events.iter().map(kind_of).collect();
        assert!(kinds.len() >= 17, "{kinds:?}");
        assert!(kinds.contains(&("member", "joined")), "{kinds:?}");
        assert!(kinds.iter().all(|(noun, verb)| !noun.is_empty() && !verb.is_empty()), "{kinds:?}");
        let subjectless = world.events.iter().filter(|e| Rules::touched(e).is_empty());
        assert!(subjectless.into_iter().all(|e| matches!(e.body, Some(Body::System(_) | Body::Presence(_)))));
    }
}

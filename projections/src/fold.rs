//! Bringing the tables from one checkpoint to the next.
//!
//! Rows come from the state, never from an event: for each touched key the row is written as the state has it, or
//! deleted. `rebuild` is the same for all keys. Every change of the tables also moves `meta`, which holds the checkpoint
//! and fences: it must still be where the writer left it.

use crate::error::Error;
use crate::table::int;
use crate::{audit, cvlan, node, tenant, token, user};
use cvlan_core::id::{Checkpoint, Epoch, Seq, TenantId};
use cvlan_core::machine::Machine;
use cvlan_core::rules::Key;
use cvlan_core::{Rules, State};
use cvlan_proto::v1::Event;
use rusqlite::{Connection, params};
use std::collections::BTreeSet;

const META_DDL: &str = "
CREATE TABLE meta (
  one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1), schema INTEGER NOT NULL, epoch BLOB NOT NULL, seq INTEGER NOT NULL,
  audit_from INTEGER NOT NULL
);
";
const DDLS: [&str; 7] = [META_DDL, tenant::DDL, cvlan::DDL, node::DDL, token::DDL, user::DDL, audit::DDL];

pub(crate) const META_READ: &str = "SELECT epoch, seq, audit_from FROM meta WHERE one = 1";
pub(crate) const META_SCHEMA: &str = "SELECT schema FROM meta WHERE one = 1";
pub(crate) const META_CREATE: &str = "INSERT INTO meta (one, schema, epoch, seq, audit_from) VALUES (1, $1, $2, 0, 1)";
pub(crate) const META_MOVE: &str =
    "UPDATE meta SET epoch = $1, seq = $2, audit_from = $3 WHERE epoch = $4 AND seq = $5";
/// Nothing of a tenant outlives it: its tokens may be left when it goes.
pub(crate) const TENANT_SWEEP: [&str; 4] = [
    "DELETE FROM cvlans WHERE tenant = $1",
    "DELETE FROM nodes WHERE tenant = $1",
    "DELETE FROM tokens WHERE tenant = $1",
    "DELETE FROM users WHERE tenant = $1",
];
pub(crate) const CLEAR: [&str; 6] = [
    "DELETE FROM tenants",
    "DELETE FROM cvlans",
    "DELETE FROM nodes",
    "DELETE FROM tokens",
    "DELETE FROM users",
    "DELETE FROM audit",
];

/// The tables' version: FNV-1a over their text, so that no change of it is forgotten.
pub(crate) fn schema() -> i64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = DDLS.iter().flat_map(|ddl| ddl.bytes()).fold(0xcbf2_9ce4_8422_2325, fnv);
    int(hash >> 1)
}

/// Makes the tables, at checkpoint 0 of no epoch.
pub(crate) fn create(db: &mut Connection) -> Result<(), Error> {
    let tx = db.transaction()?;
    for ddl in DDLS {
        tx.execute_batch(ddl)?;
    }
    tx.execute(META_CREATE, params![schema(), Epoch::default().0])?;
    Ok(tx.commit()?)
}

/// The checkpoint, and the first event that the audit knows of.
pub(crate) fn meta(db: &Connection) -> rusqlite::Result<(Checkpoint, Seq)> {
    let seq = |n: i64| Seq(u64::try_from(n).unwrap_or_default());
    db.prepare_cached(META_READ)?
        .query_row([], |row| Ok((Checkpoint { epoch: Epoch(row.get(0)?), seq: seq(row.get(1)?) }, seq(row.get(2)?))))
}

/// Moves the checkpoint from where this writer left it.
fn meta_move(db: &Connection, was: Checkpoint, to: Checkpoint, audit_from: Seq) -> Result<(), Error> {
    let args = params![to.epoch.0, int(to.seq.0), int(audit_from.0), was.epoch.0, int(was.seq.0)];
    match db.prepare_cached(META_MOVE)?.execute(args)? {
        1 => Ok(()),
        _ => Err(Error::Fenced),
    }
}

/// Folds the events that follow `was`; `state` is at or after the last of them.
pub(crate) fn fold(
    db: &mut Connection,
    was: Checkpoint,
    state: &State,
    events: &[&Event],
) -> Result<Checkpoint, Error> {
    let mut to = was;
    let tx = db.transaction()?;
    let mut keys = BTreeSet::new();
    for event in events {
        if event.seq != to.seq.0 + 1 {
            return Err(Error::Gap { needed: Seq(to.seq.0 + 1), given: Seq(event.seq) });
        }
        to.seq = Seq(event.seq);
        let touched = Rules::touched(event);
        audit::insert(&tx, event, touched.first())?;
        keys.extend(touched);
    }
    for key in keys {
        write(&tx, state, key)?;
    }
    let (_, audit_from) = meta(&tx)?;
    meta_move(&tx, was, to, audit_from)?;
    tx.commit()?;
    Ok(to)
}

/// Writes everything anew; the audit starts after `to`.
pub(crate) fn rebuild(db: &mut Connection, was: Checkpoint, state: &State, to: Checkpoint) -> Result<(), Error> {
    let tx = db.transaction()?;
    for sql in CLEAR {
        tx.execute(sql, [])?;
    }
    tenant::rows(state).try_for_each(|row| tenant::upsert(&tx, row).map(drop))?;
    cvlan::rows(state).try_for_each(|row| cvlan::upsert(&tx, row).map(drop))?;
    node::rows(state).try_for_each(|row| node::upsert(&tx, row).map(drop))?;
    token::rows(state).try_for_each(|row| token::upsert(&tx, row).map(drop))?;
    user::rows(state).try_for_each(|row| user::upsert(&tx, row).map(drop))?;
    meta_move(&tx, was, to, Seq(to.seq.0 + 1))?;
    Ok(tx.commit()?)
}

/// Adds events to the audit that come right before its first one. Returns the new first one.
pub(crate) fn backfill(db: &mut Connection, was: Checkpoint, events: &[Event]) -> Result<Seq, Error> {
    let tx = db.transaction()?;
    let (_, mut from) = meta(&tx)?;
    for event in events.iter().rev() {
        if event.seq + 1 != from.0 {
            return Err(Error::Gap { needed: Seq(from.0.saturating_sub(1)), given: Seq(event.seq) });
        }
        audit::insert(&tx, event, Rules::touched(event).first())?;
        from = Seq(event.seq);
    }
    meta_move(&tx, was, was, from)?;
    tx.commit()?;
    Ok(from)
}

/// Writes or deletes the row of one key, as the state has it.
fn write(db: &Connection, state: &State, key: Key) -> rusqlite::Result<usize> {
    let delete = |sql: &str, id: uuid::Uuid| db.prepare_cached(sql)?.execute([id.as_bytes()]);
    match key {
        Key::Tenant(id) => match tenant::row(state, id) {
            Some(row) => tenant::upsert(db, row),
            None => sweep(db, id).and(delete(tenant::DELETE, id.0)),
        },
        Key::Cvlan(home, id) => match cvlan::row(state, home, id) {
            Some(row) => cvlan::upsert(db, row),
            None => delete(cvlan::DELETE, id.0),
        },
        Key::Node(home, id) => match node::row(state, home, id) {
            Some(row) => node::upsert(db, row),
            None => delete(node::DELETE, id.0),
        },
        Key::Token(home, id) => match token::row(state, home, id) {
            Some(row) => token::upsert(db, row),
            None => delete(token::DELETE, id.0),
        },
        Key::User(home, id) => match user::row(state, home, id) {
            Some(row) => user::upsert(db, row),
            None => delete(user::DELETE, id.0),
        },
        // A few, read from the state: they have no table.
        Key::Member(_) => Ok(0),
    }
}

fn sweep(db: &Connection, tenant: TenantId) -> rusqlite::Result<()> {
    TENANT_SWEEP.iter().try_for_each(|sql| db.prepare_cached(sql)?.execute([tenant.0.as_bytes()]).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Views;
    use crate::testing::{World, agree, dump};
    use proptest::prelude::*;

    fn folded(world: &World, path: &std::path::Path, mut sizes: impl FnMut() -> usize) -> Views {
        let views = Views::open(path).unwrap();
        let (empty, mut at) = world.at(0);
        views.rebuild(&empty, at).unwrap();
        while at.seq < world.checkpoint().seq {
            let end = (at.seq.0 as usize + 1 + sizes()).min(world.events.len());
            let events: Vec<&Event> = world.events[at.seq.0 as usize..end].iter().collect();
            at = views.fold(&world.at(end).0, &events).unwrap();
        }
        views
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_kept_view_is_a_rebuilt_one(seed in any::<u64>(), sizes in any::<u64>()) {
            let mut world = World::new(seed, 150);
            let folder = tempfile::tempdir().unwrap();
            let (kept, rebuilt) = (folder.path().join("kept.db"), folder.path().join("rebuilt.db"));
            let mut dice = World::new(sizes, 0);
            let views = folded(&world, &kept, || dice.below(30) as usize);
            world.now_ms += world.below(600_000);
            agree(&views, &world.state, world.now_ms);

            let views = Views::open(&rebuilt).unwrap();
            views.rebuild(&world.state, world.checkpoint()).unwrap();
            views.audit_backfill(&world.events[world.events.len() / 2..]).unwrap();
            prop_assert_eq!(views.audit_from().unwrap().0, world.events.len() as u64 / 2 + 1);
            views.audit_backfill(&world.events[..world.events.len() / 2]).unwrap();
            prop_assert_eq!(dump(&kept), dump(&rebuilt));
        }
    }

    #[test]
    fn a_state_ahead_of_the_events_is_caught_up_with() {
        // Replaying the log folds old events against the newest state: the end is the same.
        let world = World::new(5, 200);
        let folder = tempfile::tempdir().unwrap();
        let (early, ahead) = (folder.path().join("early.db"), folder.path().join("ahead.db"));
        folded(&world, &early, || 9);
        let views = Views::open(&ahead).unwrap();
        views.rebuild(&State::default(), world.at(0).1).unwrap();
        for events in world.events.chunks(9) {
            views.fold(&world.state, &events.iter().collect::<Vec<_>>()).unwrap();
        }
        assert_eq!(dump(&early), dump(&ahead));
    }

    #[test]
    fn nothing_of_a_tenant_outlives_it() {
        let mut world = World::new(1, 0);
        let tenant = *world.state.tenants.keys().next().unwrap();
        world.token_left_behind(tenant);
        assert_eq!(world.state.tenants[&tenant].tokens.len(), 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let views = folded(&world, &path, || 0);
        let tokens = || dump(&path).iter().filter(|row| row.starts_with("tokens")).count();
        assert_eq!(tokens(), 1);
        let before = world.events.len();
        assert!(world.run(cvlan_core::Wish::Tenant(cvlan_core::tenant::TenantCommand::Delete { id: tenant })));
        views.fold(&world.state, &world.events[before..].iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(tokens(), 0);
    }

    #[test]
    fn missing_events_are_refused_and_nothing_is_written() {
        let world = World::new(1, 60);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let views = Views::open(&path).unwrap();
        views.fold(&world.state, &world.events[..10].iter().collect::<Vec<_>>()).unwrap();
        let before = dump(&path);
        for bad in [&world.events[11..], &world.events[9..12], &[world.events[10].clone(), world.events[12].clone()]] {
            let error = views.fold(&world.state, &bad.iter().collect::<Vec<_>>()).unwrap_err();
            assert_eq!(error.code(), "view_gap");
            assert_eq!(dump(&path), before);
        }
        assert_eq!(views.audit_backfill(&world.events[..1]).unwrap_err().code(), "view_gap");
        assert_eq!(dump(&path), before);
    }

    #[test]
    fn two_writers_cannot_both_move_the_checkpoint() {
        let world = World::new(1, 60);
        let folder = tempfile::tempdir().unwrap();
        let mut db = Connection::open(folder.path().join("views.db")).unwrap();
        create(&mut db).unwrap();
        let start = Checkpoint::default();
        fold(&mut db, start, &world.state, &[&world.events[0]]).unwrap();
        assert_eq!(fold(&mut db, start, &world.state, &[&world.events[0]]).unwrap_err().code(), "view_fenced");
    }

    #[test]
    fn no_secret_is_in_a_view() {
        let world = World::new(3, 200);
        let folder = tempfile::tempdir().unwrap();
        folded(&world, &folder.path().join("views.db"), || 20);
        assert!(world.state.users.values().any(|u| u.password_hash.contains("argon2id")));
        assert!(!dump(&folder.path().join("views.db")).iter().any(|row| row.contains("argon2id")));
    }

    #[test]
    fn every_statement_prepares_with_ascending_arguments() {
        let mut db = Connection::open_in_memory().unwrap();
        create(&mut db).unwrap();
        let mut all = vec![META_READ, META_SCHEMA, META_CREATE, META_MOVE, audit::INSERT];
        all.extend(TENANT_SWEEP);
        all.extend(CLEAR);
        all.extend([tenant::UPSERT, cvlan::UPSERT, node::UPSERT, token::UPSERT, user::UPSERT]);
        all.extend([tenant::DELETE, cvlan::DELETE, node::DELETE, token::DELETE, user::DELETE]);
        all.into_iter().for_each(|sql| crate::list::tests::prepares(&db, sql));
    }
}

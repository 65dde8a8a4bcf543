//! What changes between two checkpoints, for whichever database writes it.
//!
//! Rows come from the state, never from an event: for each touched key the row is written as the state has it, or
//! deleted. [`all`] is the same for all keys. The database does each of these in one transaction that also moves `meta`.

use crate::error::Error;
use crate::table::Tables;
use crate::{audit, cvlan, node, tenant, token, user};
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_core::machine::Machine;
use cvlan_core::rules::Key;
use cvlan_core::{Rules, State};
use cvlan_proto::v1::Event;
use std::collections::BTreeSet;

/// Folds the events that follow `was`; `state` is at or after the last of them. Returns where that is.
pub(crate) fn fold(
    tables: &mut impl Tables,
    was: Checkpoint,
    state: &State,
    events: &[&Event],
) -> Result<Checkpoint, Error> {
    let mut to = was;
    let mut keys = BTreeSet::new();
    for event in events {
        if event.seq != to.seq.0 + 1 {
            return Err(Error::Gap { needed: Seq(to.seq.0 + 1), given: Seq(event.seq) });
        }
        to.seq = Seq(event.seq);
        let touched = Rules::touched(event);
        audit::insert(tables, event, touched.first())?;
        keys.extend(touched);
    }
    keys.into_iter().try_for_each(|key| write(tables, state, key))?;
    Ok(to)
}

/// Every row of the state.
pub(crate) fn all(tables: &mut impl Tables, state: &State) -> Result<(), Error> {
    tenant::rows(state).try_for_each(|row| tables.put(&tenant::TABLE, &tenant::cells(row)))?;
    cvlan::rows(state).try_for_each(|row| tables.put(&cvlan::TABLE, &cvlan::cells(row)))?;
    node::rows(state).try_for_each(|row| tables.put(&node::TABLE, &node::cells(row)))?;
    token::rows(state).try_for_each(|row| tables.put(&token::TABLE, &token::cells(row)))?;
    user::rows(state).try_for_each(|row| tables.put(&user::TABLE, &user::cells(row)))
}

/// Adds events to the audit that come right before `from`, its first one. Returns the new first one.
pub(crate) fn backfill(tables: &mut impl Tables, mut from: Seq, events: &[Event]) -> Result<Seq, Error> {
    for event in events.iter().rev() {
        if event.seq + 1 != from.0 {
            return Err(Error::Gap { needed: Seq(from.0.saturating_sub(1)), given: Seq(event.seq) });
        }
        audit::insert(tables, event, Rules::touched(event).first())?;
        from = Seq(event.seq);
    }
    Ok(from)
}

/// Writes or deletes the row of one key, as the state has it.
fn write(tables: &mut impl Tables, state: &State, key: Key) -> Result<(), Error> {
    match key {
        Key::Tenant(id) => match tenant::row(state, id) {
            Some(row) => tables.put(&tenant::TABLE, &tenant::cells(row)),
            None => {
                // Nothing of a tenant outlives it: its tokens may be left when it goes.
                for table in [&cvlan::TABLE, &node::TABLE, &token::TABLE, &user::TABLE] {
                    tables.sweep(table, id.0)?;
                }
                tables.take(&tenant::TABLE, id.0)
            }
        },
        Key::Cvlan(home, id) => match cvlan::row(state, home, id) {
            Some(row) => tables.put(&cvlan::TABLE, &cvlan::cells(row)),
            None => tables.take(&cvlan::TABLE, id.0),
        },
        Key::Node(home, id) => match node::row(state, home, id) {
            Some(row) => tables.put(&node::TABLE, &node::cells(row)),
            None => tables.take(&node::TABLE, id.0),
        },
        Key::Token(home, id) => match token::row(state, home, id) {
            Some(row) => tables.put(&token::TABLE, &token::cells(row)),
            None => tables.take(&token::TABLE, id.0),
        },
        Key::User(home, id) => match user::row(state, home, id) {
            Some(row) => tables.put(&user::TABLE, &user::cells(row)),
            None => tables.take(&user::TABLE, id.0),
        },
        // A few, read from the state: they have no table.
        Key::Member(_) => Ok(()),
    }
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
    fn no_secret_is_in_a_view() {
        let world = World::new(3, 200);
        let folder = tempfile::tempdir().unwrap();
        folded(&world, &folder.path().join("views.db"), || 20);
        assert!(world.state.users.values().any(|u| u.password_hash.contains("argon2id")));
        assert!(!dump(&folder.path().join("views.db")).iter().any(|row| row.contains("argon2id")));
    }
}

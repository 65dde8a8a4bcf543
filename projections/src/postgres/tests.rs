//! On a real server.

use super::testing::{Database, LONG, Server};
use super::*;
use crate::testing::{World, dump, statements};
use crate::writer::{History, Past, Writer};
use crate::{Views, meta};
use cvlan_core::id::TenantId;
use proptest::test_runner::{Config, TestRunner};
use std::time::{Duration, Instant};

/// What a view of the whole world must be.
fn whole(world: &World) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.db");
    let views = Views::open(&path).unwrap();
    views.rebuild(&world.state, world.checkpoint()).unwrap();
    views.audit_backfill(&world.events).unwrap();
    dump(&path)
}

fn fold_from(target: &mut Postgres, world: &World, mut from: usize, mut size: impl FnMut() -> usize) {
    while from < world.events.len() {
        let to = (from + 1 + size()).min(world.events.len());
        target.fold(&world.at(to).0, &world.events[from..to].iter().collect::<Vec<_>>()).unwrap();
        from = to;
    }
}

/// The server takes a moment to notice that the writer before has gone.
fn begun(target: &mut Postgres, state: &State, at: Checkpoint) {
    let end = Instant::now() + LONG;
    while let Err(error) = target.rebuild(state, at) {
        assert!(matches!(error, Error::Standby) && Instant::now() < end, "{error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_kept_view_is_a_rebuilt_one_and_the_same_as_in_sqlite() {
    let Some(database) = Database::new() else { return };
    TestRunner::new(Config::with_cases(6))
        .run(&proptest::prelude::any::<(u64, u64)>(), |(seed, sizes)| {
            let (world, mut dice) = (World::new(seed, 150), World::new(sizes, 0));
            let mut target = database.target();
            let (empty, start) = world.at(0);
            begun(&mut target, &empty, start);
            fold_from(&mut target, &world, 0, || dice.below(30) as usize);
            // A view that begins empty knows of nothing before: nor is there anything.
            assert_eq!(target.meta().unwrap(), (world.checkpoint(), Seq(1)));
            let kept = database.dump();

            target.rebuild(&world.state, world.checkpoint()).unwrap();
            let middle = world.events.len() / 2;
            target.backfill(&world.events[middle..]).unwrap();
            target.backfill(&world.events[..middle]).unwrap();
            assert_eq!(database.dump(), kept);
            assert_eq!(whole(&world), kept);
            Ok(())
        })
        .unwrap();
}

#[test]
fn every_statement_prepares() {
    let Some(database) = Database::new() else { return };
    let mut target = database.target();
    target.rebuild(&State::default(), World::new(1, 0).checkpoint()).unwrap();
    let asked = database.asked();
    asked.execute("SET search_path = cvlan");
    for table in meta::TABLES {
        asked.execute(&format!("CREATE TEMPORARY TABLE stage_{0} (LIKE {0})", table.name));
    }
    let merges = meta::TABLES.iter().flat_map(|t| [stage::upsert(t), stage::take(t), stage::leave(t)]);
    let fixed = [session::TRY_LOCK, session::END_SILENT, session::THERE, schema::ROLE, schema::OLD].map(str::to_owned);
    let lists = crate::list::tests::shapes().into_iter().chain(crate::audit::tests::shapes());
    let all: Vec<String> = statements().into_iter().chain(merges).chain(fixed).chain(lists).collect();
    assert!(all.len() > 500, "{}", all.len());
    for sql in all {
        asked.prepare(&sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
}

#[test]
fn one_writes_and_another_stands_by_until_it_is_gone() {
    let Some(database) = Database::new() else { return };
    let world = World::new(3, 120);
    let (mut one, mut other) = (database.target(), database.target());
    one.rebuild(&world.at(40).0, world.at(40).1).unwrap();
    one.meta().unwrap();
    for _ in 0..2 {
        let error = other.meta().unwrap_err();
        assert_eq!(error.code(), "view_standby");
        other.failed(&error);
    }
    // It knows how far the view is.
    assert_eq!(other.status().checkpoint(), world.at(40).1);
    assert!(other.status().is_up() && !other.status().is_writer() && one.status().is_writer());
    drop(one);
    let end = Instant::now() + LONG;
    while let Err(error) = other.meta() {
        other.failed(&error);
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(20));
    }
    fold_from(&mut other, &world, 40, || 10);
    assert_eq!(other.status().checkpoint(), world.checkpoint());
}

#[test]
fn who_was_taken_for_lost_moves_nothing() {
    let Some(database) = Database::new() else { return };
    let world = World::new(4, 120);
    let mut lost = database.target();
    lost.rebuild(&world.at(40).0, world.at(40).1).unwrap();
    // The lock alone is taken from it: it does not know.
    lost.session.as_mut().unwrap().unlock();
    let mut next = database.target();
    next.meta().unwrap();
    next.fold(&world.at(60).0, &world.events[40..60].iter().collect::<Vec<_>>()).unwrap();
    let before = database.dump();
    let error = lost.fold(&world.at(50).0, &world.events[40..50].iter().collect::<Vec<_>>()).unwrap_err();
    assert_eq!(error.code(), "view_fenced");
    lost.failed(&error);
    assert_eq!(database.dump(), before);
    assert_eq!(lost.meta().unwrap_err().code(), "view_standby");
}

#[test]
fn two_writers_at_the_same_row_do_not_both_move_it() {
    let Some(database) = Database::new() else { return };
    let world = World::new(5, 100);
    let mut first = database.target();
    let (state, start) = world.at(0);
    first.rebuild(&state, start).unwrap();
    first.session.as_mut().unwrap().unlock();
    let end = Instant::now() + 2 * LONG;
    let won: usize = std::thread::scope(|scope| {
        let race = |mut target: Postgres| {
            let world = &world;
            scope.spawn(move || {
                let mut won = 0;
                while Instant::now() < end {
                    let at = match target.meta() {
                        Ok((at, _)) => at.seq.0 as usize,
                        Err(error) => {
                            target.failed(&error);
                            std::thread::sleep(Duration::from_millis(1));
                            continue;
                        }
                    };
                    target.session.as_mut().unwrap().unlock();
                    if at == world.events.len() {
                        break;
                    }
                    match target.fold(&world.at(at + 1).0, &[&world.events[at]]) {
                        Ok(_) => won += 1,
                        Err(error) => {
                            assert_eq!(error.code(), "view_fenced", "{error}");
                            target.failed(&error);
                        }
                    }
                }
                won
            })
        };
        let racers = [race(first), race(database.target()), race(database.target())];
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(won, world.events.len());
    assert_eq!(database.dump(), whole(&world));
}

#[test]
fn a_silent_writer_is_put_aside() {
    let Some(database) = Database::new() else { return };
    let world = World::new(6, 60);
    let mut silent = database.target();
    silent.rebuild(&world.state, world.checkpoint()).unwrap();
    let mut next = database.target();
    assert_eq!(next.meta().unwrap_err().code(), "view_standby");
    // As after half a minute: the clause is the statement's own.
    let asked = database.asked();
    let ended = session::END_SILENT.replace("30 s", "0 s").replace("$1", &session::LOCK.to_string());
    assert_eq!(asked.try_execute(&ended).unwrap(), 1);
    let end = Instant::now() + LONG;
    while next.meta().is_err() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(silent.is_astray());
    assert!(!silent.status().is_writer());
}

#[test]
fn what_is_not_ours_is_replaced_by_who_leads_and_nothing_goes_back() {
    let Some(database) = Database::new() else { return };
    let (old, new) = (World::new(7, 100), World::new(8, 100));
    let mut leader = database.target();
    leader.rebuild(&old.state, old.checkpoint()).unwrap();
    drop(leader);
    let mut follower = Postgres::new(database.url(), Box::new(|| false)).0;
    let end = Instant::now() + LONG;
    while follower.meta().is_err() {
        assert!(Instant::now() < end);
    }
    let error = follower.rebuild(&new.state, new.checkpoint()).unwrap_err();
    assert_eq!(error.code(), "view_foreign");
    follower.failed(&error);
    let mut leader = database.target();
    while leader.meta().is_err() {
        assert!(Instant::now() < end);
    }
    leader.rebuild(&new.state, new.checkpoint()).unwrap();
    leader.backfill(&new.events).unwrap();
    assert_eq!(database.dump(), whole(&new));

    // Tables of another version, with a report on them: it stays, and the error names it.
    let asked = database.asked();
    asked.execute("UPDATE cvlan.meta SET schema = 1; CREATE VIEW report AS SELECT name FROM cvlan.nodes");
    drop(leader);
    let mut leader = database.target();
    while leader.meta().is_err() {
        assert!(Instant::now() < end);
    }
    let error = leader.rebuild(&new.state, new.checkpoint()).unwrap_err();
    assert!(error.to_string().contains("report"), "{error}");
    leader.failed(&error);
    asked.execute("DROP VIEW report");
    while leader.meta().is_err() {
        assert!(Instant::now() < end);
    }
    leader.rebuild(&new.state, new.checkpoint()).unwrap();
    leader.backfill(&new.events).unwrap();
    assert_eq!(database.dump(), whole(&new));
}

#[test]
fn readers_see_their_tenant_alone_and_write_nothing() {
    let Some(database) = Database::new() else { return };
    let world = World::new(9, 800);
    let mut target = database.target();
    target.rebuild(&world.state, world.checkpoint()).unwrap();
    target.backfill(&world.events).unwrap();
    let admin = database.asked();
    let password = database.server.password();
    let mut homes = world.state.tenants.values().filter(|t| t.nodes.len() > 1);
    let (a, b) = (homes.next().unwrap(), homes.next().unwrap());
    // Logins are the server's: the database's number tells them from another test's.
    let (bound, free, bi) = ("rls_bound", "rls_free", "rls_bi");
    for (login, role) in [(bound, "cvlan_reader"), (free, "cvlan_reader"), (bi, "cvlan_bi")] {
        admin.execute(&format!("CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE {role}"));
    }
    admin.execute(&format!("INSERT INTO cvlan.access VALUES ('{bound}', '{}')", a.record.id));

    let tables = ["tenants", "cvlans", "nodes", "tokens", "users", "audit"];
    let count = |asked: &testing::Asked, table: &str| asked.number(&format!("SELECT count(*) FROM cvlan.{table}"));
    let total = |table: &str| count(&admin, table);
    let home = |table: &str| if table == "tenants" { "id" } else { "tenant" };
    let of = |table: &str, id: TenantId| {
        admin.number(&format!("SELECT count(*) FROM cvlan.{table} WHERE {} = '{id}'", home(table)))
    };
    let (bound, free, bi) = (database.asked_by(bound), database.asked_by(free), database.asked_by(bi));
    for table in tables {
        assert!(total(table) > 0, "{table}");
        assert_eq!(count(&free, table), 0, "{table}: nothing without a tenant");
        assert_eq!(count(&bi, table), total(table), "{table}");
        assert_eq!(count(&bound, table), of(table, a.record.id), "{table}");
    }
    assert!(count(&bound, "nodes") > 0 && count(&bound, "nodes") < total("nodes"));
    // A bound one cannot choose; a free one can, and sees that one alone.
    bound.execute(&format!("SET cvlan.tenant = '{}'", b.record.id));
    free.execute(&format!("SET cvlan.tenant = '{}'", b.record.id));
    for table in tables {
        assert_eq!(count(&bound, table), of(table, a.record.id), "{table}");
        assert_eq!(count(&free, table), of(table, b.record.id), "{table}");
    }
    for asked in [&bound, &free, &bi] {
        for table in tables.into_iter().chain(["meta", "access"]) {
            for sql in [
                format!("DELETE FROM cvlan.{table}"),
                format!("TRUNCATE cvlan.{table}"),
                format!("DROP TABLE cvlan.{table}"),
                format!("ALTER TABLE cvlan.{table} DISABLE ROW LEVEL SECURITY"),
                format!("INSERT INTO cvlan.{table} SELECT * FROM cvlan.{table}"),
            ] {
                let error = asked.try_execute(&sql).unwrap_err().to_string();
                assert!(error.contains("42501"), "{sql}: {error}");
            }
        }
        assert!(asked.try_execute("SELECT * FROM cvlan.access").is_err());
        assert!(asked.try_execute("CREATE TABLE cvlan.mine (id int)").is_err());
        assert_eq!(asked.number("SELECT seq FROM cvlan.meta"), world.events.len() as i64);
    }
    // What is no id is an error, not everything.
    free.execute("SET cvlan.tenant = 'acme'");
    assert!(free.try_execute("SELECT count(*) FROM cvlan.nodes").is_err());
    free.execute("SET cvlan.tenant = ''");
    assert_eq!(count(&free, "nodes"), 0);
    assert!(!database.dump().iter().any(|row| row.contains("argon2id")), "no secret is in a view");
}

#[test]
fn one_that_may_not_make_roles_writes_under_its_own_rules() {
    let Some(server) = Server::start() else { return };
    let database = Database::on(Arc::new(server));
    let admin = database.asked();
    let password = database.server.password();
    admin.execute(&format!("CREATE ROLE plain LOGIN PASSWORD '{password}'"));
    admin.execute("DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO plain', current_database()); END $$");
    let url = database.server.url_of("plain", database.name()).parse().unwrap();
    let mut target = Postgres::new(url, Box::new(|| true)).0;
    let world = World::new(10, 100);
    let error = target.rebuild(&world.state, world.checkpoint()).unwrap_err();
    assert!(error.to_string().contains("CREATE ROLE cvlan_reader NOLOGIN"), "{error}");
    target.failed(&error);
    admin.execute("CREATE ROLE cvlan_reader NOLOGIN; CREATE ROLE cvlan_bi NOLOGIN");
    let (state, start) = world.at(0);
    target.rebuild(&state, start).unwrap();
    fold_from(&mut target, &world, 0, || 7);
    assert_eq!(database.dump(), whole(&world));
    target.rebuild(&world.state, world.checkpoint()).unwrap();
    target.backfill(&world.events).unwrap();
    assert_eq!(database.dump(), whole(&world));
}

#[test]
fn hostile_values_do_not_stop_the_view() {
    let Some(database) = Database::new() else { return };
    let world = World::new(11, 200);
    let (home, _) = world.state.tenants.iter().max_by_key(|(_, t)| t.nodes.len()).unwrap();
    let mut state = world.state.clone();
    let huge = "x".repeat(3 << 20);
    let texts = ["a\0b", "'; DROP TABLE nodes; --", "\\N\t\n\r\\.", "\u{1f980}\u{202e}\u{fffe}", "", huge.as_str()];
    let mut tenant = (*state.tenants[home]).clone();
    let ids: Vec<_> = tenant.nodes.keys().copied().take(texts.len()).collect();
    assert_eq!(ids.len(), texts.len());
    for (id, text) in ids.iter().zip(texts) {
        let mut node = (*tenant.nodes[id]).clone();
        node.hostname = text.into();
        tenant.nodes.insert(*id, Arc::new(node));
    }
    state.tenants.insert(*home, Arc::new(tenant));
    let mut target = database.target();
    target.rebuild(&state, world.checkpoint()).unwrap();
    let asked = database.asked();
    for (id, text) in ids.iter().zip(texts) {
        let sql = format!(
            "SELECT count(*) FROM cvlan.nodes WHERE id = '{id}' AND md5(hostname) = md5($t${}$t$)",
            text.replace('\0', "\u{fffd}")
        );
        assert_eq!(asked.number(&sql), 1, "{:.20}", text);
    }
}

/// A log that holds events from `first` on.
fn log(world: &World) -> History {
    let events = world.events.clone();
    Box::new(move |from, limit| {
        if from.0 < 1 {
            return Err(Past::Gone(Seq(1)));
        }
        Ok(events.iter().skip(from.0 as usize - 1).take(limit.min(37)).cloned().collect())
    })
}

fn reaches(writer: &Writer, status: &PostgresStatus, to: Checkpoint) {
    assert!(writer.wait(to, LONG), "at {}, not {to}: {}", status.checkpoint(), status.error());
}

#[test]
fn a_kill_of_the_server_under_writes_loses_and_doubles_nothing() {
    let Some(server) = Server::start() else { return };
    let server = Arc::new(server);
    let database = Database::on(server.clone());
    let world = World::new(12, 1500);
    let (writer, status) = Writer::postgres(database.url(), log(&world), Box::new(|| true)).unwrap();
    let mut dice = World::new(13, 0);
    let (mut from, mut kills) = (0, 0);
    while from < world.events.len() {
        let to = (from + 1 + dice.below(60) as usize).min(world.events.len());
        let (state, checkpoint) = world.at(to);
        let pushed = Instant::now();
        writer.push(state, checkpoint, world.events[from..to].to_vec());
        assert!(pushed.elapsed() < Duration::from_secs(1), "a push waits for nothing");
        from = to;
        std::thread::sleep(Duration::from_millis(dice.below(40)));
        if kills < 4 && dice.below(8) == 0 {
            kills += 1;
            server.kill();
            std::thread::sleep(Duration::from_millis(dice.below(300)));
            server.up();
        }
    }
    assert_eq!(kills, 4);
    reaches(&writer, &status, world.checkpoint());
    let end = Instant::now() + LONG;
    while database.dump() != whole(&world) {
        assert!(Instant::now() < end, "the audit is not complete");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(status.failures() > 0 && status.is_up() && status.is_writer());

    // One that is away does not hold up the end.
    server.kill();
    let stopped = Instant::now();
    drop(writer);
    assert!(stopped.elapsed() < Duration::from_secs(2));
}

#[test]
fn one_that_answers_nothing_holds_up_nobody() {
    // A port that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://ann:s3cret@{}/net", silent.local_addr().unwrap());
    let world = World::new(14, 50);
    let (writer, status) = Writer::postgres(url.parse().unwrap(), log(&world), Box::new(|| true)).unwrap();
    let started = Instant::now();
    writer.push(world.state.clone(), world.checkpoint(), world.events.clone());
    assert!(!writer.wait(world.checkpoint(), Duration::from_millis(300)));
    assert!(!status.is_up() && !status.is_writer());
    drop(writer);
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(!status.error().contains("s3cret"));
}

//! The view in PostgreSQL: nobody waits for it, somebody always writes it, and it is what the members say.

#[allow(dead_code)] // Other tests want more of it.
#[path = "../../../../projections/tests/postgres/server.rs"]
mod server;

use crate::common::Cluster;
use crate::life::{node, prod};
use reqwest::Method;
use serde_json::Value;
use server::Server;
use sqlx::{Connection, PgConnection, Row};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// How each member that runs says the view is.
async fn views(cluster: &Cluster) -> Vec<(usize, Value)> {
    let mut all = Vec::new();
    for at in (0..cluster.members.len()).filter(|at| cluster.members[*at].runs()) {
        // A member that was just started may not be ready for it.
        if let Ok(answer) = cluster.ask(at, Method::GET, "/cluster", None).await
            && answer.status == 200
        {
            all.push((at, answer.body["postgres"].clone()));
        }
    }
    all
}

/// Waits until one member writes the view and has all that was seen; which one.
async fn written(cluster: &Cluster) -> usize {
    let end = Instant::now() + PATIENCE;
    let seen: u64 = cluster.seen.split_once('.').unwrap().1.parse().unwrap();
    loop {
        let all = views(cluster).await;
        let seq = |view: &Value| view["checkpoint"].as_str().and_then(|c| c.split_once('.')?.1.parse::<u64>().ok());
        let writers: Vec<_> = all.iter().filter(|(_, view)| view["writer"] == true).collect();
        if let [(at, view)] = writers[..]
            && seq(view) >= Some(seen)
        {
            return *at;
        }
        assert!(Instant::now() < end, "nobody has written up to {seen}: {all:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every node in PostgreSQL is as a member tells it, and every event has one line in the audit.
async fn same(cluster: &Cluster, server: &Server) {
    let mut db = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let rows = "SELECT id::text, name, ipv4, revision::text FROM cvlan.nodes";
    let rows = sqlx::query(rows).fetch_all(&mut db).await.unwrap();
    let found: BTreeSet<Vec<String>> = rows.iter().map(|row| (0..4).map(|i| row.get(i)).collect()).collect();
    assert_eq!(found.len(), rows.len(), "a row is doubled");
    let at = (0..cluster.members.len()).find(|at| cluster.members[*at].runs()).unwrap();
    let list = cluster.get(at, "/tenants/acme/nodes?limit=1000").await.expect(200).body;
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    let items = list["items"].as_array().unwrap().iter();
    let told = items.map(|i| ["id", "name", "ipv4", "revision"].map(|name| text(i, name)).to_vec()).collect();
    assert_eq!(found, told);

    let end = Instant::now() + PATIENCE;
    loop {
        let meta = sqlx::query("SELECT seq, audit_from FROM cvlan.meta").fetch_one(&mut db).await.unwrap();
        let (seq, from): (i64, i64) = (meta.get(0), meta.get(1));
        let audit = "SELECT count(*), min(seq) FROM cvlan.audit WHERE seq <= $1";
        let audit = sqlx::query(audit).bind(seq).fetch_one(&mut db).await.unwrap();
        // No machine connects here: every event is in it.
        if from == 1 && audit.get::<i64, _>(0) == seq && audit.get::<i64, _>(1) == 1 {
            return;
        }
        assert!(Instant::now() < end, "the audit is not complete: from {from}, {} of {seq}", audit.get::<i64, _>(0));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_death_and_its_writers_death_lose_and_double_nothing() {
    let Some(server) = Server::start() else { return };
    let mut cluster = Cluster::three_with(&["--views", &server.url("postgres")]).await;
    prod(&mut cluster).await;
    for n in 0..10 {
        cluster.post(n as usize % 3, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    written(&cluster).await;
    same(&cluster, &server).await;

    // While it is dead: writes, lists that see them, readiness; the members say that it is away.
    server.kill();
    for n in 10..40 {
        let started = Instant::now();
        cluster.post(n as usize % 3, "/tenants/acme/nodes", node(n)).await.expect(201);
        let list = cluster.get(n as usize % 3, &format!("/tenants/acme/nodes?q=n{n}")).await.expect(200);
        assert!(list.body["items"].as_array().is_some_and(|items| !items.is_empty()));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    let metrics = |at: usize, path: &str| format!("http://127.0.0.1:{}{path}", cluster.members[at].ports[2]);
    let end = Instant::now() + PATIENCE;
    while views(&cluster).await.iter().any(|(_, view)| view["up"] == true) {
        assert!(Instant::now() < end, "{:?}", views(&cluster).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for at in 0..3 {
        assert_eq!(cluster.http.get(metrics(at, "/readyz")).send().await.unwrap().status(), 200);
        let text = cluster.http.get(metrics(at, "/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(text.contains("cvlan_postgres_up 0") && text.contains("cvlan_postgres_writer 0"), "{text}");
        assert!(!text.contains(server.password()));
    }
    for (_, view) in views(&cluster).await {
        assert!(!view["error"].as_str().unwrap().is_empty() && !view.to_string().contains(server.password()), "{view}");
    }
    server.up();
    let writer = written(&cluster).await;
    same(&cluster, &server).await;

    // The member that writes it dies: another one does, and the first stands by when it is back.
    cluster.members[writer].kill();
    let survivor = (writer + 1) % 3;
    cluster.leader().await;
    for n in 40..60 {
        cluster.post(survivor, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    let next = written(&cluster).await;
    assert_ne!(next, writer);
    same(&cluster, &server).await;
    cluster.members[writer].again();
    cluster.post(survivor, "/tenants/acme/nodes", node(60)).await.expect(201);
    written(&cluster).await;
    same(&cluster, &server).await;
}

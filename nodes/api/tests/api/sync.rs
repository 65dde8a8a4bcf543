//! Machines: registration, the stream, presence, restart.

use crate::common::{Controller, Machine, eventually, tls_connect};
use cvlan_api::metrics::Sent;
use cvlan_core::id::{NodeId, TenantId};
use cvlan_proto::v1::{self, sync_frame::Frame};
use serde_json::json;
use std::time::{Duration, Instant};

fn names(peers: &[v1::Peer]) -> Vec<&str> {
    peers.iter().map(|p| p.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_follows_its_network() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(10).await;
    let (a, b) = (Machine::new("a"), Machine::new("b"));

    let first = a.register(&controller, &token).await;
    assert_eq!(first.addresses[0], "10.0.0.2/24");
    assert!(first.addresses[1].ends_with("::2/64"), "{:?}", first.addresses);
    let map = first.map.as_ref().unwrap();
    assert_eq!((map.peers.len(), map.more, &map.checkpoint), (0, false, &first.checkpoint));
    assert_eq!(map.self_.as_ref().unwrap().name, "a");

    let mut stream = a.sync(&controller, &first.certificate).await.unwrap();
    stream.hello("").await;
    let map = stream.map().await;
    assert_eq!((names(&map.peers), map.more), (vec![], false));
    eventually("a is online", || controller.running.app().streams.online_count() == 1).await;

    let second = b.register(&controller, &token).await;
    assert_eq!(names(&second.map.as_ref().unwrap().peers), ["a"]);
    let delta = stream.delta().await;
    assert_eq!((names(&delta.upserts), delta.removed.len()), (vec!["b"], 0));
    assert_eq!(delta.upserts[0].endpoints, ["192.0.2.1:51820"]);

    // A machine's endpoints become an event of its own, and a delta for the others.
    let mut other = b.sync(&controller, &second.certificate).await.unwrap();
    other.hello(&second.checkpoint).await;
    other.say(Frame::Endpoints(v1::Endpoints { endpoints: vec!["198.51.100.7:1".into()] })).await;
    let delta = stream.delta().await;
    assert_eq!(delta.upserts[0].endpoints, ["198.51.100.7:1"]);
    let events = admin.get(&format!("/log/events?noun=node&id={}", second.node_id)).await.expect(200).text;
    let last: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    assert_eq!((last["actor"]["kind"].as_str(), last["actor"]["name"].as_str()), (Some("node"), Some("b")));

    // Deleted: its own stream ends, the others hear of it within a second.
    let asked = Instant::now();
    admin.delete("/tenants/acme/nodes/b").await.expect(204);
    let delta = stream.delta().await;
    assert_eq!(delta.removed, [second.node_id.as_str()]);
    // b may have been sent its own endpoints' delta before.
    let bye = loop {
        match other.next().await {
            Some(Frame::Bye(bye)) => break bye,
            Some(Frame::Delta(_) | Frame::Heartbeat(_)) => {}
            end => panic!("a bye, not {end:?}"),
        }
    };
    assert_eq!(bye.code, "node_deleted");
    assert!(other.next().await.is_none());
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let refused = b.sync(&controller, &second.certificate).await.err().unwrap();
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("node_deleted"), "{refused}");

    // Disabled: the same, and enabled again it may come back.
    admin.patch("/tenants/acme/nodes/a", json!({"status": "disabled"})).await.expect(200);
    assert_eq!(stream.bye().await.code, "node_disabled");
    let refused = a.sync(&controller, &first.certificate).await.err().unwrap();
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("node_disabled"), "{refused}");
    admin.patch("/tenants/acme/nodes/a", json!({"status": "active"})).await.expect(200);
    assert!(a.sync(&controller, &first.certificate).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_by_delta_after_a_restart() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(10).await;
    let (a, b) = (Machine::new("a"), Machine::new("b"));
    let given = a.register(&controller, &token).await;
    let mut stream = a.sync(&controller, &given.certificate).await.unwrap();
    stream.hello(&given.checkpoint).await;
    eventually("a is online", || controller.running.app().streams.online_count() == 1).await;

    let seq = controller.seq();
    drop(admin);
    let stopping = Instant::now();
    let redirect = tokio::spawn(async move { stream.next().await });
    let controller = controller.restart().await;
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());
    match redirect.await.unwrap() {
        Some(Frame::Redirect(r)) => assert_eq!((r.urls.len(), (500..=1000).contains(&r.after_ms)), (1, true)),
        other => panic!("a redirect, not {other:?}"),
    }
    assert_eq!(controller.seq(), seq, "all is there, nothing was added");
    assert!(!controller.running.app().streams.presence(NodeId::of(&given.node_id)).0);

    // The same password, the same token; b comes while a is away.
    b.register(&controller, &token).await;
    let mut stream = a.sync(&controller, &given.certificate).await.unwrap();
    stream.hello(&given.checkpoint).await;
    assert_eq!(names(&stream.delta().await.upserts), ["b"]);
    let metrics = &controller.running.app().metrics;
    assert_eq!((metrics.sent_count(Sent::Map), metrics.sent_count(Sent::Delta)), (0, 1));
    // A checkpoint of another log: the full map.
    let mut lost = a.sync(&controller, &given.certificate).await.unwrap();
    lost.hello(&format!("{}.1", "ab".repeat(16))).await;
    assert_eq!(names(&lost.map().await.peers), ["b"]);
    // Only one stream a node: the newer one.
    assert_eq!(stream.bye().await.code, "superseded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_was_cut_off_is_repeated() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(1).await;
    let mut machine = Machine::new("laptop");

    // The machine is gone before it can read the answer.
    let body = machine.request(&controller, &token).await.to_string();
    let mut io = tls_connect(&controller, None).await.unwrap();
    let head = format!(
        "POST /client/register HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut io, (head + &body).as_bytes()).await.unwrap();
    tokio::io::AsyncWriteExt::flush(&mut io).await.unwrap();
    eventually("the node is in the log", || controller.running.app().log.head().machine.node_count() == 1).await;
    drop(io);
    let seq = controller.seq();
    drop(admin);
    let controller = controller.restart().await;

    let again = machine.register(&controller, &token).await;
    machine.nonce = crate::common::random();
    let third = machine.register(&controller, &token).await;
    assert_eq!(again.node_id, third.node_id, "with any nonce");
    assert_eq!(controller.seq(), seq, "nothing new in the log");
    let head = controller.running.app().log.head();
    let home = head.machine.tenant_find("acme").unwrap();
    assert_eq!((home.nodes.len(), home.tokens.values().map(|t| t.uses).sum::<u32>()), (1, 1), "not counted again");
    assert!(machine.sync(&controller, &third.certificate).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_seen_and_is_not_in_the_log() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(1).await;
    let a = Machine::new("a");
    let given = a.register(&controller, &token).await;
    let seq = controller.seq();
    let mut follow = controller.running.app().streams.follow();

    let node = admin.get("/tenants/acme/nodes/a").await.expect(200).json();
    assert_eq!((node["online"].as_bool(), node.get("lastSeenAt")), (Some(false), None));
    let stream = a.sync(&controller, &given.certificate).await.unwrap();
    let change = follow.recv().await.unwrap();
    assert_eq!((change.node.to_string(), change.online), (given.node_id.clone(), true));
    let listed = admin.get("/tenants/acme/nodes").await.expect(200).json();
    assert_eq!(listed["items"][0]["online"], true);
    drop(stream);
    assert!(!follow.recv().await.unwrap().online);
    let node = admin.get("/tenants/acme/nodes/a").await.expect(200).json();
    assert_eq!(node["online"], false);
    assert!(node["lastSeenAt"].as_str().is_some());
    assert_eq!(controller.seq(), seq);
    assert_ne!(TenantId::of(node["tenantId"].as_str().unwrap()), TenantId::default());
}

//! Machines: registration, the stream, presence, restart.

use crate::common::{Controller, Machine, eventually, tls_connect};
use cvlan_api::doors::node::poll::WAIT_MAX_S;
use cvlan_api::metrics::Sent;
use cvlan_core::id::{NodeId, TenantId};
use cvlan_proto::v1::{self, sync_frame::Frame};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    eventually("a is online", || controller.online(&given.node_id)).await;

    let changes = controller.changes().await;
    drop(admin);
    let stopping = Instant::now();
    let redirect = tokio::spawn(async move { stream.next().await });
    let controller = controller.restart().await;
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());
    match redirect.await.unwrap() {
        Some(Frame::Redirect(r)) => assert_eq!((r.urls.len(), (500..=1000).contains(&r.after_ms)), (1, true)),
        other => panic!("a redirect, not {other:?}"),
    }
    assert_eq!(controller.changes().await, changes, "all is there, nothing was added");
    eventually("the session of before has ended", || !controller.online(&given.node_id)).await;

    // The same password, the same token; b comes while a is away.
    b.register(&controller, &token).await;
    let mut stream = a.sync(&controller, &given.certificate).await.unwrap();
    stream.hello(&given.checkpoint).await;
    assert_eq!(names(&stream.delta().await.upserts), ["b"]);
    eventually("a is back", || controller.online(&given.node_id)).await;
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
async fn presence_is_in_the_log_and_is_no_configuration() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(1).await;
    let a = Machine::new("a");
    let given = a.register(&controller, &token).await;
    let (changes, seq) = (controller.changes().await, controller.seq());

    let node = admin.get("/tenants/acme/nodes/a").await.expect(200);
    assert_eq!((node.json()["online"].as_bool(), node.json().get("lastSeenAt")), (Some(false), None));
    let stream = a.sync(&controller, &given.certificate).await.unwrap();
    eventually("a is online", || controller.online(&given.node_id)).await;
    let listed = admin.get("/tenants/acme/nodes").await.expect(200).json();
    assert_eq!(listed["items"][0]["online"], true);
    assert_eq!(admin.get("/cluster").await.expect(200).json()["nodesOnline"], "1");
    // A newer stream takes over: the node stays, and nothing is written.
    let newer = a.sync(&controller, &given.certificate).await.unwrap();
    drop(stream);
    drop(newer);
    eventually("a is offline", || !controller.online(&given.node_id)).await;
    let gone = admin.get("/tenants/acme/nodes/a").await.expect(200);
    assert_eq!(gone.json()["online"], false);
    assert!(gone.json()["lastSeenAt"].as_str().is_some());
    assert_eq!((gone.header("etag"), &gone.json()["updatedAt"]), (node.header("etag"), &node.json()["updatedAt"]));
    assert_eq!((controller.changes().await, controller.seq()), (changes, seq + 2));

    // In the log, and left out unless it is asked for.
    let events = async |query: &str| {
        let path = format!("/log/events?from={seq}{query}");
        let text = admin.get(&path).await.expect(200).text;
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect::<Vec<_>>()
    };
    let (plain, all, of_it) = (events("").await, events("&noun=all").await, events("&noun=presence").await);
    assert_eq!((plain.len(), all.len(), of_it.len()), (1, 3, 2));
    let changed = |event: &Value| event["presence"]["changed"]["transitions"][0].clone();
    let (came, went) = (changed(&of_it[0]), changed(&of_it[1]));
    assert_eq!(
        (&came["nodeId"], &came["online"], &went["online"]),
        (&json!(given.node_id), &json!(true), &json!(false))
    );
    assert_eq!(came["session"], went["session"]);
    assert_eq!(events(&format!("&id={}", given.node_id)).await.len(), 1);
    assert_ne!(TenantId::of(gone.json()["tenantId"].as_str().unwrap()), TenantId::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_where_it_is_at_most_every_ten_seconds_however_often_it_connects() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(1).await;
    let a = Machine::new("a");
    let given = a.register(&controller, &token).await;
    let endpoints = || {
        let head = controller.running.app().log.head();
        head.machine.node_find(NodeId::of(&given.node_id)).unwrap().1.endpoints.to_vec()
    };
    let say = async |endpoint: &str| {
        let mut stream = a.sync(&controller, &given.certificate).await.unwrap();
        let (checkpoint, endpoints) = (given.checkpoint.clone(), vec![endpoint.to_owned()]);
        stream.say(Frame::Hello(v1::Hello { checkpoint, endpoints, ..v1::Hello::default() })).await;
        stream
    };
    let first = say("198.51.100.1:1").await;
    eventually("the first is taken", || endpoints() == ["198.51.100.1:1"]).await;
    let taken = controller.changes().await;
    drop(first);
    // Two more streams, one after the other: the newest wins, in its time.
    for endpoint in ["198.51.100.2:1", "198.51.100.3:1"] {
        drop(say(endpoint).await);
    }
    let _last = say("198.51.100.4:1").await;
    let asked = Instant::now();
    while endpoints() == ["198.51.100.1:1"] {
        assert!(asked.elapsed() < Duration::from_secs(20), "they are not taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((endpoints(), controller.changes().await), (vec!["198.51.100.4:1".to_owned()], taken + 1));
}

fn seq_of(checkpoint: &str) -> u64 {
    checkpoint.split_once('.').unwrap().1.parse().unwrap()
}

/// One poll: status and body.
async fn poll(controller: &Controller, machine: &Machine, certificate: &str, body: &Value) -> (u16, Value) {
    let mut tls = tls_connect(controller, Some((certificate, &machine.key))).await.unwrap();
    let body = body.to_string();
    let ask = format!(
        "POST /client/poll HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    tls.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    let read = tokio::time::timeout(Duration::from_secs(20), tls.read_to_string(&mut text));
    // The other side may end without a TLS goodbye.
    let _ = read.await.expect("an answer in 20 s");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_gives_what_the_stream_gives() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(10).await;
    let (a, b) = (Machine::new("a"), Machine::new("b"));
    let first = a.register(&controller, &token).await;
    let ask = async |checkpoint: &str, wait: u32| {
        poll(&controller, &a, &first.certificate, &json!({"checkpoint": checkpoint, "wait": wait})).await
    };

    // Nothing known, or another incarnation of the log: everything.
    let other_epoch = format!("{}.5", "0".repeat(32));
    for checkpoint in ["", other_epoch.as_str()] {
        let (status, all) = ask(checkpoint, 30).await;
        assert_eq!((status, &all["map"]["self"]["name"], &all["map"]["more"]), (200, &json!("a"), &json!(false)));
        assert_eq!((&all["checkpoint"], &all["keepalive"]), (&all["map"]["checkpoint"], &json!(false)));
    }
    assert!(
        controller.running.app().streams.session(NodeId::of(&first.node_id)).is_some(),
        "between two polls it is there"
    );

    // Nothing new until the wait is over: as far as this member is.
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    let (status, still) = ask(&first.checkpoint, 0).await;
    assert_eq!((status, &still["keepalive"]), (200, &json!(true)));
    let now = still["checkpoint"].as_str().unwrap().to_owned();
    assert!(seq_of(&now) > seq_of(&first.checkpoint) && seq_of(&now) <= controller.seq(), "{now}");
    // An agent that is ahead of this member is not led back.
    let (epoch, seq) = now.split_once('.').unwrap();
    let ahead = format!("{epoch}.{}", seq.parse::<u64>().unwrap() + 100);
    assert_eq!(ask(&ahead, 1).await.1["checkpoint"], json!(ahead));

    // One that waits is answered when something changes; what it says of itself becomes an event.
    let register = async {
        eventually("a waits", || controller.running.app().streams.online_count() == 1).await;
        b.register(&controller, &token).await
    };
    let ((status, delta), second) = tokio::join!(ask(&now, WAIT_MAX_S), register);
    assert_eq!((status, &delta["delta"]["upserts"][0]["name"]), (200, &json!("b")));
    let said = json!({"checkpoint": now, "endpoints": ["198.51.100.9:1"], "wait": 0});
    let (status, _) = poll(&controller, &a, &first.certificate, &said).await;
    assert_eq!(status, 200);
    let endpoints = || {
        let head = controller.running.app().log.head();
        head.machine.node_find(NodeId::of(&first.node_id)).unwrap().1.endpoints.to_vec()
    };
    eventually("its endpoints are known", || endpoints() == ["198.51.100.9:1"]).await;
    let by_stream = {
        let mut stream = b.sync(&controller, &second.certificate).await.unwrap();
        stream.hello("").await;
        stream.map().await
    };
    let (_, by_poll) = poll(&controller, &b, &second.certificate, &json!({})).await;
    assert_eq!(serde_json::from_value::<v1::Map>(by_poll["map"].clone()).unwrap().peers, by_stream.peers);

    // A newer one takes its place.
    let now = controller.running.app().log.head().checkpoint().to_string();
    let newer = async {
        eventually("the older one waits", || controller.running.app().polls.waiting() == 1).await;
        ask("", 0).await
    };
    let (older, newer) = tokio::join!(ask(&now, WAIT_MAX_S), newer);
    assert_eq!((older.0, &older.1["code"], newer.0), (409, &json!("superseded"), 200));

    // Nonsense, and too much.
    for body in [json!({"wait": WAIT_MAX_S + 1}), json!({"checkpoint": "x"})] {
        let (status, refused) = poll(&controller, &a, &first.certificate, &body).await;
        assert_eq!((status, &refused["code"]), (400, &json!("poll_invalid")), "{body}");
    }
    let (status, refused) = poll(&controller, &a, &first.certificate, &json!({"waits": 1})).await;
    assert_eq!((status, &refused["code"]), (400, &json!("body_invalid")));
    controller.node_door(reqwest::Method::POST, "/client/poll", "{}").await.problem(401, "certificate_missing");
    controller.node_door(reqwest::Method::GET, "/client/poll", "").await.problem(405, "method_not_allowed");

    // Refused as the stream is, also one that waits.
    let disable = async {
        eventually("a waits", || controller.running.app().streams.online_count() > 0).await;
        admin.patch("/tenants/acme/nodes/a", json!({"status": "disabled"})).await.expect(200);
    };
    let now = controller.running.app().log.head().checkpoint().to_string();
    let ((status, refused), ()) = tokio::join!(ask(&now, WAIT_MAX_S), disable);
    assert_eq!((status, &refused["code"]), (403, &json!("node_disabled")));
    assert_eq!(ask(&now, 0).await.1["code"], json!("node_disabled"));
    admin.delete("/tenants/acme/nodes/a").await.expect(204);
    let (status, refused) = ask(&now, 0).await;
    assert_eq!((status, &refused["code"]), (401, &json!("node_deleted")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_waits_is_sent_elsewhere_from_a_controller_that_is_cut_off_or_stops() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(1).await;
    let a = Machine::new("a");
    let given = a.register(&controller, &token).await;
    let app = controller.running.app();
    let cut_off = || app.cut_offs.send_modify(|times| *times += 1);
    let stops = || {
        app.draining.send_replace(true);
    };
    let happens: [(&str, &dyn Fn()); 2] = [("cut off", &cut_off), ("stops", &stops)];
    for (what, happen) in happens {
        eventually("nobody waits", || app.cut_offs.receiver_count() == 0).await;
        let happens = async {
            eventually("a waits", || app.cut_offs.receiver_count() == 1).await;
            happen();
        };
        let body = json!({"checkpoint": given.checkpoint, "wait": WAIT_MAX_S});
        let ((status, answer), ()) = tokio::join!(poll(&controller, &a, &given.certificate, &body), happens);
        assert_eq!((status, &answer["checkpoint"]), (200, &json!(given.checkpoint)), "{what}");
        assert_eq!(answer["redirect"]["urls"], json!(["https://127.0.0.1:8444"]), "{what}");
    }
}

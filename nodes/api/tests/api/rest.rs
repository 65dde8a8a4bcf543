//! What every answer of the API has in common, lists, freshness, events.

use crate::common::{Controller, Machine, Session, send, wg_key};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

async fn nodes(admin: &Session<'_>, count: usize) {
    for i in 0..count {
        let body = json!({"cvlan": "prod", "name": format!("n{i:02}"), "wgPublicKey": wg_key()});
        admin.post("/tenants/acme/nodes", body).await.expect(201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_fit() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let seq = controller.seq();
    admin.get("/nowhere").await.problem(404, "route_not_found");
    admin.get("/tenants/acme/").await.problem(404, "route_not_found");
    let refused = admin.delete("/tenants").await.problem(405, "method_not_allowed");
    assert_eq!(refused.header("allow"), "GET, POST");
    let post = || admin.request(Method::POST, "/tenants");
    send(post().body("{}")).await.problem(415, "content_type");
    send(post().header("content-type", "text/plain").body("{}")).await.problem(415, "content_type");
    let json = || post().header("content-type", "application/json; charset=utf-8");
    send(json().body("")).await.problem(400, "body_invalid");
    send(json().body("{\"slug\":")).await.problem(400, "body_invalid");
    send(json().body("{\"slug\":\"a\",\"colour\":\"red\"}")).await.problem(400, "body_invalid");
    send(json().body("{\"slug\":7}")).await.problem(400, "body_invalid");
    send(json().body("x".repeat((1 << 20) + 1))).await.problem(413, "body_too_large");
    // Without a length: counted while it is read.
    let pieces = (0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 << 10]));
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    send(json().body(stream)).await.problem(413, "body_too_large");
    admin.post("/tenants", json!({"slug": "Not A Slug"})).await.problem(400, "name_invalid");
    admin.post("/tenants", json!({"slug": "acme"})).await.problem(409, "tenant_exists");
    admin.delete("/tenants/acme").await.problem(409, "tenant_not_empty");
    admin.get("/tenants/acme/nodes/none").await.problem(404, "node_not_found");
    admin.get("/tenants/acme/nodes?colour=red").await.problem(400, "query_invalid");
    admin.get("/tenants/acme/nodes?limit=0").await.problem(400, "query_invalid");
    admin.get("/tenants/acme/nodes?limit=1001").await.problem(400, "query_invalid");
    admin.get("/tenants/acme/nodes?sort=colour").await.problem(400, "sort_invalid");
    admin.get("/tenants/acme/nodes?cursor=x").await.problem(400, "cursor_invalid");
    admin.get("/tenants/acme/nodes?status=tired").await.problem(400, "filter_invalid");
    admin.get("/tenants/acme/nodes?cvlan=none").await.problem(404, "cvlan_not_found");
    admin.get("/log/events?noun=ghost").await.problem(400, "query_invalid");
    admin.get("/log/events?id=x").await.problem(400, "query_invalid");
    admin.get("/log/events?follow=maybe").await.problem(400, "query_invalid");
    send(admin.request(Method::GET, "/me").header("if-match", "x")).await.problem(400, "if_match_invalid");
    assert_eq!(controller.seq(), seq);
    let answer = send(admin.request(Method::GET, "/me").header("x-request-id", "my-own.id_1")).await;
    assert_eq!(answer.header("x-request-id"), "my-own.id_1");
    let answer = send(admin.request(Method::GET, "/me").header("x-request-id", "not one!")).await;
    assert_ne!(answer.header("x-request-id"), "not one!");
    for name in ["cvlan-checkpoint", "cvlan-time", "etag", "x-request-id"] {
        assert!(!answer.header(name).is_empty(), "{name}");
    }
    assert_eq!((answer.header("cache-control"), answer.header("x-content-type-options")), ("no-store", "nosniff"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_something_that_changed_is_refused() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    nodes(&admin, 1).await;
    let seen = admin.get("/tenants/acme/nodes/n00").await.expect(200);
    let patch = |etag: &str, body: Value| {
        send(admin.request(Method::PATCH, "/tenants/acme/nodes/n00").header("if-match", etag).json(&body))
    };
    let changed = patch(seen.header("etag"), json!({"status": "disabled"})).await.expect(200);
    assert_ne!(changed.header("etag"), seen.header("etag"));
    let seq = controller.seq();
    patch(seen.header("etag"), json!({"name": "other"})).await.problem(412, "revision_mismatch");
    assert_eq!(controller.seq(), seq);
    // What changes nothing appends nothing.
    let same = patch(changed.header("etag"), json!({"name": "n00"})).await.expect(200);
    assert_eq!((same.header("etag"), controller.seq()), (changed.header("etag"), seq));
    let request = admin.request(Method::DELETE, "/tenants/acme/nodes/n00").header("if-match", "*");
    send(request).await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_what_it_wrote() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let read = |checkpoint: String| {
        send(admin.request(Method::GET, "/tenants/acme/nodes").header("cvlan-checkpoint", checkpoint))
    };
    for i in 0..20 {
        let body = json!({"cvlan": "prod", "name": format!("n{i}"), "wgPublicKey": wg_key()});
        let made = admin.post("/tenants/acme/nodes", body).await.expect(201);
        let listed = read(made.header("cvlan-checkpoint").to_owned()).await.expect(200);
        assert_eq!(listed.header("x-total-count"), (i + 1).to_string());
        let id = made.json()["id"].as_str().unwrap().to_owned();
        admin.get(&format!("/tenants/acme/nodes/{id}")).await.expect(200);
    }
    let now = admin.get("/me").await.header("cvlan-checkpoint").to_owned();
    let (epoch, seq) = now.split_once('.').unwrap();
    read(format!("{epoch}.{}", seq.parse::<u64>().unwrap() + 1)).await.problem(400, "checkpoint_beyond");
    read(format!("{}.1", "00".repeat(16))).await.problem(412, "epoch_other");
    read("x".into()).await.problem(400, "checkpoint_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    admin.post("/tenants/acme/cvlans", json!({"name": "lab"})).await.expect(201);
    nodes(&admin, 7).await;
    let made = admin.post("/tenants/acme/nodes", json!({"cvlan": "lab", "name": "x", "wgPublicKey": wg_key()})).await;
    let now = made.expect(201).header("cvlan-checkpoint").to_owned();
    let get = |query: String| {
        send(admin.request(Method::GET, &format!("/tenants/acme/nodes{query}")).header("cvlan-checkpoint", &now))
    };
    let names = |v: &Value| -> Vec<String> {
        v["items"].as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect()
    };
    let (mut cursor, mut all) = (String::new(), Vec::new());
    loop {
        let page = get(format!("?limit=3&sort=name&cursor={cursor}")).await.expect(200);
        assert_eq!(page.header("x-total-count"), "8");
        all.extend(names(&page.json()));
        cursor = page.json()["nextCursor"].as_str().unwrap().to_owned();
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(all, ["n00", "n01", "n02", "n03", "n04", "n05", "n06", "x"]);
    assert_eq!(names(&get("?cvlan=lab".into()).await.json()), ["x"]);
    assert_eq!(names(&get("?q=N03".into()).await.json()), ["n03"]);
    assert_eq!(names(&get("?status=disabled".into()).await.json()), [""; 0]);
    assert_eq!(names(&get("?sort=-name&limit=1".into()).await.json()), ["x"]);
    let tenants = send(admin.request(Method::GET, "/tenants").header("cvlan-checkpoint", &now)).await.json();
    assert_eq!((tenants["items"].as_array().unwrap().len(), tenants["items"][0]["nodeCount"].as_u64()), (2, Some(8)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_people_see_their_tenant_alone() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    let user = json!({"name": "ann", "role": "tenantadmin", "password": crate::common::PASSWORD});
    let made = admin.post("/tenants/acme/users", user).await.expect(201);
    admin.post("/tenants/other/cvlans", json!({"name": "theirs"})).await.expect(201);
    let ann = controller.session("acme", "ann", crate::common::PASSWORD).await;
    let tenant = made.json()["tenantId"].as_str().unwrap().to_owned();
    let fresh = admin.get("/me").await.header("cvlan-checkpoint").to_owned();
    let get = |path: &str| send(ann.request(Method::GET, path).header("cvlan-checkpoint", &fresh));
    let tenants = get("/tenants").await.expect(200).json();
    assert_eq!((tenants["items"].as_array().unwrap().len(), tenants["items"][0]["slug"].as_str()), (1, Some("acme")));
    for path in ["/log/events", "/log/events?noun=cvlan", "/log/events?noun=user"] {
        let events = get(path).await.expect(200).text;
        assert!(events.lines().count() > 0, "{path}");
        for line in events.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["tenantId"], *tenant, "{line}");
        }
    }
    // Pages go on where they ended, also where most of the log is not theirs.
    let mut from = 1;
    let mut seen = Vec::new();
    loop {
        let page = get(&format!("/log/events?from={from}&limit=1")).await.expect(200);
        seen.extend(page.text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["tenantSeq"].clone()));
        match page.header("cvlan-next-seq") {
            "" => break,
            next => from = next.parse().unwrap(),
        }
    }
    assert_eq!(seen, ["1", "2", "3"], "the tenant's own numbers, without a gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_by_events() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let user = json!({"name": "ann", "role": "member", "password": crate::common::PASSWORD});
    admin.post("/tenants/acme/users", user).await.expect(201);
    let page = admin.get("/log/events").await.expect(200).text;
    let list = send(admin.request(Method::GET, "/log/events").header("accept", "application/json")).await;
    assert_eq!(list.json()["items"].as_array().unwrap().len(), page.lines().count());
    let head = controller.running.app().log.head();
    let state = &head.machine;
    let mut secrets = vec!["$argon2id".to_owned(), controller.password.clone()];
    let seeds = state.tenants.values().filter_map(|t| t.record.signing_keys[0].seed.clone());
    let jwt = state.system.jwt_keys.iter().filter_map(|k| k.secret.clone());
    for sealed in seeds.chain(jwt).chain([state.system.challenge_key.clone()]) {
        secrets.push(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, sealed.ciphertext));
    }
    assert_eq!(secrets.len(), 5);
    for secret in secrets {
        assert!(!page.contains(&secret) && !list.text.contains(&secret), "{secret}");
    }
    assert!(page.contains("\"passwordHash\":\"redacted\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_members_history() {
    use cvlan_core::{Wish, member::MemberCommand};
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    let app = controller.running.app();
    let (name, secret_hash) = ("m2".to_owned(), [0xab; 32]);
    let admit = Wish::Member(MemberCommand::Admit { name, secret_hash, life_ms: 60_000 });
    app.command(Default::default(), admit).await.unwrap();
    let id = app.log.head().machine.member_find("m2").unwrap().id;
    let remove = Wish::Member(MemberCommand::Remove { id });
    app.command(Default::default(), remove).await.unwrap();
    let fresh = admin.get("/me").await.header("cvlan-checkpoint").to_owned();
    let get = async |query: &str| {
        let path = format!("/log/events?{query}");
        let text = send(admin.request(Method::GET, &path).header("cvlan-checkpoint", &fresh)).await.expect(200).text;
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect::<Vec<_>>()
    };
    let events = get(&format!("noun=member&id={id}")).await;
    assert_eq!(events.len(), 2, "{events:?}");
    let admitted = &events[0]["member"]["admitted"];
    assert_eq!((&admitted["name"], &admitted["secretHash"]), (&json!("m2"), &json!("")));
    assert_eq!(events[1]["member"]["removed"]["memberId"], id.to_string());
    // The audit of a new view starts with its newest event, and grows backwards.
    let mut founder = get("id=1").await;
    for _ in 0..200 {
        if founder.len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
        founder = get("id=1").await;
    }
    assert!(founder[0]["system"]["bootstrapped"].is_object(), "{founder:?}");
    assert_eq!(founder[1]["system"]["advertisementChanged"]["memberId"], "1");
    admin.get("/log/events?id=first").await.problem(400, "query_invalid");
}

/// Reads a live stream until it has so many messages.
async fn messages(response: &mut reqwest::Response, text: &mut String, count: usize) -> Vec<(String, String, Value)> {
    loop {
        let whole: Vec<_> = text.split("\n\n").filter(|m| m.contains("data: ")).collect();
        if whole.len() >= count && text.ends_with("\n\n") {
            let field = |m: &str, name: &str| {
                let line = m.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
                line.unwrap_or_default().to_owned()
            };
            let message =
                |m: &&str| (field(m, "id"), field(m, "event"), serde_json::from_str(&field(m, "data")).unwrap());
            let found = whole.iter().map(message).collect();
            text.clear();
            return found;
        }
        let chunk = tokio::time::timeout(Duration::from_secs(10), response.chunk()).await.expect("a message in 10 s");
        text.push_str(std::str::from_utf8(&chunk.unwrap().expect("still open")).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_live() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(2).await;
    let from = controller.seq() - 1;
    let follow = admin.request(Method::GET, &format!("/log/events?from={from}")).header("accept", "text/event-stream");
    let mut response = follow.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let past = messages(&mut response, &mut text, 2).await;
    assert_eq!(past.iter().map(|m| m.0.parse::<u64>().unwrap()).collect::<Vec<_>>(), [from, from + 1]);
    assert!(past.iter().all(|m| m.1 == "event" && m.0 == m.2["seq"].as_str().unwrap()));

    let machine = Machine::new("m");
    let given = machine.register(&controller, &token).await;
    let live = messages(&mut response, &mut text, 1).await;
    assert_eq!(live[0].2["node"]["created"]["nodeId"], *given.node_id);
    let stream = machine.sync(&controller, &given.certificate).await.unwrap();
    let presence = messages(&mut response, &mut text, 1).await;
    assert_eq!(
        (presence[0].1.as_str(), &presence[0].2),
        ("presence", &json!({"nodeId": given.node_id, "online": true}))
    );
    drop(stream);
    assert_eq!(messages(&mut response, &mut text, 1).await[0].2["online"], false);

    // A burst arrives whole and in order, across the pages that it is read in.
    let (seq, member) = (controller.seq(), cvlan_core::id::MemberId::FOUNDER);
    let app = controller.running.app().clone();
    let writes = (0..600).map(|i| {
        let app = app.clone();
        async move {
            let urls = vec![format!("https://127.0.0.{i}:1")];
            let wish = cvlan_core::system::SystemCommand::Advertise { member, node_urls: urls, api_urls: vec![] };
            app.command(Default::default(), cvlan_core::Wish::System(wish)).await.unwrap();
        }
    });
    futures_util::future::join_all(writes).await;
    let burst = messages(&mut response, &mut text, 600).await;
    let ids: Vec<u64> = burst.iter().map(|m| m.0.parse().unwrap()).collect();
    assert_eq!(ids, (seq + 1..=seq + 600).collect::<Vec<_>>());

    // Logged out: the stream ends with the session.
    let body = json!({"refreshToken": admin.refresh});
    send(controller.request(Method::POST, "/api/v1/auth/logout").json(&body)).await.expect(204);
    let wish = cvlan_core::system::SystemCommand::Advertise { member, node_urls: vec![], api_urls: vec![] };
    app.command(Default::default(), cvlan_core::Wish::System(wish)).await.unwrap();
    let rest = tokio::time::timeout(Duration::from_secs(5), async {
        while let Some(chunk) = response.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    });
    rest.await.expect("the stream ends");
    assert!(!text.contains("advertisementChanged"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_proves_itself() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    nodes(&admin, 3).await;
    let made = send(admin.request(Method::POST, "/log/checkpoint")).await.expect(200).json();
    nodes_more(&admin).await;
    let found = send(admin.request(Method::POST, "/log/verify")).await.expect(200).json();
    assert_eq!(found["ok"], true, "{found}");
    assert_eq!(found["checkpointSeq"], made["seq"]);
    assert_eq!((&found["checkpointDigest"], &found["replayedDigest"]), (&made["digest"], &made["digest"]));
    let listed = admin.get("/log/checkpoints").await.expect(200).json();
    assert_eq!(listed["items"][0], made);
    let status = admin.get("/cluster").await.expect(200).json();
    assert_eq!((status["digest"].as_str(), status["nodes"].as_str()), (made["digest"].as_str(), Some("4")));
    assert_eq!((status["role"].as_str(), status["root"].as_str()), (Some("leader"), found["root"].as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_come_in_one_request_all_or_none() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let path = "/tenants/acme/nodes:bulk";
    let item = |n: usize| json!({"cvlan": "prod", "name": format!("b{n}"), "wgPublicKey": wg_key(), "tags": ["x"]});
    let items: Vec<_> = (0..3).map(item).collect();
    let before = controller.seq();
    let mut twice = items.clone();
    twice.push(items[0].clone());
    let refused = admin.post(path, json!({"items": twice})).await;
    assert!(refused.json()["detail"].as_str().unwrap().starts_with("device 4 of 4: "), "{}", refused.json());
    refused.problem(409, "node_exists");
    let mut wrong = items.clone();
    wrong[1]["wgPublicKey"] = json!("x");
    let refused = admin.post(path, json!({"items": wrong})).await;
    assert!(refused.json()["detail"].as_str().unwrap().starts_with("device 2 of 3: "), "{}", refused.json());
    refused.problem(400, "wg_key_invalid");
    admin.post(path, json!({"items": []})).await.problem(400, "devices_count");
    let many: Vec<_> = (0..1001).map(item).collect();
    admin.post(path, json!({"items": many})).await.problem(400, "devices_count");
    assert_eq!(controller.seq(), before, "nothing was written");

    let made = admin.post(path, json!({"items": items})).await.expect(201);
    assert_eq!(controller.seq(), before + 3);
    for (node, n) in made.json()["items"].as_array().unwrap().iter().zip(0..) {
        assert_eq!(node["name"], format!("b{n}"));
        let seen = admin.get(&format!("/tenants/acme/nodes/b{n}")).await.expect(200);
        assert_eq!(&seen.json(), node, "as it is read");
    }
    let all: Vec<_> = (10..1010).map(item).collect();
    let made = admin.post(path, json!({"items": all})).await;
    made.problem(409, "addresses_exhausted");
}

async fn nodes_more(admin: &Session<'_>) {
    let body = json!({"cvlan": "prod", "name": "more", "wgPublicKey": wg_key()});
    admin.post("/tenants/acme/nodes", body).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_metrics_and_page() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let plain = |path: &str| {
        let url = format!("http://{}{path}", controller.running.metrics_address());
        async move { reqwest::get(url).await.unwrap() }
    };
    assert_eq!(
        (plain("/livez").await.status(), plain("/readyz").await.status()),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    assert_eq!(plain("/").await.status(), 404);
    let text = plain("/metrics").await.text().await.unwrap();
    for line in [
        format!("cvlan_applied_seq {}", controller.seq()),
        // Advertised, announced, tenant, CVLAN.
        "cvlan_writes_total{outcome=\"applied\"} 4".to_owned(),
        "cvlan_http_requests_total{method=\"POST\",route=\"/api/v1/tenants\",status=\"2xx\"} 1".to_owned(),
        "cvlan_http_request_seconds_count{method=\"POST\",route=\"/api/v1/auth/login\"} 1".to_owned(),
        "cvlan_nodes_online 0".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    let page = send(controller.request(Method::GET, "/")).await.expect(200);
    assert_eq!(page.header("content-security-policy"), cvlan_api::doors::rest::ui::POLICY);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests() {
    let dir = tempfile::tempdir().unwrap();
    let options = cvlan_api::server::Options { rate_limits: true, ..crate::common::options(dir.path()) };
    let running = cvlan_api::server::start(options).await.unwrap();
    let http = crate::common::http_client(running.ca_pem());
    let url = format!("https://{}/client/register", running.node_address());
    let mut limited = None;
    for i in 0..80 {
        let answer = send(http.post(&url).header("content-type", "application/json").body("{}")).await;
        if answer.status == 429 {
            limited = Some((i, answer.problem(429, "rate_limited")));
            break;
        }
        answer.problem(400, "token_malformed");
    }
    let (after, answer) = limited.expect("a limit");
    assert!(after >= 50, "the burst passes: {after}");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    running.stop().await;
}

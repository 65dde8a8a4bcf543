//! Bad input, each at the door it comes through: the documented problem, nothing appended, nothing lost.

use crate::common::{Answer, Controller, Machine, Session, random, wg_key};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL};
use cvlan_core::token::{token_parse, token_sign};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The log must not have moved.
struct Unmoved<'a>(&'a Controller, u64);

impl<'a> Unmoved<'a> {
    fn new(controller: &'a Controller) -> Self {
        Self(controller, controller.seq())
    }

    #[track_caller]
    fn check(&self, what: &str) {
        assert_eq!(self.0.seq(), self.1, "{what}: the log moved");
    }
}

async fn bad_token(controller: &Controller, machine: &Machine, token: &str, text: &str) -> Answer {
    let mut body = machine.request(controller, token).await;
    body["token"] = text.into();
    controller.register(&body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    admin.post("/tenants/acme/cvlans", json!({"name": "gone"})).await.expect(201);
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    let once = admin.token(1).await;
    Machine::new("first").register(&controller, &once).await;
    let good = admin.token(5).await;
    let to_gone = json!({"cvlan": "gone", "expiresInSeconds": "60"});
    let to_gone = admin.post("/tenants/acme/tokens", to_gone).await.expect(201).json();
    admin.delete("/tenants/acme/cvlans/gone").await.expect(204);
    let revoked = admin.post("/tenants/acme/tokens", json!({"cvlan": "prod", "expiresInSeconds": "60"})).await.json();
    admin.delete(&format!("/tenants/acme/tokens/{}", revoked["token"]["id"].as_str().unwrap())).await.expect(204);

    let claims = token_parse(&good).unwrap().claims;
    let stranger = token_sign(&claims, &random::<32>());
    let head = controller.running.app().log.head();
    let other = head.machine.tenant_find("other").unwrap().record.clone();
    let app = controller.running.app();
    let seed = app
        .vault
        .get()
        .unwrap()
        .cluster
        .open("cvlan-signing-seed-v1", other.signing_keys[0].seed.as_ref().unwrap())
        .unwrap();
    let other_key = token_sign(&claims, &seed.clone().try_into().unwrap());
    let mut theirs = claims.clone();
    theirs.key_id = other.signing_keys[0].id.0.as_bytes().to_vec();
    let other_key_named = token_sign(&theirs, &seed.try_into().unwrap());
    let mut more = claims.clone();
    more.max_uses = 1_000_000;
    let raw = BASE64URL.decode(good.strip_prefix("cvj_").unwrap()).unwrap();
    let signature = raw[raw.len() - 64..].to_vec();
    let raised = [cvlan_proto::Message::encode_to_vec(&more), signature].concat();
    let raised = format!("cvj_{}", BASE64URL.encode(raised));
    let mut flipped = raw.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let flipped = format!("cvj_{}", BASE64URL.encode(&flipped));

    let machine = Machine::new("m");
    let unmoved = Unmoved::new(&controller);
    for (what, text, status, code) in [
        ("used up", once.as_str(), 409, "token_used_up"),
        ("signed by nobody's key", &stranger, 401, "token_invalid"),
        ("signed by another tenant's key", &other_key, 401, "token_invalid"),
        ("naming another tenant's key", &other_key_named, 401, "token_invalid"),
        ("with more uses than it was signed for", &raised, 401, "token_invalid"),
        ("altered", &flipped, 401, "token_invalid"),
        ("for a CVLAN that is gone", to_gone["secret"].as_str().unwrap(), 409, "token_cvlan_gone"),
        ("revoked", revoked["secret"].as_str().unwrap(), 401, "token_invalid"),
        ("cut", &good[..60], 400, "token_malformed"),
        ("empty", "", 400, "token_malformed"),
        ("no token", "hello", 400, "token_malformed"),
        ("too long", &format!("cvj_{}", "A".repeat(9000)), 400, "token_malformed"),
    ] {
        // The proof covers tenant, token id, keys and nonce: for a real token it must be made for that one.
        let like = if text.len() > 100 && token_parse(text).is_ok() { text } else { &good };
        let answer = bad_token(&controller, &machine, like, text).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {}", answer.text);
        unmoved.check(what);
    }
    machine.register(&controller, &good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_and_expiry_itself() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let unmoved = Unmoved::new(&controller);
    for seconds in ["0", "1", "59", "31622401", "99999999999", "18446744073709551615"] {
        let body = json!({"cvlan": "prod", "expiresInSeconds": seconds});
        admin.post("/tenants/acme/tokens", body).await.problem(400, "expiry_invalid");
        unmoved.check(seconds);
    }
    admin.post("/tenants/acme/tokens", json!({"cvlan": "prod"})).await.problem(400, "expiry_invalid");
    unmoved.check("a token without an end");
    let mut shortest = String::new();
    for seconds in [31_622_400, 60] {
        let body = json!({"cvlan": "prod", "expiresInSeconds": seconds.to_string()});
        let made = admin.post("/tenants/acme/tokens", body).await.expect(201);
        let made: cvlan_proto::v1::TokenCreateResponse = serde_json::from_str(&made.text).unwrap();
        let token = made.token.unwrap();
        assert_eq!(token.expires_at.unwrap().seconds - token.created_at.unwrap().seconds, seconds, "to the second");
        shortest = made.secret;
    }
    drop(admin);
    let controller = controller.restart_later(60_000).await;
    let seq = controller.seq();
    let body = Machine::new("late").request(&controller, &shortest).await;
    controller.register(&body).await.problem(401, "token_expired");
    assert_eq!(controller.seq(), seq);
}

fn with(body: &Value, key: &str, value: impl Into<Value>) -> Value {
    let mut body = body.clone();
    body[key] = value.into();
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(50).await;
    let known = Machine::new("known");
    known.register(&controller, &token).await;

    let machine = Machine::new("m");
    let good = machine.request(&controller, &token).await;
    let p384 = CertificateParams::default().serialize_request(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
    let other_csr =
        CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let csr = good["csr"].as_str().unwrap();
    let broken = csr.replacen("MII", "MIA", 1).replacen("MIH", "MIA", 1);
    // Another machine's WireGuard key: it cannot prove it, whoever it belongs to.
    let stolen = BASE64.encode(x25519_dalek::PublicKey::from(&known.wg).as_bytes());
    // The key of a known machine, really held, but with another CSR: that is not the same machine.
    let twin = Machine { wg: known.wg.clone(), ..Machine::new("twin") };
    let replayed = Machine { nonce: known.nonce, ..Machine::new("replay") };
    let unmoved = Unmoved::new(&controller);
    for (what, body, status, code) in [
        ("no CSR", with(&good, "csr", ""), 400, "csr_invalid"),
        (
            "a CSR that is none",
            with(&good, "csr", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
            400,
            "csr_invalid",
        ),
        ("a broken CSR", with(&good, "csr", broken), 400, "csr_invalid"),
        ("a CSR with a key of another kind", with(&good, "csr", p384.unwrap().pem().unwrap()), 400, "csr_invalid"),
        ("another CSR than was proven", with(&good, "csr", other_csr), 401, "proof_invalid"),
        ("a short WireGuard key", with(&good, "wgPublicKey", BASE64.encode([1; 31])), 400, "wg_key_invalid"),
        ("a long WireGuard key", with(&good, "wgPublicKey", BASE64.encode([1; 33])), 400, "wg_key_invalid"),
        ("a WireGuard key of low order", with(&good, "wgPublicKey", BASE64.encode([0; 32])), 401, "proof_invalid"),
        ("a stolen WireGuard key", with(&good, "wgPublicKey", stolen), 401, "proof_invalid"),
        ("no proof", with(&good, "proof", ""), 401, "proof_invalid"),
        ("a wrong proof", with(&good, "proof", BASE64.encode([7; 32])), 401, "proof_invalid"),
        ("a proof for another nonce", with(&good, "nonce", BASE64.encode([7; 16])), 401, "proof_invalid"),
        ("a short nonce", with(&good, "nonce", BASE64.encode([7; 15])), 400, "nonce_invalid"),
        ("no hardware address", with(&good, "mac", ""), 400, "mac_invalid"),
        ("an unknown field", with(&good, "cvlan", "other"), 400, "body_invalid"),
        ("a host name with control characters", with(&good, "hostname", "a\u{7}b"), 400, "text_invalid"),
        ("a long host name", with(&good, "hostname", "h".repeat(300)), 400, "text_invalid"),
        ("an endpoint on loopback", with(&good, "endpoints", json!(["127.0.0.1:1"])), 400, "endpoint_invalid"),
        ("too many endpoints", with(&good, "endpoints", json!(vec!["192.0.2.1:1"; 17])), 400, "too_many_endpoints"),
        ("a duplicate WireGuard key", twin.request(&controller, &token).await, 409, "wg_key_in_use"),
        ("a replayed nonce", replayed.request(&controller, &token).await, 409, "nonce_replayed"),
        ("no JSON object", json!([1]), 400, "body_invalid"),
    ] {
        let answer = controller.register(&body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {}", answer.text);
        unmoved.check(what);
    }
    let raw = |text: String| controller.node_door(Method::POST, "/client/register", text);
    raw("{\"token\": \"".to_owned() + &"x".repeat(2 << 20) + "\"}").await.problem(413, "body_too_large");
    raw("{".to_owned()).await.problem(400, "body_invalid");
    controller.node_door(Method::GET, "/client/register", "").await.problem(405, "method_not_allowed");
    controller.node_door(Method::GET, "/client/discover", "").await.problem(400, "query_invalid");
    controller.node_door(Method::GET, "/client/discover?tenant=none", "").await.problem(404, "tenant_not_found");
    controller.node_door(Method::GET, "/elsewhere", "").await.problem(404, "route_not_found");
    unmoved.check("the door's own refusals");
    machine.register(&controller, &token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await; // 10.0.0.0/24
    admin.post("/tenants/acme/cvlans", json!({"name": "tiny", "ipv4Cidr": "10.9.0.0/29"})).await.expect(201);
    let node = |i: usize| json!({"cvlan": "tiny", "name": format!("n{i}"), "wgPublicKey": wg_key()});
    let mut fitted = 0;
    let full = loop {
        let answer = admin.post("/tenants/acme/nodes", node(fitted)).await;
        if answer.status != 201 {
            break answer;
        }
        fitted += 1;
    };
    full.problem(409, "addresses_exhausted");
    assert!((2..=6).contains(&fitted), "{fitted}");
    let unmoved = Unmoved::new(&controller);
    for (what, v4, v6, status, code) in [
        ("overlapping", "10.0.0.0/16", "", 409, "cidr_overlap"),
        ("inside another", "10.0.0.128/25", "", 409, "cidr_overlap"),
        ("not a network address", "10.1.0.1/24", "", 400, "cidr_not_network"),
        ("no CIDR", "10.1.0.0", "", 400, "cidr_invalid"),
        ("too small", "10.1.0.0/30", "", 400, "cidr_size"),
        ("loopback", "127.0.0.0/24", "", 400, "cidr_not_unicast"),
        ("IPv6 too small", "10.1.0.0/24", "fd00::/127", 400, "ipv6_too_small"),
        ("IPv6 not a network address", "10.1.0.0/24", "fd00::1/64", 400, "cidr_not_network"),
    ] {
        let body = json!({"name": "x", "ipv4Cidr": v4, "ipv6Cidr": v6});
        let answer = admin.post("/tenants/acme/cvlans", body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {}", answer.text);
        unmoved.check(what);
    }
    // No range left to choose from.
    admin.post("/tenants", json!({"slug": "full"})).await.expect(201);
    for (name, v4) in [("a", "10.0.0.0/8"), ("b", "172.16.0.0/12"), ("c", "192.168.0.0/16")] {
        admin.post("/tenants/full/cvlans", json!({"name": name, "ipv4Cidr": v4})).await.expect(201);
    }
    let unmoved = Unmoved::new(&controller);
    admin.post("/tenants/full/cvlans", json!({"name": "d"})).await.problem(409, "ranges_exhausted");
    unmoved.check("no range left");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins() {
    let controller = Controller::new().await;
    let unmoved = Unmoved::new(&controller);
    // Unknown user, unknown tenant, wrong password: the same error, and the same work, which is one hash.
    let mut texts = BTreeSet::new();
    for i in 0..4 {
        for (tenant, name) in [("", "admin"), ("", &*format!("nobody{i}")), ("nowhere", "admin")] {
            let before = controller.running.app().auth.passwords.hashed();
            let answer = controller.login(tenant, name, "not this one at all").await;
            texts.insert(answer.problem(401, "login_failed").text);
            assert_eq!(controller.running.app().auth.passwords.hashed(), before + 1, "{tenant}/{name}");
        }
    }
    assert_eq!(texts.len(), 1, "{texts:?}");

    // Five failures lock, unknown names alike; without work, and the right password does not help.
    controller.login("", "admin", "still not this one").await.problem(401, "login_failed");
    let locked = controller.login("", "admin", &controller.password).await.problem(429, "login_locked");
    assert!((1..=900).contains(&locked.header("retry-after").parse::<u64>().unwrap()));
    for _ in 0..5 {
        controller.login("", "ghost", "still not this one").await.problem(401, "login_failed");
    }
    controller.login("", "ghost", "still not this one").await.problem(429, "login_locked");
    for (body, code) in [
        (json!({"name": "x".repeat(300), "password": "p"}), "login_failed"),
        (json!({"name": "", "password": "p".repeat(5000)}), "login_failed"),
        (json!({}), "login_failed"),
    ] {
        let request = controller.request(Method::POST, "/api/v1/auth/login").json(&body);
        crate::common::send(request).await.problem(401, code);
    }
    unmoved.check("logins");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.post("/tenants", json!({"slug": "acme"})).await.expect(201);
    let user = json!({"name": "ann", "role": "tenantadmin", "password": crate::common::PASSWORD});
    admin.post("/tenants/acme/users", user).await.expect(201);
    let ann = controller.session("acme", "ann", crate::common::PASSWORD).await;
    ann.get("/me").await.expect(200);

    let unmoved = Unmoved::new(&controller);
    let with = |token: &str| Session { controller: &controller, token: token.to_owned(), refresh: String::new() };
    let mut cut = ann.token.clone();
    cut.pop();
    for bad in ["x", &cut, &ann.refresh] {
        with(bad).get("/me").await.problem(401, "session_invalid");
    }
    let refresh = |token: &str| {
        let body = json!({"refreshToken": token});
        crate::common::send(controller.request(Method::POST, "/api/v1/auth/refresh").json(&body))
    };
    refresh(&ann.token).await.problem(401, "session_invalid");
    let renewed = refresh(&ann.refresh).await.expect(200).json();
    with(renewed["accessToken"].as_str().unwrap()).get("/me").await.expect(200);

    // Logging out ends both tokens, and what was renewed from them.
    let body = json!({"refreshToken": ann.refresh});
    crate::common::send(controller.request(Method::POST, "/api/v1/auth/logout").json(&body)).await.expect(204);
    ann.get("/me").await.problem(401, "session_invalid");
    refresh(&ann.refresh).await.problem(401, "session_invalid");
    with(renewed["accessToken"].as_str().unwrap()).get("/me").await.problem(401, "session_invalid");
    unmoved.check("sessions");

    // A new password ends every session and is the only one that counts.
    let (one, two) = (
        controller.session("acme", "ann", crate::common::PASSWORD).await,
        controller.session("acme", "ann", crate::common::PASSWORD).await,
    );
    let change = |old: &str, new: &str| json!({"oldPassword": old, "newPassword": new});
    one.post("/me/password", change("wrong", "another long password")).await.problem(403, "password_wrong");
    one.post("/me/password", change(crate::common::PASSWORD, "short")).await.problem(400, "password_weak");
    unmoved.check("passwords that are not taken");
    one.post("/me/password", change(crate::common::PASSWORD, "another long password")).await.expect(204);
    one.get("/me").await.problem(401, "session_invalid");
    two.get("/me").await.problem(401, "session_invalid");
    controller.login("acme", "ann", crate::common::PASSWORD).await.problem(401, "login_failed");
    let ann = controller.session("acme", "ann", "another long password").await;

    // Deleted: over, at once.
    admin.delete("/tenants/acme/users/ann").await.expect(204);
    ann.get("/me").await.problem(401, "session_invalid");

    // The first superadmin's password is in keys/bootstrap until it is changed.
    let file = controller.dir.path().join("keys/bootstrap");
    assert!(std::fs::read_to_string(&file).unwrap().contains(&controller.password));
    admin.post("/me/password", change(&controller.password, "yet another password")).await.expect(204);
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let token = admin.token(5).await;
    let machine = Machine::new("m");
    let given = machine.register(&controller, &token).await;
    let unmoved = Unmoved::new(&controller);

    // Another CA's, for the very same node.
    let now = cvlan_api::app::now_ms();
    let (key, der) = cvlan_api::ca::ca_make(now).unwrap();
    let ca = std::sync::Arc::new(cvlan_api::ca::Ca::read(&der).unwrap());
    let other = cvlan_api::ca::Signer::open(&key, ca).unwrap();
    let ours = controller.running.app().vault.get().unwrap();
    let csr = CertificateParams::default().serialize_request(&machine.key).unwrap().pem().unwrap();
    let csr = cvlan_api::ca::Csr::read(&csr).unwrap();
    let node = cvlan_core::id::NodeId::of(&given.node_id);
    let forged = other.node(node, &csr, &[0; 32], now, 0).unwrap();
    let refused = machine.sync(&controller, &forged).await.err().unwrap();
    assert!(!refused.contains("HTTP/1.1"), "a TLS alert, before any request: {refused}");
    // Our CA's, but expired.
    let old = ours.signer.node(node, &csr, &[0; 32], now - 2 * cvlan_api::ca::NODE_MS, 0).unwrap();
    let refused = machine.sync(&controller, &old).await.err().unwrap();
    assert!(!refused.contains("HTTP/1.1"), "a TLS alert: {refused}");
    // Our CA's, for a node that is not there.
    let nobody = cvlan_core::id::NodeId::of("00000000-0000-4000-8000-000000000001");
    let ghost = ours.signer.node(nobody, &csr, &[0; 32], now, 0).unwrap();
    let refused = machine.sync(&controller, &ghost).await.err().unwrap();
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("node_deleted"), "{refused}");
    // None at all.
    let bare = crate::common::tls_connect(&controller, None).await.unwrap();
    let refused = crate::common::Sync::upgrade(bare).await.err().unwrap();
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("certificate_missing"), "{refused}");
    // A frame that makes no sense ends the stream.
    let mut stream = machine.sync(&controller, &given.certificate).await.unwrap();
    stream.say(cvlan_proto::v1::sync_frame::Frame::Bye(Default::default())).await;
    assert!(stream.next().await.is_none());
    unmoved.check("certificates");
    let mut stream = machine.sync(&controller, &given.certificate).await.unwrap();
    stream.hello("").await;
    stream.map().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_the_record() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let unmoved = Unmoved::new(&controller);
    let beyond = controller.seq() + 1;
    let many = (1..70).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    for (path, code) in [
        ("/log/proof?size=0".to_owned(), "seq_beyond"),
        (format!("/log/proof?size={beyond}"), "seq_beyond"),
        ("/log/proof?size=3&seq=4".to_owned(), "seq_beyond"),
        ("/log/proof?size=3&seq=0".to_owned(), "seq_beyond"),
        ("/log/proof?size=3&since=4".to_owned(), "seq_beyond"),
        ("/log/proof?size=x".to_owned(), "query_invalid"),
        ("/log/proof?size=18446744073709551616".to_owned(), "query_invalid"),
        ("/log/proof?index=1".to_owned(), "query_invalid"),
        ("/log/export?form=xml".to_owned(), "query_invalid"),
        ("/log/export?since=1,x".to_owned(), "query_invalid"),
        (format!("/log/export?since={many}"), "query_invalid"),
        ("/log/export?from=0".to_owned(), "seq_beyond"),
        ("/log/export?from=3&to=2".to_owned(), "seq_beyond"),
        (format!("/log/export?to={beyond}"), "seq_beyond"),
        ("/cluster/backup?from=0".to_owned(), "seq_beyond"),
        (format!("/cluster/backup?from={beyond}"), "seq_beyond"),
        (format!("/cluster/backup?to={}", u64::MAX), "seq_beyond"),
        ("/cluster/backup?to=x".to_owned(), "query_invalid"),
        ("/log/stats?from=1".to_owned(), "query_invalid"),
        ("/log/stats?consistency=maybe".to_owned(), "query_invalid"),
    ] {
        let said = admin.get(&path).await;
        assert_eq!((said.status, said.code().as_str()), (400, code), "{path}: {}", said.text);
    }
    admin.get("/log/export?tenant=nobody").await.problem(404, "tenant_not_found");
    admin.get("/log/tile/0/000.p/1").await.expect(200);
    for tile in [
        "0/000",
        "0/001.p/1",
        "1/000.p/1",
        "0/x999/x999/999",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/x",
        "0/000.p/01",
        "0/0",
        "0/0000",
        "0/x000/000",
        "0/000/000",
        "0/x001",
        "0/-01",
        "00/000.p/1",
        "64/000.p/1",
        "x/000.p/1",
        "data/000.p/1",
        "0/000.p/1/2",
        "0/000%00",
        "0/x999/x999/x999/x999/x999/x999/x999/x999/999",
    ] {
        admin.get(&format!("/log/tile/{tile}")).await.problem(404, "tile_not_found");
    }
    unmoved.check("asking");
}

//! `Idempotency-Key`: one effect and the same answer, however often a request is sent.

use crate::common::{Answer, Controller, Session, send, wg_key};
use reqwest::Method;
use serde_json::{Value, json};

const DAY_MS: u64 = 24 * 3_600_000;

async fn keyed(session: &Session<'_>, method: Method, path: &str, key: &str, body: Option<&Value>) -> Answer {
    let mut request = session.request(method, path).header("idempotency-key", key);
    if let Some(body) = body {
        request = request.json(body);
    }
    send(request).await
}

async fn post(session: &Session<'_>, path: &str, key: &str, body: &Value) -> Answer {
    keyed(session, Method::POST, path, key, Some(body)).await
}

#[track_caller]
fn same(first: &Answer, again: &Answer) {
    assert_eq!((again.status, &again.text), (first.status, &first.text));
    for name in ["etag", "cvlan-checkpoint", "cvlan-time", "location", "content-type"] {
        assert_eq!(again.header(name), first.header(name), "{name}");
    }
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), ("", "true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_again_has_one_effect_and_the_same_answer() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    let tenant = json!({"slug": "acme", "name": "Acme"});
    let made = post(&admin, "/tenants", "t", &tenant).await.expect(201);
    same(&made, &post(&admin, "/tenants", "t", &tenant).await);
    admin.post("/tenants/acme/cvlans", json!({"name": "prod"})).await.expect(201);

    let path = "/tenants/acme/nodes";
    let node = json!({"cvlan": "prod", "name": "a", "wgPublicKey": wg_key()});
    let created = post(&admin, path, "k-1", &node).await.expect(201);
    let seq = controller.seq();
    same(&created, &post(&admin, path, "k-1", &node).await);

    // Another body, another route, another spelling of it.
    let other = json!({"cvlan": "prod", "name": "b", "wgPublicKey": wg_key()});
    post(&admin, path, "k-1", &other).await.problem(422, "idempotency_key_reused");
    keyed(&admin, Method::DELETE, "/tenants/acme/nodes/a", "k-1", None).await.problem(422, "idempotency_key_reused");
    assert_eq!(controller.seq(), seq, "nothing was appended");

    // By names that are gone since.
    let rename = json!({"name": "z"});
    let renamed = keyed(&admin, Method::PATCH, "/tenants/acme/nodes/a", "k-2", Some(&rename)).await.expect(200);
    same(&renamed, &keyed(&admin, Method::PATCH, "/tenants/acme/nodes/a", "k-2", Some(&rename)).await);
    admin.patch("/tenants/acme/nodes/z", json!({"status": "disabled"})).await.expect(200);
    let deleted = keyed(&admin, Method::DELETE, "/tenants/acme/nodes/z", "k-3", None).await.expect(204);
    same(&deleted, &keyed(&admin, Method::DELETE, "/tenants/acme/nodes/z", "k-3", None).await);
    // As they were then.
    same(&created, &post(&admin, path, "k-1", &node).await);
    same(&renamed, &keyed(&admin, Method::PATCH, "/tenants/acme/nodes/a", "k-2", Some(&rename)).await);

    // Many at once are answered as they were made.
    let item = |name: &str| json!({"cvlan": "prod", "name": name, "wgPublicKey": wg_key()});
    let many = json!({"items": [item("p"), item("q"), item("r")]});
    let bulk = post(&admin, "/tenants/acme/nodes:bulk", "k-5", &many).await.expect(201);
    assert_eq!(bulk.json()["items"].as_array().unwrap().len(), 3);
    for name in ["q", "p", "r"] {
        admin.delete(&format!("/tenants/acme/nodes/{name}")).await.expect(204);
        same(&bulk, &post(&admin, "/tenants/acme/nodes:bulk", "k-5", &many).await);
    }

    // The tenant is gone too.
    admin.delete("/tenants/acme/cvlans/prod").await.expect(204);
    let gone = keyed(&admin, Method::DELETE, "/tenants/acme", "k-4", None).await.expect(204);
    same(&gone, &keyed(&admin, Method::DELETE, "/tenants/acme", "k-4", None).await);
    same(&created, &post(&admin, path, "k-1", &node).await);

    // It outlives the process, and ends by the log's time.
    admin.post("/tenants", json!({"slug": "acme"})).await.expect(201);
    drop(admin);
    let controller = controller.restart().await;
    let admin = controller.admin().await;
    same(&created, &post(&admin, path, "k-1", &node).await);
    drop(admin);
    let controller = controller.restart_later(DAY_MS + 60_000).await;
    let admin = controller.admin().await;
    post(&admin, path, "k-1", &node).await.problem(404, "cvlan_not_found");
    let again = post(&admin, "/tenants/acme/cvlans", "k-1", &json!({"name": "prod"})).await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_shown_once() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let body = json!({"cvlan": "prod", "expiresInSeconds": "3600", "maxUses": 3});
    let first = post(&admin, "/tenants/acme/tokens", "k", &body).await.expect(201);
    let again = post(&admin, "/tenants/acme/tokens", "k", &body).await.expect(201);
    assert!(first.json()["secret"].as_str().unwrap().starts_with("cvj_"));
    let json = again.json();
    assert_eq!(
        (&json["token"], &json["secret"], &json["shownOnce"]),
        (&first.json()["token"], &json!(""), &json!(true))
    );
    assert_eq!((again.header("etag"), again.header("idempotency-replayed")), (first.header("etag"), "true"));

    let first = post(&admin, "/cluster/members", "m", &json!({"name": "m2"})).await.expect(201).json();
    let again = post(&admin, "/cluster/members", "m", &json!({"name": "m2"})).await.expect(201).json();
    assert_eq!((&again["member"], &again["shownOnce"]), (&first["member"], &json!(true)));
    assert_ne!(first["joinToken"], again["joinToken"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_their_actors_own_and_what_was_refused_is_not_remembered() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    for slug in ["acme", "beta"] {
        admin.post("/tenants", json!({"slug": slug})).await.expect(201);
        let user = json!({"name": "bob", "password": "another good password", "role": "tenantadmin"});
        admin.post(&format!("/tenants/{slug}/users"), user).await.expect(201);
    }
    let bob = controller.session("acme", "bob", "another good password").await;
    let bobby = controller.session("beta", "bob", "another good password").await;
    let net = json!({"name": "prod"});
    let one = post(&bob, "/tenants/acme/cvlans", "k", &net).await.expect(201);
    let two = post(&bobby, "/tenants/beta/cvlans", "k", &net).await.expect(201);
    assert_ne!(one.json()["id"], two.json()["id"]);
    // Another one's key shows nothing of what it was used for.
    post(&bobby, "/tenants/acme/cvlans", "k2", &net).await.problem(404, "tenant_not_found");
    post(&admin, "/tenants/acme/cvlans", "k", &net).await.problem(409, "cvlan_exists");

    let lab = json!({"name": "lab", "ipv4Cidr": "10.0.0.0/8"});
    post(&bob, "/tenants/acme/cvlans", "k3", &lab).await.problem(409, "cidr_overlap");
    admin.delete("/tenants/acme/cvlans/prod").await.expect(204);
    post(&bob, "/tenants/acme/cvlans", "k3", &lab).await.expect(201);

    let seq = controller.seq();
    for bad in ["", "a b", "\u{e4}", &"k".repeat(256)] {
        post(&bob, "/tenants/acme/cvlans", bad, &net).await.problem(400, "idempotency_key_invalid");
    }
    let twice = bob.request(Method::POST, "/tenants/acme/cvlans").header("idempotency-key", "a");
    send(twice.header("idempotency-key", "b").json(&net)).await.problem(400, "idempotency_key_invalid");
    assert_eq!(controller.seq(), seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_have_one_effect() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let seq = controller.seq();
    let body = json!({"cvlan": "prod", "name": "a", "wgPublicKey": wg_key()});
    let all = (0..16).map(|_| post(&admin, "/tenants/acme/nodes", "k", &body));
    let answers = futures_util::future::join_all(all).await;
    let fresh: Vec<_> = answers.iter().filter(|a| a.header("idempotency-replayed").is_empty()).collect();
    assert_eq!((fresh.len(), controller.seq()), (1, seq + 1));
    for answer in answers.iter().filter(|a| !a.header("idempotency-replayed").is_empty()) {
        same(fresh[0], answer);
    }
}

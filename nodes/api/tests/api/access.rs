//! ROUTES and who may: every line is tried without a session, from another tenant, and as every role.

use crate::common::{Answer, Controller, PASSWORD, Session, send, wg_key};
use cvlan_api::doors::rest::routes::{Access, ROUTES, Route, Whose};
use cvlan_core::access::{Role, allowed};
use cvlan_core::id::TenantId;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A route's path with the tenant filled in and every other placeholder naming nothing.
fn path(route: &Route, tenant: &str) -> String {
    let mut path = route.path.replace("{t}", tenant).replace("{level}", "0").replace("{*tile}", "000.p/1");
    for name in ["cvlan", "node", "token", "user", "member"] {
        path = path.replace(&format!("{{{name}}}"), "00000000-0000-4000-8000-000000000000");
    }
    path
}

fn nonsense(route: &Route, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    match route.request {
        "" => request,
        _ => request.json(&json!({"no such field": 1})),
    }
}

async fn try_as(session: &Session<'_>, route: &Route, tenant: &str) -> Answer {
    send(nonsense(route, session.request(route.method.clone(), &path(route, tenant)))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_needs_what_its_line_says() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    let head = controller.running.app().log.head();
    let (acme, other) = (head.machine.slugs["acme"], head.machine.slugs["other"]);
    let mut people = vec![(Role::Superadmin, TenantId::default(), admin.clone())];
    for (role, tenant, slug) in [
        (Role::Tenantadmin, acme, "acme"),
        (Role::Member, acme, "acme"),
        (Role::Readonly, acme, "acme"),
        (Role::Auditor, acme, "acme"),
        (Role::Tenantadmin, other, "other"),
        (Role::Auditor, TenantId::default(), ""),
    ] {
        let users = if slug.is_empty() { "/users".to_owned() } else { format!("/tenants/{slug}/users") };
        let body = json!({"name": role.as_str(), "role": role.as_str(), "password": PASSWORD});
        admin.post(&users, body).await.expect(201);
        people.push((role, tenant, controller.session(slug, role.as_str(), PASSWORD).await));
    }
    let seq = controller.seq();
    for route in ROUTES {
        let what = format!("{} {}", route.method, route.path);
        let bare = controller.request(route.method.clone(), &format!("/api/v1{}", path(route, "acme")));
        let answer = send(nonsense(route, bare)).await;
        match route.access {
            Access::Public => assert_eq!(answer.code(), "body_invalid", "{what}"),
            Access::Session | Access::May(..) => {
                assert_eq!((answer.status, answer.code().as_str()), (401, "session_missing"), "{what}");
                assert_eq!(answer.header("www-authenticate"), "Bearer");
            }
        }
        let Access::May(permission, whose) = route.access else { continue };
        for (role, home, session) in &people {
            let what = format!("{what} as {} of {home}", role.as_str());
            // A checkpoint is the one thing that a bare POST would put into the log.
            if route.path == "/log/checkpoint" && route.method == "POST" && *role == Role::Superadmin {
                continue;
            }
            let answer = try_as(session, route, "acme").await;
            let tenant = match whose {
                Whose::Tenant => acme,
                Whose::Cluster => TenantId::default(),
                Whose::Own => *home,
            };
            if allowed(*role, *home, permission, tenant) {
                // Past the door: what stops it now is the nonsense itself.
                let stopped = match answer.status {
                    200 => route.request.is_empty(),
                    400 => answer.code() == "body_invalid" && !route.request.is_empty(),
                    404 => answer.code() != "tenant_not_found",
                    409 => answer.code() == "tenant_not_empty",
                    _ => false,
                };
                assert!(stopped, "{what}: {} {}", answer.status, answer.text);
            } else if whose == Whose::Tenant && !home.is_nil() && *home != acme {
                assert_eq!((answer.status, answer.code().as_str()), (404, "tenant_not_found"), "{what}");
                let none = try_as(session, route, "no-such-tenant").await;
                assert_eq!(answer.text, none.text, "{what}: another tenant is as one that is not there");
            } else {
                assert_eq!(answer.status, 403, "{what}: {}", answer.text);
            }
        }
    }
    assert_eq!(controller.seq(), seq, "nothing was written");
}

/// A sound body for every route that leaves an event: (method, path) → body.
fn sample(method: &Method, path: &str) -> Value {
    match (method.as_str(), path) {
        ("POST", "/me/password") => json!({"oldPassword": PASSWORD, "newPassword": "a password of other length"}),
        ("POST", "/tenants") => json!({"slug": "new"}),
        ("PATCH", "/tenants/{t}") => json!({"name": "Acme Inc."}),
        ("POST", "/tenants/{t}/cvlans") => json!({"name": "lab"}),
        ("PATCH", "/tenants/{t}/cvlans/{cvlan}") => json!({"name": "lab-2"}),
        ("POST", "/tenants/{t}/nodes") => json!({"cvlan": "prod", "name": "n", "wgPublicKey": wg_key()}),
        ("POST", "/tenants/{t}/nodes:bulk") => {
            json!({"items": [{"cvlan": "prod", "name": "b", "wgPublicKey": wg_key()}]})
        }
        ("PATCH", "/tenants/{t}/nodes/{node}") => json!({"status": "disabled"}),
        ("POST", "/tenants/{t}/tokens") => json!({"cvlan": "prod", "expiresInSeconds": "600"}),
        ("POST", "/tenants/{t}/users") => json!({"name": "u", "role": "member", "password": PASSWORD}),
        ("POST", "/users") => json!({"name": "u", "role": "auditor", "password": PASSWORD}),
        ("POST", "/cluster/members") => json!({"name": "m2"}),
        ("DELETE", _) | ("POST", "/log/checkpoint") => Value::Null,
        _ => panic!("{method} {path} leaves an event: give it a sample here"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_leaves_the_event_that_its_line_says() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    admin.post("/users", json!({"name": "self", "role": "superadmin", "password": PASSWORD})).await.expect(201);
    let own = controller.session("", "self", PASSWORD).await;
    for route in ROUTES.iter().filter(|r| !r.audit.is_empty()) {
        let what = format!("{} {}", route.method, route.path);
        // Each thing by the name that its own POST gave it, each tenant by one that is empty for its DELETE.
        let mut path = route.path.replace("{cvlan}", if route.method == "DELETE" { "lab-2" } else { "lab" });
        path = path.replace("{node}", "n").replace("{user}", "u").replace("{member}", "m2");
        path =
            path.replace("{t}", if route.path == "/tenants/{t}" && route.method == "DELETE" { "new" } else { "acme" });
        if path.contains("{token}") {
            let listed = admin.get("/tenants/acme/tokens").await.json();
            path = path.replace("{token}", listed["items"][0]["id"].as_str().unwrap());
        }
        let before = controller.seq();
        let body = sample(&route.method, route.path);
        let session = if route.path == "/me/password" { &own } else { &admin };
        let request = session.request(route.method.clone(), &path).header("cvlan-reason", "because%20of%20%C3%A4");
        let answer = send(if body.is_null() { request } else { request.json(&body) }).await;
        assert!((200..300).contains(&answer.status), "{what}: {} {}", answer.status, answer.text);
        let event = admin.get(&format!("/log/events?from={}&limit=1", before + 1)).await.expect(200).json();
        let (noun, kind) = route.audit.split_once('.').unwrap();
        let camel = kind.split('_').enumerate().map(|(i, w)| if i == 0 { w.into() } else { capital(w) });
        let camel: String = camel.collect();
        assert!(event[noun].get(&camel).is_some(), "{what}: {event}");
        if noun != "system" {
            assert_eq!(event["reason"], "because of ä", "{what}");
            assert_eq!((event["source"].as_str(), event["actor"]["kind"].as_str()), (Some("127.0.0.1"), Some("user")));
        }
    }
}

fn capital(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

#[test]
fn every_line_is_whole() {
    let mut seen = BTreeSet::new();
    let declared = |name: &str| {
        let name = [&[0x0a, name.len() as u8], name.as_bytes()].concat();
        cvlan_proto::DESCRIPTORS.windows(name.len()).any(|w| w == name)
    };
    for route in ROUTES {
        let what = format!("{} {}", route.method, route.path);
        assert!(seen.insert(what.clone()), "{what} twice");
        assert!(route.request.is_empty() || declared(route.request), "{what}: {}", route.request);
        assert!(route.answer.is_empty() || declared(route.answer), "{what}: {}", route.answer);
        assert_eq!(route.path.contains("{t}"), matches!(route.access, Access::May(_, Whose::Tenant)), "{what}");
        // Who votes and who leads is Raft's, not the log's.
        let raft = route.path.ends_with("/promote") || route.path == "/cluster/transfer-leader";
        let reads = route.method == "GET" || route.path.starts_with("/auth/") || route.path == "/log/verify" || raft;
        assert_eq!(route.audit.is_empty(), reads, "{what}: a write leaves an event, a read does not");
    }
}

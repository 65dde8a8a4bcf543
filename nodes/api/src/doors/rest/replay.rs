//! `Idempotency-Key` at the door: the same request again gets the answer that it got.
//!
//! ```text
//!  key known here? ─► its answer again          no ─► app ─► done
//!                                                      └─► refused ─► known now, or at the leader? ─► its answer again
//! ```
//! The rule itself is core's: `decide` refuses what was carried out. A door only finds the answer; one that is behind
//! the first answer may refuse for another reason, so a refusal is the last word only against the newest state.

use super::routes::Route;
use super::{BASE, reply};
use crate::app::replay::{Past, all, find, gone, past};
use crate::app::{self, App, now_ms};
use crate::bootstrap::purpose;
use crate::problem::Problem;
use axum::response::Response;
use cvlan_core::Actor;
use cvlan_core::id::Seq;
use cvlan_core::idempotency::{Idempotency, key_check};
use cvlan_core::rules::Key;
use cvlan_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use serde::Serialize;

/// The caller's key of a write.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// `true` on an answer that was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The answer that is about many things, each as it was made.
const BULK: &str = "NodeBulkResponse";

/// The key that came along, if one did.
pub fn key_read(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = given.next() else { return Ok(None) };
    let key = key.to_str().unwrap_or_default();
    key_check(if given.next().is_none() { key } else { "" })?;
    Ok(Some(key.to_owned()))
}

/// The key and what makes it this request: method, path, query, body.
pub fn idempotency(app: &App, key: String, method: &Method, uri: &Uri, body: &[u8]) -> Result<Idempotency, Problem> {
    let path = uri.path_and_query().map(|p| p.as_str()).unwrap_or_default();
    let parts = [method.as_str().as_bytes(), &[0], path.as_bytes(), &[0], body];
    let body_hash = app.vault.need()?.cluster.mac(purpose::IDEMPOTENCY, &parts);
    Ok(Idempotency { key, body_hash })
}

/// The answer of the first time, if this member knows of one; 422 where the key was for another request.
pub async fn known(app: &App, route: &Route, actor: &Actor, given: &Idempotency) -> Result<Option<Response>, Problem> {
    let head = app.log.head();
    // A key that has ended is the leader's to judge.
    match find(&head, actor, given, head.time_ms.max(now_ms()))? {
        Some(first) => again(app, route, first).await.map(Some),
        None => Ok(None),
    }
}

/// A refusal, or the answer of the first time where it turns out that there was one.
pub async fn or_known(
    app: &App,
    route: &Route,
    actor: &Actor,
    given: &Idempotency,
    refused: Problem,
) -> Result<Response, Problem> {
    let seen = || {
        let head = app.log.head();
        // A refusal of the key itself is in `refused`.
        find(&head, actor, given, head.time_ms).ok().flatten()
    };
    let mut first = seen();
    if first.is_none() && refused.status.is_client_error() && app.linearize().await.is_ok() {
        first = seen();
    }
    match first {
        Some(first) => again(app, route, first).await,
        None => Err(refused),
    }
}

async fn again(app: &App, route: &Route, first: Seq) -> Result<Response, Problem> {
    let mut response = if route.answer == BULK {
        reply::json(StatusCode::CREATED, all(app, first).await?.map(|events| app::node::made(&events)))?
    } else {
        let past = past(app, first).await?;
        answer(app, route, &past).ok_or_else(|| gone(first))??
    };
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// As the route answered; `None` where the thing cannot be told any more.
fn answer(app: &App, route: &Route, past: &Past) -> Option<Result<Response, Problem>> {
    if route.answer.is_empty() {
        return Some(reply::none(past.output(())));
    }
    let (state, now) = (&past.state, &past.head.machine);
    let home = |tenant| state.tenants.get(tenant);
    Some(match &past.key {
        Key::Tenant(id) => {
            let mut body = home(id)?.to_proto();
            let counts = now.tenants.get(id).map(|t| t.to_proto());
            (body.cvlan_count, body.node_count) = counts.map(|c| (c.cvlan_count, c.node_count)).unwrap_or_default();
            sent(route, past, format!("/tenants/{id}"), body.revision, body)
        }
        Key::Cvlan(t, id) => {
            let mut body = home(t)?.cvlans.get(id)?.to_proto();
            let counted = now.tenants.get(t).and_then(|t| t.cvlans.get(id));
            body.node_count = counted.map(|c| c.to_proto().node_count).unwrap_or_default();
            sent(route, past, format!("/tenants/{t}/cvlans/{id}"), body.revision, body)
        }
        Key::Node(t, id) => {
            let body = app::node::proto(app, home(t)?.nodes.get(id)?);
            sent(route, past, format!("/tenants/{t}/nodes/{id}"), body.revision, body)
        }
        Key::Token(t, id) => {
            let token = home(t)?.tokens.get(id)?;
            let (revision, token) = (token.revision.0, Some(token.to_proto(past.time_ms)));
            let body = v1::TokenCreateResponse { token, shown_once: true, ..v1::TokenCreateResponse::default() };
            sent(route, past, format!("/tenants/{t}/tokens/{id}"), revision, body)
        }
        Key::User(t, id) => {
            let body = state.users.get(id)?.to_proto();
            let path = if t.is_nil() { format!("/users/{id}") } else { format!("/tenants/{t}/users/{id}") };
            sent(route, past, path, body.revision, body)
        }
        Key::Member(id) => {
            let member = app::member::seen(app, &past.head, &app.log.status(), state.members.get(id)?);
            let revision = member.revision;
            let body =
                v1::MemberAddResponse { member: Some(member), shown_once: true, ..v1::MemberAddResponse::default() };
            sent(route, past, format!("/cluster/members/{id}"), revision, body)
        }
    })
}

fn sent<T: Serialize>(route: &Route, past: &Past, path: String, revision: u64, body: T) -> Result<Response, Problem> {
    let output = past.output(body).revision(revision);
    if route.method == Method::POST { reply::created(format!("{BASE}{path}"), output) } else { reply::ok(output) }
}

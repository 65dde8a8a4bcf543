//! The REST door: one straight line from a request to its answer, the same for every route.
//!
//! ```text
//!  path ─► ROUTES (404, 405) ─► session (401) ─► tenant (404) ─► permission (403) ─► query, freshness ─► body (413, 415, 400)
//!       ─► app ─► answer with ETag, Cvlan-Checkpoint, Cvlan-Time, X-Request-Id          any error: problem+json
//! ```
//! A write with an `Idempotency-Key` that was carried out before gets its answer again ([`replay`]).
//! At a member that does not vote every write goes whole to one that does ([`super::forward`]).
//! What a route needs is in its line of [`routes::ROUTES`], nowhere else. Everything outside /api/v1 is the UI.

pub mod call;
pub mod events;
pub mod export;
pub mod replay;
pub mod reply;
pub mod routes;
pub mod ui;

use super::accept::Client;
use super::body::{body_read, json_expected, json_read};
use super::forward::{Forward, vouched};
use crate::app::fresh::Freshness;
use crate::app::list::Params;
use crate::app::{App, Caller, now_ms};
use crate::auth::jwt::Claims;
use crate::auth::{Session, session_over};
use crate::metrics::Other;
use crate::problem::Problem;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Extension, Router};
use bytes::Bytes;
use call::{Call, param};
use cvlan_core::Actor;
use cvlan_core::access::{allowed, permit, tenant_unknown};
use cvlan_core::id::{Checkpoint, TenantId};
use cvlan_core::state::TenantState;
use cvlan_proto::v1;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use replay::key_read;
use routes::{Access, LOGOUT, REFRESH, ROUTES, Route, Whose};
use std::sync::Arc;
use std::time::Instant;

/// Where the API begins.
pub const BASE: &str = "/api/v1";
/// A reader's or writer's checkpoint.
pub const CHECKPOINT: HeaderName = HeaderName::from_static("cvlan-checkpoint");
/// Event time of an answer.
pub const TIME: HeaderName = HeaderName::from_static("cvlan-time");
/// Why, in the caller's words.
pub const REASON: HeaderName = HeaderName::from_static("cvlan-reason");
/// The request's name, the caller's or ours.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Things on all pages of a list.
pub const TOTAL: HeaderName = HeaderName::from_static("x-total-count");
/// The query parameter of every GET: `local` (what this member has) or `linearizable` (what the leader has).
const CONSISTENCY: &str = "consistency";
/// Longest request id that is taken over.
const REQUEST_ID_MAX: usize = 64;

/// The router of [`ROUTES`]; an error names a method that axum does not know.
pub fn router(app: Arc<App>) -> Result<Router, <MethodFilter as TryFrom<Method>>::Error> {
    let mut router = Router::new();
    for (at, route) in ROUTES.iter().enumerate() {
        let line = move |app, client, params, request| answer(at, route, app, client, params, request);
        let mut methods = on(MethodFilter::try_from(route.method.clone())?, line);
        // The first line of a path refuses what none of them takes; HEAD too, which axum would give to GET.
        if ROUTES.iter().position(|r| r.path == route.path) == Some(at) {
            let refuse = move |app, request| refuse(route.path, app, request);
            methods = methods.head(refuse).fallback(refuse);
        }
        router = router.route(&route.full_path(), methods);
    }
    Ok(router.fallback(elsewhere).with_state(app))
}

/// A request that a line of ROUTES takes.
async fn answer(
    at: usize,
    route: &'static Route,
    State(app): State<Arc<App>>,
    Extension(client): Extension<Arc<Client>>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let request_id = request_id(&app, request.headers());
    let answer = match params {
        Ok(params) => run(&app, route, params, &client, request, &request_id).await,
        Err(_) => Err(unknown(request.uri().path())),
    };
    let response = dressed(answer, request_id);
    app.metrics.route(at, response.status().as_u16(), started.elapsed().as_micros() as u64);
    response
}

/// A path of ROUTES, asked with a method that none of its lines has.
async fn refuse(path: &'static str, State(app): State<Arc<App>>, request: Request) -> Response {
    let started = Instant::now();
    let takes: Vec<_> = ROUTES.iter().filter(|r| r.path == path).map(|r| r.method.as_str()).collect();
    let problem = Problem::method_not_allowed(request.uri().path(), takes.join(", "));
    let response = dressed(Err(problem), request_id(&app, request.headers()));
    counted(&app, Other::None, started, response)
}

/// No path of ROUTES: nothing, or the UI.
async fn elsewhere(State(app): State<Arc<App>>, request: Request) -> Response {
    let started = Instant::now();
    let path = request.uri().path();
    let (other, response) = match path.strip_prefix(BASE) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            (Other::None, dressed(Err(unknown(path)), request_id(&app, request.headers())))
        }
        _ => (Other::Ui, ui::serve(request.method(), path)),
    };
    counted(&app, other, started, response)
}

fn counted(app: &App, other: Other, started: Instant, response: Response) -> Response {
    app.metrics.other(other, response.status().as_u16(), started.elapsed().as_micros() as u64);
    response
}

async fn run(
    app: &Arc<App>,
    route: &'static Route,
    params: RawPathParams,
    client: &Client,
    request: Request,
    request_id: &str,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let query = parts.uri.query().unwrap_or_default();
    let reads = parts.method == Method::GET;
    let proven = match route.access {
        // Whatever is shown there proves nothing.
        Access::Public => Err(session_missing()),
        Access::Session | Access::May(..) => prove(app, client, headers, request_id).await,
    };
    let leaves = route.removes_member() && is_own_removal(app, &params);
    if !reads && !route.here() && (leaves || !app.decides()) {
        return forwarded(app, route, client, Request::from_parts(parts, body), request_id, proven, leaves).await;
    }
    // Nobody waits for one who has no token of ours.
    let (head, at_least) = match proven.is_ok() {
        true if reads && asks_fresh(headers, query) => app.fresh(freshness_read(headers, query)?).await?,
        true if !reads && !app.log.leads() => {
            // Names and rights are looked up here: a member that is behind must not refuse what the leader knows.
            app.linearize().await?;
            (app.log.head(), None)
        }
        _ => (app.log.head(), None),
    };
    // What is about the member that is asked is no write: it may be asked twice, and without the keys.
    let key = if reads || route.here() { None } else { key_read(headers)? };
    let (session, home) = match route.access {
        Access::Public => (None, Ok(None)),
        Access::Session => (Some(app.auth.session_of(&head.machine, &*proven?)?), Ok(None)),
        Access::May(permission, whose) => {
            let session = app.auth.session_of(&head.machine, &*proven?)?;
            let home = permitted(&head.machine, &session, permission, whose, &params);
            (Some(session), home)
        }
    };
    // What a key was used for may be gone since, the tenant too: its answer comes first.
    let home = if key.is_some() && session.is_some() { home } else { Ok(home?) };
    let caller = |session| called(session, headers, client, request_id);
    let mut caller = session.map(caller).transpose()?;
    let query = query_read(query, reads, route.query)?;
    let body = if route.request.is_empty() {
        Bytes::new()
    } else {
        json_expected(headers)?;
        body_read(body).await?
    };
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let source = client.address;
    let (Some(key), Some(caller)) = (key, &mut caller) else {
        let (app, home) = (app.clone(), home?);
        return (route.run)(Call { app, head, caller, home, params, query, body, source, at_least, accept }).await;
    };
    let given = replay::idempotency(app, key, &parts.method, &parts.uri, &body)?;
    let actor = caller.actor();
    if let Some(answer) = replay::known(app, route, &actor, &given).await? {
        return Ok(answer);
    }
    caller.idempotency = Some(given.clone());
    let answer = match home {
        Ok(home) => {
            let (app, caller) = (app.clone(), Some(caller.clone()));
            (route.run)(Call { app, head, caller, home, params, query, body, source, at_least, accept }).await
        }
        Err(refused) => Err(refused),
    };
    match answer {
        Err(refused) => replay::or_known(app, route, &actor, &given, refused).await,
        done => done,
    }
}

fn called(session: Session, headers: &HeaderMap, client: &Client, request_id: &str) -> Result<Caller, Problem> {
    Ok(Caller {
        session,
        request_id: request_id.to_owned(),
        reason: reason_read(headers)?,
        source: client.address,
        if_revision: if_match_read(headers)?,
        idempotency: None,
    })
}

/// `Authorization: Bearer`, as it is.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    given.and_then(|v| v.strip_prefix("Bearer ")).map(str::trim)
}

fn session_missing() -> Problem {
    Problem::unproven("session_missing", "log in first: POST /api/v1/auth/login, then Authorization: Bearer TOKEN")
}

/// What the token says, if it is one of this cluster's, whoever it is for.
async fn prove(app: &App, client: &Client, headers: &HeaderMap, request_id: &str) -> Result<Arc<Claims>, Problem> {
    let token = bearer(headers).ok_or_else(session_missing)?;
    match app.auth.claims(&app.log.head().machine, token, now_ms())? {
        Some(claims) => Ok(claims),
        None => vouched(app, client, headers, token, request_id).await,
    }
}

/// A member does not carry out its own removal, unless nobody else votes: it would be none in Raft, whom the others take no command
/// from, before the log knows.
fn is_own_removal(app: &App, params: &RawPathParams) -> bool {
    let head = app.log.head();
    let own = head.machine.member_find(param(params, "member")).is_some_and(|member| member.id == app.member);
    own && head.members.voters.iter().flatten().any(|id| *id != app.member.0)
}

/// A write at a member that does not vote, or that `leaves` by it: one that does carries it out.
async fn forwarded(
    app: &App,
    route: &Route,
    client: &Client,
    request: Request,
    request_id: &str,
    proven: Result<Arc<Claims>, Problem>,
    leaves: bool,
) -> Result<Response, Problem> {
    match route.access {
        Access::Public => app.limits.ask.check(client.address, &app.metrics)?,
        Access::Session | Access::May(..) => drop(proven?),
    }
    let (parts, body) = request.into_parts();
    let (method, uri, headers) = (&parts.method, &parts.uri, &parts.headers);
    let body = if route.request.is_empty() {
        Vec::new()
    } else {
        json_expected(headers)?;
        body_read(body).await?.to_vec()
    };
    // What was ended through this member is over here, whichever voter is asked.
    let token = || json_read::<v1::RefreshRequest>(&body).map(|r| r.refresh_token).unwrap_or_default();
    if route.path == REFRESH && app.auth.is_logged_out(&token(), now_ms()) {
        return Err(session_over());
    }
    let ends = (route.path == LOGOUT).then(token);
    let writes = !route.audit.is_empty();
    let again = !writes || headers.contains_key(replay::IDEMPOTENCY_KEY);
    let forward = Forward { machines: false, method, uri, headers, body, client, request_id, again };
    // Whoever left applies nothing more.
    let response = forward.send(app, writes && !leaves).await?;
    if let Some(token) = ends.filter(|_| response.status().is_success()) {
        app.auth.logged_out(&token, now_ms());
    }
    Ok(response)
}

fn permitted(
    state: &cvlan_core::State,
    session: &Session,
    permission: cvlan_core::access::Permission,
    whose: Whose,
    params: &RawPathParams,
) -> Result<Option<Arc<TenantState>>, Problem> {
    let user = &session.user;
    let (home, tenant) = match whose {
        Whose::Cluster => (None, TenantId::default()),
        Whose::Own => (None, user.tenant),
        Whose::Tenant => {
            let home = state.tenant_find(param(params, "t")).ok_or_else(tenant_unknown)?;
            (Some(home.clone()), home.record.id)
        }
    };
    if allowed(user.role, user.tenant, permission, tenant) {
        return Ok(home);
    }
    // The rule's own words; another tenant's thing is not found.
    permit(state, &Actor::User(user.id, user.name.to_string()), permission, tenant)?;
    Ok(home)
}

/// What every answer of the API has.
fn dressed(answer: Result<Response, Problem>, request_id: String) -> Response {
    let mut response = answer.into_response();
    let unproven = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    if unproven {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::try_from(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

fn request_id(app: &App, headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(|id| {
        (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    });
    given.map_or_else(|| app.request_ids.next(), str::to_owned)
}

fn unknown(path: &str) -> Problem {
    Problem::not_found("route_not_found", format!("there is nothing at {path}"))
}

fn reason_read(headers: &HeaderMap) -> Result<String, Problem> {
    let Some(value) = headers.get(REASON) else { return Ok(String::new()) };
    let invalid =
        || Problem::invalid("reason_invalid", "Cvlan-Reason is UTF-8 text, percent-encoded where it is not ASCII");
    let text = value.to_str().map_err(|_| invalid())?;
    Ok(percent_decode_str(text).decode_utf8().map_err(|_| invalid())?.into_owned())
}

/// `If-Match: "SEQ"`, or `*` for whatever is there.
fn if_match_read(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let invalid = || Problem::invalid("if_match_invalid", "If-Match takes an ETag that this API gave, as in \"42\"");
    match value.to_str().map_err(|_| invalid())?.trim() {
        "*" => Ok(None),
        text => text.trim_matches('"').parse().map(Some).map_err(|_| invalid()),
    }
}

fn asks_fresh(headers: &HeaderMap, query: &str) -> bool {
    headers.contains_key(CHECKPOINT) || query.contains(CONSISTENCY)
}

/// How fresh a read must be: `Cvlan-Checkpoint`, `?consistency=linearizable`.
fn freshness_read(headers: &HeaderMap, query: &str) -> Result<Freshness, Problem> {
    let mut wanted = Freshness::default();
    if let Some(value) = headers.get(CHECKPOINT) {
        let invalid =
            || Problem::invalid("checkpoint_invalid", "Cvlan-Checkpoint is 32 hex digits, a dot and a number");
        let at_least: Checkpoint = value.to_str().map_err(|_| invalid())?.trim().parse().map_err(|_| invalid())?;
        wanted.at_least = Some(at_least);
    }
    for (_, value) in form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == CONSISTENCY) {
        wanted.linearizable = match value.as_ref() {
            "linearizable" => true,
            "local" => false,
            _ => return Err(Problem::invalid("query_invalid", "consistency is local or linearizable")),
        };
    }
    Ok(wanted)
}

/// The query's parameters; one that the route does not have is refused, not ignored.
fn query_read(query: &str, reads: bool, known: &'static [&'static str]) -> Result<Params, Problem> {
    let mut params = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if reads && name == CONSISTENCY {
            continue;
        }
        if !known.contains(&name.as_ref()) {
            let detail = match known {
                [] => format!("this route takes no parameter {name:?}"),
                _ => format!("this route takes no parameter {name:?}; it takes {}", known.join(", ")),
            };
            return Err(Problem::invalid("query_invalid", detail));
        }
        params.push((name.into_owned(), value.into_owned()));
    }
    Ok(Params(params))
}

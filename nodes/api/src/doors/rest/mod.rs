//! The REST door: one straight line from a request to its answer, the same for every route.
//!
//! ```text
//!  path ─► ROUTES (404, 405) ─► session (401) ─► tenant (404) ─► permission (403) ─► query, freshness ─► body (413, 415, 400)
//!       ─► app ─► answer with ETag, Cvlan-Checkpoint, Cvlan-Time, X-Request-Id          any error: problem+json
//! ```
//! What a route needs is in its line of [`routes::ROUTES`], nowhere else. Everything outside /api/v1 is the UI.

pub mod call;
pub mod events;
pub mod reply;
pub mod routes;
pub mod ui;

use super::accept::{Client, Handler};
use super::body::{Body, body_read, json_expected, problem_response};
use crate::app::list::Params;
use crate::app::{App, Caller};
use crate::auth::Session;
use crate::metrics::Other;
use crate::problem::Problem;
use bytes::Bytes;
use call::Call;
use cvlan_core::access::{allowed, permit, tenant_unknown};
use cvlan_core::id::{Checkpoint, TenantId};
use cvlan_core::state::TenantState;
use cvlan_core::{Actor, State};
use cvlan_raft::Head;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use routes::{Access, ROUTES, Route, Whose};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
/// Longest request id that is taken over.
const REQUEST_ID_MAX: usize = 64;

/// A line of ROUTES, its place there, and what its path's placeholders stand for.
type Found = (usize, &'static Route, Vec<(String, String)>);

/// Answers it.
#[derive(Clone)]
pub struct RestDoor {
    app: Arc<App>,
    router: Arc<matchit::Router<Vec<usize>>>,
    /// Ids that this process gives to requests: random once, then counted.
    ids: Arc<(u64, AtomicU64)>,
}

impl RestDoor {
    /// With a router made of [`ROUTES`].
    pub fn new(app: Arc<App>) -> Result<Self, matchit::InsertError> {
        let mut paths: Vec<(&str, Vec<usize>)> = Vec::new();
        for (i, route) in ROUTES.iter().enumerate() {
            match paths.iter_mut().find(|(path, _)| *path == route.path) {
                Some((_, routes)) => routes.push(i),
                None => paths.push((route.path, vec![i])),
            }
        }
        let mut router = matchit::Router::new();
        for (path, routes) in paths {
            router.insert(path, routes)?;
        }
        let first = u64::from_be_bytes(crate::random::bytes());
        Ok(Self { app, router: Arc::new(router), ids: Arc::new((first, AtomicU64::new(1))) })
    }

    fn request_id(&self, headers: &HeaderMap) -> String {
        let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(|id| {
            (1..=REQUEST_ID_MAX).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        });
        match given {
            Some(id) => id.to_owned(),
            None => format!("{:016x}-{:x}", self.ids.0, self.ids.1.fetch_add(1, Relaxed)),
        }
    }

    async fn api(&self, client: &Client, request: Request<Incoming>) -> (Result<usize, Other>, Response<Body>) {
        let request_id = self.request_id(request.headers());
        let path = request.uri().path().get(BASE.len()..).unwrap_or_default();
        let (route, answer) = match self.find(path, request.method()) {
            Ok((at, route, params)) => (Ok(at), self.run(route, params, client, request, &request_id).await),
            Err(problem) => (Err(Other::None), Err(problem)),
        };
        let mut response = answer.unwrap_or_else(|problem| problem_response(&problem));
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
        (route, response)
    }

    /// The line of ROUTES, and what its path's placeholders stand for.
    fn find(&self, path: &str, method: &Method) -> Result<Found, Problem> {
        let unknown = || {
            let detail = format!("there is nothing at {BASE}{path}; README names the paths");
            Problem::not_found("route_not_found", detail)
        };
        let found = self.router.at(path).map_err(|_| unknown())?;
        let routes = || found.value.iter().filter_map(|i| Some((*i, ROUTES.get(*i)?)));
        let Some((at, route)) = routes().find(|(_, r)| r.method == *method) else {
            let known = routes().map(|(_, r)| r.method.as_str()).collect::<Vec<_>>().join(", ");
            let detail = format!("{BASE}{path} takes {known}");
            let allow = Some(known);
            return Err(Problem {
                allow,
                ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            });
        };
        let mut params = Vec::with_capacity(2);
        for (name, value) in found.params.iter() {
            let value = percent_decode_str(value).decode_utf8().map_err(|_| unknown())?;
            params.push((name.to_owned(), value.into_owned()));
        }
        Ok((at, route, params))
    }

    async fn run(
        &self,
        route: &'static Route,
        params: Vec<(String, String)>,
        client: &Client,
        request: Request<Incoming>,
        request_id: &str,
    ) -> Result<Response<Body>, Problem> {
        let head = self.app.log.head();
        let (parts, body) = request.into_parts();
        let headers = &parts.headers;
        let (caller, home) = match route.access {
            Access::Public => (None, None),
            Access::Session => (Some(self.session(&head.machine, headers)?), None),
            Access::May(permission, whose) => {
                let session = self.session(&head.machine, headers)?;
                let home = self.permitted(&head.machine, &session, permission, whose, &params)?;
                (Some(session), home)
            }
        };
        let caller = match caller {
            Some(session) => Some(Caller {
                session,
                request_id: request_id.to_owned(),
                reason: reason_read(headers)?,
                source: client.address,
                if_revision: if_match_read(headers)?,
            }),
            None => None,
        };
        let query = query_read(parts.uri.query().unwrap_or_default(), route.query)?;
        let at_least = match parts.method {
            Method::GET => checkpoint_read(headers, &head)?,
            _ => None,
        };
        let bytes = if route.request.is_empty() {
            Bytes::new()
        } else {
            json_expected(headers)?;
            body_read(body).await?
        };
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let (app, source) = (self.app.clone(), client.address);
        (route.run)(Call { app, head, caller, home, params, query, body: bytes, source, at_least, accept }).await
    }

    fn session(&self, state: &State, headers: &HeaderMap) -> Result<Session, Problem> {
        let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = given.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(|| {
            Problem::unproven(
                "session_missing",
                "log in first: POST /api/v1/auth/login, then Authorization: Bearer TOKEN",
            )
        })?;
        self.app.auth.access(state, token.trim())
    }

    fn permitted(
        &self,
        state: &State,
        session: &Session,
        permission: cvlan_core::access::Permission,
        whose: Whose,
        params: &[(String, String)],
    ) -> Result<Option<Arc<TenantState>>, Problem> {
        let user = &session.user;
        let (home, tenant) = match whose {
            Whose::Cluster => (None, TenantId::default()),
            Whose::Own => (None, user.tenant),
            Whose::Tenant => {
                let name = params.iter().find(|(n, _)| n == "t").map(|(_, v)| v.as_str()).unwrap_or_default();
                let home = state.tenant_find(name).ok_or_else(tenant_unknown)?;
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
}

impl Handler for RestDoor {
    async fn handle(&self, client: Arc<Client>, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let path = request.uri().path();
        let (route, response) = match path.strip_prefix(BASE) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => self.api(&client, request).await,
            _ => (Err(Other::Ui), ui::serve(request.method(), path)),
        };
        let (status, micros) = (response.status().as_u16(), started.elapsed().as_micros() as u64);
        match route {
            Ok(at) => self.app.metrics.route(at, status, micros),
            Err(other) => self.app.metrics.other(other, status, micros),
        }
        response
    }
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

/// The checkpoint that the reader wants to see at least.
fn checkpoint_read(headers: &HeaderMap, head: &Head<State>) -> Result<Option<Checkpoint>, Problem> {
    let Some(value) = headers.get(CHECKPOINT) else { return Ok(None) };
    let invalid = || Problem::invalid("checkpoint_invalid", "Cvlan-Checkpoint is 32 hex digits, a dot and a number");
    let wanted: Checkpoint = value.to_str().map_err(|_| invalid())?.trim().parse().map_err(|_| invalid())?;
    if wanted.epoch != head.epoch {
        let detail = format!("the log here is of epoch {}; forget what you know of another one", head.epoch);
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "epoch_other", detail));
    }
    if wanted.seq > head.seq {
        let detail = format!("event {} does not exist yet; the log is at {}", wanted.seq, head.seq);
        return Err(Problem::invalid("checkpoint_beyond", detail));
    }
    Ok(Some(wanted))
}

/// The query's parameters; one that the route does not have is refused, not ignored.
fn query_read(query: &str, known: &'static [&'static str]) -> Result<Params, Problem> {
    let mut params = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
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

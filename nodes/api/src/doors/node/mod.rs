//! The machines' door: discover, register, sync. TLS with the CA's own chain; a client certificate is asked for, proven
//! where it is sent, and needed for sync and poll alone.
//!
//! ```text
//!  GET  /client/discover?tenant=SLUG   anyone, 100/s an address
//!  POST /client/register               anyone with a token, 10/s an address
//!  POST /client/poll                   a node's certificate, 50/s an address: the same as one JSON answer
//!  GET  /client/sync                   a node's certificate, Upgrade: cvlan-sync/1 ─► 101 ─► sync: a bare framed stream
//! ```
//! A certificate of another CA, or an expired one, ends in a TLS alert, before any request.

pub mod poll;
pub mod sync;

use super::accept::Client;
use super::body::{body_read, json_expected, json_read};
use super::forward::Forward;
use super::rest::CHECKPOINT;
use crate::app::{App, register};
use crate::metrics::Other;
use crate::problem::Problem;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::MethodRouter;
use axum::{Extension, Router};
use cvlan_proto::v1;
use http::{HeaderValue, Uri, header};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// Its router.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/client/discover", only("GET").get(discover))
        .route("/client/register", only("POST").post(register))
        .route("/client/poll", only("POST").post(poll::poll))
        .route("/client/sync", only("GET").get(sync::upgrade))
        .fallback(elsewhere)
        .layer(from_fn_with_state(app.clone(), counted))
        .with_state(app)
}

/// A path that refuses every method but the one it gets; HEAD too, which axum would give to GET.
fn only(method: &'static str) -> MethodRouter<Arc<App>> {
    let refuse = move |uri: Uri| async move { Problem::method_not_allowed(uri.path(), method.to_owned()) };
    MethodRouter::new().head(refuse).fallback(refuse)
}

async fn counted(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let other = match request.uri().path() {
        "/client/discover" => Other::Discover,
        "/client/register" => Other::Register,
        "/client/poll" => Other::Poll,
        "/client/sync" => Other::Sync,
        _ => Other::None,
    };
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    app.metrics.other(other, response.status().as_u16(), started.elapsed().as_micros() as u64);
    response
}

async fn elsewhere(uri: Uri) -> Problem {
    let path = uri.path();
    let detail = format!("there is nothing at {path}; this is the machines' door, the API is on another port");
    Problem::not_found("route_not_found", detail)
}

async fn discover(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Arc<Client>>,
    uri: Uri,
) -> Result<Response, Problem> {
    app.limits.discover.check(client.address, &app.metrics)?;
    let query = uri.query().unwrap_or_default();
    let tenant = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "tenant").map(|(_, v)| v);
    let tenant = tenant.ok_or_else(|| Problem::invalid("query_invalid", "name the tenant: ?tenant=SLUG"))?;
    json(&register::discover(&app, &tenant).await?)
}

async fn register(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Arc<Client>>,
    request: Request,
) -> Result<Response, Problem> {
    app.limits.register.check(client.address, &app.metrics)?;
    json_expected(request.headers())?;
    let (parts, body) = request.into_parts();
    let (body, request_id) = (body_read(body).await?, app.request_ids.next());
    if !app.decides() {
        let (method, uri, headers) = (&parts.method, &parts.uri, &parts.headers);
        let (client, request_id, body) = (client.as_ref(), request_id.as_str(), body.to_vec());
        // The same machine again is the same node.
        let forward = Forward { machines: true, method, uri, headers, body, client, request_id, again: true };
        return forward.send(&app, true).await;
    }
    let body: v1::RegisterRequest = json_read(&body)?;
    let mut response = json(&register::register(&app, body, client.address, request_id).await?)?;
    // Whoever passes it on waits until it knows the node itself.
    let at = HeaderValue::try_from(app.log.head().checkpoint().to_string()).map_err(Problem::internal)?;
    response.headers_mut().insert(CHECKPOINT, at);
    Ok(response)
}

fn json<T: Serialize>(value: &T) -> Result<Response, Problem> {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).map_err(Problem::internal)?));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

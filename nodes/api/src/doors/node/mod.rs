//! The machines' door: discover, register, sync. TLS with the CA's own chain; a client certificate is asked for, proven
//! where it is sent, and needed for sync alone.
//!
//! ```text
//!  GET  /client/discover?tenant=SLUG   anyone, 100/s an address
//!  POST /client/register               anyone with a token, 10/s an address
//!  GET  /client/sync                   a node's certificate, Upgrade: cvlan-sync/1 ─► 101 ─► sync: a bare framed stream
//! ```
//! A certificate of another CA, or an expired one, ends in a TLS alert, before any request.

pub mod sync;

use super::accept::{Client, Handler};
use super::body::{Body, body_read, json_expected, json_read, problem_response};
use crate::app::{App, register};
use crate::metrics::Other;
use crate::problem::Problem;
use cvlan_proto::v1;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Answers it.
#[derive(Clone)]
pub struct NodeDoor {
    app: Arc<App>,
    ids: Arc<(u64, AtomicU64)>,
}

impl NodeDoor {
    /// Its handler.
    pub fn new(app: Arc<App>) -> Self {
        let first = u64::from_be_bytes(crate::random::bytes());
        Self { app, ids: Arc::new((first, AtomicU64::new(1))) }
    }

    async fn route(&self, client: &Client, request: Request<Incoming>) -> (Other, Result<Response<Body>, Problem>) {
        let (app, metrics) = (&self.app, &self.app.metrics);
        let allowed = |method: Method| match *request.method() == method {
            true => Ok(()),
            false => {
                let detail = format!("{} takes {method}", request.uri().path());
                let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
                Err(Problem { allow: Some(method.to_string()), ..problem })
            }
        };
        match request.uri().path() {
            "/client/discover" => {
                let checked = allowed(Method::GET).and_then(|()| app.limits.discover.check(client.address, metrics));
                (Other::Discover, checked.and_then(|()| self.discover(&request)))
            }
            "/client/register" => {
                let checked = allowed(Method::POST).and_then(|()| app.limits.register.check(client.address, metrics));
                let answer = match checked {
                    Ok(()) => self.register(client, request).await,
                    Err(problem) => Err(problem),
                };
                (Other::Register, answer)
            }
            "/client/sync" => {
                let checked = allowed(Method::GET);
                (Other::Sync, checked.and_then(|()| sync::upgrade(app, client, request)))
            }
            path => {
                let detail =
                    format!("there is nothing at {path}; this is the machines' door, the API is on another port");
                (Other::None, Err(Problem::not_found("route_not_found", detail)))
            }
        }
    }

    fn discover(&self, request: &Request<Incoming>) -> Result<Response<Body>, Problem> {
        let query = request.uri().query().unwrap_or_default();
        let tenant = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "tenant").map(|(_, v)| v);
        let tenant = tenant.ok_or_else(|| Problem::invalid("query_invalid", "name the tenant: ?tenant=SLUG"))?;
        json(&register::discover(&self.app, &self.app.log.head(), &tenant)?)
    }

    async fn register(&self, client: &Client, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        json_expected(request.headers())?;
        let body = body_read(request.into_body()).await?;
        let body: v1::RegisterRequest = json_read(&body)?;
        let request_id = format!("{:016x}-{:x}", self.ids.0, self.ids.1.fetch_add(1, Relaxed));
        json(&register::register(&self.app, body, client.address, request_id).await?)
    }
}

impl Handler for NodeDoor {
    async fn handle(&self, client: Arc<Client>, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let (other, answer) = self.route(&client, request).await;
        let mut response = answer.unwrap_or_else(|problem| problem_response(&problem));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let micros = started.elapsed().as_micros() as u64;
        self.app.metrics.other(other, response.status().as_u16(), micros);
        response
    }
}

fn json<T: Serialize>(value: &T) -> Result<Response<Body>, Problem> {
    let mut response = Response::new(Body::whole(serde_json::to_vec(value).map_err(Problem::internal)?));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

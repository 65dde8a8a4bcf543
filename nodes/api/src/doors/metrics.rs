//! The plain door for probes and Prometheus: /metrics, /livez, /readyz. Loopback by default; it changes nothing.

use super::accept::{Client, Handler};
use super::body::Body;
use crate::app::App;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use std::sync::Arc;

/// Answers it.
#[derive(Clone)]
pub struct MetricsDoor(pub Arc<App>);

impl Handler for MetricsDoor {
    async fn handle(&self, _: Arc<Client>, request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.0.metrics.render(&self.0));
                let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            "/livez" => match self.0.log.status().fatal {
                None => text(StatusCode::OK, "alive\n".to_owned()),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("stopped: {why}\n")),
            },
            "/readyz" => match not_ready(&self.0) {
                None => text(StatusCode::OK, "ready\n".to_owned()),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            _ => text(StatusCode::NOT_FOUND, "try /metrics, /livez or /readyz\n".to_owned()),
        }
    }
}

fn not_ready(app: &App) -> Option<&'static str> {
    let raft = app.log.status();
    if *app.draining.borrow() {
        Some("stopping")
    } else if raft.diverged.is_some() {
        Some("this member's state differs from the leader's")
    } else if raft.leader.is_none() {
        Some("no leader")
    } else if app.views.checkpoint().epoch != app.log.head().epoch {
        Some("the view is being built")
    } else {
        None
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    response
}

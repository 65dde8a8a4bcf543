//! The plain door for probes and Prometheus: /metrics, /livez, /readyz. Loopback by default; it changes nothing.

use crate::app::{App, cut_off};
use crate::cluster::keeper::DIVERGED;
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use std::sync::Arc;

/// Its router.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .fallback(|| async { (StatusCode::NOT_FOUND, "try /metrics, /livez or /readyz\n") })
        .with_state(app)
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render(&app))
}

async fn alive(State(app): State<Arc<App>>) -> (StatusCode, String) {
    match app.log.status().fatal {
        None => (StatusCode::OK, "alive\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("stopped: {why}\n")),
    }
}

async fn ready(State(app): State<Arc<App>>) -> (StatusCode, String) {
    match not_ready(&app) {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// Entries that are known to be committed and not applied here, beyond which this member says that it is behind.
const BEHIND: u64 = 10_000;

fn not_ready(app: &App) -> Option<&'static str> {
    let raft = app.log.status();
    if *app.draining.borrow() {
        Some("stopping")
    } else if app.removed() {
        Some("this member was removed from the cluster")
    } else if raft.diverged.is_some() {
        Some(DIVERGED)
    } else if let Some(why) = cut_off::why(&raft, &app.log.head().members) {
        Some(why)
    } else if raft.committed_index.saturating_sub(raft.applied_index) > BEHIND {
        Some("this member is behind")
    } else if app.views.checkpoint().epoch != app.log.head().epoch {
        Some("the view is being built")
    } else {
        None
    }
}

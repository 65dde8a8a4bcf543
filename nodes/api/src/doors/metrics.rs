//! The plain door for probes and Prometheus: /metrics, /livez, /readyz. Loopback by default; it changes nothing.

use crate::app::App;
use crate::cluster::keeper::DIVERGED;
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use cvlan_raft::{Members, PeerStatus, Status};
use http::{StatusCode, header};
use std::collections::BTreeSet;
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

/// A member that is silent for so long is away, milliseconds: some election timeouts.
const SILENT_MS: u64 = 3_000;

/// Why nothing new comes here. Raft names the last leader until there is another one, be it away or not.
fn cut_off(raft: &Status, members: &Members) -> Option<&'static str> {
    let silent = |id: u64, ms: fn(&PeerStatus) -> Option<u64>| {
        raft.peers.iter().find(|peer| peer.id == id).and_then(ms).is_none_or(|ms| ms > SILENT_MS)
    };
    match raft.leader {
        None => Some("no leader"),
        Some(leader) if leader != raft.member => {
            silent(leader, |peer| peer.heard_ms).then_some("no leader: the last one is silent")
        }
        Some(own) => {
            let there = |id: &&u64| **id == own || !silent(**id, |peer| peer.answered_ms);
            let majority = |voters: &BTreeSet<u64>| 2 * voters.iter().filter(there).count() > voters.len();
            (!members.voters.iter().all(majority)).then_some("no majority: too few of those that vote answer")
        }
    }
}

fn not_ready(app: &App) -> Option<&'static str> {
    let raft = app.log.status();
    if *app.draining.borrow() {
        Some("stopping")
    } else if app.removed() {
        Some("this member was removed from the cluster")
    } else if raft.diverged.is_some() {
        Some(DIVERGED)
    } else if let Some(why) = cut_off(&raft, &app.log.head().members) {
        Some(why)
    } else if raft.committed_index.saturating_sub(raft.applied_index) > BEHIND {
        Some("this member is behind")
    } else if app.views.checkpoint().epoch != app.log.head().epoch {
        Some("the view is being built")
    } else {
        None
    }
}

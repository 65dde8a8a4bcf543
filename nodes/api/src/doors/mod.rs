//! The doors: where the outside comes in. They prove who asks, bound what is taken, and speak HTTP; what is done is in
//! `app`.
//!
//! ```text
//!  8443  rest     TLS, HTTP/1.1 + 2     people and scripts: ROUTES, live events, the UI
//!  8444  node     TLS, HTTP/1.1         machines: discover, register, sync (client certificate)
//!  9443  metrics  plain, loopback       Prometheus, probes
//!            accept: one loop for all of them: limits, handshake and header timeouts, draining
//! ```

pub mod accept;
pub mod body;
pub mod forward;
pub mod limit;
pub mod metrics;
pub mod node;
pub mod rest;

/// Returns once the controller stops.
pub(crate) async fn drained(draining: &mut tokio::sync::watch::Receiver<bool>) {
    // An error means that the sender is gone: the controller has stopped.
    let _ = draining.wait_for(|d| *d).await;
}

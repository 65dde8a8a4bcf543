//! The controller: a member of the log, and the doors around it.
//!
//! ```text
//!  people, scripts ─ 8443 ─► doors/rest ─┐                        ┌─► streams: wake-ups by scope, presence
//!  machines ──────── 8444 ─► doors/node ─┼─► app ─► log (Raft) ───┼─► views: SQL lists, audit
//!  Prometheus ────── 9443 ─► doors/metrics                applied └─► live events
//!  other members ─── 8445 ─► cluster ────────────────────────► log: Raft, joins
//!                               auth, ca: who is who
//! ```
//! Invariants: `app` knows no HTTP, doors know no rule; a write is answered from the state after it, never from a view; a
//! refusal leaves nothing in the log; whatever comes from outside has a named bound; no panic is reachable from outside.
//!
//! Start reading at [`server`] (what a process is made of), then [`doors::rest::routes`] (what there is), then one noun
//! in [`app`]. Deliberately absent: rules (core), SQL (projections), storage (raft).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod app;
pub mod auth;
pub mod bootstrap;
pub mod ca;
pub mod cluster;
pub mod config;
pub mod doors;
pub mod engine;
pub mod keys;
pub mod metrics;
pub mod presence;
pub mod problem;
mod random;
pub mod server;
pub mod start_error;
pub mod streams;

/// The log of this controller.
pub type Log = cvlan_raft::Member<cvlan_core::Rules, openraft_rt_tokio::TokioRuntime>;

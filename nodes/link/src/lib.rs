//! What every agent shares: enrolment, mTLS, sync from a checkpoint, local state, the local protocol.
//!
//! ```text
//!  token ─► enrol ─► identity ─┐
//!                              ▼
//!  controller ◄─TLS, pinned CA─► door ─► sync::follow ─► Session (no I/O) ─► Effect
//!                                                                              │ one transaction
//!  cvland ◄──── ipc (unix socket) ◄──── the agent ◄──── Store (state.db) ◄─────┘
//! ```
//!
//! Invariants:
//! - Nothing is trusted on first use: the CA's key is pinned by the token, and every connection is checked against it.
//! - Private keys are made here and never leave: the device key signs a CSR, the WireGuard key stays in the data daemon.
//! - Peers and the checkpoint they stand at change in one transaction; the checkpoint never goes back within an epoch.
//! - What comes from outside is bounded (frames, bodies, peers) and can be an error, never a panic.
//!
//! Start reading at `sync/session.rs` (the rules), then `sync/follow.rs` (the loop around it).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod backoff;
pub mod door;
pub mod enrol;
pub mod ifaces;
pub mod ipc;
pub mod store;
pub mod sync;
pub mod tls;

/// Version that this agent reports.
pub const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Peers that an agent keeps; a network of more does not fit a machine.
pub const PEERS_MAX: usize = 65_536;
/// Controller URLs that an agent keeps.
pub const URLS_MAX: usize = 16;

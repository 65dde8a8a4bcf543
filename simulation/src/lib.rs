//! Deterministic simulation of the real log and the real rules, and the benchmarks.
//!
//! ```text
//!  seed ─► world: boots a process ─► raft/ + core/ on NodeRt (virtual time, one thread) and SimDisk
//!            │                              ▲ clients: commands from core's grammar, retried under one number
//!            ├─ ends it at a call, at a time, in order; cuts the power; damages a snapshot; fills the disk
//!            └─ ledger: what was observed, acknowledged, rejected ─► checks after every recovery and at the end
//! ```
//! Invariants: the same seed gives the same trace, in any process; nothing reads a clock, a random number or an address
//! of the machine. Members and a network between them come with more members: [`runtime`] and [`disk`] are per process.
//!
//! Where to start reading: [`world`]. [`bench`] measures the same code on real files and threads; [`torture`] breaks real
//! processes and networks under a real load.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod bench;
pub mod clock;
pub mod cluster;
pub mod disk;
pub mod https;
pub mod ledger;
pub mod net;
pub mod picture;
pub mod progress;
pub mod report;
pub mod runner;
pub mod runtime;
pub mod setup;
pub mod shrink;
pub mod torture;
pub mod trace;
pub mod world;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks that survive a panic elsewhere.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The controller from outside: the real server on loopback, real TLS with the CA pinned, a data folder of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod access;
mod archive;
mod bad_input;
mod cluster;
mod common;
mod idempotency;
#[path = "../machine/mod.rs"]
mod machine;
mod process;
mod record;
mod rest;
mod sink;
mod sync;

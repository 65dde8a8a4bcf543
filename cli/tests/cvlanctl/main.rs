//! `cvlanctl` against a real controller, over real TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod backup;
mod bad_input;
mod cluster;
mod common;
mod import;
mod nouns;
mod proof;
mod session;
mod timeline;

//! Three controllers as processes on loopback: what a cluster is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod backup;
mod common;
mod keys;
mod life;
#[allow(dead_code)] // Other tests read what comes, too.
#[path = "../machine/mod.rs"]
mod machine;
mod postgres;
mod presence;
mod proof;
mod rebuild;
mod upgrade;

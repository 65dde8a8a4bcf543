//! Members on real files. One program: openraft is compiled for a machine once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod backfill;
mod cluster;
mod commands;
mod common;
mod damage;
mod force;
mod member;
mod restore;
mod retain;
mod tree;

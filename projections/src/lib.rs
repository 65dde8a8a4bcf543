//! The views: SQL tables folded from the log, and the lists and searches that they answer.
//!
//! ```text
//!  applied entry ──push──► Writer ── coalesced ≤ 50 ms ──► Views::fold ── one transaction ──► views.db ──► lists, audit
//!  (state, events)           │                              │ rows: row(state, key) for the touched keys
//!                            └─ reads what it missed        │ audit: one row an event
//!                               from the log (History)      └ meta: the checkpoint, as fence
//! ```
//! Invariants: a row is a function of the state, so a kept view equals a rebuilt one; rows, audit and checkpoint change in
//! one transaction; a view of another epoch or schema, or a damaged file, is thrown away and rebuilt; no decision reads a
//! view; every list takes the tenant it is for.
//!
//! One file a noun: its table, `row` and `rows` from a state, its mapping to the API's message. What is done with them is
//! in `fold.rs`, once; `sqlite.rs` and `postgres/` are where it goes to. Doors read SQLite alone.
//!
//! Start reading at `node.rs`, then `fold.rs` and [`Writer`]. Deliberately absent: async (but inside `postgres/`), the log
//! itself, presence, secrets.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod audit;
mod cvlan;
mod db;
mod error;
mod fold;
mod list;
mod meta;
mod node;
mod postgres;
mod sqlite;
mod table;
mod tenant;
#[cfg(test)]
mod testing;
mod token;
mod user;
mod writer;

pub use audit::{AuditPage, AuditQuery};
pub use db::Views;
pub use error::Error;
pub use list::{LIMIT_DEFAULT, LIMIT_MAX, Page, Query};
pub use postgres::{PostgresStatus, PostgresUrl};
pub use writer::{Advanced, History, PENDING_MAX, Past, Writer};

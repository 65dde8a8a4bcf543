//! The rules of CVLAN: pure, no I/O, no clock, no randomness.
//!
//! ```text
//!  command ─► decide(&State, &Context, &Command) ─► Vec<Event>        may refuse
//!  event   ─► apply(&mut State, &Event)                               cannot fail, never changes for an old event
//!  event   ─► touched(&Event) ─► keys ─► views (rows) and deltas (scopes)
//!  State   ─► map / changes ─► what an agent is told                  sync::Session decides when
//! ```
//! Invariants: no address is held by two nodes; a WireGuard key names one node in the whole cluster; a tenant's ranges
//! do not overlap; replaying the log gives the same state, byte for byte ([`machine::Machine::save`]).
//!
//! Start reading at [`rules`], then at one noun ([`cvlan`] is the simplest), then [`scope`], [`map`] and [`sync`].
//! Deliberately absent: sockets, files, SQL, async, any knowledge of Raft.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod access;
pub mod address;
pub mod command;
pub mod cvlan;
pub mod finder;
mod forwarded;
pub mod grammar;
pub mod id;
pub mod idempotency;
pub mod log;
pub mod machine;
pub mod map;
pub mod member;
pub mod name;
pub mod node;
pub mod presence;
pub mod redact;
pub mod rejection;
pub mod rules;
mod save;
pub mod scope;
pub mod seal;
pub mod state;
pub mod sync;
pub mod system;
pub mod tenant;
pub mod token;
pub mod user;
mod wire;

#[cfg(test)]
mod given;
#[cfg(test)]
mod tests;

pub use command::{Actor, Command, Meta, Wish};
pub use rejection::Rejection;
pub use rules::Rules;
pub use state::State;

//! The embedded log: our own segmented write-ahead log, and the snapshots beside it.
//!
//! ```text
//! append, vote, truncate, purge ─► one ordered queue ─► block being filled │ block being written + synced ─► callbacks
//!                                   (readable at once: tail cache)            one in flight; what arrives meanwhile
//!                                                                             is the next block: group commit
//! ```
//! `codec` says what a record is, `segment` how records become bytes, `wal` moves blocks, `open` reads a folder back,
//! `history` reads what left the cache, `past` holds what came before it from elsewhere, `trim` lets old files go, `log` shows it
//! all to openraft, `snapshot` keeps heads, `bare` is all of it but Raft.
//!
//! Invariants: all writes, votes too, go through one queue in order; a caller hears of a record only after it and
//! everything before it is synced; the log has no hole; entries are never removed by a purge, their visibility to
//! openraft is.

pub mod bare;
pub mod codec;
pub(crate) mod history;
pub(crate) mod log;
pub(crate) mod open;
pub(crate) mod past;
pub mod segment;
pub(crate) mod snapshot;
pub(crate) mod trim;
pub(crate) mod wal;

#[cfg(test)]
mod tests;

//! The log: openraft on a write-ahead log of our own, a sequencer in front, snapshots behind. Knows no noun: generic over
//! [`cvlan_core::machine::Machine`], over openraft's async runtime, and over three seams ([`Clock`], [`Disk`],
//! [`Transport`]), so that the same code runs on real machines and in a simulation.
//!
//! ```text
//!  Member::write(command)
//!      │  bounded queue
//!      ▼
//!  sequencer ── decides against the head incl. what is in flight, several entries on their way ──► raft.write(entry)
//!      ▲                                                                                              │
//!      │ flight: (entry, head after it, callers)                                                      ▼
//!      │                                                              store: blocks of records, one sync a group commit
//!  apply ◄── committed entries, read from the tail cache ◄── quorum ◄── IOFlushed ◄───────────────────┘
//!      │  an entry of the flight's front: its head is swapped in; any other: folded
//!      ├──► observers (views, deltas, live events), then the callers' answers
//!      └──► snapshots (own trigger), checkpoints (digest of an O(1) copy)
//! ```
//! Invariants: an answer is given only for what a majority has synced; an entry is applied only where epoch, first
//! sequence number and previous root are the state's; the log is the event store, a purge moves a marker alone; a torn
//! tail is cut, any other damage is an error that names the record; recovery needs any good snapshot, not the newest.
//!
//! Where to start reading: [`member`] (the handle), `sequencer`, `replica` (apply), [`store`] (the log's bytes).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod attest;
mod backfill;
mod base;
pub mod clock;
mod confirm;
pub mod counter;
mod desk;
mod digests;
pub mod disk;
pub mod error;
mod force;
mod forward;
pub mod head;
mod hold;
mod house;
pub mod member;
mod membership;
pub mod options;
pub mod peer;
mod reading;
mod recovery;
mod relief;
mod replay;
mod replica;
mod restore;
mod retain;
mod sequencer;
pub mod sessions;
pub mod status;
pub mod store;
mod sync;
pub mod transport;
mod tree;
pub mod types;
mod upgrade;
pub mod verify;

pub use base::Base;
pub use clock::{Clock, SystemClock};
pub use disk::{Disk, File, FileDisk, Files, Job, Lane, LogStore, SledDisk};
pub use error::{HistoryError, MemberError, OpenError, SnapshotError, VerifyError, WriteError};
pub use force::{Forced, force_new_cluster};
pub use head::{Head, Members};
pub use hold::Reading;
pub use member::{Answer, Attested, EntryFrame, Item, Member};
pub use options::{Applied, Events, Limits, Observer, Options, Plant, Timing};
pub use restore::{Restored, restore};
pub use status::{Counts, PeerStatus, Role, Status};
pub use transport::{NoTransport, Pipe, Transport};
pub use tree::{Consistency, Inclusion, Proof};
pub use verify::{VerifyReport, read_dir, verify_dir};

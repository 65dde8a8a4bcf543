//! The log's formats that outsiders check: the frame around an entry, the entry, the Merkle tree over events.
//!
//! ```text
//! frame  = u32 LE length │ u32 LE CRC32C │ u8 format │ Entry (protobuf)       length counts format + Entry
//! Entry  = {format, epoch, first_seq, prev_root, events…}                     CRC covers format + Entry
//! leaf   = SHA-256(0x00 ‖ event bytes)                                        RFC 9162 §2.1
//! ```
//! note   = a tree head, signed by voters: C2SP signed notes                    an export = events, and hashes for what it leaves out
//! raft/ stores frames verbatim; `cvlanctl log verify FILE` needs [`export`] and what it is made of.

pub mod backup;
pub mod entry;
pub mod export;
pub mod held;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod records;
pub mod stats;

pub use entry::{EntryError, EntryWriter, MAX_FRAME_BYTES, entry_decode};
pub use merkle::{CompactRange, Hash, leaf_hash};

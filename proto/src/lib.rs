//! The words of CVLAN: every message of the log, of the doors and of the agents' sync.
//!
//! `cvlan/v1/*.proto` is the source; one file a noun. `build.rs` makes the Rust types ([`v1`]) and their proto3 JSON
//! mapping (camelCase, RFC 3339 times in UTC, 64-bit numbers as strings; unknown fields are refused). TypeScript types for
//! the UI come from the same files (`make gen`). Start reading at `log.proto`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod timestamp;

/// Types of package `cvlan.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::indexing_slicing)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/cvlan.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/cvlan.v1.serde.rs"));
}

pub use prost::{Message, encode_length_delimiter, length_delimiter_len};
pub use timestamp::Timestamp;

/// The encoded `FileDescriptorSet` of `cvlan/v1/*.proto`; schemas are derived from it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

//! Randomness, from the operating system alone.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use uuid::Uuid;

/// Random bytes. Without the system's generator no secret can be made: that ends the process, by intent.
#[allow(clippy::expect_used)] // getrandom(2) cannot fail on a booted Linux; to go on would be to make guessable secrets.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's random number generator failed");
    bytes
}

/// Ids' random bytes drawn at once: a call of the system for each would be a cost of every request.
const DRAWN: usize = 64;

thread_local! {
    static IDS: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
}

/// Random bytes for an id, from the same generator; not for secrets, as others lie in memory until they are used.
fn id_bytes() -> [u8; 16] {
    IDS.with_borrow_mut(|ids| {
        if ids.is_empty() {
            ids.extend(bytes::<{ DRAWN * 16 }>().as_chunks().0);
        }
        ids.pop().unwrap_or_default()
    })
}

/// A random id (RFC 9562 version 4).
pub fn uuid() -> Uuid {
    uuid::Builder::from_random_bytes(id_bytes()).into_uuid()
}

/// An id that sorts by time (RFC 9562 version 7): things made together lie together in maps and tables.
pub fn uuid_sorted(now_ms: u64) -> Uuid {
    let random = id_bytes();
    uuid::Builder::from_unix_timestamp_millis(now_ms, random.first_chunk().unwrap_or(&[0; 10])).into_uuid()
}

/// Names of this process's requests: random once, then counted.
pub struct RequestIds(u64, AtomicU64);

impl Default for RequestIds {
    fn default() -> Self {
        Self(u64::from_be_bytes(bytes()), AtomicU64::new(1))
    }
}

impl RequestIds {
    /// Another one.
    pub fn next(&self) -> String {
        format!("{:016x}-{:x}", self.0, self.1.fetch_add(1, Relaxed))
    }
}

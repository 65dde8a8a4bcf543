//! Randomness, from the operating system alone.

use uuid::Uuid;

/// Random bytes. Without the system's generator no secret can be made: that ends the process, by intent.
#[allow(clippy::expect_used)] // getrandom(2) cannot fail on a booted Linux; to go on would be to make guessable secrets.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system's random number generator failed");
    bytes
}

/// A random id (RFC 9562 version 4).
pub fn uuid() -> Uuid {
    uuid::Builder::from_random_bytes(bytes()).into_uuid()
}

/// An id that sorts by time (RFC 9562 version 7): things made together lie together in maps and tables.
pub fn uuid_sorted(now_ms: u64) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(now_ms, &bytes()).into_uuid()
}

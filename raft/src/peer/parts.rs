//! A long request to append goes in parts, each a request of its own: heartbeats find room between them. Behind some MiB in
//! one frame, on a link that takes a second for it, a member would miss its leader.
//!
//! ```text
//! Part 7, byte 0 ─ Part 7, byte 64 Ki ─ a heartbeat ─ Part 7, byte 128 Ki ─ … ─ AppendParts 7, length
//!        └─ Have ──────────┘ PARTS_MIN to PARTS_MAX on their way
//! ```
//! Of a connection one body is put together at a time, and it is no longer than a frame may be.

use crate::peer::codec::{Answer, FRAME_MAX, FrameError};
use bytes::{Bytes, BytesMut};

/// The body that comes in.
#[derive(Default)]
pub(crate) struct Parts {
    of: u64,
    bytes: BytesMut,
}

impl Parts {
    /// Bytes that are there.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The next part. A body that begins takes the place of one that was not finished.
    pub(crate) fn push(&mut self, of: u64, offset: u64, part: &[u8]) -> Result<Answer, FrameError> {
        if offset == 0 {
            *self = Self { of, bytes: BytesMut::new() };
        }
        if self.of != of || offset != self.bytes.len() as u64 {
            return Ok(Answer::Unable("a part that does not follow what is there".into()));
        }
        let length = self.bytes.len() + part.len();
        if length > FRAME_MAX {
            return Err(FrameError::TooLong(length));
        }
        self.bytes.extend_from_slice(part);
        Ok(Answer::Have { offset: length as u64 })
    }

    /// Takes the body out if all of it is there.
    pub(crate) fn take(&mut self, of: u64, length: u64) -> Option<Bytes> {
        let whole = self.of == of && self.bytes.len() as u64 == length;
        whole.then(|| std::mem::take(&mut self.bytes).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn have(offset: u64) -> Result<Answer, FrameError> {
        Ok(Answer::Have { offset })
    }

    #[test]
    fn a_body_is_what_was_sent_of_it_and_of_nothing_else() {
        let mut parts = Parts::default();
        assert_eq!(parts.push(7, 0, b"one"), have(3));
        // Another one, whose sender does not know of the first, takes its place.
        assert_eq!(parts.push(8, 0, b"two"), have(3));
        assert!(matches!(parts.push(7, 3, b"more"), Ok(Answer::Unable(_))), "of the one that is gone");
        assert!(matches!(parts.push(8, 4, b"more"), Ok(Answer::Unable(_))), "one was lost");
        assert_eq!(parts.push(8, 3, b"three"), have(8));
        assert!(matches!(parts.push(8, 3, b"three"), Ok(Answer::Unable(_))), "twice");
        assert_eq!((parts.take(7, 8), parts.take(8, 7), parts.take(8, 9)), (None, None, None));
        assert_eq!(parts.take(8, 8), Some(Bytes::from_static(b"twothree")));
        assert_eq!((parts.take(8, 8), parts.len()), (None, 0), "it was taken");
    }

    #[test]
    fn a_body_is_no_longer_than_a_frame() {
        let mut parts = Parts::default();
        let half = vec![0; FRAME_MAX / 2];
        parts.push(1, 0, &half).unwrap();
        assert_eq!(parts.push(1, half.len() as u64, &half), have(FRAME_MAX as u64));
        assert_eq!(parts.push(1, FRAME_MAX as u64, b"x"), Err(FrameError::TooLong(FRAME_MAX + 1)));
        assert_eq!(parts.len(), FRAME_MAX);
    }
}

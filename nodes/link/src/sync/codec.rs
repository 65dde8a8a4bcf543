//! Frames on the wire: a varint length, then a protobuf `SyncFrame`, at most [`FRAME_MAX`] bytes (protobuf's
//! length-delimited form).

use cvlan_core::sync::FRAME_MAX;
use cvlan_proto::Message;
use cvlan_proto::v1::SyncFrame;

/// Bytes that a length may take: 1 MiB is 21 bits.
const LENGTH_BYTES_MAX: usize = 3;
/// A buffer that a large frame has grown past this is given back.
const KEEP_BYTES: usize = 64 << 10;

/// What is no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// Longer than [`FRAME_MAX`].
    #[error("a frame of more than {FRAME_MAX} bytes")]
    TooLong,
    /// No protobuf `SyncFrame`.
    #[error("malformed frame: {0}")]
    Malformed(String),
}

impl CodecError {
    /// Stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            CodecError::TooLong => "frame_too_long",
            CodecError::Malformed(_) => "frame_malformed",
        }
    }
}

/// The bytes of one frame.
pub fn encode(frame: &SyncFrame) -> Result<Vec<u8>, CodecError> {
    if frame.encoded_len() > FRAME_MAX {
        return Err(CodecError::TooLong);
    }
    Ok(frame.encode_length_delimited_to_vec())
}

/// Makes frames of bytes, however they are cut.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// More bytes have come.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
            if self.buffer.capacity() > KEEP_BYTES {
                self.buffer = Vec::new();
            }
        } else if self.taken > KEEP_BYTES {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. After an error the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<SyncFrame>, CodecError> {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((length, head)) = length_read(rest)? else { return Ok(None) };
        let Some(body) = rest.get(head..head + length) else { return Ok(None) };
        let frame = SyncFrame::decode(body).map_err(|error| CodecError::Malformed(error.to_string()))?;
        self.taken += head + length;
        Ok(Some(frame))
    }
}

/// A varint and the bytes it took; None where there are not enough yet.
fn length_read(bytes: &[u8]) -> Result<Option<(usize, usize)>, CodecError> {
    let mut length = 0usize;
    for (at, byte) in bytes.iter().enumerate() {
        if at == LENGTH_BYTES_MAX {
            return Err(CodecError::TooLong);
        }
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return if length > FRAME_MAX { Err(CodecError::TooLong) } else { Ok(Some((length, at + 1))) };
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvlan_proto::v1::{Heartbeat, Hello, sync_frame::Frame};

    fn heartbeat(text: String) -> SyncFrame {
        SyncFrame { frame: Some(Frame::Heartbeat(Heartbeat { checkpoint: text })) }
    }

    #[test]
    fn frames_come_back_however_the_bytes_are_cut() {
        let frames: Vec<SyncFrame> = [0, 1, 100, 200, 20_000, 900_000, 3]
            .into_iter()
            .map(|length| heartbeat("x".repeat(length)))
            .chain([SyncFrame { frame: Some(Frame::Hello(Hello::default())) }])
            .collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| encode(frame).unwrap()).collect();
        for cut in [1, 2, 3, 7, 4_096, 100_000, bytes.len()] {
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames, "cut {cut}");
            decoder.push(&[]);
            assert!(
                decoder.buffer.capacity() <= KEEP_BYTES.max(2 * cut),
                "cut {cut} keeps {}",
                decoder.buffer.capacity()
            );
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let check = |bytes: &[u8], code: Option<&str>| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            let got = decoder.next_frame();
            assert_eq!(got.as_ref().err().map(CodecError::code), code, "{bytes:?}: {got:?}");
        };
        check(&[], None);
        check(&[0x80], None);
        check(&[5, 1], None);
        check(&[0xff, 0xff, 0x7f], Some("frame_too_long"));
        check(&[0x80, 0x80, 0x80, 1], Some("frame_too_long"));
        check(&[0x81, 0x80, 0x40], Some("frame_too_long"));
        check(&[2, 0xff, 0xff], Some("frame_malformed"));
        check(&[1, 0x0a], Some("frame_malformed"));
        assert_eq!(encode(&heartbeat("x".repeat(FRAME_MAX))), Err(CodecError::TooLong));
    }
}

//! The frame and the entry in it.

use crate::id::{Epoch, Seq};
use bytes::Bytes;
use cvlan_proto::v1::Entry;
use cvlan_proto::{Message, encode_length_delimiter, length_delimiter_len};
use std::ops::Range;

/// Version of the frame and of [`Entry`].
pub const FORMAT: u8 = 1;

/// Bytes before the entry: length, checksum, format.
pub const FRAME_HEADER_BYTES: usize = 9;

/// The longest frame that is written or read: 8 MiB.
pub const MAX_FRAME_BYTES: usize = 8 << 20;

/// Why bytes are no entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    /// Fewer bytes than the frame's length says.
    #[error("the frame is cut off: {have} bytes of {need}")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Longer than [`MAX_FRAME_BYTES`].
    #[error("a frame of {0} bytes is longer than any that is ever written")]
    Oversized(usize),
    /// The bytes were changed.
    #[error("the frame's checksum is wrong")]
    Checksum,
    /// Written by a newer version.
    #[error("format {0} is not known to this version")]
    Format(u8),
    /// The checksum is right and yet it does not parse.
    #[error("the entry does not parse: {0}")]
    Malformed(String),
}

impl EntryError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Short { .. } => "entry_short",
            Self::Oversized(_) => "entry_oversized",
            Self::Checksum => "entry_checksum",
            Self::Format(_) => "entry_format",
            Self::Malformed(_) => "entry_malformed",
        }
    }
}

/// Frames an entry while its events are made: each is written once, to where it stays.
#[derive(Debug)]
pub struct EntryWriter {
    out: Vec<u8>,
    /// Where each event lies in `out`.
    events: Vec<Range<usize>>,
    /// One event, before its length is known.
    event: Vec<u8>,
}

/// Field 5 of [`Entry`], length-delimited.
const EVENT_TAG: u8 = 5 << 3 | 2;

impl EntryWriter {
    /// An entry without events; `events` and `bytes` (of all events) are what is expected.
    pub fn new(epoch: Epoch, first_seq: Seq, prev_root: [u8; 32], events: usize, bytes: usize) -> Self {
        let entry = Entry {
            format: u32::from(FORMAT),
            epoch: epoch.0.to_vec(),
            first_seq: first_seq.0,
            prev_root: prev_root.to_vec(),
            events: Vec::new(),
        };
        let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + entry.encoded_len() + bytes);
        out.extend_from_slice(&[0; 8]);
        out.push(FORMAT);
        // A Vec grows as needed, so encoding into it cannot fail.
        let _ = entry.encode(&mut out);
        Self { out, events: Vec::with_capacity(events), event: Vec::new() }
    }

    /// Bytes that an event of `len` bytes takes in an entry.
    pub fn event_bytes(len: usize) -> usize {
        1 + length_delimiter_len(len) + len
    }

    /// Appends the event that `encode` writes, and returns its bytes.
    pub fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        self.event.clear();
        encode(&mut self.event);
        self.out.push(EVENT_TAG);
        let _ = encode_length_delimiter(self.event.len(), &mut self.out);
        let start = self.out.len();
        self.out.extend_from_slice(&self.event);
        self.events.push(start..self.out.len());
        &self.event
    }

    /// The frame, and each event's bytes in it.
    pub fn finish(mut self) -> (Bytes, Vec<Bytes>) {
        let (head, body) = self.out.split_at_mut(8);
        let (length, checksum) = head.split_at_mut(4);
        length.copy_from_slice(&(body.len() as u32).to_le_bytes());
        checksum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        let frame = Bytes::from(self.out);
        let events = self.events.into_iter().map(|range| frame.slice(range)).collect();
        (frame, events)
    }
}

/// Reads one frame that fills `frame` exactly. Event bytes are slices of `frame`, not copies.
pub fn entry_decode(frame: &Bytes) -> Result<Entry, EntryError> {
    let short = |need| EntryError::Short { have: frame.len(), need };
    let word = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(frame.get(at..at + 4)?.try_into().ok()?)) };
    let length = word(0).ok_or(short(FRAME_HEADER_BYTES))? as usize;
    let checksum = word(4).ok_or(short(FRAME_HEADER_BYTES))?;
    if length > MAX_FRAME_BYTES {
        return Err(EntryError::Oversized(length));
    }
    let body = frame.get(8..).filter(|b| b.len() == length && length > 0).ok_or(short(8 + length))?;
    if crc32c::crc32c(body) != checksum {
        return Err(EntryError::Checksum);
    }
    let format = body.first().copied().unwrap_or_default();
    if format != FORMAT {
        return Err(EntryError::Format(format));
    }
    Entry::decode(frame.slice(FRAME_HEADER_BYTES..)).map_err(|e| EntryError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(writer: &mut EntryWriter, event: &[u8]) {
        assert_eq!(writer.push(|out| out.extend_from_slice(event)), event);
    }

    fn frame() -> Vec<u8> {
        let mut writer = EntryWriter::new(Epoch([7; 16]), Seq(3), [9; 32], 0, 0);
        push(&mut writer, b"one");
        push(&mut writer, b"two");
        let (frame, events) = writer.finish();
        assert_eq!(events, ["one", "two"]);
        frame.into()
    }

    #[test]
    fn it_is_written_as_the_library_writes_it() {
        let events: Vec<Bytes> = [0, 1, 127, 128, 300, 70_000].map(|n| vec![n as u8; n].into()).into();
        let mut writer = EntryWriter::new(Epoch([7; 16]), Seq(300), [9; 32], 6, 1000);
        events.iter().for_each(|event| push(&mut writer, event));
        let (frame, raw) = writer.finish();
        assert_eq!(raw, events);
        let empty = Entry { format: 1, epoch: vec![7; 16], first_seq: 300, prev_root: vec![9; 32], events: Vec::new() };
        let taken: usize = events.iter().map(|event| EntryWriter::event_bytes(event.len())).sum();
        assert_eq!(FRAME_HEADER_BYTES + empty.encoded_len() + taken, frame.len());
        let entry = Entry { format: 1, epoch: vec![7; 16], first_seq: 300, prev_root: vec![9; 32], events };
        assert_eq!(frame[FRAME_HEADER_BYTES..], entry.encode_to_vec());
        assert_eq!(entry_decode(&frame), Ok(entry));
    }

    #[test]
    fn what_was_written_is_read() {
        let entry = entry_decode(&frame().into()).unwrap();
        assert_eq!((entry.first_seq, entry.events.len()), (3, 2));
        assert_eq!(entry.events[1].as_ref(), b"two");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = frame();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(entry_decode(&bad.into()).is_err(), "byte {at} bit {bit}");
            }
            assert!(entry_decode(&good[..at].to_vec().into()).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex::encode(frame()),
            "43000000aabf72520108011210070707070707070707070707070707071803222009090909090909090909090909090909090909090909090909090909090909092a036f6e652a0374776f"
        );
    }
}

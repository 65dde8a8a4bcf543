//! The bytes of a segment: a header, then blocks, each one group commit; zeros after the last.
//!
//! ```text
//! segment = "CVLANSEG" │ u32 format │ u64 number │ u64 member │ u32 crc of these │ zeros up to 64 bytes │ block, block, …, zeros
//! block   = "CVB1" │ u32 crc of what follows here │ u64 block number │ u32 bytes │ u32 records │ record, record, … │ zeros to a multiple of 8
//! record  = u32 length │ u32 crc │ bytes                                               all numbers little-endian, CRC32C
//! ```
//! One block is in flight at a time: block n+1 is written only once block n is synced. So what a crash leaves is whole
//! blocks and at most one torn one, at the end, of which nothing was acknowledged: it is cut. A bad block that a later
//! block follows was whole once: that is damage, and an error.

use crate::disk::File;
use bytes::{Bytes, BytesMut};
use std::io;

/// Version of the layout above; 1.
pub const SEGMENT_FORMAT: u32 = 1;

/// Bytes before the first block.
pub(crate) const SEGMENT_HEADER: u64 = 64;

/// Bytes before a block's records.
pub(crate) const BLOCK_HEADER: usize = 24;

/// Bytes before a record's own.
pub(crate) const RECORD_HEADER: usize = 8;

const SEGMENT_MAGIC: &[u8; 8] = b"CVLANSEG";
const BLOCK_MAGIC: &[u8; 4] = b"CVB1";
const ALIGN: usize = 8;

/// Name of a segment's file.
pub(crate) fn segment_name(number: u64) -> String {
    format!("log/{number:010}.seg")
}

/// A segment's header.
pub(crate) fn segment_header(number: u64, member: u64) -> [u8; SEGMENT_HEADER as usize] {
    let mut header = [0; SEGMENT_HEADER as usize];
    let fields =
        [SEGMENT_MAGIC, &SEGMENT_FORMAT.to_le_bytes()[..], &number.to_le_bytes(), &member.to_le_bytes()].concat();
    let crc = crc32c::crc32c(&fields).to_le_bytes();
    for (to, from) in header.iter_mut().zip(fields.into_iter().chain(crc)) {
        *to = from;
    }
    header
}

/// What a segment's header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// This version's, of this member.
    Good {
        /// Who wrote it.
        member: u64,
    },
    /// A newer version's.
    Newer(u32),
    /// None at all.
    Bad,
}

/// Reads a segment's header. Only a whole one says what it is: a flipped bit does not make a newer version.
pub(crate) fn segment_check(header: &[u8], number: u64) -> Header {
    let mut from = Fields(header);
    let fields = (from.take::<8>(), from.u32(), from.u64(), from.u64(), from.u32());
    let (Some(magic), Some(format), Some(found), Some(member), Some(crc)) = fields else { return Header::Bad };
    let whole = header.get(..28).is_some_and(|fields| crc32c::crc32c(fields) == crc);
    if &magic != SEGMENT_MAGIC || !whole {
        return Header::Bad;
    }
    if format > SEGMENT_FORMAT {
        return Header::Newer(format);
    }
    if found == number { Header::Good { member } } else { Header::Bad }
}

/// A block that is being filled; its buffer is used again and again.
#[derive(Debug)]
pub(crate) struct BlockBuf {
    bytes: Vec<u8>,
    records: u32,
}

impl Default for BlockBuf {
    fn default() -> Self {
        Self { bytes: vec![0; BLOCK_HEADER], records: 0 }
    }
}

impl BlockBuf {
    /// Appends a record; returns its offset in the block.
    pub(crate) fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; RECORD_HEADER]);
        fill(&mut self.bytes);
        let (head, record) = self.bytes.split_at_mut(at + RECORD_HEADER);
        let header = u64::from(record.len() as u32) | u64::from(crc32c::crc32c(record)) << 32;
        if let Some(slot) = head.last_chunk_mut::<RECORD_HEADER>() {
            *slot = header.to_le_bytes();
        }
        self.records += 1;
        at as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes that the block takes in its segment.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len().next_multiple_of(ALIGN) as u64
    }

    /// Completes the header and gives the bytes to write.
    pub(crate) fn seal(&mut self, segment: u64, number: u64) -> &[u8] {
        let body = (self.bytes.len() - BLOCK_HEADER) as u32;
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let fields = [&number.to_le_bytes()[..], &body.to_le_bytes(), &self.records.to_le_bytes()].concat();
        let crc = block_crc(segment, &fields).to_le_bytes();
        let header = BLOCK_MAGIC.iter().copied().chain(crc).chain(fields);
        for (to, from) in self.bytes.iter_mut().zip(header) {
            *to = from;
        }
        &self.bytes
    }

    /// Empties it; a buffer that one large block left behind is given back.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(BLOCK_HEADER);
        self.bytes.shrink_to(4 << 20);
        self.records = 0;
    }
}

/// The segment's number goes into the sum, so that a block copied from another one is none.
fn block_crc(segment: u64, fields: &[u8]) -> u32 {
    crc32c::crc32c_append(segment as u32, fields)
}

/// A block as read.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) number: u64,
    pub(crate) at: u64,
    /// Offset in the segment, bytes.
    pub(crate) records: Vec<(u64, Bytes)>,
}

/// What is at a place where a block may begin.
#[derive(Debug)]
pub(crate) enum Step {
    Block(Block),
    /// Zeros, or the segment's end.
    End,
    /// Something that is no block.
    Bad(Fault),
}

/// Where and why bytes are no block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) segment: u64,
    pub(crate) at: u64,
    pub(crate) detail: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", segment_name(self.segment), self.at)
    }
}

/// Reads blocks one after the other.
pub(crate) struct Cursor<'f> {
    file: &'f dyn File,
    segment: u64,
    /// Where the next block may begin.
    pub(crate) at: u64,
    limit: u64,
    piece: usize,
    chunk: Bytes,
    chunk_at: u64,
}

impl<'f> Cursor<'f> {
    /// From `at` up to `limit`, reading at least `piece` bytes at once.
    pub(crate) fn new(file: &'f dyn File, segment: u64, at: u64, limit: u64, piece: usize) -> Self {
        Self { file, segment, at, limit, piece, chunk: Bytes::new(), chunk_at: 0 }
    }

    /// The next block; stays where it is at the end and at something bad.
    pub(crate) fn step(&mut self) -> io::Result<Step> {
        let at = self.at;
        let Some(header) = self.bytes(at, BLOCK_HEADER)? else { return Ok(Step::End) };
        if header.iter().all(|byte| *byte == 0) {
            return Ok(Step::End);
        }
        let Some((number, body, count)) = block_header(&header, self.segment) else {
            return Ok(self.bad(at, "no block header".into()));
        };
        let body_at = at + BLOCK_HEADER as u64;
        let Some(mut rest) = self.bytes(body_at, body as usize)? else {
            return Ok(self.bad(at, format!("block {number} is longer than the segment")));
        };
        let mut records = Vec::with_capacity(count as usize);
        let mut record_at = body_at;
        for nth in 0..count {
            let Some(record) = take_record(&mut rest) else {
                return Ok(
                    self.bad(record_at, format!("record {nth} of {count} in block {number} has a wrong checksum"))
                );
            };
            let next = record_at + (RECORD_HEADER + record.len()) as u64;
            records.push((record_at, record));
            record_at = next;
        }
        if !rest.is_empty() {
            return Ok(self.bad(record_at, format!("block {number} has bytes behind its {count} records")));
        }
        self.at = (body_at + u64::from(body)).next_multiple_of(ALIGN as u64);
        Ok(Step::Block(Block { number, at, records }))
    }

    fn bad(&self, at: u64, detail: String) -> Step {
        Step::Bad(Fault { segment: self.segment, at, detail })
    }

    /// `len` bytes at `at`, a slice of what was read at once; `None` beyond the limit.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<Option<Bytes>> {
        if at + len as u64 > self.limit {
            return Ok(None);
        }
        let held =
            at.checked_sub(self.chunk_at).map(|from| from as usize).filter(|from| from + len <= self.chunk.len());
        if let Some(from) = held {
            return Ok(Some(self.chunk.slice(from..from + len)));
        }
        let size = (self.piece.max(len) as u64).min(self.limit - at) as usize;
        let mut chunk = BytesMut::zeroed(size);
        self.file.read_at(at, &mut chunk)?;
        self.chunk = chunk.freeze();
        self.chunk_at = at;
        Ok(Some(self.chunk.slice(..len)))
    }
}

/// Looks for a block with a number above `after` anywhere from `from` on.
pub(crate) fn later_block(
    file: &dyn File,
    segment: u64,
    from: u64,
    limit: u64,
    after: u64,
) -> io::Result<Option<(u64, u64)>> {
    const PIECE: u64 = 1 << 20;
    let mut at = from.next_multiple_of(ALIGN as u64);
    while at + (BLOCK_HEADER as u64) <= limit {
        let mut piece = vec![0; (PIECE + BLOCK_HEADER as u64).min(limit - at) as usize];
        file.read_at(at, &mut piece)?;
        for start in (0..piece.len()).step_by(ALIGN) {
            let Some(header) = piece.get(start..start + BLOCK_HEADER) else { break };
            if header.starts_with(BLOCK_MAGIC)
                && let Some((number, ..)) = block_header(header, segment)
                && number > after
            {
                return Ok(Some((at + start as u64, number)));
            }
        }
        at += PIECE;
    }
    Ok(None)
}

/// Where the last byte that is not zero lies, from `from` on; `from` if there is none.
pub(crate) fn content_end(file: &dyn File, from: u64, limit: u64) -> io::Result<u64> {
    const PIECE: u64 = 1 << 20;
    let (mut at, mut end) = (from, from);
    while at < limit {
        let mut piece = vec![0; PIECE.min(limit - at) as usize];
        file.read_at(at, &mut piece)?;
        if let Some(last) = piece.iter().rposition(|byte| *byte != 0) {
            end = at + last as u64 + 1;
        }
        at += piece.len() as u64;
    }
    Ok(end)
}

/// Number, bytes, records.
fn block_header(header: &[u8], segment: u64) -> Option<(u64, u32, u32)> {
    let fields = header.get(8..BLOCK_HEADER)?;
    let mut from = Fields(header);
    let good = &from.take::<4>()? == BLOCK_MAGIC && from.u32()? == block_crc(segment, fields);
    good.then_some(())?;
    Some((from.u64()?, from.u32()?, from.u32()?))
}

fn take_record(rest: &mut Bytes) -> Option<Bytes> {
    let mut from = Fields(rest);
    let (len, crc) = (from.u32()? as usize, from.u32()?);
    if len == 0 || RECORD_HEADER + len > rest.len() {
        return None;
    }
    let record = rest.slice(RECORD_HEADER..RECORD_HEADER + len);
    (crc32c::crc32c(&record) == crc).then_some(())?;
    *rest = rest.slice(RECORD_HEADER + len..);
    Some(record)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Memory(Mutex<Vec<u8>>);

    impl File for Memory {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().len() as u64)
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
            let bytes = self.0.lock().unwrap();
            let from = bytes.get(at as usize..at as usize + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(from);
            Ok(())
        }
        fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Two blocks from number 5 on, of 2 and 1 records; returns the file and where the first and second end.
    fn two_blocks() -> (Memory, u64, u64) {
        let memory = Memory(Mutex::new(vec![0; 4096]));
        let mut at = SEGMENT_HEADER;
        let mut ends = Vec::new();
        let mut block = BlockBuf::default();
        for (number, records) in [(5, vec![&b"one"[..], b"two two"]), (6, vec![b"three"])] {
            for record in records {
                block.push(|out| out.extend_from_slice(record));
            }
            let length = block.len();
            let bytes = block.seal(1, number);
            assert_eq!(length, bytes.len() as u64);
            memory.write_at(at, bytes).unwrap();
            at += length;
            block.clear();
            ends.push(at);
        }
        (memory, ends[0], ends[1])
    }

    fn read(memory: &Memory, segment: u64, piece: usize) -> (Vec<u64>, Vec<Bytes>, String) {
        let mut cursor = Cursor::new(memory, segment, SEGMENT_HEADER, 4096, piece);
        let (mut numbers, mut records) = (Vec::new(), Vec::new());
        loop {
            match cursor.step().unwrap() {
                Step::Block(block) => {
                    numbers.push(block.number);
                    records.extend(block.records.into_iter().map(|r| r.1));
                }
                Step::End => return (numbers, records, String::new()),
                Step::Bad(fault) => return (numbers, records, format!("{fault}: {}", fault.detail)),
            }
        }
    }

    #[test]
    fn blocks_are_read_as_written_whatever_the_piece() {
        let (memory, _, _) = two_blocks();
        for piece in [1, 7, 64, 4096] {
            let (numbers, records, fault) = read(&memory, 1, piece);
            assert_eq!((numbers, fault), (vec![5, 6], String::new()));
            assert_eq!(records, [&b"one"[..], b"two two", b"three"]);
        }
        assert!(read(&memory, 2, 64).2.contains("no block header"), "a block of another segment is none");
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_the_later_block_found() {
        let (memory, first_end, end) = two_blocks();
        for at in SEGMENT_HEADER..end {
            for bit in 0..8 {
                memory.0.lock().unwrap()[at as usize] ^= 1 << bit;
                let (numbers, _, fault) = read(&memory, 1, 64);
                let later = later_block(&memory, 1, SEGMENT_HEADER, 4096, 5).unwrap();
                memory.0.lock().unwrap()[at as usize] ^= 1 << bit;
                // Padding between blocks carries nothing.
                let padding = numbers == [5, 6] && fault.is_empty();
                assert!(padding || !fault.is_empty(), "byte {at} bit {bit}: {numbers:?}");
                if at < first_end {
                    assert_eq!(later, Some((first_end, 6)), "byte {at}");
                }
            }
        }
        assert_eq!(later_block(&memory, 1, SEGMENT_HEADER, 4096, 6).unwrap(), None);
        assert!(content_end(&memory, 0, 4096).unwrap() <= end);
    }

    #[test]
    fn a_segment_header_names_format_number_and_member() {
        let header = segment_header(7, 3);
        assert_eq!(segment_check(&header, 7), Header::Good { member: 3 });
        assert_eq!(segment_check(&header, 8), Header::Bad);
        let mut newer = header;
        newer[8] = 2;
        assert_eq!(segment_check(&newer, 7), Header::Bad, "a flipped bit");
        let crc = crc32c::crc32c(&newer[..28]);
        newer[28..32].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(segment_check(&newer, 7), Header::Newer(2));
        let mut bad = header;
        bad[13] ^= 1;
        assert_eq!(segment_check(&bad, 7), Header::Bad);
    }

    #[test]
    fn golden_bytes() {
        let mut block = BlockBuf::default();
        block.push(|out| out.extend_from_slice(b"one"));
        assert_eq!(
            hex::encode(block.seal(1, 5)),
            "435642310a1f4ec005000000000000000b0000000100000003000000e9b2942a6f6e650000000000"
        );
        assert_eq!(
            hex::encode(&segment_header(7, 3)[..32]),
            "43564c414e5345470100000007000000000000000300000000000000870cd053"
        );
    }
}

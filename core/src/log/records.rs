//! Records of a file: how exports and backups are cut.
//!
//! ```text
//! file = 8 bytes that say which │ u8 format │ record, record, …        record = u32 LE length │ u32 LE CRC32C │ protobuf
//! ```

use bytes::Bytes;
use cvlan_proto::Message;

/// The longest record, bytes: an entry's frame and what is around it.
pub const RECORD_MAX: usize = 9 << 20;

const HEADER: usize = 8;

/// Appends a record.
pub fn record_write(record: &impl Message, out: &mut Vec<u8>) {
    let body = record.encode_to_vec();
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
}

/// Takes a record off the front of `bytes`: it and how long it was; `None` where more bytes are needed. The error says what
/// is wrong.
pub fn record_read<R: Message + Default>(bytes: &Bytes) -> Result<Option<(R, usize)>, String> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (Some(length), Some(checksum)) = (word(0), word(4)) else { return Ok(None) };
    let end = HEADER + length as usize;
    if end > RECORD_MAX {
        return Err("its length is none that is ever written".to_owned());
    }
    if bytes.len() < end {
        return Ok(None);
    }
    let body = bytes.slice(HEADER..end);
    if crc32c::crc32c(&body) != checksum {
        return Err("its checksum is wrong".to_owned());
    }
    let record = R::decode(body).map_err(|e| format!("it does not parse: {e}"))?;
    Ok(Some((record, end)))
}

/// Cuts what comes, in pieces of any length, into records.
#[derive(Debug)]
pub struct Splitter {
    magic: &'static [u8; 8],
    format: u8,
    begun: bool,
    rest: Bytes,
}

impl Splitter {
    /// Of a file that begins with these.
    pub fn new(magic: &'static [u8; 8], format: u8) -> Self {
        Self { magic, format, begun: false, rest: Bytes::new() }
    }

    /// More bytes.
    pub fn push(&mut self, piece: &[u8]) {
        self.rest =
            if self.rest.is_empty() { Bytes::copy_from_slice(piece) } else { [&self.rest, piece].concat().into() };
    }

    /// The next record that is whole, and its bytes.
    pub fn take<R: Message + Default>(&mut self) -> Result<Option<(R, Bytes)>, String> {
        if !self.begun {
            let Some((magic, rest)) = self.rest.split_first_chunk::<8>() else { return Ok(None) };
            if magic != self.magic {
                return Err(format!("this does not begin with {}", String::from_utf8_lossy(self.magic)));
            }
            match rest.first() {
                None => return Ok(None),
                Some(format) if *format != self.format => {
                    return Err(format!("format {format} is not known to this version"));
                }
                Some(_) => (self.begun, self.rest) = (true, self.rest.slice(9..)),
            }
        }
        let Some((record, length)) = record_read(&self.rest)? else { return Ok(None) };
        let bytes = self.rest.split_to(length);
        Ok(Some((record, bytes)))
    }

    /// True where nothing is left that is no record.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvlan_proto::v1::BackupEnd;

    #[test]
    fn records_are_cut_out_of_pieces_of_any_length() {
        let records: Vec<BackupEnd> = (0..50).map(|n| BackupEnd { entries: n, events: n * 1000 }).collect();
        let mut bytes = b"CVLANTST\x07".to_vec();
        records.iter().for_each(|record| record_write(record, &mut bytes));
        for size in 1..bytes.len() {
            let (mut splitter, mut found, mut raw) = (Splitter::new(b"CVLANTST", 7), Vec::new(), Vec::new());
            for piece in bytes.chunks(size) {
                splitter.push(piece);
                while let Some((record, bytes)) = splitter.take::<BackupEnd>().unwrap() {
                    found.push(record);
                    raw.extend(bytes);
                }
            }
            assert!(splitter.is_empty() && found == records && raw == bytes[9..], "pieces of {size}");
        }
        for (begin, what) in [(&b"CVLANTSU\x07"[..], "does not begin"), (b"CVLANTST\x08", "format 8")] {
            let mut splitter = Splitter::new(b"CVLANTST", 7);
            splitter.push(begin);
            assert!(splitter.take::<BackupEnd>().unwrap_err().contains(what));
        }
        let mut splitter = Splitter::new(b"CVLANTST", 7);
        splitter.push(&[&bytes[..9], &[0xff; 8]].concat());
        assert!(splitter.take::<BackupEnd>().unwrap_err().contains("length"));
    }
}

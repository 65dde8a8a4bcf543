//! Records of a file: how exports and backups are cut.
//!
//! ```text
//! file = 8 bytes that say which │ u8 format │ record, record, …        record = u32 LE length │ u32 LE CRC32C │ protobuf
//! ```

use bytes::{Bytes, BytesMut};
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

/// Length of the record at the front, its header included; `None` where more bytes are needed. The error says what is wrong.
fn length(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some((length, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    match HEADER + u32::from_le_bytes(*length) as usize {
        end if end > RECORD_MAX => Err("its length is none that is ever written".to_owned()),
        end => Ok((end <= bytes.len()).then_some(end)),
    }
}

/// Reads a record that fills `bytes` exactly.
fn read<R: Message + Default>(bytes: &Bytes) -> Result<R, String> {
    let Some((checksum, _)) = bytes.get(4..).and_then(|rest| rest.split_first_chunk::<4>()) else {
        return Err("it is cut off".to_owned());
    };
    let body = bytes.slice(HEADER..);
    if crc32c::crc32c(&body) != u32::from_le_bytes(*checksum) {
        return Err("its checksum is wrong".to_owned());
    }
    R::decode(body).map_err(|e| format!("it does not parse: {e}"))
}

/// Cuts what comes, in pieces of any length, into records.
#[derive(Debug)]
pub struct Splitter {
    magic: &'static [u8; 8],
    format: u8,
    begun: bool,
    rest: BytesMut,
}

impl Splitter {
    /// Of a file that begins with these.
    pub fn new(magic: &'static [u8; 8], format: u8) -> Self {
        Self { magic, format, begun: false, rest: BytesMut::new() }
    }

    /// More bytes.
    pub fn push(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
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
                Some(_) => {
                    self.begun = true;
                    drop(self.rest.split_to(9));
                }
            }
        }
        let Some(length) = length(&self.rest)? else { return Ok(None) };
        let bytes = self.rest.split_to(length).freeze();
        Ok(Some((read(&bytes)?, bytes)))
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

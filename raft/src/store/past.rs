//! History before the log's own: pieces that other members gave, checked before they come here.
//!
//! ```text
//! past/ 0…0.seg │ 0…700.seg │ 0…1500.seg │ log/: base, …          a file is named after its first entry's index
//! ```
//! Same bytes as a segment of the log, with that index as its number; whole or not there: written beside, synced, renamed.
//! The files follow each other up to the log's oldest entry. One that does not, or cannot be read, is no history, nor is
//! anything older: it is fetched again.

use crate::disk::{File, Files};
use crate::error::OpenError;
use crate::store::codec::{self, Record};
use crate::store::segment::{BlockBuf, Cursor, Header, SEGMENT_HEADER, Step, segment_check, segment_header};
use crate::store::wal::{Probe, Segment, Setup, State, Wal};
use crate::sync::lock;
use crate::types::{Entry, Frame};
use openraft::EntryPayload;
use std::io;
use std::sync::Arc;

const FOLDER: &str = "past";
/// A block is full at so many bytes: the index has a point for each.
const BLOCK: u64 = 64 << 10;
const PIECE: usize = 1 << 20;

/// Name of the file whose first entry has this index.
pub(crate) fn past_name(first: u64) -> String {
    format!("{FOLDER}/{first:020}.seg")
}

/// Finds the files that the log goes on from.
pub(crate) fn open(files: &dyn Files, setup: &Setup, state: &mut State) -> Result<(), OpenError> {
    let names = files.list(FOLDER).map_err(OpenError::io("reading past/"))?;
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(".seg")?.parse().ok()).collect();
    firsts.sort_unstable();
    let base = state.base();
    let mut due = base;
    for first in firsts.into_iter().rev().filter(|first| *first < base) {
        let name = past_name(first);
        match files.open(&name).and_then(|file| scan(file, first, &setup.probe)) {
            Ok((segment, end)) if end == due => {
                state.past.insert(first, segment);
                due = first;
            }
            // From before another snapshot took the place of what follows.
            Ok(_) if setup.member.is_some() => files.remove(&name).map_err(OpenError::io(name))?,
            Ok(_) => {}
            // Who only looks is told; a member fetches it again.
            Err(error) if setup.member.is_none() => {
                return Err(OpenError::Damaged { record: name, detail: error.to_string() });
            }
            Err(error) => {
                tracing::error!(file = name, %error, "history before entry {due} is not whole");
                break;
            }
        }
    }
    Ok(())
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Reads a file; the index after its last entry.
fn scan(file: Arc<dyn File>, first: u64, probe: &Probe) -> io::Result<(Segment, u64)> {
    let len = file.len()?;
    let mut header = [0; SEGMENT_HEADER as usize];
    file.read_at(0, &mut header)?;
    if !matches!(segment_check(&header, first), Header::Good { .. }) {
        return Err(invalid("its header is none"));
    }
    let mut segment = Segment::new(file.clone(), len, SEGMENT_HEADER);
    let mut due = first;
    let mut cursor = Cursor::new(&*file, first, SEGMENT_HEADER, len, PIECE);
    loop {
        let block = match cursor.step()? {
            Step::Block(block) => block,
            Step::End if cursor.at == len && due > first => break,
            Step::End => return Err(invalid("its end is missing")),
            Step::Bad(fault) => return Err(invalid(format!("at byte {}: {}", fault.at, fault.detail))),
        };
        let (at, begins, mut frame) = (block.at, due, None);
        for (_, bytes) in block.records {
            let (record, rest) = codec::decode(&bytes).map_err(|error| invalid(error.to_string()))?;
            match record {
                Record::Entry(id, body) if id.index == due => {
                    let entry = codec::entry(id, body, rest).map_err(|error| invalid(error.to_string()))?;
                    frame = frame.or(first_frame(&entry));
                }
                _ => return Err(invalid(format!("entry {due} is not where it should be"))),
            }
            due += 1;
        }
        segment.end = cursor.at;
        segment.point(begins, frame.and_then(|frame| probe(&frame)), at);
    }
    Ok((segment, due))
}

fn first_frame(entry: &Entry) -> Option<Frame> {
    match &entry.payload {
        EntryPayload::Normal(frame) => Some(frame.clone()),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    }
}

impl Wal {
    /// Takes entries that come right before the oldest one here; on the disk's lane. False where they do not any more: a
    /// snapshot has taken the place of what they came before. Durable once it returns.
    pub(crate) fn prepend(&self, files: &dyn Files, entries: &[Entry]) -> io::Result<bool> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(false) };
        let (first, end) = (first.log_id.index, last.log_id.index + 1);
        let fits = |state: &State| state.oldest() == end;
        let there: Vec<u64> = {
            let state = lock(&self.state);
            if !fits(&state) {
                return Ok(false);
            }
            state.past.keys().copied().collect()
        };
        files.make_folder(FOLDER)?;
        // What an earlier time left behind.
        for name in files.list(FOLDER)? {
            let known = name.strip_suffix(".seg").and_then(|first| first.parse().ok());
            if known.is_none_or(|first: u64| !there.contains(&first)) {
                files.remove(&format!("{FOLDER}/{name}"))?;
            }
        }
        let beside = format!("{FOLDER}/new.tmp");
        let written = || {
            let file = self.write_past(files, &beside, first, entries)?;
            files.rename(&beside, &past_name(first))?;
            files.sync_folder(FOLDER)?;
            scan(file, first, self.probe())
        };
        let (segment, _) = match written() {
            Ok(written) => written,
            Err(error) => {
                let _ = files.remove(&beside);
                return Err(error);
            }
        };
        let mut state = lock(&self.state);
        let fits = fits(&state);
        if fits {
            state.past.insert(first, segment);
        }
        Ok(fits)
    }

    fn write_past(&self, files: &dyn Files, name: &str, first: u64, entries: &[Entry]) -> io::Result<Arc<dyn File>> {
        let mut bytes = segment_header(first, self.member()).to_vec();
        let (mut block, mut number) = (BlockBuf::default(), 0);
        for (nth, entry) in entries.iter().enumerate() {
            block.push(|out| codec::encode_entry(entry, out));
            if block.len() >= BLOCK || nth + 1 == entries.len() {
                number += 1;
                bytes.extend_from_slice(block.seal(first, number));
                block.clear();
            }
        }
        let file = files.create(name, 0)?;
        // In pieces: the log's own syncs wait behind them in the disk's queue.
        let mut at = 0;
        for piece in bytes.chunks(PIECE / 2) {
            file.write_at(at, piece)?;
            file.sync()?;
            at += piece.len() as u64;
        }
        Ok(file)
    }
}

//! Reads a log's folder back: every record of every segment is checked, a torn tail is cut, other damage is an error.

use crate::disk::{File, Files, LogStore, SLED};
use crate::error::OpenError;
use crate::store::codec::{self, CodecError, RECORD_FORMAT, Record};
use crate::store::segment::{
    Block, Cursor, Fault, Header, SEGMENT_FORMAT, SEGMENT_HEADER, Step, content_end, later_block, segment_check,
    segment_name,
};
use crate::store::wal::{Cut, Marks, Segment, Setup, State, first_segment};
use crate::store::{past, snapshot};
use crate::types::Frame;
use bytes::Bytes;
use openraft::EntryPayload;
use std::io;
use std::sync::Arc;

const PIECE: usize = 1 << 20;

/// Reads the folder, or makes the first segment of an empty one.
pub(crate) fn open(files: &dyn Files, setup: &Setup) -> Result<State, OpenError> {
    let mut state = State::default();
    let numbers = numbers(files, setup.member.is_some())?;
    let (Some(first), Some(last)) = (numbers.first().copied(), numbers.last().copied()) else {
        let Some(member) = setup.member else { return Err(OpenError::Incomplete("there is no log".into())) };
        is_new(files)?;
        files.make_folder("log").map_err(OpenError::io("making log/"))?;
        let segment = first_segment(files, setup.segment_bytes, member);
        let segment = segment.map_err(OpenError::io("making the first segment"))?;
        state.segments.insert(1, segment);
        state.block = 1;
        return Ok(state);
    };
    for (number, expected) in numbers.iter().zip(first..) {
        if *number != expected {
            return Err(OpenError::Incomplete(format!("{} is missing", segment_name(expected))));
        }
        let file = files.open(&segment_name(*number)).map_err(OpenError::io(segment_name(*number)))?;
        let scan = Scan { state: &mut state, setup, number: *number, first: *number == first, newest: SEGMENT_HEADER };
        scan.segment(file, *number == last)?;
    }
    past::open(files, setup, &mut state)?;
    if setup.member.is_some() {
        if state.marks == Marks::default() {
            is_new(files)?;
        }
        files.sync_folder("log").map_err(OpenError::io("syncing log/"))?;
    }
    state.written = state.marks.clone();
    Ok(state)
}

/// A log in which nothing is has no snapshots either: before one is taken, the vote of the leader that sends it is durable.
fn is_new(files: &dyn Files) -> Result<(), OpenError> {
    let there = snapshot::list(files).map_err(OpenError::io("reading snapshots/"))?;
    if there.is_empty() { Ok(()) } else { Err(OpenError::Lost) }
}

/// Numbers of the segments; files that were not completed are removed where `tidy`.
fn numbers(files: &dyn Files, tidy: bool) -> Result<Vec<u64>, OpenError> {
    let mut numbers = Vec::new();
    let names = files.list("log").map_err(OpenError::io("reading log/"))?;
    // Files beside a database are no log.
    if names.iter().any(|name| Some(name.as_str()) == SLED.strip_prefix("log/")) {
        return Err(OpenError::OtherStore { found: LogStore::Sled, asked: LogStore::Wal });
    }
    for name in names {
        if tidy && name.ends_with(".tmp") {
            files.remove(&format!("log/{name}")).map_err(OpenError::io(format!("removing log/{name}")))?;
        } else if let Some(number) = name.strip_suffix(".seg").and_then(|number| number.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

struct Scan<'a> {
    state: &'a mut State,
    setup: &'a Setup,
    number: u64,
    /// The oldest segment here: what comes before it is not known.
    first: bool,
    /// Where the newest block lies.
    newest: u64,
}

impl Scan<'_> {
    fn segment(mut self, file: Arc<dyn File>, last: bool) -> Result<(), OpenError> {
        let name = segment_name(self.number);
        let len = file.len().map_err(OpenError::io(&name))?;
        let mut header = [0; SEGMENT_HEADER as usize];
        file.read_at(0, &mut header).map_err(OpenError::io(&name))?;
        match segment_check(&header, self.number) {
            Header::Good { member } => match self.setup.member {
                Some(expected) if expected != member => {
                    return Err(OpenError::WrongMember { found: member, expected });
                }
                Some(_) | None => {}
            },
            Header::Newer(found) => return Err(OpenError::Newer { what: name, found, known: SEGMENT_FORMAT }),
            Header::Bad => return Err(OpenError::Damaged { record: name, detail: "its header is none".into() }),
        }
        self.state.segments.insert(self.number, Segment::new(file.clone(), len, SEGMENT_HEADER));
        let mut cursor = Cursor::new(&*file, self.number, SEGMENT_HEADER, len, PIECE);
        loop {
            match cursor.step().map_err(OpenError::io(&name))? {
                Step::Block(block) => self.block(&block, cursor.at)?,
                Step::End if !last => return self.sealed(cursor.at),
                Step::Bad(fault) if !last => return Err(damaged(&fault)),
                Step::End => {
                    let fault = Fault { segment: self.number, at: cursor.at, detail: "a block is missing".into() };
                    return self.tail(&*file, cursor.at, len, &fault);
                }
                Step::Bad(fault) => return self.tail(&*file, cursor.at, len, &fault),
            }
        }
    }

    /// Every segment begins with a block; whether one is missing at its end, the next segment's number shows.
    fn sealed(&self, end: u64) -> Result<(), OpenError> {
        let fault = Fault { segment: self.number, at: end, detail: "it has no block".into() };
        if end == SEGMENT_HEADER { Err(damaged(&fault)) } else { Ok(()) }
    }

    /// The end of the log: a torn block is cut; one that a whole block follows had been synced.
    fn tail(&self, file: &dyn File, at: u64, len: u64, fault: &Fault) -> Result<(), OpenError> {
        if at == SEGMENT_HEADER {
            return Err(damaged(fault));
        }
        let reading = || OpenError::io(segment_name(self.number));
        let torn = self.state.block + 1;
        if let Some((later, number)) = later_block(file, self.number, at, len, torn).map_err(reading())? {
            let detail = format!("{}; yet block {number} at byte {later} is whole", fault.detail);
            return Err(damaged(&Fault { detail, ..fault.clone() }));
        }
        let end = content_end(file, at, len).map_err(reading())?;
        if self.setup.member.is_none() {
            return Ok(());
        }
        if end > at {
            tracing::warn!(segment = self.number, at, end, why = fault.detail, "cutting a torn tail");
        }
        for from in (at..end).step_by(PIECE) {
            file.write_at(from, &vec![0; PIECE.min((end - from) as usize)]).map_err(reading())?;
        }
        self.settle(file, at).map_err(reading())
    }

    /// What was read of the last write may be in the page cache alone: the process died before its sync, or the sync
    /// failed and the kernel holds the pages for clean. Written again and synced, it is what it looks like. One block is
    /// in flight at a time, so that the newest one and the header are all it can be.
    fn settle(&self, file: &dyn File, end: u64) -> io::Result<()> {
        for range in [0..SEGMENT_HEADER, self.newest..end] {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_at(range.start, &mut bytes)?;
            file.write_at(range.start, &bytes)?;
        }
        file.sync()
    }

    fn block(&mut self, block: &Block, end: u64) -> Result<(), OpenError> {
        let unknown = self.first && self.state.block == 0;
        if !unknown && block.number != self.state.block + 1 {
            let detail = format!("block {} follows block {}", block.number, self.state.block);
            return Err(damaged(&Fault { segment: self.number, at: block.at, detail }));
        }
        self.state.block = block.number;
        self.newest = block.at;
        let (mut index, mut highest, mut frame) = (None, None, None);
        let (segment, known) = (self.number, self.state.cuts.len());
        for (nth, (at, bytes)) in block.records.iter().enumerate() {
            let fault = |detail: String| {
                let what = format!("record {nth} in block {}", block.number);
                Fault { segment, at: *at, detail: format!("{what}: {detail}") }
            };
            let (record, rest) = codec::decode(bytes).map_err(|error| refused(error, &fault))?;
            if let Record::Entry(id, _) = &record {
                index = index.or(Some(id.index));
                highest = highest.max(Some(id.index));
            }
            self.record(*at, record, rest, bytes.len(), &mut frame).map_err(|detail| damaged(&fault(detail)))?;
        }
        if let Some(segment) = self.state.segments.get_mut(&self.number) {
            segment.end = end;
            segment.highest = segment.highest.max(highest);
            if let Some(index) = index {
                segment.point(index, frame.as_ref().and_then(|frame| (self.setup.probe)(frame)), block.at);
            }
        }
        self.state.forget(known);
        self.state.evict(self.setup.tail_bytes);
        Ok(())
    }

    fn record(
        &mut self,
        at: u64,
        record: Record,
        rest: Bytes,
        bytes: usize,
        frame: &mut Option<Frame>,
    ) -> Result<(), String> {
        let state = &mut *self.state;
        match record {
            Record::Entry(id, body) => {
                let entry = codec::entry(id, body, rest).map_err(|error| error.to_string())?;
                state.continues(&entry.log_id).map_err(|error| error.to_string())?;
                if let (None, EntryPayload::Normal(first)) = (&frame, &entry.payload) {
                    *frame = Some(first.clone());
                }
                state.add_entry(entry, bytes);
                state.all_durable();
            }
            Record::Vote(vote) => state.marks.vote = Some(vote.into()),
            Record::Truncate { after } => {
                state.cuts.push(Cut { segment: self.number, at, after: after.map(|id| id.index) });
                state.void(after.map(Into::into));
            }
            Record::Purge { upto } => state.purge(upto.into()),
            Record::Committed { upto } => state.marks.committed = Some(upto.into()),
            Record::Start { vote, purged, committed, last } => {
                let marks = Marks {
                    vote: vote.map(Into::into),
                    purged: purged.map(Into::into),
                    committed: committed.map(Into::into),
                    last: last.map(Into::into),
                };
                if !self.first && marks != state.marks {
                    return Err(format!("does not continue the segment before: {marks:?} after {:?}", state.marks));
                }
                state.marks = marks;
            }
            Record::Closed => {}
        }
        Ok(())
    }
}

fn damaged(fault: &Fault) -> OpenError {
    OpenError::Damaged { record: fault.to_string(), detail: fault.detail.clone() }
}

fn refused(error: CodecError, fault: &dyn Fn(String) -> Fault) -> OpenError {
    match error {
        CodecError::Newer(found) => {
            let what = fault(String::new()).to_string();
            OpenError::Newer { what, found: u32::from(found), known: u32::from(RECORD_FORMAT) }
        }
        CodecError::Malformed(detail) => damaged(&fault(detail)),
    }
}

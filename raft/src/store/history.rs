//! Reads entries back: the newest from memory, older ones from the segments, by a sparse index.
//!
//! ```text
//! index ─► last point at or below it ─► blocks from there on ─► without what a truncation voided ─► entries, no gap
//! ```

use crate::disk::{File, Files};
use crate::store::codec::{self, Record};
use crate::store::past::past_name;
use crate::store::segment::{Cursor, SEGMENT_HEADER, Step, segment_name};
use crate::store::wal::{Cut, Point, Segment, State, Wal, index};
use crate::sync::lock;
use crate::types::{Entry, LogId};
use cvlan_core::id::Seq;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

const PIECE: usize = 256 << 10;

/// A stretch of a segment.
struct Leg {
    /// Its number; of the past, the index that it begins with.
    segment: u64,
    file: Arc<dyn File>,
    from: u64,
    end: u64,
    /// Entries below belong to what a snapshot took the place of; `None`: a file of the past, in which all count.
    least: Option<u64>,
}

/// What has to be read from disk, and what follows it from memory.
pub(crate) struct Plan {
    legs: Vec<Leg>,
    cuts: Vec<Cut>,
    disk: Range<u64>,
    memory: Vec<Entry>,
}

/// Where to begin to look for something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sought {
    Seq(Seq),
    Time(u64),
}

impl Wal {
    /// How to read entries `range`, those below the purge marker too; ends at the last one.
    pub(crate) fn plan(&self, range: Range<u64>) -> Plan {
        let state = lock(&self.state);
        let end = range.end.min(index(&state.marks.last).map_or(0, |last| last + 1));
        let tail = &state.tail.entries;
        let tail_from = tail.front().map_or(end, |entry| entry.log_id.index).min(end);
        let (from, to) = (range.start.max(tail_from), end);
        let memory = if from < to {
            tail.range((from - tail_from) as usize..(to - tail_from) as usize).cloned().collect()
        } else {
            Vec::new()
        };
        let disk = range.start..tail_from.max(range.start);
        let (legs, cuts) =
            if disk.is_empty() { Default::default() } else { (state.legs(disk.start), state.cuts.clone()) };
        Plan { legs, cuts, disk, memory }
    }

    /// Calls `each` with every entry of `range`, in order, until it returns false; on the disk's lane.
    pub(crate) fn visit(&self, range: Range<u64>, each: &mut dyn FnMut(Entry) -> bool) -> io::Result<()> {
        let plan = self.plan(range);
        let mut go_on = true;
        if !plan.in_memory() {
            plan.visit(&mut |entry, _| {
                go_on = each(entry);
                go_on
            })?;
        }
        for entry in plan.memory {
            if !go_on {
                break;
            }
            go_on = each(entry);
        }
        Ok(())
    }

    /// Range that openraft may see: above the purge marker.
    pub(crate) fn visible(&self, range: Range<u64>) -> Range<u64> {
        let state = lock(&self.state);
        let purged = index(&state.marks.purged).map_or(0, |purged| purged + 1);
        range.start.max(purged).max(state.base())..range.end
    }

    /// The index from which on to look; the oldest here if the point lies before it.
    pub(crate) fn locate(&self, sought: Sought) -> u64 {
        let state = lock(&self.state);
        let before = |point: &&Point| match sought {
            Sought::Seq(seq) => point.seq.0 > 0 && point.seq <= seq,
            Sought::Time(time_ms) => point.seq.0 > 0 && point.time_ms <= time_ms,
        };
        let last = |segments: &BTreeMap<u64, Segment>| {
            segments
                .values()
                .rev()
                .find_map(|segment| segment.points.iter().rev().find(before).map(|point| point.index))
        };
        let base = state.base();
        let found = last(&state.segments).filter(|index| *index >= base || state.past.is_empty());
        found.or_else(|| last(&state.past)).unwrap_or_default().max(state.oldest())
    }

    /// The index from which on about `bytes` of entries lie before entry `end`; `None` where there is none older.
    pub(crate) fn before(&self, end: u64, bytes: u64) -> Option<u64> {
        let state = lock(&self.state);
        let (base, oldest) = (state.base(), state.oldest());
        let mut room = bytes;
        let mut found = oldest;
        let own = state.segments.values().rev().map(|segment| (segment, base));
        'all: for (segment, least) in own.chain(state.past.values().rev().map(|segment| (segment, 0))) {
            let mut upto = segment.end;
            for point in segment.points.iter().rev().filter(|point| point.index >= least) {
                if point.index >= end {
                    upto = point.at;
                    continue;
                }
                room = room.saturating_sub(upto.saturating_sub(point.at));
                upto = point.at;
                if room == 0 {
                    found = point.index;
                    break 'all;
                }
            }
        }
        (found < end).then_some(found)
    }

    /// The oldest entry here.
    pub(crate) fn oldest(&self) -> u64 {
        lock(&self.state).oldest()
    }

    /// The last entry of each leader in a range.
    pub(crate) fn leaders(&self, first: LogId, last: LogId) -> Vec<LogId> {
        let state = lock(&self.state);
        let within = |id: &&LogId| first.index <= id.index && id.leader_id != last.leader_id;
        state.leaders.iter().filter(within).copied().chain([last]).collect()
    }
}

impl State {
    /// The oldest entry here.
    pub(crate) fn oldest(&self) -> u64 {
        self.past.keys().next().copied().unwrap_or_else(|| self.base())
    }

    /// The oldest entry of the log itself: the past ends before it.
    pub(crate) fn base(&self) -> u64 {
        let point = self.segments.values().find_map(|segment| segment.points.first()).map(|point| point.index);
        let tail = self.tail.entries.front().map(|entry| entry.log_id.index);
        let oldest = point.into_iter().chain(tail).min();
        oldest.unwrap_or_else(|| index(&self.marks.last).map_or(0, |last| last + 1)).max(self.floor)
    }

    /// Cuts from place `known` on are new: points to what they void say no longer which event is there. The same number is another
    /// one now, and may be in an earlier entry.
    pub(super) fn forget(&mut self, known: usize) {
        for cut in self.cuts.iter().skip(known) {
            let segments = self.segments.range_mut(..=cut.segment).rev();
            for (number, segment) in segments.take_while(|(_, s)| s.highest.is_none() || s.highest >= cut.after) {
                let void =
                    |point: &&mut Point| (*number, point.at) < (cut.segment, cut.at) && Some(point.index) > cut.after;
                segment.points.iter_mut().filter(void).for_each(|point| (point.seq, point.time_ms) = (Seq(0), 0));
            }
        }
    }

    /// The past's files and the segments, from the last point at or below `from` on; all of them if there is none.
    fn legs(&self, from: u64) -> Vec<Leg> {
        let base = self.base();
        let past = if from < base { self.past.range(..=from).next_back().map_or(0, |(first, _)| *first) } else { base };
        let past = self.past.range(past..).map(|(first, file)| {
            let at =
                file.points.iter().rev().find(|point| point.index <= from).map_or(SEGMENT_HEADER, |point| point.at);
            Leg { segment: *first, file: file.file.clone(), from: at, end: file.end, least: None }
        });
        let from = if self.past.is_empty() { from } else { from.max(base) };
        let start = self.segments.iter().rev().filter(|(_, s)| !s.points.is_empty() && s.lowest <= from).find_map(
            |(number, segment)| segment.points.iter().rev().find(|p| p.index <= from).map(|p| (*number, p.at)),
        );
        let (first, at) = start.unwrap_or((0, SEGMENT_HEADER));
        let own = self.segments.range(first..).map(|(number, segment)| Leg {
            segment: *number,
            file: segment.file.clone(),
            from: if *number == first { at } else { SEGMENT_HEADER },
            end: segment.end,
            least: Some(if self.past.is_empty() { 0 } else { base }),
        });
        past.chain(own).collect()
    }
}

impl Plan {
    /// True where the disk is not needed.
    pub(crate) fn in_memory(&self) -> bool {
        self.disk.is_empty()
    }

    /// The entries, if they are all in memory.
    pub(crate) fn memory(self) -> Vec<Entry> {
        self.memory
    }

    /// Reads at least one entry, and then as long as they are fewer than `bytes`; on the disk's lane.
    pub(crate) fn read(mut self, _files: &dyn Files, bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut room = bytes;
        let missing = self.disk.clone().count();
        self.visit(&mut |entry, size| {
            entries.push(entry);
            room = room.saturating_sub(size);
            room > 0
        })?;
        if entries.len() == missing {
            entries.append(&mut self.memory);
        }
        Ok(entries)
    }

    /// Calls `each` with every entry of the disk's part, in order, until it returns false.
    pub(crate) fn visit(&self, each: &mut dyn FnMut(Entry, usize) -> bool) -> io::Result<()> {
        let mut due = self.disk.start;
        for leg in &self.legs {
            let mut cursor = Cursor::new(&*leg.file, leg.segment, leg.from, leg.end, PIECE);
            loop {
                let block = match cursor.step()? {
                    Step::Block(block) => block,
                    Step::End => break,
                    Step::Bad(fault) => {
                        let place = format!("{} at byte {}", leg.name(), fault.at);
                        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{place}: {}", fault.detail)));
                    }
                };
                for (at, bytes) in block.records {
                    let place = || format!("{} at byte {at}", leg.name());
                    let wrong =
                        |detail: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {detail}", place()));
                    let (record, rest) = codec::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
                    let Record::Entry(id, body) = record else { continue };
                    if !self.disk.contains(&id.index) || self.void(leg, at, id.index) {
                        continue;
                    }
                    if id.index != due {
                        return Err(wrong(format!("entry {} where entry {due} was due", id.index)));
                    }
                    let entry = codec::entry(id, body, rest).map_err(|error| wrong(error.to_string()))?;
                    due += 1;
                    if !each(entry, bytes.len()) || due >= self.disk.end {
                        return Ok(());
                    }
                }
            }
        }
        if due < self.disk.end {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("entry {due} is not in the log")));
        }
        Ok(())
    }

    fn void(&self, leg: &Leg, at: u64, index: u64) -> bool {
        let cut = |cut: &Cut| (cut.segment, cut.at) > (leg.segment, at) && Some(index) > cut.after;
        leg.least.is_some_and(|least| index < least || self.cuts.iter().any(cut))
    }
}

impl Leg {
    fn name(&self) -> String {
        match self.least {
            Some(_) => segment_name(self.segment),
            None => past_name(self.segment),
        }
    }
}

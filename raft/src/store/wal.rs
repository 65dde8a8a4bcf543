//! The write-ahead log: one ordered queue of records, written as blocks, one write and one sync each.
//!
//! ```text
//!            push                     take                      finish
//! records ────────► block being filled ────► block in flight ────────► callbacks, index, eviction from the tail
//!                        ▲    │ too long for the segment: rotate (a segment is prepared ahead, off the path)
//!                        └────┘ disk full: the block waits, `tick` tries again
//! ```
//! A failed write or sync closes the log for good: what the disk holds is then unknown (after a failed fsync the kernel
//! drops the pages), and only a restart may find out.

use crate::clock::Clock;
use crate::disk::{Disk, File, Files, Lane, no_room};
use crate::options::Plant;
use crate::status::Stats;
use crate::store::codec::{self, Record};
use crate::store::segment::{self, BlockBuf, SEGMENT_HEADER};
use crate::sync::lock;
use crate::types::{Entry, Frame, LogId, Vote};
use cvlan_core::id::Seq;
use openraft::EntryPayload;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Called once what it came with is durable, or never will be.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Number and time of the first event in a frame.
pub(crate) type Probe = Arc<dyn Fn(&Frame) -> Option<(Seq, u64)> + Send + Sync>;

/// The index has a point every so many bytes of a segment.
const POINT_EVERY: u64 = 64 << 10;

/// What the log is opened with.
#[derive(Clone)]
pub(crate) struct Setup {
    /// Whose folder it has to be; `None` to look at anyone's, and to change nothing.
    pub(crate) member: Option<u64>,
    pub(crate) segment_bytes: u64,
    pub(crate) tail_bytes: usize,
    pub(crate) plant: Plant,
    pub(crate) probe: Probe,
}

/// The log.
pub(crate) struct Wal {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    setup: Setup,
    pub(super) state: Mutex<State>,
    /// The log has no room to grow.
    full: AtomicBool,
}

/// Small things that the records amount to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Marks {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) last: Option<LogId>,
}

impl Marks {
    pub(crate) fn record(&self) -> Record {
        let id = |id: &Option<LogId>| id.as_ref().map(Into::into);
        Record::Start {
            vote: self.vote.as_ref().map(Into::into),
            purged: id(&self.purged),
            committed: id(&self.committed),
            last: id(&self.last),
        }
    }
}

/// One file of the log.
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) len: u64,
    /// Behind the last block that was written.
    pub(crate) end: u64,
    pub(crate) points: Vec<Point>,
    /// Lowest index of its points.
    pub(crate) lowest: u64,
    /// Highest index of an entry in it, void ones too.
    pub(crate) highest: Option<u64>,
}

/// Where a block lies, by its first entry and first event (0 where it has none).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) index: u64,
    pub(crate) seq: Seq,
    pub(crate) time_ms: u64,
    pub(crate) at: u64,
}

/// Entries that lie before this place and have an index above `after` are void.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) segment: u64,
    pub(crate) at: u64,
    pub(crate) after: Option<u64>,
}

/// A file of zeros, synced, under a temporary name.
struct Blank {
    name: String,
    file: Arc<dyn File>,
    len: u64,
}

/// Newest entries, without a gap up to the last one.
#[derive(Default)]
pub(crate) struct Tail {
    pub(crate) entries: VecDeque<Entry>,
    bytes: usize,
}

#[derive(Default)]
struct Batch {
    block: BlockBuf,
    done: Vec<Done>,
    first: Option<u64>,
    frame: Option<Frame>,
    cuts: Vec<(u64, Option<u64>)>,
    marks: Marks,
    truncations: u64,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) segments: BTreeMap<u64, Segment>,
    /// Number of the last block written.
    pub(crate) block: u64,
    pub(crate) marks: Marks,
    pub(crate) tail: Tail,
    pub(crate) cuts: Vec<Cut>,
    /// Last entry of each leader.
    pub(crate) leaders: Vec<LogId>,
    /// Entries below are no history of this log: some are missing, or were never committed.
    pub(crate) floor: u64,
    /// What other members gave of the entries before the log's own, by the index that a file begins with; without a gap.
    pub(crate) past: BTreeMap<u64, Segment>,
    /// What was applied here when a snapshot took the place of what follows.
    applied: Option<Option<LogId>>,
    /// What the blocks written so far amount to.
    pub(crate) written: Marks,
    filling: Batch,
    spare: Batch,
    in_flight: bool,
    waiting: Option<Batch>,
    truncations: u64,
    /// Last entry that is on disk.
    durable: Option<u64>,
    /// A file of zeros that waits to become the next segment.
    ready: Option<Blank>,
    preparing: bool,
    /// Numbers such files: lanes work side by side, so no two ever have one name.
    blanks: u64,
    closed: Option<String>,
}

impl Wal {
    /// What was read from a folder; [`Wal::prepare`] makes it ready to grow.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
        setup: Setup,
        state: State,
    ) -> Arc<Self> {
        let full = AtomicBool::new(false);
        Arc::new(Self { disk, clock, stats, setup, state: Mutex::new(state), full })
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn member(&self) -> u64 {
        self.setup.member.unwrap_or_default()
    }

    pub(crate) fn probe(&self) -> &Probe {
        &self.setup.probe
    }

    pub(crate) fn marks(&self) -> Marks {
        lock(&self.state).marks.clone()
    }

    /// The purge marker, as it is on disk.
    pub(crate) fn purged(&self) -> Option<LogId> {
        lock(&self.state).written.purged
    }

    /// Appends entries; they are readable on return, and `done` is called in any case.
    pub(crate) fn append(self: &Arc<Self>, entries: impl IntoIterator<Item = Entry>, done: Done) -> io::Result<()> {
        let mut state = lock(&self.state);
        for entry in entries {
            if let Err(error) = state.push_entry(entry) {
                drop(state);
                done(Err(copy(&error)));
                return Err(error);
            }
        }
        self.send(state, done)
    }

    /// Appends a vote.
    pub(crate) fn vote(self: &Arc<Self>, vote: &Vote, done: Done) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.marks.vote = Some(*vote);
        state.push(&Record::Vote(vote.into()));
        self.send(state, done)
    }

    /// Voids the entries above `last`.
    pub(crate) fn truncate(self: &Arc<Self>, last: Option<LogId>, done: Done) -> io::Result<()> {
        let mut state = lock(&self.state);
        if index(&state.marks.last) > index(&last) {
            state.truncate(last);
        }
        self.send(state, done)
    }

    /// A snapshot takes the place of what follows `applied`, the last entry that this member has itself applied.
    pub(crate) fn superseded(&self, applied: Option<LogId>) {
        lock(&self.state).applied = Some(applied);
    }

    /// Moves the purge marker. Where it goes past the last entry, a snapshot has taken its place: what this member
    /// has not applied may be another history, and is void; history begins anew after the marker.
    pub(crate) fn purge(self: &Arc<Self>, upto: LogId, done: Done) -> io::Result<()> {
        let mut state = lock(&self.state);
        let (last, committed) = (state.marks.last, state.marks.committed);
        let past = last != Some(upto) && index(&last) <= Some(upto.index);
        let keep = state.applied.take().unwrap_or(committed);
        if past && index(&last) > index(&keep) && !self.setup.plant.kept_tail {
            state.truncate(keep);
        }
        state.push(&Record::Purge { upto: (&upto).into() });
        let floor = state.floor;
        state.purge(upto);
        if self.setup.plant.kept_tail {
            state.floor = floor;
        }
        self.send(state, done)
    }

    /// Notes what is committed; written along with the next block.
    pub(crate) fn committed(&self, upto: Option<LogId>) {
        lock(&self.state).marks.committed = upto;
    }

    /// Writes what is left and says that the log ends in order.
    pub(crate) fn close(self: &Arc<Self>, done: Done) {
        let mut state = lock(&self.state);
        state.push(&Record::Closed);
        let _ = self.send(state, done);
    }

    /// Tries again what a full disk held up.
    pub(crate) fn tick(self: &Arc<Self>) {
        let waiting = lock(&self.state).waiting.take();
        if let Some(batch) = waiting {
            let wal = self.clone();
            self.disk.run(Lane::Log, Box::new(move |files| wal.move_block(files, batch)));
        }
        self.prepare();
    }

    /// True while the log has no room to grow.
    pub(crate) fn full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// Why the log is closed.
    pub(crate) fn closed(&self) -> Option<String> {
        lock(&self.state).closed.clone()
    }

    /// Bytes and number of the segments.
    pub(crate) fn size(&self) -> (u64, u64) {
        let state = lock(&self.state);
        let all = || state.segments.values().chain(state.past.values());
        (all().map(|segment| segment.len).sum(), all().count() as u64)
    }

    fn send(self: &Arc<Self>, mut state: std::sync::MutexGuard<'_, State>, done: Done) -> io::Result<()> {
        if let Some(why) = &state.closed {
            let error = io::Error::other(why.clone());
            drop(state);
            done(Err(copy(&error)));
            return Err(error);
        }
        let early = if self.setup.plant.early_ack {
            Some(done)
        } else {
            state.filling.done.push(done);
            None
        };
        let start = !std::mem::replace(&mut state.in_flight, true);
        drop(state);
        if let Some(done) = early {
            done(Ok(()));
        }
        if start {
            let wal = self.clone();
            self.disk.run(Lane::Log, Box::new(move |files| wal.flush(files)));
        }
        Ok(())
    }

    /// On the log's lane: writes one block, then queues itself again if there is more.
    fn flush(self: &Arc<Self>, files: &dyn Files) {
        let batch = lock(&self.state).take();
        self.move_block(files, batch);
    }

    fn move_block(self: &Arc<Self>, files: &dyn Files, mut batch: Batch) {
        match self.write(files, &mut batch) {
            Ok(written) => self.finish(batch, written),
            Err(error) if no_room(&error) => {
                self.full.store(true, Relaxed);
                lock(&self.state).waiting = Some(batch);
            }
            Err(error) => self.fail(batch, &error),
        }
    }

    /// Writes and syncs one block; returns where it lies and its length.
    fn write(self: &Arc<Self>, files: &dyn Files, batch: &mut Batch) -> io::Result<(u64, u64, u64)> {
        let started = self.clock.monotonic_us();
        let length = batch.block.len();
        let fits = lock(&self.state).active().is_some_and(|(_, active)| active.end + length <= active.len);
        if !fits {
            self.rotate(files, length)?;
        }
        let (number, block, file, at) = {
            let state = lock(&self.state);
            let (number, active) = state.active().ok_or_else(|| io::Error::other("no segment"))?;
            (number, state.block + 1, active.file.clone(), active.end)
        };
        file.write_at(at, batch.block.seal(number, block))?;
        if !self.setup.plant.skip_fsync {
            file.sync()?;
        }
        self.stats.sync_us.add(self.clock.monotonic_us().saturating_sub(started));
        self.stats.sync_bytes.add(length);
        Ok((number, at, length))
    }

    fn finish(self: &Arc<Self>, mut batch: Batch, (number, at, length): (u64, u64, u64)) {
        let probed = batch.frame.take().and_then(|frame| (self.setup.probe)(&frame));
        let done = std::mem::take(&mut batch.done);
        let (more, wants_blank) = {
            let mut state = lock(&self.state);
            state.wrote(&mut batch, number, at, length, probed, self.setup.tail_bytes);
            state.spare = batch;
            // What had waited for room is written: whether there is more, the next segment's making will say.
            self.full.fetch_and(state.ready.is_none(), Relaxed);
            let more = !state.filling.block.is_empty();
            state.in_flight = more;
            // On a full disk the next tick tries again.
            (more, !self.full() && state.wants_blank(false))
        };
        for done in done {
            done(Ok(()));
        }
        if wants_blank {
            self.prepare();
        }
        if more {
            let wal = self.clone();
            self.disk.run(Lane::Log, Box::new(move |files| wal.flush(files)));
        }
    }

    fn fail(&self, mut batch: Batch, error: &io::Error) {
        tracing::error!(%error, "the log is closed: a write failed");
        let mut state = lock(&self.state);
        state.closed = Some(format!("writing the log failed: {error}"));
        batch.done.append(&mut state.filling.done);
        drop(state);
        for done in batch.done {
            done(Err(copy(error)));
        }
    }

    /// Goes on in the next segment, one with room for `length` bytes.
    fn rotate(self: &Arc<Self>, files: &dyn Files, length: u64) -> io::Result<()> {
        let (number, block, marks, room, ready) = {
            let mut state = lock(&self.state);
            let number = state.active().map_or(0, |(number, _)| number) + 1;
            let room = SEGMENT_HEADER + start_block(&state.written).len() + length;
            // Too small a one stays for the next time.
            let ready = state.ready.take_if(|ready| ready.len >= room).ok_or_else(|| state.blank_name());
            (number, state.block + 1, state.written.clone(), room, ready)
        };
        let blank = match ready {
            Ok(ready) => ready,
            Err(name) => create(files, name, self.setup.segment_bytes.max(room))?,
        };
        let segment = start_segment(files, blank, (number, block), self.member(), &marks)?;
        let mut state = lock(&self.state);
        state.segments.insert(number, segment);
        state.block = block;
        Ok(())
    }

    /// Has the next segment made, off the path, once this one is half full.
    pub(crate) fn prepare(self: &Arc<Self>) {
        let name = {
            let mut state = lock(&self.state);
            if !state.wants_blank(self.full()) {
                return;
            }
            state.preparing = true;
            state.blank_name()
        };
        let wal = self.clone();
        self.disk.run(
            Lane::Work,
            Box::new(move |files| {
                let made = create(files, name, wal.setup.segment_bytes);
                let mut state = lock(&wal.state);
                state.preparing = false;
                match made {
                    Ok(blank) => {
                        state.ready = Some(blank);
                        wal.full.store(state.waiting.is_some(), Relaxed);
                    }
                    Err(error) => {
                        let full = no_room(&error);
                        // Said once.
                        if !wal.full.fetch_or(full, Relaxed) || !full {
                            tracing::warn!(%error, "the next segment cannot be made");
                        }
                    }
                }
            }),
        );
    }
}

impl State {
    pub(super) fn active(&self) -> Option<(u64, &Segment)> {
        self.segments.last_key_value().map(|(number, segment)| (*number, segment))
    }

    /// While the disk is `full`, at any filling: only a segment that could be made says that there is room again.
    fn wants_blank(&self, full: bool) -> bool {
        let idle = !self.preparing && self.ready.is_none() && self.closed.is_none();
        idle && (full || self.active().is_some_and(|(_, active)| active.end * 2 > active.len))
    }

    fn blank_name(&mut self) -> String {
        self.blanks += 1;
        format!("log/blank-{}.tmp", self.blanks)
    }

    fn push(&mut self, record: &Record) -> u64 {
        self.filling.block.push(|out| codec::encode(record, out))
    }

    fn push_entry(&mut self, entry: Entry) -> io::Result<()> {
        self.continues(&entry.log_id)?;
        let before = self.filling.block.len();
        self.filling.block.push(|out| codec::encode_entry(&entry, out));
        if self.filling.first.is_none() {
            self.filling.first = Some(entry.log_id.index);
        }
        if self.filling.frame.is_none()
            && let EntryPayload::Normal(frame) = &entry.payload
        {
            self.filling.frame = Some(frame.clone());
        }
        let bytes = (self.filling.block.len() - before) as usize;
        self.add_entry(entry, bytes);
        Ok(())
    }

    /// The log never has a hole.
    pub(crate) fn continues(&self, id: &LogId) -> io::Result<()> {
        match &self.marks.last {
            Some(last) if id.index != last.index + 1 => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("entry {id} does not follow {last}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// An entry that is in the block being filled, or was read from one.
    pub(crate) fn add_entry(&mut self, entry: Entry, bytes: usize) {
        self.led(entry.log_id);
        self.marks.last = Some(entry.log_id);
        self.tail.bytes += bytes;
        self.tail.entries.push_back(entry);
    }

    /// Notes the newest entry of its leader.
    fn led(&mut self, id: LogId) {
        match self.leaders.last_mut() {
            Some(last) if last.leader_id == id.leader_id => *last = id,
            Some(_) | None => self.leaders.push(id),
        }
    }

    /// Every entry so far was read from the disk.
    pub(crate) fn all_durable(&mut self) {
        self.durable = index(&self.marks.last);
    }

    fn truncate(&mut self, last: Option<LogId>) {
        let at = self.push(&Record::Truncate { after: last.as_ref().map(Into::into) });
        self.filling.cuts.push((at, index(&last)));
        self.void(last);
    }

    /// Voids the entries above `last`.
    pub(crate) fn void(&mut self, last: Option<LogId>) {
        let after = index(&last);
        let beyond = |id: &LogId| Some(id.index) > after;
        while self.tail.entries.back().is_some_and(|entry| beyond(&entry.log_id)) {
            self.tail.pop_back();
        }
        while self.leaders.last().is_some_and(beyond) {
            self.leaders.pop();
        }
        if let Some(last) = last {
            self.led(last);
        }
        let purged = self.marks.purged;
        self.marks.last = if index(&purged) >= after { purged } else { last };
        self.truncations += 1;
        self.durable = self.durable.min(after);
    }

    pub(crate) fn purge(&mut self, upto: LogId) {
        if self.marks.last.as_ref().is_none_or(|last| last.index <= upto.index) {
            if self.marks.last != Some(upto) {
                self.tail = Tail::default();
                self.floor = upto.index + 1;
                self.past.clear();
            }
            self.marks.last = Some(upto);
        }
        self.marks.purged = Some(upto);
    }

    /// The block to write: what was filled since the last one.
    fn take(&mut self) -> Batch {
        if self.marks.committed != self.written.committed
            && let Some(upto) = self.marks.committed
        {
            self.push(&Record::Committed { upto: (&upto).into() });
        }
        let mut batch = std::mem::take(&mut self.spare);
        std::mem::swap(&mut batch, &mut self.filling);
        batch.marks = self.marks.clone();
        batch.truncations = self.truncations;
        batch
    }

    fn wrote(
        &mut self,
        batch: &mut Batch,
        number: u64,
        at: u64,
        length: u64,
        probed: Option<(Seq, u64)>,
        tail_bytes: usize,
    ) {
        self.block += 1;
        let known = self.cuts.len();
        self.cuts.extend(batch.cuts.drain(..).map(|(offset, after)| Cut { segment: number, at: at + offset, after }));
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.end = at + length;
            if let Some(first) = batch.first.take() {
                segment.point(first, probed, at);
                segment.highest = segment.highest.max(index(&batch.marks.last));
            }
        }
        self.forget(known);
        if batch.truncations == self.truncations {
            self.durable = index(&batch.marks.last);
        }
        self.written = std::mem::take(&mut batch.marks);
        batch.block.clear();
        self.evict(tail_bytes);
    }

    /// Gives the oldest entries to the disk alone.
    pub(crate) fn evict(&mut self, tail_bytes: usize) {
        while self.tail.bytes > tail_bytes
            && self.tail.entries.len() > 1
            && self.tail.entries.front().is_some_and(|entry| Some(entry.log_id.index) <= self.durable)
        {
            self.tail.pop_front();
        }
    }
}

impl Tail {
    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes = self.bytes.saturating_sub(size(&entry));
        }
    }

    fn pop_back(&mut self) {
        if let Some(entry) = self.entries.pop_back() {
            self.bytes = self.bytes.saturating_sub(size(&entry));
        }
    }
}

impl Segment {
    pub(crate) fn new(file: Arc<dyn File>, len: u64, end: u64) -> Self {
        Self { file, len, end, points: Vec::new(), lowest: 0, highest: None }
    }

    /// Notes where a block lies, if the last point is far enough away.
    pub(crate) fn point(&mut self, index: u64, probed: Option<(Seq, u64)>, at: u64) {
        if self.points.last().is_some_and(|last| at - last.at < POINT_EVERY) {
            return;
        }
        let (seq, time_ms) = probed.unwrap_or_default();
        self.lowest = if self.points.is_empty() { index } else { self.lowest.min(index) };
        self.points.push(Point { index, seq, time_ms, at });
    }
}

pub(crate) fn index(id: &Option<LogId>) -> Option<u64> {
    id.as_ref().map(|id| id.index)
}

/// Roughly what an entry takes.
pub(crate) fn size(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(frame) => frame.0.len() + 16,
        EntryPayload::Blank | EntryPayload::Membership(_) => 16,
    }
}

fn start_block(marks: &Marks) -> BlockBuf {
    let mut block = BlockBuf::default();
    block.push(|out| codec::encode(&marks.record(), out));
    block
}

/// Makes a file of zeros; what cannot be completed gives its room back.
fn create(files: &dyn Files, name: String, len: u64) -> io::Result<Blank> {
    match files.create(&name, len).and_then(|file| file.sync().map(|()| file)) {
        Ok(file) => Ok(Blank { name, file, len }),
        Err(error) => {
            let _ = files.remove(&name);
            Err(error)
        }
    }
}

/// Writes header and first block, syncs, and only then gives the file its name: a segment that is there is whole.
fn start_segment(
    files: &dyn Files,
    Blank { name, file, len }: Blank,
    (number, block): (u64, u64),
    member: u64,
    marks: &Marks,
) -> io::Result<Segment> {
    let mut start = start_block(marks);
    let mut bytes = segment::segment_header(number, member).to_vec();
    bytes.extend_from_slice(start.seal(number, block));
    file.write_at(0, &bytes)?;
    file.sync()?;
    files.rename(&name, &segment::segment_name(number))?;
    files.sync_folder("log")?;
    Ok(Segment::new(file, len, bytes.len() as u64))
}

/// The first segment of an empty folder.
pub(crate) fn first_segment(files: &dyn Files, len: u64, member: u64) -> io::Result<Segment> {
    start_segment(files, create(files, "log/blank.tmp".into(), len)?, (1, 1), member, &Marks::default())
}

/// io::Error is not Clone.
pub(crate) fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

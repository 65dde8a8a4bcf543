//! The log against a disk that loses what was not synced, crashes at any call, tears writes and runs full.
//!
//! Each seed runs random operations; a model keeps what the log should hold after each. After the crash the log must be
//! that of some operation, none before the last one that was reported durable.

use crate::clock::SystemClock;
use crate::disk::{Disk, File, Files, Job, Lane};
use crate::options::Plant;
use crate::status::Stats;
use crate::store::history::Sought;
use crate::store::open;
use crate::store::wal::{Done, Setup, Wal};
use crate::types::{Entry, Frame, LeaderId, LogId, Vote};
use bytes::Bytes;
use cvlan_core::id::Seq;
use openraft::EntryPayload;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Default)]
struct Room {
    /// Calls until the crash.
    left: u64,
    /// Bytes that files may take; fewer is a full disk.
    bytes: Option<u64>,
}

type Node = Arc<Mutex<Content>>;

/// Files in memory; jobs run when they are pumped.
struct Memory {
    names: Mutex<BTreeMap<String, Node>>,
    /// What a folder was synced to hold.
    synced: Mutex<BTreeMap<String, Node>>,
    room: Arc<Mutex<Room>>,
    jobs: Mutex<VecDeque<Job>>,
}

struct Handle(Node, Arc<Mutex<Room>>);

fn call(room: &Mutex<Room>) -> io::Result<()> {
    let mut room = room.lock().unwrap();
    room.left = room.left.checked_sub(1).ok_or(io::Error::other("crashed"))?;
    Ok(())
}

impl File for Handle {
    fn len(&self) -> io::Result<u64> {
        call(&self.1)?;
        Ok(self.0.lock().unwrap().now.len() as u64)
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        call(&self.1)?;
        let content = self.0.lock().unwrap();
        buf.copy_from_slice(content.now.get(at as usize..at as usize + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        call(&self.1)?;
        let mut content = self.0.lock().unwrap();
        let end = at as usize + bytes.len();
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        call(&self.1)?;
        let mut content = self.0.lock().unwrap();
        content.synced = content.now.clone();
        Ok(())
    }
}

impl Memory {
    fn new(names: BTreeMap<String, Node>, left: u64) -> Arc<Self> {
        let room = Arc::new(Mutex::new(Room { left, bytes: None }));
        Arc::new(Self { synced: Mutex::new(names.clone()), names: Mutex::new(names), room, jobs: Mutex::default() })
    }

    /// Runs the oldest waiting job; false if there was none.
    fn pump(&self) -> bool {
        let job = self.jobs.lock().unwrap().pop_front();
        let any = job.is_some();
        if let Some(job) = job {
            job(self);
        }
        any
    }

    /// What is there after the crash: synced names (others perhaps), synced bytes, and any sectors of the others.
    fn crash(&self, rng: &mut Rng) -> BTreeMap<String, Node> {
        let mut names = self.synced.lock().unwrap().clone();
        for (name, node) in self.names.lock().unwrap().iter() {
            if !names.contains_key(name) && rng.below(2) == 0 {
                names.insert(name.clone(), node.clone());
            }
        }
        let survivor = |node: &Node, rng: &mut Rng| {
            let content = node.lock().unwrap();
            let mut after = content.synced.clone();
            after.resize(after.len().max(content.now.len()), 0);
            for (sector, now) in content.now.chunks(SECTOR).enumerate() {
                if rng.below(2) == 0 {
                    after[sector * SECTOR..][..now.len()].copy_from_slice(now);
                }
            }
            Arc::new(Mutex::new(Content { now: after.clone(), synced: after }))
        };
        names.iter().map(|(name, node)| (name.clone(), survivor(node, rng))).collect()
    }
}

impl Disk for Memory {
    fn run(&self, _lane: Lane, job: Job) {
        self.jobs.lock().unwrap().push_back(job);
    }
}

impl Files for Memory {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        call(&self.room)?;
        let within = |name: &String| name.strip_prefix(folder)?.strip_prefix('/').map(String::from);
        Ok(self.names.lock().unwrap().keys().filter_map(within).collect())
    }
    fn make_folder(&self, _folder: &str) -> io::Result<()> {
        call(&self.room)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        call(&self.room)?;
        let names = self.names.lock().unwrap();
        Ok(Arc::new(Handle(names.get(name).ok_or(io::ErrorKind::NotFound)?.clone(), self.room.clone())))
    }
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        call(&self.room)?;
        if let Some(bytes) = &mut self.room.lock().unwrap().bytes {
            *bytes = bytes.checked_sub(len).ok_or(io::ErrorKind::StorageFull)?;
        }
        let node: Node = Arc::new(Mutex::new(Content { now: vec![0; len as usize], synced: Vec::new() }));
        self.names.lock().unwrap().insert(name.into(), node.clone());
        Ok(Arc::new(Handle(node, self.room.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        call(&self.room)?;
        let mut names = self.names.lock().unwrap();
        let node = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.into(), node);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        call(&self.room)?;
        self.names.lock().unwrap().remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        call(&self.room)?;
        let names = self.names.lock().unwrap();
        let mut synced = self.synced.lock().unwrap();
        synced.retain(|name, _| !name.starts_with(folder));
        let within = names.iter().filter(|(name, _)| name.starts_with(folder));
        synced.extend(within.map(|(name, node)| (name.clone(), node.clone())));
        Ok(())
    }
}

/// What the log should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

fn setup(plant: Plant) -> Setup {
    Setup { member: Some(1), segment_bytes: 4096, tail_bytes: 600, plant, probe: Arc::new(|_| None) }
}

fn open_log(disk: &Arc<Memory>, plant: Plant) -> Result<Arc<Wal>, crate::OpenError> {
    let state = open::open(&**disk, &setup(plant))?;
    let wal = Wal::new(disk.clone(), Arc::new(SystemClock::default()), Arc::new(Stats::default()), setup(plant), state);
    wal.prepare();
    Ok(wal)
}

fn holds(wal: &Wal) -> Model {
    let mut entries = Vec::new();
    wal.visit(wal.oldest()..u64::MAX, &mut |entry| {
        entries.push(entry);
        true
    })
    .unwrap();
    let marks = wal.marks();
    assert_eq!(marks.last, entries.last().map(|entry| entry.log_id).max(marks.purged));
    Model { vote: marks.vote, purged: marks.purged, entries }
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

struct Life<'a> {
    wal: Arc<Wal>,
    disk: Arc<Memory>,
    rng: &'a mut Rng,
    models: Vec<Model>,
    term: u64,
    durable: Arc<AtomicUsize>,
    sizes: Sizes,
}

impl Life<'_> {
    /// `done` of an operation says that the log is at least what it is now.
    fn done(&self) -> Done {
        let (durable, now) = (self.durable.clone(), self.models.len() - 1);
        Box::new(move |result| {
            if result.is_ok() {
                durable.fetch_max(now, Relaxed);
            }
        })
    }

    fn step(&mut self) {
        let mut model = self.models.last().unwrap().clone();
        let last = model.entries.last().map(|entry| entry.log_id);
        let next = last.map_or(0, |last| last.index + 1);
        match self.rng.below(20) {
            0..=11 => {
                let most = if self.sizes == Sizes::Batches { 1 } else { 3 };
                let new: Vec<Entry> = (0..1 + self.rng.below(most)).map(|nth| self.entry(next + nth)).collect();
                model.entries.extend(new.iter().cloned());
                self.models.push(model);
                let _ = self.wal.append(new, self.done());
            }
            12..=13 => {
                self.term += 1;
                model.vote = Some(Vote { leader_id: LeaderId { term: self.term, node_id: 1 }, committed: true });
                self.models.push(model.clone());
                let _ = self.wal.vote(&model.vote.unwrap(), self.done());
            }
            14..=15 if model.entries.len() > 4 => {
                let keep = model.entries.len() - 1 - self.rng.below(3) as usize;
                let after = model.entries[keep - 1].log_id;
                if model.purged.is_some_and(|purged| purged.index > after.index) {
                    return;
                }
                model.entries.truncate(keep);
                self.models.push(model);
                let _ = self.wal.truncate(Some(after), self.done());
            }
            16 if model.entries.len() > 10 => {
                let at = model.entries[model.entries.len() - 8].log_id;
                if model.purged.is_none_or(|purged| purged.index < at.index) {
                    model.purged = Some(at);
                    self.models.push(model);
                    let _ = self.wal.purge(at, self.done());
                }
            }
            17 => self.wal.committed(last),
            18 => self.wal.tick(),
            _ => while self.disk.pump() {},
        }
        if self.rng.below(3) == 0 {
            self.disk.pump();
        }
    }

    fn entry(&mut self, index: u64) -> Entry {
        let length = match self.sizes {
            Sizes::Small => self.rng.below(700),
            Sizes::Batches => {
                let bits = self.rng.below(17);
                1 + self.rng.below(1 << bits)
            }
        };
        let bytes: Vec<u8> = (0..length).map(|_| self.rng.next() as u8).collect();
        let payload = match self.rng.below(8) {
            0 => EntryPayload::Blank,
            _ => EntryPayload::Normal(Frame(Bytes::from(bytes))),
        };
        Entry { log_id: id(self.term, index), payload }
    }
}

/// Of entries.
#[derive(Clone, Copy, PartialEq)]
enum Sizes {
    /// Up to 700 bytes, up to three at once.
    Small,
    /// 1 byte to 64 KiB, small ones as often as large ones, each a batch; longer than a segment is, too.
    Batches,
}

/// Several lives on one disk, each ended by a crash; an error says what was lost.
fn run(seed: u64, plant: Plant, sizes: Sizes) -> Result<(), String> {
    let mut rng = Rng(seed);
    let mut names = BTreeMap::new();
    let mut before = Model::default();
    for life in 0..4 {
        let left = 10 + rng.below(400);
        let disk = Memory::new(names, left);
        let durable = Arc::new(AtomicUsize::new(0));
        let mut models = vec![before.clone()];
        match open_log(&disk, plant) {
            Ok(wal) => {
                let found = holds_unless_crashed(&wal, &disk);
                if let Some(found) = found
                    && found != before
                {
                    return Err(format!("life {life}: opened as {found:?}, not {before:?}"));
                }
                let term = life * 1000;
                let mut life =
                    Life { wal, disk: disk.clone(), rng: &mut rng, models, term, durable: durable.clone(), sizes };
                while life.disk.room.lock().unwrap().left > 0 && life.wal.closed().is_none() {
                    life.step();
                }
                models = life.models;
            }
            Err(error) if disk.room.lock().unwrap().left > 0 => return Err(format!("life {life}: {error}")),
            Err(_) => {}
        }
        names = disk.crash(&mut rng);
        // What the next life finds, on a disk that does not crash.
        let disk = Memory::new(names, u64::MAX);
        let wal = open_log(&disk, plant).map_err(|error| format!("life {life}: after the crash: {error}"))?;
        let found = holds(&wal);
        let from = durable.load(Relaxed);
        if !models[from..].contains(&found) {
            let lost = models[from..].iter().map(|m| m.entries.len()).collect::<Vec<_>>();
            return Err(format!("life {life}: {} entries, acknowledged ones are lost: {lost:?}", found.entries.len()));
        }
        before = found;
        names = disk.crash(&mut rng);
    }
    Ok(())
}

/// Reading may be what the crash hits.
fn holds_unless_crashed(wal: &Wal, disk: &Memory) -> Option<Model> {
    let left = std::mem::replace(&mut disk.room.lock().unwrap().left, u64::MAX);
    let found = holds(wal);
    disk.room.lock().unwrap().left = left;
    Some(found)
}

#[test]
fn whatever_was_reported_durable_is_there_after_a_crash_at_any_call() {
    for seed in 0..400 {
        if let Err(lost) = run(seed, Plant::default(), Sizes::Small) {
            panic!("seed {seed}: {lost}");
        }
    }
}

/// Four cuts a seed.
#[test]
fn the_power_goes_100_times_under_batches_from_1_byte_to_64_kib_and_nothing_acknowledged_is_lost() {
    for seed in 1000..1025 {
        if let Err(lost) = run(seed, Plant::default(), Sizes::Batches) {
            panic!("seed {seed}: {}", lost.chars().take(400).collect::<String>());
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    let skip_fsync = Plant { skip_fsync: true, ..Plant::default() };
    let early_ack = Plant { early_ack: true, ..Plant::default() };
    for plant in [skip_fsync, early_ack] {
        let found = (0..100).filter(|seed| run(*seed, plant, Sizes::Small).is_err()).count();
        assert!(found > 50, "{plant:?} was found in {found} seeds of 100");
    }
}

#[test]
fn a_full_disk_holds_writes_up_and_nothing_is_hurt() {
    let disk = Memory::new(BTreeMap::new(), u64::MAX);
    disk.room.lock().unwrap().bytes = Some(3 * 4096);
    let wal = open_log(&disk, Plant::default()).unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let mut rng = Rng(1);
    let mut life = Life {
        wal: wal.clone(),
        disk: disk.clone(),
        rng: &mut rng,
        models: vec![Model::default()],
        term: 1,
        durable: done.clone(),
        sizes: Sizes::Small,
    };
    let entries: Vec<Entry> = (0..100).map(|index| life.entry(index)).collect();
    for entry in &entries {
        let index = entry.log_id.index as usize + 1;
        let done = done.clone();
        let noted: Done = Box::new(move |result| {
            result.unwrap();
            done.fetch_max(index, Relaxed);
        });
        wal.append([entry.clone()], noted).unwrap();
        while disk.pump() {}
    }
    assert!(wal.full());
    let before = done.load(Relaxed);
    assert!(before > 20 && before < 100, "{before}");
    assert_eq!(holds(&wal).entries, entries, "what waits for room is readable");
    for _ in 0..3 {
        wal.tick();
        while disk.pump() {}
    }
    assert_eq!(done.load(Relaxed), before);
    disk.room.lock().unwrap().bytes = None;
    for _ in 0..2 {
        wal.tick();
        while disk.pump() {}
    }
    assert_eq!((done.load(Relaxed), wal.full()), (100, false));
    let names = disk.crash(&mut rng);
    let wal = open_log(&Memory::new(names, u64::MAX), Plant::default()).unwrap();
    assert_eq!(holds(&wal).entries, entries);
}

/// What was cut off had other events under the same numbers: nothing is looked for there.
#[test]
fn an_event_is_not_looked_for_where_the_log_was_cut_off() {
    let event = |seq: u64, bytes: usize| {
        let frame = [&seq.to_le_bytes()[..], &vec![7; bytes]].concat();
        EntryPayload::Normal(Frame(frame.into()))
    };
    let setup = Setup {
        probe: Arc::new(|frame| Some((Seq(u64::from_le_bytes(*frame.0.first_chunk()?)), 0))),
        ..setup(Plant::default())
    };
    let open_log = |disk: &Arc<Memory>| {
        let state = open::open(&**disk, &setup).unwrap();
        Wal::new(disk.clone(), Arc::new(SystemClock::default()), Arc::new(Stats::default()), setup.clone(), state)
    };
    let disk = Memory::new(BTreeMap::new(), u64::MAX);
    let wal = open_log(&disk);
    let append = |term: u64, index: u64, payload: EntryPayload<_, _, _>| {
        wal.append([Entry { log_id: id(term, index), payload }], Box::new(|_| {})).unwrap();
        while disk.pump() {}
    };
    append(1, 0, event(1, 10));
    // An event each, two in a file.
    (1..5).for_each(|index| append(1, index, event(1 + index, 1500)));
    wal.truncate(Some(id(1, 0)), Box::new(|_| {})).unwrap();
    // Events 2 to 9 in one entry.
    append(2, 1, event(2, 10));
    append(2, 2, event(10, 10));
    let found =
        |wal: &Wal| [1, 2, 3, 5, 9, 10].map(|seq| wal.locate(Sought::Seq(Seq(seq))) <= if seq < 10 { 1 } else { 2 });
    assert_eq!(found(&wal), [true; 6]);
    assert_eq!(found(&open_log(&disk)), [true; 6]);
}

//! A disk for raft/ in which time passes, power goes and calls fail.
//!
//! ```text
//! Disk::run(lane, job) ─► the lane's queue ─► a task of the world: resumes the job until its next call
//!                                                 ▲ sleeps in virtual time       │ each call: pause, then its effect
//!                                                 └──────────────────────────────┘ on the [`Platter`]
//! ```
//! A job is blocking code. It runs as a coroutine on a stack of its own: each of its calls gives the thread back for a
//! drawn time, so that the lanes and all tasks interleave between any two calls, and the process can end at any call.
//! Ending it unwinds the stacks of its jobs: nothing of theirs runs on but `Drop`.
//!
//! A job's call finds its coroutine through its lane's slot of the thread. Each machine of a world has a seat of its own
//! on the thread, with a slot a lane: a machine runs one process at a time, a lane one job at a time.

mod platter;

pub use platter::{Inode, Platter, SECTOR};

use crate::lock;
use crate::runtime::{Inside, NodeRt, Process, sleep_us};
use crate::trace::Trace;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use cvlan_core::grammar::Rng;
use cvlan_raft::{Disk, File, Files, Job, Lane};
use openraft::AsyncRuntime;
use scoped_tls::{ScopedKey, scoped_thread_local};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Arguments, Display};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

/// Why a job gives the thread back.
enum Pause {
    Wait(u64),
    Die,
}

type Running = Coroutine<(), Pause, ()>;
type Handle = Yielder<(), Pause>;

/// Machines that a thread can simulate at once.
pub const SEATS: usize = 8;

type Slots = [&'static ScopedKey<Handle>; 4];

macro_rules! seats {
    ($($log:ident $encode:ident $read:ident $work:ident),*) => {
        $(scoped_thread_local!(static $log: Handle); scoped_thread_local!(static $encode: Handle);
          scoped_thread_local!(static $read: Handle); scoped_thread_local!(static $work: Handle);)*
        static SLOTS: [Slots; SEATS] = [$([&$log, &$encode, &$read, &$work]),*];
    };
}

seats!(L0 E0 R0 W0, L1 E1 R1 W1, L2 E2 R2 W2, L3 E3 R3 W3, L4 E4 R4 W4, L5 E5 R5 W5, L6 E6 R6 W6, L7 E7 R7 W7);

/// A lane of the machine on a seat.
type Place = (usize, Lane);

thread_local! {
    /// Whose job runs now.
    static ACTIVE: Cell<Option<Place>> = const { Cell::new(None) };
    /// Jobs between two of their calls.
    static PARKED: RefCell<BTreeMap<Place, Running>> = const { RefCell::new(BTreeMap::new()) };
    /// Stacks to use again.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

fn slot((seat, lane): Place) -> &'static ScopedKey<Handle> {
    let [log, encode, read, work] = SLOTS.get(seat % SEATS).copied().unwrap_or([&L0, &E0, &R0, &W0]);
    match lane {
        Lane::Log => log,
        Lane::Encode => encode,
        Lane::Read => read,
        Lane::Work => work,
    }
}

/// What goes wrong in one life of the disk; calls are counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The process ends at this call, half of the time after its effect.
    pub die_at: Option<u64>,
    /// This call fails.
    pub fail_at: Option<u64>,
    /// Calls are slow up to this one.
    pub slow_until: u64,
}

/// One life of a disk, from the process's start to its end. The platter outlives it.
pub struct SimDisk(Arc<Shared>);

struct Shared {
    seat: usize,
    platter: Arc<Mutex<Platter>>,
    process: Arc<Process>,
    trace: Trace,
    state: Mutex<State>,
}

struct State {
    dead: bool,
    lanes: BTreeMap<Lane, Queue>,
    rng: Rng,
    faults: Faults,
    calls: u64,
    /// Segments of the log that were removed.
    gone: u64,
    failed: bool,
    on_end: Vec<Box<dyn FnOnce() + Send>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    busy: bool,
}

/// What a call costs.
#[derive(Clone, Copy)]
enum Class {
    Read,
    Write,
    Entry,
    Sync,
}

impl SimDisk {
    /// A disk for `process` on `platter`, of the machine on this seat.
    pub fn start(
        seat: usize,
        platter: Arc<Mutex<Platter>>,
        process: Arc<Process>,
        trace: Trace,
        rng: Rng,
        faults: Faults,
    ) -> Arc<Self> {
        let state = State {
            dead: false,
            lanes: BTreeMap::new(),
            rng,
            faults,
            calls: 0,
            gone: 0,
            failed: false,
            on_end: Vec::new(),
        };
        Arc::new(Self(Arc::new(Shared { seat, platter, process, trace, state: Mutex::new(state) })))
    }

    /// Ends the process now, jobs in the middle of what they do.
    pub fn end(&self) {
        self.0.end();
    }

    /// Called once when the process ends at a call.
    pub fn on_end(&self, call: impl FnOnce() + Send + 'static) {
        lock(&self.0.state).on_end.push(Box::new(call));
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        lock(&self.0.state).calls
    }

    /// Segments of the log that were removed.
    pub fn gone(&self) -> u64 {
        lock(&self.0.state).gone
    }

    /// Plans further faults; the closure is told how many calls there were.
    pub fn plan(&self, plan: impl FnOnce(u64, &mut Faults)) {
        let state = &mut *lock(&self.0.state);
        plan(state.calls, &mut state.faults);
    }

    /// True once a call has failed on purpose.
    pub fn has_failed(&self) -> bool {
        lock(&self.0.state).failed
    }
}

impl Disk for SimDisk {
    fn run(&self, lane: Lane, job: Job) {
        let mut state = lock(&self.0.state);
        if state.dead {
            drop(state);
            drop(job);
            return;
        }
        let queue = state.lanes.entry(lane).or_default();
        queue.jobs.push_back(job);
        if !std::mem::replace(&mut queue.busy, true) {
            drop(state);
            // The disk belongs to the world: a killed process does not take the lanes' tasks with it.
            let _world = Inside::of(None);
            let _detached = NodeRt::spawn(self.0.clone().work(lane));
        }
    }
}

impl Shared {
    async fn work(self: Arc<Self>, lane: Lane) {
        loop {
            let latency = lock(&self.state).rng.below(30);
            sleep_us(latency).await;
            let Some(job) = self.next_job(lane) else { return };
            self.begin(lane, job);
            while let Some(us) = self.step(lane) {
                sleep_us(us).await;
            }
        }
    }

    fn next_job(&self, lane: Lane) -> Option<Job> {
        let mut state = lock(&self.state);
        let queue = state.lanes.get_mut(&lane)?;
        let job = queue.jobs.pop_front();
        queue.busy = job.is_some();
        job
    }

    fn begin(self: &Arc<Self>, lane: Lane, job: Job) {
        let stack = STACKS.with_borrow_mut(Vec::pop).unwrap_or_default();
        let (files, place) = (SimFiles(self.clone()), (self.seat, lane));
        let job = Coroutine::with_stack(stack, move |handle: &Handle, ()| slot(place).set(handle, || job(&files)));
        PARKED.with_borrow_mut(|parked| parked.insert(place, job));
    }

    /// Lets the lane's job run up to its next call; how long that takes, or `None` where there is no job any more.
    fn step(&self, lane: Lane) -> Option<u64> {
        if lock(&self.state).dead {
            return None;
        }
        let place = (self.seat, lane);
        let mut job = PARKED.with_borrow_mut(|parked| parked.remove(&place))?;
        ACTIVE.set(Some(place));
        // A panic in a job was seen by the hook: the seed has failed.
        let result = catch_unwind(AssertUnwindSafe(|| job.resume(())));
        ACTIVE.set(None);
        match result {
            Ok(CoroutineResult::Yield(Pause::Wait(us))) => {
                PARKED.with_borrow_mut(|parked| parked.insert(place, job));
                return Some(us);
            }
            Ok(CoroutineResult::Yield(Pause::Die)) => {
                self.end();
                drop(job);
            }
            Ok(CoroutineResult::Return(())) => STACKS.with_borrow_mut(|stacks| stacks.push(job.into_stack())),
            Err(_) => drop(job),
        }
        None
    }

    fn end(&self) {
        let (queued, on_end) = {
            let mut state = lock(&self.state);
            if std::mem::replace(&mut state.dead, true) {
                return;
            }
            (std::mem::take(&mut state.lanes), std::mem::take(&mut state.on_end))
        };
        let mine = |(seat, _): &Place| *seat == self.seat;
        let parked: Vec<_> = PARKED.with_borrow_mut(|all| all.extract_if(.., |place, _| mine(place)).collect());
        drop(parked);
        drop(queued);
        self.process.kill();
        on_end.into_iter().for_each(|call| call());
    }

    /// One call of a job.
    fn call<T>(
        &self,
        class: Class,
        what: Arguments<'_>,
        effect: impl FnOnce(&mut Platter) -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(place) = ACTIVE.get() else { return Err(io::Error::other("a call outside of a job")) };
        let (call, dies, half, fails, us) = {
            let mut state = lock(&self.state);
            if state.dead {
                return Err(io::Error::other("the power is gone"));
            }
            state.calls += 1;
            let call = state.calls;
            let fails = state.faults.fail_at == Some(call);
            state.failed |= fails;
            (call, state.faults.die_at == Some(call), state.rng.one_in(2), fails, state.cost(class))
        };
        let (seat, lane) = place;
        if dies {
            let done = if half { effect(&mut lock(&self.platter)).is_ok() } else { false };
            self.trace.line(format_args!("s{seat} {lane:?} #{call} {what}: dies, done: {done}"));
            pause(place, Pause::Die);
            return Err(io::Error::other("the power is gone"));
        }
        pause(place, Pause::Wait(us));
        if fails {
            self.trace.line(format_args!("s{seat} {lane:?} #{call} {what}: fails"));
            return Err(io::Error::other("the simulated disk failed"));
        }
        let result = effect(&mut lock(&self.platter));
        match &result {
            Ok(_) => self.trace.line(format_args!("s{seat} {lane:?} #{call} {what}")),
            Err(error) => self.trace.line(format_args!("s{seat} {lane:?} #{call} {what}: {error}")),
        }
        result
    }
}

fn pause(place: Place, pause: Pause) {
    slot(place).with(|handle| handle.suspend(pause));
}

impl State {
    /// µs.
    fn cost(&mut self, class: Class) -> u64 {
        let usual = match class {
            Class::Read => 3 + self.rng.below(40),
            Class::Write => 5 + self.rng.below(60),
            Class::Entry => 10 + self.rng.below(150),
            Class::Sync => 80 + self.rng.below(800),
        };
        let slow = self.calls < self.faults.slow_until || self.rng.one_in(200);
        if slow { usual * (2 + self.rng.below(40)) } else { usual }
    }
}

/// What a job is given.
struct SimFiles(Arc<Shared>);

impl SimFiles {
    fn file(&self, name: &str, inode: Inode) -> Arc<dyn File> {
        Arc::new(SimFile { shared: self.0.clone(), name: name.to_owned(), inode })
    }
}

impl Files for SimFiles {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.0.call(Class::Read, format_args!("list {folder}"), |platter| Ok(platter.list(folder)))
    }

    fn make_folder(&self, folder: &str) -> io::Result<()> {
        self.0.call(Class::Sync, format_args!("make folder {folder}"), |platter| {
            platter.make_folder(folder);
            Ok(())
        })
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inode = self.0.call(Class::Entry, format_args!("open {name}"), |platter| platter.open(name))?;
        Ok(self.file(name, inode))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let what = format_args!("create {name} {len}");
        let inode = self.0.call(Class::Entry, what, |platter| platter.create(name, len as usize))?;
        Ok(self.file(name, inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.call(Class::Entry, format_args!("rename {from} {to}"), |platter| platter.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.call(Class::Entry, format_args!("remove {name}"), |platter| platter.remove(name))?;
        lock(&self.0.state).gone += u64::from(name.starts_with("log/") && name.ends_with(".seg"));
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        // It covers what was there when it began.
        let count = lock(&self.0.platter).pending_entries(folder);
        let what = format_args!("sync folder {folder} {count}");
        self.0.call(Class::Sync, what, |platter| platter.sync_folder(folder, count))
    }
}

struct SimFile {
    shared: Arc<Shared>,
    name: String,
    inode: Inode,
}

impl SimFile {
    fn call<T>(
        &self,
        class: Class,
        what: impl Display,
        effect: impl FnOnce(&mut Platter) -> io::Result<T>,
    ) -> io::Result<T> {
        self.shared.call(class, format_args!("{} {what}", self.name), effect)
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.call(Class::Read, "length", |platter| Ok(platter.len(self.inode)? as u64))
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let what = format_args!("read {at} +{}", buf.len()).to_string();
        self.call(Class::Read, what, |platter| platter.read(self.inode, at as usize, buf))
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let what = format!("write {at} +{} {:08x}", bytes.len(), crc32c::crc32c(bytes));
        self.call(Class::Write, what, |platter| platter.write(self.inode, at as usize, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        let count = lock(&self.shared.platter).pending(self.inode);
        let (seed, before) = {
            let mut state = lock(&self.shared.state);
            (state.rng.next(), state.failed)
        };
        let result = self.call(Class::Sync, format_args!("sync {count}"), |platter| platter.sync(self.inode, count));
        let failed_now = result.is_err() && !before && lock(&self.shared.state).failed;
        if failed_now && seed.is_multiple_of(2) {
            lock(&self.shared.platter).sync_lost(self.inode, count, &mut Rng(seed))?;
        }
        result
    }
}

//! The thread that keeps the views up with the log.
//!
//! ```text
//! push(state, checkpoint, events) ── never blocks; at most PENDING_MAX events are kept, the log has the others
//!     ▼
//! at once if idle, else ≤ 50 ms after the last fold, or when a reader wants it
//!     ▼
//! same epoch? ─ no ─► rebuild from the state ─► audit backfilled from the log, newest first, between folds
//!     │ yes
//!     ▼
//! events missing? ─ yes ─► read from the log ─ gone there? ─► rebuild
//!     │
//!     ▼
//! one transaction
//! ```

use crate::db::Views;
use crate::error::Error;
use crate::postgres::{Postgres, PostgresStatus, PostgresUrl};
use cvlan_core::State;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_proto::v1::Event;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Events kept in memory for the next fold; further ones are read from the log.
pub const PENDING_MAX: usize = 65_536;
/// Events folded in one transaction.
const FOLD_MAX: usize = 16_384;
/// Events of one step of the audit's backfill.
const BACKFILL: usize = 4_096;
/// Shortest time between two folds, unless a reader wants the second.
const COALESCE: Duration = Duration::from_millis(50);
/// Between two attempts after a failure, and between two looks whether all is well.
const RETRY: Duration = Duration::from_secs(1);
/// The same for a database that is elsewhere and does not answer: half of the first, and the longest.
const AWAY: Duration = Duration::from_millis(125);
const AWAY_MAX: Duration = Duration::from_secs(5);

/// Why the log does not give the events asked for.
#[derive(Debug)]
pub enum Past {
    /// They are gone; this is the oldest there is.
    Gone(Seq),
    /// Not now.
    Unavailable(String),
}

/// Reads events from the log: from a number on, in order, at most so many (fewer are fine; none = not there yet).
/// Called on the writer's thread; it may block.
pub type History = Box<dyn FnMut(Seq, usize) -> Result<Vec<Event>, Past> + Send>;
/// Called on the writer's thread each time the views have moved.
pub type Advanced = Box<dyn Fn(Checkpoint) + Send>;

type Batch = Box<dyn Deref<Target = [Event]> + Send>;

/// A database that is kept up with the log.
pub(crate) trait Target: Send + 'static {
    /// Up to where everything is in, and the first event that the audit knows of.
    fn meta(&mut self) -> Result<(Checkpoint, Seq), Error>;
    /// Folds the events that follow the checkpoint, in one transaction; `state` is at or after the last of them.
    fn fold(&mut self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error>;
    /// Writes everything anew, in one transaction. The audit starts after `to`.
    fn rebuild(&mut self, state: &State, to: Checkpoint) -> Result<(), Error>;
    /// Adds events to the audit that come right before its first one.
    fn backfill(&mut self, events: &[Event]) -> Result<(), Error>;
    /// Told of what went wrong with it, or for it.
    fn failed(&mut self, error: &Error);
    /// It is not one that can be written until it is rebuilt.
    fn is_damaged(&self) -> bool;
    /// Looked at from time to time: it is not where it was left.
    fn is_astray(&mut self) -> bool;
    /// It is this member's own, and may be made older than it is.
    fn is_own(&self) -> bool;
}

impl Target for Arc<Views> {
    fn meta(&mut self) -> Result<(Checkpoint, Seq), Error> {
        Views::meta(self)
    }

    fn fold(&mut self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error> {
        Views::fold(self, state, events)
    }

    fn rebuild(&mut self, state: &State, to: Checkpoint) -> Result<(), Error> {
        Views::rebuild(self, state, to)
    }

    fn backfill(&mut self, events: &[Event]) -> Result<(), Error> {
        self.audit_backfill(events).map(drop)
    }

    fn failed(&mut self, _: &Error) {}

    fn is_damaged(&self) -> bool {
        Views::is_damaged(self)
    }

    fn is_astray(&mut self) -> bool {
        Views::is_damaged(self)
    }

    fn is_own(&self) -> bool {
        true
    }
}

/// Keeps a view up with the log. Dropping it ends its thread: [`Views`] get what was pushed, PostgreSQL is left where it is.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Ends what waits for a database that is elsewhere.
    interrupt: Option<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    /// Something was pushed, is wanted, or the writer stops.
    pushed: Condvar,
    /// The views moved.
    moved: Condvar,
}

#[derive(Default)]
struct Inbox {
    newest: Option<(Box<State>, Checkpoint)>,
    batches: Vec<Batch>,
    events: usize,
    wanted: Seq,
    done: Checkpoint,
    stop: bool,
}

impl Writer {
    /// Starts the thread. Push the current state once (with no events) to have the views brought up to it.
    pub fn start(views: Arc<Views>, history: History, advanced: Advanced) -> Result<Self, Error> {
        let done = views.checkpoint()?;
        Self::spawn("views", views, done, history, advanced, None)
    }

    /// The same for PostgreSQL; does not wait for it. One of the members that ask for it writes, the others stand by.
    /// `leads` says whether this member's log is the newest there is: one of another epoch is replaced by its leader alone.
    pub fn postgres(
        url: PostgresUrl,
        history: History,
        leads: Box<dyn Fn() -> bool + Send>,
    ) -> Result<(Self, Arc<PostgresStatus>), Error> {
        let (database, interrupt) = Postgres::new(url, leads);
        let status = database.status();
        let (interrupt, advanced) = (Some(interrupt), Box::new(|_| {}));
        let writer = Self::spawn("postgres", database, Checkpoint::default(), history, advanced, interrupt)?;
        Ok((writer, status))
    }

    fn spawn(
        name: &str,
        target: impl Target,
        done: Checkpoint,
        history: History,
        advanced: Advanced,
        interrupt: Option<Box<dyn Fn() + Send + Sync>>,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared { inbox: Mutex::new(Inbox { done, ..Inbox::default() }), ..Shared::default() });
        let keeper = Keeper::new(target, history, advanced, shared.clone());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || keeper.run())?;
        Ok(Self { shared, thread: Some(thread), interrupt })
    }

    /// Hands over an applied entry: the state after it, its checkpoint, its events. Quick, never blocks.
    pub fn push(&self, state: State, checkpoint: Checkpoint, events: impl Deref<Target = [Event]> + Send + 'static) {
        let mut inbox = self.shared.inbox();
        inbox.events += events.len();
        inbox.batches.push(Box::new(events));
        let dropped = (inbox.events > PENDING_MAX).then(|| {
            inbox.events = 0;
            std::mem::take(&mut inbox.batches)
        });
        let old = inbox.newest.replace((Box::new(state), checkpoint));
        drop(inbox);
        self.shared.pushed.notify_one();
        drop((dropped, old));
    }

    /// Up to where the views are.
    pub fn checkpoint(&self) -> Checkpoint {
        self.shared.inbox().done
    }

    /// A reader waits for this event: fold without waiting for more. [`Advanced`] tells when it is in.
    pub fn want(&self, seq: Seq) {
        let mut inbox = self.shared.inbox();
        inbox.wanted = inbox.wanted.max(seq);
        drop(inbox);
        self.shared.pushed.notify_one();
    }

    /// Waits until the views are there; false after `limit`, or where the epoch is another. Blocks.
    pub fn wait(&self, checkpoint: Checkpoint, limit: Duration) -> bool {
        self.want(checkpoint.seq);
        let there = |done: Checkpoint| done.epoch == checkpoint.epoch && done.seq >= checkpoint.seq;
        let inbox = self.shared.inbox();
        let waited = self.shared.moved.wait_timeout_while(inbox, limit, |inbox| !there(inbox.done));
        there(waited.unwrap_or_else(PoisonError::into_inner).0.done)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.inbox().stop = true;
        self.shared.pushed.notify_one();
        if let Some(interrupt) = &self.interrupt {
            interrupt();
        }
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its own hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a>(&self, inbox: MutexGuard<'a, Inbox>, limit: Duration) -> MutexGuard<'a, Inbox> {
        self.pushed.wait_timeout(inbox, limit).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What there is to do next.
enum Task {
    Fold { pushed: (Box<State>, Checkpoint), batches: Vec<Batch>, stop: bool },
    Idle,
    Stop,
}

/// What the thread owns.
struct Keeper<T> {
    target: T,
    history: History,
    advanced: Advanced,
    shared: Arc<Shared>,
    /// The last state that was pushed.
    known: Option<(Box<State>, Checkpoint)>,
    /// The audit is complete.
    audit_done: bool,
    /// Not before: the next fold, unless wanted; after a failure, whoever wants it.
    due: Instant,
    failed: bool,
    away: Duration,
    /// What was said last, so that it is said once.
    said: &'static str,
    idle_due: Instant,
}

impl<T: Target> Keeper<T> {
    fn new(target: T, history: History, advanced: Advanced, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let (known, audit_done, failed, said) = (None, false, false, "");
        let (due, idle_due, away) = (now, now, AWAY);
        Self { target, history, advanced, shared, known, audit_done, due, failed, away, said, idle_due }
    }

    fn run(mut self) {
        loop {
            match self.next() {
                // What is elsewhere goes on from its own checkpoint, by whoever writes it next.
                Task::Fold { stop: true, .. } if !self.target.is_own() => return,
                Task::Fold { pushed, batches, stop } => {
                    self.known = Some(pushed);
                    self.attempt(&batches);
                    if stop {
                        return;
                    }
                }
                Task::Idle => self.idle(),
                Task::Stop => return,
            }
        }
    }

    fn next(&self) -> Task {
        let mut inbox = self.shared.inbox();
        loop {
            let now = Instant::now();
            if inbox.newest.is_some() {
                let hurry = inbox.stop || inbox.wanted > inbox.done.seq && !self.failed;
                if now < self.due && !hurry {
                    inbox = self.shared.sleep(inbox, self.due - now);
                } else if let Some(pushed) = inbox.newest.take() {
                    inbox.events = 0;
                    return Task::Fold { pushed, batches: std::mem::take(&mut inbox.batches), stop: inbox.stop };
                }
            } else if inbox.stop {
                return Task::Stop;
            } else if now >= self.idle_due {
                return Task::Idle;
            } else {
                inbox = self.shared.sleep(inbox, self.idle_due - now);
            }
        }
    }

    fn attempt(&mut self, batches: &[Batch]) {
        let Some((state, checkpoint)) = self.known.clone() else { return };
        let mut result = self.bring(&state, checkpoint, batches);
        if result.is_err() && self.target.is_damaged() {
            result = self.rebuild(&state, checkpoint);
        }
        self.failed = result.is_err();
        self.due = Instant::now() + if self.failed { self.wait(&result) } else { COALESCE };
        match result {
            Ok(()) => {
                let mut inbox = self.shared.inbox();
                if inbox.done.epoch != checkpoint.epoch {
                    inbox.wanted = Seq(0);
                }
                inbox.done = checkpoint;
                drop(inbox);
                (self.said, self.away) = ("", AWAY);
                self.shared.moved.notify_all();
                (self.advanced)(checkpoint);
            }
            Err(error) => {
                self.target.failed(&error);
                if self.target.is_own() || self.said != error.code() {
                    self.said = error.code();
                    say(&error, "the view stays behind; trying again");
                }
                // The events are in the log; the state is all that must be kept.
                self.shared.inbox().newest.get_or_insert((state, checkpoint));
            }
        }
    }

    /// Until the next attempt: who stands by looks often, a database that is away is given time.
    fn wait(&mut self, result: &Result<(), Error>) -> Duration {
        if matches!(result, Err(Error::Postgres(_))) {
            self.away = (self.away * 2).min(AWAY_MAX);
            return self.away;
        }
        RETRY
    }

    /// Brings the views to `to`, whose state is given, by what was pushed and what the log has.
    fn bring(&mut self, state: &State, to: Checkpoint, batches: &[Batch]) -> Result<(), Error> {
        if self.target.is_damaged() {
            return self.rebuild(state, to);
        }
        let (mut have, _) = self.target.meta()?;
        if have.epoch != to.epoch || self.target.is_own() && have.seq > to.seq {
            return self.rebuild(state, to);
        }
        if have.seq > to.seq {
            return Err(Error::Ahead { there: have.seq, here: to.seq });
        }
        let fresh = |e: &&Event| e.seq > have.seq.0 && e.seq <= to.seq.0;
        let pushed: Vec<&Event> = batches.iter().flat_map(|batch| batch.iter()).filter(fresh).collect();
        let missing_to = pushed.first().map_or(to.seq.0, |e| e.seq - 1);
        while have.seq.0 < missing_to {
            if self.shared.inbox().stop {
                return Err(Error::Log("stopped on the way; the next start goes on from here".to_owned()));
            }
            let from = Seq(have.seq.0 + 1);
            let mut events = match (self.history)(from, FOLD_MAX) {
                Ok(events) => events,
                Err(Past::Gone(_)) => return self.rebuild(state, to),
                Err(Past::Unavailable(why)) => return Err(Error::Log(why)),
            };
            events.retain(|e| e.seq <= missing_to);
            if events.is_empty() {
                return Err(Error::Log(format!("event {from} is not there yet")));
            }
            have = self.target.fold(state, &events.iter().collect::<Vec<_>>())?;
        }
        for events in pushed.chunks(FOLD_MAX) {
            self.target.fold(state, events)?;
        }
        Ok(())
    }

    fn rebuild(&mut self, state: &State, to: Checkpoint) -> Result<(), Error> {
        self.audit_done = false;
        self.target.rebuild(state, to)
    }

    /// Between folds: mends what a reader found damaged, and lets the audit grow backwards.
    fn idle(&mut self) {
        let more = if self.target.is_astray() {
            self.attempt(&[]);
            !self.failed && self.known.is_some()
        } else {
            !self.audit_done
                && self.backfill().unwrap_or_else(|error| {
                    self.target.failed(&error);
                    say(&error, "the audit is not complete; trying again");
                    false
                })
        };
        self.idle_due = Instant::now() + if more { Duration::ZERO } else { RETRY };
    }

    /// One step of the backfill; true if there may be another one at once.
    fn backfill(&mut self) -> Result<bool, Error> {
        let end = self.target.meta()?.1.0;
        let mut from = end.saturating_sub(BACKFILL as u64).max(1);
        let mut events: Vec<Event> = Vec::new();
        while from < end {
            match (self.history)(Seq(from), BACKFILL) {
                Ok(page) if page.is_empty() => return Err(Error::Log(format!("event {from} is not there yet"))),
                Ok(page) => {
                    events.extend(page.into_iter().filter(|e| e.seq < end));
                    from = events.last().map_or(end, |e| e.seq + 1);
                }
                Err(Past::Gone(first)) if first.0 > from && events.is_empty() => from = first.0,
                // Trimmed meanwhile.
                Err(Past::Gone(_)) => return Ok(false),
                Err(Past::Unavailable(why)) => return Err(Error::Log(why)),
            }
        }
        // Where the log begins late, it may reach further back another time.
        self.audit_done = end <= 1;
        if events.is_empty() {
            return Ok(false);
        }
        self.target.backfill(&events)?;
        Ok(true)
    }
}

/// One that stands by is as it should be.
fn say(error: &Error, what: &str) {
    match error {
        Error::Standby => tracing::info!(%error, code = error.code(), "standing by"),
        error => tracing::warn!(%error, code = error.code(), "{what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, agree, dump};
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    const LONG: Duration = Duration::from_secs(20);

    /// A log that holds events from `first` on.
    fn log(world: &World, first: u64) -> History {
        let events = world.events.clone();
        Box::new(move |from, limit| {
            if from.0 < first {
                return Err(Past::Gone(Seq(first)));
            }
            // Pages are shorter than asked for, as a log's may be.
            Ok(events.iter().skip(from.0 as usize - 1).take(limit.min(37)).cloned().collect())
        })
    }

    fn open(path: &Path, history: History) -> (Arc<Views>, Writer) {
        let views = Arc::new(Views::open(path).unwrap());
        let writer = Writer::start(views.clone(), history, Box::new(|_| {})).unwrap();
        (views, writer)
    }

    fn complete(views: &Views, from: u64) {
        let end = Instant::now() + LONG;
        while views.audit_from().unwrap() != Seq(from) {
            assert!(Instant::now() < end, "the audit starts at {}", views.audit_from().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a view of the whole world must be.
    fn whole(world: &World, folder: &Path) -> Vec<String> {
        let path = folder.join("whole.db");
        let views = Views::open(&path).unwrap();
        views.rebuild(&world.state, world.checkpoint()).unwrap();
        views.audit_backfill(&world.events).unwrap();
        dump(&path)
    }

    #[test]
    fn what_is_pushed_is_there_when_waited_for() {
        let world = World::new(1, 300);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let (views, writer) = open(&path, log(&world, 1));
        let mut from = 0;
        for to in (0..world.events.len()).step_by(17).chain([world.events.len()]) {
            let (state, checkpoint) = world.at(to);
            writer.push(state.clone(), checkpoint, world.events[from..to].to_vec());
            assert!(writer.wait(checkpoint, LONG));
            assert_eq!(views.checkpoint().unwrap(), checkpoint);
            agree(&views, &state, world.now_ms);
            from = to;
        }
        complete(&views, 1);
        drop(writer);
        assert_eq!(dump(&path), whole(&world, folder.path()));
    }

    #[test]
    fn a_wait_for_what_does_not_come_ends() {
        let world = World::new(1, 20);
        let folder = tempfile::tempdir().unwrap();
        let (_views, writer) = open(&folder.path().join("views.db"), log(&world, 1));
        writer.push(world.state.clone(), world.checkpoint(), Vec::new());
        let mut beyond = world.checkpoint();
        beyond.seq.0 += 1;
        assert!(!writer.wait(beyond, Duration::from_millis(80)));
        let other = Checkpoint { epoch: cvlan_core::id::Epoch([9; 16]), ..world.checkpoint() };
        assert!(!writer.wait(other, Duration::from_millis(80)));
        assert!(writer.wait(world.checkpoint(), LONG));
    }

    #[test]
    fn many_pushes_are_few_folds() {
        let world = World::new(2, 400);
        let folder = tempfile::tempdir().unwrap();
        let views = Arc::new(Views::open(folder.path().join("views.db")).unwrap());
        let folds = Arc::new(AtomicU64::new(0));
        let counted = folds.clone();
        let count = Box::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let writer = Writer::start(views, log(&world, 1), count).unwrap();
        let mut state = State::default();
        for event in &world.events {
            <cvlan_core::Rules as cvlan_core::machine::Machine>::apply(&mut state, event);
            let checkpoint = Checkpoint { epoch: world.epoch, seq: Seq(event.seq) };
            writer.push(state.clone(), checkpoint, vec![event.clone()]);
        }
        assert!(writer.wait(world.checkpoint(), LONG));
        assert!(folds.load(Ordering::Relaxed) < 20, "{} folds", folds.load(Ordering::Relaxed));
    }

    #[test]
    fn what_was_not_pushed_is_read_from_the_log() {
        let world = World::new(3, 300);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let middle = world.events.len() / 2;
        let views = Views::open(&path).unwrap();
        let (state, checkpoint) = world.at(middle);
        views.rebuild(&state, checkpoint).unwrap();
        views.audit_backfill(&world.events[..middle]).unwrap();
        drop(views);
        // A hole between what the view has and what is pushed, and an overlap after it.
        let (_, writer) = open(&path, log(&world, 1));
        let (state, checkpoint) = world.at(middle + 60);
        writer.push(state, checkpoint, world.events[middle + 50..middle + 60].to_vec());
        assert!(writer.wait(checkpoint, LONG));
        writer.push(world.state.clone(), world.checkpoint(), world.events[middle + 55..].to_vec());
        assert!(writer.wait(world.checkpoint(), LONG));
        drop(writer);
        assert_eq!(dump(&path), whole(&world, folder.path()));
    }

    #[test]
    fn what_is_pushed_twice_is_folded_once_and_needs_no_log() {
        let world = World::new(13, 100);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let (state, start) = world.at(0);
        Views::open(&path).unwrap().rebuild(&state, start).unwrap();
        let silent: History = Box::new(|_, _| Err(Past::Unavailable("not asked for".into())));
        let (views, writer) = open(&path, silent);
        let (state, checkpoint) = world.at(50);
        writer.push(state, checkpoint, world.events[..50].to_vec());
        assert!(writer.wait(checkpoint, LONG));
        writer.push(world.state.clone(), world.checkpoint(), world.events[40..].to_vec());
        assert!(writer.wait(world.checkpoint(), LONG));
        drop(writer);
        assert_eq!(views.audit_from().unwrap(), Seq(1));
        assert_eq!(dump(&path), whole(&world, folder.path()));
    }

    #[test]
    fn more_than_can_be_kept_is_read_from_the_log() {
        let world = World::new(4, 200);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let (views, writer) = open(&path, log(&world, 1));
        // A batch of pushes larger than the bound, before the thread has taken any.
        let (state, checkpoint) = world.at(1);
        writer.push(state, checkpoint, world.events[..1].to_vec());
        assert!(writer.wait(checkpoint, LONG));
        writer.push(world.state.clone(), world.checkpoint(), vec![Event::default(); PENDING_MAX + 1]);
        assert_eq!(writer.shared.inbox().events, 0);
        assert!(writer.wait(world.checkpoint(), LONG));
        complete(&views, 1);
        drop(writer);
        assert_eq!(dump(&path), whole(&world, folder.path()));
    }

    #[test]
    fn where_the_log_no_longer_reaches_the_view_is_rebuilt_and_the_audit_says_from_when() {
        let world = World::new(5, 300);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let (state, checkpoint) = world.at(40);
        Views::open(&path).unwrap().rebuild(&state, checkpoint).unwrap();
        let (views, writer) = open(&path, log(&world, 101));
        writer.push(world.state.clone(), world.checkpoint(), Vec::new());
        assert!(writer.wait(world.checkpoint(), LONG));
        agree(&views, &world.state, world.now_ms);
        complete(&views, 101);
        assert_eq!(views.audit(&crate::AuditQuery::default()).unwrap().complete_from, Seq(101));
    }

    #[test]
    fn another_epoch_or_an_older_state_is_a_rebuild() {
        let (old, new) = (World::new(6, 200), World::new(7, 100));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let views = Views::open(&path).unwrap();
        views.rebuild(&old.state, old.checkpoint()).unwrap();
        views.audit_backfill(&old.events).unwrap();
        drop(views);
        let (views, writer) = open(&path, log(&new, 1));
        writer.push(new.state.clone(), new.checkpoint(), Vec::new());
        assert!(writer.wait(new.checkpoint(), LONG));
        complete(&views, 1);
        let (state, checkpoint) = new.at(50);
        writer.push(state.clone(), checkpoint, Vec::new());
        let end = Instant::now() + LONG;
        while writer.checkpoint() != checkpoint {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        agree(&views, &state, new.now_ms);
    }

    #[test]
    fn a_crash_at_any_moment_resumes_from_a_checkpoint() {
        let world = World::new(8, 400);
        let folder = tempfile::tempdir().unwrap();
        let (path, crashed) = (folder.path().join("views.db"), folder.path().join("crashed.db"));
        let (_views, writer) = open(&path, log(&world, 1));
        let expected = whole(&world, folder.path());
        let mut dice = World::new(9, 0);
        let (mut from, mut resumed_at) = (0, std::collections::BTreeSet::new());
        while from < world.events.len() {
            let to = (from + 1 + dice.below(40) as usize).min(world.events.len());
            let (state, checkpoint) = world.at(to);
            writer.push(state, checkpoint, world.events[from..to].to_vec());
            writer.wait(checkpoint, LONG);
            from = to;
            // What the disk holds when the power goes: the file, and any first part of its write-ahead log.
            std::fs::copy(&path, &crashed).unwrap();
            let wal = std::fs::read(folder.path().join("views.db-wal")).unwrap_or_default();
            let cut = dice.below(wal.len() as u64 + 1) as usize;
            std::fs::write(folder.path().join("crashed.db-wal"), &wal[..cut]).unwrap();
            let _ = std::fs::remove_file(folder.path().join("crashed.db-shm"));

            let (views, writer) = open(&crashed, log(&world, 1));
            let resumed = views.checkpoint().unwrap();
            assert!(resumed.seq <= checkpoint.seq);
            resumed_at.insert(resumed.seq);
            writer.push(world.state.clone(), world.checkpoint(), Vec::new());
            assert!(writer.wait(world.checkpoint(), LONG));
            complete(&views, 1);
            drop((views, writer));
            assert_eq!(dump(&crashed), expected, "cut after {cut} of {} bytes", wal.len());
        }
        assert!(resumed_at.len() > 3, "{resumed_at:?}");
    }

    #[test]
    fn a_malformed_file_is_rebuilt() {
        let world = World::new(10, 300);
        let folder = tempfile::tempdir().unwrap();
        let expected = whole(&world, folder.path());
        let good = std::fs::read(folder.path().join("whole.db")).unwrap();
        let path = folder.path().join("views.db");
        let noise = |bytes: &mut Vec<u8>, from: usize, to: usize| bytes[from..to].iter_mut().for_each(|b| *b ^= 0x5a);
        let other_schema = {
            let db = folder.path().join("other.db");
            rusqlite::Connection::open(&db).unwrap().execute_batch("CREATE TABLE notes (id INTEGER)").unwrap();
            std::fs::read(db).unwrap()
        };
        let newer = {
            let db = folder.path().join("newer.db");
            std::fs::write(&db, &good).unwrap();
            rusqlite::Connection::open(&db).unwrap().execute("UPDATE meta SET schema = schema + 1", []).unwrap();
            std::fs::read(db).unwrap()
        };
        let mut cases =
            vec![b"not a database at all, but long enough to look at".to_vec(), Vec::new(), other_schema, newer];
        for (from, to) in [(0, 100), (100, 4096), (4096, 8192), (8192, good.len())] {
            let mut bytes = good.clone();
            noise(&mut bytes, from, to);
            cases.push(bytes);
        }
        cases.push(good[..good.len() / 2].to_vec());
        for (i, bytes) in cases.into_iter().enumerate() {
            std::fs::write(&path, bytes).unwrap();
            for tail in ["views.db-wal", "views.db-shm"] {
                let _ = std::fs::remove_file(folder.path().join(tail));
            }
            let (views, writer) = open(&path, log(&world, 1));
            // A list meets the damage where opening did not; the thread mends it in its idle time.
            writer.push(world.state.clone(), world.checkpoint(), Vec::new());
            assert!(writer.wait(world.checkpoint(), LONG), "case {i}");
            let end = Instant::now() + LONG;
            loop {
                let read = world.state.tenants.keys().all(|home| {
                    let query = crate::Query { sort: "-created".into(), ..crate::Query::default() };
                    let lists = (views.nodes(*home, &query), views.tokens(*home, &query), views.cvlans(*home, &query));
                    lists.0.is_ok() && lists.1.is_ok() && lists.2.is_ok() && views.users(*home, &query).is_ok()
                });
                let audit = views.audit(&crate::AuditQuery { limit: 1000, ..crate::AuditQuery::default() });
                let whole = audit.is_ok_and(|page| page.complete_from == Seq(1) && page.seqs.len() == world.audited());
                if read && whole && !views.is_damaged() {
                    break;
                }
                assert!(Instant::now() < end, "case {i} is not mended");
                std::thread::sleep(Duration::from_millis(20));
            }
            agree(&views, &world.state, world.now_ms);
            drop((views, writer));
            assert_eq!(dump(&path), expected, "case {i}");
        }
    }

    #[test]
    fn a_log_that_fails_for_a_while_only_delays() {
        let world = World::new(12, 100);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("views.db");
        let (state, checkpoint) = world.at(10);
        Views::open(&path).unwrap().rebuild(&state, checkpoint).unwrap();
        let (mut good, mut failures) = (log(&world, 1), 2);
        let history: History = Box::new(move |from, limit| {
            if failures > 0 {
                failures -= 1;
                return Err(Past::Unavailable("the disk is asleep".into()));
            }
            good(from, limit)
        });
        let (views, writer) = open(&path, history);
        writer.push(world.state.clone(), world.checkpoint(), Vec::new());
        assert!(writer.wait(world.checkpoint(), LONG));
        agree(&views, &world.state, world.now_ms);
    }
}

//! The desk: commands that wait, entries in flight with their callers, and whether this member's term is open.
//!
//! ```text
//! push ─► queue ─► turn (≤ one entry) ─► decided ─► launch ─► flight ─► land: front matches the applied entry ─► answers
//!            ▲ │                          │              │
//!            │ │ another member leads:    │ without an   ├─ overtaken: an entry of another leader is applied:
//!            │ └─► forward, away from here│ entry        │  what is in flight never will be
//!            │                            ▼              └─ skipped, refused: the head it was decided against is void
//!            │                         quiet ─► confirmed: this member still led ─► answers
//!            └── again: decided anew, in order ◄── whatever of these fails
//! ```
//! Invariants: one lock, never held across a wait; entries in flight are in the order of the log; a command is answered,
//! or decided again, only when it is certain whether it is in the log: an entry is lost for certain once an entry of a
//! later term is applied (terms do not decrease along the log), or if Raft refused it before appending. What was decided
//! without an entry is answered only once this member is known to have led after it was decided: the head of a leader
//! that was deposed and does not know it is old.

use crate::clock::{Clock, OwnTime};
use crate::error::WriteError;
use crate::head::{Head, Noted};
use crate::member::Answer;
use crate::options::{Events, Limits, Plant};
use crate::peer::slow;
use crate::sessions::Outcome;
use crate::status::Stats;
use crate::sync::lock;
use crate::types::{Frame, Leader, Once};
use bytes::Bytes;
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use cvlan_core::machine::Machine;
use futures_util::task::AtomicWaker;
use openraft::AsyncRuntime;
use openraft::async_runtime::OneshotSender;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

/// While an entry is in flight, the next one waits for about so many events, or for that one to land: many small entries cost
/// more than they win, as they share the next sync anyway.
const PIPELINED: usize = 64;

/// What a caller gets: an answer, or where the answer of the first time lies.
pub(crate) enum Done<M: Machine> {
    Answer(Answer<M>),
    Before(Outcome),
}

pub(crate) type Reply<M> = Result<Done<M>, WriteError<<M as Machine>::Rejection>>;

/// A command that waits.
pub(crate) struct Item<M: Machine, RT: AsyncRuntime> {
    /// In a box: an item is moved a few times.
    pub(crate) command: Box<M::Command>,
    /// The log's incarnation, with its first command.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) reply: Once<RT, Reply<M>>,
    pub(crate) since_us: u64,
    /// It was decided before, in vain.
    pub(crate) tried: bool,
    /// It was sent to another leader, which may have carried it out.
    pub(crate) sent: bool,
}

impl<M: Machine, RT: AsyncRuntime> Item<M, RT> {
    /// Nobody could be found to decide it.
    pub(crate) fn late(self) {
        let error = if self.sent { WriteError::OutcomeUnknown } else { WriteError::NoLeader };
        let _ = self.reply.send(Err(error));
    }

    /// The member stopped before it came to it.
    fn stopped(self) {
        let _ = self.reply.send(Err(WriteError::Stopped));
    }
}

/// What a command came to, if its entry becomes part of the log.
pub(crate) enum Verdict<M: Machine> {
    /// It made these events of its entry.
    Events(Range<usize>),
    /// It changes nothing.
    Nothing(Checkpoint),
    /// It was carried out before.
    Before(Outcome),
    /// It is refused.
    Refused(WriteError<M::Rejection>),
}

/// Commands with their verdicts.
pub(crate) type Decided<M, RT> = Vec<(Item<M, RT>, Verdict<M>)>;

/// Commands that were decided without an entry.
pub(crate) struct Quiet<M: Machine, RT: AsyncRuntime> {
    term: u64,
    /// The last entry that they were decided after, if it was in flight then.
    after: u64,
    decided: Decided<M, RT>,
}

/// An entry in flight.
pub(crate) struct Flight<M: Machine, RT: AsyncRuntime> {
    pub(crate) leader: Leader,
    pub(crate) serial: u64,
    /// When it was proposed, own monotonic time.
    pub(crate) proposed_us: u64,
    pub(crate) frame: Frame,
    pub(crate) epoch: Epoch,
    pub(crate) first_seq: Seq,
    pub(crate) prev_root: [u8; 32],
    /// The head after it.
    pub(crate) head: Head<M::State>,
    pub(crate) noted: Vec<Noted<M::State>>,
    pub(crate) events: Arc<Vec<M::Event>>,
    pub(crate) raw: Vec<Bytes>,
    pub(crate) decided: Decided<M, RT>,
    /// Raft refused it before appending it.
    pub(crate) refused: bool,
}

impl<M: Machine, RT: AsyncRuntime> Flight<M, RT> {
    /// How much longer than usual it may take for its length, µs.
    fn slow_us(&self) -> u64 {
        slow(self.frame.0.len()).as_micros() as u64
    }
}

/// Commands to decide now, and against what.
pub(crate) struct Turn<M: Machine, RT: AsyncRuntime> {
    pub(crate) term: u64,
    pub(crate) leader: Leader,
    pub(crate) head: Head<M::State>,
    pub(crate) time_ms: u64,
    pub(crate) items: VecDeque<Item<M, RT>>,
}

struct Term<M: Machine> {
    leader: Leader,
    /// The head after everything in flight; `None` while a turn has it.
    head: Option<Head<M::State>>,
    own: OwnTime,
}

struct Inner<M: Machine, RT: AsyncRuntime> {
    queue: VecDeque<Item<M, RT>>,
    again: Vec<Item<M, RT>>,
    flight: VecDeque<Flight<M, RT>>,
    term: Option<Term<M>>,
    /// Counts openings: what belongs to an earlier one is void.
    opened: u64,
    /// Entries in flight were skipped or refused: nothing is proposed until they are all through.
    stale: bool,
    serial: u64,
    plant: Plant,
    /// The head of a term that was closed, or that was put aside for one that is astray; for the planted bugs alone.
    lost: Option<Head<M::State>>,
    /// Heads after entries that were lost; for the planted bug alone.
    astray: Vec<Head<M::State>>,
    /// Another member that leads.
    leader: Option<u64>,
    /// Commands taken from here that have no answer yet, and may come back.
    away: usize,
    stopped: bool,
}

/// See the module.
pub(crate) struct Desk<M: Machine, RT: AsyncRuntime> {
    inner: Mutex<Inner<M, RT>>,
    waker: AtomicWaker,
    forward_waker: AtomicWaker,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    pub(crate) limits: Limits,
}

impl<M: Machine, RT: AsyncRuntime> Desk<M, RT> {
    pub(crate) fn new(clock: Arc<dyn Clock>, stats: Arc<Stats>, limits: Limits, plant: Plant) -> Self {
        let inner = Inner {
            queue: VecDeque::new(),
            again: Vec::new(),
            flight: VecDeque::new(),
            term: None,
            opened: 0,
            stale: false,
            serial: 0,
            plant,
            lost: None,
            astray: Vec::new(),
            leader: None,
            away: 0,
            stopped: false,
        };
        let (waker, forward_waker) = (AtomicWaker::new(), AtomicWaker::new());
        Self { inner: Mutex::new(inner), waker, forward_waker, clock, stats, limits }
    }

    /// Queues a command.
    pub(crate) fn push(
        &self,
        command: Box<M::Command>,
        epoch: Option<Epoch>,
        reply: Once<RT, Reply<M>>,
    ) -> Result<(), WriteError<M::Rejection>> {
        let since_us = self.clock.monotonic_us();
        let mut inner = lock(&self.inner);
        if inner.stopped {
            return Err(WriteError::Stopped);
        }
        if inner.queue.len() + inner.again.len() + inner.away >= self.limits.queue {
            return Err(WriteError::Busy);
        }
        inner.queue.push_back(Item { command, epoch, reply, since_us, tried: false, sent: false });
        self.wake(inner);
        Ok(())
    }

    /// Wakes whoever has something to do now.
    fn wake(&self, inner: MutexGuard<'_, Inner<M, RT>>) {
        let (decide, forward) = (inner.ready(&self.limits), inner.forwards());
        drop(inner);
        if decide {
            self.waker.wake();
        }
        if forward {
            self.forward_waker.wake();
        }
    }

    /// Commands for the member that leads, at most so many; `None` once the desk is closed.
    pub(crate) fn poll_forward(&self, context: &mut Context<'_>, most: usize) -> Poll<Option<Vec<Item<M, RT>>>> {
        self.forward_waker.register(context.waker());
        let mut inner = lock(&self.inner);
        if inner.stopped {
            return Poll::Ready(None);
        }
        if !inner.forwards() {
            return Poll::Pending;
        }
        let count = inner.queue.len().min(most);
        inner.away += count;
        Poll::Ready(Some(inner.queue.drain(..count).collect()))
    }

    /// A command that was to be forwarded has its answer.
    pub(crate) fn forwarded(&self) {
        lock(&self.inner).away -= 1;
    }

    /// A command that was to be forwarded comes back: this member leads.
    pub(crate) fn back(&self, item: Item<M, RT>) {
        let mut inner = lock(&self.inner);
        inner.away -= 1;
        if inner.stopped {
            drop(inner);
            item.stopped();
            return;
        }
        inner.queue.push_front(item);
        self.wake(inner);
    }

    /// Who leads, as far as this member knows, in `term`; `own`: itself.
    pub(crate) fn led(&self, own: bool, leader: Option<u64>, term: u64) {
        let mut inner = lock(&self.inner);
        inner.leader = leader.filter(|_| !own);
        if !own && inner.term.as_ref().is_some_and(|now| now.leader.term <= term) {
            inner.close();
            if inner.flight.is_empty() {
                inner.settle();
            }
        }
        self.wake(inner);
    }

    /// The sequencer's next turn; `None` once the desk is closed.
    pub(crate) fn poll_turn(&self, context: &mut Context<'_>) -> Poll<Option<Turn<M, RT>>> {
        self.waker.register(context.waker());
        let mut inner = lock(&self.inner);
        if inner.stopped {
            return Poll::Ready(None);
        }
        if !inner.ready(&self.limits) {
            return Poll::Pending;
        }
        let count = inner.queue.len().min(self.limits.entry_commands);
        let opened = inner.opened;
        inner.go_astray();
        let Some(term) = &mut inner.term else { return Poll::Pending };
        let Some(head) = term.head.take() else { return Poll::Pending };
        let time_ms = head.time_ms.max(term.own.now_ms(&*self.clock));
        let leader = term.leader;
        let items = inner.queue.drain(..count).collect();
        Poll::Ready(Some(Turn { term: opened, leader, head, time_ms, items }))
    }

    /// A turn ends with an entry: returns its serial number if the term is still open; its commands wait again if not.
    pub(crate) fn launch(&self, term: u64, rest: VecDeque<Item<M, RT>>, mut flight: Flight<M, RT>) -> Option<u64> {
        let mut inner = lock(&self.inner);
        if inner.opened != term || inner.term.is_none() {
            let items = flight.decided.into_iter().map(|(item, _)| item).chain(rest);
            let over = inner.back_in_line(items.collect());
            self.wake(inner);
            over.into_iter().for_each(Item::stopped);
            return None;
        }
        inner.serial += 1;
        flight.serial = inner.serial;
        if let Some(term) = &mut inner.term {
            term.head = Some(flight.head.clone());
        }
        inner.flight.push_back(flight);
        inner.in_front(rest);
        Some(inner.serial)
    }

    /// A turn ends without an entry: its commands wait for the last entry that they were decided after, and for what
    /// [`Desk::confirmed`] says.
    pub(crate) fn quiet(
        &self,
        term: u64,
        head: Head<M::State>,
        rest: VecDeque<Item<M, RT>>,
        decided: Decided<M, RT>,
    ) -> Option<Quiet<M, RT>> {
        let mut inner = lock(&self.inner);
        if inner.opened != term || inner.term.is_none() {
            let items = decided.into_iter().map(|(item, _)| item).chain(rest);
            let over = inner.back_in_line(items.collect());
            self.wake(inner);
            over.into_iter().for_each(Item::stopped);
            return None;
        }
        let real = if inner.plant.no_fence { inner.lost.take() } else { None };
        let astray = real.is_some();
        if let Some(term) = &mut inner.term {
            term.head = Some(real.unwrap_or(head));
        }
        inner.in_front(rest);
        if astray {
            inner.in_front(decided.into_iter().map(|(item, _)| item).collect());
            self.wake(inner);
            return None;
        }
        inner.away += decided.len();
        Some(Quiet { term, after: inner.flight.back().map_or(0, |last| last.serial), decided })
    }

    /// Whether this member led after these were decided.
    pub(crate) fn confirmed(&self, quiet: Quiet<M, RT>, led: bool) {
        let mut inner = lock(&self.inner);
        inner.away -= quiet.decided.len();
        if !led || inner.stale || inner.opened != quiet.term || inner.term.is_none() {
            let late = self.too_late();
            let items = quiet.decided.into_iter().map(|(item, _)| item);
            let (over, again): (Vec<_>, _) = items.partition(|item| late(item));
            let stopped = inner.back_in_line(again);
            self.wake(inner);
            over.into_iter().for_each(Item::late);
            stopped.into_iter().for_each(Item::stopped);
        } else if let Some(last) = inner.flight.iter_mut().find(|flight| flight.serial == quiet.after) {
            last.decided.extend(quiet.decided);
        } else {
            drop(inner);
            self.answer(quiet.decided, &Arc::default(), Seq(0), Epoch::default());
        }
    }

    /// Takes the entry that is applied off the front of the flight, if it is that.
    pub(crate) fn land(&self, frame: &Frame) -> Option<Flight<M, RT>> {
        let mut inner = lock(&self.inner);
        // It is not in the log, and what was proposed after it may be.
        inner.drop_refused();
        let front = inner.flight.front()?;
        // The very bytes, unless they were read back from disk.
        let same = front.frame.0.as_ptr() == frame.0.as_ptr() && front.frame.0.len() == frame.0.len();
        if !same && front.frame != *frame {
            return None;
        }
        let flight = inner.flight.pop_front();
        self.wake(inner);
        flight
    }

    /// An entry of this leader is applied: what other, earlier leaders have in flight never will be.
    pub(crate) fn overtaken(&self, leader: Leader) {
        let mut inner = lock(&self.inner);
        while inner.flight.front().is_some_and(|front| front.leader < leader) {
            inner.pop_again();
        }
        if inner.term.as_ref().is_some_and(|term| term.leader < leader) {
            inner.close();
        }
        if inner.term.is_none() && inner.flight.is_empty() && !inner.again.is_empty() {
            inner.settle();
            self.wake(inner);
        }
    }

    /// A snapshot took the place of entries, those in flight perhaps among them: only a number can tell what became of
    /// a command.
    pub(crate) fn jumped(&self) {
        let mut inner = lock(&self.inner);
        inner.close();
        let flight = std::mem::take(&mut inner.flight);
        let items = flight.into_iter().flat_map(|flight| flight.decided).map(|(item, _)| item);
        let (known, unknown): (Vec<_>, Vec<_>) = items.partition(|item| M::once(&item.command).is_some());
        inner.again.extend(known.into_iter().map(|item| Item { tried: true, sent: true, ..item }));
        inner.settle();
        self.wake(inner);
        for item in unknown {
            let _ = item.reply.send(Err(WriteError::OutcomeUnknown));
        }
    }

    /// This member's term is open: its own first entry is applied, so `head` is all there is.
    pub(crate) fn open(&self, leader: Leader, mut head: Head<M::State>) {
        let mut inner = lock(&self.inner);
        inner.close();
        if inner.plant.lost_head
            && let Some(lost) = inner.lost.take()
        {
            head = lost;
        }
        if inner.plant.forgotten_once {
            head.sessions = crate::sessions::Sessions::default();
        }
        inner.term = Some(Term { leader, head: Some(head), own: OwnTime::anchored(&*self.clock) });
        inner.stale = !inner.flight.is_empty();
        if !inner.stale {
            inner.settle();
        }
        drop(inner);
        self.waker.wake();
    }

    /// An entry was skipped by apply: its commands, and whatever was decided after it, are decided again.
    pub(crate) fn skipped(&self, flight: Flight<M, RT>) {
        let mut inner = lock(&self.inner);
        inner.stale = true;
        inner.again(flight.decided.into_iter().map(|(item, _)| item));
    }

    /// Raft refused an entry. In the same term it was not appended; otherwise the log will tell.
    pub(crate) fn refused(&self, serial: u64, term: u64, same_term: bool) {
        let mut inner = lock(&self.inner);
        if same_term {
            inner.stale = true;
            if let Some(flight) = inner.flight.iter_mut().find(|flight| flight.serial == serial) {
                flight.refused = true;
            }
        } else if inner.opened == term {
            inner.close();
        }
    }

    /// From time to time: goes on after a refusal, and answers those who waited too long for a leader. `alone`: nobody
    /// else votes, so that what is in flight waits for the disk alone.
    pub(crate) fn tick(&self, head: &Arc<Head<M::State>>, alone: bool) {
        let mut inner = lock(&self.inner);
        inner.drop_refused();
        if inner.stale && inner.flight.is_empty() {
            if let Some(term) = &mut inner.term {
                term.head = Some(Head::clone(head));
            }
            inner.opened += 1;
            inner.stale = false;
            inner.settle();
        }
        if inner.term.is_none() && inner.flight.is_empty() {
            inner.settle();
        }
        let late = self.too_late();
        let (limit_us, now_us) = (self.limits.leader_wait_ms * 1000, self.clock.monotonic_us());
        // No majority has what is in flight: this member leads in name alone, and what waits is not proposed behind it.
        let stuck = |front: &Flight<M, RT>| now_us.saturating_sub(front.proposed_us) > limit_us + front.slow_us();
        let stuck = !alone && inner.flight.front().is_some_and(stuck);
        let given_up = inner.late(&late, stuck);
        let unknown = if alone { Vec::new() } else { inner.lost(now_us, limit_us) };
        self.wake(inner);
        given_up.into_iter().for_each(Item::late);
        for item in unknown {
            let _ = item.reply.send(Err(WriteError::OutcomeUnknown));
        }
    }

    fn too_late(&self) -> impl Fn(&Item<M, RT>) -> bool {
        let (limit_us, now_us) = (self.limits.leader_wait_ms * 1000, self.clock.monotonic_us());
        move |item| now_us.saturating_sub(item.since_us) > limit_us
    }

    /// Answers everybody that the member has stopped, and takes no more.
    pub(crate) fn stop(&self) {
        let mut inner = lock(&self.inner);
        inner.stopped = true;
        inner.close();
        let flight = std::mem::take(&mut inner.flight);
        let items = std::mem::take(&mut inner.again).into_iter().chain(std::mem::take(&mut inner.queue));
        drop(inner);
        let flying = flight.into_iter().flat_map(|flight| flight.decided).map(|(item, _)| item);
        flying.chain(items).for_each(Item::stopped);
        self.waker.wake();
        self.forward_waker.wake();
    }

    /// Answers the commands of an entry that is part of the log.
    pub(crate) fn answer(&self, decided: Decided<M, RT>, events: &Arc<Vec<M::Event>>, first_seq: Seq, epoch: Epoch) {
        self.stats.commands.fetch_add(decided.len() as u64, Relaxed);
        for (item, verdict) in decided {
            let reply = match verdict {
                // Where another leader may yet carry it out, only its events say what became of it.
                Verdict::Nothing(_) | Verdict::Refused(_) if item.sent => Err(WriteError::OutcomeUnknown),
                Verdict::Events(range) => {
                    let checkpoint = Checkpoint { epoch, seq: Seq(first_seq.0 + range.end as u64 - 1) };
                    let first_seq = Seq(first_seq.0 + range.start as u64);
                    let events = Events::new(events.clone(), range);
                    Ok(Done::Answer(Answer { checkpoint, first_seq, events, repeated: false }))
                }
                Verdict::Nothing(checkpoint) => {
                    let events = Events::of(Vec::new());
                    Ok(Done::Answer(Answer { checkpoint, first_seq: Seq(0), events, repeated: false }))
                }
                Verdict::Before(outcome) => Ok(Done::Before(outcome)),
                Verdict::Refused(error) => Err(error),
            };
            // A caller that went away needs no answer.
            let _ = item.reply.send(reply);
        }
    }

    /// True once it takes no more.
    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.inner).stopped
    }

    /// True where commands are decided here.
    pub(crate) fn writable(&self) -> bool {
        lock(&self.inner).term.is_some()
    }

    /// Commands waiting, entries in flight.
    pub(crate) fn load(&self) -> (usize, usize) {
        let inner = lock(&self.inner);
        (inner.queue.len() + inner.again.len() + inner.away, inner.flight.len())
    }
}

impl<M: Machine, RT: AsyncRuntime> Inner<M, RT> {
    fn ready(&self, limits: &Limits) -> bool {
        !self.stale
            && (if self.flight.is_empty() { !self.queue.is_empty() } else { self.many(limits) })
            && self.flight.len() < limits.in_flight
            && self.term.as_ref().is_some_and(|term| term.head.is_some())
    }

    /// What waits is worth an entry beside the one in flight.
    fn many(&self, limits: &Limits) -> bool {
        let enough = PIPELINED.min(limits.entry_commands);
        let mut events = 0;
        self.queue.len() >= enough
            || self.queue.iter().any(|item| {
                events += M::weight(&item.command);
                events >= enough
            })
    }

    /// There is something that the member that leads may have: all of it is certain not to be in the log.
    fn forwards(&self) -> bool {
        self.term.is_none() && self.leader.is_some() && !self.queue.is_empty()
    }

    fn close(&mut self) {
        let term = self.term.take();
        if self.plant.lost_head {
            self.lost = term.and_then(|term| term.head).or(self.lost.take());
        }
        self.opened += 1;
        self.stale = false;
    }

    /// Takes entries off the front that Raft refused: they are decided again.
    fn drop_refused(&mut self) {
        while self.flight.front().is_some_and(|front| front.refused) {
            self.pop_again();
        }
    }

    fn pop_again(&mut self) {
        let Some(flight) = self.flight.pop_front() else { return };
        if self.plant.no_fence {
            self.astray.push(flight.head);
        }
        self.again(flight.decided.into_iter().map(|(item, _)| item));
    }

    /// The planted bug: the next turn is decided on a head that was lost, if one has the same number.
    fn go_astray(&mut self) {
        if !self.plant.no_fence {
            return;
        }
        self.lost = None;
        if let Some(head) = self.term.as_mut().and_then(|term| term.head.as_mut())
            && let Some(at) = self.astray.iter().position(|lost| lost.seq == head.seq && lost.root != head.root)
        {
            self.lost = Some(std::mem::replace(head, self.astray.swap_remove(at)));
        }
    }

    fn again(&mut self, items: impl Iterator<Item = Item<M, RT>>) {
        self.again.extend(items.map(|item| Item { tried: true, ..item }));
    }

    /// Commands of a turn whose term was closed meanwhile: they came before what is in the queue.
    fn back_in_line(&mut self, items: Vec<Item<M, RT>>) -> Vec<Item<M, RT>> {
        if self.stopped {
            return items;
        }
        self.again(items.into_iter());
        if self.flight.is_empty() && !self.stale {
            self.settle();
        }
        Vec::new()
    }

    /// Takes out what waits for too long: without a leader, behind what is `stuck`, or in vain.
    fn late(&mut self, late: &impl Fn(&Item<M, RT>) -> bool, stuck: bool) -> Vec<Item<M, RT>> {
        let closed = self.term.is_none() || stuck;
        let mut given_up = Vec::new();
        while self.queue.front().is_some_and(|item| (closed || item.tried) && late(item)) {
            given_up.extend(self.queue.pop_front());
        }
        let (over, again): (Vec<_>, _) = std::mem::take(&mut self.again).into_iter().partition(late);
        self.again = again;
        given_up.extend(over);
        given_up
    }

    /// Takes out whose entry is in flight for too long: the leader is cut off, or deposed and does not know it.
    fn lost(&mut self, now_us: u64, mut limit_us: u64) -> Vec<Item<M, RT>> {
        let mut lost: Decided<M, RT> = Vec::new();
        for flight in &mut self.flight {
            limit_us += flight.slow_us();
            let late = |(item, _): &(Item<M, RT>, Verdict<M>)| {
                now_us.saturating_sub(item.since_us.max(flight.proposed_us)) > limit_us
            };
            if flight.decided.iter().any(late) {
                let all = std::mem::take(&mut flight.decided);
                let (over, decided): (Vec<_>, _) = all.into_iter().partition(late);
                flight.decided = decided;
                lost.extend(over);
            }
        }
        lost.into_iter().map(|(item, _)| item).collect()
    }

    /// Commands to decide again go before the others.
    fn settle(&mut self) {
        let again = std::mem::take(&mut self.again);
        self.in_front(again.into());
    }

    fn in_front(&mut self, items: VecDeque<Item<M, RT>>) {
        for item in items.into_iter().rev() {
            self.queue.push_front(item);
        }
    }
}

#[cfg(test)]
mod tests;

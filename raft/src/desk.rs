//! The desk: commands that wait, entries in flight with their callers, and whether this member's term is open.
//!
//! ```text
//!  push ─► queue ─► turn (≤ one entry) ─► decided ─► launch ─► flight ─► land: front matches the applied entry ─► answers
//!            ▲                                                   │
//!            │ again: decided anew, in order                     ├─ overtaken: an entry of another leader is applied:
//!            └───────────────────────────────────────────────────┤  what is in flight never will be
//!                                                                └─ skipped, refused: the head it was decided against is void
//! ```
//! Invariants: one lock, never held across a wait; entries in flight are in the order of the log; a command is answered,
//! or decided again, only when it is certain whether it is in the log: an entry is lost for certain once an entry of a
//! later term is applied (terms do not decrease along the log), or if Raft refused it before appending.

use crate::clock::{Clock, OwnTime};
use crate::error::WriteError;
use crate::head::{Head, Noted};
use crate::member::Answer;
use crate::options::{Events, Limits};
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
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// While an entry is in flight, the next one waits for so many commands, or for that one to land: many small entries cost
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
    pub(crate) command: M::Command,
    /// The log's incarnation, with its first command.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) reply: Once<RT, Reply<M>>,
    pub(crate) since_us: u64,
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

/// An entry in flight.
pub(crate) struct Flight<M: Machine, RT: AsyncRuntime> {
    pub(crate) leader: Leader,
    pub(crate) serial: u64,
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
    stopped: bool,
}

/// See the module.
pub(crate) struct Desk<M: Machine, RT: AsyncRuntime> {
    inner: Mutex<Inner<M, RT>>,
    waker: AtomicWaker,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    pub(crate) limits: Limits,
}

impl<M: Machine, RT: AsyncRuntime> Desk<M, RT> {
    pub(crate) fn new(clock: Arc<dyn Clock>, stats: Arc<Stats>, limits: Limits) -> Self {
        let inner = Inner {
            queue: VecDeque::new(),
            again: Vec::new(),
            flight: VecDeque::new(),
            term: None,
            opened: 0,
            stale: false,
            serial: 0,
            stopped: false,
        };
        Self { inner: Mutex::new(inner), waker: AtomicWaker::new(), clock, stats, limits }
    }

    /// Queues a command.
    pub(crate) fn push(
        &self,
        command: M::Command,
        epoch: Option<Epoch>,
        reply: Once<RT, Reply<M>>,
    ) -> Result<(), WriteError<M::Rejection>> {
        let since_us = self.clock.monotonic_us();
        let mut inner = lock(&self.inner);
        if inner.stopped {
            return Err(WriteError::Stopped);
        }
        if inner.queue.len() + inner.again.len() >= self.limits.queue {
            return Err(WriteError::Busy);
        }
        inner.queue.push_back(Item { command, epoch, reply, since_us });
        let wake = inner.ready(&self.limits);
        drop(inner);
        if wake {
            self.waker.wake();
        }
        Ok(())
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
            inner.back_in_line(items.collect());
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

    /// A turn ends without an entry: its commands are answered along with the last entry that they were decided
    /// against.
    pub(crate) fn quiet(&self, term: u64, head: Head<M::State>, rest: VecDeque<Item<M, RT>>, decided: Decided<M, RT>) {
        let mut inner = lock(&self.inner);
        if inner.opened != term || inner.term.is_none() {
            let items = decided.into_iter().map(|(item, _)| item).chain(rest);
            inner.back_in_line(items.collect());
            return;
        }
        if let Some(term) = &mut inner.term {
            term.head = Some(head);
        }
        inner.in_front(rest);
        if let Some(last) = inner.flight.back_mut() {
            last.decided.extend(decided);
            return;
        }
        drop(inner);
        self.answer(decided, &Arc::default(), Seq(0), Epoch::default());
    }

    /// Takes the entry that is applied off the front of the flight, if it is that.
    pub(crate) fn land(&self, frame: &Frame) -> Option<Flight<M, RT>> {
        let mut inner = lock(&self.inner);
        let front = inner.flight.front()?;
        // The very bytes, unless they were read back from disk.
        let same = front.frame.0.as_ptr() == frame.0.as_ptr() && front.frame.0.len() == frame.0.len();
        if !same && front.frame != *frame {
            return None;
        }
        let flight = inner.flight.pop_front();
        if inner.ready(&self.limits) {
            drop(inner);
            self.waker.wake();
        }
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
    }

    /// This member's term is open: its own first entry is applied, so `head` is all there is.
    pub(crate) fn open(&self, leader: Leader, head: Head<M::State>) {
        let mut inner = lock(&self.inner);
        inner.close();
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
        inner.again.extend(flight.decided.into_iter().map(|(item, _)| item));
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

    /// This member does not lead any more.
    pub(crate) fn close(&self) {
        lock(&self.inner).close();
    }

    /// From time to time: goes on after a refusal, and answers those who waited too long for a leader.
    pub(crate) fn tick(&self, head: &Arc<Head<M::State>>) {
        let mut inner = lock(&self.inner);
        while inner.flight.front().is_some_and(|front| front.refused) {
            inner.pop_again();
        }
        if inner.stale && inner.flight.is_empty() {
            if let Some(term) = &mut inner.term {
                term.head = Some(Head::clone(head));
            }
            inner.opened += 1;
            inner.stale = false;
            inner.settle();
        }
        let limit_us = self.limits.leader_wait_ms * 1000;
        let now_us = self.clock.monotonic_us();
        let mut late = Vec::new();
        if inner.term.is_none() {
            inner.settle();
            while inner.queue.front().is_some_and(|item| now_us.saturating_sub(item.since_us) > limit_us) {
                late.extend(inner.queue.pop_front());
            }
        }
        let wake = inner.ready(&self.limits);
        drop(inner);
        for item in late {
            let _ = item.reply.send(Err(WriteError::NoLeader));
        }
        if wake {
            self.waker.wake();
        }
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
        for item in flying.chain(items) {
            let _ = item.reply.send(Err(WriteError::Stopped));
        }
        self.waker.wake();
    }

    /// Answers the commands of an entry that is part of the log.
    pub(crate) fn answer(&self, decided: Decided<M, RT>, events: &Arc<Vec<M::Event>>, first_seq: Seq, epoch: Epoch) {
        self.stats.commands.fetch_add(decided.len() as u64, Relaxed);
        for (item, verdict) in decided {
            let reply = match verdict {
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
        (inner.queue.len() + inner.again.len(), inner.flight.len())
    }
}

impl<M: Machine, RT: AsyncRuntime> Inner<M, RT> {
    fn ready(&self, limits: &Limits) -> bool {
        let enough = if self.flight.is_empty() { 1 } else { PIPELINED.min(limits.entry_commands) };
        !self.stale
            && self.queue.len() >= enough
            && self.flight.len() < limits.in_flight
            && self.term.as_ref().is_some_and(|term| term.head.is_some())
    }

    fn close(&mut self) {
        self.term = None;
        self.opened += 1;
        self.stale = false;
    }

    fn pop_again(&mut self) {
        let decided = self.flight.pop_front().map(|flight| flight.decided).unwrap_or_default();
        self.again.extend(decided.into_iter().map(|(item, _)| item));
    }

    /// Commands of a turn whose term was closed meanwhile: they came before what is in the queue.
    fn back_in_line(&mut self, items: Vec<Item<M, RT>>) {
        self.again.extend(items);
        if self.flight.is_empty() {
            self.settle();
        }
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
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::counter::{Command, Counter};
    use crate::types::{Cfg, LeaderId};
    use openraft::type_config::TypeConfigExt;
    use openraft::type_config::alias::OneshotReceiverOf;
    use openraft_rt_tokio::TokioRuntime as Rt;
    use std::sync::atomic::AtomicU64;

    type Waiting = OneshotReceiverOf<Cfg<Rt>, Reply<Counter>>;

    #[derive(Default)]
    struct Hands(AtomicU64);

    impl Clock for Hands {
        fn wall_ms(&self) -> u64 {
            SystemClock::default().wall_ms()
        }
        fn monotonic_us(&self) -> u64 {
            self.0.load(Relaxed)
        }
    }

    struct Case {
        desk: Desk<Counter, Rt>,
        hands: Arc<Hands>,
        callers: Vec<Waiting>,
    }

    fn leader(term: u64) -> Leader {
        LeaderId { term, node_id: 1 }
    }

    impl Case {
        fn new(entry_commands: usize) -> Self {
            let hands = Arc::new(Hands::default());
            let desk =
                Desk::new(hands.clone(), Arc::default(), Limits { in_flight: 2, entry_commands, ..Limits::default() });
            let case = Self { desk, hands, callers: Vec::new() };
            case.open(1);
            case
        }

        fn open(&self, term: u64) {
            self.desk.overtaken(leader(term));
            self.desk.open(leader(term), Head { seq: Seq(1), ..Head::default() });
        }

        fn push(&mut self, by: u64) {
            let (tx, rx) = Cfg::<Rt>::oneshot();
            self.desk.push(Command::add(by), None, tx).unwrap();
            self.callers.push(rx);
        }

        /// What the next turn would decide; `None` if it has to wait.
        fn turn(&self) -> Option<Turn<Counter, Rt>> {
            match self.desk.poll_turn(&mut Context::from_waker(std::task::Waker::noop())) {
                Poll::Ready(turn) => turn,
                Poll::Pending => None,
            }
        }

        /// Takes a turn and launches it; returns its frame and serial number.
        fn fly(&self) -> (Frame, u64) {
            let turn = self.turn().unwrap();
            let term = turn.term;
            let batch = crate::sequencer::decide(turn, &self.desk.limits);
            let frame = Frame(Bytes::from(batch.raw.concat()));
            let flight = Flight {
                leader: leader(1),
                serial: 0,
                frame: frame.clone(),
                epoch: Epoch::default(),
                first_seq: batch.first_seq,
                prev_root: batch.prev_root,
                head: batch.head,
                noted: batch.noted,
                events: Arc::new(batch.events),
                raw: batch.raw,
                decided: batch.decided,
                refused: false,
            };
            (frame, self.desk.launch(term, batch.rest, flight).unwrap())
        }

        fn land(&self, frame: &Frame) {
            let flight = self.desk.land(frame).unwrap();
            self.desk.answer(flight.decided, &flight.events, flight.first_seq, flight.epoch);
        }

        /// Additions that the next turns would decide, in order.
        fn next(&self) -> Option<Vec<u64>> {
            let by = |item: &Item<Counter, Rt>| match &item.command {
                Command::Add { by, .. } => *by,
                Command::Refuse | Command::System(_) => 0,
            };
            let mut next: Vec<u64> = self.turn()?.items.iter().map(by).collect();
            next.extend(lock(&self.desk.inner).queue.iter().map(by));
            Some(next)
        }

        fn answered(&mut self) -> Vec<Option<Result<u64, &'static str>>> {
            let word = |reply: Reply<Counter>| match reply {
                Ok(Done::Answer(answer)) => Ok(answer.checkpoint.seq.0),
                Ok(Done::Before(_)) => Err("before"),
                Err(error) => Err(error.code()),
            };
            self.callers.iter_mut().map(|caller| caller.try_recv().ok().map(word)).collect()
        }

        fn tick(&self) {
            self.desk.tick(&Arc::new(Head { seq: Seq(1), ..Head::default() }));
        }
    }

    #[test]
    fn answers_come_when_the_entry_lands_and_no_more_than_so_many_are_in_flight() {
        let mut case = Case::new(2);
        case.push(1);
        let (first, _) = case.fly();
        case.push(2);
        assert!(case.turn().is_none(), "too few to be worth an entry beside the one in flight");
        case.push(3);
        let (second, _) = case.fly();
        case.push(4);
        case.push(5);
        assert!(case.turn().is_none(), "two are in flight");
        assert!(case.desk.land(&second).is_none(), "not the front");
        assert_eq!(case.answered(), [None, None, None, None, None]);
        case.land(&first);
        assert_eq!(case.answered(), [Some(Ok(2)), None, None, None, None]);
        case.callers.remove(0);
        case.land(&second);
        assert_eq!(case.answered(), [Some(Ok(3)), Some(Ok(4)), None, None]);
        assert_eq!(case.next(), Some(vec![4, 5]));
    }

    #[test]
    fn what_an_entry_of_a_later_term_has_overtaken_is_decided_again_first() {
        let mut case = Case::new(1);
        case.push(1);
        let _ = case.fly();
        case.push(2);
        let _ = case.fly();
        case.push(3);
        case.desk.close();
        assert!(case.turn().is_none(), "no term is open");
        case.open(2);
        assert_eq!(case.next(), Some(vec![1, 2, 3]));
        assert_eq!(case.answered(), [None, None, None]);
    }

    #[test]
    fn what_was_skipped_or_refused_is_decided_again_in_order() {
        for refused in [false, true] {
            let mut case = Case::new(1);
            case.push(1);
            let (first, serial) = case.fly();
            case.push(2);
            let (second, _) = case.fly();
            case.push(3);
            if refused {
                case.desk.refused(serial, 0, true);
                case.tick();
            } else {
                case.desk.skipped(case.desk.land(&first).unwrap());
            }
            assert!(case.turn().is_none(), "what was decided after it is still in flight");
            case.desk.skipped(case.desk.land(&second).unwrap());
            assert!(case.turn().is_none());
            case.tick();
            assert_eq!(case.next(), Some(vec![1, 2, 3]), "refused: {refused}");
        }
    }

    #[test]
    fn a_turn_whose_term_was_closed_meanwhile_is_taken_again() {
        let mut case = Case::new(1);
        case.push(1);
        case.push(2);
        let turn = case.turn().unwrap();
        case.push(3);
        case.open(2);
        let term = turn.term;
        let batch = crate::sequencer::decide(turn, &case.desk.limits);
        case.desk.quiet(term, batch.head, batch.rest, batch.decided);
        assert_eq!(case.next(), Some(vec![1, 2, 3]));
    }

    #[test]
    fn what_changes_nothing_is_answered_with_what_it_was_decided_against() {
        let mut case = Case::new(1);
        case.push(1);
        let (first, _) = case.fly();
        case.push(2);
        let turn = case.turn().unwrap();
        let nothing = |item| (item, Verdict::Nothing(Checkpoint { epoch: Epoch::default(), seq: Seq(2) }));
        let decided = turn.items.into_iter().map(nothing).collect();
        case.desk.quiet(turn.term, turn.head, VecDeque::new(), decided);
        assert_eq!(case.answered(), [None, None]);
        case.land(&first);
        assert_eq!(case.answered(), [Some(Ok(2)), Some(Ok(2))]);
    }

    #[test]
    fn without_a_leader_a_command_waits_so_long_and_a_stop_answers_all() {
        let mut case = Case::new(1);
        case.desk.close();
        case.push(1);
        case.tick();
        assert_eq!(case.answered(), [None]);
        case.hands.0.store(2_000_001, Relaxed);
        case.push(2);
        case.tick();
        assert_eq!(case.answered(), [Some(Err("no_leader")), None]);
        case.callers.remove(0);
        case.desk.stop();
        assert_eq!(case.answered(), [Some(Err("stopped"))]);
        let (tx, _) = Cfg::<Rt>::oneshot();
        assert_eq!(case.desk.push(Command::add(1), None, tx), Err(WriteError::Stopped));
    }
}

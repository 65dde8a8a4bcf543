//! The sequencer: decides whatever has arrived against the head after everything in flight, and proposes it as one entry,
//! fenced to its own leadership. One task; no timer: a single caller waits for one sync, many share one.
//!
//! ```text
//! turn ─► command ─► decide ─► events ─► fold ──┬─► the next command … ─► the tree grows ─► proposed
//!                                               └─► encoder: bytes, leaves ─────▲
//! ```
//! Nothing of what follows in a turn needs the bytes: where many events are to come, the encoder works beside.

use crate::desk::{Decided, Flight, Item, Turn, Verdict};
use crate::disk::{self, Lane};
use crate::error::WriteError;
use crate::head::{Head, Noted};
use crate::options::Limits;
use crate::replica::{Raft, Shared};
use crate::sessions::Seen;
use crate::types::{Frame, Hook};
use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::{EntryWriter, Hash, leaf_hash};
use cvlan_core::machine::{Context, Machine, SystemFact};
use openraft::AsyncRuntime;
use openraft::errors::{ClientWriteError, ForwardReason};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::task::Poll;

/// Bytes of an event in an entry, about: room that is made beforehand.
const EVENT_BYTES: usize = 448;

/// Events of an entry that room is made for beforehand, at most.
const EVENTS_ROOM: usize = 4096;

/// Stops the member if the sequencer ends for another reason than that.
struct Watch<M: Machine, RT: AsyncRuntime>(Arc<Shared<M, RT>>);

impl<M: Machine, RT: AsyncRuntime> Drop for Watch<M, RT> {
    fn drop(&mut self) {
        self.0.ended("the sequencer");
    }
}

/// Runs until the desk is closed.
pub(crate) async fn run<M: Machine, RT: AsyncRuntime>(shared: Arc<Shared<M, RT>>, raft: Raft<M, RT>) {
    let _watch = Watch(shared.clone());
    while let Some(turn) = poll_fn(|context| shared.desk.poll_turn(context)).await {
        let (term, leader) = (turn.term, turn.leader);
        let Some(batch) = batch(&shared, turn).await else { return };
        let Some(frame) = batch.frame else {
            if let Some(quiet) = shared.desk.quiet(term, batch.head, batch.rest, batch.decided) {
                shared.confirm.quiet(quiet);
            }
            continue;
        };
        shared.stats.entry_events.add(batch.events.len() as u64);
        shared.stats.entries.fetch_add(1, Relaxed);
        let (first_seq, prev_root) = (batch.first_seq, batch.prev_root);
        let flight = Flight {
            leader,
            serial: 0,
            proposed_us: shared.clock.monotonic_us(),
            frame: frame.clone(),
            epoch: batch.head.epoch,
            first_seq,
            prev_root,
            head: batch.head,
            noted: batch.noted,
            events: Arc::new(batch.events),
            raw: batch.raw,
            decided: batch.decided,
            refused: false,
        };
        let Some(serial) = shared.desk.launch(term, batch.rest, flight) else { continue };
        let told = shared.clone();
        let hook = Hook(Box::new(move |result: openraft::raft::ClientWriteResult<_>| {
            if let Err(ClientWriteError::ForwardToLeader(forward)) = result {
                let same_term = match forward.reason {
                    ForwardReason::LeaseExpired | ForwardReason::LeadershipTransfer => true,
                    ForwardReason::NotLeader => false,
                };
                told.desk.refused(serial, term, same_term);
            }
        }));
        if let Err(fatal) = raft.write(frame).with_leader(leader).responder(hook).await {
            shared.fail(format!("raft has stopped: {fatal}"));
        }
        give_way().await;
    }
}

/// Lets what was woken here run first. Of a worker of tokio the task that was woken last is taken by no other one: the next turn would hold
/// up, while it is decided, what this one has proposed.
async fn give_way() {
    let mut gave = false;
    poll_fn(|context| match std::mem::replace(&mut gave, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// Decides a turn, with the encoder beside where that is worth waking a thread; `None` where the disk is gone.
async fn batch<M: Machine, RT: AsyncRuntime>(shared: &Shared<M, RT>, turn: Turn<M, RT>) -> Option<Batch<M, RT>> {
    let begun = Begun::of(&turn, &shared.limits);
    // What begins the log has an epoch of its own.
    if begun.events < shared.limits.encode_beside || turn.head.seq.0 == 0 {
        return Some(decide(turn, &shared.limits));
    }
    let mut encoder = Encoder::<M>::new(turn.head.epoch, begun);
    let (tx, rx) = mpsc::channel();
    let encoded = disk::begin::<RT, _, _>(&shared.disk, Lane::Encode, move |_| {
        rx.into_iter().for_each(|events| encoder.push(events));
        encoder.finish()
    });
    let decision = weigh(turn, &shared.limits, move |_, events| {
        // Nobody takes them where the disk is gone, which is noticed below.
        let _ = tx.send(events);
    });
    Some(decision.encoded(encoded.await.ok()?))
}

/// Decides a turn here and now.
pub(crate) fn decide<M: Machine, RT: AsyncRuntime>(turn: Turn<M, RT>, limits: &Limits) -> Batch<M, RT> {
    let begun = Begun::of(&turn, limits);
    let mut encoder = None;
    let decision = weigh(turn, limits, |epoch, events| {
        encoder.get_or_insert_with(|| Encoder::<M>::new(epoch, begun)).push(events);
    });
    decision.encoded(encoder.map(Encoder::finish).unwrap_or_default())
}

/// What an entry begins with, and what may come.
#[derive(Clone, Copy)]
struct Begun {
    first_seq: Seq,
    prev_root: [u8; 32],
    /// Events, about.
    events: usize,
    /// Bytes, about.
    bytes: usize,
}

impl Begun {
    fn of<M: Machine, RT: AsyncRuntime>(turn: &Turn<M, RT>, limits: &Limits) -> Self {
        let events = turn.items.iter().map(|item| M::weight(&item.command)).sum::<usize>().min(EVENTS_ROOM);
        let (first_seq, prev_root) = (Seq(turn.head.seq.0 + 1), turn.head.root);
        Self { first_seq, prev_root, events, bytes: (events * EVENT_BYTES).min(limits.command_bytes) }
    }
}

/// Makes an entry's bytes and the leaves of its events.
struct Encoder<M: Machine> {
    entry: EntryWriter,
    events: Vec<M::Event>,
    leaves: Vec<Hash>,
}

impl<M: Machine> Encoder<M> {
    fn new(epoch: Epoch, begun: Begun) -> Self {
        let Begun { first_seq, prev_root, events, bytes } = begun;
        let entry = EntryWriter::new(epoch, first_seq, prev_root, events, bytes);
        Self { entry, events: Vec::with_capacity(events), leaves: Vec::with_capacity(events) }
    }

    fn push(&mut self, events: Vec<M::Event>) {
        for event in events {
            self.leaves.push(leaf_hash(self.entry.push(|out| M::encode(&event, out))));
            self.events.push(event);
        }
    }

    fn finish(self) -> Encoded<M::Event> {
        let (frame, raw) = self.entry.finish();
        let frame = if self.events.is_empty() { None } else { Some(Frame(frame)) };
        Encoded { frame, raw, events: self.events, leaves: self.leaves }
    }
}

/// An entry, ready for the log.
struct Encoded<E> {
    /// `None` where it has no events.
    frame: Option<Frame>,
    raw: Vec<Bytes>,
    events: Vec<E>,
    leaves: Vec<Hash>,
}

impl<E> Default for Encoded<E> {
    fn default() -> Self {
        Self { frame: None, raw: Vec::new(), events: Vec::new(), leaves: Vec::new() }
    }
}

/// What a turn came to, but for the bytes.
struct Decision<M: Machine, RT: AsyncRuntime> {
    /// Folded; its tree has not grown.
    head: Head<M::State>,
    first_seq: Seq,
    prev_root: [u8; 32],
    noted: Vec<Noted<M::State>>,
    decided: Decided<M, RT>,
    rest: VecDeque<Item<M, RT>>,
}

impl<M: Machine, RT: AsyncRuntime> Decision<M, RT> {
    fn encoded(self, encoded: Encoded<M::Event>) -> Batch<M, RT> {
        let Self { mut head, first_seq, prev_root, mut noted, decided, rest } = self;
        let Encoded { frame, raw, events, leaves } = encoded;
        head.grow(leaves, &mut noted);
        Batch { head, first_seq, prev_root, frame, events, raw, noted, decided, rest }
    }
}

/// What a turn came to.
pub(crate) struct Batch<M: Machine, RT: AsyncRuntime> {
    pub(crate) head: Head<M::State>,
    pub(crate) first_seq: Seq,
    pub(crate) prev_root: [u8; 32],
    /// The entry, if anything changes.
    pub(crate) frame: Option<Frame>,
    pub(crate) events: Vec<M::Event>,
    pub(crate) raw: Vec<Bytes>,
    pub(crate) noted: Vec<Noted<M::State>>,
    pub(crate) decided: Decided<M, RT>,
    /// Commands that did not fit.
    pub(crate) rest: VecDeque<Item<M, RT>>,
}

/// Decides commands in order, each against the head after the ones before it, and gives their events to `encode`, with the
/// entry's epoch.
fn weigh<M: Machine, RT: AsyncRuntime>(
    turn: Turn<M, RT>,
    limits: &Limits,
    encode: impl FnMut(Epoch, Vec<M::Event>),
) -> Decision<M, RT> {
    let mut rest = turn.items;
    let (first_seq, prev_root) = (Seq(turn.head.seq.0 + 1), turn.head.root);
    let (epoch, time_ms) = (turn.head.epoch, turn.time_ms);
    let (events, bytes) = (0, 0);
    let mut work = Work::<M, _> {
        head: turn.head,
        epoch,
        time_ms,
        known_level: limits.known_level::<M>(),
        events,
        bytes,
        noted: Vec::new(),
        newest: Vec::new(),
        last: None,
        encode,
    };
    let mut decided = Vec::with_capacity(rest.len());
    while work.bytes < limits.entry_bytes
        && let Some(item) = rest.pop_front()
    {
        let verdict = work.command(&item.command, item.epoch, limits.command_bytes);
        let first = item.epoch.is_some();
        decided.push((item, verdict));
        if first {
            break;
        }
    }
    let Work { mut head, epoch, events, noted, newest, mut encode, .. } = work;
    if events > 0 {
        head.epoch = epoch;
        encode(epoch, newest);
    }
    Decision { head, first_seq, prev_root, noted, decided, rest }
}

struct Work<M: Machine, F: FnMut(Epoch, Vec<M::Event>)> {
    head: Head<M::State>,
    epoch: Epoch,
    time_ms: u64,
    known_level: u32,
    /// Events so far.
    events: usize,
    /// What they take of an entry.
    bytes: usize,
    noted: Vec<Noted<M::State>>,
    /// Events of the newest command that has any: the fold of the next looks back at the last of them.
    newest: Vec<M::Event>,
    /// Its number.
    last: Option<cvlan_core::machine::Once>,
    encode: F,
}

impl<M: Machine, F: FnMut(Epoch, Vec<M::Event>)> Work<M, F> {
    fn command(&mut self, command: &M::Command, epoch: Option<Epoch>, command_bytes: usize) -> Verdict<M> {
        match epoch {
            Some(_) if self.head.seq.0 > 0 => return Verdict::Refused(WriteError::AlreadyBootstrapped),
            None if self.head.seq.0 == 0 => return Verdict::Refused(WriteError::NotBootstrapped),
            Some(epoch) => self.epoch = epoch,
            None => {}
        }
        if let Some(once) = M::once(command) {
            match self.head.sessions.look(once) {
                Seen::No => {}
                Seen::Done(outcome) => return Verdict::Before(outcome),
                Seen::Forgotten => return Verdict::Refused(WriteError::OutcomeUnknown),
            }
        }
        let next_seq = Seq(self.head.seq.0 + 1);
        let (level, known_level, time_ms) = (self.head.feature_level, self.known_level, self.time_ms);
        let context = Context { epoch: self.head.epoch, next_seq, time_ms, level, known_level };
        let events = match M::decide(&self.head.machine, &context, command) {
            Ok(events) => events,
            Err(rejection) => return Verdict::Refused(WriteError::Rejected(rejection)),
        };
        let Some(first) = events.first() else { return Verdict::Nothing(self.head.checkpoint()) };
        // Only a folder that no member has open begins an epoch.
        if let Some(SystemFact::EpochBegun { .. }) = M::event_fact(first) {
            return Verdict::Refused(WriteError::AlreadyBootstrapped);
        }
        // Sized before anything is folded: what is too large leaves no trace.
        let bytes = events.iter().map(|event| EntryWriter::event_bytes(M::encoded_len(event))).sum();
        if bytes > command_bytes {
            return Verdict::Refused(WriteError::TooLarge { bytes, limit: command_bytes });
        }
        let mut before = self.newest.last();
        for event in &events {
            let due = Seq(self.head.seq.0 + 1);
            assert_eq!(M::seq(event), due, "decide numbers its events from next_seq on");
            self.last = self.head.fold::<M>(event, before.map(|event| (event, self.last)), &mut self.noted);
            before = Some(event);
        }
        let first = self.events;
        (self.events, self.bytes) = (first + events.len(), self.bytes + bytes);
        let older = std::mem::replace(&mut self.newest, events);
        if first > 0 {
            (self.encode)(self.epoch, older);
        }
        Verdict::Events(first..self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::{Command, Counter};
    use crate::replay::{Done, Replay};
    use crate::types::{Cfg, Entry, LeaderId, LogId};
    use cvlan_core::machine::Once;
    use openraft::EntryPayload;
    use openraft::type_config::TypeConfigExt;
    use openraft_rt_tokio::TokioRuntime as Rt;
    use proptest::prelude::*;

    const EPOCH: Epoch = Epoch([5; 16]);

    fn turn(head: Head<crate::counter::Count>, commands: Vec<Command>) -> Turn<Counter, Rt> {
        let first = head.seq.0 == 0;
        let item = |command| {
            let (reply, _) = Cfg::<Rt>::oneshot();
            Item {
                command: Box::new(command),
                epoch: first.then_some(EPOCH),
                reply,
                since_us: 0,
                tried: false,
                sent: false,
            }
        };
        let leader = LeaderId { term: 1, node_id: 1 };
        Turn { term: 1, leader, time_ms: head.time_ms + 1, head, items: commands.into_iter().map(item).collect() }
    }

    fn entry(index: u64, batch: &Batch<Counter, Rt>) -> Entry {
        let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
        Entry { log_id, payload: EntryPayload::Normal(batch.frame.clone().unwrap()) }
    }

    fn command() -> impl Strategy<Value = Command> {
        let once = proptest::option::of((1u64..4, 1u64..8).prop_map(|(session, n)| Once { session, n }));
        prop_oneof![
            8 => (any::<u64>(), 0u32..4, proptest::collection::vec(any::<u8>(), 0..40), once)
                .prop_map(|(by, times, note, once)| Command::Add { by, times, note: note.into(), once }),
            1 => Just(Command::Refuse),
            1 => Just(Command::System(SystemFact::CheckpointOpened)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// What the leader made while it decided is what everybody else folds from the bytes.
        #[test]
        fn replay_is_live(batches in proptest::collection::vec(proptest::collection::vec(command(), 1..12), 1..12)) {
            let limits = Limits { entry_bytes: 300, ..Limits::default() };
            let mut head = decide(turn(Head::default(), vec![Command::add(1)]), &limits);
            let mut replay = Replay::<Counter>::default();
            replay.entry(&entry(0, &head)).unwrap();
            for (commands, index) in batches.into_iter().zip(1..) {
                let all = commands.len();
                let batch = decide(turn(head.head, commands), &limits);
                prop_assert_eq!(batch.decided.len() + batch.rest.len(), all);
                if !batch.events.is_empty() {
                    replay.entry(&entry(index, &batch)).unwrap();
                }
                prop_assert_eq!(batch.head.save::<Counter>(), replay.head.save::<Counter>());
                let loaded = Head::load::<Counter>(&batch.head.save::<Counter>()).unwrap();
                prop_assert_eq!(loaded.save::<Counter>(), batch.head.save::<Counter>());
                head = batch;
            }
        }
    }

    #[test]
    fn an_entry_of_another_history_is_skipped() {
        let limits = Limits::default();
        let first = decide(turn(Head::default(), vec![Command::add(1)]), &limits);
        let second = decide(turn(first.head.clone(), vec![Command::add(2)]), &limits);
        let other = decide(turn(first.head.clone(), vec![Command::add(3)]), &limits);
        let third = decide(turn(second.head.clone(), vec![Command::add(4)]), &limits);
        let after_other = decide(turn(other.head.clone(), vec![Command::add(5)]), &limits);
        let elsewhere = Head { epoch: Epoch([9; 16]), ..second.head.clone() };
        let foreign = decide(turn(elsewhere, vec![Command::add(6)]), &limits);
        let mut replay = Replay::<Counter>::default();
        // Number already taken; a number that fits on another root; another epoch; the first entry again.
        let log = [&first, &second, &other, &after_other, &foreign, &first, &third];
        let folded: Vec<bool> = log
            .iter()
            .zip(0..)
            .map(|(batch, index)| matches!(replay.entry(&entry(index, batch)).unwrap(), Done::Folded { .. }))
            .collect();
        assert_eq!(folded, [true, true, false, false, false, false, true]);
        assert_eq!(replay.place.skipped, [2, 3, 4, 5]);
        assert_eq!(replay.head.save::<Counter>(), third.head.save::<Counter>());
    }

    #[test]
    fn what_is_too_large_leaves_no_trace() {
        let limits = Limits { command_bytes: 200, ..Limits::default() };
        let first = decide(turn(Head::default(), vec![Command::add(1)]), &limits);
        let large = Command::Add { by: 1, times: 9, note: Bytes::new(), once: None };
        let batch = decide(turn(first.head, vec![Command::add(1), large, Command::add(2)]), &limits);
        assert_eq!(batch.head.machine.sum, 4);
        assert!(matches!(batch.decided[1].1, Verdict::Refused(WriteError::TooLarge { bytes: 459, limit: 200 })));
        assert_eq!(batch.events.len(), 2);
    }
}

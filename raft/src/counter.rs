//! A machine that counts: the smallest one with all that the log asks of one. For this crate's own tests, the simulation's,
//! and the benchmarks' floor.

use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::machine::{Context, Machine, Once, Sender, SystemFact, Unreadable};
use serde::{Deserialize, Serialize};

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Counter;

/// What it has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Additions.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// Events before this one need not be kept; 0: all of them.
    pub history_from: u64,
}

/// A wish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Adds `by`, `times` times, in as many events.
    Add {
        /// What to add.
        by: u64,
        /// How many events.
        times: u32,
        /// Carried along.
        note: Bytes,
        /// Its number.
        once: Option<Once>,
    },
    /// Is always refused; comes from nobody who does not vote.
    Refuse,
    /// A fact of the log's own; comes from nobody else.
    System(SystemFact),
}

impl Command {
    /// Adds once, without a note or a number.
    pub fn add(by: u64) -> Self {
        Self::Add { by, times: 1, note: Bytes::new(), once: None }
    }

    /// Adds once, under a number.
    pub fn add_once(by: u64, session: u64, n: u64) -> Self {
        Self::Add { by, times: 1, note: Bytes::new(), once: Some(Once { session, n }) }
    }
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number.
    pub seq: Seq,
    /// Its time.
    pub time_ms: u64,
    /// Which event of its command it is, from 0.
    pub nth: u32,
    /// Its command's number; on the first event only.
    pub once: Option<Once>,
    /// What happened.
    pub body: Body,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// An addition.
    Added {
        /// What was added.
        by: u64,
        /// Carried along.
        note: Bytes,
    },
    /// A fact of the log's own.
    System(SystemFact),
}

/// Why a wish was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("refused")]
pub struct Refused;

impl Machine for Counter {
    type State = Count;
    type Command = Command;
    type Event = Event;
    type Rejection = Refused;
    type Key = ();

    fn decide(_: &Count, context: &Context, command: &Command) -> Result<Vec<Event>, Refused> {
        let (bodies, once) = match command {
            Command::Add { by, times, note, once } => {
                (vec![Body::Added { by: *by, note: note.clone() }; *times as usize], *once)
            }
            Command::Refuse => return Err(Refused),
            Command::System(SystemFact::LevelRaised { level }) if *level <= context.level => (Vec::new(), None),
            Command::System(fact) => (vec![Body::System(fact.clone())], None),
        };
        let event = |(body, nth): (Body, u32)| Event {
            seq: Seq(context.next_seq.0 + u64::from(nth)),
            time_ms: context.time_ms,
            nth,
            once: once.filter(|_| nth == 0),
            body,
        };
        Ok(bodies.into_iter().zip(0..).map(event).collect())
    }

    fn weight(command: &Command) -> usize {
        match command {
            Command::Add { times, .. } => *times as usize,
            Command::Refuse | Command::System(_) => 1,
        }
    }

    fn from_member(command: &Command, from: Sender) -> Result<(), &'static str> {
        match command {
            Command::Add { .. } => Ok(()),
            Command::Refuse if from.votes => Ok(()),
            Command::Refuse => Err("refuse"),
            Command::System(_) => Err("system"),
        }
    }

    fn apply(state: &mut Count, event: &Event) {
        match &event.body {
            Body::Added { by, .. } => {
                state.count += 1;
                state.sum = state.sum.wrapping_add(*by);
            }
            Body::System(SystemFact::HistoryTrimmed { first }) => state.history_from = first.0,
            Body::System(_) => {}
        }
    }

    fn history_from(state: &Count) -> Seq {
        Seq(state.history_from.max(1))
    }

    fn encode(event: &Event, into: &mut Vec<u8>) {
        let once = event.once.unwrap_or(Once { session: 0, n: 0 });
        for number in [event.seq.0, event.time_ms, u64::from(event.nth), once.session, once.n] {
            into.extend_from_slice(&number.to_le_bytes());
        }
        match &event.body {
            Body::Added { by, note } => {
                into.push(1);
                into.extend_from_slice(&by.to_le_bytes());
                into.extend_from_slice(note);
            }
            Body::System(SystemFact::CheckpointOpened) => into.push(2),
            Body::System(SystemFact::Checkpointed { seq, root, digest }) => {
                into.push(3);
                into.extend_from_slice(&seq.0.to_le_bytes());
                into.extend_from_slice(root);
                into.extend_from_slice(digest);
            }
            Body::System(SystemFact::EpochBegun { previous, member }) => {
                into.push(4);
                into.extend_from_slice(&member.to_le_bytes());
                into.extend_from_slice(&previous.0);
            }
            Body::System(SystemFact::HistoryTrimmed { first }) => {
                into.push(5);
                into.extend_from_slice(&first.0.to_le_bytes());
            }
            Body::System(SystemFact::LevelRaised { level }) => {
                into.push(6);
                into.extend_from_slice(&u64::from(*level).to_le_bytes());
            }
        }
    }

    fn encoded_len(event: &Event) -> usize {
        let body = match &event.body {
            Body::Added { note, .. } => 8 + note.len(),
            Body::System(SystemFact::CheckpointOpened) => 0,
            Body::System(SystemFact::Checkpointed { .. }) => 72,
            Body::System(SystemFact::EpochBegun { .. }) => 24,
            Body::System(SystemFact::HistoryTrimmed { .. } | SystemFact::LevelRaised { .. }) => 8,
        };
        41 + body
    }

    fn decode(bytes: &[u8]) -> Result<Event, Unreadable> {
        read(bytes).ok_or_else(|| Unreadable { what: "count event", detail: hex::encode(bytes) })
    }

    fn seq(event: &Event) -> Seq {
        event.seq
    }

    fn time_ms(event: &Event) -> u64 {
        event.time_ms
    }

    fn once(command: &Command) -> Option<Once> {
        match command {
            Command::Add { once, .. } => *once,
            Command::Refuse | Command::System(_) => None,
        }
    }

    fn number(command: &mut Command, number: Once) {
        match command {
            Command::Add { once, .. } => {
                once.get_or_insert(number);
            }
            Command::Refuse | Command::System(_) => {}
        }
    }

    fn event_once(event: &Event) -> Option<Once> {
        event.once
    }

    fn same_command(_: &Event, next: &Event) -> bool {
        next.nth > 0
    }

    fn system(fact: SystemFact, _: [u8; 16]) -> Command {
        Command::System(fact)
    }

    fn event_fact(event: &Event) -> Option<SystemFact> {
        match &event.body {
            Body::System(fact) => Some(fact.clone()),
            Body::Added { .. } => None,
        }
    }

    fn touched(_: &Event) -> Vec<()> {
        Vec::new()
    }

    fn save(state: &Count, into: &mut Vec<u8>) {
        into.extend_from_slice(&state.count.to_le_bytes());
        into.extend_from_slice(&state.sum.to_le_bytes());
        if state.history_from > 0 {
            into.extend_from_slice(&state.history_from.to_le_bytes());
        }
    }

    fn load(bytes: &[u8]) -> Result<Count, Unreadable> {
        let mut from = Numbers(bytes);
        let count = from.next().zip(from.next());
        let history_from = if from.0.is_empty() { 0 } else { from.next().unwrap_or_default() };
        let unreadable = || Unreadable { what: "count", detail: hex::encode(bytes) };
        let count = count.filter(|_| from.0.is_empty());
        count.map(|(count, sum)| Count { count, sum, history_from }).ok_or_else(unreadable)
    }
}

fn read(bytes: &[u8]) -> Option<Event> {
    let mut from = Numbers(bytes);
    let (seq, time_ms, nth) = (Seq(from.next()?), from.next()?, from.next()? as u32);
    let once = Once { session: from.next()?, n: from.next()? };
    let (kind, rest) = from.0.split_first()?;
    let mut from = Numbers(rest);
    let body = match kind {
        1 => Body::Added { by: from.next()?, note: Bytes::copy_from_slice(from.0) },
        2 => Body::System(SystemFact::CheckpointOpened),
        3 => {
            let seq = Seq(from.next()?);
            let (root, digest) = from.0.split_first_chunk()?;
            Body::System(SystemFact::Checkpointed { seq, root: *root, digest: digest.try_into().ok()? })
        }
        4 => {
            let member = from.next()?;
            Body::System(SystemFact::EpochBegun { previous: Epoch(from.0.try_into().ok()?), member })
        }
        5 => Body::System(SystemFact::HistoryTrimmed { first: Seq(from.next()?) }),
        6 => Body::System(SystemFact::LevelRaised { level: u32::try_from(from.next()?).ok()? }),
        _ => return None,
    };
    Some(Event { seq, time_ms, nth, once: Some(once).filter(|once| once.session > 0), body })
}

struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }
}

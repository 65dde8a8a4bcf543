//! What raft/ knows of us: a deterministic state machine with commands, events and a canonical saved form.
//!
//! ```text
//! command ─► decide(&state, &context, command) ─► events ─► log ─► apply(&mut state, &event) on every replica
//! ```
//! `decide` may refuse and may change between versions; `apply` cannot fail and, for an event that was ever written,
//! never changes. Neither may read a clock, randomness, or anything but its arguments.

use crate::id::{Epoch, Seq};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::{Debug, Display};

/// What the leader adds to a command: facts that must not come from a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The log's incarnation; all zero before the bootstrap.
    pub epoch: Epoch,
    /// Number that the first event of this command will have.
    pub next_seq: Seq,
    /// Event time, milliseconds since 1970 (UTC); never less than the event before.
    pub time_ms: u64,
    /// Level of features of the log: no event of a higher one is written.
    pub level: u32,
    /// The highest level that the leader knows: a log begins with it.
    pub known_level: u32,
}

/// A number that a door's process gives its command, so that it is carried out once however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Once {
    /// Random id of the door's process; never 0.
    pub session: u64,
    /// Number of the command in that session, from 1.
    pub n: u64,
}

/// Facts that raft/ itself puts into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemFact {
    /// Every replica digests its state at this event.
    CheckpointOpened,
    /// What the leader found there.
    Checkpointed {
        /// Number of the `CheckpointOpened` event.
        seq: Seq,
        /// Merkle root after it.
        root: [u8; 32],
        /// SHA-256 of the canonical state after it.
        digest: [u8; 32],
    },
    /// The log goes on without the others, in an epoch of its own: the first event of the first entry of that epoch.
    EpochBegun {
        /// The epoch that it goes on from.
        previous: Epoch,
        /// The only member.
        member: u64,
    },
    /// Events before this one need not be kept any longer.
    HistoryTrimmed {
        /// The first that is kept.
        first: Seq,
    },
    /// Every member knows the kinds of events up to this level.
    LevelRaised {
        /// Which.
        level: u32,
    },
}

/// A member that sends a command to the one that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its id, by its certificate.
    pub member: u64,
    /// It votes, in the membership that counts where the command is decided.
    pub votes: bool,
}

/// Bytes in the log, or in a snapshot, that this version cannot read. The member must stop: to go on would be to
/// apply something else than the others do.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {detail}")]
pub struct Unreadable {
    /// What was read.
    pub what: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

/// A deterministic state machine whose every change is an event in the log.
pub trait Machine: Send + Sync + 'static {
    /// Cheap to clone (persistent data structures): a copy is O(1).
    type State: Clone + Default + Send + Sync + 'static;
    /// A wish, complete with the ids and secrets' hashes chosen at the door: deciding it twice gives the same.
    /// Travels between members of one protocol version.
    type Command: Clone + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// A fact, complete with its envelope.
    type Event: Clone + Debug + Send + Sync + 'static;
    /// Why a wish was refused.
    type Rejection: Clone + Debug + Display + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// A thing that an event touched: what views and deltas are keyed by.
    type Key: Clone + Debug + Ord + Send + Sync + 'static;

    /// The highest level of features that this version knows. A kind of event that came with a level is written only once the
    /// log is at that level, which it is once every member knows it.
    const LEVEL: u32 = 1;

    /// The events that carry out the command against this state, numbered from `context.next_seq`; empty where it
    /// changes nothing.
    fn decide(
        state: &Self::State,
        context: &Context,
        command: &Self::Command,
    ) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// Events that a command makes, about: how much work it is.
    fn weight(command: &Self::Command) -> usize {
        let _ = command;
        1
    }

    /// May this member send this command to the one that decides? What is decided where it was made is not asked about. An
    /// error names the kind of command; by default nothing comes from another member.
    fn from_member(command: &Self::Command, from: Sender) -> Result<(), &'static str> {
        let (_, _) = (command, from);
        Err("command")
    }

    /// Folds one event into the state.
    fn apply(state: &mut Self::State, event: &Self::Event);

    /// The bytes that are stored, hashed and served: written once, never re-encoded.
    fn encode(event: &Self::Event, into: &mut Vec<u8>);

    /// How many bytes [`Machine::encode`] writes.
    fn encoded_len(event: &Self::Event) -> usize;

    /// Reads them; an event kind that this version does not know is an error.
    fn decode(bytes: &[u8]) -> Result<Self::Event, Unreadable>;

    /// The event's number, as in its envelope.
    fn seq(event: &Self::Event) -> Seq;

    /// The event's time, milliseconds since 1970 (UTC).
    fn time_ms(event: &Self::Event) -> u64;

    /// The once-only number of a command.
    fn once(command: &Self::Command) -> Option<Once>;

    /// Gives a command that has none its once-only number, so that it may be sent again.
    fn number(command: &mut Self::Command, once: Once);

    /// The once-only number on a command's first event.
    fn event_once(event: &Self::Event) -> Option<Once>;

    /// True where `next`, which follows `previous` in one entry and carries no once-only number of its own, is of the
    /// same command.
    fn same_command(previous: &Self::Event, next: &Self::Event) -> bool {
        let _ = previous;
        Self::event_once(next).is_none()
    }

    /// The command that puts a fact of raft's own into the log. `id` is random.
    fn system(fact: SystemFact, id: [u8; 16]) -> Self::Command;

    /// Reads such a fact back.
    fn event_fact(event: &Self::Event) -> Option<SystemFact>;

    /// The level that the log is at from this event on, where it says so.
    fn event_level(event: &Self::Event) -> Option<u32> {
        match Self::event_fact(event) {
            Some(SystemFact::LevelRaised { level }) => Some(level),
            _ => None,
        }
    }

    /// The first event that has to be kept.
    fn history_from(state: &Self::State) -> Seq {
        let _ = state;
        Seq(1)
    }

    /// What the event touches.
    fn touched(event: &Self::Event) -> Vec<Self::Key>;

    /// Appends the state's canonical bytes: equal states give equal bytes on every replica and in every version that
    /// has the same features.
    fn save(state: &Self::State, into: &mut Vec<u8>);

    /// Reads what [`Machine::save`] wrote.
    fn load(bytes: &[u8]) -> Result<Self::State, Unreadable>;
}

//! What the outside world knows: which events it was shown, which commands it was told are done or refused. Every claim
//! that a log makes is checked against it.
//!
//! ```text
//! observers ─► observed events, in order ─┐
//! history   ─► events read back ──────────┼─► one sequence of bytes, its Merkle tree ─► what must still be there
//! answers   ─► acknowledged, refused ─────┘
//! ```

use crate::lock;
use crate::trace::Trace;
use bytes::Bytes;
use cvlan_core::id::{CommandId, Seq};
use cvlan_core::log::CompactRange;
use cvlan_core::machine::Machine;
use cvlan_core::{Command, Rules, State};
use cvlan_proto::v1::Event;
use cvlan_raft::{Answer, Applied, Head};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// A broken promise, in one line.
pub type Violation = String;

/// What is known so far.
pub struct Ledger {
    trace: Trace,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Event `n + 1` at place `n`.
    events: Vec<Bytes>,
    /// Merkle root after each.
    roots: Vec<[u8; 32]>,
    tree: CompactRange,
    /// Observed in this life beyond a gap that history has to fill.
    ahead: BTreeMap<u64, Bytes>,
    /// The last event and entry observed in this life.
    observed: Option<(u64, u64)>,
    /// After the last entry ever observed.
    head: Option<Arc<Head<State>>>,
    done: BTreeMap<CommandId, Place>,
    refused: BTreeSet<CommandId>,
    highest: u64,
    violation: Option<Violation>,
}

/// A command's first event and how many it has; of one without effect, none.
type Place = Option<(u64, u64)>;

impl Ledger {
    /// Nothing is known.
    pub fn new(trace: Trace) -> Self {
        Self { trace, known: Mutex::default() }
    }

    /// The first broken promise, if any.
    pub fn violation(&self) -> Option<Violation> {
        lock(&self.known).violation.clone()
    }

    /// Notes a broken promise.
    pub fn broken(&self, violation: Violation) {
        self.trace.line(format_args!("VIOLATION {violation}"));
        lock(&self.known).violation.get_or_insert(violation);
    }

    /// The log must have at least this many events: they were shown or acknowledged.
    pub fn floor(&self) -> u64 {
        let known = lock(&self.known);
        known.highest.max(known.events.len() as u64)
    }

    /// The highest acknowledged event.
    pub fn highest(&self) -> u64 {
        lock(&self.known).highest
    }

    /// Commands whose outcome is known.
    pub fn answered(&self) -> usize {
        let known = lock(&self.known);
        known.done.len() + known.refused.iter().filter(|id| !known.done.contains_key(id)).count()
    }

    /// Events known without a gap.
    pub fn len(&self) -> u64 {
        lock(&self.known).events.len() as u64
    }

    /// True where no event is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The head after the last entry that was ever observed.
    pub fn head(&self) -> Option<Arc<Head<State>>> {
        lock(&self.known).head.clone()
    }

    /// A process starts: it shows events from wherever its recovery ended.
    pub fn starts(&self) {
        let mut known = lock(&self.known);
        known.observed = None;
        known.ahead.clear();
    }

    /// An observer's call.
    pub fn observe(&self, applied: &Applied<Rules>) {
        let seq = applied.head.seq.0;
        self.trace.line(format_args!("applied {} up to event {seq}, {}", applied.index, short(&applied.head.root)));
        let seen = lock(&self.known).observe(applied);
        if let Err(violation) = seen {
            self.broken(violation);
        }
    }

    /// Events as history gives them.
    pub fn read_back(&self, events: &[(Seq, Bytes)]) {
        let mut known = lock(&self.known);
        let wrong = events.iter().find_map(|(seq, raw)| known.event(seq.0, raw).err());
        drop(known);
        if let Some(violation) = wrong {
            self.broken(format!("history: {violation}"));
        }
    }

    /// A command is done, says the member; `highest` was acknowledged before it was first sent.
    pub fn done(&self, command: &Command, answer: &Answer<Rules>, highest: u64) {
        let (first, count, last) = (answer.first_seq.0, answer.events.len() as u64, answer.checkpoint.seq.0);
        let id = command.meta.id;
        self.trace.line(format_args!("done {id}: {count} events from {first}, {last}, again: {}", answer.repeated));
        let ends = if count == 0 { first == 0 } else { first + count - 1 == last };
        if !ends {
            self.broken(format!("{id}: {count} events from {first} end at {last}"));
        }
        if last < highest {
            self.broken(format!(
                "{id} was answered with event {last}, yet {highest} had been acknowledged before it was sent"
            ));
        }
        for (event, seq) in answer.events.iter().zip(first..) {
            if event.command_id != id.to_string() || event.seq != seq {
                self.broken(format!("{id} was answered with event {} of {}", event.seq, event.command_id));
            }
            let mut raw = Vec::new();
            Rules::encode(event, &mut raw);
            // Where it is not known yet, it will be: observers are called before the answer, in this life or one before.
            let same = lock(&self.known).equals(seq, &raw);
            if let Err(violation) = same {
                self.broken(format!("{id}: {violation}"));
            }
        }
        let place = (count > 0).then_some((first, count));
        let before = {
            let mut known = lock(&self.known);
            known.highest = known.highest.max(last);
            known.done.insert(id, place)
        };
        if before.is_some_and(|before| before != place) {
            self.broken(format!("{id} was answered with {before:?} and with {place:?}"));
        }
    }

    /// A command was refused, says the member: it has left nothing.
    pub fn refused(&self, command: &Command, code: &str) {
        self.trace.line(format_args!("refused {}: {code}", command.meta.id));
        lock(&self.known).refused.insert(command.meta.id);
    }

    /// A head against the events that led to it.
    pub fn check_head(&self, head: &Head<State>) {
        let known = lock(&self.known);
        let seq = head.seq.0;
        let root =
            (seq as usize).checked_sub(1).map_or(Some(CompactRange::default().root()), |n| known.roots.get(n).copied());
        let wrong = match root {
            None => Some(format!("a head at event {seq}; {} are known", known.events.len())),
            Some(root) if root != head.root || head.tree.root() != root || head.tree.size() != seq => {
                Some(format!("at event {seq} the head has root {}, its events {}", short(&head.root), short(&root)))
            }
            Some(_) => None,
        };
        drop(known);
        let wrong = wrong.or_else(|| cvlan_core::grammar::check_invariants(&head.machine).err());
        if let Some(violation) = wrong {
            self.broken(violation);
        }
    }

    /// Everything that can be said once all is quiet: `head` is the last one.
    pub fn check_all(&self, head: &Head<State>) -> Result<(), Violation> {
        let known = lock(&self.known);
        let mut state = State::default();
        let mut events = Vec::with_capacity(known.events.len());
        for raw in &known.events {
            let event = Rules::decode(raw).map_err(|e| e.to_string())?;
            Rules::apply(&mut state, &event);
            events.push(event);
        }
        let save = |state: &State| {
            let mut bytes = Vec::new();
            Rules::save(state, &mut bytes);
            bytes
        };
        if save(&state) != save(&head.machine) {
            return Err(format!("the state at event {} is not what its events make", head.seq));
        }
        if let Some(two) = events.windows(2).find(|two| matches!(two, [a, b] if Rules::time_ms(a) > Rules::time_ms(b)))
        {
            return Err(format!("time goes backwards after event {}", two.first().map_or(0, |e| e.seq)));
        }
        known.once_only(&events)
    }

    /// Times of two neighbouring events, for questions about time.
    pub fn time_of(&self, seq: u64) -> Option<u64> {
        let known = lock(&self.known);
        let event = Rules::decode(known.events.get(seq.checked_sub(1)? as usize)?).ok()?;
        Some(Rules::time_ms(&event))
    }

    /// The event `seq` as it is known.
    pub fn root_at(&self, seq: u64) -> Option<[u8; 32]> {
        lock(&self.known).roots.get(seq.checked_sub(1)? as usize).copied()
    }
}

impl Known {
    fn observe(&mut self, applied: &Applied<Rules>) -> Result<(), Violation> {
        let first = applied.head.seq.0 + 1 - applied.events.len() as u64;
        if let Some((seq, index)) = self.observed
            && (first != seq + 1 || applied.index <= index)
        {
            return Err(format!(
                "entry {} with event {first} was shown after entry {index} with event {seq}",
                applied.index
            ));
        }
        if applied.raw.len() != applied.events.len() || applied.events.is_empty() {
            return Err(format!("entry {} was shown with {} events in bytes", applied.index, applied.raw.len()));
        }
        for ((event, raw), seq) in applied.events.iter().zip(applied.raw.iter()).zip(first..) {
            if event.seq != seq || Rules::decode(raw).ok().as_ref() != Some(event) {
                return Err(format!("event {seq} was shown as {event:?}"));
            }
            if seq > self.events.len() as u64 + 1 {
                self.ahead.insert(seq, raw.clone());
            } else {
                self.event(seq, raw)?;
            }
        }
        self.observed = Some((applied.head.seq.0, applied.index));
        self.head = Some(applied.head.clone());
        Ok(())
    }

    /// The next event, or one that is known.
    fn event(&mut self, seq: u64, raw: &Bytes) -> Result<(), Violation> {
        let next = self.events.len() as u64 + 1;
        if seq > next {
            return Err(format!("event {seq} where {next} was due"));
        }
        self.equals(seq, raw)?;
        if seq < next {
            return Ok(());
        }
        self.push(raw.clone());
        while let Some(raw) = self.ahead.remove(&(self.events.len() as u64 + 1)) {
            self.push(raw);
        }
        Ok(())
    }

    fn push(&mut self, raw: Bytes) {
        self.tree.push(&raw);
        self.roots.push(self.tree.root());
        self.events.push(raw);
    }

    fn equals(&self, seq: u64, raw: &[u8]) -> Result<(), Violation> {
        match self.events.get(seq as usize - 1).or_else(|| self.ahead.get(&seq)) {
            Some(known) if known != raw => Err(format!("event {seq} is another one than before")),
            Some(_) | None => Ok(()),
        }
    }

    /// Acknowledged commands are in the log once, at their place; refused ones and such without effect are not.
    fn once_only(&self, events: &[Event]) -> Result<(), Violation> {
        let mut places: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for event in events {
            let (first, count) = places.entry(&event.command_id).or_insert((event.seq, 0));
            if *first + *count != event.seq {
                return Err(format!("command {} has events from {first} on and again {}", event.command_id, event.seq));
            }
            *count += 1;
        }
        for (id, due) in &self.done {
            let place = places.get(id.to_string().as_str()).copied();
            if place != *due {
                return Err(format!("acknowledged command {id} was {due:?}, the log has {place:?}"));
            }
        }
        match self.refused.iter().find(|id| places.contains_key(id.to_string().as_str())) {
            Some(id) => Err(format!("command {id} was refused and is in the log")),
            None => Ok(()),
        }
    }
}

/// The first bytes of a hash.
pub fn short(hash: &[u8; 32]) -> String {
    hex::encode(hash.first_chunk::<6>().unwrap_or(&[0; 6]))
}

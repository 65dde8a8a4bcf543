//! What the outside world knows: which events it was shown, which commands it was told are done or refused. Every claim
//! that a log makes is checked against it.
//!
//! ```text
//! observers ─► observed events, in order ─┐
//! history   ─► events read back ──────────┼─► one sequence of bytes, its Merkle tree ─► what must still be there
//! answers   ─► acknowledged, refused ─────┘
//! ```

use crate::lock;
use crate::trace::{Sign, Trace};
use bytes::Bytes;
use cvlan_core::id::{CommandId, Epoch, Seq};
use cvlan_core::log::CompactRange;
use cvlan_core::machine::{Context, Machine};
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
    /// Members may be brought forward by another one's snapshot: what they show may leave out events.
    many: bool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Event `n + 1` at place `n`.
    events: Vec<Bytes>,
    /// Merkle root after each.
    roots: Vec<[u8; 32]>,
    tree: CompactRange,
    /// Observed beyond a gap that history has to fill.
    ahead: BTreeMap<u64, Bytes>,
    /// The last event and entry that each member has shown in this life.
    observed: BTreeMap<u64, (u64, u64)>,
    /// First and last event of each entry, by its place in the Raft log.
    entries: BTreeMap<u64, (u64, u64)>,
    /// Heads after the newest entries.
    heads: BTreeMap<u64, Arc<Head<State>>>,
    /// After the last entry ever observed.
    head: Option<Arc<Head<State>>>,
    done: BTreeMap<CommandId, Place>,
    /// Refused or without effect, for good.
    nothing: BTreeSet<CommandId>,
    highest: u64,
    violation: Option<Violation>,
}

const DAY_MS: u64 = 86_400_000;

/// Heads that are kept, to judge refusals by.
const HEADS: usize = 512;

/// A command's first event and how many it has.
type Place = (u64, u64);

impl Ledger {
    /// Nothing is known, of one member or of `many`.
    pub fn new(trace: Trace, many: bool) -> Self {
        Self { trace, many, known: Mutex::default() }
    }

    /// The first broken promise, if any.
    pub fn violation(&self) -> Option<Violation> {
        lock(&self.known).violation.clone()
    }

    /// Notes a broken promise.
    pub fn broken(&self, violation: Violation) {
        self.trace.mark(None, Sign::Violation, format_args!("VIOLATION {violation}"));
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
        known.done.len() + known.nothing.iter().filter(|id| !known.done.contains_key(id)).count()
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

    /// A member starts: it shows events from wherever its recovery ended.
    pub fn starts(&self, member: u64) {
        lock(&self.known).observed.remove(&member);
    }

    /// An observer's call.
    pub fn observe(&self, member: u64, applied: &Applied<Rules>) {
        let (seq, index) = (applied.head.seq.0, applied.index);
        self.trace.line(format_args!("m{member} applied {index} up to event {seq}, {}", short(&applied.head.root)));
        let seen = lock(&self.known).observe(member, applied, self.many);
        if let Err(violation) = seen {
            self.broken(format!("member {member}: {violation}"));
        }
    }

    /// Somebody was shown the log up to this event: nobody who asks from now on may be shown less.
    pub fn seen(&self, seq: u64) {
        let mut known = lock(&self.known);
        known.highest = known.highest.max(seq);
    }

    /// Events as history gives them.
    pub fn read_back(&self, events: &[(Seq, Bytes)]) {
        let mut known = lock(&self.known);
        let wrong = events.iter().find_map(|(seq, raw)| {
            if self.many && seq.0 > known.events.len() as u64 + 1 {
                let same = known.equals(seq.0, raw);
                known.ahead.insert(seq.0, raw.clone());
                return same.err();
            }
            known.event(seq.0, raw).err()
        });
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
        let place = (first, count);
        let before = {
            let mut known = lock(&self.known);
            known.highest = known.highest.max(last);
            if count > 0 { known.done.insert(id, place) } else { None }
        };
        if let Some(before) = before.filter(|before| *before != place) {
            self.broken(format!("{id} was answered with {before:?} and with {place:?}"));
        }
    }

    /// A command was refused, or had no effect, and no attempt of it is open any more: it must leave nothing.
    pub fn leaves_nothing(&self, command: &Command) {
        lock(&self.known).nothing.insert(command.meta.id);
    }

    /// A command was refused, says the member. Some state since event `highest`, which was
    /// acknowledged before it was first sent, must be a reason to refuse it.
    pub fn refused(&self, command: &Command, code: &str, highest: u64) {
        self.trace.line(format_args!("refused {}: {code}", command.meta.id));
        let wrong = {
            let known = lock(&self.known);
            !known.refusable(command, highest)
        };
        if wrong {
            self.broken(format!(
                "{} was refused with {code}, yet every state since event {highest} would take it",
                command.meta.id
            ));
        }
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
        cvlan_core::grammar::check_keys(&events)?;
        known.once_only(&events)
    }

    /// All events that are known without a gap, decoded.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.known).events.iter().filter_map(|raw| Rules::decode(raw).ok()).collect()
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
    fn observe(&mut self, member: u64, applied: &Applied<Rules>, jumps: bool) -> Result<(), Violation> {
        let last = applied.head.seq.0;
        if applied.events.is_empty() && jumps {
            return self.installed(member, applied);
        }
        let first = last + 1 - applied.events.len() as u64;
        if let Some((seq, index)) = self.observed.get(&member).copied()
            && (first <= seq || first > seq + 1 && !jumps || applied.index <= index)
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
        let entry = *self.entries.entry(applied.index).or_insert((first, last));
        if entry != (first, last) {
            return Err(format!("entry {} has events {first} to {last}, and {entry:?} elsewhere", applied.index));
        }
        let root = (last as usize).checked_sub(1).and_then(|at| self.roots.get(at));
        if root.is_some_and(|root| *root != applied.head.root) {
            return Err(format!("after event {last} the root is {}", short(&applied.head.root)));
        }
        self.observed.insert(member, (last, applied.index));
        if self.head.as_ref().is_none_or(|head| head.seq.0 < last) {
            self.head = Some(applied.head.clone());
            self.heads.insert(last, applied.head.clone());
            if self.heads.len() > HEADS {
                self.heads.pop_first();
            }
        }
        Ok(())
    }

    /// A snapshot took the place of entries: it leads forward, to a head that is known.
    fn installed(&mut self, member: u64, applied: &Applied<Rules>) -> Result<(), Violation> {
        let (last, index) = (applied.head.seq.0, applied.index);
        if let Some((seq, before)) = self.observed.insert(member, (last, index))
            && (last < seq || index < before)
        {
            return Err(format!(
                "a snapshot led back to entry {index}, event {last}, from entry {before}, event {seq}"
            ));
        }
        let root = (last as usize).checked_sub(1).and_then(|at| self.roots.get(at));
        match root.filter(|root| **root != applied.head.root) {
            Some(_) => Err(format!("a snapshot at event {last} has root {}", short(&applied.head.root))),
            None => Ok(()),
        }
    }

    /// False where no state since event `from` refuses the command. Where not all of them are known: true.
    fn refusable(&self, command: &Command, from: u64) -> bool {
        let Some((oldest, first)) = self.heads.range(..=from).next_back() else { return true };
        let refuses = |state: &State, epoch: Epoch, seq: u64, time_ms: u64| {
            // A token's life may have ended since the last event.
            [time_ms, time_ms + DAY_MS].into_iter().any(|time_ms| {
                Rules::decide(
                    state,
                    &Context { epoch, next_seq: Seq(seq + 1), time_ms, level: 1, known_level: 1 },
                    command,
                )
                .is_err()
            })
        };
        if self.heads.range(oldest..).any(|(seq, head)| refuses(&head.machine, head.epoch, *seq, head.time_ms)) {
            return true;
        }
        if self.heads.last_key_value().is_some_and(|(last, _)| *last > self.events.len() as u64) {
            return true;
        }
        // Commands of one entry are decided one after the other.
        let mut state = first.machine.clone();
        let later = self.events.iter().enumerate().skip(*oldest as usize);
        later.filter_map(|(at, raw)| Some((at as u64 + 1, Rules::decode(raw).ok()?))).any(|(seq, event)| {
            Rules::apply(&mut state, &event);
            refuses(&state, first.epoch, seq, Rules::time_ms(&event))
        })
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

    /// Acknowledged commands are in the log once, at their place; what was refused or had no effect for good is not.
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
            if place != Some(*due) {
                return Err(format!("acknowledged command {id} was {due:?}, the log has {place:?}"));
            }
        }
        match self.nothing.iter().find(|id| places.contains_key(id.to_string().as_str())) {
            Some(id) => Err(format!("command {id} was refused or had no effect, and is in the log")),
            None => Ok(()),
        }
    }
}

/// The first bytes of a hash.
pub fn short(hash: &[u8; 32]) -> String {
    hex::encode(hash.first_chunk::<6>().unwrap_or(&[0; 6]))
}

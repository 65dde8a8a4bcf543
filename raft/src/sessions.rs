//! Once only: what became of numbered commands, so that one that is sent again is not carried out again.
//!
//! ```text
//! (session, n) ─► never seen: decide │ within the window: its outcome │ older than the window: unknown, never run again
//! ```
//! Part of the head: folded from the events of the log, equal on every replica.

use crate::head::{Reader, put_len, unreadable};
use cvlan_core::id::Seq;
use cvlan_core::machine::{Once, Unreadable};
use imbl::OrdMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Numbers below the highest of a session whose outcomes are kept.
pub const WINDOW: u64 = 1024;

/// Sessions kept; the one that is unused for longest goes first.
pub const MAX_SESSIONS: usize = 4096;

/// Where a command's events are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Number of its first event.
    pub first_seq: Seq,
    /// How many events it has.
    pub count: u32,
}

/// What is known of a numbered command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It has no events in the log.
    No,
    /// It was carried out.
    Done(Outcome),
    /// Too old to say.
    Forgotten,
}

/// A command's number and what became of it.
type Numbered = (u64, Outcome);

/// Numbered outcomes that are copied with every change of their session; the others never are.
const RECENT: usize = 16;

/// Outcomes as they came, nearly in the order of their numbers. Those below the window do not count, there or not.
#[derive(Clone, Debug)]
struct Session {
    highest: u64,
    used: Seq,
    recent: [Numbered; RECENT],
    len: usize,
    older: Arc<Vec<Arc<Older>>>,
}

#[derive(Debug)]
struct Older {
    /// The lowest and the highest number among them.
    least: u64,
    most: u64,
    outcomes: Vec<Numbered>,
}

/// Sessions by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions(OrdMap<u64, Arc<Session>>);

impl Session {
    fn new(used: Seq) -> Self {
        let none = (0, Outcome { first_seq: Seq(0), count: 0 });
        Self { highest: 0, used, recent: [none; RECENT], len: 0, older: Arc::default() }
    }

    fn recent(&self) -> &[Numbered] {
        self.recent.get(..self.len).unwrap_or_default()
    }

    fn is_old(&self, n: u64) -> bool {
        n.saturating_add(WINDOW) <= self.highest
    }

    /// The newest first, should a number be there twice.
    fn find(&self, n: u64) -> Option<Outcome> {
        let among =
            |outcomes: &[Numbered]| outcomes.iter().rfind(|(other, _)| *other == n).map(|(_, outcome)| *outcome);
        let older = || self.older.iter().rev().filter(|older| (older.least..=older.most).contains(&n));
        among(self.recent()).or_else(|| older().find_map(|older| among(&older.outcomes)))
    }

    fn push(&mut self, numbered: Numbered) {
        self.highest = self.highest.max(numbered.0);
        if self.len == RECENT {
            let outcomes = self.recent.to_vec();
            let numbers = || outcomes.iter().map(|(n, _)| *n);
            let (least, most) = (numbers().min().unwrap_or_default(), numbers().max().unwrap_or_default());
            let highest = self.highest;
            let older = Arc::make_mut(&mut self.older);
            older.retain(|older| older.most.saturating_add(WINDOW) > highest);
            older.push(Arc::new(Older { least, most, outcomes }));
            self.len = 0;
        }
        if let Some(free) = self.recent.get_mut(self.len) {
            *free = numbered;
            self.len += 1;
        }
    }

    /// Those of the window by number, the newest of each: what they are, however they came.
    fn outcomes(&self) -> BTreeMap<u64, Outcome> {
        let older = self.older.iter().flat_map(|older| &older.outcomes);
        older.chain(self.recent()).filter(|(n, _)| !self.is_old(*n)).copied().collect()
    }
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        (self.highest, self.used, self.outcomes()) == (other.highest, other.used, other.outcomes())
    }
}

impl Eq for Session {}

impl Sessions {
    /// What is known of the command with this number.
    pub fn look(&self, once: Once) -> Seen {
        let Some(session) = self.0.get(&once.session) else { return Seen::No };
        if once.n > session.highest {
            return Seen::No;
        }
        if session.is_old(once.n) {
            return Seen::Forgotten;
        }
        session.find(once.n).map_or(Seen::No, Seen::Done)
    }

    /// Sessions known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where no command was numbered yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A command's first event.
    pub(crate) fn note(&mut self, once: Once, seq: Seq) {
        let numbered = (once.n, Outcome { first_seq: seq, count: 1 });
        if let Some(session) = self.0.get_mut(&once.session) {
            let session = Arc::make_mut(session);
            session.used = seq;
            session.push(numbered);
            return;
        }
        self.make_room();
        let mut session = Session::new(seq);
        session.push(numbered);
        self.0.insert(once.session, Arc::new(session));
    }

    /// One more event of the same command: the one that was noted last.
    pub(crate) fn extend(&mut self, once: Once) {
        if let Some(session) = self.0.get_mut(&once.session).map(Arc::make_mut)
            && let Some(last) = session.len.checked_sub(1)
            && let Some((n, outcome)) = session.recent.get_mut(last)
            && *n == once.n
        {
            outcome.count += 1;
        }
    }

    /// A new session comes seldom (a door's process starts), so a scan for the oldest is cheap enough.
    fn make_room(&mut self) {
        if self.0.len() >= MAX_SESSIONS
            && let Some(oldest) = self.0.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id)
        {
            self.0.remove(&oldest);
        }
    }

    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        put_len(out, self.0.len());
        for (id, session) in &self.0 {
            for number in [*id, session.highest, session.used.0] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            let outcomes = session.outcomes();
            put_len(out, outcomes.len());
            for (n, outcome) in outcomes {
                out.extend_from_slice(&n.to_le_bytes());
                out.extend_from_slice(&outcome.first_seq.0.to_le_bytes());
                out.extend_from_slice(&outcome.count.to_le_bytes());
            }
        }
    }

    pub(crate) fn load(from: &mut Reader<'_>) -> Result<Self, Unreadable> {
        let sessions = from.list(|from| {
            let (id, highest, used) = (from.u64()?, from.u64()?, Seq(from.u64()?));
            let outcomes = from.list(|from| {
                Ok((from.u64()?, Outcome { first_seq: Seq(from.u64()?), count: u32::from_le_bytes(from.take()?) }))
            })?;
            let mut session = Session { highest, ..Session::new(used) };
            outcomes.into_iter().for_each(|numbered| session.push(numbered));
            Ok((id, Arc::new(session)))
        })?;
        if sessions.len() > MAX_SESSIONS {
            return Err(unreadable(format!("{} sessions", sessions.len())));
        }
        Ok(Self(sessions.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once(session: u64, n: u64) -> Once {
        Once { session, n }
    }

    #[test]
    fn an_outcome_is_kept_within_the_window_and_forgotten_below_it() {
        let mut sessions = Sessions::default();
        for n in 1..=WINDOW + 10 {
            sessions.note(once(7, n), Seq(n * 2));
        }
        sessions.extend(once(7, WINDOW + 10));
        let highest = WINDOW + 10;
        assert_eq!(sessions.look(once(7, highest)), Seen::Done(Outcome { first_seq: Seq(highest * 2), count: 2 }));
        assert_eq!(sessions.look(once(7, 11)), Seen::Done(Outcome { first_seq: Seq(22), count: 1 }));
        assert_eq!(sessions.look(once(7, 10)), Seen::Forgotten);
        assert_eq!(sessions.look(once(7, highest + 1)), Seen::No);
        assert_eq!(sessions.look(once(8, 1)), Seen::No);
    }

    #[test]
    fn numbers_may_arrive_out_of_order() {
        let mut sessions = Sessions::default();
        sessions.note(once(1, 5), Seq(1));
        assert_eq!(sessions.look(once(1, 4)), Seen::No);
        sessions.note(once(1, 4), Seq(2));
        assert_eq!(sessions.look(once(1, 4)), Seen::Done(Outcome { first_seq: Seq(2), count: 1 }));
    }

    #[test]
    fn the_session_unused_for_longest_makes_room() {
        let mut sessions = Sessions::default();
        for id in 1..=MAX_SESSIONS as u64 {
            sessions.note(once(id, 1), Seq(id));
        }
        sessions.note(once(1, 2), Seq(5000));
        sessions.note(once(99_999, 1), Seq(5001));
        assert_eq!(sessions.len(), MAX_SESSIONS);
        assert_eq!(sessions.look(once(2, 1)), Seen::No, "the oldest went");
        assert!(matches!(sessions.look(once(1, 1)), Seen::Done(_)));
    }

    proptest::proptest! {
        /// Numbers that are ahead, late, missing or too late: kept is what a plain map keeps, and not much more.
        #[test]
        fn kept_is_the_window_whatever_the_order(steps in proptest::collection::vec((0u64..40, 0u64..1300, 0u32..3), 1..3000)) {
            let (mut sessions, mut all, mut highest) = (Sessions::default(), BTreeMap::new(), 1u64);
            for ((ahead, late, more), seq) in steps.into_iter().zip(1..) {
                let n = if late < 1200 { highest + ahead } else { (highest + 1).saturating_sub(late - 1200).max(1) };
                if sessions.look(once(1, n)) != Seen::No {
                    continue;
                }
                sessions.note(once(1, n), Seq(seq));
                (0..more).for_each(|_| sessions.extend(once(1, n)));
                all.insert(n, Outcome { first_seq: Seq(seq), count: 1 + more });
                highest = highest.max(n);
                all.retain(|n, _| n + WINDOW > highest);
                let wanted = all.get(&n).map_or(Seen::Forgotten, |outcome| Seen::Done(*outcome));
                proptest::prop_assert_eq!(sessions.look(once(1, n)), wanted);
            }
            for n in 1..=highest + 2 {
                let wanted = match all.get(&n) {
                    Some(outcome) => Seen::Done(*outcome),
                    None if n + WINDOW <= highest => Seen::Forgotten,
                    None => Seen::No,
                };
                proptest::prop_assert_eq!(sessions.look(once(1, n)), wanted, "{}", n);
            }
            proptest::prop_assert_eq!(sessions.0.get(&1).unwrap().outcomes(), all);
            proptest::prop_assert!(sessions.0.get(&1).unwrap().older.len() <= 2 * WINDOW as usize / RECENT + 1);
            let mut bytes = Vec::new();
            sessions.save(&mut bytes);
            let loaded = Sessions::load(&mut Reader(&bytes)).unwrap();
            proptest::prop_assert_eq!(&loaded, &sessions);
            let mut again = Vec::new();
            loaded.save(&mut again);
            proptest::prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let mut sessions = Sessions::default();
        for (session, n) in [(3, 1), (3, 2), (1, 9), (u64::MAX, 1)] {
            sessions.note(once(session, n), Seq(n + session % 1000));
        }
        let mut bytes = Vec::new();
        sessions.save(&mut bytes);
        assert_eq!(Sessions::load(&mut Reader(&bytes)).unwrap(), sessions);
        for cut in 0..bytes.len() {
            assert!(Sessions::load(&mut Reader(&bytes[..cut])).is_err(), "cut at {cut}");
        }
    }
}

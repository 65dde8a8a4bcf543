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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    highest: u64,
    used: Seq,
    outcomes: OrdMap<u64, Outcome>,
}

/// Sessions by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions(OrdMap<u64, Arc<Session>>);

impl Sessions {
    /// What is known of the command with this number.
    pub fn look(&self, once: Once) -> Seen {
        let Some(session) = self.0.get(&once.session) else { return Seen::No };
        match session.outcomes.get(&once.n) {
            Some(outcome) => Seen::Done(*outcome),
            None if once.n.saturating_add(WINDOW) <= session.highest => Seen::Forgotten,
            None => Seen::No,
        }
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
        if !self.0.contains_key(&once.session) {
            self.make_room();
        }
        let session = self
            .0
            .entry(once.session)
            .or_insert_with(|| Arc::new(Session { highest: 0, used: seq, outcomes: OrdMap::new() }));
        let session = Arc::make_mut(session);
        session.used = seq;
        session.highest = session.highest.max(once.n);
        session.outcomes.insert(once.n, Outcome { first_seq: seq, count: 1 });
        while let Some(oldest) = session.outcomes.get_min().map(|(n, _)| *n)
            && oldest.saturating_add(WINDOW) <= session.highest
        {
            session.outcomes.remove(&oldest);
        }
    }

    /// One more event of the same command.
    pub(crate) fn extend(&mut self, once: Once) {
        if let Some(session) = self.0.get_mut(&once.session)
            && let Some(outcome) = Arc::make_mut(session).outcomes.get_mut(&once.n)
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
            put_len(out, session.outcomes.len());
            for (n, outcome) in &session.outcomes {
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
            Ok((id, Arc::new(Session { highest, used, outcomes: outcomes.into_iter().collect() })))
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

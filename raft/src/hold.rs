//! Who reads history, and from which event on: that stays until they are through.
//!
//! ```text
//! a reader: counted ─► is it here? ─ no: history_gone ─ yes: it stays        a trim: nobody before it? ─► it is gone ─► files go
//!                                                                                    └─ both at once, under one lock ─┘
//! ```

use crate::sync::lock;
use cvlan_core::id::Seq;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// All who read.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<BTreeMap<u64, Seq>>);

impl Readers {
    /// One more, from event `from` on.
    pub(crate) fn begin(self: &Arc<Self>, from: Seq) -> Reading {
        let mut all = lock(&self.0);
        let number = all.last_key_value().map_or(0, |(last, _)| last + 1);
        all.insert(number, before(from));
        Reading { readers: self.clone(), number }
    }

    /// Does it, unless somebody is to read what lies before this event; true where it was done.
    pub(crate) fn unless_before(&self, event: Seq, then: impl FnOnce()) -> bool {
        let all = lock(&self.0);
        let free = all.values().all(|from| *from >= event);
        if free {
            then();
        }
        free
    }

    /// The first event that is still to be read by anyone.
    pub(crate) fn from(&self) -> Seq {
        lock(&self.0).values().min().copied().unwrap_or(Seq(u64::MAX))
    }
}

/// The event before: between it and the next lies who the members are.
fn before(event: Seq) -> Seq {
    Seq(event.0.saturating_sub(1))
}

/// Somebody reads history: what is still to be read stays, whatever need not be kept any longer, until this is dropped.
#[derive(Debug)]
pub struct Reading {
    readers: Arc<Readers>,
    number: u64,
}

impl Reading {
    /// Everything before event `next` was read.
    pub fn at(&self, next: Seq) {
        lock(&self.readers.0).insert(self.number, before(next));
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        lock(&self.readers.0).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_reader_counts_until_it_is_through() {
        let readers = Arc::new(Readers::default());
        assert_eq!(readers.from(), Seq(u64::MAX));
        let (slow, fast) = (readers.begin(Seq(5)), readers.begin(Seq(1)));
        assert_eq!(readers.from(), Seq(0));
        fast.at(Seq(90));
        assert_eq!(readers.from(), Seq(4));
        drop(slow);
        let late = readers.begin(Seq(70));
        assert_eq!(readers.from(), Seq(69));
        let mut done = 0;
        assert!(!readers.unless_before(Seq(70), || done += 1) && readers.unless_before(Seq(69), || done += 1));
        assert_eq!(done, 1);
        drop((fast, late));
        assert_eq!(readers.from(), Seq(u64::MAX));
    }
}

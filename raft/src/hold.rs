//! Who reads history, and from which event on: that stays until they are through.

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
        all.insert(number, from);
        Reading { readers: self.clone(), number }
    }

    /// The first event that is still to be read by anyone.
    pub(crate) fn from(&self) -> Seq {
        lock(&self.0).values().min().copied().unwrap_or(Seq(u64::MAX))
    }
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
        lock(&self.readers.0).insert(self.number, next);
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
        assert_eq!(readers.from(), Seq(1));
        fast.at(Seq(90));
        assert_eq!(readers.from(), Seq(5));
        drop(slow);
        let late = readers.begin(Seq(70));
        assert_eq!(readers.from(), Seq(70));
        drop((fast, late));
        assert_eq!(readers.from(), Seq(u64::MAX));
    }
}

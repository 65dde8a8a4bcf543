//! Finds things by keys that come in no order: nodes by WireGuard key and by name, the tenant of a node.
//!
//! ```text
//! state after event 7 ─┐
//! state after event 8 ─┼─► one table: hash of the key ─► candidates
//! a state never agreed ┘
//! ```
//! In a persistent map each such insert copies another leaf and the way to it: that of a WireGuard key cost as much as
//! everything else that a new node changes. A table is not persistent: all copies of a state share it, and it only grows, so that it has what each
//! of them has, and more. Whoever asks looks at each candidate in the state that the question is about; what is not so there
//! is none. Nothing of the answer depends on what else is in the table, nor on its order.
//!
//! What is removed stays in the table. Once more is stale than is alive, or many candidates share a hash, the state that noticed it makes a table of its own
//! for itself and what follows it; others keep the old one.

use hashbrown::HashTable;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

/// Stale items that are not worth a new table: 24 KB.
const STALE_MIN: usize = 1024;

/// Candidates under one hash that are worth a new table: each is looked at by whoever asks. A name or a key that comes and goes
/// all the time has another node each time.
const ALIKE_MAX: usize = 256;

/// See the module.
#[derive(Clone)]
pub struct Finder<V> {
    table: Arc<RwLock<Table<V>>>,
    /// Keys of this state.
    len: usize,
    /// Removed since the table was made, on the way to this state.
    stale: usize,
}

struct Table<V> {
    items: HashTable<(u64, V)>,
    /// Under a secret of this process: nobody can choose keys of one hash.
    hasher: RandomState,
}

impl<V> Default for Finder<V> {
    fn default() -> Self {
        let table = Table { items: HashTable::new(), hasher: RandomState::new() };
        Self { table: Arc::new(RwLock::new(table)), len: 0, stale: 0 }
    }
}

impl<V: Copy + Eq> Finder<V> {
    /// One that has just these.
    pub(crate) fn of<K: Hash>(items: impl Iterator<Item = (K, V)>) -> Self {
        let mut finder = Self::default();
        items.for_each(|(key, value)| finder.insert(&key, value));
        finder
    }

    /// A key that this state did not have.
    pub(crate) fn insert(&mut self, key: &(impl Hash + ?Sized), value: V) {
        self.len += 1;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let item = (table.hasher.hash_one(key), value);
        let mut alike = 0;
        let same = |there: &(u64, V)| {
            alike += usize::from(there.0 == item.0);
            *there == item
        };
        table.items.entry(item.0, same, |(hash, _)| *hash).or_insert(item);
        if alike >= ALIKE_MAX {
            self.stale = usize::MAX;
        }
    }

    /// A key that this state had.
    pub(crate) fn remove(&mut self) {
        self.len = self.len.saturating_sub(1);
        self.stale = self.stale.saturating_add(1);
    }

    /// Time for a new table.
    pub(crate) fn due(&self) -> bool {
        self.stale > self.len.max(STALE_MIN)
    }

    /// The first candidate that is what was asked for.
    pub(crate) fn find<T>(&self, key: &(impl Hash + ?Sized), check: impl FnMut(V) -> Option<T>) -> Option<T> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let hash = table.hasher.hash_one(key);
        table.items.iter_hash(hash).filter(|(other, _)| *other == hash).map(|(_, value)| *value).find_map(check)
    }

    /// Keys of this state.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where this state has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All candidates of a key.
    fn of(finder: &Finder<u32>, key: &str) -> Vec<u32> {
        let mut found = Vec::new();
        let none: Option<()> = finder.find(key, |value| {
            found.push(value);
            None
        });
        assert_eq!(none, None);
        found.sort();
        found
    }

    #[test]
    fn what_one_copy_has_is_a_candidate_in_all() {
        let mut now = Finder::default();
        now.insert("a", 1);
        let mut lost = now.clone();
        lost.insert("a", 2);
        now.insert("b", 3);
        assert_eq!((of(&now, "a"), of(&lost, "b"), of(&now, "c")), (vec![1, 2], vec![3], vec![]));
        assert_eq!((now.len(), lost.len()), (2, 2));
        now.remove();
        now.insert("b", 3);
        assert_eq!((of(&now, "b"), now.len()), (vec![3], 2), "there and back is one candidate");
    }

    #[test]
    fn a_new_table_is_due_where_one_key_comes_and_goes() {
        let mut finder = Finder::of((0..100_000u32).map(|n| (n, n)));
        let due = (0..2 * ALIKE_MAX as u32).position(|n| {
            finder.insert("ci", n);
            finder.remove();
            finder.due()
        });
        assert_eq!(due, Some(ALIKE_MAX));
    }

    #[test]
    fn a_new_table_is_due_once_more_is_stale_than_alive() {
        let mut finder = Finder::default();
        let all = STALE_MIN * 3;
        (0..all as u32).for_each(|n| finder.insert(&n, n));
        let due = (0..all).position(|_| {
            finder.remove();
            finder.due()
        });
        assert_eq!(due, Some(all / 2), "half of them");
        let few = Finder::of([("a", 1u32), ("b", 2)].into_iter());
        assert_eq!((of(&few, "a"), few.len(), few.due()), (vec![1], 2, false));
    }
}

//! Finds things by keys that come in no order: nodes by WireGuard key and by name, the tenant of a node.
//!
//! ```text
//! state after event 7 ─┐
//! state after event 8 ─┼─► one table: hash of the key ─► candidates
//! a state never agreed ┘
//! ```
//! In a persistent map each such insert copies another leaf and the way to it: that of a WireGuard key cost as much as
//! everything else that a new node changes. A table is not persistent: all copies of a state share it, and it only grows, so that it has what each
//! of them has, but for each one's newest keys, and more. Whoever asks looks at each candidate in the state that the question is about; what is not so there
//! is none. Nothing of the answer depends on what else is in the table, nor on its order.
//!
//! The newest keys of a state are in a short list of its own first, and come into the table together: the memory that they go to
//! is in no cache, and the processor fetches it for many at once, but not over the lock of each.
//!
//! What is removed stays in the table. Once more is stale than is alive, or many candidates share a hash, the state that noticed it makes a table of its own
//! for itself and what follows it; others keep the old one.

use hashbrown::HashTable;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// Stale items that are not worth a new table: 24 KB.
const STALE_MIN: usize = 1024;

/// Candidates under one hash that are worth a new table: each is looked at by whoever asks. A name or a key that comes and goes
/// all the time has another node each time.
const ALIKE_MAX: usize = 256;

/// Newest keys that are not in the table yet, at most.
const NEWEST_MAX: usize = 32;

/// See the module.
#[derive(Clone)]
pub struct Finder<V> {
    table: Arc<RwLock<Table<V>>>,
    /// Hash and value of what this state has and the table perhaps not.
    newest: Vec<(u64, V)>,
    /// Makes the hashes: that of the table.
    hasher: RandomState,
    /// Keys of this state.
    len: usize,
    /// Removed since the table was made, on the way to this state.
    stale: usize,
}

/// Hashes are under a secret of this process: nobody can choose keys of one hash.
type Table<V> = HashTable<(u64, V)>;

impl<V> Default for Finder<V> {
    fn default() -> Self {
        let (table, hasher) = (Arc::new(RwLock::new(HashTable::new())), RandomState::new());
        Self { table, newest: Vec::new(), hasher, len: 0, stale: 0 }
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
        self.newest.push((self.hasher.hash_one(key), value));
        if self.newest.len() >= NEWEST_MAX {
            self.settle();
        }
    }

    /// Puts the newest keys into the table.
    fn settle(&mut self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut most = 0;
        for item in self.newest.drain(..) {
            let mut alike = 0;
            let same = |there: &(u64, V)| {
                alike += usize::from(there.0 == item.0);
                *there == item
            };
            table.entry(item.0, same, |(hash, _)| *hash).or_insert(item);
            most = most.max(alike);
        }
        if most >= ALIKE_MAX {
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
    pub(crate) fn find<T>(&self, key: &(impl Hash + ?Sized), mut check: impl FnMut(V) -> Option<T>) -> Option<T> {
        let hash = self.hasher.hash_one(key);
        let mut check = |(other, value): &(u64, V)| if *other == hash { check(*value) } else { None };
        let newest = self.newest.iter().find_map(&mut check);
        newest.or_else(|| self.read().iter_hash(hash).find_map(&mut check))
    }

    /// True where none of these has a candidate.
    pub(crate) fn has_none<K: Hash>(&self, keys: impl Iterator<Item = K>) -> bool {
        // All hashes first: the memory of one is fetched while the next are looked up.
        let hashes: Vec<u64> = keys.map(|key| self.hasher.hash_one(key)).collect();
        let table = self.read();
        let known = |hash: &u64| table.find(*hash, |(other, _)| other == hash).is_some();
        let new = |hash: &u64| self.newest.iter().any(|(other, _)| other == hash);
        hashes.iter().filter(|hash| known(hash)).count() == 0 && !hashes.iter().any(new)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table<V>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
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
        // What a copy has in its list may be in the table already.
        found.dedup();
        found
    }

    #[test]
    fn what_one_copy_has_is_a_candidate_in_all() {
        let mut now = Finder::default();
        now.insert("a", 1);
        let mut lost = now.clone();
        lost.insert("a", 2);
        now.insert("b", 3);
        assert_eq!(
            (of(&now, "a"), of(&lost, "a"), of(&lost, "b"), of(&now, "c")),
            (vec![1], vec![1, 2], vec![], vec![])
        );
        now.settle();
        lost.settle();
        assert_eq!((of(&now, "a"), of(&lost, "b"), of(&now, "c")), (vec![1, 2], vec![3], vec![]));
        assert_eq!((now.len(), lost.len()), (2, 2));
        now.remove();
        now.insert("b", 3);
        assert_eq!((of(&now, "b"), now.len()), (vec![3], 2), "there and back is one candidate");
    }

    #[test]
    fn a_key_is_found_in_the_list_and_in_the_table() {
        let mut finder = Finder::default();
        for n in 0..3 * NEWEST_MAX as u32 + 5 {
            let new: Vec<String> = (n..n + 3).map(|n| n.to_string()).collect();
            assert!(finder.has_none(new.iter()), "{n}");
            finder.insert(&new[0], n);
            let before = finder.clone();
            for known in 0..=n {
                assert_eq!(of(&before, &known.to_string()), [known], "{known} of {n}");
                assert!(!before.has_none([&new[1], &known.to_string()].into_iter()), "{known} of {n}");
            }
        }
        assert_eq!(finder.newest.len(), 5);
    }

    #[test]
    fn a_new_table_is_due_where_one_key_comes_and_goes() {
        let mut finder = Finder::of((0..100_000u32).map(|n| (n, n)));
        let due = (0..2 * ALIKE_MAX as u32).position(|n| {
            finder.insert("ci", n);
            finder.remove();
            finder.due()
        });
        // As many as are in the table by then.
        assert_eq!(due, Some(ALIKE_MAX.next_multiple_of(NEWEST_MAX) + NEWEST_MAX - 1));
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

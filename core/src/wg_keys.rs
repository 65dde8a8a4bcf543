//! Which node has which WireGuard key: an index over nodes, small because it is dear.
//!
//! Keys are random, so that each insert touches another leaf of a persistent map, and copies it: the fewer bytes an entry
//! has, the cheaper that is. An entry is 8 bytes of SHA-256 of the key, and the node; whoever asks compares the node's own
//! key. Anybody may choose keys that begin alike, nobody many whose hashes do.
//!
//! While a log is replayed nobody asks: changes are gathered, sorted, and put in by the thousands, so that those of one leaf
//! come together.

use crate::id::NodeId;
use crate::state::WgKey;
use imbl::OrdSet;
use sha2::{Digest, Sha256};

/// Changes that are gathered before they are put in: 2 MB.
const LATE_MAX: usize = 64 << 10;

/// Hash of a key, and its node.
type Item = (u64, NodeId);

/// The index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WgKeys {
    items: OrdSet<Item>,
    /// Changes in their order, true where the item is there; while they are gathered.
    late: Option<Vec<(Item, bool)>>,
}

impl WgKeys {
    pub(crate) fn insert(&mut self, key: &WgKey, node: NodeId) {
        self.change((hash(key), node), true);
    }

    pub(crate) fn remove(&mut self, key: &WgKey, node: NodeId) {
        self.change((hash(key), node), false);
    }

    /// Gathers changes from now on, until [`WgKeys::settle`]: in between, questions are answered from before.
    pub(crate) fn gather(&mut self) {
        self.late.get_or_insert_default();
    }

    /// Puts in what was gathered, and gathers no more.
    pub(crate) fn settle(&mut self) {
        if let Some(mut late) = self.late.take() {
            self.put(&mut late);
        }
    }

    fn change(&mut self, item: Item, there: bool) {
        match &mut self.late {
            Some(late) => {
                late.push((item, there));
                if late.len() >= LATE_MAX {
                    let mut full = std::mem::take(late);
                    self.put(&mut full);
                    full.clear();
                    self.late = Some(full);
                }
            }
            None => self.set(item, there),
        }
    }

    /// The sort is stable: of one item's changes the last one is the last.
    fn put(&mut self, changes: &mut [(Item, bool)]) {
        changes.sort_by_key(|(item, _)| *item);
        for (item, there) in changes {
            self.set(*item, *there);
        }
    }

    fn set(&mut self, item: Item, there: bool) {
        if there {
            self.items.insert(item);
        } else {
            self.items.remove(&item);
        }
    }

    /// Nodes one of which may have this key.
    pub(crate) fn candidates(&self, key: &WgKey) -> impl Iterator<Item = NodeId> + '_ {
        let hash = hash(key);
        self.items.range((hash, NodeId::default())..).take_while(move |(h, _)| *h == hash).map(|(_, node)| *node)
    }

    /// Keys known.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True where no node has one.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

fn hash(key: &WgKey) -> u64 {
    let hash: [u8; 32] = Sha256::digest(key).into();
    hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn equal_hashes_are_told_apart_by_the_node() {
        let node = |n| NodeId(Uuid::from_u128(n));
        let mut keys = WgKeys::default();
        keys.insert(&[1; 32], node(1));
        keys.insert(&[2; 32], node(2));
        // Two nodes under one hash, as if their keys collided.
        keys.items.insert((hash(&[1; 32]), node(3)));
        assert_eq!(keys.candidates(&[1; 32]).collect::<Vec<_>>(), [node(1), node(3)]);
        assert_eq!(keys.candidates(&[9; 32]).count(), 0);
        keys.remove(&[1; 32], node(1));
        assert_eq!(keys.candidates(&[1; 32]).collect::<Vec<_>>(), [node(3)]);
        assert_eq!(keys.candidates(&[2; 32]).collect::<Vec<_>>(), [node(2)]);
    }

    #[test]
    fn what_is_gathered_is_what_was_put_in_at_once() {
        let node = |n: u64| NodeId(Uuid::from_u128(u128::from(n) << 64 | 7));
        let (mut late, mut once) = (WgKeys::default(), WgKeys::default());
        late.insert(&[3; 32], node(3));
        once.insert(&[3; 32], node(3));
        late.gather();
        for n in 0..LATE_MAX as u64 + 5_000 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(n % 9_001).to_le_bytes());
            for keys in [&mut late, &mut once] {
                match n % 3 {
                    0 => keys.remove(&key, node(n % 9_001)),
                    _ => keys.insert(&key, node(n % 9_001)),
                }
            }
        }
        assert_ne!(late.items, once.items);
        late.settle();
        assert_eq!(late, once);
        assert!(once.len() > 3_000 && once.len() < 9_001);
    }
}

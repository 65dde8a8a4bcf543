//! Which node has which WireGuard key: an index over nodes, small because it is dear.
//!
//! Keys are random, so that each insert touches another leaf of a persistent map, and copies it: the fewer bytes an entry
//! has, the cheaper that is. An entry is 8 bytes of SHA-256 of the key, and the node; whoever asks compares the node's own
//! key. Anybody may choose keys that begin alike, nobody many whose hashes do.

use crate::id::NodeId;
use crate::state::WgKey;
use imbl::OrdSet;
use sha2::{Digest, Sha256};

/// (hash of the key, node).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WgKeys(OrdSet<(u64, NodeId)>);

impl WgKeys {
    pub(crate) fn insert(&mut self, key: &WgKey, node: NodeId) {
        self.0.insert((hash(key), node));
    }

    pub(crate) fn remove(&mut self, key: &WgKey, node: NodeId) {
        self.0.remove(&(hash(key), node));
    }

    /// Nodes one of which may have this key.
    pub(crate) fn candidates(&self, key: &WgKey) -> impl Iterator<Item = NodeId> + '_ {
        let hash = hash(key);
        self.0.range((hash, NodeId::default())..).take_while(move |(h, _)| *h == hash).map(|(_, node)| *node)
    }

    /// Keys known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where no node has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
        keys.0.insert((hash(&[1; 32]), node(3)));
        assert_eq!(keys.candidates(&[1; 32]).collect::<Vec<_>>(), [node(1), node(3)]);
        assert_eq!(keys.candidates(&[9; 32]).count(), 0);
        keys.remove(&[1; 32], node(1));
        assert_eq!(keys.candidates(&[1; 32]).collect::<Vec<_>>(), [node(3)]);
        assert_eq!(keys.candidates(&[2; 32]).collect::<Vec<_>>(), [node(2)]);
    }
}

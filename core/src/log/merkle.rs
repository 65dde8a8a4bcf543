//! The append-only Merkle tree over events, exactly as RFC 9162 §2.1 has it, so that standard tools work.
//!
//! The state carries only the compact range: the roots of the full subtrees that make up the tree, biggest first,
//! one for each set bit of its size. Appending n leaves costs n + O(log n) hashes; the root costs O(log size).

use sha2::{Digest, Sha256};

/// One hash of the tree.
pub type Hash = [u8; 32];

/// Hash of a leaf: SHA-256(0x00 ‖ bytes).
pub fn leaf_hash(bytes: &[u8]) -> Hash {
    Sha256::new().chain_update([0u8]).chain_update(bytes).finalize().into()
}

/// Hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1u8]).chain_update(left).chain_update(right).finalize().into()
}

/// Roots of the full subtrees, biggest first. Two of equal size and equal content are equal.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CompactRange {
    size: u64,
    roots: Vec<Hash>,
}

impl CompactRange {
    /// Takes up a saved range; `None` unless there is one root for each set bit of `size`.
    pub fn new(size: u64, roots: Vec<Hash>) -> Option<Self> {
        (roots.len() as u32 == size.count_ones()).then_some(Self { size, roots })
    }

    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the full subtrees, biggest first.
    pub fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// Appends one leaf's bytes.
    pub fn push(&mut self, leaf: &[u8]) {
        self.push_hash(leaf_hash(leaf));
    }

    /// Appends a leaf by its hash.
    pub fn push_hash(&mut self, leaf: Hash) {
        self.carry(0, leaf);
    }

    /// Appends 2^level leaves by the root of their subtree; false where such a subtree cannot begin here, or is none.
    pub fn push_subtree(&mut self, level: u32, root: Hash) -> bool {
        let leaves = 1u64.checked_shl(level);
        let fits =
            leaves.is_some_and(|leaves| self.size.is_multiple_of(leaves) && self.size.checked_add(leaves).is_some());
        if fits {
            self.carry(level, root);
        }
        fits
    }

    fn carry(&mut self, level: u32, mut hash: Hash) {
        // As many merges as the size has trailing ones from there on: a carry in binary.
        for _ in 0..(self.size >> level).trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.roots.push(hash);
        self.size += 1 << level;
    }

    /// The tree's root; of no leaves, SHA-256 of nothing.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else { return Sha256::digest([]).into() };
        roots.fold(*last, |right, left| node_hash(left, &right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9162 §2.1.1, word for word: recursion on the largest power of two below n.
    fn reference(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [one] => leaf_hash(one),
            many => {
                let k = many.len().next_power_of_two() / 2;
                node_hash(&reference(&many[..k]), &reference(&many[k..]))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_the_rfc_at_every_size() {
        let leaves: Vec<Vec<u8>> = (0..200u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let mut range = CompactRange::default();
        for n in 0..leaves.len() {
            assert_eq!(range.root(), reference(&leaves[..n]), "size {n}");
            assert_eq!(CompactRange::new(n as u64, range.roots().to_vec()), Some(range.clone()));
            range.push(&leaves[n]);
        }
        assert_eq!(CompactRange::new(3, vec![[0; 32]]), None);
    }

    #[test]
    fn subtrees_stand_for_their_leaves() {
        let leaf = |n: u64| leaf_hash(&n.to_le_bytes());
        let range = |from: u64, to: u64| {
            let mut range = CompactRange::default();
            (from..to).for_each(|n| range.push_hash(leaf(n)));
            range
        };
        for size in 0..80u64 {
            for level in 0..7 {
                let mut both = range(0, size);
                let leaves = 1 << level;
                let fits = size % leaves == 0;
                assert_eq!(both.push_subtree(level, range(size, size + leaves).root()), fits, "{size}, level {level}");
                assert_eq!(both, range(0, if fits { size + leaves } else { size }));
            }
        }
        assert!(!range(0, 1).push_subtree(64, [0; 32]) && !range(0, 0).push_subtree(u32::MAX, [0; 32]));
    }
}

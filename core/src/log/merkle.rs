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
        let mut hash = leaf;
        // As many merges as the size has trailing ones: a carry in binary.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.roots.push(hash);
        self.size += 1;
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
}

//! Proofs about the tree (RFC 9162 §2.1.3 and §2.1.4): that an event is in it, that a later tree continues an earlier one.
//!
//! ```text
//! subtree(level, index) of full subtrees ─► inclusion(index, size), consistency(old, size) ─► hashes
//! hashes ─► included(leaf, index, head), continued(old head, head): the verifier needs nothing else
//! ```
//! Proofs are made from roots of full subtrees alone, as raft/ keeps them.

use super::merkle::{Hash, node_hash};

/// Root of the full subtree of 2^level leaves that begins at leaf index × 2^level.
pub trait Subtrees {
    /// Why one cannot be had.
    type Error;

    /// The root; asked for subtrees within the tree alone.
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// Root of the leaves from `from` to before `to`, of which there is one at least.
fn root_of<S: Subtrees + ?Sized>(tree: &S, from: u64, to: u64) -> Result<Hash, S::Error> {
    let leaves = to - from;
    if leaves.is_power_of_two() {
        let level = leaves.trailing_zeros();
        return tree.subtree(level, from >> level);
    }
    let left = split(leaves);
    Ok(node_hash(&root_of(tree, from, from + left)?, &root_of(tree, from + left, to)?))
}

/// The largest power of two below `leaves`, which are two at least.
fn split(leaves: u64) -> u64 {
    1 << (u64::BITS - 1 - (leaves - 1).leading_zeros())
}

/// Root of the first `size` leaves; `None` of none.
pub fn root<S: Subtrees + ?Sized>(tree: &S, size: u64) -> Result<Option<Hash>, S::Error> {
    if size == 0 { Ok(None) } else { root_of(tree, 0, size).map(Some) }
}

/// The full subtrees, as level and index, that the leaves from `from` to before `to` are made of, from left to right.
pub fn subtrees(from: u64, to: u64) -> Vec<(u32, u64)> {
    let (mut at, mut found) = (from, Vec::new());
    while at < to {
        let fits = u64::BITS - 1 - (to - at).leading_zeros();
        let level = at.trailing_zeros().min(fits);
        found.push((level, at >> level));
        at += 1 << level;
    }
    found
}

/// Audit path of leaf `index` (from 0) in the tree of the first `size` leaves: PATH(m, D\[n\]) of RFC 9162 §2.1.3.1. Empty
/// where there is no such leaf.
pub fn inclusion<S: Subtrees + ?Sized>(tree: &S, index: u64, size: u64) -> Result<Vec<Hash>, S::Error> {
    let (mut from, mut to, mut path) = (0, size, Vec::new());
    while index < size && to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push(root_of(tree, middle, to)?);
            to = middle;
        } else {
            path.push(root_of(tree, from, middle)?);
            from = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// Proof that the tree of the first `size` leaves continues that of the first `old`: PROOF(m, D\[n\]) of RFC 9162 §2.1.4.1.
/// Empty where there is nothing to prove: `old` is 0, or `size`, or beyond it.
pub fn consistency<S: Subtrees + ?Sized>(tree: &S, old: u64, size: u64) -> Result<Vec<Hash>, S::Error> {
    let (mut from, mut to, mut path) = (0, size, Vec::new());
    if old == 0 || old >= size {
        return Ok(path);
    }
    while old != to {
        let middle = from + split(to - from);
        if old <= middle {
            path.push(root_of(tree, middle, to)?);
            to = middle;
        } else {
            path.push(root_of(tree, from, middle)?);
            from = middle;
        }
    }
    // The verifier knows the old root where its leaves are one full subtree.
    if from > 0 {
        path.push(root_of(tree, from, to)?);
    }
    path.reverse();
    Ok(path)
}

/// Is this leaf at `index` (from 0) of the tree of `size` leaves with this root? RFC 9162 §2.1.3.2.
pub fn included(leaf: Hash, index: u64, size: u64, root: &Hash, path: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, leaf);
    for step in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(step, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, step);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Does the tree of `size` leaves with root `new` continue the one of `old_size` leaves with root `old`? RFC 9162 §2.1.4.2.
/// Every tree continues the empty one, which is to be asked for without a path.
pub fn continued(old_size: u64, old: &Hash, size: u64, new: &Hash, path: &[Hash]) -> bool {
    if old_size > size {
        return false;
    }
    if old_size == 0 {
        return path.is_empty();
    }
    if old_size == size {
        return path.is_empty() && old == new;
    }
    let (mut steps, mut at, mut last) = (path.iter(), old_size - 1, size - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let first = if old_size.is_power_of_two() { Some(old) } else { steps.next() };
    let Some(first) = first else { return false };
    let (mut as_old, mut as_new) = (*first, *first);
    for step in steps {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            (as_old, as_new) = (node_hash(step, &as_old), node_hash(step, &as_new));
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            as_new = node_hash(&as_new, step);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && as_old == *old && as_new == *new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::merkle::{CompactRange, leaf_hash};
    use std::convert::Infallible;

    struct Leaves(Vec<Hash>);

    impl Leaves {
        fn new(count: u64) -> Self {
            Self((0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect())
        }
    }

    impl Subtrees for Leaves {
        type Error = Infallible;
        fn subtree(&self, level: u32, index: u64) -> Result<Hash, Infallible> {
            let from = (index << level) as usize;
            if level == 0 {
                return Ok(self.0[from]);
            }
            let (Ok(left), Ok(right)) = (self.subtree(level - 1, 2 * index), self.subtree(level - 1, 2 * index + 1));
            Ok(node_hash(&left, &right))
        }
    }

    fn roots(leaves: &Leaves) -> Vec<Hash> {
        let mut range = CompactRange::default();
        let mut roots = vec![range.root()];
        for leaf in &leaves.0 {
            range.push_hash(*leaf);
            roots.push(range.root());
        }
        roots
    }

    const ALL: u64 = 70;

    #[test]
    fn leaves_are_cut_into_subtrees() {
        for from in 0..ALL {
            for to in from..ALL {
                let mut at = from;
                for (level, index) in subtrees(from, to) {
                    assert_eq!(index << level, at);
                    at += 1 << level;
                }
                assert_eq!(at, to);
            }
        }
        assert_eq!(subtrees(0, 6), [(2, 0), (1, 2)]);
        assert_eq!(subtrees(5, 5), []);
    }

    #[test]
    fn every_leaf_of_every_tree_is_proven_and_nothing_else_is() {
        let leaves = Leaves::new(ALL);
        let roots = roots(&leaves);
        for size in 1..=ALL {
            let head = &roots[size as usize];
            assert_eq!(root(&leaves, size), Ok(Some(*head)));
            for index in 0..size {
                let Ok(path) = inclusion(&leaves, index, size);
                let leaf = leaves.0[index as usize];
                assert!(included(leaf, index, size, head, &path), "{index} of {size}");
                assert!(!included(leaf_hash(b"other"), index, size, head, &path));
                assert!(!included(leaf, index, size, &roots[size as usize - 1], &path));
                for other in (0..size + 3).filter(|other| *other != index) {
                    assert!(!included(leaf, other, size, head, &path), "{index} as {other} of {size}");
                }
                for (n, _) in path.iter().enumerate() {
                    let mut bad = path.clone();
                    bad[n][0] ^= 1;
                    assert!(!included(leaf, index, size, head, &bad));
                    bad = path.clone();
                    bad.remove(n);
                    assert!(!included(leaf, index, size, head, &bad));
                }
                assert!(!included(leaf, index, size, head, &[path, vec![[7; 32]]].concat()));
            }
        }
        assert_eq!((root(&leaves, 0), inclusion(&leaves, 5, 5)), (Ok(None), Ok(Vec::new())));
    }

    #[test]
    fn every_tree_continues_those_before_it_and_no_other() {
        let leaves = Leaves::new(ALL);
        let roots = roots(&leaves);
        for size in 0..=ALL {
            for old in 0..=size {
                let (was, is) = (&roots[old as usize], &roots[size as usize]);
                let Ok(path) = consistency(&leaves, old, size);
                assert!(continued(old, was, size, is, &path), "{old} → {size}");
                assert!(!continued(size + 1, is, size, is, &path));
                if old == 0 || old == size {
                    assert!(path.is_empty());
                    continue;
                }
                assert!(!continued(old, &[7; 32], size, is, &path), "another old one: {old} → {size}");
                assert!(!continued(old, was, size, &[7; 32], &path), "another new one: {old} → {size}");
                assert!(!continued(old - 1, was, size, is, &path), "another size: {old} → {size}");
                for (n, _) in path.iter().enumerate() {
                    let mut bad = path.clone();
                    bad[n][31] ^= 1;
                    assert!(!continued(old, was, size, is, &bad));
                    bad = path.clone();
                    bad.remove(n);
                    assert!(!continued(old, was, size, is, &bad));
                }
                assert!(!continued(old, was, size, is, &[path, vec![[7; 32]]].concat()));
            }
        }
    }
}

//! The delta index of one scope: what changed after a checkpoint, at a cost that follows the changes.
//!
//! One row a thing: a newer change replaces its row. A tombstone carries only the id; there are at most
//! max([`TOMBSTONES_MIN`], 2 × live rows) of them, then the oldest go and the floor moves: an agent below the floor
//! gets the full map. By count, never by time, so that every replica agrees.

use crate::id::{NodeId, Seq};
use imbl::OrdSet;

/// Tombstones that are always kept.
pub const TOMBSTONES_MIN: usize = 1024;

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// The CVLAN's own record.
    Network,
    /// A machine in it.
    Node(NodeId),
}

/// `last change → what changed`, and what is gone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Scope {
    live: OrdSet<(Seq, Thing)>,
    gone: OrdSet<(Seq, NodeId)>,
    floor: Seq,
}

impl Scope {
    /// `thing` changed at `now`; `before` is its change before that, if it is not new.
    pub fn change(&mut self, before: Option<Seq>, now: Seq, thing: Thing) {
        if let Some(before) = before {
            self.live.remove(&(before, thing));
        }
        self.live.insert((now, thing));
    }

    /// The node, last changed at `before`, is gone since `now`.
    pub fn remove(&mut self, before: Seq, now: Seq, node: NodeId) {
        self.live.remove(&(before, Thing::Node(node)));
        self.gone.insert((now, node));
        while self.gone.len() > TOMBSTONES_MIN.max(2 * self.live.len()) {
            if let Some((seq, _)) = self.gone.remove_min() {
                self.floor = seq;
            }
        }
    }

    /// A checkpoint below this cannot be brought forward by a delta.
    pub fn floor(&self) -> Seq {
        self.floor
    }

    /// Things that changed after `seq`, oldest change first.
    pub fn changed_after(&self, seq: Seq) -> impl Iterator<Item = Thing> + '_ {
        self.live.range((after(seq), Thing::Network)..).map(|(_, thing)| *thing)
    }

    /// Nodes that are there.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.live.iter().filter_map(|(_, thing)| match thing {
            Thing::Network => None,
            Thing::Node(id) => Some(*id),
        })
    }

    /// Nodes gone after `seq`, oldest first.
    pub fn gone_after(&self, seq: Seq) -> impl Iterator<Item = NodeId> + '_ {
        self.gone.range((after(seq), NodeId::default())..).map(|(_, node)| *node)
    }

    /// True if anything changed after `seq`.
    pub fn any_after(&self, seq: Seq) -> bool {
        self.changed_after(seq).next().is_some() || self.gone_after(seq).next().is_some()
    }

    pub(crate) fn tombstones(&self) -> impl Iterator<Item = (Seq, NodeId)> + '_ {
        self.gone.iter().copied()
    }

    /// Takes up what a saved state held beside the live rows.
    pub(crate) fn restore(&mut self, floor: Seq, gone: impl IntoIterator<Item = (Seq, NodeId)>) {
        self.floor = floor;
        self.gone = gone.into_iter().collect();
    }
}

fn after(seq: Seq) -> Seq {
    Seq(seq.0.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn node(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    #[test]
    fn a_newer_change_replaces_the_row() {
        let mut s = Scope::default();
        s.change(None, Seq(1), Thing::Node(node(1)));
        s.change(None, Seq(2), Thing::Node(node(2)));
        s.change(Some(Seq(1)), Seq(3), Thing::Node(node(1)));
        assert_eq!(s.changed_after(Seq(0)).collect::<Vec<_>>(), [Thing::Node(node(2)), Thing::Node(node(1))]);
        assert_eq!(s.changed_after(Seq(2)).collect::<Vec<_>>(), [Thing::Node(node(1))]);
        s.remove(Seq(3), Seq(4), node(1));
        assert_eq!((s.changed_after(Seq(2)).count(), s.gone_after(Seq(3)).collect::<Vec<_>>()), (0, vec![node(1)]));
        assert!(!s.any_after(Seq(4)));
    }

    #[test]
    fn tombstones_are_bounded_and_the_floor_moves() {
        let mut s = Scope::default();
        for i in 0..3000u64 {
            s.change(None, Seq(2 * i + 1), Thing::Node(node(i.into())));
            s.remove(Seq(2 * i + 1), Seq(2 * i + 2), node(i.into()));
        }
        assert_eq!(s.gone_after(Seq(0)).count(), TOMBSTONES_MIN);
        assert_eq!(s.floor(), Seq(2 * (3000 - TOMBSTONES_MIN as u64)));
    }
}

//! The head of the log: everything that a fold over the events yields, the machine's state among it.
//!
//! ```text
//! entry ─► fits(epoch, first_seq, prev_root)? ─ no ─► skipped, on every replica alike
//!                      │ yes
//!                      ▼
//!          fold(event) for each: sessions, time, machine ─► grow(leaves): tree, root ─► the next entry's prev_root
//! ```
//! Invariants: between entries, `seq` is the number of leaves in `tree`; equal histories give equal bytes from [`Head::save`]; a clone is
//! O(1) in the state's size.

use crate::sessions::Sessions;
use crate::types::Membership;
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use cvlan_core::log::{CompactRange, Hash};
use cvlan_core::machine::{Machine, Once, SystemFact, Unreadable};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Version of [`Head::save`].
pub const HEAD_FORMAT: u8 = 1;

/// Who takes part: openraft's voters (two sets while they change) and everybody's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Sets of voters; a decision needs a majority of each.
    pub voters: Vec<BTreeSet<u64>>,
    /// Address of each voter and learner.
    pub addresses: BTreeMap<u64, String>,
}

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            addresses: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

/// What the log amounts to after its event `seq`.
#[derive(Clone, Debug)]
pub struct Head<S> {
    /// The log's incarnation; all zero before the bootstrap.
    pub epoch: Epoch,
    /// Events so far.
    pub seq: Seq,
    /// Time of the last event, milliseconds since 1970 (UTC).
    pub time_ms: u64,
    /// Merkle tree over the events.
    pub tree: CompactRange,
    /// Root of `tree`.
    pub root: [u8; 32],
    /// Outcomes of numbered commands.
    pub sessions: Sessions,
    /// Members of the cluster.
    pub members: Arc<Members>,
    /// No event that came with a higher level of features is in the log.
    pub feature_level: u32,
    /// The machine's state.
    pub machine: S,
}

impl<S: Default> Default for Head<S> {
    fn default() -> Self {
        let tree = CompactRange::default();
        Self {
            epoch: Epoch::default(),
            seq: Seq(0),
            time_ms: 0,
            root: tree.root(),
            tree,
            sessions: Sessions::default(),
            members: Arc::default(),
            feature_level: 1,
            machine: S::default(),
        }
    }
}

/// What a fold found for raft/ itself.
#[derive(Clone, Debug)]
pub(crate) enum Noted<S> {
    /// A `CheckpointOpened`: the head right after it, once the tree has grown.
    Opened(Head<S>),
    /// A `Checkpointed`: what the leader found.
    Checkpointed { seq: Seq, root: [u8; 32], digest: [u8; 32] },
}

impl<S> Head<S> {
    /// Up to where this head has seen everything.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { epoch: self.epoch, seq: self.seq }
    }

    /// True unless an entry lost a race: it continues this very history, which is one of `epoch`. The first entry of all
    /// brings the epoch; the first of a later epoch says which one it continues.
    pub(crate) fn fits(&self, epoch: Epoch, first_seq: Seq, prev_root: &[u8]) -> bool {
        let nothing_yet = self.seq.0 == 0 && self.epoch == Epoch::default();
        (self.epoch == epoch || nothing_yet) && first_seq.0 == self.seq.0 + 1 && prev_root == self.root
    }
}

impl<S: Clone> Head<S> {
    /// Folds the events of one entry that [`Head::fits`], each with the hash of its leaf.
    pub(crate) fn fold_entry<'e, M>(
        &mut self,
        epoch: Epoch,
        events: impl Iterator<Item = (&'e M::Event, Hash)>,
    ) -> Vec<Noted<S>>
    where
        M: Machine<State = S>,
    {
        self.epoch = epoch;
        let (mut noted, mut leaves) = (Vec::new(), Vec::new());
        let mut before: Option<(&M::Event, Option<Once>)> = None;
        for (event, leaf) in events {
            let once = self.fold::<M>(event, before, &mut noted);
            before = Some((event, once));
            leaves.push(leaf);
        }
        self.grow(leaves, &mut noted);
        noted
    }

    /// Adds the leaves of the events that were folded last to the tree. What was noted at one of them gets the tree as it was there.
    pub(crate) fn grow(&mut self, leaves: Vec<Hash>, noted: &mut [Noted<S>]) {
        let opened = noted.iter_mut().filter_map(|note| match note {
            Noted::Opened(head) => Some(head),
            Noted::Checkpointed { .. } => None,
        });
        let mut opened = opened.peekable();
        for leaf in leaves {
            self.tree.push_hash(leaf);
            if let Some(head) = opened.next_if(|head| head.seq.0 == self.tree.size()) {
                head.tree = self.tree.clone();
                head.root = head.tree.root();
            }
        }
        self.root = self.tree.root();
    }

    /// Folds one event, without its leaf; `before` is the one before it in the same entry and its command's number. Returns
    /// this one's command's number.
    pub(crate) fn fold<M>(
        &mut self,
        event: &M::Event,
        before: Option<(&M::Event, Option<Once>)>,
        noted: &mut Vec<Noted<S>>,
    ) -> Option<Once>
    where
        M: Machine<State = S>,
    {
        self.seq.0 += 1;
        self.time_ms = self.time_ms.max(M::time_ms(event));
        let once = match (M::event_once(event), before) {
            (Some(once), _) => {
                self.sessions.note(once, self.seq);
                Some(once)
            }
            (None, Some((previous, once))) if M::same_command(previous, event) => {
                if let Some(once) = once {
                    self.sessions.extend(once);
                }
                once
            }
            (None, _) => None,
        };
        M::apply(&mut self.machine, event);
        match M::event_fact(event) {
            Some(SystemFact::CheckpointOpened) => noted.push(Noted::Opened(self.clone())),
            Some(SystemFact::Checkpointed { seq, root, digest }) => {
                noted.push(Noted::Checkpointed { seq, root, digest });
            }
            Some(_) | None => {}
        }
        if let Some(level) = M::event_level(event) {
            self.feature_level = self.feature_level.max(level);
        }
        once
    }

    /// The canonical bytes: equal heads give equal bytes on every replica. All numbers little-endian.
    ///
    /// ```text
    /// u8 format │ 16 epoch │ u64 seq │ u64 time │ u32 feature level │ tree: u64 size, roots │ members │ sessions │ machine
    /// ```
    pub fn save<M: Machine<State = S>>(&self) -> Vec<u8> {
        let mut out = vec![HEAD_FORMAT];
        out.extend_from_slice(&self.epoch.0);
        out.extend_from_slice(&self.seq.0.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.feature_level.to_le_bytes());
        out.extend_from_slice(&self.tree.size().to_le_bytes());
        for root in self.tree.roots() {
            out.extend_from_slice(root);
        }
        put_len(&mut out, self.members.voters.len());
        for set in &self.members.voters {
            put_len(&mut out, set.len());
            for id in set {
                out.extend_from_slice(&id.to_le_bytes());
            }
        }
        put_len(&mut out, self.members.addresses.len());
        for (id, address) in &self.members.addresses {
            out.extend_from_slice(&id.to_le_bytes());
            put_len(&mut out, address.len());
            out.extend_from_slice(address.as_bytes());
        }
        self.sessions.save(&mut out);
        M::save(&self.machine, &mut out);
        out
    }

    /// Reads what [`Head::save`] wrote.
    pub fn load<M: Machine<State = S>>(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut from = Reader(bytes);
        let format = from.take::<1>()?[0];
        if format != HEAD_FORMAT {
            return Err(unreadable(format!("format {format} is not known to this version")));
        }
        let epoch = Epoch(from.take()?);
        let seq = Seq(from.u64()?);
        let time_ms = from.u64()?;
        let feature_level = u32::from_le_bytes(from.take()?);
        let size = from.u64()?;
        let roots = (0..size.count_ones()).map(|_| from.take::<32>()).collect::<Result<Vec<_>, _>>()?;
        let tree = CompactRange::new(size, roots).ok_or_else(|| unreadable("the tree's roots".into()))?;
        if size != seq.0 {
            return Err(unreadable(format!("{size} leaves for {seq} events")));
        }
        let voters = from.list(|from| Ok(from.list(Reader::u64)?.into_iter().collect()))?;
        let addresses = from.list(|from| Ok((from.u64()?, from.text()?)))?.into_iter().collect();
        let sessions = Sessions::load(&mut from)?;
        let machine = M::load(from.0)?;
        let members = Arc::new(Members { voters, addresses });
        Ok(Self { epoch, seq, time_ms, root: tree.root(), tree, sessions, members, feature_level, machine })
    }

    /// SHA-256 of [`Head::save`]: equal on every replica at the same event.
    pub fn digest<M: Machine<State = S>>(&self) -> [u8; 32] {
        Sha256::digest(self.save::<M>()).into()
    }
}

pub(crate) fn unreadable(detail: String) -> Unreadable {
    Unreadable { what: "head", detail }
}

/// Lengths are u32: no list in a head comes near it.
pub(crate) fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

/// Takes fields off the front of saved bytes.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| unreadable("cut off".into()))?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Unreadable> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn len(&mut self) -> Result<usize, Unreadable> {
        self.take().map(|b| u32::from_le_bytes(b) as usize)
    }

    pub(crate) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Unreadable>,
    ) -> Result<Vec<T>, Unreadable> {
        (0..self.len()?).map(|_| item(self)).collect()
    }

    fn text(&mut self) -> Result<String, Unreadable> {
        let len = self.len()?;
        let (text, rest) = self.0.split_at_checked(len).ok_or_else(|| unreadable("cut off".into()))?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| unreadable("an address is no text".into()))
    }
}

//! Checkpoints: what this replica found at a `CheckpointOpened`, beside what the leader attested. A difference means
//! that apply went wrong somewhere: the member serves no more.

use crate::sync::lock;
use crate::types::{Cfg, Once};
use cvlan_core::id::Seq;
use openraft::AsyncRuntime;
use openraft::async_runtime::OneshotSender;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Checkpoints remembered.
const KEPT: usize = 64;

/// Root and digest at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) root: [u8; 32],
    pub(crate) digest: [u8; 32],
}

struct Inner<RT: AsyncRuntime> {
    own: BTreeMap<Seq, Found>,
    attested: BTreeMap<Seq, Found>,
    waiting: Vec<(Seq, Once<RT, Found>)>,
}

/// See the module.
pub(crate) struct Digests<RT: AsyncRuntime> {
    inner: Mutex<Inner<RT>>,
    /// The event at which this replica differs; 0 for none.
    diverged: AtomicU64,
}

impl<RT: AsyncRuntime> Default for Digests<RT> {
    fn default() -> Self {
        let inner = Inner { own: BTreeMap::new(), attested: BTreeMap::new(), waiting: Vec::new() };
        Self { inner: Mutex::new(inner), diverged: AtomicU64::new(0) }
    }
}

impl<RT: AsyncRuntime> Digests<RT> {
    /// What this replica found.
    pub(crate) fn own(&self, seq: Seq, found: Found) {
        let mut inner = lock(&self.inner);
        keep(&mut inner.own, seq, found);
        let (ready, waiting) = std::mem::take(&mut inner.waiting).into_iter().partition(|(at, _)| *at == seq);
        inner.waiting = waiting;
        self.compare(&inner, seq);
        drop(inner);
        let ready: Vec<(Seq, Once<RT, Found>)> = ready;
        for (_, tx) in ready {
            let _ = tx.send(found);
        }
    }

    /// What the leader attested.
    pub(crate) fn attested(&self, seq: Seq, found: Found) {
        let mut inner = lock(&self.inner);
        keep(&mut inner.attested, seq, found);
        self.compare(&inner, seq);
    }

    /// The newest checkpoint that was attested since this member started.
    pub(crate) fn newest(&self) -> Option<Seq> {
        lock(&self.inner).attested.last_key_value().map(|(seq, _)| *seq)
    }

    /// Waits for what this replica finds at `seq`.
    pub(crate) fn wait(&self, seq: Seq) -> OneshotReceiverOf<Cfg<RT>, Found> {
        let (tx, rx) = Cfg::<RT>::oneshot();
        let mut inner = lock(&self.inner);
        match inner.own.get(&seq).copied() {
            Some(found) => drop(tx.send(found)),
            None => inner.waiting.push((seq, tx)),
        }
        rx
    }

    /// The event at which this replica was found to differ.
    pub(crate) fn diverged(&self) -> Option<Seq> {
        Some(Seq(self.diverged.load(Relaxed))).filter(|seq| seq.0 > 0)
    }

    fn compare(&self, inner: &Inner<RT>, seq: Seq) {
        if let (Some(own), Some(attested)) = (inner.own.get(&seq), inner.attested.get(&seq))
            && own != attested
        {
            tracing::error!(%seq, "this replica's state differs from what the leader attested");
            self.diverged.store(seq.0, Relaxed);
        }
    }
}

fn keep(map: &mut BTreeMap<Seq, Found>, seq: Seq, found: Found) {
    map.insert(seq, found);
    while map.len() > KEPT {
        map.pop_first();
    }
}

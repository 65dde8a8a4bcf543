//! Who is connected here: sync streams by scope, for wake-ups, and by node, for presence.
//!
//! ```text
//!  applied entry ─► scopes it touched ─► the streams in them: wake            one lock, no task in between
//!  stream opens ─► by node: an older one of the same node is superseded ─┐
//!  stream ends, or the log says something of its node ───────────────────┴─► unsettled, for `presence`
//! ```
//! A newer stream goes on with the session of the one that it supersedes: the node stayed here.

use cvlan_core::id::{CvlanId, NodeId, TenantId};
use cvlan_core::machine::Machine;
use cvlan_core::map::scopes;
use cvlan_core::presence;
use cvlan_core::rules::Key;
use cvlan_core::sync::ENDPOINTS_MS;
use cvlan_core::{Rules, State};
use cvlan_proto::v1::Event;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

type Scope = (TenantId, CvlanId);

/// One open stream.
pub struct Stream {
    n: u64,
    session: u64,
    node: NodeId,
    scope: Scope,
    /// Something changed in its scope, or it is superseded.
    pub wake: Notify,
    superseded: AtomicBool,
    /// The log took its session.
    told: AtomicBool,
}

impl Stream {
    /// A newer stream of the same node took its place.
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Relaxed)
    }
}

#[derive(Default)]
struct Inner {
    last: u64,
    by_scope: HashMap<Scope, HashMap<u64, Arc<Stream>>>,
    by_node: HashMap<NodeId, Arc<Stream>>,
    /// When nodes may say again where they are; of nodes in the log alone, so it is bounded by them.
    endpoints_after_ms: HashMap<NodeId, u64>,
    /// The last time that a node said where it is, by a number of its own.
    endpoints_said: HashMap<NodeId, u64>,
    /// Nodes of which the log may not say what is so here; bounded as those.
    unsettled: HashSet<NodeId>,
}

/// The registry.
pub struct Streams {
    inner: Mutex<Inner>,
    online: AtomicUsize,
    /// False until the first stream: nothing to look for.
    ever: AtomicBool,
    /// What sessions are counted from.
    base: u64,
    /// Something is unsettled.
    pub unsettled: Notify,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            online: AtomicUsize::new(0),
            ever: AtomicBool::new(false),
            base: u64::from_be_bytes(crate::random::bytes()),
            unsettled: Notify::new(),
        }
    }
}

impl Streams {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a stream; ends when the guard is dropped.
    pub fn open(self: &Arc<Self>, tenant: TenantId, cvlan: CvlanId, node: NodeId) -> Open {
        let scope = (tenant, cvlan);
        self.ever.store(true, Relaxed);
        let mut inner = self.inner();
        inner.last += 1;
        let n = inner.last;
        let session = inner.by_node.get(&node).map_or(self.base.wrapping_add(n), |older| older.session);
        let stream = Arc::new(Stream {
            n,
            session,
            node,
            scope,
            wake: Notify::new(),
            superseded: AtomicBool::new(false),
            told: AtomicBool::new(false),
        });
        inner.by_scope.entry(scope).or_default().insert(n, stream.clone());
        if let Some(older) = inner.by_node.insert(node, stream.clone()) {
            older.superseded.store(true, Relaxed);
            older.wake.notify_one();
        }
        inner.unsettled.insert(node);
        self.online.store(inner.by_node.len(), Relaxed);
        drop(inner);
        self.unsettled.notify_one();
        Open { streams: self.clone(), stream }
    }

    fn close(&self, stream: &Stream) {
        let mut inner = self.inner();
        if let Some(scope) = inner.by_scope.get_mut(&stream.scope) {
            scope.remove(&stream.n);
            if scope.is_empty() {
                inner.by_scope.remove(&stream.scope);
            }
        }
        if inner.by_node.get(&stream.node).is_some_and(|s| s.n == stream.n) {
            inner.by_node.remove(&stream.node);
            inner.endpoints_said.remove(&stream.node);
            inner.unsettled.insert(stream.node);
        }
        self.online.store(inner.by_node.len(), Relaxed);
        drop(inner);
        self.unsettled.notify_one();
    }

    /// Wakes the streams in the scopes that these events touched; `state` is the one after them. Without events it came as
    /// a snapshot: everything may have changed.
    pub fn applied(&self, state: &State, events: &[Event]) {
        if !self.ever.load(Relaxed) {
            return;
        }
        if events.is_empty() {
            for stream in self.inner().by_node.values() {
                stream.wake.notify_one();
            }
            return;
        }
        let touched: BTreeSet<Scope> = events.iter().filter_map(|e| scopes(state, e)).collect();
        let told = events.iter().filter_map(presence::transitions).flatten();
        let told: Vec<NodeId> = told.map(|t| NodeId::of(&t.node_id)).collect();
        if touched.is_empty() && told.is_empty() {
            return;
        }
        let mut inner = self.inner();
        for node in told {
            if inner.by_node.contains_key(&node) {
                inner.unsettled.insert(node);
                self.unsettled.notify_one();
            }
        }
        for scope in &touched {
            for stream in inner.by_scope.get(scope).into_iter().flat_map(HashMap::values) {
                stream.wake.notify_one();
            }
        }
        if !inner.endpoints_after_ms.is_empty() {
            for key in events.iter().flat_map(Rules::touched) {
                if let Key::Node(_, node) = key
                    && state.node_find(node).is_none()
                {
                    inner.endpoints_after_ms.remove(&node);
                }
            }
        }
    }

    /// In how many ms endpoints of this node may become an event again, however often it connects; 0 = now.
    pub fn endpoints_wait_ms(&self, node: NodeId, now_ms: u64) -> u64 {
        let after = self.inner().endpoints_after_ms.get(&node).copied();
        // A clock that went back does not silence a node.
        after.unwrap_or_default().saturating_sub(now_ms).min(ENDPOINTS_MS)
    }

    /// Endpoints of this node become an event now.
    pub fn endpoints_taken(&self, node: NodeId, now_ms: u64) {
        self.inner().endpoints_after_ms.insert(node, now_ms + ENDPOINTS_MS);
    }

    /// It says where it is; the number of this time. Of one without a stream (it polls) it is 0: it says so again by itself.
    pub fn endpoints_said(&self, node: NodeId) -> u64 {
        let mut inner = self.inner();
        if !inner.by_node.contains_key(&node) {
            return 0;
        }
        inner.last += 1;
        let said = inner.last;
        inner.endpoints_said.insert(node, said);
        said
    }

    /// True while its stream is open, and it has said nothing since.
    pub fn endpoints_stand(&self, node: NodeId, said: u64) -> bool {
        self.inner().endpoints_said.get(&node) == Some(&said)
    }

    /// Nodes with an open stream.
    pub fn online_count(&self) -> usize {
        self.online.load(Relaxed)
    }

    /// The node's newest stream here, if one is open.
    pub fn session(&self, node: NodeId) -> Option<presence::Open> {
        if self.online_count() == 0 {
            return None;
        }
        let stream = self.inner().by_node.get(&node)?.clone();
        Some(presence::Open { session: stream.session, told: stream.told.load(Relaxed) })
    }

    /// The log took this session.
    pub fn told(&self, node: NodeId, session: u64) {
        if let Some(stream) = self.inner().by_node.get(&node).filter(|stream| stream.session == session) {
            stream.told.store(true, Relaxed);
        }
    }

    /// Unsettled nodes, at most so many; they count as settled from now on.
    pub fn unsettled_take(&self, most: usize) -> Vec<NodeId> {
        let mut inner = self.inner();
        let taken: Vec<NodeId> = inner.unsettled.iter().take(most).copied().collect();
        for node in &taken {
            inner.unsettled.remove(node);
        }
        if !inner.unsettled.is_empty() {
            self.unsettled.notify_one();
        }
        taken
    }

    /// These are to be looked at (again).
    pub fn unsettled_put(&self, nodes: impl IntoIterator<Item = NodeId>) {
        self.inner().unsettled.extend(nodes);
        self.unsettled.notify_one();
    }

    /// Nodes with an open stream.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.inner().by_node.keys().copied().collect()
    }
}

/// Keeps a stream registered.
pub struct Open {
    streams: Arc<Streams>,
    stream: Arc<Stream>,
}

impl std::ops::Deref for Open {
    type Target = Stream;
    fn deref(&self) -> &Stream {
        &self.stream
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.close(&self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_second_stream_takes_the_place_of_the_first() {
        let streams = Arc::new(Streams::default());
        let (tenant, cvlan) = (TenantId(Uuid::from_u128(1)), CvlanId(Uuid::from_u128(2)));
        let node = NodeId(Uuid::from_u128(3));
        let first = streams.open(tenant, cvlan, node);
        let session = streams.session(node).unwrap().session;
        streams.told(node, session);
        assert!(streams.session(node).unwrap().told);
        assert_eq!(streams.unsettled_take(9), [node]);
        let second = streams.open(tenant, cvlan, node);
        assert!(first.is_superseded() && !second.is_superseded());
        let stays = presence::Open { session, told: false };
        assert_eq!((streams.session(node), streams.unsettled_take(9)), (Some(stays), vec![node]));
        drop(first);
        assert_eq!((streams.session(node), streams.unsettled_take(9)), (Some(stays), vec![]), "the second is there");
        drop(second);
        assert_eq!((streams.session(node), streams.unsettled_take(9)), (None, vec![node]));
        assert_eq!(streams.online_count(), 0);
        let third = streams.open(tenant, cvlan, node);
        assert_ne!(third.session, session, "it was away");
        streams.told(node, session);
        assert!(!streams.session(node).unwrap().told);
        drop(third);
        assert!(streams.inner().by_scope.is_empty());
    }

    #[tokio::test]
    async fn a_snapshot_wakes_every_stream() {
        let streams = Arc::new(Streams::default());
        let (tenant, cvlan) = (TenantId(Uuid::from_u128(1)), CvlanId(Uuid::from_u128(2)));
        let open = [3, 4].map(|n| streams.open(tenant, cvlan, NodeId(Uuid::from_u128(n))));
        streams.applied(&State::default(), &[]);
        for stream in &open {
            tokio::time::timeout(std::time::Duration::from_secs(1), stream.wake.notified()).await.unwrap();
        }
    }

    #[test]
    fn a_node_says_where_it_is_at_most_every_ten_seconds() {
        let streams = Streams::default();
        let (one, two) = (NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2)));
        let wait = |node, ms| streams.endpoints_wait_ms(node, ms);
        assert_eq!(wait(one, 5), 0);
        streams.endpoints_taken(one, 5);
        assert_eq!((wait(one, 6), wait(two, 6)), (ENDPOINTS_MS - 1, 0));
        assert_eq!((wait(one, 5 + ENDPOINTS_MS - 1), wait(one, 5 + ENDPOINTS_MS)), (1, 0));

        let streams = Arc::new(streams);
        let stand = |said: [u64; 2]| said.map(|said| streams.endpoints_stand(one, said));
        let none = streams.endpoints_said(one);
        assert_eq!(stand([none, 1]), [false, false], "it is not here");
        let open = streams.open(TenantId(Uuid::from_u128(1)), CvlanId(Uuid::from_u128(2)), one);
        let before = streams.endpoints_said(one);
        assert_eq!(stand([none, before]), [false, true]);
        let now = streams.endpoints_said(one);
        assert_eq!(stand([before, now]), [false, true]);
        drop(open);
        assert_eq!(stand([before, now]), [false, false]);
    }
}

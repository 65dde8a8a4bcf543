//! Who is connected: sync streams by scope, for wake-ups, and by node, for presence.
//!
//! ```text
//!  applied entry ─► scopes it touched ─► the streams in them: wake            one lock, no task in between
//!  stream opens ─► by node: an older one of the same node is superseded ─► presence online
//! ```
//! Presence is not configuration: it is in this member's memory, and its changes go to whoever follows live events.

use cvlan_core::id::{CvlanId, NodeId, TenantId};
use cvlan_core::machine::Machine;
use cvlan_core::map::scopes;
use cvlan_core::rules::Key;
use cvlan_core::sync::ENDPOINTS_MS;
use cvlan_core::{Rules, State};
use cvlan_proto::v1::Event;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast};

/// Presence changes that a slow follower may be behind; beyond, it misses some and lists tell the truth.
pub const PRESENCE_QUEUE: usize = 1024;

type Scope = (TenantId, CvlanId);

/// One open stream.
pub struct Stream {
    n: u64,
    node: NodeId,
    scope: Scope,
    /// Something changed in its scope, or it is superseded.
    pub wake: Notify,
    superseded: AtomicBool,
}

impl Stream {
    /// A newer stream of the same node took its place.
    pub fn is_superseded(&self) -> bool {
        self.superseded.load(Relaxed)
    }
}

/// A node came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceChange {
    /// Whose.
    pub tenant: TenantId,
    /// Who.
    pub node: NodeId,
    /// Which way.
    pub online: bool,
}

#[derive(Default)]
struct Inner {
    last: u64,
    by_scope: HashMap<Scope, HashMap<u64, Arc<Stream>>>,
    by_node: HashMap<NodeId, Arc<Stream>>,
    /// When nodes that poll may say again where they are.
    endpoints_after_ms: HashMap<NodeId, u64>,
    /// When nodes that are offline now were last heard of; of nodes in the log alone, so it is bounded by them.
    last_seen_ms: HashMap<NodeId, u64>,
}

/// The registry.
pub struct Streams {
    inner: Mutex<Inner>,
    online: AtomicUsize,
    /// False until the first stream: nothing to look for.
    ever: AtomicBool,
    presence: broadcast::Sender<PresenceChange>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            online: AtomicUsize::new(0),
            ever: AtomicBool::new(false),
            presence: broadcast::channel(PRESENCE_QUEUE).0,
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
        let stream = Arc::new(Stream { n, node, scope, wake: Notify::new(), superseded: AtomicBool::new(false) });
        inner.by_scope.entry(scope).or_default().insert(n, stream.clone());
        let older = inner.by_node.insert(node, stream.clone());
        inner.last_seen_ms.remove(&node);
        self.online.store(inner.by_node.len(), Relaxed);
        drop(inner);
        match older {
            Some(older) => {
                older.superseded.store(true, Relaxed);
                older.wake.notify_one();
            }
            None => self.tell(tenant, node, true),
        }
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
        let last = inner.by_node.get(&stream.node).is_some_and(|s| s.n == stream.n);
        if last {
            inner.by_node.remove(&stream.node);
            inner.last_seen_ms.insert(stream.node, crate::app::now_ms());
        }
        self.online.store(inner.by_node.len(), Relaxed);
        drop(inner);
        if last {
            self.tell(stream.scope.0, stream.node, false);
        }
    }

    fn tell(&self, tenant: TenantId, node: NodeId, online: bool) {
        // Nobody follows: nobody is told.
        let _ = self.presence.send(PresenceChange { tenant, node, online });
    }

    /// Wakes the streams in the scopes that these events touched; `state` is the one after them.
    pub fn applied(&self, state: &State, events: &[Event]) {
        if !self.ever.load(Relaxed) {
            return;
        }
        let touched: BTreeSet<Scope> = events.iter().filter_map(|e| scopes(state, e)).collect();
        if touched.is_empty() {
            return;
        }
        let mut inner = self.inner();
        for scope in &touched {
            for stream in inner.by_scope.get(scope).into_iter().flat_map(HashMap::values) {
                stream.wake.notify_one();
            }
        }
        if !inner.last_seen_ms.is_empty() || !inner.endpoints_after_ms.is_empty() {
            for key in events.iter().flat_map(Rules::touched) {
                if let Key::Node(_, node) = key
                    && state.node_find(node).is_none()
                {
                    inner.last_seen_ms.remove(&node);
                    inner.endpoints_after_ms.remove(&node);
                }
            }
        }
    }

    /// May endpoints of this node become an event now? A stream counts for itself; polls are counted here, of nodes in
    /// the log alone, so it is bounded by them.
    pub fn endpoints_turn(&self, node: NodeId, now_ms: u64) -> bool {
        let mut inner = self.inner();
        let due = inner.endpoints_after_ms.get(&node).is_none_or(|after| now_ms >= *after);
        if due {
            inner.endpoints_after_ms.insert(node, now_ms + ENDPOINTS_MS);
        }
        due
    }

    /// Nodes with an open stream.
    pub fn online_count(&self) -> usize {
        self.online.load(Relaxed)
    }

    /// Is a stream of the node open, and when was it last heard of, if it was by this process?
    pub fn presence(&self, node: NodeId) -> (bool, Option<u64>) {
        if !self.ever.load(Relaxed) {
            return (false, None);
        }
        let inner = self.inner();
        if inner.by_node.contains_key(&node) {
            return (true, Some(crate::app::now_ms()));
        }
        (false, inner.last_seen_ms.get(&node).copied())
    }

    /// Follows presence from now on.
    pub fn follow(&self) -> broadcast::Receiver<PresenceChange> {
        self.presence.subscribe()
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
        let mut follow = streams.follow();
        let (tenant, cvlan) = (TenantId(Uuid::from_u128(1)), CvlanId(Uuid::from_u128(2)));
        let node = NodeId(Uuid::from_u128(3));
        let first = streams.open(tenant, cvlan, node);
        let second = streams.open(tenant, cvlan, node);
        assert!(first.is_superseded() && !second.is_superseded());
        drop(first);
        assert!(streams.presence(node).0, "the second is still there");
        drop(second);
        let (online, seen) = streams.presence(node);
        assert!(!online && seen.is_some());
        assert_eq!(streams.online_count(), 0);
        let change = |online| PresenceChange { tenant, node, online };
        assert_eq!((follow.try_recv().unwrap(), follow.try_recv().unwrap()), (change(true), change(false)));
        assert!(follow.try_recv().is_err());
        assert!(streams.inner().by_scope.is_empty());
    }

    #[test]
    fn who_polls_says_where_it_is_at_most_every_ten_seconds() {
        let streams = Streams::default();
        let (one, two) = (NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2)));
        let turn = |node, ms| streams.endpoints_turn(node, ms);
        assert_eq!((turn(one, 5), turn(one, 6), turn(two, 6)), (true, false, true));
        assert_eq!((turn(one, 5 + ENDPOINTS_MS - 1), turn(one, 5 + ENDPOINTS_MS)), (false, true));
    }
}

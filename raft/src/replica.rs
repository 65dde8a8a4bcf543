//! The replica: applies committed entries, tells observers, answers writers, keeps snapshots. What openraft calls the
//! state machine.
//!
//! ```text
//! entry ─► in flight from here? ─ yes ─► its head, made when it was decided, is swapped in
//!              │ no                                   │
//!              └► read, fits? ─► folded ──────────────┼─► head published ─► observers ─► answers
//!                     └ no ─► skipped                 └─► checkpoint opened: digest, off the path
//! ```

use crate::clock::Clock;
use crate::desk::{Desk, Flight};
use crate::digests::{Digests, Found};
use crate::disk::{Disk, Lane, on_disk};
use crate::head::{Head, Members, Noted};
use crate::options::{Applied, Events, Limits, Observer};
use crate::replay::{self, Place};
use crate::status::Stats;
use crate::store::snapshot::{self, Snapshot};
use crate::store::wal::Wal;
use crate::sync::lock;
use crate::types::{Cfg, Entry, Frame, LogId, Membership, Snap, SnapshotMeta};
use bytes::Bytes;
use cvlan_core::machine::Machine;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AsyncRuntime, EntryPayload, OptionalSend, StoredMembership};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Raft with this replica in it.
pub(crate) type Raft<M, RT> = openraft::Raft<Cfg<RT>, Replica<M, RT>>;

/// The newest snapshot of this life.
pub(crate) struct Kept<S> {
    pub(crate) meta: SnapshotMeta,
    pub(crate) head: Arc<Head<S>>,
    /// When it was made; `None` if it was found at the start.
    pub(crate) made_us: Option<u64>,
}

impl<S> Clone for Kept<S> {
    fn clone(&self) -> Self {
        Self { meta: self.meta.clone(), head: self.head.clone(), made_us: self.made_us }
    }
}

/// What the parts of a member share.
pub(crate) struct Shared<M: Machine, RT: AsyncRuntime> {
    pub(crate) member: u64,
    pub(crate) limits: Limits,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) desk: Desk<M, RT>,
    pub(crate) digests: Digests<RT>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) observers: Vec<Observer<M>>,
    pub(crate) place: Mutex<Place>,
    pub(crate) kept: Mutex<Option<Kept<M::State>>>,
    /// Bytes and events since the last snapshot.
    pub(crate) grown: [AtomicU64; 2],
    head: RwLock<Arc<Head<M::State>>>,
    fatal: Mutex<Option<String>>,
}

/// What a member starts from.
pub(crate) struct Parts<M: Machine> {
    pub(crate) member: u64,
    pub(crate) limits: Limits,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) observers: Vec<Observer<M>>,
    pub(crate) place: Place,
    pub(crate) head: Head<M::State>,
    pub(crate) kept: Option<Kept<M::State>>,
    pub(crate) grown: [u64; 2],
}

impl<M: Machine, RT: AsyncRuntime> Shared<M, RT> {
    pub(crate) fn new(parts: Parts<M>) -> Arc<Self> {
        let desk = Desk::new(parts.clock.clone(), parts.stats.clone(), parts.limits.clone());
        Arc::new(Self {
            member: parts.member,
            limits: parts.limits,
            disk: parts.disk,
            clock: parts.clock,
            wal: parts.wal,
            desk,
            digests: Digests::default(),
            stats: parts.stats,
            observers: parts.observers,
            place: Mutex::new(parts.place),
            kept: Mutex::new(parts.kept),
            grown: parts.grown.map(AtomicU64::new),
            head: RwLock::new(Arc::new(parts.head)),
            fatal: Mutex::new(None),
        })
    }

    pub(crate) fn head(&self) -> Arc<Head<M::State>> {
        self.head.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the member for a reason that stays.
    pub(crate) fn fail(&self, why: String) {
        let first = {
            let mut fatal = lock(&self.fatal);
            let first = fatal.is_none();
            fatal.get_or_insert_with(|| why.clone());
            first
        };
        if first {
            tracing::error!(why, "the member stops");
        }
        self.desk.stop();
    }

    /// A part of the member has ended: in order, if the member is stopped.
    pub(crate) fn ended(&self, part: &str) {
        if !self.desk.is_stopped() {
            self.fail(self.wal.closed().unwrap_or_else(|| format!("{part} has ended")));
        }
    }

    pub(crate) fn fatal(&self) -> Option<String> {
        lock(&self.fatal).clone()
    }

    fn publish(&self, head: Head<M::State>) -> Arc<Head<M::State>> {
        let head = Arc::new(head);
        let old = std::mem::replace(&mut *self.head.write().unwrap_or_else(PoisonError::into_inner), head.clone());
        drop(old);
        head
    }

    fn apply(self: &Arc<Self>, entry: Entry) -> io::Result<()> {
        self.desk.overtaken(entry.log_id.leader_id);
        let id = entry.log_id;
        match entry.payload {
            EntryPayload::Blank => {
                lock(&self.place).last = Some(id);
                self.term_begins(&id);
            }
            EntryPayload::Membership(membership) => self.membership(id, StoredMembership::new(Some(id), membership)),
            EntryPayload::Normal(frame) => self.frame(id, &frame).map_err(|why| {
                let why = format!("entry {id}: {why}");
                self.fail(why.clone());
                io::Error::new(io::ErrorKind::InvalidData, why)
            })?,
        }
        Ok(())
    }

    /// A leader's first entry is a blank one: once it is applied, everything before it is.
    fn term_begins(&self, id: &LogId) {
        let leads = |vote: crate::types::Vote| vote.committed && vote.leader_id == id.leader_id;
        if id.leader_id.node_id == self.member && self.wal.marks().vote.is_some_and(leads) {
            self.desk.open(id.leader_id, Head::clone(&self.head()));
        }
    }

    fn membership(&self, id: LogId, membership: Membership) {
        let mut head = Head::clone(&self.head());
        head.members = Arc::new(Members::from(&membership));
        let mut place = lock(&self.place);
        place.last = Some(id);
        place.membership = membership;
        self.publish(head);
    }

    fn frame(self: &Arc<Self>, id: LogId, frame: &Frame) -> Result<(), replay::Fault> {
        let now = self.head();
        match self.desk.land(frame) {
            Some(flight) if now.fits(flight.epoch, flight.first_seq, &flight.prev_root) => {
                let Flight { mut head, noted, events, raw, decided, first_seq, epoch, .. } = flight;
                // Members change by entries of their own, which may have been applied since it was decided.
                head.members = now.members.clone();
                drop(now);
                let all = Events::new(events.clone(), 0..events.len());
                self.applied(id, frame.0.len(), head, all, raw, noted);
                self.desk.answer(decided, &events, first_seq, epoch);
            }
            Some(flight) => {
                self.skip(id);
                self.desk.skipped(flight);
            }
            None => {
                let read = replay::read::<M>(frame)?;
                if !now.fits(read.epoch, read.first_seq, &read.prev_root) {
                    self.skip(id);
                    return Ok(());
                }
                let mut head = Head::clone(&now);
                drop(now);
                let pairs = read.events.iter().zip(&read.raw).map(|(event, raw)| (event, raw.as_ref()));
                let noted = head.fold_entry::<M>(read.epoch, pairs);
                self.applied(id, frame.0.len(), head, Events::of(read.events), read.raw, noted);
            }
        }
        Ok(())
    }

    fn skip(&self, id: LogId) {
        tracing::warn!(entry = %id, "skipped: it continues another history");
        self.stats.skipped.fetch_add(1, Relaxed);
        let mut place = lock(&self.place);
        place.last = Some(id);
        place.skipped.push(id.index);
    }

    fn applied(
        self: &Arc<Self>,
        id: LogId,
        bytes: usize,
        head: Head<M::State>,
        events: Events<M::Event>,
        raw: Vec<Bytes>,
        noted: Vec<Noted<M::State>>,
    ) {
        let members = head.members.clone();
        let [grown_bytes, grown_events] = &self.grown;
        grown_bytes.fetch_add(bytes as u64, Relaxed);
        grown_events.fetch_add(events.len() as u64, Relaxed);
        let head = {
            // Together: a snapshot takes both.
            let mut place = lock(&self.place);
            place.last = Some(id);
            self.publish(head)
        };
        if !self.observers.is_empty() {
            let applied = Applied { head, events, raw: raw.into(), index: id.index };
            for observer in &self.observers {
                observer(&applied);
            }
        }
        for note in noted {
            self.noted(note, members.clone());
        }
    }

    fn noted(self: &Arc<Self>, note: Noted<M::State>, members: Arc<Members>) {
        match note {
            Noted::Opened(mut head) => {
                head.members = members;
                let shared = self.clone();
                self.disk.run(
                    Lane::Work,
                    Box::new(move |_| {
                        let found = Found { root: head.root, digest: head.digest::<M>() };
                        shared.digests.own(head.seq, found);
                    }),
                );
            }
            Noted::Checkpointed { seq, root, digest } => self.digests.attested(seq, Found { root, digest }),
        }
    }

    /// True once enough was applied since the last snapshot.
    pub(crate) fn snapshot_due(&self) -> bool {
        let [bytes, events] = &self.grown;
        bytes.load(Relaxed) >= self.limits.snapshot_bytes || events.load(Relaxed) >= self.limits.snapshot_events
    }

    /// Head and place as of now.
    fn cut(&self) -> (Arc<Head<M::State>>, Place) {
        let place = lock(&self.place);
        (self.head(), place.clone())
    }

    /// Keeps a snapshot unless a newer one is there.
    fn keep(&self, kept: Kept<M::State>) {
        let mut now = lock(&self.kept);
        if now.as_ref().is_none_or(|now| now.meta.last_log_id <= kept.meta.last_log_id) {
            *now = Some(kept);
        }
    }

    /// Writes a snapshot of `head` on the disk's own time.
    async fn write(
        self: &Arc<Self>,
        head: &Arc<Head<M::State>>,
        meta: &SnapshotMeta,
        skipped: Vec<u64>,
    ) -> io::Result<()> {
        let snapshot = Snapshot { meta: meta.clone(), skipped, head: Head::clone(head) };
        let kept = self.limits.snapshots_kept;
        on_disk::<RT, _>(&self.disk, Lane::Work, move |files| snapshot::write::<M>(files, &snapshot, kept)).await?
    }
}

/// The state machine that openraft drives.
pub(crate) struct Replica<M: Machine, RT: AsyncRuntime> {
    pub(crate) shared: Arc<Shared<M, RT>>,
}

impl<M: Machine, RT: AsyncRuntime> Drop for Replica<M, RT> {
    fn drop(&mut self) {
        self.shared.ended("the replica");
    }
}

/// Makes a snapshot of what is applied when it is asked to.
pub(crate) struct Builder<M: Machine, RT: AsyncRuntime>(Arc<Shared<M, RT>>);

impl<M: Machine, RT: AsyncRuntime> RaftSnapshotBuilder<Cfg<RT>> for Builder<M, RT> {
    type SnapshotData = Arc<Head<M::State>>;

    /// A snapshot that cannot be written (a full disk) is kept in memory all the same: recovery never depends on the
    /// newest one, and the log goes on.
    async fn build_snapshot(&mut self) -> Result<Snap<Self::SnapshotData>, io::Error> {
        let shared = &self.0;
        let started = shared.clock.monotonic_us();
        for grown in &shared.grown {
            grown.store(0, Relaxed);
        }
        let (head, place) = shared.cut();
        let meta = SnapshotMeta { last_log_id: place.last, last_membership: place.membership };
        let written = shared.write(&head, &meta, place.skipped).await;
        if let Err(error) = &written {
            tracing::warn!(%error, "a snapshot could not be written");
        }
        shared.stats.snapshot_failed(written.err().map(|error| error.to_string()));
        let now = shared.clock.monotonic_us();
        shared.stats.snapshot_us.store(now.saturating_sub(started), Relaxed);
        shared.keep(Kept { meta: meta.clone(), head: head.clone(), made_us: Some(now) });
        Ok(Snap { meta, snapshot: head })
    }
}

impl<M: Machine, RT: AsyncRuntime> RaftStateMachine<Cfg<RT>> for Replica<M, RT> {
    type SnapshotData = Arc<Head<M::State>>;
    type SnapshotBuilder = Builder<M, RT>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        let place = lock(&self.shared.place);
        Ok((place.last, place.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Cfg<RT>>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.shared.apply(entry)?;
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder(self.shared.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, head: Self::SnapshotData) -> Result<(), io::Error> {
        self.shared.write(&head, meta, Vec::new()).await?;
        {
            let mut place = lock(&self.shared.place);
            place.last = meta.last_log_id;
            place.membership = meta.last_membership.clone();
            self.shared.publish(Head::clone(&head));
        }
        let made_us = Some(self.shared.clock.monotonic_us());
        self.shared.keep(Kept { meta: meta.clone(), head, made_us });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snap<Self::SnapshotData>>, io::Error> {
        let kept = lock(&self.shared.kept).clone();
        Ok(kept.map(|kept| Snap { meta: kept.meta, snapshot: kept.head }))
    }
}

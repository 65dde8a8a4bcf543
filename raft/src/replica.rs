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
use crate::confirm::Confirm;
use crate::desk::{Desk, Flight};
use crate::digests::{Digests, Found};
use crate::disk::{Disk, Files, Lane, no_room, on_disk};
use crate::head::{Head, Members, Noted};
use crate::hold::Readers;
use crate::options::{Applied, Events, Limits, Observer, Plant};
use crate::replay::{self, Place};
use crate::status::Stats;
use crate::store::snapshot::{self, Snapshot};
use crate::store::wal::{Wal, index};
use crate::sync::lock;
use crate::tree::{self, Tree};
use crate::types::{Cfg, Entry, Frame, LogId, Membership, Snap, SnapshotMeta};
use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::machine::Machine;
use futures_util::{Stream, StreamExt};
use openraft::async_runtime::{Mutex as _, Select2, WatchReceiver, WatchSender};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{WatchReceiverOf, WatchSenderOf};
use openraft::{AsyncRuntime, EntryPayload, OptionalSend, StoredMembership};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Raft with this replica in it.
pub(crate) type Raft<M, RT> = openraft::Raft<Cfg<RT>, Replica<M, RT>>;

/// How much longer nothing is done for snapshots than they take: a large state under many writes would otherwise be saved
/// all the time.
const SNAPSHOT_REST: u64 = 10;

/// Until a disk that was full is tried again.
const FULL_REST: Duration = Duration::from_millis(500);

/// The newest snapshot of this life.
pub(crate) struct Kept<S> {
    pub(crate) meta: SnapshotMeta,
    pub(crate) head: Arc<Head<S>>,
    /// When it was made; `None` if it was found at the start.
    pub(crate) made_us: Option<u64>,
    /// It is on disk, too.
    pub(crate) written: bool,
}

impl<S> Clone for Kept<S> {
    fn clone(&self) -> Self {
        let Self { meta, head, made_us, written } = self;
        Self { meta: meta.clone(), head: head.clone(), made_us: *made_us, written: *written }
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
    pub(crate) confirm: Confirm<M, RT>,
    pub(crate) plant: Plant,
    pub(crate) digests: Digests<RT>,
    /// History is kept from this event on, whatever the log says.
    pub(crate) held: AtomicU64,
    /// And from what somebody reads.
    pub(crate) readers: Arc<Readers>,
    /// Whoever changes where history begins.
    pub(crate) past: RT::Mutex<()>,
    /// Nobody who was asked has older history.
    pub(crate) sought: AtomicBool,
    /// For proofs.
    pub(crate) tree: RT::Mutex<Tree>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) observers: Vec<Observer<M>>,
    pub(crate) place: Mutex<Place>,
    pub(crate) kept: Mutex<Option<Kept<M::State>>>,
    /// Bytes and events since the last snapshot.
    pub(crate) grown: [AtomicU64; 2],
    /// The first event that can be read here.
    history_from: AtomicU64,
    head: RwLock<Arc<Head<M::State>>>,
    fatal: Mutex<Option<String>>,
    /// Ends what runs beside Raft.
    halt: Mutex<WatchSenderOf<Cfg<RT>, bool>>,
    /// Removed: by a membership that is applied; as the leader says.
    removed: [AtomicBool; 2],
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
    pub(crate) history_from: Seq,
    pub(crate) plant: Plant,
}

impl<M: Machine, RT: AsyncRuntime> Shared<M, RT> {
    pub(crate) fn new(parts: Parts<M>) -> Arc<Self> {
        let desk = Desk::new(parts.clock.clone(), parts.stats.clone(), parts.limits.clone(), parts.plant);
        Arc::new(Self {
            member: parts.member,
            limits: parts.limits,
            disk: parts.disk,
            clock: parts.clock,
            wal: parts.wal,
            desk,
            confirm: Confirm::default(),
            plant: parts.plant,
            digests: Digests::default(),
            held: AtomicU64::new(u64::MAX),
            readers: Arc::default(),
            past: RT::Mutex::new(()),
            sought: AtomicBool::new(false),
            tree: RT::Mutex::new(Tree::default()),
            stats: parts.stats,
            observers: parts.observers,
            place: Mutex::new(parts.place),
            kept: Mutex::new(parts.kept),
            grown: parts.grown.map(AtomicU64::new),
            history_from: AtomicU64::new(parts.history_from.0),
            head: RwLock::new(Arc::new(parts.head)),
            fatal: Mutex::new(None),
            halt: Mutex::new(Cfg::<RT>::watch_channel(false).0),
            removed: Default::default(),
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
        self.stop();
    }

    /// Answers everybody who waits, and ends what runs beside Raft.
    pub(crate) fn stop(&self) {
        self.desk.stop();
        self.confirm.stop();
        lock(&self.halt).send_if_modified(|halted| !std::mem::replace(halted, true));
    }

    /// True, or becomes true, once the member stops.
    pub(crate) fn halt(&self) -> WatchReceiverOf<Cfg<RT>, bool> {
        lock(&self.halt).subscribe()
    }

    /// True where this member is none any more.
    pub(crate) fn removed(&self) -> bool {
        self.removed.iter().any(|removed| removed.load(Relaxed))
    }

    /// What a leader says: that this member was removed, or, by what it sends, that it was not.
    pub(crate) fn told(&self, removed: bool) {
        let [_, told] = &self.removed;
        if told.swap(removed, Relaxed) != removed && removed {
            tracing::warn!("the leader does not know this member: it was removed");
        }
    }

    /// The first event that can be read here.
    pub(crate) fn history_from(&self) -> Seq {
        Seq(self.history_from.load(Relaxed))
    }

    /// History begins at `to`, where it began at `from` and not elsewhere by now.
    pub(crate) fn history_begins(&self, from: Seq, to: Seq) {
        let _ = self.history_from.compare_exchange(from.0, to.0, Relaxed, Relaxed);
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
        self.members_change(&place.membership, &membership);
        place.membership = membership;
        self.publish(head);
    }

    fn members_change(&self, before: &Membership, now: &Membership) {
        let of = |membership: &Membership| membership.membership().get_node(&self.member).is_some();
        let [applied, _] = &self.removed;
        match (of(before), of(now)) {
            (_, true) => applied.store(false, Relaxed),
            (true, false) => {
                tracing::warn!("this member was removed from the cluster");
                applied.store(true, Relaxed);
            }
            (false, false) => {}
        }
    }

    fn fits(&self, now: &Head<M::State>, epoch: Epoch, first_seq: Seq, prev_root: &[u8]) -> bool {
        let number = self.plant.wrong_root && epoch == now.epoch && first_seq.0 == now.seq.0 + 1;
        number || now.fits(epoch, first_seq, prev_root)
    }

    fn frame(self: &Arc<Self>, id: LogId, frame: &Frame) -> Result<(), replay::Fault> {
        let now = self.head();
        match self.desk.land(frame) {
            Some(flight)
                if self.plant.lost_head || self.fits(&now, flight.epoch, flight.first_seq, &flight.prev_root) =>
            {
                let Flight { mut head, noted, events, raw, decided, first_seq, epoch, proposed_us, .. } = flight;
                self.stats.commit_us.add(self.clock.monotonic_us().saturating_sub(proposed_us));
                // Members change by entries of their own, which may have been applied since it was decided.
                head.members = now.members.clone();
                let all = Events::new(events.clone(), 0..events.len());
                self.applied(id, frame.0.len(), head, all, raw, noted);
                self.desk.answer(decided, &events, first_seq, epoch);
                // An old state is taken apart once nobody waits for it.
                drop(now);
            }
            Some(flight) => {
                self.skip(id);
                self.desk.skipped(flight);
            }
            None => {
                let read = replay::read::<M>(frame)?;
                read.level_known(self.limits.known_level::<M>())?;
                if !self.fits(&now, read.continues, read.first_seq, &read.prev_root) {
                    self.skip(id);
                    return Ok(());
                }
                let mut head = Head::clone(&now);
                drop(now);
                let noted = head.fold_entry::<M>(read.epoch, read.events.iter().zip(read.leaves));
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

    /// True once enough was applied since the last snapshot, and that is [`SNAPSHOT_REST`] times as long ago as it took.
    pub(crate) fn snapshot_due(&self) -> bool {
        let [bytes, events] = &self.grown;
        let enough =
            bytes.load(Relaxed) >= self.limits.snapshot_bytes || events.load(Relaxed) >= self.limits.snapshot_events;
        let rest = self.stats.snapshot_us.load(Relaxed).saturating_mul(SNAPSHOT_REST);
        let rested = |made_us: u64| self.clock.monotonic_us().saturating_sub(made_us) >= rest;
        enough && lock(&self.kept).as_ref().and_then(|kept| kept.made_us).is_none_or(rested)
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
        let (kept, oldest) = (self.limits.snapshots_kept, self.wal.oldest());
        let job = move |files: &dyn Files| {
            snapshot::write::<M>(files, &snapshot)?;
            snapshot::thin(files, kept, oldest)
        };
        on_disk::<RT, _>(&self.disk, Lane::Work, job).await?
    }

    /// Writes a snapshot that this member goes on from: without it there is no going on, so that a full disk is waited for.
    async fn write_received(
        self: &Arc<Self>,
        head: &Arc<Head<M::State>>,
        meta: &SnapshotMeta,
        skipped: Vec<u64>,
    ) -> io::Result<()> {
        let mut halt = self.halt();
        let mut said = false;
        loop {
            let error = match self.write(head, meta, skipped.clone()).await {
                Err(error) if no_room(&error) => error,
                done => {
                    if said {
                        self.stats.snapshot_failed(None);
                    }
                    return done;
                }
            };
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(%error, "the leader's snapshot waits for room on the disk");
                self.stats.snapshot_failed(Some(error.to_string()));
            }
            let halted = *halt.borrow_watched();
            if halted
                || matches!(Cfg::<RT>::select2(halt.changed(), Cfg::<RT>::sleep(FULL_REST)).await, Select2::First(_))
            {
                return Err(error);
            }
        }
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
        let on_disk = written.is_ok();
        shared.stats.snapshot_failed(written.err().map(|error| error.to_string()));
        let now = shared.clock.monotonic_us();
        shared.stats.snapshot_us.store(now.saturating_sub(started), Relaxed);
        shared.keep(Kept { meta: meta.clone(), head: head.clone(), made_us: Some(now), written: on_disk });
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
        let mut held = None;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let planted = self.shared.plant.out_of_order && entry.log_id.index.is_multiple_of(5);
            if planted && held.is_none() {
                held = Some(entry);
            } else {
                self.shared.apply(entry)?;
                if let Some(held) = held.take() {
                    self.shared.apply(held)?;
                }
            }
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        held.map_or(Ok(()), |held| self.shared.apply(held))
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder(self.shared.clone())
    }

    /// What this member has applied stays as history if its log reaches up to there; where it does not, history begins
    /// after the snapshot, and nothing above what is applied is kept: it may be of another history.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, head: Self::SnapshotData) -> Result<(), io::Error> {
        let shared = &self.shared;
        let (before, own) = shared.cut();
        if before.epoch != Epoch::default() && before.epoch != head.epoch {
            let why = format!("a snapshot of epoch {} where epoch {} is", head.epoch, before.epoch);
            shared.fail(why.clone());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let known = shared.limits.known_level::<M>();
        if head.feature_level > known {
            let why = replay::Fault::Level { level: head.feature_level, known }.to_string();
            shared.fail(why.clone());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let skipped = own.skipped;
        shared.write_received(&head, meta, skipped).await?;
        shared.wal.superseded(own.last);
        shared.desk.jumped();
        if index(&shared.wal.marks().last) < index(&meta.last_log_id) && !shared.plant.kept_tail {
            // Proofs go on from here; where it cannot be written, from a later one.
            let tree = head.tree.clone();
            let kept = on_disk::<RT, _>(&shared.disk, Lane::Work, move |files| tree::base_write(files, &tree)).await;
            if let Err(error) = kept.and_then(|kept| kept) {
                tracing::warn!(%error, "the roots that proofs begin with were not written");
            }
            shared.history_from.store(head.seq.0 + 1, Relaxed);
            shared.sought.store(false, Relaxed);
        }
        let head = {
            let mut place = lock(&shared.place);
            place.last = meta.last_log_id;
            shared.members_change(&place.membership, &meta.last_membership);
            place.membership = meta.last_membership.clone();
            shared.publish(Head::clone(&head))
        };
        for grown in &shared.grown {
            grown.store(0, Relaxed);
        }
        // No events: everything may have changed.
        let at = index(&meta.last_log_id).unwrap_or_default();
        let applied = Applied { head: head.clone(), events: Events::of(Vec::new()), raw: Arc::default(), index: at };
        for observer in &shared.observers {
            observer(&applied);
        }
        let made_us = Some(shared.clock.monotonic_us());
        shared.keep(Kept { meta: meta.clone(), head, made_us, written: true });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snap<Self::SnapshotData>>, io::Error> {
        let kept = lock(&self.shared.kept).clone();
        Ok(kept.map(|kept| Snap { meta: kept.meta, snapshot: kept.head }))
    }
}

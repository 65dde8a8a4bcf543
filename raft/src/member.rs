//! The handle of a member: opens a folder, takes commands, reads history, stops in order.

use crate::base::{self, Base};
use crate::desk::Done;
use crate::disk::{Lane, on_disk};
use crate::error::{HistoryError, MemberError, OpenError, SnapshotError, VerifyError, WriteError};
use crate::head::{Head, Members};
use crate::hold::Reading;
use crate::membership;
use crate::options::{Events, Options, Timing};
use crate::peer::Peers;
use crate::peer::codec::Change;
use crate::peer::network::Network;
use crate::peer::parcel::Incoming;
use crate::peer::serve::serve;
use crate::recovery::{self, recover};
use crate::replica::{Parts, Raft, Replica, Shared};
use crate::sessions::Outcome;
use crate::status::{PeerStatus, Role, Stats, Status};
use crate::store::log::Log;
use crate::store::wal::index;
use crate::sync::lock;
use crate::transport::{Pipe, Transport};
use crate::tree::{self, Proof};
use crate::types::Cfg;
use crate::verify::{self, VerifyReport};
use crate::{attest, backfill, house, reading, relief, retain, upgrade};
use bytes::Bytes;
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use cvlan_core::log::merkle::Hash;
use cvlan_core::machine::Machine;
use openraft::async_runtime::{OneshotSender, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, BasicNode, Config, RaftMetrics, ServerState, SnapshotPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Raft purges so many entries at once, at least.
const PURGE_BATCH: u64 = 10_000;

/// A stop waits so long for what still uses the log.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A leader that stops waits so long for the next one.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(1);

/// A linearizable read waits so long until what it must see is applied here.
const APPLY_LIMIT: Duration = Duration::from_secs(5);

/// How much longer a backup rests than it reads, and at most between two pages.
const BACKUP_REST: u64 = 4;
const BACKUP_REST_MAX: Duration = Duration::from_millis(100);

/// What a command came to.
pub struct Answer<M: Machine> {
    /// The last event of the command; where it changed nothing, the head that it was decided against.
    pub checkpoint: Checkpoint,
    /// Its first event; 0 where it changed nothing.
    pub first_seq: Seq,
    /// Its events.
    pub events: Events<M::Event>,
    /// True where it was carried out before, under the same number.
    pub repeated: bool,
}

/// A checkpoint in the log with what this member found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The `CheckpointOpened` event.
    pub checkpoint: Checkpoint,
    /// Merkle root after it.
    pub root: [u8; 32],
    /// SHA-256 of the canonical state after it.
    pub digest: [u8; 32],
}

/// One entry of history, as stored.
#[derive(Clone, Debug)]
pub struct EntryFrame {
    /// Number of its first event.
    pub first_seq: Seq,
    /// The frame, verbatim.
    pub frame: Bytes,
}

/// What a log is made of again: see [`crate::restore()`].
#[derive(Clone, Debug)]
pub enum Item {
    /// An entry with events.
    Frame(EntryFrame),
    /// Who is a member from there on.
    Members(Members),
}

/// What a member's tasks work with.
pub(crate) struct Shares<M: Machine, RT: AsyncRuntime> {
    pub(crate) shared: Arc<Shared<M, RT>>,
    pub(crate) raft: Raft<M, RT>,
    pub(crate) peers: Arc<Peers<RT>>,
}

impl<M: Machine, RT: AsyncRuntime> Clone for Shares<M, RT> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), raft: self.raft.clone(), peers: self.peers.clone() }
    }
}

/// A member behind its handles.
pub(crate) struct Inner<M: Machine, RT: AsyncRuntime> {
    pub(crate) shared: Arc<Shared<M, RT>>,
    pub(crate) raft: Raft<M, RT>,
    pub(crate) peers: Arc<Peers<RT>>,
    pub(crate) incoming: Incoming,
    /// The membership is being changed.
    pub(crate) changing: AtomicBool,
}

/// Without the last handle nobody can use the member: its tasks end.
impl<M: Machine, RT: AsyncRuntime> Drop for Inner<M, RT> {
    fn drop(&mut self) {
        self.shared.stop();
        self.peers.close();
    }
}

impl<M: Machine, RT: AsyncRuntime> Inner<M, RT> {
    /// Who leads, as far as is known here.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.raft.server_metrics().borrow_watched().current_leader
    }

    /// Carries out a command: here, or where the leader is.
    pub(crate) async fn decide(
        &self,
        command: Box<M::Command>,
        epoch: Option<Epoch>,
    ) -> Result<Answer<M>, WriteError<M::Rejection>> {
        let shared = &self.shared;
        if shared.wal.full() {
            return Err(WriteError::DiskFull);
        }
        if shared.digests.diverged().is_some() {
            return Err(WriteError::Diverged);
        }
        if shared.removed() {
            return Err(WriteError::Removed);
        }
        let (tx, rx) = Cfg::<RT>::oneshot();
        shared.desk.push(command, epoch, tx)?;
        match rx.await {
            Ok(Ok(Done::Answer(answer))) => Ok(answer),
            Ok(Ok(Done::Before(outcome))) => self.before(outcome).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(WriteError::Stopped),
        }
    }

    /// The answer of the first time, from history.
    async fn before(&self, outcome: Outcome) -> Result<Answer<M>, WriteError<M::Rejection>> {
        let mut events = Vec::with_capacity(outcome.count as usize);
        while events.len() < outcome.count as usize {
            let from = Seq(outcome.first_seq.0 + events.len() as u64);
            let page = reading::events(&self.shared, from, outcome.count as usize - events.len()).await;
            let page = page.map_err(|_| WriteError::OutcomeUnknown)?;
            if page.is_empty() {
                return Err(WriteError::OutcomeUnknown);
            }
            for (_, bytes) in page {
                events.push(M::decode(&bytes).map_err(|_| WriteError::OutcomeUnknown)?);
            }
        }
        let seq = Seq(outcome.first_seq.0 + u64::from(outcome.count) - 1);
        let checkpoint = Checkpoint { epoch: self.shared.head().epoch, seq };
        Ok(Answer { checkpoint, first_seq: outcome.first_seq, events: Events::of(events), repeated: true })
    }
}

/// A member of the cluster; cheap to clone.
pub struct Member<M: Machine, RT: AsyncRuntime>(Arc<Inner<M, RT>>);

impl<M: Machine, RT: AsyncRuntime> Clone for Member<M, RT> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Machine, RT: AsyncRuntime> Member<M, RT> {
    /// Recovers the state, starts Raft, the sequencer and the housekeeping.
    pub async fn open<T: Transport<RT>>(options: Options<M>, transport: T) -> Result<Self, OpenError> {
        let stats = Arc::new(Stats::default());
        let limits = options.limits.sane();
        let from = recovery::From {
            member: options.member,
            disk: options.disk.clone(),
            clock: options.clock.clone(),
            stats: stats.clone(),
            limits: limits.clone(),
            plant: options.plant,
            whole: false,
        };
        let recovered = on_disk::<RT, _>(&options.disk, Lane::Log, move |files| recover::<M>(files, from)).await;
        let recovered = recovered.map_err(OpenError::io("recovering"))??;
        let shared = Shared::new(Parts {
            member: options.member,
            limits,
            disk: options.disk,
            clock: options.clock,
            wal: recovered.wal,
            stats,
            observers: options.observers,
            place: recovered.replay.place,
            head: recovered.replay.head,
            kept: recovered.kept,
            grown: recovered.grown,
            history_from: recovered.history_from,
            plant: options.plant,
        });
        let weak = Arc::downgrade(&shared);
        let epoch = Arc::new(move || weak.upgrade().map(|shared| shared.head().epoch).unwrap_or_default());
        let known = shared.limits.known::<M>();
        let peers = Peers::new(options.member, transport, shared.clock.clone(), epoch, known);
        let raft = start(&shared, options.timing, &peers).await?;
        lead(&shared, &raft, options.initialize.then_some(options.address)).await?;
        let shares = Shares { shared: shared.clone(), raft: raft.clone(), peers: peers.clone() };
        let _sequencer = Cfg::<RT>::spawn(crate::sequencer::run(shared.clone(), raft.clone()));
        let _forward = Cfg::<RT>::spawn(crate::forward::run(shares.clone()));
        let _confirm = Cfg::<RT>::spawn(crate::confirm::run(shares.clone()));
        let _ping = Cfg::<RT>::spawn(crate::peer::ping::run(shares.clone()));
        let _watch = Cfg::<RT>::spawn(house::watch(shares.clone()));
        let _backfill = Cfg::<RT>::spawn(backfill::run(shares.clone()));
        let _housekeeping = Cfg::<RT>::spawn(house::keep(shares));
        let every = Duration::from_millis(shared.limits.checkpoint_ms);
        let inner = Arc::new(Inner { shared, raft, peers, incoming: Incoming::default(), changing: false.into() });
        if !every.is_zero() {
            let _attest = Cfg::<RT>::spawn(attest::keep(Arc::downgrade(&inner), every));
        }
        let _upgrade = Cfg::<RT>::spawn(upgrade::keep(Arc::downgrade(&inner)));
        let _retain = Cfg::<RT>::spawn(retain::keep(Arc::downgrade(&inner)));
        let _relief = Cfg::<RT>::spawn(relief::keep(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// Makes the connections to other members anew before they are next used: this one proves more than it did.
    pub fn connections_renew(&self) {
        self.0.peers.renew();
    }

    /// Serves one connection from another member, until it is lost or this one stops. `from`: who it is, by its
    /// certificate; whoever says to be another one is refused. `votes`: it proves that it may vote and lead; from others no
    /// entries, votes and snapshots are taken.
    pub async fn accept(&self, from: Option<u64>, votes: bool, pipe: Pipe<RT>) {
        serve(&self.0, from, votes, pipe).await;
    }

    /// This member votes, by the membership that is applied here.
    pub fn votes(&self) -> bool {
        self.head().members.voters.iter().any(|set| set.contains(&self.0.shared.member))
    }

    /// Carries out a command, once it is durable on a majority; asked of any member, decided by the leader. What is
    /// applied here may be behind [`Answer::checkpoint`].
    pub fn write(
        &self,
        command: M::Command,
    ) -> impl Future<Output = Result<Answer<M>, WriteError<M::Rejection>>> + Send {
        self.0.decide(Box::new(command), None)
    }

    /// The first command of a log; its entry brings the epoch.
    pub async fn bootstrap(&self, epoch: Epoch, command: M::Command) -> Result<Answer<M>, WriteError<M::Rejection>> {
        self.0.decide(Box::new(command), Some(epoch)).await
    }

    /// The head as applied here.
    pub fn head(&self) -> Arc<Head<M::State>> {
        self.0.shared.head()
    }

    /// True once the log has its first entry.
    pub fn is_bootstrapped(&self) -> bool {
        self.head().seq.0 > 0
    }

    /// Waits until this member's term is open for commands; false after `limit`.
    pub async fn writable(&self, limit: Duration) -> bool {
        let wait = async {
            while !self.0.shared.desk.writable() {
                Cfg::<RT>::sleep(Duration::from_millis(1)).await;
            }
        };
        Cfg::<RT>::timeout(limit, wait).await.is_ok()
    }

    /// True where this member leads and its term is open for commands: what it has applied is the newest there is.
    pub fn leads(&self) -> bool {
        self.0.shared.desk.writable()
    }

    /// Opens a checkpoint, digests the state there, and attests it in the log: the one that leads does, whoever is asked.
    pub async fn checkpoint(&self) -> Result<Attested, WriteError<M::Rejection>> {
        attest::checkpoint(&self.0).await
    }

    /// At most `limit` events from `from` on, with their bytes; fewer where a page's bytes are full.
    pub async fn history(&self, from: Seq, limit: usize) -> Result<Vec<(Seq, Bytes)>, HistoryError> {
        crate::reading::events(&self.0.shared, from, limit).await
    }

    /// At most `limit` entries, the first one the one that holds event `from`; fewer where a page's bytes are full.
    pub async fn entries_from(&self, from: Seq, limit: usize) -> Result<Vec<EntryFrame>, HistoryError> {
        crate::reading::frames(&self.0.shared, from, limit).await
    }

    /// All that a log is made of, from what follows event `from` - 1 on: at most `limit` entries, the last one with events, up to
    /// what is applied here; fewer where a page's bytes are full. It rests several times as long as it reads: whoever writes
    /// beside it is not to notice.
    pub async fn backup_from(&self, from: Seq, limit: usize) -> Result<Vec<Item>, HistoryError> {
        let clock = &self.0.shared.clock;
        let begin = clock.monotonic_us();
        let items = crate::reading::items(&self.0.shared, from, limit).await?;
        let took = clock.monotonic_us().saturating_sub(begin);
        Cfg::<RT>::sleep(Duration::from_micros(took * BACKUP_REST).min(BACKUP_REST_MAX)).await;
        Ok(items)
    }

    /// The state that a backup begins with, where history does not begin with the first event.
    pub async fn backup_base(&self) -> Result<Option<Base>, HistoryError> {
        let shared = &self.0.shared;
        Ok(base::find(shared, shared.wal.oldest()).await?.map(Base::from))
    }

    /// Holds history from event `from` on, whatever need not be kept any longer; [`u64::MAX`]: holds nothing.
    pub fn history_hold(&self, from: Seq) {
        self.0.shared.held.store(from.0, Relaxed);
    }

    /// Somebody reads history from event `from` on: what of it is here when this returns stays until the answer is dropped, or is told
    /// how far they are.
    pub fn history_reading(&self, from: Seq) -> Reading {
        self.0.shared.readers.begin(from)
    }

    /// True where no other member that answers has history from before where it begins here.
    pub fn history_sought(&self) -> bool {
        self.0.shared.sought.load(Relaxed)
    }

    /// The last event at or before a time (ms since 1970, UTC); 0 where there is none.
    pub async fn seq_at_time(&self, time_ms: u64) -> Result<Seq, HistoryError> {
        crate::reading::seq_at_time(&self.0.shared, time_ms).await
    }

    /// Proves of the tree of the first `size` events, which are applied here: its root, that `event` is in it, that it
    /// continues that of the first `old`. The first time, and after a restart, history is read for it.
    pub async fn prove(&self, size: Seq, event: Option<Seq>, old: Option<Seq>) -> Result<Proof, HistoryError> {
        tree::prove(&self.0.shared, size, event, old).await
    }

    /// The hashes of a tile of the tree, as C2SP tlog-tiles has them: `width` of them, from the left; `None` where the tree has
    /// no such tile yet. The first time, and after a restart, history is read for it.
    pub async fn tile(&self, level: u32, index: u64, width: u32) -> Result<Option<Vec<Hash>>, HistoryError> {
        tree::tile(&self.0.shared, level, index, width).await
    }

    /// The roots of subtrees, with their levels, that stand for the events up to `to`, none across a size of `since`.
    pub async fn hide(&self, to: Seq, since: Vec<Seq>) -> Result<Vec<(u32, Hash)>, HistoryError> {
        tree::hide(&self.0.shared, to, since).await
    }

    /// Replays the log from its first event, or from the state that history begins with, up to event `to`, or to what is applied now.
    pub async fn log_verify(&self, to: Option<Seq>) -> Result<VerifyReport, VerifyError> {
        verify::live(&self.0.shared, to).await
    }

    /// Makes a snapshot of at least what is applied now, unless there is one; an error where only memory has it. Of nothing there
    /// is none: beside an empty log it would say that the log is gone, the next time that the folder is opened.
    pub async fn snapshot(&self) -> Result<(), SnapshotError> {
        let shared = &self.0.shared;
        let wanted = lock(&shared.place).last;
        if wanted.is_none() {
            return Ok(());
        }
        let made = || {
            let kept = lock(&shared.kept);
            kept.as_ref().filter(|kept| kept.meta.last_log_id >= wanted).map(|kept| kept.written)
        };
        let written = loop {
            if let Some(written) = made() {
                break written;
            }
            // Dropped by Raft where one is being made already.
            self.0.raft.trigger().snapshot().await.map_err(|_| SnapshotError::Stopped)?;
            Cfg::<RT>::sleep(Duration::from_millis(10)).await;
        };
        let why = || lock(&shared.stats.snapshot_error).clone().unwrap_or_else(|| "it is older than the log".into());
        if written { Ok(()) } else { Err(SnapshotError::NotWritten(why())) }
    }

    /// Waits until everything that was acknowledged before, anywhere in the cluster, is applied here.
    pub async fn linearize(&self) -> Result<(), MemberError> {
        let Inner { shared, raft, .. } = &*self.0;
        if shared.plant.stale_read {
            return Ok(());
        }
        let until_us = shared.clock.monotonic_us() + shared.limits.leader_wait_ms * 1000;
        let index = loop {
            if let Ok(index) = shared.confirm.read().await {
                break index;
            }
            if shared.desk.is_stopped() {
                return Err(MemberError::Stopped);
            }
            if shared.removed() {
                return Err(MemberError::Removed);
            }
            if shared.clock.monotonic_us() > until_us {
                return Err(MemberError::NoLeader);
            }
            Cfg::<RT>::sleep(crate::forward::PAUSE).await;
        };
        let applied = raft.wait(Some(APPLY_LIMIT)).applied_index_at_least(Some(index), "linearize").await;
        applied.map(drop).map_err(|_| match shared.desk.is_stopped() {
            true => MemberError::Stopped,
            false => MemberError::TimedOut,
        })
    }

    /// Takes a member in that has no vote yet, or changes a member's address.
    pub async fn learner_add(&self, id: u64, address: String) -> Result<(), MemberError> {
        membership::ask(&self.0, Change::Learner { id, address }).await.map(drop)
    }

    /// Whether a member could be given a vote now; it is an error where not.
    pub async fn promotable(&self, id: u64) -> Result<(), MemberError> {
        membership::ask(&self.0, Change::Promotable { id }).await.map(drop)
    }

    /// Gives a member a vote, once it has caught up.
    pub async fn promote(&self, id: u64) -> Result<(), MemberError> {
        membership::ask(&self.0, Change::Promote { id }).await.map(drop)
    }

    /// Removes a member for good, the leader too: it hands over first.
    pub async fn member_remove(&self, id: u64) -> Result<(), MemberError> {
        membership::ask(&self.0, Change::Remove { id }).await.map(drop)
    }

    /// Hands the leadership to a voter, or to the most caught-up one; returns who leads then.
    pub async fn transfer(&self, to: Option<u64>) -> Result<u64, MemberError> {
        membership::ask(&self.0, Change::Transfer { to }).await
    }

    /// A summary, as of now.
    pub fn status(&self) -> Status {
        let shared = &self.0.shared;
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let (log_bytes, segments) = shared.wal.size();
        let (queue, in_flight) = shared.desk.load();
        let kept = lock(&shared.kept).clone();
        let now_us = shared.clock.monotonic_us();
        let stopped = metrics.running_state.as_ref().err().map(ToString::to_string);
        let index = |id| index(id).unwrap_or_default();
        Status {
            role: match metrics.state {
                _ if stopped.is_some() => Role::Stopped,
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            member: shared.member,
            term: metrics.current_term,
            leader: metrics.current_leader,
            removed: shared.removed(),
            history_from: shared.history_from().0,
            feature_level: shared.head().feature_level,
            known_level: shared.limits.known_level::<M>(),
            peers: self.peers(&metrics),
            writable: shared.desk.writable(),
            last_index: metrics.last_log_index.unwrap_or_default(),
            committed_index: index(&shared.wal.marks().committed),
            applied_index: index(&lock(&shared.place).last),
            purged_index: index(&metrics.purged),
            log_bytes,
            segments,
            snapshot_index: kept.as_ref().map(|kept| index(&kept.meta.last_log_id)),
            snapshot_seq: kept.as_ref().map(|kept| kept.head.seq.0),
            snapshot_age_ms: kept.and_then(|kept| kept.made_us).map(|made| now_us.saturating_sub(made) / 1000),
            snapshot_error: lock(&shared.stats.snapshot_error).clone(),
            queue,
            in_flight,
            disk_full: shared.wal.full(),
            diverged: shared.digests.diverged().map(|seq| seq.0),
            fatal: shared.fatal().or(shared.wal.closed()).or(stopped),
            sync_us: shared.stats.sync_us.counts(),
            sync_bytes: shared.stats.sync_bytes.counts(),
            entry_events: shared.stats.entry_events.counts(),
            commit_us: shared.stats.commit_us.counts(),
            entries: shared.stats.entries.load(Relaxed),
            commands: shared.stats.commands.load(Relaxed),
            skipped: shared.stats.skipped.load(Relaxed),
            not_allowed: shared.stats.not_allowed.load(Relaxed),
        }
    }

    fn peers(&self, metrics: &RaftMetrics<Cfg<RT>>) -> Vec<PeerStatus> {
        let Inner { shared, peers, .. } = &*self.0;
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let last = metrics.last_log_index.map_or(0, |last| last + 1);
        let status = |(id, node): (&u64, &BasicNode)| {
            let heard = peers.known(*id).map(|link| link.heard.clone());
            let replication = metrics.replication.as_ref();
            let matched = replication.map(|matched| matched.get(id).copied().flatten().map(|id| id.index));
            PeerStatus {
                id: *id,
                address: node.addr.clone(),
                voter: voters.contains(id),
                heard_ms: heard.as_ref().and_then(|heard| heard.ago_ms(&*shared.clock)),
                answered_ms: heard.as_ref().and_then(|heard| heard.answered_ms(&*shared.clock)),
                skew_ms: heard.and_then(|heard| heard.skew_ms()),
                matched: matched.flatten(),
                behind: matched.map(|matched| last.saturating_sub(matched.map_or(0, |at| at + 1))),
            }
        };
        membership.nodes().filter(|(id, _)| **id != shared.member).map(status).collect()
    }

    /// Stops: a leader hands over to another voter if it can, commands that wait are answered as stopped, the log is
    /// synced and closed. The folder is free once the last handle is dropped.
    pub async fn shutdown(&self) {
        let Inner { shared, raft, peers, .. } = &*self.0;
        if membership::can_hand_over(&self.0)
            && let Err(error) = membership::hand_over(&self.0, None, HAND_OVER_LIMIT).await
        {
            tracing::warn!(%error, "nobody took over");
        }
        shared.stop();
        peers.close();
        let _ = raft.shutdown().await;
        let (tx, rx) = Cfg::<RT>::oneshot();
        shared.wal.close(Box::new(move |result| {
            let _ = tx.send(result);
        }));
        let wait = async {
            let _ = rx.await;
            while Arc::strong_count(&shared.wal) > 1 || Arc::strong_count(shared) > 1 {
                Cfg::<RT>::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = Cfg::<RT>::timeout(STOP_LIMIT, wait).await;
    }
}

/// Starts Raft on what was recovered.
async fn start<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    timing: Timing,
    peers: &Arc<Peers<RT>>,
) -> Result<Raft<M, RT>, OpenError> {
    let config = Config {
        cluster_name: "cvlan".into(),
        heartbeat_interval: timing.heartbeat_ms,
        election_timeout_min: timing.election_min_ms,
        election_timeout_max: timing.election_max_ms,
        enable_pre_vote: Some(true),
        // A leader that crashed may have lost entries that it had sent: it must not lead again without an election.
        enable_leader_restore: Some(shared.plant.leader_restore),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: shared.limits.purge_behind,
        purge_batch_size: PURGE_BATCH.min(shared.limits.purge_behind.max(1)),
        ..Config::default()
    };
    let config = config.validate().map_err(|error| OpenError::Raft(error.to_string()))?;
    let replica = Replica { shared: shared.clone() };
    let (disk, packed, part_bytes) = (shared.disk.clone(), Arc::default(), shared.limits.part_bytes);
    let network = Network::<M, RT> { peers: peers.clone(), disk, packed, part_bytes, _machine: PhantomData };
    let log = Log::<RT>(shared.wal.clone(), PhantomData);
    let raft = openraft::Raft::new(shared.member, Arc::new(config), network, log, replica).await;
    raft.map_err(|error| OpenError::Raft(error.to_string()))
}

/// Makes this member, at `address`, the only voter of a new log; the only voter of an old one need not wait for a
/// silent leader.
async fn lead<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    raft: &Raft<M, RT>,
    address: Option<String>,
) -> Result<(), OpenError> {
    let failed = |error: &dyn ToString| OpenError::Raft(error.to_string());
    if !raft.is_initialized().await.map_err(|error| failed(&error))? {
        let Some(address) = address else { return Ok(()) };
        let members = BTreeMap::from([(shared.member, BasicNode::new(address))]);
        return raft.initialize(members).await.map_err(|error| failed(&error));
    }
    if raft.voter_ids().eq([shared.member]) {
        raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

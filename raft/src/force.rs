//! A new cluster out of what one member has, where the majority of the old one is lost for good.
//!
//! ```text
//! … last entry of the old epoch, committed or not │ membership: this member alone │ EpochBegun{previous}, in a new epoch
//! ```
//! The log goes on: same numbers, same tree, same history. Two entries and a vote in a later term are appended while no
//! member has the folder open. What others acknowledged and this member does not have is lost. Members of the old cluster
//! are of another epoch: the handshake refuses them, and their entries fit nowhere here.

use crate::disk::{Lane, on_disk};
use crate::error::OpenError;
use crate::head::Members;
use crate::options::Options;
use crate::recovery::{From, Recovered, recover};
use crate::status::Stats;
use crate::store::wal::index;
use crate::types::{Cfg, Entry, Frame, Leader, LeaderId, LogId, Payload, Vote};
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::EntryWriter;
use cvlan_core::machine::{Context, Machine, SystemFact};
use openraft::async_runtime::OneshotSender;
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, BasicNode, EntryPayload};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// What the folder has, with everything in its log, before anything was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forced {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its last event.
    pub seq: Seq,
    /// Time of that, milliseconds since 1970 (UTC).
    pub time_ms: u64,
    /// Who took part.
    pub members: Members,
    /// It was done.
    pub done: bool,
}

/// Looks at a folder that no member has open, and makes `options.member` the only member of a new cluster in epoch `to`
/// if the log is one of epoch `from`. Durable once it returns; until then the old log is as it was, but that
/// a snapshot ahead of it may be noted there, as at any start.
pub async fn force_new_cluster<M: Machine, RT: AsyncRuntime>(
    options: &Options<M>,
    from: Option<Epoch>,
    to: Epoch,
) -> Result<Forced, OpenError> {
    let recovered = recovered::<M, RT>(options).await?;
    let head = &recovered.replay.head;
    let due = from == Some(head.epoch) && head.members.addresses.len() > 1;
    epoch_begin::<M, RT>(options, recovered, due.then_some(to)).await
}

/// A folder with everything in its log, committed or not.
pub(crate) async fn recovered<M: Machine, RT: AsyncRuntime>(options: &Options<M>) -> Result<Recovered<M>, OpenError> {
    let disk = &options.disk;
    let folder = From {
        member: options.member,
        disk: disk.clone(),
        clock: options.clock.clone(),
        stats: Arc::new(Stats::default()),
        limits: options.limits.clone().sane(),
        plant: options.plant,
        whole: true,
    };
    let recovered = on_disk::<RT, _>(disk, Lane::Log, move |files| recover::<M>(files, folder)).await;
    recovered.map_err(OpenError::io("recovering"))?
}

/// Begins epoch `to` behind what the folder has, with this member alone; without one only says what is there.
pub(crate) async fn epoch_begin<M: Machine, RT: AsyncRuntime>(
    options: &Options<M>,
    recovered: Recovered<M>,
    to: Option<Epoch>,
) -> Result<Forced, OpenError> {
    let (head, wal) = (recovered.replay.head, recovered.wal);
    let found = Forced {
        epoch: head.epoch,
        seq: head.seq,
        time_ms: head.time_ms,
        members: Members::clone(&head.members),
        done: false,
    };
    // A snapshot came, and the log was not told before the end: it goes on behind that, as it would have at the next start.
    let snapshot = recovered.replay.place.last;
    if to.is_some()
        && index(&snapshot) > index(&wal.marks().last)
        && let Some(upto) = snapshot
    {
        durable::<RT>(|done| wal.purge(upto, done)).await.map_err(OpenError::io("purging the log"))?;
    }
    let marks = wal.marks();
    let Some((last, to)) = marks.last.max(marks.purged).zip(to) else {
        settle::<RT>(options, &wal).await?;
        return Ok(found);
    };

    let fact = SystemFact::EpochBegun { previous: head.epoch, member: options.member };
    let id = Sha256::new().chain_update("epoch").chain_update(to.0).finalize();
    let id = id.first_chunk().copied().unwrap_or_default();
    let time_ms = head.time_ms.max(options.clock.wall_ms());
    let (level, known_level) = (head.feature_level, options.limits.known_level::<M>());
    let context = Context { epoch: to, next_seq: Seq(head.seq.0 + 1), time_ms, level, known_level };
    let refused = |error: M::Rejection| OpenError::Raft(format!("the machine does not begin an epoch: {error}"));
    let events = M::decide(&head.machine, &context, &M::system(fact, id)).map_err(refused)?;
    let mut entry = EntryWriter::new(to, context.next_seq, head.root, events.len(), 0);
    for event in &events {
        entry.push(|out| M::encode(event, out));
    }
    let frame = Frame(entry.finish().0);

    let voted = marks.vote.map_or(0, |vote| vote.leader_id.term);
    let leader_id = LeaderId { term: voted.max(last.leader_id.term) + 1, node_id: options.member };
    let at = |index: u64| LogId { leader_id: Leader::from(leader_id), index };
    let entries = [
        Entry { log_id: at(last.index + 1), payload: alone(options)? },
        Entry { log_id: at(last.index + 2), payload: EntryPayload::Normal(frame) },
    ];
    let writing = || OpenError::io("beginning an epoch");
    // In one block: both entries, or none.
    durable::<RT>(|done| wal.append(entries, done)).await.map_err(writing())?;
    wal.committed(Some(at(last.index + 2)));
    durable::<RT>(|done| wal.vote(&Vote { leader_id, committed: true }, done)).await.map_err(writing())?;
    settle::<RT>(options, &wal).await?;
    Ok(Forced { done: true, ..found })
}

/// The membership of this member alone.
pub(crate) fn alone(options: &Options<impl Machine>) -> Result<Payload, OpenError> {
    let address = BasicNode::new(options.address.clone());
    let alone = BTreeSet::from([options.member]);
    let membership = openraft::Membership::new(vec![alone], BTreeMap::from([(options.member, address)]));
    membership.map(EntryPayload::Membership).map_err(|error| OpenError::Raft(error.to_string()))
}

/// Waits for the log to be closed, and for whatever it still does on the disk.
pub(crate) async fn settle<RT: AsyncRuntime>(
    options: &Options<impl Machine>,
    wal: &Arc<crate::store::wal::Wal>,
) -> Result<(), OpenError> {
    let closing = || OpenError::io("closing the log");
    let closed = durable::<RT>(|done| {
        wal.close(done);
        Ok(())
    });
    closed.await.map_err(closing())?;
    on_disk::<RT, _>(&options.disk, Lane::Work, |_| ()).await.map_err(closing())
}

pub(crate) async fn durable<RT: AsyncRuntime>(
    write: impl FnOnce(crate::store::wal::Done) -> io::Result<()>,
) -> io::Result<()> {
    let (tx, rx) = Cfg::<RT>::oneshot();
    write(Box::new(move |result| drop(tx.send(result))))?;
    rx.await.map_err(|_| io::Error::other("the disk is gone"))?
}

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
use crate::recovery::{From, recover};
use crate::status::Stats;
use crate::types::{Cfg, Entry, Frame, Leader, LeaderId, LogId, Vote};
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
/// if the log is one of epoch `from`. Durable once it returns; until then the old log is as it was.
pub async fn force_new_cluster<M: Machine, RT: AsyncRuntime>(
    options: &Options<M>,
    from: Option<Epoch>,
    to: Epoch,
) -> Result<Forced, OpenError> {
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
    let recovered = recovered.map_err(OpenError::io("recovering"))??;
    let (head, wal) = (recovered.replay.head, recovered.wal);
    let found = Forced {
        epoch: head.epoch,
        seq: head.seq,
        time_ms: head.time_ms,
        members: Members::clone(&head.members),
        done: false,
    };
    let marks = wal.marks();
    let due = from == Some(head.epoch) && head.members.addresses.len() > 1;
    let Some(last) = marks.last.max(marks.purged).filter(|_| due) else {
        settle::<RT>(options, &wal).await?;
        return Ok(found);
    };

    let fact = SystemFact::EpochBegun { previous: head.epoch, member: options.member };
    let id = Sha256::new().chain_update("epoch").chain_update(to.0).finalize();
    let id = id.first_chunk().copied().unwrap_or_default();
    let time_ms = head.time_ms.max(options.clock.wall_ms());
    let context = Context { epoch: to, next_seq: Seq(head.seq.0 + 1), time_ms };
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
    let address = BasicNode::new(options.address.clone());
    let alone = BTreeSet::from([options.member]);
    let membership = openraft::Membership::new(vec![alone], BTreeMap::from([(options.member, address)]));
    let membership = membership.map_err(|error| OpenError::Raft(error.to_string()))?;
    let entries = [
        Entry { log_id: at(last.index + 1), payload: EntryPayload::Membership(membership) },
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

/// Waits for the log to be closed, and for whatever it still does on the disk.
async fn settle<RT: AsyncRuntime>(
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

async fn durable<RT: AsyncRuntime>(write: impl FnOnce(crate::store::wal::Done) -> io::Result<()>) -> io::Result<()> {
    let (tx, rx) = Cfg::<RT>::oneshot();
    write(Box::new(move |result| drop(tx.send(result))))?;
    rx.await.map_err(|_| io::Error::other("the disk is gone"))?
}

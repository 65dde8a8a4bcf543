//! A log out of a backup's entries, in an empty folder, and a new epoch behind them.
//!
//! ```text
//! a state, if need be │ entries and memberships as they were │ membership: this member alone │ EpochBegun{previous}, in a new epoch
//! ```
//! A state comes as a snapshot comes, to entry 0, and what follows it must come to the digests that the log attests.
//! The log goes on: same numbers, same tree, same history. Nobody who took part in the old one can come back by itself, and
//! whoever has a checkpoint of the old epoch starts over.

use crate::base::Base;
use crate::disk::{Files, Lane, on_disk};
use crate::error::{OpenError, VerifyError};
use crate::force::{Forced, durable, epoch_begin, recovered, settle};
use crate::head::{Head, Members};
use crate::options::Options;
use crate::store::snapshot::{self, Snapshot};
use crate::tree;
use crate::types::{Entry, Frame, Leader, LeaderId, LogId, Payload, SnapshotMeta, Vote};
use crate::verify::verify_dir;
use bytes::Bytes;
use cvlan_core::id::Epoch;
use cvlan_core::machine::Machine;
use openraft::{AsyncRuntime, BasicNode, EntryPayload, StoredMembership};
use std::collections::BTreeMap;
use std::io;

/// What a log is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// An entry with events, verbatim.
    Frame(Bytes),
    /// Who is a member from there on.
    Members(Members),
}

fn membership(Members { voters, addresses }: Members) -> Result<Payload, OpenError> {
    let nodes: BTreeMap<u64, BasicNode> = addresses.into_iter().map(|(id, at)| (id, BasicNode::new(at))).collect();
    let membership = openraft::Membership::new(voters, nodes);
    membership.map(EntryPayload::Membership).map_err(|error| OpenError::Raft(error.to_string()))
}

/// Bytes that are written, and synced, at once.
const WRITE: usize = 1 << 20;

/// Makes `options.member` the only member of a log of these, in order, behind `base`, in a new epoch `to`. `fits` says of the state after them
/// whether it may be. Durable once it returns; what an earlier error leaves behind is of no use.
pub async fn restore<M: Machine, RT: AsyncRuntime>(
    options: &Options<M>,
    base: Option<Base>,
    mut next: impl FnMut() -> io::Result<Option<Restored>>,
    fits: impl FnOnce(&M::State) -> Result<(), String>,
    to: Epoch,
) -> Result<Forced, OpenError> {
    let empty = recovered::<M, RT>(options).await?;
    let wal = empty.wal;
    if wal.marks().last.is_some() {
        settle::<RT>(options, &wal).await?;
        return Err(OpenError::Incomplete("a backup comes into an empty folder, and this one has a log".into()));
    }
    let leader_id = LeaderId { term: 1, node_id: options.member };
    let at = |index: u64| LogId { leader_id: Leader::from(leader_id), index };
    let writing = || OpenError::io("writing the log");
    let (mut batch, mut next_index, mut bytes) = (Vec::new(), 0, 0);
    let late = base.is_some();
    if let Some(base) = base {
        begin_late::<M, RT>(options, base.head::<M>()?, at(0)).await?;
        durable::<RT>(|done| wal.purge(at(0), done)).await.map_err(writing())?;
        next_index = 1;
    }
    loop {
        let given = next().map_err(OpenError::io("reading the backup"))?;
        let end = given.is_none();
        let payload = match given {
            None => None,
            Some(Restored::Frame(frame)) => {
                bytes += frame.len();
                Some(EntryPayload::Normal(Frame(frame)))
            }
            Some(Restored::Members(members)) => Some(membership(members)?),
        };
        if let Some(payload) = payload {
            batch.push(Entry { log_id: at(next_index), payload });
            next_index += 1;
        }
        if end || bytes >= WRITE {
            let entries = std::mem::take(&mut batch);
            durable::<RT>(|done| wal.append(entries, done)).await.map_err(writing())?;
            bytes = 0;
        }
        if end {
            break;
        }
    }
    let Some(last) = next_index.checked_sub(1) else {
        settle::<RT>(options, &wal).await?;
        return Err(OpenError::Incomplete("the backup is empty".into()));
    };
    wal.committed(Some(at(last)));
    durable::<RT>(|done| wal.vote(&Vote { leader_id, committed: true }, done)).await.map_err(writing())?;
    settle::<RT>(options, &wal).await?;
    drop(wal);
    if late {
        attested::<M, RT>(options).await?;
    }
    let written = recovered::<M, RT>(options).await?;
    if let Err(why) = fits(&written.replay.head.machine) {
        settle::<RT>(options, &written.wal).await?;
        return Err(OpenError::Incomplete(why));
    }
    epoch_begin::<M, RT>(options, written, Some(to)).await
}

/// Puts a state where entry `at` would have led to it.
async fn begin_late<M: Machine, RT: AsyncRuntime>(
    options: &Options<M>,
    head: Head<M::State>,
    at: LogId,
) -> Result<(), OpenError> {
    let EntryPayload::Membership(membership) = membership(Members::clone(&head.members))? else {
        return Err(OpenError::Incomplete("the state has no members".into()));
    };
    let meta = SnapshotMeta { last_log_id: Some(at), last_membership: StoredMembership::new(Some(at), membership) };
    let snapshot = Snapshot { meta, skipped: Vec::new(), head };
    let job = move |files: &dyn Files| {
        tree::base_write(files, &snapshot.head.tree)?;
        snapshot::write::<M>(files, &snapshot)
    };
    let written = on_disk::<RT, _>(&options.disk, Lane::Work, job).await;
    written.and_then(|written| written).map_err(OpenError::io("writing the state"))
}

/// The state that the folder begins with is what its log came to, as far as the log says it.
async fn attested<M: Machine, RT: AsyncRuntime>(options: &Options<M>) -> Result<(), OpenError> {
    let refused =
        |why: String| OpenError::Incomplete(format!("the state that the backup begins with is not its log's: {why}"));
    match verify_dir::<M, RT>(options.disk.clone()).await {
        Ok(report) if report.checkpoints.is_empty() => Err(refused("no checkpoint after it says that it is".into())),
        Ok(_) => Ok(()),
        Err(VerifyError::Open(error)) => Err(error),
        Err(error) => Err(refused(error.to_string())),
    }
}

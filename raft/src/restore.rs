//! A log out of a backup's entries, in an empty folder, and a new epoch behind them.
//!
//! ```text
//! entries and memberships as they were │ membership: this member alone │ EpochBegun{previous}, in a new epoch
//! ```
//! The log goes on: same numbers, same tree, same history. Nobody who took part in the old one can come back by itself, and
//! whoever has a checkpoint of the old epoch starts over.

use crate::error::OpenError;
use crate::force::{Forced, durable, epoch_begin, recovered, settle};
use crate::head::Members;
use crate::options::Options;
use crate::types::{Entry, Frame, Leader, LeaderId, LogId, Payload, Vote};
use bytes::Bytes;
use cvlan_core::id::Epoch;
use cvlan_core::machine::Machine;
use openraft::{AsyncRuntime, BasicNode, EntryPayload};
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

/// Makes `options.member` the only member of a log of these, in order, in a new epoch `to`. `fits` says of the state after them
/// whether it may be. Durable once it returns; what an earlier error leaves behind is of no use.
pub async fn restore<M: Machine, RT: AsyncRuntime>(
    options: &Options<M>,
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
    let written = recovered::<M, RT>(options).await?;
    if let Err(why) = fits(&written.replay.head.machine) {
        settle::<RT>(options, &written.wal).await?;
        return Err(OpenError::Incomplete(why));
    }
    epoch_begin::<M, RT>(options, written, Some(to)).await
}

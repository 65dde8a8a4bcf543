//! A log out of a backup's entries, in an empty folder, and a new epoch behind them.
//!
//! ```text
//! membership: this member alone │ entry, entry, … as they were │ membership again │ EpochBegun{previous}, in a new epoch
//! ```
//! The log goes on: same numbers, same tree, same history. Nobody who took part in the old one can come back by itself, and
//! whoever has a checkpoint of the old epoch starts over.

use crate::error::OpenError;
use crate::force::{Forced, alone, durable, epoch_begin, recovered, settle};
use crate::options::Options;
use crate::types::{Entry, Frame, Leader, LeaderId, LogId, Vote};
use bytes::Bytes;
use cvlan_core::id::Epoch;
use cvlan_core::machine::Machine;
use openraft::{AsyncRuntime, EntryPayload};
use std::io;

/// Bytes that are written, and synced, at once.
const WRITE: usize = 1 << 20;

/// Makes `options.member` the only member of a log of these entries' frames, in epoch `to`. `fits` says of the state after them
/// whether it may be. Durable once it returns; what an earlier error leaves behind is of no use.
pub async fn restore<M: Machine, RT: AsyncRuntime>(
    options: &Options<M>,
    mut next: impl FnMut() -> io::Result<Option<Bytes>>,
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
    let mut batch = vec![Entry { log_id: at(0), payload: alone(options)? }];
    let (mut index, mut bytes) = (0, 0);
    loop {
        let frame = next().map_err(OpenError::io("reading the backup"))?;
        let end = frame.is_none();
        if let Some(frame) = frame {
            (index, bytes) = (index + 1, bytes + frame.len());
            batch.push(Entry { log_id: at(index), payload: EntryPayload::Normal(Frame(frame)) });
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
    wal.committed(Some(at(index)));
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

//! `--force-new-cluster[=EPOCH]`: this member goes on alone, because a majority of the others is lost for good. Without
//! the epoch it only says what that would mean; with it, it is done once: the epoch is then another one.

use crate::keys::{Identity, Keys};
use crate::random::uuid;
use crate::server::StartError;
use cvlan_core::Rules;
use cvlan_core::id::Epoch;
use cvlan_raft::{Forced, Options, force_new_cluster};
use openraft_rt_tokio::TokioRuntime;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// To know what it would mean.
    Look,
    /// To go on alone, if the log is one of this epoch.
    Leave(Epoch),
}

/// Does it, before the log is opened. `raft` = what the log is opened with.
pub async fn force(asked: Force, keys: &Keys, identity: Identity, raft: &Options<Rules>) -> Result<(), StartError> {
    let from = match asked {
        Force::Look => None,
        Force::Leave(epoch) => Some(epoch),
    };
    let to = Epoch(uuid().into_bytes());
    let found = force_new_cluster::<Rules, TokioRuntime>(raft, from, to).await?;
    let others = others(&found, raft.member);
    let now = match asked {
        Force::Leave(epoch) if identity.left == Some(epoch) && identity.epoch == found.epoch => {
            tracing::warn!("--force-new-cluster={epoch} was carried out before: leave it out");
            return Ok(());
        }
        _ if others.is_empty() => {
            tracing::warn!(epoch = %found.epoch, "this member is the only one already: --force-new-cluster does nothing");
            found.epoch
        }
        Force::Look => return Err(StartError::Force(meaning(&found, raft.member, &others))),
        Force::Leave(_) if found.done => {
            let (seq, left) = (found.seq.0, found.epoch);
            tracing::warn!(member = raft.member, seq, %left, epoch = %to, "A NEW CLUSTER: this member goes on alone; {others} cannot come back");
            to
        }
        Force::Leave(epoch) if identity.epoch != epoch => {
            return Err(StartError::Force(format!(
                "--force-new-cluster={epoch} is of another log: this one is of epoch {}",
                found.epoch
            )));
        }
        // The process ended between the log and what follows.
        Force::Leave(_) => found.epoch,
    };
    if identity.epoch != now {
        keys.identity_write(&Identity { epoch: now, left: from, ..identity })?;
    }
    Ok(())
}

fn others(found: &Forced, member: u64) -> String {
    let others = found.members.addresses.iter().filter(|(id, _)| **id != member);
    let others: Vec<String> = others.map(|(id, address)| format!("member {id} at {address}")).collect();
    others.join(", ")
}

fn meaning(found: &Forced, member: u64, others: &str) -> String {
    format!(
        "--force-new-cluster makes this member ({member}) the only one of a new cluster, for good: it has events up to {}; \
         what only the others have ({others}) is lost, and none of them can come back. To go on: \
         --force-new-cluster={}",
        found.seq, found.epoch
    )
}

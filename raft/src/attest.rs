//! Checkpoints: the leader opens one, digests its state there, and attests it in the log; every replica compares its own.
//! Done from time to time where something else changed since, and on demand.

use crate::digests::Found;
use crate::error::WriteError;
use crate::member::{Attested, Inner};
use crate::types::Cfg;
use cvlan_core::machine::{Machine, SystemFact};
use openraft::AsyncRuntime;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use sha2::{Digest, Sha256};
use std::sync::Weak;
use std::time::Duration;

/// A digest of the state is waited for this long.
const DIGEST_LIMIT: Duration = Duration::from_secs(60);

/// Opens a checkpoint and attests it.
pub(crate) async fn checkpoint<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
) -> Result<Attested, WriteError<M::Rejection>> {
    let opened = member.decide(M::system(SystemFact::CheckpointOpened, id(member, "opened")), None).await?;
    let seq = opened.checkpoint.seq;
    // Where a snapshot took the place of that event, nobody here ever digests it.
    let found = Cfg::<RT>::timeout(DIGEST_LIMIT, member.shared.digests.wait(seq)).await;
    let Found { root, digest } = match found {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => return Err(WriteError::Stopped),
        Err(_) => return Err(WriteError::OutcomeUnknown),
    };
    member.decide(M::system(SystemFact::Checkpointed { seq, root, digest }, id(member, "attested")), None).await?;
    Ok(Attested { checkpoint: opened.checkpoint, root, digest })
}

/// Does so for as long as the member is there and whenever it leads.
pub(crate) async fn keep<M: Machine, RT: AsyncRuntime>(member: Weak<Inner<M, RT>>, every: Duration) {
    let Some(mut halt) = member.upgrade().map(|member| member.shared.halt()) else { return };
    while !*halt.borrow_watched() {
        if let Select2::First(_) = Cfg::<RT>::select2(halt.changed(), Cfg::<RT>::sleep(every)).await {
            return;
        }
        let Some(member) = member.upgrade() else { return };
        // After the newest one there is at least the event that attests it.
        let quiet = member.shared.digests.newest().map_or(0, |newest| newest.0 + 1);
        let due = member.shared.head().seq.0 > quiet;
        if due
            && member.shared.desk.writable()
            && let Err(error) = checkpoint(&member).await
        {
            tracing::warn!(code = error.code(), "no checkpoint; trying again later");
        }
    }
}

/// Id of a command of ours: unlike any other, and the same in a simulation that is run again.
fn id<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, what: &str) -> [u8; 16] {
    let (head, shared) = (member.shared.head(), &member.shared);
    let hash = Sha256::new()
        .chain_update(what)
        .chain_update(head.epoch.0)
        .chain_update(head.root)
        .chain_update(shared.member.to_le_bytes())
        .chain_update(shared.clock.monotonic_us().to_le_bytes())
        .chain_update(shared.clock.wall_ms().to_le_bytes())
        .finalize();
    hash.first_chunk().copied().unwrap_or_default()
}

//! Checkpoints: the leader opens one, digests its state there, and attests it in the log; every replica compares its own.
//! Done from time to time where something else changed since, and on demand.

use crate::digests::Found;
use crate::error::WriteError;
use crate::forward::PAUSE;
use crate::member::{Answer, Attested, Inner};
use crate::peer::codec::{self, Request};
use crate::peer::link::CallError;
use crate::types::Cfg;
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use cvlan_core::machine::{Machine, SystemFact};
use openraft::AsyncRuntime;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use sha2::{Digest, Sha256};
use std::sync::Weak;
use std::time::Duration;

/// A digest of the state is waited for this long.
const DIGEST_LIMIT: Duration = Duration::from_secs(60);

/// The leader's answer is waited for this long.
const ASK_LIMIT: Duration = Duration::from_secs(70);

/// Opens a checkpoint and attests it, or has the leader do so: what another member found is not for it to attest.
pub(crate) async fn checkpoint<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
) -> Result<Attested, WriteError<M::Rejection>> {
    let shared = &member.shared;
    let until_us = shared.clock.monotonic_us() + shared.limits.leader_wait_ms * 1000;
    loop {
        if shared.digests.diverged().is_some() {
            return Err(WriteError::Diverged);
        }
        if shared.removed() {
            return Err(WriteError::Removed);
        }
        if shared.desk.is_stopped() {
            return Err(WriteError::Stopped);
        }
        let attested = match member.leader() {
            Some(leader) if leader == shared.member => lead(member).await,
            Some(leader) => ask(member, leader).await,
            None => Err(WriteError::NoLeader),
        };
        if !matches!(attested, Err(WriteError::NoLeader)) {
            return attested;
        }
        if shared.clock.monotonic_us() > until_us {
            return Err(WriteError::NoLeader);
        }
        Cfg::<RT>::sleep(PAUSE).await;
    }
}

async fn ask<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    leader: u64,
) -> Result<Attested, WriteError<M::Rejection>> {
    match member.peers.link(leader).call(Request::Checkpoint, &[], ASK_LIMIT).await {
        Ok((codec::Answer::Attested { epoch, seq, root, digest }, _)) => {
            let checkpoint = Checkpoint { epoch: Epoch(epoch), seq: Seq(seq) };
            Ok(Attested { checkpoint, root, digest })
        }
        Ok((codec::Answer::Refused, body)) => Err(codec::get(&body).unwrap_or(WriteError::OutcomeUnknown)),
        Ok((codec::Answer::NotLeader { .. }, _)) | Err(CallError::Unreachable(_)) => Err(WriteError::NoLeader),
        Ok(_) | Err(CallError::Lost | CallError::TimedOut) => Err(WriteError::OutcomeUnknown),
    }
}

/// As the leader.
pub(crate) async fn lead<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
) -> Result<Attested, WriteError<M::Rejection>> {
    let opened = decide(member, SystemFact::CheckpointOpened, "opened").await?;
    let seq = opened.checkpoint.seq;
    // Where a snapshot took the place of that event, nobody here ever digests it.
    let found = Cfg::<RT>::timeout(DIGEST_LIMIT, member.shared.digests.wait(seq)).await;
    let Found { root, digest } = match found {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => return Err(WriteError::Stopped),
        Err(_) => return Err(WriteError::OutcomeUnknown),
    };
    decide(member, SystemFact::Checkpointed { seq, root, digest }, "attested").await?;
    Ok(Attested { checkpoint: opened.checkpoint, root, digest })
}

/// Puts a fact of the log's own into it, as the leader.
pub(crate) async fn decide<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    fact: SystemFact,
    what: &str,
) -> Result<Answer<M>, WriteError<M::Rejection>> {
    match member.decide(Box::new(M::system(fact, id(member, what))), None).await {
        // It led a moment ago: who leads now takes no facts from others.
        Err(WriteError::NotAllowed { .. }) => Err(WriteError::NoLeader),
        decided => decided,
    }
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
            && let Err(error) = lead(&member).await
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

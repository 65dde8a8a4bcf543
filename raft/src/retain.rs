//! How long history is kept: the leader says from which event on, and every member lets go of what lies before, in whole files.
//!
//! ```text
//! leader: older than `history_ms`, and a file of it could go? ─► HistoryTrimmed{first} in the log
//! every member: what it says, and no more than ─► the purge marker, the newest snapshots, what is held ─► tree made safe
//!               ─► the state that is left begins with, written ─► files go
//! ```
//! Its own time decides, which no clock that jumps can move far. The tree of the events is kept: proofs about the events that
//! remain go on, also about those that are gone.

use crate::attest;
use crate::backfill::first_event;
use crate::base;
use crate::disk::{Files, Lane, on_disk};
use crate::error::HistoryError;
use crate::member::Inner;
use crate::reading;
use crate::replica::Shared;
use crate::store::history::Sought;
use crate::store::snapshot::{self, Snapshot};
use crate::store::wal::index;
use crate::tree;
use crate::types::Cfg;
use cvlan_core::id::Seq;
use cvlan_core::machine::{Machine, SystemFact};
use openraft::AsyncRuntime;
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Sees to it, for as long as the member is there.
pub(crate) async fn keep<M: Machine, RT: AsyncRuntime>(member: Weak<Inner<M, RT>>) {
    let Some((mut halt, every)) =
        member.upgrade().map(|member| (member.shared.halt(), member.shared.limits.history_check_ms))
    else {
        return;
    };
    let every = Duration::from_millis(every.max(1));
    while !*halt.borrow_watched() {
        if let Select2::First(_) = Cfg::<RT>::select2(halt.changed(), Cfg::<RT>::sleep(every)).await {
            return;
        }
        let Some(member) = member.upgrade() else { return };
        if let Err(error) = decide(&member).await {
            tracing::warn!(%error, "how long history is kept was not decided; trying again");
        }
        if let Err(error) = trim(&member.shared).await {
            tracing::warn!(%error, "history was not trimmed; trying again");
        }
    }
}

/// As the leader: says from which event on history is kept, where a file would go.
async fn decide<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>) -> Result<(), HistoryError> {
    let (shared, head) = (&member.shared, member.shared.head());
    let oldest_ms = head.time_ms.saturating_sub(shared.limits.history_ms);
    if shared.limits.history_ms == 0 || oldest_ms == 0 || !shared.desk.writable() {
        return Ok(());
    }
    // What may go already has not gone yet: it is held, or there is no room.
    let due = M::history_from(&head.machine);
    if due > Seq(1) && shared.wal.trimmable(bound(shared, due).await?) > 0 {
        return Ok(());
    }
    let last = match reading::seq_at_time(shared, oldest_ms).await {
        // All of what is here is younger.
        Err(HistoryError::Gone { .. }) => return Ok(()),
        found => found?,
    };
    let first = Seq(last.0 + 1);
    if first <= due || shared.wal.trimmable(bound(shared, first).await?) == 0 {
        return Ok(());
    }
    match attest::decide(member, SystemFact::HistoryTrimmed { first }, "trimmed").await {
        Ok(_) => tracing::info!(first = first.0, "history before this event is not kept any longer"),
        Err(error) => tracing::warn!(code = error.code(), %error, "history was not trimmed; trying again"),
    }
    Ok(())
}

/// The entry before which files may go, so that history still begins at or before event `first`, and recovery with any
/// snapshot that is kept.
async fn bound<M: Machine, RT: AsyncRuntime>(shared: &Arc<Shared<M, RT>>, first: Seq) -> Result<u64, HistoryError> {
    let listed = on_disk::<RT, _>(&shared.disk, Lane::Work, snapshot::list).await.map_err(|_| HistoryError::Stopped)?;
    let listed = listed.map_err(|error| HistoryError::Damaged(format!("snapshots/: {error}")))?;
    // An older one is what history begins with.
    let Some(snapshot) = listed.iter().rev().take(shared.limits.snapshots_kept).next_back() else { return Ok(0) };
    let wal = &shared.wal;
    let purged = index(&wal.purged()).map_or(0, |purged| purged + 1);
    Ok(wal.locate(Sought::Seq(first)).min(wal.locate(Sought::Seq(Seq(*snapshot)))).min(purged))
}

/// Lets go of what need not be kept.
async fn trim<M: Machine, RT: AsyncRuntime>(shared: &Arc<Shared<M, RT>>) -> Result<(), HistoryError> {
    use openraft::async_runtime::Mutex as _;
    let _alone = shared.past.lock().await;
    let head = shared.head();
    let let_go = if shared.plant.kept_goes { head.seq } else { M::history_from(&head.machine) };
    let held = if shared.plant.held_goes { Seq(u64::MAX) } else { Seq(shared.held.load(Relaxed)) };
    let (due, read) = (let_go.min(held), shared.readers.from());
    let (first, from) = (due.min(read), shared.history_from());
    if due <= Seq(1) || shared.wal.full() {
        return Ok(());
    }
    if read < due {
        tracing::info!(from = read.0, "somebody reads history from this event on: it stays until they are through");
    }
    let bound = bound(shared, first).await?;
    if shared.wal.trimmable(bound) == 0 {
        return Ok(());
    }
    let Some(oldest) = shared.wal.oldest_after(bound) else { return Ok(()) };
    let Some((begins, root)) = first_event(shared, oldest).await? else { return Ok(()) };
    let base = base::moved(shared, oldest).await?;
    if let Some(Snapshot { head, .. }) = &base
        && (head.seq.0 + 1, head.root) != (begins.0, root)
    {
        return Err(HistoryError::Damaged(format!(
            "what is to go comes to event {}, and not to event {begins}",
            head.seq
        )));
    }
    tree::secure(shared, Seq(begins.0 - 1)).await?;
    let (wal, kept, told) = (shared.wal.clone(), shared.limits.snapshots_kept, shared.clone());
    // In one job: what else is done for snapshots takes the old base for the base until then.
    let job = move |files: &dyn Files| {
        base.map_or(Ok(()), |base| snapshot::write::<M>(files, &base))?;
        // Unless somebody has begun to read meanwhile: then the next one goes on.
        let goes = told.readers.unless_before(begins, || told.history_begins(from, begins));
        let gone = if goes { Some(wal.trim(files, bound)?) } else { None };
        snapshot::thin(files, kept, wal.oldest())?;
        Ok::<_, io::Error>(gone)
    };
    let gone = on_disk::<RT, _>(&shared.disk, Lane::Work, job).await;
    let gone = gone.map_err(|_| HistoryError::Stopped)?;
    let gone = gone.map_err(|error| HistoryError::Damaged(format!("removing old files: {error}")))?;
    if let Some(gone) = gone {
        tracing::info!(files = gone, begins = begins.0, "history was trimmed");
    }
    Ok(())
}

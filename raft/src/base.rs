//! The state that history begins with, where it does not begin with the first event: the oldest snapshot that is kept.
//!
//! ```text
//! gone │ base: the state after event n │ entries from event n+1 on, all of them                 snapshots/ │ log/, past/
//! trim:  base ─► entries that are to go, folded ─► the next base, written ─► they go, and the old base with them
//! ```
//! A member that came later has the state that it was brought forward with; once it has older history (see `backfill`), it
//! fetches the state before that too. A replay, a backup and a check of the log begin with it. Its root is the one that the next entry continues, and the next
//! checkpoint that the log attests says whether its state is what the log came to.

use crate::backfill::history;
use crate::disk::{Files, Lane, on_disk};
use crate::error::{HistoryError, OpenError};
use crate::head::Head;
use crate::member::Shares;
use crate::peer::codec::{Answer, Request};
use crate::peer::link::Link;
use crate::peer::{CHUNK_BYTES, CHUNK_LIMIT, LOST_MS, PARCEL_MAX, SAVED_MAX};
use crate::reading::page;
use crate::replay::{self, Replay};
use crate::replica::Shared;
use crate::store::codec::SnapshotHead;
use crate::store::snapshot::{self, Read, Snapshot};
use crate::store::wal::index;
use crate::types::{Cfg, SnapshotMeta};
use bytes::Bytes;
use cvlan_core::id::Seq;
use cvlan_core::log::{CompactRange, Hash};
use cvlan_core::machine::Machine;
use openraft::async_runtime::Mutex as _;
use openraft::async_runtime::WatchReceiver;
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, EntryPayload};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A state, as a backup has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The last event in it.
    pub seq: Seq,
    /// The tree of the events up to there.
    pub tree: CompactRange,
    /// SHA-256 of the canonical state, as checkpoints have it.
    pub digest: Hash,
    /// Bytes of the state.
    pub length: u64,
    /// The state, compressed (zstd).
    pub packed: Bytes,
}

impl Base {
    /// The head that it is, where it is what it says.
    pub(crate) fn head<M: Machine>(&self) -> Result<Head<M::State>, OpenError> {
        let wrong = |why: String| OpenError::Incomplete(format!("the state after event {}: {why}", self.seq));
        if self.length > SAVED_MAX {
            return Err(wrong(format!("it is {} bytes long", self.length)));
        }
        let head = snapshot::unpack::<M>(&self.packed, self.length, &self.digest).map_err(wrong)?;
        match head.seq == self.seq && head.tree == self.tree && head.seq.0 > 0 {
            true => Ok(head),
            false => Err(wrong("it is of another history".into())),
        }
    }
}

impl<S> From<Read<S>> for Base {
    fn from(Read { snapshot, length, digest, packed }: Read<S>) -> Self {
        let Head { seq, tree, .. } = snapshot.head;
        Self { seq, tree, digest, length, packed: packed.into() }
    }
}

/// What history begins with, where it begins with entry `oldest`; `None` where that is the first one.
pub(crate) async fn find<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    oldest: u64,
) -> Result<Option<Read<M::State>>, HistoryError> {
    if oldest == 0 {
        return Ok(None);
    }
    let found = on_disk::<RT, _>(&shared.disk, Lane::Work, move |files| snapshot::base::<M>(files, oldest, true)).await;
    let found = found.map_err(|_| HistoryError::Stopped)?;
    let found = found.map_err(|error| HistoryError::Damaged(format!("snapshots/: {error}")))?;
    // There is always a snapshot of what was purged, but a disk may have damaged it.
    found.map(Some).ok_or_else(|| HistoryError::Gone { first: shared.history_from() })
}

/// What history begins with once it begins with entry `oldest`; `None` where what is there does.
pub(crate) async fn moved<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    oldest: u64,
) -> Result<Option<Snapshot<M::State>>, HistoryError> {
    let mut replay = Replay::<M>::default();
    let (mut from, halt) = (shared.wal.oldest(), shared.halt());
    if let Some(Read { snapshot: Snapshot { meta, skipped, head }, .. }) = find(shared, from).await? {
        from = index(&meta.last_log_id).map_or(0, |last| last + 1);
        (replay.place.last, replay.place.membership, replay.place.skipped) =
            (meta.last_log_id, meta.last_membership, skipped);
        replay.head = head;
    }
    if from >= oldest {
        return Ok(None);
    }
    while from < oldest {
        if *halt.borrow_watched() {
            return Err(HistoryError::Stopped);
        }
        let began = shared.clock.monotonic_us();
        let entries = page(shared, from, oldest).await?;
        let Some(last) = entries.last() else { return Err(HistoryError::Damaged(format!("entry {from} is not here"))) };
        from = last.log_id.index + 1;
        let job = move |_: &dyn Files| {
            let folded = entries.iter().try_for_each(|entry| replay.entry(entry).map(drop));
            folded.map(|()| replay)
        };
        let folded = on_disk::<RT, _>(&shared.disk, Lane::Work, job).await.map_err(|_| HistoryError::Stopped)?;
        replay = folded.map_err(|fault| HistoryError::Damaged(fault.to_string()))?;
        // As much for whoever writes meanwhile.
        let took = shared.clock.monotonic_us().saturating_sub(began);
        Cfg::<RT>::sleep(Duration::from_micros(took)).await;
    }
    let meta = SnapshotMeta { last_log_id: replay.place.last, last_membership: replay.place.membership };
    Ok(Some(Snapshot { meta, skipped: replay.place.skipped, head: replay.head }))
}

/// Fetches an older state than the one here, where this member has the history that follows it.
pub(crate) async fn fetch<M: Machine, RT: AsyncRuntime>(shares: &Shares<M, RT>) -> Result<(), String> {
    let Shares { shared, peers, .. } = shares;
    let oldest = shared.wal.oldest();
    if oldest == 0 || shared.wal.full() || shared.removed() {
        return Ok(());
    }
    let Some((own, _)) = about(shared, oldest).await.map_err(|error| error.to_string())? else { return Ok(()) };
    let end = next(&own);
    if end <= oldest {
        return Ok(());
    }
    let (members, mut wrong) = (shared.head().members.clone(), None);
    for id in members.addresses.keys().filter(|id| **id != shared.member) {
        let answers = |link: &Arc<Link<RT>>| link.heard.answered_ms(&*shared.clock).is_some_and(|ms| ms <= LOST_MS);
        let Some(link) = peers.known(*id).filter(answers).filter(|link| link.heard.level() >= LEVEL) else { continue };
        match from_one(shared, &link, oldest..end).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(why) => wrong = Some(format!("the state that member {id} has: {why}")),
        }
    }
    wrong.map_or(Ok(()), Err)
}

/// Versions that know this level know these requests.
const LEVEL: u32 = 2;

fn next(about: &SnapshotHead) -> u64 {
    about.last.map_or(0, |last| last.index + 1)
}

async fn about<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    oldest: u64,
) -> io::Result<Option<(SnapshotHead, u64)>> {
    on_disk::<RT, _>(&shared.disk, Lane::Work, move |files| snapshot::base_about(files, oldest)).await?
}

/// Takes what one member has, which is to be followed by one of `entries`; false where it has none, or not now.
async fn from_one<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    link: &Arc<Link<RT>>,
    entries: Range<u64>,
) -> Result<bool, String> {
    let asked = link.call(Request::Base { oldest: entries.start, end: entries.end }, &[], CHUNK_LIMIT).await;
    let Ok((Answer::Base { about, packed: due }, _)) = asked else { return Ok(false) };
    let (seq, after) = (about.seq, next(&about));
    if !entries.contains(&after) || due > PARCEL_MAX || about.length > SAVED_MAX {
        return Err("it is none that was asked for".into());
    }
    let mut packed = Vec::new();
    while (packed.len() as u64) < due {
        let asked = link.call(Request::State { seq, offset: packed.len() as u64 }, &[], CHUNK_LIMIT).await;
        let Ok((Answer::State, piece)) = asked else { return Ok(false) };
        if piece.is_empty() || (packed.len() + piece.len()) as u64 > due {
            return Err("its bytes are none that were announced".into());
        }
        packed.extend_from_slice(&piece);
    }
    let unpacked = on_disk::<RT, _>(&shared.disk, Lane::Work, move |_| snapshot::received::<M>(*about, &packed)).await;
    let base = unpacked.map_err(|error| error.to_string())??;
    let level = base.head.feature_level;
    if level > shared.limits.known_level::<M>() {
        return Err(format!("it is of feature level {level}"));
    }
    let _alone = shared.past.lock().await;
    // What follows it here is what followed it there.
    if !continued(shared, after, &base.head).await? {
        return Err("what follows here continues another one".into());
    }
    let wal = shared.wal.clone();
    let job = move |files: &dyn Files| {
        // Nothing of what follows it has gone meanwhile.
        if wal.oldest() <= after { snapshot::write::<M>(files, &base).map(|()| true) } else { Ok(false) }
    };
    let written = on_disk::<RT, _>(&shared.disk, Lane::Work, job).await.and_then(|written| written);
    let written = written.map_err(|error| error.to_string())?;
    if written {
        tracing::info!(seq, "the state that history begins with is here");
    }
    Ok(written)
}

/// The first event at or after an entry continues this head.
async fn continued<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    mut from: u64,
    head: &Head<M::State>,
) -> Result<bool, String> {
    loop {
        let (entries, _) = history(shared, from, u64::MAX).await.map_err(|error| error.to_string())?;
        let Some(last) = entries.last() else { return Ok(false) };
        from = last.log_id.index + 1;
        for entry in &entries {
            if let EntryPayload::Normal(frame) = &entry.payload {
                let read = replay::read::<M>(frame).map_err(|fault| fault.to_string())?;
                return Ok(head.fits(read.continues, read.first_seq, &read.prev_root));
            }
        }
    }
}

/// What [`Request::Base`] comes to here.
pub(crate) async fn asked<M: Machine, RT: AsyncRuntime>(shared: &Arc<Shared<M, RT>>, oldest: u64, end: u64) -> Answer {
    match about(shared, shared.wal.oldest().max(1)).await {
        Ok(Some((about, packed))) if (oldest..end).contains(&next(&about)) => {
            Answer::Base { about: Box::new(about), packed }
        }
        Ok(_) => Answer::Nothing,
        Err(error) => Answer::Unable(error.to_string()),
    }
}

/// What [`Request::State`] comes to here.
pub(crate) async fn piece<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    seq: u64,
    offset: u64,
) -> (Answer, Bytes) {
    let job = move |files: &dyn Files| snapshot::piece(files, seq, offset, CHUNK_BYTES);
    match on_disk::<RT, _>(&shared.disk, Lane::Work, job).await.and_then(|piece| piece) {
        Ok(piece) => (Answer::State, piece.into()),
        Err(error) => (Answer::Unable(error.to_string()), Bytes::new()),
    }
}

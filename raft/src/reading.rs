//! History as readers want it: events from a number on, the frames they are in, the number at a time. Only what is applied
//! here is shown; entries that were skipped are not part of history.

use crate::disk::{Lane, on_disk};
use crate::error::HistoryError;
use crate::head::Members;
use crate::member::{EntryFrame, Item};
use crate::replica::Shared;
use crate::store::history::Sought;
use crate::store::wal::index;
use crate::sync::lock;
use crate::types::{Entry, Frame};
use bytes::Bytes;
use cvlan_core::id::Seq;
use cvlan_core::log::entry_decode;
use cvlan_core::machine::Machine;
use openraft::{AsyncRuntime, EntryPayload, StoredMembership};
use std::sync::Arc;

/// Bytes of a page, beyond which it takes no further entry.
pub const PAGE_BYTES: usize = 1 << 20;

/// Bytes of a page of a backup: small, so that who writes beside it does not wait for it.
const BACKUP_BYTES: usize = 256 << 10;

/// Entries looked at in one step.
const STEP: u64 = 1024;

/// Entries from `from` on, up to `end`, at least one; [`PAGE_BYTES`] or [`STEP`] at most.
pub(crate) async fn page<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: u64,
    end: u64,
) -> Result<Vec<Entry>, HistoryError> {
    piece(shared, from, end, PAGE_BYTES).await
}

/// The same, of `bytes` at most.
async fn piece<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: u64,
    end: u64,
    bytes: usize,
) -> Result<Vec<Entry>, HistoryError> {
    // Trimmed meanwhile.
    let gone = || (from < shared.wal.oldest()).then(|| HistoryError::Gone { first: shared.history_from() });
    if let Some(gone) = gone() {
        return Err(gone);
    }
    let plan = shared.wal.plan(from..end.min(from.saturating_add(STEP)));
    if plan.in_memory() {
        return Ok(plan.memory());
    }
    let read = on_disk::<RT, _>(&shared.disk, Lane::Read, move |files| plan.read(files, bytes)).await;
    let damaged = |error: std::io::Error| gone().unwrap_or_else(|| HistoryError::Damaged(error.to_string()));
    read.map_err(|_| HistoryError::Stopped)?.map_err(damaged)
}

/// Calls `each` with the frames of applied entries from index `from` on, until it returns false.
async fn walk<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    mut from: u64,
    mut each: impl FnMut(&Frame) -> Result<bool, HistoryError>,
) -> Result<(), HistoryError> {
    loop {
        let place = lock(&shared.place).clone();
        let end = index(&place.last).map_or(0, |last| last + 1);
        let entries = page(shared, from, end).await?;
        let Some(last) = entries.last() else { return Ok(()) };
        from = last.log_id.index + 1;
        for entry in &entries {
            if let EntryPayload::Normal(frame) = &entry.payload
                && place.skipped.binary_search(&entry.log_id.index).is_err()
                && !each(frame)?
            {
                return Ok(());
            }
        }
    }
}

/// See [`crate::Member::history`].
pub(crate) async fn events<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: Seq,
    limit: usize,
) -> Result<Vec<(Seq, Bytes)>, HistoryError> {
    let mut found = Vec::new();
    let mut room = PAGE_BYTES;
    each_entry(shared, from, &mut |first_seq, events, _| {
        for (event, seq) in events.into_iter().zip(first_seq.0..) {
            if seq >= from.0 && found.len() < limit && room > 0 {
                room = room.saturating_sub(event.len());
                found.push((Seq(seq), event));
            }
        }
        found.len() < limit && room > 0
    })
    .await?;
    Ok(found)
}

/// See [`crate::Member::entries_from`].
pub(crate) async fn frames<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: Seq,
    limit: usize,
) -> Result<Vec<EntryFrame>, HistoryError> {
    let mut found = Vec::new();
    let mut room = PAGE_BYTES;
    each_entry(shared, from, &mut |first_seq, _, frame| {
        if found.len() < limit {
            room = room.saturating_sub(frame.0.len());
            found.push(EntryFrame { first_seq, frame: frame.0.clone() });
        }
        found.len() < limit && room > 0
    })
    .await?;
    Ok(found)
}

/// See [`crate::Member::backup_from`].
pub(crate) async fn items<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: Seq,
    limit: usize,
) -> Result<Vec<Item>, HistoryError> {
    if from > shared.head().seq {
        return Ok(Vec::new());
    }
    begins(shared, from)?;
    // Who the members are is said between two entries with events: from the one before on.
    let mut at = match from.0 {
        0 | 1 => shared.wal.oldest(),
        from => shared.wal.locate(Sought::Seq(Seq(from - 1))),
    };
    let (mut found, mut room) = (Vec::new(), BACKUP_BYTES);
    loop {
        let place = lock(&shared.place).clone();
        let entries = piece(shared, at, index(&place.last).map_or(0, |last| last + 1), BACKUP_BYTES).await?;
        let Some(last) = entries.last() else { return Ok(found) };
        at = last.log_id.index + 1;
        for entry in entries {
            match entry.payload {
                EntryPayload::Membership(membership) => {
                    found.push(Item::Members(Members::from(&StoredMembership::new(None, membership))));
                }
                EntryPayload::Normal(frame) if place.skipped.binary_search(&entry.log_id.index).is_err() => {
                    let read = entry_decode(&frame.0).map_err(|error| HistoryError::Damaged(error.to_string()))?;
                    if read.first_seq + read.events.len() as u64 <= from.0 {
                        found.clear();
                        continue;
                    }
                    room = room.saturating_sub(frame.0.len());
                    found.push(Item::Frame(EntryFrame { first_seq: Seq(read.first_seq), frame: frame.0 }));
                    if found.len() >= limit || room == 0 {
                        return Ok(found);
                    }
                }
                EntryPayload::Normal(_) | EntryPayload::Blank => {}
            }
        }
    }
}

/// History reaches back to event `from`.
pub(crate) fn begins<M: Machine, RT: AsyncRuntime>(shared: &Arc<Shared<M, RT>>, from: Seq) -> Result<(), HistoryError> {
    let first = shared.history_from();
    if first > from.max(Seq(1)) { Err(HistoryError::Gone { first }) } else { Ok(()) }
}

/// Entries from the one that holds event `from` on, until `each` returns false.
async fn each_entry<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    from: Seq,
    each: &mut (dyn FnMut(Seq, Vec<Bytes>, &Frame) -> bool + Send),
) -> Result<(), HistoryError> {
    if from > shared.head().seq {
        return Ok(());
    }
    begins(shared, from)?;
    let mut first = None;
    walk(shared, shared.wal.locate(Sought::Seq(from)), |frame| {
        let entry = entry_decode(&frame.0).map_err(|error| HistoryError::Damaged(error.to_string()))?;
        let oldest = *first.get_or_insert(Seq(entry.first_seq));
        if oldest > from.max(Seq(1)) {
            return Err(HistoryError::Gone { first: oldest });
        }
        if entry.first_seq + entry.events.len() as u64 <= from.0 {
            return Ok(true);
        }
        Ok(each(Seq(entry.first_seq), entry.events, frame))
    })
    .await
}

/// See [`crate::Member::seq_at_time`].
pub(crate) async fn seq_at_time<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    time_ms: u64,
) -> Result<Seq, HistoryError> {
    let head = shared.head();
    if head.time_ms <= time_ms {
        return Ok(head.seq);
    }
    let mut found = Seq(0);
    walk(shared, shared.wal.locate(Sought::Time(time_ms)), |frame| {
        let damaged = |error: &dyn ToString| HistoryError::Damaged(error.to_string());
        for bytes in entry_decode(&frame.0).map_err(|error| damaged(&error))?.events {
            let event = M::decode(&bytes).map_err(|error| damaged(&error))?;
            if M::time_ms(&event) > time_ms {
                return Ok(false);
            }
            found = M::seq(&event);
        }
        Ok(true)
    })
    .await?;
    if found == Seq(0) {
        // The last event at or before that time is not here.
        begins(shared, Seq(1))?;
    }
    Ok(found)
}

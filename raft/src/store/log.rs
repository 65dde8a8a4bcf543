//! The log as openraft wants it.

use crate::disk::{Lane, on_disk};
use crate::store::wal::{Done, Wal};
use crate::types::{Cfg, Entry, LogId, Vote};
use openraft::async_runtime::OneshotSender;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, OptionalSend};
use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

/// Bytes of one read for replication.
const REPLICATION_BYTES: usize = 1 << 20;

/// The log, and a reader of it.
pub(crate) struct Log<RT>(pub(crate) Arc<Wal>, pub(crate) PhantomData<fn() -> RT>);

impl<RT> Clone for Log<RT> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<RT: AsyncRuntime> Log<RT> {
    async fn entries(&self, range: std::ops::Range<u64>, bytes: usize) -> io::Result<Vec<Entry>> {
        let plan = self.0.plan(self.0.visible(range));
        if plan.in_memory() {
            return Ok(plan.memory());
        }
        on_disk::<RT, _>(self.0.disk(), Lane::Read, move |files| plan.read(files, bytes)).await?
    }

    /// Waits until a record is durable.
    async fn durable(&self, push: impl FnOnce(Done) -> io::Result<()>) -> io::Result<()> {
        let (tx, rx) = Cfg::<RT>::oneshot();
        push(Box::new(move |result| {
            let _ = tx.send(result);
        }))?;
        rx.await.map_err(|_| io::Error::other("the disk is gone"))?
    }
}

impl<RT: AsyncRuntime> RaftLogReader<Cfg<RT>> for Log<RT> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(start..end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.marks().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.entries(start..end, REPLICATION_BYTES).await?;
        let mut room = REPLICATION_BYTES;
        let fit = entries.iter().take_while(|entry| {
            let fits = room > 0;
            room = room.saturating_sub(crate::store::wal::size(entry));
            fits
        });
        let fit = fit.count();
        entries.truncate(fit);
        Ok(entries)
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> Result<Vec<LogId>, io::Error> {
        let (first, last) = range.into_inner();
        Ok(self.0.leaders(first, last))
    }
}

impl<RT: AsyncRuntime> RaftLogStorage<Cfg<RT>> for Log<RT> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Cfg<RT>>, io::Error> {
        let marks = self.0.marks();
        Ok(LogState { last_purged_log_id: marks.purged, last_log_id: marks.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.durable(|done| self.0.vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.0.committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.0.marks().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Cfg<RT>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.append(entries, Box::new(move |result| callback.io_completed(result)))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.durable(|done| self.0.truncate(last, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.durable(|done| self.0.purge(upto, done)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::counter::Counter;
    use crate::disk::LogStore;
    use crate::options::{Limits, Plant};
    use crate::recovery::{From, recover};
    use crate::replica::{Parts, Replica, Shared};
    use crate::status::Stats;
    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};
    use openraft_rt_tokio::TokioRuntime;
    use tempfile::TempDir;

    type Rt = TokioRuntime;

    struct Folders(LogStore);

    impl StoreBuilder<Cfg<Rt>, Log<Rt>, Replica<Counter, Rt>, TempDir> for Folders {
        async fn build(&self) -> Result<(TempDir, Log<Rt>, Replica<Counter, Rt>), StorageError<Cfg<Rt>>> {
            let folder = tempfile::tempdir().unwrap();
            let disk = LogStore::open(Some(self.0), folder.path()).unwrap();
            // Nothing is kept in memory that could be read from disk.
            let limits = Limits { segment_bytes: 4096, tail_bytes: 0, ..Limits::default() };
            let stats = Arc::new(Stats::default());
            let clock = Arc::new(SystemClock::default());
            let from = From {
                member: 0,
                disk: disk.clone(),
                clock: clock.clone(),
                stats: stats.clone(),
                limits: limits.clone(),
                plant: Plant::default(),
                whole: false,
            };
            let job = move |files: &dyn crate::disk::Files| recover::<Counter>(files, from);
            let recovered = on_disk::<Rt, _>(&disk, Lane::Log, job).await.unwrap().unwrap();
            let wal = recovered.wal.clone();
            let shared = Shared::new(Parts {
                member: 0,
                limits,
                disk,
                clock,
                wal: wal.clone(),
                stats,
                observers: Vec::new(),
                place: recovered.replay.place,
                head: recovered.replay.head,
                kept: recovered.kept,
                grown: recovered.grown,
                history_from: recovered.history_from,
                plant: Plant::default(),
            });
            Ok((folder, Log(wal, PhantomData), Replica { shared }))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn openrafts_storage_suite_passes() {
        for store in [LogStore::Wal, LogStore::Sled] {
            let folders = Folders(store);
            Suite::<Cfg<Rt>, Log<Rt>, Replica<Counter, Rt>, Folders, TempDir>::test_all(folders).await.unwrap();
        }
    }
}

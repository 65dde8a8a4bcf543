//! Storage, as a seam: everything that may block runs as a job on a [`Disk`], and touches storage only through the
//! [`Files`] that the job is given.
//!
//! ```text
//! async code ── Disk::run(lane, job) ──► lane: jobs in order ──► Files, File: blocking calls
//!      ▲                                                                │
//!      └──────────────── oneshot, IOFlushed, … sent by the job ◄────────┘
//! ```
//! [`FileDisk`] has one thread a lane. A simulated disk runs a job in its own task after a seeded delay, keeps what
//! was not synced apart, and fails or crashes at any call. [`SledDisk`] has the log in a database, and the rest in files. Framing, checksums, batching, the scan of a torn tail and the
//! choice of segments lie above, in [`crate::store`], and know no implementation.
//!
//! What an implementation promises: `sync` makes all earlier writes of that file durable; `sync_folder` makes earlier
//! creations, renames and removals in that folder durable. What it need not promise: anything about bytes that were not
//! synced (any subset of their sectors may be there after a crash).

mod choice;
mod file;
mod lanes;
mod sled;

pub use choice::LogStore;
pub use file::FileDisk;
pub use sled::SledDisk;

use openraft::AsyncRuntime;
use openraft::async_runtime::OneshotSender;
use openraft::type_config::TypeConfigExt;
use std::io;
use std::sync::Arc;

/// Where a database has the log, in the data folder.
pub(crate) const SLED: &str = "log/sled";

/// Which queue a job waits in. Jobs of one lane run in order, one at a time; lanes run beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Writes of the log: what a caller waits for.
    Log,
    /// Encoding of entries that are still being decided: no call of [`Files`], but a thread of its own. A job waits for whoever
    /// queued it.
    Encode,
    /// Reads of history.
    Read,
    /// Snapshots, digests, preparing the next segment: off everyone's path.
    Work,
}

/// Work that may block.
pub type Job = Box<dyn FnOnce(&dyn Files) + Send>;

/// Runs jobs.
pub trait Disk: Send + Sync + 'static {
    /// Queues `job` behind the earlier ones of its lane; never blocks. A disk that is gone drops the job.
    fn run(&self, lane: Lane, job: Job);
}

/// A folder of files. Names are relative, with at most one folder: `log/0000000001.seg`.
pub trait Files {
    /// Names in a folder, in order; of no folder, none.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Makes a folder, durably, unless it is there.
    fn make_folder(&self, folder: &str) -> io::Result<()>;

    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Makes a file of `len` zero bytes, really written so that its blocks are there (a later sync then writes data
    /// alone); replaces an old one.
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>>;

    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes a folder's entries durable.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
}

/// An open file; its methods block and are called in jobs alone.
pub trait File: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// True where there is no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `at`; fewer bytes are an error.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `at`.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}

/// Runs `job` on the disk and waits for what it returns.
pub(crate) async fn on_disk<RT: AsyncRuntime, T: Send + 'static>(
    disk: &Arc<dyn Disk>,
    lane: Lane,
    job: impl FnOnce(&dyn Files) -> T + Send + 'static,
) -> io::Result<T> {
    begin::<RT, T, _>(disk, lane, job).await
}

/// Has `job` run on the disk, from now on; the future is what it returns.
pub(crate) fn begin<RT, T, F>(
    disk: &Arc<dyn Disk>,
    lane: Lane,
    job: F,
) -> impl Future<Output = io::Result<T>> + Send + use<RT, T, F>
where
    RT: AsyncRuntime,
    T: Send + 'static,
    F: FnOnce(&dyn Files) -> T + Send + 'static,
{
    let (tx, rx) = crate::types::Cfg::<RT>::oneshot();
    disk.run(
        lane,
        Box::new(move |files| {
            let _ = tx.send(job(files));
        }),
    );
    async { rx.await.map_err(|_| io::Error::other("the disk is gone")) }
}

/// The disk is full, or no file can be opened (ENFILE, EMFILE of Linux): that passes. Of a block of the log nothing is written
/// then, for files are opened before.
pub(crate) fn no_room(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull || matches!(error.raw_os_error(), Some(23 | 24))
}

//! The log's folder in a sled database; every other folder in files, as ever.
//!
//! ```text
//! log/NAME ─► names: NAME ─► id ─┐
//!                                ▼
//!             pages: id ‖ page ─► at most 1 KiB, its zeros at the end left out; no page = zeros
//!                    id ‖ MAX  ─► the file's length
//! ```
//! What lies above (framing, checksums, torn tail, history, proofs) is the same log, byte for byte.
//!
//! sled 0.34 asks for writeback (`sync_file_range`) where it says "flushed", and never for more: a power cut takes what it
//! called stable, and what it overwrote in the belief that newer copies were. So the folder is marked for synchronous writes
//! (`chattr +S`, inherited by what is made in it): what sled takes for stable is, in sled's own order. And each sync of ours
//! ends with an `fdatasync` of `db`, which holds on file systems without that mark too; there sled's order is its own.
//! Values stay so small that a leaf of them is far below sled's bound (128 KiB) for files of their own in `blobs/`.

use super::file::Folder;
use super::lanes::{Lanes, wrote};
use super::{Disk, File, Files, Job, Lane, LogStore, SLED, no_room};
use crate::error::OpenError;
use crate::sync::lock;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags, statvfs};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Bytes of a file under one key. A leaf of sled's has 16 keys, and is written anew every ten changes.
const PAGE: usize = 1024;

/// The page number under which a file's length is.
const LENGTH: u64 = u64::MAX;

/// Memory for pages that were read, bytes. What is read again and again is in the log's own tail.
const CACHE: u64 = 32 << 20;

/// A write is refused, before anything is hurt, where the disk has less room than this beside it, bytes: out of room in the
/// middle of its own work, sled is of no use until it is opened anew.
const RESERVE: u64 = 16 << 20;

/// A database that was closed lets go of its file once its threads end what they do, within this; looked at every so often.
const LET_GO: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// What sled may write for a byte of ours: leaves of which one page changed, and copies of them.
const GROWTH: u64 = 4;

/// A folder whose log is in a sled database. Dropping it finishes the queued jobs and gives the folder free.
pub struct SledDisk(Lanes);

/// The database.
struct Store {
    names: sled::Tree,
    pages: sled::Tree,
    db: sled::Db,
    /// sled's own file, once more: it never syncs it.
    file: fs::File,
    path: PathBuf,
    ids: Mutex<Ids>,
    /// Last: it holds the lock.
    _folder: Arc<Folder>,
}

#[derive(Default)]
struct Ids {
    next: u64,
    /// Files that are open, by id.
    open: BTreeMap<u64, Weak<Node>>,
    /// Files without a name that nobody has open any more.
    gone: Vec<u64>,
}

/// A file that is open.
struct Node {
    id: u64,
    len: AtomicU64,
    /// It has no name any more: its pages go when it is closed.
    removed: AtomicBool,
    store: Arc<Store>,
}

/// What the lanes are given.
struct SledFiles {
    /// There once a log was begun.
    store: OnceLock<Arc<Store>>,
    data: PathBuf,
    folder: Arc<Folder>,
}

struct SledFile(Arc<Node>);

impl SledDisk {
    /// Makes the folder where it is missing, locks it, opens the database where there is one, starts the threads.
    pub fn open(data: impl AsRef<Path>) -> Result<Arc<Self>, OpenError> {
        Ok(Arc::new(Self(Lanes::start(Arc::new(SledFiles::open(data.as_ref())?))?)))
    }
}

impl Disk for SledDisk {
    fn run(&self, lane: Lane, job: Job) {
        self.0.run(lane, job);
    }
}

impl SledFiles {
    fn open(data: &Path) -> Result<Self, OpenError> {
        let folder = Arc::new(Folder::lock(data)?);
        let found = LogStore::found(data).map_err(OpenError::io("reading log/"))?;
        let files = Self { store: OnceLock::new(), data: data.to_path_buf(), folder };
        match found {
            Some(found @ LogStore::Wal) => Err(OpenError::OtherStore { found, asked: LogStore::Sled }),
            Some(LogStore::Sled) => files.begin().map_err(refused).map(|()| files),
            None => Ok(files),
        }
    }

    /// Opens the database; one that is not there is made.
    fn begin(&self) -> io::Result<()> {
        if self.store.get().is_none() {
            let store = Store::open(&self.data, self.folder.clone())?;
            let _ = self.store.set(Arc::new(store));
        }
        Ok(())
    }

    /// The database; an error where no log was begun.
    fn store(&self) -> io::Result<&Arc<Store>> {
        self.store.get().ok_or(io::ErrorKind::NotFound.into())
    }

    /// Not the log's: in files.
    fn elsewhere(&self, name: &str) -> Option<&Folder> {
        (name != "log" && !name.starts_with("log/")).then_some(&self.folder)
    }
}

impl Store {
    fn open(data: &Path, folder: Arc<Folder>) -> io::Result<Self> {
        let path = data.join(SLED);
        make_durably(data, &path)?;
        let database = || -> sled::Result<_> {
            let db = sled::Config::new().path(&path).cache_capacity(CACHE).open()?;
            Ok((db.open_tree("names")?, db.open_tree("pages")?, db))
        };
        let end = Instant::now() + LET_GO;
        let opened = loop {
            // It asserts what it reads.
            match catch_unwind(AssertUnwindSafe(database)) {
                // The folder is ours: who still holds the file are threads of a database of this very process.
                Ok(Err(error)) if error.to_string().contains("could not acquire lock") && Instant::now() < end => {
                    std::thread::sleep(LOOK);
                }
                Ok(opened) => break opened,
                Err(_) => break Err(sled::Error::ReportableBug("what it reads makes no sense".into())),
            }
        };
        let (names, pages, db) = opened.map_err(|error| match error {
            error @ sled::Error::Io(_) => lost(error),
            error => damaged(error.to_string()),
        })?;
        let file = fs::File::options().read(true).write(true).open(path.join("db"))?;
        settle(&path)?;
        let store = Self { names, pages, db, file, path, ids: Mutex::default(), _folder: folder };
        store.sweep()?;
        Ok(store)
    }

    /// Erases what a crash left of files that have no name, and finds the next id.
    fn sweep(&self) -> io::Result<()> {
        let mut named = BTreeSet::new();
        for entry in self.names.iter() {
            named.insert(number(&entry.map_err(lost)?.1)?);
        }
        let mut next = named.last().map_or(0, |last| last + 1);
        let mut from = 0;
        while let Some(entry) = self.pages.range(key(from, 0)..).next() {
            let id = number(&entry.map_err(lost)?.0)?;
            if !named.contains(&id) {
                self.erase(id)?;
            }
            from = id + 1;
            next = next.max(from);
        }
        lock(&self.ids).next = next;
        Ok(())
    }

    fn erase(&self, id: u64) -> io::Result<()> {
        for entry in self.pages.range(key(id, 0)..=key(id, LENGTH)) {
            self.pages.remove(entry.map_err(lost)?.0).map_err(lost)?;
        }
        Ok(())
    }

    /// Erases files that lost their names, as soon as nobody has them open.
    fn collect(&self) -> io::Result<()> {
        let gone = std::mem::take(&mut lock(&self.ids).gone);
        gone.into_iter().try_for_each(|id| self.erase(id))
    }

    /// A file that lost its name.
    fn unnamed(&self, id: &[u8]) -> io::Result<()> {
        let id = number(id)?;
        let open = {
            let mut ids = lock(&self.ids);
            let open = ids.open.get(&id).and_then(Weak::upgrade);
            if open.is_none() {
                ids.gone.push(id);
            }
            open
        };
        if let Some(node) = open {
            node.removed.store(true, SeqCst);
        }
        self.collect()
    }

    fn node(self: &Arc<Self>, id: u64, len: u64) -> Arc<Node> {
        let mut ids = lock(&self.ids);
        if let Some(node) = ids.open.get(&id).and_then(Weak::upgrade) {
            return node;
        }
        let node = Arc::new(Node { id, len: len.into(), removed: false.into(), store: self.clone() });
        ids.open.insert(id, Arc::downgrade(&node));
        node
    }

    /// An error where `bytes` more would leave too little room.
    fn room(&self, bytes: u64) -> io::Result<()> {
        let disk = statvfs(&self.path)?;
        let needed = bytes.saturating_mul(GROWTH).saturating_add(RESERVE);
        if disk.f_bavail.saturating_mul(disk.f_frsize) < needed {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// All that was written, to every file.
    fn sync(&self) -> io::Result<()> {
        self.db.flush().map_err(lost)?;
        self.file.sync_data()
    }

    fn put(&self, id: u64, page: u64, bytes: &[u8]) -> io::Result<()> {
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let done = match bytes.get(..end) {
            Some(kept) if end > 0 => self.pages.insert(key(id, page), kept),
            Some(_) | None => self.pages.remove(key(id, page)),
        };
        done.map(drop).map_err(lost)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut ids = lock(&self.store.ids);
        if ids.open.get(&self.id).is_some_and(|open| open.strong_count() == 0) {
            ids.open.remove(&self.id);
        }
        if self.removed.load(SeqCst) {
            ids.gone.push(self.id);
        }
    }
}

impl Files for SledFiles {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        if let Some(files) = self.elsewhere(folder) {
            return files.list(folder);
        }
        let Some(store) = self.store.get() else { return Ok(Vec::new()) };
        let prefix = format!("{folder}/");
        let mut names = Vec::new();
        for entry in store.names.scan_prefix(&prefix) {
            let name = String::from_utf8_lossy(&entry.map_err(lost)?.0).into_owned();
            names.extend(name.strip_prefix(&prefix).map(str::to_owned));
        }
        Ok(names)
    }

    fn make_folder(&self, folder: &str) -> io::Result<()> {
        match self.elsewhere(folder) {
            Some(files) => files.make_folder(folder),
            None => self.begin(),
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if let Some(files) = self.elsewhere(name) {
            return files.open(name);
        }
        let store = self.store()?;
        let id = number(&store.names.get(name).map_err(lost)?.ok_or(io::ErrorKind::NotFound)?)?;
        let len = store.pages.get(key(id, LENGTH)).map_err(lost)?;
        let len = number(&len.ok_or_else(|| damaged(format!("{name} has no length")))?)?;
        Ok(Arc::new(SledFile(store.node(id, len))))
    }

    /// Zeros take no room: whether there is some for what will be written is all that can be seen beforehand.
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        if let Some(files) = self.elsewhere(name) {
            return files.create(name, len);
        }
        let store = self.store()?;
        store.room(len)?;
        let id = {
            let mut ids = lock(&store.ids);
            ids.next += 1;
            ids.next - 1
        };
        store.pages.insert(key(id, LENGTH), &len.to_be_bytes()).map_err(lost)?;
        if let Some(old) = store.names.insert(name, &id.to_be_bytes()).map_err(lost)? {
            store.unnamed(&old)?;
        }
        Ok(Arc::new(SledFile(store.node(id, len))))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match (self.elsewhere(from), self.elsewhere(to)) {
            (Some(files), Some(_)) => return files.rename(from, to),
            (None, None) => {}
            _ => return Err(io::ErrorKind::CrossesDevices.into()),
        }
        let names = &self.store()?.names;
        let id = names.get(from).map_err(lost)?.ok_or(io::ErrorKind::NotFound)?;
        let old = names.get(to).map_err(lost)?.filter(|old| *old != id);
        let mut both = sled::Batch::default();
        both.remove(from);
        both.insert(to, id);
        names.apply_batch(both).map_err(lost)?;
        old.map_or(Ok(()), |old| self.store()?.unnamed(&old))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if let Some(files) = self.elsewhere(name) {
            return files.remove(name);
        }
        let store = self.store()?;
        let id = store.names.remove(name).map_err(lost)?.ok_or(io::ErrorKind::NotFound)?;
        store.unnamed(&id)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        match self.elsewhere(folder) {
            Some(files) => files.sync_folder(folder),
            None => self.store()?.sync(),
        }
    }
}

impl File for SledFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len.load(SeqCst))
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let Node { id, len, store, .. } = &*self.0;
        let end = at.saturating_add(buf.len() as u64);
        if end > len.load(SeqCst) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.fill(0);
        if buf.is_empty() {
            return Ok(());
        }
        for entry in store.pages.range(key(*id, at / PAGE as u64)..=key(*id, (end - 1) / PAGE as u64)) {
            let (place, bytes) = entry.map_err(lost)?;
            let start = number(place.get(8..).unwrap_or_default())? * PAGE as u64;
            // Of the page, what was asked for.
            let skip = at.saturating_sub(start) as usize;
            let into = start.saturating_sub(at) as usize;
            let (from, to) = (bytes.get(skip..).unwrap_or_default(), buf.get_mut(into..).unwrap_or_default());
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let Node { id, len, store, .. } = &*self.0;
        store.room(bytes.len() as u64)?;
        wrote(bytes.len());
        let end = at.saturating_add(bytes.len() as u64);
        if end > len.load(SeqCst) {
            store.pages.insert(key(*id, LENGTH), &end.to_be_bytes()).map_err(lost)?;
            len.store(end, SeqCst);
        }
        let (mut page, mut skip) = (at / PAGE as u64, (at % PAGE as u64) as usize);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(PAGE - skip));
            if piece.len() == PAGE {
                store.put(*id, page, piece)?;
            } else {
                let mut whole = [0; PAGE];
                let old = store.pages.get(key(*id, page)).map_err(lost)?;
                whole.iter_mut().zip(old.iter().flat_map(|old| old.iter())).for_each(|(to, from)| *to = *from);
                whole.iter_mut().skip(skip).zip(piece).for_each(|(to, from)| *to = *from);
                store.put(*id, page, &whole)?;
            }
            (rest, page, skip) = (later, page + 1, 0);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.store.sync()
    }
}

fn key(id: u64, page: u64) -> [u8; 16] {
    (u128::from(id) << 64 | u128::from(page)).to_be_bytes()
}

/// The first eight bytes, as a number.
fn number(bytes: &[u8]) -> io::Result<u64> {
    let bytes = bytes.first_chunk().ok_or_else(|| damaged("a number of less than 8 bytes".into()))?;
    Ok(u64::from_be_bytes(*bytes))
}

fn damaged(detail: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

/// An error of sled's is one of ours; a disk that ran full in the middle of its work cannot be waited for.
fn lost(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) if no_room(&error) => {
            io::Error::other("log/sled: the disk ran full; make room and start again")
        }
        sled::Error::Io(error) => error,
        sled::Error::Corruption { .. } => damaged("a page has a wrong checksum".into()),
        error => io::Error::other(format!("log/sled: {error}")),
    }
}

/// Why a database that is there cannot be opened.
fn refused(error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::InvalidData => OpenError::Damaged { record: SLED.into(), detail: error.to_string() },
        _ => OpenError::Io { what: format!("opening {SLED}"), source: error },
    }
}

/// Makes log/ and the database's folder, durably, and marks that for synchronous writes.
fn make_durably(data: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    for made in [data.join("log"), data.to_path_buf()] {
        fs::File::open(made)?.sync_all()?;
    }
    let mark = write_through(path, IFlags::SYNC | IFlags::DIRSYNC);
    if let Err(error) = &mark {
        tracing::warn!(%error, "log/sled: this file system takes no synchronous mark (chattr +S): after a power cut sled's own order holds");
    }
    Ok(())
}

fn write_through(path: &Path, mark: IFlags) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let flags = ioctl_getflags(&file)?;
    if !flags.contains(mark) {
        ioctl_setflags(&file, flags | mark)?;
    }
    Ok(())
}

/// What sled wrote when it was opened, it did not sync, or not all of it.
fn settle(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            // Not every file system hands the folder's mark on.
            let _ = write_through(&entry.path(), IFlags::SYNC);
        }
        fs::File::open(entry.path())?.sync_all()?;
    }
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;

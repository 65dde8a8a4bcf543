//! The machine's disk: a folder, locked, with one thread a lane.

use super::lanes::{Lanes, wrote};
use super::{Disk, File, Files, Job, Lane};
use crate::error::OpenError;
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Zeros are written in pieces of this many bytes.
const ZEROS: usize = 1 << 20;

/// A folder of the machine's file system. Dropping it finishes the queued jobs and gives the folder free.
pub struct FileDisk(Lanes);

/// A folder that this process has locked.
pub(super) struct Folder {
    path: PathBuf,
    /// Held as long as anything uses the folder: closing it gives the lock free.
    _lock: fs::File,
}

impl FileDisk {
    /// Makes the folder where it is missing, locks it, starts the threads.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, OpenError> {
        Ok(Arc::new(Self(Lanes::start(Arc::new(Folder::lock(path.as_ref())?))?)))
    }
}

impl Disk for FileDisk {
    fn run(&self, lane: Lane, job: Job) {
        self.0.run(lane, job);
    }
}

impl Folder {
    /// Makes the folder where it is missing, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, OpenError> {
        let what = |doing: &str| format!("{doing} {}", path.display());
        fs::create_dir_all(path).map_err(OpenError::io(what("making")))?;
        let lock_path = path.join("lock");
        let lock = fs::File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(OpenError::io(what("locking")))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                OpenError::Locked { folder: path.display().to_string() }
            } else {
                OpenError::Io { what: what("locking"), source: error.into() }
            }
        })?;
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }
}

impl Files for Folder {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.path.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn make_folder(&self, folder: &str) -> io::Result<()> {
        match fs::create_dir(self.path.join(folder)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.sync_folder("")
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::File::options().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let path = self.path.join(name);
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let zeros = vec![0; ZEROS.min(len as usize)];
        let mut at = 0;
        while at < len {
            let piece = zeros.get(..(len - at).min(ZEROS as u64) as usize).unwrap_or_default();
            file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(Arc::new(DiskFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        fs::File::open(self.path.join(folder))?.sync_all()
    }
}

struct DiskFile(fs::File);

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        wrote(bytes.len());
        self.0.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

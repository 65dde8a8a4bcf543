//! The machine's disk: a folder, locked, with one thread a lane.

use super::{Disk, File, Files, Job, Lane};
use crate::error::OpenError;
use crate::sync::lock;
use rustix::fs::{FlockOperation, flock};
use rustix::process::setpriority_process;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Zeros are written in pieces of this many bytes.
const ZEROS: usize = 1 << 20;

/// Niceness of the thread for what nobody waits for (snapshots, segments in reserve): packing a snapshot would take the
/// processor from writers for whole time slices.
const WORK_NICE: i32 = 10;

/// The names of the threads.
const LANES: [&str; 4] = ["log", "log-encode", "log-read", WORK];
const WORK: &str = "log-work";

/// After a job the log's thread looks for the next one for so long before it sleeps, and gives the processor to whoever wants
/// it. One caller after the other waits for threads to wake more than for the disk: it halves that. A core is busy for this
/// long after a write that none follows.
const IDLE_POLL: Duration = Duration::from_micros(500);

/// A job that wrote more than this was for many callers: they and who decides need the processor, which a thread that only
/// looks takes from them (giving way is not much of a hint to the kernel), and no caller's latency hangs on one waking.
const POLL_WRITTEN: usize = 4096;

/// A folder of the machine's file system. Dropping it finishes the queued jobs and gives the folder free.
pub struct FileDisk {
    lanes: [Arc<Queue>; 4],
    threads: Vec<JoinHandle<()>>,
}

struct Folder {
    path: PathBuf,
    /// Held as long as anything uses the folder: closing it gives the lock free.
    _lock: fs::File,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    more: Condvar,
}

impl FileDisk {
    /// Makes the folder where it is missing, locks it, starts the threads.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, OpenError> {
        let path = path.as_ref().to_path_buf();
        let what = |doing: &str| format!("{doing} {}", path.display());
        fs::create_dir_all(&path).map_err(OpenError::io(what("making")))?;
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
        let folder = Arc::new(Folder { path, _lock: lock });
        let lanes: [Arc<Queue>; 4] = Default::default();
        let mut threads = Vec::new();
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        for (lane, name) in lanes.iter().zip(LANES) {
            let (lane, folder) = (lane.clone(), folder.clone());
            let nice = name == WORK;
            let poll = if name == LANES[0] && cores > 1 { IDLE_POLL } else { Duration::ZERO };
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
                if nice && let Err(error) = setpriority_process(None, WORK_NICE) {
                    tracing::debug!(%error, "snapshots are made at full priority");
                }
                lane.work(&folder, poll);
            });
            threads.push(thread.map_err(OpenError::io("starting a thread"))?);
        }
        Ok(Arc::new(Self { lanes, threads }))
    }
}

impl Disk for FileDisk {
    fn run(&self, lane: Lane, job: Job) {
        let [log, encode, read, work] = &self.lanes;
        let queue = match lane {
            Lane::Log => log,
            Lane::Encode => encode,
            Lane::Read => read,
            Lane::Work => work,
        };
        lock(&queue.jobs).0.push_back(job);
        queue.more.notify_one();
    }
}

thread_local! {
    /// Bytes that the job of this thread has written.
    static WRITTEN: Cell<usize> = const { Cell::new(0) };
}

impl Queue {
    /// Does jobs in order until the folder is given up; looks for the next one for `poll` before it sleeps.
    fn work(&self, folder: &Folder, poll: Duration) {
        loop {
            let asleep = Instant::now() + if WRITTEN.take() <= POLL_WRITTEN { poll } else { Duration::ZERO };
            let job = {
                let mut jobs = lock(&self.jobs);
                while jobs.0.is_empty() && !jobs.1 && Instant::now() < asleep {
                    drop(jobs);
                    std::thread::yield_now();
                    jobs = lock(&self.jobs);
                }
                loop {
                    if let Some(job) = jobs.0.pop_front() {
                        break job;
                    }
                    if jobs.1 {
                        return;
                    }
                    jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                }
            };
            job(folder);
        }
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        for queue in &self.lanes {
            lock(&queue.jobs).1 = true;
            queue.more.notify_one();
        }
        // The last owner may be a job on one of these very threads.
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
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
        WRITTEN.set(WRITTEN.get().saturating_add(bytes.len()));
        self.0.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

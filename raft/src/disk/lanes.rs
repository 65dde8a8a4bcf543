//! One thread a lane: jobs in order, each given the files of the disk that it was queued on.

use super::{Files, Job, Lane};
use crate::error::OpenError;
use crate::sync::lock;
use rustix::process::setpriority_process;
use std::cell::Cell;
use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

/// The threads. Dropping them finishes the queued jobs.
pub(super) struct Lanes {
    queues: [Arc<Queue>; 4],
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    more: Condvar,
}

impl Lanes {
    /// Starts the threads; the last of them to end drops `files`.
    pub(super) fn start(files: Arc<dyn Files + Send + Sync>) -> Result<Self, OpenError> {
        let queues: [Arc<Queue>; 4] = Default::default();
        let mut threads = Vec::new();
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        for (queue, name) in queues.iter().zip(LANES) {
            let (queue, files) = (queue.clone(), files.clone());
            let nice = name == WORK;
            let poll = if name == LANES[0] && cores > 1 { IDLE_POLL } else { Duration::ZERO };
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
                if nice && let Err(error) = setpriority_process(None, WORK_NICE) {
                    tracing::debug!(%error, "snapshots are made at full priority");
                }
                queue.work(&*files, poll);
            });
            threads.push(thread.map_err(OpenError::io("starting a thread"))?);
        }
        Ok(Self { queues, threads })
    }

    /// Queues a job.
    pub(super) fn run(&self, lane: Lane, job: Job) {
        let [log, encode, read, work] = &self.queues;
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

/// Notes that the job of this thread has written so many bytes.
pub(super) fn wrote(bytes: usize) {
    WRITTEN.set(WRITTEN.get().saturating_add(bytes));
}

thread_local! {
    /// Bytes that the job of this thread has written.
    static WRITTEN: Cell<usize> = const { Cell::new(0) };
}

impl Queue {
    /// Does jobs in order until the disk is given up; looks for the next one for `poll` before it sleeps.
    fn work(&self, files: &dyn Files, poll: Duration) {
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
            job(files);
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for queue in &self.queues {
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

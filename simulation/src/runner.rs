//! Many seeds: threads, progress, limits in wall time, panics.

use crate::lock;
use crate::report::{Report, Tally};
use crate::runtime::NodeRt;
use crate::setup::{Setup, reproduce, run};
use crate::trace::Trace;
use openraft::AsyncRuntime;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// Wall time that one seed may take, beside what its thread waited for a processor: a task that never gives the thread
/// back is met by nothing else.
pub const WALL_LIMIT: Duration = Duration::from_secs(120);

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    /// The line that runs the seed of this thread again.
    static AGAIN: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Notes every panic of this thread from now on: the runtime hides a task's in its handle. One of the executor's own (a
/// loop that lets no time pass, tasks that all wait) leaves it locked: it is told, and ends the process.
fn watch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.to_string().replace('\n', " ");
            if text.contains("rt-sim: ") {
                let again = AGAIN.try_with(|line| line.borrow().clone()).unwrap_or_default();
                eprintln!("VIOLATION: {text}\n  {again}");
                std::process::exit(1);
            }
            let watched =
                PANIC.try_with(|noted| noted.borrow_mut().as_mut().map(|noted| noted.push_str(&text)).is_some());
            if !watched.unwrap_or(false) {
                before(panic);
            }
        }));
    });
    PANIC.set(Some(String::new()));
}

/// What was noted; ends the watch.
fn take_panic() -> Option<String> {
    PANIC.take().filter(|text| !text.is_empty())
}

/// Plays a world on this thread, in virtual time: that time, ms, and the panic that ended it.
pub fn stage(seed: u64, setup: &Setup, trace: &Trace, play: impl Future<Output = u64>) -> (u64, Option<String>) {
    watch_panics();
    AGAIN.set(reproduce(seed, setup));
    let mut rt = NodeRt::with_seed(seed);
    rt.sim().record_trace(setup.schedule);
    // A task's panic stays in its handle, and the hook has noted it; this one is for the executor's own.
    let virtual_ms = catch_unwind(AssertUnwindSafe(|| rt.block_on(play))).unwrap_or_default();
    if setup.schedule {
        for step in rt.sim().take_trace() {
            trace.line(format_args!("{step}"));
        }
    }
    drop(rt);
    (virtual_ms, take_panic().map(|panic| format!("panic: {panic}")))
}

/// The world is gone: what stays of it is a violation too, as the next seeds would run out of memory.
pub fn over(mut report: Report, trace: &Trace) -> Report {
    let others = trace.others();
    if others > 0 {
        report.violation.get_or_insert_with(|| format!("{others} parts of the finished world are still there"));
    }
    report
}

/// What became of many seeds.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many ran.
    pub seeds: u64,
    /// Those that broke a promise, by seed.
    pub failed: BTreeMap<u64, String>,
    /// Virtual time of all, ms.
    pub virtual_ms: u64,
    /// Wall time.
    pub wall: Duration,
    /// What happened in all of them.
    pub counts: Tally,
}

impl Summary {
    /// One line.
    pub fn line(&self) -> String {
        let seconds = self.wall.as_secs_f64().max(0.001);
        let commands = self.counts.get("done") + self.counts.get("refused");
        format!(
            "{} seeds, {} failed, {:.1} s: {:.0} seeds/h, {commands} commands, {} faults, {} events, {:.0} × real time",
            self.seeds,
            self.failed.len(),
            seconds,
            self.seeds as f64 * 3600.0 / seconds,
            self.counts.get("faults"),
            self.counts.get("events"),
            self.virtual_ms as f64 / 1000.0 / seconds,
        )
    }
}

/// Since when a thread runs a seed.
struct Begun {
    at: Instant,
    /// What it had waited for a processor before.
    waited: Duration,
    /// Where the kernel says how long it ran, and how long it waited for a processor, ns. Where it does not, all time counts.
    schedstat: PathBuf,
}

impl Begun {
    /// Now, on this thread.
    fn here() -> Self {
        let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
        Self::of(Path::new("/proc").join(thread).join("schedstat"))
    }

    fn of(schedstat: PathBuf) -> Self {
        Self { at: Instant::now(), waited: waited(&schedstat), schedstat }
    }

    /// Wall time since then in which it ran, or slept: on a busy machine it may not get to run for minutes.
    fn took(&self) -> Duration {
        self.at.elapsed().saturating_sub(waited(&self.schedstat).saturating_sub(self.waited))
    }

    fn is_late(&self) -> bool {
        self.at.elapsed() > WALL_LIMIT && self.took() > WALL_LIMIT
    }
}

/// How long a thread was ready to run and had no processor.
fn waited(schedstat: &Path) -> Duration {
    let text = std::fs::read_to_string(schedstat).unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).unwrap_or_default())
}

/// Runs seeds on `threads` threads, up to the first that fails where `first`; `each` hears of every one, in any order.
/// Ends the process where one is over [`WALL_LIMIT`].
pub fn seeds(
    range: RangeInclusive<u64>,
    threads: usize,
    setup: &Setup,
    first: bool,
    each: &(dyn Fn(&Report) + Sync),
) -> Summary {
    let started = Instant::now();
    let (next, done) = (AtomicU64::new(*range.start()), AtomicBool::new(false));
    let running: Mutex<BTreeMap<u64, Begun>> = Mutex::default();
    let summary: Mutex<Summary> = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| watchdog(&running, &done, setup));
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|seed| range.contains(seed)) {
                        let begun = Begun::here();
                        lock(&running).insert(seed, begun);
                        let report = run(seed, setup);
                        lock(&running).remove(&seed);
                        lock(&summary).add(&report);
                        each(&report);
                        if first && report.violation.is_some() {
                            next.store(*range.end() + 1, Relaxed);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            let _ = worker.join();
        }
        done.store(true, Relaxed);
    });
    let mut summary = summary.into_inner().unwrap_or_default();
    summary.wall = started.elapsed();
    summary
}

impl Summary {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.virtual_ms += report.virtual_ms;
        self.counts.merge(&report.counts);
        if let Some(violation) = &report.violation {
            self.failed.insert(report.seed, violation.clone());
        }
    }
}

fn watchdog(running: &Mutex<BTreeMap<u64, Begun>>, done: &AtomicBool, setup: &Setup) {
    while !done.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        let late = lock(running).iter().find(|(_, begun)| begun.is_late()).map(|(seed, _)| *seed);
        if let Some(seed) = late {
            eprintln!(
                "seed {seed}: VIOLATION: it has taken {} s, without what it waited for a processor, and goes on\n  {}",
                WALL_LIMIT.as_secs(),
                reproduce(seed, setup)
            );
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_waits_for_a_processor_is_not_time_of_its_seed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("schedstat");
        let second = Duration::from_secs(1);
        let long_ago = |begun: Begun| Begun { at: begun.at - 2 * WALL_LIMIT, ..begun };
        std::fs::write(&file, "3000000000 7000000000 9\n").unwrap();
        let begun = long_ago(Begun::of(file.clone()));
        assert_eq!(begun.waited, 7 * second);
        assert!(begun.is_late(), "what it waited before counts for nothing");
        std::fs::write(&file, "6000000000 240000000000 99\n").unwrap();
        assert!(begun.took() >= 7 * second && !begun.is_late(), "{:?}", begun.took());
        assert!(long_ago(Begun::of(folder.path().join("none"))).is_late(), "no such file: all time counts");
    }
}

//! Many seeds: threads, progress, limits in wall time, panics.

use crate::lock;
use crate::world::{Report, Setup, run};
use cvlan_raft::Plant;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// Wall time that one seed may take: a task that never gives the thread back is met by nothing else.
pub const WALL_LIMIT: Duration = Duration::from_secs(120);

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes every panic of this thread from now on: the runtime hides a task's in its handle.
pub fn watch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.to_string().replace('\n', " ");
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
pub fn take_panic() -> Option<String> {
    PANIC.take().filter(|text| !text.is_empty())
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
    /// Commands with an outcome, crashes, events of all.
    pub totals: [u64; 3],
}

impl Summary {
    /// One line.
    pub fn line(&self) -> String {
        let seconds = self.wall.as_secs_f64().max(0.001);
        let [commands, crashes, events] = self.totals;
        format!(
            "{} seeds, {} failed, {:.1} s: {:.0} seeds/min, {commands} commands, {crashes} crashes, {events} events, {:.0} × real time",
            self.seeds,
            self.failed.len(),
            seconds,
            self.seeds as f64 * 60.0 / seconds,
            self.virtual_ms as f64 / 1000.0 / seconds,
        )
    }
}

/// The line that runs one seed again.
pub fn reproduce(seed: u64, setup: &Setup) -> String {
    let Plant { skip_fsync, early_ack, .. } = setup.plant;
    let plant = match (skip_fsync, early_ack) {
        (true, _) => " --plant skip-fsync",
        (_, true) => " --plant early-ack",
        (false, false) => "",
    };
    format!("cargo run -q -p cvlan-sim -- run --seed {seed} --commands {}{plant} --trace trace.txt", setup.commands)
}

/// Runs seeds on `threads` threads; `each` hears of every one, in any order. Ends the process where one is over
/// [`WALL_LIMIT`].
pub fn seeds(range: RangeInclusive<u64>, threads: usize, setup: &Setup, each: &(dyn Fn(&Report) + Sync)) -> Summary {
    let started = Instant::now();
    let (next, done) = (AtomicU64::new(*range.start()), AtomicBool::new(false));
    let running: Mutex<BTreeMap<u64, Instant>> = Mutex::default();
    let summary: Mutex<Summary> = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| watchdog(&running, &done, setup));
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|seed| range.contains(seed)) {
                        lock(&running).insert(seed, Instant::now());
                        let report = run(seed, setup);
                        lock(&running).remove(&seed);
                        lock(&summary).add(&report);
                        each(&report);
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
        let counts = &report.counts;
        for (total, more) in self.totals.iter_mut().zip([counts.done + counts.refused, counts.crashes, counts.events]) {
            *total += more;
        }
        if let Some(violation) = &report.violation {
            self.failed.insert(report.seed, violation.clone());
        }
    }
}

fn watchdog(running: &Mutex<BTreeMap<u64, Instant>>, done: &AtomicBool, setup: &Setup) {
    while !done.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        let late = lock(running).iter().find(|(_, since)| since.elapsed() > WALL_LIMIT).map(|(seed, _)| *seed);
        if let Some(seed) = late {
            eprintln!(
                "seed {seed}: VIOLATION: it has taken {} s of wall time and goes on\n  {}",
                WALL_LIMIT.as_secs(),
                reproduce(seed, setup)
            );
            std::process::exit(1);
        }
    }
}

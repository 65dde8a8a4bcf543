//! How long writers through the other doors wait, when the leader is killed or stopped: fresh requests every few ms, on
//! connections that are there already.

use super::load::{Caller, Load, Outcome, Write};
use super::net::MEMBERS;
use crate::lock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Connections to each of the other doors.
const CONNECTIONS: usize = 24;
/// A fresh request goes to each of them so often.
const EVERY: Duration = Duration::from_millis(5);
/// The tenant of these writes.
pub const TENANT: &str = "failover";

/// Writers through all doors but one, until they are asked what they saw.
pub struct Probe {
    seen: Arc<Mutex<Vec<Write>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Through all doors but that of `victim`.
    pub async fn start(load: &Arc<Load>, victim: usize) -> Self {
        let probe = Self { seen: Arc::default(), stop: Arc::default(), tasks: Vec::new() };
        let mut tasks = Vec::new();
        for door in (0..MEMBERS).filter(|door| *door != victim) {
            let mut idle = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut caller = load.caller(door);
                if load.connected(&mut caller).await {
                    idle.push(caller);
                }
            }
            let (load, seen, stop) = (load.clone(), probe.seen.clone(), probe.stop.clone());
            tasks.push(tokio::spawn(ask(load, Arc::new(Mutex::new(idle)), seen, stop)));
        }
        Self { tasks, ..probe }
    }

    /// Everything that was sent, once it has its answer.
    pub async fn end(self) -> Vec<Write> {
        self.stop.store(true, SeqCst);
        for task in self.tasks {
            // Its panic was printed.
            let _ = task.await;
        }
        let mut seen = lock(&self.seen).clone();
        seen.sort_by_key(|write| write.done_us);
        seen
    }

    /// Something sent at `since_us` or later is acknowledged.
    pub fn acked_since(&self, since_us: u64) -> bool {
        lock(&self.seen).iter().any(|write| write.sent_us >= since_us && acked(write))
    }
}

fn acked(write: &Write) -> bool {
    matches!(write.outcome, Outcome::Acked(_))
}

async fn ask(load: Arc<Load>, idle: Arc<Mutex<Vec<Caller>>>, seen: Arc<Mutex<Vec<Write>>>, stop: Arc<AtomicBool>) {
    let mut open = Vec::new();
    while !stop.load(SeqCst) {
        sleep(EVERY).await;
        let Some(mut caller) = lock(&idle).pop() else { continue };
        let (load, idle, seen) = (load.clone(), idle.clone(), seen.clone());
        open.push(tokio::spawn(async move {
            let write = load.create_to_stay(&mut caller, TENANT, false).await;
            lock(&seen).push(write);
            if load.connected(&mut caller).await {
                lock(&idle).push(caller);
            }
        }));
        open.retain(|task| !task.is_finished());
    }
    for task in open {
        // Its panic was printed.
        let _ = task.await;
    }
}

/// What the writers through the other doors saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// From the fault to the first acknowledged write that was sent after it, µs.
    pub next_us: u64,
    /// The longest time between two acknowledged writes, µs.
    pub gap_us: u64,
    /// The slowest acknowledged write, µs.
    pub slowest_us: u64,
    /// Writes that were on their way or sent after the fault, and not acknowledged.
    pub failed: usize,
    /// Writes in all.
    pub writes: usize,
}

/// `writes` in the order of their ends; of a fault that began at `at_us` and had its whole effect by `since_us`.
pub fn seen(writes: &[Write], at_us: u64, since_us: u64) -> Seen {
    let after: Vec<&Write> = writes.iter().filter(|write| write.done_us >= at_us).collect();
    let acked: Vec<&&Write> = after.iter().filter(|write| acked(write)).collect();
    let next = acked.iter().find(|write| write.sent_us >= since_us);
    let mut last_us = at_us;
    let mut gap_us = 0;
    for write in &acked {
        gap_us = gap_us.max(write.done_us.saturating_sub(last_us));
        last_us = write.done_us;
    }
    Seen {
        next_us: next.map_or(u64::MAX, |write| write.done_us - at_us),
        gap_us,
        slowest_us: acked.iter().map(|write| write.done_us - write.sent_us).max().unwrap_or_default(),
        failed: after.len() - acked.len(),
        writes: after.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_sent_after_the_fault_and_acknowledged() {
        let write = |sent_us, done_us, outcome| Write { caller: 1, n: 1, rival: None, sent_us, done_us, outcome };
        let ok = Outcome::Acked(Some(1));
        let writes = [
            write(10, 90, ok),
            write(95, 110, ok),
            write(99, 150, Outcome::Unknown),
            write(120, 160, Outcome::Refused),
            write(101, 400, ok),
            write(390, 450, ok),
        ];
        assert_eq!(seen(&writes, 100, 100), Seen { next_us: 300, gap_us: 290, slowest_us: 299, failed: 2, writes: 5 });
        assert_eq!(
            seen(&writes[..2], 100, 102),
            Seen { next_us: u64::MAX, gap_us: 10, slowest_us: 15, failed: 0, writes: 1 }
        );
    }
}

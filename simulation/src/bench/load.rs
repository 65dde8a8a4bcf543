//! The load generator: callers in a closed loop, or requests that come when they come. One thread, the same for every
//! server: what differs is the [`Ask`].

use super::Sample;
use super::wire::{Target, Wire};
use anyhow::Context;
use futures_util::future::{join, try_join_all};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Before a measurement begins.
const WARM_UP: Duration = Duration::from_millis(500);

/// What is asked of whom.
pub(super) struct Ask<'a> {
    pub(super) target: &'a Target,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// The body of request `i`; no two are equal.
    pub(super) body: &'a dyn Fn(u64) -> Vec<u8>,
    /// Numbers of requests, so that several loads of one server do not repeat any.
    pub(super) next: &'a AtomicU64,
}

impl Ask<'_> {
    async fn connect(&self) -> anyhow::Result<Wire> {
        self.target.connect("POST", self.path, self.headers).await
    }

    fn send(&self, wire: &mut Wire) -> u32 {
        wire.ask(&(self.body)(self.next.fetch_add(1, Relaxed)))
    }
}

/// Connections, and requests on their way on each.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) connections: usize,
    pub(super) each: usize,
}

/// What a load came to.
pub(super) struct Took {
    /// Of each operation, sorted, microseconds.
    micros: Vec<u64>,
    seconds: f64,
}

impl Took {
    /// An error if nothing was acknowledged.
    pub(super) fn new(mut micros: Vec<u64>, time: Duration) -> anyhow::Result<Self> {
        micros.sort_unstable();
        micros.first().context("nothing was acknowledged")?;
        Ok(Self { micros, seconds: time.as_secs_f64() })
    }

    /// Operations a second.
    pub(super) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.seconds
    }

    /// Microseconds.
    pub(super) fn quantile(&self, q: f64) -> u64 {
        let last = self.micros.len().saturating_sub(1);
        self.micros.get(((self.micros.len() as f64 * q) as usize).min(last)).copied().unwrap_or_default()
    }

    /// The rate as a figure; an operation counts for `each`.
    pub(super) fn sample(&self, each: f64, keys: Vec<(&'static str, String)>) -> Sample {
        let times = [("p50_us", 0.5), ("p99_us", 0.99)].map(|(name, q)| (name, self.quantile(q).to_string()));
        Sample::new(self.rate() * each, keys.into_iter().chain(times).collect())
    }
}

/// Every caller asks again as soon as it is answered; counts what was acknowledged after the warm-up.
pub(super) async fn closed(ask: &Ask<'_>, layout: Layout, length: Duration) -> anyhow::Result<Took> {
    let (counting, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let connection = async || -> anyhow::Result<Vec<u64>> {
        let (mut wire, mut begun, mut answered) = (ask.connect().await?, BTreeMap::new(), Vec::new());
        let mut micros = Vec::new();
        for _ in 0..layout.each {
            begun.insert(ask.send(&mut wire), (Instant::now(), false));
        }
        while !begun.is_empty() {
            wire.answered(&mut answered).await?;
            for id in answered.drain(..) {
                let now = Instant::now();
                let (begin, counted) = begun.remove(&id).context("an answer to nothing that was asked")?;
                if stop.load(Relaxed) {
                    continue;
                }
                if counted {
                    micros.push(now.duration_since(begin).as_micros() as u64);
                }
                begun.insert(ask.send(&mut wire), (now, counting.load(Relaxed)));
            }
        }
        Ok(micros)
    };
    let clock = async {
        tokio::time::sleep(WARM_UP).await;
        counting.store(true, Relaxed);
        let begin = Instant::now();
        tokio::time::sleep(length).await;
        stop.store(true, Relaxed);
        begin.elapsed()
    };
    let (time, micros) = join(clock, try_join_all((0..layout.connections).map(|_| connection()))).await;
    Took::new(micros?.into_iter().flatten().collect(), time)
}

/// Requests at an even rate, whether those before are answered or not: the time of one that had to wait for its
/// connection counts from when it was due.
pub(super) async fn open(ask: &Ask<'_>, connections: usize, per_second: f64, length: Duration) -> anyhow::Result<Took> {
    let gap = Duration::from_secs_f64(connections as f64 / per_second);
    let mut wires = Vec::new();
    for _ in 0..connections {
        wires.push(ask.connect().await?);
    }
    let start = Instant::now() + Duration::from_millis(100);
    let (count_from, end) = (start + WARM_UP, start + WARM_UP + length);
    let connection = async |(mut wire, phase): (Wire, f64)| -> anyhow::Result<Vec<u64>> {
        let (mut due, mut micros, mut answered) = (start + gap.mul_f64(phase), Vec::new(), Vec::new());
        while due < end {
            let begin = if Instant::now() < due {
                tokio::time::sleep_until(due.into()).await;
                // A timer that is late is the generator's fault.
                Instant::now()
            } else {
                due
            };
            ask.send(&mut wire);
            wire.answered(&mut answered).await?;
            answered.clear();
            if due >= count_from {
                micros.push(begin.elapsed().as_micros() as u64);
            }
            due += gap;
        }
        Ok(micros)
    };
    let phased = wires.into_iter().enumerate().map(|(i, wire)| (wire, i as f64 / connections as f64));
    let micros = try_join_all(phased.map(connection)).await?;
    Took::new(micros.into_iter().flatten().collect(), length)
}

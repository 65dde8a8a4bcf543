//! A machine's clocks in the simulation: they drift, and the wall clock jumps.

use crate::lock;
use crate::runtime::now_us;
use cvlan_raft::Clock;
use std::sync::Mutex;

/// 2026-01-01T00:00:00Z.
const START_MS: u64 = 1_767_225_600_000;

/// Both clocks are a little fast or slow; the wall clock also jumps, to both sides.
#[derive(Debug)]
pub struct SimClock {
    drift_ppm: i64,
    jumped_ms: Mutex<i64>,
}

impl SimClock {
    /// Faster than real time by `drift_ppm` millionths.
    pub fn new(drift_ppm: i64) -> Self {
        Self { drift_ppm, jumped_ms: Mutex::new(0) }
    }

    /// Moves the wall clock.
    pub fn jump(&self, by_ms: i64) {
        *lock(&self.jumped_ms) += by_ms;
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        (START_MS + self.monotonic_us() / 1000).saturating_add_signed(*lock(&self.jumped_ms))
    }

    fn monotonic_us(&self) -> u64 {
        let now = now_us();
        now.saturating_add_signed(now as i64 * self.drift_ppm / 1_000_000)
    }
}

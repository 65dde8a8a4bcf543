//! Time, as a seam: the wall clock, a monotonic clock, and the cluster's own time made of both.
//!
//! ```text
//! own(t + dt) = own(t) + dt, moved towards the wall clock by at most dt / 10
//! ```
//! So own time never goes backwards, and a wall clock that jumps during a term drags it along at most 10 % faster or
//! slower than real time. It is anchored to the wall clock where a leader's term opens.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock, milliseconds since 1970 (UTC); may jump.
    fn wall_ms(&self) -> u64;

    /// Microseconds since some fixed moment; never goes backwards.
    fn monotonic_us(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    fn monotonic_us(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

/// A leader's own time during one term.
#[derive(Clone, Debug)]
pub(crate) struct OwnTime {
    own_us: u64,
    read_at_us: u64,
}

impl OwnTime {
    /// Anchored to the wall clock now.
    pub(crate) fn anchored(clock: &dyn Clock) -> Self {
        Self { own_us: clock.wall_ms().saturating_mul(1000), read_at_us: clock.monotonic_us() }
    }

    /// Own time now, milliseconds since 1970 (UTC).
    pub(crate) fn now_ms(&mut self, clock: &dyn Clock) -> u64 {
        let read_at_us = clock.monotonic_us();
        let elapsed = read_at_us.saturating_sub(self.read_at_us);
        let straight = self.own_us.saturating_add(elapsed);
        let wall = clock.wall_ms().saturating_mul(1000);
        self.own_us = wall.clamp(straight.saturating_sub(elapsed / 10), straight.saturating_add(elapsed / 10));
        self.read_at_us = read_at_us;
        self.own_us / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    #[derive(Default)]
    struct Hands {
        wall_ms: AtomicU64,
        monotonic_us: AtomicU64,
    }

    impl Clock for Hands {
        fn wall_ms(&self) -> u64 {
            self.wall_ms.load(Relaxed)
        }
        fn monotonic_us(&self) -> u64 {
            self.monotonic_us.load(Relaxed)
        }
    }

    /// Anchors at wall = 1,000,000 ms; then `elapsed` ms pass while the wall clock goes to `wall`.
    fn check(elapsed_ms: u64, wall_ms: u64, own_ms: u64) {
        let hands = Hands::default();
        hands.wall_ms.store(1_000_000, Relaxed);
        let mut own = OwnTime::anchored(&hands);
        hands.monotonic_us.store(elapsed_ms * 1000, Relaxed);
        hands.wall_ms.store(wall_ms, Relaxed);
        assert_eq!(own.now_ms(&hands), own_ms, "{elapsed_ms} ms, wall {wall_ms}");
    }

    #[test]
    fn own_time_follows_the_wall_clock_by_at_most_a_tenth() {
        check(0, 1_000_000, 1_000_000);
        check(1000, 1_001_000, 1_001_000);
        check(1000, 1_001_050, 1_001_050);
        check(1000, 1_000_950, 1_000_950);
        check(1000, 9_000_000, 1_001_100);
        check(1000, 1, 1_000_900);
    }
}

//! How long to wait before trying again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(10);
const SPREAD: Duration = Duration::from_secs(2);

/// Waits between tries at several doors: short ones while there is another door to try, and after each round over all
/// of them one that doubles from 200 ms to 10 s. Each is drawn from the upper half, so that a fleet does not come back
/// at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    doors: usize,
    tries: usize,
    next: Duration,
}

impl Backoff {
    pub fn new(doors: usize) -> Self {
        Self { doors: doors.max(1), tries: 0, next: FIRST }
    }

    /// It worked: start anew, with so many doors to try.
    pub fn reset(&mut self, doors: usize) {
        *self = Self::new(doors);
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        self.tries += 1;
        if !self.tries.is_multiple_of(self.doors) {
            return jittered(FIRST);
        }
        let longest = self.next;
        self.next = (longest * 2).min(LAST);
        jittered(longest)
    }

    /// A wait where one door that served many is gone: they do not all come to another within a moment.
    pub fn wait_spread() -> Duration {
        SPREAD.mul_f64(drawn())
    }

    /// A wait where nothing will change soon.
    pub fn wait_long() -> Duration {
        jittered(LAST)
    }
}

fn jittered(longest: Duration) -> Duration {
    longest / 2 + (longest / 2).mul_f64(drawn())
}

/// Between 0 and 1; without randomness every wait is the longest.
fn drawn() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_each_round_to_its_cap_and_starts_anew() {
        for doors in [0, 1, 3] {
            let mut backoff = Backoff::new(doors);
            let mut longest = FIRST;
            for _ in 0..20 {
                for _ in 1..doors {
                    assert!(backoff.wait() <= FIRST);
                }
                let wait = backoff.wait();
                assert!(wait >= longest / 2 && wait <= longest, "{wait:?} for {longest:?}");
                longest = (longest * 2).min(LAST);
            }
            backoff.reset(doors);
            assert!(backoff.wait() <= FIRST);
        }
        assert!(Backoff::wait_long() >= LAST / 2);
        let waits: Vec<_> = (0..64).map(|_| Backoff::wait_spread()).collect();
        let before = |limit: Duration| waits.iter().filter(|wait| **wait < limit).count();
        assert!(before(SPREAD / 2) > 0 && before(SPREAD / 2) < 64 && waits.iter().all(|wait| *wait <= SPREAD));
    }
}

//! How far a long run is, on stderr: a bar where somebody looks, a line now and then where it goes into a file.

use crate::lock;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two lines.
const EVERY: Duration = Duration::from_secs(10);
/// Signs of the bar.
const BAR: usize = 30;

/// See the module.
pub struct Progress {
    total: u64,
    since: Instant,
    terminal: bool,
    told: Mutex<Instant>,
}

impl Progress {
    /// Of so many seeds, from now on.
    pub fn of(total: u64) -> Self {
        let now = Instant::now();
        Self { total, since: now, terminal: std::io::stderr().is_terminal(), told: Mutex::new(now) }
    }

    /// So many are done, and so many of those failed.
    pub fn tell(&self, done: u64, failed: u64) {
        let mut told = lock(&self.told);
        if !self.terminal && told.elapsed() < EVERY {
            return;
        }
        *told = Instant::now();
        let line = line(done, failed, self.total, self.since.elapsed());
        // A reader that has gone is no reason to stop.
        let _ = match self.terminal {
            true => write!(std::io::stderr(), "\r\x1b[K{} {line}", bar(done, self.total)),
            false => writeln!(std::io::stderr(), "{line}"),
        };
    }

    /// Makes room for another line.
    pub fn clear(&self) {
        if self.terminal {
            // As above.
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn bar(done: u64, total: u64) -> String {
    let full = (done.min(total) as usize * BAR).checked_div(total as usize).unwrap_or(BAR);
    format!("[{}{}]", "=".repeat(full), " ".repeat(BAR - full))
}

fn line(done: u64, failed: u64, total: u64, took: Duration) -> String {
    let rate = done as f64 / took.as_secs_f64().max(0.001);
    let left_s = (total.saturating_sub(done) as f64 / rate.max(1e-9)).round() as u64;
    let left = match left_s {
        0..120 => format!("{left_s} s"),
        120..7_200 => format!("{} min", left_s / 60),
        _ => format!("{} h", left_s / 3600),
    };
    format!("{done} of {total} seeds, {failed} failed, {:.0} seeds/h, {left} left", rate * 3600.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let second = Duration::from_secs(1);
        assert_eq!(line(50, 1, 200, 100 * second), "50 of 200 seeds, 1 failed, 1800 seeds/h, 5 min left");
        assert_eq!(line(10, 0, 100_000, 10 * second), "10 of 100000 seeds, 0 failed, 3600 seeds/h, 27 h left");
        assert_eq!(line(4, 0, 4, second), "4 of 4 seeds, 0 failed, 14400 seeds/h, 0 s left");
        assert_eq!((bar(0, 9).len(), bar(9, 9), bar(0, 0)), (32, format!("[{}]", "=".repeat(30)), bar(9, 9)));
    }
}

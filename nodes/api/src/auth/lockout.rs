//! Failed logins: 5 for one (tenant, name, client address) lock that triple for 15 minutes, unknown names alike. In this
//! member's memory, not in the log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Failures that lock.
pub const FAILURES_MAX: u32 = 5;
/// For so long.
pub const LOCK_MS: u64 = 15 * 60_000;
/// Triples remembered; beyond, the one whose failure is oldest is forgotten.
pub const REMEMBERED_MAX: usize = 65_536;

/// Who tried from where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// Slug as given; empty = global.
    pub tenant: String,
    /// Login name as given.
    pub name: String,
    /// Client address.
    pub from: IpAddr,
}

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    last_ms: u64,
}

/// The memory.
#[derive(Default)]
pub struct Lockout(Mutex<HashMap<Attempt, Failures>>);

impl Lockout {
    /// Seconds until the next attempt is allowed; `None` = now.
    pub fn locked_for(&self, attempt: &Attempt, now_ms: u64) -> Option<u64> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = map.get(attempt).filter(|f| f.count >= FAILURES_MAX)?;
        let left = (failures.last_ms + LOCK_MS).checked_sub(now_ms)?;
        (left > 0).then(|| left.div_ceil(1000))
    }

    /// Counts a failure; one that is older than the lock counts no more.
    pub fn failed(&self, attempt: Attempt, now_ms: u64) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= REMEMBERED_MAX && !map.contains_key(&attempt) {
            map.retain(|_, f| f.last_ms + LOCK_MS > now_ms);
            // Still full: someone fills it from many addresses. Make room in one sweep, oldest first.
            if map.len() >= REMEMBERED_MAX {
                let mut ages: Vec<u64> = map.values().map(|f| f.last_ms).collect();
                let (_, middle, _) = ages.select_nth_unstable(REMEMBERED_MAX / 8);
                let limit = *middle;
                map.retain(|_, f| f.last_ms > limit);
            }
        }
        let failures = map.entry(attempt).or_insert(Failures { count: 0, last_ms: now_ms });
        let stale = failures.last_ms + LOCK_MS <= now_ms;
        failures.count = if stale { 1 } else { failures.count.saturating_add(1) };
        failures.last_ms = now_ms;
    }

    /// A login succeeded.
    pub fn forget(&self, attempt: &Attempt) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(attempt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(name: &str) -> Attempt {
        Attempt { tenant: String::new(), name: name.to_owned(), from: IpAddr::from([10, 0, 0, 1]) }
    }

    #[test]
    fn five_failures_lock_for_a_quarter_of_an_hour() {
        let lockout = Lockout::default();
        for _ in 0..FAILURES_MAX {
            assert_eq!(lockout.locked_for(&attempt("a"), 1000), None);
            lockout.failed(attempt("a"), 1000);
        }
        assert_eq!(lockout.locked_for(&attempt("a"), 1000), Some(900));
        assert_eq!(lockout.locked_for(&attempt("b"), 1000), None);
        assert_eq!(lockout.locked_for(&attempt("a"), 1000 + LOCK_MS), None);
        lockout.failed(attempt("a"), 1000 + LOCK_MS);
        assert_eq!(lockout.locked_for(&attempt("a"), 1000 + LOCK_MS), None, "counting starts again");
        lockout.forget(&attempt("a"));
        assert!(lockout.0.lock().unwrap().is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let lockout = Lockout::default();
        for i in 0..REMEMBERED_MAX + 10 {
            lockout.failed(attempt(&i.to_string()), i as u64);
        }
        assert!(lockout.0.lock().unwrap().len() <= REMEMBERED_MAX);
    }
}

//! Rate limits on the doors that need no proof, and on polls: a token bucket per client address (IPv6: per /64), burst 5×.

use crate::metrics::Metrics;
use crate::problem::Problem;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::StatusCode;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::Ordering::Relaxed;

/// Addresses remembered by one limit; beyond, the ones that are full again are forgotten.
pub const ADDRESSES_MAX: usize = 65_536;

/// One limit; `None` = no limit.
pub struct Limit {
    buckets: Option<DefaultKeyedRateLimiter<IpAddr>>,
}

/// All of them.
pub struct Limits {
    /// GET /client/discover: 100/s.
    pub discover: Limit,
    /// POST /client/register: 10/s.
    pub register: Limit,
    /// POST /client/poll: 50/s.
    pub poll: Limit,
    /// POST /auth/login and whatever else checks a password: 10/s.
    pub login: Limit,
    /// What a member without keys must ask a voter before it knows who asks: 50/s.
    pub ask: Limit,
}

impl Default for Limits {
    fn default() -> Self {
        const fn n(n: u32) -> NonZeroU32 {
            match NonZeroU32::new(n) {
                Some(n) => n,
                None => NonZeroU32::MIN,
            }
        }
        Self {
            discover: Limit::new(n(100), n(500)),
            register: Limit::new(n(10), n(50)),
            poll: Limit::new(n(50), n(250)),
            login: Limit::new(n(10), n(50)),
            ask: Limit::new(n(50), n(250)),
        }
    }
}

impl Limits {
    /// None at all: for a benchmark from one address.
    pub fn none() -> Self {
        let limit = || Limit { buckets: None };
        Self { discover: limit(), register: limit(), poll: limit(), login: limit(), ask: limit() }
    }
}

/// What a limit counts by: an IPv6 client has a whole /64 to choose from.
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
    }
}

impl Limit {
    fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self { buckets: Some(RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst))) }
    }

    /// 429 where the address asks too often.
    pub fn check(&self, address: IpAddr, metrics: &Metrics) -> Result<(), Problem> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        if buckets.len() > ADDRESSES_MAX {
            buckets.retain_recent();
        }
        buckets.check_key(&address_key(address)).map_err(|until| {
            metrics.rate_limited.fetch_add(1, Relaxed);
            let wait = until.wait_time_from(DefaultClock::default().now());
            let detail = "too many requests from this address; wait and try again";
            Problem::later(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail, wait.as_secs().max(1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_it_is_429() {
        let (limits, metrics) = (Limits::default(), Metrics::new());
        let from = |s: &str| s.parse::<IpAddr>().unwrap();
        for _ in 0..50 {
            limits.login.check(from("10.0.0.1"), &metrics).unwrap();
        }
        let refused = limits.login.check(from("10.0.0.1"), &metrics).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, "rate_limited"));
        assert!(refused.retry_after >= Some(1));
        limits.login.check(from("10.0.0.2"), &metrics).unwrap();
        assert_eq!(metrics.rate_limited.load(Relaxed), 1);
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let key = |s: &str| address_key(s.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
    }
}

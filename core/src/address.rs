//! Addresses: which ranges a CVLAN may have, and which address a node gets.
//!
//! A [`Pool`] hands out the lowest free address; a released one rests ten minutes of event time, unless nothing else
//! is left. Free addresses are kept as ranges, so that every operation is O(log ranges), also in a full /8.
//! IPv4 and IPv6 are the same code over `u128`.

use crate::rejection::Rejection;
use imbl::{OrdMap, OrdSet};
use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// How long a released address rests, milliseconds of event time.
pub const REST_MS: u64 = 10 * 60 * 1000;
/// Longest IPv6 prefix of a CVLAN: 256 addresses.
pub const IPV6_PREFIX_MAX: u8 = 120;
/// Shortest IPv6 prefix of a CVLAN.
pub const IPV6_PREFIX_MIN: u8 = 32;
/// Longest IPv4 prefix of a CVLAN: six usable addresses, four to give.
pub const IPV4_PREFIX_MAX: u8 = 29;
/// Shortest IPv4 prefix of a CVLAN.
pub const IPV4_PREFIX_MIN: u8 = 8;

/// Free, resting and (by omission) taken addresses of one range.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Pool {
    /// Last → first address of each free range; ranges never touch. By the last: taking the lowest address, as is
    /// nearly always done, then changes no key.
    free: OrdMap<u128, u128>,
    /// (free from, address).
    resting: OrdSet<(u64, u128)>,
}

impl Pool {
    /// All of an IPv4 network but network address, broadcast address and the first and last usable one.
    pub fn ipv4(net: Ipv4Net) -> Self {
        let (low, high) = (u128::from(u32::from(net.network())), u128::from(u32::from(net.broadcast())));
        Self::between(low + 2, high.saturating_sub(2))
    }

    /// All of an IPv6 network but the subnet-router anycast address (RFC 4291 §2.6.1), the last address, and the first
    /// and last usable one.
    pub fn ipv6(net: Ipv6Net) -> Self {
        let (low, high) = (u128::from(net.network()), u128::from(net.broadcast()));
        Self::between(low + 2, high.saturating_sub(2))
    }

    fn between(low: u128, high: u128) -> Self {
        let free = if low <= high { OrdMap::unit(high, low) } else { OrdMap::new() };
        Self { free, resting: OrdSet::new() }
    }

    /// The address that would be given at `now_ms`: the lowest free one, else the one that has rested longest.
    pub fn next(&self, now_ms: u64) -> Option<u128> {
        let oldest = self.resting.get_min();
        if oldest.is_some_and(|(until, _)| *until <= now_ms) {
            let mut pool = self.clone();
            pool.ripen(now_ms);
            return pool.free.get_min().map(|(_, low)| *low);
        }
        self.free.get_min().map(|(_, low)| *low).or_else(|| oldest.map(|(_, address)| *address))
    }

    /// Takes an address out of the free or the resting ones; false where it is neither.
    pub fn take(&mut self, address: u128, now_ms: u64) -> bool {
        self.ripen(now_ms);
        let range = self.free.get_next(&address).map(|(high, low)| (*low, *high));
        if let Some((low, high)) = range.filter(|(low, _)| *low <= address) {
            if address == high {
                self.free.remove(&high);
            } else {
                self.free.insert(high, address + 1);
            }
            if low < address {
                self.free.insert(address - 1, low);
            }
            return true;
        }
        let resting = self.resting.iter().find(|(_, a)| *a == address).copied();
        resting.is_some_and(|entry| self.resting.remove(&entry).is_some())
    }

    /// Gives an address back: it rests until `now_ms` + [`REST_MS`].
    pub fn release(&mut self, address: u128, now_ms: u64) {
        self.ripen(now_ms);
        self.resting.insert((now_ms + REST_MS, address));
    }

    /// Resting addresses, for the saved state.
    pub fn resting(&self) -> impl Iterator<Item = (u64, u128)> + '_ {
        self.resting.iter().copied()
    }

    /// Puts a resting address back when a saved state is read.
    pub fn rest(&mut self, until_ms: u64, address: u128) {
        if self.take(address, 0) {
            self.resting.insert((until_ms, address));
        }
    }

    /// Free addresses, resting ones included.
    pub fn available(&self) -> u128 {
        self.free.iter().map(|(high, low)| high - low + 1).sum::<u128>() + self.resting.len() as u128
    }

    fn ripen(&mut self, now_ms: u64) {
        while let Some((until, address)) = self.resting.get_min().copied().filter(|(until, _)| *until <= now_ms) {
            self.resting.remove(&(until, address));
            self.put_free(address);
        }
    }

    fn put_free(&mut self, address: u128) {
        let (mut low, mut high) = (address, address);
        if let Some(before) = address.checked_sub(1)
            && let Some(first) = self.free.remove(&before)
        {
            low = first;
        }
        if let Some((last, first)) = self.free.get_next(&address).map(|(last, first)| (*last, *first))
            && first == address + 1
        {
            high = last;
        }
        self.free.insert(high, low);
    }
}

/// As `Display` writes it, without its detours.
pub fn ipv4_text(address: Ipv4Addr) -> String {
    let mut text = String::with_capacity("255.255.255.255".len());
    for (octet, n) in address.octets().into_iter().zip(0..) {
        if n > 0 {
            text.push('.');
        }
        digits(&mut text, u16::from(octet), [100, 10]);
    }
    text
}

/// As `Display` writes it (RFC 5952), without its detours.
pub fn ipv6_text(address: Ipv6Addr) -> String {
    let groups = address.segments();
    if let [0, 0, 0, 0, 0, 0xffff, ..] = groups {
        return address.to_string();
    }
    // The first of the longest runs of zeros; one alone is written out.
    let (mut start, mut len, mut run) = (8, 1, 0);
    for (group, n) in groups.into_iter().zip(0usize..) {
        run = if group == 0 { run + 1 } else { 0 };
        if run > len {
            (start, len) = (n + 1 - run, run);
        }
    }
    let mut text = String::with_capacity("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".len());
    for (group, n) in groups.into_iter().zip(0usize..) {
        if n == start {
            text.push_str("::");
        }
        if (start..start + len).contains(&n) {
            continue;
        }
        if n > 0 && !text.ends_with("::") {
            text.push(':');
        }
        digits(&mut text, group, [0x1000, 0x100, 0x10]);
    }
    text
}

/// Reads an IPv4 address, as `FromStr` does, without its detours where it is written as usual.
pub fn ipv4_of(text: &str) -> Option<Ipv4Addr> {
    ipv4_usual(text).or_else(|| text.parse().ok())
}

fn ipv4_usual(text: &str) -> Option<Ipv4Addr> {
    let (mut octets, mut count, mut number, mut digits) = ([0; 4], 0, 0u16, 0);
    for byte in text.bytes().chain([b'.']) {
        match byte {
            b'.' if digits > 0 => {
                *octets.get_mut(count)? = u8::try_from(number).ok()?;
                (count, number, digits) = (count + 1, 0, 0);
            }
            b'0'..=b'9' if digits < 3 && (digits == 0 || number > 0) => {
                (number, digits) = (number * 10 + u16::from(byte - b'0'), digits + 1);
            }
            _ => return None,
        }
    }
    (count == 4).then_some(octets.into())
}

/// Reads an IPv6 address, as `FromStr` does, without its detours where it is groups of hexadecimal digits alone.
pub fn ipv6_of(text: &str) -> Option<Ipv6Addr> {
    ipv6_usual(text).or_else(|| text.parse().ok())
}

fn ipv6_usual(text: &str) -> Option<Ipv6Addr> {
    let (mut groups, mut count, mut gap) = ([0; 8], 0, None);
    let (mut group, mut digits, mut before) = (0u16, 0, 0);
    for byte in text.bytes() {
        if byte != b':' {
            // A colon at the beginning is one of two.
            if digits == 4 || (before == b':' && count == 0 && gap.is_none()) {
                return None;
            }
            (group, digits) = (group << 4 | char::from(byte).to_digit(16)? as u16, digits + 1);
        } else if digits > 0 {
            *groups.get_mut(count)? = group;
            (count, group, digits) = (count + 1, 0, 0);
        } else if before == b':' && gap.is_none() {
            gap = Some(count);
        } else if before != 0 {
            return None;
        }
        before = byte;
    }
    if digits > 0 {
        *groups.get_mut(count)? = group;
        count += 1;
    } else if gap != Some(count) {
        return None;
    }
    match gap {
        None => (count == 8).then_some(groups.into()),
        // It stands for one group at least.
        Some(gap) if count < 8 => {
            groups.get_mut(gap..)?.rotate_right(8 - count);
            Some(groups.into())
        }
        Some(_) => None,
    }
}

/// A number to the base of the last weight, without zeros before it.
fn digits<const N: usize>(text: &mut String, number: u16, weights: [u16; N]) {
    let mut rest = number;
    for weight in weights {
        if number >= weight {
            text.extend(char::from_digit(u32::from(rest / weight), 16));
            rest %= weight;
        }
    }
    text.extend(char::from_digit(u32::from(rest), 16));
}

/// Reads an IPv4 CIDR for a CVLAN: a network address, private or public unicast, /8 to /29.
pub fn ipv4_parse(text: &str) -> Result<Ipv4Net, Rejection> {
    let net: Ipv4Net = text.parse().map_err(|_| {
        Rejection::invalid("cidr_invalid", format!("{text:?} is not an IPv4 CIDR like 10.20.0.0/24 (RFC 4632)"))
    })?;
    if net.network() != net.addr() {
        return Err(not_network(text, &net.trunc().to_string()));
    }
    if !(IPV4_PREFIX_MIN..=IPV4_PREFIX_MAX).contains(&net.prefix_len()) {
        return Err(Rejection::invalid(
            "cidr_size",
            format!(
                "{text} has a prefix of /{}; a CVLAN takes /{IPV4_PREFIX_MIN} to /{IPV4_PREFIX_MAX}",
                net.prefix_len()
            ),
        ));
    }
    let a = net.network();
    let first = a.octets()[0];
    if first == 0 || a.is_loopback() || a.is_link_local() || first >= 224 {
        return Err(Rejection::invalid(
            "cidr_not_unicast",
            format!("{text} holds no addresses that machines can have"),
        ));
    }
    Ok(net)
}

/// Reads an IPv6 CIDR for a CVLAN: a network address, global or unique local unicast, /32 to /120.
pub fn ipv6_parse(text: &str) -> Result<Ipv6Net, Rejection> {
    let net: Ipv6Net = text.parse().map_err(|_| {
        Rejection::invalid("cidr_invalid", format!("{text:?} is not an IPv6 CIDR like fd00:1:2:3::/64 (RFC 4291)"))
    })?;
    if net.network() != net.addr() {
        return Err(not_network(text, &net.trunc().to_string()));
    }
    if net.prefix_len() > IPV6_PREFIX_MAX {
        return Err(Rejection::invalid(
            "ipv6_too_small",
            format!("{text} is too small: use /{IPV6_PREFIX_MAX} or shorter, /64 by custom"),
        ));
    }
    let a = net.network();
    if net.prefix_len() < IPV6_PREFIX_MIN {
        return Err(Rejection::invalid("cidr_size", format!("{text} is too large: use /{IPV6_PREFIX_MIN} or longer")));
    }
    if a.is_loopback() || a.is_unspecified() || a.is_multicast() || a.is_unicast_link_local() {
        return Err(Rejection::invalid(
            "cidr_not_unicast",
            format!("{text} holds no addresses that machines can have"),
        ));
    }
    Ok(net)
}

fn not_network(text: &str, network: &str) -> Rejection {
    Rejection::invalid("cidr_not_network", format!("{text} is not a network address; did you mean {network}?"))
}

/// The next free /24: of 10.0.0.0/8, then 172.16.0.0/12, then 192.168.0.0/16. `taken` must be sorted and must not
/// overlap, as a tenant's networks are.
pub fn ipv4_pick<'a, I: Iterator<Item = &'a Ipv4Net>>(taken: impl Fn() -> I) -> Option<Ipv4Net> {
    let ranges =
        [(Ipv4Addr::new(10, 0, 0, 0), 8), (Ipv4Addr::new(172, 16, 0, 0), 12), (Ipv4Addr::new(192, 168, 0, 0), 16)];
    for (base, prefix) in ranges {
        let size = 1u64 << (32 - prefix);
        let (mut at, end) = (u64::from(u32::from(base)), u64::from(u32::from(base)) + size);
        for net in taken() {
            let (low, high) = (u64::from(u32::from(net.network())), u64::from(u32::from(net.broadcast())));
            if high < at {
                continue;
            }
            if low >= at + 256 {
                break;
            }
            at = (high + 256) & !255;
        }
        if at + 256 <= end {
            return Ipv4Net::new(Ipv4Addr::from(at as u32), 24).ok();
        }
    }
    None
}

/// A unique local /64: fd00::/8, the 40-bit global id, subnet 0 (RFC 4193 §3.1).
pub fn ipv6_unique_local(global_id: [u8; 5]) -> Option<Ipv6Net> {
    let [a, b, c, d, e] = global_id;
    let address = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    Ipv6Net::new(address, 64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    fn pool(cidr: &str) -> Pool {
        Pool::ipv4(cidr.parse().unwrap())
    }

    fn host(n: u8) -> u128 {
        u128::from(u32::from(Ipv4Addr::new(10, 0, 0, n)))
    }

    #[test]
    fn lowest_first_and_a_released_one_rests() {
        let mut p = pool("10.0.0.0/24");
        for n in 2..=4 {
            assert_eq!(p.next(0), Some(host(n)));
            assert!(p.take(host(n), 0));
            assert!(!p.take(host(n), 0), "taken twice");
        }
        p.release(host(2), 1000);
        assert_eq!(p.next(1000 + REST_MS - 1), Some(host(5)));
        assert_eq!(p.next(1000 + REST_MS), Some(host(2)));
    }

    #[test]
    fn an_exhausted_range_gives_the_longest_rested_then_nothing() {
        let mut p = pool("10.0.0.0/29");
        for n in 2..=5 {
            assert!(p.take(host(n), 0));
        }
        assert_eq!(p.next(0), None);
        p.release(host(4), 10);
        p.release(host(3), 20);
        assert_eq!(p.next(30), Some(host(4)));
        assert!(p.take(host(4), 30));
        assert_eq!(p.next(30), Some(host(3)));
    }

    #[test]
    fn texts_are_as_the_library_writes_them() {
        let mut rng = crate::grammar::Rng(1);
        for _ in 0..20_000 {
            let ([a, b, c, d, zeros, ..], mut groups) = (rng.bytes::<8>(), [0u16; 8]);
            for (group, n) in groups.iter_mut().zip(0..) {
                let [high, low, shift] = rng.bytes();
                *group = if zeros >> n & 1 == 0 { 0 } else { u16::from_be_bytes([high, low]) >> (shift & 15) };
            }
            let (v4, v6) = (Ipv4Addr::new(a, b, c >> (d & 7), d), Ipv6Addr::from(groups));
            assert_eq!((ipv4_text(v4), ipv6_text(v6)), (v4.to_string(), v6.to_string()));
            let read = (ipv4_usual(&ipv4_text(v4)), ipv6_of(&ipv6_text(v6)));
            assert_eq!(read, (Some(v4), Some(v6)));
        }
    }

    #[test]
    fn texts_are_read_as_the_library_reads_them() {
        let mut rng = crate::grammar::Rng(2);
        let usual =
            ["", "1", "0", ":", "::", ".", "00", "25", "6", "10.0.0.7", "ffff", "FEED", "12345", "a:b", "x", " "];
        let mut read = [0; 2];
        for _ in 0..200_000 {
            let pieces = 1 + rng.below(9);
            let text: String = (0..pieces).map(|_| usual[rng.below(usual.len() as u64) as usize]).collect();
            assert_eq!((ipv4_of(&text), ipv6_of(&text)), (text.parse().ok(), text.parse().ok()), "{text:?}");
            // What the quick way takes is what the library takes.
            for (quick, slow) in [
                (ipv4_usual(&text).map(IpAddr::from), text.parse().ok().map(Ipv4Addr::into)),
                (ipv6_usual(&text).map(IpAddr::from), text.parse().ok().map(Ipv6Addr::into)),
            ] {
                if let Some(quick) = quick {
                    assert_eq!(Some(quick), slow, "{text:?}");
                    read[usize::from(quick.is_ipv6())] += 1;
                }
            }
        }
        assert!(read.iter().all(|n| *n > 1000), "{read:?}");
    }

    #[test]
    fn special_addresses_are_as_the_library_writes_them() {
        for text in
            ["::", "::1", "1::", "::ffff:10.0.0.1", "::2:0:0:0:1", "1:0:0:2::1", "1:0:2:3:4:5:6:7", "fd00::a0:ff"]
        {
            assert_eq!(ipv6_text(text.parse().unwrap()), text);
        }
        for text in ["0.0.0.0", "10.0.0.100", "255.255.255.255", "9.10.99.101"] {
            assert_eq!(ipv4_text(text.parse().unwrap()), text);
        }
    }

    #[test]
    fn edges_are_reserved() {
        for (cidr, first, count) in [("10.0.0.0/29", 2, 4u128), ("10.0.0.0/24", 2, 252)] {
            assert_eq!((pool(cidr).next(0), pool(cidr).available()), (Some(host(first)), count));
        }
        let v6 = Pool::ipv6("fd00::/64".parse().unwrap());
        assert_eq!(v6.next(0).map(Ipv6Addr::from), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn a_nearly_full_slash_8_is_quick_and_right() {
        let mut p = pool("10.0.0.0/8");
        let high = u128::from(u32::from(Ipv4Addr::new(10, 255, 255, 253)));
        p.free = OrdMap::unit(high, high);
        assert_eq!(p.next(0), Some(high));
        assert!(p.take(high, 0));
        assert_eq!(p.next(0), None);
    }

    #[test]
    fn ranges_merge_whatever_the_order() {
        let mut p = pool("10.0.0.0/24");
        let fresh = p.clone();
        let mut taken = BTreeSet::new();
        while let Some(a) = p.next(0) {
            assert!(p.take(a, 0) && taken.insert(a));
        }
        for (i, a) in taken
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 2 == 0)
            .chain(taken.iter().enumerate().filter(|(i, _)| i % 2 == 1))
        {
            p.release(*a, i as u64);
        }
        p.ripen(u64::MAX);
        assert_eq!(p, fresh);
    }

    #[test]
    fn cidrs() {
        for (text, code) in [
            ("10.0.0.1/24", "cidr_not_network"),
            ("10.0.0.0", "cidr_invalid"),
            ("10.0.0.0/33", "cidr_invalid"),
            ("10.0.0.0/30", "cidr_size"),
            ("127.0.0.0/8", "cidr_not_unicast"),
            ("224.0.0.0/8", "cidr_not_unicast"),
            ("", "cidr_invalid"),
        ] {
            assert_eq!(ipv4_parse(text).unwrap_err().code, code, "{text}");
        }
        for (text, code) in [
            ("fd00::/121", "ipv6_too_small"),
            ("fd00::1/64", "cidr_not_network"),
            ("fe80::/64", "cidr_not_unicast"),
            ("fd00::/16", "cidr_size"),
        ] {
            assert_eq!(ipv6_parse(text).unwrap_err().code, code, "{text}");
        }
        assert!(ipv4_parse("10.1.0.0/16").is_ok() && ipv6_parse("fd00:1::/64").is_ok());
    }

    #[test]
    fn picks_the_next_free_slash_24() {
        let nets = |list: &[&str]| list.iter().map(|t| t.parse::<Ipv4Net>().unwrap()).collect::<Vec<_>>();
        for (taken, want) in [
            (vec![], Some("10.0.0.0/24")),
            (vec!["10.0.0.0/24"], Some("10.0.1.0/24")),
            (vec!["10.0.1.0/24"], Some("10.0.0.0/24")),
            (vec!["10.0.0.128/25", "10.0.1.0/29"], Some("10.0.2.0/24")),
            (vec!["10.0.0.0/8"], Some("172.16.0.0/24")),
            (vec!["10.0.0.0/8", "172.16.0.0/12"], Some("192.168.0.0/24")),
            (vec!["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], None),
        ] {
            let taken = nets(&taken);
            assert_eq!(ipv4_pick(|| taken.iter()), want.map(|w| w.parse().unwrap()), "{taken:?}");
        }
    }
}

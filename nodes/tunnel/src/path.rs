//! Which endpoint of a peer packets go to.
//!
//! ```text
//!              handshake completes
//!   Searching ─────────────────────► Connected
//!    │  ▲  each DWELL with a          │
//!    └──┘  handshake sent in vain:    │ LOST handshakes in vain,
//!          next candidate             │ or the on-link network is gone
//!       ▲                             │
//!       └─────────────────────────────┘
//! ```
//!
//! A candidate on a network that this machine is on goes first, the sender's order decides otherwise. While a session
//! stands nothing is moved: the peer's own packets do that (WireGuard's roaming). Whether a path works is read from
//! handshakes alone: counters of bytes say nothing about a quiet peer, and a one-way flow is answered with empty
//! packets. Nothing sent means nothing tried, so a peer that nobody talks to costs nothing.
//!
//! A peer is searched fast (short retransmission) for two rounds over its candidates, then at WireGuard's own pace;
//! at most [`FAST_MAX`] peers are searched fast at a time, so that a big network of absent machines stays quiet.

use crate::{ENDPOINTS_MAX, PublicKey};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a candidate is tried while the search is fast.
const DWELL_FAST: Duration = Duration::from_millis(1_500);
/// How long a candidate is tried afterwards: just over WireGuard's REKEY_TIMEOUT.
const DWELL_SLOW: Duration = Duration::from_secs(6);
/// Rounds over the candidates before the search slows down.
const FAST_ROUNDS: usize = 2;
/// Peers searched fast at a time.
const FAST_MAX: usize = 64;
/// Moves in one step; the rest comes in the next.
const MOVES_MAX: usize = 64;
/// Handshakes in vain after which a standing path counts as lost. WireGuard sends the first 15 s after data went
/// unanswered, the others 5 s apart; fewer would take two lost packets for a lost path.
const LOST: u64 = 3;
/// Two readings of one handshake's time differ by less than this, two handshakes by more.
const AGE_ERROR: Duration = Duration::from_secs(1);

/// How many handshakes were sent to an address so far.
pub(crate) type Sent<'a> = &'a (dyn Fn(SocketAddr) -> u64 + Sync);

/// What was seen of a peer.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub key: PublicKey,
    /// Where packets go now, by roaming perhaps.
    pub endpoint: Option<SocketAddr>,
    /// When its session began.
    pub handshake_at: Option<Instant>,
}

/// What to change on a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub key: PublicKey,
    /// Where packets shall go; None = leave it.
    pub endpoint: Option<SocketAddr>,
    /// Retransmit handshakes fast, or as WireGuard does.
    pub fast: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `before` = the handshake that was known when the search began; a newer one ends it. (Not the time at which it
    /// began: ages are read with an error, and a handshake may complete in the same instant.)
    Searching {
        before: Option<Instant>,
        moved: Instant,
        sent: u64,
        tries: u32,
        fast: bool,
    },
    Connected {
        handshake_at: Instant,
        sent: u64,
    },
}

struct Path {
    given: Vec<SocketAddr>,
    order: Vec<SocketAddr>,
    at: usize,
    state: State,
}

/// The paths to all peers.
#[derive(Default)]
pub(crate) struct Paths {
    own: Vec<IpNet>,
    locals: Vec<IpNet>,
    peers: BTreeMap<PublicKey, Path>,
    /// Peers searched fast, as counted by the last step and added to from then on.
    fast: usize,
}

impl Paths {
    /// The tunnel's own networks: no endpoint is ever inside them.
    pub fn own_set(&mut self, own: &[IpNet]) {
        self.own = own.to_vec();
    }

    /// A new peer, or other candidates of one.
    pub fn upsert(&mut self, key: PublicKey, endpoints: &[SocketAddr], sent: Sent, now: Instant) -> Move {
        let given: Vec<SocketAddr> = endpoints.iter().take(ENDPOINTS_MAX).copied().collect();
        let order = order(&given, &self.own, &self.locals);
        if let Some(path) = self.peers.get_mut(&key)
            && (path.given == given || matches!(path.state, State::Connected { .. }))
        {
            path.given = given;
            path.order = order;
            path.at = 0;
            return Move { key, endpoint: None, fast: path.fast() };
        }
        let fast = self.fast < FAST_MAX;
        self.fast += usize::from(fast);
        let endpoint = order.first().copied();
        let before = match self.peers.get(&key).map(|path| path.state) {
            Some(State::Searching { before, .. }) => before,
            Some(State::Connected { .. }) | None => None,
        };
        let state = State::searching(before, endpoint, fast, sent, now);
        self.peers.insert(key, Path { given, order, at: 0, state });
        Move { key, endpoint, fast }
    }

    /// A peer is gone.
    pub fn remove(&mut self, key: &PublicKey) {
        self.peers.remove(key);
    }

    /// The networks that this machine is on. Candidates are ordered anew, and a path over a network that is gone is
    /// searched anew. Comes after [`Paths::step`], which sees what has connected by now.
    pub fn locals_set(&mut self, locals: &[IpNet], samples: &[Sample], sent: Sent, now: Instant) -> Vec<Move> {
        if self.locals == locals {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.locals, locals.to_vec());
        let mut moves = Vec::new();
        for sample in samples {
            let Some(path) = self.peers.get_mut(&sample.key) else { continue };
            let order = order(&path.given, &self.own, locals);
            let anew = match path.state {
                State::Searching { .. } => path.order != order,
                State::Connected { .. } => {
                    sample.endpoint.is_some_and(|at| inside(&before, at.ip()) && !inside(locals, at.ip()))
                }
            };
            (path.order, path.at) = (order, 0);
            if anew && let Some(endpoint) = path.order.first().copied() {
                let fast = path.fast() || self.fast < FAST_MAX;
                path.state = State::searching(sample.handshake_at, Some(endpoint), fast, sent, now);
                moves.push(Move { key: sample.key, endpoint: Some(endpoint), fast });
            }
        }
        moves
    }

    /// One step, from what was seen of every peer.
    pub fn step(&mut self, samples: &[Sample], sent: Sent, now: Instant) -> Vec<Move> {
        let mut moves = Vec::new();
        for sample in samples {
            if moves.len() >= MOVES_MAX {
                break;
            }
            let may_fast = self.fast < FAST_MAX;
            let moved = self.peers.get_mut(&sample.key).and_then(|path| path.step(sample, sent, now, may_fast));
            if let Some(moved) = moved {
                self.fast += usize::from(moved.fast);
                moves.push(moved);
            }
        }
        self.fast = self.peers.values().filter(|path| path.fast()).count();
        moves
    }

    /// After how long the next step is due.
    pub fn step_after(&self) -> Duration {
        let wait = |path: &Path| match path.state {
            State::Searching { fast: true, .. } => Duration::from_millis(250),
            State::Searching { fast: false, .. } => Duration::from_secs(2),
            State::Connected { .. } => Duration::from_secs(5),
        };
        self.peers.values().map(wait).min().unwrap_or(Duration::from_secs(30))
    }
}

impl State {
    fn searching(before: Option<Instant>, endpoint: Option<SocketAddr>, fast: bool, sent: Sent, now: Instant) -> Self {
        State::Searching { before, moved: now, sent: endpoint.map_or(0, sent), tries: 0, fast }
    }
}

impl Path {
    fn fast(&self) -> bool {
        matches!(self.state, State::Searching { fast: true, .. })
    }

    fn step(&mut self, sample: &Sample, sent: Sent, now: Instant, may_fast: bool) -> Option<Move> {
        let key = sample.key;
        let sent_now = sample.endpoint.map_or(0, sent);
        let newer =
            |than: Option<Instant>| sample.handshake_at.filter(|at| than.is_none_or(|than| *at > than + AGE_ERROR));
        match self.state {
            State::Searching { before, moved, sent: sent_then, tries, fast } => {
                if let Some(handshake_at) = newer(before) {
                    self.state = State::Connected { handshake_at, sent: sent_now };
                    return fast.then_some(Move { key, endpoint: None, fast: false });
                }
                let dwell = if fast { DWELL_FAST } else { DWELL_SLOW };
                if sent_now <= sent_then || now.saturating_duration_since(moved) < dwell {
                    return None;
                }
                let tries = tries.saturating_add(1);
                let fast_now = fast && (tries as usize) < FAST_ROUNDS * self.order.len();
                let endpoint = self.next(sample.endpoint);
                let sent = endpoint.or(sample.endpoint).map_or(0, sent);
                self.state = State::Searching { before, moved: now, sent, tries, fast: fast_now };
                (endpoint.is_some() || fast != fast_now).then_some(Move { key, endpoint, fast: fast_now })
            }
            State::Connected { handshake_at, sent: sent_then } => {
                let again = newer(Some(handshake_at));
                // The count is per address: roaming starts another one.
                if again.is_some() || sent_now < sent_then {
                    self.state = State::Connected { handshake_at: again.unwrap_or(handshake_at), sent: sent_now };
                    return None;
                }
                if sent_now - sent_then < LOST {
                    return None;
                }
                let endpoint = self.next(sample.endpoint);
                self.state = State::searching(Some(handshake_at), endpoint.or(sample.endpoint), may_fast, sent, now);
                Some(Move { key, endpoint, fast: may_fast })
            }
        }
    }

    /// The candidate after the one in use; None where there is no other.
    fn next(&mut self, current: Option<SocketAddr>) -> Option<SocketAddr> {
        for _ in 0..self.order.len() {
            self.at = (self.at + 1) % self.order.len();
            let candidate = self.order.get(self.at).copied();
            if candidate != current {
                return candidate;
            }
        }
        None
    }
}

fn inside(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&ip))
}

fn order(given: &[SocketAddr], own: &[IpNet], locals: &[IpNet]) -> Vec<SocketAddr> {
    let mut order: Vec<SocketAddr> = Vec::with_capacity(given.len());
    for candidate in given {
        if !inside(own, candidate.ip()) && candidate.port() != 0 && !order.contains(candidate) {
            order.push(*candidate);
        }
    }
    order.sort_by_key(|candidate| !inside(locals, candidate.ip()));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::Mutex;

    const KEY: PublicKey = [1; 32];

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn candidates_are_ordered() {
        let check = |given: &[&str], own: &[&str], locals: &[&str], expected: &[&str]| {
            let given: Vec<_> = given.iter().map(|text| at(text)).collect();
            let expected: Vec<_> = expected.iter().map(|text| at(text)).collect();
            assert_eq!(order(&given, &nets(own), &nets(locals)), expected, "{given:?} own {own:?} locals {locals:?}");
        };
        check(&[], &[], &[], &[]);
        check(&["1.1.1.1:1", "2.2.2.2:1"], &[], &[], &["1.1.1.1:1", "2.2.2.2:1"]);
        check(&["1.1.1.1:1", "2.2.2.2:1"], &[], &["2.2.2.0/24"], &["2.2.2.2:1", "1.1.1.1:1"]);
        check(&["10.0.0.3:1", "2.2.2.2:1"], &["10.0.0.0/24"], &["10.0.0.0/8"], &["2.2.2.2:1"]);
        check(&["1.1.1.1:1", "1.1.1.1:1", "1.1.1.1:0"], &[], &[], &["1.1.1.1:1"]);
        check(&["1.1.1.1:1", "[fd01::1]:1"], &[], &["fd01::/64"], &["[fd01::1]:1", "1.1.1.1:1"]);
    }

    /// A peer whose working address is `alive`; one handshake a second goes to wherever the path points.
    struct World {
        paths: Paths,
        sent: Mutex<BTreeMap<SocketAddr, u64>>,
        start: Instant,
        now: Instant,
        endpoint: Option<SocketAddr>,
        handshake_at: Option<Instant>,
        alive: Option<SocketAddr>,
        talking: bool,
        moves: RefCell<Vec<(u64, Option<SocketAddr>, bool)>>,
    }

    impl World {
        fn new(candidates: &[&str], alive: Option<&str>) -> Self {
            let start = Instant::now();
            let mut world = World {
                paths: Paths::default(),
                sent: Mutex::default(),
                start,
                now: start,
                endpoint: None,
                handshake_at: None,
                alive: alive.map(at),
                talking: true,
                moves: RefCell::default(),
            };
            let candidates: Vec<_> = candidates.iter().map(|text| at(text)).collect();
            let first = world.paths.upsert(KEY, &candidates, &|_| 0, start);
            world.endpoint = first.endpoint;
            assert!(first.fast);
            world
        }

        fn sample(&self) -> Sample {
            Sample { key: KEY, endpoint: self.endpoint, handshake_at: self.handshake_at }
        }

        fn run(&mut self, seconds: u64) {
            for quarter in 0..seconds * 4 {
                self.now += Duration::from_millis(250);
                if quarter % 4 == 0
                    && self.talking
                    && let Some(endpoint) = self.endpoint
                {
                    *self.sent.lock().unwrap().entry(endpoint).or_default() += 1;
                    if self.alive == Some(endpoint) {
                        self.handshake_at = Some(self.now);
                    }
                }
                let sent = |addr| self.sent.lock().unwrap().get(&addr).copied().unwrap_or(0);
                for moved in self.paths.step(&[self.sample()], &sent, self.now) {
                    self.endpoint = moved.endpoint.or(self.endpoint);
                    let ms = self.now.duration_since(self.start).as_millis() as u64;
                    self.moves.borrow_mut().push((ms, moved.endpoint, moved.fast));
                }
            }
        }

        fn connected(&self) -> bool {
            matches!(self.paths.peers[&KEY].state, State::Connected { .. })
        }
    }

    #[test]
    fn the_search_rotates_until_a_handshake_completes_and_then_stays() {
        let mut world = World::new(&["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"], Some("3.3.3.3:1"));
        world.run(5);
        assert!(world.connected());
        assert_eq!(world.endpoint, Some(at("3.3.3.3:1")));
        let moves = world.moves.borrow().clone();
        assert_eq!(moves.len(), 3, "two rotations and the way back to WireGuard's own pace: {moves:?}");
        assert!(!moves[2].2);
        world.run(120);
        assert_eq!(world.moves.borrow().len(), 3);
    }

    #[test]
    fn a_handshake_in_the_instant_of_the_search_ends_it() {
        let mut world = World::new(&["1.1.1.1:1", "2.2.2.2:1"], None);
        world.talking = false;
        // Read a little early: the age of a session has an error.
        world.handshake_at = Some(world.start - Duration::from_millis(3));
        world.run(5);
        assert!(world.connected());
        assert_eq!(world.endpoint, Some(at("1.1.1.1:1")));
        assert_eq!(*world.moves.borrow(), [(250, None, false)], "connected at the first look");
    }

    #[test]
    fn an_absent_peer_is_searched_slowly_after_two_rounds_and_never_when_nothing_is_sent() {
        let mut world = World::new(&["1.1.1.1:1", "2.2.2.2:1"], None);
        world.run(60);
        let moves = world.moves.borrow().clone();
        assert!(moves.iter().filter(|(ms, _, _)| *ms < 8_000).count() >= 4, "{moves:?}");
        assert!(moves.iter().filter(|(ms, _, _)| *ms > 20_000).count() <= 7, "{moves:?}");
        assert!(!moves.last().unwrap().2);
        let before = moves.len();
        world.talking = false;
        world.run(600);
        assert!(world.moves.borrow().len() <= before + 1);
    }

    #[test]
    fn a_path_that_answers_no_handshake_is_left() {
        let mut world = World::new(&["1.1.1.1:1", "2.2.2.2:1"], Some("1.1.1.1:1"));
        world.run(3);
        assert!(world.connected());
        world.alive = Some(at("2.2.2.2:1"));
        world.run(8);
        assert!(world.connected());
        assert_eq!(world.endpoint, Some(at("2.2.2.2:1")));
    }

    #[test]
    fn a_single_candidate_is_kept() {
        let mut world = World::new(&["1.1.1.1:1"], None);
        world.run(30);
        assert_eq!(world.endpoint, Some(at("1.1.1.1:1")));
        assert!(world.moves.borrow().iter().all(|(_, endpoint, _)| endpoint.is_none()));
        let mut nowhere = World::new(&[], None);
        nowhere.run(30);
        assert_eq!(nowhere.endpoint, None);
    }

    #[test]
    fn other_candidates_move_a_searched_peer_and_leave_a_connected_one() {
        let mut world = World::new(&["1.1.1.1:1"], None);
        let moved = world.paths.upsert(KEY, &[at("2.2.2.2:1")], &|_| 0, world.now);
        assert_eq!(moved.endpoint, Some(at("2.2.2.2:1")));
        world.endpoint = moved.endpoint;
        world.alive = moved.endpoint;
        world.run(3);
        assert!(world.connected());
        assert_eq!(world.paths.upsert(KEY, &[at("3.3.3.3:1")], &|_| 0, world.now).endpoint, None);
    }

    #[test]
    fn losing_the_network_of_a_path_searches_anew() {
        let mut world = World::new(&["10.1.0.2:1", "2.2.2.2:1"], Some("10.1.0.2:1"));
        let sample = world.sample();
        let moves = world.paths.locals_set(&nets(&["2.2.2.0/24"]), std::slice::from_ref(&sample), &|_| 0, world.now);
        assert_eq!(moves[0].endpoint, Some(at("2.2.2.2:1")), "another order starts anew");
        let moves = world.paths.locals_set(&nets(&["10.1.0.0/24"]), &[sample], &|_| 0, world.now);
        assert_eq!(moves[0].endpoint, Some(at("10.1.0.2:1")));
        world.run(3);
        assert!(world.connected());
        let sample = world.sample();
        assert!(
            world
                .paths
                .locals_set(&nets(&["10.1.0.0/24", "10.2.0.0/24"]), std::slice::from_ref(&sample), &|_| 0, world.now)
                .is_empty()
        );
        let moves = world.paths.locals_set(&nets(&["10.2.0.0/24"]), &[sample], &|_| 0, world.now);
        assert_eq!(moves.len(), 1);
        assert!(!world.connected());
    }

    #[test]
    fn only_so_many_peers_are_searched_fast() {
        let mut paths = Paths::default();
        let now = Instant::now();
        let fast = (0..200u8).filter(|n| paths.upsert([*n; 32], &[at("1.1.1.1:1")], &|_| 0, now).fast).count();
        assert_eq!(fast, FAST_MAX);
    }
}

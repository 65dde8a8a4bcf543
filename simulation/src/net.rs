//! The network between the members of a simulated cluster: connections, not datagrams.
//!
//! ```text
//! connect ─► two pipes ─► a relay each way: frames in order, each after a delay ─► accept, in the other process
//!                              ▲ cut: held back, delivered after the heal, or the connection breaks
//!                              │ swallow: this one and all later frames are lost, neither side is told
//!                              └ break, a killed process: both sides are told; a power cut: nobody is
//! ```
//! Loss, duplication and reordering happen below a connection; what a member meets of them is a connection that is slow,
//! stalled, broken or half-open. Every frame is in the trace.

use crate::lock;
use crate::runtime::{Inside, NodeRt, Process, Until, Waiters, now_us, sleep_us};
use crate::trace::{Sign, Trace};
use bytes::Bytes;
use cvlan_core::Rules;
use cvlan_core::grammar::Rng;
use cvlan_raft::types::{Cfg, Rx, Tx};
use cvlan_raft::{Member, Pipe, Transport};
use openraft::AsyncRuntime;
use openraft::async_runtime::{MpscReceiver, MpscSender, Select2, Select3};
use openraft::type_config::TypeConfigExt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;

/// Frames that a side may have written before the other one reads.
const PIPE: usize = 32;

/// Frames on their way in one direction; more wait in the pipe.
const WINDOW: usize = 64;

/// While a direction is cut it is looked at this often, µs.
const CUT_STEP_US: u64 = 20_000;

/// A connection attempt into a cut, or to a machine without power, ends after this, µs.
const CONNECT_LIMIT_US: u64 = 1_500_000;

/// What is wrong with the network for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing passes from one of these machines to one of those.
    Cut(BTreeSet<usize>, BTreeSet<usize>),
    /// Frames between these two machines take so much longer, µs.
    Slow(usize, usize, u64),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

struct Inner {
    trace: Trace,
    /// A frame takes this long and up to twice it, µs.
    base_us: u64,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    doors: BTreeMap<usize, Door>,
    /// Machines without power.
    dark: BTreeSet<usize>,
    effects: BTreeMap<u64, Effect>,
    last_effect: u64,
    connections: Vec<Weak<Connection>>,
    opened: u64,
}

/// Where connections to a machine arrive.
#[derive(Clone)]
pub struct Door {
    /// Who serves them.
    pub member: Member<Rules, NodeRt>,
    /// As part of this.
    pub process: Arc<Process>,
}

/// One connection, from the machine that opened it to the other one.
struct Connection {
    id: u64,
    ends: [usize; 2],
    now: Mutex<Condition>,
}

#[derive(Default)]
struct Condition {
    broken: bool,
    /// By direction: from here on frames are lost.
    swallows: [bool; 2],
    /// By end: it lost power, and nobody was told.
    silent: [bool; 2],
    waiters: Waiters,
}

/// The name of a machine, which is its address too.
pub fn address(machine: usize) -> String {
    format!("s{machine}:8445")
}

fn machine_of(address: &str) -> Option<usize> {
    address.strip_prefix('s')?.strip_suffix(":8445")?.parse().ok()
}

impl Net {
    /// A network without faults.
    pub fn new(mut rng: Rng, trace: Trace) -> Self {
        let base_us = [100, 300, 1_000, 4_000].get(rng.below(4) as usize).copied().unwrap_or(300);
        let state = State {
            rng,
            doors: BTreeMap::new(),
            dark: BTreeSet::new(),
            effects: BTreeMap::new(),
            last_effect: 0,
            connections: Vec::new(),
            opened: 0,
        };
        Self(Arc::new(Inner { trace, base_us, state: Mutex::new(state) }))
    }

    /// The way out of a machine, for the member that runs on it.
    pub fn transport(&self, machine: usize, member: u64) -> SimTransport {
        SimTransport { net: self.clone(), machine, member }
    }

    /// Connections to the machine arrive there from now on; `None` = they are refused.
    pub fn listen(&self, machine: usize, door: Option<Door>) {
        let mut state = lock(&self.0.state);
        match door {
            Some(door) => drop(state.doors.insert(machine, door)),
            None => drop(state.doors.remove(&machine)),
        }
    }

    /// The machine has power, or it has none: then nobody hears of the end of its connections.
    pub fn power(&self, machine: usize, on: bool) {
        let mut state = lock(&self.0.state);
        if on {
            state.dark.remove(&machine);
            return;
        }
        state.dark.insert(machine);
        for connection in state.live() {
            for (end, silent) in connection.ends.iter().zip(&mut lock(&connection.now).silent) {
                *silent |= *end == machine;
            }
        }
    }

    /// An effect begins; its number ends it.
    pub fn begin(&self, effect: Effect) -> u64 {
        let mut state = lock(&self.0.state);
        state.last_effect += 1;
        let number = state.last_effect;
        state.effects.insert(number, effect);
        number
    }

    /// An effect ends. After a cut, some of the connections that it held back are given up.
    pub fn end(&self, number: u64) {
        let mut broken = Vec::new();
        {
            let mut state = lock(&self.0.state);
            if let Some(Effect::Cut(from, to)) = state.effects.remove(&number) {
                for connection in state.live() {
                    let [a, b] = connection.ends;
                    let held = from.contains(&a) && to.contains(&b) || from.contains(&b) && to.contains(&a);
                    if held && state.rng.one_in(2) {
                        broken.push(connection);
                    }
                }
            }
        }
        broken.iter().for_each(|connection| connection.end());
    }

    /// Breaks all connections between two machines, or lets them swallow what is sent from now on from `a` to `b`.
    pub fn disturb(&self, a: usize, b: usize, swallow: bool) {
        let between: Vec<_> = lock(&self.0.state).live().filter(|c| c.ends == [a, b] || c.ends == [b, a]).collect();
        for connection in between {
            if !swallow {
                connection.end();
                continue;
            }
            let direction = usize::from(connection.ends != [a, b]);
            if let Some(swallows) = lock(&connection.now).swallows.get_mut(direction) {
                *swallows = true;
            }
        }
    }

    /// Everything that was wrong is over.
    pub fn heal(&self) {
        let effects: Vec<u64> = lock(&self.0.state).effects.keys().copied().collect();
        effects.into_iter().for_each(|number| self.end(number));
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        lock(&self.0.state).live().count()
    }

    fn cut(&self, from: usize, to: usize) -> bool {
        lock(&self.0.state).effects.values().any(|effect| match effect {
            Effect::Cut(these, those) => these.contains(&from) && those.contains(&to),
            Effect::Slow(..) => false,
        })
    }

    /// How long a frame takes, µs.
    fn delay(&self, from: usize, to: usize) -> u64 {
        let state = &mut *lock(&self.0.state);
        let slower = state.effects.values().map(|effect| match effect {
            Effect::Slow(a, b, us) if [*a, *b] == [from, to] || [*b, *a] == [from, to] => *us,
            Effect::Slow(..) | Effect::Cut(..) => 0,
        });
        let slower: u64 = slower.sum();
        let usual = self.0.base_us + state.rng.below(self.0.base_us);
        let usual = if state.rng.one_in(500) { usual * 20 } else { usual };
        usual + slower / 2 + state.rng.below(slower)
    }

    fn is_dark(&self, machine: usize) -> bool {
        lock(&self.0.state).dark.contains(&machine)
    }

    /// Carries frames one way until the connection ends.
    async fn relay(self, connection: Arc<Connection>, way: usize, mut rx: Rx<NodeRt, Bytes>, tx: Tx<NodeRt, Bytes>) {
        let [from, to] = if way == 0 { connection.ends } else { [connection.ends[1], connection.ends[0]] };
        let mut line: VecDeque<(u64, u64, Bytes)> = VecDeque::new();
        let (mut last_due, mut open) = (0, true);
        loop {
            let (now, cut) = (now_us(), self.cut(from, to));
            if let Some((_, sent, frame)) = line.pop_front_if(|(due, ..)| *due <= now && !cut) {
                if connection.swallows(way) || self.is_dark(to) {
                    continue;
                }
                let (id, sum) = (connection.id, crc32c::crc32c(&frame));
                let sign = Sign::Frame(from, sent);
                self.0.trace.mark(Some(to), sign, format_args!("frame of s{from} #{id} {} {sum:08x}", frame.len()));
                match Cfg::<NodeRt>::select2(connection.broken(), tx.send(frame)).await {
                    Select2::Second(Ok(())) => continue,
                    Select2::First(()) | Select2::Second(Err(_)) => {}
                }
                return connection.end();
            }
            if line.is_empty() && !open {
                // A machine that lost power says nothing: the other one finds out when it sends, if the machine runs again.
                if connection.is_silent(way) {
                    connection.broken().await;
                }
                return connection.end();
            }
            let wake = line.front().map(|(due, ..)| if cut { now + CUT_STEP_US } else { *due });
            let next =
                async { if open && line.len() < WINDOW { rx.recv().await } else { std::future::pending().await } };
            let until = async {
                match wake {
                    Some(at) => sleep_us(at.saturating_sub(now)).await,
                    None => std::future::pending().await,
                }
            };
            match Cfg::<NodeRt>::select3(connection.broken(), next, until).await {
                Select3::First(()) => return,
                Select3::Second(Some(frame)) => {
                    last_due = (now_us() + self.delay(from, to)).max(last_due);
                    line.push_back((last_due, now_us(), frame));
                }
                Select3::Second(None) => open = false,
                Select3::Third(()) => {}
            }
        }
    }
}

impl State {
    fn live(&mut self) -> impl Iterator<Item = Arc<Connection>> + use<> {
        self.connections.retain(|connection| connection.strong_count() > 0);
        let live: Vec<_> = self.connections.iter().filter_map(Weak::upgrade).collect();
        live.into_iter()
    }
}

impl Connection {
    fn end(&self) {
        let wakers = {
            let mut now = lock(&self.now);
            now.broken = true;
            now.waiters.take()
        };
        wakers.for_each(Waker::wake);
    }

    fn broken(&self) -> impl Future<Output = ()> {
        Until::new(&self.now, |now| (now.broken, &mut now.waiters))
    }

    fn is_silent(&self, end: usize) -> bool {
        lock(&self.now).silent.get(end).copied().unwrap_or_default()
    }

    fn swallows(&self, way: usize) -> bool {
        lock(&self.now).swallows.get(way).copied().unwrap_or_default()
    }
}

/// One member's way to the others.
#[derive(Clone)]
pub struct SimTransport {
    net: Net,
    machine: usize,
    member: u64,
}

impl Transport<NodeRt> for SimTransport {
    async fn connect(&self, to: u64, address: &str) -> io::Result<Pipe<NodeRt>> {
        let Some(there) = machine_of(address) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} of member {to}")));
        };
        let (net, here) = (&self.net, self.machine);
        let limit = now_us() + CONNECT_LIMIT_US;
        sleep_us(net.delay(here, there)).await;
        while net.cut(here, there) || net.cut(there, here) || net.is_dark(there) {
            if now_us() > limit {
                return Err(io::ErrorKind::TimedOut.into());
            }
            sleep_us(CUT_STEP_US).await;
        }
        let (connection, door) = {
            let mut state = lock(&net.0.state);
            let door = state.doors.get(&there).cloned().filter(|door| !door.process.is_dead());
            let Some(door) = door else { return Err(io::ErrorKind::ConnectionRefused.into()) };
            state.opened += 1;
            let id = state.opened;
            let connection = Arc::new(Connection { id, ends: [here, there], now: Mutex::default() });
            state.connections.push(Arc::downgrade(&connection));
            (connection, door)
        };
        net.0.trace.line(format_args!("s{here} connects to s{there}, m{} to m{to}: #{}", self.member, connection.id));
        let (mine, theirs) = net.pipes(&connection);
        let (member, from) = (door.member.clone(), self.member);
        let _accepted = door.process.spawn(async move { member.accept(Some(from), true, theirs).await });
        Ok(mine)
    }
}

impl Net {
    /// The two ends of a connection, with the relays between them.
    fn pipes(&self, connection: &Arc<Connection>) -> (Pipe<NodeRt>, Pipe<NodeRt>) {
        let channel = || Cfg::<NodeRt>::mpsc::<Bytes>(PIPE);
        let ((here_tx, from_here), (to_there, there_rx)) = (channel(), channel());
        let ((there_tx, from_there), (to_here, here_rx)) = (channel(), channel());
        // The network belongs to the world: a killed process does not take it along.
        let _world = Inside::of(None);
        let _there = NodeRt::spawn(self.clone().relay(connection.clone(), 0, from_here, to_there));
        let _here = NodeRt::spawn(self.clone().relay(connection.clone(), 1, from_there, to_here));
        (Pipe { tx: here_tx, rx: here_rx }, Pipe { tx: there_tx, rx: there_rx })
    }
}

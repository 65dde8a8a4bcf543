//! Commands for the member that leads: numbered, sent, and sent again under the same number after a loss, until one
//! leader's answer is here or their time is up.
//!
//! ```text
//! desk ─► forward ─► number ─► leader? ─ another ─► Write ─► its desk ─► answer: events, or why not
//!   ▲                   ▲         │ this one          │ lost, no answer in time, or another leads now
//!   └───────────────────┼─────────┘                   │
//!                       └──── a short pause ◄─────────┘
//! ```
//! Numbers are of a session of this process; the state keeps the outcomes of the last [`WINDOW`] numbers of a session, so
//! no more than that are ever between the oldest command without an answer and the newest.

use crate::desk::{Done, Item};
use crate::error::WriteError;
use crate::member::{Answer, Shares};
use crate::options::Events;
use crate::peer::codec::{self, FRAME_MAX, FrameError, Request};
use crate::peer::link::CallError;
use crate::peer::{Peers, slow};
use crate::replica::{Raft, Shared};
use crate::sessions::WINDOW;
use crate::sync::lock;
use crate::types::Cfg;
use bytes::Bytes;
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use cvlan_core::machine::{Machine, Once};
use futures_util::StreamExt;
use futures_util::future::{Either, pending};
use futures_util::stream::FuturesUnordered;
use openraft::AsyncRuntime;
use openraft::async_runtime::{OneshotSender, Select2, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Commands on their way to the leader at once.
const FORWARDS: usize = 512;

/// Between two attempts to send a command.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// An attempt is given up after this time; the next one has the same number.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Numbers of this process's session.
struct Numbers {
    session: u64,
    next: u64,
    /// Of commands that have no answer yet.
    open: BTreeSet<u64>,
}

impl Numbers {
    /// A session that no other process has, and the same in a simulation that is run again.
    fn new<M: Machine, RT: AsyncRuntime>(shared: &Shared<M, RT>) -> Self {
        let head = shared.head();
        let hash = Sha256::new()
            .chain_update("session")
            .chain_update(shared.member.to_le_bytes())
            .chain_update(shared.clock.wall_ms().to_le_bytes())
            .chain_update(shared.clock.monotonic_us().to_le_bytes())
            .chain_update(head.root)
            .chain_update(format!("{:?}", shared.wal.marks()))
            .finalize();
        let random = hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self { session: session(shared.member, random), next: 0, open: BTreeSet::new() }
    }

    /// Commands that may be numbered now.
    fn room(&self) -> usize {
        let oldest = self.open.first().copied().unwrap_or(self.next);
        let spread = self.next.saturating_sub(oldest) as usize;
        (WINDOW as usize - 1).saturating_sub(spread)
    }

    fn take(&mut self) -> Once {
        self.next += 1;
        self.open.insert(self.next);
        Once { session: self.session, n: self.next }
    }
}

/// Low bits of a session that say whose it is: the last ones of the member's id.
const OWNER: u64 = (1 << 24) - 1;

/// A session of this member: never 0.
fn session(member: u64, random: u64) -> u64 {
    ((random & !OWNER) | (member & OWNER)).max(1)
}

/// Whether this is a number of one of this member's sessions. One who took another's would have it believe that its command
/// was carried out before.
pub(crate) fn owns(member: u64, once: Once) -> bool {
    once.session & OWNER == member & OWNER
}

/// What the forwarder works with.
struct Forward<M: Machine, RT: AsyncRuntime> {
    shared: Arc<Shared<M, RT>>,
    raft: Raft<M, RT>,
    peers: Arc<Peers<RT>>,
    numbers: Mutex<Numbers>,
}

/// Stops the member if the forwarder ends for another reason than that.
impl<M: Machine, RT: AsyncRuntime> Drop for Forward<M, RT> {
    fn drop(&mut self) {
        self.shared.ended("the forwarder");
    }
}

/// Runs until the desk is closed.
pub(crate) async fn run<M: Machine, RT: AsyncRuntime>(shares: Shares<M, RT>) {
    let Shares { shared, raft, peers } = shares;
    let numbers = Mutex::new(Numbers::new(&shared));
    let forward = Forward { shared, raft, peers, numbers };
    let mut open = FuturesUnordered::new();
    loop {
        let room = FORWARDS.saturating_sub(open.len()).min(lock(&forward.numbers).room());
        let desk = &forward.shared.desk;
        let taken = if room > 0 {
            Either::Left(poll_fn(|context| desk.poll_forward(context, room)))
        } else {
            Either::Right(pending())
        };
        let done = if open.is_empty() { Either::Left(pending()) } else { Either::Right(open.next()) };
        match Cfg::<RT>::select2(done, taken).await {
            Select2::First(_) => {}
            Select2::Second(None) => return,
            // Numbered at once: how many more there is room for depends on it.
            Select2::Second(Some(items)) => open.extend(items.into_iter().map(|mut item| {
                let own = forward.number(&mut item);
                forward.item(item, own)
            })),
        }
        if desk.is_stopped() {
            return;
        }
    }
}

/// What an attempt came to.
enum Tried<M: Machine> {
    /// This is the answer.
    Told(Result<Answer<M>, WriteError<M::Rejection>>),
    /// It was not done there, for certain.
    NotThere,
    /// It may have been done.
    Unknown,
}

impl<M: Machine, RT: AsyncRuntime> Forward<M, RT> {
    /// A number of this process's session for a command that has none.
    fn number(&self, item: &mut Item<M, RT>) -> Option<u64> {
        M::once(&item.command).is_none().then(|| {
            let once = lock(&self.numbers).take();
            M::number(&mut item.command, once);
            once.n
        })
    }

    async fn item(&self, mut item: Item<M, RT>, own: Option<u64>) {
        if let Some(reply) = self.send(&mut item, own.is_some()).await {
            let _ = item.reply.send(reply.map(Done::Answer));
            self.shared.desk.forwarded();
        } else {
            self.shared.desk.back(item);
        }
        if let Some(n) = own {
            lock(&self.numbers).open.remove(&n);
        }
    }

    /// Sends it until there is an answer; `None` where this member leads by now.
    async fn send(&self, item: &mut Item<M, RT>, own: bool) -> Option<Result<Answer<M>, WriteError<M::Rejection>>> {
        let mut body = Vec::new();
        codec::put(&item.command, &mut body);
        if body.len() > FRAME_MAX / 2 {
            return Some(Err(WriteError::TooLarge { bytes: body.len(), limit: FRAME_MAX / 2 }));
        }
        // To the leader, and from there to the others.
        let slow = slow(2 * body.len());
        let limit_us = self.shared.limits.leader_wait_ms * 1000 + slow.as_micros() as u64;
        let numbered = M::once(&item.command).is_some();
        let mut metrics = self.raft.server_metrics();
        loop {
            let leader = metrics.borrow_and_update().current_leader;
            let waited_us = self.shared.clock.monotonic_us().saturating_sub(item.since_us);
            let left_us = limit_us.saturating_sub(waited_us);
            if left_us == 0 || (item.sent && !numbered) {
                return Some(Err(if item.sent { WriteError::OutcomeUnknown } else { WriteError::NoLeader }));
            }
            match leader {
                Some(leader) if leader == self.shared.member => return None,
                Some(leader) => {
                    let limit = (ATTEMPT + slow).min(Duration::from_micros(left_us));
                    let attempt = self.attempt(leader, item.epoch, &body, limit);
                    let other = async {
                        while metrics.changed().await.is_ok() {
                            if metrics.borrow_watched().current_leader.is_some_and(|now| now != leader) {
                                return;
                            }
                        }
                    };
                    match Cfg::<RT>::select2(attempt, other).await {
                        Select2::First(Tried::Told(told)) => match told {
                            Ok(answer) if answer.first_seq.0 > 0 => {
                                let repeated = answer.repeated && !own;
                                return Some(Ok(Answer { repeated, ..answer }));
                            }
                            // After an attempt of which it is not known, only its events say what became of it.
                            Ok(_)
                            | Err(
                                WriteError::Rejected(_)
                                | WriteError::AlreadyBootstrapped
                                | WriteError::NotAllowed { .. },
                            ) if item.sent => {
                                return Some(Err(WriteError::OutcomeUnknown));
                            }
                            Err(WriteError::NoLeader | WriteError::Removed | WriteError::Diverged) => {}
                            Err(WriteError::Stopped) => item.sent = true,
                            Err(WriteError::Busy | WriteError::DiskFull) if item.sent => {}
                            told => return Some(told),
                        },
                        Select2::First(Tried::NotThere) => {}
                        Select2::First(Tried::Unknown) | Select2::Second(()) => item.sent = true,
                    }
                    Cfg::<RT>::sleep(PAUSE).await;
                }
                None => {
                    let wait = Cfg::<RT>::sleep(Duration::from_micros(left_us));
                    let _ = Cfg::<RT>::select2(metrics.changed(), wait).await;
                }
            }
        }
    }

    async fn attempt(&self, leader: u64, first: Option<Epoch>, body: &[u8], limit: Duration) -> Tried<M> {
        let epoch = self.shared.head().epoch.0;
        let request = Request::Write { epoch, first: first.map(|epoch| epoch.0) };
        match self.peers.link(leader).call(request, body, limit).await {
            Ok((answer, body)) => told(answer, body).unwrap_or_else(|error| {
                tracing::warn!(member = leader, %error, "an answer that cannot be read");
                Tried::Unknown
            }),
            Err(CallError::Unreachable(_)) => Tried::NotThere,
            Err(CallError::Lost | CallError::TimedOut) => Tried::Unknown,
        }
    }
}

fn told<M: Machine>(answer: codec::Answer, body: Bytes) -> Result<Tried<M>, FrameError> {
    match answer {
        codec::Answer::Written { epoch, first_seq, seq, repeated } => {
            let pieces = codec::pieces(body)?;
            let events = pieces.iter().map(|bytes| M::decode(bytes)).collect::<Result<Vec<_>, _>>();
            let events = events.map_err(|error| FrameError::Malformed(error.to_string()))?;
            let checkpoint = Checkpoint { epoch: Epoch(epoch), seq: Seq(seq) };
            let first_seq = Seq(first_seq);
            Ok(Tried::Told(Ok(Answer { checkpoint, first_seq, events: Events::of(events), repeated })))
        }
        codec::Answer::Refused => Ok(Tried::Told(Err(codec::get(&body)?))),
        codec::Answer::NotLeader { .. } => Ok(Tried::NotThere),
        _ => Err(FrameError::Unexpected("no answer to a command")),
    }
}

/// What became of a command, as it travels.
pub(crate) fn tell<M: Machine>(result: Result<Answer<M>, WriteError<M::Rejection>>) -> (codec::Answer, Bytes) {
    match result {
        Ok(answer) => {
            let mut bytes = Vec::new();
            let mut raw = Vec::with_capacity(answer.events.len());
            for event in answer.events.iter() {
                let start = bytes.len();
                M::encode(event, &mut bytes);
                raw.push(start..bytes.len());
            }
            let body = codec::put_pieces(raw.into_iter().map(|range| bytes.get(range).unwrap_or_default()));
            let Checkpoint { epoch, seq } = answer.checkpoint;
            let written = codec::Answer::Written {
                epoch: epoch.0,
                first_seq: answer.first_seq.0,
                seq: seq.0,
                repeated: answer.repeated,
            };
            (written, body)
        }
        Err(error) => {
            let mut body = Vec::new();
            codec::put(&error, &mut body);
            (codec::Answer::Refused, body.into())
        }
    }
}

//! The way to one other member: one connection, shared by everything that asks it something, made when it is first
//! needed and again after a loss, with a pause that grows.
//!
//! ```text
//! call(request) ─► connection: there? being made? in a pause? ─► frame with an id ─► pipe
//!      ▲                                                                              │
//!      └── answer or loss ◄── waiting: id → caller ◄── reader (a task a connection) ◄─┘
//! ```
//! Invariants: whoever waits hears of the loss of its connection; a call that nobody waits for leaves nothing behind; a
//! connection that is asked and says nothing is given up, whether or not anybody still waits.

use crate::clock::Clock;
use crate::peer::codec::{self, Answer, FRAME_MAX, FrameError, Hello, Message, Refusal, Request};
use crate::peer::{CLUSTER, DIAL_LIMIT, Dial, Known, OPEN_BYTES, PAUSE_MAX, PAUSE_MIN, SILENT_LIMIT, slow};
use crate::sync::lock;
use crate::transport::Pipe;
use crate::types::{Cfg, Once, Tx};
use bytes::{Bytes, BytesMut};
use cvlan_core::id::Epoch;
use openraft::AsyncRuntime;
use openraft::async_runtime::{MpscReceiver, MpscSender, OneshotSender, Select2};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// There is no connection: it was not sent.
    #[error("{0}")]
    Unreachable(String),
    /// The connection was lost: it may have been received.
    #[error("the connection was lost")]
    Lost,
    /// No answer came in time: it may have been received.
    #[error("no answer in time")]
    TimedOut,
}

/// Who waits for an answer, and the parts of its body that are there.
struct Caller<RT: AsyncRuntime> {
    tx: Once<RT, (Answer, Bytes)>,
    /// Bytes that its answer may hold.
    due: usize,
    parts: BytesMut,
}

/// Answers by the id of their request, until the connection is lost.
struct Waiting<RT: AsyncRuntime> {
    open: bool,
    next: u64,
    callers: BTreeMap<u64, Caller<RT>>,
    /// Ids of requests that may not have arrived yet, in order, each with its bytes; and the bytes of all of them.
    on_way: VecDeque<(u64, usize)>,
    bytes: usize,
    /// What all answers that are waited for may hold, and what there is of them.
    due: usize,
    joined: usize,
    /// Own monotonic time at which the first request since an answer last came over this very connection should have one.
    until_us: Option<u64>,
}

/// A connection.
pub(crate) struct Conn<RT: AsyncRuntime> {
    tx: Tx<RT, Bytes>,
    waiting: Arc<Mutex<Waiting<RT>>>,
    clock: Arc<dyn Clock>,
    to: u64,
    /// Both sides know what was added first: parts, and the question `Promotable`.
    parts: bool,
    /// When it was made, own monotonic time.
    made_us: u64,
    /// Dropped with the connection: its reader ends.
    _end: Mutex<Once<RT, ()>>,
}

/// A request that was sent.
pub(crate) struct Pending<RT: AsyncRuntime> {
    conn: Arc<Conn<RT>>,
    id: u64,
    /// How much longer than usual its answer may take.
    slow: Duration,
    answer: OneshotReceiverOf<Cfg<RT>, (Answer, Bytes)>,
}

impl<RT: AsyncRuntime> Drop for Pending<RT> {
    fn drop(&mut self) {
        lock(&self.conn.waiting).take(self.id);
    }
}

impl<RT: AsyncRuntime> Conn<RT> {
    /// A number that nobody else has over this connection.
    pub(crate) fn number(&self) -> u64 {
        let mut waiting = lock(&self.waiting);
        waiting.next += 1;
        waiting.next
    }

    /// True where both sides know parts, and the question `Promotable`.
    pub(crate) fn parts(&self) -> bool {
        self.parts
    }

    /// Now, own monotonic time.
    pub(crate) fn now_us(&self) -> u64 {
        self.clock.monotonic_us()
    }

    /// Sends a request and waits for its answer, each within `limit`, and as much longer as what is on its way takes.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: Request,
        body: &[u8],
        limit: Duration,
    ) -> Result<(Answer, Bytes), CallError> {
        self.send_within(request, body, limit).await?.answer(limit).await
    }

    /// The same as [`Conn::send`], within `limit` and what is on its way before it takes.
    pub(crate) async fn send_within(
        self: &Arc<Self>,
        request: Request,
        body: &[u8],
        limit: Duration,
    ) -> Result<Pending<RT>, CallError> {
        let limit = limit + slow(lock(&self.waiting).bytes + body.len());
        Cfg::<RT>::timeout(limit, self.send(request, body)).await.map_err(|_| CallError::TimedOut)?
    }

    /// Sends a request; waits while the pipe is full.
    async fn send(self: &Arc<Self>, request: Request, body: &[u8]) -> Result<Pending<RT>, CallError> {
        let (tx, answer) = Cfg::<RT>::oneshot();
        let (id, slow) = {
            let mut waiting = lock(&self.waiting);
            if waiting.open && self.silent(&mut waiting, body.len()) {
                tracing::info!(member = self.to, "it does not answer: another connection is made");
                waiting.end();
            }
            if !waiting.open {
                return Err(CallError::Unreachable("the connection was lost".into()));
            }
            waiting.next += 1;
            let id = waiting.next;
            let due = request.answer_bytes();
            waiting.callers.insert(id, Caller { tx, due, parts: BytesMut::new() });
            waiting.due += due;
            (id, slow(waiting.bytes + body.len() + waiting.due))
        };
        let pending = Pending { conn: self.clone(), id, slow, answer };
        let frame = codec::frame(&Message::Request(id, request), body);
        self.tx.send(frame).await.map_err(|_| CallError::Lost)?;
        // Only now: what never got into the pipe is not waited for.
        let mut waiting = lock(&self.waiting);
        waiting.on_way.push_back((id, body.len()));
        waiting.bytes += body.len();
        drop(waiting);
        Ok(pending)
    }

    /// It was asked, and nothing at all came for too long: whatever the other side does, it is not over this connection.
    /// Requests come often (pings, heartbeats), so that it is enough to look when the next one is sent.
    /// How long that may be is fixed when the first is sent: what is sent behind it does not put it off.
    fn silent(&self, waiting: &mut Waiting<RT>, bytes: usize) -> bool {
        let now_us = self.clock.monotonic_us();
        let limit = SILENT_LIMIT + slow(waiting.bytes + bytes);
        now_us > *waiting.until_us.get_or_insert(now_us + limit.as_micros() as u64)
    }
}

impl<RT: AsyncRuntime> Default for Waiting<RT> {
    fn default() -> Self {
        let (callers, on_way) = (BTreeMap::new(), VecDeque::new());
        Self { open: true, next: 0, callers, on_way, bytes: 0, due: 0, joined: 0, until_us: None }
    }
}

impl<RT: AsyncRuntime> Waiting<RT> {
    /// Everybody who waits hears of the loss.
    fn end(&mut self) {
        self.open = false;
        self.callers.clear();
        (self.due, self.joined) = (0, 0);
    }

    /// Who waits for this answer, if anybody still does.
    fn take(&mut self, id: u64) -> Option<Caller<RT>> {
        let caller = self.callers.remove(&id)?;
        self.due -= caller.due;
        self.joined -= caller.parts.len();
        Some(caller)
    }

    /// More of the body of an answer, which is no longer than a frame may be, and all together no more than one peer may have
    /// open here.
    fn join(&mut self, id: u64, part: &[u8]) -> Result<(), FrameError> {
        let Some(caller) = self.callers.get_mut(&id) else { return Ok(()) };
        let length = caller.parts.len() + part.len();
        self.joined += part.len();
        if length > FRAME_MAX || self.joined > OPEN_BYTES {
            return Err(FrameError::TooLong(length));
        }
        caller.parts.extend_from_slice(part);
        Ok(())
    }

    /// Something that answers this request came: what was sent before it has arrived too.
    fn heard(&mut self, id: u64) -> Result<(), FrameError> {
        self.until_us = None;
        if id > self.next {
            return Err(FrameError::Unexpected("an answer that nobody asked for"));
        }
        while let Some((_, bytes)) = self.on_way.pop_front_if(|(sent, _)| *sent <= id) {
            self.bytes -= bytes;
        }
        Ok(())
    }
}

impl<RT: AsyncRuntime> Pending<RT> {
    /// Waits for the answer, from the sending on: for `limit`, and for what is on its way before it.
    pub(crate) async fn answer(mut self, limit: Duration) -> Result<(Answer, Bytes), CallError> {
        match Cfg::<RT>::timeout(limit + self.slow, &mut self.answer).await {
            Ok(answer) => answer.map_err(|_| CallError::Lost),
            Err(_) => Err(CallError::TimedOut),
        }
    }
}

/// When something last came, and how clocks differ.
#[derive(Default)]
pub(crate) struct Heard {
    /// Own monotonic time, over either connection; 0 for never.
    heard_us: AtomicU64,
    /// The same, over the connection that was made from here.
    answered_us: AtomicU64,
    skew_ms: Mutex<Option<i64>>,
    level: AtomicU32,
}

impl Heard {
    /// Something came from it.
    pub(crate) fn note(&self, clock: &dyn Clock) {
        self.heard_us.store(clock.monotonic_us().max(1), Relaxed);
    }

    /// It answered.
    pub(crate) fn answered(&self, clock: &dyn Clock) {
        self.note(clock);
        self.answered_us.store(clock.monotonic_us().max(1), Relaxed);
    }

    /// How long ago something came, ms.
    pub(crate) fn ago_ms(&self, clock: &dyn Clock) -> Option<u64> {
        ago_ms(&self.heard_us, clock)
    }

    /// How long ago it answered, ms: a member that asks and cannot be asked is of no use to who leads.
    pub(crate) fn answered_ms(&self, clock: &dyn Clock) -> Option<u64> {
        ago_ms(&self.answered_us, clock)
    }

    pub(crate) fn skewed(&self, ms: i64) {
        *lock(&self.skew_ms) = Some(ms);
    }

    /// The level of features that it knows, as it says when a connection is made; 0: not heard of.
    pub(crate) fn level(&self) -> u32 {
        self.level.load(Relaxed)
    }

    pub(crate) fn knows(&self, level: u32) {
        self.level.store(level, Relaxed);
    }

    /// Its wall clock less ours, ms.
    pub(crate) fn skew_ms(&self) -> Option<i64> {
        *lock(&self.skew_ms)
    }
}

fn ago_ms(us: &AtomicU64, clock: &dyn Clock) -> Option<u64> {
    let us = Some(us.load(Relaxed)).filter(|us| *us > 0)?;
    Some(clock.monotonic_us().saturating_sub(us) / 1000)
}

enum State<RT: AsyncRuntime> {
    /// It was not tried since `until_us`, when a pause ends.
    Down { until_us: u64, pause: Duration, why: String },
    Dialing {
        pause: Duration,
        why: String,
        waiting: Vec<Once<RT, ()>>,
        /// What comes of it is not used: it may prove less than the next.
        stale: bool,
    },
    /// `pause`: before the next one, should this one be lost at once.
    Up { conn: Arc<Conn<RT>>, pause: Duration },
}

/// See the module.
pub(crate) struct Link<RT: AsyncRuntime> {
    me: u64,
    to: u64,
    known: Known,
    address: Mutex<String>,
    dial: Arc<dyn Dial<RT>>,
    clock: Arc<dyn Clock>,
    epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
    state: Mutex<State<RT>>,
    pub(crate) heard: Arc<Heard>,
}

impl<RT: AsyncRuntime> Link<RT> {
    pub(crate) fn new(
        (me, to, known): (u64, u64, Known),
        dial: Arc<dyn Dial<RT>>,
        clock: Arc<dyn Clock>,
        epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
    ) -> Arc<Self> {
        let state = Mutex::new(State::Down { until_us: 0, pause: PAUSE_MIN, why: String::new() });
        Arc::new(Self { me, to, known, address: Mutex::default(), dial, clock, epoch, state, heard: Arc::default() })
    }

    /// Where it is reached from now on; a connection to elsewhere is given up.
    pub(crate) fn moved(&self, address: &str) {
        let mut now = lock(&self.address);
        if *now == address || address.is_empty() {
            return;
        }
        let first = now.is_empty();
        *now = address.to_owned();
        drop(now);
        if !first {
            self.give_up();
        }
    }

    /// Closes the connection; the next call makes another.
    pub(crate) fn give_up(&self) {
        let mut state = lock(&self.state);
        if let State::Up { conn, .. } = &*state {
            lock(&conn.waiting).end();
        }
        if !matches!(*state, State::Dialing { .. }) {
            *state = State::Down { until_us: 0, pause: PAUSE_MIN, why: String::new() };
        }
    }

    /// The next call makes another connection; what is on its way over this one still ends there.
    pub(crate) fn renew(&self) {
        let mut state = lock(&self.state);
        match &mut *state {
            State::Dialing { stale, .. } => *stale = true,
            State::Up { .. } | State::Down { .. } => {
                *state = State::Down { until_us: 0, pause: PAUSE_MIN, why: String::new() };
            }
        }
    }

    /// The same as [`Conn::call`]; a connection that has to be made first takes from the time to send.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: Request,
        body: &[u8],
        limit: Duration,
    ) -> Result<(Answer, Bytes), CallError> {
        let from_us = self.clock.monotonic_us();
        let conn = self.connected(limit).await?;
        let took = Duration::from_micros(self.clock.monotonic_us().saturating_sub(from_us));
        conn.send_within(request, body, limit.saturating_sub(took)).await?.answer(limit).await
    }

    /// The connection, within `limit`.
    pub(crate) async fn connected(self: &Arc<Self>, limit: Duration) -> Result<Arc<Conn<RT>>, CallError> {
        Cfg::<RT>::timeout(limit, self.connection()).await.map_err(|_| CallError::TimedOut)?
    }

    /// The connection; waits for one that is being made, and fails during a pause.
    async fn connection(self: &Arc<Self>) -> Result<Arc<Conn<RT>>, CallError> {
        let made = {
            let mut state = lock(&self.state);
            if let State::Up { conn, pause } = &*state
                && !lock(&conn.waiting).open
            {
                *state = lost(conn.made_us, *pause, self.clock.monotonic_us());
            }
            match &mut *state {
                State::Up { conn, .. } => return Ok(conn.clone()),
                State::Down { until_us, why, .. } if *until_us > self.clock.monotonic_us() => {
                    return Err(CallError::Unreachable(why.clone()));
                }
                State::Down { pause, why, .. } => {
                    let (pause, why) = (*pause, std::mem::take(why));
                    self.dial_now(&mut state, pause, why)
                }
                State::Dialing { waiting, .. } => {
                    let (tx, rx) = Cfg::<RT>::oneshot();
                    waiting.push(tx);
                    rx
                }
            }
        };
        let _ = made.await;
        match &*lock(&self.state) {
            State::Up { conn, .. } => Ok(conn.clone()),
            State::Down { why, .. } => Err(CallError::Unreachable(why.clone())),
            State::Dialing { .. } => Err(CallError::Unreachable("the connection was lost".into())),
        }
    }

    /// In a task of its own: a caller that goes away does not end the attempt.
    fn dial_now(
        self: &Arc<Self>,
        state: &mut State<RT>,
        pause: Duration,
        why: String,
    ) -> OneshotReceiverOf<Cfg<RT>, ()> {
        let (tx, rx) = Cfg::<RT>::oneshot();
        *state = State::Dialing { pause, why, waiting: vec![tx], stale: false };
        let link = self.clone();
        let _task = Cfg::<RT>::spawn(async move {
            let address = lock(&link.address).clone();
            let made = match Cfg::<RT>::timeout(DIAL_LIMIT, link.greet(&address)).await {
                Ok(made) => made,
                Err(_) => Err("no answer in time".into()),
            };
            link.dialed(made, &address);
        });
        rx
    }

    fn dialed(self: &Arc<Self>, made: Result<(Pipe<RT>, bool), String>, address: &str) {
        let moved = *lock(&self.address) != address;
        let up = made.map(|(pipe, parts)| self.start(pipe, parts));
        let mut state = lock(&self.state);
        let (pause, before, waiting, stale) = match &mut *state {
            State::Dialing { pause, why, waiting, stale } => {
                (*pause, std::mem::take(why), std::mem::take(waiting), *stale)
            }
            State::Down { .. } | State::Up { .. } => return,
        };
        *state = match up {
            Ok(_) if moved => State::Down { until_us: 0, pause: PAUSE_MIN, why: "it has moved".into() },
            Ok(_) if stale => State::Down { until_us: 0, pause: PAUSE_MIN, why: "the connection is made anew".into() },
            Ok(conn) => State::Up { conn, pause },
            Err(why) => {
                if why != before {
                    tracing::info!(member = self.to, address, why, "cannot be reached");
                }
                let until_us = self.clock.monotonic_us() + pause.as_micros() as u64;
                State::Down { until_us, pause: (pause * 2).min(PAUSE_MAX), why }
            }
        };
        drop(state);
        for tx in waiting {
            let _ = tx.send(());
        }
    }

    /// Connects, and sees whom it has reached; true where both sides know parts.
    async fn greet(&self, address: &str) -> Result<(Pipe<RT>, bool), String> {
        if address.is_empty() {
            return Err("its address is not known".into());
        }
        let mut pipe = self.dial.dial(self.to, address).await.map_err(|error| error.to_string())?;
        let epoch = (self.epoch)();
        let Known { level, added } = self.known;
        let hello = Hello { epoch: epoch.0, from: self.me, to: self.to, cluster: CLUSTER.into(), level };
        let lost = || "the connection was lost".to_owned();
        pipe.tx.send(codec::frame(&Message::Hello(hello), &[added])).await.map_err(|_| lost())?;
        let first = pipe.rx.recv().await.ok_or_else(lost)?;
        let (message, body) = codec::read(&first).map_err(|error| error.to_string())?;
        let theirs = match message {
            Message::Hello(theirs) => theirs,
            Message::Refused(refusal) => return Err(format!("it refuses: {refusal}")),
            Message::Request(..) | Message::Answer(..) | Message::Part(_) => {
                return Err("it does not say who it is".into());
            }
        };
        check(&theirs, self.me, Some(self.to), epoch).map_err(|refusal| format!("not it: {refusal}"))?;
        self.heard.knows(theirs.level);
        let added = body.first().copied().unwrap_or_default();
        Ok((pipe, self.known.added.min(added) > 0))
    }

    fn start(self: &Arc<Self>, pipe: Pipe<RT>, parts: bool) -> Arc<Conn<RT>> {
        let Pipe { tx, mut rx } = pipe;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (end, mut ended) = Cfg::<RT>::oneshot::<()>();
        self.heard.answered(&*self.clock);
        let (theirs, heard, clock, to) = (waiting.clone(), self.heard.clone(), self.clock.clone(), self.to);
        let _task = Cfg::<RT>::spawn(async move {
            loop {
                let frame = match Cfg::<RT>::select2(&mut ended, rx.recv()).await {
                    Select2::First(_) | Select2::Second(None) => break,
                    Select2::Second(Some(frame)) => frame,
                };
                heard.answered(&*clock);
                if let Err(error) = answered(&theirs, &frame) {
                    tracing::warn!(member = to, %error, "closing the connection");
                    break;
                }
            }
            lock(&theirs).end();
        });
        let (clock, made_us) = (self.clock.clone(), self.clock.monotonic_us());
        Arc::new(Conn { tx, waiting, clock, to, parts, made_us, _end: Mutex::new(end) })
    }
}

/// A connection was lost. One that was taken up and closed at once is a failed attempt: the next waits longer.
fn lost<RT: AsyncRuntime>(made_us: u64, pause: Duration, now_us: u64) -> State<RT> {
    let why = "the connection was lost".to_owned();
    if now_us.saturating_sub(made_us) > PAUSE_MAX.as_micros() as u64 {
        return State::Down { until_us: 0, pause: PAUSE_MIN, why };
    }
    State::Down { until_us: made_us + pause.as_micros() as u64, pause: (pause * 2).min(PAUSE_MAX), why }
}

/// Gives an answer to who waits for it; one that nobody waits for any more is dropped.
fn answered<RT: AsyncRuntime>(waiting: &Mutex<Waiting<RT>>, frame: &Bytes) -> Result<(), FrameError> {
    let (message, body) = codec::read(frame)?;
    let mut waiting = lock(waiting);
    match message {
        Message::Part(id) => {
            waiting.heard(id)?;
            waiting.join(id, &body)
        }
        Message::Answer(id, answer) => {
            waiting.heard(id)?;
            let in_parts = waiting.callers.get(&id).is_some_and(|caller| !caller.parts.is_empty());
            if in_parts {
                waiting.join(id, &body)?;
            }
            let caller = waiting.take(id);
            drop(waiting);
            if let Some(caller) = caller {
                let body = if in_parts { caller.parts.freeze() } else { body };
                let _ = caller.tx.send((answer, body));
            }
            Ok(())
        }
        Message::Hello(_) | Message::Refused(_) | Message::Request(..) => Err(FrameError::Unexpected("no answer")),
    }
}

/// What a [`Hello`] must be to be welcome. `from`: who it has to be.
pub(crate) fn check(hello: &Hello, me: u64, from: Option<u64>, epoch: Epoch) -> Result<(), Refusal> {
    let none = Epoch::default();
    if hello.cluster != CLUSTER {
        return Err(Refusal::Cluster);
    }
    if hello.to != me {
        return Err(Refusal::To(me));
    }
    if from.is_some_and(|from| from != hello.from) {
        return Err(Refusal::From);
    }
    // A member without a log takes anybody's; one with a log of another incarnation belongs to nobody here.
    if hello.epoch != epoch.0 && Epoch(hello.epoch) != none && epoch != none {
        return Err(Refusal::Epoch(epoch.0));
    }
    Ok(())
}

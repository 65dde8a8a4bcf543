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
use crate::peer::codec::{self, Answer, FrameError, Hello, Message, Refusal, Request};
use crate::peer::{CLUSTER, DIAL_LIMIT, Dial, PAUSE_MAX, PAUSE_MIN, SILENT_LIMIT};
use crate::sync::lock;
use crate::transport::Pipe;
use crate::types::{Cfg, Once, Tx};
use bytes::Bytes;
use cvlan_core::id::Epoch;
use openraft::AsyncRuntime;
use openraft::async_runtime::{MpscReceiver, MpscSender, OneshotSender, Select2};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use std::collections::BTreeMap;
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

/// Answers by the id of their request, until the connection is lost.
struct Waiting<RT: AsyncRuntime> {
    open: bool,
    next: u64,
    callers: BTreeMap<u64, Once<RT, (Answer, Bytes)>>,
    /// Own monotonic time of the first request since an answer last came over this very connection.
    asked_us: Option<u64>,
}

/// A connection.
pub(crate) struct Conn<RT: AsyncRuntime> {
    tx: Tx<RT, Bytes>,
    waiting: Arc<Mutex<Waiting<RT>>>,
    clock: Arc<dyn Clock>,
    to: u64,
    /// When it was made, own monotonic time.
    made_us: u64,
    /// Dropped with the connection: its reader ends.
    _end: Mutex<Once<RT, ()>>,
}

/// A request that was sent.
pub(crate) struct Pending<RT: AsyncRuntime> {
    conn: Arc<Conn<RT>>,
    id: u64,
    answer: OneshotReceiverOf<Cfg<RT>, (Answer, Bytes)>,
}

impl<RT: AsyncRuntime> Drop for Pending<RT> {
    fn drop(&mut self) {
        lock(&self.conn.waiting).callers.remove(&self.id);
    }
}

impl<RT: AsyncRuntime> Conn<RT> {
    /// Sends a request; waits while the pipe is full.
    pub(crate) async fn send(self: &Arc<Self>, request: Request, body: &[u8]) -> Result<Pending<RT>, CallError> {
        let (tx, answer) = Cfg::<RT>::oneshot();
        let id = {
            let mut waiting = lock(&self.waiting);
            if waiting.open && self.silent(&mut waiting) {
                tracing::info!(member = self.to, "it does not answer: another connection is made");
                waiting.end();
            }
            if !waiting.open {
                return Err(CallError::Unreachable("the connection was lost".into()));
            }
            waiting.next += 1;
            let id = waiting.next;
            waiting.callers.insert(id, tx);
            id
        };
        let pending = Pending { conn: self.clone(), id, answer };
        let frame = codec::frame(&Message::Request(id, request), body);
        self.tx.send(frame).await.map_err(|_| CallError::Lost)?;
        Ok(pending)
    }

    /// It was asked, and nothing at all came for too long: whatever the other side does, it is not over this connection.
    /// Requests come often (pings, heartbeats), so that it is enough to look when the next one is sent.
    fn silent(&self, waiting: &mut Waiting<RT>) -> bool {
        let now_us = self.clock.monotonic_us();
        let asked_us = *waiting.asked_us.get_or_insert(now_us);
        now_us.saturating_sub(asked_us) > SILENT_LIMIT.as_micros() as u64
    }
}

impl<RT: AsyncRuntime> Waiting<RT> {
    /// Everybody who waits hears of the loss.
    fn end(&mut self) {
        self.open = false;
        self.callers.clear();
    }
}

impl<RT: AsyncRuntime> Pending<RT> {
    /// Waits for the answer, from the sending on.
    pub(crate) async fn answer(mut self, limit: Duration) -> Result<(Answer, Bytes), CallError> {
        match Cfg::<RT>::timeout(limit, &mut self.answer).await {
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
    level: u32,
    address: Mutex<String>,
    dial: Arc<dyn Dial<RT>>,
    clock: Arc<dyn Clock>,
    epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
    state: Mutex<State<RT>>,
    pub(crate) heard: Arc<Heard>,
}

impl<RT: AsyncRuntime> Link<RT> {
    pub(crate) fn new(
        (me, to, level): (u64, u64, u32),
        dial: Arc<dyn Dial<RT>>,
        clock: Arc<dyn Clock>,
        epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
    ) -> Arc<Self> {
        let state = Mutex::new(State::Down { until_us: 0, pause: PAUSE_MIN, why: String::new() });
        Arc::new(Self { me, to, level, address: Mutex::default(), dial, clock, epoch, state, heard: Arc::default() })
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

    /// Sends a request and waits for its answer, both within `limit`.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: Request,
        body: &[u8],
        limit: Duration,
    ) -> Result<(Answer, Bytes), CallError> {
        let sent = async {
            let conn = self.connection().await?;
            conn.send(request, body).await
        };
        match Cfg::<RT>::timeout(limit, sent).await {
            Ok(pending) => pending?.answer(limit).await,
            Err(_) => Err(CallError::TimedOut),
        }
    }

    /// The connection; waits for one that is being made, and fails during a pause.
    pub(crate) async fn connection(self: &Arc<Self>) -> Result<Arc<Conn<RT>>, CallError> {
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

    fn dialed(self: &Arc<Self>, made: Result<Pipe<RT>, String>, address: &str) {
        let moved = *lock(&self.address) != address;
        let up = made.map(|pipe| self.start(pipe));
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

    /// Connects, and sees whom it has reached.
    async fn greet(&self, address: &str) -> Result<Pipe<RT>, String> {
        if address.is_empty() {
            return Err("its address is not known".into());
        }
        let mut pipe = self.dial.dial(self.to, address).await.map_err(|error| error.to_string())?;
        let epoch = (self.epoch)();
        let hello = Hello { epoch: epoch.0, from: self.me, to: self.to, cluster: CLUSTER.into(), level: self.level };
        let lost = || "the connection was lost".to_owned();
        pipe.tx.send(codec::frame(&Message::Hello(hello), &[])).await.map_err(|_| lost())?;
        let first = pipe.rx.recv().await.ok_or_else(lost)?;
        let (message, _) = codec::read(&first).map_err(|error| error.to_string())?;
        let theirs = match message {
            Message::Hello(theirs) => theirs,
            Message::Refused(refusal) => return Err(format!("it refuses: {refusal}")),
            Message::Request(..) | Message::Answer(..) => return Err("it does not say who it is".into()),
        };
        check(&theirs, self.me, Some(self.to), epoch).map_err(|refusal| format!("not it: {refusal}"))?;
        self.heard.knows(theirs.level);
        Ok(pipe)
    }

    fn start(self: &Arc<Self>, pipe: Pipe<RT>) -> Arc<Conn<RT>> {
        let Pipe { tx, mut rx } = pipe;
        let waiting = Arc::new(Mutex::new(Waiting { open: true, next: 0, callers: BTreeMap::new(), asked_us: None }));
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
        Arc::new(Conn { tx, waiting, clock, to, made_us, _end: Mutex::new(end) })
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
    let Message::Answer(id, answer) = message else { return Err(FrameError::Unexpected("no answer")) };
    let caller = {
        let mut waiting = lock(waiting);
        waiting.asked_us = None;
        if id > waiting.next {
            return Err(FrameError::Unexpected("an answer that nobody asked for"));
        }
        waiting.callers.remove(&id)
    };
    if let Some(caller) = caller {
        let _ = caller.send((answer, body));
    }
    Ok(())
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

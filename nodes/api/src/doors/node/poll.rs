//! The sync without an upgrade, for agents behind something that takes the upgrade away: one request, one JSON answer.
//!
//! ```text
//!  {checkpoint, endpoints, wait} ─► sync::Session, as the stream has it ─► its parts put together: map │ delta
//!                                        ▲ wake, deadline                └► nothing until `wait` is over: keepalive
//! ```
//! Between two polls a node counts as connected for [`LINGER`]. At most [`POLLS_MAX`] wait at once, and
//! [`ANSWERS_MAX`] whole maps or deltas are made at once.

use super::json;
use super::sync::{endpoints_told, proven, redirect};
use crate::app::{App, now_ms};
use crate::doors::accept::Client;
use crate::doors::body::{body_read, json_expected, json_read};
use crate::doors::drained;
use crate::metrics::Sent;
use crate::problem::Problem;
use crate::streams::Open;
use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use cvlan_core::map::Refusal;
use cvlan_core::sync::{Output, Session, Upward, View};
use cvlan_proto::v1::{self, PollRequest, PollResponse, SyncFrame, sync_frame::Frame};
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// The longest that a poll waits, seconds.
pub const WAIT_MAX_S: u32 = 55;
/// Polls that wait at once.
pub const POLLS_MAX: usize = 16_384;
/// Whole answers that are made at once.
pub const ANSWERS_MAX: usize = 8;
/// A node that polled counts as connected for so long after the answer.
pub const LINGER: Duration = Duration::from_secs(15);

/// Turns of those who poll.
pub struct Polls {
    waiting: Semaphore,
    answers: Semaphore,
}

impl Default for Polls {
    fn default() -> Self {
        Self { waiting: Semaphore::new(POLLS_MAX), answers: Semaphore::new(ANSWERS_MAX) }
    }
}

impl Polls {
    /// How many wait now.
    pub fn waiting(&self) -> usize {
        POLLS_MAX - self.waiting.available_permits()
    }
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::invalid("poll_invalid", detail)
}

/// One poll of a node, by its certificate.
pub async fn poll(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Arc<Client>>,
    request: Request,
) -> Result<Response, Problem> {
    app.limits.poll.check(client.address, &app.metrics)?;
    let here = proven(&app, &client).await?;
    json_expected(request.headers())?;
    let asked: PollRequest = json_read(&body_read(request.into_body()).await?)?;
    if asked.wait > WAIT_MAX_S {
        return Err(invalid(format!("wait is at most {WAIT_MAX_S} seconds")));
    }
    let busy = |_| {
        let detail = "too many machines poll here; try again, or another controller";
        Problem::later(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, 1)
    };
    let _turn = app.polls.waiting.try_acquire().map_err(busy)?;
    let node = here.node.id;
    let open = app.streams.open(here.node.tenant, here.cvlan.record.id, node);
    // The copy of the state was for the checks; the session reads the newest.
    drop(here);
    let mut poll = Poll {
        session: Session::new(node, 0),
        started: Instant::now(),
        wait: Duration::from_secs(asked.wait.into()),
        checkpoint: asked.checkpoint.clone(),
        answer: None,
    };
    // What is not taken yet comes again with the next poll.
    let turn = app.streams.endpoints_wait_ms(node, now_ms()) == 0;
    let endpoints = if turn { asked.endpoints } else { Vec::new() };
    let hello = v1::Hello { checkpoint: asked.checkpoint, agent_version: String::new(), endpoints };
    match poll.session.handle(0, SyncFrame { frame: Some(Frame::Hello(hello)) }) {
        Ok(Upward::Endpoints(endpoints)) => endpoints_told(&app, node, client.address, endpoints),
        Ok(Upward::Nothing | Upward::Acked(_)) => {}
        Err(error) => return Err(invalid(error.to_string())),
    }
    let answer = poll.run(&app, &open).await?;
    linger(&app, open);
    json(&answer)
}

struct Poll {
    session: Session,
    started: Instant,
    wait: Duration,
    /// What the agent has.
    checkpoint: String,
    /// Parts so far.
    answer: Option<PollResponse>,
}

impl Poll {
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn run(&mut self, app: &App, open: &Open) -> Result<PollResponse, Problem> {
        let (mut draining, mut cut_offs) = (app.draining.subscribe(), app.cut_offs.subscribe());
        let mut building = None;
        loop {
            if open.is_superseded() {
                let detail = "a newer stream or poll of this node is open";
                return Err(Problem::new(StatusCode::CONFLICT, "superseded", detail));
            }
            let head = app.log.head();
            let view = View { epoch: head.epoch, seq: head.seq, state: &head.machine };
            if building.is_none() && self.session.is_due(self.now()) {
                // The semaphore is never closed.
                building = app.polls.answers.acquire().await.ok();
                continue;
            }
            let over = self.started.elapsed() >= self.wait;
            let output = match self.session.poll(self.now(), view) {
                None if over => Some(Output::Send(self.session.keepalive(view))),
                output => output,
            };
            match output {
                Some(Output::Send(frame)) => {
                    if let Some(answer) = self.gather(app, frame, over) {
                        return Ok(answer);
                    }
                    continue;
                }
                Some(Output::Close(frame)) => return Err(refused(frame)),
                None => building = None,
            }
            let deadline =
                (self.started + Duration::from_millis(self.session.deadline())).min(self.started + self.wait);
            tokio::select! {
                () = open.wake.notified() => self.session.wake(self.now()),
                () = tokio::time::sleep_until(deadline) => {}
                () = drained(&mut draining) => return Ok(self.elsewhere(app)),
                Ok(()) = cut_offs.changed() => return Ok(self.elsewhere(app)),
            }
        }
    }

    fn elsewhere(&self, app: &App) -> PollResponse {
        let checkpoint = self.checkpoint.clone();
        let redirect = match redirect(app).frame {
            Some(Frame::Redirect(redirect)) => Some(redirect),
            _ => None,
        };
        PollResponse { checkpoint, redirect, ..PollResponse::default() }
    }

    /// Puts a frame to the others; the answer once it is whole.
    fn gather(&mut self, app: &App, frame: SyncFrame, over: bool) -> Option<PollResponse> {
        match frame.frame? {
            Frame::Map(part) => {
                let (checkpoint, more) = (part.checkpoint.clone(), part.more);
                let answer = self.answer.get_or_insert_with(|| {
                    app.metrics.sent(Sent::Map);
                    PollResponse { checkpoint, map: Some(v1::Map::default()), ..PollResponse::default() }
                });
                let map = answer.map.get_or_insert_default();
                map.checkpoint = part.checkpoint;
                map.self_ = part.self_.or(map.self_.take());
                map.peers.extend(part.peers);
                if more { None } else { self.answer.take() }
            }
            Frame::Delta(part) => {
                let (checkpoint, more) = (part.checkpoint.clone(), part.more);
                let answer = self.answer.get_or_insert_with(|| {
                    app.metrics.sent(Sent::Delta);
                    PollResponse { checkpoint, delta: Some(v1::Delta::default()), ..PollResponse::default() }
                });
                let delta = answer.delta.get_or_insert_default();
                delta.checkpoint = part.checkpoint;
                delta.self_ = part.self_.or(delta.self_.take());
                delta.upserts.extend(part.upserts);
                delta.removed.extend(part.removed);
                if more { None } else { self.answer.take() }
            }
            Frame::Heartbeat(beat) => {
                // The stream's own, while there is time to wait.
                self.checkpoint = beat.checkpoint;
                if !over {
                    return None;
                }
                app.metrics.sent(Sent::Heartbeat);
                let checkpoint = self.checkpoint.clone();
                Some(PollResponse { checkpoint, keepalive: true, ..PollResponse::default() })
            }
            Frame::Redirect(_) | Frame::Bye(_) | Frame::Hello(_) | Frame::Ack(_) | Frame::Endpoints(_) => None,
        }
    }
}

/// The words that a stream would end with, as the door says them where it refuses a stream.
fn refused(frame: SyncFrame) -> Problem {
    let Some(Frame::Bye(bye)) = frame.frame else { return Problem::internal("a stream was closed without a word") };
    let known = [Refusal::Deleted, Refusal::Disabled].into_iter().find(|r| r.code() == bye.code);
    known.map_or_else(|| Problem::internal(format!("{}: {}", bye.code, bye.detail)), Problem::from)
}

/// Presence outlives the answer, until the next poll takes its place.
fn linger(app: &App, open: Open) {
    let mut draining = app.draining.subscribe();
    tokio::spawn(async move {
        let end = Instant::now() + LINGER;
        while !open.is_superseded() {
            tokio::select! {
                () = open.wake.notified() => {}
                () = tokio::time::sleep_until(end) => return,
                () = drained(&mut draining) => return,
            }
        }
    });
}

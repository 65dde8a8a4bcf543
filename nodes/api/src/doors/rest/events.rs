//! Events: a page as NDJSON (or one JSON document), or live as server-sent events (WHATWG HTML §9.2).
//!
//! ```text
//!  id: SEQ
//!  event: event        data: JSON                      from the log, in order, none left out that the caller may see
//!  event: presence     data: {"nodeId","online"}       from the log too, one a node, without a number of its own
//!  :                   every 15 s, so that silence means a dead connection
//! ```
//! A follower has no queue of its own in the log: it is woken by the last applied number and reads on from where it is.

use super::call::Call;
use super::reply;
use crate::app::event::{ALL, EventQuery, audits, page, scanned};
use crate::app::{App, Output};
use crate::auth::Session;
use crate::doors::{body, drained};
use crate::problem::Problem;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cvlan_core::id::Seq;
use cvlan_core::presence::transitions;
use cvlan_core::redact::redact;
use cvlan_proto::v1::Event;
use http::{HeaderName, HeaderValue, StatusCode, header};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Followers at once.
pub const FOLLOWERS_MAX: usize = 512;
/// A comment is sent after so much silence.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events in one write.
const BATCH: usize = 256;

/// Where a page goes on; absent at the end.
pub const NEXT: HeaderName = HeaderName::from_static("cvlan-next-seq");
/// The first event that a filtered page knows of, while the audit is being rebuilt.
pub const COMPLETE_FROM: HeaderName = HeaderName::from_static("cvlan-complete-from");

/// GET /log/events.
pub async fn answer(c: Call) -> Result<Response, Problem> {
    let query = EventQuery::read(&c.query, c.at_least)?;
    let follow = match c.query.get("follow") {
        None => c.accept.contains("text/event-stream"),
        Some("" | "true" | "1") => true,
        Some("false" | "0") => false,
        Some(_) => return Err(Problem::invalid("query_invalid", "follow is true or false")),
    };
    if follow {
        return live(&c, query);
    }
    let found = page(&c.app, c.caller()?, &query).await?;
    let (next, complete_from) = (found.body.next, found.body.complete_from);
    let mut response = if c.accept.contains("application/json") {
        reply::ok(found.map(|p| p.to_proto()))?
    } else {
        let mut lines = Vec::with_capacity(found.body.items.len() * 512);
        for event in &found.body.items {
            serde_json::to_writer(&mut lines, event).map_err(Problem::internal)?;
            lines.push(b'\n');
        }
        let mut response = reply::bare(StatusCode::OK, &found, Body::from(lines))?;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response
    };
    if next > 0 {
        response.headers_mut().insert(NEXT, next.into());
    }
    if complete_from > 1 {
        response.headers_mut().insert(COMPLETE_FROM, complete_from.into());
    }
    Ok(response)
}

fn live(c: &Call, query: EventQuery) -> Result<Response, Problem> {
    let caller = c.caller()?;
    // Without `from`, from now on.
    let from = if c.query.get("from").is_some() { query.from } else { Seq(c.head.seq.0 + 1) };
    if query.id.is_some() || !query.noun.is_empty() {
        return Err(Problem::invalid("query_invalid", "noun and id filter pages; follow without them"));
    }
    let permit = c.app.followers.clone().try_acquire_owned().map_err(|_| {
        let detail = "too many follow events here already; try again";
        Problem::later(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, 5)
    })?;
    let (tx, body) = body::stream();
    let follower = Follower { app: c.app.clone(), session: caller.session.clone(), next: from, to: query.to, tx };
    tokio::spawn(async move {
        follower.run().await;
        drop(permit);
    });
    let mut response = reply::bare(StatusCode::OK, &Output::read(&c.head, ()), body)?;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

struct Follower {
    app: Arc<App>,
    session: Session,
    next: Seq,
    to: Seq,
    tx: mpsc::Sender<Bytes>,
}

impl Follower {
    /// Until the reader goes, its session ends, the last wanted event was sent, or the controller stops.
    async fn run(mut self) {
        let mut applied = self.app.applied.subscribe();
        let mut draining = self.app.draining.subscribe();
        let left = self.session.expires_s.saturating_sub(crate::app::now_ms() / 1000);
        let end = Instant::now() + Duration::from_secs(left);
        // At once, so that whoever reads knows that it is connected.
        let mut piece = String::from(":\n\n");
        loop {
            if !piece.is_empty() && self.tx.send(Bytes::from(std::mem::take(&mut piece))).await.is_err() {
                return;
            }
            applied.mark_unchanged();
            let seen = *applied.borrow_and_update();
            if !audits(&self.app, &self.session) || self.next > self.to {
                return;
            }
            if self.next.0 <= seen {
                match self.events().await {
                    Ok(events) => piece = events,
                    Err(problem) => return tracing::warn!(code = problem.code, "a follower of events was ended"),
                }
                continue;
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(KEEP_ALIVE) => piece.push_str(":\n\n"),
                () = tokio::time::sleep_until(end) => return,
                () = drained(&mut draining) => return,
                () = self.tx.closed() => return,
            }
        }
    }

    /// The next events that the caller may see, as one piece; empty where it may see none of them.
    async fn events(&mut self) -> Result<String, Problem> {
        let (from, to) = (self.next, self.to);
        let query = EventQuery { from, to, limit: BATCH, noun: ALL.to_owned(), id: None, at_least: None };
        let head = self.app.log.head().seq;
        let page = scanned(&self.app, &self.session.user, &query, head).await?;
        let next = if page.next > 0 { page.next } else { to.min(head).0 + 1 };
        self.next = Seq(next.max(from.0));
        let mut piece = String::with_capacity(page.items.len() * 512);
        for mut event in page.items {
            if presence(&event, &mut piece) {
                continue;
            }
            redact(&mut event);
            let data = serde_json::to_string(&event).map_err(Problem::internal)?;
            // Writing into a String cannot fail.
            let _ = write!(piece, "id: {}\nevent: event\ndata: {data}\n\n", event.seq);
        }
        Ok(piece)
    }
}

/// Presence goes out by node; false where the event is of something else.
fn presence(event: &Event, piece: &mut String) -> bool {
    let Some(transitions) = transitions(event) else { return false };
    for t in transitions {
        let (node, online) = (&t.node_id, t.online);
        let _ = write!(piece, "event: presence\ndata: {{\"nodeId\":\"{node}\",\"online\":{online}}}\n\n");
    }
    true
}

//! Bodies: of requests, read whole and bounded; of answers, one piece or a bounded stream.

use crate::problem::Problem;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;

/// The longest body that is read.
pub const BODY_MAX: usize = 1 << 20;
/// Of a longer one so much is read and thrown away, so that its sender sees the answer; then the connection ends.
pub const DISCARD_MAX: usize = 8 << 20;
/// A body must be there within this.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// Pieces of a streamed answer that wait to be written.
pub const STREAM_QUEUE: usize = 16;

/// An answer whose pieces are written as they are sent; it ends when the sender is dropped.
pub fn stream() -> (mpsc::Sender<Bytes>, Body) {
    let (tx, mut rx) = mpsc::channel(STREAM_QUEUE);
    let pieces = futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx));
    (tx, Body::from_stream(pieces.map(Ok::<_, Infallible>)))
}

/// A streamed answer that has an end: where that is not said, its body is broken and no shorter one.
pub struct Pieces {
    tx: mpsc::Sender<Bytes>,
    ended: Arc<AtomicBool>,
}

/// What the connection is broken with.
#[derive(Debug, thiserror::Error)]
#[error("the answer was ended before its end")]
struct Broken;

impl Pieces {
    /// The next piece, as soon as there is room for it.
    pub async fn send(&self, piece: Bytes) -> Result<(), mpsc::error::SendError<Bytes>> {
        self.tx.send(piece).await
    }

    /// All of it was sent.
    pub fn end(self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// An answer whose pieces are written as they are sent, up to [`Pieces::end`].
pub fn whole() -> (Pieces, Body) {
    let (tx, mut rx) = mpsc::channel(STREAM_QUEUE);
    let ended = Arc::new(AtomicBool::new(false));
    let (said, mut over) = (ended.clone(), false);
    let pieces = futures_util::stream::poll_fn(move |cx| {
        if over {
            return Poll::Ready(None);
        }
        rx.poll_recv(cx).map(|piece| match piece {
            Some(piece) => Some(Ok(piece)),
            None => {
                over = true;
                (!said.load(Ordering::Acquire)).then_some(Err(Broken))
            }
        })
    });
    (Pieces { tx, ended }, Body::from_stream(pieces))
}

/// Reads a request's body whole, at most [`BODY_MAX`].
pub async fn body_read(body: Body) -> Result<Bytes, Problem> {
    let read = tokio::time::timeout(BODY_TIME, gather(body)).await;
    read.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "body_slow", "the body did not come in 30 s"))?
}

async fn gather(body: Body) -> Result<Bytes, Problem> {
    let cut = |_| Problem::invalid("body_invalid", "the body was cut off");
    // Most come in one piece, which is not copied.
    let (mut whole, mut more, mut length) = (Bytes::new(), BytesMut::new(), 0);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(cut)?;
        length += piece.len();
        if length > DISCARD_MAX {
            break;
        } else if length > BODY_MAX {
            // Read on without keeping it: one who is still sending does not see the answer.
            (whole, more) = (Bytes::new(), BytesMut::new());
        } else if whole.is_empty() && more.is_empty() {
            whole = piece;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut whole));
            }
            more.extend_from_slice(&piece);
        }
    }
    if length > BODY_MAX {
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "a body is at most 1 MiB"));
    }
    Ok(if more.is_empty() { whole } else { more.freeze() })
}

/// Is it sent as JSON?
pub fn json_expected(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "send the body as Content-Type: application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", detail))
}

/// Reads JSON; an unknown field is refused.
pub fn json_read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| Problem::invalid("body_invalid", format!("the body cannot be read: {e}")))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.to_proto()).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow.and_then(|a| HeaderValue::try_from(a).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

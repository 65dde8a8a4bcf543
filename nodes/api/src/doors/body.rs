//! Bodies: of requests, read whole and bounded; of answers, one piece or a bounded stream.

use crate::problem::Problem;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
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

/// An answer's body.
pub enum Body {
    /// One piece; `None` once it was taken.
    Whole(Option<Bytes>),
    /// Pieces as they come; it ends when the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body {
    /// No byte.
    pub fn empty() -> Self {
        Self::Whole(None)
    }

    /// One piece.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// Pieces as they are sent.
    pub fn stream() -> (mpsc::Sender<Bytes>, Self) {
        let (tx, rx) = mpsc::channel(STREAM_QUEUE);
        (tx, Self::Stream(rx))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Stream(rx) => rx.poll_recv(cx).map(|piece| piece.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// Reads a request's body whole, at most [`BODY_MAX`].
pub async fn body_read(body: Incoming) -> Result<Bytes, Problem> {
    let read = tokio::time::timeout(BODY_TIME, gather(body)).await;
    read.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "body_slow", "the body did not come in 30 s"))?
}

async fn gather(mut body: Incoming) -> Result<Bytes, Problem> {
    let cut = |_| Problem::invalid("body_invalid", "the body was cut off");
    // Most come in one piece, which is not copied.
    let (mut whole, mut more, mut length) = (Bytes::new(), BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(cut)?.into_data() else { continue };
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

/// A problem as an answer.
pub fn problem_response(problem: &Problem) -> Response<Body> {
    let body = serde_json::to_vec(&problem.to_proto()).unwrap_or_default();
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = problem.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = problem.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(allow) = problem.allow.as_deref().and_then(|a| http::HeaderValue::from_str(a).ok()) {
        headers.insert(header::ALLOW, allow);
    }
    response
}

//! Bodies: of requests, read whole and bounded; of answers, one piece or a bounded stream.

use crate::problem::Problem;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// The longest body that is read.
pub const BODY_MAX: usize = 1 << 20;
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
    let too_large = || {
        let detail = "a body is at most 1 MiB";
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    };
    // A length that is named too large is refused before a byte is read.
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(too_large());
    }
    let read = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_MAX).collect()).await;
    let read =
        read.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "body_slow", "the body did not come in 30 s"))?;
    match read {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Problem::invalid("body_invalid", "the body was cut off")),
    }
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

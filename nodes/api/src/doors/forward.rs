//! What takes the cluster's keys, at a member that has none: the whole request goes to one that votes.
//!
//! ```text
//!  door ─► limits, body ─► ask (a voter's own door carries it out, on the caller's credentials) ─► its answer
//!                                                        └─ a write ─► this member has applied it, too
//! ```

use super::accept::Client;
use super::rest::replay::IDEMPOTENCY_KEY;
use super::rest::{BASE, CHECKPOINT, REASON, REQUEST_ID};
use crate::app::{App, now_ms};
use crate::auth::jwt::{Claims, claims_likely};
use crate::auth::session_over;
use crate::problem::Problem;
use axum::body::Body;
use axum::response::Response;
use cvlan_core::id::Checkpoint;
use cvlan_proto::v1::voter_question::Kind;
use cvlan_proto::v1::{ForwardedHeader, ForwardedRequest, VoterAnswer};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use std::sync::Arc;

/// What of a request's head goes along.
const ALONG: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::IF_MATCH,
    IDEMPOTENCY_KEY,
    REASON,
    CHECKPOINT,
];

/// A request to be carried out by a voter.
pub struct Forward<'a> {
    /// It came to the machines' door.
    pub machines: bool,
    /// Its method.
    pub method: &'a Method,
    /// Path and query.
    pub uri: &'a Uri,
    /// Its head.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// Where from.
    pub client: &'a Client,
    /// The door's name for it.
    pub request_id: &'a str,
    /// It does no harm if it is carried out twice.
    pub again: bool,
}

impl Forward<'_> {
    /// The answer; where it is a success that names a checkpoint and `applied` asks for it, this member has applied it.
    pub async fn send(self, app: &App, applied: bool) -> Result<Response, Problem> {
        let again = self.again;
        let response = response(app.voters.ask(self.question(), again).await?)?;
        let at: Option<Checkpoint> =
            response.headers().get(CHECKPOINT).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        if applied
            && response.status().is_success()
            && let Some(at) = at
        {
            app.applied_here(at).await?;
        }
        Ok(response)
    }

    fn question(self) -> Kind {
        let mut headers: Vec<ForwardedHeader> = Vec::new();
        for name in &ALONG {
            let values = self.headers.get_all(name).iter();
            headers.extend(values.map(|v| ForwardedHeader { name: name.to_string(), value: v.as_bytes().to_vec() }));
        }
        headers.push(ForwardedHeader { name: REQUEST_ID.to_string(), value: self.request_id.as_bytes().to_vec() });
        Kind::Request(ForwardedRequest {
            machines: self.machines,
            method: self.method.to_string(),
            path: self.uri.path_and_query().map(|p| p.as_str()).unwrap_or_default().to_owned(),
            headers,
            body: self.body,
            source: self.client.address.to_string(),
        })
    }
}

fn response(answer: VoterAnswer) -> Result<Response, Problem> {
    let unread = || Problem::internal("a voter's answer is none");
    let mut response = Response::new(Body::from(answer.body));
    let status = u16::try_from(answer.status).ok().and_then(|s| StatusCode::from_u16(s).ok());
    *response.status_mut() = status.ok_or_else(unread)?;
    for ForwardedHeader { name, value } in &answer.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unread())?;
        response.headers_mut().append(name, HeaderValue::from_bytes(value).map_err(|_| unread())?);
    }
    Ok(response)
}

/// Who bears this token, as a voter vouches for it: once, then this member remembers it until it ends.
pub async fn vouched(
    app: &App,
    client: &Client,
    headers: &HeaderMap,
    token: &str,
    request_id: &str,
) -> Result<Arc<Claims>, Problem> {
    // What is cheap to know costs nobody a question.
    let claims = claims_likely(&app.log.head().machine.system, token, now_ms() / 1000)?;
    app.limits.ask.check(client.address, &app.metrics)?;
    let uri: Uri = format!("{BASE}/me").parse().map_err(Problem::internal)?;
    let mut only = HeaderMap::new();
    if let Some(proof) = headers.get(header::AUTHORIZATION) {
        only.insert(header::AUTHORIZATION, proof.clone());
    }
    let me = Forward {
        machines: false,
        method: &Method::GET,
        uri: &uri,
        headers: &only,
        body: Vec::new(),
        client,
        request_id,
        again: true,
    };
    match response(app.voters.vouch(me.question()).await?)?.status() {
        StatusCode::OK => Ok(app.auth.vouched(token, claims)),
        StatusCode::UNAUTHORIZED => Err(session_over()),
        status => {
            let detail =
                format!("a member that votes could not say whether this session is good ({status}); try again");
            Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, "voter_unreachable", detail, 2))
        }
    }
}

//! The sync where a machine in between takes the upgrade away: one question after the other, each waits for its answer.
//!
//! ```text
//!  upgrade not taken ─► POST poll {checkpoint, endpoints, wait} ─► answer ─► the same Session and Sink ─► again …
//!                                                                     └ after [`AGAIN`]: is there an upgrade now?
//! ```

use super::follow::{Ended, Follow, Sink, frame_take};
use super::session::Session;
use crate::door::{Door, DoorError, DoorUrl};
use crate::store::StoreError;
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

const PATH: &str = "/client/poll";
/// How long the controller may wait for something new, seconds: less than its own bound, and than proxies' usual minute.
const WAIT_S: u32 = 50;
/// An answer must be there within this after [`WAIT_S`].
const MARGIN: Duration = Duration::from_secs(20);
/// The longest answer: a map of as many peers as an agent keeps.
const BODY_MAX: usize = 64 << 20;
/// Questions begin so far apart at least.
const APART: Duration = Duration::from_secs(1);
/// After so long the stream is tried again.
const AGAIN: Duration = Duration::from_secs(600);

// Read leniently: a later controller may say more than this version knows.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    checkpoint: String,
    map: Option<Value>,
    delta: Option<Value>,
    redirect: Option<Value>,
}

impl Answer {
    /// As the stream would have said it.
    fn frame(self) -> Result<SyncFrame, serde_json::Error> {
        let Self { checkpoint, map, delta, redirect } = self;
        let frame = match (map, delta, redirect) {
            (Some(map), _, _) => Frame::Map(serde_json::from_value(map)?),
            (_, Some(delta), _) => Frame::Delta(serde_json::from_value(delta)?),
            (_, _, Some(redirect)) => Frame::Redirect(serde_json::from_value(redirect)?),
            (None, None, None) => Frame::Heartbeat(v1::Heartbeat { checkpoint }),
        };
        Ok(SyncFrame { frame: Some(frame) })
    }
}

/// True where the refusal of an upgrade is not a controller's own word on this node: somebody in between, or a
/// controller that was not shown the upgrade.
pub(super) fn is_in_between(error: &DoorError) -> bool {
    match error {
        DoorError::Answer(_) => true,
        DoorError::Problem { status, code, .. } => code == "unexplained" || matches!(status, 400 | 426),
        DoorError::Url(_)
        | DoorError::Io(_)
        | DoorError::Untrusted { .. }
        | DoorError::Http(_)
        | DoorError::Timeout => false,
    }
}

impl Follow {
    /// Asks this door until it has to be another one, or for [`AGAIN`].
    pub(super) async fn polls(&mut self, url: &DoorUrl, sink: &impl Sink) -> Result<Ended, StoreError> {
        let (mut heard, until) = (false, Instant::now() + AGAIN);
        loop {
            let asked = Instant::now();
            // What was taken is durable before the next question names it.
            let mut session = Session::new(sink.checkpoint()?);
            let endpoints = self.endpoints.borrow_and_update().clone();
            let Some(Frame::Hello(hello)) = session.hello(endpoints).frame else {
                return Ok(broken("no hello".to_owned(), heard));
            };
            let (door, request) = (self.door.clone(), question(hello));
            let answer = tokio::select! {
                answer = ask(&door, url, request) => answer,
                // Told at once, with another question in place of this one.
                Ok(()) = self.endpoints.changed() => {
                    sleep_until(asked + APART).await;
                    continue;
                }
            };
            let frame = match answer {
                Ok(answer) => answer.frame().map_err(|error| error.to_string()),
                Err(error) => match error.refusal() {
                    Some((code, detail)) => return Ok(Ended::Bye { code, detail }),
                    None => Err(error.to_string()),
                },
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return Ok(broken(error, heard)),
            };
            if !std::mem::replace(&mut heard, true) {
                tracing::info!(%url, "sync: connected, by polls");
                self.live_set(url, true, None);
            }
            if let Some(ended) = frame_take(&mut session, frame, sink)? {
                return Ok(ended);
            }
            if Instant::now() >= until {
                return Ok(Ended::Again);
            }
            sleep_until(asked + APART).await;
        }
    }
}

fn broken(error: String, heard: bool) -> Ended {
    Ended::Broken { error, heard }
}

fn question(hello: v1::Hello) -> v1::PollRequest {
    v1::PollRequest { checkpoint: hello.checkpoint, endpoints: hello.endpoints, wait: WAIT_S }
}

async fn ask(door: &Door, url: &DoorUrl, request: v1::PollRequest) -> Result<Answer, DoorError> {
    let body = serde_json::to_vec(&request).map_err(|error| DoorError::Answer(error.to_string()))?;
    let within = Duration::from_secs(WAIT_S.into()) + MARGIN;
    timeout(within, door.post_slow(url, PATH, body, within, BODY_MAX)).await.map_err(|_| DoorError::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_frame_of_the_stream() {
        let check = |json: &str, frame: Option<Frame>| {
            let answer: Answer = serde_json::from_str(json).unwrap();
            assert_eq!(answer.frame().ok().and_then(|f| f.frame), frame, "{json}");
        };
        let beat = Frame::Heartbeat(v1::Heartbeat { checkpoint: "c".into() });
        check(r#"{"checkpoint":"c","keepalive":true,"map":null,"somethingNew":1}"#, Some(beat));
        let map = v1::Map { checkpoint: "c".into(), ..v1::Map::default() };
        check(r#"{"checkpoint":"c","map":{"checkpoint":"c","peers":[]}}"#, Some(Frame::Map(map)));
        let delta = v1::Delta { checkpoint: "d".into(), removed: vec!["x".into()], ..v1::Delta::default() };
        check(r#"{"delta":{"checkpoint":"d","removed":["x"]}}"#, Some(Frame::Delta(delta)));
        let redirect = v1::Redirect { urls: vec!["https://a:1".into()], after_ms: 5 };
        check(r#"{"redirect":{"urls":["https://a:1"],"afterMs":5}}"#, Some(Frame::Redirect(redirect)));
        check(r#"{"map":{"peers":7}}"#, None);
    }

    #[test]
    fn whose_word_a_refused_upgrade_is() {
        let problem = |status, code: &str| DoorError::Problem { status, code: code.into(), detail: "d".into() };
        for (error, expected) in [
            (DoorError::Answer("no upgrade".into()), true),
            (problem(426, "upgrade_required"), true),
            (problem(400, "bad_request"), true),
            (problem(502, "unexplained"), true),
            (problem(403, "unexplained"), true),
            (problem(403, "node_disabled"), false),
            (problem(401, "node_deleted"), false),
            (problem(503, "view_behind"), false),
            (DoorError::Timeout, false),
        ] {
            assert_eq!(is_in_between(&error), expected, "{error}");
        }
    }
}

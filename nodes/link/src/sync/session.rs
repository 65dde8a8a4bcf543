//! The rules of one sync stream, on the agent's side; no I/O.
//!
//! ```text
//!  Map part ─► gathered ─► last part ─► Replace       Delta part ─► gathered ─► last part ─► Patch
//!  Heartbeat ─► Advance (or nothing)                  Redirect, Bye ─► as they say
//! ```
//! - The checkpoint never goes back within an epoch: a map or delta that would is an error, the stream is dropped, and
//!   what the agent has stays.
//! - A delta starts from what the agent has: same epoch. Another epoch comes as a full map only.
//! - Parts are gathered and take effect together, at the last one; a stream that ends between them changes nothing.
//! - One peer that makes no sense is left out and logged; it does not cost the machine all the others.

use crate::PEERS_MAX;
use cvlan_core::id::Checkpoint;
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use uuid::Uuid;

/// What a frame leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Forget everything, this is all.
    Replace {
        /// Where it brings the agent.
        checkpoint: Checkpoint,
        /// About the machine itself.
        own: Option<v1::Self_>,
        /// All peers.
        peers: Vec<v1::Peer>,
    },
    /// A change.
    Patch {
        /// Where it brings the agent.
        checkpoint: Checkpoint,
        /// About the machine itself, where that changed.
        own: Option<v1::Self_>,
        /// New and changed peers.
        upserts: Vec<v1::Peer>,
        /// Peers that are gone.
        removed: Vec<Uuid>,
    },
    /// Nothing changed up to here.
    Advance(Checkpoint),
    /// Go on there, after so many milliseconds.
    Redirect {
        /// Node doors; empty = any that is known.
        urls: Vec<String>,
        /// How long to wait.
        after_ms: u32,
    },
    /// The stream ends.
    Bye {
        /// Stable problem code.
        code: String,
        /// For people.
        detail: String,
    },
}

/// A frame that breaks the rules; the stream is of no more use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    /// A checkpoint that is none.
    #[error("{0:?} is not a checkpoint")]
    CheckpointMalformed(String),
    /// Older than what the agent has.
    #[error("the controller went back to {got} from {have}")]
    WentBack {
        /// What the agent has.
        have: Checkpoint,
        /// What came.
        got: Checkpoint,
    },
    /// A delta without a map before it, or of another epoch.
    #[error("a delta to {0} that does not start from what this machine has")]
    NoBase(Checkpoint),
    /// Parts of two maps or deltas mixed.
    #[error("another map or delta began before the last part of the one before")]
    PartsMixed,
    /// More than an agent takes.
    #[error("more than {PEERS_MAX} peers")]
    TooManyPeers,
    /// A frame that only an agent sends.
    #[error("a frame that a controller does not send")]
    Direction,
}

impl SessionError {
    /// Stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            SessionError::CheckpointMalformed(_) => "checkpoint_malformed",
            SessionError::WentBack { .. } => "checkpoint_went_back",
            SessionError::NoBase(_) => "delta_without_base",
            SessionError::PartsMixed => "parts_mixed",
            SessionError::TooManyPeers => "too_many_peers",
            SessionError::Direction => "frame_direction",
        }
    }
}

struct Parts {
    checkpoint: Checkpoint,
    full: bool,
    own: Option<v1::Self_>,
    peers: Vec<v1::Peer>,
    removed: Vec<Uuid>,
}

/// One stream.
pub struct Session {
    have: Option<Checkpoint>,
    parts: Option<Parts>,
}

impl Session {
    /// A stream of an agent that has everything up to `have`.
    pub fn new(have: Option<Checkpoint>) -> Self {
        Self { have, parts: None }
    }

    /// The first frame to send.
    pub fn hello(&self, endpoints: Vec<String>) -> SyncFrame {
        let checkpoint = self.have.map(|have| have.to_string()).unwrap_or_default();
        let hello = v1::Hello { checkpoint, agent_version: crate::AGENT_VERSION.to_owned(), endpoints };
        SyncFrame { frame: Some(Frame::Hello(hello)) }
    }

    /// Takes a frame. The effect counts as done when the next frame is handed in.
    pub fn handle(&mut self, frame: SyncFrame) -> Result<Option<Effect>, SessionError> {
        match frame.frame {
            Some(Frame::Map(map)) => {
                let checkpoint = parse(&map.checkpoint)?;
                self.forward(checkpoint)?;
                let part = Parts { checkpoint, full: true, own: map.self_, peers: map.peers, removed: Vec::new() };
                self.gather(part, map.more)
            }
            Some(Frame::Delta(delta)) => {
                let checkpoint = parse(&delta.checkpoint)?;
                if self.have.is_none_or(|have| have.epoch != checkpoint.epoch) {
                    return Err(SessionError::NoBase(checkpoint));
                }
                self.forward(checkpoint)?;
                let removed = delta.removed.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect();
                let part = Parts { checkpoint, full: false, own: delta.self_, peers: delta.upserts, removed };
                self.gather(part, delta.more)
            }
            Some(Frame::Heartbeat(heartbeat)) => {
                let checkpoint = parse(&heartbeat.checkpoint)?;
                // Between parts, from another epoch, or from a member that is behind: a sign of life and no more.
                let ahead = self.have.is_some_and(|have| have.epoch == checkpoint.epoch && have.seq < checkpoint.seq);
                if !ahead || self.parts.is_some() {
                    return Ok(None);
                }
                self.have = Some(checkpoint);
                Ok(Some(Effect::Advance(checkpoint)))
            }
            Some(Frame::Redirect(redirect)) => {
                Ok(Some(Effect::Redirect { urls: redirect.urls, after_ms: redirect.after_ms }))
            }
            Some(Frame::Bye(bye)) => Ok(Some(Effect::Bye { code: bye.code, detail: bye.detail })),
            Some(Frame::Hello(_) | Frame::Ack(_) | Frame::Endpoints(_)) => Err(SessionError::Direction),
            // A frame of a later version.
            None => Ok(None),
        }
    }

    fn forward(&self, got: Checkpoint) -> Result<(), SessionError> {
        match self.have {
            Some(have) if have.epoch == got.epoch && got.seq < have.seq => Err(SessionError::WentBack { have, got }),
            Some(_) | None => Ok(()),
        }
    }

    fn gather(&mut self, mut part: Parts, more: bool) -> Result<Option<Effect>, SessionError> {
        part.peers.retain(peer_fits);
        let parts = match self.parts.take() {
            Some(mut parts) => {
                if parts.checkpoint != part.checkpoint || parts.full != part.full {
                    return Err(SessionError::PartsMixed);
                }
                parts.own = part.own.or(parts.own);
                parts.peers.append(&mut part.peers);
                parts.removed.append(&mut part.removed);
                parts
            }
            None => part,
        };
        if parts.peers.len() > PEERS_MAX || parts.removed.len() > PEERS_MAX {
            return Err(SessionError::TooManyPeers);
        }
        if more {
            self.parts = Some(parts);
            return Ok(None);
        }
        let Parts { checkpoint, full, own, peers, removed } = parts;
        self.have = Some(checkpoint);
        Ok(Some(if full {
            Effect::Replace { checkpoint, own, peers }
        } else {
            Effect::Patch { checkpoint, own, upserts: peers, removed }
        }))
    }
}

fn parse(text: &str) -> Result<Checkpoint, SessionError> {
    text.parse().map_err(|_| SessionError::CheckpointMalformed(text.chars().take(64).collect()))
}

fn peer_fits(peer: &v1::Peer) -> bool {
    let fits = Uuid::parse_str(&peer.node_id).is_ok() && peer.wg_public_key.len() == 32;
    if !fits {
        tracing::warn!(node = %peer.node_id, "a peer that makes no sense is left out");
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "000102030405060708090a0b0c0d0e0f";
    const B: &str = "ff0102030405060708090a0b0c0d0e0f";

    fn cp(epoch: &str, seq: u64) -> Checkpoint {
        format!("{epoch}.{seq}").parse().unwrap()
    }

    fn peer(n: u8) -> v1::Peer {
        v1::Peer {
            node_id: Uuid::from_bytes([n; 16]).to_string(),
            name: format!("n{n}"),
            wg_public_key: vec![n; 32],
            ipv4: format!("10.0.0.{n}"),
            ipv6: String::new(),
            endpoints: vec![],
        }
    }

    fn own(name: &str) -> Option<v1::Self_> {
        Some(v1::Self_ { name: name.into(), ..Default::default() })
    }

    fn frame(frame: Frame) -> SyncFrame {
        SyncFrame { frame: Some(frame) }
    }

    fn map(at: Checkpoint, peers: &[u8], more: bool) -> SyncFrame {
        let peers = peers.iter().map(|n| peer(*n)).collect();
        frame(Frame::Map(v1::Map { checkpoint: at.to_string(), self_: own("me"), peers, more }))
    }

    fn delta(at: Checkpoint, upserts: &[u8], removed: &[u8], more: bool) -> SyncFrame {
        frame(Frame::Delta(v1::Delta {
            checkpoint: at.to_string(),
            self_: None,
            upserts: upserts.iter().map(|n| peer(*n)).collect(),
            removed: removed.iter().map(|n| Uuid::from_bytes([*n; 16]).to_string()).collect(),
            more,
        }))
    }

    fn heartbeat(at: Checkpoint) -> SyncFrame {
        frame(Frame::Heartbeat(v1::Heartbeat { checkpoint: at.to_string() }))
    }

    fn replace(at: Checkpoint, peers: &[u8]) -> Effect {
        Effect::Replace { checkpoint: at, own: own("me"), peers: peers.iter().map(|n| peer(*n)).collect() }
    }

    fn patch(at: Checkpoint, upserts: &[u8], removed: &[u8]) -> Effect {
        Effect::Patch {
            checkpoint: at,
            own: None,
            upserts: upserts.iter().map(|n| peer(*n)).collect(),
            removed: removed.iter().map(|n| Uuid::from_bytes([*n; 16])).collect(),
        }
    }

    type Step = (SyncFrame, Result<Option<Effect>, &'static str>);

    fn check(name: &str, have: Option<Checkpoint>, steps: Vec<Step>) {
        let mut session = Session::new(have);
        for (at, (frame, expected)) in steps.into_iter().enumerate() {
            let got = session.handle(frame).map_err(|error| error.code());
            assert_eq!(got, expected, "{name}, step {at}");
        }
    }

    #[test]
    fn frames_lead_to_effects() {
        check("first map", None, vec![(map(cp(A, 5), &[1, 2], false), Ok(Some(replace(cp(A, 5), &[1, 2]))))]);
        check(
            "map, delta, heartbeat",
            None,
            vec![
                (map(cp(A, 5), &[1], false), Ok(Some(replace(cp(A, 5), &[1])))),
                (delta(cp(A, 7), &[2], &[1], false), Ok(Some(patch(cp(A, 7), &[2], &[1])))),
                (heartbeat(cp(A, 7)), Ok(None)),
                (heartbeat(cp(A, 9)), Ok(Some(Effect::Advance(cp(A, 9))))),
                (heartbeat(cp(A, 8)), Ok(None)),
                (heartbeat(cp(B, 80)), Ok(None)),
                (delta(cp(A, 9), &[], &[], false), Ok(Some(patch(cp(A, 9), &[], &[])))),
            ],
        );
        check(
            "parts take effect together",
            Some(cp(A, 5)),
            vec![
                (map(cp(A, 9), &[1], true), Ok(None)),
                (heartbeat(cp(A, 9)), Ok(None)),
                (map(cp(A, 9), &[2], true), Ok(None)),
                (map(cp(A, 9), &[3], false), Ok(Some(replace(cp(A, 9), &[1, 2, 3])))),
                (delta(cp(A, 10), &[4], &[1], true), Ok(None)),
                (delta(cp(A, 10), &[5], &[2], false), Ok(Some(patch(cp(A, 10), &[4, 5], &[1, 2])))),
            ],
        );
        check("no way back", Some(cp(A, 5)), vec![(map(cp(A, 4), &[1], false), Err("checkpoint_went_back"))]);
        check(
            "no way back by delta",
            Some(cp(A, 5)),
            vec![(delta(cp(A, 4), &[1], &[], false), Err("checkpoint_went_back"))],
        );
        check("the same again", Some(cp(A, 5)), vec![(map(cp(A, 5), &[1], false), Ok(Some(replace(cp(A, 5), &[1]))))]);
        check(
            "another epoch comes as a map, also to a lower number",
            Some(cp(A, 50)),
            vec![
                (delta(cp(B, 60), &[1], &[], false), Err("delta_without_base")),
                (map(cp(B, 2), &[1], false), Ok(Some(replace(cp(B, 2), &[1])))),
                (delta(cp(B, 3), &[2], &[], false), Ok(Some(patch(cp(B, 3), &[2], &[])))),
            ],
        );
        check("a delta first", None, vec![(delta(cp(A, 4), &[1], &[], false), Err("delta_without_base"))]);
        check(
            "mixed parts",
            Some(cp(A, 1)),
            vec![(map(cp(A, 4), &[1], true), Ok(None)), (map(cp(A, 5), &[1], false), Err("parts_mixed"))],
        );
        check(
            "a delta between parts",
            Some(cp(A, 1)),
            vec![(map(cp(A, 4), &[1], true), Ok(None)), (delta(cp(A, 4), &[1], &[], false), Err("parts_mixed"))],
        );
        check("wrong way", None, vec![(Session::new(None).hello(vec![]), Err("frame_direction"))]);
        check("of a later version", None, vec![(SyncFrame { frame: None }, Ok(None))]);
        let bad = frame(Frame::Heartbeat(v1::Heartbeat { checkpoint: "x".into() }));
        check("bad checkpoint", None, vec![(bad, Err("checkpoint_malformed"))]);
        let bye = frame(Frame::Bye(v1::Bye { code: "node_deleted".into(), detail: "d".into() }));
        let effect = Effect::Bye { code: "node_deleted".into(), detail: "d".into() };
        check("bye", Some(cp(A, 1)), vec![(map(cp(A, 2), &[], true), Ok(None)), (bye, Ok(Some(effect)))]);
    }

    #[test]
    fn a_stream_that_ends_between_parts_changes_nothing() {
        let mut session = Session::new(Some(cp(A, 5)));
        assert_eq!(session.handle(map(cp(A, 9), &[1], true)), Ok(None));
        let Some(Frame::Hello(hello)) = session.hello(vec!["1.1.1.1:1".into()]).frame else { panic!() };
        assert_eq!(hello.checkpoint, cp(A, 5).to_string());
        assert_eq!(hello.endpoints, ["1.1.1.1:1"]);
        let Some(Frame::Hello(hello)) = Session::new(None).hello(vec![]).frame else { panic!() };
        assert_eq!(hello.checkpoint, "");
    }

    #[test]
    fn peers_are_bounded_and_nonsense_is_left_out() {
        let mut nonsense = peer(1);
        nonsense.wg_public_key.pop();
        let mut nameless = peer(2);
        nameless.node_id = "x".into();
        let bad = v1::Map {
            checkpoint: cp(A, 1).to_string(),
            self_: own("me"),
            peers: vec![nonsense, nameless, peer(3)],
            more: false,
        };
        check("nonsense", None, vec![(frame(Frame::Map(bad)), Ok(Some(replace(cp(A, 1), &[3]))))]);

        let mut session = Session::new(None);
        let many = vec![1u8; 20_000];
        let mut results = (0..5).map(|_| session.handle(map(cp(A, 1), &many, true)));
        assert!(results.any(|result| result == Err(SessionError::TooManyPeers)));
    }
}

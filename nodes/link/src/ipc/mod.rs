//! The local protocol: between a control daemon and its data daemon, and for tools that look at a running agent.
//!
//! ```text
//! frame = u32 LE length of the rest ‖ u8 format ‖ bincode (standard configuration) of a Request, Reply, …
//! ```
//! One request, one reply, in order. The format version goes up with any change of these types: the order of fields and
//! of variants is the encoding. Both ends come from one build, so there is no negotiation: another version is an error
//! that says to restart both.

mod socket;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use uuid::Uuid;

pub use socket::{Client, allowed, listen, read, write};

/// First byte of every frame.
pub const FORMAT: u8 = 1;
/// The longest frame: a configuration of [`crate::PEERS_MAX`] ordinary peers.
pub const FRAME_MAX: usize = 16 << 20;

/// What a control daemon asks of a data daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you? [`Reply::Identity`].
    Identify,
    /// Prove that you hold the WireGuard key. [`Reply::Proof`].
    Prove(Challenge),
    /// Run this and nothing else, and keep it for the next start. [`Reply::Done`].
    Configure(Config),
    /// Change what you run and keep. [`Reply::Done`]; `out_of_step` where `base` is not what you run.
    Patch(Patch),
    /// How are the peers? [`Reply::Stats`].
    Stats,
    /// Take the tunnel down and forget the configuration. [`Reply::Done`].
    Down,
}

/// What a proof is over; see `cvlan_core::token::proof_make`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// X25519 public key that the controller's discovery gave.
    pub challenge_key: [u8; 32],
    /// From the token.
    pub tenant: Uuid,
    /// From the token.
    pub token: Uuid,
    /// SHA-256 of the CSR (DER).
    pub csr_sha256: [u8; 32],
    /// As sent with the registration.
    pub nonce: [u8; 16],
}

/// All that a data daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Names this configuration; compared, not understood.
    pub checkpoint: String,
    /// The machine's own addresses, with the network's prefix length.
    pub addresses: Vec<IpNet>,
    /// The other machines.
    pub peers: Vec<Peer>,
}

/// Another machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Which node.
    pub node_id: Uuid,
    /// X25519.
    pub public_key: [u8; 32],
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
    /// Where its WireGuard socket may be, best first.
    pub endpoints: Vec<SocketAddr>,
}

/// A change of a [`Config`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// The configuration it changes.
    pub base: String,
    /// The one it leads to.
    pub checkpoint: String,
    /// Present where they changed.
    pub addresses: Option<Vec<IpNet>>,
    /// New peers, and all of a changed one.
    pub upserts: Vec<Peer>,
    /// Peers that are gone.
    pub removed: Vec<Uuid>,
}

/// A data daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done, durable and running.
    Done,
    /// To [`Request::Identify`].
    Identity {
        /// X25519 public key.
        public_key: [u8; 32],
        /// UDP port of the WireGuard socket.
        listen_port: u16,
        /// Name of the TUN device.
        ifname: String,
    },
    /// To [`Request::Prove`].
    Proof {
        /// X25519 public key that the proof is for.
        public_key: [u8; 32],
        /// HMAC-SHA256.
        proof: [u8; 32],
    },
    /// To [`Request::Stats`].
    Stats {
        /// The configuration that runs; empty = none.
        checkpoint: String,
        /// One for each peer.
        peers: Vec<PeerStats>,
    },
    /// It did not work.
    Error {
        /// Stable, snake_case.
        code: String,
        /// What happened and what to do.
        detail: String,
    },
}

/// How a peer is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStats {
    /// Which node.
    pub node_id: Uuid,
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// Age of the session in milliseconds; None where there is none.
    pub handshake_age_ms: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// What a tool asks of a control daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtrlRequest {
    /// How are you? [`CtrlReply::Status`].
    Status,
}

/// A control daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtrlReply {
    /// JSON text.
    Status(String),
}

/// What can go wrong on a local socket.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Nobody listens there.
    #[error("cannot reach {path}: {source}; is the daemon running?")]
    Unreachable {
        /// The socket's path.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Somebody listens there already.
    #[error("{0} is in use: another daemon listens there")]
    Taken(String),
    /// A frame over [`FRAME_MAX`].
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// Another [`FORMAT`].
    #[error("the other side speaks format {0}, this one {FORMAT}: restart both daemons from one version")]
    Format(u8),
    /// The bytes are no such message.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
}

impl IpcError {
    /// Stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            IpcError::Io(_) => "ipc_io",
            IpcError::Unreachable { .. } => "ipc_unreachable",
            IpcError::Taken(_) => "ipc_taken",
            IpcError::TooLong(_) => "ipc_too_long",
            IpcError::Format(_) => "ipc_format",
            IpcError::Malformed(_) => "ipc_malformed",
            IpcError::Timeout => "ipc_timeout",
        }
    }
}

/// The bytes of a whole frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, IpcError> {
    let mut frame = vec![0, 0, 0, 0, FORMAT];
    let malformed = |error: bincode::error::EncodeError| IpcError::Malformed(error.to_string());
    bincode::serde::encode_into_std_write(message, &mut frame, bincode::config::standard()).map_err(malformed)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= FRAME_MAX).ok_or(IpcError::TooLong(length))?;
    if let Some(head) = frame.first_chunk_mut() {
        *head = prefix.to_le_bytes();
    }
    Ok(frame)
}

/// A message from the bytes after a frame's length.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, IpcError> {
    let (format, payload) = body.split_first().ok_or_else(|| IpcError::Malformed("empty frame".to_owned()))?;
    if *format != FORMAT {
        return Err(IpcError::Format(*format));
    }
    let config = bincode::config::standard().with_limit::<FRAME_MAX>();
    match bincode::serde::decode_from_slice(payload, config) {
        Ok((message, used)) if used == payload.len() => Ok(message),
        Ok((_, used)) => Err(IpcError::Malformed(format!("{} bytes after the message", payload.len() - used))),
        Err(error) => Err(IpcError::Malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn peer() -> Peer {
        Peer {
            node_id: Uuid::from_bytes([7; 16]),
            public_key: [9; 32],
            addresses: vec!["10.0.0.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            endpoints: vec!["192.0.2.1:51820".parse().unwrap(), "[2001:db8::1]:51820".parse().unwrap()],
        }
    }

    /// One frame a line, in hex. Another line here is another format: [`FORMAT`] and CHANGELOG go with it.
    const GOLDEN: &str = include_str!("golden.txt");

    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: T, golden: &str) {
        let frame = encode(&message).unwrap();
        assert_eq!(hex::encode(&frame), golden, "{message:?}");
        assert_eq!(decode::<T>(&frame[4..]).unwrap(), message);
        for cut in 4..frame.len() {
            assert!(decode::<T>(&frame[4..cut]).is_err(), "{message:?} cut at {cut}");
        }
    }

    #[test]
    fn golden_bytes() {
        let challenge = Challenge {
            challenge_key: [1; 32],
            tenant: Uuid::from_bytes([2; 16]),
            token: Uuid::from_bytes([3; 16]),
            csr_sha256: [4; 32],
            nonce: [5; 16],
        };
        let config =
            Config { checkpoint: "ab.1".into(), addresses: vec!["10.0.0.2/24".parse().unwrap()], peers: vec![peer()] };
        let patch = Patch {
            base: "ab.1".into(),
            checkpoint: "ab.2".into(),
            addresses: Some(vec!["fd00::2/64".parse().unwrap()]),
            upserts: vec![],
            removed: vec![Uuid::from_bytes([7; 16])],
        };
        let stats = PeerStats {
            node_id: Uuid::from_bytes([7; 16]),
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            handshake_age_ms: Some(1_500),
            rx_bytes: 70_000,
            tx_bytes: 5,
        };
        let mut lines = GOLDEN.lines();
        let mut next = || lines.next().unwrap_or_default();
        check(Request::Identify, next());
        check(Request::Prove(challenge), next());
        check(Request::Configure(config), next());
        check(Request::Patch(patch), next());
        check(Request::Stats, next());
        check(Request::Down, next());
        check(Reply::Done, next());
        check(Reply::Identity { public_key: [9; 32], listen_port: 51820, ifname: "cvlan0".into() }, next());
        check(Reply::Proof { public_key: [9; 32], proof: [8; 32] }, next());
        check(Reply::Stats { checkpoint: "ab.2".into(), peers: vec![stats] }, next());
        check(Reply::Error { code: "out_of_step".into(), detail: "x".into() }, next());
        check(CtrlRequest::Status, next());
        check(CtrlReply::Status("{}".into()), next());
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn malformed_frames_are_errors() {
        let check = |body: &[u8], code: &str| assert_eq!(decode::<Request>(body).unwrap_err().code(), code, "{body:?}");
        check(&[], "ipc_malformed");
        check(&[2, 0], "ipc_format");
        check(&[FORMAT], "ipc_malformed");
        check(&[FORMAT, 99], "ipc_malformed");
        check(&[FORMAT, 0, 0], "ipc_malformed");
        // A configuration that claims 2^60 peers must not allocate them.
        check(&[FORMAT, 2, 0, 0, 253, 0, 0, 0, 0, 0, 0, 0, 16], "ipc_malformed");
        let huge = Request::Configure(Config { checkpoint: "x".repeat(FRAME_MAX), ..Config::default() });
        assert_eq!(encode(&huge).unwrap_err().code(), "ipc_too_long");
    }
}

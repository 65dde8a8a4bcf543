//! The software data plane of a machine: WireGuard on a TUN device.
//!
//! ```text
//!   Config / Patch ──► Tunnel ──► difference ──► peers, AllowedIPs, addresses
//!                        │
//!   tick(now, locals) ──►│── Paths: which endpoint of each peer (path.rs, no I/O)
//!                        ▼
//!      TUN (tun.rs) ◄── WireGuard ──► UDP (udp.rs counts handshakes sent in vain)
//! ```
//!
//! [`Tunnel`] is all that a daemon knows of a data plane; [`WireGuard`] is the one there is: gotatun, in user space.
//!
//! Invariants:
//! - A peer may send from, and is reached at, its own addresses only (/32 and /128).
//! - What did not change is not touched: a session outlives every configuration in which its peer stays as it is.
//! - An endpoint inside the tunnel's own network is never used: it would carry the tunnel through itself.
//! - Path choice does no I/O and reads no clock.
//!
//! Start reading at [`Tunnel`], then `path.rs`.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::disallowed_methods
    )
)]

mod path;
mod tun;
mod udp;
mod wireguard;

use ipnet::IpNet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub use wireguard::WireGuard;

/// MTU of the TUN device: 1500 less IPv6, UDP and WireGuard's own 80 bytes.
pub const MTU: u16 = 1420;
/// How often an idle peer is sent an empty packet, so that address translators between keep the way open, in seconds.
pub const KEEPALIVE_S: u16 = 25;
/// Endpoint candidates of one peer that are looked at.
pub const ENDPOINTS_MAX: usize = 16;

/// An X25519 public key (RFC 7748): who a peer is.
pub type PublicKey = [u8; 32];

/// What stays the same while a data plane runs.
#[derive(Clone)]
pub struct Device {
    /// Name of the TUN device, at most 15 bytes.
    pub ifname: String,
    /// X25519 private key.
    pub private_key: [u8; 32],
    /// UDP port of the WireGuard socket.
    pub listen_port: u16,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("ifname", &self.ifname)
            .field("listen_port", &self.listen_port)
            .finish_non_exhaustive()
    }
}

/// Everything that a data plane is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The machine's own addresses, with the network's prefix length: that prefix is routed into the tunnel.
    pub addresses: Vec<IpNet>,
    /// The other machines; at most one of a key.
    pub peers: Vec<Peer>,
}

/// Another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub public_key: PublicKey,
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
    /// Where its WireGuard socket may be, best first; the first [`ENDPOINTS_MAX`] count.
    pub endpoints: Vec<SocketAddr>,
}

/// A change of a [`Config`]. Removals come before upserts: an address may go from one peer to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Present where they changed.
    pub addresses: Option<Vec<IpNet>>,
    /// New peers, and all of a changed one.
    pub upserts: Vec<Peer>,
    /// Peers that are gone.
    pub removed: Vec<PublicKey>,
}

/// How a peer is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where packets to it go now.
    pub endpoint: Option<SocketAddr>,
    /// Age of the session; None where there is none.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// Why a data plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The TUN device cannot be made.
    #[error("cannot make the TUN device {ifname}: {source}; it needs /dev/net/tun, CAP_NET_ADMIN and a free name")]
    Tun {
        /// Its name.
        ifname: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An address cannot be set on the TUN device.
    #[error("cannot give {ifname} the address {address}: {source}")]
    Address {
        /// The device's name.
        ifname: String,
        /// The address.
        address: IpNet,
        /// What the kernel said.
        source: io::Error,
    },
    /// The UDP port cannot be bound.
    #[error("cannot listen on UDP port {port}: {source}; another WireGuard may hold it: choose another port")]
    Port {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// WireGuard itself refused.
    #[error("WireGuard: {0}")]
    WireGuard(String),
    /// A patch without a configuration before it.
    #[error("the tunnel is down: a change needs a whole configuration first")]
    Down,
}

impl TunnelError {
    /// Stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            TunnelError::Tun { .. } => "tun_unavailable",
            TunnelError::Address { .. } => "address_refused",
            TunnelError::Port { .. } => "port_unavailable",
            TunnelError::WireGuard(_) => "wireguard_failed",
            TunnelError::Down => "tunnel_down",
        }
    }
}

/// A data plane.
pub trait Tunnel: Send {
    /// Brings the tunnel to `config`, touching only what differs; brings it up where it is down. On an error it may be
    /// partly there: the next call goes on from where it is.
    fn configure(&mut self, config: &Config, now: Instant) -> impl Future<Output = Result<(), TunnelError>> + Send;

    /// Changes a running tunnel.
    fn patch(&mut self, patch: &Patch, now: Instant) -> impl Future<Output = Result<(), TunnelError>> + Send;

    /// Takes the tunnel down: no device, no socket, no peer.
    fn down(&mut self) -> impl Future<Output = ()> + Send;

    /// How the peers are doing, ordered by key.
    fn stats(&self) -> impl Future<Output = Vec<PeerStats>> + Send;

    /// Looks after the paths; `locals` are the networks that this machine's interfaces are on, which a tunnel that is
    /// down remembers for when it comes up. Returns after how long it wants to be called again.
    fn tick(&mut self, now: Instant, locals: &[IpNet]) -> impl Future<Output = Duration> + Send;
}

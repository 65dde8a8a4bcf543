//! What a running, or stopped, control daemon says about itself. The JSON form is stable.

use cvlan_link::ipc::{Client, CtrlReply, CtrlRequest, PeerStats, Reply, Request};
use cvlan_link::store::{Store, StoreError};
use cvlan_link::sync::Live;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

/// How long a daemon may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Everything there is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which node; empty = not enrolled.
    pub node_id: String,
    /// Its name.
    pub name: String,
    /// Slug of its tenant.
    pub tenant: String,
    /// Name of its network.
    pub cvlan: String,
    /// active, disabled.
    pub status: String,
    /// Its addresses in the network, CIDR notation.
    pub addresses: Vec<String>,
    /// Up to where it has everything; empty = nothing yet.
    pub checkpoint: String,
    /// Full maps taken since the daemon started.
    pub full_maps: u64,
    /// Deltas taken since the daemon started.
    pub deltas: u64,
    /// Full maps taken, ever.
    pub full_maps_total: u64,
    /// Deltas taken, ever.
    pub deltas_total: u64,
    /// The control daemon runs.
    pub running: bool,
    /// Its sync stream is open.
    pub connected: bool,
    /// The controller it talks to, or tried last.
    pub controller: String,
    /// Why the stream is not open.
    pub error: String,
    /// The checkpoint that the data daemon runs; None = it does not answer.
    pub data_plane: Option<String>,
    /// The other machines.
    pub peers: Vec<PeerStatus>,
}

/// Another machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Which node.
    pub node_id: String,
    /// Its name.
    pub name: String,
    /// Its address in the network.
    pub ipv4: String,
    /// Its address in the network.
    pub ipv6: String,
    /// Where it may be reached.
    pub endpoints: Vec<String>,
    /// Where packets to it go now.
    pub endpoint: Option<String>,
    /// Age of the session in milliseconds; None where there is none.
    pub handshake_age_ms: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// What the store knows; the rest is for a running daemon to fill in.
pub fn of_store(store: &Store) -> Result<Status, StoreError> {
    let (position, daemon) = (store.position()?, store.daemon()?);
    let own = position.own.unwrap_or_default();
    let peers = store.peers()?.into_iter().map(|peer| PeerStatus {
        node_id: peer.node_id,
        name: peer.name,
        ipv4: peer.ipv4,
        ipv6: peer.ipv6,
        endpoints: peer.endpoints,
        ..PeerStatus::default()
    });
    Ok(Status {
        node_id: store.identity()?.map(|identity| identity.node_id.to_string()).unwrap_or_default(),
        name: own.name,
        tenant: own.tenant,
        cvlan: own.cvlan,
        status: own.status,
        addresses: own.addresses,
        checkpoint: position.checkpoint.map(|at| at.to_string()).unwrap_or_default(),
        full_maps: position.full_maps.saturating_sub(daemon.full_maps_from),
        deltas: position.deltas.saturating_sub(daemon.deltas_from),
        full_maps_total: position.full_maps,
        deltas_total: position.deltas,
        peers: peers.collect(),
        ..Status::default()
    })
}

impl Status {
    /// Adds how the stream is doing.
    pub fn live_add(&mut self, live: &Live) {
        self.running = true;
        self.connected = live.connected;
        self.controller = live.url.clone();
        self.error = live.error.clone().unwrap_or_default();
    }

    /// Adds what the data daemon says; nothing where it does not answer.
    pub async fn data_plane_add(&mut self, socket: &Path) {
        let ask = async { Client::connect(socket).await.ok()?.call(&Request::Stats).await.ok() };
        let Ok(Some(Reply::Stats { checkpoint, peers })) = timeout(ANSWER_MAX, ask).await else { return };
        self.data_plane = Some(checkpoint);
        let by_id: BTreeMap<Uuid, PeerStats> = peers.into_iter().map(|peer| (peer.node_id, peer)).collect();
        for peer in &mut self.peers {
            if let Some(stats) = Uuid::parse_str(&peer.node_id).ok().and_then(|id| by_id.get(&id)) {
                peer.endpoint = stats.endpoint.map(|at| at.to_string());
                peer.handshake_age_ms = stats.handshake_age_ms;
                peer.rx_bytes = stats.rx_bytes;
                peer.tx_bytes = stats.tx_bytes;
            }
        }
    }
}

/// Asks the daemon of `state_dir`; where none answers, reads its store. `socket` overrides where it said it answers.
pub async fn read(state_dir: &Path, socket: Option<&Path>) -> anyhow::Result<Status> {
    let Some(store) = Store::open_to_read(state_dir)? else { return Ok(Status::default()) };
    let said = store.daemon()?.ctrl_socket;
    let socket = socket.unwrap_or(Path::new(&said));
    let ask = async { Client::connect(socket).await.ok()?.call(&CtrlRequest::Status).await.ok() };
    if let Ok(Some(CtrlReply::Status(json))) = timeout(ANSWER_MAX, ask).await {
        return Ok(serde_json::from_str(&json)?);
    }
    Ok(of_store(&store)?)
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.node_id.is_empty() {
            return writeln!(f, "not enrolled; start cvlan-ctrl with a token");
        }
        let stream = match (self.running, self.connected) {
            (false, _) => "cvlan-ctrl does not run".to_owned(),
            (true, true) => format!("connected to {}", self.controller),
            (true, false) => format!("not connected: {}", self.error),
        };
        writeln!(f, "node         {} {} ({})", self.name, self.node_id, self.status)?;
        writeln!(f, "network      {} of {}", self.cvlan, self.tenant)?;
        writeln!(f, "addresses    {}", self.addresses.join(", "))?;
        writeln!(f, "controller   {stream}")?;
        writeln!(f, "checkpoint   {}", self.checkpoint)?;
        writeln!(f, "data plane   {}", self.data_plane.as_deref().unwrap_or("does not answer"))?;
        writeln!(f, "full maps    {} ({} ever)", self.full_maps, self.full_maps_total)?;
        writeln!(f, "deltas       {} ({} ever)", self.deltas, self.deltas_total)?;
        writeln!(f, "peers        {}", self.peers.len())?;
        for peer in &self.peers {
            let age = peer.handshake_age_ms.map_or("never".to_owned(), |ms| format!("{} s ago", ms / 1_000));
            let at = peer.endpoint.as_deref().unwrap_or("-");
            let (name, ipv4, ipv6) = (&peer.name, &peer.ipv4, &peer.ipv6);
            writeln!(f, "  {name:<24} {ipv4:<15} {ipv6:<24} {at:<22} handshake {age}")?;
        }
        Ok(())
    }
}

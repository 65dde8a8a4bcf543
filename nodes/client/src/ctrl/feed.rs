//! Feeds the data daemon what the store has, and says what runs.

use super::Shared;
use super::queue::{Change, Running, Step};
use cvlan_core::id::Checkpoint;
use cvlan_link::ipc::{Client, Config, IpcError, Patch, Peer, Reply, Request};
use cvlan_link::store::StoreError;
use cvlan_link::sync::Sink;
use cvlan_proto::v1;
use ipnet::IpNet;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use uuid::Uuid;

/// How soon a data daemon that went, or failed, is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How soon one that refused is asked again.
const RETRY_REFUSED: Duration = Duration::from_secs(3);

/// The data daemon, as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plane {
    pub public_key: [u8; 32],
    pub listen_port: u16,
    pub ifname: String,
}

/// Connects, waiting until somebody listens.
pub(crate) async fn connect(path: &Path) -> (Client, Plane) {
    let mut quiet = false;
    loop {
        match identify(path).await {
            Ok(met) => return met,
            Err(error) if !quiet => {
                quiet = true;
                tracing::warn!("cvland: {error}; waiting for it");
            }
            Err(error) => tracing::debug!("cvland: {error}"),
        }
        sleep(RETRY).await;
    }
}

async fn identify(path: &Path) -> Result<(Client, Plane), IpcError> {
    let mut client = Client::connect(path).await?;
    match client.call(&Request::Identify).await? {
        Reply::Identity { public_key, listen_port, ifname } => Ok((client, Plane { public_key, listen_port, ifname })),
        other => Err(IpcError::Malformed(format!("{other:?} where an identity was asked for"))),
    }
}

/// Feeds until the store fails. `running` is told what is durable and runs.
pub(crate) async fn feed(
    shared: &Shared,
    path: &Path,
    wg_key: [u8; 32],
    plane: &watch::Sender<Plane>,
    running: &watch::Sender<Option<Checkpoint>>,
) -> StoreError {
    loop {
        let (client, met) = connect(path).await;
        if met.public_key != wg_key {
            tracing::error!(
                "cvland holds another WireGuard key than the one this node registered with: no peer will answer it. \
                 Restore its wg.key, or remove both state folders and enrol anew with a new token"
            );
        }
        plane.send_if_modified(|known| std::mem::replace(known, met.clone()) != met);
        let mut feeder = Feeder { shared, client, at: Running::Unknown, label: String::new() };
        let wait = match feeder.run(running).await {
            Ok(wait) => wait,
            Err(error) => return error,
        };
        running.send_replace(None);
        sleep(wait).await;
    }
}

struct Feeder<'a> {
    shared: &'a Shared,
    client: Client,
    at: Running,
    /// The checkpoint that the data daemon itself knows: it is not told of steps in which nothing changes.
    label: String,
}

impl Feeder<'_> {
    /// Goes on until the connection is of no more use; returns how long to wait before another.
    async fn run(&mut self, running: &watch::Sender<Option<Checkpoint>>) -> Result<Duration, StoreError> {
        loop {
            let durable = self.shared.checkpoint()?;
            let step = self.shared.queue.borrow_mut().next(self.at, durable);
            let (request, then, label) = match step {
                Step::Nothing => {
                    tokio::select! {
                        () = self.shared.changed.notified() => continue,
                        () = self.client.closed() => {
                            tracing::warn!("cvland is gone");
                            return Ok(RETRY);
                        }
                    }
                }
                Step::Down => (Request::Down, Running::Down, String::new()),
                Step::Whole => {
                    let config = self.whole()?;
                    let label = config.checkpoint.clone();
                    (Request::Configure(config), durable.map_or(Running::Down, Running::At), label)
                }
                Step::Patch(change) if change.is_empty() => {
                    self.at = Running::At(change.to);
                    running.send_replace(Some(change.to));
                    continue;
                }
                Step::Patch(change) => {
                    let (to, label) = (change.to, change.to.to_string());
                    (Request::Patch(patch_of(&self.label, *change)), Running::At(to), label)
                }
            };
            match self.client.call(&request).await {
                Ok(Reply::Done) => {
                    self.label = label;
                    self.at = then;
                    running.send_replace(match then {
                        Running::At(checkpoint) => Some(checkpoint),
                        Running::Down | Running::Unknown => None,
                    });
                }
                Ok(Reply::Error { code, .. }) if code == "out_of_step" => self.at = Running::Unknown,
                Ok(Reply::Error { code, detail }) => {
                    tracing::error!("cvland: {detail} ({code})");
                    return Ok(RETRY_REFUSED);
                }
                Ok(other) => {
                    tracing::error!("cvland answered {other:?}");
                    return Ok(RETRY_REFUSED);
                }
                Err(error) => {
                    tracing::warn!("cvland: {error}");
                    return Ok(RETRY);
                }
            }
        }
    }

    fn whole(&self) -> Result<Config, StoreError> {
        let store = self.shared.store.borrow();
        let position = store.position()?;
        Ok(Config {
            checkpoint: position.checkpoint.map(|at| at.to_string()).unwrap_or_default(),
            addresses: position.own.map(|own| addresses_of(&own)).unwrap_or_default(),
            peers: store.peers()?.iter().map(peer_of).collect(),
        })
    }
}

fn patch_of(base: &str, change: Change) -> Patch {
    Patch {
        base: base.to_owned(),
        checkpoint: change.to.to_string(),
        addresses: change.own.as_ref().map(addresses_of),
        upserts: change.upserts.iter().map(peer_of).collect(),
        removed: change.removed,
    }
}

fn addresses_of(own: &v1::Self_) -> Vec<IpNet> {
    own.addresses.iter().filter_map(|text| text.parse().ok()).collect()
}

/// What makes no sense in it is left out: an endpoint by name, an address of an unknown kind.
fn peer_of(peer: &v1::Peer) -> Peer {
    Peer {
        node_id: Uuid::parse_str(&peer.node_id).unwrap_or_default(),
        public_key: peer.wg_public_key.as_slice().try_into().unwrap_or_default(),
        addresses: [&peer.ipv4, &peer.ipv6].into_iter().filter_map(|text| text.parse().ok()).collect(),
        endpoints: peer.endpoints.iter().filter_map(|text| text.parse().ok()).collect(),
    }
}

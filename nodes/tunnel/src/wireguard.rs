//! [`Tunnel`] by gotatun: WireGuard in user space, in this process.

use crate::path::{Move, Paths, Sample};
use crate::tun::Tun;
use crate::udp::{Factory, Initiations};
use crate::{Config, Device, KEEPALIVE_S, Patch, Peer, PeerStats, PublicKey, Tunnel, TunnelError};
use gotatun::device::{DeviceBuilder, Error, Peer as WgPeer};
use gotatun::noise::TimerParams;
use gotatun::x25519;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a handshake is waited for before it is sent again while a path is searched. WireGuard's own 5 s would
/// make one candidate cost more than a person waits.
const RETRANSMIT_FAST: Duration = Duration::from_millis(700);

/// How long until a device that was taken away is made again, once that failed: doubled with each failure, up to
/// [`AGAIN_MOST`]. What held the port before may hold it for a moment longer.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(5);

type GotaTun = gotatun::device::Device<(Factory, Tun, Tun)>;

/// WireGuard on a TUN device.
pub struct WireGuard {
    device: Device,
    running: Option<Running>,
    /// What is to be there again since the device was taken away from outside.
    lost: Option<Lost>,
    initiations: Initiations,
    /// The networks that this machine is on, as last told.
    locals: Vec<IpNet>,
}

struct Lost {
    config: Config,
    again: Duration,
}

struct Running {
    gotatun: GotaTun,
    tun: Tun,
    addresses: Vec<IpNet>,
    peers: BTreeMap<PublicKey, Peer>,
    paths: Paths,
}

impl WireGuard {
    /// A tunnel that is down.
    pub fn new(device: Device) -> Self {
        Self { device, running: None, lost: None, initiations: Initiations::default(), locals: Vec::new() }
    }

    async fn up(&mut self, now: Instant) -> Result<&mut Running, TunnelError> {
        if self.running.is_none() {
            let tun = Tun::open(&self.device.ifname)?;
            let factory = Factory { initiations: self.initiations.clone(), ..Factory::default() };
            let gotatun = DeviceBuilder::new()
                .with_udp(factory)
                .with_ip(tun.clone())
                .with_listen_port(self.device.listen_port)
                .build()
                .await
                .map_err(refused)?;
            // The key is what opens the socket, peers or not.
            let key = x25519::StaticSecret::from(self.device.private_key);
            gotatun.set_private_key(key).await.map_err(refused)?;
            let (addresses, peers, mut paths) = (Vec::new(), BTreeMap::new(), Paths::default());
            paths.locals_set(&self.locals, &[], &|_| 0, now);
            self.running = Some(Running { gotatun, tun, addresses, peers, paths });
        }
        self.running.as_mut().ok_or(TunnelError::Down)
    }
}

impl Tunnel for WireGuard {
    async fn configure(&mut self, config: &Config, now: Instant) -> Result<(), TunnelError> {
        let (ifname, initiations) = (self.device.ifname.clone(), self.initiations.clone());
        let running = self.up(now).await?;
        let wanted: BTreeMap<&PublicKey, &Peer> = config.peers.iter().map(|peer| (&peer.public_key, peer)).collect();
        let patch = Patch {
            addresses: Some(config.addresses.clone()),
            removed: running.peers.keys().filter(|key| !wanted.contains_key(key)).copied().collect(),
            upserts: wanted
                .values()
                .filter(|peer| running.peers.get(&peer.public_key) != Some(peer))
                .map(|peer| (*peer).clone())
                .collect(),
        };
        running.patch(&ifname, &patch, &initiations, now).await?;
        self.lost = None;
        Ok(())
    }

    async fn patch(&mut self, patch: &Patch, now: Instant) -> Result<(), TunnelError> {
        let running = self.running.as_mut().ok_or(TunnelError::Down)?;
        running.patch(&self.device.ifname, patch, &self.initiations, now).await
    }

    async fn down(&mut self) {
        self.lost = None;
        if let Some(running) = self.running.take() {
            running.gotatun.stop().await;
        }
    }

    async fn stats(&self) -> Vec<PeerStats> {
        match &self.running {
            Some(running) => running.stats().await,
            None => Vec::new(),
        }
    }

    async fn tick(&mut self, now: Instant, locals: &[IpNet]) -> Duration {
        self.locals = locals.to_vec();
        if let Some(running) = &mut self.running
            && running.died().await
        {
            tracing::error!("the device {} is gone; making it again", self.device.ifname);
            let config =
                Config { addresses: running.addresses.clone(), peers: running.peers.values().cloned().collect() };
            self.down().await;
            self.lost = Some(Lost { config, again: AGAIN_FIRST });
        }
        if let Some(Lost { config, again }) = self.lost.take()
            && let Err(error) = self.configure(&config, now).await
        {
            tracing::warn!("{error}; the device {} is tried again in {again:?}", self.device.ifname);
            // Nothing half made: what is changed meanwhile would be lost with it.
            self.down().await;
            self.lost = Some(Lost { config, again: (again * 2).min(AGAIN_MOST) });
            return again;
        }
        let Some(running) = self.running.as_mut() else { return Duration::from_secs(30) };
        running.paths_step(locals, &self.initiations, now).await
    }
}

impl Running {
    async fn patch(
        &mut self,
        ifname: &str,
        patch: &Patch,
        initiations: &Initiations,
        now: Instant,
    ) -> Result<(), TunnelError> {
        if let Some(addresses) = &patch.addresses
            && *addresses != self.addresses
        {
            self.tun.addresses_set(ifname, &self.addresses, addresses)?;
            self.addresses.clone_from(addresses);
            self.paths.own_set(&addresses.iter().map(IpNet::trunc).collect::<Vec<_>>());
        }
        if patch.removed.is_empty() && patch.upserts.is_empty() {
            return Ok(());
        }
        let (paths, peers) = (&mut self.paths, &mut self.peers);
        let sent = |to: SocketAddr| initiations.sent(to);
        let changed = self.gotatun.write(async |device| {
            for key in &patch.removed {
                device.remove_peer(&x25519::PublicKey::from(*key)).await;
                paths.remove(key);
                peers.remove(key);
            }
            for peer in &patch.upserts {
                let path = paths.upsert(peer.public_key, &peer.endpoints, &sent, now);
                let known = peers.insert(peer.public_key, peer.clone());
                if known.is_none() {
                    device.add_peer(peer_new(peer, path));
                    continue;
                }
                let key = x25519::PublicKey::from(peer.public_key);
                device
                    .modify_peer(&key, |known_peer| {
                        if known.is_some_and(|known| known.addresses != peer.addresses) {
                            known_peer.clear_allowed_ips();
                            known_peer.add_allowed_ips(peer.addresses.iter().copied());
                        }
                        if path.endpoint.is_some() {
                            known_peer.set_endpoint(path.endpoint);
                            known_peer.dangerously_set_timer_params(timers(path.fast));
                        }
                    })
                    .await;
            }
        });
        changed.await.map_err(refused)
    }

    async fn stats(&self) -> Vec<PeerStats> {
        let mut stats: Vec<PeerStats> = self
            .gotatun
            .peers()
            .await
            .into_iter()
            .map(|peer| PeerStats {
                public_key: peer.peer.public_key.to_bytes(),
                endpoint: peer.peer.endpoint,
                last_handshake: peer.stats.last_handshake,
                rx_bytes: peer.stats.rx_bytes as u64,
                tx_bytes: peer.stats.tx_bytes as u64,
            })
            .collect();
        stats.sort_by_key(|peer| peer.public_key);
        stats
    }

    async fn paths_step(&mut self, locals: &[IpNet], initiations: &Initiations, now: Instant) -> Duration {
        let samples: Vec<Sample> = self
            .stats()
            .await
            .into_iter()
            .map(|peer| Sample {
                key: peer.public_key,
                endpoint: peer.endpoint,
                handshake_at: peer.last_handshake.and_then(|age| now.checked_sub(age)),
            })
            .collect();
        let sent = |to: SocketAddr| initiations.sent(to);
        let mut moves = self.paths.step(&samples, &sent, now);
        moves.extend(self.paths.locals_set(locals, &samples, &sent, now));
        if !moves.is_empty()
            && let Err(error) = self.gotatun.write(async |device| moves_make(device, &moves).await).await
        {
            tracing::warn!("{error}");
        }
        self.paths.step_after()
    }

    /// True once the TUN device was taken away from outside, whether or not what reads it has noticed.
    async fn died(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.gotatun.wait() => true,
            () = std::future::ready(()) => self.tun.is_gone(),
        }
    }
}

async fn moves_make(device: &mut gotatun::device::configure::DeviceWrite<'_, (Factory, Tun, Tun)>, moves: &[Move]) {
    for moved in moves {
        tracing::debug!(endpoint = ?moved.endpoint, fast = moved.fast, "path");
        device
            .modify_peer(&x25519::PublicKey::from(moved.key), |peer| {
                if moved.endpoint.is_some() {
                    peer.set_endpoint(moved.endpoint);
                }
                peer.dangerously_set_timer_params(timers(moved.fast));
            })
            .await;
    }
}

fn peer_new(peer: &Peer, path: Move) -> WgPeer {
    let mut new = WgPeer::new(x25519::PublicKey::from(peer.public_key));
    new.keepalive = Some(KEEPALIVE_S);
    new.allowed_ips = peer.addresses.iter().map(|ip: &IpAddr| (*ip).into()).collect();
    new.endpoint = path.endpoint;
    new.danger_timer_params = timers(path.fast);
    new
}

fn timers(fast: bool) -> Option<TimerParams> {
    fast.then(|| TimerParams {
        rekey_timeout: RETRANSMIT_FAST..=RETRANSMIT_FAST + Duration::from_millis(200),
        ..TimerParams::default()
    })
}

fn refused(error: Error) -> TunnelError {
    match error {
        Error::Bind(source, params) => TunnelError::Port { port: params.port, source },
        error => TunnelError::WireGuard(error.to_string()),
    }
}

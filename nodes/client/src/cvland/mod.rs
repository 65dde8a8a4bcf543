//! The data daemon: owns the WireGuard key and the tunnel, and keeps the last configuration it was given.
//!
//! ```text
//!  socket ─► Request ─► Daemon::handle ─► saved (atomic file) ─► Tunnel ─► Reply
//!  start  ─► saved ─────────────────────────────────────────────► Tunnel
//! ```

mod files;
pub mod serve;

use cvlan_core::id::{TenantId, TokenId};
use cvlan_core::token::proof_make;
use cvlan_link::ipc::{Challenge, Config, Patch, Peer, PeerStats, Reply, Request};
use cvlan_tunnel::{self as tunnel, Tunnel, TunnelError};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;
use x25519_dalek::{PublicKey, StaticSecret};

pub use files::{FileError, key_load};

use files::Saved;

/// How soon a tunnel that did not come up is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The daemon, without its socket.
pub struct Daemon<T> {
    key: StaticSecret,
    ifname: String,
    listen_port: u16,
    saved: Saved,
    config: Option<Running>,
    up: bool,
    tunnel: T,
}

struct Running {
    checkpoint: String,
    addresses: Vec<IpNet>,
    peers: BTreeMap<Uuid, Peer>,
}

impl<T: Tunnel> Daemon<T> {
    /// A daemon on `state_dir`, whose tunnel is made by `tunnel` from the key; it has read its last configuration, but
    /// runs nothing yet: [`Daemon::tick`] brings it up.
    pub fn new(
        state_dir: &Path,
        ifname: &str,
        listen_port: u16,
        tunnel: impl FnOnce(tunnel::Device) -> T,
    ) -> Result<Self, FileError> {
        let key = key_load(state_dir)?;
        let saved = Saved::new(state_dir);
        let config = saved.load()?.map(Running::from);
        let device = tunnel::Device { ifname: ifname.to_owned(), private_key: key.to_bytes(), listen_port };
        let tunnel = tunnel(device);
        Ok(Self { key, ifname: ifname.to_owned(), listen_port, saved, config, up: false, tunnel })
    }

    /// Answers a request. [`Reply::Done`] means durable and running.
    pub async fn handle(&mut self, request: Request, now: Instant) -> Reply {
        match request {
            Request::Identify => Reply::Identity {
                public_key: self.public_key(),
                listen_port: self.listen_port,
                ifname: self.ifname.clone(),
            },
            Request::Prove(challenge) => self.prove(&challenge),
            Request::Configure(config) => done(self.configure(config, now).await),
            Request::Patch(patch) => done(self.patch(patch, now).await),
            Request::Stats => self.stats().await,
            Request::Down => done(self.down().await),
        }
    }

    /// Looks after the tunnel; `locals` are the networks this machine is on. Returns when to call again.
    pub async fn tick(&mut self, now: Instant, locals: &[IpNet]) -> Duration {
        if let (false, Some(config)) = (self.up, &self.config) {
            // Where the machine is decides which endpoint of a peer is tried first.
            self.tunnel.tick(now, locals).await;
            let wanted = tunnel_config(&self.key, config);
            match self.tunnel.configure(&wanted, now).await {
                Ok(()) => {
                    self.up = true;
                    tracing::info!(checkpoint = %config.checkpoint, peers = config.peers.len(), "up");
                }
                Err(error) => {
                    tracing::error!("{error}; trying again in {} s", RETRY.as_secs());
                    return RETRY;
                }
            }
        }
        self.tunnel.tick(now, locals).await
    }

    /// Takes the tunnel down; what is saved stays for the next start.
    pub async fn stop(&mut self) {
        self.tunnel.down().await;
        self.up = false;
    }

    fn public_key(&self) -> [u8; 32] {
        PublicKey::from(&self.key).to_bytes()
    }

    fn prove(&self, challenge: &Challenge) -> Reply {
        let shared = self.key.diffie_hellman(&PublicKey::from(challenge.challenge_key));
        if !shared.was_contributory() {
            return error("challenge_invalid", "the controller's challenge key is no X25519 key");
        }
        let public_key = self.public_key();
        let (tenant, token) = (TenantId(challenge.tenant), TokenId(challenge.token));
        let (csr, nonce) = (&challenge.csr_sha256, &challenge.nonce);
        Reply::Proof { public_key, proof: proof_make(shared.as_bytes(), tenant, token, &public_key, csr, nonce) }
    }

    async fn configure(&mut self, config: Config, now: Instant) -> Result<(), Refusal> {
        self.saved.save(&config)?;
        let config = Running::from(config);
        let wanted = tunnel_config(&self.key, &config);
        tracing::info!(checkpoint = %config.checkpoint, peers = config.peers.len(), "configured");
        self.config = Some(config);
        self.up = false;
        self.tunnel.configure(&wanted, now).await?;
        self.up = true;
        Ok(())
    }

    async fn patch(&mut self, patch: Patch, now: Instant) -> Result<(), Refusal> {
        let own = self.public_key();
        let Some(config) = self.config.as_mut().filter(|config| self.up && config.checkpoint == patch.base) else {
            return Err(Refusal::OutOfStep);
        };
        let mut change = tunnel::Patch { addresses: patch.addresses.clone(), ..tunnel::Patch::default() };
        for id in &patch.removed {
            change.removed.extend(config.peers.remove(id).map(|peer| peer.public_key));
        }
        for peer in patch.upserts {
            let before = config.peers.insert(peer.node_id, peer.clone());
            change.removed.extend(before.map(|before| before.public_key).filter(|key| *key != peer.public_key));
            change.upserts.extend(Some(tunnel_peer(&peer)).filter(|peer| peer.public_key != own));
        }
        config.checkpoint = patch.checkpoint;
        if let Some(addresses) = patch.addresses {
            config.addresses = addresses;
        }
        tracing::debug!(
            checkpoint = %config.checkpoint,
            upserts = change.upserts.len(),
            removed = change.removed.len(),
            "patched"
        );
        // From here on an error means: not up, not this checkpoint; a whole configuration mends it.
        self.up = false;
        self.saved.save(&config.to_config())?;
        self.tunnel.patch(&change, now).await?;
        self.up = true;
        Ok(())
    }

    async fn stats(&self) -> Reply {
        let Some(config) = &self.config else {
            return Reply::Stats { checkpoint: String::new(), peers: Vec::new() };
        };
        let stats = self.tunnel.stats().await;
        let by_key: BTreeMap<_, _> = stats.iter().map(|stats| (stats.public_key, stats)).collect();
        let peers = config.peers.values().filter_map(|peer| {
            by_key.get(&peer.public_key).map(|stats| PeerStats {
                node_id: peer.node_id,
                endpoint: stats.endpoint,
                handshake_age_ms: stats.last_handshake.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                rx_bytes: stats.rx_bytes,
                tx_bytes: stats.tx_bytes,
            })
        });
        Reply::Stats { checkpoint: config.checkpoint.clone(), peers: peers.collect() }
    }

    async fn down(&mut self) -> Result<(), Refusal> {
        if self.config.is_some() {
            tracing::info!("down");
        }
        self.saved.remove()?;
        self.config = None;
        self.stop().await;
        Ok(())
    }
}

impl From<Config> for Running {
    fn from(config: Config) -> Self {
        let Config { checkpoint, addresses, peers } = config;
        Self { checkpoint, addresses, peers: peers.into_iter().map(|peer| (peer.node_id, peer)).collect() }
    }
}

impl Running {
    fn to_config(&self) -> Config {
        Config {
            checkpoint: self.checkpoint.clone(),
            addresses: self.addresses.clone(),
            peers: self.peers.values().cloned().collect(),
        }
    }
}

/// Own key among the peers would be a tunnel to oneself; of two peers with one key the later counts.
fn tunnel_config(key: &StaticSecret, config: &Running) -> tunnel::Config {
    let own = PublicKey::from(key).to_bytes();
    let peers = config.peers.values().map(tunnel_peer).filter(|peer| peer.public_key != own);
    tunnel::Config { addresses: config.addresses.clone(), peers: peers.collect() }
}

fn tunnel_peer(peer: &Peer) -> tunnel::Peer {
    tunnel::Peer { public_key: peer.public_key, addresses: peer.addresses.clone(), endpoints: peer.endpoints.clone() }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("this change is not for the configuration that runs; send all of it")]
    OutOfStep,
}

impl Refusal {
    fn code(&self) -> &'static str {
        match self {
            Refusal::File(error) => error.code(),
            Refusal::Tunnel(error) => error.code(),
            Refusal::OutOfStep => "out_of_step",
        }
    }
}

fn done(result: Result<(), Refusal>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(refusal) => error(refusal.code(), &refusal.to_string()),
    }
}

fn error(code: &str, detail: &str) -> Reply {
    Reply::Error { code: code.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use std::sync::{Arc, Mutex};

    /// Keeps what a real tunnel would run.
    #[derive(Clone, Default)]
    struct Fake {
        runs: Arc<Mutex<Option<tunnel::Config>>>,
        fails: Arc<Mutex<bool>>,
    }

    impl Fake {
        fn peers(&self) -> Vec<(u8, Vec<IpAddr>)> {
            let runs = self.runs.lock().unwrap();
            let peers = runs.iter().flat_map(|config| &config.peers);
            peers.map(|peer| (peer.public_key[0], peer.addresses.clone())).collect()
        }

        fn result(&self) -> Result<(), TunnelError> {
            if *self.fails.lock().unwrap() { Err(TunnelError::Down) } else { Ok(()) }
        }
    }

    impl Tunnel for Fake {
        async fn configure(&mut self, config: &tunnel::Config, _: Instant) -> Result<(), TunnelError> {
            self.result()?;
            *self.runs.lock().unwrap() = Some(config.clone());
            Ok(())
        }

        async fn patch(&mut self, patch: &tunnel::Patch, _: Instant) -> Result<(), TunnelError> {
            self.result()?;
            let mut runs = self.runs.lock().unwrap();
            let config = runs.as_mut().ok_or(TunnelError::Down)?;
            config.addresses = patch.addresses.clone().unwrap_or_else(|| config.addresses.clone());
            let gone = |key: &[u8; 32]| {
                patch.removed.contains(key) || patch.upserts.iter().any(|peer| peer.public_key == *key)
            };
            config.peers.retain(|peer| !gone(&peer.public_key));
            config.peers.extend(patch.upserts.iter().cloned());
            config.peers.sort_by_key(|peer| peer.public_key);
            Ok(())
        }

        async fn down(&mut self) {
            *self.runs.lock().unwrap() = None;
        }

        async fn stats(&self) -> Vec<tunnel::PeerStats> {
            Vec::new()
        }

        async fn tick(&mut self, _: Instant, _: &[IpNet]) -> Duration {
            Duration::from_secs(1)
        }
    }

    fn peer(id: u8, key: u8, ip: &str) -> Peer {
        let addresses = vec![ip.parse().unwrap()];
        Peer { node_id: Uuid::from_bytes([id; 16]), public_key: [key; 32], addresses, endpoints: vec![] }
    }

    fn config(checkpoint: &str, peers: Vec<Peer>) -> Request {
        let addresses = vec!["10.0.0.2/24".parse().unwrap()];
        Request::Configure(Config { checkpoint: checkpoint.into(), addresses, peers })
    }

    fn patch(base: &str, to: &str, upserts: Vec<Peer>, removed: &[u8]) -> Request {
        let removed = removed.iter().map(|id| Uuid::from_bytes([*id; 16])).collect();
        Request::Patch(Patch { base: base.into(), checkpoint: to.into(), addresses: None, upserts, removed })
    }

    fn code(reply: &Reply) -> &str {
        match reply {
            Reply::Done => "done",
            Reply::Error { code, .. } => code,
            Reply::Identity { .. } | Reply::Proof { .. } | Reply::Stats { .. } => "other",
        }
    }

    fn daemon(folder: &Path, fake: &Fake) -> Daemon<Fake> {
        Daemon::new(folder, "cvlan0", 51820, |_| fake.clone()).unwrap()
    }

    fn run<O>(future: impl Future<Output = O>) -> O {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn configurations_and_patches_are_run_kept_and_come_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let mut daemon = daemon(folder.path(), &fake);
        let steps: Vec<(Request, &str, Vec<u8>)> = vec![
            (patch("a.1", "a.2", vec![], &[]), "out_of_step", vec![]),
            (config("a.1", vec![peer(1, 11, "10.0.0.3"), peer(2, 12, "10.0.0.4")]), "done", vec![11, 12]),
            (patch("a.0", "a.2", vec![], &[1]), "out_of_step", vec![11, 12]),
            (patch("a.1", "a.2", vec![peer(3, 13, "10.0.0.5")], &[1]), "done", vec![12, 13]),
            // A peer with a new key; an address that goes from one peer to another.
            (patch("a.2", "a.3", vec![peer(2, 22, "10.0.0.4")], &[]), "done", vec![13, 22]),
            (patch("a.3", "a.4", vec![peer(4, 14, "10.0.0.5")], &[3, 9]), "done", vec![14, 22]),
        ];
        run(async {
            for (at, (request, expected, keys)) in steps.into_iter().enumerate() {
                let reply = daemon.handle(request, Instant::now()).await;
                assert_eq!(code(&reply), expected, "step {at}");
                assert_eq!(fake.peers().iter().map(|(key, _)| *key).collect::<Vec<_>>(), keys, "step {at}");
            }
            let key = daemon.public_key();
            // kill -9: nothing said, another process.
            drop(daemon);
            let fake = Fake::default();
            let mut daemon = self::daemon(folder.path(), &fake);
            assert_eq!(daemon.public_key(), key);
            daemon.tick(Instant::now(), &[]).await;
            assert_eq!(fake.peers().iter().map(|(key, _)| *key).collect::<Vec<_>>(), [22, 14]);
            let reply = daemon.handle(patch("a.4", "a.5", vec![], &[2]), Instant::now()).await;
            assert_eq!(code(&reply), "done");
            assert_eq!(code(&daemon.handle(Request::Down, Instant::now()).await), "done");
            drop(daemon);
            let fake = Fake::default();
            self::daemon(folder.path(), &fake).tick(Instant::now(), &[]).await;
            assert!(fake.runs.lock().unwrap().is_none(), "down is kept too");
        });
    }

    #[test]
    fn a_tunnel_that_fails_is_tried_again_and_takes_no_patch_before() {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let mut daemon = daemon(folder.path(), &fake);
        run(async {
            *fake.fails.lock().unwrap() = true;
            let reply = daemon.handle(config("a.1", vec![peer(1, 11, "10.0.0.3")]), Instant::now()).await;
            assert_eq!(code(&reply), "tunnel_down");
            assert_eq!(daemon.tick(Instant::now(), &[]).await, RETRY);
            assert_eq!(code(&daemon.handle(patch("a.1", "a.2", vec![], &[]), Instant::now()).await), "out_of_step");
            *fake.fails.lock().unwrap() = false;
            daemon.tick(Instant::now(), &[]).await;
            assert_eq!(fake.peers().len(), 1);
            assert_eq!(code(&daemon.handle(patch("a.1", "a.2", vec![], &[1]), Instant::now()).await), "done");
            assert!(fake.peers().is_empty());
        });
    }

    #[test]
    fn the_own_key_is_no_peer_and_the_proof_is_what_the_controller_checks() {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let mut daemon = daemon(folder.path(), &fake);
        run(async {
            let mut own = peer(1, 11, "10.0.0.3");
            own.public_key = daemon.public_key();
            daemon.handle(config("a.1", vec![own.clone(), peer(2, 12, "10.0.0.4")]), Instant::now()).await;
            daemon.handle(patch("a.1", "a.2", vec![own], &[]), Instant::now()).await;
            assert_eq!(fake.peers().len(), 1);

            let server = StaticSecret::from([7; 32]);
            let challenge = Challenge {
                challenge_key: PublicKey::from(&server).to_bytes(),
                tenant: Uuid::from_bytes([1; 16]),
                token: Uuid::from_bytes([2; 16]),
                csr_sha256: [3; 32],
                nonce: [4; 16],
            };
            let Reply::Proof { public_key, proof } =
                daemon.handle(Request::Prove(challenge.clone()), Instant::now()).await
            else {
                panic!()
            };
            let shared = server.diffie_hellman(&PublicKey::from(public_key)).to_bytes();
            let (tenant, token) = (TenantId(challenge.tenant), TokenId(challenge.token));
            assert!(cvlan_core::token::proof_check(&proof, &shared, tenant, token, &public_key, &[3; 32], &[4; 16]));
            let nonsense = Challenge { challenge_key: [0; 32], ..challenge };
            assert_eq!(code(&daemon.handle(Request::Prove(nonsense), Instant::now()).await), "challenge_invalid");
        });
    }
}

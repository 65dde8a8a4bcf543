//! A process: what it is made of, in which order it comes up and goes down.
//!
//! ```text
//!  up    lock the folder ─► bind the doors ─► recover the log ─► first entry or keys ─► views ─► advertise ─► serve
//!  down  draining: no new connection, streams are sent elsewhere ─► views folded ─► log synced and closed      ≤ 10 s
//! ```

use crate::Log;
use crate::app::views::ViewFeed;
use crate::app::{App, now_ms};
use crate::auth::Auth;
use crate::bootstrap::{self, BootstrapError, Ready, purpose};
use crate::ca::{CaError, SERVER_MS};
use crate::doors;
use crate::doors::accept::{Door, serve};
use crate::doors::limit::Limits;
use crate::doors::rest::events::FOLLOWERS_MAX;
use crate::keys::{Keys, KeysError, file_write};
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::random::RequestIds;
use crate::streams::Streams;
use cvlan_core::id::MemberId;
use cvlan_core::system::SystemCommand;
use cvlan_core::{Meta, Rules, Wish};
use cvlan_raft::{Applied, FileDisk, Member, NoTransport, OpenError};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use x25519_dalek::StaticSecret;

/// Open connections of the REST door.
const REST_CONNECTIONS: usize = 10_000;
/// Open connections of the node door.
const NODE_CONNECTIONS: usize = 120_000;
/// Open connections of the metrics door.
const METRICS_CONNECTIONS: usize = 64;
/// A member must be ready for commands within this after its recovery.
const WRITABLE: Duration = Duration::from_secs(30);
/// A stop may take this long, the doors this much of it.
const DRAIN: Duration = Duration::from_secs(7);
/// Certificates are looked at so often.
const RENEW_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What a controller is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Folder of the log, snapshots, views and keys.
    pub data_dir: PathBuf,
    /// REST API and UI; port 0 = any.
    pub listen: SocketAddr,
    /// Machines' door; port 0 = any.
    pub node_listen: SocketAddr,
    /// Probes and Prometheus; port 0 = any.
    pub metrics_listen: SocketAddr,
    /// Where people reach the API; empty = as it listens.
    pub advertise_api: Vec<String>,
    /// Where machines reach their door; empty = as it listens.
    pub advertise_node: Vec<String>,
    /// Rate limits of the doors that need no proof; a benchmark from one address does without.
    pub rate_limits: bool,
}

impl Default for Options {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            data_dir: PathBuf::from("./cvlan-data"),
            listen: local(8443),
            node_listen: local(8444),
            metrics_listen: local(9443),
            advertise_api: Vec::new(),
            advertise_node: Vec::new(),
            rate_limits: true,
        }
    }
}

/// Why a controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log's folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Keys, CA, first entry.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A door's address.
    #[error("{flag} {address}: {source}")]
    Bind {
        /// Which flag sets it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The views' file.
    #[error("views.db: {0}")]
    Views(#[from] cvlan_projections::Error),
    /// TLS or routes could not be set up.
    #[error("{0}")]
    Setup(String),
    /// The log is there but takes no commands.
    #[error("the log takes no commands after {} s", WRITABLE.as_secs())]
    NotWritable,
    /// A command of the start was refused.
    #[error("{0}")]
    Refused(String),
}

impl From<KeysError> for StartError {
    fn from(e: KeysError) -> Self {
        Self::Bootstrap(e.into())
    }
}

impl From<CaError> for StartError {
    fn from(e: CaError) -> Self {
        Self::Bootstrap(e.into())
    }
}

impl From<Problem> for StartError {
    fn from(e: Problem) -> Self {
        Self::Refused(e.detail.into_owned())
    }
}

impl StartError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Open(e) => match e {
                OpenError::Locked { .. } => "is another cvlan-api running on it? stop it, or use another --data-dir",
                OpenError::Newer { .. } => "start the version that wrote it",
                OpenError::WrongMember { .. } => "use this member's own --data-dir",
                OpenError::WrongEpoch { .. } => {
                    "log/ and snapshots/ were taken from different controllers; put back what belongs together"
                }
                OpenError::Damaged { .. } | OpenError::Incomplete(_) | OpenError::Unreadable { .. } => {
                    "nothing was changed; restore a backup, or copy the folder and look with `cvlan-api log verify`"
                }
                OpenError::Io { .. } => "check the disk and who may write there",
                OpenError::Raft(_) => "run with RUST_LOG=debug and look at the log",
            },
            Self::Bootstrap(e) => match e {
                BootstrapError::OtherEpoch { .. } => {
                    "log/ and keys/ were taken from different controllers; put back the pair that belongs together"
                }
                BootstrapError::Missing(_) => "put it back from the backup of keys/",
                BootstrapError::Keys(_) => "put the file back from the backup of keys/, or check who may read it",
                BootstrapError::Ca(_) => "put back ca.key from the backup of keys/",
                BootstrapError::Write(_) | BootstrapError::Secret(_) => {
                    "start again; if it stays, use an empty --data-dir"
                }
            },
            Self::Bind { source, .. } => match source.kind() {
                std::io::ErrorKind::AddrInUse => "is another cvlan-api running? stop it, or choose another port",
                std::io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
                _ => "use an address of this machine",
            },
            Self::Views(_) => "delete views.db: it is rebuilt from the log",
            Self::Setup(_) | Self::Refused(_) => "run with RUST_LOG=debug and look at the log",
            Self::NotWritable => "is the disk full? `cvlan-api log stats` shows the log",
        }
    }
}

/// A controller that runs.
pub struct Running {
    app: Arc<App>,
    rest: SocketAddr,
    node: SocketAddr,
    metrics: SocketAddr,
    /// Shown once: the first superadmin's password, where this start made it.
    password: Option<String>,
    doors: Vec<JoinHandle<()>>,
    renewal: JoinHandle<()>,
}

/// A member with its keys, without doors: what `views rebuild` and `admin reset-password` work on.
pub struct Core {
    /// The log.
    pub log: Log,
    /// DATA/keys.
    pub keys: Keys,
    /// What the first start made, or the keys as they are.
    pub ready: Ready,
    /// The views.
    pub views: Arc<ViewFeed>,
    /// Who is connected.
    pub streams: Arc<Streams>,
    /// The last applied event.
    pub applied: watch::Sender<u64>,
}

impl Core {
    /// Opens the log of a folder that this process has locked.
    pub async fn open(options: &Options, disk: Arc<FileDisk>) -> Result<Self, StartError> {
        let keys = Keys::open(&options.data_dir)?;
        let view_path = options.data_dir.join("views.db");
        let views = tokio::task::spawn_blocking(move || ViewFeed::open(&view_path)).await;
        let views = views.map_err(|e| StartError::Setup(e.to_string()))??;
        let streams = Arc::new(Streams::default());
        let applied = watch::channel(0).0;

        let (to_views, to_streams, to_live) = (views.clone(), streams.clone(), applied.clone());
        let observer = move |a: &Applied<Rules>| {
            to_views.applied(a);
            to_streams.applied(&a.head.machine, &a.events);
            to_live.send_replace(a.head.seq.0);
        };
        let mut member = cvlan_raft::Options::single(disk);
        member.observers.push(Arc::new(observer));
        let log: Log = Member::open(member, NoTransport).await?;
        let ready = match Self::ready(&log, &keys).await {
            Ok(ready) => ready,
            Err(error) => {
                log.shutdown().await;
                return Err(error);
            }
        };
        applied.send_replace(log.head().seq.0);
        views.start(&log)?;
        Ok(Self { log, keys, ready, views, streams, applied })
    }

    async fn ready(log: &Log, keys: &Keys) -> Result<Ready, StartError> {
        if !log.writable(WRITABLE).await {
            return Err(StartError::NotWritable);
        }
        Ok(bootstrap::bootstrap(log, keys, now_ms()).await?)
    }

    /// Folds the views, closes the log.
    pub async fn close(self) {
        close(&self.log, self.views).await;
    }
}

async fn close(log: &Log, views: Arc<ViewFeed>) {
    // Its thread reads from the log: first it, then the log.
    let _ = tokio::task::spawn_blocking(move || views.stop()).await;
    log.shutdown().await;
}

/// Brings a controller up.
pub async fn start(options: Options) -> Result<Running, StartError> {
    // A second call in one process finds it installed: fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let disk = FileDisk::open(&options.data_dir)?;
    let rest = bind("--listen", options.listen).await?;
    let node = bind("--node-listen", options.node_listen).await?;
    let metrics = bind("--metrics-listen", options.metrics_listen).await?;
    let core = Core::open(&options, disk).await?;
    let (log, views) = (core.log.clone(), core.views.clone());
    match serve_all(&options, core, rest, node, metrics).await {
        Ok(running) => Ok(running),
        Err(error) => {
            close(&log, views).await;
            Err(error)
        }
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { flag, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

type Bound = (TcpListener, SocketAddr);

async fn serve_all(
    options: &Options,
    core: Core,
    rest: Bound,
    node: Bound,
    probes: Bound,
) -> Result<Running, StartError> {
    let Core { log, keys, ready, views, streams, applied } = core;
    let Ready { cluster, ca, password } = ready;
    file_write(&options.data_dir, "ca.pem", ca.pem().as_bytes(), 0o644)
        .map_err(|source| KeysError::Io { file: "ca.pem".to_owned(), source })?;
    let api_urls = advertised(&options.advertise_api, rest.1);
    let node_urls = advertised(&options.advertise_node, node.1);
    let names = names(&[&api_urls, &node_urls], &[rest.1, node.1]);
    let challenge = cluster.open(purpose::CHALLENGE, &log.head().machine.system.challenge_key);
    let challenge: [u8; 32] = challenge
        .map_err(BootstrapError::from)?
        .try_into()
        .map_err(|_| StartError::Setup("the challenge key is not 32 bytes".to_owned()))?;
    let metrics = Arc::new(Metrics::new());
    let app = Arc::new(App {
        auth: Auth::new(cluster.clone()).await?,
        limits: if options.rate_limits { Limits::default() } else { Limits::none() },
        log,
        keys,
        cluster,
        ca,
        challenge: StaticSecret::from(challenge),
        streams,
        applied,
        views,
        followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        request_ids: RequestIds::default(),
        metrics: metrics.clone(),
        started: Instant::now(),
        draining: watch::channel(false).0,
    });
    let member = MemberId(app.log.status().member);
    app.command(Meta::default(), Wish::System(SystemCommand::Advertise { member, node_urls, api_urls })).await?;

    let certificate = Arc::new(Certificate(RwLock::new(app.ca.server(&names, now_ms())?)));
    let rest_tls = tls(&app, certificate.clone(), false)?;
    let node_tls = tls(&app, certificate.clone(), true)?;
    let rest_router = doors::rest::router(app.clone()).map_err(|e| StartError::Setup(e.to_string()))?;
    let (node_router, probes_router) = (doors::node::router(app.clone()), doors::metrics::router(app.clone()));
    let door =
        |(listener, _): Bound, tls, connections_max| Door { listener, tls, connections_max, metrics: metrics.clone() };
    let (rest_at, node_at, probes_at) = (rest.1, node.1, probes.1);
    let draining = || app.draining.subscribe();
    let doors = vec![
        tokio::spawn(serve(door(rest, Some(rest_tls), REST_CONNECTIONS), rest_router, draining())),
        tokio::spawn(serve(door(node, Some(node_tls), NODE_CONNECTIONS), node_router, draining())),
        tokio::spawn(serve(door(probes, None, METRICS_CONNECTIONS), probes_router, draining())),
    ];
    let renewal = tokio::spawn(renew(app.clone(), certificate, names));
    Ok(Running { app, rest: rest_at, node: node_at, metrics: probes_at, password, doors, renewal })
}

/// What is given, or what it listens on.
fn advertised(given: &[String], listen: SocketAddr) -> Vec<String> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let ip = match listen.ip() {
        IpAddr::V4(a) if a.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(a) if a.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    vec![format!("https://{}", SocketAddr::new(ip, listen.port()))]
}

/// Host names and addresses that the doors' certificate is for.
fn names(urls: &[&[String]], listen: &[SocketAddr]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()];
    if let Ok(host) = rustix::system::uname().nodename().to_str() {
        names.push(host.to_owned());
    }
    names.extend(listen.iter().map(|a| a.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
    names.extend(urls.iter().flat_map(|u| u.iter()).filter_map(|u| crate::app::token::host_of(u)).map(str::to_owned));
    names.sort();
    names.dedup();
    // A host name that is no DNS name (RFC 1035) cannot be in a certificate.
    let fits = |n: &String| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-".contains(&b));
    names.retain(fits);
    names
}

/// The doors' certificate, renewed while they are open.
#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn renew(app: Arc<App>, certificate: Arc<Certificate>, names: Vec<String>) {
    let mut made_ms = now_ms();
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        if now_ms().saturating_sub(made_ms) < SERVER_MS / 3 {
            continue;
        }
        match app.ca.server(&names, now_ms()) {
            Ok(new) => {
                *certificate.0.write().unwrap_or_else(PoisonError::into_inner) = new;
                made_ms = now_ms();
            }
            Err(error) => tracing::error!(%error, "the doors' certificate could not be renewed"),
        }
    }
}

fn tls(app: &App, certificate: Arc<Certificate>, machines: bool) -> Result<Arc<ServerConfig>, StartError> {
    let setup = |e: &dyn std::fmt::Display| StartError::Setup(format!("TLS: {e}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| setup(&e))?;
    let mut config = if machines {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(app.ca.der().clone()).map_err(|e| setup(&e))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.allow_unauthenticated().build().map_err(|e| setup(&e))?;
        builder.with_client_cert_verifier(verifier).with_cert_resolver(certificate)
    } else {
        builder.with_no_client_auth().with_cert_resolver(certificate)
    };
    config.alpn_protocols = match machines {
        true => vec![b"http/1.1".to_vec()],
        false => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(Arc::new(config))
}

impl Running {
    /// Where the REST door listens.
    pub fn rest_address(&self) -> SocketAddr {
        self.rest
    }

    /// Where the node door listens.
    pub fn node_address(&self) -> SocketAddr {
        self.node
    }

    /// Where the metrics door listens.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// The first superadmin's password, where this start made it: to be shown once.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.app.ca.pem()
    }

    /// What contexts and tokens pin: `sha256:HEX`.
    pub fn ca_pin(&self) -> String {
        self.app.ca.fingerprint()
    }

    /// The controller itself.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Waits until the member stops by itself: only where it must not go on.
    pub async fn failed(&self) -> String {
        loop {
            if let Some(why) = self.app.log.status().fatal {
                return why;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Stops in order, within 10 s.
    pub async fn stop(self) {
        self.app.draining.send_replace(true);
        self.renewal.abort();
        let stops: Vec<_> = self.doors.iter().map(JoinHandle::abort_handle).collect();
        let done = async {
            for door in self.doors {
                let _ = door.await;
            }
        };
        if tokio::time::timeout(DRAIN, done).await.is_err() {
            stops.iter().for_each(tokio::task::AbortHandle::abort);
        }
        close(&self.app.log, self.app.views.clone()).await;
    }
}

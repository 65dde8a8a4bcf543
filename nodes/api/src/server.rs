//! A process: what it is made of, in which order it comes up and goes down.
//!
//! ```text
//!  up    lock the folder ─► bind the doors ─► engine: keys, join, log, cluster door, first state ─► announce ─► serve
//!  down  hand over leadership ─► draining: no new connection, streams are sent elsewhere, requests finish
//!        ─► views folded ─► log synced and closed ─► cluster door                                              ≤ 10 s
//! ```

pub use crate::engine::{Core, Place};
pub use crate::start_error::StartError;

use crate::app::App;
use crate::app::archive;
use crate::app::backup::{self, Schedule};
use crate::app::cut_off;
use crate::app::sink::{self, Sink, Target};
use crate::auth::Auth;
use crate::bootstrap::Ready;
use crate::ca::Live;
use crate::cluster::ask::Voters;
use crate::cluster::certificates::{self, doors_certificate};
use crate::cluster::force::Force;
use crate::cluster::identity::{key_sha256, own_key};
use crate::cluster::keeper::{self, Keeper};
use crate::cluster::notary;
use crate::cluster::voter::Routers;
use crate::config::{DAY_MS, HISTORY_DAYS};
use crate::doors;
use crate::doors::accept::{Door, serve};
use crate::doors::limit::Limits;
use crate::doors::rest::events::FOLLOWERS_MAX;
use crate::doors::rest::export::EXPORTS_MAX;
use crate::engine::{alone, close};
use crate::keys::{KeysError, file_write};
use crate::metrics::Metrics;
use crate::presence;
use crate::problem::Problem;
use crate::random::RequestIds;
use cvlan_core::id::MemberId;
use cvlan_core::member::MemberCommand;
use cvlan_core::system::SystemCommand;
use cvlan_core::{Meta, Wish};
use cvlan_projections::PostgresUrl;
use cvlan_raft::{LogStore, Role};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// Open connections of the REST door.
const REST_CONNECTIONS: usize = 10_000;
/// Open connections of the node door.
const NODE_CONNECTIONS: usize = 120_000;
/// Open connections of the metrics door.
const METRICS_CONNECTIONS: usize = 64;
/// Requests for reads at the newest state that wait at once.
const WAITERS: usize = 4_096;
/// Of the 10 s that a stop may take: to hand over leadership.
const HAND_OVER: Duration = Duration::from_secs(2);
/// And for the doors to finish.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two attempts to tell the others where this member is: from … to.
const ANNOUNCE: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(30);
/// How often it is looked whether the member goes on.
const LOOK: Duration = Duration::from_millis(200);

/// What a controller is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Folder of the log, snapshots, views and keys.
    pub data_dir: PathBuf,
    /// What keeps the log; `None` = what it was begun with.
    pub log_store: Option<LogStore>,
    /// REST API and UI; port 0 = any.
    pub listen: SocketAddr,
    /// Machines' door; port 0 = any.
    pub node_listen: SocketAddr,
    /// Probes and Prometheus; port 0 = any.
    pub metrics_listen: SocketAddr,
    /// Members' door; port 0 = any.
    pub cluster_listen: SocketAddr,
    /// HOST:PORT where other members reach that door; `None` = as it listens.
    pub advertise_cluster: Option<String>,
    /// Members to join through; empty = those that the token names.
    pub join: Vec<String>,
    /// Makes this folder a member of an existing cluster, once.
    pub join_token: Option<String>,
    /// This member is to go on alone.
    pub force: Option<Force>,
    /// Where people reach the API; empty = as it listens.
    pub advertise_api: Vec<String>,
    /// Where machines reach their door; empty = as it listens.
    pub advertise_node: Vec<String>,
    /// Rate limits of the doors that need no proof; a benchmark from one address does without.
    pub rate_limits: bool,
    /// Where the record is streamed to.
    pub sinks: Vec<Target>,
    /// Who vouches for those with TLS, PEM.
    pub sink_ca: Option<PathBuf>,
    /// The second view, in PostgreSQL.
    pub views: Option<PostgresUrl>,
    /// Backups that it makes by itself.
    pub backup: Option<Schedule>,
    /// Where history is written to before it goes.
    pub history_export: Option<PathBuf>,
    /// Bounds of the log.
    pub log_limits: cvlan_raft::Limits,
    /// A member from which nothing comes for so long has lost its machines.
    pub presence_expiry: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            data_dir: PathBuf::from("./cvlan-data"),
            log_store: None,
            listen: local(8443),
            node_listen: local(8444),
            metrics_listen: local(9443),
            cluster_listen: local(8445),
            advertise_cluster: None,
            join: Vec::new(),
            join_token: None,
            force: None,
            advertise_api: Vec::new(),
            advertise_node: Vec::new(),
            rate_limits: true,
            sinks: Vec::new(),
            sink_ca: None,
            views: None,
            backup: None,
            history_export: None,
            log_limits: cvlan_raft::Limits { history_ms: HISTORY_DAYS * DAY_MS, ..cvlan_raft::Limits::default() },
            presence_expiry: presence::EXPIRY,
        }
    }
}

/// A controller that runs.
pub struct Running {
    app: Arc<App>,
    rest: SocketAddr,
    node: SocketAddr,
    metrics: SocketAddr,
    members: SocketAddr,
    /// Shown once: the first superadmin's password, where this start made it.
    password: Option<String>,
    doors: Vec<JoinHandle<()>>,
    cluster: Option<JoinHandle<()>>,
    chores: Vec<JoinHandle<()>>,
}

/// Why a controller that ran does not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It must not go on: why.
    Failed(String),
    /// It was removed from the cluster.
    Removed,
}

/// Brings a controller up.
pub async fn start(options: Options) -> Result<Running, StartError> {
    // A second call in one process finds it installed: fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let disk = LogStore::open(options.log_store, &options.data_dir)?;
    let rest = bind("--listen", options.listen).await?;
    let node = bind("--node-listen", options.node_listen).await?;
    let metrics = bind("--metrics-listen", options.metrics_listen).await?;
    let (listener, at) = bind("--cluster-listen", options.cluster_listen).await?;
    let address = options.advertise_cluster.clone().unwrap_or_else(|| reachable(at).to_string());
    let place = Place { address: address.clone(), listener: Some(listener) };
    let mut core = Core::open(&options, disk, place).await?;
    let (log, views, cluster) = (core.log.clone(), core.views.clone(), core.door.take());
    match serve_all(&options, core, [rest, node, metrics], (at, address)).await {
        Ok(running) => Ok(Running { cluster, ..running }),
        Err(error) => {
            close(&log, views, cluster).await;
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
    [rest, node, probes]: [Bound; 3],
    (members, address): (SocketAddr, String),
) -> Result<Running, StartError> {
    let Core { log, keys, ready, views, streams, applied, transport, own, vault, notary, routers, door: _ } = core;
    let Ready { ca, password } = ready;
    file_write(&options.data_dir, "ca.pem", ca.pem().as_bytes(), 0o644)
        .map_err(|source| KeysError::Io { file: "ca.pem".to_owned(), source })?;
    let api_urls = advertised(&options.advertise_api, rest.1);
    let node_urls = advertised(&options.advertise_node, node.1);
    let names = names(&[&api_urls, &node_urls], &[rest.1, node.1]);
    let metrics = Arc::new(Metrics::new());
    let app = Arc::new(App {
        auth: Auth::new(vault.clone()).await?,
        limits: if options.rate_limits { Limits::default() } else { Limits::none() },
        member: MemberId(log.status().member),
        node_urls,
        api_urls,
        voters: Arc::new(Voters::new(log.clone(), transport.clone())),
        notary,
        sinks: (1..).zip(options.sinks.iter().cloned()).map(|(n, target)| Arc::new(Sink::new(n, target))).collect(),
        waiting: Arc::default(),
        log,
        keys,
        vault,
        ca,
        transport,
        streams,
        applied,
        views,
        backups: backup::Made::default(),
        data: options.data_dir.clone(),
        followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        exports: Arc::new(Semaphore::new(EXPORTS_MAX)),
        polls: Default::default(),
        waiters: Semaphore::new(WAITERS),
        request_ids: RequestIds::default(),
        metrics: metrics.clone(),
        started: Instant::now(),
        draining: watch::channel(false).0,
        cut_offs: watch::channel(0).0,
    });
    let here = Here { key_sha256: key_sha256(&own_key(&app.keys)?), note_key: app.notary.public(), address };
    let mut chores = Vec::new();
    if alone(&app.log, app.member.0) {
        here.say(&app).await?;
    } else {
        chores.push(tokio::spawn(here.say_until_heard(app.clone())));
    }

    let certificate = Live::new(doors_certificate(&app, &names).await?);
    let rest_tls = tls(&app, certificate.clone(), false)?;
    let node_tls = tls(&app, certificate.clone(), true)?;
    let rest_router = doors::rest::router(app.clone()).map_err(|e| StartError::Setup(e.to_string()))?;
    let (node_router, probes_router) = (doors::node::router(app.clone()), doors::metrics::router(app.clone()));
    let _ = routers.set(Routers { rest: rest_router.clone(), node: node_router.clone() });
    let door =
        |(listener, _): Bound, tls, connections_max| Door { listener, tls, connections_max, metrics: metrics.clone() };
    let (rest_at, node_at, probes_at) = (rest.1, node.1, probes.1);
    let draining = || app.draining.subscribe();
    let doors = vec![
        tokio::spawn(serve(door(rest, Some(rest_tls), REST_CONNECTIONS), rest_router, draining())),
        tokio::spawn(serve(door(node, Some(node_tls), NODE_CONNECTIONS), node_router, draining())),
        tokio::spawn(serve(door(probes, None, METRICS_CONNECTIONS), probes_router, draining())),
    ];
    chores.push(tokio::spawn(keeper::keep(Keeper {
        log: app.log.clone(),
        keys: app.keys.clone(),
        transport: app.transport.clone(),
        vault: app.vault.clone(),
        waiting: app.waiting.clone(),
    })));
    for each in &app.sinks {
        let (data, ca) = (options.data_dir.clone(), options.sink_ca.clone());
        chores.push(tokio::spawn(sink::feed(app.clone(), each.clone(), data, ca)));
    }
    if let Some(folder) = options.history_export.clone() {
        let every = Duration::from_millis(options.log_limits.history_check_ms);
        chores.push(tokio::spawn(archive::keep(app.clone(), folder, every)));
    }
    if let Some(schedule) = options.backup.clone() {
        chores.push(tokio::spawn(backup::keep(app.clone(), schedule)));
    }
    if let Some(url) = &options.views {
        app.views.start_postgres(url, &app.log)?;
    }
    chores.push(tokio::spawn(notary::keep(app.notary.clone(), app.voters.clone())));
    chores.push(tokio::spawn(presence::report(app.clone())));
    chores.push(tokio::spawn(presence::expire(app.clone(), options.presence_expiry)));
    chores.push(tokio::spawn(cut_off::watch(app.clone(), options.presence_expiry)));
    chores.push(tokio::spawn(certificates::renew(app.clone(), certificate, names, own)));
    let (rest, node, metrics, cluster) = (rest_at, node_at, probes_at, None);
    Ok(Running { app, rest, node, metrics, members, password, doors, cluster, chores })
}

/// What a member tells of itself, through the log.
struct Here {
    key_sha256: [u8; 32],
    note_key: [u8; 32],
    address: String,
}

impl Here {
    async fn say(&self, app: &App) -> Result<(), Problem> {
        let id = app.member;
        let (node_urls, api_urls) = (app.node_urls.clone(), app.api_urls.clone());
        let advertise = SystemCommand::Advertise { member: id, node_urls, api_urls };
        app.command(Meta::default(), Wish::System(advertise)).await?;
        let (key_sha256, note_key, address) = (self.key_sha256, Some(self.note_key), self.address.clone());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let announce = MemberCommand::Announce { id, key_sha256, address, version, note_key };
        app.command(Meta::default(), Wish::Member(announce)).await?;
        Ok(())
    }

    async fn say_until_heard(self, app: Arc<App>) {
        let mut rest = *ANNOUNCE.start();
        while let Err(problem) = self.say(&app).await {
            tracing::warn!(code = problem.code, detail = %problem.detail, "the others were not told where this member is");
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(*ANNOUNCE.end());
        }
    }
}

/// An address that is listened on, as one that can be connected to from here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(a) if a.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(a) if a.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// What is given, or what it listens on.
fn advertised(given: &[String], listen: SocketAddr) -> Vec<String> {
    if !given.is_empty() {
        return given.to_vec();
    }
    vec![format!("https://{}", reachable(listen))]
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

fn tls(app: &App, certificate: Arc<Live>, machines: bool) -> Result<Arc<ServerConfig>, StartError> {
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

    /// Where the members' door listens.
    pub fn cluster_address(&self) -> SocketAddr {
        self.members
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

    /// Waits until the member ends by itself: where it must not go on, or is none any more.
    pub async fn ended(&self) -> Ended {
        loop {
            if self.app.removed() {
                return Ended::Removed;
            }
            if let Some(why) = self.app.log.status().fatal {
                return Ended::Failed(why);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops in order, within 10 s.
    pub async fn stop(self) {
        for chore in self.chores {
            chore.abort();
            let _ = chore.await;
        }
        let log = &self.app.log;
        if log.status().role == Role::Leader && !alone(log, self.app.member.0) {
            // First, while the doors still take requests: they go on, forwarded to who leads then.
            match tokio::time::timeout(HAND_OVER, log.transfer(None)).await {
                Ok(Ok(leader)) => tracing::info!(leader, "leadership is handed over"),
                Ok(Err(error)) => tracing::warn!(%error, "leadership could not be handed over"),
                Err(_) => tracing::warn!("leadership could not be handed over in time"),
            }
        }
        self.app.draining.send_replace(true);
        let stops: Vec<_> = self.doors.iter().map(JoinHandle::abort_handle).collect();
        let done = async {
            for door in self.doors {
                let _ = door.await;
            }
        };
        if tokio::time::timeout(DRAIN, done).await.is_err() {
            stops.iter().for_each(tokio::task::AbortHandle::abort);
        }
        close(&self.app.log, self.app.views.clone(), self.cluster).await;
    }
}

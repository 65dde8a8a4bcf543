//! The control daemon from start to end.

use super::feed::{self, Plane};
use super::queue::Queue;
use super::{Shared, status};
use anyhow::{Context, Result, bail};
use cvlan_core::name::TEXT_MAX;
use cvlan_link::door::Door;
use cvlan_link::enrol::{self, About, EnrolError, Prover};
use cvlan_link::ifaces::{Ifaces, Watch};
use cvlan_link::ipc::{self, Challenge, Client, CtrlReply, CtrlRequest, IpcError, Reply, Request};
use cvlan_link::store::Store;
use cvlan_link::sync::{End, Follow, Live, follow};
use std::cell::RefCell;
use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// How long a tool may take over its question.
const QUESTION_MAX: Duration = Duration::from_secs(5);
/// The longest token file that is read.
const TOKEN_FILE_MAX: u64 = 64 << 10;

/// What it is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Registration token; only needed once.
    pub token: Option<String>,
    /// File with the registration token; only read where it is needed.
    pub token_file: Option<PathBuf>,
    /// Folder of state.db.
    pub state_dir: PathBuf,
    /// Where the data daemon listens.
    pub cvland_socket: PathBuf,
    /// Where to answer tools.
    pub ctrl_socket: PathBuf,
    /// The machine's name, from which the node's is made.
    pub hostname: Option<String>,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Asked to.
    Asked,
    /// A controller refused the registration.
    Refused,
    /// The node was deleted.
    Deleted,
}

/// Runs until it is asked to end, is refused, or its node is deleted.
pub async fn run(settings: &Settings) -> Result<Exit> {
    let mut store = Store::open(&settings.state_dir)?;
    let token = if store.identity()?.is_none() { Some(token_read(settings)?) } else { None };
    if let Some(Err(error)) = token.as_deref().map(enrol::token_check) {
        tracing::error!("{error}");
        return Ok(Exit::Refused);
    }
    store.daemon_started(&std::path::absolute(&settings.ctrl_socket)?.to_string_lossy())?;
    let listener = ipc::listen(&settings.ctrl_socket).context("ctrl socket")?;
    let ended = tokio::select! {
        exit = work(store, token, settings, &listener) => exit,
        () = crate::ended() => Ok(Exit::Asked),
    };
    let _ = std::fs::remove_file(&settings.ctrl_socket);
    ended
}

fn token_read(settings: &Settings) -> Result<String> {
    match (&settings.token, &settings.token_file) {
        (Some(token), _) => Ok(token.trim().to_owned()),
        (None, Some(path)) => {
            let mut text = String::new();
            let read = File::open(path).and_then(|file| file.take(TOKEN_FILE_MAX).read_to_string(&mut text));
            read.with_context(|| format!("token file {}", path.display()))?;
            Ok(text.trim().to_owned())
        }
        (None, None) => {
            bail!("this machine is not enrolled: give --token or --token-file once (`cvlanctl token create` makes one)")
        }
    }
}

async fn work(mut store: Store, token: Option<String>, settings: &Settings, listener: &UnixListener) -> Result<Exit> {
    let socket = settings.cvland_socket.as_path();
    let (_, plane) = feed::connect(socket).await;
    if let Some(token) = token {
        let about = about(settings, &plane)?;
        match enrol::enrol(&mut store, &token, &about, &mut DataDaemon(socket)).await {
            Ok(()) => {}
            Err(error @ (EnrolError::Refused { .. } | EnrolError::Token(_) | EnrolError::NoUrl)) => {
                tracing::error!("{error}");
                return Ok(Exit::Refused);
            }
            Err(error @ (EnrolError::Store(_) | EnrolError::Crypto(_))) => return Err(error.into()),
        }
    }
    let identity = store.identity()?.context("enrolled, and yet without an identity")?;
    let (live_tx, live) = watch::channel(Live::default());
    let (running_tx, running) = watch::channel(None);
    let (endpoints_tx, endpoints) = watch::channel(endpoints_read(&plane));
    let (plane_tx, planes) = watch::channel(plane);
    let follow_with = Follow {
        door: Door::new(enrol::identity_tls(&identity)?),
        urls: store.urls()?.iter().filter_map(|url| url.parse().ok()).collect(),
        tenant: store.enrolment()?.map(|enrolment| enrolment.tenant_slug).unwrap_or_default(),
        endpoints,
        running,
        live: live_tx,
    };
    let (store, queue) = (RefCell::new(store), RefCell::new(Queue::default()));
    let shared = Shared { store, queue, changed: Notify::new(), live };
    let end = tokio::select! {
        end = follow(follow_with, &shared) => end,
        error = feed::feed(&shared, socket, identity.wg_key, &plane_tx, &running_tx) => End::Store(error),
        never = endpoints_watch(&endpoints_tx, planes) => match never {},
        never = answer(&shared, socket, listener) => match never {},
    };
    match end {
        End::Store(error) => Err(error.into()),
        End::Deleted(detail) => {
            let down = async { Client::connect(socket).await?.call::<_, Reply>(&Request::Down).await };
            if let Err(error) = timeout(QUESTION_MAX, down).await.unwrap_or(Err(IpcError::Timeout)) {
                tracing::warn!("cvland could not be told: {error}");
            }
            let folder = settings.state_dir.display();
            tracing::error!("{detail}; to join again, remove {folder} and start with a new token");
            Ok(Exit::Deleted)
        }
    }
}

/// The data daemon as the holder of the WireGuard key.
struct DataDaemon<'a>(&'a Path);

impl Prover for DataDaemon<'_> {
    async fn prove(&mut self, challenge: Challenge) -> Result<([u8; 32], [u8; 32]), IpcError> {
        match Client::connect(self.0).await?.call(&Request::Prove(challenge)).await? {
            Reply::Proof { public_key, proof } => Ok((public_key, proof)),
            other => Err(IpcError::Malformed(format!("{other:?} where a proof was asked for"))),
        }
    }
}

fn about(settings: &Settings, plane: &Plane) -> Result<About> {
    let system = rustix::system::uname();
    let hostname = settings.hostname.clone().unwrap_or_else(|| system.nodename().to_string_lossy().into_owned());
    Ok(About {
        hostname: hostname.chars().filter(|c| !c.is_control()).take(TEXT_MAX / 4).collect(),
        os: format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy()),
        mac: Ifaces::read()?.mac(),
        endpoints: endpoints_read(plane),
    })
}

fn endpoints_read(plane: &Plane) -> Vec<String> {
    let ifaces = Ifaces::read().inspect_err(|error| tracing::warn!("cannot read the interfaces: {error}"));
    let endpoints = ifaces.unwrap_or_default().endpoints(&plane.ifname, plane.listen_port);
    endpoints.iter().map(ToString::to_string).collect()
}

/// Says where this machine can be reached, again whenever that changes.
async fn endpoints_watch(endpoints: &watch::Sender<Vec<String>>, mut planes: watch::Receiver<Plane>) -> Infallible {
    let mut watch = Watch::new();
    loop {
        tokio::select! {
            () = watch.changed() => {}
            Ok(()) = planes.changed() => {}
        }
        let now = endpoints_read(&planes.borrow_and_update());
        endpoints.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

/// Answers tools, one at a time.
async fn answer(shared: &Shared, socket: &Path, listener: &UnixListener) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if ipc::allowed(&stream) => {
                match timeout(QUESTION_MAX, answer_one(shared, socket, stream)).await {
                    Ok(Ok(())) | Err(_) => {}
                    Ok(Err(error)) => tracing::warn!("ctrl socket: {error}"),
                }
            }
            Ok(_) => tracing::warn!("refused a local connection of another user"),
            Err(error) => {
                tracing::warn!("ctrl socket: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_one(shared: &Shared, socket: &Path, mut stream: UnixStream) -> Result<()> {
    while let Some(CtrlRequest::Status) = ipc::read(&mut stream).await? {
        let mut status = status::of_store(&shared.store.borrow())?;
        status.live_add(&shared.live.borrow());
        status.data_plane_add(socket).await;
        ipc::write(&mut stream, &CtrlReply::Status(serde_json::to_string(&status)?)).await?;
    }
    Ok(())
}

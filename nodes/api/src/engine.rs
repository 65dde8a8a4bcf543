//! A member with its keys and its place in the cluster, without the doors for people and machines.
//!
//! ```text
//!  keys/ ─► join (with a token) ─► own certificate ─► recover the log ─► cluster door ─► first entry, or wait for the log
//! ```
//! A founder begins a log where there is none; whoever joined waits for it and never begins one.

use crate::Log;
use crate::app::now_ms;
use crate::app::views::ViewFeed;
use crate::bootstrap::{self, Ready};
use crate::ca::{Ca, Live};
use crate::cluster::force::force;
use crate::cluster::identity::{IdentityError, certified};
use crate::cluster::join::join;
use crate::cluster::notary::Notary;
use crate::cluster::rebuild;
use crate::cluster::restore;
use crate::cluster::tls::TlsTransport;
use crate::cluster::vault::{Secrets, Vault};
use crate::cluster::voter::{Answers, Routers};
use crate::cluster::{self, Door};
use crate::keys::{FOUNDER, Identity, Keys};
use crate::server::{Options, StartError};
use crate::streams::Streams;
use cvlan_core::Rules;
use cvlan_core::id::MemberId;
use cvlan_raft::{Applied, Disk, Member};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// The only voter must be ready for commands within this after its recovery.
pub const WRITABLE: Duration = Duration::from_secs(30);
/// The log must begin to come to a new member within this.
pub const FIRST_STATE: Duration = Duration::from_secs(60);
/// Between two looks whether it did.
const LOOK: Duration = Duration::from_millis(20);

/// A member of the cluster: what `views rebuild` and `admin reset-password` work on, and what a controller is built on.
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
    /// The way to other members.
    pub transport: TlsTransport,
    /// The certificate that it shows to them.
    pub own: Arc<Live>,
    /// The cluster's keys, where they are here.
    pub vault: Arc<Vault>,
    /// Signs what the log comes to.
    pub notary: Arc<Notary>,
    /// Where the cluster's door finds the others, once they are there.
    pub routers: Arc<OnceLock<Routers>>,
    /// The cluster's door, where there is one.
    pub door: Option<JoinHandle<()>>,
}

/// Where other members reach this one, and the bound listener; tools that work on a folder have none.
pub struct Place {
    /// HOST:PORT.
    pub address: String,
    /// For the cluster's door.
    pub listener: Option<TcpListener>,
}

impl Core {
    /// Opens the log of a folder that this process has locked.
    pub async fn open(options: &Options, disk: Arc<dyn Disk>, place: Place) -> Result<Self, StartError> {
        let Place { address, listener } = place;
        if restore::half_done(&options.data_dir)? {
            return Err(StartError::Restoring);
        }
        let keys = Keys::open(&options.data_dir)?;
        if rebuild::half_done(&keys)? {
            return Err(StartError::Rebuilding);
        }
        let identity = match &options.join_token {
            Some(token) => Some(join(&keys, token, &options.join, &address).await?),
            None if keys.joining()? => return Err(StartError::Joining),
            None => keys.identity()?,
        };
        let member = identity.map_or(FOUNDER, |i| i.member);
        let transport = TlsTransport::default();
        // A founder's first start has no CA yet, and nobody to talk to.
        let ca = if identity.is_some() { ca_kept(&keys)? } else { None };
        let vault = Vault::new(ca.as_ref().map(|ca| Secrets::kept(&keys, ca)).transpose()?.flatten());
        let known = ca.as_ref().map(|ca| identify(&keys, ca, &vault, member, &transport, &address));
        let own = known.transpose()?;

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
        let mut raft = cvlan_raft::Options::single(disk);
        raft.member = member;
        raft.address.clone_from(&address);
        // One whose log is gone begins no other one.
        raft.initialize = member == FOUNDER && !identity.is_some_and(|i| i.settled);
        raft.observers.push(Arc::new(observer));
        raft.limits = options.log_limits.clone();
        if let Some(asked) = options.force {
            let settled = identity.filter(|identity| identity.settled).ok_or(StartError::NothingToForce)?;
            if vault.get().is_none() {
                return Err(StartError::NothingToForceWith);
            }
            force(asked, &keys, settled, &raft).await?;
        }
        let log: Log = Member::open(raft, transport.clone()).await?;
        if options.history_export.is_some() {
            // Nothing goes before it is known what was written.
            log.history_hold(cvlan_core::id::Seq(1));
        }

        let routers = Arc::new(OnceLock::new());
        let notary = match Notary::open(&keys, &options.data_dir, log.clone()) {
            Ok(notary) => notary,
            Err(error) => {
                close(&log, views, None).await;
                return Err(error.into());
            }
        };
        let answers = |own: &Arc<Live>| Answers {
            log: log.clone(),
            keys: keys.clone(),
            vault: vault.clone(),
            own: own.clone(),
            notary: notary.clone(),
            routers: routers.clone(),
        };
        let mut gate = Gate { listener, transport: transport.clone(), door: None };
        if let Some(own) = &own {
            gate.open(answers(own));
        }
        let finished = async {
            let ready = ready(&log, &keys, &vault, identity, &transport).await?;
            let own = match own {
                Some(own) => own,
                None => identify(&keys, &ready.ca, &vault, member, &transport, &address)?,
            };
            gate.open(answers(&own));
            views.start(&log)?;
            Ok::<_, StartError>((ready, own))
        };
        match finished.await {
            Ok((ready, own)) => {
                applied.send_replace(log.head().seq.0);
                let door = gate.door;
                Ok(Self { log, keys, ready, views, streams, applied, transport, own, vault, notary, routers, door })
            }
            Err(error) => {
                close(&log, views, gate.door).await;
                Err(error)
            }
        }
    }

    /// Folds the views, closes the log.
    pub async fn close(self) {
        close(&self.log, self.views, self.door).await;
    }
}

/// First who reads the log, then the log; the cluster's door last: a leader hands over through it.
pub async fn close(log: &Log, views: Arc<ViewFeed>, door: Option<JoinHandle<()>>) {
    let _ = tokio::task::spawn_blocking(move || views.stop()).await;
    log.shutdown().await;
    if let Some(door) = door {
        door.abort();
        // It holds a handle of the log.
        let _ = door.await;
    }
}

/// Opens the cluster's door once, as soon as there is what it needs.
struct Gate {
    listener: Option<TcpListener>,
    transport: TlsTransport,
    door: Option<JoinHandle<()>>,
}

impl Gate {
    fn open(&mut self, answers: Answers) {
        if let Some(listener) = self.listener.take() {
            let door = Door { listener, transport: self.transport.clone(), answers };
            self.door = Some(tokio::spawn(cluster::serve(door)));
        }
    }
}

/// The CA that a member trusts, as it lies in keys/; `None` before the first start of a version that knows members.
pub(crate) fn ca_kept(keys: &Keys) -> Result<Option<Arc<Ca>>, StartError> {
    let Some(pem) = keys.ca_pem()? else { return Ok(None) };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| keys.damaged_ca(e))?;
    Ok(Some(Arc::new(Ca::read(&der)?)))
}

fn identify(
    keys: &Keys,
    ca: &Ca,
    vault: &Vault,
    member: u64,
    transport: &TlsTransport,
    address: &str,
) -> Result<Arc<Live>, StartError> {
    let secrets = vault.get();
    let signer = secrets.as_ref().map(|secrets| &secrets.signer);
    let own = Live::new(certified(keys, ca, signer, member, now_ms())?);
    transport.set(ca.der(), own.clone(), address).map_err(|e| IdentityError::Ca(e.into()))?;
    Ok(own)
}

/// True where no other member takes part: it decides alone, and at once.
pub fn alone(log: &Log, member: u64) -> bool {
    let members = &log.head().members;
    let voters = members.voters.iter().flatten();
    voters.chain(members.addresses.keys()).all(|id| *id == member)
}

async fn ready(
    log: &Log,
    keys: &Keys,
    vault: &Vault,
    identity: Option<Identity>,
    transport: &TlsTransport,
) -> Result<Ready, StartError> {
    let member = identity.map_or(FOUNDER, |i| i.member);
    if identity.is_some_and(|i| i.settled) && log.status().last_index == 0 && !log.is_bootstrapped() {
        return Err(StartError::Lost);
    }
    if alone(log, member) && (member == FOUNDER || log.is_bootstrapped()) {
        if !log.writable(WRITABLE).await {
            return Err(StartError::NotWritable);
        }
    } else {
        let end = Instant::now() + FIRST_STATE;
        // The log may begin with an epoch that the cluster has left.
        let joined = identity.filter(|identity| !identity.settled).map(|identity| identity.epoch);
        while !log.is_bootstrapped() || joined.is_some_and(|epoch| log.head().epoch != epoch) {
            if transport.removed() || log.status().removed {
                return Err(StartError::Removed);
            }
            if Instant::now() >= end {
                return Err(StartError::NoState);
            }
            sleep(LOOK).await;
        }
    }
    let head = log.head();
    if member <= head.seq.0 && !head.machine.members.contains_key(&MemberId(member)) {
        return Err(StartError::Removed);
    }
    Ok(bootstrap::bootstrap(log, keys, vault, now_ms()).await?)
}

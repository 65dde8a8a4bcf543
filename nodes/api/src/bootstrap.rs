//! The first start of a log.
//!
//! ```text
//! keys/cluster, keys/ca.key ─► keys/bootstrap (synced) ─► one entry at seq 1 ─► keys/identity
//!        a restart before that entry repeats it from keys/bootstrap, byte for byte
//! ```
//! Only the password's argon2id hash is in the log; keys/bootstrap keeps the password itself until its first change.

use crate::Log;
use crate::auth::password;
use crate::ca::{Ca, CaError, Signer, ca_make};
use crate::cluster::vault::{Secrets, Vault};
use crate::keys::{BOOTSTRAP, FOUNDER, Identity, Keys, KeysError};
use crate::random::{bytes, uuid};
use cvlan_core::id::{CommandId, Epoch, UserId};
use cvlan_core::seal::{ClusterKey, SealError};
use cvlan_core::system::{Bootstrap, SystemCommand};
use cvlan_core::{Command, Meta, Rejection, Wish};
use cvlan_proto::v1::{self, JwtKey};
use cvlan_raft::WriteError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use x25519_dalek::{PublicKey, StaticSecret};

/// What sealed secrets are for; each opens for its own use alone.
pub mod purpose {
    /// HMAC keys of people's sessions.
    pub const JWT: &str = "cvlan-jwt-v1";
    /// The X25519 key that machines prove their WireGuard key against.
    pub const CHALLENGE: &str = "cvlan-challenge-v1";
    /// Seeds of tenants' token signing keys.
    pub const SIGNING_SEED: &str = "cvlan-signing-seed-v1";
    /// Hashes of requests that came with an `Idempotency-Key`.
    pub const IDEMPOTENCY: &str = "cvlan-idempotency-v1";
}

/// The first superadmin's login name.
pub const ADMIN: &str = "admin";

/// Why a log could not be started, or these keys are not its own.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// keys/ cannot be read or written.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The CA does not work.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A key of the log is not in keys/.
    #[error("keys/{0} is missing, and the log needs it")]
    Missing(&'static str),
    /// keys/ and log/ are of different incarnations.
    #[error("keys/ belong to log {keys}, but the log here is {log}")]
    OtherEpoch {
        /// Of keys/.
        keys: Epoch,
        /// Of log/; all zero where it is empty.
        log: Epoch,
    },
    /// The first entry was not accepted.
    #[error("the first entry of the log could not be written: {0}")]
    Write(WriteError<Rejection>),
    /// A secret could not be made, sealed or opened.
    #[error("{0}")]
    Secret(String),
}

impl From<SealError> for BootstrapError {
    fn from(e: SealError) -> Self {
        Self::Secret(e.to_string())
    }
}

/// The file: everything that the first entry is made of, so that it can be repeated.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapFile {
    /// Login name of the first superadmin.
    pub user: String,
    /// Its password, until it is changed.
    pub password: String,
    admin_id: String,
    password_hash: String,
    command_id: String,
    bootstrapped: v1::Bootstrapped,
}

/// A log that is ready for commands, and what this member needs to serve it.
pub struct Ready {
    /// The certificate authority.
    pub ca: Arc<Ca>,
    /// Present where this start wrote the first entry: to be shown once.
    pub password: Option<String>,
}

/// Writes the first entry where there is none, and takes up the keys: all of them where this member votes, else what is
/// there.
pub async fn bootstrap(log: &Log, keys: &Keys, vault: &Vault, now_ms: u64) -> Result<Ready, BootstrapError> {
    let epoch = log.head().epoch;
    let file: Option<BootstrapFile> = keys.json_read(BOOTSTRAP)?;
    let mut password = None;
    if log.is_bootstrapped() {
        let theirs = match (keys.identity()?, &file) {
            (Some(keys), _) => Some(keys.epoch),
            (None, Some(file)) => Some(epoch_of(file)?),
            (None, None) => None,
        };
        if let Some(theirs) = theirs.filter(|theirs| *theirs != epoch) {
            return Err(BootstrapError::OtherEpoch { keys: theirs, log: epoch });
        }
        if let Some(file) = file {
            forget_changed(log, keys, &file)?;
        }
    } else {
        if let Some(theirs) = keys.identity()? {
            return Err(BootstrapError::OtherEpoch { keys: theirs.epoch, log: epoch });
        }
        let file = match file {
            Some(file) => file,
            None => {
                let file = prepare(keys, now_ms).await?;
                keys.json_write(BOOTSTRAP, &file)?;
                file
            }
        };
        let (epoch, command) = first_command(&file)?;
        log.bootstrap(epoch, command).await.map_err(BootstrapError::Write)?;
        password = Some(file.password);
    }
    let identity = keys.identity()?;
    if identity.is_none_or(|i| !i.settled) {
        let (member, left) = identity.map_or((FOUNDER, None), |i| (i.member, i.left));
        keys.identity_write(&Identity { epoch: log.head().epoch, member, settled: true, left })?;
    }
    let (head, status) = (log.head(), log.status());
    let ca = Arc::new(Ca::read(&head.machine.system.ca_certificate)?);
    match (keys.cluster()?, keys.ca_key()?) {
        (Some(cluster), Some(ca_key)) => vault.set(Secrets { cluster, signer: Signer::open(&ca_key, ca.clone())? }),
        (cluster, _) if head.members.voters.iter().any(|set| set.contains(&status.member)) => {
            return Err(BootstrapError::Missing(if cluster.is_none() { "cluster" } else { "ca.key" }));
        }
        (Some(_) | None, _) => {}
    }
    if keys.ca_pem()?.as_deref() != Some(ca.pem()) {
        keys.ca_pem_write(ca.pem())?;
    }
    Ok(Ready { ca, password })
}

/// A password that was changed is no longer needed in the clear.
pub fn forget_changed(log: &Log, keys: &Keys, file: &BootstrapFile) -> Result<(), KeysError> {
    let head = log.head();
    let user = head.machine.users.get(&UserId::of(&file.admin_id));
    if user.is_some_and(|u| *u.password_hash == *file.password_hash) {
        return Ok(());
    }
    keys.remove(BOOTSTRAP)
}

fn epoch_of(file: &BootstrapFile) -> Result<Epoch, BootstrapError> {
    let mut epoch = [0; 16];
    hex::decode_to_slice(&file.bootstrapped.epoch, &mut epoch)
        .map_err(|e| BootstrapError::Secret(format!("keys/bootstrap: epoch: {e}")))?;
    Ok(Epoch(epoch))
}

async fn prepare(keys: &Keys, now_ms: u64) -> Result<BootstrapFile, BootstrapError> {
    let cluster = match keys.cluster()? {
        Some(key) => key,
        None => {
            let key = ClusterKey { id: hex::encode(bytes::<4>()), key: bytes() };
            keys.cluster_write(&key)?;
            key
        }
    };
    let (ca_key, ca_certificate) = ca_make(now_ms)?;
    keys.ca_key_write(&ca_key)?;
    let challenge = StaticSecret::from(bytes::<32>());
    let password = password::generate();
    let text = password.clone();
    let hashed = tokio::task::spawn_blocking(move || password::hash_now(&text)).await;
    let password_hash = hashed.map_err(|e| BootstrapError::Secret(e.to_string()))?;
    let password_hash = password_hash.map_err(|e| BootstrapError::Secret(e.detail.into_owned()))?;
    Ok(BootstrapFile {
        user: ADMIN.to_owned(),
        password,
        admin_id: uuid().to_string(),
        password_hash,
        command_id: uuid().to_string(),
        bootstrapped: v1::Bootstrapped {
            epoch: hex::encode(bytes::<16>()),
            ca_certificate,
            challenge_public_key: PublicKey::from(&challenge).as_bytes().to_vec(),
            challenge_key: Some(cluster.seal(purpose::CHALLENGE, bytes(), challenge.as_bytes())?),
            jwt_key: Some(JwtKey {
                kid: hex::encode(bytes::<4>()),
                secret: Some(cluster.seal(purpose::JWT, bytes(), &bytes::<32>())?),
            }),
            // The one that leads says what it knows.
            feature_level: 0,
        },
    })
}

fn first_command(file: &BootstrapFile) -> Result<(Epoch, Command), BootstrapError> {
    let b = &file.bootstrapped;
    let damaged = |what: &str| BootstrapError::Secret(format!("keys/bootstrap is damaged: {what}"));
    let epoch = epoch_of(file)?;
    let wish = Bootstrap {
        epoch,
        ca_certificate: b.ca_certificate.clone(),
        challenge_public_key: b.challenge_public_key.as_slice().try_into().map_err(|_| damaged("challenge key"))?,
        challenge_key: b.challenge_key.clone().ok_or_else(|| damaged("challenge key"))?,
        jwt_key: b.jwt_key.clone().ok_or_else(|| damaged("JWT key"))?,
        admin_id: UserId::of(&file.admin_id),
        admin_name: file.user.clone(),
        admin_password_hash: file.password_hash.clone(),
    };
    let meta = Meta { id: CommandId::of(&file.command_id), ..Meta::default() };
    Ok((epoch, Command { meta, wish: Wish::System(SystemCommand::Bootstrap(Box::new(wish))) }))
}

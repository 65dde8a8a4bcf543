//! `cvlan-api rebuild`: a member whose log is damaged or lost, or whose state differs, is taken anew from the others.
//!
//! ```text
//!  folder  keys/rebuild (secret, durable) ─► TLS, own certificate ─► RebuildRequest ──┐
//!  member  still a member, by its key? silent? ─► Raft: removed, unless the quorum     │
//!          would be lost ─► MemberCommand::Rebuild: old id out, same name in, new id ◄─┘
//!  folder  ◄─ JoinResponse ─► keys/rebuild (new id) ─► log/, snapshots/, views.db set aside ─► keys/, identity last
//!  start   as ever: it follows, catches up, and the keeper lets it vote again
//! ```
//! Whoever forgot how it voted must not vote again under its old id: so the id goes, and the name gets another one. The
//! machine's key stays, and is what it proves itself by: no token. Both sides may die at any point: with the secret in
//! keys/rebuild the same question gets the same answer; once there is a new id, nothing starts here before it is done.
//! A copy of the folder has another secret, and is refused. Nothing is deleted.

use super::identity::{IdentityError, certified, own_key};
use super::join::{
    ANSWER_TIME, JoinError, MESSAGE_MAX, QUESTION_TIME, ask, given, gives, message_read, message_write, refused,
};
use super::tls::{REBUILD, client_config};
use super::vault::{Secrets, Vault};
use crate::Log;
use crate::app::now_ms;
use crate::ca::{CaError, Csr, Live, MemberPeer, pem_of};
use crate::doors::rest::reply::rfc3339;
use crate::engine::ca_kept;
use crate::keys::{Identity, Keys, KeysError};
use crate::problem::Problem;
use crate::random::{bytes, uuid};
use crate::start_error::StartError;
use cvlan_core::id::{CommandId, MemberId};
use cvlan_core::member::{MemberCommand, Rebuild, address_check, rebuild as state_of, secret_hash};
use cvlan_core::{Command, Meta, Wish};
use cvlan_proto::v1::{JoinResponse, RebuildRequest};
use cvlan_raft::{FileDisk, MemberError};
use http::StatusCode;
use rcgen::CertificateParams;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// How long the others are asked: a leader may be elected meanwhile.
const ASK_TIME: Duration = Duration::from_secs(20);
/// A member that was heard so lately is not silent, milliseconds.
const SILENT_MS: u64 = 2_500;
/// What a rebuild sets aside, in this order: without log/ the folder is no member's.
const ASIDE: [&str; 8] = ["snapshots", "tiles", "notes", "past", "views.db-wal", "views.db-shm", "views.db", "log"];
/// In keys/.
const FILE: &str = "rebuild";

/// What is asked for.
pub struct Asked<'a> {
    /// The folder.
    pub data: &'a Path,
    /// HOST:PORT where other members shall reach it; `None` = as before.
    pub address: Option<&'a str>,
    /// Whom to ask; empty = where the members were last.
    pub from: &'a [String],
    /// False: only what it would mean.
    pub yes: bool,
}

/// Why a member is not taken anew.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// It was only asked what it would mean.
    #[error("{0}")]
    Look(String),
    /// Nothing says whose folder this is.
    #[error("{0} is no member's folder: there is nothing to rebuild")]
    NoMember(String),
    /// Nobody to ask.
    #[error("no other member is known here")]
    NoAddress,
    /// An address that nobody could connect to.
    #[error("--from: {0}")]
    Address(String),
    /// The others refused.
    #[error("the cluster refused: {detail} ({code})")]
    Refused {
        /// Stable, snake_case.
        code: String,
        /// What happened and what to do.
        detail: String,
    },
    /// A file could not be set aside.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

impl RebuildError {
    /// Stable name; the cluster's own where it gave one.
    pub fn code(&self) -> &str {
        match self {
            Self::Look(_) => "rebuild_not_confirmed",
            Self::NoMember(_) => "folder_no_member",
            Self::NoAddress => "rebuild_without_address",
            Self::Address(_) => "address_invalid",
            Self::Refused { code, .. } => code,
            Self::Io { .. } => "data_folder_io",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Look(_) => "nothing was changed",
            Self::NoMember(_) => "name the member's --data-dir",
            Self::NoAddress => {
                "--from HOST:8445 names one; if this is the only member, nobody has what it lost: restore a backup"
            }
            Self::Address(_) => "--from HOST:8445 names a member",
            Self::Refused { code, .. } => match code.as_str() {
                "quorum_would_be_lost" => {
                    "start the others first: a majority of those that vote must be there without it"
                }
                "last_member" => "restore a backup",
                _ => "`cvlanctl cluster status` shows the members",
            },
            Self::Io { .. } => "check the disk and who may write there, then run it again",
        }
    }
}

/// keys/rebuild.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    /// Random.
    secret: String,
    /// The member whose log is given up.
    from: u64,
    /// Where it is put, in the data folder.
    aside: String,
    /// What it is now, once the others said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
}

/// True where the others know this member under another id than the folder: it must not start.
pub fn half_done(keys: &Keys) -> Result<bool, KeysError> {
    let to = keys.json_read::<Begun>(FILE)?.and_then(|begun| begun.to);
    Ok(to.is_some() && to != keys.identity()?.map(|identity| identity.member))
}

/// Does it, or says what it would mean; `say` is told every step.
pub async fn rebuild(asked: Asked<'_>, say: impl Fn(&str)) -> Result<(), StartError> {
    let no_member = || RebuildError::NoMember(asked.data.display().to_string());
    if !asked.data.join("keys").is_dir() {
        return Err(no_member().into());
    }
    // A second call in one process finds it installed: fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _lock = FileDisk::open(asked.data)?;
    let keys = Keys::open(asked.data)?;
    let (Some(identity), Some(ca)) = (keys.identity()?, ca_kept(&keys)?) else { return Err(no_member().into()) };
    if !identity.settled && !asked.data.join("log").exists() && !half_done(&keys)? {
        // It has not started since.
        return done(&keys, identity.member, &say);
    }
    let begun = keys.json_read::<Begun>(FILE)?.filter(|begun| begun.from == identity.member);
    let mut begun = match begun {
        // Something may be there already.
        Some(begun) if begun.to.is_some() => begun,
        Some(begun) => Begun { aside: fresh(identity.member).aside, ..begun },
        None => fresh(identity.member),
    };
    let addresses = addresses(&asked, &keys, identity.member)?;
    let key = own_key(&keys)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(CaError::from)?;
    let secrets = Secrets::kept(&keys, &ca)?;
    let signer = secrets.as_ref().map(|secrets| &secrets.signer);
    let shown = match (certified(&keys, &ca, signer, identity.member, now_ms()), begun.to) {
        // Killed between the new certificate and the new id.
        (Err(IdentityError::Ended), Some(to)) => certified(&keys, &ca, signer, to, now_ms()),
        (shown, _) => shown,
    };
    let own = Live::new(shown?);
    let tls = client_config(ca.der(), own, REBUILD).map_err(CaError::from)?;
    let request = RebuildRequest {
        epoch: identity.epoch.to_string(),
        secret: begun.secret.clone().into_bytes(),
        csr: csr.der().to_vec(),
        address: asked.address.unwrap_or_default().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        look: !asked.yes,
    };
    if asked.yes {
        keys.json_write(FILE, &begun)?;
    }
    say(&format!("1/4 asking {}", addresses.join(", ")));
    let response = match ask(tls, &addresses, &request, ASK_TIME).await {
        Err(JoinError::Refused { code, detail }) => return Err(RebuildError::Refused { code, detail }.into()),
        answered => answered?,
    };
    if !asked.yes {
        return Err(RebuildError::Look(meaning(asked.data, &identity, &begun, &response)).into());
    }
    let given = given(response.member_id, &ca.spki_sha256(), &key, &response, now_ms())?;
    say(&format!("2/4 {} is member {} now; {} is gone for good", response.name, response.member_id, identity.member));
    begun.to = Some(response.member_id);
    keys.json_write(FILE, &begun)?;
    let aside = asked.data.join(&begun.aside);
    let kept = set_aside(asked.data, &aside)?;
    say(&format!("3/4 {kept} bytes are set aside in {}; delete it once this member votes again", aside.display()));
    given.keep(&keys)?;
    done(&keys, response.member_id, &say)
}

fn done(keys: &Keys, member: u64, say: &impl Fn(&str)) -> Result<(), StartError> {
    keys.remove(FILE)?;
    say(&format!(
        "4/4 member {member} is ready: start cvlan-api as ever; it follows, catches up, and votes again by itself \
         (`cvlanctl cluster status`)"
    ));
    Ok(())
}

fn fresh(from: u64) -> Begun {
    let now: String = rfc3339(now_ms()).chars().take("2000-01-01T00:00:00".len()).collect();
    let aside = format!("set-aside-{}Z", now.replace(':', "-"));
    Begun { secret: hex::encode(bytes::<32>()), from, aside, to: None }
}

fn addresses(asked: &Asked<'_>, keys: &Keys, own: u64) -> Result<Vec<String>, StartError> {
    for address in asked.from {
        address_check(address).map_err(|r| RebuildError::Address(r.detail))?;
    }
    if !asked.from.is_empty() {
        return Ok(asked.from.to_vec());
    }
    let others = keys.members()?.into_iter().filter(|(id, address)| *id != own && !address.is_empty());
    let others: Vec<String> = others.map(|(_, address)| address).collect();
    if others.is_empty() { Err(RebuildError::NoAddress.into()) } else { Ok(others) }
}

fn meaning(data: &Path, identity: &Identity, begun: &Begun, response: &JoinResponse) -> String {
    let bytes: u64 = ASIDE.iter().map(|name| size(&data.join(name))).sum();
    if response.member_id != identity.member {
        return format!(
            "rebuild was begun: {} is member {} now; to finish it: --yes",
            response.name, response.member_id
        );
    }
    format!(
        "rebuild takes {} anew from the other members of {}: member {} is removed for good, its name comes back under \
         another id, and what is here ({bytes} bytes: log, snapshots, views) is set aside in {}; the new log needs as much \
         room beside it. To go on: --yes",
        response.name, identity.epoch, identity.member, begun.aside
    )
}

/// Moves what a rebuild replaces; returns its bytes. What was moved before stays there.
fn set_aside(data: &Path, aside: &Path) -> Result<u64, RebuildError> {
    let failed = |path: &Path| {
        let what = path.display().to_string();
        move |source| RebuildError::Io { what, source }
    };
    fs::create_dir_all(aside).map_err(failed(aside))?;
    for name in ASIDE {
        let from = data.join(name);
        match fs::rename(&from, aside.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&from)(error)),
            Ok(()) | Err(_) => {}
        }
    }
    for folder in [aside, data] {
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
    }
    Ok(ASIDE.iter().map(|name| size(&aside.join(name))).sum())
}

/// Bytes of a file, or of all files in a folder; 0 of what is not there.
fn size(path: &Path) -> u64 {
    let Ok(found) = fs::metadata(path) else { return 0 };
    if !found.is_dir() {
        return found.len();
    }
    fs::read_dir(path).into_iter().flatten().flatten().map(|file| size(&file.path())).sum()
}

/// Serves one member that lost its log.
pub async fn serve(
    log: &Log,
    vault: &Vault,
    peer: MemberPeer,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    source: IpAddr,
) -> io::Result<()> {
    let request: RebuildRequest = timeout(QUESTION_TIME, message_read(&mut stream, MESSAGE_MAX)).await??;
    let (member, look) = (peer.member, request.look);
    let response = match timeout(ANSWER_TIME, anew(log, vault, &peer, request, source)).await {
        Ok(Ok(response)) => response,
        Ok(Err(problem)) => refused(problem.code, &problem.detail),
        Err(_) => refused("no_leader", "the cluster did not decide in time; try again"),
    };
    if !response.refused.is_empty() {
        tracing::warn!(member, %source, code = response.refused, "a rebuild was refused");
    } else if !look {
        tracing::warn!(member, now = response.member_id, %source, "a member was taken anew through here");
    }
    timeout(QUESTION_TIME, message_write(&mut stream, &response)).await??;
    stream.shutdown().await
}

async fn anew(
    log: &Log,
    vault: &Vault,
    peer: &MemberPeer,
    request: RebuildRequest,
    source: IpAddr,
) -> Result<JoinResponse, Problem> {
    // Before anything is removed.
    vault.need_voting(log)?;
    let csr = Csr::read(&pem_of("CERTIFICATE REQUEST", &request.csr))?;
    if csr.key_sha256 != peer.key_sha256 {
        return Err(Problem::invalid("csr_invalid", "the certificate request is of another key than the certificate"));
    }
    if !request.address.is_empty() {
        address_check(&request.address)?;
    }
    let (id, secret_hash) = (MemberId(peer.member), secret_hash(&request.secret));
    log.linearize().await?;
    let head = log.head();
    if request.epoch != head.epoch.to_string() {
        let detail = format!(
            "that folder is of another log: the cluster is in epoch {}, it went on without this member; `cvlanctl cluster \
             add` and an empty --data-dir make a new one",
            head.epoch
        );
        return Err(Problem::new(StatusCode::CONFLICT, "epoch_other", detail));
    }
    if let Rebuild::Due(name) = state_of(&head.machine, id, &peer.key_sha256, &secret_hash)? {
        silent(log, id)?;
        if request.look {
            return Ok(JoinResponse { member_id: id.0, name: name.to_string(), ..JoinResponse::default() });
        }
        if head.members.addresses.contains_key(&id.0) {
            log.member_remove(id.0).await?;
        }
        let (key_sha256, address, version) = (peer.key_sha256, request.address, request.version);
        let wish = MemberCommand::Rebuild { id, key_sha256, secret_hash, address, version };
        let meta = Meta { id: CommandId(uuid()), source: source.to_string(), ..Meta::default() };
        log.write(Command { meta, wish: Wish::Member(wish) }).await?;
        log.linearize().await?;
    }
    let head = log.head();
    match state_of(&head.machine, id, &peer.key_sha256, &secret_hash)? {
        // It has started since, and has promised things: whoever asks knows none of them.
        Rebuild::Done(now) if head.members.voters.iter().any(|set| set.contains(&now.0)) => {
            let detail =
                format!("member {now}, which this one became, votes already: this folder is an old copy of it");
            Err(Problem::new(StatusCode::CONFLICT, "member_rebuilt", detail))
        }
        Rebuild::Done(now) => {
            let name = head.machine.members.get(&now).map(|m| m.name.to_string()).unwrap_or_default();
            Ok(JoinResponse { name, ..gives(log, vault, now, &csr)? })
        }
        Rebuild::Due(_) => Err(MemberError::OutcomeUnknown.into()),
    }
}

/// A member that runs is not one that lost its log.
fn silent(log: &Log, id: MemberId) -> Result<(), Problem> {
    let status = log.status();
    let peer = status.peers.iter().find(|p| p.id == id.0);
    let itself = status.member == id.0;
    if itself || peer.and_then(|p| p.heard_ms).is_some_and(|ms| ms <= SILENT_MS) {
        let detail = format!("member {id} runs, or did a moment ago; stop it first");
        return Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, "member_alive", detail, 3));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvlan_core::id::Epoch;

    #[test]
    fn what_is_set_aside_is_all_there_also_after_a_loss_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let (data, aside) = (dir.path(), dir.path().join("aside"));
        for folder in ["log", "snapshots", "keys"] {
            fs::create_dir(data.join(folder)).unwrap();
            fs::write(data.join(folder).join("a"), folder).unwrap();
        }
        fs::write(data.join("views.db"), "views").unwrap();
        // One that got as far as the views.
        fs::create_dir(&aside).unwrap();
        fs::rename(data.join("snapshots"), aside.join("snapshots")).unwrap();
        let bytes = ("log".len() + "snapshots".len() + "views".len()) as u64;
        for _ in 0..2 {
            assert_eq!(set_aside(data, &aside).unwrap(), bytes);
            assert!(!data.join("log").exists() && !data.join("snapshots").exists() && data.join("keys/a").exists());
        }
        assert_eq!(fs::read(aside.join("log/a")).unwrap(), b"log");
        // Another log is never put over it.
        fs::create_dir(data.join("log")).unwrap();
        fs::write(data.join("log/b"), "new").unwrap();
        assert!(matches!(set_aside(data, &aside), Err(RebuildError::Io { .. })));
        assert_eq!(fs::read(aside.join("log/a")).unwrap(), b"log");
    }

    #[test]
    fn nothing_starts_between_the_new_id_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let is = |member| keys.identity_write(&Identity { epoch: Epoch([3; 16]), member, settled: true, left: None });
        is(6).unwrap();
        assert!(!half_done(&keys).unwrap());
        let mut begun = fresh(6);
        keys.json_write(FILE, &begun).unwrap();
        assert!(!half_done(&keys).unwrap(), "the others may have said nothing, or no");
        begun.to = Some(57);
        keys.json_write(FILE, &begun).unwrap();
        assert!(half_done(&keys).unwrap());
        is(57).unwrap();
        assert!(!half_done(&keys).unwrap(), "it only was not tidied up");
        assert!(begun.aside.starts_with("set-aside-20") && begun.aside.ends_with('Z'), "{}", begun.aside);
    }
}

//! `cvlan-api restore`: a controller out of a backup and a copy of a voter's keys.
//!
//! ```text
//!  backup, read through ─► DATA/.restoring: keys of that member ─► its log, entry by entry ─► a new epoch, it alone ─► DATA
//! ```
//! What was made comes to its place once it is durable, the keys last: a restore that ended on its way leaves nothing that starts,
//! and the next one begins anew. The folder is locked meanwhile, as a controller locks it.

use crate::app::backup::{BackupError, Reader, check, restored as entry_restored};
use crate::cluster::vault::Secrets;
use crate::engine::ca_kept;
use crate::keys::{Identity, Keys, KeysError};
use crate::random::uuid;
use cvlan_core::id::{Epoch, MemberId};
use cvlan_core::log::backup::BackupReport;
use cvlan_core::log::note::Verifier;
use cvlan_core::{Rules, State};
use cvlan_raft::{FileDisk, LogStore, OpenError, Options, restore};
use openraft_rt_tokio::TokioRuntime;
use std::ffi::OsString;
use std::path::Path;

/// Where it is made.
const RESTORING: &str = ".restoring";
/// What a locked folder has.
const LOCK: &str = "lock";
/// What comes to its place before the keys, and is of no use without them.
const BEFORE_KEYS: [&str; 3] = ["log", "snapshots", "tiles"];

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A file of the keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Not all that is needed was kept.
    #[error("{folder} lacks {what}: it is to be a copy of keys/ of a member that voted")]
    Lacks {
        /// The folder that was named.
        folder: String,
        /// The file.
        what: &'static str,
    },
    /// The keys are of another log, or of one who was no member of it.
    #[error("{0}")]
    OtherKeys(String),
    /// There is something already.
    #[error("{0} is not empty: a backup comes into a folder of its own")]
    NotEmpty(String),
    /// The disk.
    #[error("{file}: {source}")]
    Io {
        /// Its path.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
}

/// What came back.
pub struct Restored {
    /// What the backup held.
    pub backup: BackupReport,
    /// As which member it goes on.
    pub member: u64,
    /// The epoch that begins.
    pub epoch: Epoch,
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> RestoreError {
    let file = path.display().to_string();
    move |source| RestoreError::Io { file: file.clone(), source }
}

/// Does it, into a log that `store` keeps. `known`: the voters' keys that must have signed the backup; none = that is not looked at.
pub async fn restored(
    from: &Path,
    kept: &Path,
    data: &Path,
    store: Option<LogStore>,
    known: Vec<Verifier>,
) -> Result<Restored, RestoreError> {
    let identity = identity(kept)?;
    begun(data)?;
    // Before anything is written: a damaged backup changes nothing.
    let path = from.to_owned();
    let checked = tokio::task::spawn_blocking(move || check(&path, known)).await;
    let backup = checked.map_err(|e| io(from)(std::io::Error::other(e)))??;
    let locked = FileDisk::open(data)?;
    let beside = data.join(RESTORING);
    // What another one may have begun until then.
    for name in begun(data)? {
        removed(&data.join(name))?;
    }
    removed(&beside)?;
    let made = make((from, kept), &beside, store, identity.member, &backup).await;
    let moved = made.and_then(|epoch| settle(&beside, data).map(|()| epoch));
    if moved.is_err()
        && let Ok(names) = begun(data)
    {
        names.iter().try_for_each(|name| removed(&data.join(name)))?;
    }
    // It has keys, and goes last: what is beside it is known by it.
    removed(&beside)?;
    drop(locked);
    Ok(Restored { backup, member: identity.member, epoch: moved? })
}

/// A restore into this folder has begun, and has not finished. One that came to its end but for an empty folder has.
pub fn half_done(data: &Path) -> Result<bool, RestoreError> {
    let beside = data.join(RESTORING);
    if names(&beside)?.iter().any(|name| name != LOCK) || (beside.is_dir() && !data.join("keys").is_dir()) {
        return Ok(true);
    }
    removed(&beside).map(|()| false)
}

/// What is in a folder; nothing where there is none.
fn names(folder: &Path) -> Result<Vec<OsString>, RestoreError> {
    match std::fs::read_dir(folder) {
        Ok(found) => found.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>().map_err(io(folder)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(io(folder)(e)),
    }
}

/// What an earlier restore that did not finish has brought to its place already; an error where there is anything else.
fn begun(data: &Path) -> Result<Vec<OsString>, RestoreError> {
    let there = names(data)?;
    let again = there.iter().any(|name| name == RESTORING);
    let moved = |name: &OsString| again && BEFORE_KEYS.iter().any(|moved| name == moved);
    // A file system of its own has its folder too.
    let own = |name: &OsString| name == RESTORING || name == LOCK || name == "lost+found";
    match there.iter().all(|name| own(name) || moved(name)) {
        true => Ok(there.into_iter().filter(moved).collect()),
        false => Err(RestoreError::NotEmpty(data.display().to_string())),
    }
}

fn removed(folder: &Path) -> Result<(), RestoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(folder)(e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A member's folder, whole.
async fn make(
    (from, kept): (&Path, &Path),
    folder: &Path,
    store: Option<LogStore>,
    member: u64,
    backup: &BackupReport,
) -> Result<Epoch, RestoreError> {
    std::fs::create_dir(folder).map_err(io(folder))?;
    let keys = keys_copy(kept, folder)?;
    let other = |e: &dyn std::fmt::Display| RestoreError::OtherKeys(format!("the keys do not fit each other: {e}"));
    let ca = ca_kept(&keys).map_err(|e| other(&e))?.ok_or_else(|| lacks(kept, "ca.pem"))?;
    let secrets = Secrets::kept(&keys, &ca).map_err(|e| other(&e))?.ok_or_else(|| lacks(kept, "cluster"))?;
    let epoch = Epoch(uuid().into_bytes());
    let mut options = Options::<Rules>::single(LogStore::open(store, folder)?);
    options.member = member;
    let mut reader = Reader::open(from, Vec::new())?;
    let base = reader.base()?;
    let next = || Ok(reader.entry().map_err(std::io::Error::other)?.map(entry_restored));
    let fits = |state: &State| {
        if state.system.ca_certificate != ca.der().to_vec() || !secrets.open(state) {
            return Err("these keys are of another cluster than the backup".to_owned());
        }
        match state.members.contains_key(&MemberId(member)) {
            true => Ok(()),
            false => Err(format!("these keys are of member {member}, which was none when the backup was made")),
        }
    };
    let forced = match restore::<Rules, TokioRuntime>(&options, base, next, fits, epoch).await {
        Err(OpenError::Incomplete(why)) => return Err(RestoreError::OtherKeys(why)),
        done => done?,
    };
    if (forced.done, forced.seq.0) != (true, backup.events) {
        let what = format!(
            "the log ends at event {} of {}: entries in it continue another history",
            forced.seq, backup.events
        );
        return Err(RestoreError::Log(OpenError::Incomplete(what)));
    }
    keys.identity_write(&Identity { epoch, member, settled: true, left: None })?;
    Ok(epoch)
}

/// Everything to its place, the keys last: without them nothing starts.
fn settle(beside: &Path, data: &Path) -> Result<(), RestoreError> {
    // The folder has a lock of its own, which is held.
    let mut names: Vec<_> = names(beside)?.into_iter().filter(|name| name != LOCK).collect();
    names.sort_by_key(|name| name == "keys");
    let synced = || std::fs::File::open(data).and_then(|folder| folder.sync_all()).map_err(io(data));
    for name in names {
        synced()?;
        std::fs::rename(beside.join(&name), data.join(&name)).map_err(io(data))?;
    }
    synced()
}

fn lacks(folder: &Path, what: &'static str) -> RestoreError {
    RestoreError::Lacks { folder: folder.display().to_string(), what }
}

/// Whose copy it is.
fn identity(folder: &Path) -> Result<Identity, RestoreError> {
    Keys::of(folder).identity()?.ok_or_else(|| lacks(folder, "identity"))
}

/// What a member cannot make again.
fn keys_copy(folder: &Path, data: &Path) -> Result<Keys, RestoreError> {
    let (from, to) = (Keys::of(folder), Keys::open(data)?);
    to.cluster_write(&from.cluster()?.ok_or_else(|| lacks(folder, "cluster"))?)?;
    to.ca_key_write(&from.ca_key()?.ok_or_else(|| lacks(folder, "ca.key"))?)?;
    to.ca_pem_write(&from.ca_pem()?.ok_or_else(|| lacks(folder, "ca.pem"))?)?;
    to.member_key_write(&from.member_key()?.ok_or_else(|| lacks(folder, "member.key"))?)?;
    if let Some(seed) = from.note_key()? {
        to.note_key_write(&seed)?;
    }
    Ok(to)
}

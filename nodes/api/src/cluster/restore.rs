//! `cvlan-api restore`: a controller out of a backup and a copy of a voter's keys.
//!
//! ```text
//!  backup, read through ─► NAME.restoring: keys of that member ─► its log, entry by entry ─► a new epoch, it alone ─► NAME
//! ```
//! The folder gets its name once everything in it is durable: a restore that ended on its way left nothing behind that starts.

use crate::app::backup::{BackupError, Reader, check, restored as entry_restored};
use crate::engine::ca_kept;
use crate::keys::{Identity, Keys, KeysError};
use crate::random::uuid;
use crate::start_error::StartError;
use cvlan_core::id::{Epoch, MemberId};
use cvlan_core::log::backup::BackupReport;
use cvlan_core::log::note::Verifier;
use cvlan_core::{Rules, State};
use cvlan_raft::{FileDisk, OpenError, Options, restore};
use openraft_rt_tokio::TokioRuntime;
use std::path::{Path, PathBuf};

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

/// Does it. `known`: the voters' keys that must have signed the backup; none = that is not looked at.
pub async fn restored(from: &Path, kept: &Path, data: &Path, known: Vec<Verifier>) -> Result<Restored, RestoreError> {
    match std::fs::read_dir(data).map(|mut found| found.next().is_some()) {
        Ok(true) => return Err(RestoreError::NotEmpty(data.display().to_string())),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(data)(e)),
        Ok(false) | Err(_) => {}
    }
    let member = identity(kept)?.member;
    // Before anything is written: a damaged backup changes nothing.
    let path = from.to_owned();
    let checked = tokio::task::spawn_blocking(move || check(&path, known)).await;
    let backup = checked.map_err(|e| io(from)(std::io::Error::other(e)))??;

    let beside = beside(data);
    match std::fs::remove_dir_all(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&beside)(e)),
        Ok(()) | Err(_) => {}
    }
    std::fs::create_dir_all(&beside).map_err(io(&beside))?;
    let keys = keys_copy(kept, &beside)?;
    let ca = ca_kept(&keys).map_err(|e: StartError| RestoreError::OtherKeys(e.to_string()))?;
    let ca = ca.map(|ca| ca.der().to_vec()).unwrap_or_default();
    let epoch = Epoch(uuid().into_bytes());
    let disk = FileDisk::open(&beside)?;
    let mut options = Options::<Rules>::single(disk);
    options.member = member;
    let mut reader = Reader::open(from, Vec::new())?;
    let next = || Ok(reader.entry().map_err(std::io::Error::other)?.map(entry_restored));
    let fits = |state: &State| {
        if state.system.ca_certificate != ca {
            return Err("these keys are of another cluster than the backup".to_owned());
        }
        match state.members.contains_key(&MemberId(member)) {
            true => Ok(()),
            false => Err(format!("these keys are of member {member}, which was none when the backup was made")),
        }
    };
    match restore::<Rules, TokioRuntime>(&options, next, fits, epoch).await {
        Err(OpenError::Incomplete(why)) => return Err(RestoreError::OtherKeys(why)),
        done => drop(done?),
    }
    // Without its lock.
    drop(options);
    keys.identity_write(&Identity { epoch, member, settled: true, left: None })?;
    // One that is there is empty.
    match std::fs::remove_dir(data) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(data)(e)),
        Ok(()) | Err(_) => {}
    }
    std::fs::rename(&beside, data).map_err(io(data))?;
    let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(io(parent))?;
    Ok(Restored { backup, member, epoch })
}

fn beside(data: &Path) -> PathBuf {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    data.with_file_name(name)
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

//! Why a controller does not start, and what to do about it.

use crate::bootstrap::BootstrapError;
use crate::ca::CaError;
use crate::cluster::identity::IdentityError;
use crate::cluster::join::JoinError;
use crate::cluster::rebuild::RebuildError;
use crate::cluster::restore::RestoreError;
use crate::engine::{FIRST_STATE, WRITABLE};
use crate::keys::KeysError;
use crate::problem::Problem;
use cvlan_raft::OpenError;
use std::net::SocketAddr;

/// Why a controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log's folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Keys, CA, first entry.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// It could not become a member.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// A join was begun in this folder and did not finish.
    #[error("this folder has begun to join a cluster, and has not finished")]
    Joining,
    /// A rebuild was begun in this folder and did not finish.
    #[error("a rebuild of this folder was begun, and has not finished")]
    Rebuilding,
    /// A restore was begun in this folder and did not finish.
    #[error("a restore into this folder was begun, and has not finished: what is here is no whole controller")]
    Restoring,
    /// It could not be seen whether one was.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// It is not taken anew.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// What it proves itself with.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Nothing of the log came.
    #[error("no member sent the log within {} s", FIRST_STATE.as_secs())]
    NoState,
    /// Its log was there and is not any more.
    #[error("this member's log is gone; one that forgot how it voted must not vote again")]
    Lost,
    /// It was removed from the cluster.
    #[error("this member was removed from the cluster")]
    Removed,
    /// It follows, and so it has no keys to go on alone with.
    #[error("--force-new-cluster: this member never voted, and does not have the cluster's keys")]
    NothingToForceWith,
    /// What going on alone means, or why it does not go.
    #[error("{0}")]
    Force(String),
    /// There is no log to go on with.
    #[error("--force-new-cluster: this folder has no log of a cluster yet")]
    NothingToForce,
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
                OpenError::OtherStore { .. } => {
                    "leave --log-store out, or name the one that keeps it; only a new log can have another: `cvlan-api \
                     rebuild`, or a backup restored into an empty folder"
                }
                OpenError::WrongEpoch { .. } => {
                    "log/ and snapshots/ were taken from different controllers; put back what belongs together"
                }
                OpenError::Lost => Self::Lost.hint(),
                OpenError::Damaged { .. } | OpenError::Incomplete(_) => {
                    "nothing was changed; `cvlan-api rebuild` with this --data-dir takes this member anew from the \
                     others; where there are none, restore a backup"
                }
                OpenError::Unreadable { .. } => {
                    "nothing was changed; start the version that wrote it, or, where that is the one, `cvlan-api rebuild` \
                     takes this member anew from the others"
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
            Self::Join(e) => e.hint(),
            Self::Joining => "start it again with the same --join-token, or use an empty --data-dir",
            Self::Identity(IdentityError::Ended) => {
                "it was away for too long: `cvlanctl cluster remove` and `add` it, and join with an empty --data-dir"
            }
            Self::Identity(_) => "put the file back from the backup of keys/, or check who may read it",
            Self::NoState => "are the other members up, and does --advertise-cluster reach this one from there?",
            Self::Lost => {
                "`cvlan-api rebuild` with this --data-dir takes it anew from the others; where there are none, restore a \
                 backup"
            }
            Self::Rebuilding => "`cvlan-api rebuild --yes` with this --data-dir finishes it",
            Self::Restoring => {
                "`cvlan-api restore` with the same backup, keys and --data-dir begins anew and finishes it; nothing else is lost"
            }
            Self::Restore(_) => "check the disk and who may read there",
            Self::Rebuild(e) => e.hint(),
            Self::Removed => {
                "its --data-dir can be deleted; `cvlanctl cluster add` and an empty one make it a new member"
            }
            Self::Force(_) => "where a majority can still be started, start it instead: then nothing is lost",
            Self::NothingToForce => "use it on a member of the cluster whose majority is lost",
            Self::NothingToForceWith => {
                "use it on a member that votes, or put cluster and ca.key of one that did into this member's keys/"
            }
            Self::Views(_) => "delete views.db: it is rebuilt from the log",
            Self::Setup(_) | Self::Refused(_) => "run with RUST_LOG=debug and look at the log",
            Self::NotWritable => "is the disk full? `cvlan-api log stats` shows the log",
        }
    }
}

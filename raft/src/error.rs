//! Errors of the public handle, each with a stable `code()`.

use crate::disk::LogStore;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::machine::Unreadable;
use serde::{Deserialize, Serialize};
use std::fmt::{Debug, Display};

/// Why a data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the data folder {folder} is locked by another process")]
    Locked {
        /// Its path.
        folder: String,
    },
    /// A newer version wrote it.
    #[error("{what} has format {found}; this version knows formats up to {known}: start the newer version again")]
    Newer {
        /// File or record.
        what: String,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// It belongs to another member.
    #[error("the data folder belongs to member {found}, not to member {expected}")]
    WrongMember {
        /// Who wrote it.
        found: u64,
        /// Who opens it.
        expected: u64,
    },
    /// Another store keeps its log.
    #[error("the log in this data folder is kept by {found}, not by {asked}")]
    OtherStore {
        /// What keeps it.
        found: LogStore,
        /// What opens it.
        asked: LogStore,
    },
    /// A snapshot is of another incarnation of the log than the log itself.
    #[error("snapshot {snapshot} is of epoch {found}, the log of epoch {expected}: they do not belong together")]
    WrongEpoch {
        /// The last event in it.
        snapshot: Seq,
        /// Its epoch.
        found: Epoch,
        /// The log's epoch.
        expected: Epoch,
    },
    /// A file that was written and synced cannot be read back as it was.
    #[error("{record} is damaged: {detail}")]
    Damaged {
        /// File, offset and record.
        record: String,
        /// What is wrong.
        detail: String,
    },
    /// There are snapshots, and a log that never held anything: what it was is gone, and with it how this member voted.
    #[error("this member's log is gone; one that forgot how it voted must not vote again")]
    Lost,
    /// Files are missing or do not belong together.
    #[error("the data folder is not whole: {0}")]
    Incomplete(String),
    /// An event of a kind that this version does not know, or a state that it cannot read.
    #[error("{record}: {source}")]
    Unreadable {
        /// Where it is.
        record: String,
        /// What it is.
        source: Unreadable,
    },
    /// The disk.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Raft did not start.
    #[error("raft did not start: {0}")]
    Raft(String),
}

impl OpenError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "data_folder_locked",
            Self::Newer { .. } => "data_folder_newer",
            Self::WrongMember { .. } => "data_folder_other_member",
            Self::OtherStore { .. } => "data_folder_other_store",
            Self::WrongEpoch { .. } => "data_folder_other_epoch",
            Self::Damaged { .. } => "data_folder_damaged",
            Self::Lost => "data_folder_log_gone",
            Self::Incomplete(_) => "data_folder_incomplete",
            Self::Unreadable { .. } => "data_folder_unreadable",
            Self::Io { .. } => "data_folder_io",
            Self::Raft(_) => "raft_not_started",
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Why a command was not carried out, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum WriteError<R: Debug + Display> {
    /// The machine refused it; nothing was appended.
    #[error("{0}")]
    Rejected(R),
    /// The queue is full; nothing was appended.
    #[error("too many commands are waiting")]
    Busy,
    /// Nobody leads, or the leader cannot be reached; nothing was appended.
    #[error("there is no leader")]
    NoLeader,
    /// It was sent to a leader that was lost before it answered, or its number is older than what is remembered; it is
    /// not run again.
    #[error("whether the command was carried out is not known")]
    OutcomeUnknown,
    /// Its events are longer than an entry may be; nothing was appended.
    #[error("the command makes {bytes} bytes of events, of at most {limit}")]
    TooLarge {
        /// Bytes of its events.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The log has no room to grow; nothing was appended.
    #[error("the disk is full")]
    DiskFull,
    /// This replica's state differs from the leader's: it serves no more.
    #[error("the state of this member differs from the leader's")]
    Diverged,
    /// The first entry of a log brings its epoch; nothing was appended.
    #[error("the log is not bootstrapped")]
    NotBootstrapped,
    /// The log has its first entry; nothing was appended.
    #[error("the log is bootstrapped already")]
    AlreadyBootstrapped,
    /// This member was removed from the cluster; nothing was appended.
    #[error("this member was removed from the cluster")]
    Removed,
    /// The member stopped meanwhile; the command may have been carried out.
    #[error("the member has stopped")]
    Stopped,
    /// The member that decides does not take such a command from the one that sent it; nothing was appended.
    #[error("{command} is not taken from member {member}")]
    NotAllowed {
        /// Who sent it.
        member: u64,
        /// What kind of command.
        command: String,
    },
}

impl<R: Debug + Display> WriteError<R> {
    /// Stable name; a rejection has its own in the machine.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rejected(_) => "rejected",
            Self::Busy => "busy",
            Self::NoLeader => "no_leader",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::TooLarge { .. } => "too_large",
            Self::DiskFull => "disk_full",
            Self::Diverged => "diverged",
            Self::NotBootstrapped => "not_bootstrapped",
            Self::AlreadyBootstrapped => "already_bootstrapped",
            Self::Removed => "member_removed",
            Self::Stopped => "stopped",
            Self::NotAllowed { .. } => "member_not_allowed",
        }
    }
}

/// Why the cluster was not changed, or could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MemberError {
    /// Nobody leads, or the leader cannot be reached.
    #[error("there is no leader")]
    NoLeader,
    /// It is no member.
    #[error("there is no member {0}")]
    Unknown(u64),
    /// It has not caught up: it must not vote yet.
    #[error("member {id} is {behind} entries behind")]
    Behind {
        /// Which.
        id: u64,
        /// Entries of the leader's log that it lacks.
        behind: u64,
    },
    /// It does not vote, so it cannot lead.
    #[error("member {0} is no voter")]
    NotVoter(u64),
    /// Those who would be left to vote, and can be reached, are no majority.
    #[error("without member {0} too few voters that can be reached are left to decide")]
    Quorum(u64),
    /// Changes of membership go one by one.
    #[error("another change of the membership is in progress")]
    InProgress,
    /// It is empty, or longer than 255 bytes.
    #[error("a member's address has 1 to 255 bytes")]
    Address,
    /// The leader was lost before it answered: the change may have been made.
    #[error("whether the change was made is not known")]
    OutcomeUnknown,
    /// What was asked for did not come about in time; it may yet.
    #[error("it did not come about in time")]
    TimedOut,
    /// This member was removed from the cluster.
    #[error("this member was removed from the cluster")]
    Removed,
    /// The member has stopped.
    #[error("the member has stopped")]
    Stopped,
    /// The member that asked does not vote.
    #[error("member {0} does not vote: it has no say in who does")]
    NotAllowed(u64),
}

impl MemberError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoLeader => "no_leader",
            Self::Unknown(_) => "member_unknown",
            Self::Behind { .. } => "member_behind",
            Self::NotVoter(_) => "member_not_voter",
            Self::Quorum(_) => "quorum_would_be_lost",
            Self::InProgress => "change_in_progress",
            Self::Address => "member_address",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::TimedOut => "timed_out",
            Self::Removed => "member_removed",
            Self::Stopped => "stopped",
            Self::NotAllowed(_) => "member_not_allowed",
        }
    }
}

/// Why there is no snapshot on disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It could not be written; only memory has it.
    #[error("the snapshot could not be written: {0}")]
    NotWritten(String),
    /// The member has stopped.
    #[error("the member has stopped")]
    Stopped,
}

impl SnapshotError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotWritten(_) => "snapshot_not_written",
            Self::Stopped => "stopped",
        }
    }
}

/// Why history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Events before `first` are gone from this member.
    #[error("history starts at event {first}")]
    Gone {
        /// The oldest event here.
        first: Seq,
    },
    /// A record is damaged, or the disk failed.
    #[error("{0}")]
    Damaged(String),
    /// The member stopped.
    #[error("the member has stopped")]
    Stopped,
}

impl HistoryError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "history_gone",
            Self::Damaged(_) => "history_damaged",
            Self::Stopped => "stopped",
        }
    }
}

/// What a replay of the log found wrong.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The folder cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// History cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// An entry is not what it should be.
    #[error("entry {index} (event {seq}): {detail}")]
    Entry {
        /// Its place in the Raft log.
        index: u64,
        /// The event that was due.
        seq: Seq,
        /// What is wrong.
        detail: String,
    },
}

impl VerifyError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Open(error) => error.code(),
            Self::History(error) => error.code(),
            Self::Entry { .. } => "entry_wrong",
        }
    }
}

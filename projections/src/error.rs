//! What can go wrong with a view.

use cvlan_core::id::Seq;

/// Why a view could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database said no.
    #[error("view: {0}")]
    Sql(#[from] rusqlite::Error),
    /// PostgreSQL said no, or nothing.
    #[error("PostgreSQL: {0}")]
    Postgres(String),
    /// The URL of a PostgreSQL database is none. Its text is not repeated: a password may be in it.
    #[error("the URL of the PostgreSQL view: {0}; it is postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    Url(String),
    /// Another member writes the view.
    #[error("another member writes the view")]
    Standby,
    /// The view is further than this member.
    #[error("the view is at event {there}, this member at {here}: a member that is further writes it")]
    Ahead {
        /// Where the view is.
        there: Seq,
        /// Where this member is.
        here: Seq,
    },
    /// The view is of another log, and this member does not lead.
    #[error("the view is of another epoch; the member that leads replaces it")]
    Foreign,
    /// A value that no column of that kind has.
    #[error("a column of the view holds {0}")]
    Column(&'static str),
    /// The file could not be replaced.
    #[error("view file: {0}")]
    File(#[from] std::io::Error),
    /// All read connections were in use for too long, or the view is being rebuilt.
    #[error("the view is busy or being rebuilt; try again")]
    Busy,
    /// The view moved under its writer: two processes write it.
    #[error("the view was changed by another writer")]
    Fenced,
    /// Events are missing before the ones that were given.
    #[error("the view needs event {needed} next, not {given}")]
    Gap {
        /// The event after the view's checkpoint.
        needed: Seq,
        /// The first event that was given.
        given: Seq,
    },
    /// The log did not give the events that the view needs.
    #[error("the log: {0}")]
    Log(String),
    /// The cursor is not one that this list has given.
    #[error("the cursor is not one of this list; leave it out to start from the beginning")]
    Cursor,
    /// The list cannot be sorted by that.
    #[error("this list cannot be sorted by {sort:?}; use one of {known}, with - in front for descending")]
    Sort {
        /// What was asked for.
        sort: String,
        /// What there is.
        known: String,
    },
    /// The list has no such filter, or the filter no such value.
    #[error("this list cannot be filtered by {filter} = {value:?}")]
    Filter {
        /// Name of the filter.
        filter: &'static str,
        /// What was asked for.
        value: String,
    },
    /// The search text is too long.
    #[error("the search text is longer than {0} bytes")]
    Search(usize),
}

impl Error {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Sql(_) | Self::File(_) | Self::Postgres(_) | Self::Column(_) => "view_failed",
            Self::Url(_) => "view_url_invalid",
            Self::Standby => "view_standby",
            Self::Ahead { .. } => "view_ahead",
            Self::Foreign => "view_foreign",
            Self::Busy => "view_busy",
            Self::Fenced => "view_fenced",
            Self::Gap { .. } => "view_gap",
            Self::Log(_) => "view_behind",
            Self::Cursor => "cursor_invalid",
            Self::Sort { .. } => "sort_invalid",
            Self::Filter { .. } => "filter_invalid",
            Self::Search(_) => "search_too_long",
        }
    }

    /// True where the caller's request is at fault, not the view.
    pub fn is_request(&self) -> bool {
        match self {
            Self::Cursor | Self::Sort { .. } | Self::Filter { .. } | Self::Search(_) => true,
            Self::Sql(_) | Self::File(_) | Self::Busy | Self::Fenced | Self::Gap { .. } | Self::Log(_) => false,
            Self::Postgres(_) | Self::Url(_) | Self::Column(_) => false,
            Self::Standby | Self::Ahead { .. } | Self::Foreign => false,
        }
    }

    /// True where the file itself is damaged: it is thrown away and rebuilt.
    pub(crate) fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Sql(e) => matches!(e.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
            Self::File(_) | Self::Busy | Self::Fenced | Self::Gap { .. } | Self::Log(_) => false,
            Self::Postgres(_) | Self::Url(_) | Self::Column(_) => false,
            Self::Standby | Self::Ahead { .. } | Self::Foreign => false,
            Self::Cursor | Self::Sort { .. } | Self::Filter { .. } | Self::Search(_) => false,
        }
    }
}

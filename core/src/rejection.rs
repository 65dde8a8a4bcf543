//! Why a command was refused: a stable code for programs, a sentence for people, a kind for the door's status.

use std::fmt;

/// What sort of refusal; REST maps it to a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 400: the request itself is wrong.
    Invalid,
    /// 401: not proven who asks.
    Unproven,
    /// 403: known, but may not.
    Forbidden,
    /// 404: not there, or another tenant's, which is the same.
    NotFound,
    /// 409: against what is there now.
    Conflict,
    /// 412: the thing changed since it was read.
    Stale,
}

/// A refusal. Nothing was appended to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What sort.
    pub kind: Kind,
    /// Stable, snake_case.
    pub code: &'static str,
    /// What happened and what to do.
    pub detail: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Rejection {}

macro_rules! kinds {
    ($($name:ident $kind:ident),*) => {
        impl Rejection {$(
            #[doc = concat!("A refusal of kind [`Kind::", stringify!($kind), "`].")]
            pub fn $name(code: &'static str, detail: impl Into<String>) -> Self {
                Self { kind: Kind::$kind, code, detail: detail.into() }
            }
        )*}
    };
}
kinds!(invalid Invalid, unproven Unproven, forbidden Forbidden, not_found NotFound, conflict Conflict, stale Stale);

//! Why a command was refused: a stable code for programs, a sentence for people, a kind for the door's status.

use crate::id::Seq;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// What sort of refusal; REST maps it to a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// 422: sound in itself, but its `Idempotency-Key` was used for something else.
    Unprocessable,
    /// 429: too much of it is kept.
    Full,
    /// It was carried out before, as this event: the door gives that answer again.
    Repeated(Seq),
}

/// A refusal. Nothing was appended to the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// Codes that have come from other members.
static CODES: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// So many are told apart, of so many bytes at most: more than there are, and a bound.
const CODES_MAX: (usize, usize) = (1024, 64);

impl<'de> Deserialize<'de> for Rejection {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (kind, text, detail) = <(Kind, String, String)>::deserialize(from)?;
        Ok(Self { kind, code: code(text), detail })
    }
}

/// A code is static text, also one that another member sent.
fn code(code: String) -> &'static str {
    let mut codes = CODES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = codes.get(code.as_str()) {
        return known;
    }
    if codes.len() >= CODES_MAX.0 || code.len() > CODES_MAX.1 {
        return "rejected";
    }
    let kept: &'static str = Box::leak(code.into_boxed_str());
    codes.insert(kept);
    kept
}

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

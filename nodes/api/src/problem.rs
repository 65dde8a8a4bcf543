//! Errors as everyone outside sees them: RFC 9457 `application/problem+json` with a stable code, and what to do.

use cvlan_core::Rejection;
use cvlan_core::map::Refusal;
use cvlan_core::rejection::Kind;
use cvlan_proto::v1;
use cvlan_raft::{HistoryError, MemberError, VerifyError, WriteError};
use http::StatusCode;
use std::borrow::Cow;

/// An answer that is not success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable, snake_case.
    pub code: &'static str,
    /// What happened and what to do.
    pub detail: Cow<'static, str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// Methods that the path takes (405).
    pub allow: Option<String>,
}

impl Problem {
    /// A problem.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, allow: None }
    }

    /// 400.
    pub fn invalid(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401.
    pub fn unproven(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }

    /// 404.
    pub fn not_found(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 405, with the methods that the path takes.
    pub fn method_not_allowed(path: &str, takes: String) -> Self {
        let detail = format!("{path} takes {takes}");
        Self { allow: Some(takes), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail) }
    }

    /// 429 or 503: later.
    pub fn later(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(status, code, detail) }
    }

    /// 500: a fault of ours. What it was goes to the log, not to the caller.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        tracing::error!("internal error: {what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the controller failed; its log says why")
    }

    /// The body.
    pub fn to_proto(&self) -> v1::Problem {
        v1::Problem {
            r#type: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: u32::from(self.status.as_u16()),
            detail: self.detail.to_string(),
            code: self.code.to_owned(),
        }
    }
}

impl From<Rejection> for Problem {
    fn from(r: Rejection) -> Self {
        let status = match r.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Unproven => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            // Repeated: the door gives the first answer again; where it cannot, this is what it was.
            Kind::Conflict | Kind::Repeated(_) => StatusCode::CONFLICT,
            Kind::Stale => StatusCode::PRECONDITION_FAILED,
            Kind::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Full => StatusCode::TOO_MANY_REQUESTS,
        };
        Self::new(status, r.code, r.detail)
    }
}

impl From<Refusal> for Problem {
    fn from(r: Refusal) -> Self {
        let status = match r {
            Refusal::Deleted => StatusCode::UNAUTHORIZED,
            Refusal::Disabled => StatusCode::FORBIDDEN,
        };
        Self::new(status, r.code(), r.detail())
    }
}

impl From<WriteError<Rejection>> for Problem {
    fn from(e: WriteError<Rejection>) -> Self {
        let unavailable = |code, detail: &'static str| Self::later(StatusCode::SERVICE_UNAVAILABLE, code, detail, 1);
        match e {
            WriteError::Rejected(r) => r.into(),
            WriteError::Busy => unavailable("busy", "too many writes are waiting; try again"),
            WriteError::NoLeader => {
                unavailable("no_leader", "the cluster has no leader now; nothing was written, try again")
            }
            WriteError::OutcomeUnknown => {
                unavailable("outcome_unknown", "whether this was carried out is not known; look before you repeat it")
            }
            WriteError::TooLarge { bytes, limit } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("this makes {bytes} bytes of events, of at most {limit}; split it"),
            ),
            WriteError::DiskFull => {
                unavailable("disk_full", "the controller's disk is full; nothing was written, make room and try again")
            }
            WriteError::Diverged => unavailable(
                "diverged",
                "this member's state differs from the leader's; ask another member, and rebuild this one (`cvlan-api rebuild`)",
            ),
            WriteError::Removed => {
                unavailable("member_removed", "this member was removed from the cluster; ask another member")
            }
            WriteError::NotBootstrapped | WriteError::AlreadyBootstrapped => Self::internal(e),
            WriteError::NotAllowed { .. } => {
                unavailable("member_not_allowed", "this member may not have that done; ask one that votes")
            }
            WriteError::Stopped => {
                unavailable("stopping", "this member stops; ask again, and look whether it was carried out")
            }
        }
    }
}

impl From<MemberError> for Problem {
    fn from(e: MemberError) -> Self {
        let unavailable = |code, detail: &'static str| Self::later(StatusCode::SERVICE_UNAVAILABLE, code, detail, 1);
        let (code, detail) = (e.code(), format!("{e}; `cvlanctl cluster status` shows the members"));
        match e {
            MemberError::NoLeader => unavailable(code, "the cluster has no leader now; nothing was done, try again"),
            MemberError::Unknown(_) => Self::not_found("member_not_found", detail),
            MemberError::Behind { .. } | MemberError::NotVoter(_) | MemberError::Quorum(_) => {
                Self::new(StatusCode::CONFLICT, code, detail)
            }
            MemberError::InProgress => unavailable(code, "another change of the members is in progress; try again"),
            MemberError::Address => Self::internal(e),
            MemberError::OutcomeUnknown | MemberError::TimedOut => {
                unavailable("outcome_unknown", "whether this was done is not known; look at `cvlanctl cluster status`")
            }
            MemberError::Removed => unavailable(code, "this member was removed; ask another one"),
            MemberError::NotAllowed(_) => unavailable(code, "this member may not have that done; ask one that votes"),
            MemberError::Stopped => WriteError::<Rejection>::Stopped.into(),
        }
    }
}

impl From<HistoryError> for Problem {
    fn from(e: HistoryError) -> Self {
        match e {
            HistoryError::Gone { first } => Self::new(
                StatusCode::GONE,
                "history_gone",
                format!("the history here starts at event {first}; ask from there on"),
            ),
            HistoryError::Damaged(_) => Self::internal(e),
            HistoryError::Stopped => WriteError::<Rejection>::Stopped.into(),
        }
    }
}

impl From<VerifyError> for Problem {
    fn from(e: VerifyError) -> Self {
        match e {
            VerifyError::History(e) => e.into(),
            VerifyError::Open(_) | VerifyError::Entry { .. } => Self::internal(e),
        }
    }
}

//! What goes wrong, as one line with a stable code, and a hint what to do.

use crate::print::Noun;
use reqwest::StatusCode;
use serde::Deserialize;
use std::error::Error;
use std::fmt;
use std::io;

/// Exit status of a command that could not do it.
pub const FAILED: u8 = 1;
/// Exit status of a command that was asked the wrong way.
pub const USAGE: u8 = 2;
/// Exit status after Ctrl-C at a question, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable, snake_case: the controller's, or one of ours.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// What to do; empty = the detail says it.
    pub hint: String,
    /// [`FAILED`], [`USAGE`] or [`INTERRUPTED`].
    pub exit: u8,
    /// Seconds after which the controller wants to be asked again.
    pub retry_after: Option<u64>,
}

impl Failure {
    /// It failed.
    pub fn new(code: &str, detail: impl Into<String>) -> Self {
        Self { code: code.to_owned(), detail: detail.into(), hint: String::new(), exit: FAILED, retry_after: None }
    }

    /// It was asked the wrong way.
    pub fn usage(detail: impl Into<String>) -> Self {
        Self { exit: USAGE, ..Self::new("usage", detail) }
    }

    /// With what to do.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// Whoever reads our output has gone: no failure worth a word.
    pub fn is_broken_pipe(&self) -> bool {
        self.code == "broken_pipe"
    }

    /// It may have been done all the same.
    pub fn is_uncertain(&self) -> bool {
        ["outcome_unknown", "unreachable", "timeout"].contains(&self.code.as_str())
    }

    /// The controller knows no thing of this noun by the name alone: none, or several.
    pub fn is_unresolved(&self, noun: &Noun) -> bool {
        self.code == "name_ambiguous" || self.code == format!("{}_not_found", noun.name)
    }

    /// The controller's `application/problem+json` (RFC 9457), or what else it answered.
    pub fn answered(url: &str, status: StatusCode, body: &[u8], retry_after: Option<u64>) -> Self {
        #[derive(Deserialize)]
        struct Problem {
            code: String,
            detail: String,
        }
        let failure = match serde_json::from_slice::<Problem>(body) {
            Ok(Problem { code, detail }) => Self::new(&code, detail),
            Err(_) => Self::new("not_a_controller", format!("{url} answered {status}, not as a CVLAN controller does"))
                .hint("give the URL of the controller's UI and API, port 8443 where nothing else was chosen"),
        };
        let hint = match failure.code.as_str() {
            "session_invalid" | "session_missing" | "not_logged_in" => "cvlanctl login",
            "checkpoint_beyond" => {
                "this controller has lost what it told you; look why, then `cvlanctl login` forgets what you knew"
            }
            _ => failure.hint.as_str(),
        }
        .to_owned();
        Self { retry_after, hint, ..failure }
    }

    /// No answer came.
    pub fn unanswered(url: &str, error: &reqwest::Error) -> Self {
        let (mut io_kind, mut tls, mut last): (_, Option<String>, _) = (None, None, error.to_string());
        let mut at: Option<&dyn Error> = Some(error);
        while let Some(cause) = at {
            last = cause.to_string();
            if let Some(error) = cause.downcast_ref::<rustls::Error>() {
                tls = Some(error.to_string());
            }
            let io = cause.downcast_ref::<io::Error>();
            io_kind = io.map(io::Error::kind).or(io_kind);
            // What an io::Error wraps is not its source; its source is that of what it wraps.
            let wrapped = io.and_then(io::Error::get_ref).map(|e| e as &dyn Error);
            at = wrapped.or_else(|| cause.source());
        }
        if let Some(tls) = tls {
            return Self::untrusted(url, &tls);
        }
        if error.is_timeout() {
            return Self::late(url);
        }
        let why = match io_kind {
            Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
            Some(io::ErrorKind::ConnectionReset) => "connection reset".to_owned(),
            Some(_) | None => last,
        };
        Self::new("unreachable", format!("cannot reach {url}: {why}"))
            .hint("does cvlan-api run there? `cvlanctl context list` shows where you are pointed to")
    }

    /// No answer came in time.
    pub fn late(url: &str) -> Self {
        Self::new("timeout", format!("{url} did not answer in time"))
            .hint("is the controller under heavy load, or a firewall in between?")
    }

    fn untrusted(url: &str, tls: &str) -> Self {
        if tls.contains("UnknownIssuer") {
            return Self::new("ca_pin_mismatch", format!("{url} does not show a certificate of the pinned CA")).hint(
                "someone else answers there, or the controller began anew; compare with the --ca-pin that cvlan-api \
                 prints, then `cvlanctl login URL --ca-pin sha256:…`",
            );
        }
        if tls.contains("not valid for") || tls.contains("NotValidForName") {
            return Self::new("name_mismatch", format!("the certificate of {url} is not for that name: {tls}"))
                .hint("use a URL that the controller was told about with --advertise-api");
        }
        Self::new("tls", format!("no TLS with {url}: {tls}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new("broken_pipe", error.to_string()),
            _ => Self::new("io", error.to_string()),
        }
    }
}

/// `DETAIL (CODE)`, on one line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.detail.split_whitespace().collect::<Vec<_>>().join(" ");
        match self.exit {
            USAGE => write!(f, "{line}"),
            _ => write!(f, "{line} ({})", self.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_code() {
        let check = |body: &str, line: &str, hint: &str| {
            let failure = Failure::answered("https://c", StatusCode::CONFLICT, body.as_bytes(), None);
            assert_eq!(failure.to_string(), line);
            assert!(failure.hint.starts_with(hint), "{}", failure.hint);
        };
        check(
            r#"{"code":"name_taken","detail":"taken;\n choose another","status":409}"#,
            "taken; choose another (name_taken)",
            "",
        );
        check(r#"{"code":"session_invalid","detail":"over"}"#, "over (session_invalid)", "cvlanctl login");
        let not_ours = "https://c answered 409 Conflict, not as a CVLAN controller does (not_a_controller)";
        check("<html>", not_ours, "give the URL");
    }
}

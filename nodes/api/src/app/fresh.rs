//! How fresh this member's state must be before it answers.
//!
//! ```text
//!  a write            ─► this member has applied it                       else 503: it is done, read again later
//!  Cvlan-Checkpoint   ─► applied here?  no ─► ask the leader how far it is ─► 400 beyond it, 503 not in 5 s
//!  linearizable       ─► ask the leader ─► wait until that is applied here
//! ```

use super::App;
use super::views::WAIT;
use crate::problem::Problem;
use crate::random::bytes;
use cvlan_core::State;
use cvlan_core::id::Checkpoint;
use cvlan_raft::{Head, MemberError};
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// A snapshot that is installed tells nobody: look so often too.
const LOOK: Duration = Duration::from_millis(20);

/// What a reader wants to see at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Its own checkpoint.
    pub at_least: Option<Checkpoint>,
    /// Whatever was acknowledged before the question.
    pub linearizable: bool,
}

fn later(code: &'static str, detail: String) -> Problem {
    Problem::later(StatusCode::SERVICE_UNAVAILABLE, code, detail, 1)
}

impl App {
    /// True where this member is none any more.
    pub fn removed(&self) -> bool {
        self.transport.removed() || self.log.status().removed
    }

    fn is_applied(&self, wanted: Checkpoint) -> bool {
        let head = self.log.head();
        head.epoch == wanted.epoch && head.seq >= wanted.seq
    }

    /// Waits until this member has applied what a write's answer tells of.
    pub async fn applied_here(&self, wanted: Checkpoint) -> Result<(), Problem> {
        if self.is_applied(wanted) {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        let reached = async {
            while !self.is_applied(wanted) {
                tokio::select! {
                    _ = applied.changed() => {}
                    () = sleep(LOOK) => {}
                }
            }
        };
        timeout(WAIT, reached).await.map_err(|_| {
            let seq = wanted.seq;
            later("view_behind", format!("it is done, as event {seq}, but this member is not there yet: read it later"))
        })
    }

    /// A head that is as fresh as it is wanted, and the checkpoint that views must have reached.
    pub async fn fresh(&self, wanted: Freshness) -> Result<(Arc<Head<State>>, Option<Checkpoint>), Problem> {
        let head = self.log.head();
        if let Some(at_least) = wanted.at_least
            && at_least.epoch != head.epoch
        {
            let detail = format!("the log here is of epoch {}; forget what you know of another one", head.epoch);
            return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "epoch_other", detail));
        }
        let behind = wanted.at_least.is_some_and(|c| c.seq > head.seq);
        if !behind && !wanted.linearizable {
            return Ok((head, wanted.at_least));
        }
        self.linearize().await?;
        let head = self.log.head();
        if let Some(beyond) = wanted.at_least.filter(|c| c.seq > head.seq) {
            let detail = format!("event {} does not exist yet; the log is at {}", beyond.seq, head.seq);
            return Err(Problem::invalid("checkpoint_beyond", detail));
        }
        let at_least = if wanted.linearizable { Some(head.checkpoint()) } else { wanted.at_least };
        Ok((head, at_least))
    }

    /// Waits until this member's state has whatever was acknowledged before now.
    pub async fn linearize(&self) -> Result<(), Problem> {
        let turn = self.waiters.try_acquire();
        let _turn =
            turn.map_err(|_| later("busy", "too many reads wait for the newest state; try again".to_owned()))?;
        let slow =
            || later("view_behind", "this member did not reach the leader's state in time; try again".to_owned());
        match timeout(WAIT, self.log.linearize()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(MemberError::TimedOut | MemberError::OutcomeUnknown)) | Err(_) => Err(slow()),
            Ok(Err(error)) => Err(error.into()),
        }
    }

    /// Node doors of the other members first: where to go when this one ends. Each time another one comes first, so that not all
    /// machines go to one.
    pub fn node_urls_elsewhere(&self) -> Vec<String> {
        let all = self.log.head().machine.node_urls();
        let mut others: Vec<String> = all.iter().filter(|url| !self.node_urls.contains(url)).cloned().collect();
        if others.is_empty() {
            return all;
        }
        let first = u64::from_le_bytes(bytes()) % others.len() as u64;
        others.rotate_left(first as usize);
        others
    }
}

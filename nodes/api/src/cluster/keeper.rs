//! Keeps Raft's members what the log says they are. Runs on every member, acts where it leads.
//!
//! ```text
//!  in the log, joined, not in Raft (or elsewhere than Raft thinks) ─► learner
//!  learners that have caught up ─► given the cluster's keys, durably ─► voters, while their number stays odd: 1 ─► 3 ─► 5
//!  in Raft, not in the log ─► removed
//! ```
//! Beside that it keeps in keys/ where the members are, for a member that loses its log, and says once what is to be done
//! about a state that differs. Each step is safe to repeat; what fails is tried again. An even rest stays learner: it would cost a vote for every
//! decision and survive nothing more.

use super::ask::keys_hand_over;
use super::tls::TlsTransport;
use super::vault::Vault;
use crate::Log;
use crate::keys::Keys;
use crate::problem::Problem;
use cvlan_raft::{MemberError, Status};
use http::StatusCode;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Voters at most.
pub const VOTERS_MAX: usize = 5;
/// A learner so close to the leader, in entries, has caught up.
pub const CAUGHT_UP: u64 = 1_000;
/// A learner that did not answer for so long is not made a voter, milliseconds.
const ANSWERED_MS: u64 = 2_000;
/// Between two looks.
const TICK: Duration = Duration::from_millis(500);
/// After a step that failed.
const REST: Duration = Duration::from_secs(3);
/// A step is given up after this.
const STEP_TIME: Duration = Duration::from_secs(10);

/// What is to be done about a member whose state differs.
pub const DIVERGED: &str =
    "this member's state differs from the leader's: stop it, then `cvlan-api rebuild` takes it anew from the others";

/// One change of Raft's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It follows, at this address.
    Learner(u64, String),
    /// It votes.
    Promote(u64),
    /// It is no member any more.
    Remove(u64),
}

/// One of Raft's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InRaft {
    /// Where it is.
    pub address: String,
    /// Does it vote?
    pub voter: bool,
    /// It could: it is there, and close to the leader.
    pub caught_up: bool,
}

/// What is to be done: `log` = who is in by the log, with the address that it announced; `raft` = Raft's members; `waits` = whoever
/// could not be made a voter the last time.
pub fn steps(log: &BTreeMap<u64, String>, raft: &BTreeMap<u64, InRaft>, waits: impl Fn(u64) -> bool) -> Vec<Step> {
    let differs = |id: &u64, address: &String| raft.get(id).is_none_or(|m| m.address != *address);
    let added = log.iter().filter(|(id, address)| !address.is_empty() && differs(id, address));
    let mut steps: Vec<Step> = added.map(|(id, address)| Step::Learner(*id, address.clone())).collect();
    // One at a time: what it does to the quorum is looked at anew before the next.
    steps.extend(raft.keys().find(|id| !log.contains_key(id)).map(|id| Step::Remove(*id)));
    if steps.is_empty() {
        let voters = raft.values().filter(|m| m.voter).count();
        let ready = raft.iter().filter(|(_, m)| !m.voter && m.caught_up).map(|(id, _)| *id);
        // Those that failed are tried where there are no others; then first, as one without the other would vote in vain.
        let (failed, mut chosen): (Vec<u64>, Vec<u64>) = ready.partition(|id| waits(*id));
        let wanted = if voters % 2 == 1 { 2 } else { 1 };
        chosen.truncate(wanted);
        let lacking = wanted - chosen.len();
        if voters + wanted <= VOTERS_MAX && failed.len() >= lacking {
            steps.extend(failed.iter().take(lacking).chain(&chosen).map(|id| Step::Promote(*id)));
        }
    }
    steps
}

/// Who does not vote though it could, and why.
#[derive(Default)]
pub struct Waiting(Mutex<BTreeMap<u64, String>>);

impl Waiting {
    /// Why this one does not; empty = nothing is known to keep it.
    pub fn why(&self, id: u64) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned().unwrap_or_default()
    }

    fn is_waiting(&self, id: u64) -> bool {
        !self.why(id).is_empty()
    }

    fn note(&self, id: u64, outcome: &Result<(), Problem>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => waiting.remove(&id),
            Err(problem) => waiting.insert(id, problem.detail.to_string()),
        };
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Makes a member a voter; it has the cluster's keys first, durably. One that is not known here as Raft's gets none, and
/// nobody else is asked to promote it.
pub async fn promote(log: &Log, transport: &TlsTransport, vault: &Vault, id: u64) -> Result<(), Problem> {
    let members = log.head().members.clone();
    if !members.addresses.contains_key(&id) {
        return Err(MemberError::Unknown(id).into());
    }
    if !members.voters.iter().any(|set| set.contains(&id)) {
        let secrets = vault.need()?;
        log.promotable(id).await?;
        keys_hand_over(log, transport, &secrets, id).await?;
    }
    Ok(log.promote(id).await?)
}

/// What it works with.
pub struct Keeper {
    /// The log and Raft.
    pub log: Log,
    /// DATA/keys.
    pub keys: Keys,
    /// The way to the others.
    pub transport: TlsTransport,
    /// What those who are to vote are given.
    pub vault: Arc<Vault>,
    /// For whoever asks.
    pub waiting: Arc<Waiting>,
}

/// Until it is dropped.
pub async fn keep(keeper: Keeper) {
    let Keeper { log, keys, transport, vault, waiting } = keeper;
    let (mut kept, mut told) = (keys.members().unwrap_or_default(), false);
    loop {
        sleep(TICK).await;
        let now = &log.head().members.addresses;
        if *now != kept && !now.is_empty() {
            kept.clone_from(now);
            if let Err(error) = keys.members_write(now) {
                tracing::warn!(%error, "where the members are was not kept");
            }
        }
        if let Some(seq) = log.status().diverged.filter(|_| !told) {
            told = true;
            tracing::error!(seq, "{DIVERGED}");
        }
        let steps = due(&log, &waiting);
        if steps.is_empty() {
            waiting.clear();
        }
        let mut failed = false;
        for step in steps {
            let take = async {
                match &step {
                    Step::Learner(id, address) => Ok(log.learner_add(*id, address.clone()).await?),
                    Step::Promote(id) => {
                        let outcome = promote(&log, &transport, &vault, *id).await;
                        waiting.note(*id, &outcome);
                        outcome
                    }
                    Step::Remove(id) => Ok(log.member_remove(*id).await?),
                }
            };
            let done: Result<Result<(), Problem>, _> = timeout(STEP_TIME, take).await;
            match &done {
                Ok(Ok(())) => tracing::info!("members: {step:?}"),
                Ok(Err(problem)) => {
                    tracing::warn!(code = problem.code, detail = %problem.detail, "members: {step:?} failed");
                }
                Err(_) => {
                    tracing::warn!("members: {step:?} takes too long");
                    if let Step::Promote(id) = &step {
                        waiting.note(*id, &Err(late(*id)));
                    }
                }
            }
            if !matches!(done, Ok(Ok(()))) {
                failed = true;
                // Of two that are to vote one alone would be worse than none; whoever is added or removed does not wait for another.
                if matches!(step, Step::Promote(_)) {
                    break;
                }
            }
        }
        if failed {
            sleep(REST).await;
        }
    }
}

/// Others go first the next time.
fn late(id: u64) -> Problem {
    let detail = format!("member {id} did not take the keys, or the vote, in time");
    Problem::later(StatusCode::SERVICE_UNAVAILABLE, "keys_not_handed_over", detail, 3)
}

fn due(log: &Log, waiting: &Waiting) -> Vec<Step> {
    let status = log.status();
    let head = log.head();
    // While voters change there are two sets of them.
    let [voters] = head.members.voters.as_slice() else { return Vec::new() };
    if !status.writable {
        return Vec::new();
    }
    let joined = head.machine.members.values().filter(|m| m.is_in());
    let wanted = joined.map(|m| (m.id.0, m.address().to_owned())).collect();
    let now = head.members.addresses.iter().map(|(id, address)| {
        let member =
            InRaft { address: address.clone(), voter: voters.contains(id), caught_up: caught_up(&status, *id) };
        (*id, member)
    });
    steps(&wanted, &now.collect(), |id| waiting.is_waiting(id))
}

fn caught_up(status: &Status, id: u64) -> bool {
    let peer = status.peers.iter().find(|p| p.id == id);
    peer.is_some_and(|p| p.behind.is_some_and(|b| b <= CAUGHT_UP) && p.answered_ms.is_some_and(|ms| ms <= ANSWERED_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "1v" = a voter, "2l" = a learner that has caught up, "3s" = a slow one; "=b" after it = at address b.
    fn raft(text: &str) -> BTreeMap<u64, InRaft> {
        let member = |word: &str| {
            let (word, address) = word.split_once('=').unwrap_or((word, "a"));
            let (id, kind) = word.split_at(word.len() - 1);
            let member = InRaft { address: address.into(), voter: kind == "v", caught_up: kind == "l" };
            (id.parse().unwrap(), member)
        };
        text.split_whitespace().map(member).collect()
    }

    #[test]
    fn what_is_to_be_done() {
        let learner = |id| Step::Learner(id, "a".into());
        for (log, in_raft, wanted) in [
            (vec![1], "1v", vec![]),
            (vec![1, 5], "1v", vec![learner(5)]),
            (vec![1, 5, 9], "1v", vec![learner(5), learner(9)]),
            // Two voters need both: worse than one.
            (vec![1, 5], "1v 5l", vec![]),
            (vec![1, 5, 9], "1v 5l 9s", vec![]),
            (vec![1, 5, 9], "1v 5l 9l", vec![Step::Promote(5), Step::Promote(9)]),
            // Half-way: one is enough.
            (vec![1, 5, 9], "1v 5v 9l", vec![Step::Promote(9)]),
            (vec![1, 5, 9], "1v 5v 9s", vec![]),
            (vec![1, 5, 9, 12], "1v 5v 9v 12l", vec![]),
            (vec![1, 5, 9, 12, 15], "1v 5v 9v 12l 15l", vec![Step::Promote(12), Step::Promote(15)]),
            (vec![1, 5, 9, 12, 15, 18, 20], "1v 5v 9v 12v 15v 18l 20l", vec![]),
            // A lost voter is replaced by a learner that waited.
            (vec![1, 5, 12], "1v 5v 12l", vec![Step::Promote(12)]),
            (vec![1, 5], "1v 5v 9v", vec![Step::Remove(9)]),
            (vec![5], "1v 5v 9v", vec![Step::Remove(1)]),
            // First who is there, then who votes.
            (vec![1, 5, 9, 12], "1v 5l 9l", vec![learner(12)]),
            (vec![1], "1v=b", vec![learner(1)]),
        ] {
            let log: BTreeMap<u64, String> = log.into_iter().map(|id| (id, "a".to_owned())).collect();
            assert_eq!(steps(&log, &raft(in_raft), |_| false), wanted, "{in_raft}");
        }
        // Whoever failed comes last, but before one that would vote in vain without it.
        for (in_raft, wanted) in [
            ("1v 5f 9l 12l", vec![9, 12]),
            ("1v 5f 9l", vec![5, 9]),
            ("1v 5l 9f", vec![9, 5]),
            ("1v 5f 9f", vec![5, 9]),
            ("1v 5v 9f 12l", vec![12]),
            ("1v 5v 9f", vec![9]),
            ("1v 5f", vec![]),
        ] {
            let log = in_raft.split(' ').map(|w| (w[..w.len() - 1].parse().unwrap(), "a".to_owned())).collect();
            let failed = |id: u64| in_raft.contains(&format!("{id}f"));
            let promoted: Vec<Step> = wanted.into_iter().map(Step::Promote).collect();
            assert_eq!(steps(&log, &raft(&in_raft.replace('f', "l")), failed), promoted, "{in_raft}");
        }
        // One that has not said where it is stays as it is.
        assert_eq!(steps(&BTreeMap::from([(1, String::new())]), &raft("1v=b"), |_| false), []);
    }
}

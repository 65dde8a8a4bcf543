//! Who has no keys asks who has: `cvlan-voter/1`, one connection, one question, one answer.
//!
//! ```text
//!  request that takes keys ─┐
//!  token never seen here ───┼─► the leader, else the next voter ─► answer        none: 503 voter_unreachable
//!  certificate of one's own ┘     connected, then lost: asked again elsewhere only where that does no harm
//! ```
//! And the other way round: a voter hands the keys to one that is about to vote ([`keys_hand_over`]).

use super::join::{message_read, message_write};
use super::tls::TlsTransport;
use super::vault::Secrets;
use super::voter::{ANSWER_MAX, ANSWER_TIME};
use crate::Log;
use crate::problem::Problem;
use cvlan_core::id::MemberId;
use cvlan_core::log::note::Note;
use cvlan_proto::v1::voter_question::Kind;
use cvlan_proto::v1::{TreeHeadRequest, VoterAnswer, VoterQuestion};
use cvlan_raft::MemberError;
use futures_util::future::join_all;
use http::StatusCode;
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

/// Questions on their way at once: what is to be carried out, and whether tokens are good. Anybody can ask with a token that
/// nobody knows, and is not to take the others' turns.
const ASKING: usize = 256;
const VOUCHING: usize = 32;
/// A voter that cannot be connected to within this is not there.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// One that has not signed within this is not waited for.
const SIGN_TIME: Duration = Duration::from_secs(5);
/// All voters together.
const ASK_TIME: Duration = Duration::from_secs(30);

/// The way to the voters.
pub struct Voters {
    log: Log,
    transport: TlsTransport,
    turns: Semaphore,
    vouching: Semaphore,
}

enum Failed {
    /// Nothing was done there.
    NotThere(String),
    /// It may have been done.
    Unknown(String),
}

fn unreachable(why: &str) -> Problem {
    let detail = format!("this needs a member that votes, and none can be asked: {why}; try again");
    Problem::later(StatusCode::SERVICE_UNAVAILABLE, "voter_unreachable", detail, 2)
}

impl Voters {
    /// Of this log, over this transport.
    pub fn new(log: Log, transport: TlsTransport) -> Self {
        Self { log, transport, turns: Semaphore::new(ASKING), vouching: Semaphore::new(VOUCHING) }
    }

    /// Who votes, with addresses; who leads comes first.
    fn all(&self) -> Vec<(u64, String)> {
        let (status, head) = (self.log.status(), self.log.head());
        let voters: BTreeSet<u64> = head.members.voters.iter().flatten().copied().collect();
        let others = voters.into_iter().filter(|id| *id != status.member);
        let mut all: Vec<(u64, String)> =
            others.filter_map(|id| Some((id, head.members.addresses.get(&id)?.clone()))).collect();
        all.sort_by_key(|(id, _)| status.leader != Some(*id));
        all
    }

    /// What the other voters sign of the log, each by itself.
    pub async fn tree_heads(&self, asked: TreeHeadRequest) -> Vec<(u64, Result<Note, String>)> {
        let question = VoterQuestion { kind: Some(Kind::TreeHead(asked)) };
        let each = self.all().into_iter().map(|(id, address)| {
            let question = &question;
            async move {
                let asking = ask_one(&self.log, &self.transport, id, &address, question);
                let answer = match timeout(SIGN_TIME, asking).await {
                    Ok(Ok(answer)) if answer.refused.is_empty() => {
                        Note::parse(answer.note.as_bytes()).map_err(|e| e.to_string())
                    }
                    Ok(Ok(VoterAnswer { refused, detail, .. })) => Err(format!("{detail} ({refused})")),
                    Ok(Err(Failed::NotThere(why) | Failed::Unknown(why))) => Err(why),
                    Err(_) => Err("no answer in time".to_owned()),
                };
                (id, answer)
            }
        });
        join_all(each).await
    }

    /// Asks one voter after the other. `again`: it does no harm if two of them do it.
    pub async fn ask(&self, kind: Kind, again: bool) -> Result<VoterAnswer, Problem> {
        self.asked(&self.turns, kind, again).await
    }

    /// The same, about a token that was not seen before.
    pub async fn vouch(&self, kind: Kind) -> Result<VoterAnswer, Problem> {
        self.asked(&self.vouching, kind, true).await
    }

    async fn asked(&self, turns: &Semaphore, kind: Kind, again: bool) -> Result<VoterAnswer, Problem> {
        let busy = || {
            let detail = "too many requests wait for members that vote; try again";
            Problem::later(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, 1)
        };
        let _turn = turns.try_acquire().map_err(|_| busy())?;
        let (end, question) = (Instant::now() + ASK_TIME, VoterQuestion { kind: Some(kind) });
        let mut why = "none is known here".to_owned();
        for (id, address) in self.all() {
            let asked = timeout_at(end, ask_one(&self.log, &self.transport, id, &address, &question)).await;
            let failed = asked.unwrap_or_else(|_| Err(Failed::Unknown("no answer in time".to_owned())));
            why = match failed {
                Ok(answer) if answer.refused.is_empty() => return Ok(answer),
                Ok(VoterAnswer { refused, detail, .. }) => format!("{detail} ({refused})"),
                Err(Failed::NotThere(why)) => why,
                Err(Failed::Unknown(why)) if again => why,
                Err(Failed::Unknown(why)) => {
                    let detail = format!("member {id} was asked and did not answer ({why}); look before you repeat it");
                    return Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", detail, 1));
                }
            };
            tracing::warn!(member = id, why, "it could not be asked");
        }
        Err(unreachable(&why))
    }
}

async fn ask_one(
    log: &Log,
    transport: &TlsTransport,
    id: u64,
    address: &str,
    question: &VoterQuestion,
) -> Result<VoterAnswer, Failed> {
    let not_there = |e: io::Error| Failed::NotThere(format!("member {id} at {address}: {e}"));
    let connected = timeout(CONNECT_TIME, transport.ask(id, address)).await;
    let (peer, mut stream) = connected.unwrap_or_else(|e| Err(e.into())).map_err(not_there)?;
    let head = log.head();
    let known = head.machine.members.get(&MemberId(id)).and_then(|m| m.joined.as_ref());
    if known.is_some_and(|joined| joined.key_sha256 != peer.key_sha256) {
        return Err(not_there(io::Error::other("the log knows another key of it")));
    }
    let exchange = async {
        message_write(&mut stream, question).await?;
        message_read(&mut stream, ANSWER_MAX).await
    };
    let answered = timeout(ANSWER_TIME, exchange).await.unwrap_or_else(|e| Err(e.into()));
    answered.map_err(|e| Failed::Unknown(format!("member {id} at {address}: {e}")))
}

/// Gives the cluster's keys to a member that is about to vote; afterwards it has them, durably.
pub async fn keys_hand_over(log: &Log, transport: &TlsTransport, secrets: &Secrets, to: u64) -> Result<(), Problem> {
    let head = log.head();
    // Raft may have one still that the log has removed.
    if head.machine.members.get(&MemberId(to)).is_none_or(|m| m.joined.is_none()) {
        return Err(MemberError::Unknown(to).into());
    }
    let address = head.members.addresses.get(&to).cloned().unwrap_or_default();
    let question = VoterQuestion { kind: Some(Kind::Keys(secrets.to_proto())) };
    let why = match ask_one(log, transport, to, &address, &question).await {
        Ok(answer) if answer.refused.is_empty() => return Ok(()),
        Ok(VoterAnswer { refused, detail, .. }) => format!("{detail} ({refused})"),
        Err(Failed::NotThere(why) | Failed::Unknown(why)) => why,
    };
    let detail = format!("member {to} does not have the cluster's keys yet, and cannot vote without: {why}");
    Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, "keys_not_handed_over", detail, 2))
}

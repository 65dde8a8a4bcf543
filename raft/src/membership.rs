//! Changes of who takes part and who leads: asked of any member, carried out by the leader, one at a time. Each is
//! idempotent, so that it can be asked again after a loss.
//!
//! ```text
//! learner ─► member without a vote ─► promote, once it has caught up ─► voter ─► remove ─► gone; its id never comes back
//! ```

use crate::error::MemberError;
use crate::forward::PAUSE;
use crate::member::Inner;
use crate::peer::codec::{Answer, Change, Request};
use crate::peer::link::CallError;
use crate::peer::ping;
use crate::replica::Raft;
use crate::types::{Cfg, Membership};
use cvlan_core::machine::{Machine, Sender};
use openraft::async_runtime::{Select2, WatchReceiver};
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, BasicNode, ChangeMembers, ReadPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

/// Whoever is to vote, or to lead, may be so many entries behind.
const CAUGHT_UP: u64 = 1_000;

/// A change must be in the log of a majority within this time.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

/// Whoever is needed to decide afterwards must take an entry within this time.
const ENTRY_LIMIT: Duration = Duration::from_secs(2);

/// A change is asked for again within this time.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// A new leader is waited for this long.
pub(crate) const TRANSFER_LIMIT: Duration = Duration::from_secs(3);

/// Bytes of an address, at most.
const ADDRESS_MAX: usize = 255;

/// Why a leader did not do it.
pub(crate) enum Not {
    /// It leads no more, or cannot tell; this one may.
    Leader(Option<u64>),
    Done(MemberError),
}

impl From<MemberError> for Not {
    fn from(error: MemberError) -> Self {
        Self::Done(error)
    }
}

/// A member that asks something, if it is one: `None` where it is none any more, as far as is known here.
pub(crate) fn sender<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, peer: u64) -> Option<Sender> {
    let members = members(member);
    let known = members.membership().get_node(&peer).is_some();
    known.then(|| Sender { member: peer, votes: members.voter_ids().any(|id| id == peer) })
}

/// True where it votes; by this member's knowledge, which is the newest where it leads.
pub(crate) fn votes<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, peer: u64) -> bool {
    sender(member, peer).is_some_and(|sender| sender.votes)
}

/// Asked by another member: one that votes.
pub(crate) async fn asked<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, peer: u64, change: Change) -> Answer {
    match member.leader() {
        Some(leader) if leader == member.shared.member => {}
        leader => return Answer::NotLeader { leader },
    }
    if !votes(member, peer) {
        not_allowed(member, peer, "a change of the membership");
        return Answer::Failed(MemberError::NotAllowed(peer));
    }
    match lead(member, change).await {
        Ok(leader) => Answer::Changed { leader },
        Err(Not::Leader(leader)) => Answer::NotLeader { leader },
        Err(Not::Done(error)) => Answer::Failed(error),
    }
}

/// Says, and counts, that a member asked for what it may not.
pub(crate) fn not_allowed<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, peer: u64, what: &str) {
    tracing::warn!(member = peer, what, "a member asked for what it may not");
    member.shared.stats.not_allowed.fetch_add(1, Relaxed);
}

/// Asks the leader, whoever that is; returns who leads afterwards.
pub(crate) async fn ask<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    change: Change,
) -> Result<u64, MemberError> {
    let clock = &member.shared.clock;
    let until_us = clock.monotonic_us() + ASK_LIMIT.as_micros() as u64;
    // Without a leader there is nothing to wait for but an election.
    let leader_us = clock.monotonic_us() + member.shared.limits.leader_wait_ms * 1000;
    let question = matches!(change, Change::Promotable { .. });
    let mut sent = false;
    loop {
        if member.shared.removed() {
            return Err(MemberError::Removed);
        }
        if member.shared.desk.is_stopped() {
            return Err(MemberError::Stopped);
        }
        let now_us = clock.monotonic_us();
        let leader = member.leader();
        if now_us > until_us || (leader.is_none() && now_us > leader_us && !sent) {
            return Err(if sent { MemberError::OutcomeUnknown } else { MemberError::NoLeader });
        }
        match leader {
            None => {}
            Some(leader) if leader == member.shared.member => match lead(member, change.clone()).await {
                Ok(leader) => return Ok(leader),
                Err(Not::Done(error)) => return Err(error),
                Err(Not::Leader(_)) => {}
            },
            Some(leader) => {
                let left = || Duration::from_micros(until_us.saturating_sub(clock.monotonic_us())).max(PAUSE);
                if let Ok(conn) = member.peers.link(leader).connected(left()).await {
                    // A version from before does not know the question; asked to promote, it says no itself.
                    if question && !conn.parts() {
                        return Ok(leader);
                    }
                    match conn.call(Request::Change(change.clone()), &[], left()).await {
                        Ok((Answer::Changed { leader }, _)) => return Ok(leader),
                        Ok((Answer::Failed(error), _)) => return Err(error),
                        Ok(_) | Err(CallError::Unreachable(_)) => {}
                        // A question changes nothing, whether or not it arrived.
                        Err(CallError::Lost | CallError::TimedOut) => sent |= !question,
                    }
                }
            }
        }
        Cfg::<RT>::sleep(PAUSE).await;
    }
}

/// Lets the next change in once this one is over, however it ends.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

/// Carries a change out, as the leader.
async fn lead<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, change: Change) -> Result<u64, Not> {
    let me = member.shared.member;
    match member.leader() {
        Some(leader) if leader == me => {}
        leader => return Err(Not::Leader(leader)),
    }
    if let Change::Remove { id } = change {
        // Before the majority is asked that may be gone.
        quorum_kept(member, id)?;
    }
    confirmed(member).await?;
    if member.changing.swap(true, AcqRel) {
        return Err(MemberError::InProgress.into());
    }
    let _turn = Turn(&member.changing);
    if members(member).membership().get_joint_config().len() > 1 {
        finish(&member.raft).await?;
    }
    let raft = &member.raft;
    let membership = members(member);
    let node = membership.membership().get_node(&change_of(&change));
    let voter = membership.voter_ids().any(|id| id == change_of(&change));
    match change {
        Change::Learner { address, .. } if address.is_empty() || address.len() > ADDRESS_MAX => {
            Err(MemberError::Address.into())
        }
        Change::Learner { address, .. } if node.is_some_and(|node| node.addr == address) => {
            already(member, &membership).await
        }
        Change::Learner { id, address } if node.is_some() => {
            let nodes = BTreeMap::from([(id, BasicNode::new(address))]);
            commit(raft, ChangeMembers::SetNodes(nodes), true).await?;
            Ok(me)
        }
        Change::Learner { id, address } => {
            let nodes = BTreeMap::from([(id, BasicNode::new(address))]);
            commit(raft, ChangeMembers::AddNodes(nodes), true).await?;
            Ok(me)
        }
        Change::Promote { .. } | Change::Promotable { .. } if voter => already(member, &membership).await,
        Change::Promotable { id } => {
            promotable(member, id)?;
            Ok(me)
        }
        Change::Promote { id } => {
            promotable(member, id)?;
            if !entry_comes(member, |has| has(id)).await? {
                return Err(MemberError::Behind { id, behind: behind(member, id) }.into());
            }
            commit(raft, ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await?;
            Ok(me)
        }
        Change::Remove { .. } if node.is_none() => already(member, &membership).await,
        Change::Remove { id } if !voter => {
            commit(raft, ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await?;
            Ok(me)
        }
        Change::Remove { id } => {
            quorum_kept(member, id)?;
            let left: Vec<u64> = membership.voter_ids().filter(|voter| *voter != id).collect();
            let enough = |has: &dyn Fn(u64) -> bool| left.iter().filter(|voter| has(**voter)).count() * 2 > left.len();
            if !entry_comes(member, enough).await? {
                return Err(MemberError::Quorum(id).into());
            }
            if id == me {
                return Err(Not::Leader(Some(hand_over(member, None, TRANSFER_LIMIT).await?)));
            }
            commit(raft, ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await?;
            Ok(me)
        }
        Change::Transfer { to } => Ok(hand_over(member, to, TRANSFER_LIMIT).await?),
    }
}

/// It is there, and has about all that the leader has.
fn promotable<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, id: u64) -> Result<(), MemberError> {
    if members(member).membership().get_node(&id).is_none() {
        return Err(MemberError::Unknown(id));
    }
    let behind = behind(member, id);
    match behind > CAUGHT_UP || !member.peers.alive(id) {
        true => Err(MemberError::Behind { id, behind }),
        false => Ok(()),
    }
}

/// Those who are left to vote without this member, and can be reached, are a majority of who is left.
fn quorum_kept<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, id: u64) -> Result<(), MemberError> {
    let (leaves, left): (Vec<u64>, Vec<u64>) = members(member).voter_ids().partition(|voter| *voter == id);
    let alive = left.iter().filter(|voter| member.peers.alive(**voter)).count();
    if !leaves.is_empty() && alive * 2 <= left.len() { Err(MemberError::Quorum(id)) } else { Ok(()) }
}

/// Writes an entry that changes nothing; true where it comes to `enough` members in time. To answer a ping takes no disk: one that
/// answers and takes no entries (its disk is full) would stop all writes once it is needed to decide, and nothing could be
/// changed about it any more.
async fn entry_comes<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    enough: impl Fn(&dyn Fn(u64) -> bool) -> bool + Send + Sync,
) -> Result<bool, Not> {
    let me = member.shared.member;
    let node = members(member).membership().get_node(&me).cloned().ok_or(Not::Leader(None))?;
    let mut metrics = member.raft.data_metrics();
    let come = async {
        let entry = commit(&member.raft, ChangeMembers::SetNodes(BTreeMap::from([(me, node)])), true).await?;
        loop {
            let there = {
                let now = metrics.borrow_and_update();
                let at = |id: u64| now.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
                enough(&|id| id == me || at(id).is_some_and(|log_id| log_id.index >= entry))
            };
            if there || metrics.changed().await.is_err() {
                return Ok::<_, Not>(there);
            }
        }
    };
    let come = Cfg::<RT>::timeout(ENTRY_LIMIT, come).await.unwrap_or(Ok(false))?;
    // Who leads no more is not told who has what.
    if come || member.leader() == Some(me) { Ok(come) } else { Err(Not::Leader(member.leader())) }
}

/// A majority says that this member leads, so that the members it knows are all that count: one that was deposed while it
/// was cut off would call a change done that its members never heard of.
async fn confirmed<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>) -> Result<(), Not> {
    let read = member.raft.get_read_linearizer(ReadPolicy::ReadIndex);
    match Cfg::<RT>::timeout(CHANGE_LIMIT, read).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::Fatal(_))) => Err(MemberError::Stopped.into()),
        Ok(Err(RaftError::APIError(_))) | Err(_) => Err(Not::Leader(None)),
    }
}

/// Whom it is about; 0 for nobody.
fn change_of(change: &Change) -> u64 {
    match change {
        Change::Learner { id, .. } | Change::Promote { id } | Change::Remove { id } | Change::Promotable { id } => *id,
        Change::Transfer { to } => to.unwrap_or_default(),
    }
}

/// Members as they count now, committed or not.
fn members<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>) -> Membership {
    Membership::clone(&member.raft.server_metrics().borrow_watched().membership_config)
}

/// Entries of this leader's log that a member is not known to have.
fn behind<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, id: u64) -> u64 {
    let metrics = member.raft.data_metrics();
    let metrics = metrics.borrow_watched();
    let last = metrics.last_log.map_or(0, |id| id.index + 1);
    let matched = metrics.replication.as_ref().and_then(|replication| replication.get(&id).copied().flatten());
    last.saturating_sub(matched.map_or(0, |id| id.index + 1))
}

/// A change of voters has two steps; a leader that is lost between them leaves the joint configuration behind, which needs
/// a majority of both sets for ever. Whoever leads takes the second step (Raft, §4.3 of the dissertation).
pub(crate) async fn finish<M: Machine, RT: AsyncRuntime>(raft: &Raft<M, RT>) -> Result<(), Not> {
    commit(raft, ChangeMembers::AddVoterIds(BTreeSet::new()), true).await.map(drop)
}

/// Nothing is left to change, once the membership that says so is applied.
async fn already<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, is: &Membership) -> Result<u64, Not> {
    let index = is.log_id().as_ref().map(|id| id.index);
    let applied = member.raft.wait(Some(CHANGE_LIMIT)).applied_index_at_least(index, "membership").await;
    match applied {
        Ok(_) if members(member).log_id() == is.log_id() => Ok(member.shared.member),
        _ => Err(MemberError::OutcomeUnknown.into()),
    }
}

/// Returns the entry's index.
async fn commit<M: Machine, RT: AsyncRuntime>(
    raft: &Raft<M, RT>,
    change: ChangeMembers<u64, BasicNode>,
    retain: bool,
) -> Result<u64, Not> {
    let changed = Cfg::<RT>::timeout(CHANGE_LIMIT, raft.change_membership(change, retain)).await;
    let error = match changed {
        Ok(Ok(done)) => return Ok(done.log_id.index),
        Ok(Err(RaftError::APIError(error))) => error,
        Ok(Err(RaftError::Fatal(_))) => return Err(MemberError::Stopped.into()),
        Err(_) => return Err(MemberError::OutcomeUnknown.into()),
    };
    Err(match error {
        ClientWriteError::ForwardToLeader(forward) => Not::Leader(forward.leader_id),
        ClientWriteError::LogEntryDiscarded(_) => MemberError::OutcomeUnknown.into(),
        ClientWriteError::ChangeMembershipError(error) => match error {
            ChangeMembershipError::LearnerNotFound(missing) => MemberError::Unknown(missing.node_id).into(),
            error => {
                tracing::info!(%error, "a change of membership is refused for now");
                MemberError::InProgress.into()
            }
        },
        ClientWriteError::PreconditionFailed(_) => MemberError::InProgress.into(),
    })
}

/// It leads, and another voter is there.
pub(crate) fn can_hand_over<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>) -> bool {
    let me = member.shared.member;
    member.leader() == Some(me) && member.raft.voter_ids().any(|id| id != me && member.peers.alive(id))
}

/// Hands the leadership to a voter, or to the most caught-up one that can be reached; returns who leads then.
///
/// From the moment at which Raft is told, this leader takes no writes and sends no heartbeats, and its followers may vote
/// for others: where the one that was meant dies, another one that has the whole log is elected within about one election
/// timeout. So it is asked first whether it is there.
pub(crate) async fn hand_over<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    to: Option<u64>,
    limit: Duration,
) -> Result<u64, MemberError> {
    let me = member.shared.member;
    let voters: BTreeSet<u64> = members(member).voter_ids().collect();
    let to = match to {
        Some(to) if !voters.contains(&to) => return Err(MemberError::NotVoter(to)),
        Some(to) => to,
        None => {
            let others = voters.iter().copied().filter(|id| *id != me && member.peers.alive(*id));
            others.min_by_key(|id| behind(member, *id)).ok_or(MemberError::Quorum(me))?
        }
    };
    if to == me {
        return Ok(me);
    }
    let behind = behind(member, to);
    if behind > CAUGHT_UP || !member.peers.alive(to) || !ping::answers(&member.peers, to).await {
        return Err(MemberError::Behind { id: to, behind });
    }
    let mut metrics = member.raft.server_metrics();
    member.raft.trigger().transfer_leader(to).await.map_err(|_| MemberError::Stopped)?;
    let led = async {
        loop {
            let leader = metrics.borrow_and_update().current_leader;
            if let Some(leader) = leader.filter(|leader| *leader != me) {
                return Ok(leader);
            }
            metrics.changed().await.map_err(|_| MemberError::Stopped)?;
        }
    };
    match Cfg::<RT>::select2(led, Cfg::<RT>::sleep(limit)).await {
        Select2::First(led) => led,
        Select2::Second(()) => Err(MemberError::TimedOut),
    }
}

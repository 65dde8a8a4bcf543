//! Members: the controllers of the cluster. Who may be one is the log's; who follows, votes and leads is Raft's.

use super::list::Params;
use super::{App, Caller, Output};
use crate::cluster::keeper;
use crate::problem::Problem;
use crate::random::bytes;
use cvlan_core::access::{Permission, permit};
use cvlan_core::id::{MemberId, TenantId};
use cvlan_core::member::{Member, MemberCommand, join_token_make, member_unknown, secret_hash};
use cvlan_core::{State, Wish};
use cvlan_proto::v1;
use cvlan_raft::{Head, Role, Status};
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Life of a join token where the request names none, seconds.
const LIFE_S: u64 = 3600;
/// A change of Raft's members or its leader is given up after this.
const CHANGE_TIME: Duration = Duration::from_secs(10);

/// All of them, by id, as this member sees them.
pub fn all(app: &App, head: &Head<State>) -> Vec<v1::Member> {
    let status = app.log.status();
    head.machine.members.values().map(|m| seen(app, head, &status, m)).collect()
}

/// The same as a list: `q` is part of a name, or the start of an id. They are few: there is one page.
pub fn list(app: &App, head: &Head<State>, params: &Params) -> Result<Output<v1::MemberList>, Problem> {
    let q = params.get("q").unwrap_or_default();
    let mut items = all(app, head);
    items.retain(|m| m.name.contains(q) || m.id.to_string().starts_with(q));
    let total = items.len() as u64;
    items.truncate(params.limit()?);
    Ok(Output { total: Some(total), ..Output::read(head, v1::MemberList { items }) })
}

/// One, by id or name.
pub fn get(app: &App, head: &Head<State>, name: &str) -> Result<Output<v1::Member>, Problem> {
    let member = head.machine.member_find(name).ok_or_else(member_unknown)?;
    Ok(Output::read(head, seen(app, head, &app.log.status(), member)).revision(member.revision.0))
}

/// A member with what Raft knows of it here.
pub fn seen(app: &App, head: &Head<State>, status: &Status, member: &Member) -> v1::Member {
    let id = member.id.0;
    let leads = status.leader == Some(id);
    let votes = head.members.voters.iter().any(|set| set.contains(&id));
    let role = match head.members.addresses.contains_key(&id) {
        _ if leads => Role::Leader.name(),
        _ if votes => Role::Follower.name(),
        true => Role::Learner.name(),
        false => "",
    };
    let peer = status.peers.iter().find(|p| p.id == id);
    let own = member.id == app.member;
    v1::Member {
        role: role.to_owned(),
        voter: votes,
        heard_ms: if own { Some(0) } else { peer.and_then(|p| p.answered_ms) },
        skew_ms: if own { Some(0) } else { peer.and_then(|p| p.skew_ms) },
        waits: app.waiting.why(id),
        behind: if own && leads { Some(0) } else { peer.and_then(|p| p.behind) },
        ..member.to_proto()
    }
}

fn one(app: &App, id: MemberId) -> Result<v1::Member, Problem> {
    let head = app.log.head();
    let member = head.machine.members.get(&id).ok_or_else(member_unknown)?;
    Ok(seen(app, &head, &app.log.status(), member))
}

/// Lets a machine become a member; its token is shown here alone.
pub async fn add(
    app: &App,
    caller: &Caller,
    body: v1::MemberAddRequest,
) -> Result<Output<v1::MemberAddResponse>, Problem> {
    let secret = bytes::<32>();
    let life_s = if body.expires_in_seconds == 0 { LIFE_S } else { body.expires_in_seconds };
    let wish = MemberCommand::Admit {
        name: body.name,
        secret_hash: secret_hash(&secret),
        life_ms: life_s.saturating_mul(1000),
    };
    let answer = app.write(caller, Wish::Member(wish)).await?;
    let id = MemberId(answer.first_seq.0);
    let claims = v1::JoinTokenClaims {
        member_id: id.0,
        secret: secret.to_vec(),
        ca_spki_sha256: app.ca.spki_sha256().to_vec(),
        addresses: addresses(&app.log.head()),
    };
    let (member, join_token) = (one(app, id)?, join_token_make(&claims));
    let revision = member.revision;
    let body = v1::MemberAddResponse { member: Some(member), join_token, shown_once: false };
    Ok(app.written(&answer, body).revision(revision))
}

/// Where members are, as they say themselves.
fn addresses(head: &Head<State>) -> Vec<String> {
    head.machine.members.values().map(|m| m.address().to_owned()).filter(|a| !a.is_empty()).collect()
}

/// No member any more: first in Raft, which refuses what would lose the quorum, then in the log.
pub async fn remove(app: &App, caller: &Caller, name: &str) -> Result<Output<()>, Problem> {
    let id = found(app, caller, name).await?.id;
    // What the log refuses anyway changes nothing in Raft.
    app.weigh(caller, Wish::Member(MemberCommand::Remove { id }))?;
    if app.log.head().members.addresses.contains_key(&id.0) {
        changed(app.log.member_remove(id.0)).await?;
    }
    let answer = app.write(caller, Wish::Member(MemberCommand::Remove { id })).await?;
    Ok(app.written(&answer, ()))
}

/// A learner votes from now on, where it has caught up; the keeper does the same by itself where the number of voters
/// stays odd.
pub async fn promote(app: &App, caller: &Caller, name: &str) -> Result<Output<v1::Member>, Problem> {
    let id = found(app, caller, name).await?.id;
    let slow = |_| unsure();
    timeout(CHANGE_TIME, keeper::promote(&app.log, &app.transport, &app.vault, id.0)).await.map_err(slow)??;
    app.linearize().await?;
    Ok(Output::read(&app.log.head(), one(app, id)?))
}

/// Another member leads: the one that is named, or the one that has most of the log.
pub async fn transfer(
    app: &App,
    caller: &Caller,
    body: v1::LeaderTransferRequest,
) -> Result<Output<v1::Member>, Problem> {
    let to = if body.to.is_empty() { None } else { Some(found(app, caller, &body.to).await?.id.0) };
    if to.is_none() {
        still_may(app, caller).await?;
    }
    let leader = MemberId(changed(app.log.transfer(to)).await?);
    let head = app.log.head();
    let member = head.machine.members.get(&leader).ok_or_else(member_unknown)?;
    let mut member = seen(app, &head, &app.log.status(), member);
    // This member hears of it a moment later.
    member.role = Role::Leader.name().to_owned();
    Ok(Output::read(&head, member))
}

/// The member that is meant, in the newest state, and the caller's right to change it: Raft asks no `decide`.
async fn found(app: &App, caller: &Caller, name: &str) -> Result<Arc<Member>, Problem> {
    still_may(app, caller).await?;
    Ok(app.log.head().machine.member_find(name).cloned().ok_or_else(member_unknown)?)
}

async fn still_may(app: &App, caller: &Caller) -> Result<(), Problem> {
    app.linearize().await?;
    Ok(permit(&app.log.head().machine, &caller.actor(), Permission::ClusterWrite, TenantId::default())?)
}

async fn changed<T>(change: impl Future<Output = Result<T, cvlan_raft::MemberError>>) -> Result<T, Problem> {
    Ok(timeout(CHANGE_TIME, change).await.map_err(|_| unsure())??)
}

fn unsure() -> Problem {
    let detail = "the cluster did not change in 10 s; look at `cvlanctl cluster status` before you try again";
    Problem::later(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", detail, 1)
}

//! Answers what another member asks over one connection, until it is lost, idle for too long, or this member stops.
//!
//! ```text
//! hello ─► frames in order ─► read ─► started in that order, many at once ─► answers, each with its request's id
//!                               └─ not what may come: the connection is closed
//! ```
//! Who asks is known by its certificate, and what it may ask for depends on it: entries, votes and snapshots come from the
//! very member that leads or wants to, over a connection that proves that it may vote; changes of the membership, and checkpoints, from one that votes; of commands, the
//! machine says what it takes from whom ([`Machine::from_member`]).

use crate::attest;
use crate::disk::{Lane, on_disk};
use crate::error::WriteError;
use crate::forward::{owns, tell};
use crate::member::{Attested, Inner};
use crate::membership::{self, not_allowed};
use crate::peer::appends::Appends;
use crate::peer::codec::{self, Answer, Change, FrameError, Hello, Message, PROTOCOL, Refusal, Request};
use crate::peer::link::check;
use crate::peer::parts::Parts;
use crate::peer::{CLUSTER, DIAL_LIMIT, IDLE_LIMIT, Known, OPEN_BYTES, OPEN_REQUESTS, parcel};
use crate::store::codec::{Id, Voted};
use crate::transport::Pipe;
use crate::types::{Cfg, Entry, LogId, Tx, Vote};
use crate::{backfill, base};
use bytes::Bytes;
use cvlan_core::id::{Checkpoint, Epoch};
use cvlan_core::machine::Machine;
use futures_util::StreamExt;
use futures_util::future::{Either, pending};
use futures_util::stream::FuturesUnordered;
use openraft::AsyncRuntime;
use openraft::async_runtime::{MpscReceiver, MpscSender, Mutex, Select4, WatchReceiver};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::MutexOf;
use std::pin::Pin;

type Told = (Answer, Bytes);
type Doing<'m> = Pin<Box<dyn Future<Output = Told> + Send + 'm>>;

/// See the module. `from`: who the other side is, where its certificate says it; `votes`: it says that it may vote.
pub(crate) async fn serve<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    from: Option<u64>,
    votes: bool,
    mut pipe: Pipe<RT>,
) {
    let greeted = Cfg::<RT>::timeout(DIAL_LIMIT, greet(member, from, &mut pipe)).await;
    let (peer, parts) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(why)) => {
            tracing::warn!(member = from, why, "a connection was refused");
            return;
        }
        Err(_) => {
            tracing::warn!(member = from, "a connection without a hello");
            return;
        }
    };
    if let Err(error) = answer(member, (peer, votes, parts), pipe).await {
        tracing::warn!(member = peer, %error, code = error.code(), "closing the connection");
    }
}

/// Both hellos; returns who it is, and whether both sides know parts.
async fn greet<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    from: Option<u64>,
    pipe: &mut Pipe<RT>,
) -> Result<(u64, bool), String> {
    let me = member.shared.member;
    let first = pipe.rx.recv().await.ok_or("it was lost before the hello")?;
    let epoch = member.shared.head().epoch;
    let Known { level, added } = member.shared.limits.known::<M>();
    let welcome = match codec::read(&first) {
        Ok((Message::Hello(hello), body)) => {
            let theirs = body.first().copied().unwrap_or_default();
            check(&hello, me, from, epoch).map(|()| (hello, theirs))
        }
        Ok(_) => return Err("it does not say who it is".into()),
        Err(FrameError::Protocol(asked)) => Err(Refusal::Protocol { asked, known: PROTOCOL }),
        Err(error) => return Err(error.to_string()),
    };
    let message = match &welcome {
        Ok((theirs, _)) => {
            Message::Hello(Hello { epoch: epoch.0, from: me, to: theirs.from, cluster: CLUSTER.into(), level })
        }
        Err(refusal) => Message::Refused(refusal.clone()),
    };
    let body: &[u8] = if welcome.is_ok() { &[added] } else { &[] };
    let sent = pipe.tx.send(codec::frame(&message, body)).await;
    let (hello, theirs) = welcome.map_err(|refusal| refusal.to_string())?;
    if let Some(link) = member.peers.known(hello.from) {
        link.heard.knows(hello.level);
    }
    sent.map_err(|_| "it was lost after the hello")?;
    Ok((hello.from, added.min(theirs) > 0))
}

async fn answer<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    (peer, votes, in_parts): (u64, bool, bool),
    pipe: Pipe<RT>,
) -> Result<(), FrameError> {
    let Pipe { tx, mut rx } = pipe;
    let mut halt = member.shared.halt();
    let turn = MutexOf::<Cfg<RT>, ()>::new(());
    let (mut open, mut appends) = (FuturesUnordered::new(), Appends::new(&member.raft));
    let (mut bytes, mut parts) = (0, Parts::default());
    let part_bytes = if in_parts { member.shared.limits.part_bytes } else { usize::MAX };
    loop {
        if *halt.borrow_watched() {
            return Ok(());
        }
        let frame = if open.len() + appends.len() < OPEN_REQUESTS && bytes + parts.len() < OPEN_BYTES {
            Either::Left(rx.recv())
        } else {
            Either::Right(pending())
        };
        let done = if open.is_empty() { Either::Left(pending()) } else { Either::Right(open.next()) };
        let next = Cfg::<RT>::select4(halt.changed(), done, frame, appends.next());
        let frame = match Cfg::<RT>::timeout(IDLE_LIMIT, next).await {
            Err(_) => return Err(FrameError::Unexpected("nothing came for too long")),
            Ok(Select4::First(_) | Select4::Third(None) | Select4::Second(Some((_, false)))) => return Ok(()),
            Ok(Select4::Second(None)) => continue,
            Ok(Select4::Second(Some((length, true)))) => {
                bytes -= length;
                continue;
            }
            Ok(Select4::Fourth((due, answer))) => {
                open.push(told::<RT>(tx.clone(), &turn, (due.id, due.length, part_bytes), now(answer)));
                continue;
            }
            Ok(Select4::Third(Some(frame))) => frame,
        };
        if let Some(link) = member.peers.known(peer) {
            link.heard.note(&*member.shared.clock);
        }
        let length = frame.len();
        let (message, body) = codec::read(&frame)?;
        drop(frame);
        let Message::Request(id, request) = message else { return Err(FrameError::Unexpected("no request")) };
        if !votes && is_rafts(&request) {
            return Err(FrameError::Unexpected("what only a voter says, over a connection that proves none"));
        }
        if !in_parts && is_added(&request) {
            return Err(FrameError::Unexpected("what is not known on both sides"));
        }
        let mut length = length + request.answer_bytes();
        // Entries that came in parts are appended as if they had come in one piece.
        let (request, body) = match request {
            Request::AppendParts { vote, prev, commit, of, length: all } if body.is_empty() => {
                let Some(body) = parts.take(of, all) else {
                    let unable = Answer::Unable("not all of its parts are here".into());
                    bytes += length;
                    open.push(told::<RT>(tx.clone(), &turn, (id, length, part_bytes), now(unable)));
                    continue;
                };
                length += body.len();
                (Request::Append { vote, prev, commit }, body)
            }
            request => (request, body),
        };
        bytes += length;
        let doing = match request {
            Request::Append { vote, prev, commit } => {
                own(peer, &vote)?;
                let request = append(member, (vote, prev, commit), body)?;
                if !member.shared.plant.wrong_quorum && !appends.beats(&request) {
                    appends.push(&member.raft, (id, length), request).await;
                    continue;
                }
                append_now(member, request)
            }
            Request::Part { of, offset } => now(parts.push(of, offset, &body)?),
            request => start(member, peer, request, body)?,
        };
        open.push(told::<RT>(tx.clone(), &turn, (id, length, part_bytes), doing));
    }
}

/// Answers, in parts where that is long, one such answer at a time: the other side holds the parts of one. Returns the bytes of
/// the question, and whether the connection still takes answers.
async fn told<RT: AsyncRuntime>(
    tx: Tx<RT, Bytes>,
    turn: &MutexOf<Cfg<RT>, ()>,
    (id, length, part_bytes): (u64, usize, usize),
    doing: Doing<'_>,
) -> (usize, bool) {
    let (answer, mut body) = doing.await;
    let _turn = if body.len() > part_bytes { Some(turn.lock().await) } else { None };
    while body.len() > part_bytes {
        let part = body.split_to(part_bytes);
        if tx.send(codec::frame(&Message::Part(id), &part)).await.is_err() {
            return (length, false);
        }
    }
    (length, tx.send(codec::frame(&Message::Answer(id, answer), &body)).await.is_ok())
}

fn now<'m>(answer: Answer) -> Doing<'m> {
    Box::pin(std::future::ready((answer, Bytes::new())))
}

fn later<'m>(answer: impl Future<Output = Answer> + Send + 'm) -> Doing<'m> {
    Box::pin(async move { (answer.await, Bytes::new()) })
}

/// What is to be done for a request; what depends on the order of frames is done here.
fn start<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    peer: u64,
    request: Request,
    body: Bytes,
) -> Result<Doing<'_>, FrameError> {
    if !body.is_empty() && !matches!(request, Request::Append { .. } | Request::Chunk { .. } | Request::Write { .. }) {
        return Err(FrameError::Unexpected("a body where none belongs"));
    }
    Ok(match request {
        Request::Append { .. } | Request::AppendParts { .. } | Request::Part { .. } => {
            return Err(FrameError::Unexpected("entries where none belong"));
        }
        Request::Vote { pre, vote, last, transfer } => {
            own(peer, &vote)?;
            let mut request = VoteRequest::new(vote.into(), last.map(Into::into));
            request.leadership_transfer = transfer;
            later(vote_of(member, pre, request))
        }
        Request::Transfer { from, to, last } => {
            own(peer, &from)?;
            let request = TransferLeaderRequest::new(from.into(), to, last.map(Into::into));
            later(async move {
                let accepted = matches!(member.raft.handle_transfer_leader(request).await, Ok(Ok(())));
                Answer::Transfer { accepted }
            })
        }
        Request::Snapshot(parcel) => now(member.incoming.begin(*parcel)),
        Request::Chunk { digest, offset } => now(member.incoming.chunk(&digest, offset, &body)?),
        Request::Install { vote, digest } => {
            own(peer, &vote)?;
            later(install(member, vote.into(), digest))
        }
        Request::Write { epoch, first } => {
            let command = codec::get::<M::Command>(&body)?;
            Box::pin(write(member, peer, (Epoch(epoch), first.map(Epoch)), command))
        }
        Request::Checkpoint => Box::pin(checkpoint(member, peer)),
        Request::ReadIndex => later(async move {
            match member.leader() {
                leader if leader != Some(member.shared.member) => Answer::NotLeader { leader },
                leader => match member.shared.confirm.read().await {
                    Ok(index) => Answer::Read { index },
                    Err(_) => Answer::NotLeader { leader },
                },
            }
        }),
        Request::Change(change) => later(membership::asked(member, peer, change)),
        Request::Ping { .. } => now(pong(member, peer)),
        Request::Before { end, bytes } => later(backfill::before(&member.shared, end, bytes)),
        Request::Past { from, end } => Box::pin(backfill::past(&member.shared, from, end)),
        Request::Base { oldest, end } => later(base::asked(&member.shared, oldest, end)),
        Request::State { seq, offset } => Box::pin(base::piece(&member.shared, seq, offset)),
    })
}

/// True of what Raft itself says: only a voter does. Whether the sender is one is not asked of the membership that is known
/// here: one that is behind does not know the newest voters, and must follow them all the same.
fn is_rafts(request: &Request) -> bool {
    match request {
        Request::Append { .. }
        | Request::AppendParts { .. }
        | Request::Part { .. }
        | Request::Vote { .. }
        | Request::Transfer { .. }
        | Request::Snapshot(_)
        | Request::Chunk { .. }
        | Request::Install { .. } => true,
        Request::Write { .. }
        | Request::ReadIndex
        | Request::Change(_)
        | Request::Ping { .. }
        | Request::Checkpoint
        | Request::Before { .. }
        | Request::Past { .. }
        | Request::Base { .. }
        | Request::State { .. } => false,
    }
}

/// True of what [`codec::ADDED`] is about.
fn is_added(request: &Request) -> bool {
    matches!(request, Request::Part { .. } | Request::AppendParts { .. } | Request::Change(Change::Promotable { .. }))
}

/// A vote is the one of the member that sends it: nobody leads, or asks for votes, in another's name.
fn own(peer: u64, vote: &Voted) -> Result<(), FrameError> {
    match Vote::from(*vote).leader_id.node_id == peer {
        true => Ok(()),
        false => Err(FrameError::Unexpected("a vote of another member than the one that sends it")),
    }
}

/// Entries follow each other and what was there, and none is of a later leader than the one that sends them: openraft
/// takes that for granted.
fn continues(vote: &Vote, prev: Option<LogId>, entries: &[Entry]) -> Result<(), FrameError> {
    let mut before = prev;
    for entry in entries {
        let due = before.map_or(0, |id| id.index + 1);
        if entry.log_id.index != due || before.is_some_and(|id| id.leader_id > entry.log_id.leader_id) {
            return Err(FrameError::Unexpected("entries that do not follow each other"));
        }
        before = Some(entry.log_id);
    }
    match before {
        Some(last) if last.leader_id > vote.leader_id => Err(FrameError::Unexpected("entries of a later leader")),
        Some(_) | None if vote.committed => Ok(()),
        Some(_) | None => Err(FrameError::Unexpected("entries of who does not lead")),
    }
}

/// What is to be appended.
fn append<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    (vote, prev, commit): (Voted, Option<Id>, Option<Id>),
    body: Bytes,
) -> Result<AppendEntriesRequest<Cfg<RT>>, FrameError> {
    let (vote, prev) = (Vote::from(vote), prev.map(LogId::from));
    let entries = codec::get_entries(body)?;
    continues(&vote, prev, &entries)?;
    member.shared.told(false);
    Ok(AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: commit.map(Into::into) })
}

/// Beside whatever waits.
fn append_now<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    request: AppendEntriesRequest<Cfg<RT>>,
) -> Doing<'_> {
    if member.shared.plant.wrong_quorum {
        let raft = member.raft.clone();
        let _task = Cfg::<RT>::spawn(async move { raft.append_entries(request).await.is_ok() });
        return now(Answer::Appended);
    }
    later(async move {
        match member.raft.append_entries(request).await {
            Ok(AppendEntriesResponse::Success) => Answer::Appended,
            Ok(AppendEntriesResponse::PartialSuccess(_)) => Answer::Unable("only a part was appended".into()),
            Ok(AppendEntriesResponse::Conflict) => Answer::Conflict,
            Ok(AppendEntriesResponse::HigherVote(vote)) => Answer::HigherVote((&vote).into()),
            Err(error) => Answer::Unable(error.to_string()),
        }
    })
}

async fn vote_of<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    pre: bool,
    request: VoteRequest<Cfg<RT>>,
) -> Answer {
    let answer = if pre { member.raft.pre_vote(request).await } else { member.raft.vote(request).await };
    match answer {
        Ok(answer) => Answer::Vote {
            vote: (&answer.vote).into(),
            granted: answer.vote_granted,
            last: answer.last_log_id.as_ref().map(Id::from),
        },
        Err(error) => Answer::Unable(error.to_string()),
    }
}

async fn install<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, vote: Vote, digest: [u8; 32]) -> Answer {
    let Some(parcel) = member.incoming.take(&digest) else {
        return Answer::Unable("the snapshot is not complete".into());
    };
    let unpacked = on_disk::<RT, _>(&member.shared.disk, Lane::Work, move |_| parcel::unpack::<M>(parcel)).await;
    let snapshot = match unpacked {
        Ok(Ok(snapshot)) => snapshot,
        Ok(Err(why)) => return Answer::Unable(format!("the snapshot is damaged: {why}")),
        Err(error) => return Answer::Unable(error.to_string()),
    };
    let later = |last: LogId| !vote.committed || last.leader_id > vote.leader_id;
    if snapshot.meta.last_log_id.is_none_or(later) {
        return Answer::Unable("the snapshot is not of its leader's log".into());
    }
    let own = member.shared.head().epoch;
    if own != Epoch::default() && own != snapshot.snapshot.epoch {
        return Answer::Unable("the snapshot is of another epoch".into());
    }
    match member.raft.install_full_snapshot(vote, snapshot).await {
        Ok(answer) => Answer::Installed { vote: (&answer.vote).into() },
        Err(error) => Answer::Unable(error.to_string()),
    }
}

async fn write<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    peer: u64,
    (epoch, first): (Epoch, Option<Epoch>),
    command: M::Command,
) -> Told {
    let (none, own) = (Epoch::default(), member.shared.head().epoch);
    let leader = member.leader();
    if leader != Some(member.shared.member) || (epoch != own && epoch != none && own != none) {
        return (Answer::NotLeader { leader }, Bytes::new());
    }
    if let Err(what) = may_send(member, peer, &command) {
        not_allowed(member, peer, what);
        return tell::<M>(Err(WriteError::NotAllowed { member: peer, command: what.to_owned() }));
    }
    match member.decide(Box::new(command), first).await {
        // Whoever asked goes on asking; here, or of the next leader.
        Err(WriteError::Removed) => (Answer::NotLeader { leader: None }, Bytes::new()),
        result => tell::<M>(result),
    }
}

/// An error names what it may not.
fn may_send<M: Machine, RT: AsyncRuntime>(
    member: &Inner<M, RT>,
    peer: u64,
    command: &M::Command,
) -> Result<(), &'static str> {
    let sender = membership::sender(member, peer).ok_or("any command: it is no member")?;
    M::from_member(command, sender)?;
    match M::once(command) {
        Some(once) if !sender.votes && !owns(peer, once) => Err("a command under another's number"),
        Some(_) | None => Ok(()),
    }
}

async fn checkpoint<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, peer: u64) -> Told {
    let leader = member.leader();
    if leader != Some(member.shared.member) {
        return (Answer::NotLeader { leader }, Bytes::new());
    }
    let attested = match membership::votes(member, peer) {
        true => attest::lead(member).await,
        false => {
            not_allowed(member, peer, "a checkpoint");
            Err(WriteError::NotAllowed { member: peer, command: "a checkpoint".to_owned() })
        }
    };
    match attested {
        Ok(Attested { checkpoint: Checkpoint { epoch, seq }, root, digest }) => {
            (Answer::Attested { epoch: epoch.0, seq: seq.0, root, digest }, Bytes::new())
        }
        Err(error) => tell::<M>(Err(error)),
    }
}

fn pong<M: Machine, RT: AsyncRuntime>(member: &Inner<M, RT>, peer: u64) -> Answer {
    let metrics = member.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    Answer::Pong {
        wall_ms: member.shared.clock.wall_ms(),
        // A removal that is not committed may yet be undone.
        known: [&metrics.membership_config, &metrics.committed_membership_config]
            .iter()
            .any(|members| members.membership().get_node(&peer).is_some()),
        leads: metrics.current_leader == Some(member.shared.member),
        term: metrics.vote.leader_id.term,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaderId, Payload};

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: 1 }, index }
    }

    #[test]
    fn entries_must_follow_each_other_and_be_of_no_later_leader() {
        let check = |committed: bool, prev: Option<LogId>, ids: &[LogId]| {
            let vote = Vote { leader_id: LeaderId { term: 3, node_id: 1 }, committed };
            let entry = |id: &LogId| Entry { log_id: *id, payload: Payload::Blank };
            continues(&vote, prev, &ids.iter().map(entry).collect::<Vec<_>>()).is_ok()
        };
        assert!(check(true, None, &[]));
        assert!(check(true, None, &[id(1, 0), id(3, 1)]));
        assert!(check(true, Some(id(2, 4)), &[id(2, 5), id(3, 6)]));
        assert!(!check(true, Some(id(2, 4)), &[id(2, 6)]), "a hole");
        assert!(!check(true, Some(id(2, 4)), &[id(2, 5), id(2, 5)]), "twice");
        assert!(!check(true, Some(id(2, 4)), &[id(1, 5)]), "of an earlier leader");
        assert!(!check(true, Some(id(2, 4)), &[id(4, 5)]), "of a later leader");
        assert!(!check(false, None, &[]), "of who does not lead");
    }
}

//! What openraft sees of the others: its calls become requests over a [`Link`].

use crate::disk::Disk;
use crate::peer::codec::{Answer, Request, put_entries};
use crate::peer::link::{CallError, Conn, Link, Pending};
use crate::peer::{APPEND_BYTES, APPEND_LIMIT, APPEND_WINDOW, PART_LATE_US, PARTS_MAX, PARTS_MIN, Peers, parcel};
use crate::types::{Cfg, LogId, Snap, Vote};
use cvlan_core::machine::Machine;
use futures_util::future::{Either, pending};
use futures_util::stream::{FuturesOrdered, unfold};
use futures_util::{Stream, StreamExt};
use openraft::async_runtime::Select2;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use openraft::{AsyncRuntime, BasicNode, OptionalSend};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;

/// Makes a [`Peer`] for each member that openraft talks to.
pub(crate) struct Network<M, RT: AsyncRuntime> {
    pub(crate) peers: Arc<Peers<RT>>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) packed: Arc<parcel::Packed>,
    /// See [`crate::Limits`].
    pub(crate) part_bytes: usize,
    pub(crate) _machine: PhantomData<fn() -> M>,
}

/// One other member.
pub(crate) struct Peer<M, RT: AsyncRuntime> {
    link: Arc<Link<RT>>,
    disk: Arc<dyn Disk>,
    packed: Arc<parcel::Packed>,
    part_bytes: usize,
    _machine: PhantomData<fn() -> M>,
}

impl<M: Machine, RT: AsyncRuntime> RaftNetworkFactory<Cfg<RT>> for Network<M, RT> {
    type Network = Peer<M, RT>;

    async fn new_client(&mut self, to: u64, node: &BasicNode) -> Self::Network {
        let link = self.peers.link(to);
        link.moved(&node.addr);
        let (disk, packed, part_bytes) = (self.disk.clone(), self.packed.clone(), self.part_bytes);
        Peer { link, disk, packed, part_bytes, _machine: PhantomData }
    }
}

/// openraft backs off from who cannot be reached, and tries again at once where a call was lost.
fn failed<RT: AsyncRuntime>(error: CallError) -> RPCError<Cfg<RT>> {
    match error {
        CallError::Unreachable(why) => Unreachable::from_string(why).into(),
        CallError::Lost | CallError::TimedOut => NetworkError::from_string(error).into(),
    }
}

fn unable<RT: AsyncRuntime>(answer: &Answer) -> RPCError<Cfg<RT>> {
    NetworkError::from_string(format!("it answers {answer:?}")).into()
}

type Appended<RT> = Result<StreamAppendResult<Cfg<RT>>, RPCError<Cfg<RT>>>;
type Sent<RT> = Pin<Box<dyn Future<Output = (usize, Appended<RT>)> + Send>>;
type Sending<RT> = Pin<Box<dyn Future<Output = Result<(usize, Sent<RT>), CallError>> + Send>>;

/// Requests to append that are on their way, in order.
struct Appending<RT: AsyncRuntime, S> {
    link: Arc<Link<RT>>,
    /// Made for the first request: openraft pauses in its stream of requests, not before it asks for another stream.
    conn: Option<Arc<Conn<RT>>>,
    input: S,
    more: bool,
    part_bytes: usize,
    /// The one that is being sent: the next is not asked for meanwhile.
    sending: Option<Sending<RT>>,
    open: FuturesOrdered<Sent<RT>>,
    bytes: usize,
}

/// What can be done for them.
enum Step<RT: AsyncRuntime> {
    Sent(Result<(usize, Sent<RT>), CallError>),
    Next(Option<AppendEntriesRequest<Cfg<RT>>>),
}

impl<RT: AsyncRuntime, S: Stream<Item = AppendEntriesRequest<Cfg<RT>>> + Send + Unpin> Appending<RT, S> {
    /// The next answer; sends meanwhile.
    async fn next(&mut self) -> Option<Appended<RT>> {
        loop {
            if self.open.is_empty() && self.sending.is_none() && !self.more {
                return None;
            }
            let room = self.more && self.open.len() < APPEND_WINDOW && self.bytes < APPEND_BYTES;
            let Self { input, open, sending, .. } = self;
            let answered = if open.is_empty() { Either::Left(pending()) } else { Either::Right(open.next()) };
            let step = async {
                match sending {
                    Some(sending) => Step::Sent(sending.await),
                    None if room => Step::Next(input.next().await),
                    None => pending().await,
                }
            };
            match Cfg::<RT>::select2(answered, pin!(step)).await {
                Select2::First(Some((bytes, answer))) => {
                    self.bytes -= bytes;
                    return Some(answer);
                }
                Select2::First(None) => {}
                Select2::Second(Step::Next(None)) => self.more = false,
                Select2::Second(Step::Next(Some(request))) => match self.connection().await {
                    Ok(conn) => self.sending = Some(Box::pin(send(conn, request, self.part_bytes))),
                    Err(error) => return Some(Err(failed(error))),
                },
                Select2::Second(Step::Sent(Ok((bytes, sent)))) => {
                    self.sending = None;
                    self.bytes += bytes;
                    self.open.push_back(sent);
                }
                Select2::Second(Step::Sent(Err(error))) => return Some(Err(failed(error))),
            }
        }
    }

    async fn connection(&mut self) -> Result<Arc<Conn<RT>>, CallError> {
        if let Some(conn) = &self.conn {
            return Ok(conn.clone());
        }
        let conn = self.link.connected(APPEND_LIMIT).await?;
        self.conn = Some(conn.clone());
        Ok(conn)
    }
}

/// Sends a request; returns its bytes and what its answer will be.
async fn send<RT: AsyncRuntime>(
    conn: Arc<Conn<RT>>,
    request: AppendEntriesRequest<Cfg<RT>>,
    part_bytes: usize,
) -> Result<(usize, Sent<RT>), CallError> {
    let prev = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.log_id).or(prev);
    let body = put_entries(&request.entries);
    let (vote, commit) = ((&request.vote).into(), request.leader_commit.as_ref().map(Into::into));
    let (before, bytes) = (prev.as_ref().map(Into::into), body.len());
    let sent = if bytes <= part_bytes || !conn.parts() {
        conn.send_within(Request::Append { vote, prev: before, commit }, &body, APPEND_LIMIT).await?
    } else {
        let of = parts(&conn, &body, part_bytes).await?;
        let request = Request::AppendParts { vote, prev: before, commit, of, length: bytes as u64 };
        conn.send_within(request, &[], APPEND_LIMIT).await?
    };
    let answer = async move {
        let answer = match sent.answer(APPEND_LIMIT).await {
            Ok((answer, _)) => appended(answer, prev, last),
            Err(error) => Err(failed(error)),
        };
        (bytes, answer)
    };
    Ok((bytes, Box::pin(answer)))
}

/// Sends a body in parts, few at once; returns its number. What is sent after them arrives after them.
async fn parts<RT: AsyncRuntime>(conn: &Arc<Conn<RT>>, body: &[u8], part_bytes: usize) -> Result<u64, CallError> {
    let (of, mut offset, mut window, mut quickest_us) = (conn.number(), 0, PARTS_MIN, u64::MAX);
    let mut open: VecDeque<(u64, Pending<RT>)> = VecDeque::new();
    for part in body.chunks(part_bytes) {
        while open.len() >= window {
            let Some((sent_us, oldest)) = open.pop_front() else { break };
            oldest.answer(APPEND_LIMIT).await?;
            let took_us = conn.now_us().saturating_sub(sent_us);
            quickest_us = quickest_us.min(took_us);
            window = match took_us - quickest_us > PART_LATE_US {
                true => (window / 2).max(PARTS_MIN),
                false => (window + 1).min(PARTS_MAX),
            };
        }
        let sent_us = conn.now_us();
        let sent = conn.send_within(Request::Part { of, offset }, part, APPEND_LIMIT).await?;
        open.push_back((sent_us, sent));
        offset += part.len() as u64;
    }
    Ok(of)
}

fn appended<RT: AsyncRuntime>(answer: Answer, prev: Option<LogId>, last: Option<LogId>) -> Appended<RT> {
    match (answer, prev) {
        (Answer::Appended, _) => Ok(Ok(last)),
        (Answer::Conflict, Some(prev)) => Ok(Err(StreamAppendError::Conflict(prev))),
        (Answer::HigherVote(vote), _) => Ok(Err(StreamAppendError::HigherVote(vote.into()))),
        (other, _) => Err(unable(&other)),
    }
}

impl<M: Machine, RT: AsyncRuntime> RaftNetworkV2<Cfg<RT>> for Peer<M, RT> {
    type SnapshotData = parcel::Data<M>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Cfg<RT>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        let once = futures_util::stream::iter([request]);
        let answer = self.stream_append(once, option).await?.next().await;
        let lost = || RPCError::from(NetworkError::from_string("no answer"));
        Ok(answer.ok_or_else(lost)??.into())
    }

    /// Several at once, over the one connection: this loop sends what the leader has and yields what came back.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended<RT>>, RPCError<Cfg<RT>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Cfg<RT>>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let link = self.link.clone();
            let (part_bytes, open) = (self.part_bytes, FuturesOrdered::new());
            let appending =
                Appending { link, conn: None, input, more: true, part_bytes, sending: None, open, bytes: 0 };
            let answers = unfold(Some(appending), |state| async move {
                let mut appending = state?;
                let answer = appending.next().await?;
                let goes_on = matches!(answer, Ok(Ok(_)));
                Some((answer, goes_on.then_some(appending)))
            });
            Ok(Box::pin(answers) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Cfg<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        self.ask(false, request, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Cfg<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        self.ask(true, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snap<Self::SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Cfg<RT>>, StreamingError<Cfg<RT>>> {
        let sending = parcel::send::<M, RT>(&self.link, &self.disk, &self.packed, vote, snapshot);
        match Cfg::<RT>::select2(Box::pin(cancel), Box::pin(sending)).await {
            Select2::First(closed) => Err(closed.into()),
            Select2::Second(Ok(vote)) => Ok(SnapshotResponse::new(vote)),
            Select2::Second(Err(parcel::SendError::Call(error))) => Err(failed(error).into()),
            Select2::Second(Err(parcel::SendError::Other(why))) => Err(NetworkError::from_string(why).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Cfg<RT>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        let message = Request::Transfer {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: request.last_log_id().map(Into::into),
        };
        match self.link.call(message, &[], option.soft_ttl()).await.map_err(failed)? {
            (Answer::Transfer { accepted: true }, _) => Ok(Ok(())),
            (other, _) => Err(unable(&other)),
        }
    }
}

impl<M: Machine, RT: AsyncRuntime> Peer<M, RT> {
    async fn ask(
        &self,
        pre: bool,
        request: VoteRequest<Cfg<RT>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        let message = Request::Vote {
            pre,
            vote: (&request.vote).into(),
            last: request.last_log_id.as_ref().map(Into::into),
            transfer: request.leadership_transfer,
        };
        match self.link.call(message, &[], option.soft_ttl()).await.map_err(failed)? {
            (Answer::Vote { vote, granted, last }, _) => {
                Ok(VoteResponse::new(Vote::from(vote), last.map(Into::into), granted))
            }
            (other, _) => Err(unable(&other)),
        }
    }
}

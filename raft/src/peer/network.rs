//! What openraft sees of the others: its calls become requests over a [`Link`].

use crate::disk::Disk;
use crate::peer::codec::{Answer, Request, put_entries};
use crate::peer::link::{CallError, Conn, Link};
use crate::peer::{APPEND_BYTES, APPEND_LIMIT, APPEND_WINDOW, PAUSE_MIN, Peers, parcel};
use crate::store::wal::size;
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
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

/// Makes a [`Peer`] for each member that openraft talks to.
pub(crate) struct Network<M, RT: AsyncRuntime> {
    pub(crate) peers: Arc<Peers<RT>>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) packed: Arc<parcel::Packed>,
    pub(crate) _machine: PhantomData<fn() -> M>,
}

/// One other member.
pub(crate) struct Peer<M, RT: AsyncRuntime> {
    link: Arc<Link<RT>>,
    disk: Arc<dyn Disk>,
    packed: Arc<parcel::Packed>,
    _machine: PhantomData<fn() -> M>,
}

impl<M: Machine, RT: AsyncRuntime> RaftNetworkFactory<Cfg<RT>> for Network<M, RT> {
    type Network = Peer<M, RT>;

    async fn new_client(&mut self, to: u64, node: &BasicNode) -> Self::Network {
        let link = self.peers.link(to);
        link.moved(&node.addr);
        Peer { link, disk: self.disk.clone(), packed: self.packed.clone(), _machine: PhantomData }
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

/// Requests to append that are on their way, in order.
struct Appending<RT: AsyncRuntime, S> {
    conn: Arc<Conn<RT>>,
    input: S,
    more: bool,
    open: FuturesOrdered<Sent<RT>>,
    bytes: usize,
}

impl<RT: AsyncRuntime, S: Stream<Item = AppendEntriesRequest<Cfg<RT>>> + Send + Unpin> Appending<RT, S> {
    /// The next answer; sends meanwhile.
    async fn next(&mut self) -> Option<Appended<RT>> {
        loop {
            if self.open.is_empty() && !self.more {
                return None;
            }
            let room = self.more && self.open.len() < APPEND_WINDOW && self.bytes < APPEND_BYTES;
            let Self { input, open, .. } = self;
            let answered = if open.is_empty() { Either::Left(pending()) } else { Either::Right(open.next()) };
            let request = if room { Either::Left(input.next()) } else { Either::Right(pending()) };
            match Cfg::<RT>::select2(answered, request).await {
                Select2::First(Some((bytes, answer))) => {
                    self.bytes -= bytes;
                    return Some(answer);
                }
                Select2::First(None) => {}
                Select2::Second(None) => self.more = false,
                Select2::Second(Some(request)) => match self.send(request).await {
                    Ok(()) => {}
                    Err(error) => return Some(Err(failed(error))),
                },
            }
        }
    }

    async fn send(&mut self, request: AppendEntriesRequest<Cfg<RT>>) -> Result<(), CallError> {
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let bytes = request.entries.iter().map(size).sum();
        let message = Request::Append {
            vote: (&request.vote).into(),
            prev: prev.as_ref().map(Into::into),
            commit: request.leader_commit.as_ref().map(Into::into),
        };
        let body = put_entries(&request.entries);
        let sending = self.conn.send(message, &body);
        let sent = Cfg::<RT>::timeout(APPEND_LIMIT, sending).await.map_err(|_| CallError::TimedOut)??;
        self.bytes += bytes;
        self.open.push_back(Box::pin(async move {
            let answer = match sent.answer(APPEND_LIMIT).await {
                Ok((answer, _)) => appended(answer, prev, last),
                Err(error) => Err(failed(error)),
            };
            (bytes, answer)
        }));
        Ok(())
    }
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
            let conn = match Cfg::<RT>::timeout(APPEND_LIMIT, self.link.connection()).await {
                Ok(Ok(conn)) => conn,
                Ok(Err(error)) => {
                    // openraft opens the next stream at once: without a pause it would ask for one without end.
                    Cfg::<RT>::sleep(PAUSE_MIN).await;
                    return Err(failed(error));
                }
                Err(_) => return Err(failed(CallError::TimedOut)),
            };
            let appending = Appending { conn, input, more: true, open: FuturesOrdered::new(), bytes: 0 };
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

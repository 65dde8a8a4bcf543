//! The way to other members, as a seam: a [`Transport`] yields a connection as a pair of channels of frames. Codec,
//! pipelining and time limits lie above it.
//!
//! A log of one member needs none: [`NoTransport`].

use crate::types::{Cfg, Rx, Snap, Tx, Vote};

use bytes::Bytes;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AsyncRuntime, BasicNode, OptionalSend};
use std::io;
use std::marker::PhantomData;

/// One connection: frames in order; a closed channel is a lost connection.
pub struct Pipe<RT: AsyncRuntime> {
    /// Frames to the other side.
    pub tx: Tx<RT, Bytes>,
    /// Frames from it.
    pub rx: Rx<RT, Bytes>,
}

/// Connects to members.
pub trait Transport<RT: AsyncRuntime>: Clone + Send + Sync + 'static {
    /// Connects to member `to` at `address`.
    fn connect(&self, to: u64, address: &str) -> impl Future<Output = io::Result<Pipe<RT>>> + Send;
}

/// Reaches nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTransport;

impl<RT: AsyncRuntime> Transport<RT> for NoTransport {
    async fn connect(&self, to: u64, _address: &str) -> io::Result<Pipe<RT>> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("member {to} cannot be reached: this log has one member"),
        ))
    }
}

/// What openraft sees of a [`Transport`]. With one member nothing is ever sent; a call to another one says that it
/// cannot be reached.
pub(crate) struct Network<T, S>(pub(crate) T, pub(crate) PhantomData<fn() -> S>);

/// One peer.
pub(crate) struct Peer<T, S> {
    transport: T,
    to: u64,
    address: String,
    _state: PhantomData<fn() -> S>,
}

impl<T, S> Peer<T, S> {
    async fn reach<RT: AsyncRuntime>(&self) -> Unreachable<Cfg<RT>>
    where
        T: Transport<RT>,
    {
        match self.transport.connect(self.to, &self.address).await {
            Ok(_) => Unreachable::from_string(format!("member {} speaks no protocol of this version", self.to)),
            Err(error) => Unreachable::from_string(error),
        }
    }
}

impl<RT: AsyncRuntime, T: Transport<RT>, S: Send + Sync + 'static> RaftNetworkFactory<Cfg<RT>> for Network<T, S> {
    type Network = Peer<T, S>;

    async fn new_client(&mut self, to: u64, node: &BasicNode) -> Self::Network {
        Peer { transport: self.0.clone(), to, address: node.addr.clone(), _state: PhantomData }
    }
}

impl<RT: AsyncRuntime, T: Transport<RT>, S: Send + Sync + 'static> RaftNetworkV2<Cfg<RT>> for Peer<T, S> {
    type SnapshotData = S;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<Cfg<RT>>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        Err(self.reach::<RT>().await.into())
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<Cfg<RT>>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        Err(self.reach::<RT>().await.into())
    }

    async fn pre_vote(
        &mut self,
        _request: VoteRequest<Cfg<RT>>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Cfg<RT>>, RPCError<Cfg<RT>>> {
        Err(self.reach::<RT>().await.into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: Snap<S>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Cfg<RT>>, StreamingError<Cfg<RT>>> {
        Err(self.reach::<RT>().await.into())
    }
}

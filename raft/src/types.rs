//! openraft's type configuration, generic over the async runtime alone: entries, log ids, votes are the same Rust types
//! under every runtime.

use bytes::Bytes;
use openraft::impls::{BoxedErrorSource, InlineBatch, leader_id_adv};
use openraft::raft::responder::Responder;
use openraft::type_config::alias::{MpscReceiverOf, MpscSenderOf, OneshotSenderOf};
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, BasicNode, EntryPayload, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

/// The type configuration.
pub struct Cfg<RT>(PhantomData<fn() -> RT>);

// By hand: a derive would demand the same traits of RT.
impl<RT> Clone for Cfg<RT> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<RT> Copy for Cfg<RT> {}
impl<RT> Default for Cfg<RT> {
    fn default() -> Self {
        Cfg(PhantomData)
    }
}
impl<RT> fmt::Debug for Cfg<RT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cfg")
    }
}
impl<RT> PartialEq for Cfg<RT> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<RT> Eq for Cfg<RT> {}
impl<RT> PartialOrd for Cfg<RT> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<RT> Ord for Cfg<RT> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl<RT: AsyncRuntime> RaftTypeConfig for Cfg<RT> {
    type D = Frame;
    type R = ();
    type NodeId = u64;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = RT;
    type Responder<T>
        = Hook<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Who leads in which term.
pub type LeaderId = leader_id_adv::LeaderId<u64, u64>;
/// The same once a quorum granted it.
pub(crate) type Leader = <LeaderId as RaftLeaderId>::Committed;
/// Place of an entry in the Raft log: term, leader, index.
pub type LogId = openraft::LogId<Leader>;
/// A vote.
pub type Vote = openraft::Vote<LeaderId>;
/// What an entry carries.
pub type Payload = EntryPayload<Frame, u64, BasicNode>;
/// An entry of the Raft log.
pub type Entry = openraft::Entry<Leader, Payload>;
/// Members, and the entry that made them so.
pub type Membership = openraft::StoredMembership<Leader, u64, BasicNode>;
/// What openraft knows of a snapshot.
pub type SnapshotMeta = openraft::storage::SnapshotMeta<Leader, u64, BasicNode>;
pub(crate) type Snap<S> = openraft::storage::Snapshot<Leader, u64, BasicNode, S>;
/// Sender of a runtime's bounded channel.
pub type Tx<RT, T> = MpscSenderOf<Cfg<RT>, T>;
/// Receiver of a runtime's bounded channel.
pub type Rx<RT, T> = MpscReceiverOf<Cfg<RT>, T>;
pub(crate) type Once<RT, T> = OneshotSenderOf<Cfg<RT>, T>;

/// One entry's bytes, framed by [`cvlan_core::log`]; stored, sent and served verbatim.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame(pub Bytes);

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.0.len())
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Takes openraft's answer to a write where it arises: no channel, no task that waits for it.
pub struct Hook<T>(pub(crate) Box<dyn FnOnce(T) + Send>);

impl<RT: AsyncRuntime, T: OptionalSend + 'static> Responder<Cfg<RT>, T> for Hook<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

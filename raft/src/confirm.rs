//! Does this member still lead? Asked of a majority (a read index, Raft dissertation §6.4) once for all who wait: readers
//! who want to see everything acknowledged so far, and commands that were decided without an entry. A member that does
//! not lead asks the one that does.

use crate::desk::Quiet;
use crate::member::Shares;
use crate::peer::Peers;
use crate::peer::codec::{Answer, Request};
use crate::replica::Shared;
use crate::sync::lock;
use crate::types::{Cfg, Once};
use cvlan_core::machine::Machine;
use futures_util::task::AtomicWaker;
use openraft::async_runtime::{OneshotSender, WatchReceiver};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::OneshotReceiverOf;
use openraft::{AsyncRuntime, ReadPolicy};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

/// The leader is waited for this long.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// Readers that wait, at most.
const READERS: usize = 16_384;

/// Who waits.
struct Round<M: Machine, RT: AsyncRuntime> {
    quiet: Vec<Quiet<M, RT>>,
    readers: Vec<Once<RT, u64>>,
}

impl<M: Machine, RT: AsyncRuntime> Default for Round<M, RT> {
    fn default() -> Self {
        Self { quiet: Vec::new(), readers: Vec::new() }
    }
}

/// See the module.
pub(crate) struct Confirm<M: Machine, RT: AsyncRuntime> {
    next: Mutex<Option<Round<M, RT>>>,
    waker: AtomicWaker,
}

impl<M: Machine, RT: AsyncRuntime> Default for Confirm<M, RT> {
    fn default() -> Self {
        Self { next: Mutex::new(Some(Round::default())), waker: AtomicWaker::new() }
    }
}

impl<M: Machine, RT: AsyncRuntime> Confirm<M, RT> {
    /// Commands that were decided without an entry.
    pub(crate) fn quiet(&self, quiet: Quiet<M, RT>) {
        if let Some(round) = &mut *lock(&self.next) {
            round.quiet.push(quiet);
        }
        self.waker.wake();
    }

    /// The entry up to which a reader must have applied; no answer where nobody is known to lead.
    pub(crate) fn read(&self) -> OneshotReceiverOf<Cfg<RT>, u64> {
        let (tx, rx) = Cfg::<RT>::oneshot();
        if let Some(round) = &mut *lock(&self.next)
            && round.readers.len() < READERS
        {
            round.readers.push(tx);
        }
        self.waker.wake();
        rx
    }

    /// Nobody waits any longer.
    pub(crate) fn stop(&self) {
        let last = lock(&self.next).take();
        drop(last);
        self.waker.wake();
    }

    fn poll_round(&self, context: &mut Context<'_>) -> Poll<Option<Round<M, RT>>> {
        self.waker.register(context.waker());
        match &mut *lock(&self.next) {
            None => Poll::Ready(None),
            Some(round) if round.quiet.is_empty() && round.readers.is_empty() => Poll::Pending,
            Some(round) => Poll::Ready(Some(std::mem::take(round))),
        }
    }
}

/// Stops the member if this ends for another reason than that.
struct Watch<M: Machine, RT: AsyncRuntime>(Arc<Shared<M, RT>>);

impl<M: Machine, RT: AsyncRuntime> Drop for Watch<M, RT> {
    fn drop(&mut self) {
        self.0.ended("the confirmation of leadership");
    }
}

/// Runs until the member stops.
pub(crate) async fn run<M: Machine, RT: AsyncRuntime>(shares: Shares<M, RT>) {
    let Shares { shared, raft, peers } = shares;
    let watch = Watch(shared);
    let shared = &watch.0;
    let metrics = raft.server_metrics();
    while let Some(round) = std::future::poll_fn(|context| shared.confirm.poll_round(context)).await {
        let leader = metrics.borrow_watched().current_leader;
        let own = leader == Some(shared.member);
        let index = match leader {
            // The core knows whether its own vote is a majority, and answers at once where it is.
            Some(_) if own => {
                let read = raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
                read.ok().map(|read| read.read_log_id().index())
            }
            Some(leader) if !round.readers.is_empty() => ask(&peers, leader).await,
            Some(_) | None => None,
        };
        for quiet in round.quiet {
            shared.desk.confirmed(quiet, own && index.is_some());
        }
        for reader in round.readers {
            if let Some(index) = index {
                let _ = reader.send(index);
            }
        }
    }
}

async fn ask<RT: AsyncRuntime>(peers: &Peers<RT>, leader: u64) -> Option<u64> {
    match peers.link(leader).call(Request::ReadIndex, &[], ASK_LIMIT).await {
        Ok((Answer::Read { index }, _)) => Some(index),
        Ok(_) | Err(_) => None,
    }
}

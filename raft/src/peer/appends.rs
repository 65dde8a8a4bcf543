//! Requests to append from one connection, handed to Raft in the order in which they came.
//!
//! openraft takes that order for granted: what is sent after an entry counts on the entry being there. A task for each
//! request would not keep it: tasks that have to wait for a place in Raft's queue are not woken in their order.

use crate::peer::OPEN_REQUESTS;
use crate::peer::codec::Answer;
use crate::replica::Raft;
use crate::types::{Cfg, LogId, Tx};
use cvlan_core::machine::Machine;
use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt};
use openraft::AsyncRuntime;
use openraft::async_runtime::{MpscReceiver, MpscSender};
use openraft::errors::Fatal;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use openraft::type_config::TypeConfigExt;
use std::collections::VecDeque;
use std::pin::Pin;

type Results<RT> = Pin<Box<dyn Stream<Item = Result<StreamAppendResult<Cfg<RT>>, Fatal<Cfg<RT>>>> + Send>>;

/// A request that is not answered yet.
pub(crate) struct Due {
    /// Its id on the connection.
    pub(crate) id: u64,
    /// Bytes of its frame.
    pub(crate) length: usize,
    /// The last entry that is there once it is done.
    last: Option<LogId>,
}

/// See the module.
pub(crate) struct Appends<RT: AsyncRuntime> {
    feed: Tx<RT, AppendEntriesRequest<Cfg<RT>>>,
    results: Results<RT>,
    due: VecDeque<Due>,
    /// One was refused: what was sent behind it counted on it.
    over: bool,
    /// The last entry that was appended here.
    appended: Option<LogId>,
}

impl<RT: AsyncRuntime> Appends<RT> {
    pub(crate) fn new<M: Machine>(raft: &Raft<M, RT>) -> Self {
        // As many as may be open: handing one over never waits.
        let (feed, rx) = Cfg::<RT>::mpsc(OPEN_REQUESTS);
        let requests = unfold(rx, |mut rx| async move { rx.recv().await.map(|request| (request, rx)) });
        let results = Box::pin(raft.stream_append(requests));
        Self { feed, results, due: VecDeque::new(), over: false, appended: None }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }

    /// True for one without entries whose place is known to be reached: it needs no order, and must not wait for a disk.
    pub(crate) fn beats(&self, request: &AppendEntriesRequest<Cfg<RT>>) -> bool {
        request.entries.is_empty() && request.prev_log_id <= self.appended
    }

    pub(crate) async fn push<M: Machine>(
        &mut self,
        raft: &Raft<M, RT>,
        (id, length): (u64, usize),
        request: AppendEntriesRequest<Cfg<RT>>,
    ) {
        if self.over && self.due.is_empty() {
            let appended = self.appended;
            *self = Self { appended, ..Self::new(raft) };
        }
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        if !self.over && self.feed.send(request).await.is_err() {
            self.over = true;
        }
        self.due.push_back(Due { id, length, last });
    }

    /// The next answer; never where none is due. Safe to be dropped.
    pub(crate) async fn next(&mut self) -> (Due, Answer) {
        if self.due.is_empty() {
            return std::future::pending().await;
        }
        let result = if self.over { None } else { self.results.next().await };
        let Some(due) = self.due.pop_front() else { return std::future::pending().await };
        let answer = match result {
            Some(Ok(Ok(last))) if last == due.last => {
                self.appended = self.appended.max(last);
                return (due, Answer::Appended);
            }
            Some(Ok(Ok(_))) => Answer::Unable("only a part was appended".into()),
            Some(Ok(Err(StreamAppendError::Conflict(_)))) => Answer::Conflict,
            Some(Ok(Err(StreamAppendError::HigherVote(vote)))) => Answer::HigherVote((&vote).into()),
            Some(Err(fatal)) => Answer::Unable(fatal.to_string()),
            None => Answer::Unable("one before it was refused".into()),
        };
        self.over = true;
        (due, answer)
    }
}

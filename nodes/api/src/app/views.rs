//! The SQL views, seen from async code: fed by the log's observer, waited for by readers.

use crate::Log;
use crate::problem::Problem;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_core::machine::Machine;
use cvlan_core::{Rules, State};
use cvlan_projections::{Error, Past, Views, Writer};
use cvlan_proto::v1::Event;
use cvlan_raft::{Applied, Events, Head, HistoryError};
use http::StatusCode;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a reader waits for the view to be where it wants it.
pub const WAIT: Duration = Duration::from_secs(5);

/// The views and the thread that keeps them.
pub struct ViewFeed {
    views: Arc<Views>,
    /// `None` before the start and after the stop.
    writer: Mutex<Option<Writer>>,
    moved: watch::Sender<Checkpoint>,
}

impl From<Error> for Problem {
    fn from(e: Error) -> Self {
        match e {
            Error::Busy | Error::Log(_) | Error::Gap { .. } | Error::Fenced | Error::Standby | Error::Ahead { .. } => {
                Problem::later(StatusCode::SERVICE_UNAVAILABLE, e.code(), e.to_string(), 1)
            }
            Error::Cursor | Error::Sort { .. } | Error::Filter { .. } | Error::Search(_) => {
                Problem::invalid(e.code(), e.to_string())
            }
            Error::Sql(_) | Error::File(_) | Error::Column(_) => Problem::internal(e),
            Error::Postgres(_) | Error::Url(_) | Error::Foreign => Problem::internal(e),
        }
    }
}

impl ViewFeed {
    /// Opens the file; blocks.
    pub fn open(path: &Path) -> Result<Arc<Self>, Error> {
        let views = Arc::new(Views::open(path)?);
        let moved = watch::channel(views.checkpoint()?).0;
        Ok(Arc::new(Self { views, writer: Mutex::new(None), moved }))
    }

    /// Starts to follow the log, from the view's own checkpoint on.
    pub fn start(self: &Arc<Self>, log: &Log) -> Result<(), Error> {
        let (past, runtime) = (log.clone(), tokio::runtime::Handle::current());
        let history = move |from: Seq, limit: usize| {
            let page = runtime.block_on(past.history(from, limit)).map_err(|e| match e {
                HistoryError::Gone { first } => Past::Gone(first),
                HistoryError::Damaged(_) | HistoryError::Stopped => Past::Unavailable(e.to_string()),
            })?;
            let decode = |(_, bytes): (Seq, bytes::Bytes)| Rules::decode(&bytes);
            page.into_iter().map(decode).collect::<Result<Vec<_>, _>>().map_err(|e| Past::Unavailable(e.to_string()))
        };
        let feed = self.clone();
        let advanced = move |checkpoint| {
            feed.moved.send_replace(checkpoint);
        };
        let writer = Writer::start(self.views.clone(), Box::new(history), Box::new(advanced))?;
        *self.writer() = Some(writer);
        // What was applied between the recovery and here reached no observer that feeds the view.
        loop {
            let head = log.head();
            self.push(&head, NoEvents);
            if log.head().seq == head.seq {
                return Ok(());
            }
        }
    }

    /// Folds what was pushed and stops; blocks.
    pub fn stop(&self) {
        let writer = self.writer().take();
        drop(writer);
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, head: &Head<State>, events: impl std::ops::Deref<Target = [Event]> + Send + 'static) {
        if let Some(writer) = self.writer().as_ref() {
            writer.push(head.machine.clone(), head.checkpoint(), events);
        }
    }

    /// Takes an applied entry; never blocks.
    pub fn applied(&self, applied: &Applied<Rules>) {
        let events: Events<Event> = applied.events.clone();
        self.push(&applied.head, events);
    }

    /// Up to where the view is.
    pub fn checkpoint(&self) -> Checkpoint {
        *self.moved.borrow()
    }

    /// Waits until the view has seen everything up to there.
    pub async fn reach(&self, wanted: Checkpoint) -> Result<(), Problem> {
        let there = |at: &Checkpoint| at.epoch == wanted.epoch && at.seq >= wanted.seq;
        if there(&self.moved.borrow()) {
            return Ok(());
        }
        let mut moved = self.moved.subscribe();
        if let Some(writer) = self.writer().as_ref() {
            writer.want(wanted.seq);
        }
        let behind = || {
            let detail = format!("the view is not at event {} yet; try again", wanted.seq);
            Problem::later(StatusCode::SERVICE_UNAVAILABLE, "view_behind", detail, 1)
        };
        match tokio::time::timeout(WAIT, moved.wait_for(there)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(behind()),
        }
    }

    /// Reads on a thread that may block.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Views) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let views = self.views.clone();
        Ok(tokio::task::spawn_blocking(move || read(&views)).await.map_err(Problem::internal)??)
    }
}

struct NoEvents;

impl std::ops::Deref for NoEvents {
    type Target = [Event];
    fn deref(&self) -> &[Event] {
        &[]
    }
}

//! The SQL views, seen from async code: fed by the log's observer, waited for by readers.

use crate::Log;
use crate::problem::Problem;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_core::machine::Machine;
use cvlan_core::{Rules, State};
use cvlan_projections::{Error, History, Past, PostgresStatus, PostgresUrl, Views, Writer};
use cvlan_proto::v1::Event;
use cvlan_raft::{Applied, Events, Head, HistoryError};
use http::StatusCode;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// The second view, where one was asked for. Nobody here waits for it.
    postgres: Mutex<Option<Postgres>>,
}

struct Postgres {
    url: String,
    writer: Writer,
    status: Arc<PostgresStatus>,
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
        Ok(Arc::new(Self { views, writer: Mutex::new(None), moved, postgres: Mutex::new(None) }))
    }

    /// Starts to follow the log, from the view's own checkpoint on.
    pub fn start(self: &Arc<Self>, log: &Log) -> Result<(), Error> {
        let feed = self.clone();
        let advanced = move |checkpoint| {
            feed.moved.send_replace(checkpoint);
        };
        let writer = Writer::start(self.views.clone(), history(log), Box::new(advanced))?;
        *self.writer() = Some(writer);
        newest(log, |head| self.push(head, NoEvents));
        Ok(())
    }

    /// Starts to keep a view in PostgreSQL too, or to stand by for the member that does. Waits for nothing.
    pub fn start_postgres(&self, url: &PostgresUrl, log: &Log) -> Result<(), Error> {
        let leads = log.clone();
        let (writer, status) = Writer::postgres(url.clone(), history(log), Box::new(move || leads.leads()))?;
        *lock(&self.postgres) = Some(Postgres { url: url.to_string(), writer, status });
        newest(log, |head| self.push_postgres(head, NoEvents));
        Ok(())
    }

    /// The view in PostgreSQL: where it is, without a password, and how.
    pub fn postgres(&self) -> Option<(String, Arc<PostgresStatus>)> {
        lock(&self.postgres).as_ref().map(|p| (p.url.clone(), p.status.clone()))
    }

    /// Folds what was pushed and stops; blocks.
    pub fn stop(&self) {
        let (writer, postgres) = (self.writer().take(), lock(&self.postgres).take());
        drop((postgres, writer));
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        lock(&self.writer)
    }

    fn push_postgres(&self, head: &Head<State>, events: impl std::ops::Deref<Target = [Event]> + Send + 'static) {
        if let Some(postgres) = lock(&self.postgres).as_ref() {
            postgres.writer.push(head.machine.clone(), head.checkpoint(), events);
        }
    }

    fn push(&self, head: &Head<State>, events: impl std::ops::Deref<Target = [Event]> + Send + 'static) {
        if let Some(writer) = self.writer().as_ref() {
            writer.push(head.machine.clone(), head.checkpoint(), events);
        }
    }

    /// Takes an applied entry; never blocks.
    pub fn applied(&self, applied: &Applied<Rules>) {
        let events: Events<Event> = applied.events.clone();
        self.push_postgres(&applied.head, events.clone());
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

/// What was applied between the recovery and the start of a writer reached no observer that feeds it.
fn newest(log: &Log, push: impl Fn(&Head<State>)) {
    loop {
        let head = log.head();
        push(&head);
        if log.head().seq == head.seq {
            return;
        }
    }
}

/// Reads events for a view's thread.
fn history(log: &Log) -> History {
    let (past, runtime) = (log.clone(), tokio::runtime::Handle::current());
    Box::new(move |from: Seq, limit: usize| {
        let page = runtime.block_on(past.history(from, limit)).map_err(|e| match e {
            HistoryError::Gone { first } => Past::Gone(first),
            HistoryError::Damaged(_) | HistoryError::Stopped => Past::Unavailable(e.to_string()),
        })?;
        let decode = |(_, bytes): (Seq, bytes::Bytes)| Rules::decode(&bytes);
        page.into_iter().map(decode).collect::<Result<Vec<_>, _>>().map_err(|e| Past::Unavailable(e.to_string()))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct NoEvents;

impl std::ops::Deref for NoEvents {
    type Target = [Event];
    fn deref(&self) -> &[Event] {
        &[]
    }
}

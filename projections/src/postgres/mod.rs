//! The same tables in PostgreSQL 16, for reports and other outside readers. No door reads them.
//!
//! ```text
//!  candidates (members with --views) ── session advisory lock ──► one writer, the others stand by
//!
//!  writer: BEGIN ─► UPDATE meta … WHERE it is where I left it (the fence) ─► COPY into temporary tables ─► merge ─► COMMIT
//! ```
//! Invariants: the lock chooses, the fence guards: who was taken for lost and comes back moves nothing. What is not known to
//! be committed is asked of the database, never assumed: every failure ends the session, and the next one reads `meta`.
//! Nothing waits here for longer than a named time, and nothing of the member waits for what is here: it has a thread of
//! its own, and keeps a checkpoint instead of a queue.
//!
//! Start reading at `session.rs`, then `stage.rs`. Deliberately absent: a pool (there is one writer),
//! compile-time checked queries (the statements follow from the nouns' tables; a test prepares each on a real server).

#[cfg(test)]
mod figures;
mod schema;
mod session;
mod stage;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod url;

pub use url::PostgresUrl;

use crate::error::Error;
use crate::writer::Target;
use cvlan_core::State;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_proto::v1::Event;
use session::{Session, Shell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// How the PostgreSQL view is, as this member knows it.
#[derive(Debug, Default)]
pub struct PostgresStatus {
    up: AtomicBool,
    writer: AtomicBool,
    rebuilds: AtomicU64,
    failures: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    checkpoint: Checkpoint,
    error: String,
}

impl PostgresStatus {
    /// The database answers.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// This member writes it.
    pub fn is_writer(&self) -> bool {
        self.writer.load(Ordering::Relaxed)
    }

    /// Times that this process wrote it anew.
    pub fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Relaxed)
    }

    /// Times that this process could not write it, standing by apart.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Up to where it was the last time that this process looked.
    pub fn checkpoint(&self) -> Checkpoint {
        self.seen().checkpoint
    }

    /// Why it is not written by this member; empty = it is.
    pub fn error(&self) -> String {
        self.seen().error.clone()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_at(&self, checkpoint: Checkpoint) {
        self.up.store(true, Ordering::Relaxed);
        self.seen().checkpoint = checkpoint;
    }

    fn writes(&self) {
        self.writer.store(true, Ordering::Relaxed);
        self.seen().error.clear();
    }

    fn failed(&self, error: &Error) {
        self.writer.store(false, Ordering::Relaxed);
        if !matches!(error, Error::Standby) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        // With any other one it is there.
        if matches!(error, Error::Postgres(_)) {
            self.up.store(false, Ordering::Relaxed);
        }
        self.seen().error = error.to_string();
    }
}

/// The database that a [`Writer`](crate::Writer) keeps up with the log.
pub(crate) struct Postgres {
    url: PostgresUrl,
    leads: Box<dyn Fn() -> bool + Send>,
    stop: watch::Receiver<bool>,
    status: Arc<PostgresStatus>,
    shell: Option<Arc<Shell>>,
    /// `None` = whatever was there is not to be trusted any more.
    session: Option<Session>,
}

pub(crate) type Interrupt = Box<dyn Fn() + Send + Sync>;

impl Postgres {
    /// Connects to nothing yet. The interrupt makes every call return at once, for ever.
    pub(crate) fn new(url: PostgresUrl, leads: Box<dyn Fn() -> bool + Send>) -> (Self, Interrupt) {
        let (stopper, stop) = watch::channel(false);
        let new = Self { url, leads, stop, status: Arc::default(), shell: None, session: None };
        let interrupt = move || {
            stopper.send_replace(true);
        };
        (new, Box::new(interrupt))
    }

    pub(crate) fn status(&self) -> Arc<PostgresStatus> {
        self.status.clone()
    }

    /// A session that may write, with its lock, tables and checkpoint.
    fn session(&mut self) -> Result<&mut Session, Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                let shell = match &self.shell {
                    Some(shell) => shell.clone(),
                    None => self.shell.insert(Arc::new(Shell::new(self.stop.clone())?)).clone(),
                };
                Session::connect(shell, &self.url)?
            }
        };
        if !session.is_writer() {
            if !session.lock()? {
                self.status.is_at(session.there()?);
                self.session = Some(session);
                return Err(Error::Standby);
            }
            session.prepare()?;
        }
        Ok(self.session.insert(session))
    }
}

impl Target for Postgres {
    fn meta(&mut self) -> Result<(Checkpoint, Seq), Error> {
        let session = self.session()?;
        let found = (session.at, session.audit_from);
        self.status.is_at(found.0);
        self.status.writes();
        Ok(found)
    }

    fn fold(&mut self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error> {
        let to = self.session()?.fold(state, events)?;
        self.status.is_at(to);
        Ok(to)
    }

    fn rebuild(&mut self, state: &State, to: Checkpoint) -> Result<(), Error> {
        let leads = (self.leads)();
        let session = self.session()?;
        if session.is_foreign(to.epoch) && !leads {
            return Err(Error::Foreign);
        }
        session.rebuild(state, to)?;
        self.status.rebuilds.fetch_add(1, Ordering::Relaxed);
        self.status.is_at(to);
        Ok(())
    }

    fn backfill(&mut self, events: &[Event]) -> Result<(), Error> {
        self.session()?.backfill(events)
    }

    /// Also gives up the lock with its connection, so that another member may try.
    fn failed(&mut self, error: &Error) {
        if !matches!(error, Error::Standby) {
            self.session = None;
        }
        self.status.failed(error);
    }

    fn is_damaged(&self) -> bool {
        false
    }

    fn is_astray(&mut self) -> bool {
        let Some(session) = &mut self.session else { return true };
        match session.look() {
            Ok(there) => there != session.at,
            Err(error) => {
                self.failed(&error);
                true
            }
        }
    }

    fn is_own(&self) -> bool {
        false
    }
}

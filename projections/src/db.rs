//! The file: one connection that writes, a few that read, and what happens when it is damaged.

use crate::audit::{self, AuditPage, AuditQuery};
use crate::error::Error;
use crate::list::{self, Page, Query};
use crate::{cvlan, meta, node, sqlite, tenant, token, user};
use cvlan_core::State;
use cvlan_core::id::{Checkpoint, Seq, TenantId};
use cvlan_proto::v1::{self, Event};
use rusqlite::{Connection, OptionalExtension};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// Connections that read at the same time.
const READERS: usize = 4;
/// How long a read waits for one of them.
const READER_WAIT: Duration = Duration::from_secs(5);
/// Prepared statements a connection keeps; there are fewer shapes of lists in use than that.
const STATEMENTS: usize = 128;

/// Views of the state in a SQLite file. Every call blocks: from async code, call it on a thread that may.
pub struct Views {
    path: PathBuf,
    file: RwLock<Arc<File>>,
    damaged: AtomicBool,
}

/// One incarnation of the file.
struct File {
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    returned: Condvar,
}

impl Views {
    /// Opens or makes the file. One that is damaged, or of another schema, is replaced by an empty one at checkpoint 0:
    /// its [`Writer`](crate::Writer) then rebuilds it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let file = match File::open(&path) {
            Ok(Some(file)) => file,
            Ok(None) => File::replace(&path, "of another schema")?,
            Err(error) if error.is_damage() => File::replace(&path, &error.to_string())?,
            Err(error) => return Err(error),
        };
        Ok(Self { path, file: RwLock::new(Arc::new(file)), damaged: AtomicBool::new(false) })
    }

    /// The checkpoint, and the first event that the audit knows of.
    pub(crate) fn meta(&self) -> Result<(Checkpoint, Seq), Error> {
        self.read(meta::read)
    }

    /// Up to where everything is in.
    pub fn checkpoint(&self) -> Result<Checkpoint, Error> {
        self.read(|db| Ok(meta::read(db)?.0))
    }

    /// The first event that the audit knows of; 1 = it is complete.
    pub fn audit_from(&self) -> Result<Seq, Error> {
        self.read(|db| Ok(meta::read(db)?.1))
    }

    /// Folds the events that follow the view's checkpoint; `state` is at or after the last of them.
    pub fn fold(&self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error> {
        self.write(|db| {
            let was = meta::read(db)?.0;
            sqlite::fold(db, was, state, events)
        })
    }

    /// Writes everything anew, as `state` has it at `checkpoint`. The audit starts after it.
    pub fn rebuild(&self, state: &State, checkpoint: Checkpoint) -> Result<(), Error> {
        let damaged = self.is_damaged();
        if damaged {
            let file = File::replace(&self.path, "found damaged")?;
            *self.file.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
        }
        self.write(|db| {
            let was = meta::read(db)?.0;
            sqlite::rebuild(db, was, state, checkpoint)
        })?;
        if damaged {
            self.damaged.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Adds events to the audit that come right before its first one. Returns its new first one.
    pub fn audit_backfill(&self, events: &[Event]) -> Result<Seq, Error> {
        self.write(|db| {
            let was = meta::read(db)?.0;
            sqlite::backfill(db, was, events)
        })
    }

    /// A page of tenants; `only` = the one that the caller may see, `None` = all.
    pub fn tenants(&self, only: Option<TenantId>, query: &Query) -> Result<Page<v1::Tenant>, Error> {
        self.read(|db| list::page(db, &tenant::TABLE, only, query, tenant::read))
    }

    /// A page of a tenant's CVLANs.
    pub fn cvlans(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Cvlan>, Error> {
        self.read(|db| list::page(db, &cvlan::TABLE, Some(tenant), query, cvlan::read))
    }

    /// A page of a tenant's nodes; presence is the door's to add.
    pub fn nodes(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Node>, Error> {
        self.read(|db| list::page(db, &node::TABLE, Some(tenant), query, node::read))
    }

    /// A page of a tenant's tokens, judged at [`Query::now_ms`].
    pub fn tokens(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Token>, Error> {
        self.read(|db| list::page(db, &token::TABLE, Some(tenant), query, token::read))
    }

    /// A page of a tenant's users; nil = the global ones.
    pub fn users(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::User>, Error> {
        self.read(|db| list::page(db, &user::TABLE, Some(tenant), query, user::read))
    }

    /// A page of the audit.
    pub fn audit(&self, query: &AuditQuery) -> Result<AuditPage, Error> {
        self.read(|db| audit::page(db, query))
    }

    /// True once a read or write met damage: reads say [`Error::Busy`] until [`Views::rebuild`] has replaced the file.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        if self.is_damaged() {
            return Err(Error::Busy);
        }
        let file = self.current();
        let db = file.reader()?;
        // One transaction: what is read is of the same moment.
        let result = db.unchecked_transaction().map_err(Error::from).and_then(|tx| f(&tx));
        file.give_back(db);
        self.note(result)
    }

    fn write<T>(&self, f: impl FnOnce(&mut Connection) -> Result<T, Error>) -> Result<T, Error> {
        let file = self.current();
        let result = f(&mut lock(&file.writer));
        self.note(result)
    }

    fn note<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        match result {
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, path = %self.path.display(), "the view is damaged");
                self.damaged.store(true, Ordering::Release);
                Err(Error::Busy)
            }
            result => result,
        }
    }

    fn current(&self) -> Arc<File> {
        self.file.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl File {
    /// `None` = its tables are of another schema.
    fn open(path: &Path) -> Result<Option<Self>, Error> {
        let mut writer = writer(path)?;
        let tables: i64 = writer.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            sqlite::create(&mut writer)?;
        }
        let has_meta = "SELECT COUNT(*) FROM sqlite_schema WHERE name = 'meta'";
        let schema: Option<i64> = match writer.query_row(has_meta, [], |row| row.get(0))? {
            0i64 => None,
            _ => writer.query_row(meta::SCHEMA, [], |row| row.get(0)).optional()?,
        };
        if schema != Some(sqlite::schema()) {
            return Ok(None);
        }
        let readers = (0..READERS).map(|_| reader(path)).collect::<Result<_, _>>()?;
        Ok(Some(Self { writer: Mutex::new(writer), readers: Mutex::new(readers), returned: Condvar::new() }))
    }

    /// Throws the file away and makes an empty one. Readers of the old one finish on it.
    fn replace(path: &Path, why: &str) -> Result<Self, Error> {
        tracing::warn!(path = %path.display(), why, "the view is thrown away and rebuilt");
        for tail in ["", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(tail);
            match std::fs::remove_file(PathBuf::from(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Self::open(path)?.ok_or(Error::Fenced)
    }

    fn reader(&self) -> Result<Connection, Error> {
        let free = lock(&self.readers);
        let waited = self.returned.wait_timeout_while(free, READER_WAIT, |free| free.is_empty());
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        free.pop().ok_or(Error::Busy)
    }

    fn give_back(&self, db: Connection) {
        lock(&self.readers).push(db);
        self.returned.notify_one();
    }
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_millis(5000))?;
    // NORMAL: a power cut may lose the newest folds, never tear one; the log has them.
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY")?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

fn writer(path: &Path) -> Result<Connection, Error> {
    let db = connect(path)?;
    // Folds touch pages all over the indexes: 16 MiB of them in memory, and the same again in the write-ahead log
    // before it is moved into the file, so that a page that many folds touch is moved once.
    db.execute_batch(
        "PRAGMA cache_size = -16384; PRAGMA wal_autocheckpoint = 4096; PRAGMA journal_size_limit = 67108864",
    )?;
    Ok(db)
}

fn reader(path: &Path) -> Result<Connection, Error> {
    let db = connect(path)?;
    db.execute_batch("PRAGMA query_only = ON")?;
    Ok(db)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! One connection: the lock, the tables, and each change in one transaction.

use super::schema;
use super::stage::Stage;
use super::url::PostgresUrl;
use crate::error::Error;
use crate::table::int;
use crate::{fold, meta};
use cvlan_core::State;
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use cvlan_proto::v1::Event;
use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// To connect.
const CONNECT: Duration = Duration::from_secs(5);
/// A statement on a fold's rows.
const STATEMENT: Duration = Duration::from_secs(60);
/// A statement on all rows.
pub(super) const WHOLE: Duration = Duration::from_secs(30 * 60);

/// "cvlan" and a number: who holds this lock of the database writes.
pub(super) const LOCK: i64 = 0x63_76_6c_61_6e_01;
pub(super) const TRY_LOCK: &str = "SELECT pg_try_advisory_lock($1)";
/// A writer looks at `meta` every second. One that was not heard for longer (its machine hangs, or is cut off) holds up the
/// others no more; should it wake up, the fence stops it.
pub(super) const END_SILENT: &str = "
SELECT pg_terminate_backend(a.pid)
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid AND a.datname = current_database()
WHERE l.locktype = 'advisory' AND l.granted AND l.classid = ($1 >> 32)::oid AND l.objid = ($1 & 4294967295)::oid
  AND l.database = a.datid AND a.state <> 'active' AND a.state_change < clock_timestamp() - interval '30 s'";
/// The server, too, gives up on a writer that is gone; what an older or other one does not know is left as it is.
const SETTINGS: [&str; 7] = [
    "SET search_path = cvlan",
    "SET idle_in_transaction_session_timeout = '60s'",
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
    "SET tcp_user_timeout = 30000",
    "SET client_connection_check_interval = 5000",
];
pub(super) const THERE: &str = "SELECT to_regclass('cvlan.meta') IS NOT NULL";

/// Runs what PostgreSQL is asked, on the calling thread, until it is done, late, or not wanted any more.
pub(super) struct Shell {
    runtime: Runtime,
    stop: watch::Receiver<bool>,
}

impl Shell {
    pub(super) fn new(stop: watch::Receiver<bool>) -> Result<Self, Error> {
        Ok(Self { runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?, stop })
    }

    pub(super) fn run<T>(&self, limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> Result<T, Error> {
        let mut stop = self.stop.clone();
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop) => Err(Error::Log("this member stops".to_owned())),
                done = tokio::time::timeout(limit, work) => match done {
                    Ok(done) => done.map_err(|e| said(&e)),
                    Err(_) => Err(Error::Postgres(format!("no answer within {} s", limit.as_secs()))),
                },
            }
        })
    }
}

/// What the server said, with what helps, on one line.
fn said(error: &sqlx::Error) -> Error {
    let database = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
    let text = match database {
        Some(e) => {
            let more = [e.detail(), e.hint()].into_iter().flatten().map(|more| format!("; {more}")).collect::<String>();
            format!("{} ({}){more}", e.message(), e.code())
        }
        None => error.to_string(),
    };
    Error::Postgres(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What is in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It was not looked at: another one writes.
    Unknown,
    /// No tables of ours.
    Nothing,
    /// Tables of another version.
    Other,
    /// Our tables, at [`Session::at`].
    Ours,
}

/// A connection, and what is known by it.
pub(super) struct Session {
    // Dropped first: it belongs to the shell's runtime.
    conn: PgConnection,
    shell: Arc<Shell>,
    found: Found,
    /// Where this writer left the view.
    pub(super) at: Checkpoint,
    /// The first event that the audit knows of.
    pub(super) audit_from: Seq,
}

impl Session {
    pub(super) fn connect(shell: Arc<Shell>, url: &PostgresUrl) -> Result<Self, Error> {
        let options = url.options()?.application_name("cvlan");
        let mut conn = shell.run(CONNECT, async move { options.connect().await })?;
        for setting in SETTINGS {
            match shell.run(STATEMENT, sqlx::raw_sql(setting).execute(&mut conn)) {
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, setting, "not set"),
            }
        }
        Ok(Self { conn, shell, found: Found::Unknown, at: Checkpoint::default(), audit_from: Seq(1) })
    }

    pub(super) fn is_writer(&self) -> bool {
        self.found != Found::Unknown
    }

    /// True where what is there is not this log's, or of another version.
    pub(super) fn is_foreign(&self, epoch: Epoch) -> bool {
        match self.found {
            Found::Unknown | Found::Nothing => false,
            Found::Other => true,
            Found::Ours => self.at.epoch != epoch && self.at != Checkpoint::default(),
        }
    }

    /// Asks for the lock; false where another one has it.
    pub(super) fn lock(&mut self) -> Result<bool, Error> {
        let Self { conn, shell, .. } = self;
        let locked: bool = shell.run(STATEMENT, sqlx::query_scalar(TRY_LOCK).bind(LOCK).fetch_one(&mut *conn))?;
        if !locked {
            shell.run(STATEMENT, sqlx::query(END_SILENT).bind(LOCK).execute(&mut *conn))?;
        }
        Ok(locked)
    }

    /// As if another one had it: the fence alone is left.
    #[cfg(test)]
    pub(super) fn unlock(&mut self) {
        self.execute("SELECT pg_advisory_unlock_all()").unwrap();
    }

    /// Where the view is, for one that does not write it.
    pub(super) fn there(&mut self) -> Result<Checkpoint, Error> {
        let there: bool = self.shell.run(STATEMENT, sqlx::query_scalar(THERE).fetch_one(&mut self.conn))?;
        if there { self.look() } else { Ok(Checkpoint::default()) }
    }

    /// Looks whether the tables are there and ours, and where they are.
    pub(super) fn prepare(&mut self) -> Result<(), Error> {
        let Self { conn, shell, .. } = self;
        let there: bool = shell.run(STATEMENT, sqlx::query_scalar(THERE).fetch_one(&mut *conn))?;
        let schema: Option<i64> = match there {
            true => shell.run(STATEMENT, sqlx::query_scalar(meta::SCHEMA).fetch_optional(&mut *conn))?,
            false => None,
        };
        self.found = match (there, schema == Some(schema::version())) {
            (true, true) => Found::Ours,
            (true, false) => Found::Other,
            (false, _) => Found::Nothing,
        };
        if self.found == Found::Ours {
            self.stages()?;
            self.at = self.look()?;
        }
        Ok(())
    }

    /// Reads `meta`, and so tells the database that this member lives.
    pub(super) fn look(&mut self) -> Result<Checkpoint, Error> {
        let row = self.shell.run(STATEMENT, sqlx::query(meta::READ).fetch_one(&mut self.conn))?;
        let number = |at: usize| row.try_get::<i64, _>(at).map(|n| Seq(u64::try_from(n).unwrap_or_default()));
        let read = || {
            let epoch: &[u8] = row.try_get(0)?;
            Ok::<_, sqlx::Error>((<[u8; 16]>::try_from(epoch).unwrap_or_default(), number(1)?, number(2)?))
        };
        let (epoch, seq, audit_from) = read().map_err(|e| said(&e))?;
        self.audit_from = audit_from;
        Ok(Checkpoint { epoch: Epoch(epoch), seq })
    }

    pub(super) fn fold(&mut self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error> {
        let seq = events.last().map_or(self.at.seq, |e| Seq(e.seq));
        let (was, to, audit_from) = (self.at, Checkpoint { seq, ..self.at }, self.audit_from);
        self.begin(to, audit_from)?;
        let mut stage = Stage::new(&mut self.conn, &self.shell, STATEMENT);
        fold::fold(&mut stage, was, state, events)?;
        stage.merge()?;
        self.commit(to, audit_from)?;
        Ok(to)
    }

    pub(super) fn rebuild(&mut self, state: &State, to: Checkpoint) -> Result<(), Error> {
        let audit_from = Seq(to.seq.0 + 1);
        if self.found == Found::Ours {
            self.begin(to, audit_from)?;
        } else {
            // Readers see the old tables, or the new ones with everything in them.
            self.execute("BEGIN")?;
            schema::create(&mut self.conn, &self.shell)?;
            self.stages()?;
            self.at = Checkpoint::default();
            self.fence(to, audit_from)?;
        }
        let mut stage = Stage::new(&mut self.conn, &self.shell, WHOLE);
        fold::all(&mut stage, state)?;
        stage.replace()?;
        self.commit(to, audit_from)?;
        self.found = Found::Ours;
        Ok(())
    }

    pub(super) fn backfill(&mut self, events: &[Event]) -> Result<(), Error> {
        let from = events.first().map_or(self.audit_from, |e| Seq(e.seq));
        let (at, audit_from) = (self.at, self.audit_from);
        self.begin(at, from)?;
        let mut stage = Stage::new(&mut self.conn, &self.shell, STATEMENT);
        fold::backfill(&mut stage, audit_from, events)?;
        stage.merge()?;
        self.commit(at, from)
    }

    fn begin(&mut self, to: Checkpoint, audit_from: Seq) -> Result<(), Error> {
        self.execute("BEGIN")?;
        self.fence(to, audit_from)
    }

    /// Moves the checkpoint from where this writer left it; holds up another writer until the end of the transaction.
    fn fence(&mut self, to: Checkpoint, audit_from: Seq) -> Result<(), Error> {
        let moved = sqlx::query(meta::MOVE)
            .bind(to.epoch.0)
            .bind(int(to.seq.0))
            .bind(int(audit_from.0))
            .bind(self.at.epoch.0)
            .bind(int(self.at.seq.0))
            .execute(&mut self.conn);
        match self.shell.run(STATEMENT, moved)?.rows_affected() {
            1 => Ok(()),
            _ => Err(Error::Fenced),
        }
    }

    fn commit(&mut self, to: Checkpoint, audit_from: Seq) -> Result<(), Error> {
        self.execute("COMMIT")?;
        (self.at, self.audit_from) = (to, audit_from);
        Ok(())
    }

    /// The tables that rows are copied into first; they are this session's, and empty after each transaction.
    fn stages(&mut self) -> Result<(), Error> {
        meta::TABLES.iter().try_for_each(|table| {
            let sql = format!("CREATE TEMPORARY TABLE stage_{0} (LIKE {0}) ON COMMIT DELETE ROWS", table.name);
            self.shell.run(STATEMENT, sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.conn)).map(drop)
        })
    }

    fn execute(&mut self, sql: &'static str) -> Result<(), Error> {
        self.shell.run(STATEMENT, sqlx::raw_sql(sql).execute(&mut self.conn)).map(drop)
    }
}

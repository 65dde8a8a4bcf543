//! A database of a real server for one test, and what tests read from it.

#[path = "../../tests/postgres/server.rs"]
mod server;

pub(crate) use server::Server;

use super::session::Shell;
use super::{Postgres, PostgresUrl};
use crate::audit::{self, AuditPage, AuditQuery};
use crate::error::Error;
use crate::list::{self, Ask, Page, Query, Sql};
use crate::table::{Reader, Value};
use crate::testing::{Lists, rows};
use crate::writer::Target;
use crate::{cvlan, node, tenant, token, user};
use cvlan_core::State;
use cvlan_core::id::{Checkpoint, TenantId};
use cvlan_proto::v1::{self, Event};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Column, ConnectOptions, PgConnection, Row, TypeInfo};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use uuid::Uuid;

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// An empty database.
pub(crate) struct Database {
    pub(crate) server: Arc<Server>,
    name: String,
}

impl Database {
    /// On the server that tests share; `None` where there is none.
    pub(crate) fn new() -> Option<Self> {
        Some(Self::on(Server::shared()?))
    }

    pub(crate) fn on(server: Arc<Server>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Asked::connect(&server.url("postgres")).execute(&format!("CREATE DATABASE {name}"));
        Self { server, name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> PostgresUrl {
        self.server.url(&self.name).parse().unwrap()
    }

    /// One that writes it, and leads.
    pub(crate) fn target(&self) -> Postgres {
        Postgres::new(self.url(), Box::new(|| true)).0
    }

    /// One that reads it, as the superuser.
    pub(crate) fn asked(&self) -> Asked {
        self.asked_by("postgres")
    }

    /// One that reads it as somebody else.
    pub(crate) fn asked_by(&self, user: &str) -> Asked {
        Asked::connect(&self.server.url_of(user, &self.name))
    }

    /// With who writes it.
    pub(crate) fn view(self, target: Postgres) -> PostgresView {
        let asked = self.asked();
        asked.execute("SET search_path = cvlan");
        PostgresView { target: RefCell::new(target), asked, _database: self }
    }

    /// Every row of every table.
    pub(crate) fn dump(&self) -> Vec<String> {
        let asked = self.asked();
        asked.execute("SET search_path = cvlan");
        rows(&asked)
    }
}

/// A connection that reads.
pub(crate) struct Asked {
    conn: RefCell<PgConnection>,
    shell: Shell,
}

impl Asked {
    fn connect(url: &str) -> Self {
        let stop = tokio::sync::watch::channel(false);
        let shell = Shell::new(stop.1).unwrap();
        std::mem::forget(stop.0);
        let options = url.parse::<PostgresUrl>().unwrap().options().unwrap();
        let conn = RefCell::new(shell.run(LONG, async move { options.connect().await }).unwrap());
        Self { conn, shell }
    }

    pub(crate) fn execute(&self, sql: &str) {
        self.try_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub(crate) fn try_execute(&self, sql: &str) -> Result<u64, Error> {
        let conn = &mut *self.conn.borrow_mut();
        let done = self.shell.run(LONG, sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(conn))?;
        Ok(done.rows_affected())
    }

    /// The server takes it as a statement; the number of its arguments.
    pub(crate) fn prepare(&self, sql: &str) -> Result<(), Error> {
        self.try_execute(&format!("PREPARE tried AS {sql}"))?;
        self.try_execute("DEALLOCATE tried").map(drop)
    }

    pub(crate) fn number(&self, sql: &str) -> i64 {
        let conn = &mut *self.conn.borrow_mut();
        self.shell.run(LONG, sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(conn)).unwrap()
    }
}

impl Ask for Asked {
    fn ask(&self, sql: &Sql, each: &mut dyn FnMut(&mut Reader<'_>) -> Result<bool, Error>) -> Result<(), Error> {
        let mut query = sqlx::query(AssertSqlSafe(sql.text.clone()));
        for arg in &sql.args {
            query = match arg {
                Value::Null => query.bind(None::<i64>),
                Value::Int(n) => query.bind(*n),
                Value::Text(text) => query.bind(text.clone()),
                Value::Bytes(id) => query.bind(Uuid::from_slice(id).unwrap()),
            };
        }
        for row in self.shell.run(LONG, query.fetch_all(&mut *self.conn.borrow_mut()))? {
            let mut values = (0..row.columns().len()).map(|i| Ok(value(&row, i)));
            if !each(&mut Reader::new(&mut values))? {
                break;
            }
        }
        Ok(())
    }
}

fn value(row: &PgRow, at: usize) -> Value {
    let some = match row.column(at).type_info().name() {
        "INT8" => row.get::<Option<i64>, _>(at).map(Value::Int),
        "TEXT" => row.get::<Option<String>, _>(at).map(Value::Text),
        "UUID" => row.get::<Option<Uuid>, _>(at).map(|id| Value::Bytes(id.as_bytes().to_vec())),
        "BYTEA" => row.get::<Option<Vec<u8>>, _>(at).map(Value::Bytes),
        other => panic!("no column of ours is of type {other}"),
    };
    some.unwrap_or(Value::Null)
}

/// A view that lists are asked of, as of the one in SQLite.
pub(crate) struct PostgresView {
    target: RefCell<Postgres>,
    asked: Asked,
    _database: Database,
}

impl Lists for PostgresView {
    fn tenants(&self, only: Option<TenantId>, query: &Query) -> Result<Page<v1::Tenant>, Error> {
        list::page(&self.asked, &tenant::TABLE, only, query, tenant::read)
    }

    fn cvlans(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Cvlan>, Error> {
        list::page(&self.asked, &cvlan::TABLE, Some(tenant), query, cvlan::read)
    }

    fn nodes(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Node>, Error> {
        list::page(&self.asked, &node::TABLE, Some(tenant), query, node::read)
    }

    fn tokens(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::Token>, Error> {
        list::page(&self.asked, &token::TABLE, Some(tenant), query, token::read)
    }

    fn users(&self, tenant: TenantId, query: &Query) -> Result<Page<v1::User>, Error> {
        list::page(&self.asked, &user::TABLE, Some(tenant), query, user::read)
    }

    fn audit(&self, query: &AuditQuery) -> Result<AuditPage, Error> {
        audit::page(&self.asked, query)
    }

    fn fold(&self, state: &State, events: &[&Event]) -> Result<Checkpoint, Error> {
        self.target.borrow_mut().fold(state, events)
    }
}

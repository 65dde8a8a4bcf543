//! Rows on their way: COPY into a temporary table, then one statement that merges them into the view's.
//!
//! Two round trips a table, however many rows there are; and a rebuild writes only what differs, into the tables that are
//! there: no lock that readers feel, and what others have built on them (views, grants) stays.

use super::session::Shell;
use crate::error::Error;
use crate::meta;
use crate::table::{Cell, Table, Tables};
use sqlx::{AssertSqlSafe, PgConnection};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Bytes that are gathered before they are sent.
const CHUNK: usize = 1 << 20;
/// Of the binary format (PostgreSQL 16, COPY): signature, flags, length of the header's extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1i16).to_be_bytes();
const NULL: [u8; 4] = (-1i32).to_be_bytes();

/// The rows of one transaction.
pub(super) struct Stage<'s> {
    conn: &'s mut PgConnection,
    shell: &'s Shell,
    limit: Duration,
    /// By the table's name.
    staged: BTreeMap<&'static str, Staged>,
    sweeps: Vec<(&'static Table, Uuid)>,
}

struct Staged {
    table: &'static Table,
    rows: Vec<u8>,
    takes: Vec<Uuid>,
    copied: bool,
}

impl<'s> Stage<'s> {
    pub(super) fn new(conn: &'s mut PgConnection, shell: &'s Shell, limit: Duration) -> Self {
        Self { conn, shell, limit, staged: BTreeMap::new(), sweeps: Vec::new() }
    }

    /// Brings what was put and taken into the tables.
    pub(super) fn merge(mut self) -> Result<(), Error> {
        for (table, tenant) in std::mem::take(&mut self.sweeps) {
            let sweep = sqlx::query(AssertSqlSafe(table.sql().sweep.as_str())).bind(tenant);
            self.shell.run(self.limit, sweep.execute(&mut *self.conn))?;
        }
        for (_, mut staged) in std::mem::take(&mut self.staged) {
            if !staged.takes.is_empty() {
                let delete = sqlx::query(AssertSqlSafe(take(staged.table))).bind(std::mem::take(&mut staged.takes));
                self.shell.run(self.limit, delete.execute(&mut *self.conn))?;
            }
            self.copy(&mut staged)?;
            if staged.copied {
                self.execute(upsert(staged.table))?;
            }
        }
        Ok(())
    }

    /// Makes the tables what was put, and the audit empty.
    pub(super) fn replace(mut self) -> Result<(), Error> {
        let mut all = std::mem::take(&mut self.staged);
        for staged in all.values_mut() {
            self.copy(staged)?;
        }
        for table in meta::TABLES {
            self.execute(leave(table))?;
            if all.get(table.name).is_some_and(|staged| staged.copied) {
                self.execute(upsert(table))?;
            }
        }
        Ok(())
    }

    fn staged(&mut self, table: &'static Table) -> &mut Staged {
        let new = || Staged { table, rows: Vec::new(), takes: Vec::new(), copied: false };
        self.staged.entry(table.name).or_insert_with(new)
    }

    fn copy(&mut self, staged: &mut Staged) -> Result<(), Error> {
        if staged.rows.is_empty() {
            return Ok(());
        }
        staged.rows.extend(TRAILER);
        let (sql, rows, conn) = (copy(staged.table), std::mem::take(&mut staged.rows), &mut *self.conn);
        let send = async move {
            let mut copy = conn.copy_in_raw(&sql).await?;
            copy.send(rows).await?;
            copy.finish().await
        };
        self.shell.run(self.limit, send)?;
        staged.copied = true;
        Ok(())
    }

    fn execute(&mut self, sql: String) -> Result<(), Error> {
        self.shell.run(self.limit, sqlx::query(AssertSqlSafe(sql)).execute(&mut *self.conn)).map(drop)
    }
}

impl Tables for Stage<'_> {
    fn put(&mut self, table: &'static Table, row: &[Cell<'_>]) -> Result<(), Error> {
        let staged = self.staged(table);
        if staged.rows.is_empty() {
            staged.rows.extend(HEADER);
        }
        encode(&mut staged.rows, row);
        if staged.rows.len() >= CHUNK
            && let Some(mut full) = self.staged.remove(table.name)
        {
            let copied = self.copy(&mut full);
            self.staged.insert(table.name, full);
            return copied;
        }
        Ok(())
    }

    fn take(&mut self, table: &'static Table, id: Uuid) -> Result<(), Error> {
        self.staged(table).takes.push(id);
        Ok(())
    }

    fn sweep(&mut self, table: &'static Table, tenant: Uuid) -> Result<(), Error> {
        self.sweeps.push((table, tenant));
        Ok(())
    }
}

/// One row of the binary format: the number of fields, then each one's length and bytes.
fn encode(out: &mut Vec<u8>, row: &[Cell<'_>]) {
    // Tables have a dozen columns, cells a few kilobytes.
    out.extend(i16::try_from(row.len()).unwrap_or(i16::MAX).to_be_bytes());
    let field = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend(i32::try_from(bytes.len()).unwrap_or(i32::MAX).to_be_bytes());
        out.extend(bytes);
    };
    for cell in row {
        match cell {
            Cell::Null => out.extend(NULL),
            Cell::Id(id) => field(out, id.as_bytes()),
            Cell::Bytes(bytes) => field(out, bytes),
            Cell::Text(text) => field(out, storable(text).as_bytes()),
            Cell::Int(n) => field(out, &n.to_be_bytes()),
        }
    }
}

/// PostgreSQL's text cannot hold a NUL: the replacement character stands for it.
fn storable(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => Cow::Owned(text.replace('\0', "\u{fffd}")),
        false => Cow::Borrowed(text),
    }
}

pub(super) fn copy(table: &Table) -> String {
    format!("COPY stage_{} ({}) FROM STDIN (FORMAT binary)", table.name, table.all())
}

/// A row that is there as it should be is not written: it would be garbage to be collected.
pub(super) fn upsert(table: &Table) -> String {
    let (name, all, conflict) = (table.name, table.all(), table.conflict());
    let changed = match table.once {
        true => String::new(),
        false => {
            let row = |of: &str| table.others().map(|c| format!("{of}.{c}")).collect::<Vec<_>>().join(", ");
            format!(" WHERE ({}) IS DISTINCT FROM ({})", row(name), row("excluded"))
        }
    };
    format!("INSERT INTO {name} ({all}) SELECT {all} FROM stage_{name} {conflict}{changed}")
}

pub(super) fn take(table: &Table) -> String {
    format!("DELETE FROM {} WHERE {} = ANY ($1)", table.name, table.key())
}

/// What is not staged goes.
pub(super) fn leave(table: &Table) -> String {
    let (name, key) = (table.name, table.key());
    format!("DELETE FROM {name} t WHERE NOT EXISTS (SELECT 1 FROM stage_{name} s WHERE s.{key} = t.{key})")
}

//! The projections on SQLite: what is done in one transaction, row by row.

use crate::error::Error;
use crate::fold;
use crate::list::{Ask, Sql};
use crate::meta;
use crate::table::{Cell, Dialect, Reader, Table, Tables, Value, int};
use cvlan_core::State;
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use cvlan_proto::v1::Event;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, params, params_from_iter};
use uuid::Uuid;

/// The tables' version.
pub(crate) fn schema() -> i64 {
    meta::version(&meta::create(Dialect::Sqlite))
}

/// Makes the tables, at checkpoint 0 of no epoch.
pub(crate) fn create(db: &mut Connection) -> Result<(), Error> {
    let tx = db.transaction()?;
    for ddl in meta::create(Dialect::Sqlite) {
        tx.execute_batch(&ddl)?;
    }
    tx.execute(meta::CREATE, params![schema(), Epoch::default().0])?;
    Ok(tx.commit()?)
}

/// Folds the events that follow `was`; `state` is at or after the last of them.
pub(crate) fn fold(
    db: &mut Connection,
    was: Checkpoint,
    state: &State,
    events: &[&Event],
) -> Result<Checkpoint, Error> {
    let tx = db.transaction()?;
    let to = fold::fold(&mut Rows(&tx), was, state, events)?;
    let (_, audit_from) = meta::read(&*tx)?;
    meta_move(&tx, was, to, audit_from)?;
    tx.commit()?;
    Ok(to)
}

/// Writes everything anew; the audit starts after `to`.
pub(crate) fn rebuild(db: &mut Connection, was: Checkpoint, state: &State, to: Checkpoint) -> Result<(), Error> {
    let tx = db.transaction()?;
    for table in meta::TABLES {
        tx.execute(&format!("DELETE FROM {}", table.name), [])?;
    }
    fold::all(&mut Rows(&tx), state)?;
    meta_move(&tx, was, to, Seq(to.seq.0 + 1))?;
    Ok(tx.commit()?)
}

/// Adds events to the audit that come right before its first one. Returns the new first one.
pub(crate) fn backfill(db: &mut Connection, was: Checkpoint, events: &[Event]) -> Result<Seq, Error> {
    let tx = db.transaction()?;
    let (_, from) = meta::read(&*tx)?;
    let from = fold::backfill(&mut Rows(&tx), from, events)?;
    meta_move(&tx, was, was, from)?;
    tx.commit()?;
    Ok(from)
}

/// Moves the checkpoint from where this writer left it.
fn meta_move(db: &Connection, was: Checkpoint, to: Checkpoint, audit_from: Seq) -> Result<(), Error> {
    let args = params![to.epoch.0, int(to.seq.0), int(audit_from.0), was.epoch.0, int(was.seq.0)];
    match db.prepare_cached(meta::MOVE)?.execute(args)? {
        1 => Ok(()),
        _ => Err(Error::Fenced),
    }
}

struct Rows<'t>(&'t Connection);

impl Tables for Rows<'_> {
    fn put(&mut self, table: &'static Table, row: &[Cell<'_>]) -> Result<(), Error> {
        self.0.prepare_cached(&table.sql().upsert)?.execute(params_from_iter(row))?;
        Ok(())
    }

    fn take(&mut self, table: &'static Table, id: Uuid) -> Result<(), Error> {
        self.0.prepare_cached(&table.sql().delete)?.execute([id.as_bytes()])?;
        Ok(())
    }

    fn sweep(&mut self, table: &'static Table, tenant: Uuid) -> Result<(), Error> {
        self.0.prepare_cached(&table.sql().sweep)?.execute([tenant.as_bytes()])?;
        Ok(())
    }
}

impl Ask for Connection {
    fn ask(&self, sql: &Sql, each: &mut dyn FnMut(&mut Reader<'_>) -> Result<bool, Error>) -> Result<(), Error> {
        let mut statement = self.prepare_cached(&sql.text)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(&sql.args))?;
        while let Some(row) = rows.next()? {
            let mut values = (0..columns).map(|i| Ok::<_, Error>(value(row.get_ref(i)?)));
            if !each(&mut Reader::new(&mut values))? {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn value(of: ValueRef<'_>) -> Value {
    match of {
        // No column of ours has a fraction.
        ValueRef::Null | ValueRef::Real(_) => Value::Null,
        ValueRef::Integer(n) => Value::Int(n),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
    }
}

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Id(id) => ValueRef::Blob(id.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Int(n) => ValueRef::Integer(*n),
        }))
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(n) => ValueRef::Integer(*n),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, statements};

    #[test]
    fn two_writers_cannot_both_move_the_checkpoint() {
        let world = World::new(1, 60);
        let folder = tempfile::tempdir().unwrap();
        let mut db = Connection::open(folder.path().join("views.db")).unwrap();
        create(&mut db).unwrap();
        let start = Checkpoint::default();
        fold(&mut db, start, &world.state, &[&world.events[0]]).unwrap();
        assert_eq!(fold(&mut db, start, &world.state, &[&world.events[0]]).unwrap_err().code(), "view_fenced");
    }

    #[test]
    fn every_statement_prepares_with_ascending_arguments() {
        let mut db = Connection::open_in_memory().unwrap();
        create(&mut db).unwrap();
        statements().iter().for_each(|sql| crate::list::tests::prepares(&db, sql));
    }
}

//! Table `meta`: one row that says up to where everything is in. It fences: whoever moves it names where it left it.

use crate::error::Error;
use crate::list::{Ask, Sql};
use crate::table::{Dialect, Kind, Table, int, no_status};
use crate::{audit, cvlan, node, tenant, token, user};
use cvlan_core::id::{Checkpoint, Epoch, Seq};
use std::sync::OnceLock;

pub(crate) static TABLE: Table = Table {
    name: "meta",
    columns: &[
        // There is one row.
        ("one", Kind::Int),
        ("schema", Kind::Int),
        ("epoch", Kind::Bytes),
        ("seq", Kind::Int),
        ("audit_from", Kind::Int),
    ],
    indexes: &[],
    once: true,
    home: "one",
    sorts: &[("seq", "seq")],
    by_cvlan: false,
    status: no_status,
    texts: OnceLock::new(),
};

/// Everything that a fold writes, but for [`TABLE`].
pub(crate) static TABLES: [&Table; 6] =
    [&tenant::TABLE, &cvlan::TABLE, &node::TABLE, &token::TABLE, &user::TABLE, &audit::TABLE];

pub(crate) const READ: &str = "SELECT epoch, seq, audit_from FROM meta WHERE one = 1";
pub(crate) const SCHEMA: &str = "SELECT schema FROM meta WHERE one = 1";
pub(crate) const CREATE: &str = "INSERT INTO meta (one, schema, epoch, seq, audit_from) VALUES (1, $1, $2, 0, 1)";
pub(crate) const MOVE: &str = "UPDATE meta SET epoch = $1, seq = $2, audit_from = $3 WHERE epoch = $4 AND seq = $5";

/// All statements that make the tables and their indexes.
pub(crate) fn create(dialect: Dialect) -> Vec<String> {
    let tables = || std::iter::once(&TABLE).chain(TABLES);
    tables().map(|table| table.create(dialect)).chain(tables().flat_map(|table| table.create_indexes())).collect()
}

/// The version of tables that are made by these statements: FNV-1a over their text, so that no change is forgotten.
pub(crate) fn version<'s>(statements: impl IntoIterator<Item = &'s String>) -> i64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = statements.into_iter().flat_map(|sql| sql.bytes()).fold(0xcbf2_9ce4_8422_2325, fnv);
    int(hash >> 1)
}

/// The checkpoint, and the first event that the audit knows of.
pub(crate) fn read(db: &impl Ask) -> Result<(Checkpoint, Seq), Error> {
    let mut found = (Checkpoint::default(), Seq(1));
    db.ask(&Sql { text: READ.to_owned(), args: Vec::new() }, &mut |row| {
        let epoch = Epoch(row.epoch()?);
        found = (Checkpoint { epoch, seq: Seq(row.number()?) }, Seq(row.number()?));
        Ok(false)
    })?;
    Ok(found)
}

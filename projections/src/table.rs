//! What every noun's file says about its table, the SQL that follows from it, and the small conversions between rows and
//! messages.
//!
//! Ids are 16 bytes (SQLite BLOB, PostgreSQL uuid), times integers, milliseconds since 1970 (UTC), lists JSON arrays.
//! Arguments are `$1…$n` in ascending order of first appearance: SQLite numbers them so, PostgreSQL by their digits.

use crate::error::Error;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_core::rules::timestamp;
use cvlan_proto::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::sync::OnceLock;
use uuid::Uuid;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 16 bytes that name something.
    Id,
    /// The same, or nothing.
    IdOrNull,
    /// Other bytes.
    Bytes,
    /// UTF-8, compared byte by byte.
    Text,
    /// 64 bits.
    Int,
}

/// A database's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Kind {
    fn sql(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            (Self::Id | Self::Bytes, Dialect::Sqlite) => "BLOB NOT NULL",
            (Self::IdOrNull, Dialect::Sqlite) => "BLOB",
            (Self::Text, Dialect::Sqlite) => "TEXT NOT NULL",
            (Self::Int, Dialect::Sqlite) => "INTEGER NOT NULL",
            (Self::Id, Dialect::Postgres) => "uuid NOT NULL",
            (Self::IdOrNull, Dialect::Postgres) => "uuid",
            (Self::Bytes, Dialect::Postgres) => "bytea NOT NULL",
            // As SQLite sorts and compares: a cursor of one goes on in the other.
            (Self::Text, Dialect::Postgres) => "text COLLATE \"C\" NOT NULL",
            (Self::Int, Dialect::Postgres) => "bigint NOT NULL",
        }
    }
}

/// A noun's table.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The first is the key. Lists give them in this order to the noun's `read`, but for the last one, `search`.
    pub(crate) columns: &'static [(&'static str, Kind)],
    /// Name and columns of each index.
    pub(crate) indexes: &'static [(&'static str, &'static str)],
    /// Rows are written once: a second one with the same key changes nothing.
    pub(crate) once: bool,
    /// Column that says whose a row is.
    pub(crate) home: &'static str,
    /// What lists can be sorted by, as the API says it and as the column is called; the first is the default.
    pub(crate) sorts: &'static [(&'static str, &'static str)],
    /// True where rows can be filtered by their CVLAN.
    pub(crate) by_cvlan: bool,
    /// The condition for a status, with `{now}` for the time it is judged at.
    pub(crate) status: fn(&str) -> Option<&'static str>,
    /// [`Table::sql`], once it was asked for.
    pub(crate) texts: OnceLock<Texts>,
}

/// The statements on one row.
pub(crate) struct Texts {
    /// Writes it: as many arguments as columns.
    pub(crate) upsert: String,
    /// Takes it away: its key.
    pub(crate) delete: String,
    /// Takes away what is of one tenant.
    pub(crate) sweep: String,
}

impl Table {
    /// The column that rows are told apart by.
    pub(crate) fn key(&self) -> &'static str {
        self.columns.first().map_or("", |(name, _)| name)
    }

    /// All columns, with a comma between them.
    pub(crate) fn all(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Those that a list reads.
    pub(crate) fn listed(&self) -> String {
        let listed = self.columns.iter().map(|(name, _)| *name).filter(|name| *name != "search");
        listed.collect::<Vec<_>>().join(", ")
    }

    /// The columns that are no key.
    pub(crate) fn others(&self) -> impl Iterator<Item = &'static str> {
        self.columns.iter().skip(1).map(|(name, _)| *name)
    }

    /// What makes the table, without its indexes.
    pub(crate) fn create(&self, dialect: Dialect) -> String {
        let columns = self.columns.iter().enumerate().map(|(i, (name, kind))| {
            let key = if i == 0 { " PRIMARY KEY" } else { "" };
            format!("  {name} {}{key}", kind.sql(dialect))
        });
        let columns = columns.collect::<Vec<_>>().join(",\n");
        // Keys that are no number come in no order: without a second tree.
        let end = match (dialect, self.columns.first()) {
            (Dialect::Sqlite, Some((_, Kind::Id))) => " WITHOUT ROWID",
            _ => "",
        };
        format!("CREATE TABLE {} (\n{columns}\n){end}", self.name)
    }

    /// What makes its indexes.
    pub(crate) fn create_indexes(&self) -> impl Iterator<Item = String> {
        let name = self.name;
        self.indexes.iter().map(move |(index, on)| format!("CREATE INDEX {index} ON {name} {on}"))
    }

    /// What `INSERT` does with a row that is there.
    pub(crate) fn conflict(&self) -> String {
        if self.once {
            return format!("ON CONFLICT ({}) DO NOTHING", self.key());
        }
        let set = self.others().map(|c| format!("{c} = excluded.{c}")).collect::<Vec<_>>().join(", ");
        format!("ON CONFLICT ({}) DO UPDATE SET {set}", self.key())
    }

    /// The statements on one row, the same for all databases.
    pub(crate) fn sql(&self) -> &Texts {
        self.texts.get_or_init(|| {
            let (name, key) = (self.name, self.key());
            let values = (1..=self.columns.len()).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
            Texts {
                upsert: format!("INSERT INTO {name} ({}) VALUES ({values}) {}", self.all(), self.conflict()),
                delete: format!("DELETE FROM {name} WHERE {key} = $1"),
                sweep: format!("DELETE FROM {name} WHERE {} = $1", self.home),
            }
        })
    }
}

/// One value of a row to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    Null,
    Id(Uuid),
    Bytes(&'a [u8]),
    Text(Cow<'a, str>),
    Int(i64),
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Cell<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u64> for Cell<'_> {
    fn from(n: u64) -> Self {
        Self::Int(int(n))
    }
}

impl From<usize> for Cell<'_> {
    fn from(n: usize) -> Self {
        Self::Int(int(n as u64))
    }
}

impl From<Uuid> for Cell<'_> {
    fn from(id: Uuid) -> Self {
        Self::Id(id)
    }
}

impl From<Option<Uuid>> for Cell<'_> {
    fn from(id: Option<Uuid>) -> Self {
        id.map_or(Self::Null, Self::Id)
    }
}

/// A transaction of a database that the projections write.
pub(crate) trait Tables {
    /// Writes a row; `row` has the table's columns.
    fn put(&mut self, table: &'static Table, row: &[Cell<'_>]) -> Result<(), Error>;
    /// Takes away the row of this key, if it is there.
    fn take(&mut self, table: &'static Table, id: Uuid) -> Result<(), Error>;
    /// Takes away the rows of this tenant.
    fn sweep(&mut self, table: &'static Table, tenant: Uuid) -> Result<(), Error>;
}

/// One value of a row that was read, or an argument of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Text(String),
    /// Ids too.
    Bytes(Vec<u8>),
}

/// For tables without a status.
pub(crate) fn no_status(_: &str) -> Option<&'static str> {
    None
}

/// What a search looks into: the texts of a row that people know it by.
pub(crate) fn search<const N: usize>(texts: [&str; N]) -> String {
    texts.join("\n").to_lowercase()
}

/// As SQL's signed integers; beyond them is beyond any log.
pub(crate) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A list as a JSON array.
pub(crate) fn json<T: Serialize>(list: &[T]) -> String {
    // Strings and our own messages always serialize.
    serde_json::to_string(list).unwrap_or_else(|_| "[]".to_owned())
}

/// Reads a row's columns one after another.
pub(crate) struct Reader<'r> {
    row: &'r mut dyn Iterator<Item = Result<Value, Error>>,
}

impl<'r> Reader<'r> {
    pub(crate) fn new(row: &'r mut dyn Iterator<Item = Result<Value, Error>>) -> Self {
        Self { row }
    }

    /// The next column, whatever it is.
    pub(crate) fn value(&mut self) -> Result<Value, Error> {
        self.row.next().unwrap_or(Ok(Value::Null))
    }

    /// NULL where it is of no use to the caller.
    fn bytes<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Error> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Bytes(bytes) => bytes.try_into().map(Some).map_err(|_| Error::Column("bytes of another length")),
            Value::Int(_) | Value::Text(_) => Err(Error::Column("no bytes")),
        }
    }

    pub(crate) fn epoch(&mut self) -> Result<[u8; 16], Error> {
        Ok(self.bytes()?.unwrap_or_default())
    }

    pub(crate) fn id(&mut self) -> Result<String, Error> {
        self.bytes()?.map(|id| Uuid::from_bytes(id).to_string()).ok_or(Error::Column("no id"))
    }

    /// NULL and nil read as empty.
    pub(crate) fn id_or_empty(&mut self) -> Result<String, Error> {
        let id = self.bytes()?.map(Uuid::from_bytes);
        Ok(id.filter(|id| !id.is_nil()).map(|id| id.to_string()).unwrap_or_default())
    }

    pub(crate) fn text(&mut self) -> Result<String, Error> {
        match self.value()? {
            Value::Text(text) => Ok(text),
            Value::Null | Value::Int(_) | Value::Bytes(_) => Err(Error::Column("no text")),
        }
    }

    pub(crate) fn key(&mut self) -> Result<String, Error> {
        Ok(BASE64.encode(self.bytes::<32>()?.ok_or(Error::Column("no key"))?))
    }

    pub(crate) fn number(&mut self) -> Result<u64, Error> {
        match self.value()? {
            Value::Int(n) => Ok(u64::try_from(n).unwrap_or_default()),
            Value::Null | Value::Text(_) | Value::Bytes(_) => Err(Error::Column("no number")),
        }
    }

    pub(crate) fn count(&mut self) -> Result<u32, Error> {
        u32::try_from(self.number()?).map_err(|_| Error::Column("too large a number"))
    }

    pub(crate) fn time(&mut self) -> Result<Option<Timestamp>, Error> {
        Ok(Some(timestamp(self.number()?)))
    }

    /// A JSON array.
    pub(crate) fn list<T: DeserializeOwned>(&mut self) -> Result<Vec<T>, Error> {
        serde_json::from_str(&self.text()?).map_err(|_| Error::Column("no JSON array"))
    }
}

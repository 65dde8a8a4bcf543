//! What every noun's file says about its table, and the small conversions between rows and messages.
//!
//! Ids are 16-byte BLOBs, times INTEGER milliseconds since 1970 (UTC), lists JSON arrays. Arguments are `$1…$n` in
//! ascending order of first appearance: SQLite numbers them so, PostgreSQL by their digits.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_core::rules::timestamp;
use cvlan_proto::Timestamp;
use rusqlite::Row;
use rusqlite::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// A noun's table.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// Columns in the order that the noun's `read` takes them; `id` is the first.
    pub(crate) columns: &'static str,
    /// Column that says whose a row is.
    pub(crate) home: &'static str,
    /// What lists can be sorted by, as the API says it and as the column is called; the first is the default.
    pub(crate) sorts: &'static [(&'static str, &'static str)],
    /// True where rows can be filtered by their CVLAN.
    pub(crate) by_cvlan: bool,
    /// The condition for a status, with `{now}` for the time it is judged at.
    pub(crate) status: fn(&str) -> Option<&'static str>,
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
    row: &'r Row<'r>,
    at: usize,
}

impl<'r> Reader<'r> {
    pub(crate) fn new(row: &'r Row<'r>) -> Self {
        Self { row, at: 0 }
    }

    fn next<T: rusqlite::types::FromSql>(&mut self) -> rusqlite::Result<T> {
        self.at += 1;
        self.row.get(self.at - 1)
    }

    pub(crate) fn id(&mut self) -> rusqlite::Result<String> {
        Ok(Uuid::from_bytes(self.next()?).to_string())
    }

    /// NULL and nil read as empty.
    pub(crate) fn id_or_empty(&mut self) -> rusqlite::Result<String> {
        let id = self.next::<Option<[u8; 16]>>()?.map(Uuid::from_bytes);
        Ok(id.filter(|id| !id.is_nil()).map(|id| id.to_string()).unwrap_or_default())
    }

    pub(crate) fn text(&mut self) -> rusqlite::Result<String> {
        self.next()
    }

    pub(crate) fn key(&mut self) -> rusqlite::Result<String> {
        Ok(BASE64.encode(self.next::<[u8; 32]>()?))
    }

    pub(crate) fn number(&mut self) -> rusqlite::Result<u64> {
        Ok(u64::try_from(self.next::<i64>()?).unwrap_or_default())
    }

    pub(crate) fn count(&mut self) -> rusqlite::Result<u32> {
        self.next()
    }

    pub(crate) fn time(&mut self) -> rusqlite::Result<Option<Timestamp>> {
        Ok(Some(timestamp(self.number()?)))
    }

    /// A JSON array.
    pub(crate) fn list<T: DeserializeOwned>(&mut self) -> rusqlite::Result<Vec<T>> {
        let text = self.text()?;
        let wrong = |e: serde_json::Error| rusqlite::Error::FromSqlConversionFailure(self.at - 1, Type::Text, e.into());
        serde_json::from_str(&text).map_err(wrong)
    }
}

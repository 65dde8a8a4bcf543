//! Table `tokens`. Whether one is still good depends on the time: the list is asked with it.

use crate::table::{Reader, Table, int, json, search};
use cvlan_core::State;
use cvlan_core::id::{TenantId, TokenId};
use cvlan_core::token::Token;
use cvlan_proto::v1;
use rusqlite::{Connection, Row, params};
use std::sync::Arc;

pub(crate) const DDL: &str = "
CREATE TABLE tokens (
  id BLOB NOT NULL PRIMARY KEY, tenant BLOB NOT NULL, cvlan BLOB NOT NULL, tags TEXT NOT NULL, max_uses INTEGER NOT NULL,
  uses INTEGER NOT NULL, expires_ms INTEGER NOT NULL, note TEXT NOT NULL, created_ms INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  search TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tokens_by_created ON tokens (tenant, created_ms, id);
";

pub(crate) const TABLE: Table = Table {
    name: "tokens",
    columns: "id, tenant, cvlan, tags, max_uses, uses, expires_ms, note, created_ms, revision",
    home: "tenant",
    sorts: &[("created", "created_ms"), ("expires", "expires_ms"), ("note", "note")],
    by_cvlan: true,
    status,
};

pub(crate) const UPSERT: &str = "
INSERT INTO tokens (id, tenant, cvlan, tags, max_uses, uses, expires_ms, note, created_ms, revision, search)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (id) DO UPDATE SET
  tenant = excluded.tenant, cvlan = excluded.cvlan, tags = excluded.tags, max_uses = excluded.max_uses,
  uses = excluded.uses, expires_ms = excluded.expires_ms, note = excluded.note, created_ms = excluded.created_ms,
  revision = excluded.revision, search = excluded.search";
pub(crate) const DELETE: &str = "DELETE FROM tokens WHERE id = $1";

/// The same three as [`Token::to_proto`].
fn status(word: &str) -> Option<&'static str> {
    match word {
        "active" => Some("expires_ms > {now} AND uses < max_uses"),
        "expired" => Some("expires_ms <= {now}"),
        "used_up" => Some("expires_ms > {now} AND uses >= max_uses"),
        _ => None,
    }
}

/// The row of one token, if it is there.
pub(crate) fn row(state: &State, tenant: TenantId, id: TokenId) -> Option<&Arc<Token>> {
    state.tenants.get(&tenant)?.tokens.get(&id)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<Token>> {
    state.tenants.values().flat_map(|t| t.tokens.values())
}

pub(crate) fn upsert(db: &Connection, t: &Token) -> rusqlite::Result<usize> {
    db.prepare_cached(UPSERT)?.execute(params![
        t.id.0.as_bytes(),
        t.tenant.0.as_bytes(),
        t.cvlan.0.as_bytes(),
        json(&t.tags),
        t.max_uses,
        t.uses,
        int(t.expires_ms),
        &*t.note,
        int(t.created_ms),
        int(t.revision.0),
        search([&t.note]),
    ])
}

pub(crate) fn read(row: &Row<'_>, now_ms: u64) -> rusqlite::Result<v1::Token> {
    let mut r = Reader::new(row);
    let (id, tenant_id, cvlan_id, tags) = (r.id()?, r.id()?, r.id()?, r.list()?);
    let (max_uses, uses, expires_ms) = (r.count()?, r.count()?, r.number()?);
    let status = if expires_ms <= now_ms {
        "expired"
    } else if uses >= max_uses {
        "used_up"
    } else {
        "active"
    };
    Ok(v1::Token {
        id,
        tenant_id,
        cvlan_id,
        tags,
        max_uses,
        uses,
        expires_at: Some(cvlan_core::rules::timestamp(expires_ms)),
        note: r.text()?,
        created_at: r.time()?,
        revision: r.number()?,
        status: status.to_owned(),
    })
}

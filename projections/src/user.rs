//! Table `users`. No password hash is in it; a tenant of all zeros means a global user.

use crate::table::{Reader, Table, int, no_status, search};
use cvlan_core::State;
use cvlan_core::id::{TenantId, UserId};
use cvlan_core::user::User;
use cvlan_proto::v1;
use rusqlite::{Connection, Row, params};
use std::sync::Arc;

pub(crate) const DDL: &str = "
CREATE TABLE users (
  id BLOB NOT NULL PRIMARY KEY, tenant BLOB NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, revision INTEGER NOT NULL,
  search TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX users_by_name ON users (tenant, name, id);
";

pub(crate) const TABLE: Table = Table {
    name: "users",
    columns: "id, tenant, name, role, created_ms, updated_ms, revision",
    home: "tenant",
    sorts: &[("name", "name"), ("role", "role"), ("created", "created_ms"), ("updated", "updated_ms")],
    by_cvlan: false,
    status: no_status,
};

pub(crate) const UPSERT: &str = "
INSERT INTO users (id, tenant, name, role, created_ms, updated_ms, revision, search)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (id) DO UPDATE SET
  tenant = excluded.tenant, name = excluded.name, role = excluded.role, created_ms = excluded.created_ms,
  updated_ms = excluded.updated_ms, revision = excluded.revision, search = excluded.search";
pub(crate) const DELETE: &str = "DELETE FROM users WHERE id = $1";

/// The row of one user, if it is there and of this tenant.
pub(crate) fn row(state: &State, tenant: TenantId, id: UserId) -> Option<&Arc<User>> {
    state.users.get(&id).filter(|u| u.tenant == tenant)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<User>> {
    state.users.values()
}

pub(crate) fn upsert(db: &Connection, u: &User) -> rusqlite::Result<usize> {
    db.prepare_cached(UPSERT)?.execute(params![
        u.id.0.as_bytes(),
        u.tenant.0.as_bytes(),
        &*u.name,
        u.role.as_str(),
        int(u.created_ms),
        int(u.updated_ms),
        int(u.revision.0),
        search([&u.name, u.role.as_str()]),
    ])
}

pub(crate) fn read(row: &Row<'_>, _now_ms: u64) -> rusqlite::Result<v1::User> {
    let mut r = Reader::new(row);
    Ok(v1::User {
        id: r.id()?,
        tenant_id: r.id_or_empty()?,
        name: r.text()?,
        role: r.text()?,
        created_at: r.time()?,
        updated_at: r.time()?,
        revision: r.number()?,
    })
}

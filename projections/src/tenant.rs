//! Table `tenants`.

use crate::table::{Reader, Table, int, json, no_status, search};
use cvlan_core::State;
use cvlan_core::id::TenantId;
use cvlan_core::state::TenantState;
use cvlan_proto::v1;
use rusqlite::{Connection, Row, params};
use std::sync::Arc;

pub(crate) const DDL: &str = "
CREATE TABLE tenants (
  id BLOB NOT NULL PRIMARY KEY, slug TEXT NOT NULL, name TEXT NOT NULL, signing_keys TEXT NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, revision INTEGER NOT NULL,
  cvlan_count INTEGER NOT NULL, node_count INTEGER NOT NULL,
  search TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tenants_by_slug ON tenants (slug, id);
";

pub(crate) const TABLE: Table = Table {
    name: "tenants",
    columns: "id, slug, name, signing_keys, created_ms, updated_ms, revision, cvlan_count, node_count",
    home: "id",
    sorts: &[("slug", "slug"), ("name", "name"), ("created", "created_ms"), ("updated", "updated_ms")],
    by_cvlan: false,
    status: no_status,
};

pub(crate) const UPSERT: &str = "
INSERT INTO tenants (id, slug, name, signing_keys, created_ms, updated_ms, revision, cvlan_count, node_count, search)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (id) DO UPDATE SET
  slug = excluded.slug, name = excluded.name, signing_keys = excluded.signing_keys, created_ms = excluded.created_ms,
  updated_ms = excluded.updated_ms, revision = excluded.revision, cvlan_count = excluded.cvlan_count,
  node_count = excluded.node_count, search = excluded.search";
pub(crate) const DELETE: &str = "DELETE FROM tenants WHERE id = $1";

/// The row of one tenant, if it is there.
pub(crate) fn row(state: &State, id: TenantId) -> Option<&Arc<TenantState>> {
    state.tenants.get(&id)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<TenantState>> {
    state.tenants.values()
}

pub(crate) fn upsert(db: &Connection, tenant: &TenantState) -> rusqlite::Result<usize> {
    let t = &tenant.record;
    db.prepare_cached(UPSERT)?.execute(params![
        t.id.0.as_bytes(),
        &*t.slug,
        &*t.name,
        json(&tenant.to_proto().signing_keys),
        int(t.created_ms),
        int(t.updated_ms),
        int(t.revision.0),
        int(tenant.cvlans.len() as u64),
        int(tenant.nodes.len() as u64),
        search([&t.slug, &t.name]),
    ])
}

pub(crate) fn read(row: &Row<'_>, _now_ms: u64) -> rusqlite::Result<v1::Tenant> {
    let mut r = Reader::new(row);
    Ok(v1::Tenant {
        id: r.id()?,
        slug: r.text()?,
        name: r.text()?,
        signing_keys: r.list()?,
        created_at: r.time()?,
        updated_at: r.time()?,
        revision: r.number()?,
        cvlan_count: r.count()?,
        node_count: r.count()?,
    })
}

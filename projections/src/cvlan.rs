//! Table `cvlans`.

use crate::table::{Reader, Table, int, no_status, search};
use cvlan_core::State;
use cvlan_core::id::{CvlanId, TenantId};
use cvlan_core::state::CvlanState;
use cvlan_proto::v1;
use rusqlite::{Connection, Row, params};
use std::sync::Arc;

pub(crate) const DDL: &str = "
CREATE TABLE cvlans (
  id BLOB NOT NULL PRIMARY KEY, tenant BLOB NOT NULL, name TEXT NOT NULL, ipv4_cidr TEXT NOT NULL, ipv6_cidr TEXT NOT NULL,
  node_count INTEGER NOT NULL, created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, revision INTEGER NOT NULL,
  search TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX cvlans_by_name ON cvlans (tenant, name, id);
";

pub(crate) const TABLE: Table = Table {
    name: "cvlans",
    columns: "id, tenant, name, ipv4_cidr, ipv6_cidr, node_count, created_ms, updated_ms, revision",
    home: "tenant",
    sorts: &[("name", "name"), ("nodes", "node_count"), ("created", "created_ms"), ("updated", "updated_ms")],
    by_cvlan: false,
    status: no_status,
};

pub(crate) const UPSERT: &str = "
INSERT INTO cvlans (id, tenant, name, ipv4_cidr, ipv6_cidr, node_count, created_ms, updated_ms, revision, search)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (id) DO UPDATE SET
  tenant = excluded.tenant, name = excluded.name, ipv4_cidr = excluded.ipv4_cidr, ipv6_cidr = excluded.ipv6_cidr,
  node_count = excluded.node_count, created_ms = excluded.created_ms, updated_ms = excluded.updated_ms,
  revision = excluded.revision, search = excluded.search";
pub(crate) const DELETE: &str = "DELETE FROM cvlans WHERE id = $1";

/// The row of one CVLAN, if it is there.
pub(crate) fn row(state: &State, tenant: TenantId, id: CvlanId) -> Option<&Arc<CvlanState>> {
    state.tenants.get(&tenant)?.cvlans.get(&id)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<CvlanState>> {
    state.tenants.values().flat_map(|t| t.cvlans.values())
}

pub(crate) fn upsert(db: &Connection, cvlan: &CvlanState) -> rusqlite::Result<usize> {
    let c = &cvlan.record;
    let (ipv4, ipv6) = (c.ipv4.to_string(), c.ipv6.map(|net| net.to_string()).unwrap_or_default());
    db.prepare_cached(UPSERT)?.execute(params![
        c.id.0.as_bytes(),
        c.tenant.0.as_bytes(),
        &*c.name,
        ipv4,
        ipv6,
        int(cvlan.names.len() as u64),
        int(c.created_ms),
        int(c.updated_ms),
        int(c.revision.0),
        search([&c.name, &ipv4, &ipv6]),
    ])
}

pub(crate) fn read(row: &Row<'_>, _now_ms: u64) -> rusqlite::Result<v1::Cvlan> {
    let mut r = Reader::new(row);
    Ok(v1::Cvlan {
        id: r.id()?,
        tenant_id: r.id()?,
        name: r.text()?,
        ipv4_cidr: r.text()?,
        ipv6_cidr: r.text()?,
        node_count: r.count()?,
        created_at: r.time()?,
        updated_at: r.time()?,
        revision: r.number()?,
    })
}

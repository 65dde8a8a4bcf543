//! Table `nodes`. Presence is not in it: no list is sorted or filtered by it, and the state has it by id.

use crate::table::{Reader, Table, int, json, search};
use cvlan_core::State;
use cvlan_core::id::{NodeId, TenantId};
use cvlan_core::node::Node;
use cvlan_proto::v1;
use rusqlite::{Connection, Row, params};
use std::sync::Arc;

pub(crate) const DDL: &str = "
CREATE TABLE nodes (
  id BLOB NOT NULL PRIMARY KEY, tenant BLOB NOT NULL, cvlan BLOB NOT NULL, name TEXT NOT NULL, wg_public_key BLOB NOT NULL,
  ipv4 TEXT NOT NULL, ipv6 TEXT NOT NULL, endpoints TEXT NOT NULL, tags TEXT NOT NULL, owner BLOB, status TEXT NOT NULL,
  hostname TEXT NOT NULL, os TEXT NOT NULL, agent_version TEXT NOT NULL, token BLOB,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, revision INTEGER NOT NULL,
  search TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX nodes_by_name ON nodes (tenant, name, id);
CREATE INDEX nodes_by_cvlan ON nodes (cvlan, name, id);
";

pub(crate) const TABLE: Table = Table {
    name: "nodes",
    columns: "id, tenant, cvlan, name, wg_public_key, ipv4, ipv6, endpoints, tags, owner, status, hostname, os, \
              agent_version, token, created_ms, updated_ms, revision",
    home: "tenant",
    sorts: &[("name", "name"), ("created", "created_ms"), ("updated", "updated_ms"), ("status", "status")],
    by_cvlan: true,
    status,
};

pub(crate) const UPSERT: &str = "
INSERT INTO nodes (id, tenant, cvlan, name, wg_public_key, ipv4, ipv6, endpoints, tags, owner, status, hostname, os,
  agent_version, token, created_ms, updated_ms, revision, search)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
ON CONFLICT (id) DO UPDATE SET
  tenant = excluded.tenant, cvlan = excluded.cvlan, name = excluded.name, wg_public_key = excluded.wg_public_key,
  ipv4 = excluded.ipv4, ipv6 = excluded.ipv6, endpoints = excluded.endpoints, tags = excluded.tags,
  owner = excluded.owner, status = excluded.status, hostname = excluded.hostname, os = excluded.os,
  agent_version = excluded.agent_version, token = excluded.token, created_ms = excluded.created_ms,
  updated_ms = excluded.updated_ms, revision = excluded.revision, search = excluded.search";
pub(crate) const DELETE: &str = "DELETE FROM nodes WHERE id = $1";

fn status(word: &str) -> Option<&'static str> {
    match word {
        "active" => Some("status = 'active'"),
        "disabled" => Some("status = 'disabled'"),
        _ => None,
    }
}

/// The row of one node, if it is there.
pub(crate) fn row(state: &State, tenant: TenantId, id: NodeId) -> Option<&Arc<Node>> {
    state.tenants.get(&tenant)?.nodes.get(&id)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<Node>> {
    state.tenants.values().flat_map(|t| t.nodes.values())
}

pub(crate) fn upsert(db: &Connection, n: &Node) -> rusqlite::Result<usize> {
    let (ipv4, ipv6) = (n.ipv4.to_string(), n.ipv6.map(|a| a.to_string()).unwrap_or_default());
    db.prepare_cached(UPSERT)?.execute(params![
        n.id.0.as_bytes(),
        n.tenant.0.as_bytes(),
        n.cvlan.0.as_bytes(),
        &*n.name,
        n.wg_key,
        ipv4,
        ipv6,
        json(&n.endpoints),
        json(&n.tags),
        n.owner.map(|id| id.0.into_bytes()),
        n.status.as_str(),
        &*n.hostname,
        &*n.os,
        &*n.agent_version,
        n.enrolment.as_ref().map(|e| e.token.0.into_bytes()),
        int(n.created_ms),
        int(n.updated_ms),
        int(n.revision.0),
        search([&n.name, &n.hostname, &ipv4, &ipv6]),
    ])
}

pub(crate) fn read(row: &Row<'_>, _now_ms: u64) -> rusqlite::Result<v1::Node> {
    let mut r = Reader::new(row);
    Ok(v1::Node {
        id: r.id()?,
        tenant_id: r.id()?,
        cvlan_id: r.id()?,
        name: r.text()?,
        wg_public_key: r.key()?,
        ipv4: r.text()?,
        ipv6: r.text()?,
        endpoints: r.list()?,
        tags: r.list()?,
        owner_id: r.id_or_empty()?,
        status: r.text()?,
        hostname: r.text()?,
        os: r.text()?,
        agent_version: r.text()?,
        token_id: r.id_or_empty()?,
        created_at: r.time()?,
        updated_at: r.time()?,
        revision: r.number()?,
        online: false,
        last_seen_at: None,
    })
}

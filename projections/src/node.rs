//! Table `nodes`. Presence is not in it: no list is sorted or filtered by it, and the state has it by id.

use crate::error::Error;
use crate::table::{Cell, Kind, Reader, Table, json, search};
use cvlan_core::State;
use cvlan_core::id::{NodeId, TenantId};
use cvlan_core::node::Node;
use cvlan_proto::v1;
use std::sync::{Arc, OnceLock};

pub(crate) static TABLE: Table = Table {
    name: "nodes",
    columns: &[
        ("id", Kind::Id),
        ("tenant", Kind::Id),
        ("cvlan", Kind::Id),
        ("name", Kind::Text),
        ("wg_public_key", Kind::Bytes),
        ("ipv4", Kind::Text),
        ("ipv6", Kind::Text),
        ("endpoints", Kind::Text),
        ("tags", Kind::Text),
        ("owner", Kind::IdOrNull),
        ("status", Kind::Text),
        ("hostname", Kind::Text),
        ("os", Kind::Text),
        ("agent_version", Kind::Text),
        ("token", Kind::IdOrNull),
        ("created_ms", Kind::Int),
        ("updated_ms", Kind::Int),
        ("revision", Kind::Int),
        ("search", Kind::Text),
    ],
    indexes: &[("nodes_by_name", "(tenant, name, id)"), ("nodes_by_cvlan", "(cvlan, name, id)")],
    once: false,
    home: "tenant",
    sorts: &[("name", "name"), ("created", "created_ms"), ("updated", "updated_ms"), ("status", "status")],
    by_cvlan: true,
    status,
    texts: OnceLock::new(),
};

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

/// Its columns.
pub(crate) fn cells(n: &Node) -> [Cell<'_>; 19] {
    let (ipv4, ipv6) = (n.ipv4.to_string(), n.ipv6.map(|a| a.to_string()).unwrap_or_default());
    let search = search([&n.name, &n.hostname, &ipv4, &ipv6]);
    [
        n.id.0.into(),
        n.tenant.0.into(),
        n.cvlan.0.into(),
        (&*n.name).into(),
        Cell::Bytes(&n.wg_key),
        ipv4.into(),
        ipv6.into(),
        json(&n.endpoints).into(),
        json(&n.tags).into(),
        n.owner.map(|id| id.0).into(),
        n.status.as_str().into(),
        (&*n.hostname).into(),
        (&*n.os).into(),
        (&*n.agent_version).into(),
        n.enrolment.as_ref().map(|e| e.token.0).into(),
        n.created_ms.into(),
        n.updated_ms.into(),
        n.revision.0.into(),
        search.into(),
    ]
}

pub(crate) fn read(r: &mut Reader<'_>, _now_ms: u64) -> Result<v1::Node, Error> {
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

//! Table `cvlans`.

use crate::error::Error;
use crate::table::{Cell, Kind, Reader, Table, no_status, search};
use cvlan_core::State;
use cvlan_core::id::{CvlanId, TenantId};
use cvlan_core::state::CvlanState;
use cvlan_proto::v1;
use std::sync::{Arc, OnceLock};

pub(crate) static TABLE: Table = Table {
    name: "cvlans",
    columns: &[
        ("id", Kind::Id),
        ("tenant", Kind::Id),
        ("name", Kind::Text),
        ("ipv4_cidr", Kind::Text),
        ("ipv6_cidr", Kind::Text),
        ("node_count", Kind::Int),
        ("created_ms", Kind::Int),
        ("updated_ms", Kind::Int),
        ("revision", Kind::Int),
        ("search", Kind::Text),
    ],
    indexes: &[("cvlans_by_name", "(tenant, name, id)")],
    once: false,
    home: "tenant",
    sorts: &[("name", "name"), ("nodes", "node_count"), ("created", "created_ms"), ("updated", "updated_ms")],
    by_cvlan: false,
    status: no_status,
    texts: OnceLock::new(),
};

/// The row of one CVLAN, if it is there.
pub(crate) fn row(state: &State, tenant: TenantId, id: CvlanId) -> Option<&Arc<CvlanState>> {
    state.tenants.get(&tenant)?.cvlans.get(&id)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<CvlanState>> {
    state.tenants.values().flat_map(|t| t.cvlans.values())
}

/// Its columns.
pub(crate) fn cells(cvlan: &CvlanState) -> [Cell<'_>; 10] {
    let c = &cvlan.record;
    let (ipv4, ipv6) = (c.ipv4.to_string(), c.ipv6.map(|net| net.to_string()).unwrap_or_default());
    let search = search([&c.name, &ipv4, &ipv6]);
    [
        c.id.0.into(),
        c.tenant.0.into(),
        (&*c.name).into(),
        ipv4.into(),
        ipv6.into(),
        cvlan.names.len().into(),
        c.created_ms.into(),
        c.updated_ms.into(),
        c.revision.0.into(),
        search.into(),
    ]
}

pub(crate) fn read(r: &mut Reader<'_>, _now_ms: u64) -> Result<v1::Cvlan, Error> {
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

//! Table `tenants`.

use crate::error::Error;
use crate::table::{Cell, Kind, Reader, Table, json, no_status, search};
use cvlan_core::State;
use cvlan_core::id::TenantId;
use cvlan_core::state::TenantState;
use cvlan_proto::v1;
use std::sync::{Arc, OnceLock};

pub(crate) static TABLE: Table = Table {
    name: "tenants",
    columns: &[
        ("id", Kind::Id),
        ("slug", Kind::Text),
        ("name", Kind::Text),
        ("signing_keys", Kind::Text),
        ("created_ms", Kind::Int),
        ("updated_ms", Kind::Int),
        ("revision", Kind::Int),
        ("cvlan_count", Kind::Int),
        ("node_count", Kind::Int),
        ("search", Kind::Text),
    ],
    indexes: &[("tenants_by_slug", "(slug, id)")],
    once: false,
    home: "id",
    sorts: &[("slug", "slug"), ("name", "name"), ("created", "created_ms"), ("updated", "updated_ms")],
    by_cvlan: false,
    status: no_status,
    texts: OnceLock::new(),
};

/// The row of one tenant, if it is there.
pub(crate) fn row(state: &State, id: TenantId) -> Option<&Arc<TenantState>> {
    state.tenants.get(&id)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<TenantState>> {
    state.tenants.values()
}

/// Its columns.
pub(crate) fn cells(tenant: &TenantState) -> [Cell<'_>; 10] {
    let t = &tenant.record;
    let search = search([&t.slug, &t.name]);
    [
        t.id.0.into(),
        (&*t.slug).into(),
        (&*t.name).into(),
        json(&tenant.to_proto().signing_keys).into(),
        t.created_ms.into(),
        t.updated_ms.into(),
        t.revision.0.into(),
        tenant.cvlans.len().into(),
        tenant.nodes.len().into(),
        search.into(),
    ]
}

pub(crate) fn read(r: &mut Reader<'_>, _now_ms: u64) -> Result<v1::Tenant, Error> {
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

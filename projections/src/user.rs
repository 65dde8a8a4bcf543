//! Table `users`. No password hash is in it; a tenant of all zeros means a global user.

use crate::error::Error;
use crate::table::{Cell, Kind, Reader, Table, no_status, search};
use cvlan_core::State;
use cvlan_core::id::{TenantId, UserId};
use cvlan_core::user::User;
use cvlan_proto::v1;
use std::sync::{Arc, OnceLock};

pub(crate) static TABLE: Table = Table {
    name: "users",
    columns: &[
        ("id", Kind::Id),
        ("tenant", Kind::Id),
        ("name", Kind::Text),
        ("role", Kind::Text),
        ("created_ms", Kind::Int),
        ("updated_ms", Kind::Int),
        ("revision", Kind::Int),
        ("search", Kind::Text),
    ],
    indexes: &[("users_by_name", "(tenant, name, id)")],
    once: false,
    home: "tenant",
    sorts: &[("name", "name"), ("role", "role"), ("created", "created_ms"), ("updated", "updated_ms")],
    by_cvlan: false,
    status: no_status,
    texts: OnceLock::new(),
};

/// The row of one user, if it is there and of this tenant.
pub(crate) fn row(state: &State, tenant: TenantId, id: UserId) -> Option<&Arc<User>> {
    state.users.get(&id).filter(|u| u.tenant == tenant)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<User>> {
    state.users.values()
}

/// Its columns.
pub(crate) fn cells(u: &User) -> [Cell<'_>; 8] {
    let search = search([&u.name, u.role.as_str()]);
    [
        u.id.0.into(),
        u.tenant.0.into(),
        (&*u.name).into(),
        u.role.as_str().into(),
        u.created_ms.into(),
        u.updated_ms.into(),
        u.revision.0.into(),
        search.into(),
    ]
}

pub(crate) fn read(r: &mut Reader<'_>, _now_ms: u64) -> Result<v1::User, Error> {
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

//! Who may do what, asked by `decide` for writes and by the doors for reads.
//!
//! Another tenant's thing is "not found", never "forbidden": its existence is not revealed.

use crate::command::Actor;
use crate::id::TenantId;
use crate::rejection::Rejection;
use crate::state::State;

/// What a person is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Everything; global.
    Superadmin,
    /// Everything in its tenant.
    Tenantadmin,
    /// Networks, nodes and tokens of its tenant.
    Member,
    /// Looks, but not at audit or keys.
    Readonly,
    /// Reads everything incl. audit, writes nothing; a tenant's or global.
    Auditor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Superadmin, Self::Tenantadmin, Self::Member, Self::Readonly, Self::Auditor];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Superadmin => "superadmin",
            Self::Tenantadmin => "tenantadmin",
            Self::Member => "member",
            Self::Readonly => "readonly",
            Self::Auditor => "auditor",
        }
    }

    /// Reads the word.
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Tenants and the cluster: make, change, remove.
    ClusterWrite,
    /// The cluster as a whole: look at tenants, status.
    ClusterRead,
    /// Users and keys of a tenant: make, change, remove.
    PeopleWrite,
    /// Users of a tenant: look.
    PeopleRead,
    /// Audit, history, exports.
    AuditRead,
    /// CVLANs, nodes, tokens: make, change, remove.
    NetworkWrite,
    /// CVLANs, nodes, tokens: look.
    NetworkRead,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 7] = [
        Self::ClusterWrite,
        Self::ClusterRead,
        Self::PeopleWrite,
        Self::PeopleRead,
        Self::AuditRead,
        Self::NetworkWrite,
        Self::NetworkRead,
    ];
}

/// May a user of this role and home (nil = global) do that in this tenant (nil = the cluster)?
pub fn allowed(role: Role, home: TenantId, permission: Permission, tenant: TenantId) -> bool {
    use Permission as P;
    let reach = home.is_nil() || home == tenant;
    let may = match role {
        Role::Superadmin => home.is_nil(),
        Role::Tenantadmin => match permission {
            P::PeopleWrite | P::PeopleRead | P::AuditRead | P::NetworkWrite | P::NetworkRead => true,
            P::ClusterWrite | P::ClusterRead => false,
        },
        Role::Member => match permission {
            P::NetworkWrite | P::NetworkRead => true,
            P::ClusterWrite | P::ClusterRead | P::PeopleWrite | P::PeopleRead | P::AuditRead => false,
        },
        Role::Readonly => match permission {
            P::NetworkRead => true,
            P::ClusterWrite | P::ClusterRead | P::PeopleWrite | P::PeopleRead | P::AuditRead | P::NetworkWrite => false,
        },
        Role::Auditor => match permission {
            P::PeopleRead | P::AuditRead | P::NetworkRead => true,
            P::ClusterRead => home.is_nil(),
            P::ClusterWrite | P::PeopleWrite | P::NetworkWrite => false,
        },
    };
    // Only a superadmin and a global auditor reach beyond one tenant.
    let global = matches!(role, Role::Superadmin | Role::Auditor);
    may && reach && (global || !home.is_nil())
}

/// May this actor do that in this tenant (nil = the cluster)? Machines and tokens come through doors of their own;
/// the commands that those may give check for themselves.
pub fn permit(state: &State, actor: &Actor, permission: Permission, tenant: TenantId) -> Result<(), Rejection> {
    let id = match actor {
        Actor::System => return Ok(()),
        Actor::User(id, _) => *id,
        Actor::Node(..) | Actor::Token(_) => return Err(forbidden(permission)),
    };
    let Some(user) = state.users.get(&id) else {
        return Err(Rejection::unproven("user_gone", "this user was deleted; log in as another"));
    };
    if allowed(user.role, user.tenant, permission, tenant) {
        return Ok(());
    }
    if !tenant.is_nil() && !user.tenant.is_nil() && user.tenant != tenant {
        return Err(tenant_unknown());
    }
    Err(forbidden(permission))
}

/// No such tenant, or not yours.
pub fn tenant_unknown() -> Rejection {
    Rejection::not_found("tenant_not_found", "there is no such tenant; `cvlanctl tenant list` shows those you can see")
}

fn forbidden(permission: Permission) -> Rejection {
    let who = match permission {
        Permission::ClusterWrite => "a superadmin",
        Permission::ClusterRead => "a superadmin or a global auditor",
        Permission::PeopleWrite => "a superadmin or tenantadmin",
        Permission::PeopleRead | Permission::AuditRead => "a superadmin, tenantadmin or auditor",
        Permission::NetworkWrite => "a superadmin, tenantadmin or member",
        Permission::NetworkRead => "a user of this tenant",
    };
    Rejection::forbidden("forbidden", format!("your role does not allow this; it takes {who}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn the_table() {
        use Permission as P;
        let (own, other, nil) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)), TenantId::default());
        // role, home, what it may do in: its own tenant, another, the cluster
        type Row<'a> = (Role, TenantId, &'a [P], &'a [P], &'a [P]);
        let table: [Row<'_>; 6] = [
            (Role::Superadmin, nil, &P::ALL, &P::ALL, &P::ALL),
            (
                Role::Tenantadmin,
                own,
                &[P::PeopleWrite, P::PeopleRead, P::AuditRead, P::NetworkWrite, P::NetworkRead],
                &[],
                &[],
            ),
            (Role::Member, own, &[P::NetworkWrite, P::NetworkRead], &[], &[]),
            (Role::Readonly, own, &[P::NetworkRead], &[], &[]),
            (Role::Auditor, own, &[P::PeopleRead, P::AuditRead, P::NetworkRead], &[], &[]),
            (
                Role::Auditor,
                nil,
                &[P::ClusterRead, P::PeopleRead, P::AuditRead, P::NetworkRead],
                &[P::ClusterRead, P::PeopleRead, P::AuditRead, P::NetworkRead],
                &[P::ClusterRead, P::PeopleRead, P::AuditRead, P::NetworkRead],
            ),
        ];
        for (role, home, in_own, in_other, in_cluster) in table {
            for permission in P::ALL {
                for (tenant, may) in [(own, in_own), (other, in_other), (nil, in_cluster)] {
                    assert_eq!(
                        allowed(role, home, permission, tenant),
                        may.contains(&permission),
                        "{role:?} {permission:?} {tenant}"
                    );
                }
            }
        }
        assert!(!allowed(Role::Superadmin, own, P::NetworkRead, own), "a superadmin is global");
        assert!(!allowed(Role::Member, nil, P::NetworkRead, own), "a member has a tenant");
    }
}

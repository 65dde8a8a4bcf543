//! Users: people, what they may do, and how they log in. Passwords are hashed at the door (argon2id, RFC 9106).

use crate::access::{Permission, Role, permit, tenant_unknown};
use crate::command::{Actor, Meta};
use crate::id::{Seq, TenantId, UserId};
use crate::machine::Context;
use crate::name::login_check;
use crate::rejection::Rejection;
use crate::rules::{Fact, Key, Stamp, fresh, timestamp};
use crate::state::State;
use cvlan_proto::v1::{self, event::Body, user_event::Kind};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The shortest password that is taken, characters.
pub const PASSWORD_MIN: usize = 12;
/// The longest password that is hashed, bytes.
pub const PASSWORD_MAX: usize = 1024;

/// A person.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// Chosen at the door.
    pub id: UserId,
    /// Nil = global.
    pub tenant: TenantId,
    /// Unique in its tenant.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// PHC string.
    pub password_hash: Arc<str>,
    /// Sessions from before this are refused: event time of the last password change.
    pub sessions_valid_from_ms: u64,
    /// Event time.
    pub created_ms: u64,
    /// Event time.
    pub updated_ms: u64,
    /// Last change.
    pub revision: Seq,
}

/// Wishes about users.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum UserCommand {
    /// A new one.
    Create {
        /// Nil = global.
        tenant: TenantId,
        /// New.
        id: UserId,
        /// Login name.
        name: String,
        /// One of [`Role`]'s words.
        role: String,
        /// PHC string.
        password_hash: String,
    },
    /// Another password; one's own, or by who may write people.
    Password {
        /// Which.
        id: UserId,
        /// PHC string.
        password_hash: String,
    },
    /// Gone, and every session with it.
    Delete {
        /// Nil = global.
        tenant: TenantId,
        /// Which.
        id: UserId,
    },
}

impl User {
    /// As people and scripts see it.
    pub fn to_proto(&self) -> v1::User {
        v1::User {
            id: self.id.to_string(),
            tenant_id: if self.tenant.is_nil() { String::new() } else { self.tenant.to_string() },
            name: self.name.to_string(),
            role: self.role.as_str().to_owned(),
            created_at: Some(timestamp(self.created_ms)),
            updated_at: Some(timestamp(self.updated_ms)),
            revision: self.revision.0,
        }
    }
}

/// Is the password one that may be set?
pub fn password_check(password: &str) -> Result<(), Rejection> {
    if password.chars().count() >= PASSWORD_MIN && password.len() <= PASSWORD_MAX {
        return Ok(());
    }
    Err(Rejection::invalid(
        "password_weak",
        format!("a password has {PASSWORD_MIN} characters or more, up to {PASSWORD_MAX} bytes"),
    ))
}

pub(crate) fn created_superadmin(id: UserId, name: &str, password_hash: &str) -> Fact {
    let created = v1::UserCreated {
        user_id: id.to_string(),
        name: name.to_owned(),
        role: Role::Superadmin.as_str().to_owned(),
        password_hash: password_hash.to_owned(),
    };
    fact(TenantId::default(), Kind::Created(created.into()))
}

fn fact(tenant: TenantId, kind: Kind) -> Fact {
    Fact { tenant, body: Body::User(v1::UserEvent { kind: Some(kind) }) }
}

fn user_unknown() -> Rejection {
    Rejection::not_found("user_not_found", "there is no such user here; `cvlanctl user list` shows them")
}

pub(crate) fn decide(state: &State, _: &Context, meta: &Meta, command: &UserCommand) -> Result<Vec<Fact>, Rejection> {
    match command {
        UserCommand::Create { tenant, id, name, role, password_hash } => {
            permit(state, &meta.actor, Permission::PeopleWrite, *tenant)?;
            if !tenant.is_nil() && !state.tenants.contains_key(tenant) {
                return Err(tenant_unknown());
            }
            login_check(name)?;
            role_check(role, *tenant)?;
            if state.user_find(*tenant, name).is_some() || state.users.contains_key(id) {
                return Err(Rejection::conflict("user_exists", format!("there is a user {name:?} already")));
            }
            let created = v1::UserCreated {
                user_id: id.to_string(),
                name: name.clone(),
                role: role.clone(),
                password_hash: password_hash.clone(),
            };
            Ok(vec![fact(*tenant, Kind::Created(created.into()))])
        }
        UserCommand::Password { id, password_hash } => {
            let user = state.users.get(id).ok_or_else(user_unknown)?;
            if !matches!(&meta.actor, Actor::User(own, _) if own == id) {
                // Another tenant's user is as unknown as one that never was.
                permit(state, &meta.actor, Permission::PeopleWrite, user.tenant).map_err(|r| match r.kind {
                    crate::rejection::Kind::NotFound => user_unknown(),
                    _ => r,
                })?;
            }
            fresh(meta, user.revision)?;
            let changed = v1::UserPasswordChanged { user_id: id.to_string(), password_hash: password_hash.clone() };
            Ok(vec![fact(user.tenant, Kind::PasswordChanged(changed))])
        }
        UserCommand::Delete { tenant, id } => {
            permit(state, &meta.actor, Permission::PeopleWrite, *tenant)?;
            let user = state.users.get(id).filter(|u| u.tenant == *tenant).ok_or_else(user_unknown)?;
            fresh(meta, user.revision)?;
            let admins = || state.users.values().filter(|u| u.role == Role::Superadmin).count();
            if user.role == Role::Superadmin && admins() == 1 {
                return Err(Rejection::conflict(
                    "last_superadmin",
                    "this is the last superadmin; make another one first",
                ));
            }
            Ok(vec![fact(*tenant, Kind::Deleted(v1::UserDeleted { user_id: id.to_string() }))])
        }
    }
}

fn role_check(role: &str, tenant: TenantId) -> Result<(), Rejection> {
    let words = || Role::ALL.map(Role::as_str).join(", ");
    let role = Role::of(role).ok_or_else(|| {
        Rejection::invalid("role_invalid", format!("role {role:?} is not known; use one of {}", words()))
    })?;
    let fits = match role {
        Role::Superadmin => tenant.is_nil(),
        Role::Tenantadmin | Role::Member | Role::Readonly => !tenant.is_nil(),
        Role::Auditor => true,
    };
    if fits {
        return Ok(());
    }
    let place = if tenant.is_nil() { "needs a tenant (-t TENANT)" } else { "is global; leave the tenant out" };
    Err(Rejection::invalid("role_place", format!("a {} {place}", role.as_str())))
}

pub(crate) fn apply(state: &mut State, stamp: Stamp, tenant: TenantId, event: &v1::UserEvent) {
    match &event.kind {
        Some(Kind::Created(e)) => {
            let Some(role) = Role::of(&e.role) else { return };
            insert(
                state,
                User {
                    id: UserId::of(&e.user_id),
                    tenant,
                    name: e.name.as_str().into(),
                    role,
                    password_hash: e.password_hash.as_str().into(),
                    sessions_valid_from_ms: stamp.time_ms,
                    created_ms: stamp.time_ms,
                    updated_ms: stamp.time_ms,
                    revision: stamp.seq,
                },
            );
        }
        Some(Kind::PasswordChanged(e)) => {
            if let Some(user) = state.users.get_mut(&UserId::of(&e.user_id)).map(Arc::make_mut) {
                user.password_hash = e.password_hash.as_str().into();
                user.sessions_valid_from_ms = stamp.time_ms;
                user.updated_ms = stamp.time_ms;
                user.revision = stamp.seq;
            }
        }
        Some(Kind::Deleted(e)) => {
            if let Some(user) = state.users.remove(&UserId::of(&e.user_id)) {
                state.user_names.remove(&(user.tenant, user.name.clone()));
            }
        }
        None => {}
    }
}

/// Puts a user and what is derived from it into the state.
pub(crate) fn insert(state: &mut State, user: User) {
    state.user_names.insert((user.tenant, user.name.clone()), user.id);
    state.users.insert(user.id, Arc::new(user));
}

pub(crate) fn touched(tenant: TenantId, event: &v1::UserEvent) -> Vec<Key> {
    let id = match &event.kind {
        Some(Kind::Created(e)) => &e.user_id,
        Some(Kind::PasswordChanged(e)) => &e.user_id,
        Some(Kind::Deleted(e)) => &e.user_id,
        None => return Vec::new(),
    };
    vec![Key::User(tenant, UserId::of(id))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Wish;
    use crate::given::{given, tenant, user, user_create};

    #[test]
    fn refusals() {
        for (wish, code) in [
            (user_create(Some(1), 1, "Ann!", "member"), "name_invalid"),
            (user_create(Some(1), 1, "ann", "emperor"), "role_invalid"),
            (user_create(Some(1), 1, "ann", "superadmin"), "role_place"),
            (user_create(None, 1, "ann", "member"), "role_place"),
            (user_create(Some(9), 1, "ann", "member"), "tenant_not_found"),
            (user_create(None, 1, "admin", "superadmin"), "user_exists"),
            (Wish::User(UserCommand::Delete { tenant: tenant(1), id: user(1) }), "user_not_found"),
        ] {
            assert_eq!(given().code(wish.clone()), code, "{wish:?}");
        }
        for (password, ok) in [("short", false), ("long enough!", true), (&"x".repeat(1025), false)] {
            assert_eq!(password_check(password).is_ok(), ok);
        }
    }

    #[test]
    fn the_last_superadmin_stays_and_names_are_a_tenants_own() {
        let mut w = given();
        let (id, home) = w.state.users.values().map(|u| (u.id, u.tenant)).next().unwrap();
        let delete = Wish::User(UserCommand::Delete { tenant: home, id });
        assert_eq!(w.code(delete.clone()), "last_superadmin");
        w.ok(user_create(None, 1, "root2", "superadmin"));
        w.ok(delete);
        w.ok(user_create(Some(1), 2, "ann", "member"));
        w.ok(user_create(Some(2), 3, "ann", "tenantadmin"));
        let own = Actor::User(user(2), "ann".into());
        let password = |id| Wish::User(UserCommand::Password { id, password_hash: "$new".into() });
        assert!(w.when(own.clone(), password(user(2))).is_ok(), "one's own");
        assert_eq!(w.when(own, password(user(3))).unwrap_err().code, "user_not_found", "another tenant's");
    }
}

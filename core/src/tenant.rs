//! Tenants: who owns networks.

use crate::access::{Permission, permit, tenant_unknown};
use crate::command::Meta;
use crate::id::{KeyId, Seq, TenantId};
use crate::machine::Context;
use crate::name::{name_check, text_check};
use crate::rejection::Rejection;
use crate::rules::{Fact, Key, Stamp, fresh};
use crate::state::{State, TenantState};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_proto::v1::{self, Sealed, event::Body, tenant_event::Kind};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A key that may sign registration tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SigningKey {
    /// Its name in tokens.
    pub id: KeyId,
    /// Ed25519 (RFC 8032).
    pub public_key: [u8; 32],
    /// The private half, where it is the server's own.
    #[serde(with = "crate::wire::option")]
    pub seed: Option<Sealed>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Chosen at the door.
    pub id: TenantId,
    /// Unique in the cluster; part of DNS names.
    pub slug: Arc<str>,
    /// For people.
    pub name: Arc<str>,
    /// Keys that may sign tokens; the first with a seed is the server's.
    pub signing_keys: Vec<SigningKey>,
    /// Event time.
    pub created_ms: u64,
    /// Event time.
    pub updated_ms: u64,
    /// Last change.
    pub revision: Seq,
}

/// Wishes about tenants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TenantCommand {
    /// A new tenant, with the server's signing key for it.
    Create {
        /// New.
        id: TenantId,
        /// DNS label.
        slug: String,
        /// For people; empty = the slug.
        name: String,
        /// The server's key; `seed` must be there.
        key: SigningKey,
    },
    /// Another display name.
    Update {
        /// Which.
        id: TenantId,
        /// `None` = as it is.
        name: Option<String>,
    },
    /// Gone; refused while it has CVLANs or users.
    Delete {
        /// Which.
        id: TenantId,
    },
}

impl TenantState {
    /// As people and scripts see it.
    pub fn to_proto(&self) -> v1::Tenant {
        let t = &self.record;
        let key = |k: &SigningKey| v1::SigningKey {
            id: k.id.to_string(),
            public_key: BASE64.encode(k.public_key),
            origin: if k.seed.is_some() { "server" } else { "admin" }.to_owned(),
        };
        v1::Tenant {
            id: t.id.to_string(),
            slug: t.slug.to_string(),
            name: t.name.to_string(),
            signing_keys: t.signing_keys.iter().map(key).collect(),
            created_at: Some(crate::rules::timestamp(t.created_ms)),
            updated_at: Some(crate::rules::timestamp(t.updated_ms)),
            revision: t.revision.0,
            cvlan_count: self.cvlans.len() as u32,
            node_count: self.nodes.len() as u32,
        }
    }
}

pub(crate) fn decide(state: &State, _: &Context, meta: &Meta, command: &TenantCommand) -> Result<Vec<Fact>, Rejection> {
    permit(state, &meta.actor, Permission::ClusterWrite, TenantId::default())?;
    match command {
        TenantCommand::Create { id, slug, name, key } => {
            name_check("tenant", slug)?;
            text_check("tenant name", name)?;
            if state.slugs.contains_key(slug.as_str()) || state.tenants.contains_key(id) {
                return Err(Rejection::conflict("tenant_exists", format!("there is a tenant {slug:?} already")));
            }
            let name = if name.is_empty() { slug } else { name };
            let created = v1::TenantCreated {
                tenant_id: id.to_string(),
                slug: slug.clone(),
                name: name.clone(),
                signing_key: Some(v1::SigningKey {
                    id: key.id.to_string(),
                    public_key: BASE64.encode(key.public_key),
                    origin: "server".to_owned(),
                }),
                signing_seed: key.seed.clone(),
            };
            Ok(vec![fact(*id, Kind::Created(created.into()))])
        }
        TenantCommand::Update { id, name } => {
            let tenant = find(state, *id)?;
            fresh(meta, tenant.record.revision)?;
            let Some(name) = name.as_ref().filter(|n| ***n != *tenant.record.name) else { return Ok(Vec::new()) };
            text_check("tenant name", name)?;
            let updated = v1::TenantUpdated { tenant_id: id.to_string(), name: Some(name.clone()) };
            Ok(vec![fact(*id, Kind::Updated(updated))])
        }
        TenantCommand::Delete { id } => {
            let tenant = find(state, *id)?;
            fresh(meta, tenant.record.revision)?;
            let users = state.users.values().filter(|u| u.tenant == *id).count();
            if !tenant.cvlans.is_empty() || users > 0 {
                return Err(Rejection::conflict(
                    "tenant_not_empty",
                    format!(
                        "tenant {} has {} CVLANs and {users} users; delete them first",
                        tenant.record.slug,
                        tenant.cvlans.len()
                    ),
                ));
            }
            Ok(vec![fact(*id, Kind::Deleted(v1::TenantDeleted { tenant_id: id.to_string() }))])
        }
    }
}

fn find(state: &State, id: TenantId) -> Result<&TenantState, Rejection> {
    state.tenants.get(&id).map(Arc::as_ref).ok_or_else(tenant_unknown)
}

fn fact(tenant: TenantId, kind: Kind) -> Fact {
    Fact { tenant, body: Body::Tenant(v1::TenantEvent { kind: Some(kind) }) }
}

pub(crate) fn apply(state: &mut State, stamp: Stamp, event: &v1::TenantEvent) {
    match &event.kind {
        Some(Kind::Created(e)) => {
            let id = TenantId::of(&e.tenant_id);
            let key = e.signing_key.clone().unwrap_or_default();
            let public_key = BASE64.decode(&key.public_key).ok().and_then(|k| k.try_into().ok()).unwrap_or_default();
            let slug: Arc<str> = e.slug.as_str().into();
            let record = Tenant {
                id,
                slug: slug.clone(),
                name: e.name.as_str().into(),
                signing_keys: vec![SigningKey { id: KeyId::of(&key.id), public_key, seed: e.signing_seed.clone() }],
                created_ms: stamp.time_ms,
                updated_ms: stamp.time_ms,
                revision: stamp.seq,
            };
            state.tenants.insert(id, Arc::new(TenantState::new(record)));
            state.slugs.insert(slug, id);
        }
        Some(Kind::Updated(e)) => {
            if let Some(tenant) = state.tenant_mut(TenantId::of(&e.tenant_id)) {
                if let Some(name) = &e.name {
                    tenant.record.name = name.as_str().into();
                }
                tenant.record.updated_ms = stamp.time_ms;
                tenant.record.revision = stamp.seq;
            }
        }
        Some(Kind::Deleted(e)) => {
            if let Some(tenant) = state.tenants.remove(&TenantId::of(&e.tenant_id)) {
                state.slugs.remove(&tenant.record.slug);
            }
        }
        None => {}
    }
}

pub(crate) fn touched(event: &v1::TenantEvent) -> Vec<Key> {
    let id = match &event.kind {
        Some(Kind::Created(e)) => &e.tenant_id,
        Some(Kind::Updated(e)) => &e.tenant_id,
        Some(Kind::Deleted(e)) => &e.tenant_id,
        None => return Vec::new(),
    };
    vec![Key::Tenant(TenantId::of(id))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Wish;
    use crate::given::{cvlan, given, tenant, user_create};

    #[test]
    fn refusals() {
        let key = SigningKey { id: KeyId::default(), public_key: [1; 32], seed: None };
        let create = |slug: &str, n| TenantCommand::Create {
            id: tenant(n),
            slug: slug.into(),
            name: "T".into(),
            key: key.clone(),
        };
        let name = Some("x".repeat(300));
        for (command, code) in [
            (create("tenant1", 9), "tenant_exists"),
            (create("other", 1), "tenant_exists"),
            (create("Bad Slug", 9), "name_invalid"),
            (TenantCommand::Update { id: tenant(9), name: None }, "tenant_not_found"),
            (TenantCommand::Update { id: tenant(1), name }, "text_invalid"),
            (TenantCommand::Delete { id: tenant(1) }, "tenant_not_empty"),
            (TenantCommand::Delete { id: tenant(9) }, "tenant_not_found"),
        ] {
            assert_eq!(given().code(Wish::Tenant(command.clone())), code, "{command:?}");
        }
    }

    #[test]
    fn an_empty_tenant_goes_and_its_slug_is_free() {
        let mut w = given();
        w.ok(user_create(Some(1), 1, "ann", "member"));
        w.ok(Wish::Token(crate::token::TokenCommand::Delete { tenant: tenant(1), id: crate::given::token(1) }));
        w.ok(Wish::Cvlan(crate::cvlan::CvlanCommand::Delete { tenant: tenant(1), id: cvlan(1) }));
        let delete = Wish::Tenant(TenantCommand::Delete { id: tenant(1) });
        assert_eq!(w.code(delete.clone()), "tenant_not_empty", "it has a user");
        w.ok(Wish::User(crate::user::UserCommand::Delete { tenant: tenant(1), id: crate::given::user(1) }));
        w.ok(delete);
        assert!(w.state.tenant_find("tenant1").is_none());
    }
}

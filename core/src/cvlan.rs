//! CVLANs: virtual networks of a tenant. Ranges never overlap inside a tenant.

use crate::access::{Permission, permit, tenant_unknown};
use crate::address::{Pool, ipv4_parse, ipv4_pick, ipv6_parse, ipv6_unique_local};
use crate::command::Meta;
use crate::finder::Finder;
use crate::id::{CvlanId, Seq, TenantId};
use crate::machine::Context;
use crate::name::name_check;
use crate::rejection::Rejection;
use crate::rules::{Fact, Key, Stamp, fresh, timestamp};
use crate::scope::{Scope, Thing};
use crate::state::{CvlanState, State, TenantState};
use cvlan_proto::v1::{self, cvlan_event::Kind, event::Body};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A CVLAN.
#[derive(Clone, Debug, PartialEq)]
pub struct Cvlan {
    /// Chosen at the door.
    pub id: CvlanId,
    /// Whose.
    pub tenant: TenantId,
    /// Unique in the tenant.
    pub name: Arc<str>,
    /// Its IPv4 range.
    pub ipv4: Ipv4Net,
    /// Its IPv6 range, if it has one.
    pub ipv6: Option<Ipv6Net>,
    /// Event time.
    pub created_ms: u64,
    /// Event time.
    pub updated_ms: u64,
    /// Last change.
    pub revision: Seq,
}

/// Wishes about CVLANs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CvlanCommand {
    /// A new one.
    Create {
        /// Whose.
        tenant: TenantId,
        /// New.
        id: CvlanId,
        /// DNS label.
        name: String,
        /// CIDR; empty = the next free /24.
        ipv4: String,
        /// CIDR; empty = none; `auto` = unique local.
        ipv6: String,
        /// Random: the global id of a unique local prefix (RFC 4193 §3.2.2).
        global_id: [u8; 5],
    },
    /// Another name.
    Update {
        /// Whose.
        tenant: TenantId,
        /// Which.
        id: CvlanId,
        /// `None` = as it is.
        name: Option<String>,
    },
    /// Gone; refused while nodes are in it.
    Delete {
        /// Whose.
        tenant: TenantId,
        /// Which.
        id: CvlanId,
    },
}

impl CvlanState {
    /// As people and scripts see it.
    pub fn to_proto(&self) -> v1::Cvlan {
        let c = &self.record;
        v1::Cvlan {
            id: c.id.to_string(),
            tenant_id: c.tenant.to_string(),
            name: c.name.to_string(),
            ipv4_cidr: c.ipv4.to_string(),
            ipv6_cidr: c.ipv6.map(|n| n.to_string()).unwrap_or_default(),
            node_count: self.names.len() as u32,
            created_at: Some(timestamp(c.created_ms)),
            updated_at: Some(timestamp(c.updated_ms)),
            revision: c.revision.0,
        }
    }

    pub(crate) fn new(record: Cvlan) -> Self {
        let mut scope = Scope::default();
        scope.change(None, record.revision, Thing::Network);
        let (pool4, pool6) = (Pool::ipv4(record.ipv4), record.ipv6.map(Pool::ipv6).unwrap_or_default());
        Self { record, pool4, pool6, names: Finder::default(), scope }
    }
}

pub(crate) fn decide(state: &State, _: &Context, meta: &Meta, command: &CvlanCommand) -> Result<Vec<Fact>, Rejection> {
    let (CvlanCommand::Create { tenant, .. }
    | CvlanCommand::Update { tenant, .. }
    | CvlanCommand::Delete { tenant, .. }) = command;
    permit(state, &meta.actor, Permission::NetworkWrite, *tenant)?;
    let home = state.tenants.get(tenant).ok_or_else(tenant_unknown)?;
    let kind = match command {
        CvlanCommand::Create { id, name, ipv4, ipv6, global_id, .. } => {
            name_check("CVLAN", name)?;
            if home.cvlan_names.contains_key(name.as_str()) || home.cvlans.contains_key(id) {
                return Err(Rejection::conflict("cvlan_exists", format!("there is a CVLAN {name:?} already")));
            }
            let ipv4 = range4(home, ipv4)?;
            let ipv6 = range6(home, ipv6, *global_id)?;
            Kind::Created(Box::new(v1::CvlanCreated {
                cvlan_id: id.to_string(),
                name: name.clone(),
                ipv4_cidr: ipv4.to_string(),
                ipv6_cidr: ipv6.map(|n| n.to_string()).unwrap_or_default(),
            }))
        }
        CvlanCommand::Update { id, name, .. } => {
            let cvlan = home.cvlans.get(id).ok_or_else(cvlan_unknown)?;
            fresh(meta, cvlan.record.revision)?;
            let Some(name) = name.as_ref().filter(|n| ***n != *cvlan.record.name) else { return Ok(Vec::new()) };
            name_check("CVLAN", name)?;
            if home.cvlan_names.contains_key(name.as_str()) {
                return Err(Rejection::conflict("cvlan_exists", format!("there is a CVLAN {name:?} already")));
            }
            Kind::Updated(v1::CvlanUpdated { cvlan_id: id.to_string(), name: Some(name.clone()) })
        }
        CvlanCommand::Delete { id, .. } => {
            let cvlan = home.cvlans.get(id).ok_or_else(cvlan_unknown)?;
            fresh(meta, cvlan.record.revision)?;
            if !cvlan.names.is_empty() {
                return Err(Rejection::conflict(
                    "cvlan_not_empty",
                    format!("CVLAN {} has {} nodes; delete them first", cvlan.record.name, cvlan.names.len()),
                ));
            }
            Kind::Deleted(v1::CvlanDeleted { cvlan_id: id.to_string() })
        }
    };
    Ok(vec![Fact { tenant: *tenant, body: Body::Cvlan(v1::CvlanEvent { kind: Some(kind) }) }])
}

/// No such CVLAN in this tenant.
pub fn cvlan_unknown() -> Rejection {
    Rejection::not_found("cvlan_not_found", "there is no such CVLAN in this tenant; `cvlanctl cvlan list` shows them")
}

fn range4(home: &TenantState, text: &str) -> Result<Ipv4Net, Rejection> {
    if text.is_empty() {
        return ipv4_pick(|| home.ranges4.values()).ok_or_else(|| {
            Rejection::conflict("ranges_exhausted", "no /24 of the private ranges is free in this tenant; name a CIDR")
        });
    }
    let net = ipv4_parse(text)?;
    // Ranges are sorted and free of overlaps: only the last one that starts at or before our end can reach into us.
    let clash = home.ranges4.range(..=net.broadcast()).next_back().map(|(_, other)| *other);
    match clash.filter(|other| other.broadcast() >= net.network()) {
        Some(other) => Err(overlap(text, &other.to_string())),
        None => Ok(net),
    }
}

fn range6(home: &TenantState, text: &str, global_id: [u8; 5]) -> Result<Option<Ipv6Net>, Rejection> {
    let net = match text {
        "" => return Ok(None),
        "auto" => ipv6_unique_local(global_id)
            .ok_or_else(|| Rejection::invalid("cidr_invalid", "no unique local prefix could be made"))?,
        text => ipv6_parse(text)?,
    };
    let clash = home.ranges6.range(..=net.broadcast()).next_back().map(|(_, other)| *other);
    match clash.filter(|other| other.broadcast() >= net.network()) {
        Some(other) => Err(overlap(&net.to_string(), &other.to_string())),
        None => Ok(Some(net)),
    }
}

fn overlap(net: &str, other: &str) -> Rejection {
    Rejection::conflict(
        "cidr_overlap",
        format!("{net} overlaps {other}, which another CVLAN of this tenant has; choose another or leave it out"),
    )
}

pub(crate) fn apply(state: &mut State, stamp: Stamp, tenant: TenantId, event: &v1::CvlanEvent) {
    let Some(home) = state.tenant_mut(tenant) else { return };
    match &event.kind {
        Some(Kind::Created(e)) => {
            let id = CvlanId::of(&e.cvlan_id);
            let record = Cvlan {
                id,
                tenant,
                name: e.name.as_str().into(),
                ipv4: e.ipv4_cidr.parse().unwrap_or_default(),
                ipv6: e.ipv6_cidr.parse().ok(),
                created_ms: stamp.time_ms,
                updated_ms: stamp.time_ms,
                revision: stamp.seq,
            };
            insert(home, CvlanState::new(record));
        }
        Some(Kind::Updated(e)) => {
            let id = CvlanId::of(&e.cvlan_id);
            let Some(cvlan) = home.cvlan_mut(id) else { return };
            let before = cvlan.record.revision;
            cvlan.record.updated_ms = stamp.time_ms;
            cvlan.record.revision = stamp.seq;
            cvlan.scope.change(Some(before), stamp.seq, Thing::Network);
            if let Some(name) = &e.name {
                let name: Arc<str> = name.as_str().into();
                let old = std::mem::replace(&mut cvlan.record.name, name.clone());
                home.cvlan_names.remove(&old);
                home.cvlan_names.insert(name, id);
            }
        }
        Some(Kind::Deleted(e)) => {
            if let Some(cvlan) = home.cvlans.remove(&CvlanId::of(&e.cvlan_id)) {
                home.cvlan_names.remove(&cvlan.record.name);
                home.ranges4.remove(&cvlan.record.ipv4.network());
                if let Some(net) = cvlan.record.ipv6 {
                    home.ranges6.remove(&net.network());
                }
            }
        }
        None => {}
    }
}

/// Puts a CVLAN and what is derived from it into its tenant.
pub(crate) fn insert(home: &mut TenantState, cvlan: CvlanState) {
    let record = &cvlan.record;
    home.cvlan_names.insert(record.name.clone(), record.id);
    home.ranges4.insert(record.ipv4.network(), record.ipv4);
    if let Some(net) = record.ipv6 {
        home.ranges6.insert(net.network(), net);
    }
    home.cvlans.insert(record.id, Arc::new(cvlan));
}

pub(crate) fn touched(tenant: TenantId, event: &v1::CvlanEvent) -> Vec<Key> {
    let id = match &event.kind {
        Some(Kind::Created(e)) => &e.cvlan_id,
        Some(Kind::Updated(e)) => &e.cvlan_id,
        Some(Kind::Deleted(e)) => &e.cvlan_id,
        None => return Vec::new(),
    };
    // The tenant's count of CVLANs is part of its row.
    vec![Key::Cvlan(tenant, CvlanId::of(id)), Key::Tenant(tenant)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Actor, Wish};
    use crate::given::{cvlan, cvlan_create, given, node_create, tenant, user, user_create};

    #[test]
    fn ranges() {
        // Given 10.0.0.0/24 and fd00::/64 in tenant 1, when another is asked for, then…
        for (ipv4, ipv6, want) in [
            ("10.0.0.0/24", "", Err("cidr_overlap")),
            ("10.0.0.0/8", "", Err("cidr_overlap")),
            ("10.0.0.128/25", "", Err("cidr_overlap")),
            ("10.0.1.0/24", "fd00::/96", Err("cidr_overlap")),
            ("10.0.1.0/24", "fd00::/48", Err("cidr_overlap")),
            ("10.0.1.1/24", "", Err("cidr_not_network")),
            ("10.0.1.0/24", "fd01::/127", Err("ipv6_too_small")),
            ("10.0.1.0/24", "fd01::/64", Ok(("10.0.1.0/24", "fd01::/64"))),
            ("", "", Ok(("10.0.1.0/24", ""))),
            ("", "auto", Ok(("10.0.1.0/24", "fd05:505:505::/64"))),
        ] {
            let mut w = given();
            let got = w.when(Actor::System, cvlan_create(1, 5, "other", ipv4, ipv6)).map_err(|r| r.code);
            let made = got.map(|_| w.state.tenants[&tenant(1)].cvlans[&cvlan(5)].to_proto());
            let made = made.as_ref().map(|c| (c.ipv4_cidr.as_str(), c.ipv6_cidr.as_str())).map_err(|c| *c);
            assert_eq!(made, want, "{ipv4} {ipv6}");
        }
    }

    #[test]
    fn refusals() {
        let mut w = given();
        assert_eq!(w.code(cvlan_create(1, 5, "net", "", "")), "cvlan_exists");
        assert_eq!(w.code(cvlan_create(9, 5, "net", "", "")), "tenant_not_found");
        w.ok(node_create(1, 1, 1, "n"));
        assert_eq!(w.code(Wish::Cvlan(CvlanCommand::Delete { tenant: tenant(1), id: cvlan(1) })), "cvlan_not_empty");
        assert_eq!(w.code(Wish::Cvlan(CvlanCommand::Delete { tenant: tenant(2), id: cvlan(1) })), "cvlan_not_found");
        let stale = Meta { if_revision: Some(1), ..Meta::default() };
        let rename = CvlanCommand::Update { tenant: tenant(1), id: cvlan(1), name: Some("new".into()) };
        assert_eq!(w.when_meta(stale, Wish::Cvlan(rename.clone())).unwrap_err().code, "revision_mismatch");
        assert_eq!(w.ok(Wish::Cvlan(rename.clone())).len(), 1);
        assert_eq!(w.ok(Wish::Cvlan(rename)).len(), 0, "a command that changes nothing appends nothing");
    }

    #[test]
    fn roles() {
        for (home, role, code) in [
            (Some(1), "tenantadmin", None),
            (Some(1), "member", None),
            (Some(1), "readonly", Some("forbidden")),
            (Some(1), "auditor", Some("forbidden")),
            (None, "auditor", Some("forbidden")),
            (None, "superadmin", None),
            (Some(2), "tenantadmin", Some("tenant_not_found")),
        ] {
            let mut w = given();
            w.ok(user_create(home, 1, "ann", role));
            let got = w.when(Actor::User(user(1), "ann".into()), cvlan_create(1, 5, "other", "", ""));
            assert_eq!(got.err().map(|r| r.code), code, "{home:?} {role}");
        }
    }
}

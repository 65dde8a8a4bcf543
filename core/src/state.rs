//! The state: everything that the log says, as persistent maps, so that a copy is O(1).
//!
//! ```text
//! State ─ tenants ─► TenantState ─ cvlans ─► CvlanState (record, address pools, scope index)
//!       │                        ├ nodes  ─► Node
//!       │                        ├ tokens ─► Token
//!       │                        └ presence
//!       ├ users
//!       ├ members
//!       ├ used_keys
//!       └ indexes: slugs, user names, WireGuard keys, node → tenant, who is online where (derived, rebuilt on load)
//! ```
//! Only `apply` changes it. Maps are ordered: two replicas walk them alike.

use crate::address::Pool;
use crate::finder::Finder;
use crate::id::{CvlanId, MemberId, NodeId, TenantId, TokenId, UserId};
use crate::idempotency::UsedKeys;
use crate::member::{Member, urls};
use crate::presence::Presence;
use crate::scope::Scope;
use crate::system::SystemState;
use crate::tenant::Tenant;
use crate::token::Token;
use crate::user::User;
use crate::{cvlan::Cvlan, node::Node};
use imbl::{OrdMap, OrdSet};
use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// An X25519 public key.
pub type WgKey = [u8; 32];

/// Everything.
#[derive(Clone, Default)]
pub struct State {
    /// What belongs to the cluster.
    pub system: Arc<SystemState>,
    /// By id.
    pub tenants: OrdMap<TenantId, Arc<TenantState>>,
    /// By id, global ones and every tenant's.
    pub users: OrdMap<UserId, Arc<User>>,
    /// By id; at most [`crate::member::MEMBERS_MAX`].
    pub members: OrdMap<MemberId, Arc<Member>>,
    /// Callers' keys, each kept for a day.
    pub used_keys: UsedKeys,
    /// slug → tenant.
    pub slugs: OrdMap<Arc<str>, TenantId>,
    /// (tenant or nil, login name) → user.
    pub user_names: OrdMap<(TenantId, Arc<str>), UserId>,
    /// WireGuard keys are unique in the whole cluster.
    pub wg_keys: Finder<NodeId>,
    /// A certificate names only the node.
    pub node_tenants: Finder<TenantId>,
    /// Nodes that are connected, by the member that they are connected to.
    pub online: OrdSet<(MemberId, NodeId)>,
}

/// One tenant and all it has.
#[derive(Clone)]
pub struct TenantState {
    /// The tenant itself.
    pub record: Tenant,
    /// The tenant's own running number: events so far.
    pub events: u64,
    /// By id.
    pub cvlans: OrdMap<CvlanId, Arc<CvlanState>>,
    /// name → CVLAN.
    pub cvlan_names: OrdMap<Arc<str>, CvlanId>,
    /// Network address → range; sorted and free of overlaps.
    pub ranges4: OrdMap<Ipv4Addr, Ipv4Net>,
    /// Network address → range; sorted and free of overlaps.
    pub ranges6: OrdMap<Ipv6Addr, Ipv6Net>,
    /// By id.
    pub nodes: OrdMap<NodeId, Arc<Node>>,
    /// By id.
    pub tokens: OrdMap<TokenId, Arc<Token>>,
    /// Nonces of registrations, while their token lives: a nonce belongs to one (token, key, CSR key).
    pub nonces: OrdMap<(TokenId, [u8; 16]), NodeId>,
    /// The last session of each node that ever had one.
    pub presence: OrdMap<NodeId, Presence>,
}

impl TenantState {
    pub(crate) fn new(record: Tenant) -> Self {
        Self {
            record,
            events: 0,
            cvlans: OrdMap::new(),
            cvlan_names: OrdMap::new(),
            ranges4: OrdMap::new(),
            ranges6: OrdMap::new(),
            nodes: OrdMap::new(),
            tokens: OrdMap::new(),
            nonces: OrdMap::new(),
            presence: OrdMap::new(),
        }
    }
}

/// One CVLAN, its addresses and what changed in it.
#[derive(Clone)]
pub struct CvlanState {
    /// The CVLAN itself.
    pub record: Cvlan,
    /// IPv4 addresses.
    pub pool4: Pool,
    /// IPv6 addresses; empty where the CVLAN has no IPv6.
    pub pool6: Pool,
    /// Node name → node, of those in it.
    pub names: Finder<NodeId>,
    /// What changed when: the class "all in the CVLAN".
    pub scope: Scope,
}

impl State {
    /// A tenant by id or exact slug.
    pub fn tenant_find(&self, text: &str) -> Option<&Arc<TenantState>> {
        let by_id = text.parse().ok().and_then(|id: TenantId| self.tenants.get(&id));
        by_id.or_else(|| self.tenants.get(self.slugs.get(text)?))
    }

    /// The tenant and node that a certificate's id names.
    pub fn node_find(&self, id: NodeId) -> Option<(&Arc<TenantState>, &Arc<Node>)> {
        self.node_tenants.find(&id, |tenant| {
            let tenant = self.tenants.get(&tenant)?;
            Some((tenant, tenant.nodes.get(&id)?))
        })
    }

    /// Whose node it is.
    pub fn node_tenant(&self, id: NodeId) -> Option<TenantId> {
        self.node_find(id).map(|(_, node)| node.tenant)
    }

    /// All nodes, by tenant and id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.tenants.values().flat_map(|tenant| tenant.nodes.values())
    }

    /// The tenant and node that have this WireGuard key.
    pub fn node_by_key(&self, key: &WgKey) -> Option<(&Arc<TenantState>, &Arc<Node>)> {
        self.wg_keys.find(key, |id| self.node_find(id).filter(|(_, node)| node.wg_key == *key))
    }

    /// The user that logs in under this name in this tenant (nil = global).
    pub fn user_find(&self, tenant: TenantId, name: &str) -> Option<&Arc<User>> {
        self.users.get(self.user_names.get(&(tenant, Arc::from(name)))?)
    }

    /// A member by id or exact name.
    pub fn member_find(&self, text: &str) -> Option<&Arc<Member>> {
        let by_id = text.parse().ok().and_then(|id: MemberId| self.members.get(&id));
        by_id.or_else(|| self.members.values().find(|m| *m.name == *text))
    }

    /// Node doors of all members, by id, each once; at most [`crate::member::URLS_TOTAL_MAX`].
    pub fn node_urls(&self) -> Vec<String> {
        urls(&self.members, |m| &m.node_urls)
    }

    /// REST doors of all members, by id, each once; at most [`crate::member::URLS_TOTAL_MAX`].
    pub fn api_urls(&self) -> Vec<String> {
        urls(&self.members, |m| &m.api_urls)
    }

    /// Nodes in all tenants.
    pub fn node_count(&self) -> usize {
        self.node_tenants.len()
    }

    pub(crate) fn tenant_mut(&mut self, id: TenantId) -> Option<&mut TenantState> {
        self.tenants.get_mut(&id).map(Arc::make_mut)
    }
}

impl TenantState {
    /// A CVLAN by id or exact name.
    pub fn cvlan_find(&self, text: &str) -> Option<&Arc<CvlanState>> {
        let by_id = text.parse().ok().and_then(|id: CvlanId| self.cvlans.get(&id));
        by_id.or_else(|| self.cvlans.get(self.cvlan_names.get(text)?))
    }

    /// A node by id, or by its exact name where only one CVLAN of the tenant has it; `Err` = several have.
    pub fn node_find(&self, text: &str) -> Result<Option<&Arc<Node>>, Ambiguous> {
        if let Some(node) = text.parse().ok().and_then(|id: NodeId| self.nodes.get(&id)) {
            return Ok(Some(node));
        }
        let mut found = self.cvlans.values().filter_map(|c| self.node_named(c, text));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Ambiguous),
            (one, None) => Ok(one),
            (None, Some(_)) => Ok(None),
        }
    }

    /// The node of this name in one of this tenant's CVLANs.
    pub fn node_named(&self, place: &CvlanState, name: &str) -> Option<&Arc<Node>> {
        place.names.find(name, |id| self.nodes.get(&id).filter(|n| n.cvlan == place.record.id && *n.name == *name))
    }

    pub(crate) fn cvlan_mut(&mut self, id: CvlanId) -> Option<&mut CvlanState> {
        self.cvlans.get_mut(&id).map(Arc::make_mut)
    }
}

/// A name that several CVLANs of the tenant have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

//! What an agent is told: the full map, or the delta after its checkpoint. Both are read straight from a state.

use crate::id::{Checkpoint, CvlanId, Epoch, NodeId, Seq, TenantId};
use crate::node::{Node, Status};
use crate::rules::tenant_of;
use crate::scope::Thing;
use crate::state::{CvlanState, State, TenantState};
use cvlan_proto::v1::{self, event::Body, node_event};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why an agent is sent away. Its stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node is not, or no longer, there.
    Deleted,
    /// An administrator disabled it.
    Disabled,
}

impl Refusal {
    /// Stable name.
    pub fn code(self) -> &'static str {
        match self {
            Self::Deleted => "node_deleted",
            Self::Disabled => "node_disabled",
        }
    }

    /// What happened and what to do.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Deleted => "this node was deleted; register again with a new token to come back",
            Self::Disabled => "this node is disabled; an administrator can enable it again",
        }
    }
}

/// A node, its CVLAN and its tenant in one state.
#[derive(Clone)]
pub struct Place {
    /// Whose.
    pub tenant: Arc<TenantState>,
    /// Where.
    pub cvlan: Arc<CvlanState>,
    /// Who.
    pub node: Arc<Node>,
}

/// Where a node is, if it may talk.
pub fn place(state: &State, id: NodeId) -> Result<Place, Refusal> {
    let (tenant, node) = state.node_find(id).ok_or(Refusal::Deleted)?;
    let cvlan = tenant.cvlans.get(&node.cvlan).ok_or(Refusal::Deleted)?;
    match node.status {
        Status::Active => Ok(Place { tenant: tenant.clone(), cvlan: cvlan.clone(), node: node.clone() }),
        Status::Disabled => Err(Refusal::Disabled),
    }
}

/// What changed for one agent, squashed: things to have, ids to forget.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// What it is told of itself, where that changed.
    pub own: Option<v1::Self_>,
    /// Peers that are new or changed.
    pub upserts: Vec<NodeId>,
    /// Peers to forget.
    pub removed: Vec<NodeId>,
}

impl Place {
    /// What the machine is told about itself.
    pub fn own(&self) -> v1::Self_ {
        let (node, net) = (&self.node, &self.cvlan.record);
        let mut addresses = vec![format!("{}/{}", node.ipv4, net.ipv4.prefix_len())];
        if let (Some(address), Some(net)) = (node.ipv6, net.ipv6) {
            addresses.push(format!("{address}/{}", net.prefix_len()));
        }
        v1::Self_ {
            node_id: node.id.to_string(),
            name: node.name.to_string(),
            addresses,
            tenant: self.tenant.record.slug.to_string(),
            cvlan: net.name.to_string(),
            status: node.status.as_str().to_owned(),
        }
    }

    /// Ids of everyone it may talk to: all other active nodes of the CVLAN, in the order of ids.
    pub fn peer_ids(&self) -> BTreeSet<NodeId> {
        self.cvlan.scope.nodes().filter(|id| self.peer(*id).is_some()).collect()
    }

    /// One peer, if it is one.
    pub fn peer(&self, id: NodeId) -> Option<v1::Peer> {
        let node = self.tenant.nodes.get(&id)?;
        let is = id != self.node.id && node.cvlan == self.node.cvlan && node.status == Status::Active;
        is.then(|| v1::Peer {
            node_id: node.id.to_string(),
            name: node.name.to_string(),
            wg_public_key: node.wg_key.to_vec(),
            ipv4: node.ipv4.to_string(),
            ipv6: node.ipv6.map(|a| a.to_string()).unwrap_or_default(),
            endpoints: node.endpoints.to_vec(),
        })
    }

    /// Can an agent at this checkpoint be brought forward by a delta?
    pub fn can_delta(&self, epoch: Epoch, from: Checkpoint) -> bool {
        from.epoch == epoch && from.seq >= self.cvlan.scope.floor() && from.seq >= self.node.home_since
    }

    /// What changed after `from`. Only where [`Place::can_delta`].
    pub fn changes(&self, from: Seq) -> Changes {
        let mut changes = Changes::default();
        for thing in self.cvlan.scope.changed_after(from) {
            match thing {
                Thing::Network => changes.own = Some(self.own()),
                Thing::Node(id) if id == self.node.id => changes.own = Some(self.own()),
                Thing::Node(id) if self.tenant.nodes.get(&id).is_some_and(|n| n.status == Status::Active) => {
                    changes.upserts.push(id);
                }
                Thing::Node(id) => changes.removed.push(id),
            }
        }
        changes.removed.extend(self.cvlan.scope.gone_after(from));
        changes
    }

    /// Did anything change for it after `from`?
    pub fn changed(&self, from: Seq) -> bool {
        self.cvlan.scope.any_after(from)
    }
}

/// The scopes whose streams an event wakes, seen from the state after it.
pub fn scopes(state: &State, event: &v1::Event) -> Option<(TenantId, CvlanId)> {
    let tenant = tenant_of(event);
    let home_of = |id: &str| state.tenants.get(&tenant).and_then(|t| Some(t.nodes.get(&NodeId::of(id))?.cvlan));
    let cvlan = match event.body.as_ref()? {
        Body::Node(e) => match e.kind.as_ref()? {
            node_event::Kind::Created(e) => CvlanId::of(&e.cvlan_id),
            node_event::Kind::Updated(e) => home_of(&e.node_id)?,
            node_event::Kind::EndpointsChanged(e) => home_of(&e.node_id)?,
            node_event::Kind::Deleted(e) => CvlanId::of(&e.cvlan_id),
        },
        Body::Cvlan(e) => match e.kind.as_ref()? {
            v1::cvlan_event::Kind::Created(e) => CvlanId::of(&e.cvlan_id),
            v1::cvlan_event::Kind::Updated(e) => CvlanId::of(&e.cvlan_id),
            v1::cvlan_event::Kind::Deleted(e) => CvlanId::of(&e.cvlan_id),
        },
        Body::System(_) | Body::Tenant(_) | Body::Token(_) | Body::User(_) | Body::Member(_) | Body::Presence(_) => {
            return None;
        }
    };
    Some((tenant, cvlan))
}

//! Nodes: machines in one CVLAN. The server alone decides where one lands and which address it gets.

use crate::access::{Permission, permit, tenant_unknown};
use crate::address::{Pool, ipv4_of, ipv4_text, ipv6_of, ipv6_text};
use crate::command::{Actor, Meta};
use crate::cvlan::cvlan_unknown;
use crate::finder::Finder;
use crate::id::{CvlanId, KeyId, NodeId, Seq, TenantId, TokenId, UserId};
use crate::machine::{Context, Machine as _};
use crate::name::{endpoints_check, name_check, name_of_hostname, tags_check, text_check};
use crate::rejection::Rejection;
use crate::rules::{Fact, Key, Rules, Stamp, fresh, timestamp};
use crate::scope::Thing;
use crate::state::{CvlanState, State, TenantState, WgKey};
use crate::{presence, token};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_proto::v1::{self, event::Body, node_event::Kind};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// May it talk?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Yes.
    Active,
    /// No: its peers do not know it and its streams are ended.
    Disabled,
}

impl Status {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
        }
    }

    /// Reads the word.
    pub fn of(text: &str) -> Option<Self> {
        [Self::Active, Self::Disabled].into_iter().find(|s| s.as_str() == text)
    }
}

/// How a node came by a token: the same three again are the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// With which token.
    pub token: TokenId,
    /// SHA-256 of the CSR's SubjectPublicKeyInfo.
    pub csr_key_hash: [u8; 32],
    /// SHA-256(mac ‖ nonce), in the certificate.
    pub device_binding: [u8; 32],
}

/// A machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Chosen at the door.
    pub id: NodeId,
    /// Whose.
    pub tenant: TenantId,
    /// Where.
    pub cvlan: CvlanId,
    /// Unique in the CVLAN.
    pub name: Arc<str>,
    /// X25519 public key, unique in the cluster.
    pub wg_key: WgKey,
    /// Given by the server.
    pub ipv4: Ipv4Addr,
    /// Given by the server where the CVLAN has IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// ADDRESS:PORT, best first.
    pub endpoints: Arc<[String]>,
    /// Sorted.
    pub tags: Arc<[String]>,
    /// The user who owns it.
    pub owner: Option<UserId>,
    /// May it talk?
    pub status: Status,
    /// As the machine says.
    pub hostname: Arc<str>,
    /// As the machine says.
    pub os: Arc<str>,
    /// As the machine says.
    pub agent_version: Arc<str>,
    /// `None` = a plain WireGuard device.
    pub enrolment: Option<Enrolment>,
    /// Event time.
    pub created_ms: u64,
    /// Event time.
    pub updated_ms: u64,
    /// Last change.
    pub revision: Seq,
    /// A checkpoint before this was in another home: full map.
    pub home_since: Seq,
    /// Certificates made before this are refused.
    pub certs_valid_from_ms: u64,
}

/// What a machine says of itself.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Host name.
    pub hostname: String,
    /// Operating system.
    pub os: String,
    /// Version of its agent.
    pub agent_version: String,
    /// ADDRESS:PORT of its WireGuard socket.
    pub endpoints: Vec<String>,
}

/// A registration whose token's signature, CSR and key proof the door has checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// New; used unless the machine is a node already.
    pub id: NodeId,
    /// As in the claims.
    pub tenant: TenantId,
    /// As in the claims.
    pub token: TokenId,
    /// As in the claims.
    pub key: KeyId,
    /// X25519 public key.
    pub wg_key: WgKey,
    /// SHA-256 of the CSR's SubjectPublicKeyInfo.
    pub csr_key_hash: [u8; 32],
    /// Chosen by the machine.
    pub nonce: [u8; 16],
    /// SHA-256(mac ‖ nonce).
    pub device_binding: [u8; 32],
    /// What it says of itself.
    pub machine: Machine,
}

/// A plain WireGuard device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// New.
    pub id: NodeId,
    /// Where.
    pub cvlan: CvlanId,
    /// DNS label.
    pub name: String,
    /// X25519 public key.
    pub wg_key: WgKey,
    /// Names.
    pub tags: Vec<String>,
    /// ADDRESS:PORT.
    pub endpoints: Vec<String>,
}

/// Devices in one command.
pub const DEVICES_MAX: usize = 1000;

/// Wishes about nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NodeCommand {
    /// Plain WireGuard devices, all or none.
    Create {
        /// Whose.
        tenant: TenantId,
        /// At least one, at most [`DEVICES_MAX`].
        devices: Vec<Device>,
    },
    /// A machine with a token.
    Register(Box<Register>),
    /// Another name or status.
    Update {
        /// Whose.
        tenant: TenantId,
        /// Which.
        id: NodeId,
        /// `None` = as it is.
        name: Option<String>,
        /// `None` = as it is; else `active` or `disabled`.
        status: Option<String>,
    },
    /// Where its WireGuard socket is now; by the machine itself.
    Endpoints {
        /// Whose.
        tenant: TenantId,
        /// Which.
        id: NodeId,
        /// ADDRESS:PORT, best first.
        endpoints: Vec<String>,
    },
    /// Gone: its streams end, its peers forget it, its address rests.
    Delete {
        /// Whose.
        tenant: TenantId,
        /// Which.
        id: NodeId,
    },
}

impl NodeCommand {
    fn tenant(&self) -> TenantId {
        match self {
            Self::Create { tenant, .. }
            | Self::Update { tenant, .. }
            | Self::Endpoints { tenant, .. }
            | Self::Delete { tenant, .. } => *tenant,
            Self::Register(r) => r.tenant,
        }
    }
}

impl Node {
    /// As people and scripts see it; presence, which is beside it, is the door's to add.
    pub fn to_proto(&self) -> v1::Node {
        v1::Node {
            id: self.id.text(),
            tenant_id: self.tenant.text(),
            cvlan_id: self.cvlan.text(),
            name: self.name.to_string(),
            wg_public_key: BASE64.encode(self.wg_key),
            ipv4: ipv4_text(self.ipv4),
            ipv6: self.ipv6.map(ipv6_text).unwrap_or_default(),
            endpoints: self.endpoints.to_vec(),
            tags: self.tags.to_vec(),
            owner_id: self.owner.map(|o| o.text()).unwrap_or_default(),
            status: self.status.as_str().to_owned(),
            hostname: self.hostname.to_string(),
            os: self.os.to_string(),
            agent_version: self.agent_version.to_string(),
            created_at: Some(timestamp(self.created_ms)),
            updated_at: Some(timestamp(self.updated_ms)),
            revision: self.revision.0,
            online: false,
            last_seen_at: None,
            token_id: self.enrolment.as_ref().map(|e| e.token.text()).unwrap_or_default(),
        }
    }
}

/// No such node in this tenant.
pub fn node_unknown() -> Rejection {
    Rejection::not_found("node_not_found", "there is no such node in this tenant; `cvlanctl node list` shows them")
}

pub(crate) fn decide(state: &State, ctx: &Context, meta: &Meta, command: &NodeCommand) -> Result<Vec<Fact>, Rejection> {
    let tenant = command.tenant();
    authorize(state, meta, command)?;
    let home = state.tenants.get(&tenant).ok_or_else(tenant_unknown)?;
    let kind = match command {
        NodeCommand::Create { devices, .. } => return create(state, ctx, home, devices),
        NodeCommand::Register(r) => register(state, ctx, home, r)?.map(|made| Kind::Created(made.into())),
        NodeCommand::Update { id, name, status, .. } => update(home, meta, *id, name.as_ref(), status.as_ref())?,
        NodeCommand::Endpoints { id, endpoints, .. } => {
            let node = home.nodes.get(id).ok_or_else(node_unknown)?;
            endpoints_check(endpoints)?;
            let changed = || v1::NodeEndpointsChanged { node_id: id.text(), endpoints: endpoints.clone() };
            (*node.endpoints != **endpoints).then(|| Kind::EndpointsChanged(changed()))
        }
        NodeCommand::Delete { id, .. } => {
            let node = home.nodes.get(id).ok_or_else(node_unknown)?;
            fresh(meta, node.revision)?;
            Some(Kind::Deleted(v1::NodeDeleted { node_id: id.text(), cvlan_id: node.cvlan.text() }))
        }
    };
    Ok(kind.map_or_else(Vec::new, |kind| vec![fact(tenant, kind)]))
}

fn fact(tenant: TenantId, kind: Kind) -> Fact {
    Fact { tenant, body: Body::Node(v1::NodeEvent { kind: Some(kind) }) }
}

/// What devices of one command take that the state does not show yet.
#[derive(Default)]
struct Taken<'d> {
    ids: HashSet<NodeId>,
    names: HashSet<(CvlanId, &'d str)>,
    keys: HashSet<&'d WgKey>,
    pools: BTreeMap<CvlanId, (Pool, Pool)>,
    /// The state has nothing of what they bring: one look for all of them.
    all_new: bool,
}

impl Taken<'_> {
    fn room(devices: usize) -> Self {
        let (ids, names, keys) =
            (HashSet::with_capacity(devices), HashSet::with_capacity(devices), HashSet::with_capacity(devices));
        Self { ids, names, keys, ..Self::default() }
    }
}

/// True where the state has no id, no name and no WireGuard key of these devices; may be false all the same where they
/// come into several CVLANs.
fn all_new(state: &State, home: &TenantState, devices: &[Device]) -> bool {
    let cvlan = devices.first().map(|first| first.cvlan);
    let place = cvlan.and_then(|id| home.cvlans.get(&id)).filter(|place| {
        devices.iter().all(|d| d.cvlan == place.record.id) && place.names.has_none(devices.iter().map(|d| &*d.name))
    });
    place.is_some()
        && state.node_tenants.has_none(devices.iter().map(|d| d.id))
        && state.wg_keys.has_none(devices.iter().map(|d| d.wg_key))
}

/// Each device against the state and against those before it; nothing is folded for that.
fn create(state: &State, ctx: &Context, home: &TenantState, devices: &[Device]) -> Result<Vec<Fact>, Rejection> {
    if devices.is_empty() || devices.len() > DEVICES_MAX {
        let detail = format!("{} devices; a request takes 1 to {DEVICES_MAX}", devices.len());
        return Err(Rejection::invalid("devices_count", detail));
    }
    let many = devices.len() > 1;
    let mut taken = if many { Taken::room(devices.len()) } else { Taken::default() };
    taken.all_new = many && all_new(state, home, devices);
    let mut facts = Vec::with_capacity(devices.len());
    for (device, n) in devices.iter().zip(1..) {
        let made = device_created(state, ctx, home, device, &mut taken, many).map_err(|refused| match many {
            true => Rejection { detail: format!("device {n} of {}: {refused}", devices.len()), ..refused },
            false => refused,
        })?;
        facts.push(fact(home.record.id, Kind::Created(made.into())));
    }
    Ok(facts)
}

fn device_created<'d>(
    state: &State,
    ctx: &Context,
    home: &TenantState,
    device: &'d Device,
    taken: &mut Taken<'d>,
    many: bool,
) -> Result<v1::NodeCreated, Rejection> {
    let Device { id, cvlan, name, wg_key, tags, endpoints } = device;
    name_check("node", name)?;
    let place = home.cvlans.get(cvlan).ok_or_else(cvlan_unknown)?;
    let twice = many && !(taken.names.insert((*cvlan, name)) && taken.ids.insert(*id));
    let known = || home.node_named(place, name).is_some() || state.node_find(*id).is_some();
    if twice || !taken.all_new && known() {
        return Err(Rejection::conflict("node_exists", format!("there is a node {name:?} in this CVLAN already")));
    }
    let key_known = many && !taken.keys.insert(wg_key) || !taken.all_new && state.node_by_key(wg_key).is_some();
    let machine = Machine { endpoints: endpoints.clone(), ..Machine::default() };
    if !many {
        let pools = (&place.pool4, &place.pool6);
        let made = created(ctx, place, pools, *id, name.clone(), wg_key, tags, machine)?;
        return if key_known { Err(key_taken()) } else { Ok(made) };
    }
    let pools = taken.pools.entry(*cvlan);
    let (pool4, pool6) = pools.or_insert_with(|| (place.pool4.clone(), place.pool6.clone()));
    let made = created(ctx, place, (pool4, pool6), *id, name.clone(), wg_key, tags, machine)?;
    if key_known {
        return Err(key_taken());
    }
    if let Some(address) = pool4.next(ctx.time_ms) {
        pool4.take(address, ctx.time_ms);
    }
    if let Some(address) = pool6.next(ctx.time_ms).filter(|_| !made.ipv6.is_empty()) {
        pool6.take(address, ctx.time_ms);
    }
    Ok(made)
}

/// People by their role; a token registers; a machine reports its own endpoints.
fn authorize(state: &State, meta: &Meta, command: &NodeCommand) -> Result<(), Rejection> {
    match (&meta.actor, command) {
        (Actor::Token(token), NodeCommand::Register(r)) if *token == r.token => Ok(()),
        (Actor::Node(node, _), NodeCommand::Endpoints { id, .. }) if node == id => Ok(()),
        _ => permit(state, &meta.actor, Permission::NetworkWrite, command.tenant()),
    }
}

fn register(
    state: &State,
    ctx: &Context,
    home: &TenantState,
    r: &Register,
) -> Result<Option<v1::NodeCreated>, Rejection> {
    let token = token::usable(home, ctx, r.token, r.key)?;
    let place = home.cvlans.get(&token.cvlan).ok_or_else(|| {
        Rejection::conflict("token_cvlan_gone", "the CVLAN that this token leads to was deleted; ask for a new token")
    })?;
    let known = state.node_by_key(&r.wg_key).map(|(_, node)| node.id);
    let same = known
        .and_then(|id| home.nodes.get(&id))
        .filter(|n| n.enrolment.as_ref().is_some_and(|e| e.token == r.token && e.csr_key_hash == r.csr_key_hash));
    if let Some(owner) = home.nonces.get(&(r.token, r.nonce))
        && same.is_none_or(|n| n.id != *owner)
    {
        return Err(Rejection::conflict(
            "nonce_replayed",
            "this nonce was used by another registration; make a new one",
        ));
    }
    if same.is_some() {
        return Ok(None);
    }
    if known.is_some() {
        return Err(key_taken());
    }
    if token.uses >= token.max_uses {
        return Err(Rejection::conflict(
            "token_used_up",
            format!("this token was for {} machines and all have come; ask for a new one", token.max_uses),
        ));
    }
    let mut name = name_of_hostname(&r.machine.hostname);
    if home.node_named(place, &name).is_some() {
        // Short, unique, and the same on every replica.
        let tail: String = r.id.0.simple().to_string().chars().rev().take(8).collect();
        name = format!("{name}-{tail}");
    }
    let pools = (&place.pool4, &place.pool6);
    let mut created = created(ctx, place, pools, r.id, name, &r.wg_key, &token.tags, r.machine.clone())?;
    created.enrolment = Some(v1::Enrolment {
        token_id: r.token.text(),
        csr_key_hash: r.csr_key_hash.to_vec(),
        nonce: r.nonce.to_vec(),
        device_binding: r.device_binding.to_vec(),
    });
    Ok(Some(created))
}

fn key_taken() -> Rejection {
    Rejection::conflict("wg_key_in_use", "another node has this WireGuard key; every machine makes its own")
}

#[allow(clippy::too_many_arguments)] // One fact has that many parts.
fn created(
    ctx: &Context,
    place: &CvlanState,
    (pool4, pool6): (&Pool, &Pool),
    id: NodeId,
    name: String,
    wg_key: &WgKey,
    tags: &[String],
    machine: Machine,
) -> Result<v1::NodeCreated, Rejection> {
    tags_check(tags)?;
    endpoints_check(&machine.endpoints)?;
    for (what, text) in
        [("hostname", &machine.hostname), ("os", &machine.os), ("agent version", &machine.agent_version)]
    {
        text_check(what, text)?;
    }
    if *wg_key == [0; 32] {
        return Err(Rejection::invalid(
            "wg_key_invalid",
            "an all-zero WireGuard key is no key; run `wg genkey | wg pubkey`",
        ));
    }
    let full = |cidr: String| {
        Rejection::conflict(
            "addresses_exhausted",
            format!("every address of {cidr} is taken; delete nodes or use another CVLAN"),
        )
    };
    let ipv4 = pool4.next(ctx.time_ms).ok_or_else(|| full(place.record.ipv4.to_string()))?;
    let ipv6 = match place.record.ipv6 {
        Some(net) => Some(pool6.next(ctx.time_ms).ok_or_else(|| full(net.to_string()))?),
        None => None,
    };
    let mut tags = tags.to_vec();
    tags.sort();
    tags.dedup();
    Ok(v1::NodeCreated {
        node_id: id.text(),
        cvlan_id: place.record.id.text(),
        name,
        wg_public_key: wg_key.to_vec(),
        ipv4: ipv4_text(Ipv4Addr::from(ipv4 as u32)),
        ipv6: ipv6.map(|a| ipv6_text(Ipv6Addr::from(a))).unwrap_or_default(),
        tags,
        endpoints: machine.endpoints,
        hostname: machine.hostname,
        os: machine.os,
        agent_version: machine.agent_version,
        enrolment: None,
    })
}

fn update(
    home: &TenantState,
    meta: &Meta,
    id: NodeId,
    name: Option<&String>,
    status: Option<&String>,
) -> Result<Option<Kind>, Rejection> {
    let node = home.nodes.get(&id).ok_or_else(node_unknown)?;
    fresh(meta, node.revision)?;
    let name = name.filter(|n| ***n != *node.name);
    if let Some(name) = name {
        name_check("node", name)?;
        if home.cvlans.get(&node.cvlan).is_some_and(|c| home.node_named(c, name).is_some()) {
            return Err(Rejection::conflict("node_exists", format!("there is a node {name:?} in this CVLAN already")));
        }
    }
    let status = match status {
        None => None,
        Some(text) => {
            let wanted = Status::of(text).ok_or_else(|| {
                Rejection::invalid("status_invalid", format!("status {text:?} is not known; use active or disabled"))
            })?;
            (wanted != node.status).then(|| text.clone())
        }
    };
    let changed = name.is_some() || status.is_some();
    Ok(changed.then(|| Kind::Updated(v1::NodeUpdated { node_id: id.text(), name: name.cloned(), status })))
}

pub(crate) fn apply(state: &mut State, stamp: Stamp, tenant: TenantId, event: &v1::NodeEvent) {
    match &event.kind {
        Some(Kind::Created(e)) => apply_created(state, stamp, tenant, e),
        Some(Kind::Updated(e)) => change(state, stamp, tenant, NodeId::of(&e.node_id), |node, place| {
            if let Some(name) = &e.name {
                place.names.remove();
                node.name = name.as_str().into();
                place.names.insert(name.as_str(), node.id);
            }
            if let Some(status) = e.status.as_deref().and_then(Status::of) {
                node.status = status;
            }
        }),
        Some(Kind::EndpointsChanged(e)) => change(state, stamp, tenant, NodeId::of(&e.node_id), |node, _| {
            node.endpoints = list(&e.endpoints);
        }),
        Some(Kind::Deleted(e)) => apply_deleted(state, stamp, tenant, NodeId::of(&e.node_id)),
        None => {}
    }
}

/// Most nodes say nothing of these: all empty texts are one.
fn text(text: &str) -> Arc<str> {
    if text.is_empty() { Arc::default() } else { text.into() }
}

fn list(list: &[String]) -> Arc<[String]> {
    if list.is_empty() { Arc::default() } else { list.into() }
}

/// The node that an event made, as it was then.
pub fn created_by(event: &v1::Event) -> Option<Node> {
    let Some(Body::Node(v1::NodeEvent { kind: Some(Kind::Created(e)) })) = &event.body else { return None };
    Some(node_of(Stamp { seq: Seq(event.seq), time_ms: Rules::time_ms(event) }, TenantId::of(&event.tenant_id), e))
}

fn node_of(stamp: Stamp, tenant: TenantId, e: &v1::NodeCreated) -> Node {
    let enrolment = e.enrolment.as_ref().map(|x| Enrolment {
        token: TokenId::of(&x.token_id),
        csr_key_hash: x.csr_key_hash.as_slice().try_into().unwrap_or_default(),
        device_binding: x.device_binding.as_slice().try_into().unwrap_or_default(),
    });
    Node {
        id: NodeId::of(&e.node_id),
        tenant,
        cvlan: CvlanId::of(&e.cvlan_id),
        name: e.name.as_str().into(),
        wg_key: e.wg_public_key.as_slice().try_into().unwrap_or_default(),
        ipv4: ipv4_of(&e.ipv4).unwrap_or(Ipv4Addr::UNSPECIFIED),
        ipv6: ipv6_of(&e.ipv6),
        endpoints: list(&e.endpoints),
        tags: list(&e.tags),
        owner: None,
        status: Status::Active,
        hostname: text(&e.hostname),
        os: text(&e.os),
        agent_version: text(&e.agent_version),
        enrolment,
        created_ms: stamp.time_ms,
        updated_ms: stamp.time_ms,
        revision: stamp.seq,
        home_since: stamp.seq,
        certs_valid_from_ms: 0,
    }
}

fn apply_created(state: &mut State, stamp: Stamp, tenant: TenantId, e: &v1::NodeCreated) {
    let node = node_of(stamp, tenant, e);
    if let Some(x) = &e.enrolment
        && let Some(home) = state.tenant_mut(tenant)
    {
        let token = TokenId::of(&x.token_id);
        if let Some(token) = home.tokens.get_mut(&token).map(Arc::make_mut) {
            token.uses += 1;
            token.revision = stamp.seq;
        }
        home.nonces.insert((token, x.nonce.as_slice().try_into().unwrap_or_default()), node.id);
    }
    insert(state, node, stamp.time_ms);
}

/// Puts a node and what is derived from it into the state.
pub(crate) fn insert(state: &mut State, node: Node, now_ms: u64) {
    state.wg_keys.insert(&node.wg_key, node.id);
    state.node_tenants.insert(&node.id, node.tenant);
    let Some(home) = state.tenant_mut(node.tenant) else { return };
    if let Some(place) = home.cvlan_mut(node.cvlan) {
        place.pool4.take(u128::from(u32::from(node.ipv4)), now_ms);
        if let Some(address) = node.ipv6 {
            place.pool6.take(u128::from(address), now_ms);
        }
        place.names.insert(&*node.name, node.id);
        place.scope.change(None, node.revision, Thing::Node(node.id));
    }
    home.nodes.insert(node.id, Arc::new(node));
}

/// Changes a node and files the change in its CVLAN's index.
fn change(state: &mut State, stamp: Stamp, tenant: TenantId, id: NodeId, f: impl FnOnce(&mut Node, &mut CvlanState)) {
    let Some(home) = state.tenant_mut(tenant) else { return };
    let Some(node) = home.nodes.get_mut(&id).map(Arc::make_mut) else { return };
    let Some(place) = home.cvlans.get_mut(&node.cvlan).map(Arc::make_mut) else { return };
    let before = node.revision;
    f(node, place);
    node.updated_ms = stamp.time_ms;
    node.revision = stamp.seq;
    place.scope.change(Some(before), stamp.seq, Thing::Node(id));
    let cvlan = node.cvlan;
    names_renew(home, cvlan);
}

/// A new table of names, once it is due.
fn names_renew(home: &mut TenantState, cvlan: CvlanId) {
    let Some(place) = home.cvlans.get_mut(&cvlan).filter(|place| place.names.due()) else { return };
    let here = place.scope.nodes().filter_map(|id| home.nodes.get(&id));
    let names = Finder::of(here.map(|node| (&*node.name, node.id)));
    Arc::make_mut(place).names = names;
}

fn apply_deleted(state: &mut State, stamp: Stamp, tenant: TenantId, id: NodeId) {
    presence::remove(state, tenant, id);
    let Some(home) = state.tenant_mut(tenant) else { return };
    let Some(node) = home.nodes.remove(&id) else { return };
    if let Some(place) = home.cvlan_mut(node.cvlan) {
        place.pool4.release(u128::from(u32::from(node.ipv4)), stamp.time_ms);
        if let Some(address) = node.ipv6 {
            place.pool6.release(u128::from(address), stamp.time_ms);
        }
        place.names.remove();
        place.scope.remove(node.revision, stamp.seq, id);
    }
    names_renew(home, node.cvlan);
    state.wg_keys.remove();
    state.node_tenants.remove();
    if state.wg_keys.due() {
        state.wg_keys = Finder::of(state.nodes().map(|node| (node.wg_key, node.id)));
    }
    if state.node_tenants.due() {
        state.node_tenants = Finder::of(state.nodes().map(|node| (node.id, node.tenant)));
    }
}

pub(crate) fn touched(tenant: TenantId, event: &v1::NodeEvent) -> Vec<Key> {
    match &event.kind {
        Some(Kind::Created(e)) => {
            // Counts are part of the CVLAN's and the tenant's row, uses of the token's.
            let mut keys = vec![
                Key::Node(tenant, NodeId::of(&e.node_id)),
                Key::Cvlan(tenant, CvlanId::of(&e.cvlan_id)),
                Key::Tenant(tenant),
            ];
            keys.extend(e.enrolment.as_ref().map(|x| Key::Token(tenant, TokenId::of(&x.token_id))));
            keys
        }
        Some(Kind::Updated(e)) => vec![Key::Node(tenant, NodeId::of(&e.node_id))],
        Some(Kind::EndpointsChanged(e)) => vec![Key::Node(tenant, NodeId::of(&e.node_id))],
        Some(Kind::Deleted(e)) => vec![
            Key::Node(tenant, NodeId::of(&e.node_id)),
            Key::Cvlan(tenant, CvlanId::of(&e.cvlan_id)),
            Key::Tenant(tenant),
        ],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Wish;
    use crate::given::{cvlan, cvlan_create, device, given, key, machine, node, node_create, tenant, token};

    #[test]
    fn a_registration_repeated_is_the_same_node() {
        let mut w = given();
        assert_eq!(w.register(machine(1)), Ok(1));
        let again = Register { id: node(7), nonce: [9; 16], ..machine(1) };
        assert_eq!(w.register(again), Ok(0), "another nonce, the same triple");
        let home = &w.state.tenants[&tenant(1)];
        let made = &home.nodes[&node(1)];
        assert_eq!((home.nodes.len(), home.tokens[&token(1)].uses), (1, 1));
        assert_eq!((made.ipv4, made.ipv6), ("10.0.0.2".parse().unwrap(), "fd00::2".parse().ok()));
        assert_eq!(*made.tags, ["a".to_owned(), "b".to_owned()]);
    }

    #[test]
    fn registrations_that_are_refused_append_nothing() {
        let other_csr = |n| Register { csr_key_hash: [99; 32], nonce: [98; 16], ..machine(n) };
        for (what, r, code) in [
            ("another machine's nonce", Register { nonce: [1; 16], ..machine(2) }, "nonce_replayed"),
            ("a node's WireGuard key", other_csr(1), "wg_key_in_use"),
            ("a token of no log", Register { token: token(9), ..machine(2) }, "token_invalid"),
            ("another key's name", Register { key: key(2), ..machine(2) }, "token_invalid"),
            ("another tenant", Register { tenant: tenant(2), ..machine(2) }, "token_invalid"),
            ("no such tenant", Register { tenant: tenant(9), ..machine(2) }, "tenant_not_found"),
            ("a zero key", Register { wg_key: [0; 32], ..machine(2) }, "wg_key_invalid"),
            (
                "a bad endpoint",
                Register { machine: Machine { endpoints: vec!["x".into()], ..Machine::default() }, ..machine(2) },
                "endpoint_invalid",
            ),
        ] {
            let mut w = given();
            assert_eq!(w.register(machine(1)), Ok(1));
            let before = w.seq;
            assert_eq!(w.register(r), Err(code), "{what}");
            assert_eq!(w.seq, before);
        }
    }

    #[test]
    fn tokens_expire_are_used_up_and_lead_nowhere() {
        let mut w = given();
        assert_eq!((w.register(machine(1)), w.register(machine(2))), (Ok(1), Ok(1)));
        assert_eq!(w.register(machine(3)), Err("token_used_up"));
        assert_eq!(w.register(machine(1)), Ok(0), "who has come may come again");
        w.now_ms += 3_600_000;
        assert_eq!(w.register(machine(1)), Err("token_expired"));

        let mut w = given();
        w.ok(Wish::Cvlan(crate::cvlan::CvlanCommand::Delete { tenant: tenant(1), id: cvlan(1) }));
        assert_eq!(w.register(machine(1)), Err("token_cvlan_gone"));
    }

    #[test]
    fn a_full_range_is_a_conflict_and_a_deleted_nodes_address_is_used_again() {
        let mut w = given();
        w.ok(cvlan_create(1, 3, "tiny", "10.9.0.0/29", ""));
        for n in 1..=4 {
            w.ok(node_create(1, 3, n, &format!("n{n}")));
        }
        assert_eq!(w.code(node_create(1, 3, 5, "n5")), "addresses_exhausted");
        w.ok(Wish::Node(NodeCommand::Delete { tenant: tenant(1), id: node(2) }));
        w.ok(node_create(1, 3, 5, "n5"));
        assert_eq!(w.state.tenants[&tenant(1)].nodes[&node(5)].ipv4.to_string(), "10.9.0.3");
    }

    fn devices(devices: Vec<Device>) -> Wish {
        Wish::Node(NodeCommand::Create { tenant: tenant(1), devices })
    }

    #[test]
    fn devices_of_one_command_are_told_apart_and_come_all_or_none() {
        let mut w = given();
        w.ok(cvlan_create(1, 3, "tiny", "10.9.0.0/29", "fd00:9::/120"));
        let three = || vec![device(3, 1, "a"), device(1, 2, "a"), device(3, 3, "b")];
        let twice = |f: fn(&mut Device, &Device)| {
            let (mut all, first) = (three(), device(3, 1, "a"));
            f(&mut all[2], &first);
            devices(all)
        };
        for (what, wish, code) in [
            ("none", devices(Vec::new()), "devices_count"),
            ("too many", devices(vec![device(1, 1, "a"); DEVICES_MAX + 1]), "devices_count"),
            ("a name twice", twice(|last, first| last.name = first.name.clone()), "node_exists"),
            ("an id twice", twice(|last, first| last.id = first.id), "node_exists"),
            ("a key twice", twice(|last, first| last.wg_key = first.wg_key), "wg_key_in_use"),
            ("a bad name", twice(|last, _| last.name = "B".into()), "name_invalid"),
            ("another tenant's CVLAN", twice(|last, _| last.cvlan = cvlan(2)), "cvlan_not_found"),
            ("no room", devices((1..=5).map(|n| device(3, n, &format!("n{n}"))).collect()), "addresses_exhausted"),
        ] {
            let before = w.seq;
            let refused = w.when(Actor::System, wish).unwrap_err();
            assert_eq!((refused.code, w.seq), (code, before), "{what}");
            let counted = code == "devices_count";
            assert!(counted || refused.detail.starts_with("device "), "which one it is: {}", refused.detail);
        }
        let events = w.ok(devices(three()));
        assert_eq!(events.iter().map(|e| e.tenant_seq).collect::<Vec<_>>(), [5, 6, 7]);
        let home = &w.state.tenants[&tenant(1)];
        let address = |n| (home.nodes[&node(n)].ipv4.to_string(), home.nodes[&node(n)].ipv6.unwrap().to_string());
        assert_eq!(address(1), ("10.9.0.2".into(), "fd00:9::2".into()));
        assert_eq!(address(2), ("10.0.0.2".into(), "fd00::2".into()));
        assert_eq!(address(3), ("10.9.0.3".into(), "fd00:9::3".into()));
        crate::grammar::check_invariants(&w.state).unwrap();
        assert_eq!(w.code(devices(vec![device(3, 3, "other")])), "node_exists", "an id that is there");
    }

    #[test]
    fn a_state_from_before_still_finds_what_is_gone_and_its_successors_do_not() {
        let mut w = given();
        w.ok(cvlan_create(1, 3, "large", "10.9.0.0/16", ""));
        let all = 2_500;
        for n in 10..10 + all {
            w.ok(node_create(1, 3, n, &format!("n{n}")));
        }
        let before = w.state.clone();
        for n in 10..10 + all - 5 {
            w.ok(Wish::Node(NodeCommand::Delete { tenant: tenant(1), id: node(n) }));
        }
        let (then, now) = (&before.tenants[&tenant(1)], &w.state.tenants[&tenant(1)]);
        for n in 10..10 + all {
            let (key, name, gone) = (device(3, n, "").wg_key, format!("n{n}"), n < 10 + all - 5);
            for (state, home, gone) in [(&before, then, false), (&w.state, now, gone)] {
                let found = [
                    state.node_by_key(&key).map(|(_, found)| found.id),
                    state.node_find(node(n)).map(|(_, found)| found.id),
                    home.node_find(&name).unwrap().map(|found| found.id),
                ];
                assert_eq!(found, [(!gone).then(|| node(n)); 3], "{n}");
            }
        }
        crate::grammar::check_invariants(&before).unwrap();
        crate::grammar::check_invariants(&w.state).unwrap();
        w.ok(node_create(1, 3, 10, "n10"));
        assert!(w.state.node_by_key(&device(3, 10, "").wg_key).is_some());
    }

    #[test]
    fn who_may_change_a_node() {
        let endpoints =
            |id| Wish::Node(NodeCommand::Endpoints { tenant: tenant(1), id, endpoints: vec!["192.0.2.1:1".into()] });
        let delete = Wish::Node(NodeCommand::Delete { tenant: tenant(1), id: node(1) });
        for (actor, wish, code) in [
            (Actor::Node(node(1), String::new()), endpoints(node(1)), None),
            (Actor::Node(node(2), String::new()), endpoints(node(1)), Some("forbidden")),
            (Actor::Node(node(1), String::new()), delete.clone(), Some("forbidden")),
            (Actor::Token(token(1)), delete.clone(), Some("forbidden")),
            (Actor::System, delete, None),
        ] {
            let mut w = given();
            w.register(machine(1)).unwrap();
            w.register(machine(2)).unwrap();
            assert_eq!(w.when(actor.clone(), wish).err().map(|r| r.code), code, "{actor:?}");
        }
    }

    #[test]
    fn two_machines_of_one_name_get_two() {
        let mut w = given();
        w.register(machine(1)).unwrap();
        w.register(machine(2)).unwrap();
        let names: Vec<_> = w.state.tenants[&tenant(1)].nodes.values().map(|n| n.name.to_string()).collect();
        assert_eq!(names, ["web", "web-20030000"]);
    }
}

//! Nodes, as administrators see them; machines come by `register`.

use super::list::Wanted;
use super::{App, Caller, Output, now_ms};
use crate::problem::Problem;
use crate::random::uuid_sorted;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_core::cvlan::cvlan_unknown;
use cvlan_core::id::{NodeId, TenantId};
use cvlan_core::node::{Device, Node, NodeCommand, created_by, node_unknown};
use cvlan_core::rules::timestamp;
use cvlan_core::state::{TenantState, WgKey};
use cvlan_core::{State, Wish};
use cvlan_proto::v1;
use cvlan_raft::Head;

/// A page of the tenant's.
pub async fn list(app: &App, home: &TenantState, wanted: &Wanted) -> Result<Output<v1::NodeList>, Problem> {
    let (tenant, query) = (home.record.id, wanted.query(Some(home))?);
    let mut page = app.page(wanted, move |v| v.nodes(tenant, &query)).await?;
    let head = app.log.head();
    page.body.items.iter_mut().for_each(|n| presence(app, &head.machine, n));
    Ok(page.map(|p| v1::NodeList { items: p.items, next_cursor: p.next_cursor }))
}

/// Presence is beside the node: as the newest state here has it.
fn presence(app: &App, state: &State, node: &mut v1::Node) {
    let id = NodeId::of(&node.id);
    let last = state.presence(id);
    let seen = app.streams.session(id).map(|_| now_ms()).or(last.map(|p| p.since_ms));
    node.online = last.is_some_and(|p| p.online);
    node.last_seen_at = seen.map(timestamp);
}

/// With its presence.
pub fn proto(app: &App, node: &Node) -> v1::Node {
    let mut proto = node.to_proto();
    presence(app, &app.log.head().machine, &mut proto);
    proto
}

fn find<'a>(home: &'a TenantState, name: &str) -> Result<&'a Node, Problem> {
    let found = home.node_find(name).map_err(|_| {
        let detail = format!("several CVLANs of this tenant have a node {name:?}; name it by its id");
        Problem::new(http::StatusCode::CONFLICT, "name_ambiguous", detail)
    })?;
    Ok(found.ok_or_else(node_unknown)?)
}

/// One, by id or a name that only one CVLAN of the tenant has.
pub fn get(app: &App, head: &Head<State>, home: &TenantState, name: &str) -> Result<Output<v1::Node>, Problem> {
    let node = find(home, name)?;
    Ok(Output::read(head, proto(app, node)).revision(node.revision.0))
}

/// A WireGuard key as people write it: base64 of 32 bytes.
pub fn wg_key(text: &str) -> Result<WgKey, Problem> {
    let key = BASE64.decode(text).ok().and_then(|k| WgKey::try_from(k).ok());
    key.ok_or_else(|| {
        Problem::invalid(
            "wg_key_invalid",
            "a WireGuard public key is 32 bytes, base64 (44 characters); `wg pubkey` prints it",
        )
    })
}

/// A plain WireGuard device.
pub async fn create(
    app: &App,
    caller: &Caller,
    home: &TenantState,
    body: v1::NodeCreateRequest,
) -> Result<Output<v1::Node>, Problem> {
    let device = device(home, body)?;
    let (tenant, id) = (home.record.id, device.id);
    after(app, caller, tenant, id, NodeCommand::Create { tenant, devices: vec![device] }).await
}

fn device(home: &TenantState, body: v1::NodeCreateRequest) -> Result<Device, Problem> {
    let v1::NodeCreateRequest { cvlan, name, wg_public_key, tags, endpoints } = body;
    let id = NodeId(uuid_sorted(now_ms()));
    let cvlan = home.cvlan_find(&cvlan).ok_or_else(cvlan_unknown)?.record.id;
    Ok(Device { id, cvlan, name, wg_key: wg_key(&wg_public_key)?, tags, endpoints })
}

/// Plain WireGuard devices, all or none.
pub async fn bulk(
    app: &App,
    caller: &Caller,
    home: &TenantState,
    body: v1::NodeBulkRequest,
) -> Result<Output<v1::NodeBulkResponse>, Problem> {
    let (tenant, all) = (home.record.id, body.items.len());
    let read = |(n, item)| {
        let at =
            |refused: Problem| Problem { detail: format!("device {n} of {all}: {}", refused.detail).into(), ..refused };
        device(home, item).map_err(at)
    };
    let devices = (1..).zip(body.items).map(read).collect::<Result<_, _>>()?;
    let answer = app.write(caller, Wish::Node(NodeCommand::Create { tenant, devices })).await?;
    Ok(app.written(&answer, made(&answer.events)))
}

/// The nodes that these events made, as they were then.
pub fn made(events: &[v1::Event]) -> v1::NodeBulkResponse {
    let items = events.iter().filter_map(created_by).map(|node| node.to_proto());
    v1::NodeBulkResponse { items: items.collect() }
}

/// Another name or status.
pub async fn update(
    app: &App,
    caller: &Caller,
    home: &TenantState,
    name: &str,
    body: v1::NodeUpdateRequest,
) -> Result<Output<v1::Node>, Problem> {
    let (tenant, id) = (home.record.id, find(home, name)?.id);
    after(app, caller, tenant, id, NodeCommand::Update { tenant, id, name: body.name, status: body.status }).await
}

/// Gone: its stream ends, its peers forget it, its address rests.
pub async fn delete(app: &App, caller: &Caller, home: &TenantState, name: &str) -> Result<Output<()>, Problem> {
    let (tenant, id) = (home.record.id, find(home, name)?.id);
    let answer = app.write(caller, Wish::Node(NodeCommand::Delete { tenant, id })).await?;
    Ok(app.written(&answer, ()))
}

async fn after(
    app: &App,
    caller: &Caller,
    tenant: TenantId,
    id: NodeId,
    wish: NodeCommand,
) -> Result<Output<v1::Node>, Problem> {
    let answer = app.write(caller, Wish::Node(wish)).await?;
    let head = app.log.head();
    let node = head.machine.tenants.get(&tenant).and_then(|t| t.nodes.get(&id)).ok_or_else(node_unknown)?;
    Ok(app.written(&answer, proto(app, node)).revision(node.revision.0))
}

//! CVLANs.

use super::list::Wanted;
use super::{App, Caller, Output, now_ms};
use crate::problem::Problem;
use crate::random::{bytes, uuid_sorted};
use cvlan_core::cvlan::{CvlanCommand, cvlan_unknown};
use cvlan_core::id::{CvlanId, TenantId};
use cvlan_core::state::{CvlanState, TenantState};
use cvlan_core::{State, Wish};
use cvlan_proto::v1;
use cvlan_raft::Head;

/// A page of the tenant's.
pub async fn list(app: &App, home: &TenantState, wanted: &Wanted) -> Result<Output<v1::CvlanList>, Problem> {
    let (tenant, query) = (home.record.id, wanted.query(Some(home))?);
    let page = app.page(wanted, move |v| v.cvlans(tenant, &query)).await?;
    Ok(page.map(|p| v1::CvlanList { items: p.items, next_cursor: p.next_cursor }))
}

fn find<'a>(home: &'a TenantState, name: &str) -> Result<&'a CvlanState, Problem> {
    Ok(home.cvlan_find(name).ok_or_else(cvlan_unknown)?)
}

/// One, by id or exact name.
pub fn get(head: &Head<State>, home: &TenantState, name: &str) -> Result<Output<v1::Cvlan>, Problem> {
    let cvlan = find(home, name)?;
    Ok(Output::read(head, cvlan.to_proto()).revision(cvlan.record.revision.0))
}

/// A new one.
pub async fn create(
    app: &App,
    caller: &Caller,
    home: &TenantState,
    body: v1::CvlanCreateRequest,
) -> Result<Output<v1::Cvlan>, Problem> {
    let (tenant, id) = (home.record.id, CvlanId(uuid_sorted(now_ms())));
    let v1::CvlanCreateRequest { name, ipv4_cidr, ipv6_cidr } = body;
    let wish = CvlanCommand::Create { tenant, id, name, ipv4: ipv4_cidr, ipv6: ipv6_cidr, global_id: bytes() };
    after(app, caller, tenant, id, wish).await
}

/// Another name.
pub async fn update(
    app: &App,
    caller: &Caller,
    home: &TenantState,
    name: &str,
    body: v1::CvlanUpdateRequest,
) -> Result<Output<v1::Cvlan>, Problem> {
    let (tenant, id) = (home.record.id, find(home, name)?.record.id);
    after(app, caller, tenant, id, CvlanCommand::Update { tenant, id, name: body.name }).await
}

/// Gone; refused while nodes are in it.
pub async fn delete(app: &App, caller: &Caller, home: &TenantState, name: &str) -> Result<Output<()>, Problem> {
    let (tenant, id) = (home.record.id, find(home, name)?.record.id);
    let answer = app.write(caller, Wish::Cvlan(CvlanCommand::Delete { tenant, id })).await?;
    Ok(app.written(&answer, ()))
}

async fn after(
    app: &App,
    caller: &Caller,
    tenant: TenantId,
    id: CvlanId,
    wish: CvlanCommand,
) -> Result<Output<v1::Cvlan>, Problem> {
    let answer = app.write(caller, Wish::Cvlan(wish)).await?;
    let head = app.log.head();
    let cvlan = head.machine.tenants.get(&tenant).and_then(|t| t.cvlans.get(&id)).ok_or_else(cvlan_unknown)?;
    Ok(app.written(&answer, cvlan.to_proto()).revision(cvlan.record.revision.0))
}

//! Tenants.

use super::list::Wanted;
use super::{App, Caller, Output, now_ms};
use crate::bootstrap::purpose;
use crate::problem::Problem;
use crate::random::{bytes, uuid, uuid_sorted};
use cvlan_core::access::tenant_unknown;
use cvlan_core::id::{KeyId, TenantId};
use cvlan_core::state::TenantState;
use cvlan_core::tenant::{SigningKey, TenantCommand};
use cvlan_core::{State, Wish};
use cvlan_proto::v1;
use cvlan_raft::Head;

/// A page of tenants: all of them for a global user, else the caller's own.
pub async fn list(app: &App, caller: &Caller, wanted: &Wanted) -> Result<Output<v1::TenantList>, Problem> {
    let query = wanted.query(None)?;
    let home = caller.session.user.tenant;
    let only = (!home.is_nil()).then_some(home);
    let page = app.page(wanted, move |v| v.tenants(only, &query)).await?;
    Ok(page.map(|p| v1::TenantList { items: p.items, next_cursor: p.next_cursor }))
}

/// One.
pub fn get(head: &Head<State>, home: &TenantState) -> Output<v1::Tenant> {
    Output::read(head, home.to_proto()).revision(home.record.revision.0)
}

/// A new one, with the server's signing key for it.
pub async fn create(app: &App, caller: &Caller, body: v1::TenantCreateRequest) -> Result<Output<v1::Tenant>, Problem> {
    let id = TenantId(uuid_sorted(now_ms()));
    let seed = bytes::<32>();
    let key = SigningKey {
        id: KeyId(uuid()),
        public_key: ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes(),
        seed: Some(app.vault.need()?.cluster.seal(purpose::SIGNING_SEED, bytes(), &seed).map_err(Problem::internal)?),
    };
    let wish = TenantCommand::Create { id, slug: body.slug, name: body.name, key };
    after(app, caller, id, wish).await
}

/// Another display name.
pub async fn update(
    app: &App,
    caller: &Caller,
    home: &TenantState,
    body: v1::TenantUpdateRequest,
) -> Result<Output<v1::Tenant>, Problem> {
    let id = home.record.id;
    after(app, caller, id, TenantCommand::Update { id, name: body.name }).await
}

/// Gone; refused while it has CVLANs or users.
pub async fn delete(app: &App, caller: &Caller, home: &TenantState) -> Result<Output<()>, Problem> {
    let answer = app.write(caller, Wish::Tenant(TenantCommand::Delete { id: home.record.id })).await?;
    Ok(app.written(&answer, ()))
}

async fn after(app: &App, caller: &Caller, id: TenantId, wish: TenantCommand) -> Result<Output<v1::Tenant>, Problem> {
    let answer = app.write(caller, Wish::Tenant(wish)).await?;
    let head = app.log.head();
    let home = head.machine.tenants.get(&id).ok_or_else(tenant_unknown)?;
    Ok(app.written(&answer, home.to_proto()).revision(home.record.revision.0))
}

//! Users, and one's own account.

use super::list::Wanted;
use super::{App, Caller, Output, now_ms};
use crate::bootstrap::forget_changed;
use crate::keys::BOOTSTRAP;
use crate::problem::Problem;
use crate::random::uuid_sorted;
use cvlan_core::id::{TenantId, UserId};
use cvlan_core::user::{PASSWORD_MAX, User, UserCommand, password_check};
use cvlan_core::{Rejection, State, Wish};
use cvlan_proto::v1;
use cvlan_raft::Head;
use std::sync::Arc;

/// A page of a tenant's users; nil = the global ones.
pub async fn list(app: &App, tenant: TenantId, wanted: &Wanted) -> Result<Output<v1::UserList>, Problem> {
    let query = wanted.query(None)?;
    let page = app.page(wanted, move |v| v.users(tenant, &query)).await?;
    Ok(page.map(|p| v1::UserList { items: p.items, next_cursor: p.next_cursor }))
}

fn unknown() -> Rejection {
    Rejection::not_found("user_not_found", "there is no such user here; `cvlanctl user list` shows them")
}

fn find<'a>(state: &'a State, tenant: TenantId, name: &str) -> Result<&'a Arc<User>, Problem> {
    let by_id = name.parse().ok().and_then(|id: UserId| state.users.get(&id)).filter(|u| u.tenant == tenant);
    Ok(by_id.or_else(|| state.user_find(tenant, name)).ok_or_else(unknown)?)
}

/// One, by id or login name.
pub fn get(head: &Head<State>, tenant: TenantId, name: &str) -> Result<Output<v1::User>, Problem> {
    let user = find(&head.machine, tenant, name)?;
    Ok(Output::read(head, user.to_proto()).revision(user.revision.0))
}

/// A new one.
pub async fn create(
    app: &App,
    caller: &Caller,
    tenant: TenantId,
    body: v1::UserCreateRequest,
) -> Result<Output<v1::User>, Problem> {
    password_check(&body.password)?;
    let password_hash = app.auth.passwords.hash(body.password).await?;
    let id = UserId(uuid_sorted(now_ms()));
    let wish = UserCommand::Create { tenant, id, name: body.name, role: body.role, password_hash };
    let answer = app.write(caller, Wish::User(wish)).await?;
    let head = app.log.head();
    let user = head.machine.users.get(&id).ok_or_else(unknown)?;
    Ok(app.written(&answer, user.to_proto()).revision(user.revision.0))
}

/// Gone, and every session with it.
pub async fn delete(
    app: &App,
    caller: &Caller,
    head: &Head<State>,
    tenant: TenantId,
    name: &str,
) -> Result<Output<()>, Problem> {
    let id = find(&head.machine, tenant, name)?.id;
    let answer = app.write(caller, Wish::User(UserCommand::Delete { tenant, id })).await?;
    Ok(app.written(&answer, ()))
}

/// Oneself.
pub fn me(head: &Head<State>, caller: &Caller) -> Output<v1::User> {
    let user = &caller.session.user;
    Output::read(head, user.to_proto()).revision(user.revision.0)
}

/// Another password for oneself; every session ends, this one too.
pub async fn password(app: &App, caller: &Caller, body: v1::PasswordChangeRequest) -> Result<Output<()>, Problem> {
    let user = &caller.session.user;
    password_check(&body.new_password)?;
    let old = Some(user.password_hash.clone()).filter(|_| body.old_password.len() <= PASSWORD_MAX);
    if !app.auth.passwords.verify(body.old_password, old).await? {
        // 403, not 401: the session is good, so that nobody is sent to log in again for a slip of the finger.
        let detail = "the old password is not this user's";
        return Err(Problem::new(http::StatusCode::FORBIDDEN, "password_wrong", detail));
    }
    let password_hash = app.auth.passwords.hash(body.new_password).await?;
    // Only over the password that was just verified.
    let caller = Caller { if_revision: Some(user.revision.0), ..caller.clone() };
    let answer = app.write(&caller, Wish::User(UserCommand::Password { id: user.id, password_hash })).await?;
    if let Some(file) = app.keys.json_read(BOOTSTRAP).map_err(Problem::internal)? {
        forget_changed(&app.log, &app.keys, &file).map_err(Problem::internal)?;
    }
    Ok(app.written(&answer, ()))
}

//! ROUTES: every route of the API, one line each. Router, metrics and the tests of access come from it.

use super::call::Call;
use super::{BASE, events, export, reply};
use crate::app::{self, Output};
use crate::cluster::notary;
use crate::problem::Problem;
use axum::response::Response;
use cvlan_core::access::Permission;
use cvlan_core::id::TenantId;
use cvlan_proto::v1;
use http::{Method, StatusCode};
use std::pin::Pin;

/// Who may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone, rate-limited.
    Public,
    /// Anyone with a session.
    Session,
    /// A session whose user has this permission there.
    May(Permission, Whose),
}

/// Where a permission is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// In the tenant `{t}` of the path.
    Tenant,
    /// In the cluster.
    Cluster,
    /// In the caller's own home: the answer is what that shows.
    Own,
}

/// The answer of a handler.
pub type Answered = Pin<Box<dyn Future<Output = Result<Response, Problem>> + Send>>;

/// One route.
pub struct Route {
    /// GET, POST, PATCH, DELETE.
    pub method: Method,
    /// Below [`BASE`].
    pub path: &'static str,
    /// Who may.
    pub access: Access,
    /// Query parameters it knows.
    pub query: &'static [&'static str],
    /// Message of the body in proto/; empty = none.
    pub request: &'static str,
    /// Message of the answer in proto/; empty = none.
    pub answer: &'static str,
    /// The event it leaves in the log; empty = none.
    pub audit: &'static str,
    /// What it does.
    pub run: fn(Call) -> Answered,
}

impl Route {
    /// With [`BASE`].
    pub fn full_path(&self) -> String {
        format!("{BASE}{}", self.path)
    }

    /// True where it is about the very member that is asked, and takes no keys: it is not forwarded.
    pub fn here(&self) -> bool {
        self.path == VERIFY
    }

    /// True where it removes a member.
    pub fn removes_member(&self) -> bool {
        self.method == DELETE && self.path == MEMBER
    }
}

use Access::{May, Public, Session};
use Permission as P;
use Whose::{Cluster, Own, Tenant};

/// Ends a session.
pub const LOGOUT: &str = "/auth/logout";
/// Prolongs one.
pub const REFRESH: &str = "/auth/refresh";
/// One member.
const MEMBER: &str = "/cluster/members/{member}";
/// Replays the log of the member that is asked.
const VERIFY: &str = "/log/verify";

const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PATCH: Method = Method::PATCH;
const DELETE: Method = Method::DELETE;

const LIST: &[&str] = &["limit", "cursor", "q", "sort"];
const LIST_STATUS: &[&str] = &["limit", "cursor", "q", "sort", "cvlan", "status"];
const EXPORT: &[&str] = &["tenant", "from", "to", "since", "form"];
const EVENTS: &[&str] = &["from", "to", "limit", "noun", "id", "follow"];

/// `METHOD path access (query) request -> answer, audit; |call| what it does`
macro_rules! routes {
    ($($method:ident $path:literal $access:expr, $query:expr, $request:literal => $answer:literal $audit:literal $c:ident $run:expr;)*) => {
        &[$(Route {
            method: $method,
            path: $path,
            access: $access,
            query: $query,
            request: $request,
            answer: $answer,
            audit: $audit,
            run: |$c: Call| Box::pin(async move { $run }),
        }),*]
    };
}

/// Every route.
#[rustfmt::skip]
pub static ROUTES: &[Route] = routes! {
    POST "/auth/login" Public, &[], "LoginRequest" => "LoginResponse" "" c login(&c).await;
    POST "/auth/refresh" Public, &[], "RefreshRequest" => "LoginResponse" "" c refresh(&c);
    POST "/auth/logout" Public, &[], "RefreshRequest" => "" "" c logout(&c);
    GET "/me" Session, &[], "" => "User" "" c reply::ok(app::user::me(&c.head, c.caller()?));
    POST "/me/password" Session, &[], "PasswordChangeRequest" => "" "user.password_changed" c password(&c).await;

    GET "/tenants" May(P::NetworkRead, Own), LIST, "" => "TenantList" "" c reply::ok(app::tenant::list(&c.app, c.caller()?, &c.wanted()).await?);
    POST "/tenants" May(P::ClusterWrite, Cluster), &[], "TenantCreateRequest" => "Tenant" "tenant.created" c {
        let made = app::tenant::create(&c.app, c.caller()?, c.json()?).await?;
        reply::created(format!("{BASE}/tenants/{}", made.body.id), made)
    };
    GET "/tenants/{t}" May(P::NetworkRead, Tenant), &[], "" => "Tenant" "" c reply::ok(app::tenant::get(&c.head, c.home()?));
    PATCH "/tenants/{t}" May(P::ClusterWrite, Tenant), &[], "TenantUpdateRequest" => "Tenant" "tenant.updated" c reply::ok(app::tenant::update(&c.app, c.caller()?, c.home()?, c.json()?).await?);
    DELETE "/tenants/{t}" May(P::ClusterWrite, Tenant), &[], "" => "" "tenant.deleted" c reply::none(app::tenant::delete(&c.app, c.caller()?, c.home()?).await?);

    GET "/tenants/{t}/cvlans" May(P::NetworkRead, Tenant), LIST, "" => "CvlanList" "" c reply::ok(app::cvlan::list(&c.app, c.home()?, &c.wanted()).await?);
    POST "/tenants/{t}/cvlans" May(P::NetworkWrite, Tenant), &[], "CvlanCreateRequest" => "Cvlan" "cvlan.created" c {
        let made = app::cvlan::create(&c.app, c.caller()?, c.home()?, c.json()?).await?;
        reply::created(below(&c, "cvlans", &made.body.id), made)
    };
    GET "/tenants/{t}/cvlans/{cvlan}" May(P::NetworkRead, Tenant), &[], "" => "Cvlan" "" c reply::ok(app::cvlan::get(&c.head, c.home()?, c.param("cvlan"))?);
    PATCH "/tenants/{t}/cvlans/{cvlan}" May(P::NetworkWrite, Tenant), &[], "CvlanUpdateRequest" => "Cvlan" "cvlan.updated" c reply::ok(app::cvlan::update(&c.app, c.caller()?, c.home()?, c.param("cvlan"), c.json()?).await?);
    DELETE "/tenants/{t}/cvlans/{cvlan}" May(P::NetworkWrite, Tenant), &[], "" => "" "cvlan.deleted" c reply::none(app::cvlan::delete(&c.app, c.caller()?, c.home()?, c.param("cvlan")).await?);

    GET "/tenants/{t}/nodes" May(P::NetworkRead, Tenant), LIST_STATUS, "" => "NodeList" "" c reply::ok(app::node::list(&c.app, c.home()?, &c.wanted()).await?);
    POST "/tenants/{t}/nodes" May(P::NetworkWrite, Tenant), &[], "NodeCreateRequest" => "Node" "node.created" c {
        let made = app::node::create(&c.app, c.caller()?, c.home()?, c.json()?).await?;
        reply::created(below(&c, "nodes", &made.body.id), made)
    };
    POST "/tenants/{t}/nodes:bulk" May(P::NetworkWrite, Tenant), &[], "NodeBulkRequest" => "NodeBulkResponse" "node.created" c {
        reply::json(StatusCode::CREATED, app::node::bulk(&c.app, c.caller()?, c.home()?, c.json()?).await?)
    };
    GET "/tenants/{t}/nodes/{node}" May(P::NetworkRead, Tenant), &[], "" => "Node" "" c reply::ok(app::node::get(&c.app, &c.head, c.home()?, c.param("node"))?);
    PATCH "/tenants/{t}/nodes/{node}" May(P::NetworkWrite, Tenant), &[], "NodeUpdateRequest" => "Node" "node.updated" c reply::ok(app::node::update(&c.app, c.caller()?, c.home()?, c.param("node"), c.json()?).await?);
    DELETE "/tenants/{t}/nodes/{node}" May(P::NetworkWrite, Tenant), &[], "" => "" "node.deleted" c reply::none(app::node::delete(&c.app, c.caller()?, c.home()?, c.param("node")).await?);

    GET "/tenants/{t}/tokens" May(P::NetworkRead, Tenant), LIST_STATUS, "" => "TokenList" "" c reply::ok(app::token::list(&c.app, c.home()?, &c.wanted()).await?);
    POST "/tenants/{t}/tokens" May(P::NetworkWrite, Tenant), &[], "TokenCreateRequest" => "TokenCreateResponse" "token.created" c {
        let made = app::token::create(&c.app, c.caller()?, c.home()?, c.json()?).await?;
        let id = made.body.token.as_ref().map(|t| t.id.clone()).unwrap_or_default();
        reply::created(below(&c, "tokens", &id), made)
    };
    GET "/tenants/{t}/tokens/{token}" May(P::NetworkRead, Tenant), &[], "" => "Token" "" c reply::ok(app::token::get(&c.head, c.home()?, c.param("token"))?);
    DELETE "/tenants/{t}/tokens/{token}" May(P::NetworkWrite, Tenant), &[], "" => "" "token.deleted" c reply::none(app::token::delete(&c.app, c.caller()?, c.home()?, c.param("token")).await?);

    GET "/tenants/{t}/users" May(P::PeopleRead, Tenant), LIST, "" => "UserList" "" c reply::ok(app::user::list(&c.app, c.home()?.record.id, &c.wanted()).await?);
    POST "/tenants/{t}/users" May(P::PeopleWrite, Tenant), &[], "UserCreateRequest" => "User" "user.created" c {
        let made = app::user::create(&c.app, c.caller()?, c.home()?.record.id, c.json()?).await?;
        reply::created(below(&c, "users", &made.body.id), made)
    };
    GET "/tenants/{t}/users/{user}" May(P::PeopleRead, Tenant), &[], "" => "User" "" c reply::ok(app::user::get(&c.head, c.home()?.record.id, c.param("user"))?);
    DELETE "/tenants/{t}/users/{user}" May(P::PeopleWrite, Tenant), &[], "" => "" "user.deleted" c reply::none(app::user::delete(&c.app, c.caller()?, &c.head, c.home()?.record.id, c.param("user")).await?);

    GET "/users" May(P::PeopleRead, Cluster), LIST, "" => "UserList" "" c reply::ok(app::user::list(&c.app, TenantId::default(), &c.wanted()).await?);
    POST "/users" May(P::PeopleWrite, Cluster), &[], "UserCreateRequest" => "User" "user.created" c {
        let made = app::user::create(&c.app, c.caller()?, TenantId::default(), c.json()?).await?;
        reply::created(format!("{BASE}/users/{}", made.body.id), made)
    };
    GET "/users/{user}" May(P::PeopleRead, Cluster), &[], "" => "User" "" c reply::ok(app::user::get(&c.head, TenantId::default(), c.param("user"))?);
    DELETE "/users/{user}" May(P::PeopleWrite, Cluster), &[], "" => "" "user.deleted" c reply::none(app::user::delete(&c.app, c.caller()?, &c.head, TenantId::default(), c.param("user")).await?);

    GET "/cluster" May(P::ClusterRead, Cluster), &[], "" => "ClusterStatus" "" c reply::ok(app::system::status(&c.app, &c.head));
    GET "/cluster/members" May(P::ClusterRead, Cluster), &["limit", "q"], "" => "MemberList" "" c reply::ok(app::member::list(&c.app, &c.head, &c.query)?);
    POST "/cluster/members" May(P::ClusterWrite, Cluster), &[], "MemberAddRequest" => "MemberAddResponse" "member.admitted" c {
        let made = app::member::add(&c.app, c.caller()?, c.json()?).await?;
        let id = made.body.member.as_ref().map(|m| m.id).unwrap_or_default();
        reply::created(format!("{BASE}/cluster/members/{id}"), made)
    };
    GET "/cluster/members/{member}" May(P::ClusterRead, Cluster), &[], "" => "Member" "" c reply::ok(app::member::get(&c.app, &c.head, c.param("member"))?);
    DELETE "/cluster/members/{member}" May(P::ClusterWrite, Cluster), &[], "" => "" "member.removed" c reply::none(app::member::remove(&c.app, c.caller()?, c.param("member")).await?);
    POST "/cluster/members/{member}/promote" May(P::ClusterWrite, Cluster), &[], "" => "Member" "" c reply::ok(app::member::promote(&c.app, c.caller()?, c.param("member")).await?);
    POST "/cluster/transfer-leader" May(P::ClusterWrite, Cluster), &[], "LeaderTransferRequest" => "Member" "" c reply::ok(app::member::transfer(&c.app, c.caller()?, c.json()?).await?);
    GET "/cluster/backup" May(P::ClusterWrite, Cluster), &["from", "to"], "" => "BackupRecord" "" c export::backup(c).await;
    GET "/log/events" May(P::AuditRead, Own), EVENTS, "" => "EventList" "" c events::answer(c).await;
    GET "/log/checkpoints" May(P::AuditRead, Own), &[], "" => "CheckpointList" "" c reply::ok(app::system::checkpoints(&c.app, &c.head).await);
    GET "/log/stats" May(P::ClusterRead, Cluster), &[], "" => "LogStats" "" c reply::ok(app::stats::stats(&c.app, &c.head).await?);
    GET "/log/keys" May(P::AuditRead, Own), &[], "" => "LogKeyList" "" c reply::ok(Output::read(&c.head, notary::keys(&c.head, c.caller()?.session.user.tenant.is_nil())));
    GET "/log/proof" May(P::AuditRead, Own), &["size", "seq", "since"], "" => "LogProof" "" c whole(async move { reply::ok(app::proof::proof(&c.app, &c.head, &c.query).await?) }).await;
    GET "/log/export" May(P::AuditRead, Own), EXPORT, "" => "ExportRecord" "" c whole(export::answer(c)).await;
    GET "/log/tile/{level}/{*tile}" May(P::AuditRead, Own), &[], "" => "" "" c whole(tile(c)).await;
    GET "/log/checkpoint" May(P::AuditRead, Own), &[], "" => "" "" c whole(checkpoint(c)).await;
    POST "/log/checkpoint" May(P::ClusterWrite, Cluster), &[], "" => "CheckpointRecord" "system.checkpoint_opened" c reply::ok(app::system::checkpoint(&c.app).await?);
    POST "/log/verify" May(P::AuditRead, Cluster), &[], "" => "LogVerification" "" c reply::ok(app::system::verify(&c.app).await?);
};

fn below(c: &Call, noun: &str, id: &str) -> String {
    let tenant = c.home().map(|h| h.record.id).unwrap_or_default();
    format!("{BASE}/tenants/{tenant}/{noun}/{id}")
}

/// The tree of the log is lost, and has to be read anew, where what reads it is dropped: it goes on though its caller has gone.
async fn whole(work: impl Future<Output = Result<Response, Problem>> + Send + 'static) -> Result<Response, Problem> {
    tokio::spawn(work).await.map_err(Problem::internal)?
}

async fn tile(c: Call) -> Result<Response, Problem> {
    let tile = app::proof::tile(&c.app, &c.head, c.param("level"), c.param("tile")).await?;
    reply::bytes("application/octet-stream", tile)
}

/// The newest tree head, as the voters sign it.
async fn checkpoint(c: Call) -> Result<Response, Problem> {
    let signed = c.app.notary.collect(&c.app.voters, c.head.seq).await?;
    let note = Output::read(&c.head, signed.note.to_string().into_bytes());
    let response = reply::bytes("text/plain; charset=utf-8", note)?;
    Ok(if signed.valid { response } else { export::unsigned(response) })
}

async fn login(c: &Call) -> Result<Response, Problem> {
    c.limited(&c.app.limits.login)?;
    let request: v1::LoginRequest = c.json()?;
    let log = &c.app.log;
    let state = || log.head().machine.clone();
    let answer = c.app.auth.login(state, request, c.source, app::now_ms()).await?;
    reply::ok(Output::read(&log.head(), answer))
}

fn refresh(c: &Call) -> Result<Response, Problem> {
    let request: v1::RefreshRequest = c.json()?;
    let answer = c.app.auth.refresh(&c.head.machine, &request.refresh_token, app::now_ms())?;
    reply::ok(Output::read(&c.head, answer))
}

fn logout(c: &Call) -> Result<Response, Problem> {
    let request: v1::RefreshRequest = c.json()?;
    c.app.auth.logout(&c.head.machine, &request.refresh_token, app::now_ms())?;
    reply::none(Output::read(&c.head, ()))
}

async fn password(c: &Call) -> Result<Response, Problem> {
    c.limited(&c.app.limits.login)?;
    reply::none(app::user::password(&c.app, c.caller()?, c.json()?).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvlan_core::access::{Role, allowed};

    /// Roles, as a tenant's user or a global one.
    fn who(access: Access) -> String {
        let May(permission, whose) = access else {
            return if access == Public { "anyone" } else { "anyone with a session" }.to_owned();
        };
        let (nobodys, tenant) = (TenantId::default(), TenantId::of("00000000-0000-0000-0000-000000000001"));
        let told = |role: Role| {
            let may = |home: TenantId| {
                let there = match whose {
                    Tenant => tenant,
                    Cluster => nobodys,
                    Own => home,
                };
                allowed(role, home, permission, there)
            };
            match (may(tenant), may(nobodys)) {
                (true, _) => Some(role.as_str().to_owned()),
                (false, true) if role == Role::Superadmin => Some(role.as_str().to_owned()),
                (false, true) => Some(format!("{} (global)", role.as_str())),
                (false, false) => None,
            }
        };
        Role::ALL.into_iter().filter_map(told).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_table_of_docs_has_every_route() {
        let line = |route: &Route| {
            let Route { method, path, access, query, request, answer, audit, .. } = route;
            let messages = match (request.is_empty(), answer.is_empty()) {
                (true, true) => String::new(),
                (true, false) => format!("→ {answer}"),
                (false, true) => format!("{request} →"),
                (false, false) => format!("{request} → {answer}"),
            };
            let (who, query) = (who(*access), query.join(", "));
            format!("| {method} | `{path}` | {who} | {query} | {messages} | {audit} |")
        };
        let due: Vec<_> = ROUTES.iter().map(line).collect();
        let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md")).unwrap();
        let methods = ["| GET", "| POST", "| PATCH", "| DELETE"];
        let there: Vec<_> = docs.lines().filter(|line| methods.iter().any(|m| line.starts_with(m))).collect();
        assert!(there == due, "docs/api.md differs from ROUTES; its table has to be\n{}", due.join("\n"));
    }
}

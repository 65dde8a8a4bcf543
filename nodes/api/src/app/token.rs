//! Registration tokens: the only place where their text is made and shown.

use super::list::Wanted;
use super::{App, Caller, Output, now_ms};
use crate::bootstrap::purpose;
use crate::problem::Problem;
use crate::random::uuid;
use cvlan_core::cvlan::cvlan_unknown;
use cvlan_core::id::TokenId;
use cvlan_core::state::TenantState;
use cvlan_core::token::{Token, TokenCommand, token_sign, token_unknown};
use cvlan_core::{State, Wish};
use cvlan_proto::v1::{self, TokenClaims};
use cvlan_raft::Head;

/// A page of the tenant's.
pub async fn list(app: &App, home: &TenantState, wanted: &Wanted) -> Result<Output<v1::TokenList>, Problem> {
    let (tenant, query) = (home.record.id, wanted.query(Some(home))?);
    let page = app.page(wanted, move |v| v.tokens(tenant, &query)).await?;
    Ok(page.map(|p| v1::TokenList { items: p.items, next_cursor: p.next_cursor }))
}

fn find<'a>(home: &'a TenantState, id: &str) -> Result<&'a Token, Problem> {
    let found = id.parse().ok().and_then(|id: TokenId| home.tokens.get(&id));
    Ok(found.ok_or_else(token_unknown)?)
}

/// One, by id.
pub fn get(head: &Head<State>, home: &TenantState, id: &str) -> Result<Output<v1::Token>, Problem> {
    let token = find(home, id)?;
    Ok(Output::read(head, token.to_proto(now_ms())).revision(token.revision.0))
}

/// A new one, and its text.
pub async fn create(
    app: &App,
    caller: &Caller,
    home: &TenantState,
    body: v1::TokenCreateRequest,
) -> Result<Output<v1::TokenCreateResponse>, Problem> {
    let v1::TokenCreateRequest { cvlan, max_uses, expires_in_seconds, mut tags, note } = body;
    if expires_in_seconds == 0 {
        let detail = "every token expires: name expiresInSeconds, from 60 to 31622400 (a year)";
        return Err(Problem::invalid("expiry_invalid", detail));
    }
    let cvlan = home.cvlan_find(&cvlan).ok_or_else(cvlan_unknown)?.record.id;
    let server_key = home.record.signing_keys.iter().find_map(|k| Some((k.id, k.seed.as_ref()?)));
    let (key, sealed) = server_key.ok_or_else(|| Problem::internal("the tenant has no signing key of the server's"))?;
    let seed = app.vault.need()?.cluster.open(purpose::SIGNING_SEED, sealed).map_err(Problem::internal)?;
    let seed = seed.try_into().map_err(|_| Problem::internal("a signing seed is not 32 bytes"))?;

    let (tenant, id) = (home.record.id, TokenId(uuid()));
    let max_uses = if max_uses == 0 { 1 } else { max_uses };
    tags.sort();
    tags.dedup();
    let wish = TokenCommand::Create {
        tenant,
        cvlan,
        id,
        key,
        tags: tags.clone(),
        max_uses,
        life_ms: expires_in_seconds.saturating_mul(1000),
        note,
    };
    let answer = app.write(caller, Wish::Token(wish)).await?;

    let head = app.log.head();
    let token = head.machine.tenants.get(&tenant).and_then(|t| t.tokens.get(&id)).ok_or_else(token_unknown)?;
    let urls = head.machine.node_urls();
    let claims = TokenClaims {
        token_id: id.0.as_bytes().to_vec(),
        tenant_id: tenant.0.as_bytes().to_vec(),
        cvlan_id: cvlan.0.as_bytes().to_vec(),
        key_id: key.0.as_bytes().to_vec(),
        expires_at: token.expires_ms / 1000,
        max_uses,
        tags,
        urls: urls.clone(),
        ca_spki_sha256: app.ca.spki_sha256().to_vec(),
        tenant_slug: home.record.slug.to_string(),
    };
    let body = v1::TokenCreateResponse {
        token: Some(token.to_proto(now_ms())),
        secret: token_sign(&claims, &seed),
        warnings: warnings(&urls),
        shown_once: false,
    };
    Ok(app.written(&answer, body).revision(token.revision.0))
}

/// No longer good; nodes that came with it stay.
pub async fn delete(app: &App, caller: &Caller, home: &TenantState, id: &str) -> Result<Output<()>, Problem> {
    let (tenant, id) = (home.record.id, find(home, id)?.id);
    let answer = app.write(caller, Wish::Token(TokenCommand::Delete { tenant, id })).await?;
    Ok(app.written(&answer, ()))
}

/// What may go wrong for machines that use it.
fn warnings(urls: &[String]) -> Vec<String> {
    let loopback = |url: &&String| host_of(url).is_some_and(is_loopback);
    urls.iter()
        .filter(loopback)
        .map(|url| {
            format!(
                "the advertised node URL {url} is reachable on this machine alone; start cvlan-api with \
                 --node-listen 0.0.0.0:8444 --advertise-node https://HOST:8444, then make a new token"
            )
        })
        .collect()
}

/// The host of a URL, without port and brackets.
pub(crate) fn host_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split('/').next()?;
    if let Some(v6) = authority.strip_prefix('[') {
        return v6.split(']').next();
    }
    Some(authority.rsplit_once(':').map_or(authority, |(host, _)| host))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback() || a.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_only_this_machine_reaches_is_warned_of() {
        for (url, warned) in [
            ("https://127.0.0.1:8444", true),
            ("https://localhost:8444", true),
            ("https://[::1]:8444", true),
            ("https://0.0.0.0:8444", true),
            ("https://10.1.2.3:8444", false),
            ("https://[fd00::1]:8444", false),
            ("https://cvlan.example.org", false),
        ] {
            assert_eq!(!warnings(&[url.to_owned()]).is_empty(), warned, "{url}");
        }
    }
}

//! Table `tokens`. Whether one is still good depends on the time: the list is asked with it.

use crate::error::Error;
use crate::table::{Cell, Kind, Reader, Table, json, search};
use cvlan_core::State;
use cvlan_core::id::{TenantId, TokenId};
use cvlan_core::token::Token;
use cvlan_proto::v1;
use std::sync::{Arc, OnceLock};

pub(crate) static TABLE: Table = Table {
    name: "tokens",
    columns: &[
        ("id", Kind::Id),
        ("tenant", Kind::Id),
        ("cvlan", Kind::Id),
        ("tags", Kind::Text),
        ("max_uses", Kind::Int),
        ("uses", Kind::Int),
        ("expires_ms", Kind::Int),
        ("note", Kind::Text),
        ("created_ms", Kind::Int),
        ("revision", Kind::Int),
        ("search", Kind::Text),
    ],
    indexes: &[("tokens_by_created", "(tenant, created_ms, id)")],
    once: false,
    home: "tenant",
    sorts: &[("created", "created_ms"), ("expires", "expires_ms"), ("note", "note")],
    by_cvlan: true,
    status,
    texts: OnceLock::new(),
};

/// The same three as [`Token::to_proto`].
fn status(word: &str) -> Option<&'static str> {
    match word {
        "active" => Some("expires_ms > {now} AND uses < max_uses"),
        "expired" => Some("expires_ms <= {now}"),
        "used_up" => Some("expires_ms > {now} AND uses >= max_uses"),
        _ => None,
    }
}

/// The row of one token, if it is there.
pub(crate) fn row(state: &State, tenant: TenantId, id: TokenId) -> Option<&Arc<Token>> {
    state.tenants.get(&tenant)?.tokens.get(&id)
}

/// Every row.
pub(crate) fn rows(state: &State) -> impl Iterator<Item = &Arc<Token>> {
    state.tenants.values().flat_map(|t| t.tokens.values())
}

/// Its columns.
pub(crate) fn cells(t: &Token) -> [Cell<'_>; 11] {
    let search = search([&t.note]);
    [
        t.id.0.into(),
        t.tenant.0.into(),
        t.cvlan.0.into(),
        json(&t.tags).into(),
        u64::from(t.max_uses).into(),
        u64::from(t.uses).into(),
        t.expires_ms.into(),
        (&*t.note).into(),
        t.created_ms.into(),
        t.revision.0.into(),
        search.into(),
    ]
}

pub(crate) fn read(r: &mut Reader<'_>, now_ms: u64) -> Result<v1::Token, Error> {
    let (id, tenant_id, cvlan_id, tags) = (r.id()?, r.id()?, r.id()?, r.list()?);
    let (max_uses, uses, expires_ms) = (r.count()?, r.count()?, r.number()?);
    let status = if expires_ms <= now_ms {
        "expired"
    } else if uses >= max_uses {
        "used_up"
    } else {
        "active"
    };
    Ok(v1::Token {
        id,
        tenant_id,
        cvlan_id,
        tags,
        max_uses,
        uses,
        expires_at: Some(cvlan_core::rules::timestamp(expires_ms)),
        note: r.text()?,
        created_at: r.time()?,
        revision: r.number()?,
        status: status.to_owned(),
    })
}

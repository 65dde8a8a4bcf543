//! The saved state: canonical bytes, so that two replicas with equal states have equal snapshots and equal digests.
//!
//! Rows of `snapshot.proto`, each length-delimited, walked in the maps' order. Indexes, address pools and live rows of
//! the delta index are derived from the rows when they are read back.

use crate::access::Role;
use crate::cvlan::{self, Cvlan};
use crate::id::{CvlanId, KeyId, MemberId, NodeId, Seq, TenantId, TokenId, UserId};
use crate::idempotency::UsedKey;
use crate::machine::Unreadable;
use crate::member::{Admission, Joined, Member};
use crate::node::{self, Enrolment, Node, Status};
use crate::presence::{self, Presence};
use crate::state::{CvlanState, State, TenantState};
use crate::system::SystemState;
use crate::tenant::{SigningKey, Tenant};
use crate::token::Token;
use crate::user::{self, User};
use cvlan_proto::Message;
use cvlan_proto::v1::{self, SavedRow, saved_row::Row};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use uuid::Uuid;

/// Appends the canonical bytes.
pub(crate) fn save(state: &State, into: &mut Vec<u8>) {
    let mut put = |row: Row| {
        // A Vec grows as needed, so encoding into it cannot fail.
        let _ = SavedRow { row: Some(row) }.encode_length_delimited(into);
    };
    put(Row::System(system_row(state)));
    for (_, tenant) in &state.tenants {
        put(Row::Tenant(tenant_row(tenant)));
        tenant.cvlans.values().for_each(|c| put(Row::Cvlan(cvlan_row(c))));
        tenant.nodes.values().for_each(|n| put(Row::Node(node_row(n))));
        tenant.tokens.values().for_each(|t| put(Row::Token(token_row(t))));
        for ((token, nonce), node) in &tenant.nonces {
            put(Row::Nonce(v1::SavedNonce { token_id: raw(token.0), nonce: nonce.to_vec(), node_id: raw(node.0) }));
        }
        tenant.presence.iter().for_each(|(node, p)| put(Row::Presence(presence_row(*node, p))));
    }
    state.users.values().for_each(|u| put(Row::User(user_row(u))));
    state.members.values().filter(|m| !implied(m)).for_each(|m| put(Row::Member(member_row(m))));
    state.used_keys.iter().for_each(|(seq, used)| put(Row::UsedKey(used_key_row(seq, used))));
}

/// Reads what [`save`] wrote.
pub(crate) fn load(mut bytes: &[u8]) -> Result<State, Unreadable> {
    let mut state = State::default();
    let mut home = TenantId::default();
    while !bytes.is_empty() {
        let row = SavedRow::decode_length_delimited(&mut bytes).map_err(|e| bad(e.to_string()))?;
        match row.row {
            Some(Row::System(r)) => load_system(&mut state, r)?,
            Some(Row::Tenant(r)) => home = load_tenant(&mut state, r)?,
            Some(Row::Cvlan(r)) => {
                let place = cvlan_of(home, r)?;
                cvlan::insert(tenant(&mut state, home)?, place);
            }
            Some(Row::Node(r)) => node::insert(&mut state, node_of(home, r)?, 0),
            Some(Row::Token(r)) => {
                let token = token_of(home, r)?;
                tenant(&mut state, home)?.tokens.insert(token.id, Arc::new(token));
            }
            Some(Row::Nonce(r)) => {
                let key = (TokenId(id(&r.token_id)?), array(&r.nonce)?);
                tenant(&mut state, home)?.nonces.insert(key, NodeId(id(&r.node_id)?));
            }
            Some(Row::Presence(r)) => {
                let (node, presence) = presence_of(&r)?;
                presence::insert(&mut state, home, node, presence);
            }
            Some(Row::User(r)) => user::insert(&mut state, user_of(r)?),
            Some(Row::Member(r)) => {
                let member = member_of(r)?;
                state.members.insert(member.id, Arc::new(member));
            }
            Some(Row::UsedKey(r)) => state.used_keys.insert(Seq(r.seq), used_key_of(r)?),
            None => return Err(bad("a row of a kind that this version does not know".to_owned())),
        }
    }
    Ok(state)
}

fn bad(detail: String) -> Unreadable {
    Unreadable { what: "saved state", detail }
}

fn raw(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

fn id(bytes: &[u8]) -> Result<Uuid, Unreadable> {
    Uuid::from_slice(bytes).map_err(|e| bad(e.to_string()))
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Unreadable> {
    bytes.try_into().map_err(|_| bad(format!("{} bytes where {N} belong", bytes.len())))
}

fn tenant(state: &mut State, id: TenantId) -> Result<&mut TenantState, Unreadable> {
    state.tenant_mut(id).ok_or_else(|| bad("a row before its tenant's".to_owned()))
}

/// True for a founder that did nothing but begin the log: the bootstrap implies it, so that a log from before there
/// were members has the digests that it had.
fn implied(member: &Member) -> bool {
    member.admission.is_none() && member.joined.is_none()
}

fn system_row(state: &State) -> v1::SavedSystem {
    let (s, founder) = (&state.system, state.members.get(&MemberId::FOUNDER).filter(|m| implied(m)));
    v1::SavedSystem {
        ca_certificate: s.ca_certificate.clone(),
        challenge_public_key: s.challenge_public_key.to_vec(),
        challenge_key: Some(s.challenge_key.clone()),
        jwt_keys: s.jwt_keys.clone(),
        node_urls: founder.map(|m| m.node_urls.to_vec()).unwrap_or_default(),
        api_urls: founder.map(|m| m.api_urls.to_vec()).unwrap_or_default(),
        checkpoints: s.checkpoints.clone(),
        founder_gone: s.founder_gone,
        history_from: s.history_from.0,
    }
}

fn load_system(state: &mut State, r: v1::SavedSystem) -> Result<(), Unreadable> {
    if !r.ca_certificate.is_empty() && !r.founder_gone {
        let (node_urls, api_urls) = (r.node_urls.into(), r.api_urls.into());
        let founder = Member { node_urls, api_urls, ..Member::founder() };
        state.members.insert(founder.id, Arc::new(founder));
    }
    state.system = Arc::new(SystemState {
        ca_certificate: r.ca_certificate,
        challenge_public_key: array(&r.challenge_public_key)?,
        challenge_key: r.challenge_key.unwrap_or_default(),
        jwt_keys: r.jwt_keys,
        founder_gone: r.founder_gone,
        checkpoints: r.checkpoints,
        history_from: crate::id::Seq(r.history_from),
    });
    Ok(())
}

fn tenant_row(t: &TenantState) -> v1::SavedTenant {
    let r = &t.record;
    let key = |k: &SigningKey| v1::SavedSigningKey {
        id: raw(k.id.0),
        public_key: k.public_key.to_vec(),
        seed: k.seed.clone(),
    };
    v1::SavedTenant {
        id: raw(r.id.0),
        slug: r.slug.to_string(),
        name: r.name.to_string(),
        signing_keys: r.signing_keys.iter().map(key).collect(),
        created_ms: r.created_ms,
        updated_ms: r.updated_ms,
        revision: r.revision.0,
        events: t.events,
    }
}

fn load_tenant(state: &mut State, r: v1::SavedTenant) -> Result<TenantId, Unreadable> {
    let key = |k: v1::SavedSigningKey| {
        Ok(SigningKey { id: KeyId(id(&k.id)?), public_key: array(&k.public_key)?, seed: k.seed })
    };
    let record = Tenant {
        id: TenantId(id(&r.id)?),
        slug: r.slug.into(),
        name: r.name.into(),
        signing_keys: r.signing_keys.into_iter().map(key).collect::<Result<_, Unreadable>>()?,
        created_ms: r.created_ms,
        updated_ms: r.updated_ms,
        revision: Seq(r.revision),
    };
    let home = record.id;
    state.slugs.insert(record.slug.clone(), home);
    let mut tenant = TenantState::new(record);
    tenant.events = r.events;
    state.tenants.insert(home, Arc::new(tenant));
    Ok(home)
}

fn cvlan_row(c: &CvlanState) -> v1::SavedCvlan {
    let r = &c.record;
    let resting4 = c.pool4.resting().map(|(until_ms, a)| (until_ms, (a as u32).to_be_bytes().to_vec()));
    let resting6 = c.pool6.resting().map(|(until_ms, a)| (until_ms, a.to_be_bytes().to_vec()));
    v1::SavedCvlan {
        id: raw(r.id.0),
        name: r.name.to_string(),
        ipv4_cidr: r.ipv4.to_string(),
        ipv6_cidr: r.ipv6.map(|n| n.to_string()).unwrap_or_default(),
        created_ms: r.created_ms,
        updated_ms: r.updated_ms,
        revision: r.revision.0,
        resting: resting4.chain(resting6).map(|(until_ms, address)| v1::SavedResting { until_ms, address }).collect(),
        tombstones: c.scope.tombstones().map(|(seq, n)| v1::SavedTombstone { seq: seq.0, node_id: raw(n.0) }).collect(),
        floor: c.scope.floor().0,
    }
}

fn cvlan_of(tenant: TenantId, r: v1::SavedCvlan) -> Result<CvlanState, Unreadable> {
    let ipv6 =
        if r.ipv6_cidr.is_empty() { None } else { Some(r.ipv6_cidr.parse().map_err(|_| bad(r.ipv6_cidr.clone()))?) };
    let mut place = CvlanState::new(Cvlan {
        id: CvlanId(id(&r.id)?),
        tenant,
        name: r.name.into(),
        ipv4: r.ipv4_cidr.parse().map_err(|_| bad(r.ipv4_cidr.clone()))?,
        ipv6,
        created_ms: r.created_ms,
        updated_ms: r.updated_ms,
        revision: Seq(r.revision),
    });
    for rest in r.resting {
        match *rest.address.as_slice() {
            [a, b, c, d] => place.pool4.rest(rest.until_ms, u128::from(u32::from_be_bytes([a, b, c, d]))),
            ref long => place.pool6.rest(rest.until_ms, u128::from_be_bytes(array(long)?)),
        }
    }
    let gone = r
        .tombstones
        .iter()
        .map(|t| Ok((Seq(t.seq), NodeId(id(&t.node_id)?))))
        .collect::<Result<Vec<_>, Unreadable>>()?;
    place.scope.restore(Seq(r.floor), gone);
    Ok(place)
}

fn node_row(n: &Node) -> v1::SavedNode {
    let enrolment = n.enrolment.as_ref();
    v1::SavedNode {
        id: raw(n.id.0),
        cvlan_id: raw(n.cvlan.0),
        name: n.name.to_string(),
        wg_key: n.wg_key.to_vec(),
        ipv4: n.ipv4.octets().to_vec(),
        ipv6: n.ipv6.map(|a| a.octets().to_vec()).unwrap_or_default(),
        endpoints: n.endpoints.to_vec(),
        tags: n.tags.to_vec(),
        owner_id: n.owner.map(|o| raw(o.0)).unwrap_or_default(),
        status: n.status.as_str().to_owned(),
        hostname: n.hostname.to_string(),
        os: n.os.to_string(),
        agent_version: n.agent_version.to_string(),
        token_id: enrolment.map(|e| raw(e.token.0)).unwrap_or_default(),
        csr_key_hash: enrolment.map(|e| e.csr_key_hash.to_vec()).unwrap_or_default(),
        device_binding: enrolment.map(|e| e.device_binding.to_vec()).unwrap_or_default(),
        created_ms: n.created_ms,
        updated_ms: n.updated_ms,
        revision: n.revision.0,
        home_since: n.home_since.0,
        certs_valid_from_ms: n.certs_valid_from_ms,
    }
}

fn node_of(tenant: TenantId, r: v1::SavedNode) -> Result<Node, Unreadable> {
    let enrolment = if r.token_id.is_empty() {
        None
    } else {
        let (csr_key_hash, device_binding) = (array(&r.csr_key_hash)?, array(&r.device_binding)?);
        Some(Enrolment { token: TokenId(id(&r.token_id)?), csr_key_hash, device_binding })
    };
    Ok(Node {
        id: NodeId(id(&r.id)?),
        tenant,
        cvlan: CvlanId(id(&r.cvlan_id)?),
        name: r.name.into(),
        wg_key: array(&r.wg_key)?,
        ipv4: Ipv4Addr::from(array::<4>(&r.ipv4)?),
        ipv6: if r.ipv6.is_empty() { None } else { Some(Ipv6Addr::from(array::<16>(&r.ipv6)?)) },
        endpoints: r.endpoints.into(),
        tags: r.tags.into(),
        owner: if r.owner_id.is_empty() { None } else { Some(UserId(id(&r.owner_id)?)) },
        status: Status::of(&r.status).ok_or_else(|| bad(format!("status {}", r.status)))?,
        hostname: r.hostname.into(),
        os: r.os.into(),
        agent_version: r.agent_version.into(),
        enrolment,
        created_ms: r.created_ms,
        updated_ms: r.updated_ms,
        revision: Seq(r.revision),
        home_since: Seq(r.home_since),
        certs_valid_from_ms: r.certs_valid_from_ms,
    })
}

fn token_row(t: &Token) -> v1::SavedToken {
    v1::SavedToken {
        id: raw(t.id.0),
        cvlan_id: raw(t.cvlan.0),
        key_id: raw(t.key.0),
        tags: t.tags.to_vec(),
        max_uses: t.max_uses,
        uses: t.uses,
        expires_ms: t.expires_ms,
        note: t.note.to_string(),
        created_ms: t.created_ms,
        revision: t.revision.0,
    }
}

fn token_of(tenant: TenantId, r: v1::SavedToken) -> Result<Token, Unreadable> {
    Ok(Token {
        id: TokenId(id(&r.id)?),
        tenant,
        cvlan: CvlanId(id(&r.cvlan_id)?),
        key: KeyId(id(&r.key_id)?),
        tags: r.tags.into(),
        max_uses: r.max_uses,
        uses: r.uses,
        expires_ms: r.expires_ms,
        note: r.note.into(),
        created_ms: r.created_ms,
        revision: Seq(r.revision),
    })
}

fn presence_row(node: NodeId, p: &Presence) -> v1::SavedPresence {
    v1::SavedPresence {
        node_id: raw(node.0),
        online: p.online,
        member_id: p.member.0,
        session: p.session,
        since_ms: p.since_ms,
    }
}

fn presence_of(r: &v1::SavedPresence) -> Result<(NodeId, Presence), Unreadable> {
    let (online, member) = (r.online, MemberId(r.member_id));
    Ok((NodeId(id(&r.node_id)?), Presence { online, member, session: r.session, since_ms: r.since_ms }))
}

fn user_row(u: &User) -> v1::SavedUser {
    v1::SavedUser {
        id: raw(u.id.0),
        tenant_id: if u.tenant.is_nil() { Vec::new() } else { raw(u.tenant.0) },
        name: u.name.to_string(),
        role: u.role.as_str().to_owned(),
        password_hash: u.password_hash.to_string(),
        sessions_valid_from_ms: u.sessions_valid_from_ms,
        created_ms: u.created_ms,
        updated_ms: u.updated_ms,
        revision: u.revision.0,
    }
}

fn user_of(r: v1::SavedUser) -> Result<User, Unreadable> {
    Ok(User {
        id: UserId(id(&r.id)?),
        tenant: if r.tenant_id.is_empty() { TenantId::default() } else { TenantId(id(&r.tenant_id)?) },
        name: r.name.into(),
        role: Role::of(&r.role).ok_or_else(|| bad(format!("role {}", r.role)))?,
        password_hash: r.password_hash.into(),
        sessions_valid_from_ms: r.sessions_valid_from_ms,
        created_ms: r.created_ms,
        updated_ms: r.updated_ms,
        revision: Seq(r.revision),
    })
}

fn member_row(m: &Member) -> v1::SavedMember {
    let (admission, joined) = (m.admission.as_ref(), m.joined.as_ref());
    v1::SavedMember {
        id: m.id.0,
        name: m.name.to_string(),
        secret_hash: admission.map(|a| a.secret_hash.to_vec()).unwrap_or_default(),
        expires_ms: admission.map_or(0, |a| a.expires_ms),
        admitted_ms: admission.map_or(0, |a| a.admitted_ms),
        key_sha256: joined.map(|j| j.key_sha256.to_vec()).unwrap_or_default(),
        address: joined.map(|j| j.address.to_string()).unwrap_or_default(),
        version: joined.map(|j| j.version.to_string()).unwrap_or_default(),
        joined_ms: joined.map_or(0, |j| j.joined_ms),
        node_urls: m.node_urls.to_vec(),
        api_urls: m.api_urls.to_vec(),
        revision: m.revision.0,
        note_key: joined.and_then(|j| j.note_key).map(Vec::from).unwrap_or_default(),
    }
}

fn member_of(r: v1::SavedMember) -> Result<Member, Unreadable> {
    let admission = match r.secret_hash.as_slice() {
        [] => None,
        hash => Some(Admission { secret_hash: array(hash)?, expires_ms: r.expires_ms, admitted_ms: r.admitted_ms }),
    };
    let joined = match r.key_sha256.as_slice() {
        [] => None,
        key => Some(Joined {
            key_sha256: array(key)?,
            address: r.address.into(),
            version: r.version.into(),
            note_key: if r.note_key.is_empty() { None } else { Some(array(&r.note_key)?) },
            joined_ms: r.joined_ms,
        }),
    };
    Ok(Member {
        id: MemberId(r.id),
        name: r.name.into(),
        admission,
        joined,
        node_urls: r.node_urls.into(),
        api_urls: r.api_urls.into(),
        revision: Seq(r.revision),
    })
}

fn used_key_row(seq: Seq, u: &UsedKey) -> v1::SavedUsedKey {
    v1::SavedUsedKey {
        seq: seq.0,
        actor_id: raw(u.actor),
        key: u.key.to_string(),
        body_hash: u.body_hash.to_vec(),
        tenant_id: if u.tenant.is_nil() { Vec::new() } else { raw(u.tenant.0) },
        time_ms: u.time_ms,
    }
}

fn used_key_of(r: v1::SavedUsedKey) -> Result<UsedKey, Unreadable> {
    Ok(UsedKey {
        actor: id(&r.actor_id)?,
        key: r.key.into(),
        body_hash: array(&r.body_hash)?,
        tenant: if r.tenant_id.is_empty() { TenantId::default() } else { TenantId(id(&r.tenant_id)?) },
        time_ms: r.time_ms,
    })
}

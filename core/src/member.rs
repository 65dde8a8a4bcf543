//! Members: the controllers of the cluster. Which of them vote and who leads is Raft's; who may be one is the log's.
//!
//! ```text
//! Admit ─► MemberAdmitted (id = its seq) ─► join token ─► Join (secret) ─► MemberJoined ─► Remove ─► MemberRemoved
//! Bootstrapped ─► the founder, member 1, is in ─► Announce ─► MemberJoined
//! Rebuild ─► MemberRemoved (the old id), MemberAdmitted and MemberJoined (the same name and key, a new id)
//! ```
//! A join token is `cvm_` + base64url(protobuf `JoinTokenClaims`): it says where to go, whom to trust there and what to
//! prove oneself by. It needs no signature: the secret is checked against the log, once.

use crate::access::{Permission, permit};
use crate::command::{Actor, Meta};
use crate::id::{MemberId, Seq, TenantId};
use crate::machine::Context;
use crate::name::{name_check, text_check};
use crate::rejection::Rejection;
use crate::rules::{Fact, Key, Stamp, fresh, timestamp, timestamp_ms};
use crate::state::State;
use crate::system::URLS_MAX;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use cvlan_proto::Message;
use cvlan_proto::v1::{self, JoinTokenClaims, event::Body, member_event::Kind};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Members a cluster may have, those that did not yet join included.
pub const MEMBERS_MAX: usize = 64;
/// URLs of a kind that all members together may advertise.
pub const URLS_TOTAL_MAX: usize = 64;
/// Bytes of such URLs together: a registration token carries them all and must stay below
/// [`crate::token::TOKEN_MAX`].
pub const URLS_TOTAL_BYTES: usize = 3072;
/// The shortest and longest life of a join token, milliseconds.
pub const LIFE_MS: std::ops::RangeInclusive<u64> = 60_000..=7 * 24 * 3_600_000;
/// What every join token starts with.
pub const PREFIX: &str = "cvm_";
/// The longest join token text, bytes.
pub const JOIN_TOKEN_MAX: usize = 32 << 10;
/// The name of the member that the log began on.
pub const FOUNDER_NAME: &str = "founder";

const DOMAIN: &[u8] = b"cvlan-join-v1\0";
/// The longest HOST:PORT, bytes: what members tell each other of it has a length of one byte, and a DNS name is no longer
/// (RFC 1035 §2.3.4).
const ADDRESS_MAX: usize = 255;

/// A controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its number in Raft too.
    pub id: MemberId,
    /// Unique among members.
    pub name: Arc<str>,
    /// `None` = the founder.
    pub admission: Option<Admission>,
    /// `None` = it was not heard of yet.
    pub joined: Option<Joined>,
    /// Its node doors.
    pub node_urls: Arc<[String]>,
    /// Its REST doors.
    pub api_urls: Arc<[String]>,
    /// Its last event; what it advertises does not count.
    pub revision: Seq,
}

/// What a machine becomes a member by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// [`secret_hash`] of the join token's secret.
    pub secret_hash: [u8; 32],
    /// Event time.
    pub expires_ms: u64,
    /// Event time.
    pub admitted_ms: u64,
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// SHA-256 of its certificate's SubjectPublicKeyInfo; stays.
    pub key_sha256: [u8; 32],
    /// HOST:PORT for other members.
    pub address: Arc<str>,
    /// What it runs.
    pub version: Arc<str>,
    /// Ed25519 public key that it signs tree heads with; `None` = it did not say, or runs a version that does not.
    pub note_key: Option<[u8; 32]>,
    /// Event time of the first time.
    pub joined_ms: u64,
}

/// Wishes about members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MemberCommand {
    /// A machine may become a member; its id is the event's number.
    Admit {
        /// DNS label.
        name: String,
        /// [`secret_hash`] of the join token's secret.
        secret_hash: [u8; 32],
        /// From the event's time on.
        life_ms: u64,
    },
    /// It comes, with its join token. The same key again is the same member; another one comes too late.
    Join {
        /// As in the token.
        id: MemberId,
        /// [`secret_hash`] of the secret that it sent.
        secret_hash: [u8; 32],
        /// SHA-256 of its SubjectPublicKeyInfo.
        key_sha256: [u8; 32],
        /// HOST:PORT for other members.
        address: String,
        /// What it runs.
        version: String,
    },
    /// A member that is in says where it is and what it runs: each at its start, of itself alone. It proves nothing, so
    /// no door makes it of a request.
    Announce {
        /// Itself.
        id: MemberId,
        /// SHA-256 of its SubjectPublicKeyInfo.
        key_sha256: [u8; 32],
        /// HOST:PORT for other members.
        address: String,
        /// What it runs.
        version: String,
        /// Ed25519 public key that it signs tree heads with.
        note_key: Option<[u8; 32]>,
    },
    /// No member any more; refused for the last one that is in.
    Remove {
        /// Which.
        id: MemberId,
    },
    /// A member that lost its log comes anew, with its key: its id goes, because whoever forgot how it voted must not vote
    /// again, and its name gets another one. The same secret again changes nothing. As with [`Self::Announce`], the door
    /// proves who it is.
    Rebuild {
        /// Its id, of which it lost the log.
        id: MemberId,
        /// SHA-256 of its SubjectPublicKeyInfo.
        key_sha256: [u8; 32],
        /// [`secret_hash`] of what it drew for this rebuild.
        secret_hash: [u8; 32],
        /// HOST:PORT for other members; empty = as before.
        address: String,
        /// What it runs.
        version: String,
    },
}

/// How far a rebuild has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebuild {
    /// This member is to go, and to come anew.
    Due(Arc<str>),
    /// It is this member now.
    Done(MemberId),
}

impl Member {
    /// The member that a log begins on, as the bootstrap alone tells.
    pub(crate) fn founder() -> Self {
        Self {
            id: MemberId::FOUNDER,
            name: FOUNDER_NAME.into(),
            admission: None,
            joined: None,
            node_urls: Arc::default(),
            api_urls: Arc::default(),
            revision: Seq(1),
        }
    }

    /// It takes part: the founder always did.
    pub fn is_in(&self) -> bool {
        self.admission.is_none() || self.joined.is_some()
    }

    /// HOST:PORT for other members; empty where it did not say.
    pub fn address(&self) -> &str {
        self.joined.as_ref().map_or("", |j| &j.address)
    }

    /// As people and scripts see it.
    pub fn to_proto(&self) -> v1::Member {
        let (admission, joined) = (self.admission.as_ref(), self.joined.as_ref());
        v1::Member {
            id: self.id.0,
            name: self.name.to_string(),
            state: if self.is_in() { "joined" } else { "admitted" }.to_owned(),
            address: self.address().to_owned(),
            version: joined.map(|j| j.version.to_string()).unwrap_or_default(),
            node_urls: self.node_urls.to_vec(),
            api_urls: self.api_urls.to_vec(),
            admitted_at: admission.map(|a| timestamp(a.admitted_ms)),
            joined_at: joined.map(|j| timestamp(j.joined_ms)),
            expires_at: admission.map(|a| timestamp(a.expires_ms)),
            revision: self.revision.0,
            // What Raft says is the shell's to add.
            ..v1::Member::default()
        }
    }
}

/// No such member.
pub fn member_unknown() -> Rejection {
    Rejection::not_found("member_not_found", "there is no such member; `cvlanctl cluster status` shows them")
}

/// What the log keeps of a join token's secret.
pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(DOMAIN).chain_update(secret).finalize().into()
}

/// The text that a new member is given.
pub fn join_token_make(claims: &JoinTokenClaims) -> String {
    format!("{PREFIX}{}", BASE64URL.encode(claims.encode_to_vec()))
}

/// Takes a join token's text apart.
pub fn join_token_parse(text: &str) -> Result<JoinTokenClaims, Rejection> {
    let malformed =
        || Rejection::invalid("join_token_malformed", "this is not a join token; copy all of it, from cvm_ to its end");
    let text = text.trim();
    if text.len() > JOIN_TOKEN_MAX {
        return Err(malformed());
    }
    let bytes = text.strip_prefix(PREFIX).and_then(|t| BASE64URL.decode(t).ok()).ok_or_else(malformed)?;
    let claims = JoinTokenClaims::decode(bytes.as_slice()).map_err(|_| malformed())?;
    let sizes = [claims.secret.len(), claims.ca_spki_sha256.len()];
    if sizes != [32, 32] || claims.member_id == 0 || claims.addresses.len() > MEMBERS_MAX {
        return Err(malformed());
    }
    claims.addresses.iter().try_for_each(|a| address_check(a)).map_err(|_| malformed())?;
    Ok(claims)
}

/// HOST:PORT that another machine can connect to: a DNS name, an IPv4 address, or an IPv6 address in brackets.
pub fn address_check(address: &str) -> Result<(), Rejection> {
    let fits = |(host, port): (&str, &str)| {
        let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().is_ok_and(|a| !a.is_unspecified() && !a.is_multicast()),
            None => match host.parse::<Ipv4Addr>() {
                Ok(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
                Err(_) => host.split('.').all(|label| name_check("host", &label.to_ascii_lowercase()).is_ok()),
            },
        };
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        host_fits && digits && port.parse::<u16>().is_ok_and(|p| p != 0)
    };
    if address.len() <= ADDRESS_MAX && address.rsplit_once(':').is_some_and(fits) {
        return Ok(());
    }
    Err(Rejection::invalid(
        "address_invalid",
        format!("{address:?} is not HOST:PORT that other members can connect to ([..] around IPv6)"),
    ))
}

pub(crate) fn decide(
    state: &State,
    ctx: &Context,
    meta: &Meta,
    command: &MemberCommand,
) -> Result<Vec<Fact>, Rejection> {
    let kinds = match command {
        MemberCommand::Admit { name, secret_hash, life_ms } => {
            permit(state, &meta.actor, Permission::ClusterWrite, TenantId::default())?;
            vec![Kind::Admitted(admit(state, ctx, name, secret_hash, *life_ms)?)]
        }
        MemberCommand::Join { id, secret_hash, key_sha256, address, version } => {
            itself(meta)?;
            let member = proven(state, ctx, *id, secret_hash)?;
            let note_key = member.joined.as_ref().and_then(|j| j.note_key);
            arrive(state, member, key_sha256, (address, version, note_key))?.map(Kind::Joined).into_iter().collect()
        }
        MemberCommand::Announce { id, key_sha256, address, version, note_key } => {
            itself(meta)?;
            let member = inside(state, *id)?;
            arrive(state, member, key_sha256, (address, version, *note_key))?.map(Kind::Joined).into_iter().collect()
        }
        MemberCommand::Remove { id } => {
            permit(state, &meta.actor, Permission::ClusterWrite, TenantId::default())?;
            vec![Kind::Removed(remove(state, meta, *id)?)]
        }
        MemberCommand::Rebuild { id, key_sha256, secret_hash, address, version } => {
            itself(meta)?;
            match rebuild(state, *id, key_sha256, secret_hash)? {
                Rebuild::Done(_) => Vec::new(),
                Rebuild::Due(_) => anew(state, ctx, inside(state, *id)?, (secret_hash, address, version))?,
            }
        }
    };
    let fact = |kind| Fact { tenant: TenantId::default(), body: Body::Member(v1::MemberEvent { kind: Some(kind) }) };
    Ok(kinds.into_iter().map(fact).collect())
}

/// What members do of themselves is not for people, whatever their role.
fn itself(meta: &Meta) -> Result<(), Rejection> {
    match meta.actor {
        Actor::System => Ok(()),
        Actor::User(..) | Actor::Node(..) | Actor::Token(_) => {
            Err(Rejection::forbidden("forbidden", "only a member itself says where it is"))
        }
    }
}

fn admit(
    state: &State,
    ctx: &Context,
    name: &str,
    secret_hash: &[u8; 32],
    life_ms: u64,
) -> Result<v1::MemberAdmitted, Rejection> {
    name_check("member", name)?;
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Rejection::invalid("name_invalid", format!("{name} is a number, as ids are; use a name")));
    }
    if !LIFE_MS.contains(&life_ms) {
        let (least, most) = (LIFE_MS.start() / 1000, LIFE_MS.end() / 1000);
        let detail = format!("a join token lives from {least} s to {most} s (a minute to a week)");
        return Err(Rejection::invalid("expiry_invalid", detail));
    }
    if state.members.values().any(|m| *m.name == *name) {
        return Err(Rejection::conflict("member_exists", format!("there is a member {name:?} already")));
    }
    if state.members.len() >= MEMBERS_MAX {
        return Err(Rejection::conflict(
            "too_many_members",
            format!("a cluster has at most {MEMBERS_MAX} members; remove one first"),
        ));
    }
    Ok(v1::MemberAdmitted {
        member_id: ctx.next_seq.0,
        name: name.to_owned(),
        secret_hash: secret_hash.to_vec(),
        expires_at: Some(timestamp(ctx.time_ms.saturating_add(life_ms))),
    })
}

/// The member that this secret lets in now. An unknown, a removed one and a wrong secret look alike.
fn proven<'a>(state: &'a State, ctx: &Context, id: MemberId, secret_hash: &[u8; 32]) -> Result<&'a Member, Rejection> {
    let member = state.members.get(&id);
    let known = member.and_then(|m| Some((m, m.admission.as_ref()?))).filter(|(_, a)| a.secret_hash == *secret_hash);
    let Some((member, admission)) = known else {
        return Err(Rejection::unproven(
            "join_token_invalid",
            "this join token was altered, or its member was removed; make a new one with `cvlanctl cluster add`",
        ));
    };
    if admission.expires_ms <= ctx.time_ms {
        return Err(Rejection::unproven(
            "join_token_expired",
            "this join token has expired; remove its member and make a new one with `cvlanctl cluster add`",
        ));
    }
    Ok(member)
}

/// A member that takes part.
fn inside(state: &State, id: MemberId) -> Result<&Member, Rejection> {
    let member = state.members.get(&id).ok_or_else(member_unknown)?;
    if member.is_in() {
        return Ok(member);
    }
    Err(Rejection::conflict("member_not_joined", format!("member {id} has not joined yet; start it with its token")))
}

fn arrive(
    state: &State,
    member: &Member,
    key_sha256: &[u8; 32],
    (address, version, note_key): (&str, &str, Option<[u8; 32]>),
) -> Result<Option<v1::MemberJoined>, Rejection> {
    address_check(address)?;
    text_check("version", version)?;
    if member.joined.as_ref().is_some_and(|j| j.key_sha256 != *key_sha256) {
        return Err(Rejection::conflict(
            "member_other_key",
            format!(
                "member {} came with another key; a machine without its folder is a new member: \
                 `cvlanctl cluster remove {}`, then `cvlanctl cluster add`",
                member.id, member.name
            ),
        ));
    }
    let owner = |m: &&Arc<Member>| m.joined.as_ref().is_some_and(|j| j.key_sha256 == *key_sha256);
    if let Some(other) = state.members.values().find(owner).filter(|m| m.id != member.id) {
        return Err(Rejection::conflict(
            "member_key_in_use",
            format!("member {} has this key; every member makes its own", other.id),
        ));
    }
    let signs = |m: &&Arc<Member>| note_key.is_some() && m.joined.as_ref().is_some_and(|j| j.note_key == note_key);
    if let Some(other) = state.members.values().find(|m| m.id != member.id && signs(m)) {
        return Err(Rejection::conflict(
            "note_key_in_use",
            format!("member {} signs with this key; every member makes its own", other.id),
        ));
    }
    let says = |j: &Joined| *j.address == *address && *j.version == *version && j.note_key == note_key;
    let same = member.joined.as_ref().is_some_and(says);
    Ok((!same).then(|| v1::MemberJoined {
        member_id: member.id.0,
        address: address.to_owned(),
        key_sha256: key_sha256.to_vec(),
        version: version.to_owned(),
        note_key: note_key.map(Vec::from).unwrap_or_default(),
    }))
}

fn remove(state: &State, meta: &Meta, id: MemberId) -> Result<v1::MemberRemoved, Rejection> {
    let member = state.members.get(&id).ok_or_else(member_unknown)?;
    fresh(meta, member.revision)?;
    if member.is_in() && is_last(state, id) {
        return Err(Rejection::conflict(
            "last_member",
            "this is the last member that is in; add another one first, or just stop it",
        ));
    }
    Ok(v1::MemberRemoved { member_id: id.0 })
}

fn is_last(state: &State, id: MemberId) -> bool {
    !state.members.values().any(|m| m.id != id && m.is_in())
}

/// Whether the member that proved this key, and says that it was `id`, may be rebuilt, or was already, with this secret.
pub fn rebuild(
    state: &State,
    id: MemberId,
    key_sha256: &[u8; 32],
    secret_hash: &[u8; 32],
) -> Result<Rebuild, Rejection> {
    let owner = |m: &&Arc<Member>| m.joined.as_ref().is_some_and(|j| j.key_sha256 == *key_sha256);
    let Some(member) = state.members.values().find(owner) else {
        return Err(Rejection::conflict(
            "member_gone",
            format!(
                "member {id} was removed from the cluster; `cvlanctl cluster add` and an empty --data-dir make a new one"
            ),
        ));
    };
    if member.admission.as_ref().is_some_and(|a| a.secret_hash == *secret_hash) {
        return Ok(Rebuild::Done(member.id));
    }
    if member.id != id {
        let (now, name) = (member.id, &member.name);
        return Err(Rejection::conflict(
            "member_rebuilt",
            format!(
                "{name} is member {now} now, not {id}: this folder is an old copy of it. If there is no newer one, \
                 `cvlanctl cluster remove {name}`, then `cvlanctl cluster add {name}`, and an empty --data-dir"
            ),
        ));
    }
    if is_last(state, id) {
        return Err(Rejection::conflict(
            "last_member",
            "this is the last member that is in: nobody has what it lost; restore a backup",
        ));
    }
    Ok(Rebuild::Due(member.name.clone()))
}

/// The same name and key under a new id: that of the second event.
fn anew(
    state: &State,
    ctx: &Context,
    member: &Member,
    (secret_hash, address, version): (&[u8; 32], &str, &str),
) -> Result<Vec<Kind>, Rejection> {
    let address = if address.is_empty() { member.address() } else { address };
    address_check(address)?;
    text_check("version", version)?;
    let joined = member.joined.as_ref();
    let key_sha256 = joined.map(|j| j.key_sha256.to_vec()).unwrap_or_default();
    let note_key = joined.and_then(|j| j.note_key).map(Vec::from).unwrap_or_default();
    let new = ctx.next_seq.0 + 1;
    debug_assert!(!state.members.contains_key(&MemberId(new)), "an id is used again");
    let admitted = v1::MemberAdmitted {
        member_id: new,
        name: member.name.to_string(),
        secret_hash: secret_hash.to_vec(),
        // Nothing joins with it.
        expires_at: Some(timestamp(ctx.time_ms)),
    };
    let (address, version) = (address.to_owned(), version.to_owned());
    let joined = v1::MemberJoined { member_id: new, address, key_sha256, version, note_key };
    let removed = v1::MemberRemoved { member_id: member.id.0 };
    Ok(vec![Kind::Removed(removed), Kind::Admitted(admitted), Kind::Joined(joined)])
}

/// What a member advertises, if that is new.
pub(crate) fn advertise(
    state: &State,
    id: MemberId,
    node_urls: &[String],
    api_urls: &[String],
) -> Result<Option<v1::AdvertisementChanged>, Rejection> {
    let member = inside(state, id)?;
    if *member.node_urls == *node_urls && *member.api_urls == *api_urls {
        return Ok(None);
    }
    if node_urls.len().max(api_urls.len()) > URLS_MAX {
        return Err(Rejection::invalid("too_many_urls", format!("a member advertises at most {URLS_MAX} URLs")));
    }
    let mut after = state.members.clone();
    after.insert(id, Arc::new(Member { node_urls: node_urls.into(), api_urls: api_urls.into(), ..member.clone() }));
    for all in [urls(&after, |m| &m.node_urls), urls(&after, |m| &m.api_urls)] {
        if all.len() > URLS_TOTAL_MAX || all.iter().map(String::len).sum::<usize>() > URLS_TOTAL_BYTES {
            return Err(Rejection::conflict(
                "too_many_urls",
                format!(
                    "all members together advertise at most {URLS_TOTAL_MAX} URLs of {URLS_TOTAL_BYTES} bytes; \
                     let several share one"
                ),
            ));
        }
    }
    let (node_urls, api_urls) = (node_urls.to_vec(), api_urls.to_vec());
    Ok(Some(v1::AdvertisementChanged { node_urls, api_urls, member_id: Some(id.0) }))
}

/// Every member's, by id, each once.
pub(crate) fn urls(members: &OrdMap<MemberId, Arc<Member>>, of: fn(&Member) -> &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for url in members.values().flat_map(|m| of(m)) {
        if !all.contains(url) {
            all.push(url.clone());
        }
    }
    all
}

/// Whose doors the event tells of: old ones name nobody, for there was one member.
pub(crate) fn advertiser(event: &v1::AdvertisementChanged) -> MemberId {
    event.member_id.map_or(MemberId::FOUNDER, MemberId)
}

pub(crate) fn apply_advertised(state: &mut State, event: &v1::AdvertisementChanged) {
    if let Some(member) = state.members.get_mut(&advertiser(event)).map(Arc::make_mut) {
        member.node_urls = event.node_urls.as_slice().into();
        member.api_urls = event.api_urls.as_slice().into();
    }
}

pub(crate) fn apply(state: &mut State, stamp: Stamp, event: &v1::MemberEvent) {
    match &event.kind {
        Some(Kind::Admitted(e)) => {
            let id = MemberId(e.member_id);
            let member = Member {
                id,
                name: e.name.as_str().into(),
                admission: Some(Admission {
                    secret_hash: e.secret_hash.as_slice().try_into().unwrap_or_default(),
                    expires_ms: e.expires_at.as_ref().map(timestamp_ms).unwrap_or_default(),
                    admitted_ms: stamp.time_ms,
                }),
                joined: None,
                node_urls: Arc::default(),
                api_urls: Arc::default(),
                revision: stamp.seq,
            };
            state.members.insert(id, Arc::new(member));
        }
        Some(Kind::Joined(e)) => {
            if let Some(member) = state.members.get_mut(&MemberId(e.member_id)).map(Arc::make_mut) {
                member.joined = Some(Joined {
                    key_sha256: e.key_sha256.as_slice().try_into().unwrap_or_default(),
                    address: e.address.as_str().into(),
                    version: e.version.as_str().into(),
                    note_key: e.note_key.as_slice().try_into().ok(),
                    joined_ms: member.joined.as_ref().map_or(stamp.time_ms, |j| j.joined_ms),
                });
                member.revision = stamp.seq;
            }
        }
        Some(Kind::Removed(e)) => apply_removed(state, MemberId(e.member_id)),
        None => {}
    }
}

pub(crate) fn apply_removed(state: &mut State, id: MemberId) {
    if state.members.remove(&id).is_some() && id == MemberId::FOUNDER {
        Arc::make_mut(&mut state.system).founder_gone = true;
    }
}

pub(crate) fn touched(event: &v1::MemberEvent) -> Vec<Key> {
    let id = match &event.kind {
        Some(Kind::Admitted(e)) => e.member_id,
        Some(Kind::Joined(e)) => e.member_id,
        Some(Kind::Removed(e)) => e.member_id,
        None => return Vec::new(),
    };
    vec![Key::Member(MemberId(id))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Wish;
    use crate::given::{World, given, node, token, user, user_create};
    use crate::system::SystemCommand;

    const HOUR: u64 = 3_600_000;

    fn admit(name: &str) -> Wish {
        let secret_hash = secret_hash(name.as_bytes());
        Wish::Member(MemberCommand::Admit { name: name.into(), secret_hash, life_ms: HOUR })
    }

    fn join(id: MemberId, secret: &str, key: u8) -> MemberCommand {
        MemberCommand::Join {
            id,
            secret_hash: secret_hash(secret.as_bytes()),
            key_sha256: [key; 32],
            address: format!("192.0.2.{key}:8445"),
            version: "0.1.0".into(),
        }
    }

    fn announce(id: MemberId, key: u8, address: &str) -> Wish {
        let (address, version) = (address.to_owned(), "0.1.0".to_owned());
        Wish::Member(MemberCommand::Announce { id, key_sha256: [key; 32], address, version, note_key: None })
    }

    fn remove(id: MemberId) -> Wish {
        Wish::Member(MemberCommand::Remove { id })
    }

    fn advertise(member: MemberId, node: &[&str], api: &[&str]) -> Wish {
        let own = |urls: &[&str]| urls.iter().map(|u| (*u).to_owned()).collect();
        Wish::System(SystemCommand::Advertise { member, node_urls: own(node), api_urls: own(api) })
    }

    impl World {
        fn admitted(&mut self, name: &str) -> MemberId {
            self.ok(admit(name));
            MemberId(self.seq)
        }

        fn joined(&mut self, name: &str, key: u8) -> MemberId {
            let id = self.admitted(name);
            assert_eq!(self.ok(Wish::Member(join(id, name, key))).len(), 1);
            id
        }

        fn ids(&self) -> Vec<u64> {
            self.state.members.keys().map(|id| id.0).collect()
        }

        /// The code of a refusal that appended nothing, or how many events there are.
        fn try_join(&mut self, join: MemberCommand) -> Result<usize, &'static str> {
            let before = self.seq;
            let said = self.when(Actor::System, Wish::Member(join)).map(|e| e.len()).map_err(|r| r.code);
            assert!(said.is_ok() || self.seq == before);
            said
        }
    }

    #[test]
    fn a_log_begins_with_its_founder() {
        let mut w = given();
        let founder = &w.state.members[&MemberId::FOUNDER];
        assert_eq!((w.ids(), founder.is_in(), founder.address()), (vec![1], true, ""));
        assert_eq!(w.try_join(join(MemberId::FOUNDER, "", 1)), Err("join_token_invalid"), "no secret lets it in");
        let first = announce(MemberId::FOUNDER, 1, "a.example:8445");
        assert_eq!((w.ok(first.clone()).len(), w.ok(first).len()), (1, 0));
        assert_eq!(w.ok(announce(MemberId::FOUNDER, 1, "b.example:8445")).len(), 1, "it moved");
        assert_eq!(w.code(announce(MemberId::FOUNDER, 2, "b.example:8445")), "member_other_key");
        let said = w.state.member_find("founder").unwrap().to_proto();
        assert_eq!((said.id, said.state.as_str(), said.address.as_str()), (1, "joined", "b.example:8445"));
        assert_eq!((said.revision, said.admitted_at), (w.seq, None));
    }

    #[test]
    fn a_member_is_admitted_joins_once_and_is_removed_for_good() {
        let mut w = given();
        let id = w.admitted("m2");
        assert_eq!((w.ids(), w.state.members[&id].is_in()), (vec![1, w.seq], false));
        assert_eq!(w.code(announce(id, 2, "192.0.2.2:8445")), "member_not_joined");
        assert_eq!(w.code(advertise(id, &["https://x"], &[])), "member_not_joined");
        assert_eq!(w.try_join(join(id, "m2", 2)), Ok(1));
        let at_ms = w.now_ms;
        w.now_ms += 1000;
        assert_eq!(w.try_join(join(id, "m2", 2)), Ok(0), "the same again");
        assert_eq!(w.try_join(join(id, "m2", 3)), Err("member_other_key"), "a token is for one");
        assert_eq!(w.ok(announce(id, 2, "[2001:db8::2]:8445")).len(), 1);
        let member = w.state.member_find("m2").unwrap();
        assert_eq!((member.address(), member.revision), ("[2001:db8::2]:8445", Seq(w.seq)));
        assert_eq!(member.joined.as_ref().unwrap().joined_ms, at_ms, "it came once");
        w.now_ms += HOUR;
        assert_eq!(w.try_join(join(id, "m2", 2)), Err("join_token_expired"));

        w.ok(remove(id));
        assert_eq!(w.ids(), [1]);
        let before = w.seq;
        for (wish, code) in [
            (remove(id), "member_not_found"),
            (announce(id, 2, "192.0.2.2:8445"), "member_not_found"),
            (Wish::Member(join(id, "m2", 2)), "join_token_invalid"),
            (advertise(id, &["https://x"], &[]), "member_not_found"),
        ] {
            assert_eq!(w.code(wish.clone()), code, "{wish:?}");
        }
        assert_eq!(w.seq, before);
        assert!(w.joined("m2", 2) > id, "its name and its key are free, its id is not");
    }

    #[test]
    fn a_member_that_lost_its_log_comes_anew_once() {
        let rebuild = |id: MemberId, key: u8, secret: u8, address: &str| {
            let (address, version) = (address.to_owned(), "0.2.0".to_owned());
            MemberCommand::Rebuild { id, key_sha256: [key; 32], secret_hash: [secret; 32], address, version }
        };
        let mut w = given();
        w.ok(announce(MemberId::FOUNDER, 1, "a.example:8445"));
        assert_eq!(w.try_join(rebuild(MemberId::FOUNDER, 1, 7, "")), Err("last_member"));
        let id = w.joined("m2", 2);
        w.ok(advertise(id, &["https://b"], &[]));
        let before = w.seq;
        assert_eq!(w.try_join(rebuild(id, 2, 7, "")), Ok(3));
        let member = w.state.member_find("m2").unwrap().clone();
        assert_eq!((member.id, w.ids()), (MemberId(before + 2), vec![1, before + 2]), "its id is its event's number");
        let joined = member.joined.as_ref().unwrap();
        assert_eq!((joined.key_sha256, member.address(), &*joined.version), ([2; 32], "192.0.2.2:8445", "0.2.0"));
        assert_eq!((member.is_in(), w.state.node_urls()), (true, Vec::new()));
        assert_eq!(w.try_join(rebuild(id, 2, 7, "")), Ok(0), "the same rebuild again");
        assert_eq!(w.try_join(rebuild(member.id, 2, 7, "")), Ok(0), "and once it knows its new id");
        for (wish, code) in [
            (rebuild(id, 2, 8, ""), "member_rebuilt"),
            (rebuild(member.id, 3, 8, ""), "member_gone"),
            (rebuild(member.id, 2, 8, "nowhere"), "address_invalid"),
            (join(member.id, "x", 2), "join_token_invalid"),
        ] {
            assert_eq!(w.try_join(wish.clone()), Err(code), "{wish:?}");
        }
        assert_eq!(w.try_join(rebuild(member.id, 2, 8, "c.example:1")), Ok(3), "another time");
        assert_eq!(w.state.member_find("m2").unwrap().address(), "c.example:1");
        // The founder too; it is implied no more.
        assert_eq!(w.try_join(rebuild(MemberId::FOUNDER, 1, 9, "")), Ok(3));
        let mut bytes = Vec::new();
        crate::save::save(&w.state, &mut bytes);
        let loaded = crate::save::load(&bytes).unwrap();
        assert_eq!(loaded.members, w.state.members);
        assert!(!loaded.members.contains_key(&MemberId::FOUNDER));
        w.ok(user_create(None, 1, "root2", "superadmin"));
        let root = Actor::User(user(1), "root2".into());
        let last = w.state.member_find("founder").unwrap().id;
        let asked = Wish::Member(rebuild(last, 1, 10, ""));
        assert_eq!(w.when(root, asked).unwrap_err().code, "forbidden", "people do not");
    }

    #[test]
    fn a_founder_that_was_removed_is_not_implied_again() {
        let mut w = given();
        let other = w.joined("m2", 2);
        w.ok(announce(MemberId::FOUNDER, 1, "a.example:8445"));
        w.ok(remove(MemberId::FOUNDER));
        let mut bytes = Vec::new();
        crate::save::save(&w.state, &mut bytes);
        for state in [&w.state, &crate::save::load(&bytes).unwrap()] {
            assert_eq!(state.members.keys().copied().collect::<Vec<_>>(), [other]);
        }
        assert_eq!(w.code(remove(other)), "last_member");
    }

    #[test]
    fn the_last_member_that_is_in_stays() {
        let mut w = given();
        let waiting = w.admitted("m2");
        assert_eq!(w.code(remove(MemberId::FOUNDER)), "last_member", "who is only admitted does not count");
        w.ok(remove(waiting));
        assert_eq!(w.code(remove(MemberId::FOUNDER)), "last_member");
        assert_eq!(w.code(remove(MemberId(77))), "member_not_found");
        assert_eq!(w.ids(), [1]);
    }

    #[test]
    fn refusals() {
        let life = |life_ms| MemberCommand::Admit { name: "m3".into(), secret_hash: [0; 32], life_ms };
        let mut w = given();
        let (two, three) = (w.joined("m2", 2), w.admitted("waiting"));
        let at = |address: &str| {
            let (address, version) = (address.to_owned(), String::new());
            let secret_hash = secret_hash(b"waiting");
            Wish::Member(MemberCommand::Join { id: three, secret_hash, key_sha256: [3; 32], address, version })
        };
        for (wish, code) in [
            (admit("m2"), "member_exists"),
            (admit("founder"), "member_exists"),
            (admit("Bad Name"), "name_invalid"),
            (admit("12"), "name_invalid"),
            (Wish::Member(life(59_999)), "expiry_invalid"),
            (Wish::Member(life(LIFE_MS.end() + 1)), "expiry_invalid"),
            (Wish::Member(join(three, "guess", 3)), "join_token_invalid"),
            (Wish::Member(join(MemberId(99), "waiting", 3)), "join_token_invalid"),
            (Wish::Member(join(two, "waiting", 3)), "join_token_invalid"),
            (Wish::Member(join(three, "waiting", 2)), "member_key_in_use"),
            (announce(MemberId::FOUNDER, 2, "a.example:1"), "member_key_in_use"),
            (at("nowhere"), "address_invalid"),
        ] {
            let before = w.seq;
            assert_eq!(w.code(wish.clone()), code, "{wish:?}");
            assert_eq!(w.seq, before);
        }
        for n in w.state.members.len()..MEMBERS_MAX {
            w.admitted(&format!("n{n}"));
        }
        assert_eq!(w.code(admit("one-more")), "too_many_members");
    }

    #[test]
    fn only_the_clusters_admins_choose_and_only_members_join() {
        let mut w = given();
        w.ok(user_create(None, 1, "root2", "superadmin"));
        w.ok(user_create(Some(1), 2, "ann", "tenantadmin"));
        let waiting = w.admitted("m2");
        let (root, ann) = (Actor::User(user(1), "root2".into()), Actor::User(user(2), "ann".into()));
        let joins = Wish::Member(join(waiting, "m2", 2));
        let speaks = announce(MemberId::FOUNDER, 1, "a.example:8445");
        for (actor, wish, code) in [
            (ann.clone(), admit("m3"), Some("forbidden")),
            (ann, remove(waiting), Some("forbidden")),
            (Actor::Node(node(1), String::new()), admit("m3"), Some("forbidden")),
            (Actor::Token(token(1)), joins.clone(), Some("forbidden")),
            (root.clone(), joins, Some("forbidden")),
            (root.clone(), speaks, Some("forbidden")),
            (root.clone(), admit("m3"), None),
            (root, remove(waiting), None),
        ] {
            assert_eq!(w.when(actor.clone(), wish.clone()).err().map(|r| r.code), code, "{actor:?} {wish:?}");
        }
        let stale = Meta { if_revision: Some(1), ..Meta::default() };
        let m3 = w.state.member_find("m3").unwrap().id;
        assert_eq!(w.when_meta(stale, remove(m3)).unwrap_err().code, "revision_mismatch");
    }

    #[test]
    fn every_member_has_doors_of_its_own() {
        let mut w = given();
        let (two, three) = (w.joined("m2", 2), w.joined("m3", 3));
        w.ok(advertise(three, &["https://c", "https://all"], &["https://api-c"]));
        w.ok(advertise(MemberId::FOUNDER, &["https://a", "https://all"], &["https://api-a"]));
        assert!(w.ok(advertise(three, &["https://c", "https://all"], &["https://api-c"])).is_empty(), "nothing new");
        assert_eq!(w.state.node_urls(), ["https://a", "https://all", "https://c"]);
        assert_eq!(w.state.api_urls(), ["https://api-a", "https://api-c"]);
        w.ok(remove(three));
        assert_eq!(w.state.node_urls(), ["https://a", "https://all"]);

        let many = |n: usize, of: &str| (0..n).map(|i| format!("https://{of}{i}")).collect::<Vec<_>>();
        let list = |urls: &[String]| advertise(two, &urls.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        assert_eq!(w.code(list(&many(URLS_MAX + 1, "x"))), "too_many_urls");
        assert_eq!(w.code(list(&["x".repeat(URLS_TOTAL_BYTES)])), "too_many_urls", "with the founder's");
        w.ok(advertise(MemberId::FOUNDER, &[], &[]));
        w.ok(list(&["x".repeat(URLS_TOTAL_BYTES)]));
        w.ok(list(&[]));
        for n in 0..URLS_TOTAL_MAX / URLS_MAX {
            let id = w.joined(&format!("full{n}"), 100 + n as u8);
            let urls = many(URLS_MAX, &format!("n{n}-"));
            w.ok(Wish::System(SystemCommand::Advertise { member: id, node_urls: urls, api_urls: Vec::new() }));
        }
        assert_eq!(w.code(list(&many(1, "more"))), "too_many_urls");
        w.ok(list(&many(1, "n0-")));
        assert_eq!(w.state.node_urls().len(), URLS_TOTAL_MAX);
    }

    #[test]
    fn a_join_token_is_read_back_or_refused() {
        let claims = JoinTokenClaims {
            member_id: 42,
            secret: vec![7; 32],
            ca_spki_sha256: vec![8; 32],
            addresses: vec!["192.0.2.1:8445".into(), "[2001:db8::1]:8445".into(), "a.example:8445".into()],
        };
        let text = join_token_make(&claims);
        assert_eq!(join_token_parse(&format!(" {text}\n")), Ok(claims.clone()), "copied with white space");
        for bad in [
            String::new(),
            "cvm_".into(),
            text.replace("cvm_", "cvj_"),
            text[..text.len() - 2].into(),
            format!("{text}!"),
            "x".repeat(JOIN_TOKEN_MAX + 1),
            join_token_make(&JoinTokenClaims { member_id: 0, ..claims.clone() }),
            join_token_make(&JoinTokenClaims { secret: vec![7; 31], ..claims.clone() }),
            join_token_make(&JoinTokenClaims { ca_spki_sha256: Vec::new(), ..claims.clone() }),
            join_token_make(&JoinTokenClaims { addresses: vec!["a.example".into()], ..claims.clone() }),
            join_token_make(&JoinTokenClaims { addresses: vec!["a:1".into(); MEMBERS_MAX + 1], ..claims }),
        ] {
            assert_eq!(join_token_parse(&bad).unwrap_err().code, "join_token_malformed", "{bad}");
        }
    }

    #[test]
    fn addresses() {
        for good in ["192.0.2.1:8445", "127.0.0.1:1", "[::1]:8445", "localhost:8445", "M2.Example.org:65535"] {
            assert!(address_check(good).is_ok(), "{good}");
        }
        let longest = |bytes: usize| format!("{}:1", "a.".repeat(200).get(..bytes - 2).unwrap());
        assert!(address_check(&longest(ADDRESS_MAX)).is_ok());
        let long = longest(ADDRESS_MAX + 2);
        for bad in [
            "",
            ":",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "a:+1",
            "a:1 ",
            "::1:1",
            "[::]:1",
            "[::1:1",
            "0.0.0.0:1",
            "a b:1",
            "https://a:1",
            "a..b:1",
            "-a:1",
            "[a]:1",
            &long,
        ] {
            assert_eq!(address_check(bad).unwrap_err().code, "address_invalid", "{bad}");
        }
    }
}

//! Registration tokens: what lets a machine in. Signed, so that the machine can be told where to go and whom to trust
//! without asking; counted in the log, so that "max uses" holds on every controller.
//!
//! ```text
//! cvj_ + base64url( claims (protobuf TokenClaims) ‖ 64-byte Ed25519 signature over "cvlan-token-v1\0" ‖ claims )
//! ```

use crate::access::{Permission, permit, tenant_unknown};
use crate::command::Meta;
use crate::cvlan::cvlan_unknown;
use crate::id::{CvlanId, KeyId, Seq, TenantId, TokenId};
use crate::machine::Context;
use crate::name::{tags_check, text_check};
use crate::rejection::Rejection;
use crate::rules::{Fact, Key, Stamp, fresh, timestamp, timestamp_ms};
use crate::state::{State, TenantState};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use cvlan_proto::Message;
use cvlan_proto::v1::{self, TokenClaims, event::Body, token_event::Kind};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::sync::Arc;
use uuid::Uuid;

/// What every token starts with.
pub const PREFIX: &str = "cvj_";
/// The longest token text, bytes.
pub const TOKEN_MAX: usize = 8192;
/// Machines one token may let in.
pub const USES_MAX: u32 = 1_000_000;
/// The shortest and longest life of a token, milliseconds.
pub const LIFE_MS: std::ops::RangeInclusive<u64> = 60_000..=366 * 24 * 3_600_000;

const DOMAIN: &[u8] = b"cvlan-token-v1\0";
const SIGNATURE_BYTES: usize = 64;

/// A token as the log knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Chosen at the door.
    pub id: TokenId,
    /// Whose.
    pub tenant: TenantId,
    /// Where it leads.
    pub cvlan: CvlanId,
    /// The signing key.
    pub key: KeyId,
    /// Tags that its nodes get; sorted.
    pub tags: Arc<[String]>,
    /// Machines it lets in.
    pub max_uses: u32,
    /// Machines it has let in.
    pub uses: u32,
    /// Event time.
    pub expires_ms: u64,
    /// For people.
    pub note: Arc<str>,
    /// Event time.
    pub created_ms: u64,
    /// Last change.
    pub revision: Seq,
}

/// Wishes about tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TokenCommand {
    /// A new one.
    Create {
        /// Whose.
        tenant: TenantId,
        /// Where it leads.
        cvlan: CvlanId,
        /// New.
        id: TokenId,
        /// The signing key.
        key: KeyId,
        /// Tags its nodes get.
        tags: Vec<String>,
        /// Machines it lets in.
        max_uses: u32,
        /// From the event's time on: whoever asks and the log need not agree on what time it is.
        life_ms: u64,
        /// For people.
        note: String,
    },
    /// No longer good; nodes that came with it stay.
    Delete {
        /// Whose.
        tenant: TenantId,
        /// Which.
        id: TokenId,
    },
}

impl Token {
    /// As people and scripts see it at `now_ms`.
    pub fn to_proto(&self, now_ms: u64) -> v1::Token {
        let status = if self.expires_ms <= now_ms {
            "expired"
        } else if self.uses >= self.max_uses {
            "used_up"
        } else {
            "active"
        };
        v1::Token {
            id: self.id.to_string(),
            tenant_id: self.tenant.to_string(),
            cvlan_id: self.cvlan.to_string(),
            tags: self.tags.to_vec(),
            max_uses: self.max_uses,
            uses: self.uses,
            expires_at: Some(timestamp(self.expires_ms)),
            created_at: Some(timestamp(self.created_ms)),
            revision: self.revision.0,
            status: status.to_owned(),
            note: self.note.to_string(),
        }
    }
}

/// No such token in this tenant.
pub fn token_unknown() -> Rejection {
    Rejection::not_found("token_not_found", "there is no such token in this tenant; `cvlanctl token list` shows them")
}

/// A token's text, taken apart; nothing is proven until [`token_verify`].
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedToken {
    /// What it says.
    pub claims: TokenClaims,
    signed: Vec<u8>,
    signature: [u8; SIGNATURE_BYTES],
}

impl ParsedToken {
    /// Whose it says it is.
    pub fn tenant(&self) -> TenantId {
        TenantId(uuid_of(&self.claims.tenant_id))
    }

    /// Which it says it is.
    pub fn token(&self) -> TokenId {
        TokenId(uuid_of(&self.claims.token_id))
    }

    /// The key it says it is signed with.
    pub fn key(&self) -> KeyId {
        KeyId(uuid_of(&self.claims.key_id))
    }
}

fn uuid_of(bytes: &[u8]) -> Uuid {
    Uuid::from_slice(bytes).unwrap_or_default()
}

fn malformed() -> Rejection {
    Rejection::invalid("token_malformed", "this is not a registration token; copy all of it, from cvj_ to its end")
}

fn refused() -> Rejection {
    Rejection::unproven(
        "token_invalid",
        "this token was altered, revoked, or signed by a key that is not this tenant's; ask for a new one",
    )
}

/// Signs claims: the text that a machine is given.
pub fn token_sign(claims: &TokenClaims, seed: &[u8; 32]) -> String {
    let mut bytes = claims.encode_to_vec();
    let signature = SigningKey::from_bytes(seed).sign(&[DOMAIN, &bytes].concat());
    bytes.extend_from_slice(&signature.to_bytes());
    format!("{PREFIX}{}", BASE64URL.encode(bytes))
}

/// Takes a token's text apart.
pub fn token_parse(text: &str) -> Result<ParsedToken, Rejection> {
    let text = text.trim();
    if text.len() > TOKEN_MAX {
        return Err(malformed());
    }
    let bytes = text.strip_prefix(PREFIX).and_then(|t| BASE64URL.decode(t).ok()).ok_or_else(malformed)?;
    let at = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or_else(malformed)?;
    let (signed, signature) = bytes.split_at(at);
    let claims = TokenClaims::decode(signed).map_err(|_| malformed())?;
    let ids = [&claims.token_id, &claims.tenant_id, &claims.cvlan_id, &claims.key_id];
    if ids.iter().any(|id| id.len() != 16) || claims.ca_spki_sha256.len() != 32 {
        return Err(malformed());
    }
    Ok(ParsedToken { claims, signed: signed.to_vec(), signature: signature.try_into().map_err(|_| malformed())? })
}

/// Is it signed by a key of the tenant that it names? Expiry and uses are for `decide`, against the head.
pub fn token_verify(state: &State, token: &ParsedToken) -> Result<(), Rejection> {
    let home = state.tenants.get(&token.tenant()).ok_or_else(refused)?;
    let key = home.record.signing_keys.iter().find(|k| k.id == token.key()).ok_or_else(refused)?;
    let key = VerifyingKey::from_bytes(&key.public_key).map_err(|_| refused())?;
    let message = [DOMAIN, &token.signed].concat();
    key.verify_strict(&message, &Signature::from_bytes(&token.signature)).map_err(|_| refused())
}

/// May a machine come in with it now? Uses are counted by the caller, who knows whether it has come before.
pub(crate) fn usable<'a>(
    home: &'a TenantState,
    ctx: &Context,
    id: TokenId,
    key: KeyId,
) -> Result<&'a Token, Rejection> {
    let token = home.tokens.get(&id).ok_or_else(refused)?;
    if token.key != key || !home.record.signing_keys.iter().any(|k| k.id == key) {
        return Err(refused());
    }
    if token.expires_ms <= ctx.time_ms {
        return Err(Rejection::unproven("token_expired", "this token has expired; ask for a new one"));
    }
    Ok(token)
}

/// Proof that a machine holds its WireGuard key: HMAC-SHA256 under HKDF-SHA256(X25519 shared secret), over
/// `"cvlan-register-v1" ‖ tenant ‖ token ‖ WireGuard key ‖ SHA-256(CSR DER) ‖ nonce` (RFC 2104, RFC 5869, RFC 7748).
pub fn proof_make(
    shared: &[u8; 32],
    tenant: TenantId,
    token: TokenId,
    wg_public: &[u8; 32],
    csr_sha256: &[u8; 32],
    nonce: &[u8; 16],
) -> [u8; 32] {
    proof_mac(shared, tenant, token, wg_public, csr_sha256, nonce).finalize().into_bytes().into()
}

/// Checks [`proof_make`] in constant time.
pub fn proof_check(
    proof: &[u8],
    shared: &[u8; 32],
    tenant: TenantId,
    token: TokenId,
    wg_public: &[u8; 32],
    csr_sha256: &[u8; 32],
    nonce: &[u8; 16],
) -> bool {
    proof_mac(shared, tenant, token, wg_public, csr_sha256, nonce).verify_slice(proof).is_ok()
}

fn proof_mac(
    shared: &[u8; 32],
    tenant: TenantId,
    token: TokenId,
    wg_public: &[u8; 32],
    csr_sha256: &[u8; 32],
    nonce: &[u8; 16],
) -> Hmac<Sha256> {
    const LABEL: &[u8] = b"cvlan-register-v1";
    // One HMAC block; a 32-byte key is padded with zeros to it (RFC 2104 §2).
    let mut key = [0u8; 64];
    if let Some(half) = key.first_chunk_mut::<32>() {
        // 32 bytes are always a valid HKDF-SHA256 output length.
        let _ = hkdf::Hkdf::<Sha256>::new(None, shared).expand(LABEL, half);
    }
    let mut mac = <Hmac<Sha256> as Mac>::new(&key.into());
    for part in [LABEL, tenant.0.as_bytes(), token.0.as_bytes(), wg_public, csr_sha256, nonce] {
        mac.update(part);
    }
    mac
}

pub(crate) fn decide(
    state: &State,
    ctx: &Context,
    meta: &Meta,
    command: &TokenCommand,
) -> Result<Vec<Fact>, Rejection> {
    let (TokenCommand::Create { tenant, .. } | TokenCommand::Delete { tenant, .. }) = command;
    permit(state, &meta.actor, Permission::NetworkWrite, *tenant)?;
    let home = state.tenants.get(tenant).ok_or_else(tenant_unknown)?;
    let kind = match command {
        TokenCommand::Create { cvlan, id, key, tags, max_uses, life_ms, note, .. } => {
            home.cvlans.get(cvlan).ok_or_else(cvlan_unknown)?;
            tags_check(tags)?;
            text_check("note", note)?;
            if !(1..=USES_MAX).contains(max_uses) {
                return Err(Rejection::invalid("max_uses_invalid", format!("max_uses is from 1 to {USES_MAX}")));
            }
            if !LIFE_MS.contains(life_ms) {
                let (least, most) = (LIFE_MS.start() / 1000, LIFE_MS.end() / 1000);
                let detail = format!("a token lives from {least} s to {most} s (a minute to a year)");
                return Err(Rejection::invalid("expiry_invalid", detail));
            }
            if home.tokens.contains_key(id) || !home.record.signing_keys.iter().any(|k| k.id == *key) {
                return Err(Rejection::conflict(
                    "token_exists",
                    "there is a token with this id, or no such signing key",
                ));
            }
            let mut tags = tags.clone();
            tags.sort();
            tags.dedup();
            Kind::Created(Box::new(v1::TokenCreated {
                token_id: id.to_string(),
                cvlan_id: cvlan.to_string(),
                key_id: key.to_string(),
                max_uses: *max_uses,
                expires_at: Some(timestamp(ctx.time_ms + life_ms)),
                tags,
                note: note.clone(),
            }))
        }
        TokenCommand::Delete { id, .. } => {
            let token = home.tokens.get(id).ok_or_else(token_unknown)?;
            fresh(meta, token.revision)?;
            Kind::Deleted(v1::TokenDeleted { token_id: id.to_string() })
        }
    };
    Ok(vec![Fact { tenant: *tenant, body: Body::Token(v1::TokenEvent { kind: Some(kind) }) }])
}

pub(crate) fn apply(state: &mut State, stamp: Stamp, tenant: TenantId, event: &v1::TokenEvent) {
    let Some(home) = state.tenant_mut(tenant) else { return };
    match &event.kind {
        Some(Kind::Created(e)) => {
            let id = TokenId::of(&e.token_id);
            let token = Token {
                id,
                tenant,
                cvlan: CvlanId::of(&e.cvlan_id),
                key: KeyId::of(&e.key_id),
                tags: e.tags.as_slice().into(),
                max_uses: e.max_uses,
                uses: 0,
                expires_ms: e.expires_at.as_ref().map(timestamp_ms).unwrap_or_default(),
                note: e.note.as_str().into(),
                created_ms: stamp.time_ms,
                revision: stamp.seq,
            };
            home.tokens.insert(id, Arc::new(token));
        }
        Some(Kind::Deleted(e)) => {
            let id = TokenId::of(&e.token_id);
            home.tokens.remove(&id);
            let nonces: Vec<_> = home.nonces.range((id, [0; 16])..=(id, [0xff; 16])).map(|(k, _)| *k).collect();
            for nonce in nonces {
                home.nonces.remove(&nonce);
            }
        }
        None => {}
    }
}

pub(crate) fn touched(tenant: TenantId, event: &v1::TokenEvent) -> Vec<Key> {
    let id = match &event.kind {
        Some(Kind::Created(e)) => &e.token_id,
        Some(Kind::Deleted(e)) => &e.token_id,
        None => return Vec::new(),
    };
    vec![Key::Token(tenant, TokenId::of(id))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Actor, Wish};
    use crate::given::{cvlan, given, key, machine, seed, tenant, token, token_create};
    use crate::node::Register;

    fn claims() -> TokenClaims {
        let id = |u: Uuid| u.as_bytes().to_vec();
        TokenClaims {
            token_id: id(token(1).0),
            tenant_id: id(tenant(1).0),
            cvlan_id: id(cvlan(1).0),
            key_id: id(key(1).0),
            expires_at: 1_800_000_000,
            max_uses: 2,
            ca_spki_sha256: vec![7; 32],
            ..TokenClaims::default()
        }
    }

    #[test]
    fn only_the_tenants_own_key_signs() {
        let state = given().state;
        let verify = |text: &str| token_parse(text).and_then(|t| token_verify(&state, &t)).map_err(|r| r.code);
        let good = token_sign(&claims(), &seed(1));
        assert_eq!(verify(&good), Ok(()));
        assert_eq!(verify(&format!("  {good}\n")), Ok(()), "copied with white space");
        assert_eq!(verify(&token_sign(&claims(), &seed(2))), Err("token_invalid"), "wrong tenant's key");
        let foreign = TokenClaims { key_id: key(2).0.as_bytes().to_vec(), ..claims() };
        assert_eq!(verify(&token_sign(&foreign, &seed(2))), Err("token_invalid"), "another tenant's key by its name");
        for text in ["", "cvj_", "cvj_AAAA", "abc", &good[1..], &good[..good.len() - 4], &"x".repeat(TOKEN_MAX + 1)] {
            assert!(verify(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_altered_byte_is_noticed() {
        let state = given().state;
        let good = token_sign(&claims(), &seed(1));
        let bytes = BASE64URL.decode(&good[PREFIX.len()..]).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let text = format!("{PREFIX}{}", BASE64URL.encode(bad));
            assert!(token_parse(&text).and_then(|t| token_verify(&state, &t)).is_err(), "byte {at}");
        }
    }

    #[test]
    fn refusals() {
        let hour = 3_600_000;
        for (wish, code) in [
            (token_create(1, 5, 0, hour), "max_uses_invalid"),
            (token_create(1, 5, USES_MAX + 1, hour), "max_uses_invalid"),
            (token_create(1, 1, 1, hour), "token_exists"),
            (token_create(9, 5, 1, hour), "tenant_not_found"),
            (Wish::Token(TokenCommand::Delete { tenant: tenant(2), id: token(1) }), "token_not_found"),
        ] {
            assert_eq!(given().code(wish.clone()), code, "{wish:?}");
        }
    }

    #[test]
    fn a_token_lives_from_a_minute_to_a_year_of_the_logs_time() {
        let year = 366 * 24 * 3_600_000;
        for (life_ms, taken) in
            [(0, false), (59_999, false), (60_000, true), (year, true), (year + 1, false), (u64::MAX, false)]
        {
            let mut w = given();
            let made = w.when(Actor::System, token_create(1, 5, 1, life_ms)).map(|_| ()).map_err(|r| r.code);
            assert_eq!(made, if taken { Ok(()) } else { Err("expiry_invalid") }, "{life_ms} ms");
            let ends = w.state.tenants[&tenant(1)].tokens.get(&token(5)).map(|t| t.expires_ms);
            assert_eq!(ends, taken.then(|| w.now_ms + life_ms), "{life_ms} ms");
        }
        // Good up to the very end, and no longer.
        for (later_ms, comes) in [(59_999, Ok(1)), (60_000, Err("token_expired"))] {
            let mut w = given();
            w.ok(token_create(1, 5, 1, 60_000));
            w.now_ms += later_ms;
            let machine = Register { token: token(5), ..machine(1) };
            assert_eq!(w.register(machine), comes, "after {later_ms} ms");
        }
    }

    #[test]
    fn a_proof_is_for_one_registration_only() {
        let make = |s: u8, n: u128, w: u8, c: u8, x: u8| {
            proof_make(&[s; 32], tenant(n), token(n), &[w; 32], &[c; 32], &[x; 16])
        };
        let good = make(1, 1, 1, 1, 1);
        assert!(proof_check(&good, &[1; 32], tenant(1), token(1), &[1; 32], &[1; 32], &[1; 16]));
        for other in
            [make(2, 1, 1, 1, 1), make(1, 2, 1, 1, 1), make(1, 1, 2, 1, 1), make(1, 1, 1, 2, 1), make(1, 1, 1, 1, 2)]
        {
            assert_ne!(good, other);
        }
        assert!(!proof_check(&good[..31], &[1; 32], tenant(1), token(1), &[1; 32], &[1; 32], &[1; 16]));
    }
}

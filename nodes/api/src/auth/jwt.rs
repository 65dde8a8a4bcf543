//! Sessions' tokens: JWT (RFC 7519), HS256, signed with a key of the log that `kid` names.

use crate::bootstrap::purpose;
use crate::problem::Problem;
use cvlan_core::seal::ClusterKey;
use cvlan_core::system::SystemState;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError, RwLock};

/// `iss` of every token.
pub const ISSUER: &str = "cvlan";
/// Life of an access token, seconds.
pub const ACCESS_S: u64 = 15 * 60;
/// Life of a refresh token, seconds.
pub const REFRESH_S: u64 = 7 * 24 * 3600;
/// The longest token that is looked at, bytes.
pub const JWT_MAX: usize = 4096;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Proves who asks.
    Access,
    /// Is changed for a new pair.
    Refresh,
}

/// What a token says. Role, tenant and scopes are for whoever holds it; the controller asks its own state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// [`ISSUER`].
    pub iss: String,
    /// User id.
    pub sub: String,
    /// Its role when it was issued.
    pub role: String,
    /// Its tenant's id; empty = global.
    pub tenant: String,
    /// Empty = all that the role may do.
    pub scopes: Vec<String>,
    /// What it is for.
    pub token_type: TokenType,
    /// Seconds since 1970.
    pub iat: u64,
    /// Seconds since 1970.
    pub exp: u64,
    /// The session, random: logging out ends both of its tokens.
    pub sid: String,
    /// The user's `sessions_valid_from_ms` that it was issued under: another one now, and the session is over. An
    /// equality, so no clock has a say.
    pub pwv: u64,
}

struct Key {
    kid: String,
    encode: EncodingKey,
    decode: DecodingKey,
}

/// Signs and checks.
pub struct Jwt {
    /// The log's keys, opened once; read again when the log has another newest one.
    keys: RwLock<Arc<Vec<Key>>>,
    validation: Validation,
}

fn expired() -> Problem {
    Problem::unproven("session_invalid", "the session has ended or the token is not ours; log in again")
}

impl Jwt {
    /// Knows no key yet.
    pub fn new() -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.leeway = 0;
        Self { keys: RwLock::default(), validation }
    }

    fn keys(&self, cluster: &ClusterKey, system: &SystemState) -> Result<Arc<Vec<Key>>, Problem> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let newest = |kid: Option<&str>| kid == system.jwt_keys.last().map(|k| k.kid.as_str());
        if keys.len() == system.jwt_keys.len() && newest(keys.last().map(|k| k.kid.as_str())) {
            return Ok(keys);
        }
        let mut opened = Vec::with_capacity(system.jwt_keys.len());
        for key in &system.jwt_keys {
            let sealed = key.secret.clone().unwrap_or_default();
            let secret = cluster.open(purpose::JWT, &sealed).map_err(Problem::internal)?;
            let (encode, decode) = (EncodingKey::from_secret(&secret), DecodingKey::from_secret(&secret));
            opened.push(Key { kid: key.kid.clone(), encode, decode });
        }
        let opened = Arc::new(opened);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = opened.clone();
        Ok(opened)
    }

    /// Signs with the newest key. `cluster` opens the log's secrets.
    pub fn sign(&self, cluster: &ClusterKey, system: &SystemState, claims: &Claims) -> Result<String, Problem> {
        let keys = self.keys(cluster, system)?;
        let key = keys.last().ok_or_else(|| Problem::internal("the log has no JWT key"))?;
        let header = Header { kid: Some(key.kid.clone()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, claims, &key.encode).map_err(Problem::internal)
    }

    /// Checks signature, algorithm, issuer and expiry; with a single key, without reading the header twice.
    pub fn check(
        &self,
        cluster: &ClusterKey,
        system: &SystemState,
        token: &str,
        token_type: TokenType,
    ) -> Result<Claims, Problem> {
        if token.len() > JWT_MAX {
            return Err(expired());
        }
        let keys = self.keys(cluster, system)?;
        let key = match keys.as_slice() {
            [only] => only,
            several => {
                let kid = jsonwebtoken::decode_header(token).map_err(|_| expired())?.kid.ok_or_else(expired)?;
                several.iter().find(|k| k.kid == kid).ok_or_else(expired)?
            }
        };
        let data = jsonwebtoken::decode::<Claims>(token, &key.decode, &self.validation).map_err(|_| expired())?;
        if data.claims.token_type != token_type || data.header.kid.as_deref() != Some(key.kid.as_str()) {
            return Err(expired());
        }
        Ok(data.claims)
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Self::new()
    }
}

/// Clocks of other members may be ahead by this much, seconds.
const SKEW_S: u64 = 5 * 60;

/// What an access token says that another member is to check; refused where it cannot be one of this log's: of another issuer,
/// under a key that the log does not have, or good for longer than any is made for.
pub fn claims_likely(system: &SystemState, token: &str, now_s: u64) -> Result<Claims, Problem> {
    let claims = claims_read(token, TokenType::Access, now_s)?;
    let header = jsonwebtoken::decode_header(token).map_err(|_| expired())?;
    let known = system.jwt_keys.iter().any(|key| Some(&key.kid) == header.kid.as_ref());
    let likely = header.alg == Algorithm::HS256 && claims.iss == ISSUER && claims.exp <= now_s + ACCESS_S + SKEW_S;
    if known && likely { Ok(claims) } else { Err(expired()) }
}

/// What a token says that somebody else has checked, or will.
pub fn claims_read(token: &str, token_type: TokenType, now_s: u64) -> Result<Claims, Problem> {
    use base64::Engine as _;
    let mut parts = token.split('.').take(4);
    let (Some(_), Some(body), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(expired());
    };
    let body = if token.len() > JWT_MAX { "" } else { body };
    let body = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body).map_err(|_| expired())?;
    let claims: Claims = serde_json::from_slice(&body).map_err(|_| expired())?;
    if claims.token_type != token_type || claims.exp <= now_s { Err(expired()) } else { Ok(claims) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::bytes;
    use cvlan_proto::v1::JwtKey;

    fn system(cluster: &ClusterKey, kids: &[&str]) -> SystemState {
        let key = |kid: &&str| JwtKey {
            kid: (*kid).to_owned(),
            secret: Some(cluster.seal(purpose::JWT, bytes(), kid.as_bytes()).unwrap()),
        };
        SystemState { jwt_keys: kids.iter().map(key).collect(), ..SystemState::default() }
    }

    fn claims(exp: u64) -> Claims {
        Claims {
            iss: ISSUER.into(),
            sub: "u".into(),
            role: "member".into(),
            tenant: String::new(),
            scopes: vec![],
            token_type: TokenType::Access,
            iat: 0,
            exp,
            sid: "s".into(),
            pwv: 1,
        }
    }

    #[test]
    fn only_a_sound_token_passes() {
        let cluster = ClusterKey { id: "k".into(), key: [1; 32] };
        let state = system(&cluster, &["one"]);
        let jwt = Jwt::new();
        let later = jsonwebtoken::get_current_timestamp() + 60;
        let good = jwt.sign(&cluster, &state, &claims(later)).unwrap();
        assert_eq!(jwt.check(&cluster, &state, &good, TokenType::Access).unwrap().sub, "u");
        let rotated = system(&cluster, &["one", "two"]);
        assert!(jwt.check(&cluster, &rotated, &good, TokenType::Access).is_ok(), "the older key still counts");

        let read = |token: &str, kind, now| claims_read(token, kind, now).map(|c| c.sub).map_err(|p| p.code);
        assert_eq!(read(&good, TokenType::Access, later - 1), Ok("u".into()));
        for (bad, kind, now) in [
            (good.as_str(), TokenType::Access, later),
            (&good, TokenType::Refresh, 0),
            (&good[..good.len() / 2], TokenType::Access, 0),
            (&format!("{good}.x"), TokenType::Access, 0),
            (&"x".repeat(JWT_MAX + 1), TokenType::Access, 0),
            ("..", TokenType::Access, 0),
        ] {
            assert_eq!(read(bad, kind, now), Err("session_invalid"), "{bad}");
        }

        // What a member without the keys can see of it.
        let at = |system: &SystemState, claims: &Claims, now| {
            let token = jwt.sign(&cluster, system, claims).unwrap();
            claims_likely(&state, &token, now).map(|c| c.sub).map_err(|p| p.code)
        };
        let other = Claims { iss: "other".into(), ..claims(later) };
        let refresh = Claims { token_type: TokenType::Refresh, ..claims(later) };
        let (now, over) = (later - ACCESS_S, Err("session_invalid"));
        for (what, got, wanted) in [
            ("good", at(&state, &claims(later), now), Ok("u".to_owned())),
            ("of a clock that is ahead", at(&state, &claims(later), now - SKEW_S), Ok("u".to_owned())),
            ("too long", at(&state, &claims(later), now - SKEW_S - 1), over.clone()),
            ("ended", at(&state, &claims(later), later), over.clone()),
            ("another issuer", at(&state, &other, now), over.clone()),
            ("another kind", at(&state, &refresh, now), over.clone()),
            ("another key", at(&system(&cluster, &["three"]), &claims(later), now), over.clone()),
        ] {
            assert_eq!(got, wanted, "{what}");
        }
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJ1In0.";
        for (bad, what) in [
            (jwt.sign(&cluster, &state, &claims(1)).unwrap(), "expired"),
            (jwt.sign(&cluster, &state, &other).unwrap(), "issuer"),
            (jwt.sign(&cluster, &system(&cluster, &["three"]), &claims(later)).unwrap(), "another key"),
            (format!("{}x", &good[..good.len() - 1]), "altered"),
            (none.into(), "alg none"),
            ("x".repeat(JWT_MAX + 1), "long"),
            (String::new(), "empty"),
        ] {
            let fresh = Jwt::new();
            assert_eq!(
                fresh.check(&cluster, &state, &bad, TokenType::Access).err().map(|p| p.code),
                Some("session_invalid"),
                "{what}"
            );
        }
        assert!(jwt.check(&cluster, &state, &good, TokenType::Refresh).is_err(), "an access token does not refresh");
    }
}

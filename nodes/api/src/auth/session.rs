//! Sessions: from a password to tokens, from a token to a user of the state.

use super::jwt::{ACCESS_S, Claims, ISSUER, Jwt, REFRESH_S, TokenType, claims_read};
use super::lockout::{Attempt, Lockout};
use super::password::Passwords;
use crate::cluster::vault::Vault;
use crate::problem::Problem;
use crate::random::bytes;
use cvlan_core::State;
use cvlan_core::id::{TenantId, UserId};
use cvlan_core::user::{PASSWORD_MAX, User};
use cvlan_proto::v1;
use http::StatusCode;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Sessions that were logged out and whose tokens have not expired yet; beyond, the one that expires first is forgotten.
pub const REVOKED_MAX: usize = 65_536;

/// Checked tokens remembered; beyond, they are all forgotten and checked again.
pub const CHECKED_MAX: usize = 4096;

/// A session, proven by its access token.
#[derive(Clone, Debug)]
pub struct Session {
    /// Who, as in the state now.
    pub user: Arc<User>,
    /// Which.
    pub sid: String,
    /// When its access token ends, seconds since 1970.
    pub expires_s: u64,
}

/// Everything that proves people.
pub struct Auth {
    /// argon2id.
    pub passwords: Passwords,
    /// Opens the JWT keys, where it has what that takes.
    vault: Arc<Vault>,
    jwt: Jwt,
    lockout: Lockout,
    /// Session → when its refresh token ends, seconds. In memory: a restart forgets it, the tokens' ends do not move.
    revoked: Mutex<HashMap<String, u64>>,
    /// Access tokens whose signature was checked before, by their SHA-256; what their user may do is asked each time.
    checked: RwLock<HashMap<[u8; 32], Arc<Claims>>>,
}

fn login_failed() -> Problem {
    Problem::unproven(
        "login_failed",
        "no user with this name and password in this tenant; mind -t TENANT for a tenant's user",
    )
}

/// 401.
pub fn session_over() -> Problem {
    Problem::unproven("session_invalid", "the session has ended; log in again")
}

impl Auth {
    /// With the place of the key that opens the log's secrets.
    pub async fn new(vault: Arc<Vault>) -> Result<Self, Problem> {
        Ok(Self {
            passwords: Passwords::new().await?,
            vault,
            jwt: Jwt::new(),
            lockout: Lockout::default(),
            revoked: Mutex::default(),
            checked: RwLock::default(),
        })
    }

    /// From a password to tokens. `state` is asked again after the hash: the user may be gone by then.
    pub async fn login(
        &self,
        state: impl Fn() -> State,
        request: v1::LoginRequest,
        from: IpAddr,
        now_ms: u64,
    ) -> Result<v1::LoginResponse, Problem> {
        let v1::LoginRequest { name, password, tenant } = request;
        if name.len().max(tenant.len()) > cvlan_core::name::TEXT_MAX || password.len() > PASSWORD_MAX {
            return Err(login_failed());
        }
        let attempt = Attempt { tenant, name, from };
        self.locked(&attempt, now_ms)?;
        let found = user_of(&state(), &attempt);
        let known = self.passwords.verify(password, found.as_ref().map(|u| u.password_hash.clone())).await?;
        // Guesses that were sent at once waited for each other's turn: what failed meanwhile counts.
        self.locked(&attempt, now_ms)?;
        let Some(user) = found.filter(|_| known) else {
            self.lockout.failed(attempt, now_ms);
            return Err(login_failed());
        };
        let state = state();
        let user =
            state.users.get(&user.id).filter(|u| u.password_hash == user.password_hash).ok_or_else(login_failed)?;
        self.lockout.forget(&attempt);
        self.issue(&state, user, hex::encode(bytes::<16>()), now_ms)
    }

    fn locked(&self, attempt: &Attempt, now_ms: u64) -> Result<(), Problem> {
        let Some(seconds) = self.lockout.locked_for(attempt, now_ms) else { return Ok(()) };
        let detail = "too many failed logins for this name from here; wait, or ask an administrator";
        Err(Problem::later(StatusCode::TOO_MANY_REQUESTS, "login_locked", detail, seconds))
    }

    fn issue(&self, state: &State, user: &User, sid: String, now_ms: u64) -> Result<v1::LoginResponse, Problem> {
        let (now_s, secrets) = (now_ms / 1000, self.vault.need()?);
        let claims = |token_type, life_s| Claims {
            iss: ISSUER.to_owned(),
            sub: user.id.to_string(),
            role: user.role.as_str().to_owned(),
            tenant: if user.tenant.is_nil() { String::new() } else { user.tenant.to_string() },
            scopes: Vec::new(),
            token_type,
            iat: now_s,
            exp: now_s + life_s,
            sid: sid.clone(),
            pwv: user.sessions_valid_from_ms,
        };
        Ok(v1::LoginResponse {
            access_token: self.jwt.sign(&secrets.cluster, &state.system, &claims(TokenType::Access, ACCESS_S))?,
            refresh_token: self.jwt.sign(&secrets.cluster, &state.system, &claims(TokenType::Refresh, REFRESH_S))?,
            expires_in_seconds: ACCESS_S,
            user: Some(user.to_proto()),
        })
    }

    /// A new pair of tokens for a refresh token.
    pub fn refresh(&self, state: &State, token: &str, now_ms: u64) -> Result<v1::LoginResponse, Problem> {
        let session = self.session(state, token, TokenType::Refresh)?;
        self.issue(state, &session.user, session.sid, now_ms)
    }

    /// Ends a session, named by either of its tokens.
    pub fn logout(&self, state: &State, token: &str, now_ms: u64) -> Result<(), Problem> {
        let session = self
            .session(state, token, TokenType::Access)
            .or_else(|_| self.session(state, token, TokenType::Refresh))?;
        self.revoke(session.sid, now_ms);
        Ok(())
    }

    fn revoke(&self, sid: String, now_ms: u64) {
        let now_s = now_ms / 1000;
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        if revoked.len() >= REVOKED_MAX {
            revoked.retain(|_, ends| *ends > now_s);
        }
        if revoked.len() >= REVOKED_MAX
            && let Some(first) = revoked.iter().min_by_key(|(_, ends)| **ends).map(|(sid, _)| sid.clone())
        {
            revoked.remove(&first);
        }
        revoked.insert(sid, now_s + REFRESH_S);
    }

    /// A voter has ended the session of this token of either kind: it is over here too.
    pub fn logged_out(&self, token: &str, now_ms: u64) {
        let read = |kind| claims_read(token, kind, now_ms / 1000);
        if let Ok(claims) = read(TokenType::Access).or_else(|_| read(TokenType::Refresh)) {
            self.revoke(claims.sid, now_ms);
        }
    }

    /// Was the session of this refresh token ended through this member?
    pub fn is_logged_out(&self, token: &str, now_ms: u64) -> bool {
        let claims = claims_read(token, TokenType::Refresh, now_ms / 1000);
        claims.is_ok_and(|claims| self.is_revoked(&claims.sid))
    }

    fn is_revoked(&self, sid: &str) -> bool {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).contains_key(sid)
    }

    /// What an access token says that this cluster made, and that has not ended; its user may be gone, or not be here
    /// yet. `None` where it takes a voter to know.
    pub fn claims(&self, state: &State, token: &str, now_ms: u64) -> Result<Option<Arc<Claims>>, Problem> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = self.checked.read().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if let Some(claims) = known.filter(|c| c.exp > now_ms / 1000) {
            return Ok(Some(claims));
        }
        let Some(secrets) = self.vault.get() else { return Ok(None) };
        let claims = Arc::new(self.jwt.check(&secrets.cluster, &state.system, token, TokenType::Access)?);
        self.remember(digest, claims.clone());
        Ok(Some(claims))
    }

    /// A voter says that this is an access token of this cluster.
    pub fn vouched(&self, token: &str, claims: Claims) -> Arc<Claims> {
        let claims = Arc::new(claims);
        self.remember(Sha256::digest(token).into(), claims.clone());
        claims
    }

    fn remember(&self, digest: [u8; 32], claims: Arc<Claims>) {
        let mut map = self.checked.write().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= CHECKED_MAX {
            map.clear();
        }
        map.insert(digest, claims);
    }

    fn session(&self, state: &State, token: &str, token_type: TokenType) -> Result<Session, Problem> {
        let secrets = self.vault.need()?;
        self.session_of(state, &self.jwt.check(&secrets.cluster, &state.system, token, token_type)?)
    }

    /// The session of such a token.
    pub fn session_of(&self, state: &State, claims: &Claims) -> Result<Session, Problem> {
        let user = state.users.get(&UserId::of(&claims.sub)).ok_or_else(session_over)?;
        if user.sessions_valid_from_ms != claims.pwv || self.is_revoked(&claims.sid) {
            return Err(session_over());
        }
        Ok(Session { user: user.clone(), sid: claims.sid.clone(), expires_s: claims.exp })
    }

    /// Is it still good: neither logged out, nor its user gone or with another password?
    pub fn still_good(&self, state: &State, session: &Session) -> bool {
        let user = state.users.get(&session.user.id);
        user.is_some_and(|u| u.sessions_valid_from_ms == session.user.sessions_valid_from_ms)
            && !self.is_revoked(&session.sid)
    }
}

fn user_of(state: &State, attempt: &Attempt) -> Option<Arc<User>> {
    let tenant = match attempt.tenant.as_str() {
        "" => TenantId::default(),
        slug => state.tenant_find(slug)?.record.id,
    };
    state.user_find(tenant, &attempt.name).cloned()
}

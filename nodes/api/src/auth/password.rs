//! Passwords: argon2id (RFC 9106), m = 19 MiB, t = 2, p = 1 (OWASP), on blocking threads, a few at a time.

use crate::problem::Problem;
use crate::random::bytes;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use http::StatusCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use tokio::sync::Semaphore;

const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Hashes computed at once: each takes 19 MiB and one core for tens of milliseconds.
const AT_ONCE: usize = 2;
/// Callers that may wait for their turn.
pub const WAITING_MAX: usize = 64;

/// No 0/O, 1/I: to be read from a screen. 32 letters, 5 bits each.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// A password of 125 random bits, in groups.
pub fn generate() -> String {
    let random = bytes::<25>();
    let mut text = String::with_capacity(29);
    for (i, byte) in random.iter().enumerate() {
        if i > 0 && i % 5 == 0 {
            text.push('-');
        }
        text.push(char::from(ALPHABET.get(usize::from(byte & 31)).copied().unwrap_or(b'A')));
    }
    text
}

fn argon2() -> Result<Argon2<'static>, Problem> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(Problem::internal)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes on this very thread: PHC string.
pub fn hash_now(password: &str) -> Result<String, Problem> {
    let salt = SaltString::encode_b64(&bytes::<16>()).map_err(Problem::internal)?;
    let hash = argon2()?.hash_password(password.as_bytes(), &salt).map_err(Problem::internal)?;
    Ok(hash.to_string())
}

fn verify_now(password: &str, phc: &str) -> bool {
    let Ok(hash) = PasswordHash::new(phc) else { return false };
    argon2().is_ok_and(|a| a.verify_password(password.as_bytes(), &hash).is_ok())
}

/// Hashes and verifies, a few at a time.
pub struct Passwords {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    hashed: AtomicU64,
    /// A hash of a password that nobody has: an unknown user costs as much as a known one.
    nobody: Arc<str>,
}

impl Passwords {
    /// Makes the hash of nobody's password: takes as long as one verification.
    pub async fn new() -> Result<Self, Problem> {
        let made = tokio::task::spawn_blocking(|| hash_now(&generate())).await;
        let nobody: Arc<str> = made.map_err(Problem::internal)??.into();
        Ok(Self {
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: AtomicUsize::new(0),
            hashed: AtomicU64::new(0),
            nobody,
        })
    }

    async fn turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        if self.waiting.fetch_add(1, Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Relaxed);
            let detail = "too many logins are waiting; try again";
            return Err(Problem::later(StatusCode::SERVICE_UNAVAILABLE, "busy", detail, 1));
        }
        let permit = self.turns.clone().acquire_owned().await;
        self.waiting.fetch_sub(1, Relaxed);
        let permit = permit.map_err(Problem::internal)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        let done = done.await.map_err(Problem::internal)?;
        self.hashed.fetch_add(1, Relaxed);
        Ok(done)
    }

    /// Hashes computed so far.
    pub fn hashed(&self) -> u64 {
        self.hashed.load(Relaxed)
    }

    /// A new hash.
    pub async fn hash(&self, password: String) -> Result<String, Problem> {
        self.turn(move || hash_now(&password)).await?
    }

    /// Is it the password of this hash? `None` = there is no such user: false, after the same work.
    pub async fn verify(&self, password: String, phc: Option<Arc<str>>) -> Result<bool, Problem> {
        let known = phc.is_some();
        let phc = phc.unwrap_or_else(|| self.nobody.clone());
        Ok(self.turn(move || verify_now(&password, &phc)).await? && known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_password_is_long_and_never_the_same() {
        let (a, b) = (generate(), generate());
        assert_ne!(a, b);
        assert_eq!(a.len(), 29);
        assert!(cvlan_core::user::password_check(&a).is_ok());
    }

    #[tokio::test]
    async fn verifies_its_own_and_nothing_else() {
        let passwords = Passwords::new().await.unwrap();
        let phc: Arc<str> = passwords.hash("correct horse".into()).await.unwrap().into();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(passwords.verify("correct horse".into(), Some(phc.clone())).await.unwrap());
        assert!(!passwords.verify("correct horsf".into(), Some(phc)).await.unwrap());
        assert!(!passwords.verify("correct horse".into(), None).await.unwrap());
        assert!(!passwords.verify("x".into(), Some("no phc".into())).await.unwrap());
    }
}

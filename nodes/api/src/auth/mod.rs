//! Who asks: passwords, sessions, lockout.
//!
//! ```text
//!  login ─► rate limit (door) ─► lockout ─► argon2id off the async threads ─► access + refresh token
//!  request ─► access token ─► signed by the cluster: seen before, checked here, or by a voter where the keys are not here
//!          ─► user of the state, sessions still valid ─► Caller
//! ```
//! Invariants: an unknown name and a wrong password are the same error after the same work; nothing here trusts a
//! token's role or tenant, both are read from the state; no request but a login or a new password runs argon2id.

pub mod jwt;
pub mod lockout;
pub mod password;
pub mod session;

pub use session::{Auth, Session, session_over};

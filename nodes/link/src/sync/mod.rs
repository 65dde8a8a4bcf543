//! The client half of an agent's sync.
//!
//! ```text
//!  bytes ─► Decoder ─► SyncFrame ─► Session::handle ─► Effect ─► Sink (one transaction) ─► … running ─► Ack
//! ```
//! [`session`] knows the rules and does no I/O; [`follow`] moves bytes, keeps time and finds another controller.

pub mod codec;
pub mod follow;
mod poll;
pub mod session;

pub use follow::{End, Follow, Live, Sink, follow};
pub use session::{Effect, Session, SessionError};

//! The way to other members, as a seam: a [`Transport`] yields a connection as a pair of channels of frames. Codec,
//! pipelining and time limits lie above it, in [`crate::peer`].
//!
//! A log of one member needs none: [`NoTransport`].

use crate::types::{Rx, Tx};
use bytes::Bytes;
use openraft::AsyncRuntime;
use std::io;

/// One connection: frames in order; a closed channel is a lost connection.
pub struct Pipe<RT: AsyncRuntime> {
    /// Frames to the other side.
    pub tx: Tx<RT, Bytes>,
    /// Frames from it.
    pub rx: Rx<RT, Bytes>,
}

/// Connects to members.
pub trait Transport<RT: AsyncRuntime>: Clone + Send + Sync + 'static {
    /// Connects to member `to` at `address`.
    fn connect(&self, to: u64, address: &str) -> impl Future<Output = io::Result<Pipe<RT>>> + Send;
}

/// Reaches nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTransport;

impl<RT: AsyncRuntime> Transport<RT> for NoTransport {
    async fn connect(&self, to: u64, _address: &str) -> io::Result<Pipe<RT>> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("member {to} cannot be reached: this log has one member"),
        ))
    }
}

//! Members among each other: a protocol of framed requests and answers over a [`crate::Pipe`].
//!
//! ```text
//!  Raft (network) ─┐                                             ┌─► Raft: append, vote, snapshot, transfer
//!  forward ────────┼─► link: one connection a peer ─► serve ─────┼─► desk: commands
//!  confirm, change ┘   hello · requests with ids · answers       └─► read index, membership
//! ```
//! Each direction has a connection of its own: who asks connects. The first frame each way is a hello; another epoch is
//! refused, so that members that a cluster was made without cannot come back. Invariants: a time limit on every call;
//! what one peer may have open here, in number and in bytes, is bounded; a frame that is not what may come closes the
//! connection, with a line in the log, and nothing else.
//!
//! Where to start reading: [`codec`] (the words), `link` (asking), `serve` (answering).

pub(crate) mod appends;
pub mod codec;
pub(crate) mod link;
pub(crate) mod network;
pub(crate) mod parcel;
pub(crate) mod parts;
pub(crate) mod ping;
pub(crate) mod serve;
#[cfg(test)]
mod tests;

use crate::clock::Clock;
use crate::sync::lock;
use crate::transport::{Pipe, Transport};
use cvlan_core::id::Epoch;
use link::Link;
use openraft::AsyncRuntime;
use openraft::base::BoxFuture;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What kind of log this is, in a hello.
pub(crate) const CLUSTER: &str = "cvlan";

/// A connection must be made, and both hellos said, within this time.
pub(crate) const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// After a connection could not be made, the next attempt waits; twice as long each time.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(50);
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Entries sent must be appended within this time; openraft sets no limit on a stream of them.
pub(crate) const APPEND_LIMIT: Duration = Duration::from_secs(1);

/// Requests to append that are on their way to one member, and their bytes: few, as heartbeats come behind them.
pub(crate) const APPEND_WINDOW: usize = 16;
pub(crate) const APPEND_BYTES: usize = 512 << 10;

/// Parts of a longer request that are on their way: fewer where their answers come so much later than the quickest did, as
/// heartbeats then come late too (as LEDBAT has it, RFC 6817); half of the time between two of them.
pub(crate) const PARTS_MIN: usize = 2;
pub(crate) const PARTS_MAX: usize = 16;
pub(crate) const PART_LATE_US: u64 = 75_000;

/// Bytes of a piece of a snapshot, and pieces on their way: few, so that heartbeats find room between them.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
pub(crate) const CHUNK_WINDOW: usize = 4;

/// A piece of a snapshot must be taken within this time, and a whole one installed within that.
pub(crate) const CHUNK_LIMIT: Duration = Duration::from_secs(5);
pub(crate) const INSTALL_LIMIT: Duration = Duration::from_secs(60);

/// Bytes of a snapshot, packed and unpacked, that a member takes.
pub(crate) const PARCEL_MAX: u64 = 1 << 30;
pub(crate) const SAVED_MAX: u64 = 8 << 30;

/// Requests that one peer may have open here, and their bytes; more are not read.
pub(crate) const OPEN_REQUESTS: usize = 1024;
pub(crate) const OPEN_BYTES: usize = 64 << 20;

/// A ping goes to every member this often, and is waited for as long.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(1);

/// How much longer than usual an answer may take for what is on its way before it: the slowest link that is enough brings
/// 1 MB a second.
pub(crate) fn slow(bytes: usize) -> Duration {
    Duration::from_micros(bytes as u64)
}

/// A connection that is asked and says nothing for this long, and as much longer as it is [`slow`], is given up by who asks.
pub(crate) const SILENT_LIMIT: Duration = Duration::from_secs(1);

/// A connection over which nothing comes for this long is closed by who was connected to: pings come each second.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// A member that has not answered for longer counts as lost.
pub(crate) const LOST_MS: u64 = 2_500;

/// [`Transport`] without its type.
pub(crate) trait Dial<RT: AsyncRuntime>: Send + Sync {
    fn dial<'a>(&'a self, to: u64, address: &'a str) -> BoxFuture<'a, io::Result<Pipe<RT>>>;
}

impl<RT: AsyncRuntime, T: Transport<RT>> Dial<RT> for T {
    fn dial<'a>(&'a self, to: u64, address: &'a str) -> BoxFuture<'a, io::Result<Pipe<RT>>> {
        Box::pin(self.connect(to, address))
    }
}

/// What a version knows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// Levels of features up to this one.
    pub(crate) level: u32,
    /// Additions to the protocol up to this one: [`codec::ADDED`].
    pub(crate) added: u8,
}

/// Everybody else, by id.
pub(crate) struct Peers<RT: AsyncRuntime> {
    pub(crate) me: u64,
    dial: Arc<dyn Dial<RT>>,
    pub(crate) clock: Arc<dyn Clock>,
    epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
    known: Known,
    links: Mutex<BTreeMap<u64, Arc<Link<RT>>>>,
}

impl<RT: AsyncRuntime> Peers<RT> {
    pub(crate) fn new(
        me: u64,
        dial: impl Dial<RT> + 'static,
        clock: Arc<dyn Clock>,
        epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
        known: Known,
    ) -> Arc<Self> {
        Arc::new(Self { me, dial: Arc::new(dial), clock, epoch, known, links: Mutex::default() })
    }

    /// The way to a member.
    pub(crate) fn link(&self, to: u64) -> Arc<Link<RT>> {
        lock(&self.links).entry(to).or_insert_with(|| self.make(to)).clone()
    }

    fn make(&self, to: u64) -> Arc<Link<RT>> {
        Link::new((self.me, to, self.known), self.dial.clone(), self.clock.clone(), self.epoch.clone())
    }

    /// The way to a member that was asked or heard before.
    pub(crate) fn known(&self, id: u64) -> Option<Arc<Link<RT>>> {
        lock(&self.links).get(&id).cloned()
    }

    /// Members as they are now: others are forgotten.
    pub(crate) fn members<'a>(&self, members: impl Iterator<Item = (u64, &'a str)>) {
        let mut links = lock(&self.links);
        let mut gone = std::mem::take(&mut *links);
        for (id, address) in members.filter(|(id, _)| *id != self.me) {
            let link = gone.remove(&id).unwrap_or_else(|| self.make(id));
            link.moved(address);
            links.insert(id, link);
        }
        drop(links);
        for link in gone.into_values() {
            link.give_up();
        }
    }

    /// Whether a member answered lately: pings go each second. That it asks proves nothing, see [`Heard::answered_ms`].
    ///
    /// [`Heard::answered_ms`]: link::Heard::answered_ms
    pub(crate) fn alive(&self, id: u64) -> bool {
        let answered = || self.known(id).and_then(|link| link.heard.answered_ms(&*self.clock));
        id == self.me || answered().is_some_and(|ms| ms <= LOST_MS)
    }

    /// Every connection is made anew, before it is next used.
    pub(crate) fn renew(&self) {
        for link in lock(&self.links).values() {
            link.renew();
        }
    }

    /// Closes every connection.
    pub(crate) fn close(&self) {
        let links = std::mem::take(&mut *lock(&self.links));
        for link in links.into_values() {
            link.give_up();
        }
    }
}

//! The doors between controllers ("members"): who they are, how one comes in, what they speak.
//!
//! ```text
//!  8445 ─► TLS 1.3 ─┬─ cvlan-member/1 ─► certificate: a member's, not removed, its known key ─► Raft (Member::accept)
//!                   ├─ cvlan-join/1 ───► join: token's secret ─► MemberCommand::Join ─► certificate
//!                   ├─ cvlan-rebuild/1 ► certificate ─► Raft: removed ─► MemberCommand::Rebuild ─► certificate for its new id
//!                   └─ cvlan-voter/1 ──► certificate, standing ─► what takes the cluster's keys, or their handing over
//!  log's members ─► keeper (on the leader) ─► Raft's members: learners first, voters once caught up, 1, 3 or 5
//! ```
//! Invariants: a node's certificate opens nothing here, a member's nothing at the node door; whom the log has removed
//! and Raft too is turned away; nobody without a certificate reaches Raft, nobody without the CA's key leads. Start reading at [`serve`].

pub mod ask;
pub mod certificates;
pub mod force;
pub mod identity;
pub mod join;
pub mod keeper;
pub mod notary;
pub mod pin;
pub mod rebuild;
pub mod restore;
pub mod tls;
pub mod vault;
pub mod voter;

use crate::Log;
use crate::ca::MemberPeer;
use crate::random::uuid;
use cvlan_core::id::{CommandId, MemberId};
use cvlan_core::member::MemberCommand;
use cvlan_core::{Command, Meta, State, Wish};
use cvlan_raft::Head;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tls::{Accepted, TlsTransport, dismiss, welcome};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use voter::Answers;

/// Connections of members that are open at once.
const CONNECTIONS: usize = 512;
/// Of one of them: it has one, and another one while it is renewed.
const CONNECTIONS_EACH: usize = 16;
/// Questions of members that are answered at once.
const QUESTIONS: usize = 256;
/// Handshakes at once; further ones wait in the listener's queue.
const ENTERING: usize = 512;
/// Of one address: whoever says nothing takes none of the others' places.
const ENTERING_EACH: usize = 128;
/// Joins at once, and of one address.
const JOINING: usize = 64;
const JOINING_EACH: usize = 8;
/// Rebuilds at once.
const REBUILDING: usize = 8;
/// After a failed accept (no file descriptor left, say) the loop rests.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What the cluster's door needs.
pub struct Door {
    /// Bound already.
    pub listener: TcpListener,
    /// With this member's certificate.
    pub transport: TlsTransport,
    /// Raft, keys, and the doors that forwarded requests are carried out by.
    pub answers: Answers,
}

/// Serves until it is dropped; open connections end with it.
pub async fn serve(door: Door) {
    let Door { listener, transport, answers } = door;
    let entering = Arc::new(Semaphore::new(ENTERING));
    let (connections, questions) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(QUESTIONS)));
    let (sources, joiners) = (Each::default(), Each::default());
    let (joining, rebuilding) = (Semaphore::new(JOINING), Semaphore::new(REBUILDING));
    let shared = Arc::new(Shared {
        transport,
        answers,
        connections,
        each: Each::default(),
        questions,
        sources,
        joiners,
        joining,
        rebuilding,
    });
    let mut open = tokio::task::JoinSet::new();
    loop {
        let accepted = async {
            let permit = entering.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        tokio::select! {
            Some((accepted, permit)) = accepted => match accepted {
                Ok((tcp, address)) => {
                    open.spawn(connection(shared.clone(), tcp, address, permit));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

struct Shared {
    transport: TlsTransport,
    answers: Answers,
    connections: Arc<Semaphore>,
    each: Each<u64>,
    questions: Arc<Semaphore>,
    sources: Each<IpAddr>,
    joiners: Each<IpAddr>,
    joining: Semaphore,
    rebuilding: Semaphore,
}

/// Open connections by member, or by address: none takes the others' places.
struct Each<K: Ord + Copy>(Mutex<BTreeMap<K, usize>>);

impl<K: Ord + Copy> Default for Each<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Copy> Each<K> {
    /// One more of this one, until it is dropped; `None` where it has `most`.
    fn enter(&self, who: K, most: usize) -> Option<Entered<'_, K>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(who).or_default();
        (*count < most).then(|| {
            *count += 1;
            Entered { each: self, who }
        })
    }
}

struct Entered<'e, K: Ord + Copy> {
    each: &'e Each<K>,
    who: K,
}

impl<K: Ord + Copy> Drop for Entered<'_, K> {
    fn drop(&mut self) {
        let mut open = self.each.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.who);
            }
        }
    }
}

async fn connection(shared: Arc<Shared>, tcp: TcpStream, address: SocketAddr, entering: OwnedSemaphorePermit) {
    if let Err(error) = enter(&shared, tcp, address, entering).await {
        tracing::info!(%address, %error, "the cluster's door refused a connection");
    }
}

async fn enter(shared: &Shared, tcp: TcpStream, address: SocketAddr, entering: OwnedSemaphorePermit) -> io::Result<()> {
    let denied = |what: &str| io::Error::new(io::ErrorKind::PermissionDenied, what);
    let Answers { log, vault, .. } = &shared.answers;
    let source = address.ip().to_canonical();
    let place = shared.sources.enter(source, ENTERING_EACH);
    let place = place.ok_or_else(|| io::Error::other("too many connections of this address begin"))?;
    match shared.transport.accept(tcp).await? {
        Accepted::Joiner(stream) => {
            let full = || io::Error::other("too many join");
            let _own = shared.joiners.enter(source, JOINING_EACH).ok_or_else(full)?;
            let _turn = shared.joining.try_acquire().map_err(|_| full())?;
            drop((entering, place));
            join::serve(log, vault, stream, source).await
        }
        Accepted::Rebuilder(peer, stream) => {
            let turn = shared.rebuilding.try_acquire();
            let _turn = turn.map_err(|_| io::Error::other("too many are rebuilt"))?;
            drop((entering, place));
            rebuild::serve(log, vault, peer, stream, source).await
        }
        Accepted::Asker(peer, stream) => {
            if standing(&log.head(), &peer) != Standing::Member {
                return Err(denied("it is no member"));
            }
            let turn = shared.questions.clone().try_acquire_owned();
            let _turn = turn.map_err(|_| io::Error::other("too many questions of members"))?;
            drop((entering, place));
            voter::serve(&shared.answers, peer, stream).await
        }
        Accepted::Member(peer, address, stream) => {
            match standing(&log.head(), &peer) {
                Standing::Member => {}
                Standing::Removed => {
                    dismiss(stream).await?;
                    return Err(denied("it was removed from the cluster"));
                }
                Standing::OtherKey => return Err(denied("the log knows another key of this member")),
            }
            let open = shared.connections.clone().try_acquire_owned();
            let _open = open.map_err(|_| io::Error::other("too many connections of members"))?;
            let own = shared.each.enter(peer.member, CONNECTIONS_EACH);
            let _own = own.ok_or_else(|| io::Error::other("too many connections of this member"))?;
            let pipe = welcome(stream).await?;
            drop((entering, place));
            // While the one that leads looks for it elsewhere, it cannot tell the log itself.
            let (told, served) = (moved(log, &peer, address), log.accept(Some(peer.member), peer.votes, pipe));
            tokio::join!(told, served);
            Ok(())
        }
    }
}

/// Tells the log, for the member itself, that it is reached elsewhere now; a voter's word counts for another member.
async fn moved(log: &Log, peer: &MemberPeer, address: String) {
    if !log.votes() {
        return;
    }
    let id = MemberId(peer.member);
    let head = log.head();
    let Some(joined) = head.machine.members.get(&id).and_then(|m| m.joined.clone()) else { return };
    if address.is_empty() || *joined.address == *address {
        return;
    }
    let (key_sha256, version, note_key) = (peer.key_sha256, joined.version.to_string(), joined.note_key);
    let announce = MemberCommand::Announce { id, key_sha256, address, version, note_key };
    let meta = Meta { id: CommandId(uuid()), ..Meta::default() };
    match log.write(Command { meta, wish: Wish::Member(announce) }).await {
        Ok(_) => tracing::info!(member = peer.member, "it is reached elsewhere now"),
        Err(error) => tracing::warn!(member = peer.member, %error, "its new address was not written"),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Member,
    Removed,
    OtherKey,
}

/// What this member's log says of one that has proven its certificate. Its id is the number of the event that admitted
/// it: one that this log has not reached yet cannot be judged here, and its certificate is enough.
fn standing(head: &Head<State>, peer: &MemberPeer) -> Standing {
    let known = head.machine.members.get(&MemberId(peer.member));
    match known.and_then(|m| m.joined.as_ref()) {
        Some(joined) if joined.key_sha256 != peer.key_sha256 => Standing::OtherKey,
        Some(_) => Standing::Member,
        None if known.is_some() || head.members.addresses.contains_key(&peer.member) => Standing::Member,
        None if peer.member <= head.seq.0 => Standing::Removed,
        None => Standing::Member,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_member_does_not_take_the_others_places() {
        let each = Each::default();
        let enter = |member| each.enter(member, CONNECTIONS_EACH);
        let mut held: Vec<_> = (0..CONNECTIONS_EACH).map(|_| enter(7).unwrap()).collect();
        assert!(enter(7).is_none() && enter(8).is_some());
        held.pop();
        assert!(enter(7).is_some());
        drop(held);
        assert!(each.0.lock().unwrap().is_empty());
    }
}

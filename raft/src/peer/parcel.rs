//! A snapshot on its way: saved, compressed, sent in pieces of which few are on their way at once, checked as a whole.
//!
//! ```text
//! sender:   head ─► saved ─► zstd = parcel (kept while somebody sends it) ─► Snapshot ─► Chunk … ─► Install
//! receiver:           how much is there? ◄───────────────────────────────────┘  │ in order     │ SHA-256, unpacked
//!                     a parcel is known by its digest, over any connection      └─► memory ────┴─► openraft
//! ```
//! The receiver holds one parcel at a time, of [`PARCEL_MAX`] bytes at most; what came before a loss need not come again.

use crate::disk::{Disk, Lane, on_disk};
use crate::head::Head;
use crate::peer::codec::{Answer, FrameError, Parcel, Request};
use crate::peer::link::{CallError, Link, Pending};
use crate::peer::{CHUNK_BYTES, CHUNK_LIMIT, CHUNK_WINDOW, INSTALL_LIMIT, PARCEL_MAX, SAVED_MAX};
use crate::store::snapshot::LEVEL;
use crate::sync::lock;
use crate::types::{Membership, Snap, SnapshotMeta, Vote};
use bytes::Bytes;
use cvlan_core::machine::Machine;
use openraft::{AsyncRuntime, StoredMembership};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, Weak};

/// What openraft hands over as a snapshot.
pub(crate) type Data<M> = Arc<Head<<M as Machine>::State>>;

/// The parcel that somebody sends at the moment.
#[derive(Default)]
pub(crate) struct Packed(Mutex<Weak<(Parcel, Vec<u8>)>>);

/// Why a snapshot was not taken.
pub(crate) enum SendError {
    Call(CallError),
    Other(String),
}

impl From<CallError> for SendError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

fn pack<M: Machine>(meta: &SnapshotMeta, head: &Head<M::State>) -> io::Result<(Parcel, Vec<u8>)> {
    let saved = head.save::<M>();
    let packed = zstd::bulk::compress(&saved, LEVEL)?;
    let membership = &meta.last_membership;
    let parcel = Parcel {
        last: meta.last_log_id.as_ref().map(Into::into),
        members_at: membership.log_id().as_ref().map(Into::into),
        members: membership.membership().into(),
        saved: saved.len() as u64,
        length: packed.len() as u64,
        digest: Sha256::digest(&packed).into(),
    };
    Ok((parcel, packed))
}

/// Sends a snapshot; returns the receiver's vote.
pub(crate) async fn send<M: Machine, RT: AsyncRuntime>(
    link: &Arc<Link<RT>>,
    disk: &Arc<dyn Disk>,
    packed: &Packed,
    vote: Vote,
    snapshot: Snap<Data<M>>,
) -> Result<Vote, SendError> {
    let last = snapshot.meta.last_log_id.as_ref().map(Into::into);
    let there = lock(&packed.0).upgrade().filter(|there| there.0.last == last);
    let parcel = match there {
        Some(there) => there,
        None => {
            let Snap { meta, snapshot: head } = snapshot;
            let made = on_disk::<RT, _>(disk, Lane::Work, move |_| pack::<M>(&meta, &head)).await;
            let made = made.and_then(|made| made).map_err(|error| SendError::Other(error.to_string()))?;
            let made = Arc::new(made);
            *lock(&packed.0) = Arc::downgrade(&made);
            made
        }
    };
    let (about, bytes) = &*parcel;
    let digest = about.digest;
    let (answer, _) = link.call(Request::Snapshot(Box::new(about.clone())), &[], CHUNK_LIMIT).await?;
    let mut offset = have(answer, about.length)?;
    let conn = link.connected(CHUNK_LIMIT).await?;
    let mut open: VecDeque<Pending<RT>> = VecDeque::new();
    loop {
        let piece = bytes.get(offset..(offset + CHUNK_BYTES).min(bytes.len())).unwrap_or_default();
        if piece.is_empty() || open.len() >= CHUNK_WINDOW {
            let Some(oldest) = open.pop_front() else { break };
            let (answer, _) = oldest.answer(CHUNK_LIMIT).await?;
            have(answer, about.length)?;
            continue;
        }
        let chunk = Request::Chunk { digest, offset: offset as u64 };
        open.push_back(conn.send_within(chunk, piece, CHUNK_LIMIT).await?);
        offset += piece.len();
    }
    let install = Request::Install { vote: (&vote).into(), digest };
    match link.call(install, &[], INSTALL_LIMIT).await? {
        (Answer::Installed { vote }, _) => Ok(vote.into()),
        (other, _) => Err(SendError::Other(format!("it answers {other:?}"))),
    }
}

fn have(answer: Answer, length: u64) -> Result<usize, SendError> {
    match answer {
        Answer::Have { offset } if offset <= length => Ok(offset as usize),
        other => Err(SendError::Other(format!("it answers {other:?}"))),
    }
}

/// The parcel that comes in.
#[derive(Default)]
pub(crate) struct Incoming(Mutex<Option<(Parcel, Vec<u8>)>>);

impl Incoming {
    /// A parcel is announced: how much of it is there. Another one that was coming is dropped.
    pub(crate) fn begin(&self, parcel: Parcel) -> Answer {
        if parcel.length > PARCEL_MAX || parcel.saved > SAVED_MAX {
            return Answer::Unable(format!("a snapshot of {} bytes, {} unpacked", parcel.length, parcel.saved));
        }
        let mut now = lock(&self.0);
        match &*now {
            Some((there, bytes)) if *there == parcel => Answer::Have { offset: bytes.len() as u64 },
            Some(_) | None => {
                *now = Some((parcel, Vec::new()));
                Answer::Have { offset: 0 }
            }
        }
    }

    /// The next piece.
    pub(crate) fn chunk(&self, digest: &[u8; 32], offset: u64, piece: &Bytes) -> Result<Answer, FrameError> {
        if piece.len() > CHUNK_BYTES {
            return Err(FrameError::Unexpected("a piece of a snapshot that is too long"));
        }
        let mut now = lock(&self.0);
        let Some((parcel, bytes)) = now.as_mut().filter(|(parcel, _)| parcel.digest == *digest) else {
            return Ok(Answer::Unable("no such snapshot is expected".into()));
        };
        if offset != bytes.len() as u64 || offset + piece.len() as u64 > parcel.length {
            return Ok(Answer::Unable(format!("a piece at byte {offset} where byte {} is due", bytes.len())));
        }
        bytes.extend_from_slice(piece);
        Ok(Answer::Have { offset: bytes.len() as u64 })
    }

    /// Takes the parcel out if all of it is there.
    pub(crate) fn take(&self, digest: &[u8; 32]) -> Option<(Parcel, Vec<u8>)> {
        let whole =
            |(parcel, bytes): &mut (Parcel, Vec<u8>)| parcel.digest == *digest && bytes.len() as u64 == parcel.length;
        lock(&self.0).take_if(whole)
    }
}

/// Reads a parcel that came.
pub(crate) fn unpack<M: Machine>((parcel, bytes): (Parcel, Vec<u8>)) -> Result<Snap<Data<M>>, String> {
    if <[u8; 32]>::from(Sha256::digest(&bytes)) != parcel.digest {
        return Err("its digest is wrong".into());
    }
    let saved = zstd::bulk::decompress(&bytes, parcel.saved as usize).map_err(|error| error.to_string())?;
    drop(bytes);
    let head = Head::load::<M>(&saved).map_err(|error| error.to_string())?;
    let members = parcel.members.try_into().map_err(|error: crate::store::codec::CodecError| error.to_string())?;
    let last_membership: Membership = StoredMembership::new(parcel.members_at.map(Into::into), members);
    let meta = SnapshotMeta { last_log_id: parcel.last.map(Into::into), last_membership };
    Ok(Snap { meta, snapshot: Arc::new(head) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::{Count, Counter};
    use crate::types::{LeaderId, LogId};

    fn parcel(notes: u64) -> (Parcel, Vec<u8>) {
        let mut head = Head { machine: Count { count: notes, sum: 7, history_from: 0 }, ..Head::default() };
        for n in 0..notes {
            head.sessions.note(
                cvlan_core::machine::Once { session: n + 1, n: n.wrapping_mul(0x9e37_79b9_7f4a_7c15) },
                cvlan_core::id::Seq(n),
            );
        }
        let last = LogId { leader_id: LeaderId { term: 3, node_id: 1 }, index: 9 };
        pack::<Counter>(&SnapshotMeta { last_log_id: Some(last), last_membership: Membership::default() }, &head)
            .unwrap()
    }

    fn offset(answer: Answer) -> u64 {
        have(answer, u64::MAX).map_err(|_| ()).unwrap() as u64
    }

    #[test]
    fn a_parcel_goes_on_where_it_was_and_is_what_was_sent() {
        let (about, bytes) = parcel(500);
        let incoming = Incoming::default();
        assert_eq!(offset(incoming.begin(about.clone())), 0);
        let half = bytes.len() / 2;
        let first = Bytes::copy_from_slice(&bytes[..half]);
        assert_eq!(offset(incoming.chunk(&about.digest, 0, &first).unwrap()), half as u64);
        assert!(incoming.take(&about.digest).is_none(), "half of it is not all");
        // The connection is lost; it is announced again over another one.
        assert_eq!(offset(incoming.begin(about.clone())), half as u64);
        assert!(matches!(incoming.chunk(&about.digest, 0, &first), Ok(Answer::Unable(_))), "a piece that is there");
        let rest = Bytes::copy_from_slice(&bytes[half..]);
        assert!(matches!(incoming.chunk(&[0; 32], half as u64, &rest), Ok(Answer::Unable(_))), "of another one");
        assert_eq!(offset(incoming.chunk(&about.digest, half as u64, &rest).unwrap()), bytes.len() as u64);
        let snap = unpack::<Counter>(incoming.take(&about.digest).unwrap()).unwrap();
        assert_eq!(snap.snapshot.machine, Count { count: 500, sum: 7, history_from: 0 });
        assert_eq!(snap.meta.last_log_id.map(|id| id.index), Some(9));
        assert!(incoming.take(&about.digest).is_none(), "it was taken");
    }

    #[test]
    fn what_is_damaged_too_long_or_of_another_length_is_not_taken() {
        let (about, bytes) = parcel(3);
        let mut flipped = bytes.clone();
        flipped[5] ^= 1;
        assert_eq!(unpack::<Counter>((about.clone(), flipped)).err().unwrap(), "its digest is wrong");
        let incoming = Incoming::default();
        let huge = Parcel { length: PARCEL_MAX + 1, ..about.clone() };
        assert!(matches!(incoming.begin(huge), Answer::Unable(_)));
        incoming.begin(about.clone());
        let long = Bytes::from(vec![0; CHUNK_BYTES + 1]);
        assert!(incoming.chunk(&about.digest, 0, &long).is_err());
        let mut more = bytes;
        more.push(0);
        assert!(matches!(incoming.chunk(&about.digest, 0, &more.into()), Ok(Answer::Unable(_))));
    }
}

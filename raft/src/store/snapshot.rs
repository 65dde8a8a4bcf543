//! Snapshots: heads on disk, compressed, each with what it takes to check it.
//!
//! ```text
//! file = "CVLANSNP" │ u32 format │ u32 length │ SnapshotHead │ u32 crc of these │ zstd(head)      named after its seq
//! ```
//! Written under a temporary name, synced, renamed: one that is there is whole, unless the disk lost something, which
//! its SHA-256 shows. A bad one is passed over: an older one and a longer replay do as well.

use crate::disk::Files;
use crate::error::OpenError;
use crate::head::Head;
use crate::store::codec::SnapshotHead;
use crate::types::{Membership, SnapshotMeta};
use cvlan_core::machine::Machine;
use openraft::StoredMembership;
use sha2::{Digest, Sha256};
use std::io;

/// Version of the layout above; 1.
pub const SNAPSHOT_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"CVLANSNP";
const FIXED: usize = 16;
pub(crate) const LEVEL: i32 = 1;
/// Bytes that are written and synced at once: the log's own syncs wait behind them in the disk's queue.
const PIECE: usize = 512 << 10;

/// A head and its place in the log.
pub(crate) struct Snapshot<S> {
    pub(crate) meta: SnapshotMeta,
    pub(crate) skipped: Vec<u64>,
    pub(crate) head: Head<S>,
}

/// Why a file is no snapshot.
#[derive(Debug)]
enum Bad {
    Newer(u32),
    Damaged(String),
}

fn name(seq: u64) -> String {
    format!("snapshots/{seq:020}.snap")
}

/// Writes a snapshot, durably, and removes all but the newest `kept`.
pub(crate) fn write<M: Machine>(files: &dyn Files, snapshot: &Snapshot<M::State>, kept: usize) -> io::Result<()> {
    let saved = snapshot.head.save::<M>();
    let membership = &snapshot.meta.last_membership;
    let head = SnapshotHead {
        last: snapshot.meta.last_log_id.as_ref().map(Into::into),
        members_at: membership.log_id().as_ref().map(Into::into),
        members: membership.membership().into(),
        seq: snapshot.head.seq.0,
        skipped: snapshot.skipped.clone(),
        length: saved.len() as u64,
        digest: Sha256::digest(&saved).into(),
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&SNAPSHOT_FORMAT.to_le_bytes());
    let mut encoded = Vec::new();
    head.encode(&mut encoded);
    bytes.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
    bytes.append(&mut encoded);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes.append(&mut zstd::bulk::compress(&saved, LEVEL)?);
    drop(saved);

    const MAKING: &str = "snapshots/making.tmp";
    files.make_folder("snapshots")?;
    let written = files.create(MAKING, 0).and_then(|file| {
        let mut at = 0;
        for piece in bytes.chunks(PIECE) {
            file.write_at(at, piece)?;
            file.sync()?;
            at += piece.len() as u64;
        }
        Ok(())
    });
    if let Err(error) = written {
        let _ = files.remove(MAKING);
        return Err(error);
    }
    files.rename(MAKING, &name(head.seq))?;
    files.sync_folder("snapshots")?;
    let seqs = list(files)?;
    for seq in seqs.iter().rev().skip(kept.max(2)) {
        files.remove(&name(*seq))?;
    }
    Ok(())
}

/// Sequence numbers of the snapshots here, oldest first.
pub(crate) fn list(files: &dyn Files) -> io::Result<Vec<u64>> {
    let names = files.list("snapshots")?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".snap")?.parse().ok()).collect())
}

/// The newest good one that `usable` accepts. One of a newer version is an error: the folder is newer.
pub(crate) fn newest<M: Machine>(
    files: &dyn Files,
    usable: impl Fn(&Snapshot<M::State>) -> bool,
) -> Result<Option<Snapshot<M::State>>, OpenError> {
    for seq in list(files).map_err(OpenError::io("reading snapshots/"))?.into_iter().rev() {
        match read::<M>(files, seq) {
            Ok(snapshot) if usable(&snapshot) => return Ok(Some(snapshot)),
            Ok(_) => tracing::warn!(file = name(seq), "passed over: the log does not go on from it"),
            Err(Bad::Newer(found)) => {
                return Err(OpenError::Newer { what: name(seq), found, known: SNAPSHOT_FORMAT });
            }
            Err(Bad::Damaged(why)) => tracing::warn!(file = name(seq), why, "passed over: a damaged snapshot"),
        }
    }
    Ok(None)
}

fn read<M: Machine>(files: &dyn Files, seq: u64) -> Result<Snapshot<M::State>, Bad> {
    let damaged = |why: &str| Bad::Damaged(why.into());
    let bytes = (|| {
        let file = files.open(&name(seq))?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_at(0, &mut bytes).map(|()| bytes)
    })();
    let bytes = bytes.map_err(|error: io::Error| Bad::Damaged(error.to_string()))?;
    let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    if !bytes.starts_with(MAGIC) {
        return Err(damaged("no snapshot"));
    }
    let format = word(8).ok_or(damaged("cut off"))?;
    let crc_at = FIXED + word(12).ok_or(damaged("cut off"))? as usize;
    let fields = bytes.get(..crc_at).ok_or(damaged("cut off"))?;
    if word(crc_at) != Some(crc32c::crc32c(fields)) {
        return Err(damaged("its header's checksum is wrong"));
    }
    // Only a whole header says what it is: a flipped bit does not make a newer version.
    if format > SNAPSHOT_FORMAT {
        return Err(Bad::Newer(format));
    }
    let malformed = |error: &dyn ToString| Bad::Damaged(error.to_string());
    let head = SnapshotHead::decode(fields.get(FIXED..).unwrap_or_default()).map_err(|e| malformed(&e))?;
    let packed = bytes.get(crc_at + 4..).unwrap_or_default();
    let saved = zstd::bulk::decompress(packed, head.length as usize).map_err(|e| malformed(&e))?;
    if head.seq != seq || <[u8; 32]>::from(Sha256::digest(&saved)) != head.digest {
        return Err(damaged("its digest is wrong"));
    }
    let members = head.members.try_into().map_err(|e: crate::store::codec::CodecError| malformed(&e))?;
    let last_membership: Membership = StoredMembership::new(head.members_at.map(Into::into), members);
    let meta = SnapshotMeta { last_log_id: head.last.map(Into::into), last_membership };
    Ok(Snapshot { meta, skipped: head.skipped, head: Head::load::<M>(&saved).map_err(|e| malformed(&e))? })
}

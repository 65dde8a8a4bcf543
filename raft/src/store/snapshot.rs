//! Snapshots: heads on disk, compressed, each with what it takes to check it.
//!
//! ```text
//! file = "CVLANSNP" │ u32 format │ u32 length │ SnapshotHead │ u32 crc of these │ zstd(head)      named after its seq
//! ```
//! Written under a temporary name, synced, renamed: one that is there is whole, unless the disk lost something, which
//! its SHA-256 shows. A bad one is passed over: an older one and a longer replay do as well. Where history does not begin
//! with the first event, the oldest one that its entries continue stays, whatever its age: history begins with it.

use crate::disk::Files;
use crate::error::OpenError;
use crate::head::Head;
use crate::store::codec::SnapshotHead;
use crate::store::wal::index;
use crate::types::{LogId, Membership, SnapshotMeta};
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
    /// The disk did not give it: it may be one.
    Unread(String),
}

fn name(seq: u64) -> String {
    format!("snapshots/{seq:020}.snap")
}

/// Writes a snapshot, durably.
pub(crate) fn write<M: Machine>(files: &dyn Files, snapshot: &Snapshot<M::State>) -> io::Result<()> {
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
    files.sync_folder("snapshots")
}

/// Removes all but the newest `kept`, and the one that history begins with, whose first entry is `oldest`.
pub(crate) fn thin(files: &dyn Files, kept: usize, oldest: u64) -> io::Result<()> {
    let mut base = oldest == 0;
    let seqs = list(files)?;
    for seq in seqs.iter().take(seqs.len().saturating_sub(kept)) {
        match header(files, *seq) {
            Ok((head, _)) if !base && continued(&head.last.map(Into::into), oldest) => base = true,
            Ok(_) | Err(Bad::Damaged(_)) => files.remove(&name(*seq))?,
            // It may be the one.
            Err(Bad::Newer(_) | Bad::Unread(_)) => {}
        }
    }
    Ok(())
}

/// Entries from `oldest` on leave no gap after one whose last entry is this.
fn continued(last: &Option<LogId>, oldest: u64) -> bool {
    index(last).map_or(0, |last| last + 1) >= oldest
}

/// Sequence numbers of the snapshots here, oldest first.
pub(crate) fn list(files: &dyn Files) -> io::Result<Vec<u64>> {
    let names = files.list("snapshots")?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".snap")?.parse().ok()).collect())
}

/// The newest good one that entries from `oldest` on continue. One of a newer version is an error: the folder is newer.
pub(crate) fn newest<M: Machine>(files: &dyn Files, oldest: u64) -> Result<Option<Snapshot<M::State>>, OpenError> {
    let seqs = list(files).map_err(OpenError::io("reading snapshots/"))?;
    Ok(first::<M>(files, seqs.into_iter().rev(), oldest, false)?.map(|read| read.snapshot))
}

/// The state that history begins with, where it begins with entry `oldest`: the oldest good one that it continues. `tidy`: those
/// before it that are damaged go, so that it is fetched from another member.
pub(crate) fn base<M: Machine>(
    files: &dyn Files,
    oldest: u64,
    tidy: bool,
) -> Result<Option<Read<M::State>>, OpenError> {
    let seqs = list(files).map_err(OpenError::io("reading snapshots/"))?;
    first::<M>(files, seqs.into_iter(), oldest, tidy)
}

fn first<M: Machine>(
    files: &dyn Files,
    seqs: impl Iterator<Item = u64>,
    oldest: u64,
    tidy: bool,
) -> Result<Option<Read<M::State>>, OpenError> {
    for seq in seqs {
        match read::<M>(files, seq) {
            Ok(read) if continued(&read.snapshot.meta.last_log_id, oldest) => return Ok(Some(read)),
            Ok(_) => tracing::warn!(file = name(seq), "passed over: the log does not go on from it"),
            Err(Bad::Newer(found)) => {
                return Err(OpenError::Newer { what: name(seq), found, known: SNAPSHOT_FORMAT });
            }
            Err(Bad::Damaged(why)) => {
                tracing::warn!(file = name(seq), why, "passed over: a damaged snapshot");
                if tidy {
                    files.remove(&name(seq)).map_err(OpenError::io("removing a damaged snapshot"))?;
                }
            }
            Err(Bad::Unread(why)) => {
                tracing::warn!(file = name(seq), why, "passed over: a snapshot that cannot be read")
            }
        }
    }
    Ok(None)
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("cut off".into()),
            _ => Self::Unread(error.to_string()),
        }
    }
}

/// What a file says of itself, and where its head begins.
fn header(files: &dyn Files, seq: u64) -> Result<(SnapshotHead, u64), Bad> {
    let damaged = |why: &str| Bad::Damaged(why.into());
    let file = files.open(&name(seq))?;
    let mut fixed = [0; FIXED];
    file.read_at(0, &mut fixed)?;
    let [word_8, word_12] = [8, 12].map(|at| word(&fixed, at).unwrap_or_default());
    if !fixed.starts_with(MAGIC) {
        return Err(damaged("no snapshot"));
    }
    let crc_at = FIXED as u64 + u64::from(word_12);
    if crc_at + 4 > file.len()? {
        return Err(damaged("cut off"));
    }
    let mut bytes = vec![0; crc_at as usize + 4];
    file.read_at(0, &mut bytes)?;
    let fields = bytes.get(..crc_at as usize).unwrap_or_default();
    if word(&bytes, fields.len()) != Some(crc32c::crc32c(fields)) {
        return Err(damaged("its header's checksum is wrong"));
    }
    // Only a whole header says what it is: a flipped bit does not make a newer version.
    if word_8 > SNAPSHOT_FORMAT {
        return Err(Bad::Newer(word_8));
    }
    let head = SnapshotHead::decode(fields.get(FIXED..).unwrap_or_default()).map_err(|e| damaged(&e.to_string()))?;
    Ok((head, crc_at + 4))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// A snapshot as it was read.
pub(crate) struct Read<S> {
    pub(crate) snapshot: Snapshot<S>,
    /// Bytes of the saved head, and their SHA-256.
    pub(crate) length: u64,
    pub(crate) digest: [u8; 32],
    /// The saved head, compressed.
    pub(crate) packed: Vec<u8>,
}

fn read<M: Machine>(files: &dyn Files, seq: u64) -> Result<Read<M::State>, Bad> {
    let (about, at) = header(files, seq)?;
    let file = files.open(&name(seq))?;
    let mut packed = vec![0; file.len()?.saturating_sub(at) as usize];
    file.read_at(at, &mut packed)?;
    let (length, digest, named) = (about.length, about.digest, about.seq == seq);
    let snapshot = received::<M>(about, &packed).map_err(Bad::Damaged)?;
    match named {
        true => Ok(Read { snapshot, length, digest, packed }),
        false => Err(Bad::Damaged("it is another one".into())),
    }
}

/// A head that was saved as so many bytes, with this SHA-256, and compressed.
pub(crate) fn unpack<M: Machine>(packed: &[u8], length: u64, digest: &[u8; 32]) -> Result<Head<M::State>, String> {
    let saved = zstd::bulk::decompress(packed, length as usize).map_err(|error| error.to_string())?;
    if <[u8; 32]>::from(Sha256::digest(&saved)) != *digest {
        return Err("its digest is wrong".into());
    }
    Head::load::<M>(&saved).map_err(|error| error.to_string())
}

/// What the state that history begins with is, and how long once it is packed, without reading it.
pub(crate) fn base_about(files: &dyn Files, oldest: u64) -> io::Result<Option<(SnapshotHead, u64)>> {
    for seq in list(files)? {
        if let Ok((head, at)) = header(files, seq)
            && continued(&head.last.map(Into::into), oldest)
        {
            let packed = files.open(&name(seq))?.len()?.saturating_sub(at);
            return Ok(Some((head, packed)));
        }
    }
    Ok(None)
}

/// At most `limit` bytes of a packed state, from `offset` on.
pub(crate) fn piece(files: &dyn Files, seq: u64, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
    let (_, at) = header(files, seq).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let file = files.open(&name(seq))?;
    let from = at.saturating_add(offset);
    let mut piece = vec![0; file.len()?.saturating_sub(from).min(limit as u64) as usize];
    file.read_at(from, &mut piece)?;
    Ok(piece)
}

/// What a header and a packed state of another member come to.
pub(crate) fn received<M: Machine>(about: SnapshotHead, packed: &[u8]) -> Result<Snapshot<M::State>, String> {
    let head = unpack::<M>(packed, about.length, &about.digest)?;
    if head.seq.0 != about.seq {
        return Err("it is another one".into());
    }
    let members = about.members.try_into().map_err(|e: crate::store::codec::CodecError| e.to_string())?;
    let last_membership: Membership = StoredMembership::new(about.members_at.map(Into::into), members);
    let meta = SnapshotMeta { last_log_id: about.last.map(Into::into), last_membership };
    Ok(Snapshot { meta, skipped: about.skipped, head })
}

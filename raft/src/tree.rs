//! The Merkle tree over the events, for proofs: derived from history when it is asked for, never in a write's way.
//!
//! ```text
//! asked at `size` ─► catch up: leaves of the events applied since ─► root = the head's? ─► roots of subtrees ─► proof
//!                                        │ 65,536 full             └ no: begun anew, from history
//!                                        ▼
//!            tiles/NNNNNNNNNN.tile = header │ 65,536 leaves │ 256 roots of 256 │ 1 root of all          never changed
//! ```
//! What C2SP `tlog-tiles` calls tiles of levels 0 and 1 lie in one file, and a file is whole or not there: written beside,
//! synced, renamed. Leaves after the last full file are in memory alone, 2 MiB where the disk has room, and read from history again after a
//! restart; before that history goes, they are written to `tiles/partial`. The files outlive the history that they were made of. Where history begins later than they end (a snapshot took the
//! place of what is between), the tree begins with the head's own roots: it proves from there on, in memory alone, and begins
//! again with a newer head when that is over 8 MiB.

use crate::backfill::first_event;
use crate::disk::{File, Files, Lane, on_disk};
use crate::error::HistoryError;
use crate::reading::{begins, page};
use crate::replica::Shared;
use crate::store::history::Sought;
use crate::store::wal::index;
use crate::sync::lock;
use crate::types::{Entry, Frame};
use cvlan_core::id::Seq;
use cvlan_core::log::entry_decode;
use cvlan_core::log::merkle::{CompactRange, Hash, leaf_hash, node_hash};
use cvlan_core::log::proof::{self, Subtrees};
use cvlan_core::machine::Machine;
use openraft::{AsyncRuntime, EntryPayload};
use std::io;
use std::sync::Arc;

const FOLDER: &str = "tiles";
const MAGIC: &[u8; 8] = b"CVLANTIL";
/// Version of the files' layout.
const FORMAT: u32 = 1;
/// Levels of a file: 65,536 leaves.
const BLOCK_LEVEL: u32 = 16;
/// Levels of a tile: 256 hashes.
const TILE_LEVEL: u32 = 8;
const BLOCK: usize = 1 << BLOCK_LEVEL;
const TILE: usize = 1 << TILE_LEVEL;
const HASH: usize = 32;
/// magic │ u32 format │ u64 number │ zeros up to 32 bytes
const HEADER: usize = 32;
const EIGHTS_AT: usize = HEADER + BLOCK * HASH;
const ROOT_AT: usize = EIGHTS_AT + BLOCK / TILE * HASH;
const FILE: usize = ROOT_AT + HASH;

/// "CVLANPRT" │ u32 format │ u64 number of the file that it will be │ zeros up to 32 bytes │ leaves │ root of everything
const PARTIAL: &str = "tiles/partial";
/// The tree that history begins with, where it begins late: "CVLANBAS" │ u32 format │ u64 events │ zeros up to 32 bytes │ roots
const BASE: &str = "tiles/base";
const BASE_MAGIC: &[u8; 8] = b"CVLANBAS";
/// Leaves that a tree which begins late keeps in memory, at most.
const LATE_MAX: usize = 32 * BLOCK;
const PARTIAL_MAGIC: &[u8; 8] = b"CVLANPRT";

fn name(number: usize) -> String {
    format!("{FOLDER}/{number:010}.tile")
}

/// Proof that an event is in the tree of `size` events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inclusion {
    /// Hash of its leaf.
    pub leaf: Hash,
    /// RFC 9162 §2.1.3.
    pub path: Vec<Hash>,
}

/// Proof that the tree of `size` events continues an older one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consistency {
    /// Root of the older tree.
    pub root: Hash,
    /// RFC 9162 §2.1.4.
    pub path: Vec<Hash>,
}

/// What is proven about the tree of `size` events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Its root.
    pub root: Hash,
    /// Of the event that was asked for.
    pub inclusion: Option<Inclusion>,
    /// Of the older size that was asked for.
    pub consistency: Option<Consistency>,
}

/// The tree of the events so far.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    opened: bool,
    /// Roots of the files.
    blocks: Vec<Hash>,
    /// Leaves behind them.
    leaves: Vec<Hash>,
    /// Roots of each full 256 of those.
    eights: Vec<Hash>,
    /// Of everything.
    range: CompactRange,
    /// Where it begins late: the events before the leaves, as level, index and root, and how many they are.
    base: Vec<(u32, u64, Hash)>,
    begins: u64,
}

impl Tree {
    fn size(&self) -> u64 {
        self.range.size()
    }

    /// It begins with what a head knows of it.
    fn late(range: &CompactRange) -> Self {
        let (mut at, size) = (0, range.size());
        let levels = (0..u64::BITS).rev().filter(|level| size >> level & 1 == 1);
        let base = levels.zip(range.roots()).map(|(level, root)| {
            let index = at >> level;
            at += 1 << level;
            (level, index, *root)
        });
        Self { opened: true, base: base.collect(), begins: size, range: range.clone(), ..Self::default() }
    }

    /// Finds the files that are there, up to the first that is not, or is none.
    fn open(files: &dyn Files) -> io::Result<Self> {
        let mut tree = Self { opened: true, ..Self::default() };
        files.make_folder(FOLDER)?;
        let there = files.list(FOLDER)?;
        let whole = |number: usize| -> io::Result<Option<Hash>> {
            if !there.iter().any(|found| name(number).ends_with(found.as_str())) {
                return Ok(None);
            }
            let file = files.open(&name(number))?;
            let mut header = [0; HEADER];
            if file.len()? < FILE as u64 {
                return Ok(None);
            }
            file.read_at(0, &mut header)?;
            if header != header_of(number) {
                return Ok(None);
            }
            hashes(&*file, ROOT_AT, 1).map(|root| root.first().copied())
        };
        while let Some(root) = whole(tree.blocks.len())? {
            tree.range.push_subtree(BLOCK_LEVEL, root);
            tree.blocks.push(root);
        }
        if there.iter().any(|found| PARTIAL.ends_with(found.as_str())) {
            tree.partial_read(files)?;
        }
        Ok(tree)
    }

    /// Takes the leaves that were kept behind the last file, if they are what they say.
    fn partial_read(&mut self, files: &dyn Files) -> io::Result<()> {
        let file = files.open(PARTIAL)?;
        let len = file.len()? as usize;
        let mut header = [0; HEADER];
        if len < HEADER + HASH || !(len - HEADER).is_multiple_of(HASH) || len > HEADER + 9 * BLOCK * HASH {
            return Ok(());
        }
        file.read_at(0, &mut header)?;
        let mut leaves = hashes(&*file, HEADER, (len - HEADER) / HASH)?;
        let root = leaves.pop();
        let mut range = self.range.clone();
        leaves.iter().for_each(|leaf| range.push_hash(*leaf));
        if header == header_as(PARTIAL_MAGIC, self.blocks.len()) && root == Some(range.root()) {
            self.eights = leaves.as_chunks::<TILE>().0.iter().map(|tile| fold(tile)).collect();
            (self.leaves, self.range) = (leaves, range);
        }
        Ok(())
    }

    /// Keeps the leaves behind the last file: the history that they are made of goes.
    fn partial_write(&self, files: &dyn Files) -> io::Result<()> {
        let mut bytes = header_as(PARTIAL_MAGIC, self.blocks.len()).to_vec();
        bytes.extend(self.leaves.iter().chain([&self.range.root()]).flatten());
        write_whole(files, PARTIAL, &bytes)
    }

    /// Adds the events of an entry that are not in it; false where the entry says that it is another tree's.
    fn add(&mut self, frame: &Frame) -> Result<bool, HistoryError> {
        let entry = entry_decode(&frame.0).map_err(|error| HistoryError::Damaged(error.to_string()))?;
        if entry.first_seq > self.size() + 1 {
            return Err(HistoryError::Damaged(format!("event {} follows event {}", entry.first_seq, self.size())));
        }
        let known = self.size() + 1 - entry.first_seq;
        if known == 0 && entry.prev_root != self.range.root() {
            return Ok(false);
        }
        for event in entry.events.iter().skip(known as usize) {
            let leaf = leaf_hash(event);
            self.range.push_hash(leaf);
            self.leaves.push(leaf);
            if let (tiles, []) = self.leaves.as_chunks::<TILE>()
                && let Some(last) = tiles.last()
            {
                self.eights.push(fold(last));
            }
        }
        Ok(true)
    }

    /// Gives full files to the disk.
    fn seal(&mut self, files: &dyn Files) -> io::Result<()> {
        while self.begins == 0
            && let Some((leaves, eights)) = self.leaves.get(..BLOCK).zip(self.eights.get(..BLOCK / TILE))
        {
            let number = self.blocks.len();
            let root = fold(eights);
            let mut bytes = header_of(number).to_vec();
            bytes.extend(leaves.iter().chain(eights).chain([&root]).flatten());
            write_whole(files, &name(number), &bytes)?;
            self.blocks.push(root);
            self.leaves.drain(..BLOCK);
            self.eights.drain(..BLOCK / TILE);
        }
        Ok(())
    }

    /// Removes the files: what is in them does not come to the root that it should.
    fn forget(&mut self, files: &dyn Files) -> io::Result<()> {
        for number in 0..self.blocks.len() {
            files.remove(&name(number))?;
        }
        if files.list(FOLDER)?.iter().any(|found| PARTIAL.ends_with(found.as_str())) {
            files.remove(PARTIAL)?;
        }
        *self = Self { opened: true, ..Self::default() };
        files.sync_folder(FOLDER)
    }
}

/// The tree as a job on the disk reads it.
struct View<'t> {
    tree: &'t Tree,
    files: &'t dyn Files,
}

impl View<'_> {
    /// Of the leaves that are in memory; `index` counts from there.
    fn memory(&self, level: u32, index: usize) -> Option<Hash> {
        match level {
            0 => self.tree.leaves.get(index).copied(),
            TILE_LEVEL => self.tree.eights.get(index).copied(),
            _ => Some(node_hash(&self.memory(level - 1, 2 * index)?, &self.memory(level - 1, 2 * index + 1)?)),
        }
    }

    /// Of a tree that begins late.
    fn late(&self, level: u32, index: u64) -> Result<Hash, HistoryError> {
        let is = |at: &&(u32, u64, Hash)| (at.0, at.1) == (level, index);
        if let Some((_, _, root)) = self.tree.base.iter().find(is) {
            return Ok(*root);
        }
        let leaf = (index << level).checked_sub(self.tree.begins).and_then(|at| self.tree.leaves.get(at as usize));
        match (level, leaf) {
            (0, Some(leaf)) => Ok(*leaf),
            // What lies in the roots that it began with cannot be told apart.
            _ if level == 0 || ((index + 1) << level) <= self.tree.begins => {
                Err(HistoryError::Gone { first: Seq(self.tree.begins + 1) })
            }
            _ => Ok(node_hash(&self.late(level - 1, 2 * index)?, &self.late(level - 1, 2 * index + 1)?)),
        }
    }

    /// Within one file.
    fn block(&self, level: u32, index: u64) -> io::Result<Hash> {
        let leaf = index << level;
        let (number, within) = ((leaf >> BLOCK_LEVEL) as usize, (leaf as usize) % BLOCK);
        let file = self.files.open(&name(number))?;
        let below = level % TILE_LEVEL;
        let at = match level < TILE_LEVEL {
            true => HEADER + within * HASH,
            false => EIGHTS_AT + within / TILE * HASH,
        };
        hashes(&*file, at, 1 << below).map(|hashes| fold(&hashes))
    }
}

impl View<'_> {
    /// The first `width` hashes of a tile; `None` where a file is not what it was.
    fn tile(&self, level: u32, index: u64, width: usize) -> Result<Option<Vec<Hash>>, HistoryError> {
        let (below, first) = (level * TILE_LEVEL, index << TILE_LEVEL);
        let (leaf, sealed) = (first << below, (self.tree.blocks.len() as u64) << BLOCK_LEVEL);
        if self.tree.begins > 0 || below >= BLOCK_LEVEL || leaf >= sealed {
            return (first..first + width as u64).map(|at| self.subtree(below, at)).collect::<Result<_, _>>().map(Some);
        }
        let (number, within) = ((leaf >> BLOCK_LEVEL) as usize, leaf as usize % BLOCK);
        let at = if level == 0 { HEADER + within * HASH } else { EIGHTS_AT };
        let read = self.files.open(&name(number)).and_then(|file| hashes(&*file, at, TILE));
        let mut tile = read.map_err(|error| HistoryError::Damaged(format!("the tree: {error}")))?;
        // What one piece of a file holds is not believed alone.
        let good = fold(&tile) == self.subtree(below + TILE_LEVEL, index)?;
        tile.truncate(width);
        Ok(good.then_some(tile))
    }
}

impl Subtrees for View<'_> {
    type Error = HistoryError;

    fn subtree(&self, level: u32, index: u64) -> Result<Hash, HistoryError> {
        if self.tree.begins > 0 {
            return self.late(level, index);
        }
        let sealed = (self.tree.blocks.len() as u64) << BLOCK_LEVEL;
        let damaged = |why: &dyn ToString| HistoryError::Damaged(format!("the tree: {}", why.to_string()));
        match level {
            BLOCK_LEVEL if index < self.tree.blocks.len() as u64 => {
                self.tree.blocks.get(index as usize).copied().ok_or_else(|| damaged(&"no such file"))
            }
            0..BLOCK_LEVEL if index << level < sealed => self.block(level, index).map_err(|error| damaged(&error)),
            0..=BLOCK_LEVEL => {
                let index = (index - (sealed >> level)) as usize;
                self.memory(level, index).ok_or_else(|| damaged(&"it does not reach that far"))
            }
            _ => Ok(node_hash(&self.subtree(level - 1, 2 * index)?, &self.subtree(level - 1, 2 * index + 1)?)),
        }
    }
}

/// The root of these, a power of two.
fn fold(hashes: &[Hash]) -> Hash {
    match hashes {
        [one] => *one,
        many => {
            let (left, right) = many.split_at(many.len() / 2);
            node_hash(&fold(left), &fold(right))
        }
    }
}

fn header_of(number: usize) -> [u8; HEADER] {
    header_as(MAGIC, number)
}

/// Writes a file beside, syncs it, and gives it its name: it is whole or not there.
fn write_whole(files: &dyn Files, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = format!("{FOLDER}/new.tmp");
    let write = || {
        let file = files.create(&beside, bytes.len() as u64)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        files.rename(&beside, name)?;
        files.sync_folder(FOLDER)
    };
    write().inspect_err(|_| {
        let _ = files.remove(&beside);
    })
}

fn header_as(magic: &[u8; 8], number: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let fields = magic.iter().copied().chain(FORMAT.to_le_bytes()).chain((number as u64).to_le_bytes());
    for (to, from) in header.iter_mut().zip(fields) {
        *to = from;
    }
    header
}

fn hashes(file: &dyn File, at: usize, count: usize) -> io::Result<Vec<Hash>> {
    let mut bytes = vec![0; count * HASH];
    file.read_at(at as u64, &mut bytes)?;
    Ok(bytes.as_chunks::<HASH>().0.to_vec())
}

impl View<'_> {
    /// Whether this is the root of the first `size` events, as all of them say: what one file holds is not believed alone.
    fn knows(&self, size: u64, root: &Hash) -> Result<bool, HistoryError> {
        let (all, range) = (self.tree.size(), &self.tree.range);
        let path = proof::consistency(self, size, all)?;
        Ok(size <= all && proof::continued(size, root, all, &range.root(), &path))
    }
}

/// Runs `job` on the tree of everything that is applied here. `None` says that a file is not what it was: they are made anew,
/// once.
async fn with<M: Machine, RT: AsyncRuntime, T: Send + 'static>(
    shared: &Arc<Shared<M, RT>>,
    job: impl Fn(&View<'_>) -> Result<Option<T>, HistoryError> + Send + Sync + 'static,
) -> Result<T, HistoryError> {
    use openraft::async_runtime::Mutex as _;
    let job = Arc::new(job);
    let mut kept = shared.tree.lock().await;
    for _ in 0..2 {
        let mut tree = std::mem::take(&mut *kept);
        // History has grown backwards since.
        let from = shared.history_from();
        let grown = tree.begins >= from.0 && (from <= Seq(1) || base(shared).await?.is_some());
        if !tree.opened || grown {
            tree = disk(shared, |files| Tree::open(files)).await?;
        }
        let head = shared.head();
        let (caught_up, fits) = catch_up(shared, tree, head.seq).await?;
        let fits = fits && (caught_up.size() > head.seq.0 || caught_up.range.root() == head.root);
        // Files outlive history: those that cannot be made anew stay.
        let again = begins(shared, Seq(1)).is_ok();
        let job = job.clone();
        let (tree, found) = disk(shared, move |files| {
            let mut tree = caught_up;
            let found = match fits {
                true => (*job)(&View { tree: &tree, files }),
                false => Ok(None),
            };
            if matches!(found, Ok(None)) && again {
                tree.forget(files)?;
            }
            Ok((tree, found))
        })
        .await?;
        *kept = tree;
        match found {
            Ok(Some(made)) => return Ok(made),
            Ok(None) if again => {
                tracing::warn!("the tree's files do not come to the log's root: they are made anew");
            }
            Ok(None) => break,
            Err(error) => return Err(error),
        }
    }
    Err(HistoryError::Damaged("the tree does not come to the log's root".to_owned()))
}

/// A job that reads.
async fn disk<M: Machine, RT: AsyncRuntime, T: Send + 'static>(
    shared: &Arc<Shared<M, RT>>,
    job: impl FnOnce(&dyn Files) -> io::Result<T> + Send + 'static,
) -> Result<T, HistoryError> {
    let done = on_disk::<RT, _>(&shared.disk, Lane::Read, job).await.map_err(|_| HistoryError::Stopped)?;
    done.map_err(|error| HistoryError::Damaged(format!("the tree: {error}")))
}

/// Adds what was applied up to `to`; false where an entry says that it is another tree's.
async fn catch_up<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    mut tree: Tree,
    to: Seq,
) -> Result<(Tree, bool), HistoryError> {
    let mut fits = true;
    if tree.size() >= to.0 {
        return Ok((tree, fits));
    }
    let grown = tree.begins > 0 && tree.leaves.len() > LATE_MAX;
    if grown || begins(shared, Seq(tree.size() + 1)).is_err() {
        tree = match base(shared).await? {
            Some(base) if !grown && to.0.saturating_sub(base.size()) <= LATE_MAX as u64 => Tree::late(&base),
            _ => return Ok((Tree::late(&shared.head().tree), fits)),
        };
    }
    let mut from = shared.wal.locate(Sought::Seq(Seq(tree.size() + 1)));
    while fits && tree.size() < to.0 {
        let place = lock(&shared.place).clone();
        let entries = page(shared, from, index(&place.last).map_or(0, |last| last + 1)).await?;
        let Some(last) = entries.last() else { break };
        from = last.log_id.index + 1;
        let skipped = move |entry: &Entry| place.skipped.binary_search(&entry.log_id.index).is_ok();
        (tree, fits) = disk(shared, move |files| {
            for entry in entries.iter().filter(|entry| !skipped(entry)) {
                let EntryPayload::Normal(frame) = &entry.payload else { continue };
                if !tree.add(frame).map_err(io::Error::other)? {
                    return Ok((tree, false));
                }
            }
            // What there is no room for stays in memory.
            match tree.seal(files) {
                Err(error) if tree.leaves.len() > 8 * BLOCK => return Err(error),
                Err(error) => tracing::warn!(%error, "a part of the tree was not written"),
                Ok(()) => {}
            }
            Ok((tree, true))
        })
        .await?;
    }
    Ok((tree, fits))
}

/// The tree of everything that is applied here does not need the history of its first `size` events from now on.
pub(crate) async fn secure<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    size: Seq,
) -> Result<(), HistoryError> {
    with(shared, move |view| {
        if view.tree.begins > size.0 {
            return Ok(Some(()));
        }
        let subtrees = proof::subtrees(0, size.0).into_iter();
        let roots = subtrees.map(|(level, index)| view.subtree(level, index)).collect::<Result<Vec<_>, _>>();
        let base = CompactRange::new(size.0, roots?).filter(|base| view.knows(size.0, &base.root()).unwrap_or(false));
        let Some(base) = base else { return Ok(None) };
        let written = match view.tree.begins {
            0 => view.tree.partial_write(view.files),
            _ => base_write(view.files, &base),
        };
        written.map_err(|error| HistoryError::Damaged(format!("the tree: {error}")))?;
        Ok(Some(()))
    })
    .await
}

/// Keeps the tree that history begins with.
pub(crate) fn base_write(files: &dyn Files, base: &CompactRange) -> io::Result<()> {
    files.make_folder(FOLDER)?;
    let mut bytes = header_as(BASE_MAGIC, base.size() as usize).to_vec();
    bytes.extend(base.roots().iter().flatten());
    write_whole(files, BASE, &bytes)
}

fn base_read(files: &dyn Files) -> io::Result<Option<CompactRange>> {
    if !files.list(FOLDER)?.iter().any(|found| BASE.ends_with(found.as_str())) {
        return Ok(None);
    }
    let file = files.open(BASE)?;
    let len = file.len()? as usize;
    let mut header = [0; HEADER];
    if !(HEADER..=HEADER + 64 * HASH).contains(&len) {
        return Ok(None);
    }
    file.read_at(0, &mut header)?;
    let size = header.get(12..20).and_then(|size| size.first_chunk()).map_or(0, |size| u64::from_le_bytes(*size));
    let range = CompactRange::new(size, hashes(&*file, HEADER, (len - HEADER) / HASH)?);
    Ok(range.filter(|_| header == header_as(BASE_MAGIC, size as usize)))
}

/// The tree that history begins with, if it is known here.
async fn base<M: Machine, RT: AsyncRuntime>(shared: &Arc<Shared<M, RT>>) -> Result<Option<CompactRange>, HistoryError> {
    let from = shared.history_from();
    let Some(base) = disk(shared, |files| base_read(files)).await?.filter(|base| base.size() + 1 == from.0) else {
        return Ok(None);
    };
    let root = match first_event(shared, shared.wal.oldest()).await? {
        Some((first, root)) if first == from => root,
        Some(_) => return Ok(None),
        None => shared.head().root,
    };
    Ok(Some(base).filter(|base| base.root() == root))
}

/// See [`crate::Member::prove`].
pub(crate) async fn prove<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    size: Seq,
    event: Option<Seq>,
    old: Option<Seq>,
) -> Result<Proof, HistoryError> {
    with(shared, move |tree| {
        let root = proof::root(tree, size.0)?.unwrap_or_else(|| CompactRange::default().root());
        let inclusion = event.filter(|event| (1..=size.0).contains(&event.0)).map(|event| {
            let path = proof::inclusion(tree, event.0 - 1, size.0)?;
            Ok(Inclusion { leaf: tree.subtree(0, event.0 - 1)?, path })
        });
        let consistency = old.filter(|old| *old <= size).map(|old| {
            let was = proof::root(tree, old.0)?.unwrap_or_else(|| CompactRange::default().root());
            Ok(Consistency { root: was, path: proof::consistency(tree, old.0, size.0)? })
        });
        let (inclusion, consistency) = (inclusion.transpose()?, consistency.transpose()?);
        let included = inclusion.as_ref().zip(event);
        let good = included.is_none_or(|(i, event)| proof::included(i.leaf, event.0 - 1, size.0, &root, &i.path));
        let continued = consistency.as_ref().zip(old);
        let good = good && continued.is_none_or(|(c, old)| proof::continued(old.0, &c.root, size.0, &root, &c.path));
        let good = good && tree.knows(size.0, &root)?;
        Ok(good.then_some(Proof { root, inclusion, consistency }))
    })
    .await
}

/// See [`crate::Member::tile`].
pub(crate) async fn tile<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    level: u32,
    index: u64,
    width: u32,
) -> Result<Option<Vec<Hash>>, HistoryError> {
    let below = level.saturating_mul(TILE_LEVEL);
    let first = index.checked_mul(TILE as u64);
    let end = first.and_then(|first| first.checked_add(width.into()));
    let leaves =
        end.filter(|_| (1..=TILE as u32).contains(&width)).and_then(|end| end.checked_mul(1u64.checked_shl(below)?));
    // What is not applied here is in no tree.
    let Some(leaves) = leaves.filter(|leaves| *leaves <= shared.head().seq.0) else { return Ok(None) };
    with(shared, move |view| {
        if leaves > view.tree.size() {
            return Ok(Some(None));
        }
        view.tile(level, index, width as usize).map(|tile| tile.map(Some))
    })
    .await
}

/// See [`crate::Member::hide`].
pub(crate) async fn hide<M: Machine, RT: AsyncRuntime>(
    shared: &Arc<Shared<M, RT>>,
    to: Seq,
    since: Vec<Seq>,
) -> Result<Vec<(u32, Hash)>, HistoryError> {
    with(shared, move |tree| {
        let mut cuts: Vec<u64> = since.iter().map(|seq| seq.0).filter(|seq| *seq < to.0).chain([to.0]).collect();
        cuts.sort_unstable();
        let (mut at, mut found) = (0, Vec::new());
        for cut in cuts {
            for (level, index) in proof::subtrees(at, cut) {
                found.push((level, tree.subtree(level, index)?));
            }
            at = cut;
        }
        let mut range = CompactRange::default();
        let fits = found.iter().all(|(level, root)| range.push_subtree(*level, *root));
        Ok((fits && tree.knows(to.0, &range.root())?).then_some(found))
    })
    .await
}

//! What is on the medium, apart from what only the page cache knows. No time, no faults of its own: pure bookkeeping.
//!
//! ```text
//! write ─► cache (reads see it) ─► pending ── sync ──► durable
//!                                     └── power cut: each 512-byte sector keeps any version since the last sync
//! create, rename, remove ─► folder's pending entries ── sync_folder ──► durable
//!                                     └── power cut: none, all, the first few, or any subset of them
//! ```
//! A killed process loses nothing of this; only a power cut does. What a cut left is durable from then on.

use cvlan_core::grammar::Rng;
use std::collections::BTreeMap;
use std::io;

/// Bytes that the medium writes or does not write as one.
pub const SECTOR: usize = 512;

/// Names a file's contents, whatever it is called.
pub type Inode = u64;

/// Folders of files, one level deep.
#[derive(Default)]
pub struct Platter {
    files: BTreeMap<Inode, Contents>,
    folders: BTreeMap<String, Folder>,
    next: Inode,
    /// Bytes that can still be allocated; `None` = as many as one likes.
    room: Option<u64>,
}

#[derive(Default)]
struct Contents {
    durable: Vec<u8>,
    cache: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Default)]
struct Folder {
    durable: BTreeMap<String, Inode>,
    now: BTreeMap<String, Inode>,
    pending: Vec<Entry>,
}

#[derive(Clone)]
enum Entry {
    Link(String, Inode),
    Rename(String, String),
    Unlink(String),
}

/// How much of what was not synced a power cut leaves, drawn per file and folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    Nothing,
    All,
    First,
    Any,
}

impl Leaves {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(8) {
            0 | 1 => Self::Nothing,
            2 => Self::All,
            3 => Self::First,
            _ => Self::Any,
        }
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such file"))
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

impl Platter {
    /// Names in a folder; of no folder, none.
    pub fn list(&self, folder: &str) -> Vec<String> {
        self.folders.get(folder).map(|f| f.now.keys().cloned().collect()).unwrap_or_default()
    }

    /// Makes a folder, durably.
    pub fn make_folder(&mut self, folder: &str) {
        self.folders.entry(folder.to_owned()).or_default();
    }

    /// Finds a file.
    pub fn open(&self, name: &str) -> io::Result<Inode> {
        let (folder, file) = split(name);
        self.folders.get(folder).and_then(|f| f.now.get(file)).copied().ok_or_else(|| not_found(name))
    }

    /// Makes a file of zeros, or makes an old one into that. Without enough room it is there, but shorter.
    pub fn create(&mut self, name: &str, len: usize) -> io::Result<Inode> {
        let inode = self.open(name).or_else(|_| self.link(name))?;
        let have = self.contents(inode)?.cache.len();
        self.give_back(have);
        let granted = self.allocate(len);
        let contents = self.contents(inode)?;
        contents.set_len(0);
        contents.set_len(granted);
        if granted < len { Err(full()) } else { Ok(inode) }
    }

    fn link(&mut self, name: &str) -> io::Result<Inode> {
        let (folder, file) = split(name);
        let inode = self.next;
        let folder = self.folder(folder)?;
        folder.now.insert(file.to_owned(), inode);
        folder.pending.push(Entry::Link(file.to_owned(), inode));
        self.files.insert(inode, Contents::default());
        self.next += 1;
        Ok(inode)
    }

    /// Gives a file another name in the same folder; what had that name is gone.
    pub fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let inode = self.open(from)?;
        let ((folder, old), (other, new)) = (split(from), split(to));
        if folder != other {
            return Err(io::Error::new(io::ErrorKind::CrossesDevices, "files stay in their folder"));
        }
        if let Ok(replaced) = self.open(to) {
            let len = self.contents(replaced)?.cache.len();
            self.give_back(len);
        }
        let folder = self.folder(folder)?;
        folder.now.remove(old);
        folder.now.insert(new.to_owned(), inode);
        folder.pending.push(Entry::Rename(old.to_owned(), new.to_owned()));
        Ok(())
    }

    /// Removes a file's name. Who has it open goes on reading it.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let inode = self.open(name)?;
        let len = self.contents(inode)?.cache.len();
        self.give_back(len);
        let (folder, file) = split(name);
        let folder = self.folder(folder)?;
        folder.now.remove(file);
        folder.pending.push(Entry::Unlink(file.to_owned()));
        Ok(())
    }

    /// Makes the first `count` pending entries durable.
    pub fn sync_folder(&mut self, folder: &str, count: usize) -> io::Result<()> {
        let folder = self.folder(folder)?;
        let count = count.min(folder.pending.len());
        for entry in folder.pending.drain(..count) {
            entry.apply(&mut folder.durable);
        }
        Ok(())
    }

    /// Entries of a folder that are not durable.
    pub fn pending_entries(&self, folder: &str) -> usize {
        self.folders.get(folder).map_or(0, |f| f.pending.len())
    }

    /// Length in bytes.
    pub fn len(&mut self, inode: Inode) -> io::Result<usize> {
        Ok(self.contents(inode)?.cache.len())
    }

    /// Fills `buf` from `at`.
    pub fn read(&mut self, inode: Inode, at: usize, buf: &mut [u8]) -> io::Result<()> {
        let from = self.contents(inode)?.cache.get(at..at + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    }

    /// Writes into the cache; beyond the end only as far as there is room.
    pub fn write(&mut self, inode: Inode, at: usize, bytes: &[u8]) -> io::Result<()> {
        let have = self.contents(inode)?.cache.len();
        let granted = self.allocate((at + bytes.len()).saturating_sub(have));
        let fits = bytes.len().min((have + granted).saturating_sub(at));
        self.contents(inode)?.write(at, bytes.get(..fits).unwrap_or_default());
        if fits < bytes.len() { Err(full()) } else { Ok(()) }
    }

    /// Makes the first `count` pending changes of a file durable.
    pub fn sync(&mut self, inode: Inode, count: usize) -> io::Result<()> {
        self.contents(inode)?.sync(count);
        Ok(())
    }

    /// A sync that failed: the kernel forgets that those changes are pending. Some reached the medium, some never will,
    /// and reads show all of them until the power goes.
    pub fn sync_lost(&mut self, inode: Inode, count: usize, rng: &mut Rng) -> io::Result<()> {
        let contents = self.contents(inode)?;
        let later = contents.pending.split_off(count.min(contents.pending.len()));
        contents.tear(rng);
        contents.pending = later;
        Ok(())
    }

    /// Changes of a file that are not durable.
    pub fn pending(&mut self, inode: Inode) -> usize {
        self.files.get(&inode).map_or(0, |f| f.pending.len())
    }

    /// Bytes that can still be allocated from now on.
    pub fn set_room(&mut self, room: Option<u64>) {
        self.room = room;
    }

    /// The power goes and comes back. Returns how many files and folders had something that was not synced.
    pub fn power_cut(&mut self, rng: &mut Rng) -> usize {
        let mut unsynced = 0;
        for contents in self.files.values_mut().filter(|f| !f.pending.is_empty()) {
            unsynced += 1;
            match Leaves::draw(rng) {
                Leaves::Nothing => {}
                Leaves::All => contents.sync(usize::MAX),
                Leaves::First => contents.sync(rng.below(contents.pending.len() as u64 + 1) as usize),
                Leaves::Any => contents.tear(rng),
            }
        }
        for contents in self.files.values_mut() {
            contents.pending.clear();
            contents.cache.clone_from(&contents.durable);
        }
        for folder in self.folders.values_mut() {
            unsynced += usize::from(!folder.pending.is_empty());
            folder.power_cut(rng);
        }
        let named: Vec<Inode> = self.folders.values().flat_map(|f| f.now.values().copied()).collect();
        self.files.retain(|inode, _| named.contains(inode));
        unsynced
    }

    /// Flips a bit or cuts a file short, durably: as a bad medium does.
    pub fn damage(&mut self, name: &str, rng: &mut Rng) -> io::Result<()> {
        let inode = self.open(name)?;
        let contents = self.contents(inode)?;
        contents.sync(usize::MAX);
        let len = contents.durable.len() as u64;
        let at = rng.below(len) as usize;
        if rng.one_in(4) {
            contents.durable.truncate(at);
        } else if let Some(byte) = contents.durable.get_mut(at) {
            *byte ^= 1 << rng.below(8);
        }
        contents.cache.clone_from(&contents.durable);
        Ok(())
    }

    /// Flips a bit, durably, in the first half of what was written to a file: long before its newest bytes. Returns where;
    /// `None` where there is too little.
    pub fn damage_early(&mut self, name: &str, rng: &mut Rng) -> Option<usize> {
        let inode = self.open(name).ok()?;
        let contents = self.contents(inode).ok()?;
        let used = contents.durable.iter().rposition(|byte| *byte != 0)?;
        let at = rng.below(used as u64 / 2) as usize;
        let byte = contents.durable.get_mut(at).filter(|_| used >= 8 * SECTOR)?;
        *byte ^= 1 << rng.below(8);
        contents.cache.clone_from(&contents.durable);
        Some(at)
    }

    /// Bytes of all files, as reads see them.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|f| f.cache.len() as u64).sum()
    }

    fn contents(&mut self, inode: Inode) -> io::Result<&mut Contents> {
        self.files.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn folder(&mut self, folder: &str) -> io::Result<&mut Folder> {
        if folder.is_empty() {
            return Ok(self.folders.entry(String::new()).or_default());
        }
        self.folders.get_mut(folder).ok_or_else(|| not_found(folder))
    }

    fn allocate(&mut self, bytes: usize) -> usize {
        let Some(room) = &mut self.room else { return bytes };
        let granted = (bytes as u64).min(*room);
        *room -= granted;
        granted as usize
    }

    fn give_back(&mut self, bytes: usize) {
        if let Some(room) = &mut self.room {
            *room += bytes as u64;
        }
    }
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated disk")
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Length(len) => to.resize(*len, 0),
            Self::Write { at, bytes } => {
                if to.len() < at + bytes.len() {
                    to.resize(at + bytes.len(), 0);
                }
                if let Some(place) = to.get_mut(*at..at + bytes.len()) {
                    place.copy_from_slice(bytes);
                }
            }
        }
    }

    /// What it does to one sector of the file that is as long as it ever was.
    fn apply_sector(&self, start: usize, sector: &mut [u8]) {
        match self {
            Self::Length(len) => {
                let from = len.saturating_sub(start).min(sector.len());
                sector.iter_mut().skip(from).for_each(|byte| *byte = 0);
            }
            Self::Write { at, bytes } => {
                let (from, to) = ((*at).max(start), (at + bytes.len()).min(start + sector.len()));
                if from < to
                    && let (Some(place), Some(bytes)) =
                        (sector.get_mut(from - start..to - start), bytes.get(from - at..to - at))
                {
                    place.copy_from_slice(bytes);
                }
            }
        }
    }

    fn end(&self) -> usize {
        match self {
            Self::Length(len) => *len,
            Self::Write { at, bytes } => at + bytes.len(),
        }
    }
}

impl Contents {
    fn set_len(&mut self, len: usize) {
        self.cache.resize(len, 0);
        self.pending.push(Change::Length(len));
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let change = Change::Write { at, bytes: bytes.to_vec() };
        change.apply(&mut self.cache);
        self.pending.push(change);
    }

    fn sync(&mut self, count: usize) {
        let count = count.min(self.pending.len());
        for change in self.pending.drain(..count) {
            change.apply(&mut self.durable);
        }
    }

    /// Makes of each sector, and of the length, the version after any of the pending changes; none is pending after it.
    fn tear(&mut self, rng: &mut Rng) {
        let changes = std::mem::take(&mut self.pending);
        let versions = changes.len() as u64 + 1;
        let mut len = self.durable.len();
        for change in changes.iter().take(rng.below(versions) as usize) {
            len = match change {
                Change::Length(to) => *to,
                Change::Write { .. } => len.max(change.end()),
            };
        }
        let longest = changes.iter().map(Change::end).max().unwrap_or_default().max(self.durable.len());
        self.durable.resize(longest, 0);
        for (n, sector) in self.durable.chunks_mut(SECTOR).enumerate() {
            for change in changes.iter().take(rng.below(versions) as usize) {
                change.apply_sector(n * SECTOR, sector);
            }
        }
        self.durable.truncate(len);
    }
}

impl Entry {
    fn apply(&self, to: &mut BTreeMap<String, Inode>) {
        match self {
            Self::Link(name, inode) => drop(to.insert(name.clone(), *inode)),
            Self::Unlink(name) => drop(to.remove(name)),
            Self::Rename(from, name) => {
                if let Some(inode) = to.remove(from) {
                    to.insert(name.clone(), inode);
                }
            }
        }
    }
}

impl Folder {
    fn power_cut(&mut self, rng: &mut Rng) {
        let pending = std::mem::take(&mut self.pending);
        let first = rng.below(pending.len() as u64 + 1) as usize;
        let leaves = Leaves::draw(rng);
        for (n, entry) in pending.into_iter().enumerate() {
            let kept = match leaves {
                Leaves::Nothing => false,
                Leaves::All => true,
                Leaves::First => n < first,
                Leaves::Any => rng.one_in(2),
            };
            if kept {
                entry.apply(&mut self.durable);
            }
        }
        self.now.clone_from(&self.durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn read(platter: &mut Platter, name: &str) -> Option<Vec<u8>> {
        let inode = platter.open(name).ok()?;
        let mut bytes = vec![0; platter.len(inode).unwrap()];
        platter.read(inode, 0, &mut bytes).unwrap();
        Some(bytes)
    }

    fn with_file(name: &str, len: usize) -> (Platter, Inode) {
        let mut platter = Platter::default();
        platter.make_folder("f");
        let inode = platter.create(name, len).unwrap();
        platter.sync(inode, usize::MAX).unwrap();
        platter.sync_folder("f", usize::MAX).unwrap();
        (platter, inode)
    }

    #[test]
    fn what_was_synced_survives_every_power_cut() {
        for seed in 0..200 {
            let (mut platter, inode) = with_file("f/a", 4096);
            platter.write(inode, 100, &[7; 2000]).unwrap();
            platter.sync(inode, usize::MAX).unwrap();
            platter.write(inode, 3000, &[9; 500]).unwrap();
            platter.power_cut(&mut Rng(seed));
            let bytes = read(&mut platter, "f/a").unwrap();
            assert_eq!(&bytes[100..2100], [7; 2000]);
            assert_eq!(bytes.len(), 4096);
        }
    }

    #[test]
    fn sectors_that_were_not_synced_keep_any_version_and_nothing_else() {
        let mut seen = BTreeSet::new();
        for seed in 0..2000 {
            let (mut platter, inode) = with_file("f/a", 3 * SECTOR);
            platter.write(inode, 0, &[1; 3 * SECTOR]).unwrap();
            platter.write(inode, 0, &[2; 3 * SECTOR]).unwrap();
            platter.power_cut(&mut Rng(seed));
            let bytes = read(&mut platter, "f/a").unwrap();
            let sectors: Vec<u8> = bytes.chunks(SECTOR).map(|s| s[0]).collect();
            assert!(bytes.chunks(SECTOR).all(|s| s.iter().all(|b| *b == s[0])), "a sector is torn");
            seen.insert(sectors);
        }
        assert_eq!(seen.len(), 27, "every combination of old, first and second version");
    }

    #[test]
    fn entries_that_were_not_synced_may_vanish_or_come_back() {
        let mut seen = BTreeSet::new();
        for seed in 0..300 {
            let (mut platter, _) = with_file("f/old", 1);
            platter.create("f/new", 1).unwrap();
            platter.rename("f/new", "f/renamed").unwrap();
            platter.remove("f/old").unwrap();
            assert_eq!(platter.list("f"), ["renamed"]);
            platter.power_cut(&mut Rng(seed));
            seen.insert(platter.list("f"));
        }
        let all = [vec!["new", "old"], vec!["new"], vec!["old"], vec!["old", "renamed"], vec!["renamed"], vec![]];
        assert_eq!(seen, all.iter().map(|names| names.iter().map(|n| (*n).to_owned()).collect()).collect());
    }

    #[test]
    fn a_failed_sync_forgets_what_was_pending() {
        let mut lost = 0;
        for seed in 0..100 {
            let (mut platter, inode) = with_file("f/a", SECTOR);
            platter.write(inode, 0, &[5; SECTOR]).unwrap();
            platter.sync_lost(inode, usize::MAX, &mut Rng(seed)).unwrap();
            assert_eq!(read(&mut platter, "f/a").unwrap(), [5; SECTOR], "reads still show it");
            platter.sync(inode, usize::MAX).unwrap();
            platter.power_cut(&mut Rng(seed));
            lost += u32::from(read(&mut platter, "f/a").unwrap() == [0; SECTOR]);
        }
        assert!((20..80).contains(&lost), "{lost}");
    }

    #[test]
    fn a_full_disk_grants_what_is_left() {
        let (mut platter, inode) = with_file("f/a", 100);
        platter.set_room(Some(50));
        assert!(platter.write(inode, 0, &[1; 100]).is_ok(), "no new bytes");
        assert_eq!(platter.create("f/b", 80).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&mut platter, "f/b").unwrap().len(), 50);
        platter.remove("f/b").unwrap();
        assert_eq!(platter.write(inode, 90, &[1; 100]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(platter.len(inode).unwrap(), 150);
        platter.set_room(None);
        platter.create("f/b", 80).unwrap();
    }
}

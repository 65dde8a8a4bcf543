//! The database as a disk: what is synced stays, what is damaged is said.

use super::*;
use crate::options::{Limits, Plant};
use crate::store::bare::BareLog;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| if self.below(3) == 0 { 0 } else { self.below(256) as u8 }).collect()
    }
}

fn files(folder: &Path) -> SledFiles {
    let files = SledFiles::open(folder).unwrap();
    files.make_folder("log").unwrap();
    files
}

#[track_caller]
fn check(files: &SledFiles, model: &BTreeMap<String, Vec<u8>>, rng: &mut Rng) {
    let names: Vec<String> = model.keys().map(|name| name.replace("log/", "")).collect();
    assert_eq!(files.list("log").unwrap(), names);
    for (name, bytes) in model {
        let file = files.open(name).unwrap();
        assert_eq!(file.len().unwrap(), bytes.len() as u64, "{name}");
        let mut found = vec![1; bytes.len()];
        file.read_at(0, &mut found).unwrap();
        assert!(&found == bytes, "{name}: {:?}", found.iter().zip(bytes).position(|(a, b)| a != b));
        if bytes.is_empty() {
            continue;
        }
        let from = rng.below(bytes.len() as u64);
        let mut piece = vec![1; rng.below(bytes.len() as u64 - from + 1) as usize];
        file.read_at(from, &mut piece).unwrap();
        assert_eq!(piece, bytes[from as usize..][..piece.len()], "{name} from {from}");
        let beyond = file.read_at(from, &mut vec![0; bytes.len() - from as usize + 1]).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn files_are_what_was_written_also_after_another_start() {
    for seed in 0..20 {
        let (folder, mut rng) = (tempfile::tempdir().unwrap(), Rng(seed));
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for _start in 0..3 {
            let files = files(folder.path());
            check(&files, &model, &mut rng);
            for _ in 0..60 {
                let name = format!("log/{}", rng.below(4));
                let other = format!("log/{}", rng.below(4));
                match rng.below(8) {
                    0 => {
                        let len = rng.below(6000);
                        files.create(&name, len).unwrap();
                        model.insert(name, vec![0; len as usize]);
                    }
                    1 => {
                        let renamed = files.rename(&name, &other);
                        assert_eq!(renamed.is_ok(), model.contains_key(&name));
                        if let Some(bytes) = model.remove(&name) {
                            model.insert(other, bytes);
                        }
                    }
                    2 => {
                        assert_eq!(files.remove(&name).is_ok(), model.remove(&name).is_some());
                    }
                    3 => files.sync_folder("log").unwrap(),
                    _ => {
                        let Some(bytes) = model.get_mut(&name) else {
                            assert_eq!(files.open(&name).err().unwrap().kind(), io::ErrorKind::NotFound);
                            continue;
                        };
                        let (at, more) = (rng.below(bytes.len() as u64 + 100), rng.below(5000));
                        let more = rng.bytes(more);
                        let file = files.open(&name).unwrap();
                        file.write_at(at, &more).unwrap();
                        let end = at as usize + more.len();
                        bytes.resize(bytes.len().max(end), 0);
                        bytes[at as usize..end].copy_from_slice(&more);
                        file.sync().unwrap();
                    }
                }
            }
            check(&files, &model, &mut rng);
            let full = |bytes: &Vec<u8>| bytes.chunks(PAGE).filter(|page| page.iter().any(|b| *b != 0)).count();
            let keys = model.values().map(|bytes| 1 + full(bytes)).sum::<usize>();
            assert_eq!(files.store().unwrap().pages.len(), keys, "what nobody can read any more is gone");
        }
    }
}

#[test]
fn a_file_that_is_open_stays_readable_without_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let (kept, replaced) = (files.create("log/a", 10).unwrap(), files.create("log/b", 10).unwrap());
    kept.write_at(0, b"kept").unwrap();
    replaced.write_at(0, b"replaced").unwrap();
    files.rename("log/a", "log/b").unwrap();
    let mut found = [0; 8];
    replaced.read_at(0, &mut found).unwrap();
    assert_eq!(&found, b"replaced");
    files.remove("log/b").unwrap();
    kept.read_at(0, &mut found).unwrap();
    assert_eq!(&found, b"kept\0\0\0\0");
    drop((kept, replaced));
    files.store().unwrap().collect().unwrap();
    assert_eq!(files.store().unwrap().pages.len(), 0);
}

#[test]
fn another_folder_is_in_files_and_the_log_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    files.make_folder("snapshots").unwrap();
    files.create("snapshots/a", 3).unwrap().write_at(0, b"abc").unwrap();
    files.create("log/a", 3).unwrap();
    assert_eq!(fs::read(folder.path().join("snapshots/a")).unwrap(), b"abc");
    assert!(!folder.path().join("log/a").exists());
    assert_eq!(files.rename("log/a", "snapshots/b").unwrap_err().kind(), io::ErrorKind::CrossesDevices);
    let blobs = fs::read_dir(folder.path().join("log/sled/blobs")).unwrap().count();
    assert_eq!(blobs, 0, "what lies there, no sync of ours reaches");
}

/// What a process that is killed leaves: what it had handed to the system.
#[test]
fn what_was_acknowledged_is_there_whenever_the_process_ends() {
    let (mut folder, mut rng, mut acknowledged) = (tempfile::tempdir().unwrap(), Rng(7), 0);
    let entry = |n: u64| Bytes::from(Rng(n).bytes(1 + (n * 7919) % 3000));
    for _life in 0..6 {
        let log = BareLog::open(SledDisk::open(folder.path()).unwrap(), &Limits::default(), Plant::default()).unwrap();
        assert!(log.count() >= acknowledged, "{} of {acknowledged}", log.count());
        log.read(move |n, bytes| assert_eq!(bytes, entry(n), "entry {n}")).unwrap();
        for _ in 0..30 {
            let (from, to) = (log.count(), log.count() + 1 + rng.below(20));
            let (tx, rx) = sync_channel(1);
            log.append((from..to).map(entry), move |result| tx.send(result).unwrap()).unwrap();
            rx.recv().unwrap().unwrap();
            acknowledged = to;
        }
        let left = tempfile::tempdir().unwrap();
        copy(folder.path(), left.path());
        folder = left;
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_folder_has_one_store() {
    let (wal, sled) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The one before lets go of the folder once its threads have ended.
    let open = |asked, folder: &Path| {
        for _ in 0..2000 {
            match LogStore::open(asked, folder).err().map(|error| error.code()) {
                Some("data_folder_locked") => std::thread::sleep(LOOK),
                other => return other,
            }
        }
        Some("data_folder_locked")
    };
    for (folder, store, other) in [(&wal, LogStore::Wal, LogStore::Sled), (&sled, LogStore::Sled, LogStore::Wal)] {
        let disk = LogStore::open(Some(store), folder.path()).unwrap();
        assert_eq!(LogStore::found(folder.path()).unwrap(), None, "nothing was begun");
        BareLog::open(disk, &Limits::default(), Plant::default()).unwrap().close().unwrap();
        assert_eq!(LogStore::found(folder.path()).unwrap(), Some(store));
        assert_eq!(open(Some(other), folder.path()), Some("data_folder_other_store"));
        assert_eq!((open(None, folder.path()), open(Some(store), folder.path())), (None, None));
    }
    // Who does not ask finds no empty log either.
    let disk = (0..2000).find_map(|_| {
        std::thread::sleep(LOOK);
        crate::disk::FileDisk::open(sled.path()).ok()
    });
    let files = BareLog::open(disk.unwrap(), &Limits::default(), Plant::default());
    assert_eq!(files.err().map(|error| error.code()), Some("data_folder_other_store"));
    assert_eq!(open(Some(LogStore::Sled), wal.path()), Some("data_folder_other_store"));
    assert_eq!(SledDisk::open(wal.path()).err().map(|error| error.code()), Some("data_folder_other_store"));
}

#[test]
fn a_database_that_was_damaged_is_refused_or_ends_early_and_gives_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let log = BareLog::open(SledDisk::open(folder.path()).unwrap(), &Limits::default(), Plant::default()).unwrap();
    let (tx, rx) = sync_channel(1);
    log.append((0..200).map(|n| Bytes::from(Rng(n).bytes(300))), move |result| tx.send(result).unwrap()).unwrap();
    rx.recv().unwrap().unwrap();
    log.close().unwrap();
    for seed in 0..40 {
        let hurt = tempfile::tempdir().unwrap();
        copy(folder.path(), hurt.path());
        let db = hurt.path().join("log/sled/db");
        let mut bytes = fs::read(&db).unwrap();
        let at = Rng(seed).below(bytes.len() as u64) as usize;
        bytes[at] ^= 0x10;
        fs::write(&db, bytes).unwrap();
        let opened =
            SledDisk::open(hurt.path()).and_then(|disk| BareLog::open(disk, &Limits::default(), Plant::default()));
        match opened {
            Ok(log) => {
                let read = log.read(|n, bytes| assert_eq!(bytes, Rng(n).bytes(300), "entry {n}"));
                assert!(read.is_ok_and(|()| log.count() <= 200), "byte {at}");
            }
            Err(error) => {
                let code = error.code();
                assert!(["data_folder_damaged", "data_folder_incomplete"].contains(&code), "byte {at}: {error}");
            }
        }
    }
}

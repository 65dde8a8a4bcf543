//! A log comes back out of its entries: the same history, a new epoch, this member alone.

use crate::common::EPOCH;
use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::entry_decode;
use cvlan_raft::counter::{Command, Counter};
use cvlan_raft::{FileDisk, Item, Member, NoTransport, OpenError, Options, Restored, restore, verify_dir};
use openraft_rt_tokio::TokioRuntime;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

type Counting = Member<Counter, TokioRuntime>;
const NEXT: Epoch = Epoch([9; 16]);

/// A job of one that has ended may have the folder for a moment.
fn disk(folder: &Path) -> Arc<FileDisk> {
    loop {
        match FileDisk::open(folder) {
            Err(OpenError::Locked { .. }) => std::thread::sleep(Duration::from_millis(5)),
            disk => return disk.unwrap(),
        }
    }
}

fn options(folder: &Path, member: u64) -> Options<Counter> {
    Options { member, ..Options::single(disk(folder)) }
}

async fn open(folder: &Path, member: u64) -> Counting {
    let log = Counting::open(options(folder, member), NoTransport).await.unwrap();
    assert!(log.writable(Duration::from_secs(10)).await);
    log
}

/// In pages of that many entries.
async fn all_of(log: &Counting, limit: usize) -> Vec<Restored> {
    let (mut all, mut from) = (Vec::new(), Seq(1));
    while from <= log.head().seq {
        for item in log.backup_from(from, limit).await.unwrap() {
            all.push(match item {
                Item::Members(members) => Restored::Members(members),
                Item::Frame(entry) => {
                    let events = entry_decode(&entry.frame).unwrap().events.len() as u64;
                    from = Seq(entry.first_seq.0 + events);
                    Restored::Frame(entry.frame)
                }
            });
        }
    }
    all
}

fn frames(all: &[Restored]) -> Vec<Bytes> {
    let frame = |item: &Restored| match item {
        Restored::Frame(frame) => Some(frame.clone()),
        Restored::Members(_) => None,
    };
    all.iter().filter_map(frame).collect()
}

async fn again(
    folder: &Path,
    member: u64,
    all: &[Restored],
    fits: Result<(), String>,
) -> Result<cvlan_raft::Forced, OpenError> {
    let mut all = all.iter().cloned();
    restore::<Counter, TokioRuntime>(&options(folder, member), || Ok(all.next()), |_| fits, NEXT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn history_comes_back_in_a_new_epoch() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(old.path(), 1).await;
    log.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    let many = Command::Add { by: 2, times: 9_000, note: Bytes::from(vec![7; 200]), once: None };
    for _ in 0..3 {
        log.write(many.clone()).await.unwrap();
        log.write(Command::add(5)).await.unwrap();
    }
    log.checkpoint().await.unwrap();
    let (head, all) = (log.head(), all_of(&log, 1).await);
    assert_eq!(all, all_of(&log, 1000).await);
    assert!(all.iter().any(|item| matches!(item, Restored::Members(_))));
    log.shutdown().await;

    let forced = again(new.path(), 6, &all, Ok(())).await.unwrap();
    assert_eq!((forced.epoch, forced.seq, forced.done), (EPOCH, head.seq, true));
    let log = open(new.path(), 6).await;
    let now = log.head();
    assert_eq!((now.epoch, now.seq.0, now.machine.sum), (NEXT, head.seq.0 + 1, head.machine.sum));
    assert_eq!(now.members.voters.iter().flatten().copied().collect::<Vec<_>>(), [6]);
    let two_epochs = all_of(&log, 7).await;
    let now_frames = frames(&two_epochs);
    assert_eq!(now_frames[..now_frames.len() - 1], frames(&all));
    assert_eq!(two_epochs[..all.len()], all);
    assert_eq!(log.prove(head.seq, None, None).await.unwrap().root, head.root, "the same tree");
    log.write(Command::add(1)).await.unwrap();
    log.shutdown().await;
    drop(log);
    let report = verify_dir::<Counter, TokioRuntime>(disk(new.path())).await.unwrap();
    assert_eq!((report.epoch, report.events, report.checkpoints.len()), (NEXT, head.seq.0 + 2, 1));

    // A log of two epochs, once more.
    let third = tempfile::tempdir().unwrap();
    let mut items = two_epochs.iter().cloned();
    let next = || Ok(items.next());
    let forced = restore::<Counter, TokioRuntime>(&options(third.path(), 6), next, |_| Ok(()), Epoch([11; 16])).await;
    let forced = forced.unwrap();
    assert_eq!((forced.epoch, forced.seq.0, forced.done), (NEXT, head.seq.0 + 1, true));
    let report = verify_dir::<Counter, TokioRuntime>(disk(third.path())).await.unwrap();
    assert_eq!((report.epoch, report.events), (Epoch([11; 16]), head.seq.0 + 2));

    // Not over what is there; not where the state does not fit; an error of the file is said.
    assert!(matches!(again(new.path(), 6, &all, Ok(())).await, Err(OpenError::Incomplete(_))));
    let none = tempfile::tempdir().unwrap();
    let refused = again(none.path(), 6, &all, Err("another cluster's".into())).await;
    assert!(matches!(refused, Err(OpenError::Incomplete(why)) if why == "another cluster's"));
    let none = tempfile::tempdir().unwrap();
    let cut = || Err(io::Error::other("cut off"));
    let failed = restore::<Counter, TokioRuntime>(&options(none.path(), 6), cut, |_| Ok(()), NEXT).await;
    assert!(failed.unwrap_err().to_string().contains("cut off"));
}

//! A log comes back out of its entries: the same history, a new epoch, this member alone.

use crate::common::EPOCH;
use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::log::entry_decode;
use cvlan_raft::counter::{Command, Counter};
use cvlan_raft::{Base, FileDisk, Item, Member, NoTransport, OpenError, Options, Restored, restore, verify_dir};
use openraft_rt_tokio::TokioRuntime;
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    all_from(log, Seq(1), limit).await
}

async fn all_from(log: &Counting, mut from: Seq, limit: usize) -> Vec<Restored> {
    let mut all = Vec::new();
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
    restore::<Counter, TokioRuntime>(&options(folder, member), None, || Ok(all.next()), |_| fits, NEXT).await
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
    let forced =
        restore::<Counter, TokioRuntime>(&options(third.path(), 6), None, next, |_| Ok(()), Epoch([11; 16])).await;
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
    let failed = restore::<Counter, TokioRuntime>(&options(none.path(), 6), None, cut, |_| Ok(()), NEXT).await;
    assert!(failed.unwrap_err().to_string().contains("cut off"));
}

/// The same state, but for the last byte of what it counts: it is one that the log never came to.
fn forged(base: &Base) -> Base {
    let mut saved = zstd::bulk::decompress(&base.packed, base.length as usize).unwrap();
    let last = saved.len() - 17;
    saved[last] ^= 1;
    let digest = <[u8; 32]>::from(Sha256::digest(&saved));
    Base { digest, packed: zstd::bulk::compress(&saved, 1).unwrap().into(), ..base.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn trimmed_history_comes_back_behind_the_state_before_it() {
    let old = tempfile::tempdir().unwrap();
    let mut options_old = options(old.path(), 1);
    let limits = &mut options_old.limits;
    (limits.segment_bytes, limits.tail_bytes, limits.purge_behind) = (16 << 10, 4 << 10, 5);
    (limits.history_ms, limits.history_check_ms, limits.snapshot_events) = (300, 20, 20);
    let log = Counting::open(options_old, NoTransport).await.unwrap();
    assert!(log.writable(Duration::from_secs(10)).await);
    log.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while log.status().history_from < 60 {
        assert!(Instant::now() < end, "nothing was trimmed");
        let command = Command::Add { by: 3, times: 1, note: Bytes::from(vec![7; 1500]), once: None };
        log.write(command).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    log.history_hold(Seq(log.status().history_from));
    assert_eq!(log.backup_from(Seq(1), 1).await.unwrap_err().code(), "history_gone");
    let unsaid = log.backup_base().await.unwrap().unwrap();
    let not_attested = all_from(&log, Seq(unsaid.seq.0 + 1), 10).await;
    log.checkpoint().await.unwrap();
    log.write(Command::add(5)).await.unwrap();
    // What is old enough to go says so, in an event of its own: all of this is of one moment.
    let (head, base, history_from, all, report) = loop {
        let (head, history_from) = (log.head(), log.status().history_from);
        let base = log.backup_base().await.unwrap().unwrap();
        let all = all_from(&log, Seq(base.seq.0 + 1), 10).await;
        let report = log.log_verify(None).await.unwrap();
        if (log.head().seq, log.status().history_from) == (head.seq, history_from) {
            break (head, base, history_from, all, report);
        }
        assert!(Instant::now() < end, "it never rests");
    };
    assert_eq!(base.seq.0 + 1, history_from, "what is gone is in the state, and nothing else");
    assert_eq!((report.from.0, report.seq, report.root), (base.seq.0 + 1, head.seq, head.root));
    assert_eq!(log.log_verify(Some(Seq(base.seq.0 - 1))).await.unwrap_err().code(), "history_gone");
    log.shutdown().await;
    drop(log);

    let back = async |base: &Base, all: &[Restored]| {
        let new = tempfile::tempdir().unwrap();
        let (mut items, base) = (all.iter().cloned(), Some(base.clone()));
        let next = || Ok(items.next());
        let done = restore::<Counter, TokioRuntime>(&options(new.path(), 6), base, next, |_| Ok(()), NEXT).await;
        (new, done)
    };
    let (new, forced) = back(&base, &all).await;
    let forced = forced.unwrap();
    assert_eq!((forced.epoch, forced.seq, forced.done), (EPOCH, head.seq, true));
    for _ in 0..2 {
        let log = open(new.path(), 6).await;
        let now = log.head();
        assert_eq!((now.epoch, now.machine.sum), (NEXT, head.machine.sum));
        assert_eq!(log.status().history_from, base.seq.0 + 1);
        log.write(Command::add(0)).await.unwrap();
        let proof = log.prove(head.seq, Some(head.seq), Some(base.seq)).await.unwrap();
        assert_eq!((proof.root, proof.consistency.unwrap().root), (head.root, base.tree.root()));
        let report = log.log_verify(None).await.unwrap();
        assert_eq!((report.from.0, report.checkpoints.is_empty()), (base.seq.0 + 1, false));
        assert_eq!(log.backup_base().await.unwrap().unwrap().seq, base.seq, "and a backup of it begins there");
        log.shutdown().await;
    }
    let report = verify_dir::<Counter, TokioRuntime>(disk(new.path())).await.unwrap();
    assert_eq!((report.epoch, report.from.0), (NEXT, base.seq.0 + 1));

    let other = |change: &dyn Fn(&mut Base)| {
        let mut base = base.clone();
        change(&mut base);
        base
    };
    let cases = [
        ("attested", forged(&base), &all),
        ("no checkpoint after it", unsaid, &not_attested),
        ("its digest is wrong", other(&|base| base.digest[0] ^= 1), &all),
        ("of another history", other(&|base| base.seq.0 += 1), &all),
        ("bytes long", other(&|base| base.length = u64::MAX), &all),
        ("the state after event", other(&|base| base.packed = Bytes::from_static(b"no state")), &all),
        ("the state after event", other(&|base| base.length -= 1), &all),
    ];
    for (what, base, all) in cases {
        let refused = back(&base, all).await.1.expect_err(what).to_string();
        assert!(refused.contains(what), "{what}: {refused}");
    }
}

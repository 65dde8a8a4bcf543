//! One member on real files: what is acknowledged is there after a stop, a kill, damage to snapshots.

use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::machine::Once;
use cvlan_raft::counter::{Body, Command, Count, Counter, Refused};
use cvlan_raft::{Applied, FileDisk, Limits, Member, NoTransport, OpenError, Options, WriteError, verify_dir};
use openraft_rt_tokio::TokioRuntime;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Counting = Member<Counter, TokioRuntime>;
const EPOCH: Epoch = Epoch([7; 16]);

fn small() -> Limits {
    Limits { segment_bytes: 64 << 10, tail_bytes: 16 << 10, snapshot_events: 500, ..Limits::default() }
}

async fn open_with(folder: &Path, edit: impl FnOnce(&mut Options<Counter>)) -> Result<Counting, OpenError> {
    // A killed runtime may leave a job on the disk's thread, which has the folder until it ends.
    let disk = loop {
        match FileDisk::open(folder) {
            Err(OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            disk => break disk?,
        }
    };
    let mut options = Options::single(disk);
    options.limits = small();
    edit(&mut options);
    let member = Counting::open(options, NoTransport).await?;
    assert!(member.writable(Duration::from_secs(10)).await, "{:?}", member.status());
    Ok(member)
}

async fn open(folder: &Path) -> Counting {
    open_with(folder, |_| {}).await.unwrap()
}

async fn fresh(folder: &Path) -> Counting {
    let member = open(folder).await;
    assert_eq!(member.write(Command::add(1)).await.err(), Some(WriteError::NotBootstrapped));
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    assert_eq!(member.bootstrap(EPOCH, Command::add(1)).await.err(), Some(WriteError::AlreadyBootstrapped));
    member
}

/// Adds 1 `n` times from `callers` tasks.
async fn add(member: &Counting, callers: u64, n: u64) {
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let member = member.clone();
            tokio::spawn(async move {
                let mut seqs = Vec::new();
                for _ in 0..n {
                    seqs.push(member.write(Command::add(1)).await.unwrap().checkpoint.seq);
                }
                seqs
            })
        })
        .collect();
    let mut seqs = Vec::new();
    for task in tasks {
        seqs.extend(task.await.unwrap());
    }
    let count = seqs.len();
    seqs.sort();
    seqs.dedup();
    assert_eq!(seqs.len(), count, "every command has its own number");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_share_syncs_and_everything_is_there_after_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let member = fresh(folder.path()).await;
    add(&member, 50, 40).await;
    let head = member.head();
    let status = member.status();
    assert_eq!((head.machine.clone(), head.seq), (Count { count: 2001, sum: 2001, history_from: 0 }, Seq(2001)));
    assert!(status.entries < 1500, "2001 commands in {} entries", status.entries);
    assert!(status.segments >= 2, "{status:?}");
    let digest = head.digest::<Counter>();
    member.shutdown().await;
    drop(member);

    let member = open(folder.path()).await;
    assert_eq!(member.head().digest::<Counter>(), digest);
    add(&member, 1, 10).await;
    assert_eq!(member.head().machine.sum, 2011);
    let report = member.log_verify(None).await.unwrap();
    assert_eq!((report.events, report.digest), (2011, member.head().digest::<Counter>()));
    member.shutdown().await;
    drop(member);
    let closed = verify_dir::<Counter, TokioRuntime>(FileDisk::open(folder.path()).unwrap()).await.unwrap();
    assert_eq!(closed, report);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encoded_beside_is_what_everybody_folds() {
    let folder = tempfile::tempdir().unwrap();
    let edit = |options: &mut Options<Counter>| {
        options.limits = Limits { encode_beside: 2, entry_bytes: 2048, checkpoint_ms: 5, ..small() };
    };
    let member = open_with(folder.path(), edit).await.unwrap();
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    let callers: Vec<_> = (1..=16u64)
        .map(|session| {
            let member = member.clone();
            tokio::spawn(async move {
                for n in 1..=30u64 {
                    let (times, note) = (((session + n) % 5) as u32, Bytes::from(vec![session as u8; 40]));
                    let once = Some(Once { session, n });
                    let add = Command::Add { by: 1, times, note: note.clone(), once };
                    let answer = member.write(add.clone()).await.unwrap();
                    let numbers = (answer.first_seq.0..).take(answer.events.len());
                    assert!(answer.events.iter().map(|event| event.seq.0).eq(numbers), "{:?}", answer.events);
                    assert_eq!(answer.events.len(), times as usize);
                    assert!(answer.events.iter().all(|event| event.body == Body::Added { by: 1, note: note.clone() }));
                    let again = member.write(add).await.unwrap();
                    assert_eq!((again.first_seq, again.repeated), (answer.first_seq, times > 0));
                    assert_eq!(member.write(Command::Refuse).await.err(), Some(WriteError::Rejected(Refused)));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let head = member.head();
    assert_eq!(head.machine.count, 1 + 16 * 30 * 2);
    let report = member.log_verify(Some(head.seq)).await.unwrap();
    assert_eq!((report.seq, report.root, report.digest), (head.seq, head.root, head.digest::<Counter>()));
    assert!(!report.checkpoints.is_empty(), "digests of heads inside of entries were attested, and are right");
    member.shutdown().await;
}

#[test]
fn a_killed_member_has_lost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut sum = 0;
    for life in 0..5 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let member = if life == 0 { fresh(folder.path()).await } else { open(folder.path()).await };
            assert!(member.head().machine.sum >= sum, "life {life}");
            add(&member, 8, 20).await;
            sum = member.head().machine.sum;
        });
        // Every task is dropped where it stands.
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
    assert_eq!(sum, 1 + 5 * 160);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_numbered_command_is_carried_out_once_also_across_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let member = fresh(folder.path()).await;
    let command = Command::Add { by: 5, times: 3, note: Bytes::new(), once: Some(Once { session: 9, n: 1 }) };
    // Sent again while the first is still in flight.
    let (first, second) = tokio::join!(member.write(command.clone()), member.write(command.clone()));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!((first.repeated, second.repeated), (false, true));
    assert_eq!((first.checkpoint, &*first.events), (second.checkpoint, &*second.events));
    assert_eq!(first.events.len(), 3);
    member.shutdown().await;
    drop(member);
    let member = open(folder.path()).await;
    let third = member.write(command.clone()).await.unwrap();
    assert_eq!((third.repeated, third.checkpoint, &*third.events), (true, first.checkpoint, &*first.events));
    assert_eq!(member.head().machine.sum, 1 + 15);
    for n in 2..=1026 {
        member.write(Command::add_once(0, 9, n)).await.unwrap();
    }
    assert_eq!(member.write(command).await.err(), Some(WriteError::OutcomeUnknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn rejections_and_commands_without_effect_append_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let member = fresh(folder.path()).await;
    let before = member.status().last_index;
    assert_eq!(member.write(Command::Refuse).await.err(), Some(WriteError::Rejected(Refused)));
    let nothing = Command::Add { by: 1, times: 0, note: Bytes::new(), once: None };
    let answer = member.write(nothing).await.unwrap();
    assert_eq!((answer.checkpoint, answer.events.len()), (member.head().checkpoint(), 0));
    let huge = Command::Add { by: 1, times: 5, note: vec![0; 1 << 20].into(), once: None };
    let error = member.write(huge).await.err().unwrap();
    assert!(matches!(error, WriteError::TooLarge { .. }), "{error}");
    assert_eq!(member.status().last_index, before);
    add(&member, 1, 1).await;
    assert_eq!(member.head().seq, Seq(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_newest_snapshot_means_an_older_one_and_a_longer_replay() {
    let folder = tempfile::tempdir().unwrap();
    let member = fresh(folder.path()).await;
    let mut digests = Vec::new();
    for _ in 0..3 {
        add(&member, 20, 40).await;
        member.snapshot().await.unwrap();
        digests.push(member.head().digest::<Counter>());
        assert_eq!(member.status().snapshot_seq, Some(member.head().seq.0));
    }
    member.shutdown().await;
    drop(member);
    let mut snapshots: Vec<_> =
        std::fs::read_dir(folder.path().join("snapshots")).unwrap().map(|entry| entry.unwrap().path()).collect();
    snapshots.sort();
    assert!(snapshots.len() >= 2 && snapshots.len() <= 3, "{snapshots:?}");
    while let Some(newest) = snapshots.pop() {
        let member = open(folder.path()).await;
        assert_eq!(&member.head().digest::<Counter>(), digests.last().unwrap());
        member.shutdown().await;
        drop(member);
        let mut bytes = std::fs::read(&newest).unwrap();
        let middle = bytes.len() - 3;
        bytes[middle] ^= 1;
        std::fs::write(&newest, bytes).unwrap();
    }
    // Without any snapshot: the whole log.
    let member = open(folder.path()).await;
    assert_eq!(&member.head().digest::<Counter>(), digests.last().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn observers_see_every_entry_once_in_order_and_history_serves_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let seen: Arc<Mutex<Vec<(Seq, Bytes)>>> = Arc::default();
    let noting = seen.clone();
    let member = open_with(folder.path(), |options| {
        options.observers.push(Arc::new(move |applied: &Applied<Counter>| {
            assert_eq!(applied.events.last().unwrap().seq, applied.head.seq);
            let pairs = applied.events.iter().map(|event| event.seq).zip(applied.raw.iter().cloned());
            noting.lock().unwrap().extend(pairs);
        }));
    })
    .await
    .unwrap();
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    let note = Bytes::from(vec![3; 100]);
    for by in 0..400 {
        let command = Command::Add { by, times: 3, note: note.clone(), once: None };
        let written = member.write(command).await;
        assert!(written.is_ok(), "{:?}", member.status());
    }
    let mut history = Vec::new();
    loop {
        let page = member.history(Seq(history.len() as u64 + 1), 100).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 100);
        history.extend(page);
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(history.len(), 1201);
    assert_eq!(history, seen);
    for from in [1, 2, 600, 1200, 1201] {
        let page = member.history(Seq(from), 5).await.unwrap();
        assert_eq!(page, history[from as usize - 1..(from as usize + 4).min(1201)], "from {from}");
        let frames = member.entries_from(Seq(from), 1).await.unwrap();
        assert!(frames[0].first_seq.0 <= from && from < frames[0].first_seq.0 + 3);
    }
    assert!(member.history(Seq(1202), 5).await.unwrap().is_empty());

    let time_of = |seq: u64| {
        let bytes = &history[seq as usize - 1].1;
        u64::from_le_bytes(bytes[8..16].try_into().unwrap())
    };
    for seq in [1, 300, 900, 1201] {
        let at = member.seq_at_time(time_of(seq)).await.unwrap();
        assert!(at.0 >= seq && time_of(at.0) == time_of(seq), "{seq} {at}");
        assert!(at.0 == 1201 || time_of(at.0 + 1) > time_of(seq));
    }
    assert_eq!(member.seq_at_time(time_of(1) - 1).await.unwrap(), Seq(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_attested_and_the_log_replays_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let member = fresh(folder.path()).await;
    let writer = member.clone();
    let writing = tokio::spawn(async move { add(&writer, 20, 100).await });
    let mut attested = Vec::new();
    for _ in 0..3 {
        attested.push(member.checkpoint().await.unwrap());
        // Up to there it is what was attested, whatever follows in the same entry.
        let at = attested.last().unwrap();
        let report = member.log_verify(Some(at.checkpoint.seq)).await.unwrap();
        assert_eq!((report.seq, report.root, report.digest), (at.checkpoint.seq, at.root, at.digest));
    }
    writing.await.unwrap();
    let report = member.log_verify(None).await.unwrap();
    let found: Vec<_> = report.checkpoints.iter().map(|c| (c.seq, c.root, c.digest)).collect();
    let wanted: Vec<_> = attested.iter().map(|a| (a.checkpoint.seq, a.root, a.digest)).collect();
    assert_eq!(found, wanted);
    assert_eq!((report.digest, report.root), (member.head().digest::<Counter>(), member.head().root));
    assert_eq!(member.status().diverged, None);
    member.shutdown().await;
    drop(member);
    let member = open(folder.path()).await;
    assert_eq!(member.log_verify(None).await.unwrap().checkpoints.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_moves_a_marker_and_history_stays() {
    let folder = tempfile::tempdir().unwrap();
    let edit = |options: &mut Options<Counter>| options.limits.purge_behind = 20;
    let member = open_with(folder.path(), edit).await.unwrap();
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    add(&member, 1, 300).await;
    member.snapshot().await.unwrap();
    add(&member, 1, 100).await;
    member.snapshot().await.unwrap();
    let mut tries = 0;
    while member.status().purged_index < 300 {
        tries += 1;
        assert!(tries < 200, "{:?}", member.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let head = member.head();
    let history = member.history(Seq(1), 1000).await.unwrap();
    assert_eq!(history.len(), 401);
    let report = member.log_verify(None).await.unwrap();
    assert_eq!((report.events, report.digest), (401, head.digest::<Counter>()));
    member.shutdown().await;
    drop(member);
    let member = open_with(folder.path(), edit).await.unwrap();
    assert_eq!(member.head().digest::<Counter>(), head.digest::<Counter>());
    assert_eq!(member.history(Seq(1), 1000).await.unwrap(), history);
    add(&member, 1, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_busy_and_a_stopped_member_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let member = open_with(folder.path(), |options| options.limits.queue = 4).await.unwrap();
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    let many: Vec<_> = (0..2000).map(|_| member.write(Command::add(1))).collect();
    let results = futures_util::future::join_all(many).await;
    let busy = results.iter().filter(|result| matches!(result, Err(WriteError::Busy))).count();
    let good = results.iter().filter(|result| result.is_ok()).count();
    assert!(busy > 0 && good > 0 && busy + good == 2000, "{busy} busy, {good} good");
    assert_eq!(member.head().machine.sum, 1 + good as u64);
    member.shutdown().await;
    assert_eq!(member.write(Command::add(1)).await.err(), Some(WriteError::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_follow_changes_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let member = open_with(folder.path(), |options| options.limits.checkpoint_ms = 20).await.unwrap();
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    let attested = async |seq: u64| {
        while member.head().seq.0 < seq {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Opened and attested once; then nothing changes, and nothing more comes.
    attested(3).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(member.head().seq, Seq(3));
    member.write(Command::add(1)).await.unwrap();
    attested(6).await;
    let report = member.log_verify(Some(Seq(6))).await.unwrap();
    assert_eq!(report.checkpoints.iter().map(|c| c.seq).collect::<Vec<_>>(), [Seq(2), Seq(5)]);
    member.shutdown().await;
}

//! A majority is lost for good: one member goes on alone, in an epoch of its own, with all that it has.

use crate::common::{Cluster, Counting, EPOCH, Rt, eventually};
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::machine::SystemFact;
use cvlan_raft::counter::{Command, Counter};
use cvlan_raft::{WriteError, force_new_cluster, verify_dir};
use std::time::Duration;

const NEXT: Epoch = Epoch([9; 16]);

async fn force(cluster: &Cluster, id: u64, from: Option<Epoch>) -> cvlan_raft::Forced {
    let options = cluster.options(id).await;
    force_new_cluster::<Counter, Rt>(&options, from, NEXT).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_one_goes_on_with_all_it_has_and_the_others_never_come_back() {
    let cluster = Cluster::of(3).await;
    for by in 1..=50 {
        cluster.write(1, by).await;
    }
    cluster.same().await;
    let before = cluster.member(2).head();
    for id in [1, 2, 3] {
        cluster.stop(id).await;
    }

    // A look changes nothing, and neither does the wrong epoch.
    for from in [None, Some(Epoch([1; 16]))] {
        let found = force(&cluster, 2, from).await;
        assert_eq!((found.epoch, found.seq, found.done), (EPOCH, before.seq, false));
        assert_eq!(found.members.voters, before.members.voters);
    }
    assert!(force(&cluster, 2, Some(EPOCH)).await.done);
    let again = force(&cluster, 2, Some(EPOCH)).await;
    assert_eq!((again.epoch, again.done), (NEXT, false), "once");
    assert_eq!(again.members.voters, [[2].into()]);

    cluster.start(2).await;
    let alone: Counting = cluster.member(2);
    assert!(alone.writable(Duration::from_secs(10)).await);
    let head = alone.head();
    assert_eq!((head.epoch, head.seq), (NEXT, Seq(before.seq.0 + 1)));
    assert_eq!(head.machine.sum, before.machine.sum);
    cluster.write(2, 1_000).await;
    alone.checkpoint().await.unwrap();

    // The others are there again, and are a majority of the old cluster; here they are nobody.
    cluster.start(1).await;
    cluster.start(3).await;
    eventually("the old majority leads its own log", || cluster.member(1).status().leader.is_some()).await;
    cluster.write(3, 1).await;
    assert_eq!((cluster.member(3).head().epoch, alone.head().epoch), (EPOCH, NEXT));
    assert!(alone.status().peers.is_empty() && alone.status().writable);
    cluster.stop(1).await;
    cluster.stop(3).await;

    // The history is one, over both epochs, for whoever comes next as well.
    cluster.join(4).await;
    cluster.same().await;
    let report = cluster.member(4).log_verify(None).await.unwrap();
    assert_eq!((report.epoch, report.seq), (NEXT, alone.head().seq));
    assert_eq!((report.root, report.skipped), (alone.head().root, 0));
    assert_eq!(report.checkpoints.len(), 1);
    drop(alone);
    cluster.stop(2).await;
    let offline = verify_dir::<Counter, Rt>(cluster.options(2).await.disk).await.unwrap();
    assert_eq!((offline.root, offline.digest), (report.root, report.digest));
    cluster.start(2).await;
    assert!(cluster.member(2).writable(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_and_not_known_to_be_committed_is_kept() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    for id in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.kill(id).await;
    }
    let member = cluster.member(leader);
    // It is in this member's log alone; whoever asked is not told that it was done.
    let unknown = tokio::time::timeout(Duration::from_secs(30), member.write(Command::add(777))).await.unwrap();
    assert!(matches!(unknown.err(), Some(WriteError::OutcomeUnknown | WriteError::NoLeader)));
    // Nor does anybody wait for ever who comes later.
    let late = tokio::time::timeout(Duration::from_secs(30), member.write(Command::add(1))).await.unwrap();
    assert_eq!(late.err(), Some(WriteError::NoLeader));
    let before = member.head();
    drop(member);
    cluster.stop(leader).await;
    let found = force(&cluster, leader, Some(EPOCH)).await;
    assert!(found.done && found.seq >= before.seq, "{found:?}");
    cluster.start(leader).await;
    let member = cluster.member(leader);
    assert!(member.writable(Duration::from_secs(10)).await);
    assert_eq!(member.head().seq.0, found.seq.0 + 1);
    assert_eq!(member.head().machine.sum, before.machine.sum + if found.seq > before.seq { 777 } else { 0 });
}

/// The log was not told yet of a snapshot that came when the process ended.
#[tokio::test(flavor = "multi_thread")]
async fn it_begins_behind_a_snapshot_that_is_ahead_of_the_log() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let behind = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.stop(behind).await;
    for by in 1..=20 {
        cluster.write(leader, by).await;
    }
    cluster.member(leader).snapshot().await.unwrap();
    let before = cluster.member(leader).head();
    for id in cluster.ids().into_iter().filter(|id| *id != behind) {
        cluster.stop(id).await;
    }
    let snapshots = |id: u64| cluster.path(id).join("snapshots");
    let names = std::fs::read_dir(snapshots(leader)).unwrap().map(|file| file.unwrap().file_name());
    let newest = names.max().unwrap();
    std::fs::create_dir_all(snapshots(behind)).unwrap();
    std::fs::copy(snapshots(leader).join(&newest), snapshots(behind).join(&newest)).unwrap();

    let found = force(&cluster, behind, Some(EPOCH)).await;
    assert_eq!((found.seq, found.done), (before.seq, true));
    for by in [1_000, 2_000] {
        cluster.start(behind).await;
        assert!(cluster.member(behind).writable(Duration::from_secs(10)).await);
        cluster.write(behind, by).await;
        assert_eq!(cluster.member(behind).head().epoch, NEXT);
        cluster.stop(behind).await;
    }
    cluster.start(behind).await;
    let head = cluster.member(behind).head();
    assert_eq!((head.seq, head.machine.sum), (Seq(before.seq.0 + 3), before.machine.sum + 3_000));
    assert_eq!(head.members.voters, [[behind].into()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_running_log_begins_an_epoch() {
    let cluster = Cluster::of(1).await;
    let fact = SystemFact::EpochBegun { previous: EPOCH, member: 1 };
    let refused = cluster.member(1).write(Command::System(fact)).await;
    assert_eq!(refused.err(), Some(WriteError::AlreadyBootstrapped));
    cluster.stop(1).await;
    let found = force(&cluster, 1, Some(EPOCH)).await;
    assert!(!found.done, "it is the only member already");
}

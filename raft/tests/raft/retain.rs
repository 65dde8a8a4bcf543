//! History that need not be kept goes, in whole files, and nothing else with it; levels of features rise when all know them.

use crate::common::{Cluster, Counting, eventually};
use cvlan_core::id::Seq;
use cvlan_core::log::proof::{continued, included};
use cvlan_raft::VerifyReport;
use cvlan_raft::counter::{Command, Counter};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn files(cluster: &Cluster, id: u64, folder: &str) -> BTreeSet<String> {
    let Ok(all) = std::fs::read_dir(cluster.path(id).join(folder)) else { return BTreeSet::new() };
    all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn fill(cluster: &Cluster, writes: u64) {
    for n in 0..writes {
        let id = 1 + n % cluster.ids().len() as u64;
        let command = Command::Add { by: n, times: 1, note: vec![9; 3000].into(), once: None };
        while cluster.member(id).write(command.clone()).await.is_err() {}
    }
}

async fn snapshots(cluster: &Cluster) {
    for _ in 0..4 {
        for id in cluster.ids() {
            cluster.member(id).snapshot().await.unwrap();
        }
        cluster.write(1, 1).await;
    }
}

/// A replay, once it begins with this event: files go right after history is said to begin later, and another state comes in time.
async fn replayed_from(member: &Counting, from: u64) -> VerifyReport {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let report = member.log_verify(None).await.unwrap();
        if report.from.0 == from {
            return report;
        }
        assert!(Instant::now() < end, "a replay begins with event {}, history with {from}", report.from);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is left can be read to the end, is proven, and nothing before it can be read.
async fn holds(member: &Counting) {
    let (from, head) = (member.status().history_from, member.head());
    assert!(from > 1);
    assert_eq!(member.history(Seq(from - 1), 1).await.unwrap_err().code(), "history_gone");
    let mut next = from;
    while next <= head.seq.0 {
        let page = member.history(Seq(next), 10_000).await.unwrap();
        assert_eq!(page[0].0, Seq(next));
        next = page.last().unwrap().0.0 + 1;
    }
    // A replay begins with the state that is kept, right before.
    let report = replayed_from(member, from).await;
    assert!(report.seq >= head.seq);
    // Also what is gone.
    for event in [1, from - 1, from, head.seq.0] {
        let old = Seq(1 + event / 2);
        let proof = member.prove(head.seq, Some(Seq(event)), Some(old)).await.unwrap();
        let (is, was) = (proof.inclusion.unwrap(), proof.consistency.unwrap());
        assert!(included(is.leaf, event - 1, head.seq.0, &head.root, &is.path));
        assert!(continued(old.0, &was.root, head.seq.0, &head.root, &was.path));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_goes_where_the_log_says_so_and_stays_where_it_is_held() {
    let cluster = Cluster::with(3, |options| {
        options.limits.purge_behind = 10;
        options.limits.history_ms = 1500;
        options.limits.history_check_ms = 100;
        options.limits.backfill_ms = 100;
    })
    .await;
    cluster.member(3).history_hold(Seq(40));
    fill(&cluster, 150).await;
    snapshots(&cluster).await;
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let before = files(&cluster, 1, "log");
    cluster.write(1, 1).await;
    for id in [1, 2] {
        eventually("history is trimmed", || cluster.member(id).status().history_from > 60).await;
        holds(&cluster.member(id)).await;
    }
    let after = files(&cluster, 1, "log");
    assert!(!after.is_superset(&before), "{before:?} {after:?}");
    assert!(files(&cluster, 1, "tiles").contains("partial"));
    let trimmed = cluster.member(1).head().machine.history_from;
    assert!(cluster.member(1).status().history_from <= trimmed, "whole files alone go");
    eventually("it is held", || cluster.member(3).status().history_from > 1).await;
    assert!(cluster.member(3).status().history_from <= 40, "no more than is held");
    holds(&cluster.member(3)).await;
    cluster.member(3).history_hold(Seq(u64::MAX));
    eventually("it is not held any more", || cluster.member(3).status().history_from > 60).await;
    cluster.same().await;

    // Each opens again, with what it has; a fresh one gets what is kept, and no more.
    for id in [3, 2, 1] {
        let from = cluster.member(id).status().history_from;
        cluster.stop(id).await;
        cluster.start(id).await;
        let member = cluster.member(id);
        eventually("it is back", || cluster.member(id).status().leader.is_some()).await;
        assert!(member.status().history_from >= from, "{from}");
        holds(&member).await;
    }
    cluster.same().await;
    assert_eq!(cluster.member(1).head().machine.history_from, trimmed);
    cluster.join(4).await;
    assert!(cluster.member(4).status().history_from > 1);
    let least = cluster.ids().into_iter().map(|id| cluster.member(id).status().history_from).min().unwrap();
    let trimmed = || cluster.member(4).head().machine.history_from;
    eventually("the fourth has what is kept", || {
        let from = cluster.member(4).status().history_from;
        from >= least && from <= trimmed().max(least)
    })
    .await;
    // It proves from where its history begins.
    let late = async |id: u64| {
        let (member, head) = (cluster.member(id), cluster.member(id).head());
        let from = Seq(member.status().history_from);
        let proof = member.prove(head.seq, Some(from), Some(Seq(from.0 + 3))).await.unwrap();
        assert_eq!((proof.root, proof.consistency.is_some()), (head.root, true));
        assert_eq!(member.hide(Seq(from.0 - 1), vec![]).await.unwrap().len() as u32, (from.0 - 1).count_ones());
        from
    };
    fill(&cluster, 20).await;
    cluster.same().await;
    let fourth = late(4).await;
    // It fetches the state before that, and can be backed up like the others.
    cluster.member(1).checkpoint().await.unwrap();
    cluster.same().await;
    let report = replayed_from(&cluster.member(4), cluster.member(4).status().history_from).await;
    assert!(!report.checkpoints.is_empty());
    cluster.stop(4).await;
    cluster.start(4).await;
    eventually("it is back", || cluster.member(4).status().leader.is_some()).await;
    assert!(late(4).await >= fourth, "also after a restart");
    fill(&cluster, 30).await;
    cluster.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_rises_once_every_member_knows_it_and_an_older_version_stops_there() {
    let old: fn(&mut cvlan_raft::Options<Counter>) = |options| options.limits.level = Some(1);
    let new: fn(&mut cvlan_raft::Options<Counter>) = |options| options.limits.level = Some(2);
    let cluster = Cluster::with(3, old).await;
    let level = |id: u64| cluster.member(id).head().feature_level;
    // One by one, the leader too; and one goes back: nothing has changed yet.
    for (id, edit) in [(2, new), (3, new), (2, old), (1, new)] {
        cluster.stop(id).await;
        cluster.open(id, edit).await;
        cluster.write(cluster.leader().await, 1).await;
        cluster.same().await;
        // Whichever version leads, and whichever asks: the older one does not know the question.
        for member in cluster.ids() {
            let asked = tokio::time::timeout(Duration::from_secs(5), cluster.member(member).promotable(1)).await;
            assert_eq!(asked, Ok(Ok(())), "member {member}");
        }
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(cluster.ids().into_iter().map(level).max(), Some(1), "member 2 does not know it");
    }
    cluster.stop(2).await;
    cluster.write(cluster.leader().await, 1).await;
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(level(1), 1, "one that is away may come back as it was");
    cluster.open(2, new).await;
    eventually("the level rises", || cluster.ids().into_iter().map(level).all(|level| level == 2)).await;
    cluster.same().await;

    // Now there is no way back: it says why.
    cluster.stop(3).await;
    let mut options = cluster.options(3).await;
    old(&mut options);
    let refused = Counting::open(options, cvlan_raft::NoTransport).await.err().unwrap();
    assert!(refused.to_string().contains('2') && refused.code() == "data_folder_newer", "{} {refused}", refused.code());
    cluster.open(3, new).await;
    // Nor for one that never was there.
    cluster.open(4, old).await;
    cluster.member(cluster.leader().await).learner_add(4, Cluster::address(4)).await.unwrap();
    eventually("it stops", || cluster.member(4).status().fatal.is_some()).await;
    let why = cluster.member(4).status().fatal.unwrap();
    assert!(why.contains("feature level"), "{why}");
    cluster.write(cluster.leader().await, 1).await;
}

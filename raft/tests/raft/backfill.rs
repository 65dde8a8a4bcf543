//! History that a snapshot took the place of comes back from the others.

use crate::common::{Cluster, Counting, EPOCH, eventually};
use cvlan_core::id::Seq;
use cvlan_core::log::proof::included;
use cvlan_raft::Item;
use cvlan_raft::counter::{Command, Counter};
use std::path::{Path, PathBuf};

/// Pieces are small, so that there are many.
async fn cluster() -> Cluster {
    Cluster::with(1, |options| {
        options.limits.purge_behind = 10;
        options.limits.backfill_ms = 50;
        options.limits.backfill_bytes = 96 << 10;
    })
    .await
}

async fn fill(cluster: &Cluster, writes: u64) {
    let first = cluster.member(1);
    for n in 0..writes {
        let command = Command::Add { by: n, times: 1 + n as u32 % 5, note: vec![9; 2000].into(), once: None };
        first.write(command).await.unwrap();
    }
    for _ in 0..3 {
        first.snapshot().await.unwrap();
        cluster.write(1, 1).await;
    }
}

async fn purged(first: &Counting, above: u64) {
    eventually("the log is purged", || first.status().purged_index > above).await;
}

async fn whole(cluster: &Cluster, id: u64) {
    eventually("history is whole", || cluster.member(id).status().history_from == 1).await;
}

fn folder(cluster: &Cluster, id: u64) -> PathBuf {
    cluster.path(id).join("past")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

async fn frames(member: &Counting) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut from = Seq(1);
    while from <= member.head().seq {
        let page = member.history(from, 10_000).await.unwrap();
        from = Seq(page.last().unwrap().0.0 + 1);
        all.extend(page.into_iter().map(|(seq, bytes)| (seq.0, bytes.to_vec())));
    }
    all
}

/// Everything of a backup that two members must agree on.
async fn items(member: &Counting) -> Vec<String> {
    let mut all = Vec::new();
    let mut from = Seq(1);
    while from <= member.head().seq {
        let page = member.backup_from(from, usize::MAX).await.unwrap();
        assert!(!page.is_empty());
        for item in page {
            if let Item::Frame(frame) = &item {
                let entry = cvlan_core::log::entry_decode(&frame.frame).unwrap();
                from = Seq(frame.first_seq.0 + entry.events.len() as u64);
            }
            all.push(format!("{item:?}"));
        }
    }
    all
}

/// What one member has is what the other has, and both prove it.
async fn same(first: &Counting, second: &Counting) {
    assert_eq!(frames(second).await, frames(first).await);
    assert_eq!(items(second).await, items(first).await);
    let size = second.head().seq;
    for event in [1, 2, size.0 / 2, size.0] {
        let proof = second.prove(size, Some(Seq(event)), Some(Seq(1 + event / 2))).await.unwrap();
        assert_eq!(proof, first.prove(size, Some(Seq(event)), Some(Seq(1 + event / 2))).await.unwrap());
        let inclusion = proof.inclusion.unwrap();
        assert!(included(inclusion.leaf, event - 1, size.0, &second.head().root, &inclusion.path));
    }
    let (ours, theirs) = (second.log_verify(None).await.unwrap(), first.log_verify(None).await.unwrap());
    assert_eq!((ours.seq, ours.root, ours.digest), (theirs.seq, theirs.root, theirs.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_came_by_a_snapshot_gets_what_came_before_and_keeps_it() {
    let cluster = cluster().await;
    let first = cluster.member(1);
    fill(&cluster, 400).await;
    purged(&first, 200).await;
    cluster.open(2, |_| {}).await;
    first.learner_add(2, Cluster::address(2)).await.unwrap();
    eventually("it has caught up", || cluster.member(2).head().seq == first.head().seq).await;
    whole(&cluster, 2).await;
    same(&first, &cluster.member(2)).await;
    let there = files(&folder(&cluster, 2));
    // 2.4 MB, in pieces of 96 KiB and what their first block has before.
    assert!((5..=25).contains(&there.len()), "{there:?}");
    cluster.write(2, 5).await;

    cluster.stop(2).await;
    cluster.open(2, |options| options.limits.backfill_ms = 0).await;
    assert_eq!(cluster.member(2).status().history_from, 1, "also after a restart, without asking");
    cluster.same().await;
    same(&first, &cluster.member(2)).await;

    // A damaged file ends history there, says so, and is fetched again, with what came before it.
    cluster.stop(2).await;
    let (middle, len) = (&there[there.len() / 2], |path: &Path| std::fs::metadata(path).unwrap().len());
    let mut bytes = std::fs::read(middle).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(middle, &bytes).unwrap();
    cluster.open(2, |options| options.limits.backfill_ms = 0).await;
    let from = cluster.member(2).status().history_from;
    assert!(from > 1, "{from}");
    assert_eq!(cluster.member(2).history(Seq(from - 1), 1).await.unwrap_err().code(), "history_gone");
    cluster.stop(2).await;
    cluster.start(2).await;
    whole(&cluster, 2).await;
    same(&first, &cluster.member(2)).await;
    // Cut short, or gone.
    cluster.stop(2).await;
    let there = files(&folder(&cluster, 2));
    let newest = there.last().unwrap();
    std::fs::OpenOptions::new().write(true).open(newest).unwrap().set_len(len(newest) - 8).unwrap();
    std::fs::remove_file(&there[1]).unwrap();
    cluster.start(2).await;
    whole(&cluster, 2).await;
    same(&first, &cluster.member(2)).await;
    drop(first);

    // The first one is lost: its history is not.
    cluster.member(1).promote(2).await.unwrap();
    cluster.member(1).transfer(Some(2)).await.unwrap();
    cluster.member(2).member_remove(1).await.unwrap();
    cluster.kill(1).await;
    cluster.open(3, |_| {}).await;
    cluster.member(2).learner_add(3, Cluster::address(3)).await.unwrap();
    eventually("the third has caught up", || cluster.member(3).head().seq == cluster.member(2).head().seq).await;
    whole(&cluster, 3).await;
    same(&cluster.member(2), &cluster.member(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_snapshot_begins_it_anew() {
    let cluster = cluster().await;
    let first = cluster.member(1);
    fill(&cluster, 60).await;
    purged(&first, 30).await;
    cluster.open(2, |_| {}).await;
    first.learner_add(2, Cluster::address(2)).await.unwrap();
    eventually("it has caught up", || cluster.member(2).head().seq == first.head().seq).await;
    whole(&cluster, 2).await;
    assert_eq!(cluster.member(2).head().epoch, EPOCH);
    let old = cluster.member(2).head().seq;
    cluster.cut(2);
    fill(&cluster, 120).await;
    purged(&first, 100).await;
    cluster.heal();
    eventually("a snapshot came", || cluster.member(2).head().seq > old).await;
    eventually("it has caught up", || cluster.member(2).head().seq == first.head().seq).await;
    whole(&cluster, 2).await;
    same(&first, &cluster.member(2)).await;
    let digest = first.head().digest::<Counter>();
    cluster.stop(2).await;
    cluster.open(2, |options| options.limits.backfill_ms = 0).await;
    assert_eq!(cluster.member(2).status().history_from, 1);
    assert_eq!(cluster.member(2).head().digest::<Counter>(), digest);
    same(&first, &cluster.member(2)).await;
}

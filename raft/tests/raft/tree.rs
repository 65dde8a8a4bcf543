//! The tree: what it proves is true, after a restart too, and whatever became of its files.

use crate::common::EPOCH;
use bytes::Bytes;
use cvlan_core::id::Seq;
use cvlan_core::log::merkle::{CompactRange, Hash, leaf_hash};
use cvlan_core::log::proof::{continued, included};
use cvlan_raft::counter::{Command, Counter};
use cvlan_raft::{FileDisk, Member, NoTransport, Options};
use openraft_rt_tokio::TokioRuntime;
use std::path::Path;
use std::time::Duration;

type Counting = Member<Counter, TokioRuntime>;

/// One full file has so many leaves.
const FILE: u64 = 1 << 16;

async fn open(folder: &Path) -> Counting {
    let member = Counting::open(Options::single(FileDisk::open(folder).unwrap()), NoTransport).await.unwrap();
    assert!(member.writable(Duration::from_secs(10)).await);
    member
}

async fn closed(member: Counting) {
    member.shutdown().await;
}

/// Root of each size, leaf of each event.
async fn truth(member: &Counting) -> (Vec<Hash>, Vec<Hash>) {
    let (mut tree, mut leaves) = (CompactRange::default(), Vec::new());
    let mut roots = vec![tree.root()];
    loop {
        let page = member.history(Seq(leaves.len() as u64 + 1), 4096).await.unwrap();
        if page.is_empty() {
            return (roots, leaves);
        }
        for (_, bytes) in page {
            let leaf = leaf_hash(&bytes);
            tree.push_hash(leaf);
            leaves.push(leaf);
            roots.push(tree.root());
        }
    }
}

async fn holds(member: &Counting, (roots, leaves): &(Vec<Hash>, Vec<Hash>)) {
    let last = leaves.len() as u64;
    for (size, event, old) in [
        (last, 1, 0),
        (last, last, last),
        (last, FILE, FILE),
        (last, FILE + 1, FILE - 1),
        (last, 2 * FILE, 2 * FILE + 1),
        (last - 1, 3, 2 * FILE),
        (2 * FILE, 2 * FILE, FILE + 257),
        (2 * FILE + 1, FILE + 256, 511),
        (FILE - 1, 77, 76),
        (300, 300, 255),
        (1, 1, 1),
    ] {
        let proof = member.prove(Seq(size), Some(Seq(event)), Some(Seq(old))).await.unwrap();
        let root = roots[size as usize];
        assert_eq!(proof.root, root, "{size}");
        let inclusion = proof.inclusion.unwrap();
        assert_eq!(inclusion.leaf, leaves[event as usize - 1]);
        assert!(included(inclusion.leaf, event - 1, size, &root, &inclusion.path), "{event} in {size}");
        let consistency = proof.consistency.unwrap();
        assert_eq!(consistency.root, roots[old as usize]);
        assert!(continued(old, &consistency.root, size, &root, &consistency.path), "{old} → {size}");
    }
    for (to, since) in [(last, vec![]), (last, vec![FILE + 3, 5]), (2 * FILE, vec![FILE]), (1, vec![9]), (0, vec![])] {
        let mut tree = CompactRange::default();
        let found = member.hide(Seq(to), since.iter().copied().map(Seq).collect()).await.unwrap();
        for (level, root) in found {
            assert!(tree.push_subtree(level, root));
            assert_eq!(tree.root(), roots[tree.size() as usize], "none across a cut");
        }
        assert_eq!(tree.size(), to);
    }
    let root_of = |leaves: &[Hash]| {
        let mut tree = CompactRange::default();
        leaves.iter().for_each(|leaf| tree.push_hash(*leaf));
        tree.root()
    };
    // In the files, behind them, across, and above.
    for (level, index, width) in [
        (0, 0, 256),
        (0, 255, 256),
        (0, 300, 9),
        (0, 512, 256),
        (0, last >> 8, last as u32 % 256),
        (1, 0, 256),
        (1, 1, 7),
        (1, 2, 3),
        (2, 0, 2),
    ] {
        let tile = member.tile(level, index, width).await.unwrap().unwrap();
        let first = (index << 8 << (8 * level)) as usize;
        let due = leaves[first..].chunks(1 << (8 * level)).take(width as usize).map(root_of);
        assert!(tile.into_iter().eq(due), "{level}/{index}, {width}");
    }
    for (level, index, width) in [
        (0, last >> 8, last as u32 % 256 + 1),
        (0, 0, 0),
        (0, 0, 257),
        (2, 0, 3),
        (3, 0, 1),
        (8, 0, 1),
        (u32::MAX, 0, 1),
        (7, u64::MAX >> 8, 256),
        (0, u64::MAX, 1),
    ] {
        assert_eq!(member.tile(level, index, width).await.unwrap(), None, "{level}/{index}, {width}");
    }
    let none = member.prove(Seq(5), Some(Seq(6)), Some(Seq(6))).await.unwrap();
    assert_eq!((none.inclusion, none.consistency), (None, None), "beyond it there is nothing to prove");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_proves_is_true_whatever_became_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let member = open(dir.path()).await;
    member.bootstrap(EPOCH, Command::add(1)).await.unwrap();
    let few = truth(&member).await;
    assert_eq!(member.prove(Seq(1), Some(Seq(1)), None).await.unwrap().root, few.0[1]);
    // In pieces that end in no full file.
    let many = Command::Add { by: 1, times: 13_000, note: Bytes::new(), once: None };
    for n in 0..11 {
        member.write(many.clone()).await.unwrap();
        if n % 4 == 0 {
            let (seq, root) = (member.head().seq, member.head().root);
            assert_eq!(member.prove(seq, None, None).await.unwrap().root, root);
        }
    }
    // An entry that begins behind the last file, and says what comes before it.
    member.write(Command::add(1)).await.unwrap();
    let truth = truth(&member).await;
    assert!(truth.1.len() as u64 > 2 * FILE);
    holds(&member, &truth).await;
    closed(member).await;

    let tiles = dir.path().join("tiles");
    let file = |n: u64| tiles.join(format!("{n:010}.tile"));
    assert!(file(0).exists() && file(1).exists() && !file(2).exists());
    let whole = std::fs::read(file(0)).unwrap();
    type Harm<'a> = &'a dyn Fn(&Path);
    let flip = |at: usize| {
        move |path: &Path| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[at] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    };
    let harms: [(&str, Harm); 7] = [
        ("nothing", &|_| {}),
        ("gone", &|path| std::fs::remove_file(path).unwrap()),
        ("short", &|path| std::fs::write(path, &whole[..4096]).unwrap()),
        ("header", &flip(9)),
        ("a leaf", &flip(32 + 2 * 32)),
        ("a root of 256", &flip(32 + (FILE as usize + 5) * 32)),
        ("its root", &flip(whole.len() - 1)),
    ];
    for (what, harm) in harms {
        harm(&file(0));
        let member = open(dir.path()).await;
        holds(&member, &truth).await;
        closed(member).await;
        assert!(file(1).exists(), "{what}");
    }
    assert_eq!(std::fs::read(file(0)).unwrap().len(), whole.len());
}

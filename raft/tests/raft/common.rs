//! A cluster in one process: members on real files, connections as channels that can be cut.

use bytes::Bytes;
use cvlan_core::id::Epoch;
use cvlan_raft::counter::{Command, Counter};
use cvlan_raft::types::{Cfg, Rx, Tx};
use cvlan_raft::{FileDisk, Limits, Member, OpenError, Options, Pipe, Timing, Transport};
use openraft::async_runtime::{MpscReceiver, MpscSender};
use openraft::type_config::TypeConfigExt;
use openraft_rt_tokio::TokioRuntime;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

pub type Rt = TokioRuntime;
pub type Counting = Member<Counter, Rt>;
pub const EPOCH: Epoch = Epoch([7; 16]);

/// Frames that a connection holds in each direction.
const DEPTH: usize = 64;

/// Both ends of a connection.
pub fn pipes() -> (Pipe<Rt>, Pipe<Rt>) {
    let (to, from) = (Cfg::<Rt>::mpsc(DEPTH), Cfg::<Rt>::mpsc(DEPTH));
    (Pipe { tx: to.0, rx: from.1 }, Pipe { tx: from.0, rx: to.1 })
}

#[derive(Default)]
struct Wires {
    members: BTreeMap<u64, Up>,
    cut: BTreeSet<u64>,
    /// Who cannot connect to whom; the other way goes.
    blocked: BTreeSet<(u64, u64)>,
    /// Bytes that a connection carries in a second, one way.
    rate: Option<u64>,
    /// It is cut off by the request to take the leadership, which is lost.
    dies_of_transfer: Option<u64>,
}

/// Connects members by their addresses.
#[derive(Clone)]
pub struct Net {
    me: u64,
    wires: Arc<Mutex<Wires>>,
}

impl Net {
    fn through(&self, to: u64) -> bool {
        let wires = self.wires.lock().unwrap();
        !wires.cut.contains(&self.me) && !wires.cut.contains(&to) && !wires.blocked.contains(&(self.me, to))
    }

    fn dies_of(&self, frame: &Bytes, to: u64) {
        let mut wires = self.wires.lock().unwrap();
        if wires.dies_of_transfer == Some(to) && is_transfer(frame) {
            wires.dies_of_transfer = None;
            wires.cut.insert(to);
        }
    }

    /// Moves frames while nobody is cut off; then they are lost without a word, as on a real network.
    async fn carry(self, to: u64, mut from: Rx<Rt, Bytes>, into: Tx<Rt, Bytes>) {
        while let Some(frame) = from.recv().await {
            self.dies_of(&frame, to);
            let rate = self.wires.lock().unwrap().rate;
            if let Some(rate) = rate {
                tokio::time::sleep(Duration::from_micros(frame.len() as u64 * 1_000_000 / rate)).await;
            }
            if self.through(to) && into.send(frame).await.is_err() {
                return;
            }
        }
    }
}

/// A frame is the protocol's version, then bincode: Message::Request (2) with its id, of Request::Transfer (2).
fn is_transfer(frame: &Bytes) -> bool {
    let head = bincode::serde::decode_from_slice::<(u32, u64, u32), _>(&frame[1..], bincode::config::standard());
    head.is_ok_and(|((message, _, request), _)| (message, request) == (2, 2))
}

impl Transport<Rt> for Net {
    async fn connect(&self, to: u64, address: &str) -> io::Result<Pipe<Rt>> {
        if !self.through(to) {
            std::future::pending::<()>().await;
        }
        let member = self.wires.lock().unwrap().members.get(&to).cloned();
        let member = member.filter(|_| address == Cluster::address(to)).ok_or(io::ErrorKind::ConnectionRefused)?;
        let ((ours, near), (far, theirs)) = (pipes(), pipes());
        tokio::spawn(self.clone().carry(to, near.rx, far.tx));
        tokio::spawn(self.clone().carry(to, far.rx, near.tx));
        let me = self.me;
        member.runtime.spawn(async move { member.member.accept(Some(me), true, theirs).await });
        Ok(ours)
    }
}

/// A member in a process of its own, which can be killed.
#[derive(Clone)]
struct Up {
    member: Counting,
    runtime: tokio::runtime::Handle,
}

type Edit = Arc<dyn Fn(&mut Options<Counter>) + Send + Sync>;

/// Members 1, 2, …, all reachable by their address.
pub struct Cluster {
    wires: Arc<Mutex<Wires>>,
    folders: Mutex<BTreeMap<u64, TempDir>>,
    runtimes: Mutex<BTreeMap<u64, tokio::runtime::Runtime>>,
    edit: Edit,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.wires.lock().unwrap().members.clear();
        for runtime in std::mem::take(&mut *self.runtimes.lock().unwrap()).into_values() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    /// So many voters, bootstrapped.
    pub async fn of(voters: u64) -> Self {
        Self::with(voters, |_| {}).await
    }

    /// The same, with other options.
    pub async fn with(voters: u64, edit: impl Fn(&mut Options<Counter>) + Send + Sync + 'static) -> Self {
        let cluster =
            Self { wires: Arc::default(), folders: Mutex::default(), runtimes: Mutex::default(), edit: Arc::new(edit) };
        cluster.open(1, |options| options.initialize = true).await;
        assert!(cluster.member(1).writable(Duration::from_secs(10)).await);
        cluster.member(1).bootstrap(EPOCH, Command::add(1)).await.unwrap();
        for id in 2..=voters {
            cluster.join(id).await;
            eventually("it may be promoted", || {
                let peers = cluster.member(1).status().peers;
                peers.iter().any(|peer| peer.id == id && peer.answered_ms.is_some() && peer.behind == Some(0))
            })
            .await;
            cluster.member(cluster.leader().await).promote(id).await.unwrap();
        }
        cluster
    }

    /// Opens a member and takes it in as a learner.
    pub async fn join(&self, id: u64) {
        self.open(id, |_| {}).await;
        let leader = self.leader().await;
        self.member(leader).learner_add(id, Self::address(id)).await.unwrap();
        eventually("the learner has caught up", || {
            self.member(id).head().seq == self.member(leader).head().seq && self.member(id).status().leader.is_some()
        })
        .await;
    }

    pub fn address(id: u64) -> String {
        format!("member-{id}:1")
    }

    pub fn ids(&self) -> Vec<u64> {
        self.wires.lock().unwrap().members.keys().copied().collect()
    }

    pub fn member(&self, id: u64) -> Counting {
        self.wires.lock().unwrap().members[&id].member.clone()
    }

    /// What a member is opened with, on its folder, which is kept.
    pub async fn options(&self, id: u64) -> Options<Counter> {
        let mut folders = std::mem::take(&mut *self.folders.lock().unwrap());
        let folder = folders.entry(id).or_insert_with(|| tempfile::tempdir().unwrap()).path().to_owned();
        *self.folders.lock().unwrap() = folders;
        // A killed runtime may leave a job on the disk's thread, which has the folder until it ends.
        let mut disk = FileDisk::open(&folder);
        for _ in 0..2_000 {
            if let Err(OpenError::Locked { .. }) = disk {
                tokio::time::sleep(Duration::from_millis(5)).await;
                disk = FileDisk::open(&folder);
            }
        }
        let disk = disk.unwrap();
        let mut options = Options::single(disk);
        options.member = id;
        options.address = Self::address(id);
        options.initialize = false;
        options.limits = Limits {
            segment_bytes: 64 << 10,
            tail_bytes: 16 << 10,
            snapshot_events: 500,
            part_bytes: 300,
            ..Limits::default()
        };
        options.timing = Timing { heartbeat_ms: 60, election_min_ms: 200, election_max_ms: 400 };
        (self.edit)(&mut options);
        options
    }

    /// A member's folder.
    pub fn path(&self, id: u64) -> std::path::PathBuf {
        self.folders.lock().unwrap()[&id].path().to_owned()
    }

    /// Opens a member.
    pub async fn open(&self, id: u64, edit: impl FnOnce(&mut Options<Counter>)) {
        let mut options = self.options(id).await;
        edit(&mut options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let net = Net { me: id, wires: self.wires.clone() };
        let member = runtime.spawn(Counting::open(options, net)).await.unwrap().unwrap();
        let up = Up { member, runtime: runtime.handle().clone() };
        self.wires.lock().unwrap().members.insert(id, up);
        self.runtimes.lock().unwrap().insert(id, runtime);
    }

    pub async fn start(&self, id: u64) {
        self.open(id, |_| {}).await;
    }

    /// Ends a member's process where it stands.
    pub async fn kill(&self, id: u64) {
        let up = self.wires.lock().unwrap().members.remove(&id);
        let runtime = self.runtimes.lock().unwrap().remove(&id).unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
        drop(up);
    }

    /// Stops a member in order.
    pub async fn stop(&self, id: u64) {
        let up = self.wires.lock().unwrap().members.get(&id).cloned().unwrap();
        up.runtime.spawn(async move { up.member.shutdown().await }).await.unwrap();
        self.kill(id).await;
    }

    /// Nothing gets to or from a member.
    pub fn cut(&self, id: u64) {
        self.wires.lock().unwrap().cut.insert(id);
    }

    /// Connections carry so many bytes a second from now on.
    pub fn slow(&self, rate: u64) {
        self.wires.lock().unwrap().rate = Some(rate);
    }

    pub fn heal(&self) {
        let mut wires = self.wires.lock().unwrap();
        wires.cut.clear();
        wires.blocked.clear();
    }

    /// One cannot connect to the other any more, and what it had is lost; the other one still can.
    pub fn block(&self, from: u64, to: u64) {
        self.wires.lock().unwrap().blocked.insert((from, to));
    }

    /// As soon as this one is asked to lead, nothing gets to or from it.
    pub fn dies_of_transfer(&self, id: u64) {
        self.wires.lock().unwrap().dies_of_transfer = Some(id);
    }

    pub fn cut_off(&self, id: u64) -> bool {
        self.wires.lock().unwrap().cut.contains(&id)
    }

    /// Who leads, as somebody who is not cut off knows.
    pub async fn leader(&self) -> u64 {
        let mut leader = None;
        eventually("somebody leads", || {
            let ids = self.ids().into_iter().filter(|id| !self.wires.lock().unwrap().cut.contains(id));
            leader = ids.into_iter().find(|id| self.member(*id).status().writable);
            leader.is_some()
        })
        .await;
        leader.unwrap()
    }

    /// Voters as a member knows them.
    pub fn voters(&self, id: u64) -> Vec<u64> {
        self.member(id).head().members.voters.iter().flatten().copied().collect()
    }

    /// Adds, through a member.
    pub async fn write(&self, id: u64, by: u64) {
        let member = self.member(id);
        let mut tries = 0;
        while let Err(error) = member.write(Command::add(by)).await {
            tries += 1;
            assert!(tries < 20 && error == cvlan_raft::WriteError::NoLeader, "{error}: {:?}", member.status());
        }
    }

    /// The sum as the leader has it.
    pub fn sum(&self) -> u64 {
        self.ids().into_iter().map(|id| self.member(id).head().machine.sum).max().unwrap()
    }

    /// Every member comes to one and the same state.
    pub async fn same(&self) {
        eventually("all members are the same", || {
            let heads: Vec<_> = self.ids().into_iter().map(|id| self.member(id).head()).collect();
            let leads = self.ids().into_iter().any(|id| self.member(id).status().writable);
            leads && heads.iter().all(|head| head.seq == heads[0].seq && head.members == heads[0].members)
        })
        .await;
        let digests: BTreeSet<_> =
            self.ids().into_iter().map(|id| self.member(id).head().digest::<Counter>()).collect();
        assert_eq!(digests.len(), 1);
    }
}

/// Waits until it is so; half a minute is for ever.
pub async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: never");
}

//! A cluster in this process: members on real files, connections as channels.

use super::write::{Real, START};
use anyhow::{Context, anyhow, ensure};
use cvlan_core::machine::Machine;
use cvlan_raft::types::Cfg;
use cvlan_raft::{FileDisk, Member, Options, Pipe, Transport};
use openraft::type_config::TypeConfigExt;
use openraft_rt_tokio::TokioRuntime;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Frames that a connection holds in each direction.
const DEPTH: usize = 64;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Connects members by their ids.
struct Wires<M: Machine> {
    me: u64,
    members: Arc<Mutex<BTreeMap<u64, Real<M>>>>,
}

impl<M: Machine> Clone for Wires<M> {
    fn clone(&self) -> Self {
        Self { me: self.me, members: self.members.clone() }
    }
}

impl<M: Machine> Transport<TokioRuntime> for Wires<M> {
    async fn connect(&self, to: u64, _address: &str) -> io::Result<Pipe<TokioRuntime>> {
        let member = self.members.lock().unwrap_or_else(PoisonError::into_inner).get(&to).cloned();
        let member = member.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (there, back) = (Cfg::<TokioRuntime>::mpsc(DEPTH), Cfg::<TokioRuntime>::mpsc(DEPTH));
        let theirs = Pipe { tx: back.0, rx: there.1 };
        let me = self.me;
        tokio::spawn(async move { member.accept(Some(me), true, theirs).await });
        Ok(Pipe { tx: there.0, rx: back.1 })
    }
}

/// Members 1, 2, …, all of which vote; the first leads.
pub(super) struct Cluster<M: Machine> {
    members: Arc<Mutex<BTreeMap<u64, Real<M>>>>,
    pub(super) first: Real<M>,
}

impl<M: Machine> Cluster<M> {
    /// Opens them in folders of their own below `path`, empty; `found` bootstraps the log through the first.
    pub(super) async fn open<T>(
        path: &Path,
        voters: u64,
        found: impl AsyncFnOnce(&Real<M>) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Self, T)> {
        let members = Arc::default();
        let first = Self::member(path, 1, &members).await?;
        ensure!(first.writable(START).await, "the first member does not lead");
        let founded = found(&first).await?;
        let refused = |error| anyhow!("{error}");
        for id in 2..=voters {
            let member = Self::member(path, id, &members).await?;
            first.learner_add(id, id.to_string()).await.map_err(refused)?;
            let end = Instant::now() + START;
            while first.promote(id).await.is_err() || member.status().leader.is_none() {
                ensure!(Instant::now() < end, "member {id} cannot be made a voter: {:?}", first.status());
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok((Self { members, first }, founded))
    }

    async fn member(path: &Path, id: u64, members: &Arc<Mutex<BTreeMap<u64, Real<M>>>>) -> anyhow::Result<Real<M>> {
        let folder = path.join(id.to_string());
        std::fs::create_dir_all(&folder)?;
        let mut options = Options::<M>::single(FileDisk::open(&folder)?);
        (options.member, options.address, options.initialize) = (id, id.to_string(), id == 1);
        let member = Member::open(options, Wires { me: id, members: members.clone() }).await?;
        members.lock().unwrap_or_else(PoisonError::into_inner).insert(id, member.clone());
        Ok(member)
    }

    /// Stops them, the leader last.
    pub(super) async fn shutdown(self) -> anyhow::Result<()> {
        let members = std::mem::take(&mut *self.members.lock().unwrap_or_else(PoisonError::into_inner));
        members.get(&1).context("the first member")?;
        for member in members.values().rev() {
            member.shutdown().await;
        }
        Ok(())
    }
}

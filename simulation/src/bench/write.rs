//! Durable writes: the rules on the log, a counter on the log, and bare group commits, each with the same callers and as
//! many bytes.

use super::cluster::Cluster;
use super::load::Took;
use super::{Bench, Sample, on_tokio};
use anyhow::anyhow;
use bytes::Bytes;
use cvlan_core::cvlan::CvlanCommand;
use cvlan_core::grammar::{Grammar, Rng};
use cvlan_core::id::{CvlanId, Epoch, KeyId, NodeId, TenantId};
use cvlan_core::machine::{Machine, Once};
use cvlan_core::node::{Device, NodeCommand};
use cvlan_core::tenant::{SigningKey, TenantCommand};
use cvlan_core::{Actor, Command, Meta, Rules, Wish};
use cvlan_proto::v1::Sealed;
use cvlan_raft::counter::{self, Counter};
use cvlan_raft::{FileDisk, Member, NoTransport, OpenError, Options};
use futures_util::future::join_all;
use openraft_rt_tokio::TokioRuntime;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Nodes in a command of a bulk caller.
const BULK: u64 = 64;

/// Callers of bulks.
const BULK_CALLERS: usize = 64;

/// Before a measurement begins.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long a member may take to lead.
pub(super) const START: Duration = Duration::from_secs(10);

/// A member on real files.
pub(super) type Real<M> = Member<M, TokioRuntime>;

/// Opens a member in `path`, without snapshots where `events` says so.
pub(super) async fn open<M: Machine>(path: &Path, snapshots: bool) -> anyhow::Result<Real<M>> {
    let end = Instant::now() + START;
    let disk = loop {
        match FileDisk::open(path) {
            // The one that had it before ends its threads.
            Err(OpenError::Locked { .. }) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(1)).await,
            disk => break disk?,
        }
    };
    let mut options = Options::<M>::single(disk);
    if !snapshots {
        (options.limits.snapshot_bytes, options.limits.snapshot_events) = (u64::MAX, u64::MAX);
    }
    Ok(Member::open(options, NoTransport).await?)
}

/// One tenant with one large CVLAN, and what happens in it.
pub(super) struct Fleet {
    tenant: TenantId,
    cvlan: CvlanId,
    next: AtomicU64,
    /// Nodes to create; after that many they only move.
    nodes: u64,
}

impl Fleet {
    /// Makes tenant and CVLAN in an empty log.
    pub(super) async fn found(member: &Real<Rules>) -> anyhow::Result<Arc<Self>> {
        let founded = member.bootstrap(Epoch(Rng(1).bytes()), Grammar::new(1).bootstrap()).await;
        founded.map_err(|error| anyhow!("{error}"))?;
        Self::settle(member, u64::MAX).await
    }

    /// Makes tenant and CVLAN.
    pub(super) async fn settle(member: &Real<Rules>, nodes: u64) -> anyhow::Result<Arc<Self>> {
        let mut rng = Rng(2);
        let (tenant, cvlan) = (TenantId(rng.uuid()), CvlanId(rng.uuid()));
        let seed = Sealed { key_id: "k1".into(), nonce: vec![3; 24], ciphertext: vec![4; 48] };
        let key = SigningKey { id: KeyId(rng.uuid()), public_key: rng.bytes(), seed: Some(seed) };
        let wishes = [
            Wish::Tenant(TenantCommand::Create { id: tenant, slug: "acme".into(), name: String::new(), key }),
            Wish::Cvlan(CvlanCommand::Create {
                tenant,
                id: cvlan,
                name: "net".into(),
                ipv4: "10.0.0.0/8".into(),
                ipv6: "auto".into(),
                global_id: rng.bytes(),
            }),
        ];
        for wish in wishes {
            member.write(Command { meta: Meta::default(), wish }).await.map_err(|error| anyhow!("{error}"))?;
        }
        Ok(Arc::new(Self { tenant, cvlan, next: AtomicU64::new(0), nodes }))
    }

    /// Another node, or another address of one, under the next number of its caller's session.
    pub(super) fn command(&self, once: Once) -> Command {
        let number = self.next.fetch_add(1, Relaxed);
        let wish = if number < self.nodes {
            NodeCommand::Create { tenant: self.tenant, devices: vec![self.device(number)] }
        } else {
            let Device { id, endpoints, .. } = self.device(number);
            NodeCommand::Endpoints { tenant: self.tenant, id, endpoints }
        };
        meant(number, once, wish)
    }

    /// So many new nodes in one command.
    fn bulk(&self, once: Once, nodes: u64) -> Command {
        let first = self.next.fetch_add(nodes, Relaxed);
        let devices = (first..first + nodes).map(|number| self.device(number)).collect();
        meant(first, once, NodeCommand::Create { tenant: self.tenant, devices })
    }

    fn device(&self, number: u64) -> Device {
        let mut rng = Rng(number % self.nodes);
        // Sorted by time, as a door makes them (UUIDv7): some thirty a millisecond.
        let id = uuid::Builder::from_unix_timestamp_millis(number % self.nodes / 32, &rng.bytes()).into_uuid();
        let endpoints = vec![format!("192.0.2.1:{}", 1024 + number / self.nodes)];
        let (name, wg_key) = (format!("node-{number}"), rng.bytes());
        Device { cvlan: self.cvlan, id: NodeId(id), name, wg_key, tags: Vec::new(), endpoints }
    }
}

/// The command under a number of its caller's session.
fn meant(number: u64, once: Once, wish: NodeCommand) -> Command {
    let id = cvlan_core::id::CommandId(Rng(!number).uuid());
    Command { meta: Meta { id, actor: Actor::System, once: Some(once), ..Meta::default() }, wish: Wish::Node(wish) }
}

/// Every caller does one operation after the other; counts those that end within the length, after a warm-up.
async fn closed_loop<F, R>(callers: usize, length: Duration, operation: F) -> anyhow::Result<Took>
where
    F: Fn(usize, u64) -> R + Send + Sync + 'static,
    R: Future<Output = anyhow::Result<()>> + Send,
{
    let (operation, counting, stop) =
        (Arc::new(operation), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (operation, counting, stop) = (operation.clone(), counting.clone(), stop.clone());
            tokio::spawn(async move {
                let mut took_us = Vec::new();
                for n in 1.. {
                    let started = Instant::now();
                    operation(caller, n).await?;
                    if stop.load(Relaxed) {
                        break;
                    }
                    if counting.load(Relaxed) {
                        took_us.push(started.elapsed().as_micros() as u64);
                    }
                }
                anyhow::Ok(took_us)
            })
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let started = Instant::now();
    counting.store(true, Relaxed);
    tokio::time::sleep(length).await;
    stop.store(true, Relaxed);
    let time = started.elapsed();
    let mut took_us = Vec::new();
    for task in tasks {
        took_us.append(&mut task.await??);
    }
    Took::new(took_us, time)
}

/// Sessions are numbered from 1.
pub(super) fn once(caller: usize, n: u64) -> Once {
    Once { session: caller as u64 + 1, n }
}

/// `seq_write_m{voters}`: `NodeCommand::Create` from all callers through the rules and the log.
pub(super) fn seq_write<const VOTERS: u64>(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let (cluster, fleet) = Cluster::<Rules>::open(folder.path(), VOTERS, Fleet::found).await?;
        let (writer, before) = (cluster.first.clone(), cluster.first.head().seq.0);
        let took = closed_loop(bench.callers(), bench.length(), move |caller, n| {
            let (writer, command) = (writer.clone(), fleet.command(once(caller, n)));
            async move { writer.write(command).await.map(|_| ()).map_err(|e| anyhow!("{e}")) }
        });
        let took = took.await?;
        let (entries, events) = (cluster.first.status().entries, cluster.first.head().seq.0 - before);
        cluster.shutdown().await?;
        let keys = vec![
            ("callers", bench.callers().to_string()),
            ("events", events.to_string()),
            ("events_per_entry", format!("{:.1}", events as f64 / entries.max(1) as f64)),
        ];
        Ok(took.sample(1.0, keys))
    })
}

/// `bulk_m{voters}`: commands of many nodes each, from a few callers.
pub(super) fn bulk<const VOTERS: u64>(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let (cluster, fleet) = Cluster::<Rules>::open(folder.path(), VOTERS, Fleet::found).await?;
        let writer = cluster.first.clone();
        let took = closed_loop(BULK_CALLERS, bench.length(), move |caller, n| {
            let (writer, command) = (writer.clone(), fleet.bulk(once(caller, n), BULK));
            async move { writer.write(command).await.map(|_| ()).map_err(|e| anyhow!("{e}")) }
        });
        let took = took.await?;
        cluster.shutdown().await?;
        Ok(took.sample(BULK as f64, vec![("callers", BULK_CALLERS.to_string()), ("bulk", BULK.to_string())]))
    })
}

/// The `n`th lot of a caller: [`BULK`] commands, all on their way at once.
pub(super) async fn lot(member: Real<Rules>, fleet: Arc<Fleet>, caller: usize, n: u64) -> anyhow::Result<()> {
    let numbers = (n - 1) * BULK + 1..=n * BULK;
    for result in join_all(numbers.map(|n| member.write(fleet.command(once(caller, n))))).await {
        result.map_err(|error| anyhow!("{error}"))?;
    }
    Ok(())
}

/// Bytes of the event that a [`Fleet::node`] makes, about: the floors carry as many.
const EVENT_BYTES: usize = 300;

/// `floor_log`, `floor_log_m3`: a counter on the same log.
pub(super) fn floor_log<const VOTERS: u64>(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let (cluster, ()) = Cluster::<Counter>::open(folder.path(), VOTERS, async |member| {
            let founded = member.bootstrap(Epoch([1; 16]), counter::Command::add(1)).await;
            founded.map(|_| ()).map_err(|error| anyhow!("{error}"))
        })
        .await?;
        let (writer, note) = (cluster.first.clone(), Bytes::from(vec![7; EVENT_BYTES]));
        let took = closed_loop(bench.callers(), bench.length(), move |caller, n| {
            let once = Some(once(caller, n));
            let (writer, command) =
                (writer.clone(), counter::Command::Add { by: 1, times: 1, note: note.clone(), once });
            async move { writer.write(command).await.map(|_| ()).map_err(|e| anyhow!("{e}")) }
        });
        let took = took.await?;
        cluster.shutdown().await?;
        Ok(took.sample(1.0, vec![("callers", bench.callers().to_string())]))
    })
}

/// Bare group commits: one thread, one write and one sync for whatever has arrived.
pub(super) fn floor_disk(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let file = File::options().read(true).write(true).create_new(true).open(folder.path().join("segment"))?;
        // Before the clock runs: the log's segments are zeroed beforehand, too.
        file.write_all_at(&vec![0; SEGMENT], 0)?;
        file.sync_all()?;
        let (tx, rx) = mpsc::channel::<oneshot::Sender<()>>(4096);
        let writer = std::thread::spawn(move || group_commits(&file, rx));
        let took = closed_loop(bench.callers(), bench.length(), move |_, _| {
            let tx = tx.clone();
            async move {
                let (done, durable) = oneshot::channel();
                tx.send(done).await?;
                Ok(durable.await?)
            }
        });
        let took = took.await?;
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(took.sample(1.0, vec![("callers", bench.callers().to_string()), ("bytes", EVENT_BYTES.to_string())]))
    })
}

/// Length of the file that the bare group commits go to.
const SEGMENT: usize = 64 << 20;

/// Writes the segment from the front again and again.
fn group_commits(file: &File, mut rx: mpsc::Receiver<oneshot::Sender<()>>) -> std::io::Result<()> {
    let (mut waiting, mut at) = (Vec::new(), 0);
    while rx.blocking_recv_many(&mut waiting, 4096) > 0 {
        let bytes = vec![7; waiting.len() * EVENT_BYTES];
        if at + bytes.len() > SEGMENT {
            at = 0;
        }
        file.write_all_at(&bytes, at as u64)?;
        file.sync_data()?;
        at += bytes.len();
        for done in waiting.drain(..) {
            let _ = done.send(());
        }
    }
    Ok(())
}

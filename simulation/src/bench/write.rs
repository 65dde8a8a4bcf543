//! Durable writes: the rules on the log, a counter on the log, and bare group commits, each with the same callers and as
//! many bytes.

use super::{Bench, Sample, on_tokio};
use anyhow::anyhow;
use bytes::Bytes;
use cvlan_core::cvlan::CvlanCommand;
use cvlan_core::grammar::{Grammar, Rng};
use cvlan_core::id::{CvlanId, Epoch, KeyId, NodeId, TenantId};
use cvlan_core::machine::{Machine, Once};
use cvlan_core::node::NodeCommand;
use cvlan_core::tenant::{SigningKey, TenantCommand};
use cvlan_core::{Actor, Command, Meta, Rules, Wish};
use cvlan_proto::v1::Sealed;
use cvlan_raft::counter::{self, Counter};
use cvlan_raft::{FileDisk, Member, NoTransport, Options, WriteError};
use futures_util::future::join_all;
use openraft_rt_tokio::TokioRuntime;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Commands that a bulk caller has on their way at once.
const BULK: usize = 64;

/// Callers of bulks.
const BULK_CALLERS: usize = 16;

/// Before a measurement begins.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long a member may take to lead.
const START: Duration = Duration::from_secs(10);

/// A member on real files.
pub(super) type Real<M> = Member<M, TokioRuntime>;

/// Opens a member in `path`, without snapshots where `events` says so.
pub(super) async fn open<M: Machine>(path: &Path, snapshots: bool) -> anyhow::Result<Real<M>> {
    let mut options = Options::<M>::single(FileDisk::open(path)?);
    if !snapshots {
        (options.limits.snapshot_bytes, options.limits.snapshot_events) = (u64::MAX, u64::MAX);
    }
    Ok(Member::open(options, NoTransport).await?)
}

/// One tenant with one large CVLAN, and nodes to create in it.
pub(super) struct Fleet {
    tenant: TenantId,
    cvlan: CvlanId,
    next: AtomicU64,
}

impl Fleet {
    /// Makes tenant and CVLAN in an empty log.
    pub(super) async fn found(member: &Real<Rules>) -> anyhow::Result<Arc<Self>> {
        let mut rng = Rng(1);
        let refused = |error: WriteError<_>| anyhow!("{error}");
        member.bootstrap(Epoch(rng.bytes()), Grammar::new(1).bootstrap()).await.map_err(refused)?;
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
            member.write(Command { meta: Meta::default(), wish }).await.map_err(refused)?;
        }
        Ok(Arc::new(Self { tenant, cvlan, next: AtomicU64::new(0) }))
    }

    /// Another node, under the next number of its caller's session.
    pub(super) fn node(&self, once: Once) -> Command {
        let number = self.next.fetch_add(1, Relaxed);
        let mut rng = Rng(number);
        let meta = Meta {
            id: cvlan_core::id::CommandId(rng.uuid()),
            actor: Actor::System,
            once: Some(once),
            ..Meta::default()
        };
        let wish = Wish::Node(NodeCommand::Create {
            tenant: self.tenant,
            cvlan: self.cvlan,
            // Sorted by time, as a door makes them (UUIDv7): some thirty a millisecond.
            id: NodeId(uuid::Builder::from_unix_timestamp_millis(number / 32, &rng.bytes()).into_uuid()),
            name: format!("node-{number}"),
            wg_key: rng.bytes(),
            tags: Vec::new(),
            endpoints: vec!["192.0.2.1:51820".to_owned()],
        });
        Command { meta, wish }
    }
}

/// What callers in a closed loop came to.
struct Rate {
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
}

impl Rate {
    fn sample(&self, per_operation: f64, mut keys: Vec<(&'static str, String)>) -> Sample {
        keys.extend([("p50_us", self.p50_us.to_string()), ("p99_us", self.p99_us.to_string())]);
        Sample { value: self.per_second * per_operation, keys }
    }
}

/// Every caller does one operation after the other; counts those that end within the length, after a warm-up.
async fn closed_loop<F, R>(callers: usize, length: Duration, operation: F) -> anyhow::Result<Rate>
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
    let seconds = started.elapsed().as_secs_f64();
    let mut took_us = Vec::new();
    for task in tasks {
        took_us.append(&mut task.await??);
    }
    took_us.sort_unstable();
    let quantile = |q: f64| took_us.get(((took_us.len() as f64 * q) as usize).min(took_us.len().saturating_sub(1)));
    Ok(Rate {
        per_second: took_us.len() as f64 / seconds,
        p50_us: quantile(0.5).copied().unwrap_or_default(),
        p99_us: quantile(0.99).copied().unwrap_or_default(),
    })
}

/// Sessions are numbered from 1.
fn once(caller: usize, n: u64) -> Once {
    Once { session: caller as u64 + 1, n }
}

/// `NodeCommand::Create` from all callers through the rules and the log.
pub(super) fn seq_write(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let member = open::<Rules>(folder.path(), true).await?;
        member.writable(START).await;
        let fleet = Fleet::found(&member).await?;
        let (writer, before) = (member.clone(), member.head().seq.0);
        let rate = closed_loop(bench.callers(), bench.length(), move |caller, n| {
            let (writer, command) = (writer.clone(), fleet.node(once(caller, n)));
            async move { writer.write(command).await.map(|_| ()).map_err(|e| anyhow!("{e}")) }
        });
        let rate = rate.await?;
        let status = member.status();
        let events = member.head().seq.0 - before;
        member.shutdown().await;
        let keys = vec![
            ("callers", bench.callers().to_string()),
            ("events", events.to_string()),
            ("events_per_entry", format!("{:.1}", events as f64 / status.entries.max(1) as f64)),
        ];
        Ok(rate.sample(1.0, keys))
    })
}

/// As many commands on their way as a bulk has, from a few callers.
pub(super) fn bulk(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let member = open::<Rules>(folder.path(), true).await?;
        member.writable(START).await;
        let fleet = Fleet::found(&member).await?;
        let writer = member.clone();
        let rate = closed_loop(BULK_CALLERS, bench.length(), move |caller, n| {
            bulk_of(writer.clone(), fleet.clone(), caller, n)
        });
        let rate = rate.await?;
        member.shutdown().await;
        Ok(rate.sample(BULK as f64, vec![("callers", BULK_CALLERS.to_string()), ("bulk", BULK.to_string())]))
    })
}

/// The `n`th bulk of a caller: [`BULK`] nodes, all on their way at once.
pub(super) async fn bulk_of(member: Real<Rules>, fleet: Arc<Fleet>, caller: usize, n: u64) -> anyhow::Result<()> {
    let numbers = (n - 1) * BULK as u64 + 1..=n * BULK as u64;
    for result in join_all(numbers.map(|n| member.write(fleet.node(once(caller, n))))).await {
        result.map_err(|error| anyhow!("{error}"))?;
    }
    Ok(())
}

/// Bytes of the event that a [`Fleet::node`] makes, about: the floors carry as many.
const EVENT_BYTES: usize = 300;

/// A counter on the same log.
pub(super) fn floor_log(bench: &Bench) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let member = open::<Counter>(folder.path(), true).await?;
        member.writable(START).await;
        let note = Bytes::from(vec![7; EVENT_BYTES]);
        let first = counter::Command::add(1);
        member.bootstrap(Epoch([1; 16]), first).await.map_err(|error| anyhow!("{error}"))?;
        let writer = member.clone();
        let rate = closed_loop(bench.callers(), bench.length(), move |caller, n| {
            let once = Some(once(caller, n));
            let (writer, command) =
                (writer.clone(), counter::Command::Add { by: 1, times: 1, note: note.clone(), once });
            async move { writer.write(command).await.map(|_| ()).map_err(|e| anyhow!("{e}")) }
        });
        let rate = rate.await?;
        member.shutdown().await;
        Ok(rate.sample(1.0, vec![("callers", bench.callers().to_string())]))
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
        let rate = closed_loop(bench.callers(), bench.length(), move |_, _| {
            let tx = tx.clone();
            async move {
                let (done, durable) = oneshot::channel();
                tx.send(done).await?;
                Ok(durable.await?)
            }
        });
        let rate = rate.await?;
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(rate.sample(1.0, vec![("callers", bench.callers().to_string()), ("bytes", EVENT_BYTES.to_string())]))
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

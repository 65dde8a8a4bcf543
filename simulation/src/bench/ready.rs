//! What the size of the state costs: a controller's start, and writes while a snapshot is made.

use super::load::Took;
use super::process::{Controller, program, until};
use super::replay::fill;
use super::write::{Fleet, Real, START, open};
use super::{Bench, Sample, on_tokio};
use anyhow::{anyhow, ensure};
use cvlan_core::Rules;
use cvlan_core::id::Seq;
use cvlan_core::log::backup::record;
use cvlan_core::log::entry_decode;
use cvlan_core::log::records::record_write;
use cvlan_proto::v1::BackupEntry;
use cvlan_proto::v1::backup_record::Kind;
use cvlan_raft::Item;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Events in the log of [`start_ready`].
const EVENTS: u64 = 1_000_000;
/// Entries read at once.
const PAGE: usize = 1024;
/// Nodes in the state.
const NODES: u64 = 100_000;

/// For a view to take up everything, at most.
const VIEW: Duration = Duration::from_secs(120);

/// A controller's folder with [`EVENTS`] events, as it left it.
pub(super) struct Grown(TempDir);

impl Grown {
    pub(super) fn make(bench: &Bench) -> anyhow::Result<Self> {
        let folder = bench.folder()?;
        Controller::start(folder.path(), "127.0.0.1")?.stop()?;
        on_tokio(async {
            let member = open::<Rules>(&Controller::data(folder.path()), true).await?;
            ensure!(member.writable(START).await, "it does not lead");
            fill(&member, &Fleet::settle(&member, NODES).await?, EVENTS).await?;
            member.shutdown().await;
            Ok(())
        })?;
        // Its view takes part in what follows.
        let controller = Controller::start(folder.path(), "127.0.0.1")?;
        let seen = || controller.metric("cvlan_view_lag_events").filter(|lag| *lag == 0.0);
        until("the view has everything", VIEW, seen)?;
        controller.stop()?;
        Ok(Self(folder))
    }
}

/// `start_ready`: from the start of the process until /readyz says 200, seconds.
pub(super) fn start_ready(bench: &Bench) -> anyhow::Result<Sample> {
    let folder = bench.grown()?.0.path();
    let started = Instant::now();
    let controller = Controller::start(folder, "127.0.0.1")?;
    until("it is ready", VIEW, || controller.ready().then_some(()))?;
    let seconds = started.elapsed().as_secs_f64();
    controller.stop()?;
    let snapshots = std::fs::read_dir(Controller::data(folder).join("snapshots"))?.count();
    ensure!(snapshots > 0, "no snapshot");
    Ok(Sample::new(seconds, vec![("events", EVENTS.to_string()), ("nodes", NODES.to_string())]))
}

/// `restore`: `cvlan-api restore` of a controller's own backup of [`EVENTS`] events, keys and all, seconds; and from the start of
/// what was restored until /readyz says 200.
pub(super) fn restore(bench: &Bench) -> anyhow::Result<Sample> {
    let grown = bench.grown()?.0.path();
    let folder = bench.folder()?;
    let made = folder.path().join("made");
    let controller = Controller::with(grown, "127.0.0.1", &[("CVLAN_BACKUP_DIR", made.as_os_str())])?;
    let whole = || {
        let paths = std::fs::read_dir(&made).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        paths.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "cvbackup"))
    };
    let file = until("a backup is made, and read back", VIEW, whole)?;
    controller.stop()?;
    let started = Instant::now();
    let mut command = Command::new(program("cvlan-api")?);
    command.arg("restore").arg("--from").arg(&file).arg("--keys").arg(Controller::data(grown).join("keys"));
    let done = command.arg("--data-dir").arg(Controller::data(folder.path())).output()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let started = Instant::now();
    let controller = Controller::start(folder.path(), "127.0.0.1")?;
    until("it is ready", VIEW, || controller.ready().then_some(()))?;
    let ready = started.elapsed().as_secs_f64();
    controller.stop()?;
    let keys = vec![
        ("events", EVENTS.to_string()),
        ("nodes", NODES.to_string()),
        ("mib", format!("{:.0}", std::fs::metadata(&file)?.len() as f64 / f64::from(1 << 20))),
        ("ready_s", format!("{ready:.2}")),
    ];
    Ok(Sample::new(seconds, keys))
}

/// Between two writes of one caller.
const GAP: Duration = Duration::from_millis(20);
/// Callers of [`snapshot_p99`], and of [`backup_p99`]: 5,000 writes a second.
const SNAPSHOT_CALLERS: u64 = 40;
const BACKUP_CALLERS: u64 = 100;
/// What is done beside them, in a round.
const TIMES: usize = 3;

/// `snapshot_p99`: the slowest hundredth of writes while a snapshot is made, beside the same without one.
pub(super) fn snapshot_p99(bench: &Bench) -> anyhow::Result<Sample> {
    let nodes = bench.events().min(NODES);
    beside_writes(bench, nodes, SNAPSHOT_CALLERS, "snapshot_ms", async |member: &Real<Rules>| {
        Ok(member.snapshot().await?)
    })
}

/// `backup_p99`: the same while the whole log is read as a backup has it, and written to a file, synced piece by piece.
pub(super) fn backup_p99(bench: &Bench) -> anyhow::Result<Sample> {
    let folder = bench.folder()?;
    let path = folder.path().join("backup");
    // Fewer where all is to be tried quickly.
    let events = if bench.events() < NODES { bench.events() } else { EVENTS };
    beside_writes(bench, events, BACKUP_CALLERS, "backup_ms", async |member: &Real<Rules>| {
        let (to, mut from) = (member.head().seq, Seq(1));
        let mut file = std::fs::File::create(&path)?;
        while from <= to {
            let mut piece = Vec::new();
            for item in member.backup_from(from, PAGE).await? {
                let Item::Frame(entry) = item else { continue };
                from = Seq(entry.first_seq.0 + entry_decode(&entry.frame)?.events.len() as u64);
                record_write(&record(Kind::Entry(BackupEntry { frame: entry.frame, members: None })), &mut piece);
            }
            file = tokio::task::spawn_blocking(move || {
                file.write_all(&piece).and_then(|()| file.sync_data()).map(|()| file)
            })
            .await??;
        }
        Ok(())
    })
}

/// Writes at a steady rate into a log of `events`, and `work` beside them, some times.
fn beside_writes(
    bench: &Bench,
    events: u64,
    callers: u64,
    key: &'static str,
    work: impl AsyncFn(&Real<Rules>) -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    on_tokio(async {
        let folder = bench.folder()?;
        let member = open::<Rules>(folder.path(), false).await?;
        ensure!(member.writable(START).await, "it does not lead");
        let fleet = Fleet::found(&member).await?;
        fill(&member, &fleet, events).await?;
        let (working, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let writer = async |caller: u64| -> anyhow::Result<[Vec<u64>; 2]> {
            let (mut micros, mut n) = ([Vec::new(), Vec::new()], 0);
            let mut due = tokio::time::Instant::now() + GAP.mul_f64(caller as f64 / callers as f64);
            while !stop.load(Relaxed) {
                tokio::time::sleep_until(due).await;
                let (begin, during) = (Instant::now(), working.load(Relaxed));
                n += 1;
                // Sessions after those that filled the log.
                let once = cvlan_core::machine::Once { session: 1 << 32 | caller, n };
                member.write(fleet.command(once)).await.map_err(|error| anyhow!("{error}"))?;
                let [without, with] = &mut micros;
                if during { with } else { without }.push(begin.elapsed().as_micros() as u64);
                due += GAP;
            }
            Ok(micros)
        };
        let works = async {
            let mut took = Duration::ZERO;
            for _ in 0..TIMES {
                tokio::time::sleep(bench.length() / TIMES as u32).await;
                let begin = Instant::now();
                working.store(true, Relaxed);
                work(&member).await?;
                working.store(false, Relaxed);
                took += begin.elapsed();
            }
            stop.store(true, Relaxed);
            anyhow::Ok(took)
        };
        let writers = futures_util::future::try_join_all((0..callers).map(writer));
        let (took, micros) = futures_util::future::try_join(works, writers).await?;
        member.shutdown().await;
        let of = |at: usize| micros.iter().filter_map(|m| m.get(at)).flatten().copied().collect::<Vec<_>>();
        let (without, with) = (Took::new(of(0), bench.length())?, Took::new(of(1), took)?);
        let keys = vec![
            ("events", events.to_string()),
            (key, (took.as_millis() / TIMES as u128).to_string()),
            ("p50_us", with.quantile(0.5).to_string()),
        ];
        Ok(Sample::new(with.quantile(0.99) as f64, keys).beside("without", without.quantile(0.99) as f64))
    })
}

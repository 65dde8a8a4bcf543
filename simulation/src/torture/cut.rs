//! Power cuts: a process writes a log on a file system of its own; at a random moment of its work that one's disk is copied
//! as it is, and the copy takes its place. Everything that was acknowledged before must be in it, byte for byte, in order; and
//! from there the next process writes on, so that what was found after one cut must be there after the next.
//!
//! ```text
//!  a.img ─ loop ─► a/ (ext4): disk.img ─ loop ─► disk/ (ext4): log ◄─ writes ─ a process ─ says what is acknowledged ─► here
//!                  │ frozen while it is copied: nothing more reaches disk.img, in the middle of whatever disk/ was writing
//!  b.img ─ loop ─► b/ (ext4): disk.img ─ loop ─► disk/: opened (the journal is replayed), checked, written on, copied back to a/
//! ```
//! The freeze is below the file system that is looked at, which knows nothing of it: it syncs nothing for it. So the copy has
//! what disk/ had sent to its disk, at one moment, also between two writes of one `fsync`; what was only in its page cache is
//! gone. What it cannot show: a disk that forgets or reorders what was sent to it (a cache of its own, without a flush).

use super::net::run;
use super::{SKIPPED, as_root};
use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use cvlan_core::grammar::Rng;
use cvlan_raft::store::bare::BareLog;
use cvlan_raft::{Limits, LogStore, Plant};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Length of the disk, and of each of the two that it lies on; sparse.
const DISK_BYTES: u64 = 320 << 20;
const SIDE_BYTES: u64 = 512 << 20;
/// A log is begun anew where its disk is fuller than this, percent.
const FULL_PERCENT: u64 = 40;
/// A writer that has not opened its log by then does not.
const PATIENCE: Duration = Duration::from_secs(30);
/// A cut comes so long after the writer is there: from … to, ms.
const WRITES_MS: (u64, u64) = (10, 250);
/// Bytes of a batch, at most; at least 1.
const BATCH: usize = 64 << 10;
/// Entries of a batch, at most.
const ENTRIES: u64 = 8;
/// Batches on their way at once, at most.
const FLIGHT: u64 = 4;
/// Small: many of them come and go.
const SEGMENT: u64 = 2 << 20;

/// How many, and of what.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Cuts of each store.
    #[arg(long, default_value_t = 100)]
    pub times: u64,
    /// Chooses the moments.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only this store.
    #[arg(long, value_name = "wal|sled")]
    pub store: Option<LogStore>,
    /// The log is never synced: cuts that lost something are counted, and it fails if none did.
    #[arg(long)]
    pub plant: bool,
    /// Where the disks lie [default: the system's folder for temporary files]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Run in this folder.
    #[arg(long, hide = true)]
    pub inside: Option<PathBuf>,
}

/// The process that writes, for the one that cuts.
#[derive(clap::Args, Clone, Debug)]
pub struct Writer {
    /// What keeps the log.
    #[arg(long)]
    pub store: LogStore,
    /// Its folder.
    #[arg(long)]
    pub data: PathBuf,
    /// Chooses the batches.
    #[arg(long)]
    pub seed: u64,
    /// The log is never synced.
    #[arg(long)]
    pub plant: bool,
    /// Look, and write nothing.
    #[arg(long)]
    pub look: bool,
}

/// See the module.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    match &options.inside {
        Some(work) => inside(options, work),
        None => outside(options),
    }
}

/// Runs itself with mounts of its own: with its last process they are gone.
fn outside(options: &Options) -> anyhow::Result<ExitCode> {
    if let Some(skipped) = as_root("mounts file systems")? {
        return Ok(skipped);
    }
    for tool in ["mkfs.ext4", "mount", "umount", "unshare", "fsfreeze", "cp"] {
        if Command::new(tool).arg("-V").output().is_err() {
            eprintln!("SKIPPED: {tool} is missing");
            return Ok(ExitCode::from(SKIPPED));
        }
    }
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = tempfile::Builder::new().prefix("cvlan-cut-").tempdir_in(dir)?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1));
    // A signal from the terminal is ours to hand on.
    let mut child = command.arg("--inside").arg(work.path()).process_group(0).spawn().context("unshare")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("no pid")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        loop {
            if let Some(status) = child.try_wait()? {
                return anyhow::Ok(status);
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(50)) => continue,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            kill_process(pid, Signal::INT)?;
        }
    })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn inside(options: &Options, work: &Path) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let stopped = stop.clone();
    runtime.spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stopped.store(true, SeqCst);
    });
    let mut bed = match Bed::make(work) {
        Ok(bed) => bed,
        Err(error) => {
            eprintln!("SKIPPED: no file system can be mounted from a file here: {error:#}");
            return Ok(ExitCode::from(SKIPPED));
        }
    };
    let mut failed = false;
    for store in [LogStore::Wal, LogStore::Sled] {
        if options.store.is_some_and(|only| only != store) {
            continue;
        }
        let mut cuts = Cuts { store, options, rng: Rng(options.seed), stop: &stop, told: Told::default() };
        let told = cuts.all(&mut bed).with_context(|| store.to_string())?;
        if stop.load(SeqCst) {
            return Ok(ExitCode::from(130));
        }
        println!(
            "CVLAN_BENCH name=power_cuts value={} unit=cuts store={store} lost={} acknowledged={} mb={:.1} unacknowledged_kept={}",
            told.cuts,
            told.lost,
            told.entries,
            told.bytes as f64 / 1e6,
            told.more
        );
        failed |= (told.lost > 0) != options.plant;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A disk that can be copied at one moment.
struct Bed {
    work: PathBuf,
    /// On which side it lies.
    side: usize,
}

const SIDES: [&str; 2] = ["a", "b"];

impl Bed {
    fn make(work: &Path) -> anyhow::Result<Self> {
        let bed = Self { work: work.to_owned(), side: 0 };
        for side in SIDES {
            let image = bed.text(&format!("{side}.img"));
            File::create_new(&image)?.set_len(SIDE_BYTES)?;
            ext4(&image, &["-O", "^has_journal"])?;
            fs::create_dir(bed.work.join(side))?;
            run("mount", &["-o", "loop,noatime", &image, &bed.text(side)])?;
        }
        fs::create_dir(bed.work.join("disk"))?;
        Ok(bed)
    }

    fn text(&self, name: &str) -> String {
        self.work.join(name).display().to_string()
    }

    fn image(&self, side: usize) -> String {
        self.text(&format!("{}/disk.img", SIDES.get(side % 2).copied().unwrap_or_default()))
    }

    fn data(&self) -> PathBuf {
        self.work.join("disk/data")
    }

    /// An empty disk.
    fn fresh(&mut self) -> anyhow::Result<()> {
        let image = self.image(self.side);
        File::create(&image)?.set_len(DISK_BYTES)?;
        ext4(&image, &[])
    }

    fn mount(&self) -> anyhow::Result<()> {
        run("mount", &["-o", "loop", &self.image(self.side), &self.text("disk")]).map(drop)
    }

    fn umount(&self) -> anyhow::Result<()> {
        run("umount", &[&self.text("disk")]).map(drop)
    }

    fn nearly_full(&self) -> anyhow::Result<bool> {
        let disk = rustix::fs::statvfs(self.work.join("disk"))?;
        Ok(disk.f_bavail * 100 < disk.f_blocks * (100 - FULL_PERCENT))
    }

    /// Copies the disk to the other side, as it is at one moment.
    fn copy(&self) -> anyhow::Result<()> {
        let side = self.text(SIDES.get(self.side % 2).copied().unwrap_or_default());
        let _thawed = Frozen::new(side)?;
        run("cp", &["--sparse=always", &self.image(self.side), &self.image(self.side + 1)]).map(drop)
    }
}

fn ext4(image: &str, more: &[&str]) -> anyhow::Result<()> {
    let usual = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1"];
    run("mkfs.ext4", &[&usual[..], more, &[image]].concat()).map(drop)
}

/// A file system to which nothing is written.
struct Frozen(String);

impl Frozen {
    fn new(path: String) -> anyhow::Result<Self> {
        run("fsfreeze", &["-f", &path])?;
        Ok(Self(path))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = run("fsfreeze", &["-u", &self.0]) {
            eprintln!("{error:#}");
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    cuts: u64,
    /// Cuts after which something was missing.
    lost: u64,
    /// Acknowledged.
    entries: u64,
    bytes: u64,
    /// Cuts after which more was there than was acknowledged.
    more: u64,
}

struct Cuts<'a> {
    store: LogStore,
    options: &'a Options,
    rng: Rng,
    stop: &'a AtomicBool,
    told: Told,
}

/// What a writer has said.
#[derive(Clone, Debug, Default)]
struct Said {
    opened: Option<u64>,
    acked: u64,
    bytes: u64,
    wrong: Option<String>,
    ended: bool,
}

impl Cuts<'_> {
    fn all(&mut self, bed: &mut Bed) -> anyhow::Result<Told> {
        let begun = Instant::now();
        // How many entries must be there.
        let mut due = 0;
        bed.fresh()?;
        while self.told.cuts < self.options.times && !self.stop.load(SeqCst) {
            bed.mount()?;
            let ends = self.life(bed, due);
            bed.umount()?;
            due = match ends? {
                Some(due) => {
                    bed.side += 1;
                    due
                }
                None => {
                    bed.fresh()?;
                    0
                }
            };
        }
        bed.mount()?;
        let said = self.look(bed, due);
        bed.umount()?;
        said?;
        eprintln!(
            "{}: {} cuts in {:.1} s, {} entries ({:.1} MB) acknowledged, {} cuts lost something; after {} there was more than \
             was acknowledged",
            self.store,
            self.told.cuts,
            begun.elapsed().as_secs_f64(),
            self.told.entries,
            self.told.bytes as f64 / 1e6,
            self.told.lost,
            self.told.more
        );
        Ok(self.told)
    }

    /// One process, up to the cut: how many entries must be there after it; `None` where the log is to be begun anew.
    fn life(&mut self, bed: &Bed, due: u64) -> anyhow::Result<Option<u64>> {
        if bed.nearly_full()? {
            return Ok(None);
        }
        let mut writer = Process::start(self, bed, false)?;
        let opened = match writer.opened(due) {
            Ok(opened) => opened,
            Err(error) => {
                self.lost(&error);
                return Ok(None);
            }
        };
        self.told.more += u64::from(opened > due);
        std::thread::sleep(Duration::from_millis(WRITES_MS.0 + self.rng.below(WRITES_MS.1 - WRITES_MS.0)));
        // Before the copy begins.
        let said = writer.said();
        bed.copy()?;
        self.told.cuts += 1;
        let now = writer.said();
        ensure!(!now.ended, "the writer ended: {}", now.wrong.unwrap_or_default());
        self.told.entries += said.acked.saturating_sub(opened);
        self.told.bytes += said.bytes;
        Ok(Some(said.acked.max(opened)))
    }

    /// After the last cut.
    fn look(&mut self, bed: &Bed, due: u64) -> anyhow::Result<()> {
        let mut writer = Process::start(self, bed, true)?;
        if let Err(error) = writer.opened(due) {
            self.lost(&error);
        }
        Ok(())
    }

    fn lost(&mut self, error: &anyhow::Error) {
        self.told.lost += 1;
        if !self.options.plant {
            eprintln!("VIOLATION: {}, after cut {}: {error:#}", self.store, self.told.cuts);
        }
    }
}

/// A writer; dropped, it is killed.
struct Process {
    child: Child,
    said: Arc<(Mutex<Said>, Condvar)>,
}

impl Process {
    fn start(cuts: &mut Cuts<'_>, bed: &Bed, look: bool) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["cut-writer", "--store", &cuts.store.to_string(), "--seed", &cuts.rng.next().to_string()]);
        command.arg("--data").arg(bed.data());
        command.args(cuts.options.plant.then_some("--plant")).args(look.then_some("--look"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("the writer")?;
        let out = child.stdout.take().context("the writer has no stdout")?;
        let said = Arc::<(Mutex<Said>, Condvar)>::default();
        let heard = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut said = heard.0.lock().unwrap_or_else(PoisonError::into_inner);
                said.hear(&line);
                heard.1.notify_all();
            }
            heard.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            heard.1.notify_all();
        });
        Ok(Self { child, said })
    }

    fn said(&self) -> Said {
        self.said.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has opened its log and looked at all of it; an error where there are fewer than `due` entries.
    fn opened(&mut self, due: u64) -> anyhow::Result<u64> {
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |said: &mut Said| said.opened.is_none() && said.wrong.is_none() && !said.ended;
        let waited = self.said.1.wait_timeout_while(said, PATIENCE, waits);
        let (said, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match (&said.wrong, said.opened) {
            (Some(wrong), _) => Err(anyhow!("{wrong}")),
            (None, Some(opened)) if opened < due => bail!("{opened} entries of {due} that were acknowledged"),
            (None, Some(opened)) => Ok(opened),
            (None, None) => bail!("the writer did not open its log"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (what, number) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        match (what, number) {
            (Some("opened"), number @ Some(_)) => self.opened = number,
            (Some("acked"), Some(count)) => {
                self.acked = count;
                self.bytes = words.next().and_then(|word| word.parse().ok()).unwrap_or(self.bytes);
            }
            _ => self.wrong = Some(line.to_owned()),
        }
    }
}

/// Opens the log, checks all of it, and writes until it is killed.
pub fn write(writer: &Writer) -> anyhow::Result<ExitCode> {
    match written(writer) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            println!("wrong: {error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn written(writer: &Writer) -> anyhow::Result<()> {
    let plant = Plant { skip_fsync: writer.plant, ..Plant::default() };
    let limits = Limits { segment_bytes: SEGMENT, ..Limits::default() };
    let log = BareLog::open(LogStore::open(Some(writer.store), &writer.data)?, &limits, plant)?;
    let wrong = Arc::new(Mutex::new((0, None)));
    let found = wrong.clone();
    log.read(move |n, bytes| {
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.1.is_none() && (n != found.0 || bytes != entry(n)) {
            found.1 = Some(format!("entry {n} where {} was due, or with other bytes", found.0));
        }
        found.0 = n + 1;
    })?;
    let (read, wrong) = wrong.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(wrong) = wrong {
        bail!("{wrong}");
    }
    ensure!(read == log.count(), "{read} entries can be read of {}", log.count());
    say(&format!("opened {read}"))?;
    if writer.look {
        return Ok(());
    }
    let mut rng = Rng(writer.seed);
    let flight = Arc::<(Mutex<u64>, Condvar)>::default();
    let mut bytes = 0;
    loop {
        let (batch, most) = (batch(&mut rng, log.count()), 1 + rng.below(FLIGHT));
        {
            let on_way = flight.0.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = flight.1.wait_while(on_way, |on_way| *on_way >= most);
            *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        }
        bytes += batch.iter().map(Bytes::len).sum::<usize>();
        let (landed, to) = (flight.clone(), log.count() + batch.len() as u64);
        log.append(batch, move |result| {
            let told = match result {
                Ok(()) => say(&format!("acked {to} {bytes}")),
                Err(error) => say(&format!("wrong: {error}")),
            };
            if told.is_err() {
                std::process::exit(1);
            }
            *landed.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            landed.1.notify_all();
        })?;
    }
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Entries from `from` on, together at most [`BATCH`] bytes, except that there is one.
fn batch(rng: &mut Rng, from: u64) -> Vec<Bytes> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for n in from..from + 1 + rng.below(ENTRIES) {
        let entry = entry(n);
        bytes += entry.len();
        if bytes > BATCH && !batch.is_empty() {
            break;
        }
        batch.push(entry);
    }
    batch
}

/// The `n`th entry: 1 byte to 64 KiB, small ones as often as large ones.
fn entry(n: u64) -> Bytes {
    let mut rng = Rng(n);
    let bits = rng.below(17);
    let len = 1 + rng.below(1 << bits) as usize;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_1_byte_to_64_kib_and_entries_are_told_apart() {
        let mut rng = Rng(1);
        let lens: Vec<usize> = (0..4000).map(|n| batch(&mut rng, n).iter().map(Bytes::len).sum()).collect();
        assert!(lens.iter().all(|len| (1..=BATCH).contains(len)));
        assert!(lens.contains(&1) && lens.iter().any(|len| *len > BATCH * 9 / 10), "{:?}", lens.iter().max());
        assert_ne!(entry(1), entry(2));
        assert_eq!(entry(7), entry(7));
    }

    #[test]
    fn what_a_writer_says_is_heard() {
        let mut said = Said::default();
        for line in ["opened 5", "acked 9 1000", "acked 12 1500"] {
            said.hear(line);
        }
        assert_eq!((said.opened, said.acked, said.bytes, said.wrong.take()), (Some(5), 12, 1500, None));
        said.hear("wrong: log/0000000001.seg is damaged");
        assert_eq!(said.wrong.as_deref(), Some("wrong: log/0000000001.seg is damaged"));
    }
}

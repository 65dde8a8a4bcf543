//! Torture: three real controllers, each in a network namespace of its own; writers through all their doors; faults, one
//! after another; and at the end a proof from every member's whole log that what was acknowledged is there, once, in an
//! order that agrees with the clock, and what was refused is not.
//!
//! ```text
//!  main, in the machine's own namespace: makes the network, removes it whatever happens
//!    └─ itself again, in the hub's namespace: members (processes) · load · faults ─► check
//! ```
//! Where to start reading: [`faults`] (what goes wrong, with [`slow`]), [`load`] (what is asked), [`check`] (what is proven);
//! [`cut`] cuts the power of the log alone.

pub mod check;
pub mod cut;
pub mod failover;
pub mod faults;
pub mod load;
pub mod members;
pub mod net;
pub mod slow;

use anyhow::{Context, bail};
use failover::{Seen, TENANT};
use faults::Torture;
use load::{Load, Outcome};
use members::Members;
use net::{MEMBERS, Net, run};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// What whoever started this may not do, or the machine does not have.
const SKIPPED: u8 = 77;
/// A run that was interrupted has so long to end.
const END: Duration = Duration::from_secs(10);

/// How long, and what.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Faults begin for so long; the one that runs then is the last.
    #[arg(long, default_value_t = 1200)]
    pub seconds: u64,
    /// Chooses the order of the faults, whom they hit, and how long they last.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Writers, each in a tenant of its own.
    #[arg(long, default_value_t = 9)]
    pub writers: usize,
    /// No other fault than so many kill -9 of the leader and so many SIGTERMs, without other writers.
    #[arg(long, value_name = "N")]
    pub failover: Option<usize>,
    /// Where the members' folders lie; on a disk, not in memory [default: the system's folder for temporary files]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Run in the hub of this network, in this folder.
    #[arg(long, hide = true, num_args = 2)]
    pub inside: Option<Vec<String>>,
}

/// See the module.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match options.inside.as_deref() {
        Some([id, work]) => runtime.block_on(inside(options, Net::named(id), Path::new(work))),
        _ => runtime.block_on(outside(options)),
    }
}

/// Becomes root, by running itself again; what to exit with where that is not allowed.
fn as_root(why: &str) -> anyhow::Result<Option<ExitCode>> {
    if rustix::process::getuid().is_root() {
        return Ok(None);
    }
    if run("sudo", &["-n", "true"]).is_err() {
        eprintln!("SKIPPED: the torture {why}, which takes root: sudo -v && make torture");
        return Ok(Some(ExitCode::from(SKIPPED)));
    }
    let program = std::env::current_exe()?;
    let error = Command::new("sudo").arg("-n").arg(program).args(std::env::args_os().skip(1)).exec();
    Err(error).context("sudo")
}

/// Makes the network, runs itself in it, removes it.
async fn outside(options: &Options) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe()?;
    if let Some(skipped) = as_root("makes network namespaces")? {
        return Ok(skipped);
    }
    for tool in ["ip", "nft", "mkfs.ext4", "mount"] {
        if Command::new(tool).arg("-V").output().is_err() {
            eprintln!("SKIPPED: {tool} is missing");
            return Ok(ExitCode::from(SKIPPED));
        }
    }
    let id = format!("cvt{}", std::process::id());
    let net = Net::named(&id);
    if let Err(error) = net.allowed() {
        eprintln!("SKIPPED: the torture makes network namespaces, which is not allowed here: {error:#}");
        return Ok(ExitCode::from(SKIPPED));
    }
    let result = match net.make() {
        Ok(()) => in_hub(options, &program, &id, &net).await,
        Err(error) => Err(error),
    };
    net.remove();
    result
}

async fn in_hub(options: &Options, program: &Path, id: &str, net: &Net) -> anyhow::Result<ExitCode> {
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = tempfile::Builder::new().prefix("cvlan-torture-").tempdir_in(dir)?;
    // Both are caught from here on: the network is removed in any case.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &net.hub()]).arg(program).args(std::env::args_os().skip(1));
    let mut child = command.arg("--inside").arg(id).arg(work.path()).spawn().context("ip netns exec")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("no pid")?;
    let mut end: Option<Instant> = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if end.is_some_and(|end| Instant::now() > end) {
            child.kill()?;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => continue,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        end.get_or_insert(Instant::now() + END);
        kill_process(pid, Signal::INT)?;
    };
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    if end.is_some() {
        return Ok(ExitCode::from(130));
    }
    let kept = work.keep();
    eprintln!(
        "kept: {} (mN.log is what member N says; mN.img its disk: mount -o loop,ro mN.img FOLDER; or mN, its folder)",
        kept.display()
    );
    Ok(ExitCode::FAILURE)
}

async fn inside(options: &Options, net: Net, work: &Path) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = torture(options, net, work) => {
            if let Err(error) = &result {
                eprintln!("FAILED: {error:#}");
            }
            Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
    }
}

async fn torture(options: &Options, net: Net, work: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut members = Members::new(net.clone(), work, options.failover.is_none())?;
    let load = Load::new(members.found().await?);
    load.tenant(TENANT).await?;
    eprintln!("three controllers vote after {:.1} s; seed {}", begin.elapsed().as_secs_f64(), options.seed);
    let mut torture = Torture::new(net, members, load.clone(), options.seed)?;
    let writers = if options.failover.is_some() { 0 } else { options.writers };
    let tasks = load.start(writers, options.seed).await?;
    match options.failover {
        Some(times) => failovers(&mut torture, times).await?,
        None => {
            torture.calm().await?;
            let end = Instant::now() + Duration::from_secs(options.seconds);
            while Instant::now() < end {
                let fault = torture.draw();
                torture.play(fault).await?;
            }
        }
    }
    load.stop();
    for task in tasks {
        task.await?;
    }
    proof(&mut torture).await?;
    figures(&torture);
    Ok(())
}

/// kill -9 and SIGTERM of the leader by turns.
async fn failovers(torture: &mut Torture, times: usize) -> anyhow::Result<()> {
    for n in 1..=times {
        torture.calm().await?;
        let at = torture.members.leader(&torture.load.doors).await?;
        let seen = torture.leader_killed(at).await?;
        eprintln!("{n:>3} kill -9  the next write after {:>4} ms", seen.next_us / 1000);
        torture.calm().await?;
        let at = torture.members.leader(&torture.load.doors).await?;
        let seen = torture.leader_stopped(at).await?;
        eprintln!(
            "{n:>3} SIGTERM  longest pause {:>4} ms, slowest write {:>4} ms, {} of {} failed",
            seen.gap_us / 1000,
            seen.slowest_us / 1000,
            seen.failed,
            seen.writes
        );
    }
    torture.calm().await
}

/// Stops everybody and reads what they have.
async fn proof(torture: &mut Torture) -> anyhow::Result<()> {
    let Torture { members, load, .. } = torture;
    for at in 0..MEMBERS {
        members.ready(at).await?;
        // It has everything by then.
        load.doors.ask(at, "GET", "/cluster?consistency=linearizable", "").await?.success()?;
    }
    load.doors.ask(0, "POST", "/log/checkpoint", "").await?.success()?;
    for at in 0..MEMBERS {
        members.terminate(at)?;
        members.ended(at).await?;
    }
    let writes = load.writes();
    let last = writes.iter().filter_map(|w| if let Outcome::Acked(seq) = w.outcome { seq } else { None }).max();
    let mut wrong = load.violations();
    let mut first = None;
    for at in 0..MEMBERS {
        let name = members.name(at).to_owned();
        let (log, report) = check::read(&members.data(at)?).await?;
        eprintln!(
            "{name}: {} events, {} checkpoints attested, root {}",
            report.events,
            report.checkpoints.len(),
            hex::encode(report.root)
        );
        if (log.leaves.len() as u64) < last.unwrap_or(0) {
            wrong.push(format!("{name} has {} events of {last:?} that were acknowledged", log.leaves.len()));
        }
        wrong.extend(check::proved(&writes, &log.found).into_iter().map(|what| format!("{name}: {what}")));
        match &first {
            None => first = Some((name, log, report)),
            Some((other, theirs, said)) => {
                wrong.extend(check::same((other, theirs, said), (&name, &log, &report)));
            }
        }
    }
    if wrong.is_empty() {
        let count = |of: &dyn Fn(Outcome) -> bool| writes.iter().filter(|w| of(w.outcome)).count();
        eprintln!(
            "proven: {} writes acknowledged, each in all three logs once and in order; {} refused or taken, none there; {} \
             unknown, none there twice; {} linearizable reads, each with what was acknowledged before it",
            count(&|outcome| matches!(outcome, Outcome::Acked(_))),
            count(&|outcome| matches!(outcome, Outcome::Refused | Outcome::Taken)),
            count(&|outcome| outcome == Outcome::Unknown),
            load.reads.load(std::sync::atomic::Ordering::SeqCst)
        );
        return Ok(());
    }
    wrong.iter().take(20).for_each(|what| eprintln!("VIOLATION: {what}"));
    bail!("{} violations", wrong.len())
}

/// Median and greatest, ms; `None` of nothing.
fn spread(seen: &[Seen], of: fn(&Seen) -> u64) -> Option<(f64, f64)> {
    let mut values: Vec<u64> = seen.iter().map(of).collect();
    values.sort_unstable();
    let middle = values.get(values.len().checked_sub(1)? / 2)?;
    Some((*middle as f64 / 1000.0, *values.last()? as f64 / 1000.0))
}

fn figures(torture: &Torture) {
    let Torture { kills, terms, load, .. } = torture;
    println!("CVLAN_BENCH name=torture_writes_acked value={} unit=writes", load.acks());
    if torture.faults > 0 {
        let longest = torture.longest.as_millis();
        println!("CVLAN_BENCH name=torture_longest_pause_ms value={longest} unit=ms faults={}", torture.faults);
    }
    if let Some((median, max)) = spread(kills, |seen| seen.next_us) {
        println!("CVLAN_BENCH name=failover_ms value={median:.1} unit=ms max={max:.1} times={}", kills.len());
    }
    if let Some((median, max)) = spread(terms, |seen| seen.gap_us) {
        let (failed, writes) = terms.iter().fold((0, 0), |(f, w), seen| (f + seen.failed, w + seen.writes));
        println!(
            "CVLAN_BENCH name=sigterm_pause_ms value={median:.1} unit=ms max={max:.1} times={} failed={failed} writes={writes}",
            terms.len()
        );
    }
}

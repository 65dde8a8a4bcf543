//! `cvlan-sim`: runs seeds of the simulation, the benchmarks, or the torture of real processes.

use anyhow::{Context, bail};
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use cvlan_sim::progress::Progress;
use cvlan_sim::report::Report;
use cvlan_sim::runner::{Summary, seeds};
use cvlan_sim::setup::{PLANTS, Setup, reproduce, run};
use cvlan_sim::{bench, ledger::short, picture, shrink, torture};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

/// Where seeds that failed are kept, in a checkout: a test replays them.
const CORPUS: &str = "simulation/tests/corpus/seeds.txt";

/// A line on stdout; a reader that has gone is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// As in the controller, whose log and floors are measured here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Deterministic simulation and benchmarks of CVLAN.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run one seed, or a few, and print what happened; the same seed gives the same digest.
    Run(Run),
    /// Run many seeds and print the rate and the failures.
    Seeds(Seeds),
    /// Run seeds here and in another build of this program, and compare their digests.
    Same(Same),
    /// Measure the real log on real files: prints a table and one CVLAN_BENCH line per figure.
    Bench(bench::Options),
    /// Break three real controllers and the network between them while others write, and prove that nothing was lost.
    Torture(torture::Options),
    /// Cut the power of a log's disk while it is written to, and look what is there.
    Cut(torture::cut::Options),
    /// The process that writes, for `cut`.
    #[command(hide = true)]
    CutWriter(torture::cut::Writer),
    /// The door with an empty handler, for `bench`.
    #[command(hide = true)]
    Floor {
        /// Where it says its port.
        folder: PathBuf,
    },
}

#[derive(Args)]
struct Play {
    /// One member instead of a cluster.
    #[arg(long)]
    alone: bool,
    /// Commands of all clients together; of a cluster, at least.
    #[arg(long)]
    commands: Option<u64>,
    /// One member: ends of the process, at least.
    #[arg(long, default_value_t = Setup::alone().crashes)]
    crashes: u64,
    /// A cluster: virtual time, minutes.
    #[arg(long, default_value_t = Setup::cluster().minutes)]
    minutes: u64,
    /// A cluster: all of history is kept, and all members have one version, in every seed.
    #[arg(long)]
    plain: bool,
    /// A cluster: only these faults of its schedule, by their places in it.
    #[arg(long, value_delimiter = ',')]
    faults: Option<Vec<usize>>,
    /// A bug to be found; several may be planted.
    #[arg(long, value_parser = PossibleValuesParser::new(PLANTS.map(|(name, _)| name)))]
    plant: Vec<String>,
}

impl Play {
    fn setup(&self) -> Setup {
        let basis = if self.alone { Setup::alone() } else { Setup::cluster() };
        let setup = Setup {
            commands: self.commands.unwrap_or(basis.commands),
            crashes: self.crashes,
            minutes: self.minutes.max(2),
            plain: self.plain,
            only: self.faults.as_ref().map(|faults| BTreeSet::from_iter(faults.iter().copied())),
            ..basis
        };
        // The parser knows the names.
        self.plant.iter().fold(setup, |setup, name| setup.clone().with_plant(name).unwrap_or(setup))
    }
}

#[derive(Args)]
struct Run {
    /// The seed.
    #[arg(long, default_value_t = 1, conflicts_with = "seeds")]
    seed: u64,
    /// Several seeds, A..B (B is left out).
    #[arg(long, value_parser = range)]
    seeds: Option<std::ops::Range<u64>>,
    /// Write the trace to a file.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Draw the seed's space-time picture into a file; of a seed that fails, with as few faults as it takes.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Print a seed that fails as it is, without a search for fewer faults.
    #[arg(long)]
    no_shrink: bool,
    /// Run each seed twice, with every decision of the scheduler in the digest, and compare.
    #[arg(long)]
    twice: bool,
    #[command(flatten)]
    play: Play,
}

#[derive(Args)]
struct Seeds {
    /// First seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Last seed.
    #[arg(long)]
    to: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    play: Play,
}

#[derive(Args)]
struct Same {
    /// The other build.
    #[arg(long)]
    other: PathBuf,
    /// Seeds, A..B (B is left out).
    #[arg(long, value_parser = range, default_value = "1..4")]
    seeds: std::ops::Range<u64>,
    #[command(flatten)]
    play: Play,
}

fn range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let parse = |number: &str| number.parse().map_err(|e| format!("{number}: {e}"));
    let (from, to) = text.split_once("..").ok_or("give A..B")?;
    Ok(parse(from)?..parse(to)?)
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Run(args) => one_by_one(&args),
        Verb::Seeds(args) => many(&args),
        Verb::Same(args) => same(&args).map(|()| ExitCode::SUCCESS),
        Verb::Bench(options) => bench::main(&options).map(|()| ExitCode::SUCCESS),
        Verb::Torture(options) => torture::main(&options),
        Verb::Cut(options) => torture::cut::main(&options),
        Verb::CutWriter(writer) => torture::cut::write(&writer),
        Verb::Floor { folder } => bench::floor_serve(&folder).map(|()| ExitCode::SUCCESS),
    }
}

fn one_by_one(args: &Run) -> anyhow::Result<ExitCode> {
    let setup = Setup { text: args.trace.is_some() || args.html.is_some(), schedule: args.twice, ..args.play.setup() };
    let (mut all, mut text, mut violations) = (Vec::new(), String::new(), 0);
    let range = args.seeds.clone().unwrap_or(args.seed..args.seed.saturating_add(1));
    for seed in range.clone() {
        let report = run(seed, &setup);
        print(&report);
        if args.twice {
            let again = run(seed, &setup);
            if again.digest != report.digest {
                bail!(
                    "seed {seed}: the second run has digest {}, the first {}",
                    hex::encode(again.digest),
                    hex::encode(report.digest)
                );
            }
        }
        all.push(report.digest);
        let report = if report.violation.is_some() {
            violations += 1;
            failed(report, &setup, args.no_shrink)
        } else {
            (setup.clone(), report)
        };
        if let Some(path) = &args.html {
            write(path, &picture::html(&report.1, &report.0))?;
        }
        text.push_str(&report.1.text.unwrap_or_default());
    }
    if let Some(path) = &args.trace {
        write(path, &text)?;
    }
    say!("{}", digest_line(&all));
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Each seed in both builds at once.
fn same(args: &Same) -> anyhow::Result<()> {
    let setup = args.play.setup();
    for seed in args.seeds.clone() {
        let mut other = Command::new(&args.other);
        other.args(["run", "--no-shrink"]).args(setup.arguments(seed).split(' ')).stdout(Stdio::piped());
        let other = other.spawn().with_context(|| args.other.display().to_string())?;
        let report = run(seed, &setup);
        let said = String::from_utf8(other.wait_with_output()?.stdout)?;
        let (here, there) = (digest_line(&[report.digest]), said.lines().last().unwrap_or_default());
        if here != there {
            bail!("seed {seed}: {here} here, {there:?} of {}", args.other.display());
        }
        say!("seed {seed}: {here} in both builds, {} trace lines, {} ms", report.lines, report.virtual_ms);
    }
    Ok(())
}

/// Over the digests of seeds, in their order.
fn digest_line<'d>(digests: impl IntoIterator<Item = &'d [u8; 32]>) -> String {
    let mut all = Sha256::new();
    digests.into_iter().for_each(|digest| all.update(digest));
    format!("digest {}", hex::encode(all.finalize()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Says what broke, and with how few faults; the report of those.
fn failed(report: Report, setup: &Setup, as_it_is: bool) -> (Setup, Report) {
    let seed = report.seed;
    say!("seed {seed}: VIOLATION: {}\n  {}", report.violation.as_deref().unwrap_or_default(), reproduce(seed, setup));
    if setup.alone || as_it_is {
        return (setup.clone(), report);
    }
    let progress = std::io::stderr().is_terminal();
    let (fewer, report) = shrink::shrink(seed, setup, report, &|runs, left| {
        if progress {
            eprint!("\rfewer faults: run {runs}, {left} left ");
        }
    });
    if progress {
        eprintln!();
    }
    let left = fewer.only.clone().unwrap_or_default();
    say!("  with {} faults: {}", left.len(), report.violation.as_deref().unwrap_or_default());
    for place in &left {
        say!("    {place:>3} {}", report.faults.get(*place).map_or("", |fault| fault));
    }
    say!("  {}", reproduce(seed, &fewer));
    (fewer, report)
}

/// A seed that failed is kept, where this is a checkout, so that it is run with all tests from now on.
fn keep(report: &Report, setup: &Setup) {
    let Some(violation) = report.violation.as_deref().filter(|_| setup.planted().is_empty()) else {
        return;
    };
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(CORPUS) {
        let _ = writeln!(file, "{} # {violation}", setup.arguments(report.seed));
    }
}

fn print(report: &Report) {
    let Report { seed, lines, virtual_ms, counts, digest, .. } = report;
    say!("seed {seed}: {lines} trace lines, {virtual_ms} ms, {}\n  {}", short(digest), counts.line());
}

fn many(args: &Seeds) -> anyhow::Result<ExitCode> {
    let setup = args.play.setup();
    let total = (args.to + 1).saturating_sub(args.from);
    let progress = Progress::of(total);
    // Seeds end in any order; the digest takes them in theirs.
    let state: Mutex<(BTreeMap<u64, [u8; 32]>, u64)> = Mutex::default();
    let summary: Summary = seeds(args.from..=args.to, args.threads, &setup, false, &|report| {
        let mut state = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.0.insert(report.seed, report.digest);
        if let Some(violation) = &report.violation {
            state.1 += 1;
            keep(report, &setup);
            progress.clear();
            say!("seed {}: VIOLATION: {violation}\n  {}", report.seed, reproduce(report.seed, &setup));
        }
        progress.tell(state.0.len() as u64, state.1);
    });
    progress.clear();
    say!("{}", summary.line());
    let digests = state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).0;
    say!("{}", digest_line(digests.values()));
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

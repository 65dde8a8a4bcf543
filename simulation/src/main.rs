//! `cvlan-sim`: runs seeds of the simulation, or the benchmarks.

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use cvlan_raft::Plant;
use cvlan_sim::runner::{Summary, reproduce, seeds};
use cvlan_sim::world::{Counts, Report, Setup, run};
use cvlan_sim::{bench, ledger::short};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

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
    /// Measure the real log on real files: prints a table and one CVLAN_BENCH line per figure.
    Bench(bench::Options),
    /// The door with an empty handler, for `bench`.
    #[command(hide = true)]
    Floor {
        /// Where it says its port.
        folder: PathBuf,
    },
}

#[derive(Args)]
struct Play {
    /// Commands of all clients together.
    #[arg(long, default_value_t = Setup::default().commands)]
    commands: u64,
    /// Ends of the process, at least.
    #[arg(long, default_value_t = Setup::default().crashes)]
    crashes: u64,
    /// A bug to be found.
    #[arg(long)]
    plant: Option<Bug>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Bug {
    /// The log is written but never synced.
    SkipFsync,
    /// The log says "durable" before it has written.
    EarlyAck,
}

impl Play {
    fn setup(&self) -> Setup {
        let plant = match self.plant {
            None => Plant::default(),
            Some(Bug::SkipFsync) => Plant { skip_fsync: true, ..Plant::default() },
            Some(Bug::EarlyAck) => Plant { early_ack: true, ..Plant::default() },
        };
        Setup { commands: self.commands, crashes: self.crashes, plant, ..Setup::default() }
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

fn range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let parse = |number: &str| number.parse().map_err(|e| format!("{number}: {e}"));
    let (from, to) = text.split_once("..").ok_or("give A..B")?;
    Ok(parse(from)?..parse(to)?)
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Run(args) => one_by_one(&args),
        Verb::Seeds(args) => many(&args),
        Verb::Bench(options) => bench::main(&options).map(|()| ExitCode::SUCCESS),
        Verb::Floor { folder } => bench::floor_serve(&folder).map(|()| ExitCode::SUCCESS),
    }
}

fn one_by_one(args: &Run) -> anyhow::Result<ExitCode> {
    let setup = Setup { text: args.trace.is_some(), schedule: args.twice, ..args.play.setup() };
    let (mut all, mut text, mut violations) = (Sha256::new(), String::new(), 0);
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
        if let Some(violation) = &report.violation {
            violations += 1;
            say!("seed {seed}: VIOLATION: {violation}\n  {}", reproduce(seed, &setup));
        }
        all.update(report.digest);
        text.push_str(&report.text.unwrap_or_default());
    }
    if let Some(path) = &args.trace {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    say!("digest {}", hex::encode(all.finalize()));
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) {
    let Report { seed, lines, virtual_ms, counts, .. } = report;
    let Counts { crashes, at_call, cuts, in_recovery, stops, damaged, failed, full, .. } = counts;
    say!(
        "seed {seed}: {lines} trace lines, {virtual_ms} ms, {} calls of the disk, {}",
        counts.calls,
        short(&report.digest)
    );
    say!(
        "  ends: {crashes} crashes ({at_call} at a call, {in_recovery} in a recovery), {stops} in order; {cuts} power cuts, {damaged} damaged snapshots, {failed} failed calls, {full} × disk full"
    );
    say!(
        "  commands: {} done ({} answered again), {} refused, {} sent again, {} told that the disk is full",
        counts.done,
        counts.repeated,
        counts.refused,
        counts.retries,
        counts.full_answers
    );
    say!(
        "  log: {} events, {} segments, purged up to entry {}, snapshot at event {}, {} checkpoints",
        counts.events,
        counts.segments,
        counts.purged,
        counts.snapshot,
        counts.checkpoints
    );
}

fn many(args: &Seeds) -> anyhow::Result<ExitCode> {
    let setup = args.play.setup();
    let progress = std::io::stderr().is_terminal();
    // Seeds end in any order; the digest takes them in theirs.
    let state: Mutex<(BTreeMap<u64, [u8; 32]>, usize)> = Mutex::default();
    let total = (args.to + 1).saturating_sub(args.from);
    let summary: Summary = seeds(args.from..=args.to, args.threads, &setup, &|report| {
        let mut state = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.0.insert(report.seed, report.digest);
        if let Some(violation) = &report.violation {
            state.1 += 1;
            say!("seed {}: VIOLATION: {violation}\n  {}", report.seed, reproduce(report.seed, &setup));
        }
        if progress {
            eprint!("\r{} of {total} seeds, {} failed ", state.0.len(), state.1);
        }
    });
    if progress {
        eprintln!();
    }
    say!("{}", summary.line());
    let mut all = Sha256::new();
    let digests = state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).0;
    digests.values().for_each(|digest| all.update(digest));
    say!("digest {}", hex::encode(all.finalize()));
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

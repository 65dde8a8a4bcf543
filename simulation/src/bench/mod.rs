//! The figures of `make bench`: the real log on real files, with real syncs, in this process.
//!
//! ```text
//! FIGURES ─► for each round: every figure once, so that what disturbs the machine disturbs all of them alike
//!         ─► the median round of each: a table, then one line  CVLAN_BENCH name=… value=… unit=… key=…
//! ```
//! A figure is one line in [`FIGURES`] and one function that measures one round.

mod agents;
mod https;
mod replay;
mod write;

pub use https::floor_serve;

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// What is measured, and how long.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Only these figures.
    #[arg(long)]
    pub only: Vec<String>,
    /// Rounds; the median one counts.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Length of one measurement, seconds.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Callers at once.
    #[arg(long, default_value_t = 200)]
    pub callers: usize,
    /// Events of the log that is replayed.
    #[arg(long, default_value_t = 200_000)]
    pub events: u64,
    /// Where the files lie; on a disk, not in memory.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The figure.
    pub value: f64,
    /// What else was seen.
    pub keys: Vec<(&'static str, String)>,
}

/// What can be measured.
pub struct Figure {
    /// As in the output.
    pub name: &'static str,
    /// Of the value.
    pub unit: &'static str,
    /// The figure beside which it is shown, if that was measured too.
    pub peer: Option<&'static str>,
    /// Measures one round.
    pub round: fn(&Bench) -> anyhow::Result<Sample>,
}

/// All of them, in the order in which a round measures them.
pub const FIGURES: &[Figure] = &[
    Figure { name: "floor_disk", unit: "writes/s", peer: None, round: write::floor_disk },
    Figure { name: "floor_log", unit: "writes/s", peer: Some("floor_disk"), round: write::floor_log },
    Figure { name: "seq_write_m1", unit: "writes/s", peer: Some("floor_log"), round: write::seq_write },
    Figure { name: "floor_http", unit: "requests/s", peer: None, round: https::floor },
    Figure { name: "https_write_m1_c1", unit: "writes/s", peer: Some("floor_http"), round: https::write_c1 },
    Figure { name: "https_write_m1_c64", unit: "writes/s", peer: Some("floor_http"), round: https::write_c64 },
    Figure { name: "https_write_m1_c200", unit: "writes/s", peer: Some("floor_http"), round: https::write_c200 },
    Figure { name: "rss_controller", unit: "MiB", peer: None, round: https::rss_controller },
    Figure { name: "rss_agent", unit: "MiB", peer: None, round: agents::rss_agent },
    Figure { name: "bulk_m1", unit: "events/s", peer: None, round: write::bulk },
    Figure { name: "replay_apply", unit: "events/s", peer: None, round: replay::apply },
    Figure { name: "replay_scan", unit: "events/s", peer: None, round: replay::scan },
    Figure { name: "disk_per_event", unit: "bytes/byte", peer: None, round: replay::disk_per_event },
];

/// Why a figure cannot be measured on this machine; it is said, and the others go on.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::error::Error for Skipped {}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the rounds share.
pub struct Bench {
    options: Options,
    long_log: OnceLock<replay::LongLog>,
}

impl Bench {
    fn new(options: &Options) -> Self {
        Self { options: options.clone(), long_log: OnceLock::new() }
    }

    /// A folder that goes when it is dropped.
    pub fn folder(&self) -> anyhow::Result<tempfile::TempDir> {
        let made = tempfile::Builder::new().prefix(".cvlan-bench-").tempdir_in(&self.options.dir);
        made.with_context(|| format!("making a folder in {}", self.options.dir.display()))
    }

    /// Length of one measurement.
    pub fn length(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }

    /// Callers at once.
    pub fn callers(&self) -> usize {
        self.options.callers
    }

    /// Events of the log that is replayed.
    pub fn events(&self) -> u64 {
        self.options.events
    }

    /// The log that is replayed; made once.
    fn long_log(&self) -> anyhow::Result<&replay::LongLog> {
        if let Some(log) = self.long_log.get() {
            return Ok(log);
        }
        let made = replay::LongLog::make(self)?;
        Ok(self.long_log.get_or_init(|| made))
    }
}

/// Runs what `figure` measures on the runtime that a controller has.
fn on_tokio<T>(figure: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(figure)
}

/// Measures, prints a table on stderr and the lines on stdout.
pub fn main(options: &Options) -> anyhow::Result<()> {
    if let Some(unknown) = options.only.iter().find(|name| FIGURES.iter().all(|figure| figure.name != **name)) {
        let names: Vec<_> = FIGURES.iter().map(|figure| figure.name).collect();
        bail!("there is no figure {unknown}; there are {}", names.join(", "));
    }
    let chosen: Vec<_> =
        FIGURES.iter().filter(|f| options.only.is_empty() || options.only.iter().any(|n| n == f.name)).collect();
    let bench = Bench::new(options);
    let mut samples: Vec<Vec<Sample>> = chosen.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.rounds.max(1) {
        for (figure, samples) in chosen.iter().zip(&mut samples) {
            let sample = match (figure.round)(&bench) {
                Err(error) if error.is::<Skipped>() => {
                    eprintln!("round {round}: {:<15} SKIPPED: {error:#}", figure.name);
                    continue;
                }
                result => result.with_context(|| figure.name)?,
            };
            eprintln!("round {round}: {:<15} {:>14.2} {}", figure.name, sample.value, figure.unit);
            samples.push(sample);
        }
    }
    let medians: Vec<(&Figure, Sample)> =
        chosen.iter().zip(samples).filter_map(|(figure, samples)| Some((*figure, median(samples)?))).collect();
    for (figure, sample) in &medians {
        let peer = figure.peer.and_then(|peer| medians.iter().find(|(other, _)| other.name == peer));
        println!("{}", line(figure, sample, peer.map(|(other, sample)| (other.name, sample.value))));
    }
    Ok(())
}

/// The sample in the middle by its value.
fn median(mut samples: Vec<Sample>) -> Option<Sample> {
    samples.sort_by(|a, b| a.value.total_cmp(&b.value));
    let middle = samples.len().checked_sub(1)? / 2;
    samples.into_iter().nth(middle)
}

fn line(figure: &Figure, sample: &Sample, peer: Option<(&str, f64)>) -> String {
    let mut line = format!("CVLAN_BENCH name={} value={:.2} unit={}", figure.name, sample.value, figure.unit);
    for (key, value) in &sample.keys {
        line.push_str(&format!(" {key}={value}"));
    }
    if let Some((name, value)) = peer {
        line.push_str(&format!(" peer={name} peer_value={value:.2} ratio={:.3}", sample.value / value));
    }
    line
}

/// Bytes of the files below a folder.
fn folder_bytes(path: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { folder_bytes(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_can_be_measured_and_its_line_is_what_scripts_read() {
        let options =
            Options { only: Vec::new(), rounds: 1, seconds: 0.1, callers: 20, events: 3000, dir: std::env::temp_dir() };
        let bench = Bench::new(&options);
        // Those through the door need the programs beside this one; `make bench` builds them.
        for figure in FIGURES.iter().filter(|f| !f.name.contains("http") && !f.name.starts_with("rss_")) {
            let sample = (figure.round)(&bench).unwrap();
            assert!(sample.value > 0.0, "{}", figure.name);
            let line = line(figure, &sample, Some(("peer", 2.0)));
            let fields: Vec<_> = line.split(' ').skip(1).map(|field| field.split_once('=').unwrap()).collect();
            assert_eq!((fields[0], fields[2]), (("name", figure.name), ("unit", figure.unit)));
            assert!(line.contains(" peer=peer peer_value=2.00 ratio="), "{line}");
        }
    }

    #[test]
    fn the_median_is_the_middle_one_or_the_lower_of_two() {
        let of = |values: &[f64]| median(values.iter().map(|v| Sample { value: *v, keys: Vec::new() }).collect());
        assert_eq!(of(&[3.0, 1.0, 2.0]).unwrap().value, 2.0);
        assert_eq!(of(&[4.0, 1.0]).unwrap().value, 1.0);
        assert!(of(&[]).is_none());
    }
}

//! The figures of `make bench`: the real log on real files, with real syncs, in this process.
//!
//! ```text
//! FIGURES ─► for each round: every figure once, so that what disturbs the machine disturbs all of them alike
//!         ─► the median round of each: a table, then one line  CVLAN_BENCH name=… value=… unit=… key=…
//! ```
//! A figure is one line in [`FIGURES`] and one function that measures one round.

mod agents;
mod cluster;
mod etcd;
mod https;
mod load;
mod process;
mod ready;
mod record;
mod replay;
mod store;
mod wire;
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
    /// What exactly was measured, where the figure's name does not say it.
    pub label: Option<String>,
    /// What was measured beside it by the same function.
    pub peer: Option<(String, f64)>,
}

impl Sample {
    fn new(value: f64, keys: Vec<(&'static str, String)>) -> Self {
        Self { value, keys, label: None, peer: None }
    }

    fn beside(mut self, name: &str, value: f64) -> Self {
        self.peer = Some((name.to_owned(), value));
        self
    }
}

/// What can be measured.
pub struct Figure {
    /// As in the output.
    pub name: &'static str,
    /// Of the value.
    pub unit: &'static str,
    /// The figure beside which it is shown, if that was measured too.
    pub peer: Option<&'static str>,
    /// The floor beside which it is shown; it takes the peer's place where there is none.
    pub floor: Option<&'static str>,
    /// Takes other programs, beside this one or on PATH.
    pub programs: bool,
    /// Measures one round.
    pub round: Round,
}

type Round = fn(&Bench) -> anyhow::Result<Sample>;
type Name = Option<&'static str>;

const fn here(name: &'static str, unit: &'static str, peer: Name, floor: Name, round: Round) -> Figure {
    Figure { name, unit, peer, floor, programs: false, round }
}

const fn beside(name: &'static str, unit: &'static str, peer: Name, floor: Name, round: Round) -> Figure {
    Figure { name, unit, peer, floor, programs: true, round }
}

/// All of them, in the order in which a round measures them.
pub const FIGURES: &[Figure] = &[
    here("floor_disk", "writes/s", None, None, write::floor_disk),
    here("floor_log", "writes/s", None, Some("floor_disk"), write::floor_log::<1>),
    here("floor_log_m3", "writes/s", None, Some("floor_disk"), write::floor_log::<3>),
    here("seq_write_m1", "writes/s", None, Some("floor_log"), write::seq_write::<1>),
    here("seq_write_m3", "writes/s", None, Some("floor_log_m3"), write::seq_write::<3>),
    here("store_wal_b1", "writes/s", None, None, store::wal::<1>),
    here("store_sled_b1", "writes/s", Some("store_wal_b1"), None, store::sled::<1>),
    here("store_wal_b16", "writes/s", None, None, store::wal::<16>),
    here("store_sled_b16", "writes/s", Some("store_wal_b16"), None, store::sled::<16>),
    here("store_wal_b256", "writes/s", None, None, store::wal::<256>),
    here("store_sled_b256", "writes/s", Some("store_wal_b256"), None, store::sled::<256>),
    here("bulk_m1", "events/s", None, None, write::bulk::<1>),
    here("bulk_m3", "events/s", None, None, write::bulk::<3>),
    beside("floor_http", "requests/s", None, None, https::floor),
    beside("https_write_m1_c1", "writes/s", Some("etcd_write_m1_c1"), Some("floor_http"), https::write::<1, 1>),
    beside("etcd_write_m1_c1", "writes/s", None, None, https::etcd::<1, 1>),
    beside("https_write_m1_c64", "writes/s", Some("etcd_write_m1_c64"), Some("floor_http"), https::write::<1, 64>),
    beside("etcd_write_m1_c64", "writes/s", None, None, https::etcd::<1, 64>),
    beside("https_write_m1_c200", "writes/s", Some("etcd_write_m1_c200"), Some("floor_http"), https::write::<1, 200>),
    beside("etcd_write_m1_c200", "writes/s", None, None, https::etcd::<1, 200>),
    beside("https_write_m3_c1", "writes/s", Some("etcd_write_m3_c1"), Some("floor_http"), https::write::<3, 1>),
    beside("etcd_write_m3_c1", "writes/s", None, None, https::etcd::<3, 1>),
    beside("https_write_m3_c64", "writes/s", Some("etcd_write_m3_c64"), Some("floor_http"), https::write::<3, 64>),
    beside("etcd_write_m3_c64", "writes/s", None, None, https::etcd::<3, 64>),
    beside("https_write_m3_c200", "writes/s", Some("etcd_write_m3_c200"), Some("floor_http"), https::write::<3, 200>),
    beside("etcd_write_m3_c200", "writes/s", None, None, https::etcd::<3, 200>),
    beside("https_latency_m1_c1", "us", None, None, https::latency),
    beside("https_p99_open_m1", "us", None, None, https::p99_open),
    here("snapshot_p99", "us", None, None, ready::snapshot_p99),
    here("backup_p99", "us", None, None, ready::backup_p99),
    beside("start_ready", "s", None, None, ready::start_ready),
    beside("restore", "s", None, None, ready::restore),
    here("replay_apply", "events/s", None, None, replay::apply),
    here("replay_scan", "events/s", None, None, replay::scan),
    here("export_verify", "events/s", None, None, record::verify),
    here("export_tampers_noticed", "tampers", None, None, record::tampers),
    here("disk_per_event", "bytes/byte", None, None, replay::disk_per_event),
    here("disk_per_event_single", "bytes/byte", None, None, replay::disk_per_event_single),
    beside("rss_controller", "MiB", None, None, https::rss_controller),
    beside("rss_agent", "MiB", None, None, agents::rss_agent),
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
    grown: OnceLock<ready::Grown>,
}

impl Bench {
    fn new(options: &Options) -> Self {
        Self { options: options.clone(), long_log: OnceLock::new(), grown: OnceLock::new() }
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
        once(&self.long_log, || replay::LongLog::make(self))
    }

    /// The controller with a large state; made once.
    fn grown(&self) -> anyhow::Result<&ready::Grown> {
        once(&self.grown, || ready::Grown::make(self))
    }
}

fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
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
                    eprintln!("round {round}: {:<19} SKIPPED: {error:#}", figure.name);
                    continue;
                }
                result => result.with_context(|| figure.name)?,
            };
            eprintln!("round {round}: {:<19} {:>14.2} {}", figure.name, sample.value, figure.unit);
            samples.push(sample);
        }
    }
    let medians: Vec<(&Figure, Sample)> =
        chosen.iter().zip(samples).filter_map(|(figure, samples)| Some((*figure, median(samples)?))).collect();
    for (figure, sample) in &medians {
        let of = |name: Option<&str>| medians.iter().find(|(other, _)| Some(other.name) == name).map(|(_, s)| s);
        println!("{}", line(figure, sample, of(figure.peer), of(figure.floor)));
    }
    Ok(())
}

/// The sample in the middle by its value.
fn median(mut samples: Vec<Sample>) -> Option<Sample> {
    samples.sort_by(|a, b| a.value.total_cmp(&b.value));
    let middle = samples.len().checked_sub(1)? / 2;
    samples.into_iter().nth(middle)
}

fn line(figure: &Figure, sample: &Sample, peer: Option<&Sample>, floor: Option<&Sample>) -> String {
    let mut line = format!("CVLAN_BENCH name={} value={:.2} unit={}", figure.name, sample.value, figure.unit);
    for (key, value) in &sample.keys {
        line.push_str(&format!(" {key}={value}"));
    }
    if let Some(label) = &sample.label {
        line.push_str(&format!(" label={label}"));
    }
    let named = |sample: &Sample, name: Option<&'static str>| {
        (sample.label.clone().unwrap_or_else(|| name.unwrap_or_default().to_owned()), sample.value)
    };
    let floor = floor.map(|floor| named(floor, figure.floor));
    let (peer, floor) = match sample.peer.clone().or_else(|| peer.map(|peer| named(peer, figure.peer))) {
        Some(peer) => (Some(peer), floor),
        None => (floor, None),
    };
    if let Some((name, value)) = peer {
        line.push_str(&format!(" peer={name} peer_value={value:.2} ratio={:.3}", sample.value / value));
    }
    if let Some((name, value)) = floor {
        line.push_str(&format!(" floor={name} floor_value={value:.2} floor_ratio={:.3}", sample.value / value));
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
        // The others need programs; `make bench` builds ours.
        for figure in FIGURES.iter().filter(|f| !f.programs) {
            let sample = (figure.round)(&bench).unwrap();
            assert!(sample.value > 0.0, "{}", figure.name);
            let floor = Sample::new(2.0, Vec::new());
            let line = line(
                figure,
                &Sample { peer: None, ..sample },
                Some(&Sample { label: Some("peer".into()), ..floor.clone() }),
                Some(&floor),
            );
            let fields: Vec<_> = line.split(' ').skip(1).map(|field| field.split_once('=').unwrap()).collect();
            assert_eq!((fields[0], fields[2]), (("name", figure.name), ("unit", figure.unit)));
            assert!(line.contains(" peer=peer peer_value=2.00 ratio="), "{line}");
            assert!(line.contains(" floor_value=2.00 floor_ratio="), "{line}");
        }
    }

    #[test]
    fn the_median_is_the_middle_one_or_the_lower_of_two() {
        let of = |values: &[f64]| median(values.iter().map(|v| Sample::new(*v, Vec::new())).collect());
        assert_eq!(of(&[3.0, 1.0, 2.0]).unwrap().value, 2.0);
        assert_eq!(of(&[4.0, 1.0]).unwrap().value, 1.0);
        assert!(of(&[]).is_none());
    }
}

//! Sinks: the record streamed out of this member, each from a checkpoint of its own, at least once, in order.
//!
//! ```text
//!  checkpoint ─► events after it, as people may have them, 1 MiB at most ─► sink has them ─► checkpoint, durable ─► …
//!                    │                                                       └ failed: again, after 1 s to 60 s
//!                    └ not here any more: said, counted, and on behind them
//! ```
//! | `--sink` | has them when |
//! |---|---|
//! | `file:PATH[?rotate=BYTES&keep=N]` | NDJSON is synced; PATH.1 is the one before |
//! | `https://…`, `http://…` | POST of NDJSON is answered 2xx; `Idempotency-Key` names log and events |
//! | `syslog+tls://HOST:PORT`, `syslog+tcp://HOST:PORT` | the system took them: RFC 5424 in frames has no answers |
//!
//! A sink is this member's: with one on each of several members, each event comes from each. An event's number says what is doubled.
//! Another epoch starts over. One batch is on its way at a time: a file's job is waited for, however long its disk takes.

mod file;
mod target;
mod wire;

pub use target::{SinkError, Target};

use super::App;
use crate::keys::file_write;
use cvlan_core::Rules;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_core::machine::Machine as _;
use cvlan_core::redact::redact;
use cvlan_raft::HistoryError;
use file::Lines;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use wire::{Http, Syslog};

/// Sinks that a member may have.
pub const SINKS_MAX: usize = 16;
/// Events read at once.
const PAGE: usize = 512;
/// Bytes sent at once; a single event may be more.
const BATCH: usize = 1 << 20;
/// A batch must be taken within this; a disk may take longer, and is waited for.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Between two attempts: from … to.
const AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Folder of where the sinks are, in the data folder.
const FOLDER: &str = "sinks";

/// What is known of a sink while it runs.
pub struct Sink {
    target: Target,
    shown: String,
    number: usize,
    /// The last event that it has.
    seq: AtomicU64,
    /// Events that were gone before it had them.
    skipped: AtomicU64,
    /// Why the last attempt failed, if it did.
    why: Mutex<Option<String>>,
}

impl Sink {
    /// One that has nothing yet. `number`: which of this member's it is, from 1; two may show the same name.
    pub fn new(number: usize, target: Target) -> Self {
        let (seq, skipped, why) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(None));
        Self { shown: target.shown(), target, number, seq, skipped, why }
    }

    /// As people may see it: without secrets.
    pub fn name(&self) -> &str {
        &self.shown
    }

    /// Which of this member's it is, from 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The last event that it has.
    pub fn seq(&self) -> u64 {
        self.seq.load(Relaxed)
    }

    /// Events that it never gets: they were gone before it had them. Since the start of this process.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    /// Why the last attempt failed, if it did.
    pub fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Said once for each reason, not for each attempt.
    fn failed(&self, why: &str) {
        let mut last = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(why) {
            let (sink, number) = (self.name(), self.number);
            tracing::warn!(sink, number, why, "the sink takes no events: they wait in the log");
            *last = Some(why.to_owned());
        }
    }

    fn took(&self, seq: Seq) {
        self.seq.store(seq.0, Relaxed);
        if self.why.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!(sink = self.name(), number = self.number, "the sink takes events again");
        }
    }

    /// What it still needed is gone: where it goes on, before the first event that is here.
    fn gone(&self, at: Checkpoint, first: Seq) -> Checkpoint {
        let next = Checkpoint { seq: Seq(first.0.saturating_sub(1)).max(at.seq), ..at };
        let (from, to, events) = (at.seq.0 + 1, next.seq.0, next.seq.0 - at.seq.0);
        self.skipped.fetch_add(events, Relaxed);
        let (sink, number) = (self.name(), self.number);
        tracing::error!(
            sink,
            number,
            from,
            to,
            events,
            "the sink never gets these: history that it still needed is gone from this member"
        );
        next
    }
}

/// Where a sink is, on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    sink: String,
    checkpoint: String,
}

/// Keeps where a sink is, in a file that its target names.
struct Place {
    data: PathBuf,
    name: String,
    sink: String,
}

impl Place {
    fn new(data: &Path, target: &Target) -> Self {
        let name = hex::encode(Sha256::digest(target.place())).chars().take(16).collect();
        Self { data: data.to_owned(), name, sink: target.shown() }
    }

    /// What cannot be read is begun anew: at least once.
    fn read(&self) -> Option<Checkpoint> {
        kept(&self.data.join(FOLDER).join(&self.name)).map(|(_, at)| at)
    }

    fn write(&self, at: Checkpoint) -> io::Result<()> {
        let folder = self.data.join(FOLDER);
        if !folder.is_dir() {
            // Another sink may do the same just now.
            std::fs::create_dir_all(&folder)?;
            File::open(&self.data)?.sync_all()?;
        }
        let kept = Kept { sink: self.sink.clone(), checkpoint: at.to_string() };
        file_write(&folder, &self.name, &serde_json::to_vec(&kept)?, 0o600)
    }
}

/// Where the sinks of a data folder are, by what may be shown of each.
pub fn places(data: &Path) -> io::Result<Vec<(String, Checkpoint)>> {
    let found = match std::fs::read_dir(data.join(FOLDER)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let mut all = Vec::new();
    for entry in found {
        all.extend(kept(&entry?.path()));
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

fn kept(path: &Path) -> Option<(String, Checkpoint)> {
    let Kept { sink, checkpoint } = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some((sink, checkpoint.parse().ok()?))
}

/// Feeds a sink for as long as the controller runs. `ca`: whom a sink with TLS is to be vouched for by, PEM.
pub async fn feed(app: Arc<App>, sink: Arc<Sink>, data: PathBuf, ca: Option<PathBuf>) {
    let place = Arc::new(Place::new(&data, &sink.target));
    let mut applied = app.applied.subscribe();
    let reads = place.clone();
    let mut at = blocking(move || Ok(reads.read())).await.ok().flatten().unwrap_or_default();
    let (mut out, mut rest, mut unkept) = (None, *AGAIN.start(), None);
    loop {
        applied.mark_unchanged();
        let head = app.log.head();
        if at.epoch != head.epoch {
            at = Checkpoint { epoch: head.epoch, seq: Seq(0) };
        }
        sink.seq.store(at.seq.0, Relaxed);
        if at.seq >= head.seq {
            if applied.changed().await.is_err() {
                return;
            }
            continue;
        }
        match step(&app, &sink, &mut out, ca.as_deref(), at).await {
            Ok((next, sent)) => {
                let writes = place.clone();
                let error = blocking(move || writes.write(next)).await.err();
                if error.is_some() && error != unkept {
                    // What it has is sent again after a restart.
                    tracing::warn!(sink = sink.name(), number = sink.number, error, "where the sink is was not kept");
                }
                unkept = error;
                if sent {
                    sink.took(next.seq);
                }
                (at, rest) = (next, *AGAIN.start());
            }
            Err(why) => {
                out = None;
                sink.failed(&why);
                sleep(rest).await;
                rest = (rest * 2).min(*AGAIN.end());
            }
        }
    }
}

/// The next events; returns up to where the sink has them, and whether it took any.
async fn step(
    app: &App,
    sink: &Sink,
    out: &mut Option<Out>,
    ca: Option<&Path>,
    at: Checkpoint,
) -> Result<(Checkpoint, bool), String> {
    let page = match app.log.history(Seq(at.seq.0 + 1), PAGE).await {
        Ok(page) => page,
        Err(HistoryError::Gone { first }) => return Ok((sink.gone(at, first), false)),
        Err(error) => return Err(error.to_string()),
    };
    let host = wire::host();
    let (mut bytes, mut next) = (Vec::new(), at);
    for (seq, raw) in page {
        let mut event = Rules::decode(&raw).map_err(|e| e.to_string())?;
        redact(&mut event);
        let json = serde_json::to_string(&event).map_err(|e| e.to_string())?;
        let piece = match &sink.target {
            Target::File { .. } | Target::Http(_) => json + "\n",
            Target::Syslog { .. } => wire::frame(&event, &json, Checkpoint { seq, ..at }, &host),
        };
        if !bytes.is_empty() && bytes.len() + piece.len() > BATCH {
            break;
        }
        bytes.extend_from_slice(piece.as_bytes());
        next.seq = seq;
    }
    if bytes.is_empty() {
        return Err(format!("event {} is not here", at.seq.0 + 1));
    }
    let mut open = match out.take() {
        Some(open) => open,
        None => Out::open(sink, ca).await?,
    };
    open = open.send(sink, at, next.seq, bytes).await?;
    *out = Some(open);
    Ok((next, true))
}

enum Out {
    File(Lines),
    Http(Http),
    Syslog(Syslog),
}

impl Out {
    async fn open(sink: &Sink, ca: Option<&Path>) -> Result<Self, String> {
        match &sink.target {
            Target::File { path, rotate, keep } => {
                let (path, rotate, keep) = (path.clone(), *rotate, *keep);
                waited(sink, SEND_TIME, move || Lines::open(path, rotate, keep)).await.map(Self::File)
            }
            Target::Http(url) => Http::open(url, ca).map(Self::Http),
            Target::Syslog { host, port, tls } => {
                let open = timeout(SEND_TIME, Syslog::open(host, *port, ca, *tls)).await;
                open.map_err(|_| "no connection in 30 s")?.map(Self::Syslog)
            }
        }
    }

    /// It is open still where it took them.
    async fn send(self, sink: &Sink, after: Checkpoint, to: Seq, bytes: Vec<u8>) -> Result<Self, String> {
        let slow = |_| "it took no events in 30 s";
        match self {
            Self::File(lines) => waited(sink, SEND_TIME, move || lines.write(&bytes)).await.map(Self::File),
            Self::Http(http) => {
                timeout(SEND_TIME, http.send(after, to, bytes)).await.map_err(slow)??;
                Ok(Self::Http(http))
            }
            Self::Syslog(mut syslog) => {
                timeout(SEND_TIME, syslog.send(&bytes)).await.map_err(slow)??;
                Ok(Self::Syslog(syslog))
            }
        }
    }
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(job).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// A job on a file is not left alone, for the next one would write beside it; one that takes longer than `limit` is told of.
async fn waited<T: Send + 'static>(
    sink: &Sink,
    limit: Duration,
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let mut job = tokio::task::spawn_blocking(job);
    let done = match timeout(limit, &mut job).await {
        Ok(done) => done,
        Err(_) => {
            sink.failed(&format!("its disk has not answered in {} s: it is waited for", limit.as_secs()));
            job.await
        }
    };
    done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink() -> Sink {
        Sink::new(1, Target::parse("file:/nowhere/x").unwrap())
    }

    #[tokio::test]
    async fn a_slow_disk_is_waited_for_and_told_of() {
        let sink = sink();
        let slow = || {
            std::thread::sleep(Duration::from_millis(100));
            Ok(7)
        };
        assert_eq!(waited(&sink, Duration::from_secs(5), slow).await, Ok(7));
        assert_eq!(sink.why(), None);
        assert_eq!(waited(&sink, Duration::from_millis(1), slow).await, Ok(7));
        assert!(sink.why().unwrap().contains("waited for"));
        sink.took(Seq(3));
        assert_eq!((sink.why(), sink.seq()), (None, 3));
        let fails = || Err::<(), _>(io::Error::other("full"));
        assert_eq!(waited(&sink, Duration::from_secs(5), fails).await, Err("full".to_owned()));
    }

    #[test]
    fn where_it_is_is_kept_under_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let place = |text: &str| Place::new(dir.path(), &Target::parse(text).unwrap());
        let at = Checkpoint { epoch: cvlan_core::id::Epoch([3; 16]), seq: Seq(9) };
        place("https://u:secret@x.example/in?k=secret").write(at).unwrap();
        assert_eq!(place("https://u:secret@x.example/in?k=secret").read(), Some(at));
        assert_eq!(place("https://x.example/in").read(), None);
        let file = std::fs::read_dir(dir.path().join(FOLDER)).unwrap().next().unwrap().unwrap();
        assert!(!std::fs::read_to_string(file.path()).unwrap().contains("secret"));
        place("file:/a?rotate=10").write(at).unwrap();
        assert_eq!(place("file:/a?keep=3").read(), Some(at));
    }

    #[test]
    fn what_is_gone_is_counted() {
        let sink = sink();
        let at = |seq| Checkpoint { seq: Seq(seq), ..Checkpoint::default() };
        assert_eq!((sink.gone(at(3), Seq(10)), sink.skipped()), (at(9), 6));
        assert_eq!((sink.gone(at(9), Seq(10)), sink.skipped()), (at(9), 6));
        assert_eq!((sink.gone(at(9), Seq(12)), sink.skipped()), (at(11), 8));
    }
}

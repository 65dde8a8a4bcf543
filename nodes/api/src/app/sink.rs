//! Sinks: the record streamed out of this member, each from a checkpoint of its own, at least once, in order.
//!
//! ```text
//!  checkpoint ─► events after it, as people may have them, 1 MiB at most ─► sink has them ─► checkpoint, durable ─► …
//!                                                                            └ failed: again, after 1 s to 60 s
//! ```
//! | `--sink` | has them when |
//! |---|---|
//! | `file:PATH[?rotate=BYTES&keep=N]` | NDJSON is synced; PATH.1 is the one before |
//! | `https://…`, `http://…` | POST of NDJSON is answered 2xx; `Idempotency-Key` names log and events |
//! | `syslog+tcp://HOST:PORT` | the system took them: RFC 5424 in RFC 6587 frames has no answers |
//!
//! A sink is this member's: with one on each of several members, each event comes from each. An event's number says what is doubled.
//! Another epoch starts over.

use super::App;
use crate::keys::file_write;
use cvlan_core::Rules;
use cvlan_core::id::{Checkpoint, Seq};
use cvlan_core::machine::Machine as _;
use cvlan_core::redact::redact;
use cvlan_proto::v1::Event;
use cvlan_raft::HistoryError;
use reqwest::{Client, header};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Sinks that a member may have.
pub const SINKS_MAX: usize = 16;
/// Events read at once, and bytes of what is sent at once, about.
const PAGE: usize = 512;
const BATCH: usize = 1 << 20;
/// A batch must be taken within this.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Between two attempts: from … to.
const AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// A file is rotated beyond this many bytes, where nothing else is said, and so many older ones stay.
const ROTATE: u64 = 64 << 20;
const KEEP: usize = 8;
/// What a line that was cut off is looked for in.
const TORN: u64 = 4 << 20;
/// Facility 13 (log audit), severity 6 (informational): RFC 5424 §6.2.1.
const PRIORITY: u8 = 13 * 8 + 6;

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Lines of a file.
    File {
        /// Its path.
        path: PathBuf,
        /// Bytes.
        rotate: u64,
        /// Older ones.
        keep: usize,
    },
    /// A URL that takes POST.
    Http(String),
    /// HOST:PORT.
    Syslog(String),
}

/// A sink as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// As it was written: names it.
    pub text: String,
    /// What that means.
    pub target: Target,
}

/// What is wrong with a `--sink`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--sink {text:?}: {what}")]
pub struct SinkError {
    text: String,
    what: &'static str,
}

impl Asked {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, SinkError> {
        let wrong = |what| SinkError { text: text.to_owned(), what };
        let host_port = |at: &str| at.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok());
        let target = if let Some(rest) = text.strip_prefix("file:") {
            let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
            let (mut rotate, mut keep) = (ROTATE, KEEP);
            for (name, value) in form_urlencoded::parse(query.as_bytes()) {
                match (name.as_ref(), value.parse::<u64>()) {
                    ("rotate", Ok(bytes)) if bytes > 0 => rotate = bytes,
                    ("keep", Ok(files)) if files <= 1000 => keep = files as usize,
                    _ => return Err(wrong("a file takes rotate=BYTES and keep=N")),
                }
            }
            if !path.starts_with('/') || path.ends_with('/') {
                return Err(wrong("file: is followed by the absolute path of a file"));
            }
            Target::File { path: path.into(), rotate, keep }
        } else if let Some(at) = text.strip_prefix("syslog+tcp://") {
            if !host_port(at) {
                return Err(wrong("syslog+tcp:// is followed by HOST:PORT"));
            }
            Target::Syslog(at.to_owned())
        } else if text.starts_with("https://") || text.starts_with("http://") {
            let uri: Option<http::Uri> = text.parse().ok();
            if uri.and_then(|u| u.host().map(str::len)).is_none_or(|len| len == 0) {
                return Err(wrong("this is no URL"));
            }
            Target::Http(text.to_owned())
        } else {
            return Err(wrong("a sink is file:/PATH, https://URL, http://URL or syslog+tcp://HOST:PORT"));
        };
        Ok(Self { text: text.to_owned(), target })
    }
}

/// What is known of a sink while it runs.
pub struct Sink {
    asked: Asked,
    /// The last event that it has.
    seq: AtomicU64,
    failing: AtomicBool,
}

impl Sink {
    /// One that has nothing yet.
    pub fn new(asked: Asked) -> Self {
        Self { asked, seq: AtomicU64::new(0), failing: AtomicBool::new(false) }
    }

    /// As it was asked for.
    pub fn name(&self) -> &str {
        &self.asked.text
    }

    /// The last event that it has.
    pub fn seq(&self) -> u64 {
        self.seq.load(Relaxed)
    }

    /// The last attempt failed.
    pub fn failing(&self) -> bool {
        self.failing.load(Relaxed)
    }
}

/// Where a sink is, on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    sink: String,
    checkpoint: String,
}

/// Keeps where a sink is, in a file that its text names.
struct Place {
    folder: PathBuf,
    name: String,
    sink: String,
}

impl Place {
    fn new(data: &Path, sink: &str) -> Self {
        let name = hex::encode(Sha256::digest(sink)).chars().take(16).collect();
        Self { folder: data.join("sinks"), name, sink: sink.to_owned() }
    }

    /// What cannot be read is begun anew: at least once.
    fn read(&self) -> Option<Checkpoint> {
        let kept: Kept = serde_json::from_slice(&std::fs::read(self.folder.join(&self.name)).ok()?).ok()?;
        kept.checkpoint.parse().ok()
    }

    fn write(&self, at: Checkpoint) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let kept = Kept { sink: self.sink.clone(), checkpoint: at.to_string() };
        file_write(&self.folder, &self.name, &serde_json::to_vec(&kept)?, 0o600)
    }
}

/// Feeds a sink for as long as the controller runs. `ca`: whom an https sink is to be vouched for by, PEM.
pub async fn feed(app: Arc<App>, sink: Arc<Sink>, data: PathBuf, ca: Option<PathBuf>) {
    let place = Place::new(&data, sink.name());
    let mut applied = app.applied.subscribe();
    let mut at = place.read().unwrap_or_default();
    let (mut out, mut rest) = (None, *AGAIN.start());
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
        match step(&app, &sink.asked.target, &mut out, ca.as_deref(), at).await {
            Ok(next) => {
                if let Err(error) = place.write(next) {
                    // What it has is sent again after a restart.
                    tracing::warn!(sink = sink.name(), %error, "where the sink is was not kept");
                }
                if sink.failing.swap(false, Relaxed) {
                    tracing::info!(sink = sink.name(), "the sink takes events again");
                }
                (at, rest) = (next, *AGAIN.start());
            }
            Err(why) => {
                out = None;
                if !sink.failing.swap(true, Relaxed) {
                    tracing::warn!(sink = sink.name(), why, "the sink takes no events: they wait in the log");
                }
                sleep(rest).await;
                rest = (rest * 2).min(*AGAIN.end());
            }
        }
    }
}

/// The next events; returns up to where the sink has them.
async fn step(
    app: &App,
    target: &Target,
    out: &mut Option<Out>,
    ca: Option<&Path>,
    at: Checkpoint,
) -> Result<Checkpoint, String> {
    let page = match app.log.history(Seq(at.seq.0 + 1), PAGE).await {
        Ok(page) => page,
        Err(HistoryError::Gone { first }) => {
            tracing::warn!(from = at.seq.0 + 1, %first, "a sink does not get what is not here any more");
            return Ok(Checkpoint { seq: Seq(first.0 - 1), ..at });
        }
        Err(error) => return Err(error.to_string()),
    };
    let (mut events, mut bytes, mut next) = (Vec::new(), 0, at);
    for (seq, raw) in page {
        let mut event = Rules::decode(&raw).map_err(|e| e.to_string())?;
        redact(&mut event);
        let json = serde_json::to_string(&event).map_err(|e| e.to_string())?;
        bytes += json.len();
        events.push((event, json));
        next.seq = seq;
        if bytes >= BATCH {
            break;
        }
    }
    if out.is_none() {
        *out = Some(timeout(SEND_TIME, Out::open(target, ca)).await.map_err(|_| "no connection in 30 s")??);
    }
    let Some(out) = out else { return Err("it is not open".to_owned()) };
    timeout(SEND_TIME, out.send(at, next, events)).await.map_err(|_| "it took no events in 30 s")??;
    Ok(next)
}

enum Out {
    File(Option<Lines>),
    Http(Client, String),
    Syslog(TcpStream, String),
}

impl Out {
    async fn open(target: &Target, ca: Option<&Path>) -> Result<Self, String> {
        match target {
            Target::File { path, rotate, keep } => {
                let (path, rotate, keep) = (path.clone(), *rotate, *keep);
                blocking(move || Lines::open(path, rotate, keep)).await.map(|lines| Self::File(Some(lines)))
            }
            Target::Http(url) => Ok(Self::Http(client(ca)?, url.clone())),
            Target::Syslog(address) => {
                let stream = TcpStream::connect(address).await.map_err(|e| format!("{address}: {e}"))?;
                let host = rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned();
                Ok(Self::Syslog(stream, if host.is_empty() { "-".to_owned() } else { host }))
            }
        }
    }

    async fn send(&mut self, after: Checkpoint, to: Checkpoint, events: Vec<(Event, String)>) -> Result<(), String> {
        let lines = |events: Vec<(Event, String)>| {
            let mut text = String::new();
            for (_, json) in events {
                text.push_str(&json);
                text.push('\n');
            }
            text
        };
        match self {
            Self::File(file) => {
                let mut open = file.take().ok_or("it is not open")?;
                let text = lines(events);
                *file = Some(blocking(move || open.write(text.as_bytes()).map(|()| open)).await?);
                Ok(())
            }
            Self::Http(client, url) => {
                let key = format!("{}.{}-{}", to.epoch, after.seq.0 + 1, to.seq);
                let request = client.post(url.as_str()).header(header::CONTENT_TYPE, "application/x-ndjson");
                let answer = request.header("idempotency-key", key).body(lines(events)).send().await;
                let answer = answer.map_err(|e| e.without_url().to_string())?;
                match answer.status().is_success() {
                    true => Ok(()),
                    false => Err(format!("it answered {}", answer.status())),
                }
            }
            Self::Syslog(stream, host) => {
                let mut bytes = Vec::new();
                for (event, json) in &events {
                    let message = syslog(event, json, to, host);
                    bytes.extend_from_slice(format!("{} {message}", message.len()).as_bytes());
                }
                stream.write_all(&bytes).await.and(stream.flush().await).map_err(|e| e.to_string())
            }
        }
    }
}

/// RFC 5424 §6; 32473 is the enterprise number for examples (RFC 5612): we have none.
fn syslog(event: &Event, json: &str, at: Checkpoint, host: &str) -> String {
    let time = event.time.as_ref().map(|t| (t.seconds.max(0) as u64) * 1000 + t.nanos.max(0) as u64 / 1_000_000);
    let time = crate::doors::rest::reply::rfc3339(time.unwrap_or_default());
    let (pid, seq) = (std::process::id(), event.seq);
    let tenant = match event.tenant_id.as_str() {
        "" => String::new(),
        id => format!(" tenant=\"{id}\""),
    };
    format!("<{PRIORITY}>1 {time} {host} cvlan {pid} event [cvlan@32473 log=\"{}.{seq}\"{tenant}] {json}", at.epoch)
}

fn client(ca: Option<&Path>) -> Result<Client, String> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca {
        let said = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| said(&e))? {
            roots.add(certificate.map_err(|e| said(&e))?).map_err(|e| said(&e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth();
    let client = Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(SEND_TIME);
    client.redirect(reqwest::redirect::Policy::none()).build().map_err(|e| e.to_string())
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(job).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// A file that lines are appended to.
struct Lines {
    path: PathBuf,
    rotate: u64,
    keep: usize,
    file: File,
    length: u64,
}

impl Lines {
    /// Without a line that was cut off at the end: it comes again.
    fn open(path: PathBuf, rotate: u64, keep: usize) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let mut length = file.metadata()?.len();
        let from = length.saturating_sub(TORN);
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut end)?;
        if end.last().is_some_and(|byte| *byte != b'\n') {
            length = from + end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1);
            file.set_len(length)?;
        }
        file.seek(SeekFrom::Start(length))?;
        Ok(Self { path, rotate, keep, file, length })
    }

    /// Durable once it returns.
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + text.len() as u64 > self.rotate {
            self.turn()?;
        }
        self.file.write_all(text)?;
        self.file.sync_data()?;
        self.length += text.len() as u64;
        Ok(())
    }

    /// Gives it another name, and those before it too; the oldest goes.
    fn turn(&mut self) -> io::Result<()> {
        let numbered = |n: usize| self.path.with_added_extension(n.to_string());
        for n in (1..self.keep).rev() {
            match std::fs::rename(numbered(n), numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        match self.keep {
            0 => std::fs::remove_file(&self.path)?,
            _ => std::fs::rename(&self.path, numbered(1))?,
        }
        *self = Self::open(self.path.clone(), self.rotate, self.keep)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_sink_and_what_is_none() {
        let target = |text: &str| Asked::parse(text).map(|asked| asked.target);
        assert_eq!(
            target("file:/a/b.ndjson"),
            Ok(Target::File { path: "/a/b.ndjson".into(), rotate: ROTATE, keep: KEEP })
        );
        assert_eq!(target("file:/a?rotate=10&keep=0"), Ok(Target::File { path: "/a".into(), rotate: 10, keep: 0 }));
        assert_eq!(target("syslog+tcp://log.example:601"), Ok(Target::Syslog("log.example:601".into())));
        assert_eq!(target("https://x.example/in"), Ok(Target::Http("https://x.example/in".into())));
        for bad in [
            "",
            "file:a",
            "file:/",
            "file:/a?x=1",
            "file:/a?rotate=0",
            "file:/a?keep=x",
            "syslog+tcp://host",
            "udp://x:1",
            "syslog+tcp://:1",
            "syslog+tcp://h:99999",
            "https://",
            "http://",
        ] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lines_are_rotated_and_a_torn_one_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/events.ndjson");
        let mut lines = Lines::open(path.clone(), 20, 2).unwrap();
        for n in 0..9 {
            lines.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join("deep").join(name)).ok();
        let text = |range: std::ops::Range<u32>| Some(range.map(|n| format!("line {n}\n")).collect::<String>());
        assert_eq!((read("events.ndjson"), read("events.ndjson.1")), (text(8..9), text(6..8)));
        assert_eq!((read("events.ndjson.2"), read("events.ndjson.3")), (text(4..6), None));
        drop(lines);
        std::fs::write(&path, "line 1\nlin").unwrap();
        let mut lines = Lines::open(path.clone(), 100, 2).unwrap();
        lines.write(b"line 2\n").unwrap();
        assert_eq!(read("events.ndjson").as_deref(), Some("line 1\nline 2\n"));
        std::fs::write(&path, "no end").unwrap();
        Lines::open(path, 100, 2).unwrap().write(b"line 1\n").unwrap();
        assert_eq!(read("events.ndjson").as_deref(), Some("line 1\n"));
    }

    #[test]
    fn a_message_is_of_rfc_5424() {
        let event = Event { seq: 7, tenant_id: "t".into(), ..Event::default() };
        let said = syslog(&event, "{}", Checkpoint::default(), "host");
        let pid = std::process::id();
        let log = format!("{}.7", Checkpoint::default().epoch);
        let wanted = format!(
            "<110>1 1970-01-01T00:00:00.000Z host cvlan {pid} event [cvlan@32473 log=\"{log}\" tenant=\"t\"] {{}}"
        );
        assert_eq!(said, wanted);
    }
}

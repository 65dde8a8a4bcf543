//! Counters, and their Prometheus text (exposition format 0.0.4). Each costs an atomic; nothing is looked up by name.

use crate::app::App;
use crate::app::sink::Sink;
use crate::doors::rest::routes::ROUTES;
use cvlan_core::id::Checkpoint;
use cvlan_core::{Rejection, Rules};
use cvlan_raft::status::Histogram;
use cvlan_raft::{Answer, Counts, PeerStatus, WriteError};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const OUTCOMES: [&str; 10] = [
    "applied",
    "unchanged",
    "rejected",
    "busy",
    "no_leader",
    "outcome_unknown",
    "too_large",
    "disk_full",
    "not_allowed",
    "stopped",
];

/// Requests that no line of ROUTES takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// GET /client/discover
    Discover,
    /// POST /client/register
    Register,
    /// POST /client/poll
    Poll,
    /// GET /client/sync
    Sync,
    /// The UI and its files.
    Ui,
    /// No route.
    None,
}

const OTHERS: [(Other, &str, &str); 6] = [
    (Other::Discover, "GET", "/client/discover"),
    (Other::Register, "POST", "/client/register"),
    (Other::Poll, "POST", "/client/poll"),
    (Other::Sync, "GET", "/client/sync"),
    (Other::Ui, "GET", "/"),
    (Other::None, "", "none"),
];

/// What a sync stream was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A part of a full map.
    Map,
    /// A part of a delta.
    Delta,
    /// A heartbeat.
    Heartbeat,
}

#[derive(Default)]
struct Requests {
    by_class: [AtomicU64; CLASSES.len()],
    micros: Histogram,
}

/// The counters of one process.
#[derive(Default)]
pub struct Metrics {
    routes: Vec<Requests>,
    others: [Requests; OTHERS.len()],
    writes: [AtomicU64; OUTCOMES.len()],
    sent: [AtomicU64; 3],
    /// Connections whose TLS handshake failed.
    pub handshakes_failed: AtomicU64,
    /// Requests refused by a rate limit.
    pub rate_limited: AtomicU64,
}

impl Metrics {
    /// One set of counters a route.
    pub fn new() -> Self {
        Self { routes: ROUTES.iter().map(|_| Requests::default()).collect(), ..Self::default() }
    }

    /// A request was answered: by which line of ROUTES.
    pub fn route(&self, route: usize, status: u16, micros: u64) {
        count(self.routes.get(route), status, micros);
    }

    /// A request was answered that no line of ROUTES takes.
    pub fn other(&self, other: Other, status: u16, micros: u64) {
        let at = OTHERS.iter().position(|(o, ..)| *o == other);
        count(at.and_then(|i| self.others.get(i)), status, micros);
    }

    /// A command was answered.
    pub fn write(&self, result: &Result<Answer<Rules>, WriteError<Rejection>>) {
        let outcome = match result {
            Ok(answer) if answer.events.is_empty() => "unchanged",
            Ok(_) => "applied",
            Err(WriteError::Rejected(_)) => "rejected",
            Err(WriteError::Busy) => "busy",
            Err(WriteError::NoLeader) => "no_leader",
            Err(WriteError::OutcomeUnknown) => "outcome_unknown",
            Err(WriteError::TooLarge { .. }) => "too_large",
            Err(WriteError::DiskFull) => "disk_full",
            Err(WriteError::NotAllowed { .. }) => "not_allowed",
            Err(
                WriteError::Stopped
                | WriteError::Diverged
                | WriteError::Removed
                | WriteError::NotBootstrapped
                | WriteError::AlreadyBootstrapped,
            ) => "stopped",
        };
        let at = OUTCOMES.iter().position(|o| *o == outcome);
        if let Some(counter) = at.and_then(|i| self.writes.get(i)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// A sync stream was sent a frame.
    pub fn sent(&self, what: Sent) {
        let [map, delta, heartbeat] = &self.sent;
        let counter = match what {
            Sent::Map => map,
            Sent::Delta => delta,
            Sent::Heartbeat => heartbeat,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Frames sent of a kind.
    pub fn sent_count(&self, what: Sent) -> u64 {
        let [map, delta, heartbeat] = &self.sent;
        match what {
            Sent::Map => map,
            Sent::Delta => delta,
            Sent::Heartbeat => heartbeat,
        }
        .load(Relaxed)
    }

    /// The text.
    pub fn render(&self, app: &App) -> String {
        let mut out = String::with_capacity(16 << 10);
        let (head, raft) = (app.log.head(), app.log.status());
        let lag = lag(app.views.checkpoint(), head.checkpoint());
        gauge(&mut out, "cvlan_applied_seq", "Last applied event.", head.seq.0);
        gauge(&mut out, "cvlan_view_lag_events", "Events that the SQL view is behind.", lag);
        gauge(&mut out, "cvlan_nodes", "Nodes in the log.", head.machine.node_count() as u64);
        gauge(
            &mut out,
            "cvlan_nodes_online",
            "Nodes with an open sync stream here.",
            app.streams.online_count() as u64,
        );
        gauge(&mut out, "cvlan_writable", "1 where this member takes writes.", u64::from(raft.writable));
        gauge(&mut out, "cvlan_raft_term", "Raft's term.", raft.term);
        gauge(&mut out, "cvlan_raft_leader", "Who leads; 0 = nobody is known to.", raft.leader.unwrap_or_default());
        gauge(&mut out, "cvlan_raft_committed_index", "Last entry known to be committed.", raft.committed_index);
        gauge(&mut out, "cvlan_raft_applied_index", "Last entry applied here.", raft.applied_index);
        gauge(&mut out, "cvlan_members", "Members in the log.", head.machine.members.len() as u64);
        let voters = head.members.voters.first().map_or(0, std::collections::BTreeSet::len);
        gauge(&mut out, "cvlan_voters", "Members that vote.", voters as u64);
        peers(&mut out, &raft.peers);
        gauge(&mut out, "cvlan_write_queue", "Commands that wait.", raft.queue as u64);
        gauge(&mut out, "cvlan_entries_in_flight", "Entries proposed here and not yet applied.", raft.in_flight as u64);
        gauge(
            &mut out,
            "cvlan_diverged",
            "1 where this member's state differs from the leader's.",
            u64::from(raft.diverged.is_some()),
        );
        gauge(&mut out, "cvlan_log_bytes", "Bytes of all log segments.", raft.log_bytes);
        gauge(&mut out, "cvlan_log_segments", "Segments of the log.", raft.segments);
        gauge(&mut out, "cvlan_history_from_seq", "The first event that can be read here.", raft.history_from);
        gauge(&mut out, "cvlan_feature_level", "Level of features that the log is at.", u64::from(raft.feature_level));
        gauge(
            &mut out,
            "cvlan_snapshot_seq",
            "Last event in the newest snapshot.",
            raft.snapshot_seq.unwrap_or_default(),
        );
        if let Some(age_ms) = raft.snapshot_age_ms {
            gauge(&mut out, "cvlan_snapshot_age_seconds", "Since the newest snapshot of this run.", age_ms / 1000);
        }
        sinks(&mut out, &app.sinks);
        postgres(&mut out, app, head.checkpoint());
        gauge(&mut out, "cvlan_disk_full", "1 where the log has no room to grow.", u64::from(raft.disk_full));
        gauge(&mut out, "cvlan_uptime_seconds", "Since the start.", app.started.elapsed().as_secs());

        let writes = OUTCOMES.iter().zip(&self.writes).map(|(o, c)| (format!("outcome=\"{o}\""), c.load(Relaxed)));
        counters(&mut out, "cvlan_writes_total", "Commands by outcome.", writes);
        let sent = ["map", "delta", "heartbeat"].iter().zip(&self.sent);
        let sent = sent.map(|(k, c)| (format!("kind=\"{k}\""), c.load(Relaxed)));
        counters(&mut out, "cvlan_sync_frames_total", "Frames sent to agents.", sent);
        let one = |c: &AtomicU64| std::iter::once((String::new(), c.load(Relaxed)));
        let refused = "Requests of other members that those may not make.";
        let not_allowed = std::iter::once((String::new(), raft.not_allowed));
        counters(&mut out, "cvlan_members_not_allowed_total", refused, not_allowed);
        let (failed, limited) = (one(&self.handshakes_failed), one(&self.rate_limited));
        counters(&mut out, "cvlan_tls_handshakes_failed_total", "TLS handshakes that failed.", failed);
        counters(&mut out, "cvlan_rate_limited_total", "Requests refused by a rate limit.", limited);

        self.requests(&mut out);
        header(&mut out, "cvlan_wal_sync_seconds", "Group commits of the log: write and sync.", "histogram");
        histogram(&mut out, "cvlan_wal_sync_seconds", "", &raft.sync_us, 1e6);
        let commit = "Entries proposed here: until they are durable on a majority and applied.";
        header(&mut out, "cvlan_commit_seconds", commit, "histogram");
        histogram(&mut out, "cvlan_commit_seconds", "", &raft.commit_us, 1e6);
        header(&mut out, "cvlan_wal_batch_bytes", "Group commits of the log: their bytes.", "histogram");
        histogram(&mut out, "cvlan_wal_batch_bytes", "", &raft.sync_bytes, 1.0);
        header(&mut out, "cvlan_entry_events", "Entries proposed here: their events.", "histogram");
        histogram(&mut out, "cvlan_entry_events", "", &raft.entry_events, 1.0);
        out
    }

    fn all(&self) -> impl Iterator<Item = (String, &Requests)> {
        let routes = ROUTES.iter().zip(&self.routes).map(|(r, c)| (labels(r.method.as_str(), &r.full_path()), c));
        let others = OTHERS.iter().zip(&self.others).map(|((_, method, path), c)| (labels(method, path), c));
        routes.chain(others)
    }

    fn requests(&self, out: &mut String) {
        let by_class = self.all().flat_map(|(labels, c)| {
            CLASSES.iter().zip(&c.by_class).filter_map(move |(class, n)| {
                let n = n.load(Relaxed);
                (n > 0).then(|| (format!("{labels},status=\"{class}\""), n))
            })
        });
        counters(out, "cvlan_http_requests_total", "Requests by route and status.", by_class);
        header(out, "cvlan_http_request_seconds", "Time to the answer's head.", "histogram");
        for (labels, c) in self.all() {
            let counts = c.micros.counts();
            if counts.count() > 0 {
                histogram(out, "cvlan_http_request_seconds", &labels, &counts, 1e6);
            }
        }
    }
}

fn labels(method: &str, path: &str) -> String {
    format!("method=\"{method}\",route=\"{path}\"")
}

fn count(requests: Option<&Requests>, status: u16, micros: u64) {
    let Some(requests) = requests else { return };
    if let Some(class) = requests.by_class.get(usize::from(status / 100).saturating_sub(1)) {
        class.fetch_add(1, Relaxed);
    }
    requests.micros.add(micros);
}

// Writing into a String cannot fail.
fn header(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn gauge(out: &mut String, name: &str, help: &str, value: u64) {
    header(out, name, help, "gauge");
    let _ = writeln!(out, "{name} {value}");
}

/// What streams the record out of this member. Two may be shown alike: the number tells them apart.
fn sinks(out: &mut String, sinks: &[Arc<Sink>]) {
    let mut each = |name: &str, help: &str, kind: &str, value: fn(&Sink) -> u64| {
        header(out, name, help, kind);
        for sink in sinks {
            let label = sink.name().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = writeln!(out, "{name}{{number=\"{}\",sink=\"{label}\"}} {}", sink.number(), value(sink));
        }
    };
    if !sinks.is_empty() {
        each("cvlan_sink_seq", "The last event that the sink has.", "gauge", Sink::seq);
        let failing = "1 where the sink took nothing the last time.";
        each("cvlan_sink_failing", failing, "gauge", |sink| u64::from(sink.why().is_some()));
        let skipped = "Events that the sink never gets: they were gone before it had them.";
        each("cvlan_sink_skipped_events_total", skipped, "counter", Sink::skipped);
    }
}

/// The view in PostgreSQL, where this member was asked for one.
fn postgres(out: &mut String, app: &App, head: Checkpoint) {
    let Some((_, status)) = app.views.postgres() else { return };
    gauge(out, "cvlan_postgres_up", "1 where the PostgreSQL view answers this member.", u64::from(status.is_up()));
    let writer = "1 where this member writes the PostgreSQL view.";
    gauge(out, "cvlan_postgres_writer", writer, u64::from(status.is_writer()));
    let lag = lag(status.checkpoint(), head);
    gauge(out, "cvlan_postgres_lag_events", "Events that the PostgreSQL view is behind, as last seen.", lag);
    let one = |n: u64| std::iter::once((String::new(), n));
    counters(out, "cvlan_postgres_rebuilds_total", "Times that it was written anew.", one(status.rebuilds()));
    counters(out, "cvlan_postgres_failures_total", "Attempts to write it that failed.", one(status.failures()));
}

/// Events that a view is behind.
fn lag(view: Checkpoint, head: Checkpoint) -> u64 {
    if view.epoch == head.epoch { head.seq.0.saturating_sub(view.seq.0) } else { head.seq.0 }
}

/// The other members, as this one sees them; what it does not know of one is left out.
fn peers(out: &mut String, peers: &[PeerStatus]) {
    let mut each = |name: &str, help: &str, value: fn(&PeerStatus) -> Option<i64>| {
        header(out, name, help, "gauge");
        for (peer, value) in peers.iter().filter_map(|p| Some((p.id, value(p)?))) {
            let _ = writeln!(out, "{name}{{member=\"{peer}\"}} {value}");
        }
    };
    each("cvlan_peer_behind_entries", "Entries that it lacks; known where this member leads.", |p| {
        p.behind.map(|n| i64::try_from(n).unwrap_or(i64::MAX))
    });
    each("cvlan_peer_heard_ms", "Since it answered.", |p| p.answered_ms.map(|n| i64::try_from(n).unwrap_or(i64::MAX)));
    each("cvlan_peer_skew_ms", "Its clock minus ours.", |p| p.skew_ms);
}

fn counters(out: &mut String, name: &str, help: &str, values: impl Iterator<Item = (String, u64)>) {
    header(out, name, help, "counter");
    for (labels, value) in values {
        let _ = match labels.is_empty() {
            true => writeln!(out, "{name} {value}"),
            false => writeln!(out, "{name}{{{labels}}} {value}"),
        };
    }
}

/// Bucket `n` of the counts holds values below 2^n; `unit` of them are one of the metric's.
fn histogram(out: &mut String, name: &str, labels: &str, counts: &Counts, unit: f64) {
    let comma = if labels.is_empty() { "" } else { "," };
    let (mut sum, total) = (0, counts.count());
    let last = counts.buckets.iter().rposition(|n| *n > 0).unwrap_or_default();
    for (n, count) in counts.buckets.iter().enumerate().take(last + 1) {
        sum += count;
        let le = ((1u64 << n) - 1) as f64 / unit;
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{le}\"}} {sum}");
    }
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}");
    let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _ = writeln!(out, "{name}_sum{braces} {}", counts.sum as f64 / unit);
    let _ = writeln!(out, "{name}_count{braces} {total}");
}

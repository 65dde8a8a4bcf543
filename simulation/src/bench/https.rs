//! Writes through the real door: `POST nodes` over TLS against controllers that are processes of their own, with
//! authentication, allocation and the view on; beside it the same door with an empty handler, in a process of its own
//! too, and etcd. One connection a caller, HTTP/1.1.

use super::etcd::{Etcd, HALF, Put};
use super::load::{Ask, Layout, Took, closed, open};
use super::process::{Cluster, Process, headers, wait_for};
use super::wire::{Protocol, Target};
use super::{Bench, Sample, on_tokio};
use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use cvlan_api::ca::{Ca, Signer, ca_make};
use cvlan_api::doors::accept::{Door, serve};
use cvlan_api::doors::body::body_read;
use cvlan_api::metrics::Metrics;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A process is idle so long before its memory is read.
pub(super) const IDLE: Duration = Duration::from_secs(3);

/// Where nodes are made.
const NODES: &str = "/api/v1/tenants/acme/nodes";

/// `https_write_m{voters}_c{callers}`.
pub(super) fn write<const VOTERS: usize, const CALLERS: usize>(bench: &Bench) -> anyhow::Result<Sample> {
    let took = Ours::start(bench, VOTERS)?.closed(CALLERS, bench.length())?;
    Ok(took.sample(1.0, vec![("callers", CALLERS.to_string())]))
}

/// `https_latency_m1_c1`: the median time of one caller's write, beside etcd's.
pub(super) fn latency(bench: &Bench) -> anyhow::Result<Sample> {
    let theirs = Etcd::best(bench, 1, |etcd| Ok(-(etcd.closed(1, bench.length())?.quantile(0.5) as f64)))?;
    let ours = Ours::start(bench, 1)?.closed(1, bench.length())?;
    Ok(Sample::new(ours.quantile(0.5) as f64, Vec::new()).beside(&theirs.name, -theirs.value))
}

/// `https_p99_open_m1`: the slowest hundredth of writes at 70 % of what the slower of the two can do, beside etcd's.
pub(super) fn p99_open(bench: &Bench) -> anyhow::Result<Sample> {
    let ours = Ours::start(bench, 1)?;
    let most = ours.closed(CONNECTIONS, bench.length() / HALF)?.rate();
    let mut rate = most * SHARE;
    let theirs = Etcd::best(bench, 1, |etcd| {
        rate = rate.min(etcd.closed(CONNECTIONS, bench.length() / HALF)?.rate() * SHARE);
        Ok(-(etcd.open(CONNECTIONS, rate, bench.length())?.quantile(0.99) as f64))
    })?;
    let took = ours.open(CONNECTIONS, rate, bench.length())?;
    let keys = vec![("per_second", format!("{rate:.0}")), ("p50_us", took.quantile(0.5).to_string())];
    Ok(Sample::new(took.quantile(0.99) as f64, keys).beside(&theirs.name, -theirs.value))
}

/// Connections of an open load.
const CONNECTIONS: usize = 200;
/// Of what a server can do.
const SHARE: f64 = 0.7;

/// Controllers with a tenant and a CVLAN, under load.
struct Ours {
    _cluster: Cluster,
    target: Target,
    bearer: String,
    next: AtomicU64,
}

impl Ours {
    fn start(bench: &Bench, voters: usize) -> anyhow::Result<Self> {
        let cluster = Cluster::of(bench, voters)?;
        let target = cluster.first()?.target()?;
        let bearer = on_tokio(async { cluster.first()?.found(&target).await })?;
        Ok(Self { _cluster: cluster, target, bearer, next: AtomicU64::new(1) })
    }

    fn ask<T>(&self, load: impl AsyncFnOnce(&Ask<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let headers = headers(&self.bearer);
        let ask = Ask { target: &self.target, path: NODES, headers: &headers, body: &node, next: &self.next };
        on_tokio(load(&ask))
    }

    fn closed(&self, callers: usize, length: Duration) -> anyhow::Result<Took> {
        self.ask(async |ask| closed(ask, Layout { connections: callers, each: 1 }, length).await)
    }

    fn open(&self, connections: usize, per_second: f64, length: Duration) -> anyhow::Result<Took> {
        self.ask(async |ask| open(ask, connections, per_second, length).await)
    }
}

/// The body that makes node `i`.
fn node(i: u64) -> Vec<u8> {
    use base64::Engine as _;
    let mut key = [0x5a; 32];
    let (head, _) = key.split_at_mut(8);
    head.copy_from_slice(&i.to_le_bytes());
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    format!(r#"{{"cvlan":"net","name":"node-{i}","wgPublicKey":"{key}"}}"#).into_bytes()
}

/// `floor_http`: our door, an empty handler, 200 callers.
pub(super) fn floor(bench: &Bench) -> anyhow::Result<Sample> {
    let folder = bench.folder()?;
    let program = std::env::current_exe()?;
    let _floor = Process::start(Command::new(program).arg("floor").arg(folder.path()))?;
    let port: u16 = wait_for(&folder.path().join("port"))?.trim().parse().context("the floor's port")?;
    let target = Target::new(port, Protocol::Http1, &folder.path().join("ca.pem"), None)?;
    let (next, headers) = (AtomicU64::new(1), headers("none"));
    let ask = Ask { target: &target, path: "/floor", headers: &headers, body: &node, next: &next };
    let took = on_tokio(closed(&ask, Layout { connections: 200, each: 1 }, bench.length()))?;
    Ok(took.sample(1.0, vec![("callers", "200".to_owned())]))
}

/// `rss_controller`: resident memory of an idle controller, MiB.
pub(super) fn rss_controller(bench: &Bench) -> anyhow::Result<Sample> {
    let cluster = Cluster::of(bench, 1)?;
    std::thread::sleep(IDLE);
    Ok(Sample::new(cluster.first()?.process.resident_mib()?, Vec::new()))
}

/// `etcd_write_m{members}_c{callers}`: puts into the faster of the servers that were found.
pub(super) fn etcd<const MEMBERS: usize, const CALLERS: usize>(bench: &Bench) -> anyhow::Result<Sample> {
    let mut took = None;
    let best = Etcd::best(bench, MEMBERS, |etcd| {
        let now = etcd.closed(CALLERS, bench.length())?;
        let rate = now.rate();
        if took.as_ref().is_none_or(|took: &Took| took.rate() < rate) {
            took = Some(now);
        }
        Ok(rate)
    })?;
    let took = took.context("nothing was measured")?;
    let mut sample = took.sample(1.0, vec![("callers", CALLERS.to_string()), ("bytes", Put::BYTES.to_string())]);
    sample.keys.push(("others", best.others));
    sample.label = Some(best.name);
    Ok(sample)
}

/// Reads the body, answers with as much as a node's creation does.
async fn empty(request: Request) -> impl IntoResponse {
    // What is measured is the way to the handler and back; a broken body shows as a broken connection.
    let _ = body_read(request.into_body()).await;
    ([(CONTENT_TYPE, "application/json")], bytes::Bytes::from_static(&[b'x'; 620]))
}

/// The process behind `floor_http`: writes its CA and port into `folder` and serves until it is ended.
pub fn floor_serve(folder: &Path) -> anyhow::Result<()> {
    on_tokio(async {
        let now_ms = u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?;
        let (key, der) = ca_make(now_ms)?;
        let ca = Arc::new(Ca::read(&der)?);
        let (signer, own) = (Signer::open(&key, ca.clone())?, rcgen::KeyPair::generate()?);
        std::fs::write(folder.join("ca.pem"), ca.pem())?;
        let certificate = ca.chain(signer.server(&["localhost".to_owned()], &own, now_ms)?, &own)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certificate.as_ref().clone())));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        std::fs::write(folder.join("port"), format!("{}\n", listener.local_addr()?.port()))?;
        let door =
            Door { listener, tls: Some(Arc::new(tls)), connections_max: 1000, metrics: Arc::new(Metrics::new()) };
        let (_open, draining) = tokio::sync::watch::channel(false);
        serve(door, Router::new().route("/floor", post(empty)), draining).await;
        Ok(())
    })
}

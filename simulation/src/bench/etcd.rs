//! etcd beside it: the same machine, the same generator, puts over gRPC and TLS with certificates on both sides, every
//! one synced as etcd does by default. Binaries are found by `ETCD_BIN` (paths with colons between) and PATH.

use super::load::{Ask, Layout, Took, closed, open};
use super::process::{Process, START, free_ports};
use super::wire::{Protocol, Target};
use super::{Bench, Skipped, on_tokio};
use anyhow::{Context, bail};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// How much shorter a measurement is that only finds the rate of another.
pub(super) const HALF: u32 = 2;

/// Connections and puts on each at 200 callers: the layout in which etcd is fastest.
const MANY: Layout = Layout { connections: 20, each: 10 };

const PUT: &str = "/etcdserverpb.KV/Put";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const HEADERS: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

/// etcdserverpb.PutRequest, api/etcdserverpb/rpc.proto.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl Put {
    /// Of a value.
    pub(super) const BYTES: usize = 256;

    fn body(i: u64) -> Vec<u8> {
        Self { key: format!("node-{i}").into_bytes(), value: vec![b'x'; Self::BYTES] }.encode_to_vec()
    }
}

/// etcdserverpb.ResponseHeader.
#[derive(Clone, PartialEq, Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// etcdserverpb.StatusResponse.
#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// The server that was best.
pub(super) struct Best {
    /// `etcd-<version>`.
    pub(super) name: String,
    /// What was measured of it.
    pub(super) value: f64,
    /// What was measured of the others, `version:value,…`.
    pub(super) others: String,
}

/// A cluster under load, by its leader.
pub(super) struct Etcd {
    _processes: Vec<Process>,
    _folder: tempfile::TempDir,
    target: Target,
    version: String,
    next: AtomicU64,
}

impl Etcd {
    /// The server of which `measure` gives most, each in a cluster of its own.
    pub(super) fn best(
        bench: &Bench,
        members: usize,
        mut measure: impl FnMut(&Self) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Best> {
        let mut all = Vec::new();
        for program in programs()? {
            let etcd = Self::start(bench, &program, members).with_context(|| program.display().to_string())?;
            all.push((format!("etcd-{}", etcd.version), measure(&etcd)?));
        }
        all.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let others: Vec<_> = all.iter().skip(1).map(|(name, value)| format!("{name}:{:.1}", value.abs())).collect();
        let (name, value) = all.into_iter().next().context("no server")?;
        Ok(Best { name, value, others: if others.is_empty() { "none".to_owned() } else { others.join(",") } })
    }

    fn start(bench: &Bench, program: &Path, members: usize) -> anyhow::Result<Self> {
        let folder = bench.folder()?;
        let files = Files::make(folder.path())?;
        let mut places = Vec::new();
        for n in 1..=members {
            places.push((format!("m{n}"), free_ports::<2>()?));
        }
        let peers: Vec<_> = places.iter().map(|(name, [_, peer])| format!("{name}=https://127.0.0.1:{peer}")).collect();
        let mut processes = Vec::new();
        for (name, [client, peer]) in &places {
            let [client, peer] = [client, peer].map(|port| format!("https://127.0.0.1:{port}"));
            let mut command = Command::new(program);
            command.args(["--name", name, "--data-dir"]).arg(folder.path().join(name));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &peers.join(","), "--client-cert-auth", "--peer-client-cert-auth"]);
            command.args(["--logger", "zap", "--log-level", "error"]);
            for (flag, file) in
                [("cert-file", &files.certificate), ("key-file", &files.key), ("trusted-ca-file", &files.ca)]
            {
                command.arg(format!("--{flag}")).arg(file).arg(format!("--peer-{flag}")).arg(file);
            }
            let said = std::fs::File::create(folder.path().join(format!("{name}.log")))?;
            processes.push(Process::start(command.stdout(Stdio::null()).stderr(said))?);
        }
        let ports: Vec<_> = places.iter().map(|(_, [client, _])| *client).collect();
        let (target, version) = on_tokio(leader(&ports, &files))?;
        Ok(Self { _processes: processes, _folder: folder, target, version, next: AtomicU64::new(1) })
    }

    fn ask<T>(&self, load: impl AsyncFnOnce(&Ask<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let ask = Ask { target: &self.target, path: PUT, headers: &HEADERS, body: &Put::body, next: &self.next };
        on_tokio(load(&ask))
    }

    /// Puts from callers in a closed loop.
    pub(super) fn closed(&self, callers: usize, length: Duration) -> anyhow::Result<Took> {
        let layout =
            if callers == MANY.connections * MANY.each { MANY } else { Layout { connections: callers, each: 1 } };
        self.ask(async |ask| closed(ask, layout, length).await)
    }

    /// Puts at an even rate.
    pub(super) fn open(&self, connections: usize, per_second: f64, length: Duration) -> anyhow::Result<Took> {
        self.ask(async |ask| open(ask, connections, per_second, length).await)
    }
}

/// The servers of this machine, each once.
fn programs() -> anyhow::Result<BTreeSet<PathBuf>> {
    let named = std::env::var_os("ETCD_BIN").unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Vec<_> = std::env::split_paths(&named)
        .filter(|path| !path.as_os_str().is_empty())
        .chain(std::env::split_paths(&path).map(|folder| folder.join("etcd")).filter(|path| path.is_file()))
        .collect();
    if found.is_empty() {
        return Err(Skipped("there is no etcd on PATH and ETCD_BIN names none (docs/benchmarks.md)".to_owned()).into());
    }
    found.iter().map(|path| path.canonicalize().with_context(|| path.display().to_string())).collect()
}

/// The door of the member that leads, and its version.
async fn leader(ports: &[u16], files: &Files) -> anyhow::Result<(Target, String)> {
    let end = Instant::now() + START;
    let mut last = anyhow::anyhow!("no member");
    while Instant::now() < end {
        for port in ports {
            let client = Some((files.certificate.clone(), files.key.clone()));
            let target = Target::new(*port, Protocol::Grpc, &files.ca, client)?;
            match target.once("POST", STATUS, &HEADERS, &[]).await.and_then(|b| Ok(StatusResponse::decode(&*b)?)) {
                Ok(status)
                    if status.leader != 0 && status.header.as_ref().is_some_and(|h| h.member_id == status.leader) =>
                {
                    return Ok((target, status.version));
                }
                Ok(_) => {}
                Err(error) => last = error,
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no member leads within {START:?}: {last:#}")
}

/// One certificate for all: servers, members and callers.
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn make(folder: &Path) -> anyhow::Result<Self> {
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let mut leaf = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &ca)?;
        let texts = [("ca.pem", ca.pem()), ("leaf.pem", certificate.pem()), ("leaf.key", key.serialize_pem())];
        for (name, text) in texts {
            std::fs::write(folder.join(name), text)?;
        }
        let [ca, certificate, key] = ["ca.pem", "leaf.pem", "leaf.key"].map(|name| folder.join(name));
        Ok(Self { ca, certificate, key })
    }
}

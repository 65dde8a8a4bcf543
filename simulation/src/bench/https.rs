//! Writes through the real door: `POST nodes` over TLS against a controller that is a process of its own, with
//! authentication, allocation and the view on; beside it the same door with an empty handler, in a process of its own
//! too. The generator is the same for both: one connection a caller, HTTP/1.1, closed loop.

use super::{Bench, Sample, on_tokio};
use crate::https::Connection;
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing;
use cvlan_api::ca::{Ca, ca_make};
use cvlan_api::doors::accept::{Door, serve};
use cvlan_api::doors::body::body_read;
use cvlan_api::metrics::Metrics;
use cvlan_proto::v1;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A process must be up within this.
pub(super) const START: Duration = Duration::from_secs(20);
/// Before a measurement begins.
const WARM_UP: Duration = Duration::from_millis(500);
/// A process is idle so long before its memory is read.
pub(super) const IDLE: Duration = Duration::from_secs(3);

/// `https_write_m1_c1`.
pub fn write_c1(bench: &Bench) -> anyhow::Result<Sample> {
    write(bench, 1)
}

/// `https_write_m1_c64`.
pub fn write_c64(bench: &Bench) -> anyhow::Result<Sample> {
    write(bench, 64)
}

/// `https_write_m1_c200`.
pub fn write_c200(bench: &Bench) -> anyhow::Result<Sample> {
    write(bench, 200)
}

/// `floor_http`: our door, an empty handler, 200 callers.
pub fn floor(bench: &Bench) -> anyhow::Result<Sample> {
    let folder = bench.folder()?;
    let program = std::env::current_exe()?;
    let floor = Process::start(Command::new(program).arg("floor").arg(folder.path()))?;
    let (port, ca) = (folder.path().join("port"), folder.path().join("ca.pem"));
    let port: u16 = wait_for(&port)?.trim().parse().context("the floor's port")?;
    let sample = on_tokio(async {
        let target = Target::new(port, &ca)?;
        target.load(200, bench.length(), "/floor", "none", &|i| body(i, "net")).await
    });
    drop(floor);
    sample
}

/// `rss_controller`: resident memory of an idle controller, MiB.
pub fn rss_controller(bench: &Bench) -> anyhow::Result<Sample> {
    let controller = Controller::start(bench, "127.0.0.1:0")?;
    std::thread::sleep(IDLE);
    Ok(Sample { value: controller.process.resident_mib()?, keys: Vec::new() })
}

fn write(bench: &Bench, callers: usize) -> anyhow::Result<Sample> {
    let controller = Controller::start(bench, "127.0.0.1:0")?;
    on_tokio(async {
        let target = controller.target()?;
        let bearer = controller.found(&target).await?;
        target.load(callers, bench.length(), "/api/v1/tenants/acme/nodes", &bearer, &|i| body(i, "net")).await
    })
}

fn body(i: u64, cvlan: &str) -> String {
    use base64::Engine as _;
    let mut key = [0x5a; 32];
    let (head, _) = key.split_at_mut(8);
    head.copy_from_slice(&i.to_le_bytes());
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    format!(r#"{{"cvlan":"{cvlan}","name":"node-{i}","wgPublicKey":"{key}"}}"#)
}

/// A child that ends with its owner.
pub(super) struct Process(pub(super) Child);

impl Process {
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).spawn().context("starting a process")?))
    }

    /// Its resident memory, MiB.
    pub(super) fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

/// A program of ours: `make bench` builds them beside this one.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    if !program.exists() {
        bail!("{} is missing: cargo build --release -p cvlan-api -p cvlan-client --bins", program.display());
    }
    Ok(program)
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A controller of its own, in a folder of its own.
pub(super) struct Controller {
    process: Process,
    folder: tempfile::TempDir,
    port: u16,
    password: String,
}

impl Controller {
    pub(super) fn start(bench: &Bench, node_listen: &str) -> anyhow::Result<Self> {
        let folder = bench.folder()?;
        let out = folder.path().join("out");
        let any = ["--listen", "127.0.0.1:0", "--node-listen", node_listen, "--metrics-listen", "127.0.0.1:0"];
        let mut command = Command::new(program("cvlan-api")?);
        command
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(any)
            .args(["--cluster-listen", "127.0.0.1:0"])
            .env("RUST_LOG", "error");
        let process = Process::start(command.stdout(std::fs::File::create(&out)?))?;
        let field = |text: &str, name: &str, at: usize| {
            let line = text.lines().find(|l| l.trim_start().starts_with(name))?;
            line.split_whitespace().nth(at).map(str::to_owned)
        };
        let end = Instant::now() + START;
        loop {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            if let (Some(url), Some(password), true) =
                (field(&text, "UI and API", 3), field(&text, "superadmin", 2), text.contains("/metrics"))
            {
                let port = url.rsplit(':').next().and_then(|p| p.parse().ok()).context("the controller's port")?;
                return Ok(Self { process, folder, port, password });
            }
            if Instant::now() > end {
                bail!("the controller is not up: {text}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Controller {
    /// Its REST door.
    pub(super) fn target(&self) -> anyhow::Result<Target> {
        Target::new(self.port, &self.folder.path().join("data/ca.pem"))
    }

    /// Logs in, makes tenant `acme` and its CVLAN `net`; the `Authorization` header from now on.
    pub(super) async fn found(&self, target: &Target) -> anyhow::Result<String> {
        let login = v1::LoginRequest { name: "admin".into(), password: self.password.clone(), ..Default::default() };
        let answer = target.once("/api/v1/auth/login", "none", &serde_json::to_string(&login)?).await?;
        let session: v1::LoginResponse = serde_json::from_slice(&answer)?;
        let bearer = format!("Bearer {}", session.access_token);
        target.once("/api/v1/tenants", &bearer, r#"{"slug":"acme"}"#).await?;
        target.once("/api/v1/tenants/acme/cvlans", &bearer, r#"{"name":"net","ipv4Cidr":"10.0.0.0/8"}"#).await?;
        Ok(bearer)
    }
}

fn wait_for(path: &Path) -> anyhow::Result<String> {
    let end = Instant::now() + START;
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return Ok(text),
            _ if Instant::now() > end => bail!("{} does not appear", path.display()),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Where requests go.
pub(super) struct Target(crate::https::Target);

impl Target {
    fn new(port: u16, ca: &Path) -> anyhow::Result<Self> {
        Ok(Self(crate::https::Target::new(([127, 0, 0, 1], port).into(), ca)?))
    }

    pub(super) async fn once(&self, path: &str, bearer: &str, body: &str) -> anyhow::Result<Vec<u8>> {
        post(&mut self.0.connect().await?, path, bearer, body).await
    }

    /// Callers in a closed loop; counts what was acknowledged after the warm-up.
    async fn load(
        &self,
        callers: usize,
        length: Duration,
        path: &str,
        bearer: &str,
        body: &(dyn Fn(u64) -> String + Sync),
    ) -> anyhow::Result<Sample> {
        let (next, counting, stop) = (AtomicU64::new(1), AtomicBool::new(false), AtomicBool::new(false));
        let caller = async || -> anyhow::Result<Vec<u32>> {
            let mut connection = self.0.connect().await?;
            let mut micros = Vec::new();
            while !stop.load(Relaxed) {
                let counted = counting.load(Relaxed);
                let begin = Instant::now();
                post(&mut connection, path, bearer, &body(next.fetch_add(1, Relaxed))).await?;
                if counted {
                    micros.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
            }
            Ok(micros)
        };
        let clock = async {
            tokio::time::sleep(WARM_UP).await;
            counting.store(true, Relaxed);
            let begin = Instant::now();
            tokio::time::sleep(length).await;
            stop.store(true, Relaxed);
            begin.elapsed()
        };
        let callers_run = futures_util::future::try_join_all((0..callers).map(|_| caller()));
        let (elapsed, micros) = futures_util::future::join(clock, callers_run).await;
        let mut micros: Vec<u32> = micros?.into_iter().flatten().collect();
        micros.sort_unstable();
        let p50 = micros.get(micros.len() / 2).copied().context("nothing was acknowledged")?;
        let value = micros.len() as f64 / elapsed.as_secs_f64();
        Ok(Sample { value, keys: vec![("callers", callers.to_string()), ("p50_us", p50.to_string())] })
    }
}

/// One request, one answer; anything but 2xx is an error.
async fn post(connection: &mut Connection, path: &str, bearer: &str, body: &str) -> anyhow::Result<Vec<u8>> {
    connection.ask("POST", path, &format!("Authorization: {bearer}\r\n"), body).await?.success()
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
        let ca = Ca::open(&key, &der)?;
        std::fs::write(folder.join("ca.pem"), ca.pem())?;
        let certificate = ca.server(&["localhost".to_owned()], now_ms)?;
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
        serve(door, Router::new().route("/floor", routing::post(empty)), draining).await;
        Ok(())
    })
}

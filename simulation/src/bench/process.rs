//! Controllers as processes of their own, on loopback, with a folder of their own: one, or three that vote.

use super::wire::{Protocol, Target};
use super::{Bench, on_tokio};
use anyhow::{Context, bail};
use cvlan_proto::v1;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process must be up within this.
pub(super) const START: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

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

    /// Asks it to stop and waits until it has.
    fn stop(&mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
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

/// Ports of loopback that nobody has.
pub(super) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let listeners: Vec<_> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// What `look` finds, once it does.
pub(super) fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Some(found) => return Ok(found),
            None if Instant::now() > end => bail!("not within {limit:?}: {what}"),
            None => std::thread::sleep(LOOK),
        }
    }
}

/// The text of a file, once it ends with a line's end.
pub(super) fn wait_for(path: &Path) -> anyhow::Result<String> {
    until(&path.display().to_string(), START, || std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n')))
}

/// A controller of its own.
pub(super) struct Controller {
    pub(super) process: Process,
    ports: [u16; 4],
    password: Option<String>,
    folder: PathBuf,
}

impl Controller {
    /// A new cluster's first member in an empty folder, or the one whose folder it is. `node_listen` is the machines'
    /// door's address.
    pub(super) fn start(folder: &Path, node_listen: &str) -> anyhow::Result<Self> {
        Self::with(folder, node_listen, &[])
    }

    /// The same, with flags as the environment has them.
    pub(super) fn with(folder: &Path, node_listen: &str, flags: &[(&str, &OsStr)]) -> anyhow::Result<Self> {
        let ports = free_ports()?;
        let [rest, node, metrics, cluster] = ports;
        let out = folder.join("out");
        std::fs::create_dir_all(folder)?;
        let mut command = Command::new(program("cvlan-api")?);
        command.arg("--data-dir").arg(Self::data(folder)).env("RUST_LOG", "error");
        command.args(["--node-listen", &format!("{node_listen}:{node}")]);
        for (flag, port) in [("--listen", rest), ("--metrics-listen", metrics), ("--cluster-listen", cluster)] {
            command.args([flag, &format!("127.0.0.1:{port}")]);
        }
        command.envs(flags.iter().copied());
        let process = Process::start(command.stdout(std::fs::File::create(&out)?))?;
        let mut text = String::new();
        until("a controller is up", START, || {
            text = std::fs::read_to_string(&out).unwrap_or_default();
            text.contains("/metrics").then_some(())
        })?;
        let line = text.lines().find(|line| line.trim_start().starts_with("superadmin"));
        let password = line.and_then(|line| line.split_whitespace().nth(2)).map(str::to_owned);
        Ok(Self { process, ports, password, folder: folder.to_owned() })
    }

    /// Where a controller in `folder` keeps what it has.
    pub(super) fn data(folder: &Path) -> PathBuf {
        folder.join("data")
    }

    /// Its REST door.
    pub(super) fn target(&self) -> anyhow::Result<Target> {
        let [rest, ..] = self.ports;
        Target::new(rest, Protocol::Http1, &Self::data(&self.folder).join("ca.pem"), None)
    }

    /// True once /readyz says so.
    pub(super) fn ready(&self) -> bool {
        self.plain("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// A gauge of its metrics.
    pub(super) fn metric(&self, name: &str) -> Option<f64> {
        let answer = self.plain("/metrics")?;
        answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
    }

    fn plain(&self, path: &str) -> Option<String> {
        let [_, _, metrics, _] = self.ports;
        let mut answer = String::new();
        let mut tcp = TcpStream::connect(("127.0.0.1", metrics)).ok()?;
        tcp.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
            .ok()?;
        tcp.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Stops it in order.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop()
    }

    /// Logs in: the `Authorization` header from now on.
    pub(super) async fn login(&self, target: &Target) -> anyhow::Result<String> {
        let password = self.password.clone().context("no password was printed")?;
        let login = v1::LoginRequest { name: "admin".into(), password, ..Default::default() };
        let answer = post(target, "/auth/login", "none", &serde_json::to_string(&login)?).await?;
        let session: v1::LoginResponse = serde_json::from_slice(&answer)?;
        Ok(format!("Bearer {}", session.access_token))
    }

    /// Logs in, makes tenant `acme` and its CVLAN `net`; the `Authorization` header from now on.
    pub(super) async fn found(&self, target: &Target) -> anyhow::Result<String> {
        let bearer = self.login(target).await?;
        post(target, "/tenants", &bearer, r#"{"slug":"acme"}"#).await?;
        post(target, "/tenants/acme/cvlans", &bearer, r#"{"name":"net","ipv4Cidr":"10.0.0.0/8"}"#).await?;
        Ok(bearer)
    }
}

/// One request to a route of the API.
pub(super) async fn post(target: &Target, route: &str, bearer: &str, body: &str) -> anyhow::Result<Vec<u8>> {
    target.once("POST", &format!("/api/v1{route}"), &headers(bearer), body.as_bytes()).await
}

/// Headers of a request with JSON.
pub(super) fn headers(bearer: &str) -> [(&str, &str); 2] {
    [("Authorization", bearer), ("Content-Type", "application/json")]
}

/// Controllers that vote. The first founded the cluster and leads it.
pub(super) struct Cluster {
    members: Vec<Controller>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// One, or more that have joined it.
    pub(super) fn of(bench: &Bench, voters: usize) -> anyhow::Result<Self> {
        let folder = bench.folder()?;
        let founder = Controller::start(&folder.path().join("1"), "127.0.0.1")?;
        let mut cluster = Self { members: vec![founder], _folder: folder };
        if voters > 1 {
            on_tokio(cluster.grow(voters))?;
        }
        Ok(cluster)
    }

    async fn grow(&mut self, voters: usize) -> anyhow::Result<()> {
        let target = self.first()?.target()?;
        let bearer = self.first()?.login(&target).await?;
        for n in 2..=voters {
            let made = post(&target, "/cluster/members", &bearer, &format!(r#"{{"name":"m{n}"}}"#)).await?;
            let made: v1::MemberAddResponse = serde_json::from_slice(&made)?;
            let folder = self._folder.path().join(n.to_string());
            let token = [("CVLAN_JOIN_TOKEN", OsStr::new(&made.join_token))];
            self.members.push(Controller::with(&folder, "127.0.0.1", &token)?);
        }
        let end = Instant::now() + START;
        loop {
            let list = target.once("GET", "/api/v1/cluster/members", &headers(&bearer), b"").await?;
            let list: serde_json::Value = serde_json::from_slice(&list)?;
            let members = list.get("items").and_then(|items| items.as_array());
            let is = |member: &&serde_json::Value| member.get("voter").is_some_and(|v| v == true);
            if members.is_some_and(|members| members.iter().filter(is).count() == voters) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("not within {START:?}: {voters} vote: {list}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The one that writes go to.
    pub(super) fn first(&self) -> anyhow::Result<&Controller> {
        self.members.first().context("no member")
    }
}

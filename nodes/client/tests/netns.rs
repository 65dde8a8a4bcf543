//! Two data daemons in two network namespaces, joined by a veth: real TUN devices, real WireGuard, real pings.
//!
//! ```text
//!   namespace a: cvland, cvlan0 10.77.0.1/24 fd77::1/64      namespace b: cvland, cvlan0 10.77.0.2/24 fd77::2/64
//!        veth 192.0.2.1/24 ───────────────────────────────────────── 192.0.2.2/24
//! ```
//! Needs root, iproute2 and ping (iputils-ping); says so and passes where it cannot run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::explicit_write)]

use cvlan_link::ipc::{Client, Config, Patch, Peer, PeerStats, Reply, Request};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

fn tool(program: &str, args: &[&str]) -> bool {
    let status =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn ip(args: &str) {
    let args: Vec<&str> = args.split_whitespace().collect();
    let output = Command::new("ip").args(&args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A namespace that is gone when this is, also after a panic; devices in it go with it.
struct Netns(String);

impl Netns {
    /// None where namespaces cannot be made.
    fn new(name: &str) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("cvt{}-{}{name}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        tool("ip", &["netns", "add", &name]).then(|| {
            let netns = Self(name);
            ip(&format!("-n {netns} link set lo up", netns = netns.0));
            netns
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn pings(&self, to: &str) -> bool {
        let ping = self.command("ping").args(["-n", "-c", "1", "-W", "1", to]).output().unwrap();
        ping.status.success()
    }

    /// How long until `to` answers.
    fn pings_within(&self, to: &str, limit: Duration) -> Duration {
        let started = Instant::now();
        while !self.pings(to) {
            assert!(started.elapsed() < limit, "{to} does not answer from {} within {limit:?}", self.0);
        }
        started.elapsed()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        tool("ip", &["netns", "del", &self.0]);
    }
}

/// A data daemon in a namespace, killed with -9 when this is dropped.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(netns: &Netns, folder: &Path) -> Self {
        let socket = folder.join("cvland.sock");
        let mut command = netns.command(env!("CARGO_BIN_EXE_cvland"));
        command.arg("--socket").arg(&socket).arg("--state-dir").arg(folder.join("state"));
        command.args(["--ifname", "cvlan0", "--listen-port", "51820"]).env("CVLAN_LOG", "info,gotatun=warn");
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "cvland ended");
            assert!(started.elapsed() < Duration::from_secs(10), "cvland does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, socket }
    }

    fn ask(&self, request: Request) -> Reply {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { Client::connect(&self.socket).await.unwrap().call(&request).await.unwrap() })
    }

    fn done(&self, request: Request) {
        assert_eq!(self.ask(request), Reply::Done);
    }

    fn public_key(&self) -> [u8; 32] {
        match self.ask(Request::Identify) {
            Reply::Identity { public_key, .. } => public_key,
            other => panic!("{other:?}"),
        }
    }

    fn stats(&self) -> Vec<PeerStats> {
        match self.ask(Request::Stats) {
            Reply::Stats { peers, .. } => peers,
            other => panic!("{other:?}"),
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) -> Option<i32> {
        assert!(tool("kill", &["-TERM", &self.child.id().to_string()]));
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Machine {
    netns: Netns,
    folder: TempDir,
    n: u8,
}

impl Machine {
    fn peer(&self, public_key: [u8; 32], endpoints: &[&str]) -> Peer {
        Peer {
            node_id: Uuid::from_bytes([self.n; 16]),
            public_key,
            addresses: vec![
                format!("10.77.0.{}", self.n).parse().unwrap(),
                format!("fd77::{}", self.n).parse().unwrap(),
            ],
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
        }
    }

    fn config(&self, checkpoint: &str, peers: Vec<Peer>) -> Request {
        let addresses =
            vec![format!("10.77.0.{}/24", self.n).parse().unwrap(), format!("fd77::{}/64", self.n).parse().unwrap()];
        Request::Configure(Config { checkpoint: checkpoint.into(), addresses, peers })
    }

    fn start(&self) -> Daemon {
        Daemon::start(&self.netns, self.folder.path())
    }
}

fn machines() -> Option<(Machine, Machine)> {
    // Past the test harness, which keeps what a passing test prints to itself.
    let missing = |what: &str| writeln!(std::io::stderr(), "\n*** SKIPPED: {what}; nothing was tested ***\n").unwrap();
    if !tool("ping", &["-V"]) {
        missing("ping is missing (apt-get install iputils-ping)");
        return None;
    }
    let machine =
        |n: u8, name: &str| Some(Machine { netns: Netns::new(name)?, folder: tempfile::tempdir().unwrap(), n });
    let (Some(a), Some(b)) = (machine(1, "a"), machine(2, "b")) else {
        missing("no network namespaces can be made here (needs root and iproute2)");
        return None;
    };
    ip(&format!("-n {} link add veth type veth peer name veth netns {}", a.netns.0, b.netns.0));
    for machine in [&a, &b] {
        ip(&format!("-n {} addr add 192.0.2.{}/24 dev veth", machine.netns.0, machine.n));
        ip(&format!("-n {} link set veth up", machine.netns.0));
    }
    Some((a, b))
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn two_machines_talk_and_come_back_from_their_last_configuration() {
    let Some((a, b)) = machines() else { return };
    let (daemon_a, daemon_b) = (a.start(), b.start());
    let (key_a, key_b) = (daemon_a.public_key(), daemon_b.public_key());

    // The first candidate leads nowhere and the second into the tunnel itself; the on-link one is taken at once.
    let candidates = ["198.51.100.9:51820", "10.77.0.2:51820", "192.0.2.2:51820"];
    daemon_a.done(a.config("x.1", vec![b.peer(key_b, &candidates)]));
    daemon_b.done(b.config("x.1", vec![a.peer(key_a, &["198.51.100.9:51820", "192.0.2.1:51820"])]));
    let took = a.netns.pings_within("10.77.0.2", SOON);
    assert!(took < Duration::from_secs(2), "the first answer took {took:?}");
    a.netns.pings_within("fd77::2", SOON);
    b.netns.pings_within("10.77.0.1", SOON);
    b.netns.pings_within("fd77::1", SOON);
    let stats = daemon_a.stats();
    assert_eq!(stats.len(), 1);
    assert_eq!(stats[0].endpoint, Some("192.0.2.2:51820".parse().unwrap()));
    assert!(stats[0].handshake_age_ms.unwrap() < 60_000 && stats[0].rx_bytes > 0 && stats[0].tx_bytes > 0, "{stats:?}");

    // A peer that goes is cut off, one that comes is there, and a change of others costs no packet; nor does the
    // search, which is over with the first handshake, whatever other candidates there are.
    daemon_a.done(Request::Patch(Patch {
        base: "x.1".into(),
        checkpoint: "x.2".into(),
        removed: vec![Uuid::from_bytes([2; 16])],
        ..Patch::default()
    }));
    assert!(!a.netns.pings("10.77.0.2"));
    assert!(!b.netns.pings("fd77::1"));
    let upserts = vec![b.peer(key_b, &candidates)];
    let back = Patch { base: "x.2".into(), checkpoint: "x.3".into(), upserts, ..Patch::default() };
    daemon_a.done(Request::Patch(back));
    a.netns.pings_within("10.77.0.2", SOON);
    let flood = a
        .netns
        .command("ping")
        .args(["-n", "-c", "80", "-i", "0.05", "-W", "1", "10.77.0.2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for n in 0..30u8 {
        let other = Peer {
            node_id: Uuid::from_bytes([100 + n; 16]),
            public_key: [100 + n; 32],
            addresses: vec![format!("10.77.0.{}", 100 + n).parse().unwrap()],
            endpoints: vec!["192.0.2.99:1".parse().unwrap()],
        };
        daemon_a.done(Request::Patch(Patch {
            base: format!("x.{}", 3 + n),
            checkpoint: format!("x.{}", 4 + n),
            upserts: vec![other],
            ..Patch::default()
        }));
    }
    let flood = flood.wait_with_output().unwrap();
    assert!(
        String::from_utf8_lossy(&flood.stdout).contains(" 0% packet loss"),
        "{}",
        String::from_utf8_lossy(&flood.stdout)
    );

    // kill -9: nothing was said; the device is gone with the process, and all of it comes back from the file alone.
    daemon_b.kill();
    assert!(!b.netns.command("ip").args(["link", "show", "cvlan0"]).output().unwrap().status.success());
    let daemon_b = b.start();
    assert_eq!(daemon_b.public_key(), key_b);
    let took = a.netns.pings_within("10.77.0.2", SOON);
    assert!(took < Duration::from_secs(3), "back after {took:?}");
    a.netns.pings_within("fd77::2", SOON);

    // SIGTERM ends it cleanly and takes the device away; Down forgets.
    assert_eq!(daemon_b.terminate(), Some(0));
    assert!(!b.netns.command("ip").args(["link", "show", "cvlan0"]).output().unwrap().status.success());
    daemon_a.done(Request::Down);
    assert!(!a.netns.command("ip").args(["link", "show", "cvlan0"]).output().unwrap().status.success());
}

#[test]
fn a_path_that_is_not_on_link_is_found_by_rotation_and_a_lost_device_is_made_again() {
    let Some((a, b)) = machines() else { return };
    // Another address behind the same wire, on no network that a is on: only rotation finds it.
    ip(&format!("-n {} addr add 203.0.113.2/32 dev veth", b.netns.0));
    ip(&format!("-n {} route add 203.0.113.2/32 via 192.0.2.2", a.netns.0));
    ip(&format!("-n {} route add blackhole 198.51.100.0/24", a.netns.0));
    let (daemon_a, daemon_b) = (a.start(), b.start());
    let (key_a, key_b) = (daemon_a.public_key(), daemon_b.public_key());
    let candidates = ["198.51.100.8:51820", "198.51.100.9:51820", "203.0.113.2:51820"];
    daemon_a.done(a.config("x.1", vec![b.peer(key_b, &candidates)]));
    // b knows of no way to a: it answers where a's handshake came from.
    daemon_b.done(b.config("x.1", vec![a.peer(key_a, &[])]));
    a.netns.pings_within("10.77.0.2", Duration::from_secs(8));
    b.netns.pings_within("fd77::1", SOON);
    assert_eq!(daemon_b.stats()[0].endpoint, Some("192.0.2.1:51820".parse().unwrap()));

    // Again and again: the port of the one before may be held for a moment longer.
    for _ in 0..4 {
        ip(&format!("-n {} link del cvlan0", a.netns.0));
        a.netns.pings_within("10.77.0.2", Duration::from_secs(15));
    }
}

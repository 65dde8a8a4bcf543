//! `rss_agent`: the resident memory of an idle machine, beside a real controller and another machine.
//!
//! ```text
//!  namespace a: cvlan-api, cvland, cvlan-ctrl       namespace b: cvland, cvlan-ctrl
//!          198.18.0.1 ─────────────── veth ─────────────── 198.18.0.2
//! ```
//! Nothing is made in this machine's own network, and the namespaces have no names: each is held by a child that ends
//! with this process, and goes with the last process in it. There is nothing that could be left behind.

use super::https::IDLE;
use super::process::{Controller, Process, START, post, program};
use super::{Bench, Sample, Skipped};
use anyhow::{Context, anyhow, bail};
use cvlan_proto::v1;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// 198.18.0.0/15 is set aside for such tests (RFC 2544).
const ADDRESSES: [&str; 2] = ["198.18.0.1", "198.18.0.2"];

/// `rss_agent`: cvland and cvlan-ctrl of one machine, the mean of two.
pub fn rss_agent(bench: &Bench) -> anyhow::Result<Sample> {
    let (folder, [a, b]) = (bench.folder()?, wired()?);
    let controller = a.inside(|| Controller::start(folder.path(), ADDRESSES[0]))?;
    let token = a.inside(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let target = controller.target()?;
            let bearer = controller.found(&target).await?;
            let wanted = r#"{"cvlan":"net","expiresInSeconds":"3600","maxUses":2}"#;
            let made = post(&target, "/tenants/acme/tokens", &bearer, wanted).await?;
            let made: v1::TokenCreateResponse = serde_json::from_slice(&made)?;
            anyhow::Ok(made.secret)
        })
    })?;
    let machines = [Machine::start(bench, &a, &token)?, Machine::start(bench, &b, &token)?];
    let meets = |machine: &Machine| machine.until("it knows the other", |s| s.pointer("/peers/0/ipv4").is_some());
    let other = meets(&machines[0])?;
    meets(&machines[1])?;
    // A first packet, so that the pair has a session.
    let other = other.pointer("/peers/0/ipv4").and_then(Value::as_str).context("it has no address")?;
    a.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", (other, 9))?))?;
    for machine in &machines {
        machine.until("it has a session", |s| s.pointer("/peers/0/handshake_age_ms").is_some_and(Value::is_u64))?;
    }
    std::thread::sleep(IDLE);
    let (mut cvland, mut ctrl) = (0.0, 0.0);
    for machine in &machines {
        cvland += machine.cvland.resident_mib()? / machines.len() as f64;
        ctrl += machine.ctrl.resident_mib()? / machines.len() as f64;
    }
    let keys = vec![("cvland", format!("{cvland:.2}")), ("ctrl", format!("{ctrl:.2}"))];
    Ok(Sample::new(cvland + ctrl, keys))
}

/// A network namespace without a name.
struct Namespace {
    link: File,
    /// Ends when its standard input does.
    holder: Process,
}

impl Namespace {
    fn new() -> anyhow::Result<Self> {
        let refused = |why: String| Skipped(format!("{why}; it takes the right to make network namespaces (root)"));
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo here && exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = Process(command.spawn().map_err(|error| refused(format!("unshare: {error}")))?);
        let mut said = [0; 5];
        let read = holder.0.stdout.as_mut().map(|out| out.read_exact(&mut said));
        if !matches!(read, Some(Ok(()))) {
            let mut why = String::new();
            // It has ended, or ends now: what it wrote is all there is.
            let _ = holder.0.stderr.take().map(|mut err| err.read_to_string(&mut why));
            return Err(refused(why.trim().to_owned()).into());
        }
        let link = File::open(format!("/proc/{}/ns/net", holder.0.id()))?;
        Ok(Self { link, holder })
    }

    /// Does something in a thread of its own that is in this namespace: its sockets and its children are, too.
    fn inside<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let there = || {
            move_into_link_name_space(self.link.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| Skipped(format!("entering a network namespace: {error}")))?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(there).join()).map_err(|_| anyhow!("a thread panicked"))?
    }

    fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        let output = self.inside(|| Ok(Command::new("ip").args(arguments.split(' ')).output()));
        let output = output?.map_err(|error| Skipped(format!("ip: {error}")))?;
        if !output.status.success() {
            bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// Two namespaces and a cable between them.
fn wired() -> anyhow::Result<[Namespace; 2]> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Err(Skipped(format!("/dev/net/tun: {error}; it takes TUN devices")).into());
    }
    let pair = [Namespace::new()?, Namespace::new()?];
    let [a, b] = &pair;
    a.ip(&format!("link add up0 type veth peer name up0 netns {}", b.holder.0.id()))?;
    for (namespace, address) in pair.iter().zip(ADDRESSES) {
        namespace.ip("link set lo up")?;
        namespace.ip(&format!("address add {address}/24 dev up0"))?;
        namespace.ip("link set up0 up")?;
    }
    Ok(pair)
}

/// Both daemons of a machine, in a folder of their own.
struct Machine {
    cvland: Process,
    ctrl: Process,
    folder: tempfile::TempDir,
}

impl Machine {
    fn start(bench: &Bench, at: &Namespace, token: &str) -> anyhow::Result<Self> {
        let folder = bench.folder()?;
        let file = |name: &str| folder.path().join(name);
        let mut cvland = Command::new(program("cvland")?);
        cvland.env("CVLAN_LOG", "error").arg("--socket").arg(file("cvland.sock"));
        cvland.arg("--state-dir").arg(file("cvland"));
        let mut ctrl = Self::ctrl(file("ctrl"), file("ctrl.sock"), &[])?;
        ctrl.arg("--cvland-socket").arg(file("cvland.sock")).args(["--token", token]);
        let cvland = at.inside(|| Process::start(&mut cvland))?;
        let ctrl = at.inside(|| Process::start(&mut ctrl))?;
        Ok(Self { cvland, ctrl, folder })
    }

    fn ctrl(state: PathBuf, socket: PathBuf, verb: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program("cvlan-ctrl")?);
        command.env("CVLAN_LOG", "error").args(verb);
        command.arg("--state-dir").arg(state).arg("--ctrl-socket").arg(socket);
        Ok(command)
    }

    /// Its status, once something holds.
    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let end = Instant::now() + START;
        let path = self.folder.path();
        loop {
            let mut status = Self::ctrl(path.join("ctrl"), path.join("ctrl.sock"), &["status", "-o", "json"])?;
            let output = status.output().context("cvlan-ctrl status")?;
            let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if holds(&said) {
                return Ok(said);
            }
            if Instant::now() > end {
                bail!("not within {START:?}: {what}: {said} {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_namespaces_see_each_other_and_nothing_else() {
        let [a, b] = match wired() {
            Err(error) if error.is::<Skipped>() => return eprintln!("SKIPPED: {error:#}"),
            result => result.unwrap(),
        };
        let here = a.inside(|| Ok(UdpSocket::bind((ADDRESSES[0], 0))?)).unwrap();
        here.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = here.local_addr().unwrap();
        assert!(UdpSocket::bind(to).is_err(), "not an address of this machine");
        b.inside(|| Ok(UdpSocket::bind((ADDRESSES[1], 0))?.send_to(b"hello", to)?)).unwrap();
        let mut said = [0; 8];
        let (n, from) = here.recv_from(&mut said).unwrap();
        assert_eq!((&said[..n], from.ip().to_string().as_str()), (b"hello".as_slice(), ADDRESSES[1]));
    }
}

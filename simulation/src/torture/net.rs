//! A network of its own: a namespace for each member, cables to a bridge in another one, where the driver is.
//!
//! ```text
//!  cvtPID-m1 ─┐
//!  cvtPID-m2 ─┼─ bridge in cvtPID-hub: 198.18.0.254, the driver        members: 198.18.0.1 … 3
//!  cvtPID-m3 ─┘
//! ```
//! 198.18.0.0/15 is set aside for such tests (RFC 2544). Nothing of it is seen from the machine's own namespace; what
//! is removed at the end is removed by the names that were made.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

/// The members' door to each other.
pub const CLUSTER_PORT: u16 = 8445;

/// The driver.
pub const HUB: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 254);

/// Members.
pub const MEMBERS: usize = 3;

/// Runs a program; what it says is the error.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn nft(namespace: &str, rules: &str) -> anyhow::Result<()> {
    let mut nft = Command::new("ip");
    nft.args(["netns", "exec", namespace, "nft", "-f", "-"]).stdin(Stdio::piped());
    let mut nft = nft.spawn().context("nft")?;
    let mut stdin = nft.stdin.take().context("nft has no stdin")?;
    stdin.write_all(rules.as_bytes())?;
    drop(stdin);
    if !nft.wait()?.success() {
        bail!("nft refuses: {rules}");
    }
    Ok(())
}

/// Which way a cut holds, as the member sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both.
    Both,
    /// What it sends is lost.
    Out,
    /// What is sent to it is lost.
    In,
}

/// The names.
#[derive(Clone, Debug)]
pub struct Net {
    id: String,
}

impl Net {
    /// Names that begin with `id`; nothing is made yet.
    pub fn named(id: &str) -> Self {
        Self { id: id.to_owned() }
    }

    /// The namespace in which the driver runs.
    pub fn hub(&self) -> String {
        format!("{}-hub", self.id)
    }

    /// The namespace of member `at`, from 0.
    pub fn of(&self, at: usize) -> String {
        format!("{}-m{}", self.id, at + 1)
    }

    /// Where member `at` listens.
    pub fn address(at: usize, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, at as u8 + 1], port))
    }

    fn all(&self) -> Vec<String> {
        (0..MEMBERS).map(|at| self.of(at)).chain([self.hub()]).collect()
    }

    /// An error where it is not allowed to make a namespace.
    pub fn allowed(&self) -> anyhow::Result<()> {
        run("ip", &["netns", "add", &self.hub()])?;
        run("ip", &["netns", "delete", &self.hub()]).map(drop)
    }

    /// Makes it all.
    pub fn make(&self) -> anyhow::Result<()> {
        for ns in self.all() {
            run("ip", &["netns", "add", &ns])?;
            run("ip", &["-n", &ns, "link", "set", "lo", "up"])?;
        }
        let hub = self.hub();
        run("ip", &["-n", &hub, "link", "add", "hub", "type", "bridge"])?;
        run("ip", &["-n", &hub, "address", "add", &format!("{HUB}/24"), "dev", "hub"])?;
        run("ip", &["-n", &hub, "link", "set", "hub", "up"])?;
        for at in 0..MEMBERS {
            let (ns, end, ip) = (self.of(at), format!("m{}", at + 1), Self::address(at, 0).ip());
            run("ip", &["link", "add", &end, "netns", &hub, "type", "veth", "peer", "name", "eth0", "netns", &ns])?;
            run("ip", &["-n", &hub, "link", "set", &end, "master", "hub"])?;
            run("ip", &["-n", &hub, "link", "set", &end, "up"])?;
            run("ip", &["-n", &ns, "address", "add", &format!("{ip}/24"), "dev", "eth0"])?;
            run("ip", &["-n", &ns, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// Ends what still runs in it, and removes it.
    pub fn remove(&self) {
        for ns in self.all() {
            let pids = run("ip", &["netns", "pids", &ns]).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
            if let Err(error) = run("ip", &["netns", "delete", &ns]) {
                eprintln!("{error:#}");
            }
        }
    }

    /// Cuts a member's cluster traffic: all of it or that with one other, in one `way` or both, `percent` of the packets.
    pub fn cut(&self, at: usize, other: Option<usize>, way: Way, percent: u32) -> anyhow::Result<()> {
        let some = if percent < 100 { format!("numgen random mod 100 < {percent} ") } else { String::new() };
        let mut rules = "table inet cut {\n".to_owned();
        for (chain, address, lost) in [("output", "daddr", way != Way::In), ("input", "saddr", way != Way::Out)] {
            writeln!(rules, "chain {chain} {{ type filter hook {chain} priority 0;")?;
            let with = other.map(|other| format!("ip {address} {} ", Self::address(other, 0).ip())).unwrap_or_default();
            for port in ["dport", "sport"].iter().filter(|_| lost) {
                writeln!(rules, "{with}tcp {port} {CLUSTER_PORT} {some}drop")?;
            }
            rules.push_str("}\n");
        }
        rules.push_str("}\n");
        nft(&self.of(at), &rules)
    }

    /// Sends the members' connections to each other through the hub: from whom, to whom, to which port. What goes directly
    /// is refused, so that connections that are open break.
    pub fn redirect(&self, ways: &[(usize, usize, u16)]) -> anyhow::Result<()> {
        for at in 0..MEMBERS {
            let (mut send, mut refuse) = (String::new(), String::new());
            for (_, to, port) in ways.iter().filter(|(from, ..)| *from == at) {
                let ip = Self::address(*to, 0).ip();
                writeln!(send, "ip daddr {ip} tcp dport {CLUSTER_PORT} dnat to {HUB}:{port}")?;
                for end in ["dport", "sport"] {
                    writeln!(refuse, "ip daddr {ip} tcp {end} {CLUSTER_PORT} reject with tcp reset")?;
                }
            }
            let rules = format!(
                "table ip slow {{\nchain send {{ type nat hook output priority -100;\n{send}}}\nchain refuse {{ type filter \
                 hook output priority 0;\n{refuse}}}\n}}\n"
            );
            nft(&self.of(at), &rules)?;
        }
        Ok(())
    }

    /// Undoes every cut, and every way through the hub.
    pub fn heal(&self) -> anyhow::Result<()> {
        for at in 0..MEMBERS {
            run("ip", &["netns", "exec", &self.of(at), "nft", "flush", "ruleset"])?;
        }
        Ok(())
    }
}

//! The three controllers as processes, and what an operator asks of them.

use super::load::Doors;
use super::net::{CLUSTER_PORT, MEMBERS, Net, run};
use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Whatever the cluster is to come to, it must within this.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(20);
/// A stop takes at most 10 s.
const STOP: Duration = Duration::from_secs(15);
/// Bytes of a member's disk, where it has one of its own.
const DISK_BYTES: u64 = 4 << 30;
const METRICS_PORT: u16 = 9443;

/// The place of a member; who is there may change.
struct Slot {
    name: String,
    process: Option<Child>,
    /// Its disk, or a folder in the place of one.
    disk: PathBuf,
}

/// See the module.
pub struct Members {
    net: Net,
    program: PathBuf,
    work: PathBuf,
    slots: Vec<Slot>,
    /// Members that there ever were.
    named: usize,
    /// Each has a disk of its own, that can be full.
    pub disks: bool,
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in self.slots.iter_mut().filter_map(|slot| slot.process.as_mut()) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Name and role of each in a list of members.
fn roles(list: &Value) -> impl Iterator<Item = (&str, &str)> {
    list.get("items").and_then(Value::as_array).into_iter().flatten().map(|member| {
        let text = |key: &str| member.get(key).and_then(Value::as_str).unwrap_or_default();
        (text("name"), text("role"))
    })
}

impl Members {
    /// Nobody runs yet. `disks`: each gets a file system of its own.
    pub fn new(net: Net, work: &Path, disks: bool) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("cvlan-api");
        if !program.exists() {
            bail!("{} is missing: cargo build -p cvlan-api --bins", program.display());
        }
        let mut members = Self { net, program, work: work.to_owned(), slots: Vec::new(), named: 1, disks };
        for at in 0..MEMBERS {
            let disk = work.join(format!("m{}", at + 1));
            fs::create_dir(&disk)?;
            members.slots.push(Slot { name: String::new(), process: None, disk });
        }
        if disks {
            members.disks_make()?;
        }
        Ok(members)
    }

    /// In this process's own mount namespace (`ip netns exec` makes one): with its last process they are gone.
    fn disks_make(&mut self) -> anyhow::Result<()> {
        for (slot, n) in self.slots.iter().zip(1..) {
            let image = self.work.join(format!("m{n}.img"));
            File::create_new(&image)?.set_len(DISK_BYTES)?;
            let (image, disk) = (image.display().to_string(), slot.disk.display().to_string());
            run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1", &image])?;
            if let Err(error) = run("mount", &["-o", "loop", &image, &disk]) {
                eprintln!("SKIPPED: full disks: {error:#}");
                self.disks = false;
                return Ok(());
            }
        }
        Ok(())
    }

    fn slot(&self, at: usize) -> anyhow::Result<&Slot> {
        self.slots.get(at).context("no such member")
    }

    fn slot_mut(&mut self, at: usize) -> anyhow::Result<&mut Slot> {
        self.slots.get_mut(at).context("no such member")
    }

    /// Its name.
    pub fn name(&self, at: usize) -> &str {
        self.slots.get(at).map_or("", |slot| &slot.name)
    }

    /// Its data folder.
    pub fn data(&self, at: usize) -> anyhow::Result<PathBuf> {
        Ok(self.slot(at)?.disk.join("data"))
    }

    /// The first superadmin's, which the founder prints once it is ready.
    async fn password(&self) -> anyhow::Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(self.work.join("m1.out"))?;
            let line = text.lines().find_map(|line| line.trim().strip_prefix("superadmin"));
            if let Some(password) = line.and_then(|rest| rest.split_whitespace().nth(1)) {
                return Ok(password.to_owned());
            }
            if Instant::now() > end {
                bail!("the founder prints no password: {text}");
            }
            sleep(LOOK).await;
        }
    }

    /// Starts the process of a place; its folder says who it is, or a token.
    pub fn start(&mut self, at: usize, token: Option<&str>) -> anyhow::Result<()> {
        let said =
            |what: &str| File::options().create(true).append(true).open(self.work.join(format!("m{}.{what}", at + 1)));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.net.of(at)]).arg(&self.program).arg("--data-dir").arg(self.data(at)?);
        for (flag, port) in [("", 8443), ("node-", 8444), ("cluster-", CLUSTER_PORT), ("metrics-", METRICS_PORT)] {
            command.arg(format!("--{flag}listen")).arg(Net::address(at, port).to_string());
        }
        command.env("CVLAN_JOIN_TOKEN", token.unwrap_or_default());
        let child = command.stdin(Stdio::null()).stdout(said("out")?).stderr(said("log")?).spawn().context("ip")?;
        self.slot_mut(at)?.process = Some(child);
        Ok(())
    }

    fn signal(&mut self, at: usize, signal: Signal) -> anyhow::Result<()> {
        let child = self.slot_mut(at)?.process.as_ref().context("it does not run")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// kill -9; it is gone afterwards.
    pub fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        self.signal(at, Signal::KILL)?;
        if let Some(mut child) = self.slot_mut(at)?.process.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// SIGSTOP.
    pub fn freeze(&mut self, at: usize) -> anyhow::Result<()> {
        self.signal(at, Signal::STOP)
    }

    /// Goes on after [`Members::freeze`].
    pub fn thaw(&mut self, at: usize) -> anyhow::Result<()> {
        self.signal(at, Signal::CONT)
    }

    /// SIGTERM.
    pub fn terminate(&mut self, at: usize) -> anyhow::Result<()> {
        self.signal(at, Signal::TERM)
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self, at: usize) -> anyhow::Result<ExitStatus> {
        let end = Instant::now() + STOP;
        loop {
            let slot = self.slot_mut(at)?;
            if let Some(status) = slot.process.as_mut().context("it does not run")?.try_wait()? {
                slot.process = None;
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} does not stop in {STOP:?}", slot.name);
            }
            sleep(LOOK).await;
        }
    }

    /// Nobody ends unasked.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        for slot in &mut self.slots {
            if let Some(child) = &mut slot.process
                && let Some(status) = child.try_wait()?
            {
                slot.process = None;
                bail!("{} ended by itself: {status}", slot.name);
            }
        }
        Ok(())
    }

    /// Waits until /readyz says that it is.
    pub async fn ready(&mut self, at: usize) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.alive()?;
            let said = match timeout(Duration::from_secs(5), readyz(at)).await {
                Ok(Ok(text)) if text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200") => return Ok(()),
                Ok(Ok(text)) => text.lines().last().unwrap_or_default().to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() > end {
                bail!("{} is not ready in {PATIENCE:?}: {said}", self.name(at));
            }
            sleep(LOOK).await;
        }
    }

    /// One founds, two join, three vote. The doors' session is the superadmin's from then on.
    pub async fn found(&mut self) -> anyhow::Result<Doors> {
        self.start(0, None)?;
        self.slot_mut(0)?.name = "founder".to_owned();
        self.ready(0).await?;
        let password = self.password().await?;
        let doors = Doors::open(&self.data(0)?.join("ca.pem"), &password).await?;
        for at in 1..MEMBERS {
            self.join(&doors, at, 0).await?;
        }
        self.three_vote(&doors).await?;
        Ok(doors)
    }

    /// A new member in an empty place, admitted through member `through`.
    pub async fn join(&mut self, doors: &Doors, at: usize, through: usize) -> anyhow::Result<()> {
        self.named += 1;
        let name = format!("m{}", self.named);
        let body = json!({"name": name}).to_string();
        let made = self.insist(doors, through, "POST", "/cluster/members", &body).await?;
        let made: Value = serde_json::from_slice(&made)?;
        let token = made.get("joinToken").and_then(Value::as_str).context("no token")?;
        self.slot_mut(at)?.name = name;
        self.start(at, Some(token))?;
        self.ready(at).await
    }

    /// The disk of a place, wiped; the member that was there, removed through another one.
    pub async fn wipe(&mut self, doors: &Doors, at: usize, through: usize) -> anyhow::Result<()> {
        self.kill(at)?;
        fs::remove_dir_all(self.data(at)?)?;
        let path = format!("/cluster/members/{}", self.name(at));
        self.insist(doors, through, "DELETE", &path, "").await?;
        Ok(())
    }

    /// Asks until it is done: 503 and a lost leader pass. What was done before counts, too: 404 of who is removed.
    async fn insist(&self, doors: &Doors, at: usize, method: &str, path: &str, body: &str) -> anyhow::Result<Vec<u8>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = doors.ask(at, method, path, body).await;
            let said = match answer {
                Ok(answer) if answer.status == 404 && method == "DELETE" => return Ok(Vec::new()),
                Ok(answer) if answer.status < 300 => return Ok(answer.body),
                Ok(answer) => format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body)),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > end {
                bail!("{method} {path} is not done in {PATIENCE:?}: {said}");
            }
            sleep(LOOK * 10).await;
        }
    }

    /// Who leads, by the word of the leader itself: it is asked through whichever door answers.
    pub async fn leader(&self, doors: &Doors) -> anyhow::Result<usize> {
        let end = Instant::now() + PATIENCE;
        let mut said = anyhow!("nobody runs");
        while Instant::now() < end {
            for at in 0..MEMBERS {
                if self.slot(at)?.process.is_none() {
                    continue;
                }
                match doors.members(at).await {
                    Ok(list) => {
                        let leader = roles(&list).find(|(_, role)| *role == "leader");
                        let found = leader.and_then(|(name, _)| self.slots.iter().position(|slot| slot.name == name));
                        if let Some(found) = found {
                            return Ok(found);
                        }
                    }
                    Err(error) => said = error,
                }
            }
            sleep(LOOK).await;
        }
        Err(said.context(format!("nobody leads in {PATIENCE:?}")))
    }

    /// Hands over to a member.
    pub async fn transfer(&self, doors: &Doors, to: usize) -> anyhow::Result<()> {
        let body = json!({"to": self.name(to)}).to_string();
        self.insist(doors, to, "POST", "/cluster/transfer-leader", &body).await.map(drop)
    }

    /// Waits until all three vote, and every member says so.
    pub async fn three_vote(&mut self, doors: &Doors) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut at = 0;
        while at < MEMBERS {
            self.alive()?;
            let said = match doors.members(at).await {
                Ok(list) => {
                    let items = list.get("items").and_then(Value::as_array);
                    let votes = items.into_iter().flatten().filter(|m| m.get("voter") == Some(&Value::Bool(true)));
                    if votes.count() == MEMBERS && roles(&list).any(|(_, role)| role == "leader") {
                        at += 1;
                        continue;
                    }
                    list.to_string()
                }
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > end {
                bail!("three do not vote in {PATIENCE:?}, says {}: {said}", self.name(at));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Leaves no room on its disk.
    pub fn fill(&self, at: usize) -> anyhow::Result<()> {
        let disk = &self.slot(at)?.disk;
        let filler = File::create(disk.join("filler"))?;
        let (mut from, mut piece) = (0, DISK_BYTES);
        while piece >= 4096 {
            match rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), from, piece) {
                Ok(()) => from += piece,
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error).context("filling a disk"),
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub fn room(&self, at: usize) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.slot(at)?.disk.join("filler"))?)
    }
}

async fn readyz(at: usize) -> anyhow::Result<String> {
    let mut tcp = TcpStream::connect(Net::address(at, METRICS_PORT)).await?;
    tcp.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    tcp.read_to_string(&mut text).await?;
    Ok(text)
}

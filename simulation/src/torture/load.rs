//! Writers and readers from the outside, through all doors, and the ledger of what they were told.
//!
//! ```text
//!  writers, each a tenant and a door of its own ─┐                ┌─ acknowledged, with its seq
//!  rivals, one a door, all for the same names ───┼─► door ─ TLS ──┼─ refused: nothing was done
//!  callers of a fail-over, fresh every few ms ───┘                └─ unknown
//!  readers, one a door: what was acknowledged before they asked must be there
//! ```
//! A write is known in the log by its request id, `tw` + its caller + `-` + its number.

use super::net::{MEMBERS, Net};
use crate::https::{Answer, Connection, Target};
use crate::lock;
use anyhow::{Context, bail};
use base64::Engine as _;
use cvlan_core::grammar::Rng;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// An answer is waited for so long; then the outcome is unknown.
const ANSWER: Duration = Duration::from_secs(10);
/// A connection is waited for so long.
const CONNECT: Duration = Duration::from_secs(3);
/// Between two writes of one caller: from … to, ms.
const PACE_MS: (u64, u64) = (4, 20);
/// After a write that was not acknowledged.
const REST: Duration = Duration::from_millis(50);
/// Sessions are renewed so often; an access token lives for 15 minutes.
const RENEW: Duration = Duration::from_secs(300);
/// Of a large node.
const TAGS: usize = 32;
/// The tenant in which names are fought for.
const SHARED: &str = "shared";

/// The three REST doors and a session.
pub struct Doors {
    targets: Vec<Target>,
    bearer: Mutex<String>,
    refresh: Mutex<String>,
}

impl Doors {
    /// Logs in at the first.
    pub async fn open(ca: &Path, password: &str) -> anyhow::Result<Self> {
        let targets = (0..MEMBERS).map(|at| Target::new(Net::address(at, 8443), ca)).collect::<anyhow::Result<_>>()?;
        let doors = Self { targets, bearer: Mutex::default(), refresh: Mutex::default() };
        let body = json!({"name": "admin", "password": password}).to_string();
        doors.session(&doors.ask(0, "POST", "/auth/login", &body).await?.success()?)?;
        Ok(doors)
    }

    fn session(&self, answer: &[u8]) -> anyhow::Result<()> {
        let answer: Value = serde_json::from_slice(answer)?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        *lock(&self.refresh) = text("refreshToken").context("no refreshToken")?;
        let token = text("accessToken").context("no accessToken")?;
        *lock(&self.bearer) = format!("Authorization: Bearer {token}\r\n");
        Ok(())
    }

    /// A connection of its own for one request.
    pub async fn ask(&self, at: usize, method: &str, path: &str, body: &str) -> anyhow::Result<Answer> {
        let (target, bearer) = (self.targets.get(at).context("no such door")?, lock(&self.bearer).clone());
        let path = format!("/api/v1{path}");
        let asked = async { target.connect().await?.ask(method, &path, &bearer, body).await };
        timeout(ANSWER, asked).await.context("no answer in time")?
    }

    /// The members, as the one that leads sees them now; an error where nobody does.
    pub async fn members(&self, at: usize) -> anyhow::Result<Value> {
        let asked = self.ask(at, "GET", "/cluster/members?consistency=linearizable", "");
        let answer = timeout(CONNECT, asked).await.context("no answer in time")??;
        Ok(serde_json::from_slice(&answer.success()?)?)
    }

    async fn renew(&self) -> anyhow::Result<()> {
        let body = json!({"refreshToken": *lock(&self.refresh)}).to_string();
        let mut last = None;
        for at in 0..MEMBERS {
            match self.ask(at, "POST", "/auth/refresh", &body).await.and_then(Answer::success) {
                Ok(answer) => return self.session(&answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no door")?)
    }
}

/// What a caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, as the event with this number; or without it, where the member was not there yet.
    Acked(Option<u64>),
    /// Not done.
    Refused,
    /// Not done: the name is taken.
    Taken,
    /// Nobody knows.
    Unknown,
}

/// A write as its caller saw it; times in µs since the load began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Whose.
    pub caller: u32,
    /// The caller's own number.
    pub n: u32,
    /// The name that it was about, where others want it, too.
    pub rival: Option<u64>,
    /// Before its first byte was sent.
    pub sent_us: u64,
    /// After the answer was read, or given up.
    pub done_us: u64,
    /// See there.
    pub outcome: Outcome,
}

/// Someone who writes: one connection, one write at a time.
pub struct Caller {
    id: u32,
    n: u32,
    door: usize,
    connection: Option<Connection>,
}

/// What is written.
struct Wish {
    method: &'static str,
    path: String,
    body: String,
    rival: Option<u64>,
}

/// See the module.
pub struct Load {
    /// The way in.
    pub doors: Arc<Doors>,
    begin: Instant,
    callers: AtomicU32,
    ledger: Mutex<Vec<Write>>,
    violations: Mutex<Vec<String>>,
    /// The greatest number that was acknowledged.
    acked_seq: AtomicU64,
    acks: AtomicU64,
    /// By door.
    acks_by: [AtomicU64; MEMBERS],
    last_us: AtomicU64,
    longest_us: AtomicU64,
    /// Names of nodes that stay, with their tenants.
    stays: Mutex<Vec<(String, String)>>,
    rival: AtomicU64,
    /// A bit for each door that said `disk_full`.
    full: AtomicU32,
    /// Linearizable reads that were answered.
    pub reads: AtomicU64,
    stop: AtomicBool,
}

fn name_of(caller: u32, n: u32) -> String {
    format!("n{caller}-{n}")
}

/// The body of a node; `large`: about 2 KiB more, so that the log comes to need room while the torture lasts.
fn node(name: &str, caller: u32, n: u32, large: bool) -> String {
    let mut key = [0x5a; 32];
    let id = (u64::from(caller) << 32 | u64::from(n)).to_le_bytes();
    key.iter_mut().zip(id).for_each(|(to, from)| *to = from);
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    let tags: Vec<String> = (0..if large { TAGS } else { 0 }).map(|tag| format!("{tag:0>60}")).collect();
    json!({"cvlan": "net", "name": name, "wgPublicKey": key, "tags": tags}).to_string()
}

impl Load {
    /// Nobody writes yet.
    pub fn new(doors: Doors) -> Arc<Self> {
        Arc::new(Self {
            doors: Arc::new(doors),
            begin: Instant::now(),
            callers: AtomicU32::new(1),
            ledger: Mutex::default(),
            violations: Mutex::default(),
            acked_seq: AtomicU64::new(0),
            acks: AtomicU64::new(0),
            acks_by: Default::default(),
            last_us: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            stays: Mutex::default(),
            rival: AtomicU64::new(1),
            full: AtomicU32::new(0),
            reads: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Makes a tenant with a CVLAN.
    pub async fn tenant(&self, name: &str) -> anyhow::Result<()> {
        self.doors.ask(0, "POST", "/tenants", &json!({"slug": name}).to_string()).await?.success()?;
        let net = json!({"name": "net", "ipv4Cidr": "10.0.0.0/8"}).to_string();
        self.doors.ask(0, "POST", &format!("/tenants/{name}/cvlans"), &net).await?.success()?;
        Ok(())
    }

    /// Starts `writers` writers, and a rival and a reader for each door.
    pub async fn start(self: &Arc<Self>, writers: usize, seed: u64) -> anyhow::Result<Vec<JoinHandle<()>>> {
        self.tenant(SHARED).await?;
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let tenant = format!("tenant{writer}");
            self.tenant(&tenant).await?;
            tasks.push(tokio::spawn(self.clone().writer(tenant, writer % MEMBERS, Rng(seed ^ writer as u64))));
        }
        for door in 0..MEMBERS {
            tasks.push(tokio::spawn(self.clone().rival(door, Rng(seed ^ (door as u64) << 32))));
            tasks.push(tokio::spawn(self.clone().reader(door, Rng(seed ^ (door as u64) << 40))));
        }
        tasks.push(tokio::spawn(self.clone().renewer()));
        Ok(tasks)
    }

    /// No further write.
    pub fn stop(&self) {
        self.stop.store(true, SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// µs since the load began.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// What was written so far.
    pub fn writes(&self) -> Vec<Write> {
        lock(&self.ledger).clone()
    }

    /// What no answer should have been.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    fn violated(&self, what: String) {
        eprintln!("VIOLATION: {what}");
        lock(&self.violations).push(what);
    }

    /// Writes acknowledged so far.
    pub fn acks(&self) -> u64 {
        self.acks.load(SeqCst)
    }

    /// Those through one door.
    pub fn acks_by(&self, door: usize) -> u64 {
        self.acks_by.get(door).map_or(0, |acks| acks.load(SeqCst))
    }

    /// A door has said `disk_full` since this was asked before.
    pub fn full(&self, door: usize) -> bool {
        self.full.fetch_and(!(1 << door), SeqCst) & (1 << door) != 0
    }

    /// A pause is measured from now on.
    pub fn pause_begin(&self) {
        self.last_us.store(self.now_us(), SeqCst);
        self.longest_us.store(0, SeqCst);
    }

    /// The longest time without an acknowledged write since then.
    pub fn pause(&self) -> Duration {
        let open = self.now_us().saturating_sub(self.last_us.load(SeqCst));
        Duration::from_micros(self.longest_us.load(SeqCst).max(open))
    }

    fn acked(&self, door: usize, seq: Option<u64>) {
        let now_us = self.now_us();
        let last_us = self.last_us.swap(now_us, SeqCst);
        self.longest_us.fetch_max(now_us.saturating_sub(last_us), SeqCst);
        self.acked_seq.fetch_max(seq.unwrap_or(0), SeqCst);
        self.acks.fetch_add(1, SeqCst);
        if let Some(acks) = self.acks_by.get(door) {
            acks.fetch_add(1, SeqCst);
        }
    }

    /// Someone new who writes through a door.
    pub fn caller(&self, door: usize) -> Caller {
        Caller { id: self.callers.fetch_add(1, SeqCst), n: 0, door, connection: None }
    }

    /// Makes a connection where there is none; false where none can be made.
    pub async fn connected(&self, caller: &mut Caller) -> bool {
        if caller.connection.is_none()
            && let Some(target) = self.doors.targets.get(caller.door)
            && let Ok(Ok(connection)) = timeout(CONNECT, target.connect()).await
        {
            caller.connection = Some(connection);
        }
        caller.connection.is_some()
    }

    /// A node in a tenant, that stays; its name is the caller's and its number.
    pub async fn create_to_stay(&self, caller: &mut Caller, tenant: &str, large: bool) -> Write {
        let write = self.create(caller, tenant, large).await;
        if let Outcome::Acked(_) = write.outcome {
            self.stays(tenant, name_of(write.caller, write.n));
        }
        write
    }

    /// A node in a tenant.
    async fn create(&self, caller: &mut Caller, tenant: &str, large: bool) -> Write {
        let (id, n) = (caller.id, caller.n + 1);
        let body = node(&name_of(id, n), id, n, large);
        self.write(caller, Wish { method: "POST", path: format!("/tenants/{tenant}/nodes"), body, rival: None }).await
    }

    /// Writes, and notes what it came to; without a connection nothing is sent.
    async fn write(&self, caller: &mut Caller, wish: Wish) -> Write {
        caller.n += 1;
        let sent_us = self.now_us();
        let note = |outcome| Write {
            caller: caller.id,
            n: caller.n,
            rival: wish.rival,
            sent_us,
            done_us: self.now_us(),
            outcome,
        };
        let Some(mut connection) = caller.connection.take() else { return note(Outcome::Refused) };
        let headers = format!("{}X-Request-Id: tw{}-{}\r\n", lock(&self.doors.bearer), caller.id, caller.n);
        let path = format!("/api/v1{}", wish.path);
        let asked = timeout(ANSWER, connection.ask(wish.method, &path, &headers, &wish.body)).await;
        let write = note(match &asked {
            Ok(Ok(answer)) => self.told(caller.door, answer, &wish),
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        });
        if let Ok(Ok(answer)) = asked
            && answer.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"))
        {
            caller.connection = Some(connection);
        }
        if let Outcome::Acked(seq) = write.outcome {
            self.acked(caller.door, seq);
        }
        lock(&self.ledger).push(write);
        write
    }

    fn told(&self, door: usize, answer: &Answer, wish: &Wish) -> Outcome {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
        match (answer.status, code) {
            (200..300, _) => {
                let seq = answer.header("cvlan-checkpoint").and_then(|c| c.split_once('.')?.1.parse().ok());
                if seq.is_none() {
                    self.violated(format!("an acknowledgement names no event: {}", answer.head));
                }
                Outcome::Acked(seq)
            }
            // It is done, says this answer, but not seen here yet.
            (503, "view_behind") => Outcome::Acked(None),
            (503, "outcome_unknown" | "stopping") => Outcome::Unknown,
            (503, "disk_full") => {
                self.full.fetch_or(1 << door, SeqCst);
                Outcome::Refused
            }
            (503, "no_leader" | "busy" | "member_removed" | "member_not_allowed") => Outcome::Refused,
            (409, _) if wish.rival.is_some() => Outcome::Taken,
            // A door whose member is behind knows neither the node nor the tenant yet.
            (404, _) => Outcome::Refused,
            (status, _) => {
                self.violated(format!("{} {} {}: {status} {body}", wish.method, wish.path, wish.body));
                Outcome::Unknown
            }
        }
    }

    async fn pace(&self, rng: &mut Rng, write: Option<&Write>) {
        match write.map(|write| write.outcome) {
            Some(Outcome::Acked(_) | Outcome::Taken) => {
                sleep(Duration::from_millis(PACE_MS.0 + rng.below(PACE_MS.1 - PACE_MS.0))).await;
            }
            _ => sleep(REST).await,
        }
    }

    /// Creates nodes; every fourth is deleted later.
    async fn writer(self: Arc<Self>, tenant: String, door: usize, mut rng: Rng) {
        let mut caller = self.caller(door);
        let mut doomed: Option<String> = None;
        while !self.stopped() {
            if !self.connected(&mut caller).await {
                self.pace(&mut rng, None).await;
                continue;
            }
            let write = match (caller.n + 1) % 4 {
                0 => {
                    let write = self.create(&mut caller, &tenant, true).await;
                    if let Outcome::Acked(_) = write.outcome {
                        doomed = Some(name_of(caller.id, write.n));
                    }
                    write
                }
                3 if doomed.is_some() => {
                    let path = format!("/tenants/{tenant}/nodes/{}", doomed.take().unwrap_or_default());
                    self.write(&mut caller, Wish { method: "DELETE", path, body: String::new(), rival: None }).await
                }
                _ => self.create_to_stay(&mut caller, &tenant, true).await,
            };
            self.pace(&mut rng, Some(&write)).await;
        }
    }

    /// Readers look for the newest few.
    fn stays(&self, tenant: &str, name: String) {
        let mut stays = lock(&self.stays);
        if stays.len() >= 64 {
            stays.remove(0);
        }
        stays.push((tenant.to_owned(), name));
    }

    /// Wants the same names as the other rivals.
    async fn rival(self: Arc<Self>, door: usize, mut rng: Rng) {
        let mut caller = self.caller(door);
        while !self.stopped() {
            if !self.connected(&mut caller).await {
                self.pace(&mut rng, None).await;
                continue;
            }
            let k = self.rival.load(SeqCst);
            let body = node(&format!("rival-{k}"), caller.id, caller.n + 1, false);
            let path = format!("/tenants/{SHARED}/nodes");
            let write = self.write(&mut caller, Wish { method: "POST", path, body, rival: Some(k) }).await;
            if let Outcome::Acked(_) | Outcome::Taken = write.outcome {
                self.rival.fetch_max(k + 1, SeqCst);
            }
            self.pace(&mut rng, Some(&write)).await;
        }
    }

    /// Whatever was acknowledged before it asks must be in the answer.
    async fn reader(self: Arc<Self>, door: usize, mut rng: Rng) {
        let mut connection: Option<Connection> = None;
        while !self.stopped() {
            sleep(Duration::from_millis(PACE_MS.0 + rng.below(PACE_MS.1))).await;
            // In this order: what is picked is acknowledged.
            let picked = rng.pick(lock(&self.stays).iter()).cloned();
            let at_least = self.acked_seq.load(SeqCst);
            let (Some((tenant, name)), Some(target)) = (picked, self.doors.targets.get(door)) else { continue };
            let path = format!("/api/v1/tenants/{tenant}/nodes/{name}?consistency=linearizable");
            let asked = async {
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => target.connect().await?,
                };
                let bearer = lock(&self.doors.bearer).clone();
                let answer = open.ask("GET", &path, &bearer, "").await?;
                connection = Some(open);
                anyhow::Ok(answer)
            };
            let Ok(Ok(answer)) = timeout(ANSWER, asked).await else { continue };
            let seen = answer.header("cvlan-checkpoint").and_then(|c| c.split_once('.')?.1.parse::<u64>().ok());
            match answer.status {
                200 if seen.is_some_and(|seen| seen >= at_least) => {
                    self.reads.fetch_add(1, SeqCst);
                }
                503 => sleep(REST).await,
                status => self.violated(format!(
                    "a linearizable read of {tenant}/{name} through door {}: {status}, has seen event {seen:?}, but event {at_least} was acknowledged before it asked",
                    door + 1
                )),
            }
        }
    }

    async fn renewer(self: Arc<Self>) {
        let mut renewed = Instant::now();
        while !self.stopped() {
            sleep(REST * 10).await;
            if renewed.elapsed() > RENEW && self.doors.renew().await.is_ok() {
                renewed = Instant::now();
            }
        }
    }

    /// Waits until a write went through every door since now.
    pub async fn progress(&self, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        for door in 0..MEMBERS {
            // One may have been on its way already.
            let wanted = self.acks_by(door) + 5;
            while self.acks_by(door) < wanted {
                if Instant::now() > end {
                    bail!("no write is acknowledged through door {} in {limit:?}", door + 1);
                }
                sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }
}

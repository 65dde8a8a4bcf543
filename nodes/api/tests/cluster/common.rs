//! Members as processes, each with a folder and ports of its own.

use crate::machine::Door;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A cluster must be where it is wanted within this.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn free_ports() -> [u16; 4] {
    let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
    ports.try_into().unwrap()
}

pub struct Member {
    child: Option<Child>,
    pub dir: PathBuf,
    pub ports: [u16; 4],
    pub lines: Vec<String>,
    flags: Vec<String>,
}

impl Door for Member {
    fn node_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[1]))
    }

    fn ca_pem(&self) -> String {
        std::fs::read_to_string(self.dir.join("ca.pem")).unwrap()
    }
}

impl Member {
    pub fn command(dir: &Path, ports: [u16; 4], token: Option<&str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvlan-api"));
        command.env_clear().env("RUST_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::piped());
        // No test waits for it, but for the one that says so.
        command.env("CVLAN_PRESENCE_EXPIRY", "3600").arg("--data-dir").arg(dir);
        let flags = ["--listen", "--node-listen", "--metrics-listen", "--cluster-listen"];
        for (flag, port) in flags.iter().zip(ports) {
            command.arg(flag).arg(format!("127.0.0.1:{port}"));
        }
        if let Some(token) = token {
            command.env("CVLAN_JOIN_TOKEN", token);
        }
        command
    }

    /// Starts it and reads what it announces.
    pub fn start(dir: PathBuf, ports: [u16; 4], token: Option<&str>) -> Self {
        Self::start_with(dir, ports, token, &[])
    }

    /// The same, with further flags.
    pub fn start_with(dir: PathBuf, ports: [u16; 4], token: Option<&str>, flags: &[&str]) -> Self {
        Self::begin(dir, ports, token, flags).unwrap_or_else(|lines| panic!("it ended: {lines:?}"))
    }

    fn begin(dir: PathBuf, ports: [u16; 4], token: Option<&str>, flags: &[&str]) -> Result<Self, Vec<String>> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut child = Self::command(&dir, ports, token).args(&flags).spawn().unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            lines.push(line.unwrap());
            if lines.last().is_some_and(|l| l.contains("  metrics ")) {
                return Ok(Self { child: Some(child), dir, ports, lines, flags });
            }
        }
        lines.push(format!("{:?}", child.wait()));
        Err(lines)
    }

    /// Stops it in order and starts it with other flags, on the same ports: somebody's connection may have one of them for a
    /// moment.
    pub async fn restart(&mut self, flags: &[&str]) {
        self.terminate();
        self.ended().await;
        let end = Instant::now() + PATIENCE;
        loop {
            match Self::begin(self.dir.clone(), self.ports, None, flags) {
                Ok(member) => return *self = member,
                Err(lines) => assert!(Instant::now() < end, "it does not start: {lines:?}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub fn again(&mut self) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        *self = Self::start_with(self.dir.clone(), self.ports, None, &flags);
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.as_ref().unwrap().id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < end, "it does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Members by the order in which they came: founder, m2, m3.
pub struct Cluster {
    pub members: Vec<Member>,
    pub http: Client,
    pub token: String,
    /// The newest that was seen anywhere.
    pub seen: String,
    _dir: TempDir,
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub checkpoint: String,
    pub body: Value,
}

impl Answer {
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.body["code"].as_str().unwrap_or_default()), (status, code), "{}", self.body);
        self
    }
}

impl Cluster {
    /// One member, and its superadmin's session.
    pub async fn founded(flags: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let founder = Member::start_with(dir.path().join("founder"), free_ports(), None, flags);
        let line = founder.lines.iter().find(|l| l.contains("superadmin")).unwrap();
        let password = line.split_whitespace().last().unwrap().to_owned();
        let pem = std::fs::read(founder.dir.join("ca.pem")).unwrap();
        let ca = reqwest::Certificate::from_pem(&pem).unwrap();
        let http = Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(20)).build().unwrap();
        let mut cluster = Self { members: vec![founder], http, token: String::new(), seen: String::new(), _dir: dir };
        let body = json!({"name": "admin", "password": password});
        let answer = cluster.ask(0, Method::POST, "/auth/login", Some(body)).await.unwrap().expect(200);
        cluster.token = answer.body["accessToken"].as_str().unwrap().to_owned();
        cluster
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self._dir.path().join(name)
    }

    /// A join token from any member.
    pub async fn admit(&mut self, at: usize, name: &str) -> String {
        let made = self.post(at, "/cluster/members", json!({"name": name})).await.expect(201);
        made.body["joinToken"].as_str().unwrap().to_owned()
    }

    /// Three that vote.
    pub async fn three() -> Self {
        Self::three_with(&[]).await
    }

    /// The same, each with further flags.
    pub async fn three_with(flags: &[&str]) -> Self {
        let mut cluster = Self::founded(flags).await;
        for name in ["m2", "m3"] {
            let token = cluster.admit(0, name).await;
            let member = Member::start_with(cluster.folder(name), free_ports(), Some(&token), flags);
            cluster.members.push(member);
        }
        cluster.until("three vote", |c| voters(c) == 3).await;
        cluster
    }

    /// Waits until the list of members, as any that runs tells it, is as it is wanted.
    pub async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.until_at(0..self.members.len(), what, holds).await
    }

    /// The same, as one of these tells it.
    pub async fn until_at(&self, at: std::ops::Range<usize>, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        let mut last = Value::Null;
        while Instant::now() < end {
            for at in at.clone().filter(|at| self.members[*at].runs()) {
                let Ok(answer) = self.ask(at, Method::GET, "/cluster/members", None).await else { continue };
                if answer.status == 200 && holds(&answer.body) {
                    return answer.body;
                }
                last = answer.body;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within {PATIENCE:?}: {what}: {last}");
    }

    /// Waits until every member that runs says that these nodes are online, and these are not.
    pub async fn until_online(&self, online: &[&str], offline: &[&str]) {
        let end = Instant::now() + PATIENCE;
        for at in (0..self.members.len()).filter(|at| self.members[*at].runs()) {
            for (name, wanted) in online.iter().map(|n| (n, true)).chain(offline.iter().map(|n| (n, false))) {
                loop {
                    let path = format!("/tenants/acme/nodes/{name}");
                    let answer = self.ask(at, Method::GET, &path, None).await.unwrap().expect(200);
                    if answer.body["online"] == wanted {
                        break;
                    }
                    assert!(Instant::now() < end, "member {at} does not say {wanted}: {}", answer.body);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// The place of the one that leads.
    pub async fn leader(&self) -> usize {
        let found = self.until("one leads", |c| roles(c).iter().any(|(_, r)| r == "leader")).await;
        let name = roles(&found).into_iter().find(|(_, role)| role == "leader").unwrap().0;
        ["founder", "m2", "m3"].iter().position(|n| *n == name).unwrap()
    }

    /// One request to one member.
    pub async fn ask(&self, at: usize, method: Method, path: &str, body: Option<Value>) -> reqwest::Result<Answer> {
        self.ask_fresh(at, method, path, body, "").await
    }

    pub async fn ask_fresh(
        &self,
        at: usize,
        method: Method,
        path: &str,
        body: Option<Value>,
        checkpoint: &str,
    ) -> reqwest::Result<Answer> {
        let url = format!("https://127.0.0.1:{}/api/v1{path}", self.members[at].ports[0]);
        let mut request = self.http.request(method, url).bearer_auth(&self.token).header("accept", "application/json");
        if !checkpoint.is_empty() {
            request = request.header("cvlan-checkpoint", checkpoint);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let header = response.headers().get("cvlan-checkpoint").map(|v| v.to_str().unwrap().to_owned());
        let (status, text) = (response.status().as_u16(), response.text().await?);
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, checkpoint: header.unwrap_or_default(), body })
    }

    /// POST under an `Idempotency-Key`; `true` = the answer was given before.
    pub async fn keyed(&self, at: usize, path: &str, key: &str, body: &Value) -> (bool, Answer) {
        let url = format!("https://127.0.0.1:{}/api/v1{path}", self.members[at].ports[0]);
        let request = self.http.post(url).bearer_auth(&self.token).header("idempotency-key", key).json(body);
        let response = request.send().await.unwrap();
        let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        let (replayed, checkpoint) = (header("idempotency-replayed"), header("cvlan-checkpoint").unwrap_or_default());
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        (replayed.as_deref() == Some("true"), Answer { status, checkpoint, body })
    }

    /// A write; its checkpoint is what later reads want to see.
    pub async fn post(&mut self, at: usize, path: &str, body: Value) -> Answer {
        let answer = self.ask(at, Method::POST, path, Some(body)).await.unwrap();
        if !answer.checkpoint.is_empty() {
            self.seen.clone_from(&answer.checkpoint);
        }
        answer
    }

    /// A read that sees what was seen.
    pub async fn get(&self, at: usize, path: &str) -> Answer {
        self.ask_fresh(at, Method::GET, path, None, &self.seen).await.unwrap()
    }
}

/// As an operator copies the keys of a member that runs, which may replace a file meanwhile: again, where one is gone.
pub fn keys_copy(dir: &Path, to: &Path) {
    let copied = || Command::new("cp").arg("-rT").arg(dir.join("keys")).arg(to).status().unwrap().success();
    assert!((0..20).any(|_| copied()));
}

/// Name and role of each member in the list.
pub fn roles(list: &Value) -> Vec<(String, String)> {
    let text = |m: &Value, key: &str| m[key].as_str().unwrap_or_default().to_owned();
    list["items"].as_array().into_iter().flatten().map(|m| (text(m, "name"), text(m, "role"))).collect()
}

/// How many vote.
pub fn voters(list: &Value) -> usize {
    list["items"].as_array().into_iter().flatten().filter(|m| m["voter"] == true).count()
}

//! A controller, people and machines to try it with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_api::server::{Options, Running, start};
use cvlan_core::id::{NodeId, Seq};
use cvlan_core::machine::Machine as _;
use cvlan_core::presence::transitions;
use cvlan_core::tenant::TenantCommand;
use cvlan_core::{Command, Meta, Rules, Wish};
use cvlan_raft::{Clock, FileDisk, NoTransport, SystemClock};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use x25519_dalek::{PublicKey, StaticSecret};

pub use crate::machine::{Door, Machine, Sync, http_client, random, tls_connect};

pub const PASSWORD: &str = "a password of some length";

pub fn options(dir: &Path) -> Options {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Options {
        data_dir: dir.to_path_buf(),
        listen: any,
        node_listen: any,
        metrics_listen: any,
        cluster_listen: any,
        advertise_cluster: Some("127.0.0.1:8445".into()),
        advertise_api: vec!["https://127.0.0.1:8443".into()],
        advertise_node: vec!["https://127.0.0.1:8444".into()],
        rate_limits: false,
        ..Options::default()
    }
}

/// A wall clock that is ahead.
struct Ahead(SystemClock, u64);

impl Clock for Ahead {
    fn wall_ms(&self) -> u64 {
        self.0.wall_ms() + self.1
    }

    fn monotonic_us(&self) -> u64 {
        self.0.monotonic_us()
    }
}

pub struct Controller {
    pub running: Running,
    pub dir: TempDir,
    pub password: String,
    http: Client,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn code(&self) -> String {
        let kind = self.headers.get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        assert_eq!(kind, "application/problem+json", "{} {}", self.status, self.text);
        let body = self.json();
        assert_eq!(body["status"], self.status, "{body}");
        assert!(body["detail"].as_str().is_some_and(|d| d.len() > 10), "says what to do: {body}");
        body["code"].as_str().unwrap().to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().unwrap()).unwrap_or_default()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text);
        self
    }
}

impl Door for Controller {
    fn node_address(&self) -> SocketAddr {
        self.running.node_address()
    }

    fn ca_pem(&self) -> String {
        self.running.ca_pem().to_owned()
    }
}

impl Controller {
    pub async fn new() -> Self {
        Self::with(options).await
    }

    pub async fn with(options: impl Fn(&Path) -> Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = start(options(dir.path())).await.unwrap();
        let password = running.password().unwrap().to_owned();
        let http = http_client(running.ca_pem());
        Self { running, dir, password, http }
    }

    /// On a folder that is there.
    pub async fn on(data: &Path, password: &str) -> Self {
        let running = start(options(data)).await.unwrap();
        let http = http_client(running.ca_pem());
        Self { running, dir: tempfile::tempdir().unwrap(), password: password.to_owned(), http }
    }

    /// Stops it in order and starts it again on the same folder.
    pub async fn restart(self) -> Self {
        let Self { running, dir, password, http } = self;
        running.stop().await;
        let running = start(options(dir.path())).await.unwrap();
        assert_eq!(running.password(), None, "shown once");
        Self { running, dir, password, http }
    }

    /// Stops it and starts it again on a log that is `later_ms` older: written to, meanwhile, with a clock that far ahead.
    /// A log's time never goes back, so what ends by it has ended.
    pub async fn restart_later(self, later_ms: u64) -> Self {
        let Self { running, dir, password, http } = self;
        running.stop().await;
        let mut ahead = cvlan_raft::Options::single(FileDisk::open(dir.path()).unwrap());
        ahead.clock = Arc::new(Ahead(SystemClock::default(), later_ms));
        let log = cvlan_api::Log::open(ahead, NoTransport).await.unwrap();
        assert!(log.writable(Duration::from_secs(10)).await);
        let tenant = log.head().machine.slugs["acme"];
        let wish = TenantCommand::Update { id: tenant, name: Some("later".into()) };
        log.write(Command { meta: Meta::default(), wish: Wish::Tenant(wish) }).await.unwrap();
        log.shutdown().await;
        drop(log);
        let running = start(options(dir.path())).await.unwrap();
        Self { running, dir, password, http }
    }

    pub fn seq(&self) -> u64 {
        self.running.app().log.head().seq.0
    }

    /// Events but for presence, which comes and goes beside them.
    pub async fn changes(&self) -> usize {
        let (mut from, mut found) = (Seq(1), 0);
        loop {
            let page = self.running.app().log.history(from, 512).await.unwrap();
            let Some((last, _)) = page.last() else { return found };
            from = Seq(last.0 + 1);
            let events = page.iter().map(|(_, bytes)| Rules::decode(bytes).unwrap());
            found += events.filter(|event| transitions(event).is_none()).count();
        }
    }

    /// Does the log say that this node is connected?
    pub fn online(&self, node: &str) -> bool {
        let head = self.running.app().log.head();
        head.machine.presence(NodeId::of(node)).is_some_and(|p| p.online)
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.running.rest_address())
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path))
    }

    pub async fn login(&self, tenant: &str, name: &str, password: &str) -> Answer {
        let body = json!({"name": name, "password": password, "tenant": tenant});
        send(self.request(Method::POST, "/api/v1/auth/login").json(&body)).await
    }

    pub async fn session(&self, tenant: &str, name: &str, password: &str) -> Session<'_> {
        let answer = self.login(tenant, name, password).await.expect(200).json();
        let text = |key: &str| answer[key].as_str().unwrap().to_owned();
        Session { controller: self, token: text("accessToken"), refresh: text("refreshToken") }
    }

    pub async fn admin(&self) -> Session<'_> {
        self.session("", "admin", &self.password).await
    }

    /// Sends bytes to the node door.
    pub async fn node_door(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let url = format!("https://{}{path}", self.running.node_address());
        send(self.http.request(method, url).header("content-type", "application/json").body(body)).await
    }

    pub async fn register(&self, body: &Value) -> Answer {
        self.node_door(Method::POST, "/client/register", body.to_string()).await
    }
}

pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

#[derive(Clone)]
pub struct Session<'a> {
    pub controller: &'a Controller,
    pub token: String,
    pub refresh: String,
}

impl Session<'_> {
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.controller.request(method, &format!("/api/v1{path}")).bearer_auth(&self.token)
    }

    /// Sees at least what is in the log now.
    pub async fn get(&self, path: &str) -> Answer {
        let now = self.controller.running.app().log.head().checkpoint();
        send(self.request(Method::GET, path).header("cvlan-checkpoint", now.to_string())).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PATCH, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    /// Tenant `acme` with CVLAN `prod`.
    pub async fn acme(&self) {
        self.post("/tenants", json!({"slug": "acme"})).await.expect(201);
        self.post("/tenants/acme/cvlans", json!({"name": "prod", "ipv6Cidr": "auto"})).await.expect(201);
    }

    /// A token for `acme/prod`.
    pub async fn token(&self, max_uses: u32) -> String {
        let body = json!({"cvlan": "prod", "expiresInSeconds": "3600", "maxUses": max_uses});
        let answer = self.post("/tenants/acme/tokens", body).await.expect(201).json();
        answer["secret"].as_str().unwrap().to_owned()
    }
}

pub fn wg_key() -> String {
    BASE64.encode(PublicKey::from(&StaticSecret::from(random::<32>())).as_bytes())
}

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    let what = what.to_owned();
    async move {
        for _ in 0..500 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 5 s: {what}");
    }
}

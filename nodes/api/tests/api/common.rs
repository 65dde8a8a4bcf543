//! A controller, people and machines to try it with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, BytesMut};
use cvlan_api::server::{Options, Running, start};
use cvlan_core::tenant::TenantCommand;
use cvlan_core::token::{proof_make, token_parse};
use cvlan_core::{Command, Meta, Wish};
use cvlan_proto::Message;
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use cvlan_raft::{Clock, FileDisk, NoTransport, SystemClock};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Client, Method};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x25519_dalek::{PublicKey, StaticSecret};

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

pub fn http_client(ca_pem: &str) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).unwrap();
    Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(30)).build().unwrap()
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

pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// A machine: its keys, and what it was given.
pub struct Machine {
    pub key: KeyPair,
    pub wg: StaticSecret,
    pub nonce: [u8; 16],
    pub name: String,
}

impl Machine {
    pub fn new(name: &str) -> Self {
        Self {
            key: KeyPair::generate().unwrap(),
            wg: StaticSecret::from(random::<32>()),
            nonce: random(),
            name: name.to_owned(),
        }
    }

    /// A sound registration.
    pub async fn request(&self, controller: &Controller, token: &str) -> Value {
        let parsed = token_parse(token).unwrap();
        let path = format!("/client/discover?tenant={}", parsed.claims.tenant_slug);
        let discovered = controller.node_door(Method::GET, &path, "").await.expect(200).json();
        let challenge = BASE64.decode(discovered["challengeKey"].as_str().unwrap()).unwrap();
        let challenge = PublicKey::from(<[u8; 32]>::try_from(challenge).unwrap());
        let csr = CertificateParams::default().serialize_request(&self.key).unwrap();
        let public = PublicKey::from(&self.wg);
        let proof = proof_make(
            self.wg.diffie_hellman(&challenge).as_bytes(),
            parsed.tenant(),
            parsed.token(),
            public.as_bytes(),
            &Sha256::digest(csr.der()).into(),
            &self.nonce,
        );
        json!({
            "token": token,
            "csr": csr.pem().unwrap(),
            "wgPublicKey": BASE64.encode(public.as_bytes()),
            "proof": BASE64.encode(proof),
            "mac": "02:00:5e:10:00:01",
            "nonce": BASE64.encode(self.nonce),
            "hostname": self.name,
            "os": "test",
            "agentVersion": "0",
            "endpoints": ["192.0.2.1:51820"],
        })
    }

    pub async fn register(&self, controller: &Controller, token: &str) -> v1::RegisterResponse {
        let body = self.request(controller, token).await;
        serde_json::from_str(&controller.register(&body).await.expect(200).text).unwrap()
    }

    /// Opens a sync stream with its certificate.
    pub async fn sync(&self, controller: &Controller, certificate: &str) -> Result<Sync, String> {
        let tls = tls_connect(controller, Some((certificate, &self.key))).await?;
        Sync::upgrade(tls).await
    }
}

pub async fn tls_connect(
    controller: &Controller,
    identity: Option<(&str, &KeyPair)>,
) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(controller.running.ca_pem().as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((pem, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let tcp = TcpStream::connect(controller.running.node_address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| e.to_string())
}

/// An agent's half of a stream.
pub struct Sync {
    io: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Sync {
    /// `Err` = the answer's status line and body, or the TLS error.
    pub async fn upgrade(mut io: TlsStream<TcpStream>) -> Result<Self, String> {
        let ask =
            "GET /client/sync HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: cvlan-sync/1\r\n\r\n";
        io.write_all(ask.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut buffer = BytesMut::new();
        let head = loop {
            let read = io.read_buf(&mut buffer).await.map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&buffer).into_owned();
            match text.find("\r\n\r\n") {
                Some(end) if text.starts_with("HTTP/1.1 101 ") => break end + 4,
                Some(_) if text.ends_with('}') => return Err(text),
                Some(_) | None => {}
            }
            if read == 0 {
                return Err(format!("closed: {text}"));
            }
        };
        buffer.advance(head);
        Ok(Self { io, buffer })
    }

    pub async fn say(&mut self, frame: Frame) {
        let bytes = SyncFrame { frame: Some(frame) }.encode_length_delimited_to_vec();
        self.io.write_all(&bytes).await.unwrap();
    }

    pub async fn hello(&mut self, checkpoint: &str) {
        let hello = v1::Hello { checkpoint: checkpoint.into(), agent_version: "0".into(), endpoints: vec![] };
        self.say(Frame::Hello(hello)).await;
    }

    /// The next frame; `None` = the stream ended.
    pub async fn next(&mut self) -> Option<Frame> {
        let read = async {
            loop {
                let mut peek = self.buffer.as_ref();
                if let Ok(length) = prost::encoding::decode_varint(&mut peek) {
                    let start = self.buffer.len() - peek.len();
                    if peek.len() >= length as usize {
                        self.buffer.advance(start);
                        let frame = SyncFrame::decode(self.buffer.split_to(length as usize)).unwrap();
                        return frame.frame;
                    }
                }
                match self.io.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("a frame within 10 s")
    }

    pub async fn map(&mut self) -> v1::Map {
        match self.next().await {
            Some(Frame::Map(map)) => map,
            other => panic!("a map, not {other:?}"),
        }
    }

    pub async fn delta(&mut self) -> v1::Delta {
        match self.next().await {
            Some(Frame::Delta(delta)) => delta,
            other => panic!("a delta, not {other:?}"),
        }
    }

    pub async fn bye(&mut self) -> v1::Bye {
        match self.next().await {
            Some(Frame::Bye(bye)) => bye,
            other => panic!("a bye, not {other:?}"),
        }
    }
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

//! `cvlan-ctrl` as a process, between a scripted controller (real TLS, real mTLS, real frames) and a scripted data
//! daemon: enrolment that is cut off, resumption after kill -9, changes, deletion.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cvlan_client::ctrl::status::Status;
use cvlan_core::id::{TenantId, TokenId};
use cvlan_core::token::{proof_check, proof_make, token_sign};
use cvlan_link::ipc::{self, Reply, Request};
use cvlan_link::sync::codec::{self, Decoder};
use cvlan_link::tls::spki_sha256;
use cvlan_proto::v1::{self, SyncFrame, TokenClaims, sync_frame::Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;
use x25519_dalek::{PublicKey, StaticSecret};

const EPOCH: &str = "000102030405060708090a0b0c0d0e0f";
const NODE: Uuid = Uuid::from_bytes([0xaa; 16]);
const SOON: Duration = Duration::from_secs(15);

fn at(seq: u64) -> String {
    format!("{EPOCH}.{seq}")
}

/// What a registration brought, as far as it says which machine it is.
#[derive(Clone, Debug, PartialEq)]
struct Machine {
    wg_key: String,
    csr_key: Vec<u8>,
    nonce: String,
}

/// What a registration is answered with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Accept,
    /// Accept, and break before the machine hears of it.
    CutOff,
    /// 503.
    Busy,
    /// 409 `nonce_replayed`.
    Replayed,
    /// 401 `token_expired`.
    Refuse,
}

struct Controller {
    ca: Issuer<'static, KeyPair>,
    ca_der: CertificateDer<'static>,
    ca_pem: String,
    challenge: StaticSecret,
    answers: Mutex<Vec<Answer>>,
    seen: Mutex<Vec<Machine>>,
    streams: mpsc::Sender<Stream>,
    /// Where something in between takes upgrades away: polls come here.
    polls: Mutex<Option<mpsc::Sender<Poll>>>,
}

/// A poll, and where its answer goes.
type Poll = (v1::PollRequest, oneshot::Sender<Response>);

type Response = hyper::Response<Full<Bytes>>;

fn json(status: u16, body: &impl serde::Serialize) -> Response {
    let body = Full::new(serde_json::to_vec(body).unwrap().into());
    hyper::Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn problem(status: u16, code: &str) -> Response {
    json(
        status,
        &serde_json::json!({"type": "about:blank", "title": "x", "status": status, "code": code, "detail": "because"}),
    )
}

impl Controller {
    fn new(answers: &[Answer]) -> (Arc<Self>, mpsc::Receiver<Stream>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        let (streams, opened) = mpsc::channel(4);
        let mut answers = answers.to_vec();
        answers.reverse();
        let controller = Self {
            ca_der: cert.der().clone(),
            ca_pem: cert.pem(),
            ca: Issuer::new(params, key),
            challenge: StaticSecret::from([9; 32]),
            answers: Mutex::new(answers),
            seen: Mutex::default(),
            streams,
            polls: Mutex::default(),
        };
        (Arc::new(controller), opened)
    }

    fn token(&self, port: u16) -> String {
        let claims = TokenClaims {
            token_id: vec![2; 16],
            tenant_id: vec![1; 16],
            cvlan_id: vec![3; 16],
            key_id: vec![4; 16],
            expires_at: u64::MAX,
            max_uses: 1,
            tags: vec![],
            // The first door is closed: the second is tried.
            urls: vec!["https://127.0.0.1:1".into(), format!("https://127.0.0.1:{port}")],
            ca_spki_sha256: spki_sha256(&self.ca_der).unwrap().to_vec(),
            tenant_slug: "acme".into(),
        };
        token_sign(&claims, &[5; 32])
    }

    /// Opens the door; it closes, with all its streams, when the task is aborted.
    async fn open(self: &Arc<Self>, port: u16) -> (u16, tokio::task::JoinHandle<()>) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &self.ca).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_single_cert(
                vec![leaf.der().clone(), self.ca_der.clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let controller = self.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, controller) = (acceptor.clone(), controller.clone());
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let proven = tls.get_ref().1.peer_certificates().is_some();
                    let service = hyper::service::service_fn(|request| controller.clone().answer(request, proven));
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service);
                    let _ = connection.with_upgrades().await;
                });
            }
        });
        (port, task)
    }

    async fn answer(self: Arc<Self>, request: hyper::Request<Incoming>, proven: bool) -> Result<Response, String> {
        match request.uri().path() {
            "/client/discover" => {
                assert_eq!(request.uri().query(), Some("tenant=acme"));
                Ok(json(
                    200,
                    &serde_json::json!({
                        "controllers": [],
                        "caFingerprint": "sha256:00",
                        "challengeKey": BASE64.encode(PublicKey::from(&self.challenge).as_bytes()),
                        "somethingNew": 1,
                    }),
                ))
            }
            "/client/register" => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                self.register(&serde_json::from_slice(&body).unwrap())
            }
            "/client/sync" if self.polls.lock().unwrap().is_some() => {
                let page = Full::new("<html>no</html>".into());
                Ok(hyper::Response::builder().status(502).header("content-type", "text/html").body(page).unwrap())
            }
            "/client/poll" => {
                assert!(proven, "poll without a certificate");
                let polls = self.polls.lock().unwrap().clone().ok_or("nobody polls")?;
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let (answer, answered) = oneshot::channel();
                polls.send((serde_json::from_slice(&body).unwrap(), answer)).await.map_err(|e| e.to_string())?;
                answered.await.map_err(|e| e.to_string())
            }
            "/client/sync" => {
                assert!(proven, "sync without a certificate");
                assert_eq!(request.headers()["upgrade"], "cvlan-sync/1");
                tokio::spawn(async move {
                    let io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                    let _ = self.streams.send(Stream { io, decoder: Decoder::default() }).await;
                });
                let switching = hyper::Response::builder().status(101).header("connection", "upgrade");
                Ok(switching.header("upgrade", "cvlan-sync/1").body(Full::default()).unwrap())
            }
            path => panic!("{path}"),
        }
    }

    fn register(&self, body: &v1::RegisterRequest) -> Result<Response, String> {
        let answer = self.answers.lock().unwrap().pop().unwrap_or(Answer::Accept);
        let csr = CertificateSigningRequestParams::from_pem(&body.csr).unwrap();
        let csr_der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(body.csr.as_bytes()).unwrap();
        let decode = |text: &str| BASE64.decode(text).unwrap();
        let wg_key: [u8; 32] = decode(&body.wg_public_key).try_into().unwrap();
        let shared = self.challenge.diffie_hellman(&PublicKey::from(wg_key)).to_bytes();
        let (tenant, token) = (TenantId(Uuid::from_bytes([1; 16])), TokenId(Uuid::from_bytes([2; 16])));
        let csr_sha256 = Sha256::digest(&csr_der).into();
        let nonce = decode(&body.nonce).try_into().unwrap();
        assert!(proof_check(&decode(&body.proof), &shared, tenant, token, &wg_key, &csr_sha256, &nonce), "the proof");
        assert_eq!((body.mac.len(), body.hostname.as_str()), (17, "m1"));
        let csr_key = csr.public_key.subject_public_key_info();
        let (wg_key, nonce) = (body.wg_public_key.clone(), body.nonce.clone());
        self.seen.lock().unwrap().push(Machine { wg_key, csr_key, nonce });
        match answer {
            Answer::Busy => return Ok(problem(503, "no_leader")),
            Answer::Replayed => return Ok(problem(409, "nonce_replayed")),
            Answer::Refuse => return Ok(problem(401, "token_expired")),
            // An error of the service breaks the connection.
            Answer::CutOff => return Err("cut off".into()),
            Answer::Accept => {}
        }
        let map =
            serde_json::to_value(v1::Map { checkpoint: at(10), self_: Some(own()), peers: vec![peer(1)], more: false });
        Ok(json(
            200,
            &serde_json::json!({
                "nodeId": NODE.to_string(),
                "certificate": csr.signed_by(&self.ca).unwrap().pem(),
                "caChain": [self.ca_pem],
                "addresses": ["10.0.0.2/24"],
                "checkpoint": at(10),
                "map": map.unwrap(),
                "somethingNew": {},
            }),
        ))
    }
}

fn own() -> v1::Self_ {
    v1::Self_ {
        node_id: NODE.to_string(),
        name: "m1".into(),
        addresses: vec!["10.0.0.2/24".into()],
        tenant: "acme".into(),
        cvlan: "prod".into(),
        status: "active".into(),
    }
}

fn peer(n: u8) -> v1::Peer {
    v1::Peer {
        node_id: Uuid::from_bytes([n; 16]).to_string(),
        name: format!("n{n}"),
        wg_public_key: vec![n; 32],
        ipv4: format!("10.0.0.{}", 100 + n),
        ipv6: String::new(),
        endpoints: vec!["192.0.2.1:51820".into()],
    }
}

/// The controller's end of a sync stream.
struct Stream {
    io: TokioIo<hyper::upgrade::Upgraded>,
    decoder: Decoder,
}

impl Stream {
    async fn send(&mut self, frame: Frame) {
        self.io.write_all(&codec::encode(&SyncFrame { frame: Some(frame) }).unwrap()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    async fn next(&mut self) -> Frame {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame.frame.unwrap();
            }
            let length = timeout(SOON, self.io.read(&mut buffer)).await.expect("a frame").unwrap();
            assert!(length > 0, "the agent closed the stream");
            self.decoder.push(&buffer[..length]);
        }
    }

    async fn hello(&mut self) -> v1::Hello {
        match self.next().await {
            Frame::Hello(hello) => hello,
            other => panic!("{other:?} where hello was expected"),
        }
    }

    async fn acked(&mut self, checkpoint: &str) {
        loop {
            match self.next().await {
                Frame::Ack(ack) if ack.checkpoint == checkpoint => return,
                Frame::Ack(_) | Frame::Endpoints(_) => {}
                other => panic!("{other:?} where an ack of {checkpoint} was expected"),
            }
        }
    }
}

/// A data daemon that keeps what it was asked.
fn plane(socket: PathBuf) -> mpsc::Receiver<Request> {
    let (asked, requests) = mpsc::channel(64);
    let listener = ipc::listen(&socket).unwrap();
    let key = StaticSecret::from([77; 32]);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (asked, key) = (asked.clone(), key.clone());
            tokio::spawn(async move {
                let public_key = PublicKey::from(&key).to_bytes();
                while let Ok(Some(request)) = ipc::read::<Request>(&mut stream).await {
                    let reply = match &request {
                        Request::Identify => {
                            Reply::Identity { public_key, listen_port: 51820, ifname: "cvlan0".into() }
                        }
                        Request::Prove(c) => {
                            let shared = key.diffie_hellman(&PublicKey::from(c.challenge_key)).to_bytes();
                            let (tenant, token) = (TenantId(c.tenant), TokenId(c.token));
                            let proof = proof_make(&shared, tenant, token, &public_key, &c.csr_sha256, &c.nonce);
                            Reply::Proof { public_key, proof }
                        }
                        Request::Stats => Reply::Stats { checkpoint: "x".into(), peers: vec![] },
                        Request::Configure(_) | Request::Patch(_) | Request::Down => {
                            asked.send(request).await.unwrap();
                            Reply::Done
                        }
                    };
                    ipc::write(&mut stream, &reply).await.unwrap();
                }
            });
        }
    });
    requests
}

async fn asked(requests: &mut mpsc::Receiver<Request>) -> Request {
    timeout(SOON, requests.recv()).await.expect("a request to the data daemon").unwrap()
}

struct Agent(Child);

impl Agent {
    fn start(folder: &Path, token: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvlan-ctrl"));
        command.arg("--state-dir").arg(folder.join("state")).arg("--cvland-socket").arg(folder.join("cvland.sock"));
        command.args(["--hostname", "m1"]).env_remove("CVLAN_TOKEN");
        if let Some(token) = token {
            command.args(["--token", token]);
        }
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    async fn ends(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < SOON, "cvlan-ctrl does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn status(folder: &Path) -> Status {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cvlan-ctrl"));
    command.arg("status").arg("--state-dir").arg(folder.join("state")).args(["-o", "json"]);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn opened(streams: &mut mpsc::Receiver<Stream>) -> Stream {
    timeout(SOON, streams.recv()).await.expect("a sync stream").unwrap()
}

#[test]
fn a_machine_joins_follows_and_goes_on_after_every_restart() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (controller, mut streams) = Controller::new(&[Answer::Busy, Answer::CutOff, Answer::Accept]);
        let (port, door) = controller.open(0).await;
        let mut requests = plane(folder.path().join("cvland.sock"));
        let agent = Agent::start(folder.path(), Some(&controller.token(port)));

        // Enrolment: busy, then cut off after it was accepted, then repeated: the same machine each time.
        let mut stream = opened(&mut streams).await;
        let seen = controller.seen.lock().unwrap().clone();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|machine| *machine == seen[0]), "{seen:?}");

        // The registration's own map is running before the first word of sync.
        let hello = stream.hello().await;
        assert_eq!(hello.checkpoint, at(10));
        let Request::Configure(config) = asked(&mut requests).await else { panic!() };
        assert_eq!((config.checkpoint.as_str(), config.peers.len()), (at(10).as_str(), 1));
        assert_eq!(config.addresses, ["10.0.0.2/24".parse().unwrap()]);
        stream.acked(&at(10)).await;

        // A delta in two parts takes effect at once, at the last.
        let part = |upserts, more| v1::Delta { checkpoint: at(12), self_: None, upserts, removed: vec![], more };
        stream.send(Frame::Delta(part(vec![peer(2)], true))).await;
        stream.send(Frame::Delta(part(vec![peer(3)], false))).await;
        let Request::Patch(patch) = asked(&mut requests).await else { panic!() };
        assert_eq!((patch.base, patch.checkpoint, patch.upserts.len()), (at(10), at(12), 2));
        stream.acked(&at(12)).await;
        // Nothing changed: the checkpoint moves, the data daemon is left alone.
        stream.send(Frame::Heartbeat(v1::Heartbeat { checkpoint: at(15) })).await;
        stream.acked(&at(15)).await;
        let shown = status(folder.path()).await;
        assert_eq!((shown.node_id.as_str(), shown.name.as_str()), (NODE.to_string().as_str(), "m1"));
        assert_eq!((shown.checkpoint.as_str(), shown.peers.len()), (at(15).as_str(), 3));
        assert_eq!((shown.full_maps, shown.deltas, shown.connected, shown.running), (1, 1, true, true));

        // kill -9: it goes on from its checkpoint, without a token, by delta.
        drop(agent);
        drop(stream);
        let shown = status(folder.path()).await;
        assert_eq!((shown.checkpoint.as_str(), shown.connected, shown.running), (at(15).as_str(), false, false));
        let mut agent = Agent::start(folder.path(), None);
        let Request::Configure(config) = asked(&mut requests).await else { panic!() };
        assert_eq!((config.checkpoint, config.peers.len()), (at(15), 3));
        let mut stream = opened(&mut streams).await;
        assert_eq!(stream.hello().await.checkpoint, at(15));
        let removed = vec![peer(1).node_id];
        stream.send(Frame::Delta(v1::Delta { checkpoint: at(16), removed, ..v1::Delta::default() })).await;
        let Request::Patch(patch) = asked(&mut requests).await else { panic!() };
        assert_eq!((patch.base, patch.removed), (at(15), vec![Uuid::from_bytes([1; 16])]));
        stream.acked(&at(16)).await;

        // The controller goes in the middle of a map, and comes back elsewhere in time: nothing was half taken.
        stream.send(Frame::Map(v1::Map { checkpoint: at(17), self_: None, peers: vec![peer(9)], more: true })).await;
        door.abort();
        let _ = door.await;
        drop(stream);
        let (_, door) = controller.open(port).await;
        let mut stream = opened(&mut streams).await;
        assert_eq!(stream.hello().await.checkpoint, at(16));
        // One that goes back is not followed.
        stream.send(Frame::Delta(v1::Delta { checkpoint: at(3), ..v1::Delta::default() })).await;
        let mut stream = opened(&mut streams).await;
        assert_eq!(stream.hello().await.checkpoint, at(16));
        let shown = status(folder.path()).await;
        assert_eq!((shown.full_maps, shown.deltas, shown.full_maps_total, shown.deltas_total), (0, 1, 1, 2));

        // Another incarnation of the log: a full map, wherever it stands.
        let epoch = format!("ff{}.1", &EPOCH[2..]);
        let map = v1::Map { checkpoint: epoch.clone(), self_: Some(own()), peers: vec![peer(4)], more: false };
        stream.send(Frame::Map(map)).await;
        let Request::Configure(config) = asked(&mut requests).await else { panic!() };
        assert_eq!((&config.checkpoint, config.peers.len()), (&epoch, 1));
        stream.acked(&epoch).await;

        // Deleted: the tunnel goes down, and so does the agent, with its own exit code.
        stream.send(Frame::Bye(v1::Bye { code: "node_deleted".into(), detail: "deleted".into() })).await;
        assert_eq!(asked(&mut requests).await, Request::Down);
        assert_eq!(agent.ends().await, Some(4));
        assert!(status(folder.path()).await.peers.is_empty());
        door.abort();
    });
}

#[test]
fn a_disabled_node_keeps_asking_with_nothing_running() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (controller, mut streams) = Controller::new(&[Answer::Replayed, Answer::Accept]);
        let (port, door) = controller.open(0).await;
        let mut requests = plane(folder.path().join("cvland.sock"));
        let _agent = Agent::start(folder.path(), Some(&controller.token(port)));
        let mut stream = opened(&mut streams).await;
        let seen = controller.seen.lock().unwrap().clone();
        assert_eq!((&seen[0].wg_key, &seen[0].csr_key), (&seen[1].wg_key, &seen[1].csr_key));
        assert_ne!(seen[0].nonce, seen[1].nonce, "a nonce that was seen is not sent again");
        assert!(matches!(asked(&mut requests).await, Request::Configure(_)));
        stream.hello().await;
        stream.send(Frame::Bye(v1::Bye { code: "node_disabled".into(), detail: "disabled".into() })).await;
        assert_eq!(asked(&mut requests).await, Request::Down);
        let mut stream = opened(&mut streams).await;
        assert_eq!(stream.hello().await.checkpoint, "", "back with nothing: a full map");
        let map = v1::Map { checkpoint: at(20), self_: Some(own()), peers: vec![], more: false };
        stream.send(Frame::Map(map)).await;
        assert!(matches!(asked(&mut requests).await, Request::Configure(_)));
        stream.acked(&at(20)).await;
        door.abort();
    });
}

/// Makes an answer.
type Make = Box<dyn Fn() -> Response + Send>;

/// Answers polls by what the agent has, the same again where it asks again; what it has no answer for is held.
fn polls_answered<const N: usize>(answers: [(String, Make); N]) -> (mpsc::Sender<Poll>, mpsc::Receiver<Poll>) {
    let (polls, mut coming) = mpsc::channel::<Poll>(4);
    let (hold, held) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some((request, answer)) = coming.recv().await {
            assert!((1..=55).contains(&request.wait), "{request:?}");
            let known = answers.iter().find(|(checkpoint, _)| *checkpoint == request.checkpoint);
            match known.map(|(_, make)| make()) {
                // Asked in vain: it asks again, as its own endpoints have changed.
                Some(body) => drop(answer.send(body)),
                None => {
                    if hold.send((request, answer)).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    (polls, held)
}

#[test]
fn where_an_upgrade_is_taken_away_it_polls_and_comes_back_to_the_stream() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (controller, mut streams) = Controller::new(&[Answer::Accept]);
        let delta = || {
            let delta = v1::Delta { checkpoint: at(12), upserts: vec![peer(2)], ..v1::Delta::default() };
            json(200, &v1::PollResponse { checkpoint: at(12), delta: Some(delta), ..v1::PollResponse::default() })
        };
        let keepalive =
            || json(200, &v1::PollResponse { checkpoint: at(15), keepalive: true, ..v1::PollResponse::default() });
        let (polls, mut held) = polls_answered([(at(10), Box::new(delta)), (at(12), Box::new(keepalive))]);
        *controller.polls.lock().unwrap() = Some(polls);
        let (port, door) = controller.open(0).await;
        let mut requests = plane(folder.path().join("cvland.sock"));
        let mut agent = Agent::start(folder.path(), Some(&controller.token(port)));
        assert!(matches!(asked(&mut requests).await, Request::Configure(_)));
        let Request::Patch(patch) = asked(&mut requests).await else { panic!() };
        assert_eq!((patch.base, patch.checkpoint, patch.upserts.len()), (at(10), at(12), 1));
        // Nothing new: the checkpoint moves, the data daemon is left alone.
        let (request, answer) = timeout(SOON, held.recv()).await.expect("a poll").unwrap();
        assert_eq!(request.checkpoint, at(15));
        let shown = status(folder.path()).await;
        assert_eq!((shown.checkpoint.as_str(), shown.peers.len(), shown.connected), (at(15).as_str(), 2, true));

        // It breaks, and there is nothing in between any more: a stream.
        *controller.polls.lock().unwrap() = None;
        drop((answer, held));
        let mut stream = opened(&mut streams).await;
        assert_eq!(stream.hello().await.checkpoint, at(15));

        // And back; what a poll says of a deleted node is what the stream says.
        let deleted = || problem(401, "node_deleted");
        let (polls, _held) = polls_answered([(at(15), Box::new(deleted))]);
        *controller.polls.lock().unwrap() = Some(polls);
        drop(stream);
        assert_eq!(asked(&mut requests).await, Request::Down);
        assert_eq!(agent.ends().await, Some(4));
        door.abort();
    });
}

#[test]
fn what_is_refused_ends_with_its_own_code() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (controller, _streams) = Controller::new(&[Answer::Refuse]);
        let (port, door) = controller.open(0).await;
        let _requests = plane(folder.path().join("cvland.sock"));
        assert_eq!(Agent::start(folder.path(), Some(&controller.token(port))).ends().await, Some(3));
        assert_eq!(Agent::start(folder.path(), Some("cvj_nonsense")).ends().await, Some(3));
        assert_eq!(Agent::start(folder.path(), None).ends().await, Some(1));
        // A controller with another CA is not spoken to at all.
        let (other, _streams) = Controller::new(&[]);
        let (other_port, other_door) = other.open(0).await;
        let mut agent = Agent::start(folder.path(), Some(&controller.token(other_port)));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(other.seen.lock().unwrap().is_empty());
        assert!(agent.0.try_wait().unwrap().is_none(), "it keeps trying");
        door.abort();
        other_door.abort();
    });
}

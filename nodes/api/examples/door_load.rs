#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use base64::Engine as _;
use cvlan_api::doors::accept::{Client, Door, Handler, serve};
use cvlan_api::doors::body::{Body, body_read};
use cvlan_api::server::{Options, start};
use http::{Request, Response};
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Clone)]
struct Empty;
impl Handler for Empty {
    async fn handle(&self, _: Arc<Client>, request: Request<Incoming>) -> Response<Body> {
        let _ = body_read(request.into_body()).await;
        Response::new(Body::whole("{}"))
    }
}

fn cpu_us() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10_000.0
}

async fn load(address: std::net::SocketAddr, path: &str, token: &str, clients: usize, seconds: u64, round: usize) -> (f64, f64) {
    let done = Arc::new(AtomicU64::new(0));
    let mut config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoVerify))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = Arc::new(config);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for c in 0..clients {
        let (done, config) = (done.clone(), config.clone());
        let (path, token) = (path.to_owned(), token.to_owned());
        tasks.push(tokio::spawn(async move {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let mut io = tokio_rustls::TlsConnector::from(config).connect("localhost".try_into().unwrap(), tcp).await.unwrap();
            let mut buffer = vec![0u8; 8192];
            let mut n = 0u64;
            while Instant::now() < until {
                n += 1;
                let mut key = [7u8; 32];
                key[..8].copy_from_slice(&(c as u64 + 1).to_le_bytes());
                key[8..16].copy_from_slice(&n.to_le_bytes());
                key[16] = round as u8;
                let key = base64::engine::general_purpose::STANDARD.encode(key);
                let body = format!("{{\"cvlan\":\"prod\",\"name\":\"r{round}-n{c}-{n}\",\"wgPublicKey\":\"{key}\"}}");
                let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                io.write_all(head.as_bytes()).await.unwrap();
                let mut have = 0;
                loop {
                    have += io.read(&mut buffer[have..]).await.unwrap();
                    let text = std::str::from_utf8(&buffer[..have]).unwrap();
                    if let Some(end) = text.find("\r\n\r\n") {
                        assert!(text.starts_with("HTTP/1.1 20"), "{text}");
                        let l = text.find("content-length: ").unwrap() + 16;
                        let length: usize = text[l..].split("\r\n").next().unwrap().parse().unwrap();
                        if have >= end + 4 + length {
                            break;
                        }
                    }
                }
                done.fetch_add(1, Relaxed);
            }
        }));
    }
    let (started, cpu) = (Instant::now(), cpu_us());
    for task in tasks {
        task.await.unwrap();
    }
    let n = done.load(Relaxed) as f64;
    (n / started.elapsed().as_secs_f64(), (cpu_us() - cpu) / n)
}

#[derive(Debug)]
struct NoVerify;
impl rustls::client::danger::ServerCertVerifier for NoVerify {
    fn verify_server_cert(&self, _: &rustls::pki_types::CertificateDer<'_>, _: &[rustls::pki_types::CertificateDer<'_>], _: &rustls::pki_types::ServerName<'_>, _: &[u8], _: rustls::pki_types::UnixTime) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(&self, _: &[u8], _: &rustls::pki_types::CertificateDer<'_>, _: &rustls::DigitallySignedStruct) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(&self, _: &[u8], _: &rustls::pki_types::CertificateDer<'_>, _: &rustls::DigitallySignedStruct) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256, rustls::SignatureScheme::ED25519]
    }
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = std::env::args().nth(1).unwrap();
    let clients: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let only = std::env::args().nth(3).is_some();
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let running = start(Options { data_dir: dir.into(), listen: any, node_listen: any, metrics_listen: any, rate_limits: false, ..Options::default() }).await.unwrap();
    let app = running.app().clone();
    let answer = app.auth.login(|| app.log.head().machine.clone(), cvlan_proto::v1::LoginRequest { name: "admin".into(), password: running.password().unwrap().into(), tenant: String::new() }, any.ip(), cvlan_api::app::now_ms()).await.unwrap();
    let session = app.auth.access(&app.log.head().machine, &answer.access_token).unwrap();
    let caller = cvlan_api::app::Caller { session, request_id: "x".into(), reason: String::new(), source: any.ip(), if_revision: None };
    cvlan_api::app::tenant::create(&app, &caller, cvlan_proto::v1::TenantCreateRequest { slug: "acme".into(), name: String::new() }).await.unwrap();
    let head = app.log.head();
    let home = head.machine.tenant_find("acme").unwrap().clone();
    cvlan_api::app::cvlan::create(&app, &caller, &home, cvlan_proto::v1::CvlanCreateRequest { name: "prod".into(), ipv4_cidr: "10.0.0.0/8".into(), ipv6_cidr: String::new() }).await.unwrap();
    drop((head, home));
    let certificate = app.ca.server(&["localhost".into()], cvlan_api::app::now_ms()).unwrap();
    let mut tls = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from((*certificate).clone())));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = tokio::net::TcpListener::bind(any).await.unwrap();
    let floor = listener.local_addr().unwrap();
    let (_drain, draining) = tokio::sync::watch::channel(false);
    tokio::spawn(serve(Door { listener, tls: Some(Arc::new(tls)), connections_max: 1000, metrics: app.metrics.clone() }, Empty, draining));
    for round in 0..3 {
        let bare = if only { (1.0, 1.0) } else { load(floor, "/x", &answer.access_token, clients, 3, round).await };
        let full = load(running.rest_address(), "/api/v1/tenants/acme/nodes", &answer.access_token, clients, 4, round).await;
        println!("clients {clients}: floor {:.0}/s {:.1} us, POST nodes {:.0}/s {:.1} us, ratio {:.2}, cpu ratio {:.2}", bare.0, bare.1, full.0, full.1, full.0 / bare.0, bare.1 / full.1);
    }
    running.stop().await;
}

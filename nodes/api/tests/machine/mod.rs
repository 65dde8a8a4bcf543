//! A machine with a stream of its own, for whichever controller.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, BytesMut};
use cvlan_core::token::{proof_make, token_parse};
use cvlan_proto::Message;
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Client, Method};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x25519_dalek::{PublicKey, StaticSecret};

/// Where machines come to.
pub trait Door {
    fn node_address(&self) -> SocketAddr;
    fn ca_pem(&self) -> String;
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
    pub async fn request(&self, door: &impl Door, token: &str) -> Value {
        let parsed = token_parse(token).unwrap();
        let path = format!("/client/discover?tenant={}", parsed.claims.tenant_slug);
        let discovered = ask(door, Method::GET, &path, String::new()).await;
        let discovered: Value = serde_json::from_str(&discovered).unwrap();
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

    pub async fn register(&self, door: &impl Door, token: &str) -> v1::RegisterResponse {
        let body = self.request(door, token).await.to_string();
        serde_json::from_str(&ask(door, Method::POST, "/client/register", body).await).unwrap()
    }

    /// Opens a sync stream with its certificate.
    pub async fn sync(&self, door: &impl Door, certificate: &str) -> Result<Sync, String> {
        let tls = tls_connect(door, Some((certificate, &self.key))).await?;
        Sync::upgrade(tls).await
    }
}

/// One request that is granted.
async fn ask(door: &impl Door, method: Method, path: &str, body: String) -> String {
    let url = format!("https://{}{path}", door.node_address());
    let request = http_client(&door.ca_pem()).request(method, url).header("content-type", "application/json");
    let response = request.body(body).send().await.unwrap();
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{path}: {text}");
    text
}

pub fn http_client(ca_pem: &str) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).unwrap();
    Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(30)).build().unwrap()
}

pub async fn tls_connect(door: &impl Door, identity: Option<(&str, &KeyPair)>) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(door.ca_pem().as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((pem, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let tcp = TcpStream::connect(door.node_address()).await.unwrap();
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

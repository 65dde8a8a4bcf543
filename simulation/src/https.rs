//! HTTP/1.1 over TLS from the outside: one connection, one request at a time, no more of the protocol than our doors use.

use anyhow::{Context, anyhow, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest answer that is read.
const ANSWER_MAX: usize = 64 << 10;

/// TLS to servers whose certificate is of the CA in file `ca`; `own` are certificate and key that this side shows (PEM).
pub fn connector(ca: &Path, own: Option<(&Path, &Path)>, protocol: &[u8]) -> anyhow::Result<TlsConnector> {
    let read = |path: &Path| CertificateDer::from_pem_file(path).map_err(|e| anyhow!("{}: {e}", path.display()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(read(ca)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| anyhow!("{}: {e}", key.display()))?;
            config.with_client_auth_cert(vec![read(certificate)?], key)?
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Where requests go.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Target {
    /// A door whose certificate is of the CA in file `ca` and for `localhost`, too.
    pub fn new(address: SocketAddr, ca: &Path) -> anyhow::Result<Self> {
        Ok(Self { address, tls: connector(ca, None, b"http/1.1")? })
    }

    /// A connection; nothing was asked where there is none.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.tls.connect(ServerName::try_from("localhost")?, tcp).await?;
        Ok(Connection { stream, buffer: vec![0; ANSWER_MAX] })
    }
}

/// See the module.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The body, which is an error where the answer is no success.
    pub fn success(self) -> anyhow::Result<Vec<u8>> {
        if !(200..300).contains(&self.status) {
            bail!("{}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        Ok(self.body)
    }
}

impl Connection {
    /// One request with JSON, one answer; `headers` = whole lines. After an error the connection is of no use, and whether
    /// the request was received is not known.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> anyhow::Result<Answer> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        let mut have = 0;
        loop {
            let free = self.buffer.get_mut(have..).filter(|b| !b.is_empty()).context("the answer is too long")?;
            let n = self.stream.read(free).await?;
            if n == 0 {
                bail!("the connection was closed");
            }
            have += n;
            let bytes = self.buffer.get(..have).unwrap_or_default();
            let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(bytes.get(..end).unwrap_or_default())?;
            let status = head.split(' ').nth(1).context("no status")?.parse()?;
            let mut answer = Answer { status, head: head.to_owned(), body: Vec::new() };
            let length: usize = answer.header("content-length").map_or(Ok(0), str::parse)?;
            let Some(body) = bytes.get(end + 4..end + 4 + length) else { continue };
            answer.body = body.to_vec();
            return Ok(answer);
        }
    }
}

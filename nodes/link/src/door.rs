//! A controller's node door: HTTP/1.1 over TLS, one request a connection, and the upgrade to a sync stream.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The longest answer: a registration with its first map.
const BODY_MAX: usize = 4 << 20;
/// How long connecting, with TLS, may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Until the next address of a name is tried beside the one before.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// The longest code or detail of a problem that is kept.
const TEXT_MAX: usize = 512;

/// Codes of a controller that end or suspend a node.
pub(crate) const DELETED: &str = "node_deleted";
pub(crate) const DISABLED: &str = "node_disabled";

/// Where a controller's node door is: `https://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorUrl {
    host: String,
    port: u16,
}

impl FromStr for DoorUrl {
    type Err = DoorError;

    fn from_str(text: &str) -> Result<Self, DoorError> {
        let bad = || DoorError::Url(text.chars().take(TEXT_MAX).collect());
        let uri: http::Uri = text.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        let plain = matches!(uri.path(), "" | "/") && uri.query().is_none() && !authority.as_str().contains('@');
        if uri.scheme_str() != Some("https") || !plain {
            return Err(bad());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        ServerName::try_from(host.as_str()).map_err(|_| bad())?;
        Ok(Self { host, port: authority.port_u16().unwrap_or(443) })
    }
}

impl fmt::Display for DoorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl DoorUrl {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// What can go wrong at a door.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// No door there can be.
    #[error("{0:?} is not a controller's URL: https://HOST[:PORT]")]
    Url(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is not the controller that is wanted.
    #[error("{what}")]
    Untrusted {
        /// Stable, snake_case.
        code: &'static str,
        /// What is wrong with its certificate, and what to do.
        what: String,
    },
    /// Broken HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// Too slow.
    #[error("no answer in time")]
    Timeout,
    /// An answer that makes no sense.
    #[error("{0}")]
    Answer(String),
    /// The controller refused (RFC 9457).
    #[error("{detail} ({code}, {status})")]
    Problem {
        /// HTTP status.
        status: u16,
        /// Stable, snake_case.
        code: String,
        /// What happened and what to do.
        detail: String,
    },
}

impl DoorError {
    /// Stable name of the kind of error: the controller's own where it gave one.
    pub fn code(&self) -> &str {
        match self {
            DoorError::Url(_) => "url_invalid",
            DoorError::Io(_) => "door_unreachable",
            DoorError::Untrusted { code, .. } => code,
            DoorError::Http(_) => "door_http",
            DoorError::Timeout => "door_timeout",
            DoorError::Answer(_) => "door_answer",
            DoorError::Problem { code, .. } => code,
        }
    }

    /// Code and detail, where a controller's word is that the node is deleted or disabled.
    pub(crate) fn refusal(&self) -> Option<(String, String)> {
        let DoorError::Problem { code, detail, .. } = self else { return None };
        matches!(code.as_str(), DELETED | DISABLED).then(|| (code.clone(), detail.clone()))
    }

    /// True where asking again cannot help: the controller understood and refused.
    pub fn is_final(&self) -> bool {
        match self {
            DoorError::Problem { status, .. } => (400..500).contains(status) && !matches!(status, 408 | 425 | 429),
            DoorError::Url(_)
            | DoorError::Io(_)
            | DoorError::Untrusted { .. }
            | DoorError::Http(_)
            | DoorError::Timeout
            | DoorError::Answer(_) => false,
        }
    }

    /// Why TLS did not come about.
    fn no_tls(url: &DoorUrl, error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(rustls::Error::InvalidCertificate(wrong)) = tls else { return Self::Io(error) };
        let (code, what) = match wrong {
            CertificateError::UnknownIssuer => (
                "ca_pin_mismatch",
                format!(
                    "{url} does not show a certificate of the CA that is pinned here: something else answers there, or the \
                     controller began anew, and this machine has to enrol again with a token of now"
                ),
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
                "name_mismatch",
                format!(
                    "the certificate of {url} is not for that name: the controller is told its own by --advertise-node"
                ),
            ),
            other => ("tls", format!("the certificate of {url} is not valid: {other}")),
        };
        Self::Untrusted { code, what }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
    title: String,
    detail: String,
}

/// Asks at doors with one TLS configuration.
#[derive(Clone)]
pub struct Door {
    tls: TlsConnector,
}

/// A connection that has become a stream of bytes.
pub type Stream = TokioIo<Upgraded>;

impl Door {
    /// With the trust and identity of `tls`.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls: TlsConnector::from(tls) }
    }

    /// GET, JSON back.
    pub async fn get<A: DeserializeOwned>(&self, url: &DoorUrl, path: &str) -> Result<A, DoorError> {
        let response = self.send(url, request(url, Method::GET, path, Bytes::new())?, ANSWER_MAX).await?;
        answer(response, BODY_MAX).await
    }

    /// POST of JSON, JSON back.
    pub async fn post<A: DeserializeOwned>(&self, url: &DoorUrl, path: &str, body: Vec<u8>) -> Result<A, DoorError> {
        self.post_slow(url, path, body, ANSWER_MAX, BODY_MAX).await
    }

    /// The same where the answer takes `within` and has up to `most` bytes.
    pub(crate) async fn post_slow<A: DeserializeOwned>(
        &self,
        url: &DoorUrl,
        path: &str,
        body: Vec<u8>,
        within: Duration,
        most: usize,
    ) -> Result<A, DoorError> {
        let response = self.send(url, request(url, Method::POST, path, body.into())?, within).await?;
        answer(response, most).await
    }

    /// GET with an upgrade to `protocol` (RFC 9110 §7.8).
    pub async fn upgrade(&self, url: &DoorUrl, path: &str, protocol: &'static str) -> Result<Stream, DoorError> {
        let mut request = request(url, Method::GET, path, Bytes::new())?;
        request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static(protocol));
        let response = self.send(url, request, ANSWER_MAX).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            answer::<serde::de::IgnoredAny>(response, BODY_MAX).await?;
            return Err(DoorError::Answer("no upgrade".to_owned()));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }

    async fn send(
        &self,
        url: &DoorUrl,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, DoorError> {
        let name = ServerName::try_from(url.host.clone()).map_err(|_| DoorError::Url(url.to_string()))?;
        let connect = async {
            let tcp = dial(lookup_host((url.host.as_str(), url.port)).await?).await?;
            tcp.set_nodelay(true)?;
            self.tls.connect(name, tcp).await.map_err(|error| DoorError::no_tls(url, error))
        };
        let tls = timeout(CONNECT_MAX, connect).await.map_err(|_| DoorError::Timeout)??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        // Ends with the request, the stream that it became, or the runtime.
        tokio::spawn(connection.with_upgrades());
        Ok(timeout(within, sender.send_request(request)).await.map_err(|_| DoorError::Timeout)??)
    }
}

/// Connects to one address after the other, each a little after the one before, until one answers (RFC 8305, section 5).
async fn dial(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let (mut addresses, mut tries) = (addresses.peekable(), JoinSet::new());
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = addresses.next() {
            tries.spawn(TcpStream::connect(address));
        }
        let wait = if addresses.peek().is_some() { NEXT_ADDRESS } else { CONNECT_MAX };
        match timeout(wait, tries.join_next()).await {
            Ok(Some(Ok(Ok(tcp)))) => return Ok(tcp),
            Ok(Some(Ok(Err(error)))) => failed = error,
            Ok(Some(Err(_))) | Err(_) => {}
            Ok(None) => return Err(failed),
        }
    }
}

fn request(url: &DoorUrl, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, DoorError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, url.authority())
        .header(header::USER_AGENT, concat!("cvlan/", env!("CARGO_PKG_VERSION")))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| DoorError::Answer(error.to_string()))
}

async fn answer<A: DeserializeOwned>(response: Response<Incoming>, most: usize) -> Result<A, DoorError> {
    let status = response.status();
    let body = timeout(ANSWER_MAX, Limited::new(response.into_body(), most).collect()).await;
    let bad = |what: String| DoorError::Answer(what);
    let body = body.map_err(|_| DoorError::Timeout)?.map_err(|error| bad(error.to_string()))?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| bad(format!("{status}, but {error}")));
    }
    let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    let or = |text: String, other: &str| {
        if text.is_empty() { other.to_owned() } else { text.chars().take(TEXT_MAX).collect() }
    };
    let reason = status.canonical_reason().unwrap_or("refused");
    Err(DoorError::Problem {
        status: status.as_u16(),
        code: or(problem.code, "unexplained"),
        detail: or(problem.detail, &or(problem.title, reason)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;
    use rustls::pki_types::PrivatePkcs8KeyDer;

    #[tokio::test]
    async fn an_address_that_is_silent_does_not_hold_up_the_next() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // Nobody takes its connections up: once its queue is full the kernel answers no more.
        let full = socket.listen(0).unwrap();
        let silent = full.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(tcp) = timeout(Duration::from_millis(300), TcpStream::connect(silent)).await {
            held.push(tcp.unwrap());
            assert!(held.len() < 64, "its queue is never full");
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let tcp = timeout(CONNECT_MAX, dial([silent, there].into_iter())).await.unwrap().unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), there);

        drop(listener);
        let refused = dial([there, there].into_iter()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(dial([].into_iter()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn who_is_not_the_controller_is_told_from_who_cannot_be_reached() {
        let (ours, theirs) = (tls::tests::ca(), tls::tests::ca());
        let door = Door::new(tls::client_config(tls::spki_sha256(&ours.der).unwrap(), None).unwrap());
        for (ca, name, code, says) in [
            (&theirs, "127.0.0.1", "ca_pin_mismatch", "enrol again"),
            (&ours, "10.0.0.1", "name_mismatch", "--advertise-node"),
            (&ours, "127.0.0.1", "door_http", ""),
        ] {
            let (leaf, key) = tls::tests::issued(ca, name);
            let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![leaf, ca.der.clone()], key)
                .unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url: DoorUrl = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
            // It takes the connection up, and closes it.
            let server = tokio::spawn(async move {
                let (tcp, _) = listener.accept().await.unwrap();
                drop(tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(tcp).await);
            });
            let error = door.get::<serde::de::IgnoredAny>(&url, "/").await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(says) && !error.is_final(), "{error}");
            server.await.unwrap();
        }
    }

    #[test]
    fn urls() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(text.parse::<DoorUrl>().ok().map(|url| url.to_string()).as_deref(), expected, "{text}");
        };
        check("https://10.0.0.1:8444", Some("https://10.0.0.1:8444"));
        check("https://c.example/", Some("https://c.example:443"));
        check("https://[fd00::1]:8444", Some("https://[fd00::1]:8444"));
        check("http://c.example", None);
        check("https://c.example/x", None);
        check("https://u:p@c.example", None);
        check("https://c.example?x=1", None);
        check("https://", None);
        check("c.example:8444", None);
        check("", None);
    }

    #[test]
    fn a_refusal_is_final_and_a_busy_door_is_not() {
        let check = |status: u16, expected: bool| {
            let problem = DoorError::Problem { status, code: "x".into(), detail: "y".into() };
            assert_eq!(problem.is_final(), expected, "{status}");
        };
        check(400, true);
        check(401, true);
        check(409, true);
        check(429, false);
        check(500, false);
        check(503, false);
        assert!(!DoorError::Timeout.is_final());
    }
}

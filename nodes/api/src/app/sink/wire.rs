//! Sinks that are elsewhere: POST of NDJSON, and syslog (RFC 5424) over TCP (RFC 6587 §3.4.1) or TLS (RFC 5425), each message
//! framed by its length.

use cvlan_core::id::{Checkpoint, Seq};
use cvlan_proto::v1::Event;
use reqwest::{Client, Url, header};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::error::Error;
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Facility 13 (log audit), severity 6 (informational): RFC 5424 §6.2.1.
const PRIORITY: u8 = 13 * 8 + 6;

/// A URL that takes NDJSON.
pub(super) struct Http {
    client: Client,
    url: Url,
}

impl Http {
    pub(super) fn open(url: &Url, ca: Option<&Path>) -> Result<Self, String> {
        let client = Client::builder().tls_backend_preconfigured(tls(ca)?).no_proxy();
        let client = client.redirect(reqwest::redirect::Policy::none()).build();
        Ok(Self { client: client.map_err(chain)?, url: url.clone() })
    }

    /// Events behind `after` and up to `to`.
    pub(super) async fn send(&self, after: Checkpoint, to: Seq, lines: Vec<u8>) -> Result<(), String> {
        let key = format!("{}.{}-{to}", after.epoch, after.seq.0 + 1);
        let request = self.client.post(self.url.clone()).header(header::CONTENT_TYPE, "application/x-ndjson");
        let answer = request.header("idempotency-key", key).body(lines).send().await.map_err(chain)?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(format!("it answered {}", answer.status())),
        }
    }
}

/// What went wrong and why, without the URL.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let (mut said, mut at) = (error.to_string(), error.source());
    while let Some(cause) = at {
        let text = cause.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        at = cause.source();
    }
    said
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection to a collector of syslog.
pub(super) struct Syslog(Box<dyn Wire>);

impl Syslog {
    pub(super) async fn open(host: &str, port: u16, ca: Option<&Path>, encrypted: bool) -> Result<Self, String> {
        let stream = TcpStream::connect((host, port)).await.map_err(|e| e.to_string())?;
        if !encrypted {
            return Ok(Self(Box::new(stream)));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(Arc::new(tls(ca)?));
        let stream = connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
        Ok(Self(Box::new(stream)))
    }

    pub(super) async fn send(&mut self, frames: &[u8]) -> Result<(), String> {
        self.listens().await?;
        self.0.write_all(frames).await.and(self.0.flush().await).map_err(|e| e.to_string())
    }

    /// There are no answers: that it hung up is seen by who reads, and after a write only too late.
    async fn listens(&mut self) -> Result<(), String> {
        let mut bytes = [0; 512];
        let mut read = ReadBuf::new(&mut bytes);
        let found = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.0).poll_read(cx, &mut read))).await;
        match found {
            Poll::Ready(Ok(())) if read.filled().is_empty() => Err("it hung up".to_owned()),
            Poll::Ready(Err(error)) => Err(error.to_string()),
            // What it says is nothing that is understood.
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

/// An event as a frame. 32473 is the enterprise number for examples (RFC 5612): we have none.
pub(super) fn frame(event: &Event, json: &str, at: Checkpoint, host: &str) -> String {
    let time = event.time.as_ref().map(|t| (t.seconds.max(0) as u64) * 1000 + t.nanos.max(0) as u64 / 1_000_000);
    let time = crate::doors::rest::reply::rfc3339(time.unwrap_or_default());
    let pid = std::process::id();
    let tenant = match event.tenant_id.as_str() {
        "" => String::new(),
        id => format!(" tenant=\"{id}\""),
    };
    let message = format!("<{PRIORITY}>1 {time} {host} cvlan {pid} event [cvlan@32473 log=\"{at}\"{tenant}] {json}");
    format!("{} {message}", message.len())
}

/// This machine, as messages name it.
pub(super) fn host() -> String {
    let host = rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned();
    if host.is_empty() { "-".to_owned() } else { host }
}

/// Whoever these vouch for; without a file nobody.
fn tls(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = ca {
        let said = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| said(&e))? {
            roots.add(certificate.map_err(|e| said(&e))?).map_err(|e| said(&e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_of_rfc_5424() {
        let event = Event { seq: 7, tenant_id: "t".into(), ..Event::default() };
        let at = Checkpoint { seq: Seq(7), ..Checkpoint::default() };
        let pid = std::process::id();
        let message = format!(
            "<110>1 1970-01-01T00:00:00.000Z host cvlan {pid} event [cvlan@32473 log=\"{at}\" tenant=\"t\"] {{}}"
        );
        assert_eq!(frame(&event, "{}", at, "host"), format!("{} {message}", message.len()));
    }

    #[tokio::test]
    async fn what_is_said_of_a_failure_has_no_secret() {
        let url = Url::parse("http://user:secret@127.0.0.1:9/secret?key=secret").unwrap();
        let said = Http::open(&url, None).unwrap().send(Checkpoint::default(), Seq(1), Vec::new()).await.unwrap_err();
        assert!(!said.contains("secret") && said.contains("refused"), "{said}");
    }
}

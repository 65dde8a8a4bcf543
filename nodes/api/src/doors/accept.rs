//! The accept loop of every door.
//!
//! ```text
//!  listener ─► permit (connections_max) ─► TLS handshake (10 s) ─► ALPN ─► HTTP/1.1 or 2 ─► Router
//!                  draining: no new connection, open ones finish their request, then close
//! ```

use super::drained;
use crate::metrics::Metrics;
use axum::Router;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// A TLS handshake must be done within this.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// A request's head must be there within this; an idle connection is closed after it.
pub const HEADER_TIME: Duration = Duration::from_secs(60);
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Bytes of a request's head, and of what is buffered of its body.
const BUFFER_MAX: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// After a failed accept (no file descriptor left, say) the loop rests.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// One side of a connection, known since its handshake; handlers get it as `Extension<Arc<Client>>`.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Its certificate, proven against the CA.
    pub certificate: Option<CertificateDer<'static>>,
}

/// A door: where it listens and how.
pub struct Door {
    /// Bound already.
    pub listener: TcpListener,
    /// `None` = plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Open connections; further ones wait in the listener's queue.
    pub connections_max: usize,
    /// Counts what fails before a request.
    pub metrics: Arc<Metrics>,
}

/// Serves until draining, then until the open connections are done.
pub async fn serve(door: Door, router: Router, mut draining: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(door.connections_max));
    let router = TowerToHyperService::new(router);
    let shared = Arc::new(Shared { tls: door.tls.map(TlsAcceptor::from), metrics: door.metrics, router });
    loop {
        let accepted = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((door.listener.accept().await, permit))
        };
        let (accepted, permit) = tokio::select! {
            Some(accepted) = accepted => accepted,
            () = drained(&mut draining) => break,
        };
        match accepted {
            Ok((tcp, address)) => {
                tokio::spawn(connection(shared.clone(), tcp, address, draining.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(door.listener);
    // Every permit back = every connection closed. The caller limits the time.
    let _ = permits.acquire_many(u32::try_from(door.connections_max).unwrap_or(u32::MAX)).await;
}

struct Shared {
    tls: Option<TlsAcceptor>,
    metrics: Arc<Metrics>,
    router: TowerToHyperService<Router>,
}

/// The router for one connection: it tells every request whose it is.
struct Routed {
    router: TowerToHyperService<Router>,
    client: Arc<Client>,
}

impl Service<Request<Incoming>> for Routed {
    type Response = Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.client.clone());
        self.router.call(request)
    }
}

async fn connection(
    shared: Arc<Shared>,
    tcp: TcpStream,
    address: SocketAddr,
    draining: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) {
    // Without it small answers may wait for the other side's acknowledgement. It fails only on a dead socket.
    let _ = tcp.set_nodelay(true);
    let address = address.ip().to_canonical();
    let routed =
        |certificate| Routed { router: shared.router.clone(), client: Arc::new(Client { address, certificate }) };
    let Some(tls) = &shared.tls else { return http1_serve(routed(None), tcp, draining).await };
    let stream = match tokio::time::timeout(HANDSHAKE_TIME, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            shared.metrics.handshakes_failed.fetch_add(1, Relaxed);
            return tracing::debug!(%address, %error, "TLS handshake failed");
        }
        Err(_) => {
            shared.metrics.handshakes_failed.fetch_add(1, Relaxed);
            return tracing::debug!(%address, "TLS handshake too slow");
        }
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|c| c.first()).map(|c| c.clone().into_owned());
    let http2 = session.alpn_protocol() == Some(b"h2");
    match http2 {
        true => http2_serve(routed(certificate), stream, draining).await,
        false => http1_serve(routed(certificate), stream, draining).await,
    }
}

async fn http1_serve(
    routed: Routed,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut draining: watch::Receiver<bool>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(io), routed)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // A connection that ends with an error has no one left to tell.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drained(&mut draining) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn http2_serve(
    routed: Routed,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut draining: watch::Receiver<bool>,
) {
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(HEADER_TIME)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(BUFFER_MAX as u32)
        .serve_connection(TokioIo::new(io), routed);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drained(&mut draining) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

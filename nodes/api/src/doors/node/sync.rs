//! An agent's stream: after the upgrade, bare varint-delimited frames both ways. What is sent and when is
//! [`cvlan_core::sync::Session`]'s; this moves bytes.
//!
//! ```text
//!  read ─► handle ─► endpoints: a command of the node's own        wake (scope), deadline ─┐
//!                                                                                          ▼
//!  write ◄── frame ◄──────────────────────────────────────────────── poll until it has nothing to say
//! ```
//! Back-pressure is the write: while the agent does not read, nothing is made for it. One part of a map is in memory.

use crate::app::{App, now_ms};
use crate::ca::peer_read;
use crate::doors::accept::Client;
use crate::doors::drained;
use crate::metrics::Sent;
use crate::problem::Problem;
use crate::streams::Open;
use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Buf, BytesMut};
use cvlan_core::id::NodeId;
use cvlan_core::map::{Place, place};
use cvlan_core::node::NodeCommand;
use cvlan_core::sync::{ENDPOINTS_MS, FRAME_MAX, Output, Session, Upward, View};
use cvlan_core::{Actor, Meta, Wish};
use cvlan_proto::Message;
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// What the client asks to upgrade to.
pub const PROTOCOL: &str = "cvlan-sync/1";
/// A frame must be written within this; an agent that does not read that long is gone.
pub const WRITE_TIME: Duration = Duration::from_secs(20);
/// First size of a stream's read buffer; agents say little.
const READ_BUFFER: usize = 512;
/// A drained agent comes back after this much, and up to that much again, milliseconds.
const BACK_AFTER_MS: u32 = 500;

/// Checks the certificate against the state and answers 101; the stream then runs in a task of its own.
pub async fn upgrade(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Arc<Client>>,
    mut request: Request,
) -> Result<Response, Problem> {
    let here = proven(&app, &client).await?;
    let asked = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !asked.eq_ignore_ascii_case(PROTOCOL) {
        let detail = format!("this path speaks {PROTOCOL}: send Connection: Upgrade and Upgrade: {PROTOCOL}");
        return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail));
    }
    let upgrading = hyper::upgrade::on(&mut request);
    let source = client.address;
    tokio::spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let node = here.node.id;
        let open = app.streams.open(here.node.tenant, here.cvlan.record.id, node);
        // The copy of the state was for the checks; the session reads the newest.
        drop(here);
        let mut stream =
            Stream { app, open, node, source, io: TokioIo::new(upgraded), read: BytesMut::new(), write: Vec::new() };
        if let Err(error) = stream.run().await {
            tracing::debug!(%node, %error, "sync stream ended");
        }
        // The other side may be gone already.
        let _ = tokio::time::timeout(WRITE_TIME, stream.io.shutdown()).await;
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}

/// The node whose certificate this is, if it may talk. TLS has proven the chain; a resumed session is not proven again,
/// so its times are looked at here too.
pub(super) async fn proven(app: &App, client: &Client) -> Result<Place, Problem> {
    let der = client.certificate.as_ref().ok_or_else(|| {
        Problem::unproven("certificate_missing", "sync needs the node's certificate; register with a token first")
    })?;
    let invalid = |why: &str| {
        Problem::unproven("certificate_invalid", format!("the certificate {why}; register again with a new token"))
    };
    let peer = peer_read(der).ok_or_else(|| invalid("is not a node's"))?;
    let now = now_ms();
    if now < peer.not_before_ms || now >= peer.not_after_ms {
        return Err(invalid("has expired"));
    }
    let here = match place(&app.log.head().machine, peer.node) {
        Ok(here) => here,
        // A machine that is told so forgets its peers: not on the word of a member that may be behind.
        Err(_) => {
            app.linearize().await?;
            place(&app.log.head().machine, peer.node)?
        }
    };
    if peer.not_before_ms < here.node.certs_valid_from_ms {
        return Err(invalid("was revoked"));
    }
    Ok(here)
}

struct Stream<T> {
    app: Arc<App>,
    open: Open,
    node: NodeId,
    source: IpAddr,
    io: T,
    read: BytesMut,
    write: Vec<u8>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream<T> {
    async fn run(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let now = || started.elapsed().as_millis() as u64;
        let mut session = Session::new(self.node, now());
        session.endpoints_wait(self.app.streams.endpoints_wait_ms(self.node, now_ms()));
        let mut draining = self.app.draining.subscribe();
        let mut cut_offs = self.app.cut_offs.subscribe();
        self.read.reserve(READ_BUFFER);
        loop {
            while let Some(frame) = self.frame_take()? {
                let said = session.handle(now(), frame).map_err(|e| malformed(e.to_string()));
                match said? {
                    Upward::Endpoints(endpoints) => self.endpoints(endpoints),
                    Upward::Nothing | Upward::Acked(_) => {}
                }
            }
            if let Some(endpoints) = session.endpoints_due(now()) {
                self.endpoints(endpoints);
            }
            loop {
                if self.open.is_superseded() {
                    let bye =
                        v1::Bye { code: "superseded".into(), detail: "a newer stream of this node is open".into() };
                    return self.send(SyncFrame { frame: Some(Frame::Bye(bye)) }).await;
                }
                let head = self.app.log.head();
                let view = View { epoch: head.epoch, seq: head.seq, state: &head.machine };
                match session.poll(now(), view) {
                    Some(Output::Send(frame)) => self.send(frame).await?,
                    Some(Output::Close(frame)) => return self.send(frame).await,
                    None => break,
                }
            }
            let deadline = started + Duration::from_millis(session.deadline());
            tokio::select! {
                read = self.io.read_buf(&mut self.read) => if read? == 0 { return Ok(()) },
                () = self.open.wake.notified() => session.wake(now()),
                () = tokio::time::sleep_until(deadline) => {}
                () = drained(&mut draining) => return self.send(redirect(&self.app)).await,
                Ok(()) = cut_offs.changed() => return self.send(redirect(&self.app)).await,
            }
        }
    }

    /// A whole frame out of what was read, if it is there.
    fn frame_take(&mut self) -> io::Result<Option<SyncFrame>> {
        let mut peek = self.read.as_ref();
        let length = match prost::encoding::decode_varint(&mut peek) {
            Ok(length) => length as usize,
            Err(_) if self.read.len() < 10 => return Ok(None),
            Err(e) => return Err(malformed(e.to_string())),
        };
        if length > FRAME_MAX {
            return Err(malformed(format!("a frame of {length} bytes, of at most {FRAME_MAX}")));
        }
        let start = self.read.len() - peek.len();
        if peek.len() < length {
            self.read.reserve(start + length - self.read.len());
            return Ok(None);
        }
        self.read.advance(start);
        let frame = SyncFrame::decode(self.read.split_to(length)).map_err(|e| malformed(e.to_string()))?;
        Ok(Some(frame))
    }

    async fn send(&mut self, frame: SyncFrame) -> io::Result<()> {
        match &frame.frame {
            Some(Frame::Map(_)) => self.app.metrics.sent(Sent::Map),
            Some(Frame::Delta(_)) => self.app.metrics.sent(Sent::Delta),
            Some(Frame::Heartbeat(_)) => self.app.metrics.sent(Sent::Heartbeat),
            Some(Frame::Redirect(_) | Frame::Bye(_) | Frame::Hello(_) | Frame::Ack(_) | Frame::Endpoints(_)) | None => {
            }
        }
        self.write.clear();
        frame.encode_length_delimited(&mut self.write).map_err(|e| io::Error::other(e.to_string()))?;
        let written = async {
            self.io.write_all(&self.write).await?;
            self.io.flush().await
        };
        tokio::time::timeout(WRITE_TIME, written).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // A large part's buffer is not kept for a stream that is quiet most of its life.
        self.write.shrink_to(READ_BUFFER);
        Ok(())
    }

    fn endpoints(&self, endpoints: Vec<String>) {
        endpoints_told(&self.app, self.node, self.source, endpoints);
    }
}

/// An agent's own endpoints become an event, off the stream's path: it goes on while that is being written. It says them
/// once: where nobody leads they are tried again, while it is here and says nothing else.
pub(super) fn endpoints_told(app: &Arc<App>, node: NodeId, source: IpAddr, endpoints: Vec<String>) {
    let app = app.clone();
    // Before the task begins: tasks need not begin in the order in which they were made.
    let said = app.streams.endpoints_said(node);
    tokio::spawn(async move {
        let mut taken = false;
        loop {
            let head = app.log.head();
            let Some((home, here)) = head.machine.node_find(node) else { return };
            if *here.endpoints == *endpoints {
                return;
            }
            if !std::mem::replace(&mut taken, true) {
                app.streams.endpoints_taken(node, now_ms());
            }
            let meta =
                Meta { actor: Actor::Node(node, here.name.to_string()), source: source.to_string(), ..Meta::default() };
            let wish = NodeCommand::Endpoints { tenant: home.record.id, id: node, endpoints: endpoints.clone() };
            let Err(problem) = app.command(meta, Wish::Node(wish)).await else { return };
            tracing::info!(%node, code = problem.code, detail = %problem.detail, "endpoints were not taken");
            if problem.retry_after.is_none() {
                return;
            }
            drop(head);
            tokio::time::sleep(Duration::from_millis(ENDPOINTS_MS)).await;
            if !app.streams.endpoints_stand(node, said) {
                return;
            }
        }
    });
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// This member stops, or hears nothing new: go somewhere else, not all at once.
pub(super) fn redirect(app: &App) -> SyncFrame {
    let [spread] = crate::random::bytes::<1>();
    let urls = app.node_urls_elsewhere();
    let after_ms = BACK_AFTER_MS + BACK_AFTER_MS * u32::from(spread) / 255;
    SyncFrame { frame: Some(Frame::Redirect(v1::Redirect { urls, after_ms })) }
}

//! TLS 1.3 between members, and the frames in it.
//!
//! ```text
//!  ALPN cvlan-member/1   both sides show a member's certificate; frames of Raft both ways, for as long as it lives
//!       cvlan-join/1     the joiner shows none, and pins the CA of its token; one question, one answer
//!       cvlan-rebuild/1  both sides show a member's certificate; one question, one answer
//!       cvlan-voter/1    likewise
//!
//!  members   connecting side: u8 length ‖ HOST:PORT, where it is reached itself: the other one may look for it elsewhere
//!            accepting side: one byte, WELCOME or REMOVED, once it has looked at the certificate
//!            then frames = u32 LE length ‖ bytes          length ≤ FRAME_MAX, else the connection ends
//! ```
//! Bounded: [`FRAMES`] whole frames each way and one that is read or written; a connect is done within
//! [`HANDSHAKE_TIME`], a write within [`WRITE_TIME`]; a peer that is silent at the TCP level is dropped after 15 s.
//! Sessions are not resumed: every connection proves its certificate.

use crate::ca::{Live, MemberPeer, member_name, member_read};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use cvlan_raft::types::Cfg;
use cvlan_raft::{Pipe, Transport};
use openraft::async_runtime::{MpscReceiver, MpscSender};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{MpscReceiverOf, MpscSenderOf};
use openraft_rt_tokio::TokioRuntime;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// What members speak.
pub const MEMBER: &[u8] = b"cvlan-member/1";
/// What one who is not a member yet speaks.
pub const JOIN: &[u8] = b"cvlan-join/1";
/// What a member speaks that lost its log.
pub const REBUILD: &[u8] = b"cvlan-rebuild/1";
/// What a member speaks that needs, or hands over, what voters alone have.
pub const VOTER: &[u8] = b"cvlan-voter/1";
pub use cvlan_raft::peer::codec::FRAME_MAX;

/// Frames that wait in each direction of a connection.
pub const FRAMES: usize = 16;
/// The first byte of the accepting side: go on.
const WELCOME: u8 = 0;
/// The other first byte: the connecting member was removed.
const REMOVED: u8 = 1;
/// A connection is there, TLS included, within this.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// What is written at once must be taken by the other side within this.
pub const WRITE_TIME: Duration = Duration::from_secs(20);
/// Frames are gathered up to so many bytes for one write; a longer one goes by itself.
const COALESCE: usize = 64 << 10;
/// Frames up to this length are taken out of what was read.
const COPIED: usize = 16 << 10;
/// Read at once.
const READ: usize = 64 << 10;
/// A peer whose machine is gone is noticed after 10 s of silence and one more second for each probe.
const IDLE: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(1);
const PROBES: u32 = 5;

/// One's own certificate and whom one trusts.
struct Side {
    connector: TlsConnector,
    /// The same, for [`VOTER`].
    asker: TlsConnector,
    acceptor: TlsAcceptor,
    /// HOST:PORT of this member; empty where nobody is to connect to it.
    address: String,
}

/// Connects to members; before [`TlsTransport::set`] to nobody.
#[derive(Clone, Default)]
pub struct TlsTransport(Arc<Inner>);

#[derive(Default)]
struct Inner {
    side: OnceLock<Side>,
    removed: AtomicBool,
}

/// A connection that was accepted.
pub enum Accepted {
    /// A member, proven by its certificate, and where it says that it is reached.
    Member(MemberPeer, String, Box<server::TlsStream<TcpStream>>),
    /// One who wants to become a member.
    Joiner(Box<server::TlsStream<TcpStream>>),
    /// A member, or one that was one a moment ago, proven by its certificate, that lost its log.
    Rebuilder(MemberPeer, Box<server::TlsStream<TcpStream>>),
    /// A member, proven by its certificate, with a question about keys.
    Asker(MemberPeer, Box<server::TlsStream<TcpStream>>),
}

fn denied(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

/// Connects with this certificate, trusts this CA alone, and speaks one thing.
pub fn client_config(
    ca: &CertificateDer<'static>,
    own: Arc<Live>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let mut client = builder.with_root_certificates(roots(ca)?).with_client_cert_resolver(own);
    client.alpn_protocols = vec![alpn.to_vec()];
    client.resumption = Resumption::disabled();
    Ok(Arc::new(client))
}

impl TlsTransport {
    /// From here on it connects and accepts with this certificate, trusts this CA alone, and tells its address. Counts
    /// once.
    pub fn set(&self, ca: &CertificateDer<'static>, own: Arc<Live>, address: &str) -> Result<(), rustls::Error> {
        let general = |e: &dyn std::fmt::Display| rustls::Error::General(e.to_string());
        let client = client_config(ca, own.clone(), MEMBER)?;
        let asker = client_config(ca, own.clone(), VOTER)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider.clone());
        let verifier = verifier.allow_unauthenticated().build().map_err(|e| general(&e))?;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
        let mut server = builder.with_client_cert_verifier(verifier).with_cert_resolver(own);
        server.alpn_protocols = vec![MEMBER.to_vec(), JOIN.to_vec(), REBUILD.to_vec(), VOTER.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let side = Side {
            connector: TlsConnector::from(client),
            asker: TlsConnector::from(asker),
            acceptor: TlsAcceptor::from(Arc::new(server)),
            address: address.to_owned(),
        };
        let _ = self.0.side.set(side);
        Ok(())
    }

    /// True once a member said that this one was removed from the cluster.
    pub fn removed(&self) -> bool {
        self.0.removed.load(Relaxed)
    }

    fn side(&self) -> io::Result<&Side> {
        self.0
            .side
            .get()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "this member has no certificate yet"))
    }

    /// Takes up a connection: who is it?
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Accepted> {
        tune(&tcp)?;
        let mut stream = timeout(HANDSHAKE_TIME, self.side()?.acceptor.accept(tcp)).await??;
        let (_, session) = stream.get_ref();
        let speaks = session.alpn_protocol().map(<[u8]>::to_vec).unwrap_or_default();
        if speaks == JOIN {
            return Ok(Accepted::Joiner(Box::new(stream)));
        }
        if ![MEMBER, REBUILD, VOTER].contains(&speaks.as_slice()) {
            return Err(denied("it speaks none of cvlan-member/1, cvlan-join/1, cvlan-rebuild/1 and cvlan-voter/1"));
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let peer = certificate.ok_or_else(|| denied("it shows no certificate"))?;
        let peer = member_read(peer).ok_or_else(|| denied("its certificate is not a member's"))?;
        if speaks == REBUILD {
            return Ok(Accepted::Rebuilder(peer, Box::new(stream)));
        }
        if speaks == VOTER {
            return Ok(Accepted::Asker(peer, Box::new(stream)));
        }
        let address = timeout(HANDSHAKE_TIME, address_read(&mut stream)).await??;
        Ok(Accepted::Member(peer, address, Box::new(stream)))
    }

    /// Connects to a member for one question, and says what its certificate does.
    pub async fn ask(&self, to: u64, address: &str) -> io::Result<(MemberPeer, client::TlsStream<TcpStream>)> {
        let name = ServerName::try_from(member_name(to)).map_err(io::Error::other)?;
        let tcp = TcpStream::connect(address).await?;
        tune(&tcp)?;
        let stream = self.side()?.asker.connect(name, tcp).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let peer = certificate.and_then(|der| member_read(der)).filter(|peer| peer.member == to);
        let peer = peer.ok_or_else(|| denied(format!("it is not member {to}")))?;
        Ok((peer, stream))
    }

    async fn dial(&self, to: u64, address: &str) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(member_name(to)).map_err(io::Error::other)?;
        let tcp = TcpStream::connect(address).await?;
        tune(&tcp)?;
        let side = self.side()?;
        let mut stream = side.connector.connect(name, tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(MEMBER) {
            return Err(denied(format!("member {to} does not speak cvlan-member/1")));
        }
        stream.write_u8(u8::try_from(side.address.len()).map_err(io::Error::other)?).await?;
        stream.write_all(side.address.as_bytes()).await?;
        stream.flush().await?;
        match stream.read_u8().await? {
            WELCOME => Ok(stream),
            REMOVED => {
                self.0.removed.store(true, Relaxed);
                Err(denied("this member was removed from the cluster"))
            }
            other => Err(denied(format!("member {to} greets with {other}"))),
        }
    }
}

async fn address_read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut bytes = vec![0; io.read_u8().await?.into()];
    io.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Lets a member in: from here on frames pass.
pub async fn welcome(mut io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Pipe<TokioRuntime>> {
    greet(&mut io, WELCOME).await?;
    Ok(pipe(io))
}

/// Tells a member that it is none any more.
pub async fn dismiss(mut io: impl AsyncWrite + Unpin) -> io::Result<()> {
    greet(&mut io, REMOVED).await?;
    io.shutdown().await
}

async fn greet(io: &mut (impl AsyncWrite + Unpin), byte: u8) -> io::Result<()> {
    let write = async {
        io.write_u8(byte).await?;
        io.flush().await
    };
    timeout(HANDSHAKE_TIME, write).await?
}

impl Transport<TokioRuntime> for TlsTransport {
    async fn connect(&self, to: u64, address: &str) -> io::Result<Pipe<TokioRuntime>> {
        Ok(pipe(timeout(HANDSHAKE_TIME, self.dial(to, address)).await??))
    }
}

/// Small frames go at once; a machine that is gone is noticed.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(tcp, true)?;
    rustix::net::sockopt::set_tcp_keepidle(tcp, IDLE)?;
    rustix::net::sockopt::set_tcp_keepintvl(tcp, PROBE)?;
    rustix::net::sockopt::set_tcp_keepcnt(tcp, PROBES)?;
    Ok(())
}

/// A stream of bytes as a pipe of frames; it ends when either side lets go of it.
pub fn pipe(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Pipe<TokioRuntime> {
    let (tx, out) = Cfg::<TokioRuntime>::mpsc(FRAMES);
    let (back, rx) = Cfg::<TokioRuntime>::mpsc(FRAMES);
    let (read, write) = tokio::io::split(io);
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = frames_read(read, back) => ended,
            ended = frames_write(write, out) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a member's connection ended");
        }
    });
    Pipe { tx, rx }
}

async fn frames_read(mut io: impl AsyncRead + Unpin, back: MpscSenderOf<Cfg<TokioRuntime>, Bytes>) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        while let Some(frame) = frame_take(&mut buffer)? {
            if back.send(frame).await.is_err() {
                return Ok(());
            }
        }
        buffer.reserve(READ);
        if io.read_buf(&mut buffer).await? == 0 {
            return if buffer.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// A whole frame out of what was read, if it is there.
fn frame_take(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > FRAME_MAX {
        return Err(too_long(length));
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    if length > COPIED {
        return Ok(Some(buffer.split_to(length).freeze()));
    }
    // A short frame that is kept, as an entry in the log's tail is, must not keep the buffer that it came in.
    let frame = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
    buffer.advance(length);
    Ok(Some(frame))
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes, of at most {FRAME_MAX}"))
}

async fn frames_write(
    mut io: impl AsyncWrite + Unpin,
    mut out: MpscReceiverOf<Cfg<TokioRuntime>, Bytes>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(COALESCE);
    while let Some(first) = out.recv().await {
        let mut next = Some(first);
        // A frame that is too long to be gathered is written from where it is.
        let mut long = None;
        while let Some(frame) = next.take() {
            if frame.len() > FRAME_MAX {
                return Err(too_long(frame.len()));
            }
            buffer.put_u32_le(frame.len() as u32);
            if frame.len() >= COALESCE {
                long = Some(frame);
            } else {
                buffer.put(frame);
                next = if buffer.len() < COALESCE { out.try_recv().ok() } else { None };
            }
        }
        let write = async {
            io.write_all(&buffer).await?;
            if let Some(long) = &long {
                io.write_all(long).await?;
            }
            io.flush().await
        };
        timeout(WRITE_TIME, write).await??;
        buffer.clear();
    }
    // The other side sees an end, not a reset; it may be gone already.
    let _ = timeout(WRITE_TIME, io.shutdown()).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Ca, Signer, ca_make};
    use crate::cluster::pin::joiner_config;
    use rcgen::KeyPair;
    use tokio::io::DuplexStream;
    use tokio::net::TcpListener;

    const NOW: u64 = 1_700_000_000_000;

    fn ends() -> (Pipe<TokioRuntime>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        (pipe(ours), theirs)
    }

    #[tokio::test]
    async fn frames_pass_whole_and_in_order() {
        let (a, b) = tokio::io::duplex(1000);
        let (a, mut b) = (pipe(a), pipe(b));
        let frame = |n: usize| Bytes::from(vec![n as u8; [0, 1, 100, COALESCE - 1, COALESCE, 3 * COALESCE][n % 6]]);
        let send = async {
            for n in 0..200 {
                a.tx.send(frame(n)).await.ok().unwrap();
            }
        };
        let take = async {
            for n in 0..200 {
                assert!(b.rx.recv().await.unwrap() == frame(n), "frame {n}");
            }
        };
        tokio::join!(send, take);
        drop(a);
        assert!(b.rx.recv().await.is_none(), "closed is lost");
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_ends_the_connection() {
        let (mut pipe, mut raw) = ends();
        raw.write_all(&(FRAME_MAX as u32 + 1).to_le_bytes()).await.unwrap();
        assert!(pipe.rx.recv().await.is_none());

        let (pipe, mut raw) = ends();
        pipe.tx.send(Bytes::from(vec![0; FRAME_MAX + 1])).await.ok().unwrap();
        assert_eq!(raw.read(&mut [0; 8]).await.unwrap(), 0, "nothing of it is sent");
    }

    #[tokio::test]
    async fn one_that_is_not_read_fills_its_bound_and_no_more() {
        let (mut pipe, mut raw) = ends();
        let mut sent = 0;
        let frame = [&(READ as u32).to_le_bytes()[..], &[7; READ]].concat();
        while timeout(Duration::from_millis(200), raw.write_all(&frame)).await.is_ok() {
            sent += 1;
            assert!(sent < FRAMES + 64, "{sent} frames were taken and nobody reads");
        }
        assert_eq!(pipe.rx.recv().await.unwrap().len(), READ);
    }

    fn certified(ca: &Signer, id: u64) -> Arc<Live> {
        let key = KeyPair::generate().unwrap();
        let leaf = ca.member(id, &key, crate::app::now_ms()).unwrap();
        Live::new(ca.ca().chain(leaf, &key).unwrap())
    }

    fn ca() -> Signer {
        let (key, der) = ca_make(NOW).unwrap();
        Signer::open(&key, Arc::new(Ca::read(&der).unwrap())).unwrap()
    }

    fn transport(ca: &Signer, id: u64) -> TlsTransport {
        let transport = TlsTransport::default();
        transport.set(ca.ca().der(), certified(ca, id), &format!("m{id}:1")).unwrap();
        transport
    }

    #[tokio::test]
    async fn members_prove_who_they_are_to_each_other() {
        let (ours, theirs) = (ca(), ca());
        let two = transport(&ours, 2);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accept = async || two.accept(listener.accept().await.unwrap().0).await;

        let one = transport(&ours, 1);
        let enter = async {
            let Ok(Accepted::Member(peer, address, stream)) = accept().await else { panic!("not a member") };
            assert_eq!(address, "m1:1");
            (peer.member, welcome(stream).await.unwrap())
        };
        let (to_two, (who, mut at_two)) = tokio::join!(one.connect(2, &address), enter);
        assert_eq!(who, 1);
        to_two.unwrap().tx.send(Bytes::from_static(b"hello")).await.ok().unwrap();
        assert_eq!(at_two.rx.recv().await.unwrap(), "hello");

        let leave = async {
            let Ok(Accepted::Member(_, _, stream)) = accept().await else { panic!("not a member") };
            dismiss(stream).await.unwrap();
        };
        assert!(!one.removed());
        let (refused, ()) = tokio::join!(one.connect(2, &address), leave);
        assert!(refused.is_err() && one.removed());

        // Another member answers there; another CA; a member that has no certificate yet.
        let (wrong, _) = tokio::join!(one.connect(3, &address), accept());
        assert!(wrong.is_err());
        let stranger = transport(&theirs, 2);
        let (foreign, accepted) = tokio::join!(stranger.connect(2, &address), accept());
        assert!(foreign.is_err() && accepted.is_err());
        assert!(TlsTransport::default().connect(2, &address).await.is_err());
    }

    #[tokio::test]
    async fn a_joiner_shows_nothing_and_pins_the_ca() {
        let (ours, theirs) = (ca(), ca());
        let two = transport(&ours, 2);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (ca, trusts) in [(&ours, true), (&theirs, false)] {
            let dial = async {
                let tcp = TcpStream::connect(address).await.unwrap();
                let name = ServerName::try_from(crate::ca::ANY_MEMBER).unwrap();
                TlsConnector::from(joiner_config(ca.ca().spki_sha256()).unwrap()).connect(name, tcp).await
            };
            let accept = async { two.accept(listener.accept().await.unwrap().0).await };
            let (dialled, accepted) = tokio::join!(dial, accept);
            assert_eq!(dialled.is_ok(), trusts);
            assert_eq!(matches!(accepted, Ok(Accepted::Joiner(_))), trusts);
        }
    }
}

//! A connection to a server under load: TLS, and as little HTTP as it takes. Bytes are made and read by hand, so that the
//! generator costs every server the same, and little.

use crate::https::connector;
use anyhow::{Context, bail, ensure};
use rustls::pki_types::ServerName;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest answer, or page of answers, that is read.
const ANSWER_MAX: usize = 256 << 10;

/// Where requests go, and how.
pub(super) struct Target {
    port: u16,
    tls: TlsConnector,
    protocol: Protocol,
}

/// How requests are put.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1: one after the other.
    Http1,
    /// HTTP/2 with gRPC's messages (a prefix of five bytes).
    Grpc,
}

impl Target {
    /// A server whose certificate is of `ca`; `client` are certificate and key that this side shows (PEM files).
    pub(super) fn new(
        port: u16,
        protocol: Protocol,
        ca: &Path,
        client: Option<(PathBuf, PathBuf)>,
    ) -> anyhow::Result<Self> {
        let own = client.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        let name: &[u8] = match protocol {
            Protocol::Http1 => b"http/1.1",
            Protocol::Grpc => b"h2",
        };
        Ok(Self { port, tls: connector(ca, own, name)?, protocol })
    }

    /// A connection on which every request has this method, path and headers.
    pub(super) async fn connect(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Wire> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        let stream = self.tls.connect(ServerName::try_from("localhost")?, tcp).await?;
        let io = Io { stream, out: Vec::new(), buffer: vec![0; ANSWER_MAX], have: 0 };
        Ok(match self.protocol {
            Protocol::Http1 => {
                let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
                headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
                Wire::One(Http1 { io, head })
            }
            Protocol::Grpc => Wire::Two(Http2::new(io, method, path, headers)),
        })
    }

    /// One request on a connection of its own: the answer's body.
    pub(super) async fn once(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        let mut wire = self.connect(method, path, headers).await?;
        wire.ask(body);
        wire.answered(&mut Vec::new()).await
    }
}

/// A connection.
pub(super) enum Wire {
    One(Http1),
    Two(Http2),
}

impl Wire {
    /// Another request, which goes out with the next [`Wire::answered`]: its number on this connection. HTTP/1.1 takes
    /// one at a time.
    pub(super) fn ask(&mut self, body: &[u8]) -> u32 {
        match self {
            Self::One(wire) => wire.ask(body),
            Self::Two(wire) => wire.ask(body),
        }
    }

    /// Sends what was asked and waits for at least one answer: the numbers of those that came, the last one's body.
    /// Anything but success is an error.
    pub(super) async fn answered(&mut self, ids: &mut Vec<u32>) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::One(wire) => wire.answered(ids).await,
            Self::Two(wire) => wire.answered(ids).await,
        }
    }
}

/// Bytes on their way.
struct Io {
    stream: TlsStream<TcpStream>,
    out: Vec<u8>,
    buffer: Vec<u8>,
    have: usize,
}

impl Io {
    async fn flush(&mut self) -> anyhow::Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await?;
            self.out.clear();
        }
        Ok(())
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        let free = self.buffer.get_mut(self.have..).filter(|b| !b.is_empty()).context("the answer is too long")?;
        let n = self.stream.read(free).await?;
        ensure!(n > 0, "the connection was closed");
        self.have += n;
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.have).unwrap_or_default()
    }

    fn taken(&mut self, n: usize) {
        self.buffer.copy_within(n..self.have, 0);
        self.have -= n;
    }
}

/// HTTP/1.1 (RFC 9112): answers with a length.
pub(super) struct Http1 {
    io: Io,
    head: String,
}

impl Http1 {
    fn ask(&mut self, body: &[u8]) -> u32 {
        let out = &mut self.io.out;
        out.extend_from_slice(self.head.as_bytes());
        if !body.is_empty() {
            out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
        0
    }

    async fn answered(&mut self, ids: &mut Vec<u32>) -> anyhow::Result<Vec<u8>> {
        self.io.flush().await?;
        loop {
            self.io.more().await?;
            let bytes = self.io.bytes();
            let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(bytes.get(..end).unwrap_or_default())?;
            let length: usize = head
                .lines()
                .filter_map(|l| l.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(Ok(0), |(_, value)| value.trim().parse())?;
            let Some(answer) = bytes.get(end + 4..end + 4 + length) else { continue };
            if !head.starts_with("HTTP/1.1 2") {
                bail!("{}: {}", head.lines().next().unwrap_or_default(), String::from_utf8_lossy(answer));
            }
            let answer = answer.to_vec();
            self.io.taken(end + 4 + length);
            ids.push(0);
            return Ok(answer);
        }
    }
}

/// HTTP/2 (RFC 9113) with gRPC's framing: many requests at once. Headers are put into the peer's table (RFC 7541) by the
/// first request and named by their places after that.
pub(super) struct Http2 {
    io: Io,
    /// The first request's header block, then the others'.
    blocks: [Vec<u8>; 2],
    next: u32,
    /// Bytes that the other side takes on this connection.
    window: i64,
    /// What has come of an answer.
    answers: std::collections::BTreeMap<u32, Vec<u8>>,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME_HEAD: usize = 9;
/// Places of HPACK's static table; its dynamic one begins after them.
const STATIC: usize = 61;

impl Http2 {
    fn new(mut io: Io, method: &str, path: &str, headers: &[(&str, &str)]) -> Self {
        io.out.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        // Answers are never held up by windows: a stream's (SETTINGS_INITIAL_WINDOW_SIZE) and the connection's.
        let [largest, more] = [0x7fff_ffff_u32, 0x7fff_ffff - 65_535].map(u32::to_be_bytes);
        frame(&mut io.out, SETTINGS, 0, 0, &[&[0, 4], &largest]);
        frame(&mut io.out, WINDOW_UPDATE, 0, 0, &[&more]);
        let pseudo = [(":method", method), (":scheme", "https"), (":path", path), (":authority", "localhost")];
        let all: Vec<_> = pseudo.iter().chain(headers).collect();
        let mut blocks = [Vec::new(), Vec::new()];
        let [first, others] = &mut blocks;
        for (i, (name, value)) in all.iter().enumerate() {
            first.push(0x40);
            for text in [name, value] {
                integer(first, 0, 7, text.len());
                first.extend_from_slice(text.as_bytes());
            }
            integer(others, 0x80, 7, STATIC + all.len() - i);
        }
        Self { io, blocks, next: 1, window: 65_535, answers: Default::default() }
    }

    fn ask(&mut self, body: &[u8]) -> u32 {
        let id = self.next;
        self.next += 2;
        let [first, others] = &self.blocks;
        frame(&mut self.io.out, HEADERS, END_HEADERS, id, &[if id == 1 { first } else { others }]);
        frame(&mut self.io.out, DATA, END_STREAM, id, &[&[0], &(body.len() as u32).to_be_bytes(), body]);
        self.window -= body.len() as i64 + 5;
        self.answers.insert(id, Vec::new());
        id
    }

    async fn answered(&mut self, ids: &mut Vec<u32>) -> anyhow::Result<Vec<u8>> {
        ensure!(self.window >= 0, "the server's window is too small for this load");
        let mut last = None;
        while last.is_none() {
            self.io.flush().await?;
            self.io.more().await?;
            while let Some((kind, flags, id, payload)) = self.frame()? {
                if kind == DATA {
                    self.answers.get_mut(&id).context("data of no request")?.extend_from_slice(&payload);
                }
                if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                    let answer = self.answers.remove(&id).context("the end of no request")?;
                    // An error has no message: it is told in the trailers alone.
                    last = Some(answer.get(5..).filter(|message| !message.is_empty()).context("refused")?.to_vec());
                    ids.push(id);
                }
            }
        }
        self.io.flush().await?;
        last.context("nothing")
    }

    /// The next frame that has come whole, unless it was for the connection alone.
    fn frame(&mut self) -> anyhow::Result<Option<Frame>> {
        loop {
            let Some((head, rest)) = self.io.bytes().split_first_chunk::<FRAME_HEAD>() else { return Ok(None) };
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
            let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            let Some(payload) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
            self.io.taken(FRAME_HEAD + length);
            let id = u32::from_be_bytes([s0, s1, s2, s3]);
            match kind {
                SETTINGS if flags & ACK == 0 => frame(&mut self.io.out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut self.io.out, PING, ACK, 0, &[&payload]),
                WINDOW_UPDATE if id == 0 => {
                    let by: [u8; 4] = payload.as_slice().try_into().context("a window update of another length")?;
                    self.window += i64::from(u32::from_be_bytes(by));
                }
                RST_STREAM | GOAWAY => bail!("the server ended it: {payload:x?}"),
                DATA | HEADERS => return Ok(Some((kind, flags, id, payload))),
                _ => {}
            }
        }
    }
}

/// Kind, flags, stream, payload.
type Frame = (u8, u8, u32, Vec<u8>);

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, id: u32, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice((length as u32).to_be_bytes().get(1..).unwrap_or_default());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// RFC 7541 §5.1: a number after a prefix of so many bits.
fn integer(out: &mut Vec<u8>, pattern: u8, bits: u32, value: usize) {
    let most = (1usize << bits) - 1;
    if value < most {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_the_rfc_has_them() {
        // RFC 7541 C.1.1, C.1.2, C.1.3.
        for (bits, value, want) in [(5, 10, vec![10]), (5, 1337, vec![31, 154, 10]), (8, 42, vec![42])] {
            let mut out = Vec::new();
            integer(&mut out, 0, bits, value);
            assert_eq!(out, want);
        }
    }
}

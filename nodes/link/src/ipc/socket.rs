//! Unix sockets: whom to listen to, and whole frames over them.

use super::{FRAME_MAX, IpcError, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// How long a call may take: a full configuration of a big network on a slow machine.
const CALL_MAX: Duration = Duration::from_secs(30);

/// Listens at `path` (mode 0600; its folder is made 0700 where it is missing). A socket that a dead daemon left is
/// replaced; one that answers is not.
pub fn listen(path: &Path) -> Result<UnixListener, IpcError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(IpcError::Taken(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen at {}: {error}", path.display())))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// True where the other side is this user or root (SO_PEERCRED).
pub fn allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// Reads one message; None where the other side has closed.
pub async fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<Option<T>, IpcError> {
    let mut head = [0u8; 4];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = u32::from_le_bytes(head) as usize;
    if length > FRAME_MAX {
        return Err(IpcError::TooLong(length));
    }
    // Grows with what comes, not with what was announced.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    decode(&body).map(Some)
}

/// Writes one message.
pub async fn write<T: Serialize>(stream: &mut UnixStream, message: &T) -> Result<(), IpcError> {
    stream.write_all(&encode(message)?).await.map_err(IpcError::from)
}

/// The asking end of a local socket.
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the daemon at `path`.
    pub async fn connect(path: &Path) -> Result<Self, IpcError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| IpcError::Unreachable { path: path.display().to_string(), source })?;
        Ok(Self { stream })
    }

    /// Asks, and waits for the answer. After an error the connection is of no more use.
    pub async fn call<Q: Serialize, A: DeserializeOwned>(&mut self, request: &Q) -> Result<A, IpcError> {
        let call = async {
            write(&mut self.stream, request).await?;
            read(&mut self.stream).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into())
        };
        timeout(CALL_MAX, call).await.unwrap_or(Err(IpcError::Timeout))
    }

    /// Returns once the other side has closed. Only between calls.
    pub async fn closed(&self) {
        let mut byte = [0u8; 1];
        while self.stream.readable().await.is_ok() {
            match self.stream.try_read(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{CtrlReply, CtrlRequest};
    use std::time::Instant;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_call_over_a_socket_and_a_second_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run").join("x.sock");
        runtime().block_on(async {
            let listener = listen(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(listen(&path).unwrap_err().code(), "ipc_taken");
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    assert!(allowed(&stream));
                    if let Some(CtrlRequest::Status) = read(&mut stream).await.unwrap() {
                        write(&mut stream, &CtrlReply::Status("{}".into())).await.unwrap();
                        return;
                    }
                }
            });
            let mut client = Client::connect(&path).await.unwrap();
            let reply: CtrlReply = client.call(&CtrlRequest::Status).await.unwrap();
            assert_eq!(reply, CtrlReply::Status("{}".into()));
            server.await.unwrap();
            client.closed().await;
            // The listener is gone, its file is not: the next one takes its place.
            assert_eq!(Client::connect(&path).await.err().unwrap().code(), "ipc_unreachable");
            listen(&path).unwrap();
        });
    }

    #[test]
    fn an_oversized_or_cut_frame_is_an_error_at_once() {
        let check = |bytes: &'static [u8], expected: &'static str| {
            runtime().block_on(async move {
                let (mut ours, mut theirs) = UnixStream::pair().unwrap();
                let started = Instant::now();
                theirs.write_all(bytes).await.unwrap();
                drop(theirs);
                let got: Result<Option<CtrlRequest>, _> = read(&mut ours).await;
                let got =
                    got.map_or_else(|error| error.code(), |message| if message.is_some() { "ok" } else { "closed" });
                assert_eq!(got, expected, "{bytes:?}");
                assert!(started.elapsed() < Duration::from_secs(5));
            });
        };
        check(&[], "closed");
        check(&[2, 0, 0, 0, 1, 0], "ok");
        check(&[2, 0, 0, 0, 1], "ipc_io");
        check(&[255, 255, 255, 255, 1], "ipc_too_long");
        check(&[255, 255, 255, 0, 1], "ipc_io");
    }
}

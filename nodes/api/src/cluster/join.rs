//! How a machine becomes a member: `cvlan-join/1`, one question and one answer.
//!
//! ```text
//!  joiner   token ─► keys/member.key (made, durable) ─► TLS, CA pinned by the token ─► JoinRequest{id, secret, CSR, address}
//!  member   CSR signed by its own key? ─► MemberCommand::Join (secret, time, key: decide) ─► certificate
//!  joiner   ◄─ JoinResponse{epoch, CA, certificate} ─► keys/, each file durable, identity last
//! ```
//! It follows from then on, without the cluster's keys: those come when it is to vote (see [`super::vault`]). Any member that
//! has them serves it, one that has not sends it on. Both sides may die at any point: the same token with the same key gets the
//! same answer again; a folder without keys/identity asks again; it never begins a log of its own.

use super::identity::{Fit, IdentityError, certificate_write, fits, own_key};
use super::pin::{joiner_config, spki_sha256};
use super::tls::{HANDSHAKE_TIME, tune};
use super::vault::Vault;
use crate::Log;
use crate::app::now_ms;
use crate::ca::{ANY_MEMBER, Ca, Csr, pem_of};
use crate::keys::{Identity, Keys};
use crate::problem::Problem;
use crate::random::uuid;
use cvlan_core::id::{CommandId, Epoch, MemberId};
use cvlan_core::member::{MemberCommand, join_token_parse, secret_hash};
use cvlan_core::rejection::Rejection;
use cvlan_core::{Command, Meta, Wish};
use cvlan_proto::Message;
use cvlan_proto::v1::{JoinPeer, JoinRequest, JoinResponse};
use rcgen::{CertificateParams, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

/// The longest question or answer, bytes.
pub const MESSAGE_MAX: usize = 64 << 10;
/// The question must be there within this.
pub(super) const QUESTION_TIME: Duration = Duration::from_secs(5);
/// The answer takes a write, which may wait for a leader.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long a joiner tries.
const JOIN_TIME: Duration = Duration::from_secs(60);
/// Between two rounds through the addresses.
const REST: Duration = Duration::from_millis(500);
/// Refusals that pass.
const LATER: [&str; 11] = [
    "no_leader",
    "keys_elsewhere",
    "busy",
    "disk_full",
    "stopping",
    "diverged",
    "outcome_unknown",
    "change_in_progress",
    "member_removed",
    "member_not_allowed",
    "member_alive",
];

/// Why a machine is not a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is none.
    #[error("{0}")]
    Token(Rejection),
    /// Neither the token nor --join says where to.
    #[error("the join token names no member to join through, and --join is not given")]
    NoAddress,
    /// The folder is another member's, or has a log of its own.
    #[error("{0}")]
    Folder(String),
    /// The cluster refused.
    #[error("the cluster refused: {detail} ({code})")]
    Refused {
        /// Stable, snake_case.
        code: String,
        /// What happened and what to do.
        detail: String,
    },
    /// No member could be reached, or none could serve it.
    #[error("no member could serve it: {0}")]
    Unreachable(String),
    /// Own keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<crate::keys::KeysError> for JoinError {
    fn from(e: crate::keys::KeysError) -> Self {
        Self::Identity(e.into())
    }
}

impl From<crate::ca::CaError> for JoinError {
    fn from(e: crate::ca::CaError) -> Self {
        Self::Identity(e.into())
    }
}

impl JoinError {
    /// Stable name of the kind of error: the cluster's own where it gave one.
    pub fn code(&self) -> &str {
        match self {
            Self::Token(rejection) => rejection.code,
            Self::NoAddress => "join_without_address",
            Self::Folder(_) => "folder_in_use",
            Self::Refused { code, .. } => code,
            Self::Unreachable(_) => "join_unreachable",
            Self::Identity(e) => e.code(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Token(_) | Self::Refused { .. } => "`cvlanctl cluster add NAME` makes a new token",
            Self::NoAddress => "--join HOST:8445 names a member",
            Self::Folder(_) => "use an empty --data-dir",
            Self::Unreachable(_) => "does a member listen there (--cluster-listen), and is it the right cluster?",
            Self::Identity(_) => "check the disk and who may write there",
        }
    }
}

/// Makes this folder a member's; one that is that member already is left as it is.
pub async fn join(keys: &Keys, token: &str, through: &[String], address: &str) -> Result<Identity, JoinError> {
    let claims = join_token_parse(token).map_err(JoinError::Token)?;
    if let Some(own) = keys.identity()? {
        if own.member == claims.member_id {
            return Ok(own);
        }
        let ca = keys.ca_pem()?.and_then(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
        // A rebuild has made another member of it, of the same cluster; its token may be set still.
        if own.member > claims.member_id
            && ca.and_then(|ca| spki_sha256(&ca)).is_some_and(|pin| pin == *claims.ca_spki_sha256)
        {
            tracing::warn!(member = own.member, token = claims.member_id, "the join token is an older one: not used");
            return Ok(own);
        }
        return Err(JoinError::Folder(format!(
            "this folder is member {}'s, but the token is for member {}",
            own.member, claims.member_id
        )));
    }
    if (keys.cluster()?.is_some() || keys.ca_key()?.is_some()) && !keys.joining()? {
        return Err(JoinError::Folder("this folder has begun a log of its own".to_owned()));
    }
    let addresses = if through.is_empty() { claims.addresses.as_slice() } else { through };
    if addresses.is_empty() {
        return Err(JoinError::NoAddress);
    }
    let key = own_key(keys)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(crate::ca::CaError::from)?;
    let request = JoinRequest {
        member_id: claims.member_id,
        secret: claims.secret.clone(),
        csr: csr.der().to_vec(),
        address: address.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let pin = claims.ca_spki_sha256.as_slice().try_into();
    let pin = pin.map_err(|_| JoinError::Unreachable("the token pins no CA".to_owned()))?;
    let tls = joiner_config(pin).map_err(crate::ca::CaError::from)?;
    let response = ask(tls, addresses, &request, JOIN_TIME).await?;
    given(claims.member_id, &pin, &key, &response, now_ms())?.keep(keys)
}

/// Asks one address after the other until one answers for good; where none does, says what each of them said last.
pub(super) async fn ask(
    tls: Arc<ClientConfig>,
    addresses: &[String],
    request: &impl Message,
    time: Duration,
) -> Result<JoinResponse, JoinError> {
    let (end, mut said) = (Instant::now() + time, BTreeMap::new());
    while Instant::now() < end {
        for address in addresses {
            match ask_one(tls.clone(), address, request).await {
                Ok(response) if response.refused.is_empty() => return Ok(response),
                Ok(JoinResponse { refused: code, detail, .. }) => {
                    if !LATER.contains(&code.as_str()) {
                        return Err(JoinError::Refused { code, detail });
                    }
                    note(&mut said, address, format!("{detail} ({code})"));
                }
                Err(error) => note(&mut said, address, error.to_string()),
            }
        }
        sleep(REST).await;
    }
    let said: Vec<String> = said.into_iter().map(|(address, why)| format!("{address}: {why}")).collect();
    Err(JoinError::Unreachable(said.join("; ")))
}

fn note<'a>(said: &mut BTreeMap<&'a str, String>, address: &'a str, why: String) {
    if said.get(address) != Some(&why) {
        tracing::warn!("{address}: {why}");
        said.insert(address, why);
    }
}

async fn ask_one(tls: Arc<ClientConfig>, address: &str, request: &impl Message) -> io::Result<JoinResponse> {
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        tune(&tcp)?;
        let name = ServerName::try_from(ANY_MEMBER).map_err(io::Error::other)?;
        TlsConnector::from(tls).connect(name, tcp).await
    };
    let mut stream = timeout(HANDSHAKE_TIME, connect).await??;
    let exchange = async {
        message_write(&mut stream, request).await?;
        message_read(&mut stream, MESSAGE_MAX).await
    };
    timeout(ANSWER_TIME + QUESTION_TIME, exchange).await?
}

/// An answer that is what it should be.
pub(super) struct Given<'a> {
    response: &'a JoinResponse,
    identity: Identity,
    ca: Ca,
}

/// Checks what the cluster answered to member `id` with this key. `pin`: SHA-256 of the SubjectPublicKeyInfo of the CA.
pub(super) fn given<'a>(
    id: u64,
    pin: &[u8; 32],
    key: &KeyPair,
    response: &'a JoinResponse,
    now_ms: u64,
) -> Result<Given<'a>, JoinError> {
    let wrong = |what: &str| JoinError::Unreachable(format!("the answer has {what}"));
    let mut epoch = [0; 16];
    hex::decode_to_slice(&response.epoch, &mut epoch).map_err(|_| wrong("no epoch"))?;
    let pinned = spki_sha256(&response.ca_certificate).is_some_and(|ca| ca == *pin);
    let ca = Ca::read(&response.ca_certificate)?;
    match fits(&ca, &response.certificate, id, key, now_ms) {
        _ if !pinned => return Err(wrong("another CA")),
        Fit::Good(_) => {}
        Fit::Other => return Err(wrong("another member's certificate, or another CA's")),
        Fit::Early | Fit::Ended => {
            return Err(wrong("a certificate that is not good now, by this machine's clock; compare the clocks"));
        }
    }
    let identity = Identity { epoch: Epoch(epoch), member: id, settled: false, left: None };
    Ok(Given { response, identity, ca })
}

impl Given<'_> {
    /// Keeps it, each file durable; which member this is comes last.
    pub(super) fn keep(self, keys: &Keys) -> Result<Identity, JoinError> {
        let members = self.response.members.iter().map(|peer| (peer.id, peer.address.clone()));
        keys.members_write(&members.collect())?;
        keys.ca_pem_write(self.ca.pem())?;
        certificate_write(keys, &self.response.certificate)?;
        keys.identity_write(&self.identity)?;
        Ok(self.identity)
    }
}

/// Serves one joiner.
pub async fn serve(
    log: &Log,
    vault: &Vault,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    source: IpAddr,
) -> io::Result<()> {
    let request: JoinRequest = timeout(QUESTION_TIME, message_read(&mut stream, MESSAGE_MAX)).await??;
    let member = request.member_id;
    let response = match timeout(ANSWER_TIME, admit(log, vault, request, source)).await {
        Ok(Ok(response)) => {
            tracing::info!(member, %source, "a member joined through here");
            response
        }
        Ok(Err(problem)) => refused(problem.code, &problem.detail),
        Err(_) => refused("no_leader", "the cluster did not decide in time; try again"),
    };
    if !response.refused.is_empty() {
        tracing::warn!(member, %source, code = response.refused, "a join was refused");
    }
    timeout(QUESTION_TIME, message_write(&mut stream, &response)).await??;
    stream.shutdown().await
}

pub(super) fn refused(code: &str, detail: &str) -> JoinResponse {
    JoinResponse { refused: code.to_owned(), detail: detail.to_owned(), ..JoinResponse::default() }
}

async fn admit(log: &Log, vault: &Vault, request: JoinRequest, source: IpAddr) -> Result<JoinResponse, Problem> {
    // Before the log says that it joined.
    vault.need_voting(log)?;
    let csr = Csr::read(&pem_of("CERTIFICATE REQUEST", &request.csr))?;
    let id = MemberId(request.member_id);
    let wish = MemberCommand::Join {
        id,
        secret_hash: secret_hash(&request.secret),
        key_sha256: csr.key_sha256,
        address: request.address,
        version: request.version,
    };
    let meta = Meta { id: CommandId(uuid()), source: source.to_string(), ..Meta::default() };
    let answer = log.write(Command { meta, wish: Wish::Member(wish) }).await?;
    Ok(JoinResponse { epoch: answer.checkpoint.epoch.to_string(), ..gives(log, vault, id, &csr)? })
}

/// All that member `id` needs.
pub(super) fn gives(log: &Log, vault: &Vault, id: MemberId, csr: &Csr) -> Result<JoinResponse, Problem> {
    let secrets = vault.need()?;
    let certificate = secrets.signer.member(id.0, csr.key(), now_ms()).map_err(Problem::internal)?;
    let head = log.head();
    Ok(JoinResponse {
        epoch: head.epoch.to_string(),
        ca_certificate: secrets.signer.ca().der().to_vec(),
        certificate: certificate.to_vec(),
        members: peers(&head.members.addresses),
        member_id: id.0,
        ..JoinResponse::default()
    })
}

fn peers(members: &BTreeMap<u64, String>) -> Vec<JoinPeer> {
    members.iter().map(|(id, address)| JoinPeer { id: *id, address: address.clone() }).collect()
}

/// Reads a message of at most `max` bytes.
pub(super) async fn message_read<T: Message + Default>(io: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<T> {
    let length = io.read_u32_le().await? as usize;
    if length > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await?;
    T::decode(bytes.as_slice()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

pub(super) async fn message_write(io: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    io.write_u32_le(u32::try_from(bytes.len()).map_err(io::Error::other)?).await?;
    io.write_all(&bytes).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_bounded() {
        let (mut a, mut b) = tokio::io::duplex(1 << 20);
        let request = JoinRequest { member_id: 5, secret: vec![1; 32], ..JoinRequest::default() };
        message_write(&mut a, &request).await.unwrap();
        assert_eq!(message_read::<JoinRequest>(&mut b, MESSAGE_MAX).await.unwrap(), request);
        a.write_u32_le(MESSAGE_MAX as u32 + 1).await.unwrap();
        assert!(message_read::<JoinRequest>(&mut b, MESSAGE_MAX).await.is_err());
        a.write_all(&[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        assert!(message_read::<JoinRequest>(&mut b, MESSAGE_MAX).await.is_err());
    }
}

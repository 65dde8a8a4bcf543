//! Enrolment: from a registration token to an identity.
//!
//! ```text
//!  token ─► device key, nonce ─► saved ─► discover ─► CSR, proof of the WireGuard key ─► register ─► saved
//! ```
//! What makes this machine *this* machine (device key, nonce) is durable before a controller hears of it. A crash at
//! any later point is repaired by doing the same again: the same token, WireGuard key and device key are the same node.

use crate::backoff::Backoff;
use crate::door::{Door, DoorError, DoorUrl};
use crate::ipc::{Challenge, IpcError};
use crate::store::{Enrolment, Identity, Store, StoreError};
use crate::sync::Session;
use crate::{AGENT_VERSION, tls};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_core::rejection::Rejection;
use cvlan_core::token::{ParsedToken, token_parse};
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::future::Future;
use std::sync::Arc;
use tokio::time::sleep;
use uuid::Uuid;

/// New nonces that are tried where a controller has seen one with another key.
const NONCES_MAX: usize = 3;

/// What a machine says about itself.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Its name, from which the node's is made.
    pub hostname: String,
    /// Operating system and version.
    pub os: String,
    /// Hardware address; only for the device binding.
    pub mac: String,
    /// Where its WireGuard socket can be reached.
    pub endpoints: Vec<String>,
}

/// Who holds the WireGuard key.
pub trait Prover {
    /// Proves it: (public key, proof).
    fn prove(&mut self, challenge: Challenge) -> impl Future<Output = Result<([u8; 32], [u8; 32]), IpcError>>;
}

/// Why a machine is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token is none.
    #[error("{0}")]
    Token(Rejection),
    /// The token names no controller that can be asked.
    #[error("the token names no controller; ask for a new one")]
    NoUrl,
    /// The controller refused.
    #[error("the controller refused: {detail} ({code})")]
    Refused {
        /// Stable, snake_case.
        code: String,
        /// What happened and what to do.
        detail: String,
    },
    /// The local state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys, certificates.
    #[error("{0}")]
    Crypto(String),
}

impl EnrolError {
    /// Stable name of the kind of error: the controller's own where it gave one.
    pub fn code(&self) -> &str {
        match self {
            EnrolError::Token(rejection) => rejection.code,
            EnrolError::NoUrl => "token_without_url",
            EnrolError::Refused { code, .. } => code,
            EnrolError::Store(error) => error.code(),
            EnrolError::Crypto(_) => "crypto_failed",
        }
    }
}

enum Attempt {
    /// Worth another try, later.
    Later(String),
    /// Not with this nonce.
    Nonce,
    /// Never.
    Never(EnrolError),
}

impl From<DoorError> for Attempt {
    fn from(error: DoorError) -> Self {
        let last = error.is_final();
        match error {
            DoorError::Problem { code, .. } if code == "nonce_replayed" => Attempt::Nonce,
            DoorError::Problem { code, detail, .. } if last => Attempt::Never(EnrolError::Refused { code, detail }),
            error => Attempt::Later(error.to_string()),
        }
    }
}

// Answers are read leniently: a later controller may say more than this version knows.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Discovered {
    controllers: Vec<String>,
    challenge_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    node_id: Uuid,
    certificate: String,
    #[serde(default)]
    ca_chain: Vec<String>,
    #[serde(default)]
    map: Option<serde_json::Value>,
}

struct Registered {
    wg_key: [u8; 32],
    controllers: Vec<String>,
    answer: Answer,
}

/// Is it a token at all? Nobody is asked.
pub fn token_check(token: &str) -> Result<(), EnrolError> {
    token_parse(token).map(drop).map_err(EnrolError::Token)
}

/// Makes this machine a node, once; a store that has an identity is left as it is. Goes on until a controller accepts
/// or refuses: one that is away is asked again, each URL in turn.
pub async fn enrol(store: &mut Store, token: &str, about: &About, prover: &mut impl Prover) -> Result<(), EnrolError> {
    if store.identity()?.is_some() {
        return Ok(());
    }
    let parsed = token_parse(token).map_err(EnrolError::Token)?;
    let urls: Vec<DoorUrl> =
        parsed.claims.urls.iter().filter_map(|url| url.parse().ok()).take(crate::URLS_MAX).collect();
    if urls.is_empty() {
        return Err(EnrolError::NoUrl);
    }
    let mut enrolment = enrolment_begin(store, &parsed)?;
    let tls = tls::client_config(enrolment.ca_pin, None).map_err(|error| EnrolError::Crypto(error.to_string()))?;
    let door = Door::new(tls);
    let (mut backoff, mut nonces) = (Backoff::new(urls.len()), 0);
    // Not all machines at the first of them; without randomness it is that one.
    let first = getrandom::u32().unwrap_or_default() as usize % urls.len();
    for url in urls.iter().cycle().skip(first) {
        let error = match attempt(&door, url, token, &parsed, &enrolment, about, prover).await {
            Ok(registered) => return complete(store, &parsed, &enrolment, registered),
            Err(Attempt::Never(error)) => return Err(error),
            Err(Attempt::Nonce) if nonces < NONCES_MAX => {
                nonces += 1;
                enrolment.nonce = nonce_new()?;
                store.enrolment_begin(&enrolment, &parsed.claims.urls)?;
                continue;
            }
            Err(Attempt::Nonce) => "nonce_replayed".to_owned(),
            Err(Attempt::Later(error)) => error,
        };
        tracing::warn!(%url, "registration: {error}");
        sleep(backoff.wait()).await;
    }
    Err(EnrolError::NoUrl)
}

fn enrolment_begin(store: &mut Store, token: &ParsedToken) -> Result<Enrolment, EnrolError> {
    let crypto = |what: &str| EnrolError::Crypto(what.to_owned());
    let ca_pin = token.claims.ca_spki_sha256.as_slice().try_into().map_err(|_| crypto("the token's CA hash"))?;
    let begun = store.enrolment()?.filter(|begun| begun.token_id == token.token().0 && begun.ca_pin == ca_pin);
    let enrolment = match begun {
        Some(begun) => begun,
        None => Enrolment {
            token_id: token.token().0,
            tenant_slug: token.claims.tenant_slug.clone(),
            ca_pin,
            device_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                .map_err(|error| crypto(&error.to_string()))?
                .serialize_der(),
            nonce: nonce_new()?,
        },
    };
    store.enrolment_begin(&enrolment, &token.claims.urls)?;
    Ok(enrolment)
}

fn nonce_new() -> Result<[u8; 16], EnrolError> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|error| EnrolError::Crypto(error.to_string()))?;
    Ok(nonce)
}

async fn attempt(
    door: &Door,
    url: &DoorUrl,
    token_text: &str,
    token: &ParsedToken,
    enrolment: &Enrolment,
    about: &About,
    prover: &mut impl Prover,
) -> Result<Registered, Attempt> {
    let discover = format!("/client/discover?tenant={}", slug_checked(&enrolment.tenant_slug).map_err(Attempt::Never)?);
    let discovered: Discovered = door.get(url, &discover).await?;
    let challenge_key = BASE64.decode(&discovered.challenge_key).ok().and_then(|key| key.try_into().ok());
    let challenge_key = challenge_key.ok_or_else(|| Attempt::Later("discovery without a challenge key".to_owned()))?;

    let key = key_of(&enrolment.device_key).map_err(Attempt::Never)?;
    let crypto = |error: rcgen::Error| Attempt::Never(EnrolError::Crypto(error.to_string()));
    let csr = CertificateParams::default().serialize_request(&key).map_err(crypto)?;
    let challenge = Challenge {
        challenge_key,
        tenant: token.tenant().0,
        token: token.token().0,
        csr_sha256: Sha256::digest(csr.der()).into(),
        nonce: enrolment.nonce,
    };
    let (wg_key, proof) = prover.prove(challenge).await.map_err(|error| Attempt::Later(error.to_string()))?;
    let request = v1::RegisterRequest {
        token: token_text.trim().to_owned(),
        csr: csr.pem().map_err(crypto)?,
        wg_public_key: BASE64.encode(wg_key),
        proof: BASE64.encode(proof),
        mac: about.mac.clone(),
        nonce: BASE64.encode(enrolment.nonce),
        hostname: about.hostname.clone(),
        os: about.os.clone(),
        agent_version: AGENT_VERSION.to_owned(),
        endpoints: about.endpoints.clone(),
    };
    let body = serde_json::to_vec(&request).map_err(|error| Attempt::Later(error.to_string()))?;
    let answer: Answer = door.post(url, "/client/register", body).await?;
    let ours = key.subject_public_key_info();
    match CertificateDer::from_pem_slice(answer.certificate.as_bytes()) {
        Ok(leaf) if tls::spki_sha256(&leaf) == Some(Sha256::digest(&ours).into()) => {
            Ok(Registered { wg_key, controllers: discovered.controllers, answer })
        }
        Ok(_) | Err(_) => Err(Attempt::Later("the certificate is not for this machine's key".to_owned())),
    }
}

/// A slug goes into a URL: letters, digits and hyphens are all it has.
fn slug_checked(slug: &str) -> Result<&str, EnrolError> {
    let fits = !slug.is_empty() && slug.len() <= 63 && slug.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fits { Ok(slug) } else { Err(EnrolError::Crypto("the token's tenant is no slug".to_owned())) }
}

fn key_of(device_key: &[u8]) -> Result<KeyPair, EnrolError> {
    let der = PrivatePkcs8KeyDer::from(device_key);
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
        .map_err(|error| EnrolError::Crypto(error.to_string()))
}

fn complete(
    store: &mut Store,
    token: &ParsedToken,
    enrolment: &Enrolment,
    registered: Registered,
) -> Result<(), EnrolError> {
    let Registered { wg_key, controllers, answer } = registered;
    store.enrolment_complete(&Identity {
        node_id: answer.node_id,
        wg_key,
        ca_pin: enrolment.ca_pin,
        device_key: enrolment.device_key.clone(),
        certificate: answer.certificate,
        ca_chain: answer.ca_chain.concat(),
    })?;
    let mut urls = token.claims.urls.clone();
    urls.extend(controllers);
    urls.retain(|url| url.parse::<DoorUrl>().is_ok());
    let mut seen = std::collections::BTreeSet::new();
    urls.retain(|url| seen.insert(url.clone()));
    store.urls_set(&urls)?;
    tracing::info!(node = %answer.node_id, "registered");
    // A first map that is whole saves a round trip; anything else comes by sync.
    let map = answer.map.and_then(|map| serde_json::from_value::<v1::Map>(map).ok());
    if let Some(map) = map.filter(|map| !map.more) {
        let frame = SyncFrame { frame: Some(Frame::Map(map)) };
        if let Ok(Some(effect)) = Session::new(None).handle(frame) {
            store.take(&effect)?;
        }
    }
    Ok(())
}

/// The TLS configuration of an enrolled machine: pinned CA, own certificate.
pub fn identity_tls(identity: &Identity) -> Result<Arc<ClientConfig>, EnrolError> {
    let crypto = |error: String| EnrolError::Crypto(error);
    let pem = [identity.certificate.as_bytes(), b"\n", identity.ca_chain.as_bytes()].concat();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| crypto(error.to_string()))?;
    let key = PrivatePkcs8KeyDer::from(identity.device_key.clone()).into();
    tls::client_config(identity.ca_pin, Some((chain, key))).map_err(|error| crypto(error.to_string()))
}

//! The embedded certificate authority: one key, one self-signed certificate, whose key everyone pins.
//!
//! ```text
//!  bootstrap ─► CA key (keys/ca.key, on voters) + CA certificate (in the log, DATA/ca.pem, everywhere)
//!                   ├─► server certificates: a door's, from its own key; made at each start, again long before they end
//!                   ├─► node certificates: from a machine's CSR; SAN URI node:UUID, client authentication, 1 year
//!                   └─► members' certificates: SAN URI cvlan:member:ID, client and server authentication, 90 days
//! ```
//! Invariants: a private key never travels; of a CSR only its public key is taken, never a name or an extension that it
//! asks for; every serial number is random.

mod csr;
mod live;
mod member;
mod peer;

pub use csr::Csr;
pub use live::Live;
pub use member::{ANY_MEMBER, MEMBER_MS, MemberPeer, member_name, member_read};
pub use peer::{Host, Peer, Server, peer_read, server_read};

use cvlan_core::id::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The device binding in node certificates: SHA-256(mac ‖ nonce) as an OCTET STRING. Under 2.25, where a UUID's number
/// is an arc of its own without registration (ITU-T X.667).
pub const DEVICE_BINDING_OID: [u64; 3] = [2, 25, 12_088_771_487_262_095_430];

const DAY_MS: u64 = 24 * 3_600_000;
/// Life of the CA's certificate.
const CA_MS: u64 = 20 * 365 * DAY_MS;
/// Life of a server certificate.
pub const SERVER_MS: u64 = 90 * DAY_MS;
/// Life of a node's certificate.
pub const NODE_MS: u64 = 365 * DAY_MS;
/// Clocks of others may be behind by this much.
const SKEW_MS: u64 = 5 * 60_000;

/// Why the CA does not work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The key in keys/ is another one than that of the certificate in the log.
    #[error("the CA key in keys/ does not belong to the CA certificate in the log")]
    OtherKey,
    /// A key or certificate could not be made or read.
    #[error("certificate authority: {0}")]
    Broken(String),
}

impl From<rcgen::Error> for CaError {
    fn from(e: rcgen::Error) -> Self {
        Self::Broken(e.to_string())
    }
}

impl From<rustls::Error> for CaError {
    fn from(e: rustls::Error) -> Self {
        Self::Broken(e.to_string())
    }
}

/// The certificate authority, as everybody knows it: its certificate.
pub struct Ca {
    der: CertificateDer<'static>,
    pem: String,
    spki_sha256: [u8; 32],
}

/// The certificate authority with its key: what voters have.
pub struct Signer {
    ca: Arc<Ca>,
    issuer: Issuer<'static, KeyPair>,
}

/// A new CA: its key as PEM, its certificate as DER.
pub fn ca_make(now_ms: u64) -> Result<(String, Vec<u8>), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params("CVLAN CA", now_ms.saturating_sub(SKEW_MS), now_ms + CA_MS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok((key.serialize_pem(), certificate.der().to_vec()))
}

impl Ca {
    /// Takes up a CA by its certificate, DER.
    pub fn read(der: &[u8]) -> Result<Self, CaError> {
        let der = CertificateDer::from(der.to_vec());
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| CaError::Broken(e.to_string()))?;
        let spki_sha256 = Sha256::digest(parsed.public_key().raw).into();
        let pem = pem_of("CERTIFICATE", &der);
        Ok(Self { der, pem, spki_sha256 })
    }

    /// Its certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of its SubjectPublicKeyInfo: what tokens and contexts pin.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    /// The same as people write it: `sha256:HEX`.
    pub fn fingerprint(&self) -> String {
        format!("sha256:{}", hex::encode(self.spki_sha256))
    }

    /// A certificate that it signed, with its key, as it is shown: the chain ends with the CA's own certificate, whose key
    /// is pinned.
    pub fn chain(&self, leaf: CertificateDer<'static>, key: &KeyPair) -> Result<Arc<CertifiedKey>, CaError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
        Ok(Arc::new(CertifiedKey::new(vec![leaf, self.der.clone()], key)))
    }

    /// Did it sign this certificate, DER?
    pub fn signed(&self, certificate: &[u8]) -> bool {
        let own = x509_parser::parse_x509_certificate(&self.der).ok();
        let cert = x509_parser::parse_x509_certificate(certificate).ok();
        own.zip(cert).is_some_and(|((_, own), (_, cert))| cert.verify_signature(Some(own.public_key())).is_ok())
    }
}

impl Signer {
    /// Takes up a CA with its key, PEM.
    pub fn open(key_pem: &str, ca: Arc<Ca>) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(key_pem)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(ca.der()).map_err(|e| CaError::Broken(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(ca.der(), key)?;
        Ok(Self { ca, issuer })
    }

    /// Its certificate.
    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// Its private key, PEM: for voters alone.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for the doors of one process, under these host names and addresses.
    pub fn server(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        now_ms: u64,
    ) -> Result<CertificateDer<'static>, CaError> {
        let mut params = params("cvlan-api", now_ms.saturating_sub(SKEW_MS), now_ms + SERVER_MS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// A node's certificate, PEM. `from_ms` is the earliest time it may start at: certificates from before are refused.
    pub fn node(
        &self,
        node: NodeId,
        csr: &Csr,
        binding: &[u8; 32],
        now_ms: u64,
        from_ms: u64,
    ) -> Result<String, CaError> {
        // Certificates count seconds: rounded up, it never starts before `from_ms`.
        let start_ms = now_ms.saturating_sub(SKEW_MS).max(from_ms.next_multiple_of(1000));
        let mut params = params(&node.to_string(), start_ms, now_ms + NODE_MS)?;
        let uri = format!("node:{node}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // DER: OCTET STRING of 32 bytes.
        let content = [&[0x04, 0x20], binding.as_slice()].concat();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&DEVICE_BINDING_OID, content)];
        Ok(params.signed_by(csr.key(), &self.issuer)?.pem())
    }
}

fn params(name: &str, from_ms: u64, to_ms: u64) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let at = |ms: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(ms / 1000);
    params.not_before = at(from_ms);
    params.not_after = at(to_ms);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(|e| CaError::Broken(e.to_string()))?;
    serial[0] &= 0x7f; // A serial number is positive (RFC 5280 §4.1.2.2).
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// PEM (RFC 7468).
pub(crate) fn pem_of(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use uuid::Uuid;

    const NOW: u64 = 1_700_000_000_000;

    fn signer(key: &str, der: &[u8]) -> Result<Signer, CaError> {
        Signer::open(key, Arc::new(Ca::read(der).unwrap()))
    }

    fn ca() -> Signer {
        let (key, der) = ca_make(NOW).unwrap();
        signer(&key, &der).unwrap()
    }

    fn csr(key: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "another");
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_node_certificate_says_who_and_nothing_that_was_asked_for() {
        let ca = ca();
        let node = NodeId(Uuid::from_u128(7));
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let csr = Csr::read(&csr(&key)).unwrap();
            let pem = ca.node(node, &csr, &[9; 32], NOW, 0).unwrap();
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert!(ca.ca().signed(&der));
            let peer = peer_read(&der).unwrap();
            assert_eq!((peer.node, peer.not_after_ms), (node, NOW + NODE_MS));
            assert!(peer.not_before_ms <= NOW);
            let usage = cert.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.client_auth && !usage.server_auth);
            assert!(!pem.contains("evil") && !cert.subject().to_string().contains("another"));
            let san = cert.subject_alternative_name().unwrap().unwrap();
            assert_eq!(san.value.general_names.len(), 1);
            let oid = x509_parser::asn1_rs::Oid::from(&DEVICE_BINDING_OID).unwrap();
            let binding = cert.get_extension_unique(&oid).unwrap().unwrap();
            assert_eq!(binding.value[2..], [9; 32]);
        }
    }

    #[test]
    fn a_certificate_never_starts_before_the_node_accepts_one() {
        let key = KeyPair::generate().unwrap();
        let csr = Csr::read(&csr(&key)).unwrap();
        let pem = ca().node(NodeId(Uuid::from_u128(1)), &csr, &[0; 32], NOW, NOW - 1).unwrap();
        let peer = peer_read(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        assert_eq!(peer.not_before_ms, NOW);
    }

    #[test]
    fn a_key_of_another_ca_is_noticed() {
        let (key, _) = ca_make(NOW).unwrap();
        let (_, der) = ca_make(NOW).unwrap();
        assert!(matches!(signer(&key, &der), Err(CaError::OtherKey)));
        assert!(matches!(signer("no key", &der), Err(CaError::Broken(_))));
    }
}

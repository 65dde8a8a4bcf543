//! TLS towards a controller: its CA is pinned by the SHA-256 of the CA key (SubjectPublicKeyInfo) that the token carries.
//!
//! The controller sends its chain with the CA certificate. That one of its certificates whose key has the pinned hash
//! becomes the only trust anchor, and the chain and the name are verified against it as usual (RFC 5280, RFC 9525).
//! A certificate with the pinned key but made by someone else helps nobody: the leaf must be signed by that key.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Certificates of a chain that are looked at.
const CHAIN_MAX: usize = 8;

/// SHA-256 of a certificate's SubjectPublicKeyInfo; None where it is no certificate.
pub fn spki_sha256(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Sha256::digest(parsed.public_key().raw).into())
}

/// A client configuration that trusts the CA with this key and nothing else; `identity` = the certificate chain, leaf
/// first, and key of mTLS.
pub fn client_config(
    pin: [u8; 32],
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedCa { pin, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(crate::URLS_MAX);
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct PinnedCa {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().take(CHAIN_MAX).find(|cert| spki_sha256(cert) == Some(self.pin));
        let Some(anchor) = pinned else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    pub(crate) struct Ca {
        pub(crate) der: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    pub(crate) fn ca() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Ca { der, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issued(ca: &Ca, name: &str) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca.issuer).unwrap();
        (leaf.der().clone(), key)
    }

    fn leaf(ca: &Ca, name: &str) -> CertificateDer<'static> {
        issued(ca, name).0
    }

    #[test]
    fn only_a_chain_to_the_pinned_key_with_the_right_name_is_trusted() {
        let (ours, theirs) = (ca(), ca());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = PinnedCa { pin: spki_sha256(&ours.der).unwrap(), provider };
        let check = |end_entity: &CertificateDer, chain: &[CertificateDer], name: &str, trusted: bool| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let got = verifier.verify_server_cert(end_entity, chain, &name, &[], UnixTime::now());
            assert_eq!(got.is_ok(), trusted, "{name:?}: {got:?}");
        };
        let (good, other) = (leaf(&ours, "10.0.0.1"), leaf(&theirs, "10.0.0.1"));
        check(&good, std::slice::from_ref(&ours.der), "10.0.0.1", true);
        check(&leaf(&ours, "c.example"), std::slice::from_ref(&ours.der), "c.example", true);
        check(&good, std::slice::from_ref(&ours.der), "10.0.0.2", false);
        check(&good, &[], "10.0.0.1", false);
        check(&other, std::slice::from_ref(&theirs.der), "10.0.0.1", false);
        // The pinned CA is shown, but the leaf is someone else's.
        check(&other, &[theirs.der.clone(), ours.der.clone()], "10.0.0.1", false);
        check(&good, &[CertificateDer::from(vec![1, 2, 3]), ours.der.clone()], "10.0.0.1", true);
        check(&CertificateDer::from(vec![1, 2, 3]), std::slice::from_ref(&ours.der), "10.0.0.1", false);
    }

    #[test]
    fn nonsense_has_no_key() {
        assert_eq!(spki_sha256(&[]), None);
        assert_eq!(spki_sha256(&[0x30, 0x80]), None);
    }
}

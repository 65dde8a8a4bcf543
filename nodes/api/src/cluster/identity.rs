//! What this member proves itself with: keys/member.key, which stays, and keys/member.pem, made by the embedded CA and
//! again at two thirds of its life.

use crate::ca::{Ca, CaError, MEMBER_MS, member_read, pem_of};
use crate::keys::{Keys, KeysError};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Why a member has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// keys/ cannot be read or written.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The CA does not work.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl IdentityError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Keys(_) => "keys_unusable",
            Self::Ca(_) => "ca_broken",
        }
    }
}

/// This member's own key: made, and durable, where there is none.
pub fn own_key(keys: &Keys) -> Result<KeyPair, IdentityError> {
    if let Some(pem) = keys.member_key()? {
        return KeyPair::from_pem(&pem).map_err(|e| keys.damaged_member(e).into());
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::from)?;
    keys.member_key_write(&key.serialize_pem())?;
    Ok(key)
}

/// SHA-256 of its SubjectPublicKeyInfo: as the log knows it.
pub fn key_sha256(key: &KeyPair) -> [u8; 32] {
    Sha256::digest(key.subject_public_key_info()).into()
}

/// Keeps a certificate of this member.
pub fn certificate_write(keys: &Keys, der: &[u8]) -> Result<(), IdentityError> {
    Ok(keys.member_pem_write(&pem_of("CERTIFICATE", der))?)
}

/// The member's certificate with its key and chain; made anew where there is none that fits, or at two thirds of its
/// life.
pub fn certified(keys: &Keys, ca: &Ca, member: u64, now_ms: u64) -> Result<Arc<CertifiedKey>, IdentityError> {
    let key = own_key(keys)?;
    let kept = keys.member_pem()?.and_then(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
    let fits = |der: &CertificateDer<'_>| {
        let signed = x509_parser::parse_x509_certificate(ca.der()).ok().is_some_and(|(_, ca)| {
            let cert = x509_parser::parse_x509_certificate(der).ok();
            cert.is_some_and(|(_, cert)| cert.verify_signature(Some(ca.public_key())).is_ok())
        });
        signed
            && member_read(der).is_some_and(|p| {
                let fresh = now_ms >= p.not_before_ms && now_ms + MEMBER_MS / 3 < p.not_after_ms;
                p.member == member && p.key_sha256 == key_sha256(&key) && fresh
            })
    };
    let leaf = match kept.filter(fits) {
        Some(leaf) => leaf,
        None => {
            let made = ca.member(member, &key, now_ms)?;
            certificate_write(keys, &made)?;
            made
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(CaError::from)?;
    Ok(Arc::new(CertifiedKey::new(vec![leaf, ca.der().clone()], key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::ca_make;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn a_certificate_is_kept_until_two_thirds_of_its_life_and_while_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let ca = |()| {
            let (key, der) = ca_make(NOW).unwrap();
            Ca::open(&key, &der).unwrap()
        };
        let (ours, theirs) = (ca(()), ca(()));
        let leaf = |ca: &Ca, member, now| certified(&keys, ca, member, now).unwrap().cert[0].clone();
        let first = leaf(&ours, 3, NOW);
        assert_eq!(leaf(&ours, 3, NOW + MEMBER_MS / 2), first);
        let second = leaf(&ours, 3, NOW + MEMBER_MS * 2 / 3);
        assert_ne!(second, first);
        let id = member_read(&second).unwrap();
        assert_eq!((id.member, id.key_sha256), (3, member_read(&first).unwrap().key_sha256), "the key stays");
        let now = NOW + MEMBER_MS * 2 / 3;
        assert_ne!(leaf(&ours, 4, now), second, "another member's");
        assert_ne!(leaf(&theirs, 4, now), leaf(&ours, 4, now), "another CA's");
        keys.member_pem_write("nonsense").unwrap();
        assert_eq!(member_read(&leaf(&ours, 4, now)).unwrap().member, 4);
        keys.member_key_write("nonsense").unwrap();
        assert!(certified(&keys, &ours, 4, now).unwrap_err().to_string().contains("member.key is damaged"));
    }
}

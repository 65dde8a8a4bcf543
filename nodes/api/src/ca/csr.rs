//! Certificate signing requests (PKCS #10, RFC 2986): proof that the machine holds the key it wants certified.

use crate::problem::Problem;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// The longest CSR that is read, bytes of PEM.
pub const CSR_MAX: usize = 16 << 10;

/// A CSR whose signature holds and whose key is of a kind that is taken.
pub struct Csr {
    key: SubjectPublicKeyInfo,
    /// SHA-256 of its SubjectPublicKeyInfo: the same again is the same machine.
    pub key_sha256: [u8; 32],
    /// SHA-256 of the whole request, DER: what the proof of the WireGuard key covers.
    pub sha256: [u8; 32],
}

fn invalid(what: &'static str) -> Problem {
    Problem::invalid(
        "csr_invalid",
        format!("the certificate request {what}; send PKCS #10 as PEM with a P-256 or Ed25519 key"),
    )
}

impl Csr {
    /// Reads and checks one.
    pub fn read(pem: &str) -> Result<Self, Problem> {
        if pem.len() > CSR_MAX {
            return Err(invalid("is too long"));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| invalid("is no PEM"))?;
        let (rest, csr) = X509CertificationRequest::from_der(&der).map_err(|_| invalid("cannot be read"))?;
        if !rest.is_empty() {
            return Err(invalid("has bytes after its end"));
        }
        let spki = csr.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| invalid("has a key of another kind"))?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 && key.algorithm() != &PKCS_ED25519 {
            return Err(invalid("has a key of another kind"));
        }
        csr.verify_signature().map_err(|_| invalid("is not signed by its own key"))?;
        let (key_sha256, sha256) = (Sha256::digest(spki).into(), Sha256::digest(&der).into());
        Ok(Self { key, key_sha256, sha256 })
    }

    /// Its public key.
    pub fn key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::pem_of;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};

    #[test]
    fn only_a_sound_request_is_taken() {
        let make = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap();
        let good = make(&KeyPair::generate().unwrap());
        assert!(Csr::read(&good.pem().unwrap()).is_ok());
        let mut flipped = good.der().to_vec();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        let mut longer = good.der().to_vec();
        longer.push(0);
        let p384 = make(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
        let label = "CERTIFICATE REQUEST";
        for (bad, what) in [
            (String::new(), "no PEM"),
            ("x".repeat(CSR_MAX + 1), "too long"),
            (pem_of(label, b"nonsense"), "cannot be read"),
            (pem_of("CERTIFICATE", good.der()), "no PEM"),
            (pem_of(label, &flipped), "not signed"),
            (pem_of(label, &longer), "after its end"),
            (p384.pem().unwrap(), "another kind"),
        ] {
            let problem = Csr::read(&bad).err().unwrap();
            assert_eq!(problem.code, "csr_invalid");
            assert!(problem.detail.contains(what), "{what}: {}", problem.detail);
        }
    }
}

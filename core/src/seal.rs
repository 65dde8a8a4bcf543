//! Secrets that must be used again, sealed under a cluster key: XChaCha20-Poly1305
//! (draft-irtf-cfrg-xchacha-03), with the name of the secret's use as associated data, so that one sealed for one use
//! does not open for another.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use cvlan_proto::v1::Sealed;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// A key that lives on voters only, in `keys/`, and is named in what it sealed.
#[derive(Clone)]
pub struct ClusterKey {
    /// Its name.
    pub id: String,
    /// 32 random bytes.
    pub key: [u8; 32],
}

/// A sealed secret does not open.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealError {
    /// Sealed under a key that is not here.
    #[error("sealed under cluster key {0}, which is not on this member")]
    OtherKey(String),
    /// Altered, or sealed for another use.
    #[error("the sealed secret does not open: it was altered, or sealed for another use")]
    Broken,
}

impl SealError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OtherKey(_) => "seal_other_key",
            Self::Broken => "seal_broken",
        }
    }
}

impl ClusterKey {
    /// Seals `secret` for `purpose`; the 24-byte nonce must be random.
    pub fn seal(&self, purpose: &str, nonce: [u8; 24], secret: &[u8]) -> Result<Sealed, SealError> {
        let payload = Payload { msg: secret, aad: purpose.as_bytes() };
        let cipher = XChaCha20Poly1305::new(&self.key.into());
        let ciphertext = cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| SealError::Broken)?;
        Ok(Sealed { key_id: self.id.clone(), nonce: nonce.to_vec(), ciphertext })
    }

    /// Opens what was sealed for `purpose`.
    pub fn open(&self, purpose: &str, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        if sealed.key_id != self.id {
            return Err(SealError::OtherKey(sealed.key_id.clone()));
        }
        let nonce: [u8; 24] = sealed.nonce.as_slice().try_into().map_err(|_| SealError::Broken)?;
        let payload = Payload { msg: &sealed.ciphertext, aad: purpose.as_bytes() };
        let cipher = XChaCha20Poly1305::new(&self.key.into());
        cipher.decrypt(XNonce::from_slice(&nonce), payload).map_err(|_| SealError::Broken)
    }
}

impl ClusterKey {
    /// A hash of `parts`, one after the other, that only who has the key can make, and so guess against: HMAC-SHA256
    /// under a key for this purpose alone (HKDF, RFC 5869).
    pub fn mac(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        // One HMAC block; a 32-byte key is padded with zeros to it (RFC 2104 §2).
        let mut key = [0u8; 64];
        if let Some(half) = key.first_chunk_mut::<32>() {
            // 32 bytes are always a valid HKDF-SHA256 output length.
            let _ = hkdf::Hkdf::<Sha256>::new(None, &self.key).expand(purpose.as_bytes(), half);
        }
        let mut mac = <Hmac<Sha256> as Mac>::new(&key.into());
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_for_its_use_and_unaltered() {
        let key = ClusterKey { id: "k1".into(), key: [1; 32] };
        let sealed = key.seal("jwt", [2; 24], b"secret").unwrap();
        assert_eq!(key.open("jwt", &sealed).unwrap(), b"secret");
        assert_eq!(key.open("token", &sealed), Err(SealError::Broken));
        let mut bad = sealed.clone();
        bad.ciphertext[0] ^= 1;
        assert_eq!(key.open("jwt", &bad), Err(SealError::Broken));
        let other = ClusterKey { id: "k2".into(), key: [1; 32] };
        assert_eq!(other.open("jwt", &sealed), Err(SealError::OtherKey("k1".into())));
    }

    #[test]
    fn a_mac_is_of_its_key_its_purpose_and_what_is_said() {
        let (key, other) = (ClusterKey { id: "k1".into(), key: [1; 32] }, ClusterKey { id: "k1".into(), key: [2; 32] });
        let mac = key.mac("a", &[b"one", b"two"]);
        assert_eq!(mac, key.mac("a", &[b"onetwo"]));
        for different in [key.mac("b", &[b"onetwo"]), key.mac("a", &[b"onetwo!"]), other.mac("a", &[b"onetwo"])] {
            assert_ne!(mac, different);
        }
    }
}

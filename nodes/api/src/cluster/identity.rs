//! What this member proves itself with: keys/member.key, which stays, and keys/member.pem, signed by the embedded CA and
//! again at two thirds of its life: by itself where it has the CA's key, else by a voter. One that it signs itself says that it
//! votes, or may: others take Raft's entries, votes and snapshots from who shows such a one, and from nobody else.

use crate::ca::{Ca, CaError, MEMBER_MS, MemberPeer, Signer, member_read, pem_of};
use crate::keys::{Keys, KeysError};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
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
    /// Its certificate has ended, and it cannot sign another one.
    #[error("this member's certificate is missing or has ended, and only a member that votes can sign another one")]
    Ended,
}

impl IdentityError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Keys(_) => "keys_unusable",
            Self::Ca(_) => "ca_broken",
            Self::Ended => "certificate_ended",
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

/// What a certificate is to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Its own, good now.
    Good(MemberPeer),
    /// Its own; it begins later, by this machine's clock.
    Early,
    /// Its own; it has ended.
    Ended,
    /// Not of this CA, this member, or this key.
    Other,
}

/// Whether this CA signed it for this member and its key, and whether it is good now.
pub fn fits(ca: &Ca, der: &[u8], member: u64, key: &KeyPair, now_ms: u64) -> Fit {
    let own = member_read(der).filter(|p| ca.signed(der) && p.member == member && p.key_sha256 == key_sha256(key));
    match own {
        None => Fit::Other,
        Some(p) if now_ms < p.not_before_ms => Fit::Early,
        Some(p) if now_ms >= p.not_after_ms => Fit::Ended,
        Some(p) => Fit::Good(p),
    }
}

/// The member's own certificate as it lies in keys/, if it fits, and is good now.
fn kept(keys: &Keys, ca: &Ca, member: u64, key: &KeyPair, now_ms: u64) -> Result<Option<Kept>, IdentityError> {
    let der = keys.member_pem()?.and_then(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
    Ok(der.and_then(|der| match fits(ca, &der, member, key, now_ms) {
        Fit::Good(p) => Some(Kept { der, fresh: now_ms + MEMBER_MS / 3 < p.not_after_ms, votes: p.votes }),
        Fit::Early | Fit::Ended | Fit::Other => None,
    }))
}

struct Kept {
    der: CertificateDer<'static>,
    /// False in the last third of its life.
    fresh: bool,
    /// It says that it votes.
    votes: bool,
}

/// True where it is time for another certificate; `signs`: this member has the CA's key, so that its own says that it votes.
pub fn due(keys: &Keys, ca: &Ca, signs: bool, member: u64, now_ms: u64) -> Result<bool, IdentityError> {
    let kept = kept(keys, ca, member, &own_key(keys)?, now_ms)?;
    Ok(!kept.is_some_and(|kept| kept.fresh && (kept.votes || !signs)))
}

/// The member's certificate with its key and chain. With the CA's key it is made anew where there is none that fits and says
/// that it votes, or at two thirds of its life; without, what is there is taken until it ends.
pub fn certified(
    keys: &Keys,
    ca: &Ca,
    signer: Option<&Signer>,
    member: u64,
    now_ms: u64,
) -> Result<Arc<CertifiedKey>, IdentityError> {
    let key = own_key(keys)?;
    let kept = kept(keys, ca, member, &key, now_ms)?;
    let leaf = match (kept, signer) {
        (Some(kept), None) => kept.der,
        (Some(kept), Some(_)) if kept.fresh && kept.votes => kept.der,
        (_, Some(signer)) => {
            let made = signer.voter(member, &key, now_ms)?;
            certificate_write(keys, &made)?;
            made
        }
        (None, None) => return Err(IdentityError::Ended),
    };
    Ok(ca.chain(leaf, &key)?)
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
            Signer::open(&key, Arc::new(Ca::read(&der).unwrap())).unwrap()
        };
        let (ours, theirs) = (ca(()), ca(()));
        let leaf = |ca: &Signer, member, now| certified(&keys, ca.ca(), Some(ca), member, now).unwrap().cert[0].clone();
        let follows = |now| certified(&keys, ours.ca(), None, 3, now);
        assert_eq!(follows(NOW).unwrap_err().code(), "certificate_ended");
        let first = leaf(&ours, 3, NOW);
        assert_eq!(leaf(&ours, 3, NOW + MEMBER_MS / 2), first);
        // Without the CA's key it is shown as long as it is good.
        assert!(!due(&keys, ours.ca(), true, 3, NOW + MEMBER_MS / 2).unwrap());
        assert!(due(&keys, ours.ca(), true, 3, NOW + MEMBER_MS * 2 / 3).unwrap());
        assert_eq!(follows(NOW + MEMBER_MS - 1).unwrap().cert[0], first);
        assert_eq!(follows(NOW + MEMBER_MS).unwrap_err().code(), "certificate_ended");
        let second = leaf(&ours, 3, NOW + MEMBER_MS * 2 / 3);
        assert_ne!(second, first);
        let id = member_read(&second).unwrap();
        assert_eq!((id.member, id.key_sha256), (3, member_read(&first).unwrap().key_sha256), "the key stays");
        let now = NOW + MEMBER_MS * 2 / 3;
        assert_ne!(leaf(&ours, 4, now), second, "another member's");
        assert_ne!(leaf(&theirs, 4, now), leaf(&ours, 4, now), "another CA's");
        let key = own_key(&keys).unwrap();
        let fit = |member, now| fits(ours.ca(), &second, member, &key, now);
        assert_eq!(fit(3, now), Fit::Good(id));
        // What a voter signed for it while it followed is none for one that votes.
        assert!(id.votes);
        certificate_write(&keys, &ours.member(3, &key, now).unwrap()).unwrap();
        assert!(!member_read(&follows(now).unwrap().cert[0]).unwrap().votes);
        let due = |signs| due(&keys, ours.ca(), signs, 3, now).unwrap();
        assert!(due(true) && !due(false));
        assert!(member_read(&leaf(&ours, 3, now)).unwrap().votes);
        // One from a machine whose clock is ahead.
        assert_eq!((fit(3, NOW), fit(3, now + MEMBER_MS), fit(4, now)), (Fit::Early, Fit::Ended, Fit::Other));
        assert_eq!(fits(theirs.ca(), &second, 3, &key, now), Fit::Other);
        assert_eq!(fits(ours.ca(), &second, 3, &KeyPair::generate().unwrap(), now), Fit::Other);
        keys.member_pem_write("nonsense").unwrap();
        assert_eq!(member_read(&leaf(&ours, 4, now)).unwrap().member, 4);
        keys.member_key_write("nonsense").unwrap();
        assert!(
            certified(&keys, ours.ca(), Some(&ours), 4, now).unwrap_err().to_string().contains("member.key is damaged")
        );
    }
}

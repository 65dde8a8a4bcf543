//! Members' certificates: what a controller proves itself to the others with, as client and as server.

use super::{CaError, DAY_MS, SKEW_MS, Signer, params};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose, PublicKeyData, SanType};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;

/// Life of a member's certificate; it gets a new one at two thirds of it.
pub const MEMBER_MS: u64 = 90 * DAY_MS;
/// What every member answers to: a joiner knows no id yet.
pub const ANY_MEMBER: &str = "member.cvlan.internal";
/// A voter's own begins so long before it was made: one whose clock is ahead is not shut out by it, and nobody judges a member
/// by when its certificate begins.
const VOTER_BACK_MS: u64 = 30 * DAY_MS;
/// A name more, in the certificate of who has the CA's key, as everybody who votes: nobody else is given one with it.
const VOTES: &str = "votes.member.cvlan.internal";
/// Before the id, in the one URI of the certificate.
const URI: &str = "cvlan:member:";

/// The name that member `id` alone answers to.
pub fn member_name(id: u64) -> String {
    format!("m{id}.{ANY_MEMBER}")
}

/// The subject of a member's certificate, once TLS has proven it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberPeer {
    /// Which member.
    pub member: u64,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key_sha256: [u8; 32],
    /// It has the CA's key, and so may vote and lead.
    pub votes: bool,
    /// Good from, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Good until, milliseconds since 1970.
    pub not_after_ms: u64,
}

impl Signer {
    /// The certificate of member `id` for this key: of any other than the one that signs it.
    pub fn member(&self, id: u64, key: &impl PublicKeyData, now_ms: u64) -> Result<CertificateDer<'static>, CaError> {
        self.member_with(&[], id, key, (now_ms.saturating_sub(SKEW_MS), now_ms + MEMBER_MS))
    }

    /// The certificate of member `id`, which has this very signer, for its own key.
    pub fn voter(&self, id: u64, key: &impl PublicKeyData, now_ms: u64) -> Result<CertificateDer<'static>, CaError> {
        self.member_with(&[VOTES], id, key, (now_ms.saturating_sub(VOTER_BACK_MS), now_ms + MEMBER_MS))
    }

    fn member_with(
        &self,
        names: &[&str],
        id: u64,
        key: &impl PublicKeyData,
        (from_ms, to_ms): (u64, u64),
    ) -> Result<CertificateDer<'static>, CaError> {
        let mut params = params(&format!("cvlan member {id}"), from_ms, to_ms)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![
            SanType::DnsName(member_name(id).as_str().try_into()?),
            SanType::DnsName(ANY_MEMBER.try_into()?),
            SanType::URI(format!("{URI}{id}").as_str().try_into()?),
        ];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

/// Reads a certificate; `None` unless its one URI is `cvlan:member:ID`.
pub fn member_read(der: &[u8]) -> Option<MemberPeer> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let san = cert.subject_alternative_name().ok()??;
    let mut uris = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
    let digits = uri.strip_prefix(URI)?;
    let member: u64 = digits.parse().ok()?;
    if member == 0 || member.to_string() != digits {
        return None;
    }
    let ms = |t: x509_parser::time::ASN1Time| u64::try_from(t.timestamp()).unwrap_or_default().saturating_mul(1000);
    let validity = cert.validity();
    let votes = san.value.general_names.iter().any(|name| matches!(name, GeneralName::DNSName(VOTES)));
    Some(MemberPeer {
        member,
        votes,
        key_sha256: Sha256::digest(cert.public_key().raw).into(),
        not_before_ms: ms(validity.not_before),
        not_after_ms: ms(validity.not_after),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Ca, Csr, ca_make, peer_read};
    use cvlan_core::id::NodeId;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::pem::PemObject;
    use std::sync::Arc;
    use uuid::Uuid;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn a_members_certificate_is_no_nodes_and_a_nodes_no_members() {
        let (key, der) = ca_make(NOW).unwrap();
        let ca = Signer::open(&key, Arc::new(Ca::read(&der).unwrap())).unwrap();
        let key = KeyPair::generate().unwrap();
        let member = ca.member(7, &key, NOW).unwrap();
        let peer = member_read(&member).unwrap();
        assert_eq!((peer.member, peer.votes, peer.not_after_ms), (7, false, NOW + MEMBER_MS));
        let voter = member_read(&ca.voter(7, &key, NOW).unwrap()).unwrap();
        let not_before_ms = NOW - 30 * DAY_MS;
        assert_eq!(voter, MemberPeer { votes: true, not_before_ms, ..peer }, "good for who is hours behind");
        let spki: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
        assert_eq!(peer.key_sha256, spki);
        assert!(peer_read(&member).is_none());
        let (_, cert) = x509_parser::parse_x509_certificate(&member).unwrap();
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth && !usage.any);

        // Whatever a machine asks for.
        let mut params = CertificateParams::new(vec![member_name(7), VOTES.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("cvlan:member:7".try_into().unwrap()));
        let csr = Csr::read(&params.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
        let node = ca.node(NodeId(Uuid::from_u128(7)), &csr, &[0; 32], NOW, 0).unwrap();
        let node = CertificateDer::from_pem_slice(node.as_bytes()).unwrap();
        assert!(peer_read(&node).is_some() && member_read(&node).is_none());
        assert!(member_read(ca.ca().der()).is_none() && member_read(b"nonsense").is_none());
    }

    #[test]
    fn an_id_is_written_in_one_way() {
        let key = KeyPair::generate().unwrap();
        for (uris, wanted) in [
            (vec!["cvlan:member:3"], Some(3)),
            (vec!["cvlan:member:03"], None),
            (vec!["cvlan:member:+3"], None),
            (vec!["cvlan:member:0"], None),
            (vec!["cvlan:member:"], None),
            (vec!["node:3"], None),
            (vec!["cvlan:member:3", "cvlan:member:4"], None),
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
            let der = params.self_signed(&key).unwrap().der().clone();
            assert_eq!(member_read(&der).map(|p| p.member), wanted, "{uris:?}");
        }
    }
}

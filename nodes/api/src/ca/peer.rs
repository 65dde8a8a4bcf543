//! What a machine's certificate says, once TLS has proven it.

use cvlan_core::id::NodeId;
use x509_parser::extensions::GeneralName;

/// The subject of a node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which node.
    pub node: NodeId,
    /// Good from, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Good until, milliseconds since 1970.
    pub not_after_ms: u64,
}

/// Reads a certificate; `None` unless its one subject alternative name is `node:UUID`.
pub fn peer_read(der: &[u8]) -> Option<Peer> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let san = cert.subject_alternative_name().ok()??;
    let [GeneralName::URI(uri)] = san.value.general_names.as_slice() else { return None };
    let node = uri.strip_prefix("node:")?.parse().ok()?;
    let ms = |t: x509_parser::time::ASN1Time| u64::try_from(t.timestamp()).unwrap_or_default().saturating_mul(1000);
    let validity = cert.validity();
    Some(Peer { node, not_before_ms: ms(validity.not_before), not_after_ms: ms(validity.not_after) })
}

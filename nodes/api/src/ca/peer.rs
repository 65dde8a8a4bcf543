//! What a machine's certificate says, once TLS has proven it.

use cvlan_core::id::NodeId;
use std::net::IpAddr;
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

/// What a door's certificate says.
pub struct Server {
    /// Host names and addresses, in its order.
    pub names: Vec<String>,
    /// The public key.
    pub key: Vec<u8>,
    /// Good from, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Good until, milliseconds since 1970.
    pub not_after_ms: u64,
}

/// A host as it is compared: there are many ways to write one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// An address; one of IPv4 in IPv6 is that of IPv4.
    Address(IpAddr),
    /// A DNS name in lower case, without its final dot.
    Name(String),
}

impl Host {
    /// As it is written: with brackets or not, with a final dot or not.
    pub fn of(text: &str) -> Self {
        let text = text.strip_suffix('.').unwrap_or(text);
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(address) => Self::Address(address.to_canonical()),
            Err(_) => Self::Name(text.to_ascii_lowercase()),
        }
    }
}

/// Reads a door's certificate.
pub fn server_read(der: &[u8]) -> Option<Server> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let san = cert.subject_alternative_name().ok()??;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(IpAddr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string()),
        },
        _ => None,
    };
    let ms = |t: x509_parser::time::ASN1Time| u64::try_from(t.timestamp()).unwrap_or_default().saturating_mul(1000);
    let validity = cert.validity();
    Some(Server {
        names: san.value.general_names.iter().filter_map(name).collect(),
        key: cert.public_key().subject_public_key.data.to_vec(),
        not_before_ms: ms(validity.not_before),
        not_after_ms: ms(validity.not_after),
    })
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

//! Names and texts that people choose: what is allowed, said the same way everywhere.

use crate::rejection::Rejection;

/// The longest name: one DNS label (RFC 1035 §2.3.4).
pub const NAME_MAX: usize = 63;
/// The longest free text (a display name, a note, a reason).
pub const TEXT_MAX: usize = 256;
/// Tags a node or token may have.
pub const TAGS_MAX: usize = 32;
/// Endpoints a node may report.
pub const ENDPOINTS_MAX: usize = 16;

/// A DNS label: `[a-z0-9-]`, 1 to 63, no hyphen at either end.
pub fn name_check(what: &str, name: &str) -> Result<(), Rejection> {
    let ok = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if ok {
        return Ok(());
    }
    Err(Rejection::invalid(
        "name_invalid",
        format!("{what} {name:?} is not a name: use 1 to {NAME_MAX} of a-z, 0-9 and -, not - at either end"),
    ))
}

/// A login name: `[a-z0-9._@-]`, 1 to 63.
pub fn login_check(name: &str) -> Result<(), Rejection> {
    let ok = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._@-".contains(&b));
    if ok {
        return Ok(());
    }
    Err(Rejection::invalid(
        "name_invalid",
        format!("user name {name:?} is not a name: use 1 to {NAME_MAX} of a-z, 0-9, '.', '_', '@' and '-'"),
    ))
}

/// Free text: at most [`TEXT_MAX`] bytes, no control characters.
pub fn text_check(what: &str, text: &str) -> Result<(), Rejection> {
    if text.len() <= TEXT_MAX && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Rejection::invalid(
        "text_invalid",
        format!("{what} is too long (over {TEXT_MAX} bytes) or has control characters"),
    ))
}

/// Tags: at most [`TAGS_MAX`], each a name.
pub fn tags_check(tags: &[String]) -> Result<(), Rejection> {
    if tags.len() > TAGS_MAX {
        return Err(Rejection::invalid("too_many_tags", format!("{} tags; at most {TAGS_MAX}", tags.len())));
    }
    tags.iter().try_for_each(|t| name_check("tag", t))
}

/// Endpoints: at most [`ENDPOINTS_MAX`], each ADDRESS:PORT with a usable unicast address.
pub fn endpoints_check(endpoints: &[String]) -> Result<(), Rejection> {
    if endpoints.len() > ENDPOINTS_MAX {
        return Err(Rejection::invalid(
            "too_many_endpoints",
            format!("{} endpoints; at most {ENDPOINTS_MAX}", endpoints.len()),
        ));
    }
    for text in endpoints {
        let fits = text.parse::<std::net::SocketAddr>().is_ok_and(|a| {
            a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast() && !a.ip().is_loopback()
        });
        if !fits {
            return Err(Rejection::invalid(
                "endpoint_invalid",
                format!("endpoint {text:?} is not ADDRESS:PORT of a machine (RFC 3986 host syntax, [..] around IPv6)"),
            ));
        }
    }
    Ok(())
}

/// Makes a name out of a machine's host name: lower case, everything else a hyphen; `node` where nothing is left.
pub fn name_of_hostname(hostname: &str) -> String {
    let label = hostname.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let label: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    match label.trim_matches('-') {
        "" => "node".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a-1", "0", &"x".repeat(63)] {
            assert!(name_check("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "ä", "a b", &"x".repeat(64)] {
            assert_eq!(name_check("name", bad).unwrap_err().code, "name_invalid", "{bad}");
        }
    }

    #[test]
    fn hostnames_become_names() {
        for (host, name) in [
            ("web-1.example.org", "web-1"),
            ("Bob's MacBook", "bob-s-macbook"),
            ("", "node"),
            ("___", "node"),
            ("é", "node"),
        ] {
            assert_eq!(name_of_hostname(host), name);
            assert!(name_check("name", name).is_ok());
        }
    }

    #[test]
    fn endpoints() {
        for good in ["192.0.2.1:51820", "[2001:db8::1]:1"] {
            assert!(endpoints_check(&[good.into()]).is_ok(), "{good}");
        }
        for bad in ["", "192.0.2.1", "192.0.2.1:0", "0.0.0.0:1", "127.0.0.1:1", "host:1", "[ff02::1]:1"] {
            assert_eq!(endpoints_check(&[bad.into()]).unwrap_err().code, "endpoint_invalid", "{bad}");
        }
    }
}

//! What a `--sink` says: where to, what of that may be shown, and which two come to the same place.

use reqwest::Url;
use std::fmt::{Debug, Formatter};
use std::path::{Component, Path, PathBuf};

/// A file is rotated beyond this many bytes, where nothing else is said, and so many older ones stay.
const ROTATE: u64 = 64 << 20;
const KEEP: usize = 8;
/// A piece of a URL's path that is longer, or has more digits, may be a token.
const WORD_MAX: usize = 20;
const DIGITS_MAX: usize = 3;
/// In place of what is not shown.
const HIDDEN: &str = "…";

/// Where to.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// Lines of a file.
    File {
        /// Its path: absolute, without `..`.
        path: PathBuf,
        /// Bytes.
        rotate: u64,
        /// Older ones.
        keep: usize,
    },
    /// A URL that takes POST, without a fragment. User, password, query and path may hold secrets.
    Http(Url),
    /// A collector of syslog.
    Syslog {
        /// Name or address, the latter without brackets; lower case.
        host: String,
        /// Its port.
        port: u16,
        /// RFC 5425.
        tls: bool,
    },
}

/// What is wrong with a `--sink`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--sink {shown}: {what}")]
pub struct SinkError {
    shown: String,
    what: &'static str,
}

impl Target {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, SinkError> {
        let wrong = |what| SinkError { shown: begin(text), what };
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        match scheme {
            "file" => file(rest).map_err(wrong),
            "http" | "https" => {
                let mut url = Url::parse(text).map_err(|_| wrong("this is no URL"))?;
                if !rest.starts_with("//") || url.host_str().is_none_or(str::is_empty) {
                    return Err(wrong("this is no URL"));
                }
                url.set_fragment(None);
                Ok(Self::Http(url))
            }
            "syslog+tcp" | "syslog+tls" => {
                let (host, port) = host_port(rest).ok_or_else(|| wrong("syslog is followed by ://HOST:PORT"))?;
                Ok(Self::Syslog { host, port, tls: scheme == "syslog+tls" })
            }
            _ => Err(wrong(
                "a sink is file:/PATH, https://URL, http://URL, syslog+tls://HOST:PORT or syslog+tcp://HOST:PORT",
            )),
        }
    }

    /// Someone must vouch for the other end.
    pub fn is_tls(&self) -> bool {
        match self {
            Self::File { .. } => false,
            Self::Http(url) => url.scheme() == "https",
            Self::Syslog { tls, .. } => *tls,
        }
    }

    /// As people may see it: of a URL, scheme, host, and what of its path is a word.
    pub fn shown(&self) -> String {
        match self {
            Self::File { path, rotate, keep } => {
                let mut asked = Vec::new();
                asked.extend((*rotate != ROTATE).then(|| format!("rotate={rotate}")));
                asked.extend((*keep != KEEP).then(|| format!("keep={keep}")));
                let query = if asked.is_empty() { String::new() } else { format!("?{}", asked.join("&")) };
                format!("file:{}{query}", path.display())
            }
            Self::Http(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                let path: Vec<_> = url.path().split('/').map(|part| if word(part) { part } else { HIDDEN }).collect();
                format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), path.join("/"))
            }
            Self::Syslog { tls, .. } => format!("syslog+{}://{}", if *tls { "tls" } else { "tcp" }, self.address()),
        }
    }

    /// Names the place in DATA/sinks: how a file is rotated, or whether a line is encrypted, may change.
    pub(super) fn place(&self) -> String {
        match self {
            Self::File { path, .. } => format!("file:{}", path.display()),
            Self::Http(url) => url.to_string(),
            Self::Syslog { .. } => format!("syslog://{}", self.address()),
        }
    }

    /// HOST:PORT, of syslog.
    fn address(&self) -> String {
        match self {
            Self::Syslog { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Syslog { host, port, .. } => format!("{host}:{port}"),
            Self::File { .. } | Self::Http(_) => String::new(),
        }
    }

    /// Would one write over the other? Files are the same by whatever path they are reached, and where one is what another is
    /// called once it is older.
    pub fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { path: a, keep: a_keep, .. }, Self::File { path: b, keep: b_keep, .. }) => {
                let (a, b) = (real(a), real(b));
                a == b || older(&a, *a_keep, &b) || older(&b, *b_keep, &a)
            }
            (a, b) => a.place() == b.place(),
        }
    }
}

/// So that it may be part of what is logged.
impl Debug for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

/// What of a text that is no sink may be shown: it may be a URL with a slip in it.
fn begin(text: &str) -> String {
    match text.split_once(':') {
        Some(("file", _)) | None => format!("{text:?}"),
        Some((scheme, _)) => format!("\"{}:{HIDDEN}\"", scheme.escape_debug()),
    }
}

fn file(rest: &str) -> Result<Target, &'static str> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (mut rotate, mut keep) = (ROTATE, KEEP);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match (name.as_ref(), value.parse::<u64>()) {
            ("rotate", Ok(bytes)) if bytes > 0 => rotate = bytes,
            ("keep", Ok(files)) if files <= 1000 => keep = files as usize,
            _ => return Err("a file takes rotate=BYTES and keep=N"),
        }
    }
    let goes_up = Path::new(path).components().any(|part| part == Component::ParentDir);
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') || goes_up {
        return Err("file: is followed by the absolute path of a file, without ..");
    }
    // Without doubled slashes and single dots.
    Ok(Target::File { path: Path::new(path).components().collect(), rotate, keep })
}

fn host_port(rest: &str) -> Option<(String, u16)> {
    let (host, port) = rest.strip_prefix("//")?.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let good = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(fits),
    };
    let port = port.parse().ok().filter(|port| *port > 0)?;
    good.then(|| (bare.unwrap_or(host).to_ascii_lowercase(), port))
}

/// Short, lower case, few digits.
fn word(part: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.~".contains(&b);
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    part.len() <= WORD_MAX && digits <= DIGITS_MAX && part.bytes().all(fits)
}

/// As it is reached without symbolic links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let folder = || path.parent()?.canonicalize().ok().zip(path.file_name());
    path.canonicalize().ok().or_else(|| folder().map(|(folder, name)| folder.join(name))).unwrap_or(path.to_owned())
}

/// Is `other` what `path` is called once it is one of the `keep` older ones?
fn older(path: &Path, keep: usize, other: &Path) -> bool {
    let number = |name: &str| name.parse::<usize>().ok().filter(|n| n.to_string() == name);
    let beside = other.extension().and_then(|n| number(n.to_str()?)).is_some_and(|n| (1..=keep).contains(&n));
    beside && other.with_extension("") == path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    #[test]
    fn what_is_a_sink_and_what_is_none() {
        assert_eq!(parse("file:/a/b.ndjson"), Target::File { path: "/a/b.ndjson".into(), rotate: ROTATE, keep: KEEP });
        assert_eq!(parse("file://a/./b"), parse("file:/a//b"));
        assert_eq!(parse("file:/a?rotate=10&keep=0"), Target::File { path: "/a".into(), rotate: 10, keep: 0 });
        let syslog = |host: &str, port, tls| Target::Syslog { host: host.into(), port, tls };
        assert_eq!(parse("syslog+tcp://log.example:601"), syslog("log.example", 601, false));
        assert_eq!(parse("syslog+tls://LOG.example:6514"), syslog("log.example", 6514, true));
        assert_eq!(parse("syslog+tls://[::1]:6514"), syslog("::1", 6514, true));
        assert!(
            matches!(parse("https://x.example/in#here"), Target::Http(url) if url.as_str() == "https://x.example/in")
        );
        for bad in [
            "",
            "file:a",
            "file:/",
            "file:/a/../b",
            "file:/a?x=1",
            "file:/a?rotate=0",
            "file:/a?keep=x",
            "syslog+tcp://host",
            "syslog+tls:host:1",
            "udp://x:1",
            "syslog+tcp://:1",
            "syslog+tcp://h:99999",
            "syslog+tls://h:0",
            "syslog+tls://::1:6514",
            "syslog+tls://user@h:6514",
            "https://",
            "http://",
            "https:x",
            "https:/x.example/in",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_of_a_url_are_not_shown() {
        for (text, shown) in [
            ("https://u:pass@x.example:443/in?key=abc#f", "https://x.example/in"),
            ("http://127.0.0.1:9000/services/collector/v1", "http://127.0.0.1:9000/services/collector/v1"),
            ("https://x.example/services/T0AB1CD2E/xYzzyTokenOfTheirs", "https://x.example/services/…/…"),
            ("https://x.example/hook/0123456789abcdef0123456789abcdef/in", "https://x.example/hook/…/in"),
            ("https://x.example", "https://x.example/"),
            ("syslog+tls://[::1]:6514", "syslog+tls://[::1]:6514"),
            ("file:/a?keep=0", "file:/a?keep=0"),
            ("file:/a?keep=8&rotate=5", "file:/a?rotate=5"),
        ] {
            let target = parse(text);
            assert_eq!((target.shown(), format!("{target:?}")), (shown.to_owned(), shown.to_owned()));
        }
        for bad in ["https://u:pass@:443", "syslog+tcp://u:pass@h", "htps://u:pass@h/in"] {
            let text = Target::parse(bad).unwrap_err().to_string();
            assert!(!text.contains("pass") && text.contains(bad.split(':').next().unwrap()), "{text}");
        }
    }

    #[test]
    fn two_that_come_to_the_same_place_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (deep, link) = (dir.path().join("deep"), dir.path().join("link"));
        std::fs::create_dir(&deep).unwrap();
        std::os::unix::fs::symlink(&deep, &link).unwrap();
        let file = |folder: &Path, name: &str| format!("file:{}/{name}", folder.display());
        for (a, b, clash) in [
            ("https://x.example/in", "https://X.example:443/in#2", true),
            ("https://x.example/in?a=1", "https://x.example/in?a=2", false),
            ("https://a@x.example/in", "https://b@x.example/in", false),
            ("https://x.example/in", "http://x.example/in", false),
            ("syslog+tcp://h:6514", "syslog+tls://H:6514", true),
            ("syslog+tcp://h:6514", "syslog+tls://h:6515", false),
            ("file:/a?keep=1", "file:/a?keep=2", true),
            ("file:/a?keep=1", "file:/a.1", true),
            ("file:/a.2", "file:/a?keep=1", false),
            ("file:/a", "file:/a.01", false),
            (&file(&deep, "x"), &file(&link, "x"), true),
            (&file(&deep, "x"), &file(&link, "y"), false),
        ] {
            assert_eq!((parse(a).clashes(&parse(b)), parse(b).clashes(&parse(a))), (clash, clash), "{a} {b}");
        }
    }
}

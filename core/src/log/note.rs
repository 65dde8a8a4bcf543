//! Signed notes and the tree heads in them, as others write and check them: C2SP `signed-note` and `tlog-checkpoint`
//! (<https://c2sp.org/signed-note>, <https://c2sp.org/tlog-checkpoint>); Go has them in `golang.org/x/mod/sumdb/note`.
//!
//! ```text
//! cvlan/0123…ef                        origin: the log, one for each epoch
//! 4711                                 leaves
//! base64 of the root
//!
//! — cvlan/0123…ef/1 base64(key id ‖ signature)      one line a voter that signed
//! ```
//! Key id: the first 4 bytes of SHA-256(name ‖ "\n" ‖ 0x01 ‖ Ed25519 public key). The signature is over the text with its last
//! newline, without the empty line.

use super::merkle::Hash;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use std::fmt::{Display, Formatter};

/// The longest note that is read, bytes: as Go's.
pub const NOTE_MAX: usize = 1 << 20;

/// Signatures of a note that are read, at most: as Go's.
pub const SIGNATURES_MAX: usize = 100;

/// Ed25519, in keys and key ids.
const ALGORITHM: u8 = 1;

/// What begins a line with a signature.
const DASH: &str = "\u{2014} ";

/// Why bytes are no note, or not one that counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not in the form of a signed note.
    #[error("this is no signed note: {0}")]
    Malformed(&'static str),
    /// The text is no tree head.
    #[error("this is no tree head: {0}")]
    NoTreeHead(&'static str),
    /// A known key's signature that is not its own.
    #[error("the signature of {0} is wrong")]
    Signature(String),
    /// A file that should have keys.
    #[error("there is no key in it (`cvlanctl log keys -o name` prints them)")]
    NoKey,
    /// Not in the form NAME+HASH+KEY.
    #[error("{0:?} is no verifier key: it has the form NAME+HASH+KEY, as `cvlanctl log keys` prints it")]
    Key(String),
}

/// A public key under the name that its holder signs with, written `NAME+HASH+KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    key: VerifyingKey,
}

fn key_id(name: &str, key: &VerifyingKey) -> [u8; 4] {
    let hash =
        Sha256::new().chain_update(name).chain_update([b'\n', ALGORITHM]).chain_update(key.as_bytes()).finalize();
    let [a, b, c, d, ..]: [u8; 32] = hash.into();
    [a, b, c, d]
}

/// Names are not empty and have neither blanks nor a plus.
fn name_good(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+')
}

impl Verifier {
    /// The key of this name; `None` where the name is none, or the bytes are no point on the curve.
    pub fn new(name: &str, key: &[u8; 32]) -> Option<Self> {
        let key = VerifyingKey::from_bytes(key).ok()?;
        name_good(name).then(|| Self { name: name.to_owned(), key })
    }

    /// Who signs with it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its public key.
    pub fn key(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Reads a file of them, one a line, each once; lines that begin with # are left alone.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, NoteError> {
        let mut all = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let key = Self::parse(line)?;
            if !all.contains(&key) {
                all.push(key);
            }
        }
        if all.is_empty() { Err(NoteError::NoKey) } else { Ok(all) }
    }

    /// Reads `NAME+HASH+KEY`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let read = || {
            let (name, rest) = text.split_once('+')?;
            let (hash, key) = rest.split_once('+')?;
            let key = BASE64.decode(key).ok()?;
            let (algorithm, key) = key.split_first()?;
            let verifier = Self::new(name, key.try_into().ok()?)?;
            let id = hex::encode(key_id(name, &verifier.key));
            (*algorithm == ALGORITHM && id == hash).then_some(verifier)
        };
        read().ok_or_else(|| NoteError::Key(text.to_owned()))
    }
}

impl Display for Verifier {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let key = [&[ALGORITHM], self.key.as_bytes().as_slice()].concat();
        write!(f, "{}+{}+{}", self.name, hex::encode(key_id(&self.name, &self.key)), BASE64.encode(key))
    }
}

/// A log, how long it is, and the root of its tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// Names the log; one line.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// Root.
    pub root: Hash,
}

impl TreeHead {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }

    /// Reads a note's text. Further lines (extensions) are left alone.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut lines = text.lines();
        let mut line = |what| lines.next().filter(|line| !line.is_empty()).ok_or(NoteError::NoTreeHead(what));
        let (origin, size, root) = (line("no origin")?, line("no size")?, line("no root")?);
        // As it is written: no sign, no zeros before it.
        let number = size.parse().ok().filter(|n: &u64| n.to_string() == size);
        let root = BASE64.decode(root).ok().and_then(|root| root.try_into().ok());
        let size = number.ok_or(NoteError::NoTreeHead("its size is no number"))?;
        let root = root.ok_or(NoteError::NoTreeHead("its root is not 32 bytes in base64"))?;
        Ok(Self { origin: origin.to_owned(), size, root })
    }
}

/// A note: its text and the lines of signatures, as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    name: String,
    id: [u8; 4],
    signature: Vec<u8>,
}

impl Note {
    /// A note that nobody has signed yet. The text ends with a newline.
    pub fn new(text: String) -> Self {
        Self { text, signatures: Vec::new() }
    }

    /// What is signed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Signs it under this name, in place of an earlier signature of the same key.
    pub fn sign(&mut self, name: &str, key: &SigningKey) {
        let id = key_id(name, &key.verifying_key());
        let signature = key.sign(self.text.as_bytes()).to_bytes().to_vec();
        self.add(Line { name: name.to_owned(), id, signature });
    }

    fn add(&mut self, line: Line) {
        self.signatures.retain(|other| (&other.name, other.id) != (&line.name, line.id));
        self.signatures.push(line);
    }

    /// Takes the signatures of another note with the same text.
    pub fn merge(&mut self, other: &Self) {
        if self.text == other.text {
            other.signatures.iter().for_each(|line| self.add(line.clone()));
        }
    }

    /// Reads a note; nothing is checked yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        let malformed = NoteError::Malformed;
        if bytes.len() > NOTE_MAX {
            return Err(malformed("it is longer than 1 MiB"));
        }
        let note = std::str::from_utf8(bytes).map_err(|_| malformed("it is no UTF-8"))?;
        if note.contains(|c: char| c < ' ' && c != '\n') {
            return Err(malformed("it has control characters"));
        }
        let (text, lines) = note.rsplit_once("\n\n").ok_or(malformed("no empty line before the signatures"))?;
        let lines = lines.strip_suffix('\n').ok_or(malformed("no newline at the end"))?;
        let signatures = lines.split('\n').map(Line::parse).collect::<Option<Vec<_>>>();
        let signatures = signatures.ok_or(malformed("a line of a signature"))?;
        if signatures.len() > SIGNATURES_MAX {
            return Err(malformed("more than 100 signatures"));
        }
        Ok(Self { text: format!("{text}\n"), signatures })
    }

    /// It with this key's signature alone; `None` where that is not there, or wrong.
    pub fn only(&self, key: &Verifier) -> Option<Self> {
        let by = |line: &&Line| line.name == key.name && line.id == key_id(&key.name, &key.key);
        let signatures = self.signatures.iter().filter(by).cloned().collect();
        let own = Self { text: self.text.clone(), signatures };
        own.signers(std::slice::from_ref(key)).is_ok_and(|signers| !signers.is_empty()).then_some(own)
    }

    /// Those of `known` that have signed it. A signature of a known key that is wrong is an error, whoever else has signed; those of
    /// others are left alone.
    pub fn signers<'v>(&self, known: &'v [Verifier]) -> Result<Vec<&'v Verifier>, NoteError> {
        let mut signers: Vec<&Verifier> = Vec::new();
        for line in &self.signatures {
            let is = |v: &&Verifier| v.name == line.name && key_id(&v.name, &v.key) == line.id;
            let Some(verifier) = known.iter().find(is) else { continue };
            let signature = Signature::from_slice(&line.signature);
            let good = signature.is_ok_and(|s| verifier.key.verify_strict(self.text.as_bytes(), &s).is_ok());
            if !good {
                return Err(NoteError::Signature(line.name.clone()));
            }
            if !signers.contains(&verifier) {
                signers.push(verifier);
            }
        }
        Ok(signers)
    }
}

impl Display for Note {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| {
            let bytes = [line.id.as_slice(), &line.signature].concat();
            writeln!(f, "{DASH}{} {}", line.name, BASE64.encode(bytes))
        })
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (name, signature) = line.strip_prefix(DASH)?.split_once(' ')?;
        let bytes = BASE64.decode(signature).ok()?;
        let (id, signature) = bytes.split_first_chunk()?;
        let good = name_good(name) && !signature.is_empty();
        good.then(|| Self { name: name.to_owned(), id: *id, signature: signature.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the documentation of Go's `note` package.
    const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const PETERS: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\
        \n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn verifier(name: &str, n: u8) -> Verifier {
        Verifier::new(name, key(n).verifying_key().as_bytes()).unwrap()
    }

    fn head() -> TreeHead {
        TreeHead { origin: "cvlan/00ff".into(), size: 4711, root: [7; 32] }
    }

    #[test]
    fn a_note_of_gos_is_read_and_checked() {
        let peter = Verifier::parse(PETER).unwrap();
        assert_eq!((peter.name(), peter.to_string()), ("PeterNeumann", PETER.to_owned()));
        let note = Note::parse(PETERS.as_bytes()).unwrap();
        assert_eq!(note.to_string(), PETERS);
        assert_eq!(note.signers(std::slice::from_ref(&peter)), Ok(vec![&peter]));
        let other = Note::parse(PETERS.replace("answer", "anseer").as_bytes()).unwrap();
        assert_eq!(other.signers(&[peter]), Err(NoteError::Signature("PeterNeumann".into())));
    }

    #[test]
    fn several_sign_and_only_the_known_count() {
        let (mut note, mut second) = (Note::new(head().text()), Note::new(head().text()));
        note.sign("cvlan/00ff/1", &key(1));
        note.sign("cvlan/00ff/1", &key(1));
        second.sign("cvlan/00ff/2", &key(2));
        note.merge(&second);
        let mut other = Note::new("other\n".into());
        other.sign("cvlan/00ff/3", &key(3));
        note.merge(&other);
        let read = Note::parse(note.to_string().as_bytes()).unwrap();
        assert_eq!((&read, TreeHead::parse(read.text())), (&note, Ok(head())));
        let known = [verifier("cvlan/00ff/2", 2), verifier("cvlan/00ff/3", 3), verifier("cvlan/00ff/1", 1)];
        assert_eq!(read.signers(&known), Ok(vec![&known[2], &known[0]]));
        let (first, third) = (verifier("cvlan/00ff/1", 1), verifier("cvlan/00ff/3", 3));
        let own = read.only(&first).unwrap();
        assert_eq!((own.signers(&known), own.text()), (Ok(vec![&known[2]]), read.text()));
        assert_eq!((read.only(&third), read.only(&verifier("cvlan/00ff/1", 9))), (None, None));
        // The same key under another name, another key under the same name: unknown.
        assert_eq!(read.signers(&[verifier("cvlan/00ff/9", 1), verifier("cvlan/00ff/1", 9)]), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let mut note = Note::new(head().text());
        note.sign("a", &key(1));
        let good = note.to_string();
        let line = good.lines().last().unwrap().to_owned();
        let bad = [
            ("no signature", good.replace(&format!("{line}\n"), "")),
            ("no newline at the end", good.trim_end().to_owned()),
            ("no empty line", good.replace("\n\n", "\n")),
            ("a hyphen", good.replace('\u{2014}', "-")),
            ("a name with a plus", good.replace("\u{2014} a ", "\u{2014} a+ ")),
            ("no name", good.replace("\u{2014} a ", "\u{2014}  ")),
            ("no base64", good.replace(&line, &format!("{line}!"))),
            ("a key id alone", good.replace(&line, "\u{2014} a AAAAAA==")),
            ("a control character", good.replacen('c', "\u{1}", 1)),
            ("too many", format!("{good}{}", format!("{line}\n").repeat(100))),
            ("too long", format!("{}{good}", "x".repeat(NOTE_MAX))),
        ];
        for (what, text) in bad {
            assert!(matches!(Note::parse(text.as_bytes()), Err(NoteError::Malformed(_))), "{what}");
        }
        assert!(Note::parse(&[good.as_bytes(), &[0xff]].concat()).is_err());
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            let still = Note::parse(&bytes).and_then(|n| n.signers(&[verifier("a", 1)]).map(|s| s.len()));
            assert_ne!(still, Ok(1), "a flipped bit in byte {at}");
        }
    }

    #[test]
    fn what_is_no_tree_head_or_key_is_refused() {
        let root = BASE64.encode([7; 32]);
        for text in [
            "",
            "cvlan\n",
            "cvlan\n1\n",
            &format!("\n1\n{root}\n"),
            &format!("cvlan\n01\n{root}\n"),
            &format!("cvlan\n+1\n{root}\n"),
            &format!("cvlan\n-1\n{root}\n"),
            &format!("cvlan\n18446744073709551616\n{root}\n"),
            "cvlan\n1\nAAAA\n",
        ] {
            assert!(matches!(TreeHead::parse(text), Err(NoteError::NoTreeHead(_))), "{text:?}");
        }
        let peter = Verifier::parse(PETER).unwrap();
        assert_eq!(Verifier::parse_all(&format!("# one\n\n {PETER} \n{PETER}")), Ok(vec![peter]));
        assert_eq!(Verifier::parse_all("\n# none\n"), Err(NoteError::NoKey));
        assert_eq!(Verifier::parse_all("a"), Err(NoteError::Key("a".into())));
        assert_eq!(TreeHead::parse(&format!("{}more\n", head().text())), Ok(head()));
        for text in ["", "a", "a+b", "a+00000000+AAAA", &PETER.replace("c74f", "c74e"), &PETER.replace("Peter", "Pete")]
        {
            assert_eq!(Verifier::parse(text), Err(NoteError::Key(text.into())));
        }
        assert_eq!((Verifier::new("a b", &[1; 32]), Verifier::new("", &[1; 32])), (None, None));
    }
}

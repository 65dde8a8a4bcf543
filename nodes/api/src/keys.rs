//! DATA/keys: what never leaves this machine. The folder is 0700, its files 0600, each written whole and synced.
//!
//! ```text
//! cluster    the key that seals secrets in the log          ca.key      the CA's: both on members that vote alone
//! ca.pem     the CA                                         doors.key, doors.pem    of the doors, where a voter signed them
//! bootstrap  what the first entry is made of (see bootstrap) member.key, member.pem  what it proves itself with
//! identity   which member of which log this is; written last by a join
//! note.key   signs tree heads of the log
//! members    where the others were last                     rebuild    a rebuild that was begun (see cluster::rebuild)
//! ```

use cvlan_core::id::Epoch;
use cvlan_core::seal::ClusterKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const CLUSTER: &str = "cluster";
const CA_KEY: &str = "ca.key";
const CA_PEM: &str = "ca.pem";
const IDENTITY: &str = "identity";
const MEMBER_KEY: &str = "member.key";
const MEMBER_PEM: &str = "member.pem";
const DOORS_KEY: &str = "doors.key";
const DOORS_PEM: &str = "doors.pem";
const MEMBERS: &str = "members";
const NOTE_KEY: &str = "note.key";
/// The member that bootstraps a log.
pub const FOUNDER: u64 = 1;
/// What a log's first entry is made of.
pub const BOOTSTRAP: &str = "bootstrap";

/// A file of keys/ cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The disk.
    #[error("{file}: {source}")]
    Io {
        /// Its path.
        file: String,
        /// The system's error.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{file} is damaged: {detail}")]
    Damaged {
        /// Its path.
        file: String,
        /// What is wrong.
        detail: String,
    },
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Keys {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    id: String,
    key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    epoch: String,
    #[serde(default = "founder")]
    member: u64,
    #[serde(default)]
    settled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<String>,
}

fn founder() -> u64 {
    FOUNDER
}

/// Which member of which log this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The log.
    pub epoch: Epoch,
    /// The member.
    pub member: u64,
    /// True once something of that log was here: an empty log is then a lost one, which must not vote again.
    pub settled: bool,
    /// The epoch that it left, alone, where it did (`--force-new-cluster`).
    pub left: Option<Epoch>,
}

impl Keys {
    /// Makes the folder where it is missing.
    pub fn open(data: &Path) -> Result<Self, KeysError> {
        let folder = data.join("keys");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| KeysError::Io { file: folder.display().to_string(), source })?;
        Ok(Self { folder })
    }

    /// A folder of keys that is elsewhere, as it is.
    pub fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn io(&self, name: &str) -> impl Fn(io::Error) -> KeysError {
        let file = self.path(name).display().to_string();
        move |source| KeysError::Io { file: file.clone(), source }
    }

    fn damaged(&self, name: &str, detail: impl ToString) -> KeysError {
        KeysError::Damaged { file: self.path(name).display().to_string(), detail: detail.to_string() }
    }

    fn read(&self, name: &str) -> Result<Option<String>, KeysError> {
        match fs::read_to_string(self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.io(name)(e)),
        }
    }

    /// Whole or not at all: written beside, synced, renamed, folder synced.
    fn write(&self, name: &str, text: &str) -> Result<(), KeysError> {
        file_write(&self.folder, name, text.as_bytes(), 0o600).map_err(self.io(name))
    }

    /// Reads a JSON file.
    pub fn json_read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, KeysError> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| self.damaged(name, e))
    }

    /// Writes a JSON file.
    pub fn json_write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), KeysError> {
        let text = serde_json::to_string_pretty(value).map_err(|e| self.damaged(name, e))?;
        self.write(name, &text)
    }

    /// Removes a file; one that is not there is removed.
    pub fn remove(&self, name: &str) -> Result<(), KeysError> {
        match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.io(name)(e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The cluster key.
    pub fn cluster(&self) -> Result<Option<ClusterKey>, KeysError> {
        let Some(file) = self.json_read::<ClusterFile>(CLUSTER)? else { return Ok(None) };
        let mut key = [0; 32];
        hex::decode_to_slice(&file.key, &mut key).map_err(|e| self.damaged(CLUSTER, e))?;
        Ok(Some(ClusterKey { id: file.id, key }))
    }

    /// Keeps the cluster key.
    pub fn cluster_write(&self, key: &ClusterKey) -> Result<(), KeysError> {
        self.json_write(CLUSTER, &ClusterFile { id: key.id.clone(), key: hex::encode(key.key) })
    }

    /// The CA's key, PEM.
    pub fn ca_key(&self) -> Result<Option<String>, KeysError> {
        self.read(CA_KEY)
    }

    /// Keeps the CA's key.
    pub fn ca_key_write(&self, pem: &str) -> Result<(), KeysError> {
        self.write(CA_KEY, pem)
    }

    /// The CA's certificate, PEM, as this member trusts it before it has a log.
    pub fn ca_pem(&self) -> Result<Option<String>, KeysError> {
        self.read(CA_PEM)
    }

    /// Keeps the CA's certificate.
    pub fn ca_pem_write(&self, pem: &str) -> Result<(), KeysError> {
        self.write(CA_PEM, pem)
    }

    /// This member's own key, PEM.
    pub fn member_key(&self) -> Result<Option<String>, KeysError> {
        self.read(MEMBER_KEY)
    }

    /// Keeps this member's own key.
    pub fn member_key_write(&self, pem: &str) -> Result<(), KeysError> {
        self.write(MEMBER_KEY, pem)
    }

    /// This member's own certificate, PEM.
    pub fn member_pem(&self) -> Result<Option<String>, KeysError> {
        self.read(MEMBER_PEM)
    }

    /// Keeps this member's own certificate.
    pub fn member_pem_write(&self, pem: &str) -> Result<(), KeysError> {
        self.write(MEMBER_PEM, pem)
    }

    /// The seed of the Ed25519 key that signs tree heads.
    pub fn note_key(&self) -> Result<Option<[u8; 32]>, KeysError> {
        let Some(text) = self.read(NOTE_KEY)? else { return Ok(None) };
        let mut seed = [0; 32];
        hex::decode_to_slice(text.trim(), &mut seed).map_err(|e| self.damaged(NOTE_KEY, e))?;
        Ok(Some(seed))
    }

    /// Keeps it.
    pub fn note_key_write(&self, seed: &[u8; 32]) -> Result<(), KeysError> {
        self.write(NOTE_KEY, &format!("{}\n", hex::encode(seed)))
    }

    /// Key and certificate of the doors, PEM, where they are kept.
    pub fn doors(&self) -> Result<Option<(String, String)>, KeysError> {
        Ok(self.read(DOORS_KEY)?.zip(self.read(DOORS_PEM)?))
    }

    /// Keeps key (PEM) and certificate (DER) of the doors.
    pub fn doors_write(&self, key: &str, certificate: &[u8]) -> Result<(), KeysError> {
        self.write(DOORS_KEY, key)?;
        self.write(DOORS_PEM, &crate::ca::pem_of("CERTIFICATE", certificate))
    }

    /// True where a join was begun and not finished: this folder must not begin a log of its own.
    pub fn joining(&self) -> Result<bool, KeysError> {
        let begun = self.member_key()?.is_some();
        Ok(begun && self.identity()?.is_none() && self.read(BOOTSTRAP)?.is_none())
    }

    /// Which member this is; `None` before the first entry of its own log was acknowledged, or before it has joined.
    pub fn identity(&self) -> Result<Option<Identity>, KeysError> {
        let Some(file) = self.json_read::<IdentityFile>(IDENTITY)? else { return Ok(None) };
        let read = |text: &String| text.parse().map_err(|e| self.damaged(IDENTITY, e));
        let (epoch, left) = (read(&file.epoch)?, file.left.as_ref().map(read).transpose()?);
        Ok(Some(Identity { epoch, member: file.member, settled: file.settled, left }))
    }

    /// Says which member this is.
    pub fn identity_write(&self, identity: &Identity) -> Result<(), KeysError> {
        let Identity { epoch, member, settled, left } = *identity;
        let left = left.map(|epoch| epoch.to_string());
        self.json_write(IDENTITY, &IdentityFile { epoch: epoch.to_string(), member, settled, left })
    }

    /// Where members were last, by id: what a member asks that has no log.
    pub fn members(&self) -> Result<BTreeMap<u64, String>, KeysError> {
        Ok(self.json_read(MEMBERS)?.unwrap_or_default())
    }

    /// Keeps where members are.
    pub fn members_write(&self, members: &BTreeMap<u64, String>) -> Result<(), KeysError> {
        self.json_write(MEMBERS, members)
    }

    /// The member's key is not what it should be.
    pub(crate) fn damaged_member(&self, detail: impl ToString) -> KeysError {
        self.damaged(MEMBER_KEY, detail)
    }

    /// The CA's certificate is not what it should be.
    pub(crate) fn damaged_ca(&self, detail: impl ToString) -> KeysError {
        self.damaged(CA_PEM, detail)
    }
}

/// Writes a file whole or not at all, durably.
pub fn file_write(folder: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = folder.join(format!(".{name}.new"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, folder.join(name))?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_is_read_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        assert!(keys.cluster().unwrap().is_none() && keys.identity().unwrap().is_none());
        let key = ClusterKey { id: "k1".into(), key: [7; 32] };
        keys.cluster_write(&key).unwrap();
        assert_eq!(keys.note_key().unwrap(), None);
        keys.note_key_write(&[8; 32]).unwrap();
        assert_eq!(keys.note_key().unwrap(), Some([8; 32]));
        let identity = Identity { epoch: Epoch([3; 16]), member: 9, settled: true, left: Some(Epoch([4; 16])) };
        keys.identity_write(&identity).unwrap();
        let read = keys.cluster().unwrap().unwrap();
        assert_eq!((read.id, read.key, keys.identity().unwrap()), (key.id, key.key, Some(identity)));
        // As versions with one member wrote it.
        keys.write(IDENTITY, &format!("{{\"epoch\":\"{}\"}}", Epoch([3; 16]))).unwrap();
        let old = keys.identity().unwrap().unwrap();
        assert_eq!((old.member, old.settled), (FOUNDER, false));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(dir.path().join("keys")), mode(keys.path(CLUSTER))), (0o700, 0o600));
    }

    #[test]
    fn a_join_that_was_begun_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        assert!(!keys.joining().unwrap());
        keys.member_key_write("key").unwrap();
        assert!(keys.joining().unwrap());
        keys.identity_write(&Identity { epoch: Epoch([3; 16]), member: 2, settled: false, left: None }).unwrap();
        assert!(!keys.joining().unwrap());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        keys.write(CLUSTER, "{\"id\":\"k\"").unwrap();
        let error = keys.cluster().err().unwrap().to_string();
        assert!(error.contains("keys/cluster is damaged"), "{error}");
    }
}

//! DATA/keys: what never leaves this machine. The folder is 0700, its files 0600, each written whole and synced.
//!
//! ```text
//! cluster    the key that seals secrets in the log          ca.key    the CA's private key
//! bootstrap  what the first entry is made of (see bootstrap) identity  which log these keys belong to
//! ```

use cvlan_core::id::Epoch;
use cvlan_core::seal::ClusterKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const CLUSTER: &str = "cluster";
const CA_KEY: &str = "ca.key";
const IDENTITY: &str = "identity";
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
}

impl Keys {
    /// Makes the folder where it is missing.
    pub fn open(data: &Path) -> Result<Self, KeysError> {
        let folder = data.join("keys");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| KeysError::Io { file: folder.display().to_string(), source })?;
        Ok(Self { folder })
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

    /// The log that these keys belong to; `None` before its first entry was acknowledged.
    pub fn epoch(&self) -> Result<Option<Epoch>, KeysError> {
        let Some(file) = self.json_read::<IdentityFile>(IDENTITY)? else { return Ok(None) };
        let mut epoch = [0; 16];
        hex::decode_to_slice(&file.epoch, &mut epoch).map_err(|e| self.damaged(IDENTITY, e))?;
        Ok(Some(Epoch(epoch)))
    }

    /// Says which log these keys belong to.
    pub fn epoch_write(&self, epoch: Epoch) -> Result<(), KeysError> {
        self.json_write(IDENTITY, &IdentityFile { epoch: epoch.to_string() })
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
        assert!(keys.cluster().unwrap().is_none() && keys.epoch().unwrap().is_none());
        let key = ClusterKey { id: "k1".into(), key: [7; 32] };
        keys.cluster_write(&key).unwrap();
        keys.epoch_write(Epoch([3; 16])).unwrap();
        let read = keys.cluster().unwrap().unwrap();
        assert_eq!((read.id, read.key, keys.epoch().unwrap()), (key.id, key.key, Some(Epoch([3; 16]))));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(dir.path().join("keys")), mode(keys.path(CLUSTER))), (0o700, 0o600));
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

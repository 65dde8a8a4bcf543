//! What the data daemon keeps: `wg.key` and `config.json`, both 0600, replaced as a whole or not at all.
//!
//! `wg.key` is as `wg genkey` makes it. `config.json` outlives versions of the program: JSON, unknown fields ignored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_link::ipc::{Config, Peer};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use x25519_dalek::StaticSecret;

const KEY: &str = "wg.key";
const CONFIG: &str = "config.json";

/// What can go wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No key in it.
    #[error("{0} is not a WireGuard private key (44 characters of base64); restore it, or remove it and enrol anew")]
    Key(String),
    /// No configuration in it.
    #[error("{path} is damaged: {what}; remove it: cvlan-ctrl brings it again")]
    Config {
        /// Which file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// No randomness for a key.
    #[error("no randomness: {0}")]
    Random(String),
}

impl FileError {
    /// Stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            FileError::Io { .. } => "file_io",
            FileError::Key(_) => "key_damaged",
            FileError::Config { .. } => "config_damaged",
            FileError::Random(_) => "no_randomness",
        }
    }
}

/// The WireGuard key of `folder`, made at the first call.
pub fn key_load(folder: &Path) -> Result<StaticSecret, FileError> {
    let path = folder.join(KEY);
    if let Some(text) = read(&path)? {
        let bytes = BASE64.decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        return bytes.map(StaticSecret::from).ok_or_else(|| FileError::Key(path.display().to_string()));
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| FileError::Random(error.to_string()))?;
    replace(&path, format!("{}\n", BASE64.encode(bytes)).as_bytes())?;
    Ok(StaticSecret::from(bytes))
}

/// The last configuration.
pub(crate) struct Saved {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct SavedConfig {
    checkpoint: String,
    addresses: Vec<IpNet>,
    peers: Vec<SavedPeer>,
}

#[derive(Serialize, Deserialize)]
struct SavedPeer {
    node_id: Uuid,
    public_key: String,
    addresses: Vec<IpAddr>,
    endpoints: Vec<SocketAddr>,
}

impl Saved {
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join(CONFIG) }
    }

    pub fn load(&self) -> Result<Option<Config>, FileError> {
        let Some(text) = read(&self.path)? else { return Ok(None) };
        let damaged = |what: String| FileError::Config { path: self.path.display().to_string(), what };
        let saved: SavedConfig = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let mut peers = Vec::with_capacity(saved.peers.len());
        for SavedPeer { node_id, public_key, addresses, endpoints } in saved.peers {
            let key = BASE64.decode(&public_key).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            let public_key = key.ok_or_else(|| damaged(format!("the key of {node_id}")))?;
            peers.push(Peer { node_id, public_key, addresses, endpoints });
        }
        Ok(Some(Config { checkpoint: saved.checkpoint, addresses: saved.addresses, peers }))
    }

    pub fn save(&self, config: &Config) -> Result<(), FileError> {
        let peers = config.peers.iter().map(|peer| SavedPeer {
            node_id: peer.node_id,
            public_key: BASE64.encode(peer.public_key),
            addresses: peer.addresses.clone(),
            endpoints: peer.endpoints.clone(),
        });
        let (checkpoint, addresses) = (config.checkpoint.clone(), config.addresses.clone());
        let saved = SavedConfig { checkpoint, addresses, peers: peers.collect() };
        let text = serde_json::to_vec(&saved)
            .map_err(|error| FileError::Config { path: self.path.display().to_string(), what: error.to_string() })?;
        replace(&self.path, &text)
    }

    pub fn remove(&self) -> Result<(), FileError> {
        match fs::remove_file(&self.path) {
            Ok(()) => folder_sync(&self.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|source| FileError::Io { path: self.path.display().to_string(), source })
    }
}

fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Io { path: path.display().to_string(), source }),
    }
}

/// After it, the old bytes or the new ones, whatever happens: new file, fsync, rename, fsync of the folder.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        folder_sync(path)
    };
    write().map_err(|source| FileError::Io { path: path.display().to_string(), source })
}

fn folder_sync(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let key = key_load(folder.path()).unwrap().to_bytes();
        assert_eq!(key_load(folder.path()).unwrap().to_bytes(), key);
        let path = folder.path().join(KEY);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap().len(), 45);
        for text in ["", "x", "AAAA"] {
            fs::write(&path, text).unwrap();
            assert_eq!(key_load(folder.path()).err().unwrap().code(), "key_damaged", "{text:?}");
        }
    }

    #[test]
    fn a_configuration_comes_back_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let saved = Saved::new(folder.path());
        assert_eq!(saved.load().unwrap(), None);
        let peer = Peer {
            node_id: Uuid::from_bytes([7; 16]),
            public_key: [9; 32],
            addresses: vec!["10.0.0.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            endpoints: vec!["[2001:db8::1]:51820".parse().unwrap()],
        };
        let addresses = vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        let config = Config { checkpoint: "a.1".into(), addresses, peers: vec![peer] };
        saved.save(&config).unwrap();
        assert_eq!(saved.load().unwrap(), Some(config));
        let text = fs::read_to_string(&saved.path).unwrap();
        fs::write(&saved.path, text.replacen('{', r#"{"later": 1,"#, 1)).unwrap();
        assert!(saved.load().unwrap().is_some());
        for damaged in ["", "{", &text[..text.len() / 2], &text.replace("CQkJ", "====")] {
            fs::write(&saved.path, damaged).unwrap();
            assert_eq!(saved.load().err().unwrap().code(), "config_damaged", "{damaged:?}");
        }
        saved.remove().unwrap();
        saved.remove().unwrap();
        assert_eq!(saved.load().unwrap(), None);
    }
}

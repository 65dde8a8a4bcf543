//! The agent's own state: `state.db` in its state folder, SQLite.
//!
//! One row of identity, the URLs, the peers, and the position that the peers stand at. Peers and position change in
//! one durable transaction, so that a crash leaves either the old pair or the new one.

use crate::sync::Effect;
use crate::{PEERS_MAX, URLS_MAX};
use cvlan_core::id::Checkpoint;
use cvlan_proto::Message;
use cvlan_proto::v1;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params};
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Name of the database in the state folder.
pub const FILE: &str = "state.db";
const LOCK: &str = "lock";
/// Format of the database, in `user_version`.
const FORMAT: i64 = 1;
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE identity (
  one         INTEGER PRIMARY KEY CHECK (one = 1),
  token_id    BLOB NOT NULL,
  tenant_slug TEXT NOT NULL,
  ca_pin      BLOB NOT NULL,
  device_key  BLOB NOT NULL,
  nonce       BLOB NOT NULL,
  wg_key      BLOB,
  node_id     BLOB,
  certificate TEXT,
  ca_chain    TEXT
) STRICT;
CREATE TABLE url (at INTEGER PRIMARY KEY, url TEXT NOT NULL) STRICT;
CREATE TABLE peer (node_id BLOB PRIMARY KEY, body BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE position (
  one        INTEGER PRIMARY KEY CHECK (one = 1),
  checkpoint TEXT NOT NULL DEFAULT '',
  own        BLOB,
  full_maps  INTEGER NOT NULL DEFAULT 0,
  deltas     INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO position (one) VALUES (1);
CREATE TABLE daemon (
  one            INTEGER PRIMARY KEY CHECK (one = 1),
  ctrl_socket    TEXT NOT NULL,
  full_maps_from INTEGER NOT NULL,
  deltas_from    INTEGER NOT NULL
) STRICT;
";

/// What can go wrong with the local state.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// SQLite.
    #[error("state.db: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Another daemon has it.
    #[error("{0} is in use by another daemon")]
    Locked(String),
    /// Written by a later version.
    #[error("state.db has format {0}, this version knows {FORMAT}: run the version that wrote it, or a later one")]
    Format(i64),
    /// What is in it makes no sense.
    #[error("state.db is damaged: {0}")]
    Damaged(&'static str),
}

impl StoreError {
    /// Stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            StoreError::Io { .. } => "state_io",
            StoreError::Sqlite(_) => "state_sqlite",
            StoreError::Locked(_) => "state_locked",
            StoreError::Format(_) => "state_format",
            StoreError::Damaged(_) => "state_damaged",
        }
    }
}

/// An enrolment that has begun: saved before the first word to a controller, so that a repetition is the same machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// Which token.
    pub token_id: Uuid,
    /// From the token.
    pub tenant_slug: String,
    /// SHA-256 of the CA's SubjectPublicKeyInfo.
    pub ca_pin: [u8; 32],
    /// PKCS #8, DER.
    pub device_key: Vec<u8>,
    /// Chosen here.
    pub nonce: [u8; 16],
}

/// Who this machine is.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Which node.
    pub node_id: Uuid,
    /// WireGuard public key that it registered with.
    pub wg_key: [u8; 32],
    /// SHA-256 of the CA's SubjectPublicKeyInfo.
    pub ca_pin: [u8; 32],
    /// PKCS #8, DER.
    pub device_key: Vec<u8>,
    /// PEM.
    pub certificate: String,
    /// PEM, one after the other.
    pub ca_chain: String,
}

/// Where the peers stand, and how they got there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// None before the first map.
    pub checkpoint: Option<Checkpoint>,
    /// About the machine itself.
    pub own: Option<v1::Self_>,
    /// Full maps taken, ever.
    pub full_maps: u64,
    /// Deltas taken, ever.
    pub deltas: u64,
}

/// The daemon that last ran, or runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// Where it answers.
    pub ctrl_socket: String,
    /// Full maps taken before it started.
    pub full_maps_from: u64,
    /// Deltas taken before it started.
    pub deltas_from: u64,
}

/// The open database.
pub struct Store {
    sql: Connection,
    _lock: Option<File>,
}

impl Store {
    /// Opens `folder` (made 0700 where it is missing) for a daemon: one at a time.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = folder_lock(folder)?;
        drop(private_open(&folder.join(FILE))?);
        let mut sql = Connection::open(folder.join(FILE))?;
        sql.busy_timeout(BUSY)?;
        sql.pragma_update(None, "journal_mode", "wal")?;
        sql.pragma_update(None, "synchronous", "full")?;
        sql.pragma_update(None, "cache_size", -256)?;
        sql.pragma_update(None, "journal_size_limit", 1 << 20)?;
        match sql.pragma_query_value(None, "user_version", |row| row.get(0))? {
            0 => {
                let tx = sql.transaction()?;
                tx.execute_batch(SCHEMA)?;
                tx.pragma_update(None, "user_version", FORMAT)?;
                tx.commit()?;
            }
            FORMAT => {}
            other => return Err(StoreError::Format(other)),
        }
        Ok(Self { sql, _lock: Some(lock) })
    }

    /// Opens `folder` to look at it, beside a running daemon; None where no daemon has made it yet.
    pub fn open_to_read(folder: &Path) -> Result<Option<Self>, StoreError> {
        let path = folder.join(FILE);
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(source) => return Err(StoreError::Io { path: path.display().to_string(), source }),
        }
        // Reading a WAL takes its shared-memory file, which a read-only connection cannot make.
        let sql = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        sql.busy_timeout(BUSY)?;
        sql.pragma_update(None, "query_only", true)?;
        match sql.pragma_query_value(None, "user_version", |row| row.get(0))? {
            0 => Ok(None),
            FORMAT => Ok(Some(Self { sql, _lock: None })),
            other => Err(StoreError::Format(other)),
        }
    }

    /// The enrolment that has begun, if any; it stays after it is complete.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, StoreError> {
        let row =
            self.sql.query_row("SELECT token_id, tenant_slug, ca_pin, device_key, nonce FROM identity", [], |row| {
                Ok((
                    row.get::<_, Uuid16>(0)?,
                    row.get(1)?,
                    row.get::<_, [u8; 32]>(2)?,
                    row.get(3)?,
                    row.get::<_, [u8; 16]>(4)?,
                ))
            });
        let row = row.optional()?;
        Ok(row.map(|(token_id, tenant_slug, ca_pin, device_key, nonce)| Enrolment {
            token_id: token_id.0,
            tenant_slug,
            ca_pin,
            device_key,
            nonce,
        }))
    }

    /// Saves an enrolment before it is spoken of, in the place of any other.
    pub fn enrolment_begin(&mut self, enrolment: &Enrolment, urls: &[String]) -> Result<(), StoreError> {
        let tx = self.sql.transaction()?;
        tx.execute(
            "INSERT OR REPLACE INTO identity (one, token_id, tenant_slug, ca_pin, device_key, nonce) VALUES (1, ?, ?, ?, ?, ?)",
            params![
                enrolment.token_id.as_bytes(),
                enrolment.tenant_slug,
                enrolment.ca_pin,
                enrolment.device_key,
                enrolment.nonce
            ],
        )?;
        urls_write(&tx, urls)?;
        Ok(tx.commit()?)
    }

    /// Completes the enrolment.
    pub fn enrolment_complete(&mut self, identity: &Identity) -> Result<(), StoreError> {
        let changed = self.sql.execute(
            "UPDATE identity SET node_id = ?, wg_key = ?, certificate = ?, ca_chain = ?",
            params![identity.node_id.as_bytes(), identity.wg_key, identity.certificate, identity.ca_chain],
        )?;
        if changed == 1 { Ok(()) } else { Err(StoreError::Damaged("an enrolment ended that never began")) }
    }

    /// Who this machine is; None until it is enrolled.
    pub fn identity(&self) -> Result<Option<Identity>, StoreError> {
        let row = self.sql.query_row(
            "SELECT node_id, wg_key, ca_pin, device_key, certificate, ca_chain FROM identity WHERE node_id IS NOT NULL",
            [],
            |row| {
                Ok(Identity {
                    node_id: row.get::<_, Uuid16>(0)?.0,
                    wg_key: row.get(1)?,
                    ca_pin: row.get(2)?,
                    device_key: row.get(3)?,
                    certificate: row.get(4)?,
                    ca_chain: row.get(5)?,
                })
            },
        );
        Ok(row.optional()?)
    }

    /// The controllers' node doors, in order.
    pub fn urls(&self) -> Result<Vec<String>, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT url FROM url ORDER BY at")?;
        let urls = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(urls)
    }

    /// Other controllers.
    pub fn urls_set(&mut self, urls: &[String]) -> Result<(), StoreError> {
        let tx = self.sql.transaction()?;
        urls_write(&tx, urls)?;
        Ok(tx.commit()?)
    }

    /// Where the peers stand.
    pub fn position(&self) -> Result<Position, StoreError> {
        let (checkpoint, own, full_maps, deltas) =
            self.sql.query_row("SELECT checkpoint, own, full_maps, deltas FROM position", [], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<Vec<u8>>>(1)?, count(row, 2)?, count(row, 3)?))
            })?;
        let checkpoint = match checkpoint.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| StoreError::Damaged("checkpoint"))?),
        };
        let own = own.map(|body| v1::Self_::decode(body.as_slice())).transpose();
        let own = own.map_err(|_| StoreError::Damaged("own"))?;
        Ok(Position { checkpoint, own, full_maps, deltas })
    }

    /// All peers, by node id.
    pub fn peers(&self) -> Result<Vec<v1::Peer>, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT body FROM peer ORDER BY node_id")?;
        let bodies = query.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
        let mut peers = Vec::new();
        for body in bodies {
            peers.push(v1::Peer::decode(body?.as_slice()).map_err(|_| StoreError::Damaged("peer"))?);
        }
        Ok(peers)
    }

    /// Takes what a stream brought: peers and checkpoint, in one durable transaction.
    pub fn take(&mut self, effect: &Effect) -> Result<(), StoreError> {
        let tx = self.sql.transaction()?;
        match effect {
            Effect::Replace { checkpoint, own, peers } => {
                tx.execute("DELETE FROM peer", [])?;
                peers_write(&tx, peers)?;
                tx.execute(
                    "UPDATE position SET checkpoint = ?, own = NULL, full_maps = full_maps + 1",
                    [checkpoint.to_string()],
                )?;
                own_write(&tx, own.as_ref())?;
            }
            Effect::Patch { checkpoint, own, upserts, removed } => {
                let mut delete = tx.prepare_cached("DELETE FROM peer WHERE node_id = ?")?;
                for id in removed {
                    delete.execute([id.as_bytes()])?;
                }
                peers_write(&tx, upserts)?;
                tx.execute("UPDATE position SET checkpoint = ?, deltas = deltas + 1", [checkpoint.to_string()])?;
                own_write(&tx, own.as_ref())?;
            }
            Effect::Advance(checkpoint) => {
                tx.execute("UPDATE position SET checkpoint = ?", [checkpoint.to_string()])?;
            }
            Effect::Redirect { .. } | Effect::Bye { .. } => {}
        }
        Ok(tx.commit()?)
    }

    /// Forgets peers and checkpoint: this machine is no longer, or not now, in its network.
    pub fn wipe(&mut self) -> Result<(), StoreError> {
        let tx = self.sql.transaction()?;
        tx.execute("DELETE FROM peer", [])?;
        tx.execute("UPDATE position SET checkpoint = '', own = NULL", [])?;
        Ok(tx.commit()?)
    }

    /// A daemon starts that answers at `ctrl_socket`.
    pub fn daemon_started(&mut self, ctrl_socket: &str) -> Result<(), StoreError> {
        self.sql
            .execute("INSERT OR REPLACE INTO daemon SELECT 1, ?, full_maps, deltas FROM position", [ctrl_socket])?;
        Ok(())
    }

    /// The daemon that last started here.
    pub fn daemon(&self) -> Result<Daemon, StoreError> {
        let row = self.sql.query_row("SELECT ctrl_socket, full_maps_from, deltas_from FROM daemon", [], |row| {
            Ok(Daemon { ctrl_socket: row.get(0)?, full_maps_from: count(row, 1)?, deltas_from: count(row, 2)? })
        });
        Ok(row.optional()?.unwrap_or_default())
    }
}

/// Makes `folder` (0700) where it is missing, and holds it for one daemon, as long as the file is open.
pub fn folder_lock(folder: &Path) -> Result<File, StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| StoreError::Io { path: folder.display().to_string(), source })?;
    let lock = private_open(&folder.join(LOCK))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StoreError::Locked(folder.display().to_string()))?;
    Ok(lock)
}

fn private_open(path: &Path) -> Result<File, StoreError> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    opened.map_err(|source| StoreError::Io { path: path.display().to_string(), source })
}

fn count(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(i64::unsigned_abs)
}

struct Uuid16(Uuid);

impl rusqlite::types::FromSql for Uuid16 {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        <[u8; 16]>::column_result(value).map(|bytes| Self(Uuid::from_bytes(bytes)))
    }
}

fn urls_write(tx: &Transaction<'_>, urls: &[String]) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM url", [])?;
    let mut insert = tx.prepare_cached("INSERT INTO url (at, url) VALUES (?, ?)")?;
    for (at, url) in urls.iter().take(URLS_MAX).enumerate() {
        insert.execute(params![at as i64, url])?;
    }
    Ok(())
}

fn peers_write(tx: &Transaction<'_>, peers: &[v1::Peer]) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO peer (node_id, body) VALUES (?, ?)")?;
    for peer in peers.iter().take(PEERS_MAX) {
        let id = Uuid::parse_str(&peer.node_id).unwrap_or_default();
        insert.execute(params![id.as_bytes(), peer.encode_to_vec()])?;
    }
    Ok(())
}

fn own_write(tx: &Transaction<'_>, own: Option<&v1::Self_>) -> rusqlite::Result<()> {
    if let Some(own) = own {
        tx.execute("UPDATE position SET own = ?", [own.encode_to_vec()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const EPOCH: &str = "000102030405060708090a0b0c0d0e0f";

    fn cp(seq: u64) -> Checkpoint {
        format!("{EPOCH}.{seq}").parse().unwrap()
    }

    fn peer(n: u8, name: &str) -> v1::Peer {
        let node_id = Uuid::from_bytes([n; 16]).to_string();
        v1::Peer { node_id, name: name.into(), wg_public_key: vec![n; 32], ..Default::default() }
    }

    fn own(name: &str) -> Option<v1::Self_> {
        Some(v1::Self_ { name: name.into(), ..Default::default() })
    }

    fn names(store: &Store) -> Vec<String> {
        store.peers().unwrap().into_iter().map(|peer| peer.name).collect()
    }

    #[test]
    fn effects_are_kept_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.position().unwrap(), Position::default());
        let steps = [
            (
                Effect::Replace { checkpoint: cp(5), own: own("me"), peers: vec![peer(1, "a"), peer(2, "b")] },
                5,
                vec!["a", "b"],
            ),
            (
                Effect::Patch {
                    checkpoint: cp(7),
                    own: None,
                    upserts: vec![peer(2, "B"), peer(3, "c")],
                    removed: vec![Uuid::from_bytes([1; 16])],
                },
                7,
                vec!["B", "c"],
            ),
            (Effect::Advance(cp(9)), 9, vec!["B", "c"]),
            (
                Effect::Patch { checkpoint: cp(10), own: own("you"), upserts: vec![], removed: vec![] },
                10,
                vec!["B", "c"],
            ),
            (Effect::Replace { checkpoint: cp(11), own: None, peers: vec![peer(4, "d")] }, 11, vec!["d"]),
        ];
        for (effect, seq, expected) in steps {
            store.take(&effect).unwrap();
            drop(store);
            store = Store::open(&path).unwrap();
            assert_eq!(store.position().unwrap().checkpoint, Some(cp(seq)), "{effect:?}");
            assert_eq!(names(&store), expected, "{effect:?}");
        }
        let position = store.position().unwrap();
        assert_eq!((position.full_maps, position.deltas), (2, 2));
        assert_eq!(position.own, None);
        store.daemon_started("/run/x.sock").unwrap();
        assert_eq!(
            store.daemon().unwrap(),
            Daemon { ctrl_socket: "/run/x.sock".into(), full_maps_from: 2, deltas_from: 2 }
        );
        store.wipe().unwrap();
        assert_eq!(store.position().unwrap().checkpoint, None);
        assert!(names(&store).is_empty());
    }

    #[test]
    fn a_crash_inside_a_transaction_leaves_the_old_pair() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.take(&Effect::Replace { checkpoint: cp(5), own: own("me"), peers: vec![peer(1, "a")] }).unwrap();
        // The bytes that a kill would leave: everything written, nothing committed.
        let copy = tempfile::tempdir().unwrap();
        let tx = store.sql.transaction().unwrap();
        tx.execute("DELETE FROM peer", []).unwrap();
        tx.execute("UPDATE position SET checkpoint = ?", [cp(6).to_string()]).unwrap();
        tx.cache_flush().unwrap();
        for name in [FILE, "state.db-wal"] {
            std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
        }
        drop(tx);
        let after = Store::open(copy.path()).unwrap();
        assert_eq!(after.position().unwrap().checkpoint, Some(cp(5)));
        assert_eq!(names(&after), ["a"]);
    }

    #[test]
    fn identity_and_enrolment() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        assert!(store.enrolment().unwrap().is_none());
        let begun = Enrolment {
            token_id: Uuid::from_bytes([1; 16]),
            tenant_slug: "acme".into(),
            ca_pin: [2; 32],
            device_key: vec![3; 100],
            nonce: [4; 16],
        };
        store.enrolment_begin(&begun, &["https://a:1".into(), "https://b:1".into()]).unwrap();
        assert!(store.enrolment().unwrap().unwrap() == begun);
        assert!(store.identity().unwrap().is_none());
        let identity = Identity {
            node_id: Uuid::from_bytes([9; 16]),
            wg_key: [8; 32],
            ca_pin: begun.ca_pin,
            device_key: begun.device_key.clone(),
            certificate: "cert".into(),
            ca_chain: "chain".into(),
        };
        store.enrolment_complete(&identity).unwrap();
        assert!(store.identity().unwrap().unwrap() == identity);
        assert_eq!(store.urls().unwrap(), ["https://a:1", "https://b:1"]);
        store.urls_set(&vec!["https://c:1".to_owned(); 40]).unwrap();
        assert_eq!(store.urls().unwrap().len(), URLS_MAX);
    }

    #[test]
    fn the_folder_is_private_and_has_one_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert!(Store::open_to_read(&path).unwrap().is_none());
        let mut store = Store::open(&path).unwrap();
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        store.take(&Effect::Advance(cp(1))).unwrap();
        assert_eq!((mode("."), mode(FILE), mode("state.db-wal")), (0o700, 0o600, 0o600));
        assert_eq!(Store::open(&path).err().unwrap().code(), "state_locked");
        let reader = Store::open_to_read(&path).unwrap().unwrap();
        assert_eq!(reader.position().unwrap().checkpoint, Some(cp(1)));
        assert!(reader.sql.execute("DELETE FROM peer", []).is_err());
        store.sql.pragma_update(None, "user_version", FORMAT + 1).unwrap();
        drop(store);
        assert_eq!(Store::open(&path).err().unwrap().code(), "state_format");
    }

    #[test]
    fn a_half_written_file_is_an_error_and_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.take(&Effect::Advance(cp(1))).unwrap();
        drop(store);
        let file = folder.path().join(FILE);
        let whole = std::fs::read(&file).unwrap();
        for half in
            [b"no database, but long enough to be looked at as one".to_vec(), whole[..whole.len() / 2 - 7].to_vec()]
        {
            std::fs::write(&file, &half).unwrap();
            let refused = Store::open(folder.path()).and_then(|store| store.position().and(store.peers()).map(|_| ()));
            assert_eq!(refused.err().map(|e| e.code()), Some("state_sqlite"));
            assert_eq!(std::fs::read(&file).unwrap(), half);
        }
        std::fs::write(&file, &whole).unwrap();
        assert_eq!(Store::open(folder.path()).unwrap().position().unwrap().checkpoint, Some(cp(1)));
    }
}

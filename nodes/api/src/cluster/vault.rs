//! The cluster's keys: on members that vote, and nowhere else.
//!
//! ```text
//!  founder   makes them ─► keys/cluster, keys/ca.key          joins and follows: none
//!  promotion a voter ─► ClusterKeys ─► checked against the log ─► both files, durable ─► here ─► only then Raft: it votes
//! ```
//! Who has none asks one who has (see [`super::ask`]). Nothing takes them away again: a member that voted keeps them.

use crate::Log;
use crate::bootstrap::purpose;
use crate::ca::{Ca, Signer};
use crate::keys::Keys;
use crate::problem::Problem;
use crate::start_error::StartError;
use cvlan_core::State;
use cvlan_core::seal::ClusterKey;
use cvlan_proto::v1::ClusterKeys;
use http::StatusCode;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What a voter keeps in keys/ besides its own identity.
pub struct Secrets {
    /// Seals the secrets in the log.
    pub cluster: ClusterKey,
    /// The certificate authority, with its key.
    pub signer: Signer,
}

impl Secrets {
    /// As they lie in keys/; `None` where one of them does not.
    pub fn kept(keys: &Keys, ca: &Arc<Ca>) -> Result<Option<Self>, StartError> {
        let (Some(cluster), Some(key)) = (keys.cluster()?, keys.ca_key()?) else { return Ok(None) };
        Ok(Some(Self { cluster, signer: Signer::open(&key, ca.clone())? }))
    }

    /// True where they open what this log has sealed.
    pub fn open(&self, state: &State) -> bool {
        self.cluster.open(purpose::CHALLENGE, &state.system.challenge_key).is_ok()
    }

    /// As they are handed to a member that is about to vote.
    pub fn to_proto(&self) -> ClusterKeys {
        let Self { cluster, signer } = self;
        ClusterKeys { id: cluster.id.clone(), key: cluster.key.to_vec(), ca_key: signer.key_pem() }
    }
}

/// The place for them in this process.
#[derive(Default)]
pub struct Vault {
    here: RwLock<Option<Arc<Secrets>>>,
    /// Keys are taken in one after the other.
    receiving: Mutex<()>,
}

/// They are not here.
pub fn elsewhere() -> Problem {
    let detail = "this member follows and does not have the keys for that; ask one that votes";
    Problem::later(StatusCode::SERVICE_UNAVAILABLE, "keys_elsewhere", detail, 1)
}

impl Vault {
    /// With what is there at the start.
    pub fn new(secrets: Option<Secrets>) -> Arc<Self> {
        Arc::new(Self { here: RwLock::new(secrets.map(Arc::new)), receiving: Mutex::default() })
    }

    /// The keys, where they are here.
    pub fn get(&self) -> Option<Arc<Secrets>> {
        self.here.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys, for what is then asked of the member that leads: it takes that from a voter alone. 503 `keys_elsewhere`
    /// where this one does not vote, or has none: one that was rebuilt has them still.
    pub fn need_voting(&self, log: &Log) -> Result<Arc<Secrets>, Problem> {
        self.get().filter(|_| log.votes()).ok_or_else(elsewhere)
    }

    /// The keys; 503 `keys_elsewhere` where they are not here.
    pub fn need(&self) -> Result<Arc<Secrets>, Problem> {
        self.get().ok_or_else(elsewhere)
    }

    /// Puts them in.
    pub fn set(&self, secrets: Secrets) {
        *self.here.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(secrets));
    }

    /// Keeps keys that were handed over, durably, if they are those of this log; returns those that are here then. Blocks on
    /// the disk.
    pub fn receive(&self, keys: &Keys, state: &State, given: &ClusterKeys) -> Result<Arc<Secrets>, Problem> {
        let wrong = |what: &str| Problem::invalid("keys_invalid", format!("the keys are not this log's: {what}"));
        let key = given.key.as_slice().try_into().map_err(|_| wrong("the cluster key is not 32 bytes"))?;
        let cluster = ClusterKey { id: given.id.clone(), key };
        let opened = cluster.open(purpose::CHALLENGE, &state.system.challenge_key);
        opened.map_err(|e| wrong(&e.to_string()))?;
        let ca = Ca::read(&state.system.ca_certificate).map_err(Problem::internal)?;
        let signer = Signer::open(&given.ca_key, Arc::new(ca)).map_err(|e| wrong(&e.to_string()))?;
        let _turn = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        if self.get().is_none() {
            keys.ca_key_write(&given.ca_key).map_err(Problem::internal)?;
            keys.cluster_write(&cluster).map_err(Problem::internal)?;
            self.set(Secrets { cluster, signer });
            tracing::info!("the cluster's keys are here: this member is about to vote");
        }
        self.need()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::ca_make;
    use cvlan_core::system::SystemState;

    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn only_the_logs_own_keys_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let (ca_key, ca_certificate) = ca_make(NOW).unwrap();
        let cluster = ClusterKey { id: "k".into(), key: [1; 32] };
        let challenge_key = cluster.seal(purpose::CHALLENGE, [2; 24], &[3; 32]).unwrap();
        let system = SystemState { ca_certificate: ca_certificate.clone(), challenge_key, ..SystemState::default() };
        let state = State { system: Arc::new(system), ..State::default() };
        let good = ClusterKeys { id: "k".into(), key: vec![1; 32], ca_key };
        let vault = Vault::default();
        for (what, bad) in [
            ("short", ClusterKeys { key: vec![1; 31], ..good.clone() }),
            ("another key", ClusterKeys { key: vec![2; 32], ..good.clone() }),
            ("another name", ClusterKeys { id: "l".into(), ..good.clone() }),
            ("another CA", ClusterKeys { ca_key: ca_make(NOW).unwrap().0, ..good.clone() }),
            ("no CA", ClusterKeys { ca_key: String::new(), ..good.clone() }),
        ] {
            assert_eq!(vault.receive(&keys, &state, &bad).err().unwrap().code, "keys_invalid", "{what}");
            assert!(vault.get().is_none() && keys.cluster().unwrap().is_none() && keys.ca_key().unwrap().is_none());
        }
        assert_eq!(vault.need().err().unwrap().code, "keys_elsewhere");
        vault.receive(&keys, &state, &good).unwrap();
        let ca = Arc::new(Ca::read(&ca_certificate).unwrap());
        for kept in [vault.need().unwrap(), Arc::new(Secrets::kept(&keys, &ca).unwrap().unwrap())] {
            assert_eq!(kept.to_proto(), ClusterKeys { ca_key: kept.signer.key_pem(), ..good.clone() });
        }
        vault.receive(&keys, &state, &good).unwrap();
    }
}

//! Contexts: which controller, by which pin, as whom, and the session there. `contexts.json`, 0600, written whole.
//!
//! Invariants: a file is replaced by rename, never written in place; a change is made under a lock to what the file says
//! then, so that commands that run side by side do not undo each other; a checkpoint only moves forward in its epoch.

use crate::failure::Failure;
use cvlan_core::id::Checkpoint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest file that is read.
const FILE_MAX: u64 = 1 << 20;

/// Other controllers that a context remembers.
const URLS_MAX: usize = 64;

/// One cluster, and who one is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// https://HOST:PORT
    pub url: String,
    /// Other controllers of the same cluster: asked where that one does not answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// sha256:HEX of the CA's SubjectPublicKeyInfo: the only thing that is trusted there.
    pub ca_pin: String,
    /// Login name.
    pub user: String,
    /// Where that user logs in; empty = a global user.
    pub home: String,
    /// The tenant that commands are about without -t.
    pub tenant: String,
    /// Good for days; empty = logged out.
    pub refresh_token: String,
    /// Good for minutes.
    pub access_token: String,
    /// Its end, seconds since 1970.
    pub access_expires_s: u64,
    /// Up to where this context has seen the log; reads see at least that.
    pub checkpoint: String,
}

impl Context {
    /// Takes note of what an answer showed: forward in its epoch; another epoch starts anew.
    pub fn seen(&mut self, checkpoint: &str) {
        let Ok(new) = checkpoint.parse::<Checkpoint>() else { return };
        match self.checkpoint.parse::<Checkpoint>() {
            Ok(old) if old.epoch == new.epoch && old.seq >= new.seq => {}
            Ok(_) | Err(_) => self.checkpoint = new.to_string(),
        }
    }

    /// The next controller takes the place of the one that does not answer; false where there is no other.
    pub fn elsewhere(&mut self) -> bool {
        if self.urls.is_empty() {
            return false;
        }
        let next = self.urls.remove(0);
        self.urls.push(std::mem::replace(&mut self.url, next));
        true
    }

    /// Takes note of all controllers of the cluster; the one in use stays.
    pub fn learn(&mut self, urls: &[String]) {
        let mut others: Vec<String> = Vec::new();
        for url in urls.iter().filter(|url| **url != self.url && url.starts_with("https://")) {
            if !others.contains(url) && others.len() < URLS_MAX {
                others.push(url.clone());
            }
        }
        // In another order it would be written anew each time.
        if others.len() != self.urls.len() || !others.iter().all(|url| self.urls.contains(url)) {
            self.urls = others;
        }
    }

    /// No session any more; where, as whom and by which pin stays.
    pub fn forget_session(&mut self) {
        self.refresh_token.clear();
        self.access_token.clear();
        self.access_expires_s = 0;
    }
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Contexts {
    /// The one that commands use.
    pub current: String,
    /// By name.
    pub contexts: BTreeMap<String, Context>,
}

/// Where the file is.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// `$CVLAN_CONTEXT_DIR`, else `$XDG_CONFIG_HOME/cvlan`, else `~/.config/cvlan`.
    pub fn of_environment() -> Result<Self, Failure> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = set("CVLAN_CONTEXT_DIR")
            .or_else(|| set("XDG_CONFIG_HOME").map(|d| d.join("cvlan")))
            .or_else(|| set("HOME").map(|d| d.join(".config/cvlan")));
        match dir {
            Some(dir) => Ok(Self { dir }),
            None => Err(Failure::new("no_home", "neither CVLAN_CONTEXT_DIR nor HOME says where contexts are kept")),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("contexts.json")
    }

    /// What the file says; no file = nothing.
    pub fn read(&self) -> Result<Contexts, Failure> {
        let path = self.file();
        let text = match fs::metadata(&path) {
            Ok(meta) if meta.len() > FILE_MAX => return Err(damaged(&path, "it is too long")),
            Ok(_) => fs::read_to_string(&path).map_err(|e| unusable(&path, &e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(e) => return Err(unusable(&path, &e)),
        };
        serde_json::from_str(&text).map_err(|e| damaged(&path, &e.to_string()))
    }

    /// Changes the file under its lock.
    pub fn change<T>(&self, change: impl FnOnce(&mut Contexts) -> Result<T, Failure>) -> Result<T, Failure> {
        let failed = |e: io::Error| unusable(&self.dir, &e);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        let lock = private(&self.dir.join("contexts.lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let old = self.read()?;
        let mut new = old.clone();
        let answer = change(&mut new)?;
        if new != old {
            self.write(&new).map_err(failed)?;
        }
        Ok(answer)
    }

    fn write(&self, contexts: &Contexts) -> io::Result<()> {
        let aside = self.dir.join("contexts.json.new");
        // What a crash left may have other rights.
        match fs::remove_file(&aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let mut file = private(&aside)?;
        file.write_all(&serde_json::to_vec_pretty(contexts)?)?;
        file.sync_all()?;
        fs::rename(&aside, self.file())
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::new("context_unusable", format!("{}: {error}", path.display()))
        .hint("CVLAN_CONTEXT_DIR names another folder for contexts")
}

fn damaged(path: &Path, why: &str) -> Failure {
    Failure::new("context_damaged", format!("{} cannot be read: {why}", path.display()))
        .hint("move it away and log in again: cvlanctl login URL --ca-pin sha256:…")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const EPOCH: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn a_checkpoint_moves_forward_in_its_epoch_alone() {
        let other = "ff".repeat(16);
        for (old, seen, kept) in [
            (String::new(), format!("{EPOCH}.5"), format!("{EPOCH}.5")),
            (format!("{EPOCH}.5"), format!("{EPOCH}.7"), format!("{EPOCH}.7")),
            (format!("{EPOCH}.7"), format!("{EPOCH}.5"), format!("{EPOCH}.7")),
            (format!("{EPOCH}.7"), format!("{other}.2"), format!("{other}.2")),
            (format!("{EPOCH}.7"), "nonsense".to_owned(), format!("{EPOCH}.7")),
        ] {
            let mut context = Context { checkpoint: old, ..Context::default() };
            context.seen(&seen);
            assert_eq!(context.checkpoint, kept, "{seen}");
        }
    }

    #[test]
    fn the_next_controller_is_asked_in_turn() {
        let urls = |urls: &[&str]| urls.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>();
        let mut context = Context { url: "https://a".into(), ..Context::default() };
        assert!(!context.elsewhere());
        context.learn(&urls(&["https://b", "https://a", "https://c", "https://b", "http://d"]));
        assert_eq!(context.urls, ["https://b", "https://c"]);
        for (url, others) in [("https://b", ["https://c", "https://a"]), ("https://c", ["https://a", "https://b"])] {
            assert!(context.elsewhere());
            assert_eq!((context.url.as_str(), context.urls.as_slice()), (url, &urls(&others)[..]));
        }
        let before = context.clone();
        context.learn(&urls(&["https://c", "https://b", "https://a"]));
        assert_eq!(context, before, "nothing new");
        context.learn(&urls(&["https://c"]));
        assert_eq!(context.urls, [""; 0]);
    }

    #[test]
    fn the_file_is_private_whole_and_changed_under_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { dir: dir.path().join("deep/cvlan") };
        assert_eq!(store.read().unwrap(), Contexts::default());
        std::thread::scope(|s| {
            for n in 0..8 {
                let store = &store;
                s.spawn(move || {
                    let insert = |c: &mut Contexts| {
                        c.contexts
                            .insert(format!("c{n}"), Context { url: format!("https://{n}"), ..Context::default() });
                        Ok(())
                    };
                    store.change(insert).unwrap();
                });
            }
        });
        assert_eq!(store.read().unwrap().contexts.len(), 8, "none undone");
        assert_eq!(fs::metadata(store.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&store.dir).unwrap().permissions().mode() & 0o777, 0o700);

        let refused = store.change(|c| {
            c.contexts.clear();
            Err::<(), _>(Failure::usage("no"))
        });
        assert!(refused.is_err() && store.read().unwrap().contexts.len() == 8, "a refused change changes nothing");

        fs::write(store.file(), "{").unwrap();
        assert_eq!(store.read().unwrap_err().code, "context_damaged");
    }
}

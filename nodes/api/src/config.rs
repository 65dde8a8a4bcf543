//! Settings: flags, environment (`CVLAN_…`), YAML file (`--config`), in that order of strength; then defaults.

use crate::app::backup::Schedule;
use crate::app::sink::{SINKS_MAX, SinkError, Target};
use crate::cluster::force::Force;
use crate::server::Options;
use cvlan_projections::PostgresUrl;
use cvlan_raft::LogStore;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

/// URLs of one kind that may be advertised.
pub const URLS_MAX: usize = cvlan_core::system::URLS_MAX;

/// What can be set. `None` = not set here.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Folder of the log, snapshots, views and keys [default: ./cvlan-data]
    #[arg(long, env = "CVLAN_DATA_DIR", value_name = "DIR", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// What keeps the log: wal or sled; for good, once it is begun [default: what it was begun with; at first, wal]
    #[arg(long, env = "CVLAN_LOG_STORE", value_name = "wal|sled", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_store: Option<LogStore>,
    /// REST API and web UI, TLS [default: 127.0.0.1:8443]
    #[arg(long, env = "CVLAN_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Machines' door, TLS [default: 127.0.0.1:8444]
    #[arg(long, env = "CVLAN_NODE_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_listen: Option<SocketAddr>,
    /// /metrics, /livez, /readyz, plain HTTP [default: 127.0.0.1:9443]
    #[arg(long, env = "CVLAN_METRICS_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Members' door, TLS on both sides [default: 127.0.0.1:8445]
    #[arg(long, env = "CVLAN_CLUSTER_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_listen: Option<SocketAddr>,
    /// Where other members reach that door [default: what --cluster-listen says]
    #[arg(long, env = "CVLAN_ADVERTISE_CLUSTER", value_name = "HOST:PORT", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_cluster: Option<String>,
    /// Join an existing cluster through these members [default: those that the token names]
    #[arg(long, env = "CVLAN_JOIN", value_name = "HOST:PORT", value_delimiter = ',', global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<Vec<String>>,
    /// The token to join with, from `cvlanctl cluster add NAME`; of no use to a folder that has joined
    #[arg(long, env = "CVLAN_JOIN_TOKEN", value_name = "cvm_…", hide_env_values = true, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_token: Option<String>,
    /// A majority is lost for good: go on alone, in a new cluster. Without EPOCH it says what that means
    #[arg(long, value_name = "EPOCH", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    #[serde(skip)]
    pub force_new_cluster: Option<String>,
    /// Where people reach the API [default: https:// + what --listen says]
    #[arg(long, env = "CVLAN_ADVERTISE_API", value_name = "URL", value_delimiter = ',', global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_api: Option<Vec<String>>,
    /// Where machines reach their door; tokens carry it [default: https:// + what --node-listen says]
    #[arg(long, env = "CVLAN_ADVERTISE_NODE", value_name = "URL", value_delimiter = ',', global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_node: Option<Vec<String>>,
    /// Make backups of the log by itself, into this folder; each is read back
    #[arg(long, env = "CVLAN_BACKUP_DIR", value_name = "DIR", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_dir: Option<PathBuf>,
    /// How often [default: 86400, a day]
    #[arg(long, env = "CVLAN_BACKUP_EVERY", value_name = "SECONDS", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_every: Option<NonZeroU64>,
    /// How many of them stay [default: 7]
    #[arg(long, env = "CVLAN_BACKUP_KEEP", value_name = "N", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_keep: Option<NonZeroU64>,
    /// Let go of history that is older than so many days; what it led to stays, as a state; 0: keep all [default: 90]
    #[arg(long, env = "CVLAN_HISTORY_DAYS", value_name = "DAYS", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_days: Option<u32>,
    /// And before it goes, write it there, as an export that proves itself
    #[arg(long, env = "CVLAN_HISTORY_EXPORT", value_name = "DIR", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_export: Option<PathBuf>,
    /// Play an older version that knows features up to this level, to try an upgrade
    #[arg(long, env = "CVLAN_PLAY_LEVEL", value_name = "LEVEL", hide = true, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub play_level: Option<u32>,
    /// Stream the record out: file:/PATH[?rotate=BYTES&keep=N], https://URL, http://URL, syslog+tls://HOST:PORT,
    /// syslog+tcp://HOST:PORT; several times
    #[arg(long, env = "CVLAN_SINK", value_name = "SINK", value_delimiter = ' ', hide_env_values = true, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<Vec<String>>,
    /// Who vouches for sinks with TLS, PEM
    #[arg(long, env = "CVLAN_SINK_CA", value_name = "FILE", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink_ca: Option<PathBuf>,
    /// Keep the SQL views in PostgreSQL 16 too: postgres://USER:PASSWORD@HOST:PORT/DATABASE[?sslmode=…] [default: sqlite]
    #[arg(long, env = "CVLAN_VIEWS", value_name = "sqlite|URL", hide_env_values = true, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<String>,
    /// Machines of a member that is silent for so many seconds count as offline [default: 60]
    #[arg(long, env = "CVLAN_PRESENCE_EXPIRY", value_name = "SECONDS", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_expiry: Option<NonZeroU64>,
}

/// A day.
pub const DAY_MS: u64 = 24 * 3600 * 1000;
/// How long history is kept where nothing says otherwise.
pub const HISTORY_DAYS: u64 = 90;
/// Between two backups, where nothing else is said.
const BACKUP_EVERY_S: u64 = 24 * 3600;
/// Backups that stay, likewise.
const BACKUP_KEEP: usize = 7;

/// Settings that do not go.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no epoch.
    #[error("--force-new-cluster={0}: an epoch is 32 hex digits; without one, what it would mean is said")]
    Epoch(String),
    /// The file cannot be read.
    #[error("{file}: {source}")]
    File {
        /// Its path.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is no YAML of ours.
    #[error("{file}: {detail}")]
    Yaml {
        /// Its path.
        file: String,
        /// What is wrong, and where.
        detail: String,
    },
    /// A URL that nobody could use.
    #[error("{flag} {url:?} is not https://HOST:PORT")]
    Url {
        /// Which flag.
        flag: &'static str,
        /// What was given.
        url: String,
    },
    /// An address that no member could connect to.
    #[error("{flag}: {detail}")]
    Address {
        /// Which flag.
        flag: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// --join without a token.
    #[error("--join needs --join-token: `cvlanctl cluster add NAME` makes one")]
    NoToken,
    /// When and how many, and not where to.
    #[error("--backup-every and --backup-keep need --backup-dir")]
    NoBackupDir,
    /// No sink.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A sink that nobody vouches for.
    #[error("--sink {0} needs --sink-ca: a PEM file of who vouches for it")]
    NoSinkCa(String),
    /// Two sinks that would write over each other.
    #[error("--sink {0} and --sink {1} come to the same place: every event would be there twice; leave one out")]
    SinksClash(String, String),
    /// More sinks than are fed.
    #[error("{0} sinks, of at most {SINKS_MAX}")]
    TooManySinks(usize),
    /// No view.
    #[error("--views: {0}")]
    Views(cvlan_projections::Error),
    /// More URLs than can be advertised.
    #[error("{flag} has {count} URLs, of at most {URLS_MAX}")]
    TooManyUrls {
        /// Which flag.
        flag: &'static str,
        /// How many.
        count: usize,
    },
}

impl Settings {
    /// Reads a YAML file; an unknown name in it is an error.
    pub fn file_read(path: &std::path::Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File { file: file.clone(), source })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // One line: the position is in it.
        serde_saphyr::from_str(&text).map_err(|e| ConfigError::Yaml { file, detail: one_line(&e.to_string()) })
    }

    /// What is not set here is taken from `weaker`.
    pub fn or(self, weaker: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(weaker.data_dir),
            log_store: self.log_store.or(weaker.log_store),
            listen: self.listen.or(weaker.listen),
            node_listen: self.node_listen.or(weaker.node_listen),
            metrics_listen: self.metrics_listen.or(weaker.metrics_listen),
            cluster_listen: self.cluster_listen.or(weaker.cluster_listen),
            advertise_cluster: self.advertise_cluster.or(weaker.advertise_cluster),
            join: self.join.or(weaker.join),
            join_token: self.join_token.or(weaker.join_token),
            force_new_cluster: self.force_new_cluster,
            advertise_api: self.advertise_api.or(weaker.advertise_api),
            advertise_node: self.advertise_node.or(weaker.advertise_node),
            backup_dir: self.backup_dir.or(weaker.backup_dir),
            backup_every: self.backup_every.or(weaker.backup_every),
            backup_keep: self.backup_keep.or(weaker.backup_keep),
            history_days: self.history_days.or(weaker.history_days),
            history_export: self.history_export.or(weaker.history_export),
            play_level: self.play_level.or(weaker.play_level),
            sink: self.sink.or(weaker.sink),
            sink_ca: self.sink_ca.or(weaker.sink_ca),
            views: self.views.or(weaker.views),
            presence_expiry: self.presence_expiry.or(weaker.presence_expiry),
        }
    }

    /// Checked, with defaults where nothing is set.
    pub fn options(self) -> Result<Options, ConfigError> {
        let d = Options::default();
        // Set to nothing is not set: so unit files leave it.
        let join_token = self.join_token.filter(|token| !token.trim().is_empty());
        let mut join = self.join.unwrap_or_default();
        join.retain(|address| !address.is_empty());
        if join_token.is_none() && !join.is_empty() {
            return Err(ConfigError::NoToken);
        }
        for address in &join {
            address_fits("--join", address)?;
        }
        if let Some(address) = &self.advertise_cluster {
            address_fits("--advertise-cluster", address)?;
        }
        let (every, keep) = (self.backup_every, self.backup_keep);
        if self.backup_dir.is_none() && (every.is_some() || keep.is_some()) {
            return Err(ConfigError::NoBackupDir);
        }
        let backup = self.backup_dir.map(|folder| Schedule {
            folder,
            every: Duration::from_secs(every.map_or(BACKUP_EVERY_S, NonZeroU64::get)),
            keep: keep.map_or(BACKUP_KEEP, |keep| keep.get() as usize),
        });
        let mut sinks: Vec<Target> = Vec::new();
        for text in self.sink.unwrap_or_default().iter().filter(|text| !text.is_empty()) {
            let sink = Target::parse(text)?;
            if sink.is_tls() && self.sink_ca.is_none() {
                return Err(ConfigError::NoSinkCa(sink.shown()));
            }
            if let Some(other) = sinks.iter().find(|other| other.clashes(&sink)) {
                return Err(ConfigError::SinksClash(other.shown(), sink.shown()));
            }
            sinks.push(sink);
        }
        if sinks.len() > SINKS_MAX {
            return Err(ConfigError::TooManySinks(sinks.len()));
        }
        // Every member has the one in SQLite, and lists are answered from it.
        let views = match self.views.as_deref() {
            None | Some("" | "sqlite") => None,
            Some(url) => Some(url.parse::<PostgresUrl>().map_err(ConfigError::Views)?),
        };
        let force = match self.force_new_cluster.as_deref() {
            None => None,
            Some("") => Some(Force::Look),
            Some(epoch) => Some(Force::Leave(epoch.parse().map_err(|_| ConfigError::Epoch(epoch.to_owned()))?)),
        };
        Ok(Options {
            data_dir: self.data_dir.unwrap_or(d.data_dir),
            log_store: self.log_store,
            listen: self.listen.unwrap_or(d.listen),
            node_listen: self.node_listen.unwrap_or(d.node_listen),
            metrics_listen: self.metrics_listen.unwrap_or(d.metrics_listen),
            cluster_listen: self.cluster_listen.unwrap_or(d.cluster_listen),
            advertise_cluster: self.advertise_cluster,
            join,
            join_token,
            force,
            advertise_api: urls("--advertise-api", self.advertise_api.unwrap_or_default())?,
            advertise_node: urls("--advertise-node", self.advertise_node.unwrap_or_default())?,
            backup,
            history_export: self.history_export,
            log_limits: cvlan_raft::Limits {
                history_ms: self.history_days.map_or(d.log_limits.history_ms, |days| u64::from(days) * DAY_MS),
                level: self.play_level,
                ..d.log_limits
            },
            sinks,
            sink_ca: self.sink_ca,
            views,
            presence_expiry: self.presence_expiry.map_or(d.presence_expiry, |s| Duration::from_secs(s.get())),
            ..d
        })
    }
}

fn address_fits(flag: &'static str, address: &str) -> Result<(), ConfigError> {
    cvlan_core::member::address_check(address).map_err(|r| ConfigError::Address { flag, detail: r.detail })
}

fn urls(flag: &'static str, urls: Vec<String>) -> Result<Vec<String>, ConfigError> {
    if urls.len() > URLS_MAX {
        return Err(ConfigError::TooManyUrls { flag, count: urls.len() });
    }
    let fits = |url: &String| {
        let uri: Option<http::Uri> = url.parse().ok();
        uri.is_some_and(|u| {
            u.scheme_str() == Some("https")
                && u.host().is_some_and(|h| !h.is_empty())
                && u.path_and_query().is_none_or(|p| p.as_str() == "/")
        })
    };
    match urls.iter().find(|u| !fits(u)) {
        Some(bad) => Err(ConfigError::Url { flag, url: bad.clone() }),
        None => Ok(urls.into_iter().map(|u| u.trim_end_matches('/').to_owned()).collect()),
    }
}

/// A message on one line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cvlan.yaml");
        std::fs::write(&path, text).unwrap();
        Settings::file_read(&path)
    }

    #[test]
    fn the_stronger_wins_and_the_rest_is_default() {
        let yaml = file("data-dir: /srv/cvlan\nlisten: 127.0.0.1:1\nadvertise-node: [https://a:8444/]\n").unwrap();
        let flags = Settings { listen: Some(([127, 0, 0, 1], 2).into()), ..Settings::default() };
        let options = flags.or(yaml).options().unwrap();
        assert_eq!(options.data_dir, PathBuf::from("/srv/cvlan"));
        assert_eq!(options.listen.port(), 2);
        assert_eq!(options.node_listen, Options::default().node_listen);
        assert_eq!(options.advertise_node, ["https://a:8444"]);
        assert_eq!(file("").unwrap(), Settings::default());
        let sinks = ["https://x.example/in?a=1", "https://x.example/in?a=2"];
        let sink = Some(sinks.map(str::to_owned).to_vec());
        let two = Settings { sink, sink_ca: Some("ca.pem".into()), ..Settings::default() }.options().unwrap();
        assert_eq!(two.sinks.len(), 2);
        assert_eq!(Options::default().log_limits.history_ms, 90 * DAY_MS);
        let all = Settings { history_days: Some(0), ..Settings::default() }.options().unwrap();
        assert_eq!(all.log_limits.history_ms, 0);
        let nothing =
            Settings { join: Some(vec![String::new()]), join_token: Some(String::new()), ..Settings::default() };
        assert_eq!(nothing.options().unwrap(), Options::default());
    }

    #[test]
    fn what_does_not_go_is_said_on_one_line() {
        let sinks = |sinks: [&str; 2]| {
            Settings { sink: Some(sinks.map(str::to_owned).to_vec()), ..Settings::default() }.options().err()
        };
        let url = |u: &str| Settings { advertise_node: Some(vec![u.into()]), ..Settings::default() }.options().err();
        for (error, what) in [
            (file("data_dir: x").err(), "data_dir"),
            (file("listen: nowhere").err(), "cvlan.yaml"),
            (file("- a").err(), "cvlan.yaml"),
            (Settings::file_read("/none/such".as_ref()).err(), "/none/such"),
            (url("http://a:1"), "https://HOST:PORT"),
            (url("https://"), "https://HOST:PORT"),
            (url("https://a/b"), "https://HOST:PORT"),
            (sinks(["file:/a", "nonsense"]), "syslog+tls://HOST:PORT"),
            (sinks(["file:/a", "https://u:p@x.example/in"]), "--sink https://x.example/in needs --sink-ca"),
            (sinks(["file:/a", "syslog+tls://x.example:6514"]), "needs --sink-ca"),
            (sinks(["file:/a", "file:/a?keep=2"]), "--sink file:/a and --sink file:/a?keep=2 come to the same place"),
            (
                sinks(["http://a:p@x.example/in", "http://a:p@x.example:80/in"]),
                "http://x.example/in come to the same place",
            ),
            (Settings { join: Some(vec!["a:1".into()]), ..Settings::default() }.options().err(), "--join-token"),
            (Settings { views: Some("mysql://a:s3cret@b/c".into()), ..Settings::default() }.options().err(), "--views"),
            (
                Settings { advertise_cluster: Some("0.0.0.0:8445".into()), ..Settings::default() }.options().err(),
                "--advertise-cluster",
            ),
        ] {
            let text = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains(what) && !text.contains('\n') && !text.contains("s3cret"), "{what}: {text}");
        }
    }
}

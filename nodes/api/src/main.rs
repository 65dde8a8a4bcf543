//! `cvlan-api`: starts the controller, or works on its folder while it does not run.
#![allow(missing_docs)]

use anyhow::Context;
use clap::{Parser, Subcommand};
use cvlan_api::app::sink::Target;
use cvlan_api::config::{DAY_MS, Settings, one_line};
use cvlan_api::server::{Ended, Options, Running, StartError, start};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

mod offline;

/// What still runs when all is closed may end within this.
const LAST_JOBS: Duration = Duration::from_secs(1);

/// A request allocates some fifty times; the system's allocator costs a sixth of it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The CVLAN controller. Without arguments: a one-member cluster in ./cvlan-data with everything on.
#[derive(Parser)]
#[command(name = "cvlan-api", version, args_conflicts_with_subcommands = false)]
struct Cli {
    /// YAML file with the same settings (data-dir: …); flags and environment are stronger
    #[arg(long, env = "CVLAN_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Subcommand)]
enum Sub {
    /// Look at the settings
    Config {
        #[command(subcommand)]
        what: ConfigSub,
    },
    /// Look at the log while the controller does not run
    Log {
        #[command(subcommand)]
        what: LogSub,
    },
    /// A member whose log is damaged or lost, or whose state differs, is taken anew from the others. Without --yes it says
    /// what that means
    Rebuild {
        /// Do it
        #[arg(long)]
        yes: bool,
        /// Members to ask [default: where they were last]
        #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
        from: Vec<String>,
    },
    /// The SQL views while the controller does not run
    Views {
        #[command(subcommand)]
        what: ViewsSub,
    },
    /// Make a controller of a backup, in an empty --data-dir: a new epoch, in which it is the only member
    #[command(after_help = "\
The backup has no keys. --keys names a copy of keys/ of a member that voted when it was made; without one nobody can open
the secrets in the log, nor sign for machines.
  cvlan-api restore --from cvlan.cvbackup --keys safe/keys --data-dir /var/lib/cvlan
  cvlan-api --data-dir /var/lib/cvlan …        as that member was started
Machines and people find it at the addresses that they know. docs/operations.md has the drill.")]
    Restore {
        /// The backup
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// A copy of keys/ of a member that voted
        #[arg(long, value_name = "DIR")]
        keys: PathBuf,
        /// The voters' keys (`cvlanctl log keys -o name`): more than half of them must have signed the backup
        #[arg(long, value_name = "FILE")]
        voters: Option<PathBuf>,
    },
    /// Get back in while the controller does not run
    Admin {
        #[command(subcommand)]
        what: AdminSub,
    },
}

#[derive(Subcommand)]
enum ConfigSub {
    /// Validate flags, environment and file, and print what comes out
    Check,
}

#[derive(Subcommand)]
enum LogSub {
    /// Replay the log from where its history begins and compare it with every checkpoint in it
    #[command(after_help = "\
Without a controller, on the folder that it left:
  cvlan-api log verify --data-dir /var/lib/cvlan --keys voters.keys --held held.note
--keys: the newest note in DATA/notes that more than half of the voters signed must be of this log. --held: so must each note
that you kept (`cvlanctl log note`). A cut end and a rewritten history are told apart.")]
    Verify {
        /// The voters' keys (`cvlanctl log keys -o name`)
        #[arg(long, value_name = "FILE")]
        keys: Option<PathBuf>,
        /// A note that you kept from before; may be given several times
        #[arg(long, value_name = "FILE")]
        held: Vec<PathBuf>,
    },
    /// The log in numbers: events, entries, bytes, snapshots, sinks
    Stats,
}

#[derive(Subcommand)]
enum ViewsSub {
    /// Throw views.db away and build it from the log
    Rebuild,
}

#[derive(Subcommand)]
enum AdminSub {
    /// Give a global user a new password, and print it
    ResetPassword {
        /// Its login name
        #[arg(long, default_value = cvlan_api::bootstrap::ADMIN)]
        name: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The log holds hashes and sealed secrets: what this process makes is its user's alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    descriptors_raise();
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let usual = || Targets::new().with_default(Level::INFO).with_target("openraft", Level::ERROR);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(asked.unwrap_or_else(usual)).init();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cvlan-api: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let file = match &cli.config {
        Some(path) => Settings::file_read(path).context("--config")?,
        None => Settings::default(),
    };
    let settings = cli.settings.or(file);
    let options = settings.clone().options()?;
    if cli.command.is_some() && options.force.is_some() {
        anyhow::bail!(
            "--force-new-cluster starts the controller: it goes with no command (hint: leave one of them out)"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting threads")?;
    let code = runtime.block_on(async {
        match cli.command {
            None => controller(options).await.map_err(with_hint),
            Some(Sub::Config { what: ConfigSub::Check }) => config_check(&options),
            Some(Sub::Restore { from, keys, voters }) => {
                offline::restore(&options, &from, &keys, voters.as_deref()).await
            }
            Some(Sub::Rebuild { yes, from }) => offline::rebuild(&options, &from, yes).await,
            Some(Sub::Log { what: LogSub::Verify { keys, held } }) => {
                offline::log_verify(&options, keys.as_deref(), &held).await
            }
            Some(Sub::Log { what: LogSub::Stats }) => offline::log_stats(&options).await,
            Some(Sub::Views { what: ViewsSub::Rebuild }) => offline::views_rebuild(&options).await,
            Some(Sub::Admin { what: AdminSub::ResetPassword { name } }) => {
                offline::reset_password(&options, &name).await
            }
        }
    });
    // The log is closed; a sink's file on a disk that does not answer is not waited for.
    runtime.shutdown_timeout(LAST_JOBS);
    code
}

/// Every connection takes a descriptor, and every file of the log: as many as the system lets this process have.
fn descriptors_raise() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused the limit is as it was; a door without a descriptor waits, and so does the log.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn with_hint(error: StartError) -> anyhow::Error {
    anyhow::anyhow!("{error} (hint: {})", error.hint())
}

fn config_check(options: &Options) -> anyhow::Result<ExitCode> {
    let settings = Settings {
        data_dir: Some(options.data_dir.clone()),
        log_store: options.log_store,
        listen: Some(options.listen),
        node_listen: Some(options.node_listen),
        metrics_listen: Some(options.metrics_listen),
        cluster_listen: Some(options.cluster_listen),
        advertise_cluster: options.advertise_cluster.clone(),
        join: (!options.join.is_empty()).then(|| options.join.clone()),
        // A secret, and used up once it has joined.
        join_token: None,
        // Once, and by hand.
        force_new_cluster: None,
        advertise_api: (!options.advertise_api.is_empty()).then(|| options.advertise_api.clone()),
        advertise_node: (!options.advertise_node.is_empty()).then(|| options.advertise_node.clone()),
        backup_dir: options.backup.as_ref().map(|b| b.folder.clone()),
        backup_every: options.backup.as_ref().and_then(|b| std::num::NonZeroU64::new(b.every.as_secs())),
        backup_keep: options.backup.as_ref().and_then(|b| std::num::NonZeroU64::new(b.keep as u64)),
        history_days: Some((options.log_limits.history_ms / DAY_MS) as u32),
        history_export: options.history_export.clone(),
        play_level: options.log_limits.level,
        // Without their secrets.
        sink: (!options.sinks.is_empty()).then(|| options.sinks.iter().map(Target::shown).collect()),
        sink_ca: options.sink_ca.clone(),
        // Without its password.
        views: Some(options.views.as_ref().map_or_else(|| "sqlite".to_owned(), ToString::to_string)),
        presence_expiry: std::num::NonZeroU64::new(options.presence_expiry.as_secs()),
    };
    print!("{}", serde_saphyr::to_string(&settings)?);
    Ok(ExitCode::SUCCESS)
}

async fn controller(options: Options) -> Result<ExitCode, StartError> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(|e| StartError::Setup(e.to_string()))?;
    let running = match start(options).await {
        Err(error @ StartError::Removed) => {
            tracing::warn!("{error}: {}", error.hint());
            return Ok(ExitCode::SUCCESS);
        }
        started => started?,
    };
    announce(&running);
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
        why = running.ended() => Some(why),
    };
    match &ended {
        Some(Ended::Failed(why)) => tracing::error!("the member stopped: {why}"),
        Some(Ended::Removed) => tracing::warn!("{}: {}", StartError::Removed, StartError::Removed.hint()),
        None => {}
    }
    running.stop().await;
    // A removed member has nothing to restart for.
    Ok(if matches!(ended, Some(Ended::Failed(_))) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// On stdout, so that it is there whatever the log's level is.
fn announce(running: &Running) {
    let (app, head) = (running.app(), running.app().log.head());
    let ui = app.api_urls.first().map(String::as_str).unwrap_or_default();
    println!("CVLAN {} at event {}", env!("CARGO_PKG_VERSION"), head.seq);
    println!("  UI and API     {ui}");
    if let Some(password) = running.password() {
        println!("  superadmin     {}  {password}", cvlan_api::bootstrap::ADMIN);
        println!("                 shown once; also in keys/bootstrap until it is changed");
        println!("  log in with    cvlanctl login {ui} --ca-pin {}", running.ca_pin());
    }
    println!("  machines       {}", app.node_urls.join(", "));
    println!("  metrics        http://{}/metrics", running.metrics_address());
}

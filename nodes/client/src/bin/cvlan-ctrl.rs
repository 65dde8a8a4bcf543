//! `cvlan-ctrl`: the control daemon of a machine.

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use cvlan_client::ctrl::{self, Exit, Settings, status};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const REFUSED: u8 = 3;
const DELETED: u8 = 4;

/// The control daemon of a CVLAN machine: joins with a token, then follows the controller and tells cvland.
///
/// It enrols once; from then on its state folder is who the machine is, and a token is ignored. It goes on from its own
/// checkpoint after any restart, its own, cvland's or the controller's.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  cvlan-ctrl --token-file /root/token      the first time; later the token is not needed
  cvlan-ctrl                               as a service
  cvlan-ctrl status                        how it is doing; -o json for scripts

Files in the state folder: state.db (identity, peers, checkpoint; 0600).
Log: stderr; CVLAN_LOG=debug shows more.
Exit: 0 asked to end, 1 failed, 2 usage, 3 the controller refused the registration, 4 the node was deleted
(systemd: RestartPreventExitStatus=2 3 4)."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Shows node, addresses, checkpoint and peers.
    Status(Status),
}

#[derive(Args)]
struct Run {
    /// Registration token (cvj_…); only needed to enrol. Others see it in the list of processes: prefer --token-file.
    #[arg(long, env = "CVLAN_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the registration token.
    #[arg(long, env = "CVLAN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Folder of state.db.
    #[arg(long, env = "CVLAN_STATE_DIR", default_value = "/var/lib/cvlan")]
    state_dir: PathBuf,
    /// Where cvland listens.
    #[arg(long, env = "CVLAN_CVLAND_SOCKET", default_value = "/run/cvlan/cvland.sock")]
    cvland_socket: PathBuf,
    /// Where to answer `status` and other tools [default: ctrl.sock beside cvland's socket].
    #[arg(long, env = "CVLAN_CTRL_SOCKET")]
    ctrl_socket: Option<PathBuf>,
    /// The machine's name, from which the node's is made [default: the system's].
    #[arg(long, env = "CVLAN_HOSTNAME")]
    hostname: Option<String>,
}

#[derive(Args)]
struct Status {
    /// Folder of state.db.
    #[arg(long, env = "CVLAN_STATE_DIR", default_value = "/var/lib/cvlan")]
    state_dir: PathBuf,
    /// Where the daemon answers [default: where it said].
    #[arg(long, env = "CVLAN_CTRL_SOCKET")]
    ctrl_socket: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For scripts; stable.
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cvlan_client::log_start();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.command {
        Some(Command::Status(args)) => {
            let status = runtime.block_on(status::read(&args.state_dir, args.ctrl_socket.as_deref()))?;
            let text = match args.output {
                Output::Text => status.to_string(),
                Output::Json => format!("{}\n", serde_json::to_string_pretty(&status)?),
            };
            // A reader that has seen enough is no error.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let exit = runtime.block_on(ctrl::run(&settings(cli.run)))?;
            Ok(match exit {
                Exit::Asked => ExitCode::SUCCESS,
                Exit::Refused => ExitCode::from(REFUSED),
                Exit::Deleted => ExitCode::from(DELETED),
            })
        }
    }
}

fn settings(run: Run) -> Settings {
    let beside = || run.cvland_socket.with_file_name("ctrl.sock");
    Settings {
        token: run.token,
        token_file: run.token_file,
        state_dir: run.state_dir,
        ctrl_socket: run.ctrl_socket.unwrap_or_else(beside),
        cvland_socket: run.cvland_socket,
        hostname: run.hostname,
    }
}

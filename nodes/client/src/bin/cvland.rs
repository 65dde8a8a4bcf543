//! `cvland`: the data daemon of a machine.

use anyhow::{Context, Result, bail};
use clap::Parser;
use cvlan_client::cvland::{Daemon, serve};
use cvlan_link::{ipc, store};
use cvlan_tunnel::WireGuard;
use std::path::PathBuf;
use std::process::ExitCode;

/// The data daemon of a CVLAN machine: WireGuard on a TUN device.
///
/// It makes and keeps the machine's WireGuard key, runs what cvlan-ctrl tells it over a local socket, keeps that, and
/// comes up from it alone at the next start. It needs the right to make a TUN device (root, or CAP_NET_ADMIN and
/// /dev/net/tun).
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  cvland                                   with the defaults, as root
  cvland --ifname cvlan1 --listen-port 51821 --socket /run/cvlan/1.sock --state-dir /var/lib/cvland1

Files in the state folder: wg.key (private key, 0600), config.json (what it last ran).
Log: stderr; CVLAN_LOG=debug shows more. SIGTERM removes the TUN device and ends.
Exit: 0 asked to end, 1 failed, 2 usage."
)]
struct Args {
    /// Name of the TUN device.
    #[arg(long, env = "CVLAN_IFNAME", default_value = "cvlan0", value_parser = ifname_parse)]
    ifname: String,
    /// Where cvlan-ctrl finds it; only this user and root may connect.
    #[arg(long, env = "CVLAN_CVLAND_SOCKET", default_value = "/run/cvlan/cvland.sock")]
    socket: PathBuf,
    /// Folder of the key and the last configuration.
    #[arg(long, env = "CVLAN_CVLAND_STATE_DIR", default_value = "/var/lib/cvland")]
    state_dir: PathBuf,
    /// UDP port of WireGuard.
    #[arg(long, env = "CVLAN_LISTEN_PORT", default_value_t = 51820, value_parser = clap::value_parser!(u16).range(1..))]
    listen_port: u16,
}

fn ifname_parse(name: &str) -> Result<String> {
    let fits = (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    if !fits || name == "." || name == ".." {
        bail!("1 to 15 letters, digits, - and _");
    }
    Ok(name.to_owned())
}

fn main() -> ExitCode {
    let args = Args::parse();
    cvlan_client::log_start();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    // Two: one direction of the traffic each.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let _lock = store::folder_lock(&args.state_dir)?;
        let daemon = Daemon::new(&args.state_dir, &args.ifname, args.listen_port, WireGuard::new)?;
        let listener = ipc::listen(&args.socket).with_context(|| format!("socket {}", args.socket.display()))?;
        tracing::info!(ifname = %args.ifname, port = args.listen_port, socket = %args.socket.display(), "started");
        serve::serve(daemon, listener, &args.ifname, cvlan_client::ended()).await;
        let _ = std::fs::remove_file(&args.socket);
        tracing::info!("ended");
        Ok(())
    })
}

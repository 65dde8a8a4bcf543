//! A machine: `cvland`, the data daemon, and `cvlan-ctrl`, the control daemon.
//!
//! ```text
//!  controller ◄── sync ──► cvlan-ctrl ── Configure, Patch ──► cvland ◄── WireGuard ──► other machines
//!                           state.db         unix socket       wg.key, last configuration
//! ```
//!
//! Two processes, so that traffic depends on nothing but the one that carries it: `cvland` needs the right to make a
//! TUN device and nothing from the network but WireGuard; `cvlan-ctrl` talks to the world and needs no privilege.
//!
//! Invariants:
//! - `cvland` comes up from its last configuration alone; `cvlan-ctrl` goes on from its last checkpoint alone.
//! - Neither loses anything when the other, or the controller, is restarted.
//! - The WireGuard private key never leaves `cvland`.
//!
//! Start reading at `cvland/mod.rs`, then `ctrl/mod.rs`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod ctrl;
pub mod cvland;

use std::io::IsTerminal;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// Logs to stderr, as `CVLAN_LOG` says (`info`, `debug`, `cvlan_link=debug,info`, …).
pub fn log_start() {
    let asked = std::env::var("CVLAN_LOG").ok().and_then(|text| text.parse().ok());
    let usual = || Targets::new().with_default(Level::INFO).with_target("gotatun", Level::WARN);
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    tracing_subscriber::registry().with(lines).with(asked.unwrap_or_else(usual)).init();
}

/// Returns when the process is asked to end (SIGTERM, SIGINT).
pub async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without handlers the signals end the process by themselves.
        (_, _) => std::future::pending().await,
    }
}

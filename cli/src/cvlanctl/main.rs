//! `cvlanctl`: the administrators' command line, `cvlanctl <noun> <verb> [target] [--flags]`.
//!
//! ```text
//!  arguments ─► clap ─► noun.rs ─► client.rs (pinned TLS, session, checkpoints) ─► controller
//!                          │           └── context.rs: contexts.json
//!                          └─► print.rs: stdout is data, stderr is talk        failure.rs: one line, a code, a hint
//! ```
//! A noun is one file: its verbs, its columns. A new one is that file and a line in [`Command`].
//! Exit status: 0 done, 1 failed, 2 asked the wrong way.
#![allow(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod account;
mod backup;
mod client;
mod cluster;
mod context;
mod contexts;
mod cvlan;
mod event;
mod failure;
mod history;
mod import;
mod log;
mod member;
mod node;
mod print;
mod prompt;
mod proof;
mod status;
mod target;
mod tenant;
mod token;
mod user;
mod what;

use clap::{Args, CommandFactory, Parser, Subcommand};
use failure::Failure;
use print::Format;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Start here:
  cvlanctl login https://127.0.0.1:8443 --ca-pin sha256:…    cvlan-api prints this line
  cvlanctl tenant create acme
  cvlanctl context tenant acme                               no -t acme from here on
  cvlanctl cvlan create office --ipv6 auto
  cvlanctl token create --cvlan office --expires 24h --max-uses 10
  cvlanctl node list -o wide
  cvlanctl events --follow

Targets are an id, an exact name or the start of one, where only one thing starts so.
stdout is data, stderr is talk. Exit status: 0 done, 1 failed, 2 asked the wrong way.";

/// CVLAN from the command line: tenants, networks, machines, people, and the log of everything.
#[derive(Parser)]
#[command(name = "cvlanctl", version, after_help = EXAMPLES, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// The tenant it is about, by slug or id; else the context's default
    #[arg(short, long, global = true, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// The context to use; else the current one
    #[arg(long, global = true, env = "CVLAN_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// table, wide (all columns), json (as the API says it), yaml, or name (names or ids alone)
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    #[arg(hide_default_value = true, hide_possible_values = true)]
    pub output: Format,
    /// Columns of the table, in this order
    #[arg(long, global = true, value_delimiter = ',', value_name = "A,B")]
    pub columns: Vec<String>,
    /// No line of column names
    #[arg(long, global = true)]
    pub no_headers: bool,
    /// Why you do it: kept in the log beside the change
    #[arg(long, global = true, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Change it only where its revision is still N
    #[arg(long, global = true, value_name = "N")]
    pub if_revision: Option<u64>,
}

#[derive(Subcommand)]
enum Command {
    /// Log in, with the controller's CA pinned; the session is kept in a context
    Login(account::Login),
    /// End the session; the context keeps where, as whom and the pin
    Logout,
    /// Change your own password
    Passwd(account::Passwd),
    /// Which controller and tenant commands are about
    #[command(subcommand)]
    Context(contexts::Verb),
    /// The controller and its log, on one screen
    Status,
    /// The controllers of the cluster: members, leader
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Tenants: who owns networks
    #[command(subcommand)]
    Tenant(tenant::Verb),
    /// CVLANs: a tenant's virtual networks
    #[command(subcommand)]
    Cvlan(cvlan::Verb),
    /// Nodes: machines in a CVLAN
    #[command(subcommand)]
    Node(node::Verb),
    /// Registration tokens: what lets machines in
    #[command(subcommand)]
    Token(token::Verb),
    /// Users: people, and what they may do
    #[command(subcommand)]
    User(user::Verb),
    /// What happened, read from the log; with --follow, as it happens
    Events(event::Events),
    /// Everything that happened to one thing, also one that is gone
    History(history::History),
    /// The log itself: checkpoints, proofs, exports, verification
    #[command(subcommand)]
    Log(log::Verb),
    /// Completions for your shell
    #[command(after_help = "bash:  source <(cvlanctl completions bash)\n\
        zsh:   cvlanctl completions zsh > \"${fpath[1]}/_cvlanctl\"\n\
        fish:  cvlanctl completions fish > ~/.config/fish/completions/cvlanctl.fish")]
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let failure = match run(&global, command).await {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) if failure.is_broken_pipe() => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    print::talk(&format!("cvlanctl: {}", print::plain(&failure.to_string())));
    if !failure.hint.is_empty() {
        print::talk(&format!("  hint: {}", global.again(&failure.hint)));
    }
    ExitCode::from(failure.exit)
}

impl Global {
    /// A text with the command to log in again, into the context that this command names.
    fn again(&self, text: &str) -> String {
        match &self.context {
            Some(name) if !name.is_empty() => {
                text.replace("cvlanctl login", &format!("cvlanctl --context {name} login"))
            }
            Some(_) | None => text.to_owned(),
        }
    }
}

async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    match command {
        Command::Login(args) => args.run(global).await,
        Command::Logout => account::logout(global).await,
        Command::Passwd(args) => args.run(global).await,
        Command::Context(verb) => verb.run(global).await,
        Command::Status => status::run(global).await,
        Command::Cluster(verb) => verb.run(global).await,
        Command::Tenant(verb) => verb.run(global).await,
        Command::Cvlan(verb) => verb.run(global).await,
        Command::Node(verb) => verb.run(global).await,
        Command::Token(verb) => verb.run(global).await,
        Command::User(verb) => verb.run(global).await,
        Command::Events(args) => args.run(global).await,
        Command::History(args) => args.run(global).await,
        Command::Log(verb) => verb.run(global).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cvlanctl", &mut script);
            print::lines([String::from_utf8_lossy(&script).trim_end().to_owned()])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }
}

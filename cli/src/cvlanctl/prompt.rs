//! What only a person can say: a password, without echo; yes or no.

use crate::failure::{Failure, INTERRUPTED};
use crate::print::{is_dialogue, talk};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use tokio::signal::unix::{SignalKind, signal};

/// The longest line that is read.
const LINE_MAX: u64 = 4096;

/// The terminal without echo, until it is dropped.
struct Silent {
    tty: File,
    before: Termios,
}

impl Silent {
    fn new() -> io::Result<Self> {
        let tty = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&tty)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&tty, OptionalActions::Flush, &silent)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // The terminal has gone: nothing to restore.
        let _ = tcsetattr(&self.tty, OptionalActions::Flush, &self.before);
        let _ = writeln!(self.tty);
    }
}

fn no_terminal() -> Failure {
    Failure::usage("there is no terminal to ask for a password on").hint("pipe it in with --password-stdin")
}

/// A password from the terminal, whatever stdin is. Ctrl-C gives the terminal its echo back.
pub async fn password(question: &str) -> Result<String, Failure> {
    // Heard from before the echo goes: a Ctrl-C in between would leave the terminal without it.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut silent = Silent::new().map_err(|_| no_terminal())?;
    write!(silent.tty, "{question}: ")?;
    silent.tty.flush()?;
    let mut reader = BufReader::new(silent.tty.try_clone()?.take(LINE_MAX));
    let (tx, rx) = tokio::sync::oneshot::channel();
    // A thread of its own, not the runtime's: one that still reads must not hold up the end of the process.
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = tx.send(reader.read_line(&mut line).map(|_| line));
    });
    let line = tokio::select! {
        line = rx => line.map_err(|_| no_terminal())??,
        _ = interrupt.recv() => {
            return Err(Failure { exit: INTERRUPTED, ..Failure::new("interrupted", "nothing was done") });
        }
    };
    drop(silent);
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A new password, asked twice.
pub async fn password_new(whose: &str) -> Result<String, Failure> {
    let first = password(&format!("New password of {whose} (12 characters or more)")).await?;
    match password("Once more").await? {
        second if second == first => Ok(first),
        _ => Err(Failure::usage("the two passwords differ; nothing was changed")),
    }
}

/// Lines of stdin, for --password-stdin; the last may lack its line end.
pub fn stdin_lines<const N: usize>() -> Result<[String; N], Failure> {
    let mut lines = BufReader::new(io::stdin().lock().take(LINE_MAX)).lines();
    let mut taken = std::array::from_fn(|_| String::new());
    for line in &mut taken {
        *line = match lines.next() {
            Some(read) => read?.trim_end_matches('\r').to_owned(),
            None => {
                return Err(Failure::usage(format!("--password-stdin reads {N} line(s) from stdin; there are fewer")));
            }
        };
    }
    Ok(taken)
}

/// Asks before something goes for good; without a terminal, `--yes` is the answer.
pub fn confirm(what: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !is_dialogue() {
        return Err(Failure::usage(format!("{what}: there is no terminal to confirm this on")).hint("say --yes"));
    }
    let mut err = io::stderr();
    write!(err, "{what}? [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    BufReader::new(io::stdin().lock().take(LINE_MAX)).read_line(&mut line)?;
    if matches!(line.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    talk("left as it is");
    Err(Failure::new("declined", "nothing was done"))
}

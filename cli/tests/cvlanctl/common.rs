//! The real controller and the real command, each with folders of its own.

use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A WireGuard public key.
pub fn wg_key(n: u8) -> String {
    // 32 bytes of n, base64: ten groups of three, and a last one of two.
    let (a, rest) = (char64(n >> 2), [char64((n & 3) << 4 | n >> 4), char64((n & 15) << 2 | n >> 6), char64(n & 63)]);
    let group: String = [a, rest[0], rest[1], rest[2]].iter().collect();
    let last: String = [a, rest[0], char64((n & 15) << 2)].iter().collect();
    format!("{}{last}=", group.repeat(10))
}

/// One key for each number: in its first six characters, the rest as [`wg_key`] of 1.
pub fn wg_key_of(n: u32) -> String {
    let digit = |at: u32| char64((n >> (6 * at)) as u8 & 63);
    let front: String = (0..6).map(digit).collect();
    format!("{front}{}", &wg_key(1)[6..])
}

fn char64(n: u8) -> char {
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[n as usize] as char
}

pub struct Controller {
    child: Child,
    dir: TempDir,
    pub ports: [u16; 3],
    pub url: String,
    pub pin: String,
    pub password: String,
}

pub fn binary() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_cvlanctl")).with_file_name("cvlan-api");
    assert!(binary.exists(), "{} is missing: run `cargo build -p cvlan-api --bins` first", binary.display());
    binary
}

/// Starts it; what it prints is in `out`.
fn spawn(dir: &Path, [rest, node, metrics]: [u16; 3]) -> Child {
    Command::new(binary())
        .args(["--data-dir".into(), dir.join("data").into_os_string()])
        .args(["--listen", &format!("127.0.0.1:{rest}"), "--node-listen", &format!("127.0.0.1:{node}")])
        .args(["--metrics-listen", &format!("127.0.0.1:{metrics}"), "--cluster-listen", "127.0.0.1:0"])
        .stdout(File::create(dir.join("out")).unwrap())
        .stderr(File::create(dir.join("err")).unwrap())
        .spawn()
        .unwrap()
}

impl Controller {
    pub fn start() -> Self {
        // A port that was free a moment ago may be somebody's by now.
        (0..5).find_map(|_| Self::try_start()).expect("five times a port was taken")
    }

    fn try_start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // Held together, so that they differ.
        let free: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = [0, 1, 2].map(|i: usize| free[i].local_addr().unwrap().port());
        drop(free);
        let child = spawn(dir.path(), ports);
        let empty = String::new;
        let mut controller = Self { child, dir, ports, url: empty(), pin: empty(), password: empty() };
        let out = controller.ready()?;
        let after = |mark: &str| out.split_once(mark).unwrap().1.split_whitespace().next().unwrap().to_owned();
        let (url, pin) = (format!("https://127.0.0.1:{}", ports[0]), after("--ca-pin "));
        assert!(out.contains(&format!("cvlanctl login {url} --ca-pin {pin}")), "{out}");
        (controller.url, controller.pin, controller.password) = (url, pin, after("superadmin     admin"));
        Some(controller)
    }

    /// Waits until it has printed everything; `None` where a port is taken.
    fn ready(&self) -> Option<String> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let text = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
            let out = text("out");
            if out.contains("  metrics        http://") && out.ends_with('\n') {
                return Some(out);
            }
            if text("err").contains("Address already in use") {
                return None;
            }
            assert!(Instant::now() < end, "the controller does not start: {out} {}", text("err"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its --data-dir.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Dies at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again on its folder and ports, after [`Controller::kill`].
    pub fn again(&mut self) {
        // Somebody may have a connection from one of its ports for a moment.
        let started = (0..50).any(|_| {
            self.child = spawn(self.dir.path(), self.ports);
            self.ready().is_some() || {
                self.child.wait().unwrap();
                std::thread::sleep(Duration::from_millis(200));
                false
            }
        });
        assert!(started, "its ports are taken");
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Someone at a shell: contexts of their own.
pub struct Shell {
    pub dir: TempDir,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub exit: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.exit, 0, "{}{}", self.out, self.err);
        self
    }

    /// One line with the code, a hint at most, nothing on stdout.
    #[track_caller]
    pub fn fails(self, exit: i32, words: &str) -> Self {
        assert_eq!(self.exit, exit, "{}{}", self.out, self.err);
        assert_eq!(self.out, "", "stdout is data");
        let lines: Vec<_> = self.err.lines().filter(|l| !l.starts_with("  hint: ")).collect();
        assert_eq!(lines.len(), 1, "{}", self.err);
        assert!(lines[0].starts_with("cvlanctl: ") && self.err.contains(words), "{words:?} is not in: {}", self.err);
        assert_eq!(exit == 1, lines[0].ends_with(')'), "a failure has its code: {}", self.err);
        self
    }

    #[track_caller]
    pub fn json(self) -> Value {
        let said = self.ok();
        serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {}", said.out))
    }
}

impl Shell {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn admin(controller: &Controller) -> Self {
        let shell = Self::new();
        let args = ["login", &controller.url, "--ca-pin", &controller.pin, "--password-stdin"];
        shell.with_stdin(&args, &controller.password).ok();
        shell
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvlanctl"));
        command.args(args).env("CVLAN_CONTEXT_DIR", self.dir.path()).env_remove("CVLAN_PASSWORD");
        command.env_remove("CVLAN_CONTEXT").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn with_stdin(&self, args: &[&str], input: &str) -> Said {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A command that refuses before it reads has closed it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        said(child.wait_with_output().unwrap())
    }

    /// Words split at spaces.
    pub fn run(&self, line: &str) -> Said {
        self.args(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn args(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }

    pub fn contexts(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.path().join("contexts.json")).unwrap()).unwrap()
    }

    /// Changes the current context behind the command's back.
    pub fn tamper(&self, field: &str, value: Value) {
        let mut contexts = self.contexts();
        let current = contexts["current"].as_str().unwrap().to_owned();
        contexts["contexts"][&current][field] = value;
        std::fs::write(self.dir.path().join("contexts.json"), contexts.to_string()).unwrap();
    }

    pub fn current(&self, field: &str) -> Value {
        let contexts = self.contexts();
        contexts["contexts"][contexts["current"].as_str().unwrap()][field].clone()
    }
}

fn said(output: std::process::Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { exit: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// Cells of a table, split at two or more spaces.
pub fn cells(table: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect();
    table.lines().map(cells).collect()
}

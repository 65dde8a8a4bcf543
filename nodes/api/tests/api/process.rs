//! The real binary: what it says when it cannot start, and what is there after kill -9.

use crate::common::{http_client, send, wg_key};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn binary(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvlan-api"));
    command.env_clear().env("RUST_LOG", "error").current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_ports(command: &mut Command, ports: [u16; 3]) {
    for (flag, port) in ["--listen", "--node-listen", "--metrics-listen"].iter().zip(ports) {
        command.arg(flag).arg(format!("127.0.0.1:{port}"));
    }
    // Announced alike at every start: nothing new is written.
    command.args(["--cluster-listen", "127.0.0.1:0", "--advertise-cluster", "127.0.0.1:8445"]);
}

struct Process {
    child: Child,
    lines: Vec<String>,
}

impl Process {
    /// Starts it and reads what it announces.
    fn start(dir: &Path, ports: [u16; 3]) -> Self {
        Self::start_with(dir, ports, &[])
    }

    fn start_with(dir: &Path, ports: [u16; 3], flags: &[&str]) -> Self {
        let mut command = binary(dir);
        with_ports(&mut command, ports);
        command.args(flags);
        let mut child = command.spawn().unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let last = line.contains("  metrics ");
            lines.push(line);
            if last {
                break;
            }
        }
        Self { child, lines }
    }

    /// kill -9.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Its one line on stderr, with exit code 1.
fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(text.starts_with("cvlan-api: "), "{text}");
    text
}

fn free_ports() -> [u16; 3] {
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
    ports.try_into().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn what_cannot_start_says_why_on_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cvlan-data");
    let ports = free_ports();
    let running = Process::start(dir.path(), ports);
    let text = running.lines.join("\n");
    for part in
        ["UI and API     https://127.0.0.1:", "superadmin     admin  ", "cvlanctl login https://", "--ca-pin sha256:"]
    {
        assert!(text.contains(part), "{part}\n{text}");
    }

    // Locked by another process: whatever else is wrong too.
    let mut second = binary(dir.path());
    with_ports(&mut second, ports);
    let text = refused(second);
    assert!(text.contains("is locked by another process") && text.contains("(hint: "), "{text}");
    let mut verify = binary(dir.path());
    verify.args(["log", "verify"]);
    assert!(refused(verify).contains("locked"));

    // A port that is taken; the folder is left as it was.
    let other = tempfile::tempdir().unwrap();
    for (at, flag) in ["--listen", "--node-listen", "--metrics-listen"].iter().enumerate() {
        let mut taken = free_ports();
        taken[at] = ports[at];
        let mut third = binary(other.path());
        with_ports(&mut third, taken);
        let text = refused(third);
        assert!(text.contains(flag) && text.contains("another cvlan-api"), "{text}");
    }
    assert!(!other.path().join("cvlan-data/keys").exists(), "nothing was begun");
    running.kill();

    // Started again: no password, the same UI line.
    let again = Process::start(dir.path(), ports);
    let text = again.lines.join("\n");
    assert!(text.contains("UI and API") && !text.contains("superadmin"), "{text}");
    again.kill();

    // keys/ of one log, log/ of another.
    let stranger = tempfile::tempdir().unwrap();
    Process::start(stranger.path(), free_ports()).kill();
    let mixed = tempfile::tempdir().unwrap();
    copy(&data, &mixed.path().join("cvlan-data"));
    std::fs::remove_dir_all(mixed.path().join("cvlan-data/log")).unwrap();
    copy(&stranger.path().join("cvlan-data/log"), &mixed.path().join("cvlan-data/log"));
    check_refused(mixed.path(), "keys/ belong to log");

    // keys/ without its log: a half-restored backup is not started over.
    let half = tempfile::tempdir().unwrap();
    copy(&data.join("keys"), &half.path().join("cvlan-data/keys"));
    check_refused(half.path(), "this member's log is gone");
    // Nor where its snapshots are there.
    std::fs::create_dir(half.path().join("cvlan-data/snapshots")).unwrap();
    std::fs::write(half.path().join("cvlan-data/snapshots/00000000000000000009.snap"), "CVLANSNP").unwrap();
    check_refused(half.path(), "this member's log is gone");
    // A log without a key it needs.
    let keyless = tempfile::tempdir().unwrap();
    copy(&data, &keyless.path().join("cvlan-data"));
    std::fs::remove_file(keyless.path().join("cvlan-data/keys/cluster")).unwrap();
    check_refused(keyless.path(), "keys/cluster is missing");
    // A key file that is half there.
    std::fs::write(keyless.path().join("cvlan-data/keys/cluster"), "{\"id\"").unwrap();
    check_refused(keyless.path(), "keys/cluster is damaged");
    // A newer version's log.
    let newer = tempfile::tempdir().unwrap();
    copy(&data, &newer.path().join("cvlan-data"));
    newer_format(&newer.path().join("cvlan-data/log"));
    check_refused(newer.path(), "start the version that wrote it");
    // snapshots/ of another log.
    snapshot(&stranger.path().join("cvlan-data"));
    let foreign = tempfile::tempdir().unwrap();
    copy(&data, &foreign.path().join("cvlan-data"));
    copy(&stranger.path().join("cvlan-data/snapshots"), &foreign.path().join("cvlan-data/snapshots"));
    check_refused(foreign.path(), "taken from different controllers");
    // Half-written where it had been whole.
    let hurt = tempfile::tempdir().unwrap();
    copy(&data, &hurt.path().join("cvlan-data"));
    flip_bit(&hurt.path().join("cvlan-data/log/0000000001.seg"), 100);
    check_refused(hurt.path(), "log/0000000001.seg");

    // The folder itself is as good as before.
    let mut verify = binary(dir.path());
    verify.args(["log", "verify"]);
    let output = verify.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("ok "));
}

/// What a crash leaves of a write that nobody was told of goes; everything else is there.
#[test]
fn a_half_written_end_is_cut_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports();
    Process::start(dir.path(), ports).kill();
    let verified = || {
        let mut verify = binary(dir.path());
        verify.args(["log", "verify"]);
        let output = verify.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let before = verified();
    let log = dir.path().join("cvlan-data/log/0000000001.seg");
    let whole = std::fs::read(&log).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let at = (end + 8).next_multiple_of(8);
    for torn in [&whole[64..end / 2], &[0xff; 5], b"CVB1"] {
        let mut bytes = whole.clone();
        bytes[at..at + torn.len()].copy_from_slice(torn);
        std::fs::write(&log, bytes).unwrap();
        Process::start(dir.path(), ports).kill();
        assert_eq!(verified(), before, "{} torn bytes", torn.len());
        std::fs::write(&log, &whole).unwrap();
    }
}

/// A first start that ended before its first entry is repeated with the password that was shown.
#[test]
fn a_first_start_that_was_cut_off_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    Process::start(dir.path(), free_ports()).kill();
    let keys = dir.path().join("cvlan-data/keys");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(keys.join("bootstrap")).unwrap()).unwrap();
    let cut = tempfile::tempdir().unwrap();
    copy(&keys, &cut.path().join("cvlan-data/keys"));
    std::fs::remove_file(cut.path().join("cvlan-data/keys/identity")).unwrap();
    let again = Process::start(cut.path(), free_ports());
    assert!(again.lines.join("\n").contains(file["password"].as_str().unwrap()), "{:?}", again.lines);
    again.kill();
}

/// Writes a snapshot into a folder that no process has.
fn snapshot(data: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = cvlan_raft::Options::single(cvlan_raft::LogStore::open(None, data).unwrap());
        let log = cvlan_api::Log::open(options, cvlan_raft::NoTransport).await.unwrap();
        assert!(log.writable(Duration::from_secs(10)).await);
        log.snapshot().await.unwrap();
        log.shutdown().await;
    });
}

fn flip_bit(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Refused twice alike: the first refusal changed nothing.
fn check_refused(dir: &Path, what: &str) {
    let attempt = || {
        let mut command = binary(dir);
        with_ports(&mut command, free_ports());
        refused(command)
    };
    let first = attempt();
    assert!(first.contains(what) && first.contains("(hint: "), "{first}");
    assert_eq!(first, attempt());
}

/// Raises the format number in the header of the first segment.
fn newer_format(log: &Path) {
    let mut names: Vec<_> = std::fs::read_dir(log).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|p| p.extension().is_some_and(|e| e == "seg"));
    names.sort();
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(&names[0]).unwrap();
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head[8..12], cvlan_raft::store::segment::SEGMENT_FORMAT.to_le_bytes(), "after 8 bytes of magic");
    head[8..12].copy_from_slice(&999u32.to_le_bytes());
    // Whole otherwise: a header with a wrong checksum is damaged, not newer.
    let sum = crc32c::crc32c(&head[..28]);
    head[28..32].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&head, 0).unwrap();
}

#[test]
fn settings_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.yaml"), "listen: 127.0.0.1:7\nadvertise-node: [https://c.example:8444]\n")
        .unwrap();
    let mut check = binary(dir.path());
    check.args(["config", "check", "--config", "c.yaml", "--data-dir", "here"]).env("CVLAN_NODE_LISTEN", "127.0.0.1:8");
    let output = check.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["data-dir: here", "listen: 127.0.0.1:7", "node-listen: 127.0.0.1:8", "https://c.example:8444"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let mut check = binary(dir.path());
    check.args(["config", "check", "--sink-ca", "ca.pem", "--sink", "https://user:hidden@x.example/in?key=hidden"]);
    check.args(["--sink", "file:/a/b?keep=3"]);
    let output = check.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("https://x.example/in") && text.contains("file:/a/b?keep=3"), "{text}");
    assert!(!text.contains("hidden"), "{text}");
    let mut check = binary(dir.path());
    check.args(["config", "check", "--sink-ca", "ca.pem", "--sink", "https://u:hidden@x.example/in"]);
    check.args(["--sink", "https://u:hidden@X.example:443/in"]);
    let text = refused(check);
    assert!(text.contains("come to the same place") && !text.contains("hidden"), "{text}");
    std::fs::write(dir.path().join("c.yaml"), "lissten: 127.0.0.1:7\n").unwrap();
    let mut check = binary(dir.path());
    check.args(["config", "check", "--config", "c.yaml"]);
    assert!(refused(check).contains("lissten"));
}

/// The API of a process, as its superadmin.
#[derive(Clone)]
struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Api {
    async fn login(dir: &Path, port: u16, password: &str) -> Self {
        let http = http_client(&std::fs::read_to_string(dir.join("cvlan-data/ca.pem")).unwrap());
        let base = format!("https://127.0.0.1:{port}/api/v1");
        let body = json!({"name": "admin", "password": password});
        let answer = send(http.post(format!("{base}/auth/login")).json(&body)).await.expect(200).json();
        Self { http, base, token: answer["accessToken"].as_str().unwrap().to_owned() }
    }

    async fn post(&self, path: &str, body: Value) -> reqwest::Result<u16> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token).json(&body);
        Ok(request.send().await?.status().as_u16())
    }

    async fn names(&self) -> BTreeSet<String> {
        let (mut names, mut cursor) = (BTreeSet::new(), String::new());
        loop {
            let url = format!("{}/tenants/acme/nodes?limit=1000&cursor={cursor}", self.base);
            let page = send(self.http.get(url).bearer_auth(&self.token)).await.expect(200).json();
            names.extend(page["items"].as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap().to_owned()));
            cursor = page["nextCursor"].as_str().unwrap().to_owned();
            if cursor.is_empty() {
                return names;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_kill_9() {
    killed_under_load("wal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_survives_kill_9_on_sled() {
    killed_under_load("sled").await;
}

/// A log stays with what it was begun with, whatever is asked for later, and all tools find it there.
#[test]
fn a_log_on_sled_is_found_by_everything_that_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports();
    let data = dir.path().join("cvlan-data");
    Process::start_with(dir.path(), ports, &["--log-store", "sled"]).kill();
    assert!(data.join("log/sled/db").is_file() && !data.join("log/0000000001.seg").exists());
    let tool = |args: &[&str]| {
        let mut command = binary(dir.path());
        command.args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let verified = tool(&["log", "verify"]);
    assert!(verified.starts_with("ok "), "{verified}");
    assert!(tool(&["log", "stats"]).lines().any(|line| line.starts_with("log ") && line.ends_with(" kept by sled")));
    assert!(tool(&["views", "rebuild"]).starts_with("views.db rebuilt"));
    assert!(tool(&["admin", "reset-password"]).starts_with("admin "));
    snapshot(&data);

    // Without the flag it is what it was; with another one it is refused, twice alike, and nothing is begun beside it.
    let again = Process::start(dir.path(), ports);
    assert!(!again.lines.join("\n").contains("superadmin"), "{:?}", again.lines);
    again.kill();
    for flags in [&["--log-store", "wal"][..], &["--log-store", "wal", "log", "verify"]] {
        for _ in 0..2 {
            let mut command = binary(dir.path());
            with_ports(&mut command, free_ports());
            command.args(flags);
            let text = refused(command);
            assert!(text.contains("kept by sled, not by wal") && text.contains("leave --log-store out"), "{text}");
        }
    }
    assert!(!data.join("log/0000000001.seg").exists());
    let wal = tempfile::tempdir().unwrap();
    Process::start(wal.path(), free_ports()).kill();
    let mut other = binary(wal.path());
    with_ports(&mut other, free_ports());
    other.args(["--log-store", "sled"]);
    assert!(refused(other).contains("kept by wal, not by sled"));
    assert!(!wal.path().join("cvlan-data/log/sled").exists());

    // A database that is gone is a log that is gone.
    let hurt = tempfile::tempdir().unwrap();
    copy(&data, &hurt.path().join("cvlan-data"));
    for folder in ["log", "snapshots"] {
        std::fs::remove_dir_all(hurt.path().join("cvlan-data").join(folder)).unwrap();
    }
    check_refused(hurt.path(), "this member's log is gone");
    let mut bad = binary(dir.path());
    bad.args(["config", "check", "--log-store", "redb"]);
    assert!(String::from_utf8(bad.output().unwrap().stderr).unwrap().contains("wal or sled"));
}

/// kill -9, 20 times, under write load: every acknowledged write is there; nothing is there that was never asked for.
async fn killed_under_load(store: &str) {
    const ROUNDS: usize = 20;
    const WRITERS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports();
    let mut process = Process::start_with(dir.path(), ports, &["--log-store", store]);
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("cvlan-data/keys/bootstrap")).unwrap()).unwrap();
    let password = file["password"].as_str().unwrap().to_owned();
    let mut api = Api::login(dir.path(), ports[0], &password).await;
    api.post("/tenants", json!({"slug": "acme"})).await.unwrap();
    api.post("/tenants/acme/cvlans", json!({"name": "prod", "ipv4Cidr": "10.0.0.0/12"})).await.unwrap();

    let mut acknowledged = BTreeSet::new();
    let mut asked = BTreeSet::new();
    for round in 0..ROUNDS {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (api, stop) = (api.clone(), stop.clone());
                tokio::spawn(async move {
                    let (mut done, mut tried) = (Vec::new(), Vec::new());
                    for i in 0.. {
                        if stop.load(SeqCst) {
                            break;
                        }
                        let name = format!("r{round}-w{w}-{i}");
                        tried.push(name.clone());
                        let body = json!({"cvlan": "prod", "name": name, "wgPublicKey": wg_key()});
                        match api.post("/tenants/acme/nodes", body).await {
                            Ok(201) => done.push(name),
                            Ok(503) | Err(_) => break,
                            Ok(other) => panic!("{other}"),
                        }
                    }
                    (done, tried)
                })
            })
            .collect();
        // Somewhere in the middle of a write, never at the same place.
        tokio::time::sleep(Duration::from_millis(40 + 13 * round as u64 % 70)).await;
        process.kill();
        stop.store(true, SeqCst);
        for writer in writers {
            let (done, tried) = writer.await.unwrap();
            acknowledged.extend(done);
            asked.extend(tried);
        }
        let started = Instant::now();
        process = Process::start_with(dir.path(), ports, &["--log-store", store]);
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        api = Api::login(dir.path(), ports[0], &password).await;
    }
    let there = api.names().await;
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    let invented: Vec<_> = there.difference(&asked).collect();
    assert!(lost.is_empty() && invented.is_empty(), "lost {lost:?}, invented {invented:?}");
    assert!(acknowledged.len() > 20 * ROUNDS, "it was under load: {}", acknowledged.len());
    let verified = send(api.http.post(format!("{}/log/verify", api.base)).bearer_auth(&api.token)).await.expect(200);
    assert_eq!(verified.json()["ok"], true, "{}", verified.text);
    process.kill();
}

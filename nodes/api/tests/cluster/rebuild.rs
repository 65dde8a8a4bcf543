//! A member whose log is damaged or lost is taken anew from the others, by one command.

use crate::common::{Cluster, Member, free_ports, keys_copy, roles, voters};
use crate::life::{node, prod};
use reqwest::Method;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use tokio::task::JoinHandle;

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvlan-api"));
    command.env_clear().env("RUST_LOG", "warn").stdin(Stdio::null());
    command.arg("--data-dir").arg(dir).args(args);
    command
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[track_caller]
pub fn refused(dir: &Path, args: &[&str], says: &[&str]) -> String {
    let out = command(dir, args).output().unwrap();
    let said = text(&out);
    assert!(!out.status.success(), "{said}");
    says.iter().for_each(|what| assert!(said.contains(what), "{what}: {said}"));
    said
}

#[track_caller]
fn done(dir: &Path, args: &[&str]) -> String {
    let out = command(dir, args).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    text(&out)
}

/// Runs a rebuild and kills it as soon as it says that it is so far.
fn killed_at(dir: &Path, step: &str) {
    let mut child = command(dir, &["rebuild", "--yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with(step)), "it never came to {step}");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Flips one byte of an event in the middle of the log.
fn flip(dir: &Path, what: &[u8]) {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("log")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(what.len()).position(|window| window == what) {
            bytes[at] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            return;
        }
    }
    panic!("nothing in the log has {what:?}");
}

/// A folder with the same keys/, and nothing else.
fn keys_copied(cluster: &Cluster, dir: &Path) -> PathBuf {
    let copy = cluster.folder("copy");
    std::fs::create_dir(&copy).unwrap();
    keys_copy(dir, &copy.join("keys"));
    copy
}

/// Writes through two members, without a pause; none may fail.
fn writer(cluster: &Cluster, stop: &Arc<AtomicBool>, first: u64) -> JoinHandle<u64> {
    let (http, token, stop) = (cluster.http.clone(), cluster.token.clone(), stop.clone());
    let ports = [0, 1, 2].map(|at| cluster.members[at].ports[0]);
    let through: Vec<u16> = ports.into_iter().zip(&cluster.members).filter(|(_, m)| m.runs()).map(|(p, _)| p).collect();
    tokio::spawn(async move {
        let mut n = 0;
        while !stop.load(SeqCst) {
            let url = format!("https://127.0.0.1:{}/api/v1/tenants/acme/nodes", through[n as usize % through.len()]);
            let answer = http.post(url).bearer_auth(&token).json(&node(first + n)).send().await.unwrap();
            let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap());
            assert_eq!(status, 201, "write {n}: {body}");
            n += 1;
        }
        n
    })
}

fn id_of(list: &serde_json::Value, name: &str) -> u64 {
    let items = list["items"].as_array().unwrap();
    let found: Vec<_> = items.iter().filter(|m| m["name"] == name).collect();
    assert_eq!(found.len(), 1, "{list}");
    found[0]["id"].as_str().unwrap().parse().unwrap()
}

/// All have the same log, from its first event.
async fn same(cluster: &mut Cluster) {
    let mut reports = Vec::new();
    for at in 0..3 {
        cluster.get(at, "/tenants").await.expect(200);
        reports.push(cluster.post(at, "/log/verify", json!({})).await.expect(200).body);
    }
    assert!(reports.iter().all(|r| r["ok"] == true && r["root"] == reports[0]["root"]), "{reports:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_member_is_rebuilt_and_writes_go_on() {
    let mut cluster = Cluster::founded(&[]).await;
    let mut token = String::new();
    for name in ["m2", "m3"] {
        token = cluster.admit(0, name).await;
        let member = Member::start(cluster.folder(name), free_ports(), Some(&token));
        cluster.members.push(member);
    }
    cluster.until("three vote", |c| voters(c) == 3).await;
    prod(&mut cluster).await;
    for n in 0..30 {
        cluster.post(n as usize % 3, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    cluster.post(1, "/cluster/transfer-leader", json!({"to": "m2"})).await.expect(200);
    let before = cluster.get(0, "/cluster/members").await.body;
    let (dir, ports) = (cluster.members[2].dir.clone(), cluster.members[2].ports);
    refused(&dir, &["rebuild", "--yes"], &["locked by another process"]);
    // A copy of the folder of one that runs takes its place from nobody.
    let copy = keys_copied(&cluster, &dir);
    refused(&copy, &["rebuild", "--yes"], &["member_alive", "stop it first"]);
    cluster.members[2].kill();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = writer(&cluster, &stop, 1_000);

    // It names the record, and what to do.
    flip(&dir, b"n7");
    let out = Member::command(&dir, ports, None).stderr(Stdio::piped()).output().unwrap();
    let said = text(&out);
    assert!(!out.status.success() && said.contains("damaged: ") && said.contains("`cvlan-api rebuild`"), "{said}");
    refused(&dir, &["log", "verify"], &["damaged: ", "`cvlan-api rebuild`"]);
    let meant = refused(&dir, &["rebuild"], &["m3", "To go on: --yes", "nothing was changed"]);
    assert!(meant.contains(&format!("member {} is removed", id_of(&before, "m3"))), "{meant}");
    assert!(dir.join("log").is_dir());

    let said = done(&dir, &["rebuild", "--yes"]);
    assert!(said.contains("4/4"), "{said}");
    assert!(!dir.join("log").exists());
    let aside = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path());
    let aside = aside.into_iter().find(|f| f.to_string_lossy().contains("set-aside-")).unwrap();
    assert!(aside.join("log").is_dir() && aside.join("views.db").is_file());
    // Twice is once, and a copy of what it was is nobody.
    let now = cluster.get(0, "/cluster/members").await.body;
    done(&dir, &["rebuild", "--yes"]);
    assert_eq!(id_of(&cluster.get(0, "/cluster/members").await.body, "m3"), id_of(&now, "m3"));
    refused(&copy, &["rebuild", "--yes"], &["member_rebuilt", "an old copy"]);

    // Its join token may be set still: it is an older one now.
    cluster.members[2] = Member::start(dir.clone(), ports, Some(&token));
    // It begins at an older state, in which it voted as the one that it was: the others are asked.
    let after = cluster.until_at(0..2, "three vote", |c| voters(c) == 3 && roles(c).len() == 3).await;
    assert!(id_of(&now, "m3") > id_of(&before, "m3"), "{now}");
    assert_eq!(id_of(&after, "m3"), id_of(&now, "m3"));
    stop.store(true, SeqCst);
    let written = writing.await.unwrap();
    assert!(written > 30, "{written} writes");
    eprintln!("{written} writes while a member was rebuilt, none failed");
    cluster.seen.clear();
    cluster.post(2, "/tenants/acme/nodes", node(500)).await.expect(201);
    same(&mut cluster).await;
    // It counts: with it alone the rest go on without another one.
    cluster.members[0].kill();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while cluster.ask(2, Method::POST, "/tenants/acme/nodes", Some(node(501))).await.unwrap().status != 201 {
        assert!(std::time::Instant::now() < end, "its vote does not count");
    }
    cluster.members[2].terminate();
    assert!(cluster.members[2].ended().await.success());
    assert!(done(&dir, &["log", "verify"]).contains("ok "));
}

/// The founder, whose log is gone; the command is killed at every step.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_is_finished_by_the_next() {
    let mut cluster = Cluster::three().await;
    prod(&mut cluster).await;
    cluster.post(1, "/cluster/transfer-leader", json!({"to": "m3"})).await.expect(200);
    for n in 0..5 {
        cluster.post(1, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    let (dir, ports) = (cluster.members[0].dir.clone(), cluster.members[0].ports);
    cluster.members[0].kill();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = writer(&cluster, &stop, 1_000);
    std::fs::remove_dir_all(dir.join("log")).unwrap();
    let out = Member::command(&dir, ports, None).stderr(Stdio::piped()).output().unwrap();
    assert!(!out.status.success() && text(&out).contains("`cvlan-api rebuild`"), "{}", text(&out));
    killed_at(&dir, "1/4");
    let copy = keys_copied(&cluster, &dir);
    killed_at(&dir, "2/4");
    killed_at(&dir, "3/4");
    done(&dir, &["rebuild", "--yes"]);
    cluster.members[0].again();
    // It begins at an older state, in which it voted as the one that it was: the others are asked.
    let after = cluster.until_at(1..3, "three vote", |c| voters(c) == 3 && roles(c).len() == 3).await;
    assert!(id_of(&after, "founder") > 1, "{after}");
    refused(&copy, &["rebuild", "--yes"], &["member_rebuilt", "votes already"]);
    stop.store(true, SeqCst);
    writing.await.unwrap();
    cluster.seen.clear();
    cluster.post(0, "/tenants/acme/nodes", node(500)).await.expect(201);
    same(&mut cluster).await;

    // Whoever was removed on purpose does not come back by it.
    cluster.ask(0, Method::DELETE, "/cluster/members/m2", None).await.unwrap().expect(204);
    assert!(cluster.members[1].ended().await.success());
    refused(&cluster.members[1].dir, &["rebuild", "--yes"], &["member_gone", "cluster add"]);
}

/// One without the cluster's keys cannot sign itself a certificate: the one that it was given is all that it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_killed_between_certificate_and_id_is_finished() {
    let mut cluster = Cluster::three().await;
    let token = cluster.admit(0, "m4").await;
    let m4 = Member::start(cluster.folder("m4"), free_ports(), Some(&token));
    cluster.members.push(m4);
    cluster.until("it follows", |c| roles(c).contains(&("m4".into(), "learner".into()))).await;
    let dir = cluster.members[3].dir.clone();
    assert!(!dir.join("keys/ca.key").exists());
    cluster.members[3].kill();
    let kept =
        |name: &str| serde_json::from_slice::<Value>(&std::fs::read(dir.join("keys").join(name)).unwrap()).unwrap();
    let identity = kept("identity");
    killed_at(&dir, "1/4");
    let mut begun = kept("rebuild");
    done(&dir, &["rebuild", "--yes"]);
    begun["to"] = kept("identity")["member"].clone();
    assert_ne!(begun["to"], begun["from"]);
    for (name, then) in [("identity", identity), ("rebuild", begun)] {
        std::fs::write(dir.join("keys").join(name), then.to_string()).unwrap();
    }
    assert!(done(&dir, &["rebuild", "--yes"]).contains("4/4"));
    cluster.members[3].again();
    cluster.until("it follows again", |c| roles(c).contains(&("m4".into(), "learner".into()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_rebuilt_from_nothing() {
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), &["rebuild"], &["no member's folder"]);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is made there");
    let (mut alone, other) = (Cluster::founded(&[]).await, Cluster::founded(&[]).await);
    alone.until("it leads", |c| roles(c).iter().any(|(_, r)| r == "leader")).await;
    alone.members[0].kill();
    let dir = alone.members[0].dir.clone();
    refused(&dir, &["rebuild", "--yes"], &["no other member is known", "restore a backup"]);
    refused(&dir, &["rebuild", "--yes", "--from", "nowhere"], &["--from", "HOST:PORT"]);
    // Nobody listens there; another cluster does.
    let nobody = format!("127.0.0.1:{}", free_ports()[3]);
    let stranger = format!("127.0.0.1:{}", other.members[0].ports[3]);
    let from = format!("{nobody},{stranger}");
    refused(&dir, &["rebuild", "--yes", "--from", &from], &[&nobody, &stranger, "no member could serve it"]);
    assert!(dir.join("log").is_dir());
    // It is what it was.
    alone.members[0].again();
    alone.post(0, "/tenants", json!({"slug": "acme"})).await.expect(201);
}

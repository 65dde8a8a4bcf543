//! History that is not kept any longer: it is written before it goes, and nobody is told what is not true afterwards.

use crate::common::{Controller, Session, options, send};
use cvlan_api::cluster::restore::restored;
use cvlan_api::server::{Options, Running, start};
use cvlan_core::id::Seq;
use cvlan_core::log::export::{Checker, FORMAT, MAGIC};
use cvlan_core::log::records::{Splitter, record_write};
use cvlan_core::log::{backup, entry_decode};
use cvlan_proto::v1::backup_record::Kind;
use cvlan_proto::v1::{BackupRecord, ExportRecord};
use reqwest::Method;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub fn trimming(data: &Path, export: Option<&Path>) -> Options {
    let mut options = Options { history_export: export.map(Path::to_path_buf), ..options(data) };
    let limits = &mut options.log_limits;
    (limits.segment_bytes, limits.tail_bytes) = (16 << 10, 4 << 10);
    (limits.snapshot_events, limits.purge_behind) = (40, 10);
    (limits.history_ms, limits.history_check_ms) = (1_000, 100);
    options
}

/// Files of the folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|ending| ending == "cvexport"));
    all.sort();
    all
}

/// First and last event that each shows.
fn shown(path: &Path) -> (u64, u64) {
    let range = path.file_stem().unwrap().to_str().unwrap().rsplit('-').take(2).map(|n| n.parse::<u64>().unwrap());
    let [to, from] = range.collect::<Vec<_>>()[..] else { panic!("{}", path.display()) };
    let (mut splitter, mut checker) = (Splitter::new(MAGIC, FORMAT), Checker::new(Vec::new(), Vec::new(), Seq(from)));
    splitter.push(&std::fs::read(path).unwrap());
    while let Some((record, _)) = splitter.take::<ExportRecord>().unwrap() {
        checker.record(record).unwrap();
    }
    let report = checker.finish().unwrap();
    assert_eq!((report.from, report.to, report.events), (Seq(from), Seq(to), to - from + 1));
    (from, to)
}

fn first(controller: &Controller) -> u64 {
    controller.running.app().log.status().history_from
}

/// Writes until history begins later.
pub async fn trimmed(admin: &Session<'_>, above: u64) -> u64 {
    let end = Instant::now() + Duration::from_secs(60);
    while first(admin.controller) <= above {
        assert!(Instant::now() < end, "history is not trimmed");
        admin.patch("/tenants/t1", json!({"name": format!("{:?}", Instant::now())})).await.expect(200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    first(admin.controller)
}

pub async fn filled(controller: &Controller) -> Session<'_> {
    let admin = controller.admin().await;
    for n in 0..120 {
        admin.post("/tenants", json!({"slug": format!("t{n}"), "name": "long ".repeat(20)})).await.expect(201);
    }
    admin
}

async fn events(admin: &Session<'_>, noun: &str) -> serde_json::Value {
    let now = admin.controller.running.app().log.head().checkpoint().to_string();
    let request = admin.request(Method::GET, &format!("/log/events?noun={noun}&limit=1000"));
    send(request.header("accept", "application/json").header("cvlan-checkpoint", now)).await.expect(200).json()
}

async fn system_events(admin: &Session<'_>) -> Vec<serde_json::Value> {
    let page = events(admin, "system").await;
    page["items"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_was_written_before_and_what_is_left_says_from_when() {
    let archive = tempfile::tempdir().unwrap();
    let controller = Controller::with(|data| trimming(data, Some(archive.path()))).await;
    let admin = filled(&controller).await;
    let kept = trimmed(&admin, 50).await;
    let mut due = 1;
    for path in files(archive.path()) {
        let (from, to) = shown(&path);
        assert_eq!(from, due, "{}", path.display());
        due = to + 1;
    }
    assert!(due >= kept, "events {due} to {kept} are gone, and were not written");

    // What is asked for from the beginning begins where it can, and says so; what is gone is gone.
    admin.get(&format!("/log/events?from={}", kept - 1)).await.problem(410, "history_gone");
    let page = events(&admin, "tenant").await;
    let oldest = page["items"][0]["seq"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(oldest >= kept, "{oldest}");
    let trims = system_events(&admin).await;
    assert!(trims.iter().any(|event| event["system"]["historyTrimmed"].is_object()), "the log says what is not kept");

    // A member that starts again goes on with its folder.
    let written = files(archive.path());
    let Controller { running, dir, .. } = controller;
    running.stop().await;
    let running = start(trimming(dir.path(), Some(archive.path()))).await.unwrap();
    running.stop().await;
    assert_eq!(files(archive.path())[..written.len()], written[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_does_not_go() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("a file");
    std::fs::write(&blocked, "in its place").unwrap();
    let controller = Controller::with(|data| trimming(data, Some(&blocked))).await;
    let admin = filled(&controller).await;
    let end = Instant::now() + Duration::from_secs(60);
    while !system_events(&admin).await.iter().any(|event| event["system"]["historyTrimmed"].is_object()) {
        assert!(Instant::now() < end, "nothing is to be trimmed");
        admin.patch("/tenants/t1", json!({"name": format!("{:?}", Instant::now())})).await.expect(200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(first(&controller), 1, "all of it is held");
    std::fs::remove_file(&blocked).unwrap();
    trimmed(&admin, 1).await;
    assert!(!files(&blocked).is_empty());
}

fn records(bytes: &[u8]) -> Vec<BackupRecord> {
    let (mut splitter, mut all) = (Splitter::new(backup::MAGIC, backup::FORMAT), Vec::new());
    splitter.push(bytes);
    while let Some((record, _)) = splitter.take().unwrap() {
        all.push(record);
    }
    assert!(splitter.is_empty());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_trimmed_history_begins_with_the_state_before_it_and_comes_back() {
    let controller = Controller::with(|data| trimming(data, None)).await;
    let admin = filled(&controller).await;
    trimmed(&admin, 50).await;
    let log = &controller.running.app().log;
    log.history_hold(Seq(log.status().history_from));
    let verified = admin.post("/log/verify", json!({})).await.expect(200).json();
    let from = first(&controller);
    assert_eq!((&verified["ok"], &verified["fromSeq"]), (&json!(true), &json!(from.to_string())), "{verified}");

    let fetch = async |query: &str| {
        let answer = admin.request(Method::GET, &format!("/cluster/backup{query}")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{query}");
        answer.bytes().await.unwrap()
    };
    let whole = fetch("").await;
    let all = records(&whole);
    let Some(Kind::Header(header)) = &all[0].kind else { panic!() };
    assert_eq!(header.base.as_ref().unwrap().seq + 1, from);
    let is_state = |record: &&BackupRecord| matches!(record.kind, Some(Kind::State(_)));
    assert!(all.iter().any(|record| is_state(&record)));
    // Whoever goes on with one that was cut off has the state.
    let frame = |record: &BackupRecord| match &record.kind {
        Some(Kind::Entry(entry)) if entry.members.is_none() => Some(entry_decode(&entry.frame).unwrap().first_seq),
        _ => None,
    };
    let half = all.len() / 2;
    let (at, seq) = all.iter().enumerate().skip(half).find_map(|(at, record)| Some((at, frame(record)?))).unwrap();
    let rest = records(&fetch(&format!("?from={seq}&to={}", header.to_seq)).await);
    let due = &all[at..all.len() - 1];
    assert_eq!((&rest[1..=due.len()], rest.len()), (due, due.len() + 2));
    let gone = admin.request(Method::GET, &format!("/cluster/backup?from=2&to={}", header.to_seq));
    send(gone).await.problem(410, "history_gone");

    let folder = tempfile::tempdir().unwrap();
    let [file, keys, data] = ["it.cvbackup", "keys", "data"].map(|name| folder.path().join(name));
    std::fs::write(&file, &whole).unwrap();
    let kept = controller.dir.path().join("keys");
    assert!(Command::new("cp").arg("-r").args([&kept, &keys]).status().unwrap().success());
    let slugs = |running: &Running| {
        let head = running.app().log.head();
        head.machine.tenants.values().map(|tenant| tenant.record.slug.clone()).collect::<Vec<_>>()
    };
    let before = slugs(&controller.running);
    assert_eq!(before.len(), 120);
    controller.running.stop().await;
    let back = restored(&file, &keys, &data, None, Vec::new()).await.unwrap();
    assert_eq!((back.backup.from, back.backup.events), (Seq(from), header.to_seq));
    let tool = |verb: &str| {
        let said = Command::new(env!("CARGO_BIN_EXE_cvlan-api")).args(["log", verb, "--data-dir"]).arg(&data).output();
        let said = said.unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap()
    };
    assert!(tool("verify").contains(&format!("replayed    from event {from} on")));
    assert!(tool("stats").contains("kept by"));
    let running = start(options(&data)).await.unwrap();
    assert_eq!(slugs(&running), before);
    let report = running.app().log.log_verify(None).await.unwrap();
    assert_eq!((report.from, report.checkpoints.is_empty()), (Seq(from), false));
    assert_eq!(running.app().log.status().history_from, from);
    running.stop().await;

    // A state that is not the log's: the restore says so, and leaves nothing.
    let mut forged = all.clone();
    let kinds = forged.iter_mut().filter_map(|record| record.kind.as_mut());
    let state = kinds.filter_map(|kind| if let Kind::State(state) = kind { Some(state) } else { None }).next().unwrap();
    let mut bytes = state.piece.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    state.piece = bytes.into();
    let mut bytes = [backup::MAGIC.as_slice(), &[backup::FORMAT]].concat();
    forged.iter().for_each(|record| record_write(record, &mut bytes));
    std::fs::write(&file, bytes).unwrap();
    let none = folder.path().join("none");
    let refused = restored(&file, &keys, &none, None, Vec::new()).await.err().unwrap();
    assert!(refused.to_string().contains("the state after event"), "{refused}");
    assert!(std::fs::read_dir(&none).unwrap().all(|entry| entry.unwrap().file_name() == "lock"));
}

//! The record's doors: what is sent whole says so, what is not is broken, and a folder is compared with what was kept of it.

use crate::common::{Controller, PASSWORD, eventually, options, random};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cvlan_api::app::backup::Schedule;
use cvlan_api::app::sink::Target;
use cvlan_api::server::{Options, start};
use cvlan_core::log::backup::{Checker, FORMAT, MAGIC};
use cvlan_core::log::records::Splitter;
use cvlan_proto::v1::BackupRecord;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What came of a backup, and whether its body came to its end.
async fn read(mut answer: reqwest::Response) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return (bytes, true),
            Err(_) => return (bytes, false),
        }
    }
}

/// Events of a backup; the error says why it is not whole.
fn checked(bytes: &[u8]) -> Result<u64, String> {
    let (mut records, mut checker) = (Splitter::new(MAGIC, FORMAT), Checker::new(Vec::new()));
    records.push(bytes);
    while let Some((record, _)) = records.take::<BackupRecord>()? {
        checker.record(record).map_err(|e| e.to_string())?;
    }
    checker.finish().map(|report| report.events).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_breaks_where_its_caller_may_not_have_it_any_more() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    admin.post("/tenants/acme/cvlans", json!({"name": "wide", "ipv4Cidr": "10.64.0.0/10"})).await.expect(201);
    // More than all buffers on the way hold.
    for batch in 0..60 {
        let node = |n| {
            let key = BASE64.encode(random::<32>());
            json!({"cvlan": "wide", "name": format!("n{batch}-{n}"), "wgPublicKey": key})
        };
        let items: Vec<_> = (0..1000).map(node).collect();
        admin.post("/tenants/acme/nodes:bulk", json!({"items": items})).await.expect(201);
    }
    for way in ["deleted", "logged out"] {
        let name = way.replace(' ', "-");
        admin.post("/users", json!({"name": name, "role": "superadmin", "password": PASSWORD})).await.expect(201);
        let chief = controller.session("", &name, PASSWORD).await;
        let answer = chief.request(Method::GET, "/cluster/backup").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        tokio::time::sleep(Duration::from_millis(300)).await;
        match way {
            "deleted" => admin.delete(&format!("/users/{name}")).await.expect(204),
            _ => chief.post("/auth/logout", json!({"refreshToken": chief.refresh})).await.expect(204),
        };
        let (bytes, ended) = read(answer).await;
        assert!(!ended && !bytes.is_empty(), "{way}: {} bytes came as if they were all", bytes.len());
        assert!(checked(&bytes).is_err(), "{way}");
        chief.get("/cluster/backup").await.problem(401, "session_invalid");
    }
    let stats = admin.get("/log/stats").await.expect(200).json();
    assert!(stats.get("lastBackup").is_none(), "{stats}");
    let (bytes, ended) = read(admin.request(Method::GET, "/cluster/backup").send().await.unwrap()).await;
    assert!(ended);
    assert_eq!(checked(&bytes), Ok(controller.seq()));
    let stats = admin.get("/log/stats").await.expect(200).json();
    assert_eq!(stats["lastBackup"]["seq"], controller.seq().to_string(), "{stats}");
    // An export that is whole ends too.
    let (bytes, ended) = read(admin.request(Method::GET, "/log/export?from=60000").send().await.unwrap()).await;
    assert!(ended && String::from_utf8(bytes).unwrap().trim_end().lines().last().unwrap().contains("\"end\""));
}

/// `cvlan-api log …` on a folder: its output where it did it, its one line on stderr where it did not.
fn offline(data: &Path, words: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvlan-api"));
    let said = command.env_clear().env("RUST_LOG", "error").arg("log").args(words).arg("--data-dir").arg(data).output();
    let said = said.unwrap();
    match said.status.success() {
        true => Ok(String::from_utf8(said.stdout).unwrap()),
        false => Err(String::from_utf8(said.stderr).unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_in_numbers_is_the_same_of_one_that_runs_and_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let sink = format!("file:{}", dir.path().join("events.ndjson").display());
    let with = |data: &Path| Options {
        sinks: vec![Target::parse(&sink).unwrap()],
        backup: Some(Schedule { folder: dir.path().join("backups"), every: Duration::from_secs(3600), keep: 2 }),
        ..options(data)
    };
    let controller = Controller::with(with).await;
    let admin = controller.admin().await;
    let app = controller.running.app();
    eventually("it makes a backup", || app.backups.last().is_some()).await;
    admin.acme().await;
    app.log.snapshot().await.unwrap();
    let last = controller.seq();
    eventually("the sink has all", || app.sinks[0].seq() == last).await;
    let stats = admin.get("/log/stats").await.expect(200).json();
    let seq = last.to_string();
    for (name, value) in [
        ("memberId", "1"),
        ("epoch", &app.log.head().epoch.to_string()),
        ("events", &seq),
        ("treeSize", &seq),
        ("treeRoot", &hex::encode(app.log.head().root)),
        ("firstSeq", "1"),
        ("segments", &app.log.status().segments.to_string()),
    ] {
        assert_eq!(stats[name], value, "{name}: {stats}");
    }
    let first = admin.get("/log/events?from=1&limit=1&noun=all").await.json();
    assert_eq!(stats["firstTime"], first["time"]);
    let snapshots = stats["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.last().unwrap()["seq"], seq, "{stats}");
    assert!(stats["lastBackup"]["file"].as_str().unwrap().ends_with(".cvbackup"), "{stats}");
    assert_eq!((&stats["sinks"][0]["sink"], &stats["sinks"][0]["seq"]), (&json!(sink), &json!(seq)), "{stats}");
    let entries: u64 = stats["entries"].as_str().unwrap().parse().unwrap();
    assert!(entries > 3 && stats["logBytes"].as_str().unwrap().parse::<u64>().unwrap() > 1000, "{stats}");

    let Controller { running, dir: data, .. } = controller;
    running.stop().await;
    let said = offline(data.path(), &["stats"]).unwrap();
    for line in [
        format!("events      {last}\n"),
        format!("entries     {entries}\n"),
        "first event 1, ".to_owned(),
        format!("tree        {last} leaves, root {}\n", stats["treeRoot"].as_str().unwrap()),
        format!("snapshot    event {last}, "),
        format!("sink        {sink} has {last}\n"),
    ] {
        assert!(said.contains(&line), "{line}: {said}");
    }
    // It knows the backup of before.
    let running = start(with(data.path())).await.unwrap();
    let app = running.app();
    eventually("it finds it", || app.backups.last().is_some_and(|b| b.seq > 0 && !b.file.is_empty())).await;
    running.stop().await;
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_cut_or_rewritten_is_told_from_what_was_kept() {
    let controller = Controller::new().await;
    let admin = controller.admin().await;
    admin.acme().await;
    let safe = tempfile::tempdir().unwrap();
    let file = |name: &str| safe.path().join(name).display().to_string();
    let keys = admin.get("/log/keys").await.expect(200).json();
    std::fs::write(file("keys"), keys["items"][0]["verifier"].as_str().unwrap()).unwrap();
    let note = |proof: Value| proof["note"].as_str().unwrap().to_owned();
    std::fs::write(file("early"), note(admin.get("/log/proof").await.expect(200).json())).unwrap();
    let (cut, forked) = (safe.path().join("cut"), safe.path().join("forked"));
    drop(admin);
    let Controller { running, dir: data, password, .. } = controller;
    running.stop().await;
    copy(data.path(), &cut);
    copy(data.path(), &forked);

    // On from there, twice, in two ways.
    for (data, tenants, noted) in [(data.path(), 5, true), (forked.as_path(), 9, false)] {
        let controller = Controller::on(data, &password).await;
        let admin = controller.admin().await;
        for n in 0..tenants {
            admin.post("/tenants", json!({"slug": format!("t{tenants}-{n}")})).await.expect(201);
        }
        if noted {
            let seq = admin.post("/log/checkpoint", json!({})).await.expect(200).json();
            let seq = seq["seq"].as_str().unwrap().to_owned();
            let proof = admin.get(&format!("/log/proof?size={seq}")).await.expect(200).json();
            std::fs::write(file("late"), note(proof)).unwrap();
        }
        drop(admin);
        controller.running.stop().await;
    }
    let verify = |data: &Path, words: &str| {
        let words = words.split_whitespace().map(|word| word.strip_prefix('@').map_or(word.to_owned(), file));
        let words: Vec<_> = std::iter::once("verify".to_owned()).chain(words).collect();
        offline(data, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let said = verify(data.path(), "--keys @keys --held @early --held @late").unwrap();
    assert!(
        said.starts_with("ok ") && said.contains("signed by   cvlan/") && said.contains("continues   event"),
        "{said}"
    );
    assert!(verify(&cut, "--held @early").is_ok() && verify(&forked, "--held @early").is_ok());
    let refused = |data: &Path, words: &str, why: &str| {
        let said = verify(data, words).unwrap_err();
        assert!(
            said.contains(why) && said.contains("(hint: ") && said.trim_end().lines().count() == 1,
            "{why}: {said}"
        );
    };
    refused(&cut, "--held @late", "its end was cut off");
    refused(&forked, "--held @early --held @late", "history was rewritten");
    // What the voters signed lies in the folder itself, where that was left.
    refused(&cut, "--keys @keys", "there is none");
    copy(&data.path().join("notes"), &cut);
    refused(&cut, "--keys @keys", "its end was cut off");
    copy(&data.path().join("notes"), &forked);
    refused(&forked, "--keys @keys", "history was rewritten");
    let peter = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    std::fs::write(file("peter"), peter).unwrap();
    refused(data.path(), "--keys @peter", "more than half");
    std::fs::write(file("none"), "no note").unwrap();
    for (words, why) in
        [("--held @none", "signed note"), ("--held @nowhere", "No such file"), ("--keys @none", "verifier key")]
    {
        let said = verify(data.path(), words).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    }
}

//! The record streamed out: whole, in order, at least once, whatever the other end does.

use crate::common::{Controller, Session, eventually, options};
use cvlan_api::app::sink::Asked;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Numbers of the events in NDJSON.
fn seqs(text: &str) -> Vec<u64> {
    // The last line may not be whole yet.
    let seq = |line: &str| serde_json::from_str::<Value>(line).ok()?["seq"].as_str()?.parse().ok();
    text.lines().map_while(seq).collect()
}

/// Each at least once, none before the one before it.
fn whole(found: &[u64], last: u64) -> bool {
    let mut due = 1;
    for seq in found {
        // What is read while a file gets another name may have a gap; it must close.
        if *seq > due {
            return false;
        }
        due = due.max(seq + 1);
    }
    due == last + 1
}

async fn tokens(admin: &Session<'_>, n: usize) {
    for _ in 0..n {
        admin.token(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_everything_over_restarts_and_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.ndjson");
    let sink = format!("file:{}?rotate=6000&keep=50", path.display());
    let with = |data: &Path| cvlan_api::server::Options { sinks: vec![Asked::parse(&sink).unwrap()], ..options(data) };
    let controller = Controller::with(with).await;
    let admin = controller.admin().await;
    admin.acme().await;
    tokens(&admin, 20).await;
    let read = || {
        let older =
            (1..50).rev().filter_map(|n| std::fs::read_to_string(path.with_added_extension(n.to_string())).ok());
        older.chain(std::fs::read_to_string(&path).ok()).collect::<String>()
    };
    let last = controller.seq();
    eventually("all is in the file", || whole(&seqs(&read()), last)).await;
    assert!(path.with_added_extension("1").exists(), "it was rotated");
    assert!(!read().contains("$argon2"));
    let metrics = controller.running.app().metrics.render(controller.running.app());
    assert!(metrics.contains("cvlan_sink_failing{") && metrics.contains("cvlan_sink_seq{"), "{metrics}");

    // Where it is, is kept: what it has is not sent again. What is torn is.
    let Controller { running, dir: data, .. } = controller;
    running.stop().await;
    let before = seqs(&read()).len();
    let running = cvlan_api::server::start(with(data.path())).await.unwrap();
    let last = running.app().log.head().seq.0;
    eventually("all is in the file", || whole(&seqs(&read()), last)).await;
    assert!(seqs(&read()).len() <= before + (last as usize - before) + 1, "sent again");
    running.stop().await;
}

/// Answers POST with what is next of `answers`, then with 200; keeps the bodies of those that it took.
async fn collector(mut answers: Vec<&'static str>) -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, got) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(String::new())));
    let kept = got.clone();
    answers.reverse();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            let whole = loop {
                let mut piece = [0; 65536];
                let length = stream.read(&mut piece).await.unwrap_or(0);
                bytes.extend_from_slice(&piece[..length]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length =
                        head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                    if length == Some(body.len()) {
                        assert!(head.to_lowercase().contains("idempotency-key: "), "{head}");
                        break Some(body.to_owned());
                    }
                }
                if length == 0 {
                    break None;
                }
            };
            let answer = answers.pop().unwrap_or("HTTP/1.1 200 OK");
            // An empty one hangs up.
            if answer.starts_with("HTTP/1.1 2") {
                kept.lock().unwrap().push_str(&whole.unwrap_or_default());
            }
            let _ = stream
                .write_all(format!("{answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
                .await;
        }
    });
    (at, got)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_gets_it_again() {
    let (at, got) =
        collector(vec!["HTTP/1.1 503 Busy", "HTTP/1.1 201 Created", "nonsense", "HTTP/1.1 302 Found"]).await;
    let sinks = vec![Asked::parse(&format!("http://{at}/events")).unwrap()];
    let controller =
        Controller::with(|data| cvlan_api::server::Options { sinks: sinks.clone(), ..options(data) }).await;
    let admin = controller.admin().await;
    admin.acme().await;
    tokens(&admin, 5).await;
    let last = controller.seq();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !whole(&seqs(&got.lock().unwrap()), last) {
        assert!(std::time::Instant::now() < end, "{:?}", seqs(&got.lock().unwrap()));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    eventually("it does not fail any more", || !controller.running.app().sinks[0].failing()).await;
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    let last = controller.seq();
    eventually("what comes later too", || whole(&seqs(&got.lock().unwrap()), last)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_is_framed_by_its_length() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let got = Arc::new(Mutex::new(Vec::new()));
    let (at, kept) = (listener.local_addr().unwrap(), got.clone());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut piece = [0; 65536];
            while let Ok(length @ 1..) = stream.read(&mut piece).await {
                kept.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        }
    });
    let sinks = vec![Asked::parse(&format!("syslog+tcp://{at}")).unwrap()];
    let controller =
        Controller::with(|data| cvlan_api::server::Options { sinks: sinks.clone(), ..options(data) }).await;
    controller.admin().await.acme().await;
    let (last, epoch) = (controller.seq(), controller.running.app().log.head().epoch);
    let messages = || {
        let bytes = got.lock().unwrap().clone();
        let (mut rest, mut found) = (std::str::from_utf8(&bytes).unwrap_or_default(), Vec::new());
        while let Some((length, after)) = rest.split_once(' ') {
            let Some((message, next)) = after.split_at_checked(length.parse().unwrap()) else { break };
            found.push(message.to_owned());
            rest = next;
        }
        found
    };
    eventually("all came", || messages().len() as u64 == last).await;
    for (message, seq) in messages().iter().zip(1u64..) {
        assert!(message.starts_with("<110>1 20") && message.contains(&format!("log=\"{epoch}.{seq}\"")), "{message}");
        let event: Value = serde_json::from_str(message.split_once("] ").unwrap().1).unwrap();
        assert_eq!(event["seq"], seq.to_string());
    }
}

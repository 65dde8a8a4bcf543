//! The record streamed out: whole, in order, at least once, whatever the other end does.

use crate::archive::{filled, trimmed, trimming};
use crate::common::{Controller, Session, eventually, options};
use cvlan_api::app::sink::Target;
use cvlan_api::server::Options;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

fn target(text: &str) -> Target {
    Target::parse(text).unwrap()
}

fn metrics(controller: &Controller) -> String {
    controller.running.app().metrics.render(controller.running.app())
}

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
    let with = |data: &Path| Options { sinks: vec![target(&sink)], ..options(data) };
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
    let metrics = metrics(&controller);
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
    let sinks = vec![target(&format!("http://{at}/events"))];
    let controller = Controller::with(|data| Options { sinks: sinks.clone(), ..options(data) }).await;
    let admin = controller.admin().await;
    admin.acme().await;
    tokens(&admin, 5).await;
    let last = controller.seq();
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !whole(&seqs(&got.lock().unwrap()), last) {
        assert!(std::time::Instant::now() < end, "{:?}", seqs(&got.lock().unwrap()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("it does not fail any more", || controller.running.app().sinks[0].why().is_none()).await;
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    let last = controller.seq();
    eventually("what comes later too", || whole(&seqs(&got.lock().unwrap()), last)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_logrotate_moves_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("events.ndjson"), dir.path().join("events.ndjson.old"));
    let sinks = vec![target(&format!("file:{}", path.display()))];
    let controller = Controller::with(|data| Options { sinks: sinks.clone(), ..options(data) }).await;
    let admin = controller.admin().await;
    admin.acme().await;
    let (first, read) = (controller.seq(), |path: &Path| seqs(&std::fs::read_to_string(path).unwrap_or_default()));
    eventually("all is in the file", || whole(&read(&path), first)).await;
    std::fs::rename(&path, &moved).unwrap();
    tokens(&admin, 3).await;
    let last = controller.seq();
    eventually("the rest is in one of that name", || whole(&[read(&moved), read(&path)].concat(), last)).await;
    assert_eq!((read(&moved).last(), read(&path).first()), (Some(&first), Some(&(first + 1))));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_urls_are_in_no_metric_and_on_no_disk() {
    let (at, got) = collector(Vec::new()).await;
    let urls = ["one", "two"].map(|key| target(&format!("http://user:hidden@{at}/in?key=hidden-{key}")));
    let controller = Controller::with(|data| Options { sinks: urls.to_vec(), ..options(data) }).await;
    let last = controller.seq();
    let sinks = &controller.running.app().sinks;
    eventually("both have all", || sinks.iter().all(|sink| sink.seq() >= last)).await;
    assert!(seqs(&got.lock().unwrap()).len() as u64 >= 2 * last, "each got its own");
    let text = metrics(&controller);
    for number in 1..=2 {
        let line = format!("cvlan_sink_seq{{number=\"{number}\",sink=\"http://{at}/in\"}} ");
        assert_eq!(text.matches(&line).count(), 1, "{line}");
    }
    let kept = controller.dir.path().join("sinks");
    eventually("both are kept", || std::fs::read_dir(&kept).is_ok_and(|files| files.count() == 2)).await;
    // One may be written anew just now.
    let on_disk =
        std::fs::read_dir(&kept).unwrap().filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok());
    assert!(!text.contains("hidden") && !on_disk.collect::<String>().contains("hidden"));
}

/// Takes messages, over TLS where there is a key; hangs up when it is told to.
async fn syslog(tls: Option<TlsAcceptor>) -> (SocketAddr, Arc<Mutex<Vec<u8>>>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, got, hang_up) =
        (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
    let (kept, told) = (got.clone(), hang_up.clone());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream: Box<dyn AsyncRead + Send + Unpin> = match &tls {
                None => Box::new(stream),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => continue,
                },
            };
            let mut piece = [0; 65536];
            loop {
                tokio::select! {
                    read = stream.read(&mut piece) => match read {
                        Ok(length @ 1..) => kept.lock().unwrap().extend_from_slice(&piece[..length]),
                        Ok(0) | Err(_) => break,
                    },
                    () = told.notified() => break,
                }
            }
        }
    });
    (at, got, hang_up)
}

/// Octet counting: RFC 6587 §3.4.1, RFC 5425 §4.3.
fn messages(bytes: &[u8]) -> Vec<String> {
    let (mut rest, mut found) = (std::str::from_utf8(bytes).unwrap_or_default(), Vec::new());
    while let Some((length, after)) = rest.split_once(' ') {
        let Some((message, next)) = after.split_at_checked(length.parse().unwrap()) else { break };
        found.push(message.to_owned());
        rest = next;
    }
    found
}

/// What is sent comes whole, also behind a connection that the other end gave up while nothing was to be said.
async fn streams(controller: &Controller, got: &Mutex<Vec<u8>>, hang_up: &Notify) {
    let admin = controller.admin().await;
    admin.acme().await;
    let count = || messages(&got.lock().unwrap()).len() as u64;
    let last = controller.seq();
    eventually("all came", || count() == last).await;
    hang_up.notify_one();
    tokio::time::sleep(Duration::from_millis(200)).await;
    admin.post("/tenants", json!({"slug": "other"})).await.expect(201);
    let (last, epoch) = (controller.seq(), controller.running.app().log.head().epoch);
    eventually("the rest came over another one", || count() == last).await;
    for (message, seq) in messages(&got.lock().unwrap()).iter().zip(1u64..) {
        assert!(message.starts_with("<110>1 20") && message.contains(&format!("log=\"{epoch}.{seq}\"")), "{message}");
        let event: Value = serde_json::from_str(message.split_once("] ").unwrap().1).unwrap();
        assert_eq!(event["seq"], seq.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_is_framed_by_its_length() {
    let (at, got, hang_up) = syslog(None).await;
    let sinks = vec![target(&format!("syslog+tcp://{at}"))];
    let controller = Controller::with(|data| Options { sinks: sinks.clone(), ..options(data) }).await;
    streams(&controller, &got, &hang_up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_over_tls_needs_who_vouches_for_it() {
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![made.der().clone()], private).unwrap();
    let (at, got, hang_up) = syslog(Some(TlsAcceptor::from(Arc::new(config)))).await;
    let dir = tempfile::tempdir().unwrap();
    let (ca, stranger) = (dir.path().join("ca.pem"), dir.path().join("stranger.pem"));
    std::fs::write(&ca, made.pem()).unwrap();
    let other = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&stranger, other.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    let with = |sink_ca: &Path| {
        let sinks = vec![target(&format!("syslog+tls://{at}"))];
        let sink_ca = Some(sink_ca.to_owned());
        move |data: &Path| Options { sinks: sinks.clone(), sink_ca: sink_ca.clone(), ..options(data) }
    };
    let controller = Controller::with(with(&stranger)).await;
    let why = || controller.running.app().sinks[0].why().unwrap_or_default();
    eventually("it is not believed", || why().contains("certificate")).await;
    assert!(got.lock().unwrap().is_empty(), "nothing is told to a stranger");
    controller.running.stop().await;

    let controller = Controller::with(with(&ca)).await;
    streams(&controller, &got, &hang_up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_before_a_sink_had_it_is_counted() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let controller = Controller::with(|_| trimming(data.path(), None)).await;
    let admin = filled(&controller).await;
    trimmed(&admin, 50).await;
    controller.running.stop().await;

    let path = dir.path().join("events.ndjson");
    let sinks = vec![target(&format!("file:{}", path.display()))];
    let running = cvlan_api::server::start(Options { sinks, ..options(data.path()) }).await.unwrap();
    let (app, read) = (running.app(), || seqs(&std::fs::read_to_string(&path).unwrap_or_default()));
    let (first, last) = (app.log.status().history_from, app.log.head().seq.0);
    assert!(first > 2 && first < last, "{first} {last}");
    eventually("what is there has come", || read() == (first..=last).collect::<Vec<_>>()).await;
    assert_eq!(app.sinks[0].skipped(), first - 1);
    let line =
        format!("cvlan_sink_skipped_events_total{{number=\"1\",sink=\"file:{}\"}} {}\n", path.display(), first - 1);
    assert!(app.metrics.render(app).contains(&line), "{line}");
    running.stop().await;
}

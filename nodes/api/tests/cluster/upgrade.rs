//! Members are upgraded one by one, and back, while writes go on. One build plays both versions: `--play-level 1` is one that
//! knows neither the events nor the field of saved states that came with level 2.

use crate::common::{Cluster, Member};
use crate::life::{node, prod};
use reqwest::{Client, Method};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const OLD: [&str; 2] = ["--play-level", "1"];
const NEW: [&str; 0] = [];

async fn level(http: &Client, metrics: u16) -> u64 {
    let text = http.get(format!("http://127.0.0.1:{metrics}/metrics")).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with("cvlan_feature_level ")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_upgraded_and_put_back_while_no_write_fails() {
    let mut cluster = Cluster::three_with(&OLD).await;
    prod(&mut cluster).await;
    let plain = Client::new();
    let ports = [0, 1, 2].map(|at| cluster.members[at].ports);
    let levels = async || {
        let mut all = Vec::new();
        for ports in ports {
            all.push(level(&plain, ports[2]).await);
        }
        all
    };
    assert_eq!(levels().await, [1, 1, 1]);

    // Through the members that run, one after the other; every answer counts.
    let (stop, away) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(usize::MAX)));
    let writer = {
        let (stop, away) = (stop.clone(), away.clone());
        let (http, token) = (cluster.http.clone(), cluster.token.clone());
        tokio::spawn(async move {
            let (mut n, mut longest) = (0u64, Duration::ZERO);
            while !stop.load(SeqCst) {
                n += 1;
                let at = (0..3).map(|k| (n as usize + k) % 3).find(|at| *at != away.load(SeqCst)).unwrap();
                let url = format!("https://127.0.0.1:{}/api/v1/tenants/acme/nodes", ports[at][0]);
                let began = Instant::now();
                let sent = http.post(url).bearer_auth(&token).json(&node(n)).send().await;
                let answer = sent.unwrap_or_else(|error| panic!("write {n} through member {at}: {error:?}"));
                let status = answer.status();
                assert_eq!(status, 201, "write {n} through member {at}: {}", answer.text().await.unwrap());
                longest = longest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (n, longest)
        })
    };
    let roll = async |cluster: &mut Cluster, at: usize, flags: &[&str]| {
        away.store(at, SeqCst);
        // What is on its way through it ends.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.members[at].restart(flags).await;
        let ready = format!("http://127.0.0.1:{}/readyz", ports[at][2]);
        let end = Instant::now() + Duration::from_secs(60);
        while !plain.get(&ready).send().await.is_ok_and(|answer| answer.status() == 200) {
            assert!(Instant::now() < end, "member {at} does not get ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        away.store(usize::MAX, SeqCst);
        tokio::time::sleep(Duration::from_millis(1500)).await;
    };

    // Forth and, before the last one, back.
    let leader = cluster.leader().await;
    let (second, third) = ((leader + 1) % 3, (leader + 2) % 3);
    roll(&mut cluster, second, &NEW).await;
    roll(&mut cluster, leader, &NEW).await;
    assert_eq!(levels().await, [1, 1, 1], "one does not know it yet");
    roll(&mut cluster, second, &OLD).await;
    roll(&mut cluster, third, &NEW).await;
    assert_eq!(levels().await, [1, 1, 1], "one was put back");
    roll(&mut cluster, second, &NEW).await;
    let end = Instant::now() + Duration::from_secs(30);
    while levels().await != [2, 2, 2] {
        assert!(Instant::now() < end, "the level does not rise: {:?}", levels().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, SeqCst);
    let (writes, longest) = writer.await.unwrap();
    assert!(writes > 100, "{writes}");
    eprintln!(
        "a rolling upgrade, and a downgrade on the way: {writes} writes, none failed, the longest took {longest:?}"
    );

    let events = cluster.get(0, "/log/events?noun=system&limit=1000").await.expect(200).body;
    let raised =
        events["items"].as_array().unwrap().iter().filter(|event| event["system"]["featureLevelRaised"] != json!(null));
    assert_eq!(raised.map(|event| &event["system"]["featureLevelRaised"]["level"]).collect::<Vec<_>>(), [&json!(2)]);
    for at in 0..3 {
        let report = cluster.ask(at, Method::POST, "/log/verify", Some(json!({}))).await.unwrap().expect(200);
        assert_eq!(report.body["ok"], true, "{}", report.body);
    }

    // There is no way back now: an older version says so and changes nothing.
    cluster.members[third].terminate();
    assert!(cluster.members[third].ended().await.success());
    let (dir, at) = (cluster.members[third].dir.clone(), cluster.members[third].ports);
    let output = Member::command(&dir, at, None).args(OLD).stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("newer"), "{said}");
    cluster.members[third].again();
    cluster.post(third, "/tenants/acme/nodes", node(1_000_000)).await.expect(201);
}

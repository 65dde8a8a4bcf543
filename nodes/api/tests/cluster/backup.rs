//! A cluster is lost, all of it: one member comes back out of a backup and a copy of its keys, and machines find it.

use crate::common::{Cluster, Member, free_ports, keys_copy, roles, voters};
use crate::life::node;
use crate::presence::agents;
use cvlan_api::app::backup::check;
use reqwest::Method;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the running member sends.
pub async fn backup(cluster: &Cluster, at: usize, file: &Path) {
    let url = format!("https://127.0.0.1:{}/api/v1/cluster/backup", cluster.members[at].ports[0]);
    let answer = cluster.http.get(url).bearer_auth(&cluster.token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    std::fs::write(file, answer.bytes().await.unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cluster_comes_back_and_machines_find_it() {
    let mut cluster = Cluster::three().await;
    let [agent] = agents(&mut cluster, ["laptop"]).await;
    drop(agent.connect(&cluster, 0).await);
    for n in 0..10 {
        cluster.post(n as usize % 3, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    // With who the members were in its digest.
    cluster.post(0, "/log/checkpoint", json!({})).await.expect(200);
    cluster.get(1, "/tenants/acme/nodes/n9").await.expect(200);
    let (file, safe) = (cluster.folder("cvlan.cvbackup"), cluster.folder("safe"));
    backup(&cluster, 1, &file).await;
    keys_copy(&cluster.members[2].dir, &safe);
    let lost = cluster.post(0, "/tenants/acme/nodes", node(99)).await.expect(201);
    let report = check(&file, Vec::new()).unwrap();
    assert!(lost.checkpoint.starts_with(&report.epoch.to_string()));
    for member in &mut cluster.members {
        member.kill();
        std::fs::remove_dir_all(&member.dir).unwrap();
    }

    let (back, made) = (cluster.folder("back"), cluster.folder("made"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvlan-api"));
    let args = [("--from", &file), ("--keys", &safe), ("--data-dir", &back)];
    let done =
        command.arg("restore").args(args.iter().flat_map(|(f, p)| [f.as_ref(), p.as_os_str()])).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    assert!(text.contains("alone, in epoch"), "{text}");
    // It backs itself up from now on.
    let folder = made.display().to_string();
    let flags = ["--backup-dir", &folder, "--backup-every", "1", "--backup-keep", "2"];
    cluster.members[2] = Member::start_with(back, free_ports(), None, &flags);
    cluster.seen.clear();
    let alone = cluster.until_at(2..3, "it leads", |c| roles(c) == [("m3".into(), "leader".into())]).await;
    assert_eq!(voters(&alone), 1);
    for n in 0..10 {
        cluster.get(2, &format!("/tenants/acme/nodes/n{n}")).await.expect(200);
    }
    cluster.get(2, "/tenants/acme/nodes/n99").await.problem(404, "node_not_found");
    let verified = cluster.ask(2, Method::POST, "/log/verify", Some(json!({}))).await.unwrap().expect(200).body;
    assert_eq!(verified["ok"], true, "{verified}");
    // A machine of before, with its certificate and where it was: it gets the whole map.
    let mut stream = agent.connect(&cluster, 2).await;
    let map = stream.map().await;
    assert!(!map.checkpoint.starts_with(&report.epoch.to_string()) && map.peers.len() == 10, "{map:?}");

    for name in ["m4", "m5"] {
        let token = cluster.admit(2, name).await;
        let member = Member::start(cluster.folder(name), free_ports(), Some(&token));
        cluster.members.push(member);
    }
    cluster.until_at(2..3, "three vote", |c| voters(c) == 3).await;
    cluster.post(3, "/tenants/acme/nodes", node(100)).await.expect(201);

    // Two stay of those that it made, and each is whole, the newest with what came last.
    let end = Instant::now() + Duration::from_secs(60);
    let seq = cluster.seen.split_once('.').unwrap().1.parse::<u64>().unwrap();
    loop {
        let found = std::fs::read_dir(&made).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = found.filter(|path| path.extension().is_some_and(|e| e == "cvbackup")).collect();
        found.sort();
        let newest = found.last().and_then(|path| check(path, Vec::new()).ok());
        if found.len() == 2 && newest.is_some_and(|report| report.events >= seq) {
            break;
        }
        assert!(Instant::now() < end, "{found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

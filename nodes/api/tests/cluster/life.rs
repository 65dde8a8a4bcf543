//! Join, write, lose the leader, hand over, remove.

use crate::common::{Cluster, Member, free_ports, roles, voters};
use crate::rebuild::refused as told;
use base64::Engine as _;
use reqwest::Method;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const ALL: [usize; 3] = [0, 1, 2];

fn wg_key(n: u64) -> String {
    let mut key = [0x5a; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    base64::engine::general_purpose::STANDARD.encode(key)
}

pub async fn prod(cluster: &mut Cluster) {
    cluster.post(0, "/tenants", json!({"slug": "acme"})).await.expect(201);
    cluster.post(1, "/tenants/acme/cvlans", json!({"name": "prod", "ipv4Cidr": "10.0.0.0/12"})).await.expect(201);
}

pub fn node(n: u64) -> serde_json::Value {
    json!({"cvlan": "prod", "name": format!("n{n}"), "wgPublicKey": wg_key(n)})
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_takes_writes_and_the_leader_may_be_lost() {
    let mut cluster = Cluster::three().await;
    prod(&mut cluster).await;

    // Through each, and seen at each: lists, things by id, and the newest state on request.
    for n in 0..30 {
        let at = n as usize % 3;
        cluster.post(at, "/tenants/acme/nodes", node(n)).await.expect(201);
        let elsewhere = (at + 1 + n as usize % 2) % 3;
        cluster.get(elsewhere, &format!("/tenants/acme/nodes/n{n}")).await.expect(200);
        let list = cluster.get(elsewhere, &format!("/tenants/acme/nodes?q=n{n}&limit=1000")).await.expect(200);
        assert!(list.body["items"].as_array().unwrap().iter().any(|i| i["name"] == format!("n{n}")), "{}", list.body);
        let path = format!("/tenants/acme/nodes/n{n}?consistency=linearizable");
        cluster.ask((elsewhere + 1) % 3, Method::GET, &path, None).await.unwrap().expect(200);
    }
    for at in ALL {
        let (epoch, seq) = cluster.seen.split_once('.').unwrap();
        let beyond = format!("{epoch}.{}", seq.parse::<u64>().unwrap() + 1000);
        let get =
            async |path: &str, at_least: &str| cluster.ask_fresh(at, Method::GET, path, None, at_least).await.unwrap();
        get("/tenants", &beyond).await.problem(400, "checkpoint_beyond");
        get("/tenants", &format!("{}.1", "0".repeat(32))).await.problem(412, "epoch_other");
        get("/tenants?consistency=strong", "").await.problem(400, "query_invalid");
    }

    // A request that is sent again through another member has one effect, also once its thing has changed.
    let (replayed, made) = cluster.keyed(0, "/tenants/acme/nodes", "k", &node(90)).await;
    assert!(!replayed);
    let made = made.expect(201);
    let again = async |at: usize| {
        let (replayed, again) = cluster.keyed(at, "/tenants/acme/nodes", "k", &node(90)).await;
        assert_eq!((replayed, again.status), (true, 201), "through member {at}: {}", again.body);
        assert_eq!((&again.body, &again.checkpoint), (&made.body, &made.checkpoint), "through member {at}");
    };
    again(1).await;
    again(2).await;
    let (_, other) = cluster.keyed(1, "/tenants/acme/nodes", "k", &node(91)).await;
    other.problem(422, "idempotency_key_reused");
    let rename = json!({"name": "renamed"});
    cluster.ask(2, Method::PATCH, "/tenants/acme/nodes/n90", Some(rename)).await.unwrap().expect(200);
    again(1).await;

    // kill -9 of the leader: the others go on.
    let leader = cluster.leader().await;
    let others: Vec<usize> = ALL.into_iter().filter(|at| *at != leader).collect();
    cluster.members[leader].kill();
    let (killed, mut n) = (Instant::now(), 100);
    loop {
        n += 1;
        let at = others[n as usize % 2];
        if cluster.ask(at, Method::POST, "/tenants/acme/nodes", Some(node(n))).await.is_ok_and(|a| a.status == 201) {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(60), "no write is taken");
    }
    eprintln!("kill -9 of the leader: the next write was acknowledged after {:?}", killed.elapsed());
    let path = format!("/tenants/acme/nodes/n{n}?consistency=linearizable");
    for at in &others {
        cluster.ask(*at, Method::GET, &path, None).await.unwrap().expect(200);
    }

    for at in &others {
        let (replayed, again) = cluster.keyed(*at, "/tenants/acme/nodes", "k", &node(90)).await;
        assert_eq!((replayed, again.status, &again.body), (true, 201, &made.body));
    }

    // It comes back without a flag, as the member that it is, and has everything.
    cluster.members[leader].again();
    cluster.ask(leader, Method::GET, &path, None).await.unwrap().expect(200);
    cluster.until("three vote again", |c| voters(c) == 3).await;
    let reports = [
        cluster.post(0, "/log/verify", json!({})).await.expect(200).body,
        cluster.post(1, "/log/verify", json!({})).await.expect(200).body,
        cluster.post(2, "/log/verify", json!({})).await.expect(200).body,
    ];
    assert!(reports.iter().all(|r| r["ok"] == true), "{reports:?}");
    let roots: Vec<_> = reports.iter().map(|r| (&r["events"], &r["root"])).collect();
    assert!(roots.iter().all(|r| r == &roots[0]), "{roots:?}");
}

/// SIGTERM of the leader: it hands over, and no request through the other members fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_hands_over() {
    let mut cluster = Cluster::three().await;
    prod(&mut cluster).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = ALL.into_iter().filter(|at| *at != leader).collect();
    let (cluster, stop) = (Arc::new(tokio::sync::RwLock::new(cluster)), Arc::new(AtomicBool::new(false)));
    let writers = others.iter().map(|at| {
        let (cluster, stop, at) = (cluster.clone(), stop.clone(), *at);
        tokio::spawn(async move {
            let (mut n, mut longest) = (0, Duration::ZERO);
            while !stop.load(SeqCst) {
                n += 1;
                let (id, started) = (1_000_000 * (at as u64 + 1) + n, Instant::now());
                let cluster = cluster.read().await;
                let answer = cluster.ask(at, Method::POST, "/tenants/acme/nodes", Some(node(id))).await.unwrap();
                answer.expect(201);
                longest = longest.max(started.elapsed());
            }
            (n, longest)
        })
    });
    let writers: Vec<_> = writers.collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.read().await.members[leader].terminate();
    cluster
        .read()
        .await
        .until("another leads", |c| {
            let names = ["founder", "m2", "m3"];
            roles(c).iter().any(|(name, role)| role == "leader" && name != names[leader])
        })
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, SeqCst);
    for writer in writers {
        let (n, longest) = writer.await.unwrap();
        assert!(n > 10, "{n} writes");
        eprintln!(
            "SIGTERM of the leader: {n} writes through another member, none failed, the longest took {longest:?}"
        );
    }
    let mut cluster = cluster.write().await;
    assert!(cluster.members[leader].ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_removed_for_good() {
    let mut cluster = Cluster::three().await;
    prod(&mut cluster).await;
    cluster.ask(0, Method::DELETE, "/cluster/members/nobody", None).await.unwrap().problem(404, "member_not_found");
    let moved = cluster.post(1, "/cluster/transfer-leader", json!({"to": "founder"})).await.expect(200);
    assert_eq!((&moved.body["name"], &moved.body["role"]), (&json!("founder"), &json!("leader")));
    assert_eq!(cluster.leader().await, 0);

    // One is away: without another one too few would be left.
    cluster.members[2].kill();
    cluster
        .until_at(0..1, "m3 is silent", |c| {
            c["items"][2]["heardMs"].as_str().is_some_and(|ms| ms.len() > 3 && ms >= "3000")
        })
        .await;
    cluster.ask(0, Method::DELETE, "/cluster/members/m2", None).await.unwrap().problem(409, "quorum_would_be_lost");
    assert_eq!(roles(&cluster.get(1, "/cluster/members").await.body).len(), 3, "nothing was changed");
    cluster.members[2].again();

    // What is refused for another reason changes nothing either.
    let url = format!("https://127.0.0.1:{}/api/v1/cluster/members/m3", cluster.members[0].ports[0]);
    let request = cluster.http.delete(url).bearer_auth(&cluster.token).header("cvlan-reason", "x".repeat(257));
    assert_eq!(request.send().await.unwrap().status(), 400);
    assert_eq!(voters(&cluster.get(0, "/cluster/members").await.body), 3);

    // The one that leads may be removed; it says so and ends by itself.
    cluster.until_at(0..1, "m3 is heard", |c| c["items"][2]["heardMs"].as_str().is_some_and(|ms| ms.len() < 4)).await;
    cluster.ask(1, Method::DELETE, "/cluster/members/founder", None).await.unwrap().expect(204);
    assert!(cluster.members[0].ended().await.success());
    cluster.until("two are left", |c| roles(c).len() == 2 && roles(c).iter().any(|(_, r)| r == "leader")).await;
    for (at, n) in [(1, 1), (2, 2)] {
        cluster.post(at, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    let founder = &cluster.members[0];
    let again =
        Member::command(&founder.dir, founder.ports, None).stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success() && said.contains("removed from the cluster"), "{said}");

    // A new one takes its place, through whichever member.
    let token = cluster.admit(2, "m4").await;
    let m4 = Member::start(cluster.folder("m4"), free_ports(), Some(&token));
    cluster.members.push(m4);
    cluster.until("three vote", |c| voters(c) == 3).await;
    cluster.post(3, "/tenants/acme/nodes", node(3)).await.expect(201);
}

/// The door of the very member is as good as another one: of one that follows, and of one that leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_removed_through_its_own_door() {
    for leads in [false, true] {
        let mut cluster = Cluster::three().await;
        let to = if leads { "m2" } else { "founder" };
        cluster.post(0, "/cluster/transfer-leader", json!({ "to": to })).await.expect(200);
        cluster.until("it leads", |c| roles(c).contains(&(to.into(), "leader".into()))).await;
        cluster.ask(1, Method::DELETE, "/cluster/members/m2", None).await.unwrap().expect(204);
        assert!(cluster.members[1].ended().await.success());
        cluster.until("two are left", |c| roles(c).len() == 2 && voters(c) == 2).await;
        cluster.post(0, "/tenants", json!({"slug": "acme"})).await.expect(201);
        cluster.post(2, "/tenants", json!({"slug": "beta"})).await.expect(201);
    }
}

/// Whether it is ready, and why not.
async fn ready(cluster: &Cluster, at: usize) -> (u16, String) {
    let url = format!("http://127.0.0.1:{}/readyz", cluster.members[at].ports[2]);
    let answer = cluster.http.get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_is_not_ready_and_says_no_to_no_machine() {
    let mut cluster = Cluster::three().await;
    let discovered = |cluster: &Cluster, at: usize| {
        let url = format!("https://127.0.0.1:{}/client/discover?tenant=acme", cluster.members[at].ports[1]);
        let request = cluster.http.get(url).send();
        async move { request.await.unwrap().status().as_u16() }
    };
    let settled = async |cluster: &Cluster, at: usize, code: u16, why: &str| {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let (status, said) = ready(cluster, at).await;
            if status == code && said.contains(why) {
                return;
            }
            assert!(std::time::Instant::now() < end, "{status} {said}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    for at in ALL {
        settled(&cluster, at, 200, "ready").await;
        assert_eq!(discovered(&cluster, at).await, 404);
    }
    let leader = cluster.leader().await;
    let follower = ALL.into_iter().find(|at| *at != leader).unwrap();
    for at in ALL.into_iter().filter(|at| *at != follower) {
        cluster.members[at].kill();
    }
    settled(&cluster, follower, 503, "no leader").await;
    // The tenant may have been made since, for all it knows: a machine that is told "no" would not ask again.
    assert_eq!(discovered(&cluster, follower).await, 503);
    cluster.members[follower].kill();
    cluster.members[follower].again();
    settled(&cluster, follower, 503, "no leader").await;
    cluster.members[leader].again();
    settled(&cluster, leader, 200, "ready").await;
    settled(&cluster, follower, 200, "ready").await;

    // One that leads and hears nobody.
    let now = cluster.leader().await;
    let other = if now == leader { follower } else { leader };
    cluster.members[other].kill();
    settled(&cluster, now, 503, "no majority").await;
    let late = cluster.ask(now, Method::POST, "/tenants", Some(json!({"slug": "acme"}))).await.unwrap();
    assert_eq!(late.status, 503, "{}", late.body);
    let later = cluster.ask(now, Method::POST, "/tenants", Some(json!({"slug": "beta"}))).await.unwrap();
    later.problem(503, "no_leader");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_is_lost_for_good_and_one_goes_on_alone() {
    let mut cluster = Cluster::three().await;
    prod(&mut cluster).await;
    for n in 0..5 {
        cluster.post(n as usize % 3, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    for at in ALL {
        cluster.get(at, "/tenants/acme/nodes/n4").await.expect(200);
        cluster.members[at].kill();
    }
    let (dir, ports) = (cluster.members[1].dir.clone(), cluster.members[1].ports);
    let refused = |flags: &str| {
        let mut command = Member::command(&dir, ports, None);
        let out = command.args(flags.split(' ')).stderr(std::process::Stdio::piped()).output().unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let meant = refused("--force-new-cluster");
    let (before, epoch) = meant.split_once("--force-new-cluster=").unwrap();
    assert!(before.contains("the only one of a new cluster, for good") && before.contains("member 1 at"), "{meant}");
    let epoch = &epoch[..32];
    assert!(cluster.seen.starts_with(epoch));
    assert!(refused(&format!("--force-new-cluster={}", "0".repeat(32))).contains("of another log"));
    assert!(refused("--force-new-cluster=zz").contains("32 hex digits"));
    assert!(refused(&format!("--force-new-cluster={epoch} views rebuild")).contains("goes with no command"));

    // It has everything, says that it is alone, and takes writes; the epoch is another one.
    let flag = format!("--force-new-cluster={epoch}");
    cluster.members[1] = Member::start_with(dir.clone(), ports, None, &[&flag]);
    cluster.seen.clear();
    let alone = cluster.until_at(1..2, "it leads", |c| roles(c) == [("m2".into(), "leader".into())]).await;
    assert_eq!(voters(&alone), 1);
    cluster.post(1, "/tenants/acme/nodes", node(5)).await.expect(201);
    assert!(!cluster.seen.starts_with(epoch));
    for n in 0..6 {
        cluster.get(1, &format!("/tenants/acme/nodes/n{n}")).await.expect(200);
    }
    let audit = cluster.get(1, "/log/events?from=1").await;
    assert!(audit.status == 200, "{}", audit.body);

    // One of the old ones is not let in, and what it says is no news here.
    cluster.members[0].again();
    let page = cluster.get(1, "/cluster/members").await;
    assert_eq!(roles(&page.body).len(), 1);
    cluster.members[0].kill();
    told(&cluster.members[0].dir, &["rebuild", "--yes"], &["epoch_other", "went on without this member"]);

    for name in ["m4", "m5"] {
        let token = cluster.admit(1, name).await;
        let member = Member::start(cluster.folder(name), free_ports(), Some(&token));
        cluster.members.push(member);
    }
    cluster.until_at(1..2, "three vote", |c| voters(c) == 3).await;
    // With the flag left on it starts as ever.
    cluster.members[1].kill();
    cluster.members[1] = Member::start_with(dir, ports, None, &[&flag]);
    cluster.until_at(1..2, "all are there", |c| roles(c).iter().any(|(_, r)| r == "leader")).await;
    cluster.post(3, "/tenants/acme/nodes", node(6)).await.expect(201);
    cluster.get(4, "/tenants/acme/nodes/n0").await.expect(200);
    cluster.get(1, "/tenants/acme/nodes/n6").await.expect(200);
}

/// Connections that say nothing hold a place for five seconds; a member that comes back does not wait for all of them.
#[tokio::test(flavor = "multi_thread")]
async fn who_fills_the_members_door_from_one_address_keeps_no_member_out() {
    let mut cluster = Cluster::three().await;
    let leader = cluster.leader().await;
    let follower = ALL.into_iter().find(|at| *at != leader).unwrap();
    cluster.members[follower].kill();
    let mut idle = Vec::new();
    for at in ALL.into_iter().filter(|at| *at != follower) {
        let door = std::net::SocketAddr::from(([127, 0, 0, 1], cluster.members[at].ports[3]));
        for _ in 0..250 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
            idle.push(socket.connect(door).await.unwrap());
        }
    }
    cluster.members[follower].again();
    // What comes to it goes to the leader through that door.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(12);
    let came = async || {
        let answer = cluster.ask(follower, Method::POST, "/tenants", Some(json!({"slug": "acme"}))).await;
        // 409: the one before came too, and its answer did not.
        answer.is_ok_and(|answer| matches!(answer.status, 201 | 409))
    };
    while !came().await {
        assert!(std::time::Instant::now() < end, "it does not come in");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    drop(idle);
}

//! Who is online, as every member says it, while agents move and members are lost.

use crate::common::Cluster;
use crate::machine::{Machine, Sync};
use cvlan_proto::v1::sync_frame::Frame;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A machine that is a node of `acme/prod`.
pub struct Agent {
    machine: Machine,
    certificate: String,
    checkpoint: String,
}

impl Agent {
    pub async fn connect(&self, cluster: &Cluster, at: usize) -> Sync {
        let mut stream = self.machine.sync(&cluster.members[at], &self.certificate).await.unwrap();
        stream.hello(&self.checkpoint).await;
        stream
    }
}

pub async fn agents<const N: usize>(cluster: &mut Cluster, names: [&str; N]) -> [Agent; N] {
    cluster.post(0, "/tenants", json!({"slug": "acme"})).await.expect(201);
    cluster.post(1, "/tenants/acme/cvlans", json!({"name": "prod", "ipv4Cidr": "10.0.0.0/24"})).await.expect(201);
    let token = json!({"cvlan": "prod", "expiresInSeconds": "3600", "maxUses": 10});
    let token = cluster.post(2, "/tenants/acme/tokens", token).await.expect(201).body;
    let token = token["secret"].as_str().unwrap();
    cluster.get(0, "/tenants/acme").await.expect(200);
    let mut made = Vec::new();
    for name in names {
        let machine = Machine::new(name);
        let given = machine.register(&cluster.members[0], token).await;
        cluster.seen.clone_from(&given.checkpoint);
        made.push(Agent { machine, certificate: given.certificate, checkpoint: given.checkpoint });
    }
    for at in 0..cluster.members.len() {
        cluster.get(at, &format!("/tenants/acme/nodes/{}", names[N - 1])).await.expect(200);
    }
    made.try_into().unwrap_or_else(|_| unreachable!())
}

/// All that the log has, in order.
async fn transitions(cluster: &Cluster, at: usize) -> Vec<Value> {
    let events = cluster.get(at, "/log/events?noun=presence").await.expect(200).body;
    let of = |event: &Value| event["presence"]["changed"]["transitions"].as_array().unwrap().clone();
    events["items"].as_array().unwrap().iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stays_with_a_member_that_is_killed_is_offline_and_who_moved_is_not() {
    let mut cluster = Cluster::three_with(&["--presence-expiry", "3"]).await;
    let [stays, moves] = agents(&mut cluster, ["stays", "moves"]).await;
    let lost = cluster.leader().await;
    let to = (lost + 1) % 3;
    let (at_first, left) = (stays.connect(&cluster, lost).await, moves.connect(&cluster, lost).await);
    cluster.until_online(&["stays", "moves"], &[]).await;

    // It moves: the member that it leaves sees that late, and does not send it away.
    let _moved = moves.connect(&cluster, to).await;
    let asked = Instant::now();
    while transitions(&cluster, to).await.len() < 3 {
        assert!(asked.elapsed() < Duration::from_secs(20), "it has not moved");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(left);
    drop(at_first);
    cluster.until_online(&["moves"], &["stays"]).await;
    let all = transitions(&cluster, to).await;
    assert_eq!((all.len(), all.iter().filter(|t| t["online"] == false).count()), (4, 1), "{all:?}");

    // It is killed with one on it.
    let _with_it = stays.connect(&cluster, lost).await;
    cluster.until_online(&["stays", "moves"], &[]).await;
    cluster.members[lost].kill();
    cluster.until_online(&["moves"], &["stays"]).await;

    // Back, as the member that it was.
    cluster.members[lost].again();
    let _again = stays.connect(&cluster, lost).await;
    cluster.until_online(&["stays", "moves"], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_a_removal_end_sessions_at_once() {
    let mut cluster = Cluster::three().await;
    let [one, two] = agents(&mut cluster, ["one", "two"]).await;
    let leader = cluster.leader().await;
    let (killed, removed) = ((leader + 1) % 3, (leader + 2) % 3);
    let _streams = (one.connect(&cluster, killed).await, two.connect(&cluster, removed).await);
    cluster.until_online(&["one", "two"], &[]).await;

    // An hour before the others would say so, it says itself that what it had is over.
    cluster.members[killed].kill();
    cluster.members[killed].again();
    cluster.until_online(&["two"], &["one"]).await;
    let _back = one.connect(&cluster, killed).await;
    cluster.until_online(&["one", "two"], &[]).await;

    let name = ["founder", "m2", "m3"][removed];
    let path = format!("/cluster/members/{name}");
    cluster.ask(leader, reqwest::Method::DELETE, &path, None).await.unwrap().expect(204);
    assert!(cluster.members[removed].ended().await.success());
    cluster.until_online(&["one"], &["two"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_with_a_member_that_is_cut_off_is_sent_elsewhere_once() {
    let mut cluster = Cluster::three_with(&["--presence-expiry", "2"]).await;
    let [stays] = agents(&mut cluster, ["stays"]).await;
    let leader = cluster.leader().await;
    let left = (leader + 1) % 3;
    let mut before = stays.connect(&cluster, left).await;
    cluster.members[leader].kill();
    cluster.members[(leader + 2) % 3].kill();
    let redirect = loop {
        match before.next().await {
            Some(Frame::Redirect(redirect)) => break redirect,
            Some(Frame::Bye(_)) | None => panic!("it was not sent elsewhere"),
            Some(_) => {}
        }
    };
    assert_eq!(redirect.urls.len(), 2, "the others: {redirect:?}");

    // It finds nobody else, comes back, and is let be.
    let mut back = stays.connect(&cluster, left).await;
    let sent_away = async {
        loop {
            if let Some(Frame::Redirect(_) | Frame::Bye(_)) | None = back.next().await {
                return;
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(6), sent_away).await.is_err(), "who came since stays");
}

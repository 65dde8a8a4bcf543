//! A member that follows has none of the cluster's keys, and everything works through its doors all the same.

use crate::common::{Cluster, Member, free_ports, voters};
use crate::machine::{Door, Machine};
use reqwest::Method;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

/// What a voter has in keys/.
const KEYS: [&str; 2] = ["cluster", "ca.key"];

fn password(cluster: &Cluster) -> String {
    let line = cluster.members[0].lines.iter().find(|l| l.contains("superadmin")).unwrap();
    line.split_whitespace().last().unwrap().to_owned()
}

/// Status, code of the problem, Retry-After, body.
async fn ask(cluster: &Cluster, at: usize, path: &str, token: &str, body: Option<Value>) -> (u16, String, u64, Value) {
    let url = format!("https://127.0.0.1:{}/api/v1{path}", cluster.members[at].ports[0]);
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let mut request = cluster.http.request(method, url).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    let after = response.headers().get("retry-after").map_or(0, |v| v.to_str().unwrap().parse().unwrap());
    let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    (status, body["code"].as_str().unwrap_or_default().to_owned(), after, body)
}

async fn login(cluster: &Cluster, at: usize, body: Value) -> (u16, Value) {
    let (status, _, _, body) = ask(cluster, at, "/auth/login", "", Some(body)).await;
    (status, body)
}

fn text(body: &Value, key: &str) -> String {
    body[key].as_str().unwrap().to_owned()
}

/// Every file below a folder.
fn files(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, into) } else { into.push(path) }
    }
}

/// Nothing of the folder has the cluster's keys in the clear.
fn has_none(founder: &Path, folder: &Path) {
    let read = |name: &str| std::fs::read_to_string(founder.join("keys").join(name)).unwrap();
    let cluster: Value = serde_json::from_str(&read("cluster")).unwrap();
    let secrets = [read("ca.key").lines().nth(1).unwrap().to_owned(), text(&cluster, "key")];
    let mut all = Vec::new();
    files(folder, &mut all);
    assert!(all.iter().any(|path| path.ends_with("keys/member.key")));
    for path in all {
        let bytes = std::fs::read(&path).unwrap_or_default();
        for secret in &secrets {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{}", path.display());
        }
    }
    assert!(KEYS.iter().all(|name| !folder.join("keys").join(name).exists()));
}

/// A founder and one that follows: two that vote would survive nothing more.
async fn two() -> Cluster {
    let mut cluster = Cluster::founded(&[]).await;
    let token = cluster.admit(0, "m2").await;
    let m2 = Member::start(cluster.folder("m2"), free_ports(), Some(&token));
    cluster.members.push(m2);
    cluster
}

/// Login, tenant, CVLAN, enrolment token, machine: all through one member.
async fn everything(cluster: &mut Cluster, at: usize, admin: &Value, slug: &str) {
    let (status, session) = login(cluster, at, admin.clone()).await;
    assert_eq!(status, 200, "{session}");
    cluster.token = text(&session, "accessToken");
    cluster.post(at, "/tenants", json!({"slug": slug})).await.expect(201);
    let cvlans = format!("/tenants/{slug}/cvlans");
    cluster.post(at, &cvlans, json!({"name": "prod", "ipv4Cidr": "10.0.0.0/24"})).await.expect(201);
    let wanted = json!({"cvlan": "prod", "expiresInSeconds": "3600", "maxUses": 10});
    let made = cluster.post(at, &format!("/tenants/{slug}/tokens"), wanted).await.expect(201).body;
    let machine = Machine::new(&format!("machine-{slug}"));
    let given = machine.register(&cluster.members[at], made["secret"].as_str().unwrap()).await;
    cluster.seen.clone_from(&given.checkpoint);
    let mut stream = machine.sync(&cluster.members[at], &given.certificate).await.unwrap();
    stream.hello("").await;
    assert!(stream.map().await.self_.is_some());
    let nodes = cluster.get(at, &format!("/tenants/{slug}/nodes")).await.expect(200).body;
    assert_eq!(nodes["items"].as_array().unwrap().len(), 1, "{nodes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_follows_has_no_keys_and_answers_everything() {
    let mut cluster = two().await;
    let (founder, folder) = (cluster.members[0].dir.clone(), cluster.members[1].dir.clone());
    let admin = json!({"name": "admin", "password": password(&cluster)});
    everything(&mut cluster, 1, &admin, "acme").await;
    assert_eq!(login(&cluster, 1, json!({"name": "admin", "password": "wrong-password"})).await.0, 401);

    // Once only, through whichever member.
    let cvlan = |name: &str| json!({"name": name});
    for (first, then) in [(1, 0), (0, 1)] {
        let (key, path) = (format!("k{first}"), "/tenants/acme/cvlans");
        let body = cvlan(&key);
        let (replayed, made) = cluster.keyed(first, path, &key, &body).await;
        let made = made.expect(201);
        let (again, same) = cluster.keyed(then, path, &key, &body).await;
        assert_eq!((replayed, again, same.status, &same.body), (false, true, 201, &made.body));
        cluster.keyed(then, path, &key, &cvlan("other")).await.1.problem(422, "idempotency_key_reused");
    }
    // What is about the member itself takes no keys, whatever the caller sends along.
    cluster.keyed(1, "/log/verify", "verify", &json!({})).await.1.expect(200);

    // Nobody may more than elsewhere.
    cluster.post(1, "/tenants", json!({"slug": "other"})).await.expect(201);
    let people = json!({"name": "vera", "role": "readonly", "password": "a-long-password"});
    cluster.post(1, "/tenants/acme/users", people).await.expect(201);
    let vera = json!({"tenant": "acme", "name": "vera", "password": "a-long-password"});
    let vera = text(&login(&cluster, 1, vera).await.1, "accessToken");
    for at in [0, 1] {
        let cvlans = |tenant: &str| format!("/tenants/{tenant}/cvlans");
        assert_eq!(ask(&cluster, at, &cvlans("acme"), &vera, None).await.0, 200);
        let (forbidden, code, ..) = ask(&cluster, at, &cvlans("acme"), &vera, Some(cvlan("x"))).await;
        assert_eq!((forbidden, code.as_str()), (403, "forbidden"), "through {at}");
        let (hidden, ..) = ask(&cluster, at, &cvlans("other"), &vera, Some(cvlan("x"))).await;
        assert_eq!(hidden, 404, "through {at}");
        assert_eq!(ask(&cluster, at, &cvlans("acme"), "", Some(cvlan("x"))).await.1, "session_missing");
        assert_eq!(ask(&cluster, at, &cvlans("acme"), "a.b.c", Some(cvlan("x"))).await.1, "session_invalid");
        let forged = format!("{}x", vera.rsplit_once('.').unwrap().0) + ".AAAA";
        assert_eq!(ask(&cluster, at, &cvlans("acme"), &forged, None).await.1, "session_invalid");
    }

    // A session that is ended here is over here, and is not prolonged.
    let session = login(&cluster, 1, admin.clone()).await.1;
    let (access, refresh) = (text(&session, "accessToken"), json!({"refreshToken": text(&session, "refreshToken")}));
    let newer = ask(&cluster, 1, "/auth/refresh", "", Some(refresh.clone())).await;
    assert_eq!((newer.0, ask(&cluster, 1, "/me", &access, None).await.0), (200, 200), "{}", newer.3);
    assert_eq!(ask(&cluster, 1, "/auth/logout", "", Some(refresh.clone())).await.0, 204);
    assert_eq!(ask(&cluster, 1, "/me", &access, None).await.1, "session_invalid");
    assert_eq!(ask(&cluster, 1, "/auth/refresh", "", Some(refresh)).await.1, "session_invalid");

    // It sends a backup like the others: what it does not have of the keys is not in one.
    let file = cluster.folder("of-a-learner.cvbackup");
    crate::backup::backup(&cluster, 1, &file).await;
    let report = cvlan_api::app::backup::check(&file, Vec::new()).unwrap();
    let (epoch, seq) = cluster.seen.split_once('.').unwrap();
    assert!(report.events >= seq.parse().unwrap() && epoch == report.epoch.to_string(), "{report:?}");

    // Without a voter: what was seen is answered, the rest says what it lacks, also after a start.
    let unseen = text(&login(&cluster, 0, admin.clone()).await.1, "accessToken");
    has_none(&founder, &folder);
    cluster.members[0].kill();
    let seen = cluster.token.clone();
    assert_eq!(ask(&cluster, 1, "/tenants/acme/nodes", &seen, None).await.0, 200);
    for (path, token, body) in [
        ("/tenants/acme/nodes", &unseen, None),
        ("/tenants/acme/cvlans", &seen, Some(cvlan("late"))),
        ("/auth/login", &String::new(), Some(admin.clone())),
    ] {
        let (status, code, after, body) = ask(&cluster, 1, path, token, body).await;
        assert_eq!((status, code.as_str()), (503, "voter_unreachable"), "{path}: {body}");
        assert!(after >= 1, "{path}");
    }
    let door = format!("https://{}/client/register", cluster.members[1].node_address());
    let http = crate::machine::http_client(&cluster.members[1].ca_pem());
    let refused = http.post(door).json(&json!({})).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    cluster.members[1].kill();
    // Alone it could open nothing of what the log has sealed.
    let mut alone = Member::command(&folder, cluster.members[1].ports, None);
    let out = alone.arg("--force-new-cluster").stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("does not have the cluster's keys"), "{said}");
    cluster.members[1].again();
    assert_eq!(ask(&cluster, 1, "/me", &unseen, None).await.1, "voter_unreachable");
    cluster.members[0].again();
    assert_eq!(ask(&cluster, 1, "/me", &unseen, None).await.0, 200);

    // Once it votes it has them, and needs nobody.
    let token = cluster.admit(1, "m3").await;
    let m3 = Member::start(cluster.folder("m3"), free_ports(), Some(&token));
    cluster.members.push(m3);
    cluster.until("three vote", |c| voters(c) == 3).await;
    for name in KEYS {
        let mode = std::fs::metadata(folder.join("keys").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    cluster.members[0].kill();
    cluster.until_at(1..3, "another leads", |c| crate::common::roles(c)[1..].iter().any(|(_, r)| r == "leader")).await;
    everything(&mut cluster, 1, &admin, "after").await;
    everything(&mut cluster, 2, &admin, "last").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_votes_before_it_has_the_keys() {
    let mut cluster = two().await;
    // Where the file would be written, something is in its way.
    let blocked = cluster.members[1].dir.join("keys/.cluster.new");
    std::fs::create_dir(&blocked).unwrap();
    cluster
        .until_at(0..1, "m2 follows", |c| {
            let ready = c["items"][1]["behind"] == "0" && c["items"][1].get("heardMs").is_some();
            ready && crate::common::roles(c).iter().any(|(name, r)| name == "m2" && r == "learner")
        })
        .await;
    let promoted = cluster.post(1, "/cluster/members/m2/promote", json!({})).await;
    promoted.problem(503, "keys_not_handed_over");
    let token = cluster.admit(0, "m3").await;
    let m3 = Member::start(cluster.folder("m3"), free_ports(), Some(&token));
    cluster.members.push(m3);
    let waits = |c: &Value| c["items"][1]["waits"].as_str().is_some_and(|why| why.contains("keys"));
    let list = cluster.until_at(0..1, "it says why", waits).await;
    assert_eq!(voters(&list), 1, "{list}");
    std::fs::remove_dir(&blocked).unwrap();
    let list = cluster.until("three vote", |c| voters(c) == 3).await;
    assert_eq!(list["items"][1]["waits"].as_str().unwrap_or_default(), "");
}

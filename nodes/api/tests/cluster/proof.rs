//! What the voters sign together, and what an implementation that is not ours says of it.

use crate::common::{Cluster, Member, free_ports};
use crate::life::{node, prod};
use reqwest::Method;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

async fn proof(cluster: &Cluster, at: usize, query: &str) -> Value {
    cluster.get(at, &format!("/log/proof{query}")).await.expect(200).body
}

fn signers(proof: &Value) -> usize {
    proof["signers"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_signs_and_each_only_what_its_own_log_says() {
    let mut cluster = Cluster::three().await;
    prod(&mut cluster).await;
    for n in 0..40 {
        cluster.post(n as usize % 3, "/tenants/acme/nodes", node(n)).await.expect(201);
    }
    // More than a tile.
    for n in 0..220 {
        cluster.post(n % 3, "/tenants", json!({"slug": format!("t{n}")})).await.expect(201);
    }
    // A key is told by its member, a moment after it is there.
    let end = Instant::now() + Duration::from_secs(30);
    let keys = loop {
        let keys = cluster.get(0, "/log/keys").await.expect(200).body;
        if keys["items"].as_array().unwrap().iter().filter(|key| key["voter"] == true).count() == 3 {
            break keys;
        }
        assert!(Instant::now() < end, "{keys}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let size: u64 = cluster.seen.split_once('.').unwrap().1.parse().unwrap();
    // Asked of any, all three sign the same.
    for at in 0..3 {
        let proof = proof(&cluster, at, &format!("?size={size}&seq=7&since=9")).await;
        assert_eq!((signers(&proof), proof["voters"].as_u64()), (3, Some(3)), "{proof}");
    }
    let cases = json!([
        {"proof": proof(&cluster, 1, &format!("?size={size}&seq=1&since=1")).await},
        {"proof": proof(&cluster, 2, &format!("?size={size}&seq={size}&since={size}")).await},
        {"proof": proof(&cluster, 0, &format!("?size={}&seq=5&since=16", size - 3)).await},
        {"proof": proof(&cluster, 0, "?size=17&seq=17&since=16").await},
        {"proof": proof(&cluster, 0, "?size=1&seq=1").await},
    ]);
    go_says(
        &json!({"keys": keys["items"], "cases": cases, "size": size.to_string(), "tiles": tiles(&cluster, size).await}),
    );
    let checkpoint = raw(&cluster, 2, "checkpoint").await.unwrap();
    assert!(String::from_utf8(checkpoint).unwrap().lines().filter(|line| line.starts_with('—')).count() >= 2);
    for beyond in ["0/x001/000", "0/000.p/256", "1/000", "0/0", "7/000.p/1", "entries/000", "0/000.p/0"] {
        assert_eq!(raw(&cluster, 1, &format!("tile/{beyond}")).await, Err(404), "{beyond}");
    }

    // One that does not answer: two are enough. Then one alone, which says so.
    let leader = cluster.leader().await;
    cluster.members[(leader + 1) % 3].kill();
    let made = cluster.post(leader, "/log/checkpoint", json!({})).await.expect(200).body;
    let seq = made["seq"].as_str().unwrap().parse::<u64>().unwrap();
    let two = proof(&cluster, leader, &format!("?size={seq}")).await;
    assert_eq!(signers(&two), 2, "{two}");
    let notes = cluster.members[leader].dir.join("notes");
    let kept = std::fs::read_to_string(notes.join(format!("{seq:020}.note"))).unwrap();
    assert_eq!(kept, two["note"].as_str().unwrap());
    let list = cluster.get(leader, "/log/checkpoints").await.expect(200).body;
    assert_eq!(list["items"][0]["note"].as_str(), Some(kept.as_str()), "{list}");
    // Notes of checkpoints alone are kept, whatever is asked for.
    assert!(!notes.join(format!("{size:020}.note")).exists());
    cluster.members[(leader + 2) % 3].kill();
    let one = proof(&cluster, leader, &format!("?size={}", size - 2)).await;
    assert_eq!((signers(&one), one["voters"].as_u64()), (1, Some(3)), "{one}");
    // What a majority has signed is still there.
    let all = proof(&cluster, leader, &format!("?size={seq}")).await;
    assert_eq!(signers(&all), 2, "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_vote_asks_those_who_do() {
    let mut cluster = Cluster::founded(&[]).await;
    let token = cluster.admit(0, "m2").await;
    cluster.members.push(Member::start(cluster.folder("m2"), free_ports(), Some(&token)));
    prod(&mut cluster).await;
    let proof = proof(&cluster, 1, "?seq=3").await;
    let signer = proof["signers"][0].as_str().unwrap().to_owned();
    assert_eq!((signers(&proof), signer.rsplit('/').next()), (1, Some("1")), "{proof}");
    let keys = cluster.get(1, "/log/keys").await.expect(200).body;
    let votes = |id: &str| {
        keys["items"].as_array().unwrap().iter().find(|key| key["memberId"] == id).map(|k| k["voter"] == true)
    };
    assert_eq!(votes("1"), Some(true), "{keys}");
    // An export from one that follows is signed by the one that votes.
    let export = cluster.http.get(format!("https://127.0.0.1:{}/api/v1/log/export", cluster.members[1].ports[0]));
    let text = export.bearer_auth(&cluster.token).send().await.unwrap().text().await.unwrap();
    assert!(text.lines().next().unwrap().contains(&format!("— {signer} ")), "{text}");
    assert!(text.lines().last().unwrap().contains("\"end\""));
    let none = cluster.ask(1, Method::GET, "/log/proof?size=0", None).await.unwrap();
    none.problem(400, "seq_beyond");
}

/// What lies there, as it is, or the status.
async fn raw(cluster: &Cluster, at: usize, path: &str) -> Result<Vec<u8>, u16> {
    let url = format!("https://127.0.0.1:{}/api/v1/log/{path}", cluster.members[at].ports[0]);
    let request = cluster.http.get(url).bearer_auth(&cluster.token).header("cvlan-checkpoint", &cluster.seen);
    let answer = request.send().await.unwrap();
    match answer.status().as_u16() {
        200 => Ok(answer.bytes().await.unwrap().to_vec()),
        status => Err(status),
    }
}

/// Every tile of the tree of so many leaves, from whichever member.
async fn tiles(cluster: &Cluster, size: u64) -> Value {
    let mut all = serde_json::Map::new();
    for level in (0..8).take_while(|level| size >> (8 * level) > 0) {
        let hashes = size >> (8 * level);
        let full = (0..hashes / 256).map(|number| format!("{level}/{number:03}"));
        let part = (!hashes.is_multiple_of(256)).then(|| format!("{level}/{:03}.p/{}", hashes / 256, hashes % 256));
        for name in full.chain(part) {
            let tile = raw(cluster, all.len() % 3, &format!("tile/{name}")).await.unwrap();
            all.insert(name, hex::encode(tile).into());
        }
    }
    assert_eq!(all.len(), 3, "of {size} leaves; 257 to 512 make two, and one above them");
    all.into()
}

/// `golang.org/x/mod` checks every note, inclusion and consistency.
fn go_says(given: &Value) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/go");
    let go = std::env::var("GO_BIN").unwrap_or_else(|_| "go".to_owned());
    if Command::new(&go).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: there is no Go (GO_BIN) to check notes and proofs with: apt install golang-go");
        return;
    }
    let run = Command::new(go)
        .args(["run", "."])
        .current_dir(folder)
        .env("GOFLAGS", "-mod=readonly")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut run = run.unwrap();
    run.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let said = run.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(said.status.success(), "{}{}", text(&said.stdout), text(&said.stderr));
    assert_eq!(
        text(&said.stdout).lines().last(),
        Some("ok: 5 notes, 5 inclusions, 4 consistencies, 16 from 3 tiles; 17 altered ones refused")
    );
}

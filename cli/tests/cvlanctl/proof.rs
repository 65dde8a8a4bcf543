//! The record as a file: exported, checked without a controller, and what was done to it is named.

use crate::common::{Controller, Shell};
use serde_json::{Value, json};
use std::path::PathBuf;

struct Place {
    shell: Shell,
    _controller: Controller,
}

impl Place {
    /// Two tenants with a few nodes each, the voters' keys in a file, a note held from half-way.
    fn new() -> Self {
        let controller = Controller::start();
        let shell = Shell::admin(&controller);
        let place = Self { shell, _controller: controller };
        for tenant in ["acme", "other"] {
            place.run(&format!("tenant create {tenant}"));
            place.run(&format!("-t {tenant} cvlan create office"));
        }
        place.run("log checkpoint");
        place.write("voters.keys", &place.run("log keys -o name"));
        place.write("held.note", &place.run("log note"));
        for n in 0..20 {
            let tenant = if n % 3 == 0 { "other" } else { "acme" };
            place.run(&format!("-t {tenant} token create --cvlan office --expires 24h --max-uses {}", n + 1));
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shell.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Words split at spaces; @NAME is a file.
    fn args(&self, line: &str) -> Vec<String> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        };
        line.split_whitespace().map(word).collect()
    }

    #[track_caller]
    fn run(&self, line: &str) -> String {
        let args = self.args(line);
        self.shell.args(&args.iter().map(String::as_str).collect::<Vec<_>>()).ok().out
    }

    #[track_caller]
    fn fails(&self, line: &str, words: &str) {
        let args = self.args(line);
        self.shell.args(&args.iter().map(String::as_str).collect::<Vec<_>>()).fails(1, words);
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn an_export_is_checked_offline_and_what_was_done_to_it_is_named() {
    let place = Place::new();
    place.run("log export @all.ndjson");
    place.run("log export --form binary @all.cvx");
    let last: u64 = place.run("log note").lines().nth(1).unwrap().parse().unwrap();
    let old: u64 = place.read("held.note").lines().nth(1).unwrap().parse().unwrap();
    assert!(last > old);
    place.run(&format!("log export --from {last} @late.ndjson"));
    place.run(&format!("-t acme log export --since {old} @acme.ndjson"));
    place.run(&format!("-t acme log export --since {old} --form binary @acme.cvx"));

    let stats: Value = serde_json::from_str(&place.run("log stats -o json")).unwrap();
    assert_eq!((stats["events"].as_str(), stats["firstSeq"].as_str()), (Some(last.to_string().as_str()), Some("1")));
    let sheet = place.run("log stats");
    let said = |name: &str, value: &str| sheet.lines().any(|l| l.starts_with(name) && l.contains(value));
    assert!(said("events", &last.to_string()) && said("first event", "1, ") && said("tree", "leaves, root"), "{sheet}");

    for file in ["all.ndjson", "all.cvx", "acme.ndjson", "acme.cvx"] {
        let report = place.run(&format!("log verify @{file} --keys @voters.keys --held @held.note -o json"));
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!((report["ok"].as_bool(), report["held"].as_str()), (Some(true), Some("1")), "{report}");
        assert_eq!(report["signers"].as_array().unwrap().len(), 1);
        let hidden = report["hidden"].as_str().unwrap() != "0";
        assert_eq!(hidden, file.starts_with("acme"), "{report}");
    }
    place.fails("log verify @late.ndjson", &format!("say so with --from {last}"));
    let sheet = place.run(&format!("log verify @late.ndjson --from {last}"));
    assert!(
        sheet.contains(&format!("1 shown, {} hidden", last - 1)) && sheet.contains("name the voters' keys"),
        "{sheet}"
    );
    place.fails(&format!("log verify @late.ndjson --from {last} --held @held.note"), "--since");

    // Nobody's secret is in it, and another tenant's events are not in acme's.
    let all = place.lines("all.ndjson");
    let redacted = all.iter().filter(|line| line["event"]["redacted"] == true).count();
    assert!(redacted >= 3, "the bootstrap, two tenants' keys: {redacted}");
    assert!(!place.read("all.ndjson").contains("$argon2"));
    let events = |name: &str| -> Vec<Value> {
        let lines = place.lines(name).into_iter();
        lines.filter_map(|line| line["event"].get("decoded").cloned()).collect()
    };
    let tenants: std::collections::BTreeSet<String> =
        events("acme.ndjson").iter().map(|event| event["tenantId"].as_str().unwrap().to_owned()).collect();
    assert_eq!(tenants.len(), 1);
    assert!(events("all.ndjson").len() > events("acme.ndjson").len() + 5);

    // As someone does who has the file alone.
    let verify = |lines: &[Value], words: &str| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        place.write("bad.ndjson", &text);
        place.fails("log verify @bad.ndjson --keys @voters.keys", words);
    };
    let mut bad = all.clone();
    bad[12]["event"]["decoded"]["reason"] = json!("another");
    verify(&bad, "record 13, event 12: it was altered");
    bad.clone_from(&all);
    bad[12]["event"]["redacted"] = json!(true);
    verify(&bad, "has no secret");
    bad.clone_from(&all);
    bad.remove(12);
    verify(&bad, "event 12 is missing");
    bad.clone_from(&all);
    bad.swap(12, 14);
    verify(&bad, "events 12 to 13 are missing");
    bad.clone_from(&all);
    bad.truncate(12);
    verify(&bad, "it was cut off");
    place.write("cut.ndjson", &place.read("all.ndjson")[..2000]);
    place.fails("log verify @cut.ndjson", "cut off");
    let mut bytes = std::fs::read(place.path("all.cvx")).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(place.path("bad.cvx"), bytes).unwrap();
    place.fails("log verify @bad.cvx", "its checksum is wrong");
    place.fails("log verify @held.note", "does not begin with CVLANEXP");
    place.fails("log verify @all.ndjson --keys @held.note", "is no verifier key");
    place.fails("log verify @all.ndjson --held @voters.keys", "this is no signed note");
    place.fails("log verify @nothing", "No such file");

    // The key of somebody else; a note of another history.
    let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    place.write("others.keys", key);
    place.fails("log verify @all.ndjson --keys @others.keys", "no majority");
    place.write("two.keys", &format!("# both\n{key}\n{}", place.read("voters.keys")));
    place.fails("log verify @all.ndjson --keys @two.keys", "no majority");
    let root = place.read("held.note").lines().nth(2).unwrap().to_owned();
    let other = place.read("held.note").replace(&root, &format!("A{}", &root[1..]));
    place.write("other.note", &other);
    place.fails("log verify @all.ndjson --held @other.note", "history was rewritten");
    place.fails("log verify --held @other.note", "history was rewritten");
    place.write("later.note", &place.read("held.note").replacen(&format!("\n{old}\n"), "\n99999\n", 1));
    place.fails("log verify @all.ndjson --held @later.note", "the end was cut off");
    place.fails("log verify --held @later.note", "its end was cut off");
}

#[test]
fn the_running_log_is_proven_against_what_was_held() {
    let place = Place::new();
    let sheet = place.run("log verify --keys @voters.keys --held @held.note");
    assert!(sheet.contains("signed by   cvlan/") && sheet.contains("continues   event "), "{sheet}");
    let sheet = place.run("log proof 3 --keys @voters.keys --held @held.note");
    assert!(sheet.contains("ok: event 3 is in the log of ") && sheet.contains("signed by"), "{sheet}");
    let proof: Value = serde_json::from_str(&place.run("log proof 3 --size 5 -o json")).unwrap();
    assert_eq!((proof["size"].as_str(), proof["inclusion"].as_array().unwrap().len()), (Some("5"), 3));
    place.fails("log proof 3 --size 2", "seq_beyond");
    place.fails("log proof 99999", "seq_beyond");
    place.fails("log note 99999", "seq_beyond");
    place.fails("log export --from 99999 @x", "seq_beyond");
    place.fails("-t nobody log export @x", "tenant_not_found");
    place.fails("log export @no/such/folder", "No such file");
    let table = place.run("log keys");
    assert!(table.contains("founder") && table.contains("true"), "{table}");
    // The checkpoint that was made is signed by and by, and kept.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !place.run("log checkpoints -o json").contains("\\u2014 cvlan/")
        && !place.run("log checkpoints -o json").contains("— cvlan/")
    {
        assert!(std::time::Instant::now() < end, "no checkpoint is signed");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

//! What happened: pages, live, and of one thing.

use crate::common::{Controller, Shell, wg_key};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

fn office(controller: &Controller) -> Shell {
    let shell = Shell::admin(controller);
    for line in ["tenant create acme", "context tenant acme", "cvlan create office --ipv4 10.0.0.0/24"] {
        shell.run(line).ok();
    }
    shell
}

fn node(shell: &Shell, name: &str, key: u8) {
    shell.args(&["node", "create", name, "--cvlan", "office", "--wg-public-key", &wg_key(key)]).ok();
}

#[test]
fn events_are_sentences() {
    let controller = Controller::start();
    let shell = office(&controller);
    shell.run("tenant create other").ok();
    node(&shell, "web-1", 1);
    shell.args(&["node", "rename", "web-1", "web-2", "--reason", "moved to the hall; Büro 100 %"]).ok();
    shell.run("node disable web-2").ok();
    shell.run("node delete web-2 --yes").ok();

    let what = shell.run("events --columns what,reason --no-headers").ok().out;
    let lines: Vec<_> = what.lines().map(str::trim_end).collect();
    assert_eq!(lines[lines.len() - 4].split("  ").next().unwrap(), "node web-1 was added to office as 10.0.0.2");
    assert!(
        lines[lines.len() - 3].starts_with("node web-1 renamed to web-2  ")
            && lines[lines.len() - 3].ends_with("moved to the hall; Büro 100 %"),
        "{what}"
    );
    assert!(lines[lines.len() - 2].starts_with("node web-2 disabled"), "{what}");
    assert!(lines[lines.len() - 1].starts_with("node web-2 deleted from office"), "{what}");

    // Names from before the first event shown are looked up, as they were then.
    let last = shell.run("events --limit 2 --columns what --no-headers").ok().out;
    assert_eq!(last, "node web-2 disabled\nnode web-2 deleted from office\n");
    let renamed = shell.run("events --from 9 --limit 1 --columns seq,tenant,what --no-headers").ok().out;
    assert_eq!(renamed, "9  acme  node web-1 renamed to web-2\n");

    // -t narrows, the default tenant does not.
    assert!(what.contains("tenant other created"));
    let acme = shell.run("-t acme events --from 1 -o json").json();
    let tenants: Vec<_> = acme["items"].as_array().unwrap().iter().map(|e| e["tenantId"].clone()).collect();
    assert!(tenants.len() == 6 && tenants.iter().all(|t| *t == tenants[0]), "{tenants:?}");
}

#[test]
fn a_thing_has_a_history_even_when_it_is_gone() {
    let controller = Controller::start();
    let shell = office(&controller);
    node(&shell, "c", 1);
    node(&shell, "cam-1", 2);
    shell.run("node delete c --yes").ok();

    let of_c = "node c was added to office as 10.0.0.2\nnode c deleted from office\n";
    let history = |line: &str| shell.run(&format!("history {line} --columns what --no-headers"));
    // Gone, named as it was; "cam-1" is the only one there is that starts so, but c is c.
    let said = history("node c");
    let live = "node cam-1 was added to office as 10.0.0.3\n";
    assert_eq!(said.ok().out, of_c);
    assert_eq!(history("node cam").ok().out, live);
    history("node nope").fails(1, "(node_not_found)");
    assert_eq!(history("cvlan office").ok().out, "CVLAN office created with 10.0.0.0/24\n");
    assert_eq!(history("tenant acme").ok().out, "tenant acme created\n");
    assert_eq!(history("user admin --global").ok().out, "user admin created as superadmin\n");

    // A second thing of the same name that is gone as well: never guessed.
    node(&shell, "c", 3);
    shell.run("node delete c --yes").ok();
    let said = history("node c").fails(1, "2 nodes are or were once called \"c\": ");
    let id = said.err.split("\"c\": ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    assert_eq!(history(&format!("node {id}")).ok().out, of_c);
}

struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(shell: &Shell, args: &[&str]) -> Self {
        let mut child = shell.command(&[&["events", "--follow"], args].concat()).spawn().unwrap();
        let (tx, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tx.send(line)));
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(30)).expect("a line in time")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_follower_misses_nothing_while_the_controller_dies() {
    let mut controller = Controller::start();
    let shell = office(&controller);
    let live = Follower::start(&shell, &["--from", "6", "-o", "json"]);
    let seq =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(seq(&live.line()), 6, "from where it was asked");
    node(&shell, "a", 1);
    assert_eq!(seq(&live.line()), 7);
    controller.kill();
    shell.run("node list").fails(1, "(unreachable)");
    controller.again();
    node(&shell, "b", 2);
    node(&shell, "c", 3);
    assert_eq!([seq(&live.line()), seq(&live.line())], [8, 9], "none left out, none twice");
    drop(live);

    let all = shell.run("events --columns seq,what --no-headers").ok().out;
    let from = all.lines().find(|line| line.contains("node b was added")).unwrap().split_whitespace().next().unwrap();
    let mut live = Follower::start(&shell, &["--from", from, "--limit", "2", "--columns", "seq,what"]);
    assert_eq!(live.line().split_whitespace().collect::<Vec<_>>(), ["SEQ", "WHAT"]);
    assert!(live.line().ends_with("node b was added to office as 10.0.0.3"));
    assert!(live.line().ends_with("node c was added to office as 10.0.0.4"));
    assert!(live.child.wait().unwrap().success(), "--limit ends it");
}

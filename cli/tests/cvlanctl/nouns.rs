//! Every noun, every verb, every form of output.

use crate::common::{Controller, Shell, cells, wg_key};
use serde_json::json;

#[test]
fn an_operator_walks_through_everything() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    tenants_and_networks(&shell);
    tokens(&shell);
    nodes(&shell);
    targets(&shell);
    users(&shell);
    the_log(&shell);
    the_end(&shell);
}

fn tenants_and_networks(shell: &Shell) {
    let made = shell.args(&["tenant", "create", "acme", "--display-name", "ACME Inc.", "-o", "json"]).json();
    assert_eq!((&made["slug"], &made["name"]), (&json!("acme"), &json!("ACME Inc.")));
    shell.run("cvlan list").fails(2, "-t TENANT");
    shell.run("context tenant acme").ok();
    let table = cells(&shell.run("context list").ok().out);
    assert_eq!(table[0], ["CURRENT", "NAME", "URL", "USER", "TENANT", "SESSION"]);
    assert_eq!((table[1][0].as_str(), table[1][4].as_str(), table[1][5].as_str()), ("*", "acme", "logged in"));

    let table = cells(&shell.run("cvlan create office --ipv4 10.20.0.0/24 --ipv6 auto").ok().out);
    assert_eq!(table[0], ["NAME", "IPV4", "IPV6", "NODES", "CREATED"]);
    assert_eq!(table[1][..2], ["office", "10.20.0.0/24"]);
    assert!(table[1][2].starts_with("fd") && table[1][2].ends_with("::/64"), "{table:?}");
    let chosen = shell.run("-t acme cvlan create lab -o json").json();
    assert!(chosen["ipv4Cidr"].as_str().unwrap().ends_with("/24"), "the next free one: {chosen}");
    shell.run("cvlan rename lab workshop").ok();
    assert_eq!(shell.run("cvlan list -o name").ok().out, "office\nworkshop\n");
    assert_eq!(shell.run("tenant rename acme Acme --columns name --no-headers").ok().out, "Acme\n");
    let tenant = shell.run("tenant get acme").ok().out;
    assert!(tenant.starts_with("slug      acme\nname      Acme\ncvlans    2\nnodes     0\n"), "{tenant}");
}

fn tokens(shell: &Shell) {
    let said = shell.run("token create --cvlan office --expires 1h --max-uses 3 --tag web -o name").ok();
    assert!(
        said.out.starts_with("cvj_") && said.out.trim_end().len() > 100 && said.out.lines().count() == 1,
        "{}",
        said.out
    );
    assert!(said.err.starts_with("warning: the advertised node URL https://127.0.0.1:"), "{}", said.err);

    let said = shell.args(&["token", "create", "--cvlan", "office", "--expires", "1d", "--note", "for the hall"]).ok();
    let lines: Vec<_> = said.out.lines().collect();
    assert_eq!(lines[0], "cvland &");
    assert!(lines[1].starts_with("cvlan-ctrl --token cvj_") && lines.len() == 2, "{}", said.out);
    assert!(said.err.contains("1 machine(s) into CVLAN office, good until 20"), "{}", said.err);

    let made = shell.run("token create --cvlan office --expires 90s -o json").json();
    assert!(made["secret"].as_str().unwrap().starts_with("cvj_") && made["warnings"][0].is_string(), "{made}");
    let id = made["token"]["id"].as_str().unwrap();
    let found = shell.run(&format!("token get {} -o json", &id[..13])).json();
    assert_eq!(found["id"], id, "by the start of its id");
    let list = shell.run("token list --status active").ok().out;
    assert!(!list.contains("cvj_") && list.contains("office  active  0/3") && list.contains("for the hall"), "{list}");
    shell.run(&format!("token delete {id} --yes")).ok();
    assert_eq!(shell.run("token list -o name").ok().out.lines().count(), 2);
    shell.run(&format!("token get {id}")).fails(1, "(token_not_found)");
}

fn nodes(shell: &Shell) {
    let create = |name: &str, n: u8| {
        let key = wg_key(n);
        let args = ["node", "create", name, "--cvlan", "off", "--wg-public-key", &key, "--tag", "iot", "--tag", "red"];
        let more = ["--endpoint", "192.0.2.1:51820", "--reason", "100 % für das Büro", "-o", "json"];
        shell.args(&[&args[..], &more].concat()).json()
    };
    let made = create("printer", 1);
    assert_eq!((&made["ipv4"], &made["tags"]), (&json!("10.20.0.2"), &json!(["iot", "red"])));
    assert_eq!(made["endpoints"], json!(["192.0.2.1:51820"]));
    create("web-1", 2);
    create("web-2", 3);

    let table = cells(&shell.run("node list").ok().out);
    assert_eq!(table[0], ["NAME", "CVLAN", "IPV4", "IPV6", "STATUS", "PRESENCE", "TAGS"]);
    assert_eq!(table[1][..3], ["printer", "office", "10.20.0.2"]);
    assert_eq!(table[1][4..], ["active", "-", "iot,red"]);
    assert_eq!(table.len(), 4, "a line each");
    let list = shell.run("node list -o json").json();
    assert_eq!((list["items"].as_array().unwrap().len(), &list["items"][1]["name"]), (3, &json!("web-1")));
    assert_eq!(shell.run("node list --limit 2 --sort -name -o name").ok().out, "web-2\nweb-1\n");
    assert_eq!(
        shell.run("node list -q web --columns ipv4,name --no-headers").ok().out,
        "10.20.0.3  web-1\n10.20.0.4  web-2\n"
    );
    let yaml = shell.run("node get printer -o yaml").ok().out;
    assert!(yaml.contains("\nname: printer\n") && yaml.contains("\ntags:\n- iot\n- red\n"), "{yaml}");
    assert!(shell.run("node list -o wide").ok().out.contains(&wg_key(1)));

    let disabled = shell.run("node disable web-1 -o json").json();
    assert_eq!(disabled["status"], "disabled");
    assert_eq!(shell.run("node list --status disabled -o name").ok().out, "web-1\n");
    let revision = disabled["revision"].as_str().unwrap();
    shell.run(&format!("node enable web-1 --if-revision {revision}")).ok();
    shell.run(&format!("node rename web-1 web-9 --if-revision {revision}")).fails(1, "(revision_mismatch)");
    assert_eq!(shell.run("node rename web-1 web-3 -o name").ok().out, "web-3\n");
    assert_eq!(shell.run("node list --cvlan workshop").ok().err, "no nodes\n");
}

fn targets(shell: &Shell) {
    let said = shell.run("node get web").fails(1, "\"web\" may be 2 nodes: web-2 (");
    assert!(said.err.contains("web-3 (") && said.err.contains("(name_ambiguous)"), "{}", said.err);
    shell.run("node delete web --yes").fails(1, "(name_ambiguous)");
    assert_eq!(shell.run("node get pri -o name").ok().out, "printer\n", "the start of one name");
    let id = shell.run("node get printer -o json").json()["id"].as_str().unwrap().to_owned();
    assert_eq!(shell.run(&format!("node get {id} -o name")).ok().out, "printer\n");
    shell.run("node get 10.20.0.2").fails(1, "(node_not_found)");
    shell.args(&["node", "get", ".."]).fails(2, "is no name");
    shell.args(&["node", "get", "a/../b"]).fails(1, "(node_not_found)");

    // The same name in two CVLANs: its exact name is not enough, its id is.
    let key = wg_key(4);
    let twin =
        shell.args(&["node", "create", "printer", "--cvlan", "workshop", "--wg-public-key", &key, "-o", "json"]).json();
    shell.run("node get printer").fails(1, "\"printer\" may be 2 nodes: printer (");
    shell.run(&format!("node delete {} --yes", twin["id"].as_str().unwrap())).ok();
    shell.run("node get printer").ok();

    shell.run("node delete web-2").fails(2, "--yes");
    let said = shell.run("node delete web-2 --yes").ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", "node web-2 is deleted\n"));
    shell.run("node get web-2").fails(1, "(node_not_found)");
}

fn users(shell: &Shell) {
    let said = shell
        .with_stdin(&["user", "create", "ada", "--role", "tenantadmin", "--password-stdin"], "ada's long password\n");
    assert!(said.ok().out.contains("ada   tenantadmin"), "NAME  ROLE");
    assert_eq!(shell.run("user list -o name").ok().out, "ada\n");
    assert_eq!(shell.run("user list --global -o name").ok().out, "admin\n");
    let short = shell.with_stdin(&["user", "create", "bob", "--role", "member", "--password-stdin"], "short");
    short.fails(1, "(password_weak)");
    assert_eq!(shell.run("user get ad -o json").json()["role"], "tenantadmin");
    shell.run("user delete ada --yes").ok();
    assert_eq!(shell.run("user list").ok().err, "no users\n");
}

fn the_log(shell: &Shell) {
    let made = shell.run("log checkpoint -o json").json();
    let (seq, digest) = (made["seq"].as_str().unwrap(), made["digest"].as_str().unwrap());
    assert_eq!(cells(&shell.run("log checkpoints").ok().out), [["SEQ", "DIGEST"], [seq, digest]]);
    let report = shell.run("log verify -o json").json();
    assert_eq!((&report["ok"], &report["checkpointDigest"]), (&json!(true), &json!(digest)));
    let sheet = shell.run("log verify").ok();
    assert!(
        sheet.out.starts_with("result      ok: every event replays to the state that runs\nevents "),
        "{}",
        sheet.out
    );
    assert_eq!(sheet.err, "", "no spinner where no terminal is");

    let status = shell.run("status -o json").json();
    assert_eq!(
        (&status["role"], &status["tenants"], &status["digest"]),
        (&json!("leader"), &json!("1"), &json!(digest))
    );
    let sheet = shell.run("status").ok().out;
    for fact in ["user        admin (superadmin)", "tenant      acme", "nodes       0 of 2 online", "users       1"] {
        assert!(sheet.lines().any(|l| l == fact), "{fact} is not in {sheet}");
    }
}

fn the_end(shell: &Shell) {
    shell.run("cvlan delete office --yes").fails(1, "(cvlan_not_empty)");
    for node in ["printer", "web-3"] {
        shell.run(&format!("node delete {node} --yes")).ok();
    }
    shell.run("tenant delete acme --yes").fails(1, "(tenant_not_empty)");
    for line in
        ["cvlan delete office --yes", "cvlan delete workshop --yes", "tenant delete acme --yes", "context tenant"]
    {
        shell.run(line).ok();
    }
    assert_eq!(shell.run("tenant list").ok().err, "no tenants\n");
    assert_eq!(shell.run("tenant list -o json").json(), json!({"items": []}));
}

#[test]
fn a_list_longer_than_a_page_is_listed_whole() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    // More than the 100 that the controller gives where nobody asks for more, by commands that run side by side.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let shell = &shell;
            scope.spawn(move || {
                for n in 0..55 {
                    shell.run(&format!("-t acme cvlan create net-{half}-{n}")).ok();
                }
            });
        }
    });
    assert_eq!(shell.run("-t acme cvlan list -o name").ok().out.lines().count(), 110);
    let last: Vec<_> = shell.run("events -o json").json()["items"].as_array().unwrap().clone();
    assert_eq!(last.len(), 100, "the last 100 events");
    assert_eq!(shell.run("events --from 1 -o name").ok().out.lines().count(), 4 + 1 + 110, "all of them");
}

#[test]
fn shells_complete_every_noun() {
    let shell = Shell::new();
    for name in ["bash", "zsh", "fish"] {
        let script = shell.run(&format!("completions {name}")).ok().out;
        for word in
            ["login", "tenant", "cvlan", "node", "token", "user", "events", "history", "checkpoints", "max-uses"]
        {
            assert!(script.contains(word), "{name} does not know {word}");
        }
    }
    let help = shell.run("--help").ok().out;
    assert!(help.contains("cvlanctl token create --cvlan office --expires 24h"), "help teaches with examples: {help}");
}

//! What is asked the wrong way: one line, a code, the right exit status, and nothing in the log.

use crate::common::{Controller, Shell, wg_key};

#[test]
fn bad_input_is_one_line_and_changes_nothing() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    shell.run("context tenant acme").ok();
    shell.run("cvlan create office --ipv4 10.0.0.0/29").ok();
    let key = wg_key(1);
    shell.run(&format!("node create a --cvlan office --wg-public-key {key}")).ok();
    let before = shell.run("status -o name").ok().out;

    for (line, exit, words) in [
        ("tenant create acme", 1, "(tenant_exists)"),
        ("tenant create Not_A_Name", 1, "(name_invalid)"),
        ("cvlan create lab --ipv4 10.0.0.0/28", 1, "(cidr_overlap)"),
        ("cvlan create lab --ipv4 10.0.9.9/24", 1, "(cidr_not_network)"),
        ("cvlan create lab --ipv4 nonsense", 1, "(cidr_invalid)"),
        ("cvlan create lab --ipv6 fd00::/127", 1, "(ipv6_too_small)"),
        ("cvlan get nope", 1, "(cvlan_not_found)"),
        ("node create b --cvlan nope --wg-public-key x", 1, "(cvlan_not_found)"),
        ("node create b --cvlan office --wg-public-key x", 1, "(wg_key_invalid)"),
        ("token create --cvlan nope --expires 1h", 1, "(cvlan_not_found)"),
        ("token create --cvlan office --expires 400d", 1, "(expiry_invalid)"),
        ("token create --cvlan office --expires 59s", 1, "(expiry_invalid)"),
        ("token get nope", 1, "(token_not_found)"),
        ("node list --sort nope", 1, "(sort_invalid)"),
        ("node list --columns name,nope", 2, "there is no column \"nope\""),
        ("tenant delete acme --yes", 1, "(tenant_not_empty)"),
        ("cvlan delete office --yes", 1, "(cvlan_not_empty)"),
        ("tenant delete acme", 2, "--yes"),
        ("user create bob --role member", 2, "--password-stdin"),
        ("passwd", 2, "--password-stdin"),
        ("history node nope", 1, "(node_not_found)"),
    ] {
        let said = shell.run(line);
        assert!(said.err.contains(words), "{line}: {words:?} is not in {}", said.err);
        said.fails(exit, words);
    }
    shell.run(&format!("node create b --cvlan office --wg-public-key {key}")).fails(1, "(wg_key_in_use)");
    let long = "x".repeat(300);
    shell.args(&["node", "delete", "a", "--yes", "--reason", &long]).fails(1, "(text_invalid)");
    shell.args(&["node", "get", &long]).fails(1, "(search_too_long)");

    // clap's own: usage on stderr, exit status 2.
    for line in [
        "",
        "nonsense",
        "node",
        "node frobnicate",
        "node get",
        "node list -o nonsense",
        "node list --limit 0",
        "token create --cvlan office",
        "token create --cvlan office --expires soon",
        "events --from 0",
        "user create bob --role king",
        "node list --insecure",
        "token create --cvlan office --expires 1h --max-uses 0",
    ] {
        let said = shell.run(line);
        assert_eq!((said.exit, said.out.as_str()), (2, ""), "{line}: {}", said.err);
    }
    assert_eq!(shell.run("status -o name").ok().out, before, "nothing was appended to the log");
}

#[test]
fn a_damaged_context_file_is_said_so() {
    let shell = Shell::new();
    std::fs::write(shell.dir.path().join("contexts.json"), "{\"current\":").unwrap();
    shell.run("status").fails(1, "(context_damaged)");
    let nowhere = Shell::new();
    nowhere.run("status").fails(1, "(not_logged_in)");
    assert!(!nowhere.dir.path().join("contexts.json").exists(), "looking makes no files");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    let mut child = shell.command(&["completions", "zsh"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

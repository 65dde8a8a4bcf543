//! `cvlanctl node import`.

use crate::common::{Controller, Shell, wg_key_of};
use serde_json::json;

#[test]
fn devices_come_from_a_file() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    shell.run("context tenant acme").ok();
    shell.run("cvlan create warehouse --ipv4 10.30.0.0/16").ok();
    let file = shell.dir.path().join("devices.json");
    let line = |n: u32| json!({"name": format!("dev-{n}"), "wgPublicKey": wg_key_of(n), "tags": ["bulk"]}).to_string();
    let lines: Vec<_> = (0..620).map(line).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let path = file.to_str().unwrap();
    shell.args(&["node", "import", path]).fails(2, "device 1 names no CVLAN");
    let said = shell.args(&["node", "import", path, "--cvlan", "warehouse"]).ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", "620 nodes are added\n"));
    // The second time nothing is added, and it says why.
    let said = shell.args(&["node", "import", path, "--cvlan", "warehouse"]).fails(1, "(node_exists)");
    assert!(said.err.contains("device 1 of 500") && said.err.contains("0 of 620 were added"), "{}", said.err);
    std::fs::write(&file, "[{}, 7]").unwrap();
    shell.args(&["node", "import", path, "--cvlan", "warehouse"]).fails(2, "device 2 is no JSON object");
    std::fs::write(&file, "[{\"name\": \"a\", \"cvlan\": 7}]").unwrap();
    shell.args(&["node", "import", path, "--cvlan", "warehouse"]).fails(2, "device 1: its CVLAN is 7");
    std::fs::write(&file, "{").unwrap();
    shell.args(&["node", "import", path, "--cvlan", "warehouse"]).fails(2, "devices.json: ");
    let listed = shell.run("node list --cvlan warehouse --columns name --no-headers --limit 1000").ok().out;
    assert_eq!(listed.lines().count(), 620);
}

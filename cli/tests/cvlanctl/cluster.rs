//! Members, from the command line; and one controller taking another's place.

use crate::common::{Controller, Shell, cells};
use serde_json::json;
use std::net::TcpListener;

#[test]
fn members_come_and_go() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    let status = || cells(&shell.run("cluster status --no-headers --columns name,id,role").ok().out);
    assert_eq!(status(), [["founder", "1", "leader"]]);

    let token = shell.run("cluster add m2 -o name").ok().out;
    assert!(token.starts_with("cvm_") && token.lines().count() == 1, "{token}");
    let shown = shell.run("cluster add m3 --expires 10m").ok();
    assert!(shown.out.contains("CVLAN_JOIN_TOKEN=cvm_") && shown.err.contains("shown this once"), "{shown:?}");
    shell.run("cluster add m2").fails(1, "member");
    shell.run("cluster add 7").fails(1, "name_invalid");
    shell.run("cluster add m4 --expires 1y").fails(2, "is no time");
    let listed = shell.run("cluster status -o json").json();
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.len(), 3);
    assert_eq!(
        (&items[1]["name"], &items[1]["state"], &items[1]["voter"]),
        (&json!("m2"), &json!("admitted"), &json!(false))
    );

    // Admitted is not in: there is nobody to promote, nor to hand over to.
    shell.run("cluster promote m2").fails(1, "member_not_found");
    shell.run("cluster transfer m2").fails(1, "member_not_voter");
    shell.run("cluster transfer").fails(1, "quorum_would_be_lost");
    shell.run("cluster remove founder --yes").fails(1, "last_member");
    shell.run("cluster remove nobody --yes").fails(1, "member_not_found");
    shell.run("cluster remove m2").fails(2, "--yes");
    shell.run("cluster remove m2 --yes").ok();
    shell.run("cluster remove m3 --yes").ok();
    assert_eq!(status().len(), 1);
    let sheet = shell.run("status").ok().out;
    assert!(sheet.contains("1 of 1 members vote; founder leads"), "{sheet}");
}

#[test]
fn where_one_controller_does_not_answer_the_next_is_asked() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let away = format!("https://{}", free.local_addr().unwrap());
    drop(free);
    shell.tamper("url", json!(away));
    shell.tamper("urls", json!([controller.url]));
    let said = shell.run("tenant create acme").ok();
    assert!(said.err.contains(&format!("{away} does not answer; asking {}", controller.url)), "{}", said.err);
    assert_eq!((shell.current("url"), shell.current("urls")), (json!(controller.url), json!([away])));
    assert_eq!(shell.run("tenant list -o name").ok().out, "acme\n");

    // Nobody answers.
    shell.tamper("url", json!(away));
    shell.run("tenant list").fails(1, "unreachable");
}

//! Members, from the command line; and one controller taking another's place.

use crate::common::{Controller, Shell, cells};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

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
    let wrong = shell.run("cluster add m4 --expires 1y");
    assert!(wrong.exit == 2 && wrong.err.contains("is no time"), "{wrong:?}");
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

    // What is read piece by piece, and a login, which needs no pin at another one of the same cluster.
    let (to, out) = (shell.dir.path().join("backup"), shell.dir.path().join("export"));
    let (backup, export) = (format!("cluster backup --to {}", to.display()), format!("log export {}", out.display()));
    for line in [&*backup, &*export, "events --follow --from 1 --limit 1", "login --password-stdin"] {
        shell.tamper("url", json!(away));
        shell.tamper("urls", json!([controller.url]));
        let words: Vec<&str> = line.split(' ').collect();
        let said = shell.with_stdin(&words, &controller.password).ok();
        assert!(said.err.contains(&format!("asking {}", controller.url)), "{line}: {}", said.err);
        assert_eq!(shell.current("url"), json!(controller.url), "{line}");
    }
    shell.tamper("url", json!(away));
    shell.tamper("urls", json!([controller.url]));
    shell.with_stdin(&["login", &controller.url, "--password-stdin"], &controller.password).ok();
    assert_eq!(shell.current("url"), json!(controller.url));

    // It is there, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("https://{}", silent.local_addr().unwrap());
    shell.tamper("url", json!(mute));
    shell.tamper("urls", json!([controller.url]));
    let said = shell.run("tenant create beta").ok();
    assert!(said.err.contains(&format!("{mute} does not answer; asking {}", controller.url)), "{}", said.err);
    assert_eq!(shell.run("tenant list -o name").ok().out, "acme\nbeta\n");

    // Nobody answers.
    shell.tamper("url", json!(away));
    shell.tamper("urls", json!([away]));
    let said = shell.run("tenant list");
    assert!(said.exit == 1 && said.err.contains("(unreachable)"), "{said:?}");
}

/// Copies until one side ends; what comes once `swallow` is set goes nowhere.
fn copy(mut from: TcpStream, mut to: TcpStream, swallow: Option<Arc<AtomicBool>>, mut read: impl FnMut()) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        read();
        let swallowed = swallow.as_ref().is_some_and(|s| s.load(SeqCst));
        if !swallowed && to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

#[test]
fn a_write_whose_answer_is_lost_is_sent_again_and_has_one_effect() {
    let controller = Controller::start();
    let (shell, other) = (Shell::admin(&controller), Shell::admin(&controller));
    // In between: a request goes through, its answer does not. After the greeting the client speaks a second time.
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", between.local_addr().unwrap());
    let door = ("127.0.0.1", controller.ports[0]);
    shell.tamper("url", json!(url));
    shell.tamper("urls", json!([controller.url]));
    let child = shell.command(&["tenant", "create", "acme"]).spawn().unwrap();
    let (near, _) = between.accept().unwrap();
    let (far, lost) = (TcpStream::connect(door).unwrap(), Arc::new(AtomicBool::new(false)));
    let (up, down) =
        ((near.try_clone().unwrap(), far.try_clone().unwrap()), (far.try_clone().unwrap(), near.try_clone().unwrap()));
    let mut spoken = 0;
    let said = lost.clone();
    let threads = [
        std::thread::spawn(move || {
            copy(up.0, up.1, None, move || {
                spoken += 1;
                said.store(spoken > 1, SeqCst);
            });
        }),
        std::thread::spawn(move || copy(down.0, down.1, Some(lost), || {})),
    ];
    let end = Instant::now() + Duration::from_secs(30);
    while other.run("tenant list -o name").ok().out != "acme\n" {
        assert!(Instant::now() < end, "the request did not go through");
    }
    let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
    drop(between);
    let output = child.wait_with_output().unwrap();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && err.contains("does not answer; asking"), "{err}");
    assert_eq!(other.run("tenant list -o name").ok().out, "acme\n");
    let events = other.run("events --columns what --no-headers").ok().out;
    assert_eq!(events.lines().filter(|l| l.contains("tenant acme created")).count(), 1, "{events}");
}

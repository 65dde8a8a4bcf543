//! A backup of the running controller, and what becomes of it: the drill of docs/operations.md, word for word.

use crate::common::{Controller, Shell, binary};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The lines to type below a heading of docs/operations.md, block by block.
fn drill() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md")).unwrap();
    let section = text.split_once("### The drill").unwrap().1.split("\n## ").next().unwrap().to_owned();
    let blocks = section.split("```").skip(1).step_by(2);
    let lines = |block: &str| block.lines().filter_map(|l| l.strip_prefix("$ ")).map(str::to_owned).collect();
    blocks.map(lines).collect()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bash(line: &str, at: &Path, shell: &Shell, ports: [u16; 3]) -> Command {
    let programs = binary().parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(at).env("PATH", path).env("CVLAN_CONTEXT_DIR", shell.dir.path());
    for (flag, port) in ["LISTEN", "NODE_LISTEN", "METRICS_LISTEN"].iter().zip(ports) {
        command.env(format!("CVLAN_{flag}"), format!("127.0.0.1:{port}"));
    }
    command.env("CVLAN_CLUSTER_LISTEN", "127.0.0.1:0").stdin(Stdio::null());
    command
}

#[track_caller]
fn type_in(line: &str, at: &Path, shell: &Shell, ports: [u16; 3]) -> String {
    let said = bash(line, at, shell, ports).output().unwrap();
    let (out, err) = (String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr).unwrap());
    assert!(said.status.success(), "$ {line}\n{out}{err}");
    out
}

#[test]
fn the_drill_of_the_docs_brings_everything_back() {
    let mut controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    shell.run("-t acme cvlan create office").ok();
    shell.run("-t acme token create --cvlan office --expires 24h --max-uses 3").ok();
    shell.run("log checkpoint").ok();
    let (data, ports) = (controller.data(), controller.ports);
    let at = data.parent().unwrap().to_owned();
    let [before, after] = drill().try_into().unwrap();
    for line in &before {
        type_in(line, &at, &shell, ports);
    }
    shell.run("tenant create afterwards").ok();
    let epoch = shell.run("status -o json").json()["epoch"].as_str().unwrap().to_owned();
    controller.kill();
    std::fs::remove_dir_all(&data).unwrap();

    let mut runs = None;
    for line in &after {
        match line.strip_suffix(" &") {
            Some(line) => {
                let program = format!("exec {line} > restored.out");
                let start = || Killed(bash(&program, &at, &shell, ports).spawn().unwrap());
                let mut child = start();
                let end = Instant::now() + Duration::from_secs(60);
                while !std::fs::read_to_string(at.join("restored.out")).is_ok_and(|out| out.contains("  metrics ")) {
                    assert!(Instant::now() < end, "it does not start");
                    std::thread::sleep(Duration::from_millis(50));
                    // Somebody may have a connection from one of its ports for a moment.
                    if child.0.try_wait().unwrap().is_some() {
                        child = start();
                    }
                }
                runs = Some(child);
            }
            None => {
                let said = type_in(line, &at, &shell, ports);
                assert!(!line.contains("restore --from") || said.contains("signed by   cvlan/"), "{said}");
            }
        }
    }
    assert!(runs.is_some());
    // The session of before is good, and all but what came after the backup is there.
    assert_eq!(shell.run("tenant list -o name").ok().out, "acme\n");
    let token = shell.run("-t acme token list -o json").json();
    assert_eq!(token["items"].as_array().unwrap().len(), 1);
    let status = shell.run("status -o json").json();
    assert_ne!(status["epoch"].as_str(), Some(epoch.as_str()));
    // Its secrets are open: it signs for a tenant that is from before.
    shell.run("-t acme token create --cvlan office --expires 1h --max-uses 1").ok();
    let events = shell.run("events --from 1 -o json").ok().out;
    assert!(events.contains("bootstrapped") && events.contains("epochBegun") && !events.contains("afterwards"));
    // And it can be backed up again, with the keys that it has now.
    type_in("cvlanctl log keys -o name > now.keys", &at, &shell, ports);
    type_in("cvlanctl cluster backup --to again.cvbackup --keys now.keys", &at, &shell, ports);
}

#[test]
fn a_backup_goes_on_where_it_was_cut_off_and_what_is_wrong_is_refused() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    shell.run("-t acme cvlan create office").ok();
    for _ in 0..30 {
        shell.run("-t acme token create --cvlan office --expires 24h --max-uses 3").ok();
    }
    let at = shell.dir.path().to_owned();
    let file = |name: &str| at.join(name).display().to_string();
    let backup = |name: &str| shell.args(&["cluster", "backup", "--to", &file(name)]);
    backup("whole").ok();
    let whole = std::fs::read(file("whole")).unwrap();
    for cut in [0, 5, 9, 200, whole.len() / 2, whole.len() - 30, whole.len() - 3, whole.len()] {
        std::fs::write(file("cut.part"), &whole[..cut]).unwrap();
        let said = backup("cut").ok();
        assert_eq!(said.err.contains("going on with"), cut > 400, "{cut}: {}", said.err);
        assert!(!at.join("cut.part").exists());
        if cut > 400 {
            assert_eq!(std::fs::read(file("cut")).unwrap(), whole, "{cut}");
        }
    }
    // What is damaged in the part is fetched anew.
    let mut bad = whole.clone();
    bad[whole.len() / 2] ^= 1;
    std::fs::write(file("mended.part"), &bad).unwrap();
    backup("mended").ok();
    assert_eq!(std::fs::read(file("mended")).unwrap(), whole);

    let restore = |from: &str, keys: &str, data: &str, voters: Option<&str>| {
        let mut command = Command::new(binary());
        command.args(["restore", "--from", &file(from), "--keys", keys, "--data-dir", &file(data)]);
        command.args(voters.iter().flat_map(|v| ["--voters", v]));
        let said = command.output().unwrap();
        (said.status.success(), String::from_utf8(said.stderr).unwrap())
    };
    let keys = controller.data().join("keys").display().to_string();
    let refused = |said: (bool, String), words: &str| {
        assert!(!said.0 && said.1.contains(words), "{words:?} is not in: {}", said.1);
        let left = std::fs::read_dir(at.join("none")).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|name| name == "lock"), "nothing is left behind");
    };
    std::fs::write(file("bad"), &bad).unwrap();
    refused(restore("bad", &keys, "none", None), "checksum is wrong");
    std::fs::write(file("short"), &whole[..whole.len() / 2]).unwrap();
    refused(restore("short", &keys, "none", None), "cut off");
    refused(restore("nothing", &keys, "none", None), "No such file");
    refused(restore("whole", &file("nowhere"), "none", None), "lacks identity");
    std::fs::create_dir(file("full")).unwrap();
    std::fs::write(at.join("full/file"), "x").unwrap();
    refused(restore("whole", &keys, "full", None), "is not empty");
    let peter = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    std::fs::write(file("peter"), peter).unwrap();
    refused(restore("whole", &keys, "none", Some(&file("peter"))), "no majority");
    // Another cluster's keys, and a copy without the CA's.
    let other = Controller::start();
    let others = other.data().join("keys").display().to_string();
    refused(restore("whole", &others, "none", None), "another cluster");
    std::fs::create_dir(file("few")).unwrap();
    for name in ["identity", "cluster", "member.key", "ca.pem"] {
        std::fs::copy(format!("{keys}/{name}"), at.join("few").join(name)).unwrap();
    }
    refused(restore("whole", &file("few"), "none", None), "lacks ca.key");
    let (done, said) = restore("whole", &keys, "none", None);
    assert!(done, "{said}");
    // One that is not a superadmin gets none.
    shell.with_stdin(
        &["-t", "acme", "user", "create", "chief", "--role", "tenantadmin", "--password-stdin"],
        "a long password",
    );
    let chief = Shell::new();
    let login =
        ["login", &controller.url, "--ca-pin", &controller.pin, "--name", "chief", "-t", "acme", "--password-stdin"];
    chief.with_stdin(&login, "a long password").ok();
    chief.args(&["cluster", "backup", "--to", &file("chiefs")]).fails(1, "forbidden");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

#[test]
fn a_part_of_another_log_is_not_gone_on_with() {
    let (mut controller, other) = (Controller::start(), Controller::start());
    let (shell, stranger) = (Shell::admin(&controller), Shell::admin(&other));
    let at = shell.dir.path().to_owned();
    let file = |name: &str| at.join(name).display().to_string();
    let saved = controller.data().with_file_name("saved");
    // Two histories of one epoch.
    controller.kill();
    copy(&controller.data(), &saved);
    controller.again();
    for n in 0..12 {
        shell.run(&format!("tenant create this-{n}")).ok();
    }
    shell.args(&["cluster", "backup", "--to", &file("this")]).ok();
    stranger.run("tenant create elsewhere").ok();
    stranger.args(&["cluster", "backup", "--to", &file("strangers")]).ok();
    controller.kill();
    std::fs::remove_dir_all(controller.data()).unwrap();
    std::fs::rename(&saved, controller.data()).unwrap();
    controller.again();
    // Where it was last is no place of this history.
    let shell = Shell::admin(&controller);
    let backup = |flags: &[&str]| shell.args(&[&["cluster", "backup", "--to", &file("mine")], flags].concat());
    let (this, strangers) = (std::fs::read(file("this")).unwrap(), std::fs::read(file("strangers")).unwrap());
    let refused = |bytes: &[u8], words: &str| {
        std::fs::write(file("mine.part"), bytes).unwrap();
        backup(&[]).fails(1, words);
        assert_eq!(std::fs::read(file("mine.part")).unwrap(), bytes, "it is as it was");
    };
    refused(b"something of mine", "is no backup");
    refused(&strangers[..strangers.len() - 4], "and the cluster is in");
    refused(&this[..this.len() - 4], "has not come so far");
    for n in 0..15 {
        shell.run(&format!("tenant create that-{n}")).ok();
    }
    // Whole but for its end, half, and older than what is gone on with.
    refused(&this[..this.len() - 4], "of another history");
    refused(&this[..this.len() * 2 / 3], "of another history");
    let part = std::fs::File::options().append(true).open(file("mine.part")).unwrap();
    part.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).unwrap();
    backup(&[]).fails(1, "of another history");
    let said = backup(&["--force"]).ok();
    assert!(said.err.contains("beginning anew"), "{}", said.err);
    assert!(!at.join("mine.part").exists() && at.join("mine").exists());
}

#[test]
fn a_folder_into_which_is_restored_is_locked_and_does_not_start_before_it_is_whole() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    let at = shell.dir.path().to_owned();
    shell.args(&["cluster", "backup", "--to", &at.join("whole").display().to_string()]).ok();
    let whole = std::fs::read(at.join("whole")).unwrap();
    let (pipe, data, keys) = (at.join("pipe"), at.join("data"), controller.data().join("keys"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let restore = |from: &Path| {
        let mut command = Command::new(binary());
        command.arg("restore").arg("--from").arg(from).arg("--keys").arg(&keys).arg("--data-dir").arg(&data);
        command
    };
    let start = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("--data-dir").arg(&data).args(words);
        for door in ["--listen", "--node-listen", "--metrics-listen", "--cluster-listen"] {
            command.args([door, "127.0.0.1:0"]);
        }
        let said = command.output().unwrap();
        (said.status.success(), String::from_utf8(said.stderr).unwrap())
    };
    let refused = |said: (bool, String), words: &str| assert!(!said.0 && said.1.contains(words), "{words}: {}", said.1);
    // Read once, to see that it is whole; then again, entry by entry: there it waits.
    let mut running = restore(&pipe).stdout(Stdio::null()).spawn().unwrap();
    std::fs::write(&pipe, &whole).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while !data.join(".restoring/keys/member.key").exists() {
        assert!(Instant::now() < end, "it does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    refused(start(&[]), "is locked by another process");
    let second = restore(&at.join("whole")).output().unwrap();
    refused((second.status.success(), String::from_utf8(second.stderr).unwrap()), "is locked by another process");
    running.kill().unwrap();
    running.wait().unwrap();

    // It left a part.
    refused(start(&[]), "has not finished");
    assert!(!data.join("keys").exists() && data.join(".restoring").exists(), "the refusal changed nothing");
    assert!(restore(&at.join("whole")).output().unwrap().status.success());
    assert!(!data.join(".restoring").exists() && data.join("keys/identity").exists());
    // As a crash leaves it that comes between log and keys.
    std::fs::create_dir(data.join(".restoring")).unwrap();
    std::fs::rename(data.join("keys"), data.join(".restoring/keys")).unwrap();
    // A log that begins with a state has this too.
    std::fs::create_dir_all(data.join("tiles")).unwrap();
    refused(start(&[]), "`cvlan-api restore` with the same backup");
    refused(start(&["log", "verify"]), "has not finished");
    assert!(restore(&at.join("whole")).output().unwrap().status.success());
    let (good, said) = start(&["log", "verify"]);
    assert!(good, "{said}");
    // What is no restore's is not touched.
    std::fs::create_dir(data.join(".restoring")).unwrap();
    let again = restore(&at.join("whole")).output().unwrap();
    refused((again.status.success(), String::from_utf8(again.stderr).unwrap()), "is not empty");
}

//! Contexts, sessions, the pinned CA, passwords from a real terminal.

use crate::common::{Controller, Shell};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

#[test]
fn a_session_lives_in_its_context() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    let file = shell.dir.path().join("contexts.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((shell.current("ca_pin"), shell.current("url")), (json!(controller.pin), json!(controller.url)));
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&controller.password), "the password is not kept");

    // Read your writes: the newest checkpoint stays with the context.
    shell.run("tenant create acme").ok();
    let written = shell.current("checkpoint");
    shell.run("tenant list").ok();
    assert_eq!(shell.current("checkpoint"), written);
    shell.run("tenant create other").ok();
    assert_ne!(shell.current("checkpoint"), written);

    // An access token that has ended, and one that the controller does not know: both are replaced.
    for (field, value) in [("access_expires_s", json!(1)), ("access_token", json!("nonsense"))] {
        shell.tamper(field, value.clone());
        shell.run("tenant list").ok();
        assert_ne!(shell.current(field), value, "{field}");
    }

    // What is known of another log is forgotten; what this log lost is not passed over.
    let here = shell.current("checkpoint");
    shell.tamper("checkpoint", json!(format!("{}.5", "ab".repeat(16))));
    shell.run("tenant list").ok();
    assert_eq!(shell.current("checkpoint"), here);
    let epoch = here.as_str().unwrap().split('.').next().unwrap();
    shell.tamper("checkpoint", json!(format!("{epoch}.99999")));
    shell.run("tenant list").fails(1, "(checkpoint_beyond)");
    shell.tamper("checkpoint", here);

    shell.run("context use nope").fails(1, "(context_not_found)");
    shell.run("--context nope status").fails(1, "(context_not_found)");
    let refresh = shell.current("refresh_token");
    shell.run("logout").ok();
    shell.run("tenant list").fails(1, "(not_logged_in)");
    shell.tamper("refresh_token", refresh);
    shell.tamper("access_token", json!("x"));
    shell.run("tenant list").fails(1, "(session_invalid)");

    // Again, without URL and pin; the environment brings the password.
    let said = shell.command(&["login"]).env("CVLAN_PASSWORD", &controller.password).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    shell.run("tenant list").ok();
    let name = shell.contexts()["current"].as_str().unwrap().to_owned();
    shell.run(&format!("context delete {name}")).ok();
    shell.run("status").fails(1, "(not_logged_in)");
}

#[test]
fn a_tenants_user_sees_its_tenant() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    shell.run("tenant create other").ok();
    let password = "a long password of ada";
    shell
        .with_stdin(&["-t", "acme", "user", "create", "ada", "--role", "tenantadmin", "--password-stdin"], password)
        .ok();

    let login =
        ["login", &controller.url, "--ca-pin", &controller.pin, "--name", "ada", "-t", "acme", "--password-stdin"];
    shell.with_stdin(&login, password).ok();
    assert_eq!(shell.contexts()["contexts"].as_object().unwrap().len(), 2, "a context each");
    assert_eq!(shell.run("tenant list -o name").ok().out, "acme\n");
    shell.run("cvlan create office").ok();
    shell.run("-t other cvlan list").fails(1, "(tenant_not_found)");
    let status = shell.run("status").ok().out;
    assert!(status.contains("user        ada (tenantadmin)\ntenant      acme\n"), "{status}");
    let events = shell.run("events --columns what --no-headers").ok().out;
    assert!(events.contains("CVLAN office created") && !events.contains("other"), "{events}");

    // A new password: the session goes on, the old password is worth nothing.
    shell
        .with_stdin(&["passwd", "--password-stdin"], "not the old one\nanother long password")
        .fails(1, "(password_wrong)");
    shell.with_stdin(&["passwd", "--password-stdin"], &format!("{password}\n")).fails(2, "2 line(s)");
    shell.with_stdin(&["passwd", "--password-stdin"], &format!("{password}\nanother long password\n")).ok();
    shell.run("cvlan list").ok();
    shell.with_stdin(&["login", "--password-stdin"], password).fails(1, "(login_failed)");
    shell.with_stdin(&["login", "--password-stdin"], "another long password").ok();

    let admin = controller.url.strip_prefix("https://").unwrap();
    assert!(shell.run(&format!("--context {admin} status")).ok().out.contains("admin (superadmin)"));
}

#[test]
fn nobody_else_is_talked_to() {
    let (controller, other) = (Controller::start(), Controller::start());
    let shell = Shell::new();
    let login = |url: &str, pin: &str| {
        let said = shell.with_stdin(&["login", url, "--ca-pin", pin, "--password-stdin"], &controller.password);
        assert!(!shell.dir.path().join("contexts.json").exists(), "nothing is kept of a login that failed");
        said
    };
    login(&controller.url, &other.pin).fails(1, "(ca_pin_mismatch)");
    login(&controller.url, "sha256:1234").fails(2, "64 hex digits");
    login("http://127.0.0.1:1", &controller.pin).fails(2, "https://");
    login("https://127.0.0.1:1", &controller.pin).fails(1, "connection refused (unreachable)");
    login(&controller.url.replace("127.0.0.1", "127.0.0.2"), &controller.pin).fails(1, "(unreachable)");
    shell.run(&format!("login {}", controller.url)).fails(2, "--ca-pin");
    shell.run("login").fails(2, "which controller?");

    // A context that someone else's controller answers.
    let shell = Shell::admin(&controller);
    shell.tamper("url", json!(other.url));
    shell.run("status").fails(1, "(ca_pin_mismatch)");
}

/// A terminal, and a command in a session of its own on it.
struct Terminal {
    slave: File,
    master: File,
    child: Child,
}

impl Terminal {
    fn start(shell: &Shell, args: &[&str]) -> Self {
        let pty = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&pty).unwrap();
        unlockpt(&pty).unwrap();
        let path = ptsname(&pty, Vec::new()).unwrap();
        let path = OsStr::from_bytes(path.as_bytes());
        let slave = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_cvlanctl")])
            .args(args)
            .env("CVLAN_CONTEXT_DIR", shell.dir.path())
            .env_remove("CVLAN_PASSWORD")
            .stdin(slave.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        Self { slave, master: File::from(pty), child }
    }

    fn echo(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Reads until the terminal shows this.
    fn shows(&mut self, wanted: &str) -> String {
        let mut shown = String::new();
        while !shown.contains(wanted) {
            let mut piece = [0; 4096];
            let n = self.master.read(&mut piece).unwrap();
            shown.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
        shown
    }

    fn exit(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn a_password_is_typed_without_echo() {
    let controller = Controller::start();
    let shell = Shell::new();
    let login = ["login", &controller.url, "--ca-pin", &controller.pin];
    let mut terminal = Terminal::start(&shell, &login);
    terminal.shows("Password of admin: ");
    assert!(!terminal.echo());
    writeln!(terminal.master, "{}", controller.password).unwrap();
    let shown = terminal.shows("is the current one");
    assert!(!shown.contains(&controller.password), "{shown}");
    assert_eq!(terminal.exit(), Some(0));
    assert!(terminal.echo(), "it is given back as it was");
    shell.run("status").ok();

    let mut terminal = Terminal::start(&Shell::new(), &login);
    terminal.shows("Password of admin: ");
    terminal.master.write_all(b"\x03").unwrap();
    assert_eq!(terminal.exit(), Some(130), "Ctrl-C");
    assert!(terminal.echo(), "it is given back as it was");
}

#[test]
fn a_person_is_asked_before_something_goes() {
    let controller = Controller::start();
    let shell = Shell::admin(&controller);
    shell.run("tenant create acme").ok();
    for (answer, exit, left) in [("n", 1, "acme\n"), ("", 1, "acme\n"), ("y", 0, "")] {
        let mut terminal = Terminal::start(&shell, &["tenant", "delete", "acme"]);
        terminal.shows("delete tenant acme? [y/N] ");
        writeln!(terminal.master, "{answer}").unwrap();
        assert_eq!(terminal.exit(), Some(exit), "{answer:?}");
        assert_eq!(shell.run("tenant list -o name").ok().out, left, "{answer:?}");
    }
}

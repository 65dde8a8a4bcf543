//! Data folders that are locked, newer, another member's, cut, flipped, full: a clear error that names what is wrong, or the
//! same state as before; never something in between.

use crate::common::{Cluster, eventually};
use bytes::Bytes;
use cvlan_core::id::{Epoch, Seq};
use cvlan_core::machine::{Machine, SystemFact};
use cvlan_raft::counter::{Command, Counter};
use cvlan_raft::{
    Disk, File, FileDisk, Files, Job, Lane, Limits, Member, NoTransport, OpenError, Options, VerifyError, WriteError,
    verify_dir,
};
use openraft_rt_tokio::TokioRuntime;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Counting = Member<Counter, TokioRuntime>;

async fn open_with(disk: Arc<dyn Disk>, edit: impl FnOnce(&mut Options<Counter>)) -> Result<Counting, OpenError> {
    let mut options = Options::single(disk);
    options.limits = Limits { segment_bytes: 16 << 10, tail_bytes: 4 << 10, ..Limits::default() };
    edit(&mut options);
    let member = Counting::open(options, NoTransport).await?;
    assert!(member.writable(Duration::from_secs(10)).await);
    Ok(member)
}

async fn open(folder: &Path) -> Result<Counting, OpenError> {
    open_with(FileDisk::open(folder)?, |_| {}).await
}

/// A folder with `n` commands in it, and the digest of its head.
async fn filled(n: u64) -> (tempfile::TempDir, [u8; 32]) {
    let folder = tempfile::tempdir().unwrap();
    let member = open(folder.path()).await.unwrap();
    member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
    for by in 0..n {
        let note = Bytes::from(vec![by as u8; 200]);
        member.write(Command::Add { by, times: 1, note, once: None }).await.unwrap();
    }
    let digest = member.head().digest::<Counter>();
    member.shutdown().await;
    (folder, digest)
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder.join("log")).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|name| name.extension().is_some_and(|e| e == "seg"));
    names.sort();
    names
}

/// Behind the last byte that is not zero.
fn end(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Opens as it is and expects `code`, and `words` in the message.
async fn refuses(folder: &Path, code: &str, words: &str) {
    let error = open(folder).await.err().expect("an error");
    assert_eq!(error.code(), code, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let held = FileDisk::open(folder.path()).unwrap();
    refuses(folder.path(), "data_folder_locked", "is locked by another process").await;
    drop(held);
    assert!(open(folder.path()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_members_or_a_newer_folder_is_refused() {
    let (folder, _) = filled(3).await;
    let other = open_with(FileDisk::open(folder.path()).unwrap(), |options| options.member = 2).await;
    assert_eq!(other.err().unwrap().code(), "data_folder_other_member");
    let segment = &segments(folder.path())[0];
    let whole = std::fs::read(segment).unwrap();
    let mut bytes = whole.clone();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(segment, &bytes).unwrap();
    refuses(folder.path(), "data_folder_newer", "log/0000000001.seg has format 9").await;
    std::fs::write(segment, &whole).unwrap();

    std::fs::create_dir_all(folder.path().join("snapshots")).unwrap();
    let snapshot = folder.path().join("snapshots/00000000000000000004.snap");
    let mut bytes = b"CVLANSNP\x02\0\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    std::fs::write(&snapshot, bytes).unwrap();
    refuses(folder.path(), "data_folder_newer", "has format 2").await;
}

/// Of nothing there is no snapshot: beside a log without a vote or an entry it would say that the log is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_asked_for_a_snapshot_opens_again() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut options = Options::<Counter>::single(FileDisk::open(folder.path()).unwrap());
        options.initialize = false;
        let member = Counting::open(options, NoTransport).await.unwrap();
        member.snapshot().await.unwrap();
        member.shutdown().await;
    }
    let member = open(folder.path()).await.unwrap();
    member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
    member.snapshot().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_epoch_is_refused() {
    let (folder, _) = filled(30).await;
    let other = tempfile::tempdir().unwrap();
    let member = open(other.path()).await.unwrap();
    member.bootstrap(Epoch([8; 16]), Command::add(1)).await.unwrap();
    member.snapshot().await.unwrap();
    member.shutdown().await;
    drop(member);
    let name = "snapshots/00000000000000000001.snap";
    std::fs::create_dir_all(folder.path().join("snapshots")).unwrap();
    std::fs::copy(other.path().join(name), folder.path().join(name)).unwrap();
    refuses(folder.path(), "data_folder_other_epoch", &Epoch([8; 16]).to_string()).await;
    std::fs::remove_file(folder.path().join(name)).unwrap();
    assert!(open(folder.path()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut_and_writing_goes_on() {
    let (folder, digest) = filled(100).await;
    let last = segments(folder.path()).pop().unwrap();
    let whole = std::fs::read(&last).unwrap();
    let whole_end = end(&whole);
    // Half of a block that was never completed: any piece of an older one, or noise.
    for (torn, what) in
        [(whole[100..400].to_vec(), "a piece"), (vec![0xff; 5], "noise"), (b"CVB1".to_vec(), "a header")]
    {
        let mut bytes = whole.clone();
        let at = (whole_end + 8).next_multiple_of(8);
        bytes[at..at + torn.len()].copy_from_slice(&torn);
        std::fs::write(&last, &bytes).unwrap();
        let member = open(folder.path()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(member.head().digest::<Counter>(), digest, "{what}");
        member.shutdown().await;
        drop(member);
        std::fs::write(&last, &whole).unwrap();
    }
    // The end itself torn: the marker of an orderly stop, and what was written with it, go.
    let mut bytes = whole.clone();
    bytes[whole_end - 1] ^= 1;
    std::fs::write(&last, &bytes).unwrap();
    let member = open(folder.path()).await.unwrap();
    assert_eq!(member.head().digest::<Counter>(), digest);
    member.write(Command::add(1)).await.unwrap();
    let digest = member.head().digest::<Counter>();
    member.shutdown().await;
    drop(member);
    assert_eq!(open(folder.path()).await.unwrap().head().digest::<Counter>(), digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_before_the_end_is_an_error_that_names_the_record() {
    let (folder, _) = filled(150).await;
    let segments = segments(folder.path());
    assert!(segments.len() >= 3, "{segments:?}");
    for (nth, segment) in segments.iter().enumerate() {
        let content = end(&std::fs::read(segment).unwrap());
        let name = format!("log/{}", segment.file_name().unwrap().to_str().unwrap());
        // Header, first block, middle; in the last segment not the very last block.
        for at in [3, 70, 100, content / 2, content - 600] {
            flip(segment, at);
            let error = open(folder.path()).await.err().unwrap_or_else(|| panic!("{name} byte {at} was not noticed"));
            assert_eq!(error.code(), "data_folder_damaged", "{error}");
            assert!(error.to_string().contains(&name), "byte {at} of {name} ({nth}): {error}");
            let closed = verify_dir::<Counter, TokioRuntime>(FileDisk::open(folder.path()).unwrap()).await;
            assert!(closed.is_err(), "{name} byte {at}");
            flip(segment, at);
        }
    }
    open(folder.path()).await.expect("each was put right again").shutdown().await;
    std::fs::remove_file(&segments[1]).unwrap();
    refuses(folder.path(), "data_folder_incomplete", "log/0000000002.seg is missing").await;
    std::fs::remove_file(&segments[0]).unwrap();
    refuses(folder.path(), "data_folder_incomplete", "there is no snapshot").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_without_their_log_are_refused_and_no_other_is_begun() {
    let (folder, _) = filled(5).await;
    let member = open(folder.path()).await.unwrap();
    member.snapshot().await.unwrap();
    member.shutdown().await;
    drop(member);
    std::fs::remove_dir_all(folder.path().join("log")).unwrap();
    for _ in 0..2 {
        refuses(folder.path(), "data_folder_log_gone", "this member's log is gone").await;
        assert!(!folder.path().join("log").exists(), "nothing was begun");
    }
    // One was begun, and nothing came into it.
    let other = tempfile::tempdir().unwrap();
    let options = Options { initialize: false, ..Options::single(FileDisk::open(other.path()).unwrap()) };
    Counting::open(options, NoTransport).await.unwrap().shutdown().await;
    std::fs::rename(other.path().join("log"), folder.path().join("log")).unwrap();
    refuses(folder.path(), "data_folder_log_gone", "this member's log is gone").await;
    std::fs::remove_dir_all(folder.path().join("snapshots")).unwrap();
    assert!(open(folder.path()).await.is_ok(), "without any it is a new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_not_completed_are_swept_away() {
    let (folder, digest) = filled(20).await;
    std::fs::write(folder.path().join("log/next.tmp"), [1; 100]).unwrap();
    std::fs::create_dir_all(folder.path().join("snapshots")).unwrap();
    std::fs::write(folder.path().join("snapshots/making.tmp"), [1; 100]).unwrap();
    std::fs::write(folder.path().join("snapshots/00000000000000000005.snap"), [1; 10]).unwrap();
    let member = open(folder.path()).await.unwrap();
    assert_eq!(member.head().digest::<Counter>(), digest);
}

/// A disk on which no file can be made while it is full, and no write is synced while it is broken.
struct Narrow {
    inner: Arc<dyn Disk>,
    full: Arc<AtomicBool>,
    /// What it is too full for: names that begin so.
    room: &'static str,
    broken: Arc<AtomicBool>,
    gate: Arc<Gate>,
}

impl Narrow {
    /// Waits for whoever had it before.
    async fn on(folder: &Path) -> Self {
        let mut disk = FileDisk::open(folder);
        for _ in 0..1_000 {
            if let Err(OpenError::Locked { .. }) = disk {
                tokio::time::sleep(Duration::from_millis(5)).await;
                disk = FileDisk::open(folder);
            }
        }
        Self::around(disk.unwrap())
    }

    fn around(inner: Arc<dyn Disk>) -> Self {
        Self { inner, full: Arc::default(), room: "", broken: Arc::default(), gate: Arc::default() }
    }
}

/// Holds up a job that is not of the log, by its number since the gate was set.
#[derive(Default)]
struct Gate {
    left: AtomicI64,
    reached: AtomicBool,
    open: AtomicBool,
}

impl Gate {
    fn set(&self, job: i64) {
        self.reached.store(false, SeqCst);
        self.open.store(false, SeqCst);
        self.left.store(job, SeqCst);
    }

    fn pass(&self) {
        if self.left.fetch_sub(1, SeqCst) == 1 {
            self.reached.store(true, SeqCst);
            for _ in 0..10_000 {
                if self.open.load(SeqCst) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// "Too many open files", of Linux.
const EMFILE: i32 = 24;
static TURN: AtomicUsize = AtomicUsize::new(0);

struct NarrowFiles<'a> {
    inner: &'a dyn Files,
    full: &'a AtomicBool,
    room: &'static str,
    broken: &'a Arc<AtomicBool>,
}

struct NarrowFile(Arc<dyn File>, Arc<AtomicBool>);

impl File for NarrowFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(at, buf)
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(at, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        if self.1.load(SeqCst) { Err(io::Error::other("input/output error")) } else { self.0.sync() }
    }
}

impl Disk for Narrow {
    fn run(&self, lane: Lane, job: Job) {
        let (full, room, broken, gate) = (self.full.clone(), self.room, self.broken.clone(), self.gate.clone());
        let job = move |inner: &dyn Files| {
            if matches!(lane, Lane::Read | Lane::Work) {
                gate.pass();
            }
            job(&NarrowFiles { inner, full: &full, room, broken: &broken });
        };
        self.inner.run(lane, Box::new(job));
    }
}

impl Files for NarrowFiles<'_> {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.inner.list(folder)
    }
    fn make_folder(&self, folder: &str) -> io::Result<()> {
        self.inner.make_folder(folder)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.inner.open(name)
    }
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        if self.full.load(SeqCst) && name.starts_with(self.room) {
            // Or no descriptor is left: one as the other.
            let other = TURN.fetch_add(1, SeqCst) % 2 == 1;
            return Err(if other { io::Error::from_raw_os_error(EMFILE) } else { io::ErrorKind::StorageFull.into() });
        }
        Ok(Arc::new(NarrowFile(self.inner.create(name, len)?, self.broken.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        self.inner.sync_folder(folder)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_stays_readable_and_goes_on_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Narrow::on(folder.path()).await);
    let full = disk.full.clone();
    let member = open_with(disk.clone(), |_| {}).await.unwrap();
    member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
    full.store(true, SeqCst);
    let mut written = 1;
    let error = loop {
        match member.write(Command::add(1)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 10_000);
    };
    assert_eq!((&error, error.code()), (&WriteError::DiskFull, "disk_full"));
    assert_eq!((member.head().machine.sum, member.status().disk_full), (written, true));
    assert_eq!(member.snapshot().await.unwrap_err().code(), "snapshot_not_written");
    assert!(member.status().snapshot_error.is_some(), "a snapshot without room is no reason to stop");
    assert_eq!(member.history(Seq(1), 5).await.unwrap().len(), 5);
    full.store(false, SeqCst);
    let mut tries = 0;
    while let Err(error) = member.write(Command::add(1)).await {
        assert_eq!(error, WriteError::DiskFull);
        tries += 1;
        assert!(tries < 500, "never went on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(member.head().machine.sum, written + 1);
    member.shutdown().await;
    drop((member, disk));
    assert_eq!(open(folder.path()).await.unwrap().head().machine.sum, written + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_hands_over_and_writes_go_on() {
    let disks: Arc<Mutex<BTreeMap<u64, Arc<AtomicBool>>>> = Arc::default();
    let theirs = disks.clone();
    let cluster = Cluster::with(3, move |options| {
        let narrow = Narrow::around(options.disk.clone());
        theirs.lock().unwrap().insert(options.member, narrow.full.clone());
        options.disk = Arc::new(narrow);
    })
    .await;
    let before = cluster.leader().await;
    let other = before % 3 + 1;
    let full = disks.lock().unwrap()[&before].clone();
    full.store(true, SeqCst);
    let (mut due, mut unknown) = (cluster.sum(), 0);
    while !cluster.member(before).status().disk_full {
        let note = Bytes::from(vec![1; 500]);
        match cluster.member(other).write(Command::Add { by: 1, times: 1, note, once: None }).await {
            Ok(_) => due += 1,
            Err(WriteError::DiskFull | WriteError::NoLeader) => {}
            // It was on its way while the leadership went.
            Err(WriteError::OutcomeUnknown) => unknown += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(due < 1_000, "it is never full");
    }
    eventually("another one leads", || {
        [1, 2, 3].into_iter().any(|id| id != before && cluster.member(id).status().writable)
    })
    .await;
    // More than what is left of its segment: it stops following, and the others do not wait for it.
    for _ in 0..200 {
        let note = Bytes::from(vec![1; 500]);
        cluster.member(other).write(Command::Add { by: 1, times: 1, note, once: None }).await.unwrap();
        due += 1;
    }
    assert_eq!(cluster.member(before).write(Command::add(1)).await.err(), Some(WriteError::DiskFull));
    assert!((due..=due + unknown).contains(&cluster.sum()));
    full.store(false, SeqCst);
    eventually("it goes on", || !cluster.member(before).status().disk_full).await;
    cluster.same().await;
    assert!((due..=due + unknown).contains(&cluster.sum()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_stops_the_member_and_a_restart_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Narrow::on(folder.path()).await);
    let broken = disk.broken.clone();
    let member = open_with(disk.clone(), |_| {}).await.unwrap();
    member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
    broken.store(true, SeqCst);
    assert_eq!(member.write(Command::add(1)).await.err(), Some(WriteError::Stopped));
    broken.store(false, SeqCst);
    assert_eq!(member.write(Command::add(1)).await.err(), Some(WriteError::Stopped), "it never tries again");
    let status = member.status();
    assert!(status.fatal.as_ref().is_some_and(|why| why.contains("input/output error")), "{status:?}");
    assert_eq!(member.head().machine.sum, 1, "still readable");
    member.shutdown().await;
    drop((member, disk));
    let sum = open(folder.path()).await.unwrap().head().machine.sum;
    assert!((1..=2).contains(&sum), "{sum}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_from_what_was_attested_serves_no_more() {
    let (folder, _) = filled(5).await;
    let member = open(folder.path()).await.unwrap();
    let opened = member.write(Command::System(SystemFact::CheckpointOpened)).await.unwrap();
    let (seq, root) = (opened.checkpoint.seq, member.head().root);
    let digest = member.head().digest::<Counter>();
    member.write(Command::System(SystemFact::Checkpointed { seq, root, digest })).await.unwrap();
    assert_eq!(member.status().diverged, None);
    let opened = member.write(Command::System(SystemFact::CheckpointOpened)).await.unwrap();
    let (seq, root) = (opened.checkpoint.seq, member.head().root);
    member.write(Command::System(SystemFact::Checkpointed { seq, root, digest })).await.unwrap();
    for _ in 0..100 {
        if member.status().diverged.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(member.status().diverged, Some(seq.0));
    assert_eq!(member.write(Command::add(1)).await.err(), Some(WriteError::Diverged));
    let VerifyError::Entry { seq: at, detail, .. } = member.log_verify(None).await.unwrap_err() else { panic!() };
    assert_eq!(at, seq);
    assert!(detail.contains("attested"), "{detail}");
}

/// The counter of an older version, which does not know the events of a note of 13 bytes.
struct Older;

impl Machine for Older {
    type State = <Counter as Machine>::State;
    type Command = Command;
    type Event = <Counter as Machine>::Event;
    type Rejection = <Counter as Machine>::Rejection;
    type Key = ();
    fn decide(
        state: &Self::State,
        context: &cvlan_core::machine::Context,
        command: &Command,
    ) -> Result<Vec<Self::Event>, Self::Rejection> {
        Counter::decide(state, context, command)
    }
    fn apply(state: &mut Self::State, event: &Self::Event) {
        Counter::apply(state, event);
    }
    fn encode(event: &Self::Event, into: &mut Vec<u8>) {
        Counter::encode(event, into);
    }
    fn encoded_len(event: &Self::Event) -> usize {
        Counter::encoded_len(event)
    }
    fn decode(bytes: &[u8]) -> Result<Self::Event, cvlan_core::machine::Unreadable> {
        if bytes.len() == 40 + 9 + 13 {
            return Err(cvlan_core::machine::Unreadable { what: "event", detail: "kind 13 is not known".into() });
        }
        Counter::decode(bytes)
    }
    fn seq(event: &Self::Event) -> cvlan_core::id::Seq {
        Counter::seq(event)
    }
    fn time_ms(event: &Self::Event) -> u64 {
        Counter::time_ms(event)
    }
    fn once(command: &Command) -> Option<cvlan_core::machine::Once> {
        Counter::once(command)
    }
    fn number(command: &mut Command, once: cvlan_core::machine::Once) {
        Counter::number(command, once);
    }

    fn event_once(event: &Self::Event) -> Option<cvlan_core::machine::Once> {
        Counter::event_once(event)
    }
    fn system(fact: SystemFact, id: [u8; 16]) -> Command {
        Counter::system(fact, id)
    }
    fn event_fact(event: &Self::Event) -> Option<SystemFact> {
        Counter::event_fact(event)
    }
    fn touched(event: &Self::Event) -> Vec<()> {
        Counter::touched(event)
    }
    fn save(state: &Self::State, into: &mut Vec<u8>) {
        Counter::save(state, into);
    }
    fn load(bytes: &[u8]) -> Result<Self::State, cvlan_core::machine::Unreadable> {
        Counter::load(bytes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_an_unknown_kind_stops_the_member() {
    let (folder, _) = filled(5).await;
    let member = open(folder.path()).await.unwrap();
    let note = Bytes::from(vec![0; 13]);
    member.write(Command::Add { by: 1, times: 1, note, once: None }).await.unwrap();
    member.write(Command::add(1)).await.unwrap();
    member.shutdown().await;
    drop(member);
    let options = Options::<Older>::single(FileDisk::open(folder.path()).unwrap());
    let error = Member::<Older, TokioRuntime>::open(options, NoTransport).await.err().unwrap();
    assert_eq!(error.code(), "data_folder_unreadable");
    assert!(error.to_string().contains("kind 13 is not known"), "{error}");
    assert!(open(folder.path()).await.is_ok(), "the newer version goes on");
}

/// A member on this disk that keeps history for half a second, and none of it goes yet.
async fn trimming(disk: Arc<dyn Disk>) -> Counting {
    let member = open_with(disk, |options| {
        let limits = &mut options.limits;
        (limits.purge_behind, limits.history_ms, limits.history_check_ms) = (5, 500, 20);
    });
    let member = member.await.unwrap();
    member.history_hold(Seq(1));
    member
}

/// Writes until there is history to let go of, in files of its own.
async fn aged(member: &Counting) {
    for by in 0..80 {
        let note = Bytes::from(vec![by as u8; 1000]);
        member.write(Command::Add { by, times: 1, note, once: None }).await.unwrap();
        if by % 20 == 19 {
            member.snapshot().await.unwrap();
        }
    }
    let end = Instant::now() + Duration::from_secs(20);
    while member.head().machine.history_from <= member.status().history_from {
        assert!(Instant::now() < end, "{:?}", member.status());
        member.write(Command::add(1)).await.unwrap();
        member.snapshot().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All that is left is there, and is what the log came to.
async fn is_whole(member: &Counting) -> Seq {
    let (from, head) = (Seq(member.status().history_from), member.head());
    let report = member.log_verify(Some(head.seq)).await.unwrap();
    assert!(report.from >= from && report.seq == head.seq, "{report:?}");
    let mut next = from;
    while next <= head.seq {
        let page = member.history(next, 1000).await.unwrap();
        assert_eq!(page[0].0, next);
        next = Seq(page.last().unwrap().0.0 + 1);
    }
    from
}

#[tokio::test(flavor = "multi_thread")]
async fn history_stays_until_the_state_that_is_left_begins_with_can_be_written() {
    for room in ["snapshots/", "tiles/", ""] {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(Narrow { room, ..Narrow::on(folder.path()).await });
        let member = trimming(disk.clone()).await;
        member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
        aged(&member).await;
        disk.full.store(true, SeqCst);
        member.history_hold(Seq(u64::MAX));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(is_whole(&member).await, Seq(1), "no room in {room}");
        disk.full.store(false, SeqCst);
        let end = Instant::now() + Duration::from_secs(20);
        while member.status().history_from == 1 {
            assert!(Instant::now() < end, "never went on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What was said to go goes after that.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(is_whole(&member).await > Seq(1));
        member.shutdown().await;
    }
}

/// History may go, and the gate holds up this job from now on; false where all that goes went before it.
async fn held_up(member: &Counting, gate: &Gate, job: i64) -> bool {
    let from = member.status().history_from;
    gate.set(job);
    member.history_hold(Seq(u64::MAX));
    let end = Instant::now() + Duration::from_secs(20);
    while !gate.reached.load(SeqCst) && member.status().history_from == from {
        assert!(Instant::now() < end, "job {job} never came");
        member.write(Command::add(1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    member.status().history_from == from
}

/// It is stopped while a trim reads, folds, writes the state and removes files: at each of its jobs in turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_trim_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut stopped = Vec::new();
    for job in 1.. {
        let disk = Arc::new(Narrow::on(folder.path()).await);
        let gate = disk.gate.clone();
        let member = trimming(disk.clone()).await;
        if job == 1 {
            member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
        }
        aged(&member).await;
        let from = is_whole(&member).await;
        let before = held_up(&member, &gate, job).await;
        let sum = member.head().machine.sum;
        let stop = tokio::spawn(async move { member.shutdown().await });
        tokio::time::sleep(Duration::from_millis(30)).await;
        gate.open.store(true, SeqCst);
        tokio::time::timeout(Duration::from_secs(10), stop).await.expect("it stops").unwrap();
        drop(disk);

        let member = trimming(Arc::new(Narrow::on(folder.path()).await)).await;
        assert!(is_whole(&member).await >= from, "job {job}");
        assert_eq!(member.head().machine.sum, sum);
        member.shutdown().await;
        if !before {
            break;
        }
        stopped.push(job);
    }
    assert!(stopped.len() >= 6, "{stopped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_reads_stays_until_they_are_through() {
    let folder = tempfile::tempdir().unwrap();
    let member = trimming(Arc::new(Narrow::on(folder.path()).await)).await;
    member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
    aged(&member).await;
    let (reading, other) = (member.history_reading(Seq(1)), member.history_reading(Seq(60)));
    member.history_hold(Seq(u64::MAX));
    let settled = || tokio::time::sleep(Duration::from_millis(300));
    let still = async |from: u64| {
        settled().await;
        assert!(is_whole(&member).await <= Seq(from));
    };
    let gone = async |from: u64| {
        let end = Instant::now() + Duration::from_secs(20);
        while member.status().history_from <= from {
            assert!(Instant::now() < end, "{:?}", member.status());
            member.write(Command::add(1)).await.unwrap();
            member.snapshot().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        settled().await;
        is_whole(&member).await
    };
    still(1).await;
    drop(other);
    still(1).await;
    reading.at(Seq(40));
    let from = gone(1).await;
    assert!(from < Seq(40), "what lies before it is read, too");
    still(39).await;
    drop(reading);
    assert!(gone(39).await > from);
    member.shutdown().await;
}

/// Somebody begins to read while a trim is on its way, at each of its jobs in turn: it is told that it is gone, or all of it stays.
#[tokio::test(flavor = "multi_thread")]
async fn who_begins_to_read_in_the_middle_of_a_trim_is_told_or_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Narrow::on(folder.path()).await);
    let gate = disk.gate.clone();
    let member = trimming(disk).await;
    member.bootstrap(Epoch([7; 16]), Command::add(1)).await.unwrap();
    let (mut had, mut told) = (0, 0);
    for job in 1..=12 {
        aged(&member).await;
        let from = Seq(member.status().history_from);
        held_up(&member, &gate, job).await;
        let reading = member.history_reading(from);
        gate.open.store(true, SeqCst);
        match member.history(from, 1).await {
            Ok(_) => {
                had += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(is_whole(&member).await, from, "job {job}");
            }
            Err(error) => {
                told += 1;
                assert_eq!(error.code(), "history_gone");
            }
        }
        member.history_hold(Seq(1));
        drop(reading);
    }
    assert!(had >= 4, "{had} {told}");
    member.shutdown().await;
}

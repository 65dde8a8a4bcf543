//! Follows the sync stream: connects, hands frames to the [`Session`], effects to the [`Sink`], and finds another
//! controller when one goes.
//!
//! ```text
//!   ┌─── wait (up to 2 s; jittered, 200 ms … 10 s), next URL ◄─────┐
//!   ▼                                                              │ broken, silent for 75 s, Redirect, Bye
//!  connect ─► Hello{what is durable} ─► frames ─► Sink ─► …running ─► Ack
//! ```
//! Where somebody in between takes the upgrade away, it asks by polls (`poll.rs`), and tries the stream again from time to
//! time.
//! Tunnels go on whatever happens here: a controller that is away costs changes, never traffic.
//! Which controllers there are is asked at each connection and once a day: the cluster may have grown since enrolment.

use super::codec::{self, Decoder};
use super::poll::is_in_between;
use super::session::{Effect, Session};
use crate::URLS_MAX;
use crate::backoff::Backoff;
use crate::door::{DELETED, DISABLED, Door, DoorUrl};
use crate::store::StoreError;
use cvlan_core::id::Checkpoint;
use cvlan_core::sync::{DEAD_MS, HEARTBEAT_MS};
use cvlan_proto::v1::{self, SyncFrame, sync_frame::Frame};
use serde::Deserialize;
use std::cell::RefCell;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const PATH: &str = "/client/sync";
const PROTOCOL: &str = "cvlan-sync/1";
/// How long a frame may take to leave.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// The longest wait that a redirect may ask for.
const REDIRECT_MAX: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 16 << 10;
const PACE: Pace = Pace { heartbeat: Duration::from_millis(HEARTBEAT_MS), dead: Duration::from_millis(DEAD_MS) };

/// Between two questions which controllers there are; the last quarter is drawn, so that a fleet does not ask at once.
const DISCOVER: Duration = Duration::from_secs(24 * 3600);

/// Where effects go. What it has taken is durable.
pub trait Sink {
    /// Up to where it has everything.
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StoreError>;
    /// Takes a map, a delta or a step forward.
    fn take(&self, effect: Effect) -> Result<(), StoreError>;
    /// Node doors of all controllers, as one of them says: to be kept for the next start.
    fn controllers(&self, urls: &[String]) -> Result<(), StoreError>;
    /// The node is disabled or deleted: no peers, no checkpoint.
    fn wipe(&self) -> Result<(), StoreError>;
}

/// How the stream is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// A stream is open.
    pub connected: bool,
    /// The door it goes to, or that was tried last.
    pub url: String,
    /// Why the last one ended, or was not made.
    pub error: Option<String>,
}

/// What following needs.
pub struct Follow {
    /// With this machine's certificate.
    pub door: Door,
    /// Node doors to try, in turn.
    pub urls: Vec<DoorUrl>,
    /// The tenant's slug: controllers are discovered by it.
    pub tenant: String,
    /// Where this machine can be reached, as it changes.
    pub endpoints: watch::Receiver<Vec<String>>,
    /// What is durable *and* running, as it changes; it is acknowledged.
    pub running: watch::Receiver<Option<Checkpoint>>,
    /// Told how it goes.
    pub live: watch::Sender<Live>,
}

/// Why following ended for good.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The controller has deleted this node.
    #[error("{0}")]
    Deleted(String),
    /// The local state does not take what came.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How often to say something, and how long to hear nothing.
#[derive(Clone, Copy)]
struct Pace {
    heartbeat: Duration,
    dead: Duration,
}

// Read leniently: a later controller may say more than this version knows.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Discovered {
    controllers: Vec<String>,
}

/// Why a stream, or polling, ended.
#[derive(Debug)]
pub(super) enum Ended {
    Bye {
        code: String,
        detail: String,
    },
    Redirect {
        urls: Vec<DoorUrl>,
        after: Duration,
    },
    Broken {
        error: String,
        heard: bool,
    },
    /// Polled for long enough: the stream is tried again.
    Again,
}

/// Follows until the node is deleted or the local state fails; `sink` takes what comes.
pub async fn follow(mut follow: Follow, sink: &impl Sink) -> End {
    match follow.run(sink).await {
        Ok(end) => end,
        Err(error) => End::Store(error),
    }
}

impl Follow {
    async fn run(&mut self, sink: &impl Sink) -> Result<End, StoreError> {
        let mut backoff = Backoff::new(self.urls.len());
        let mut at = 0;
        loop {
            let Some(url) = self.urls.get(at % self.urls.len().max(1)).cloned() else {
                return Err(StoreError::Damaged("no controller URL"));
            };
            let ended = self.stream(&url, sink).await?;
            let (error, wait) = match ended {
                Ended::Again => continue,
                Ended::Redirect { urls, after } => {
                    let rest = std::mem::take(&mut self.urls).into_iter().filter(|url| !urls.contains(url));
                    self.urls = urls.iter().cloned().chain(rest).take(URLS_MAX).collect();
                    at = 0;
                    backoff = Backoff::new(self.urls.len());
                    self.live_set(&url, false, None);
                    sleep(after.max(backoff.wait())).await;
                    continue;
                }
                Ended::Bye { code, detail } if code == DELETED => {
                    sink.wipe()?;
                    self.live_set(&url, false, Some(detail.clone()));
                    return Ok(End::Deleted(detail));
                }
                Ended::Bye { code, detail } => {
                    if code == DISABLED {
                        sink.wipe()?;
                    }
                    // The same door again: it is there, and nothing will change soon.
                    (format!("{detail} ({code})"), Backoff::wait_long())
                }
                Ended::Broken { error, heard } => {
                    if heard {
                        // It may have told of others.
                        backoff.reset(self.urls.len());
                        at = self.urls.iter().position(|known| *known == url).unwrap_or_default();
                    }
                    at = at.wrapping_add(1);
                    (error, if heard { Backoff::wait_spread() } else { backoff.wait() })
                }
            };
            tracing::warn!(%url, "sync: {error}");
            self.live_set(&url, false, Some(error));
            sleep(wait).await;
        }
    }

    pub(super) fn live_set(&self, url: &DoorUrl, connected: bool, error: Option<String>) {
        self.live.send_replace(Live { connected, url: url.to_string(), error });
    }

    async fn stream(&mut self, url: &DoorUrl, sink: &impl Sink) -> Result<Ended, StoreError> {
        let (door, tenant, learned) = (self.door.clone(), self.tenant.clone(), RefCell::new(Vec::new()));
        let stream = match door.upgrade(url, PATH, PROTOCOL).await {
            Ok(stream) => stream,
            Err(error) => {
                if let Some((code, detail)) = error.refusal() {
                    return Ok(Ended::Bye { code, detail });
                }
                if !is_in_between(&error) {
                    return Ok(Ended::Broken { error: error.to_string(), heard: false });
                }
                tracing::info!(%url, "sync: no upgrade, polling: {error}");
                let ended = tokio::select! {
                    ended = self.polls(url, sink) => ended,
                    failed = discover(&door, url, &tenant, sink, &learned) => Err(failed),
                };
                self.urls_take(url, learned.into_inner());
                return ended;
            }
        };
        let session = Session::new(sink.checkpoint()?);
        let mut wire = Wire::new(stream);
        let endpoints = self.endpoints.borrow_and_update().clone();
        if let Err(error) = wire.send(session.hello(endpoints)).await {
            return Ok(Ended::Broken { error, heard: false });
        }
        tracing::info!(%url, "sync: connected");
        self.live_set(url, true, None);
        let ended = tokio::select! {
            ended = self.frames(session, wire, sink, PACE) => ended,
            failed = discover(&door, url, &tenant, sink, &learned) => Err(failed),
        };
        self.urls_take(url, learned.into_inner());
        ended
    }

    /// Controllers as they were discovered, the one in use first, those known before last. The others are in an order of this
    /// machine's own: when a member is lost, its machines do not all come to the same next one.
    fn urls_take(&mut self, used: &DoorUrl, mut learned: Vec<DoorUrl>) {
        if learned.is_empty() {
            return;
        }
        learned.sort_by_cached_key(|_| getrandom::u32().unwrap_or_default());
        let mut urls: Vec<DoorUrl> = Vec::new();
        for url in std::iter::once(used.clone()).chain(learned).chain(std::mem::take(&mut self.urls)) {
            if !urls.contains(&url) && urls.len() < URLS_MAX {
                urls.push(url);
            }
        }
        self.urls = urls;
    }

    async fn frames(
        &mut self,
        mut session: Session,
        mut wire: Wire<impl AsyncRead + AsyncWrite + Unpin>,
        sink: &impl Sink,
        pace: Pace,
    ) -> Result<Ended, StoreError> {
        let (mut heard, mut heard_at, mut said_at) = (false, Instant::now(), Instant::now());
        let mut acked = None;
        self.running.mark_changed();
        loop {
            let sent = tokio::select! {
                read = wire.read() => {
                    if let Err(error) = read {
                        return Ok(Ended::Broken { error, heard });
                    }
                    heard_at = Instant::now();
                    match frames_take(&mut session, &mut wire.decoder, &mut heard, sink)? {
                        Some(ended) => return Ok(ended),
                        None => continue,
                    }
                }
                Ok(()) = self.endpoints.changed() => {
                    let endpoints = self.endpoints.borrow_and_update().clone();
                    wire.send(SyncFrame { frame: Some(Frame::Endpoints(v1::Endpoints { endpoints })) }).await
                }
                Ok(()) = self.running.changed() => {
                    let running = *self.running.borrow_and_update();
                    match running.filter(|running| acked != Some(*running)) {
                        Some(running) => {
                            acked = Some(running);
                            let ack = v1::Ack { checkpoint: running.to_string() };
                            wire.send(SyncFrame { frame: Some(Frame::Ack(ack)) }).await
                        }
                        None => continue,
                    }
                }
                () = sleep_until(said_at + pace.heartbeat) => {
                    let checkpoint = sink.checkpoint()?.map(|have| have.to_string()).unwrap_or_default();
                    wire.send(SyncFrame { frame: Some(Frame::Heartbeat(v1::Heartbeat { checkpoint })) }).await
                }
                () = sleep_until(heard_at + pace.dead) => Err("silent for too long".to_owned()),
            };
            said_at = Instant::now();
            if let Err(error) = sent {
                return Ok(Ended::Broken { error, heard });
            }
        }
    }
}

/// Asks which controllers there are, now and from time to time; ends only where the local state does not take it.
async fn discover(
    door: &Door,
    url: &DoorUrl,
    tenant: &str,
    sink: &impl Sink,
    learned: &RefCell<Vec<DoorUrl>>,
) -> StoreError {
    let path = format!("/client/discover?tenant={tenant}");
    loop {
        match door.get::<Discovered>(url, &path).await {
            Ok(found) => {
                let urls: Vec<DoorUrl> = found.controllers.iter().filter_map(|url| url.parse().ok()).collect();
                let texts: Vec<String> = urls.iter().map(ToString::to_string).collect();
                if !urls.is_empty()
                    && let Err(error) = sink.controllers(&texts)
                {
                    return error;
                }
                *learned.borrow_mut() = urls;
            }
            Err(error) => tracing::debug!(%url, "discover: {error}"),
        }
        let drawn = getrandom::u32().unwrap_or_default();
        sleep(DISCOVER - (DISCOVER / 4).mul_f64(f64::from(drawn) / f64::from(u32::MAX))).await;
    }
}

fn frames_take(
    session: &mut Session,
    decoder: &mut Decoder,
    heard: &mut bool,
    sink: &impl Sink,
) -> Result<Option<Ended>, StoreError> {
    loop {
        let frame = match decoder.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(Ended::Broken { error: error.to_string(), heard: false })),
        };
        if let Some(ended) = frame_take(session, frame, sink)? {
            return Ok(Some(ended));
        }
        *heard = true;
    }
}

/// Takes one frame, whichever way it came.
pub(super) fn frame_take(
    session: &mut Session,
    frame: SyncFrame,
    sink: &impl Sink,
) -> Result<Option<Ended>, StoreError> {
    match session.handle(frame) {
        Ok(None) => {}
        Ok(Some(Effect::Bye { code, detail })) => return Ok(Some(Ended::Bye { code, detail })),
        Ok(Some(Effect::Redirect { urls, after_ms })) => {
            let urls = urls.iter().filter_map(|url| url.parse().ok()).take(URLS_MAX).collect();
            let after = Duration::from_millis(after_ms.into()).min(REDIRECT_MAX);
            return Ok(Some(Ended::Redirect { urls, after }));
        }
        Ok(Some(effect @ (Effect::Replace { .. } | Effect::Patch { .. } | Effect::Advance(_)))) => {
            sink.take(effect)?;
        }
        // Not heard: a controller that keeps breaking the rules is asked ever more slowly.
        Err(error) => return Ok(Some(Ended::Broken { error: error.to_string(), heard: false })),
    }
    Ok(None)
}

struct Wire<T> {
    stream: T,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    fn new(stream: T) -> Self {
        Self { stream, decoder: Decoder::default(), buffer: vec![0; READ_BYTES] }
    }

    /// Reads what there is into the decoder. Cancel-safe.
    async fn read(&mut self) -> Result<(), String> {
        match self.stream.read(&mut self.buffer).await {
            Ok(0) => Err("the controller closed the stream".to_owned()),
            Ok(length) => {
                self.decoder.push(self.buffer.get(..length).unwrap_or_default());
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn send(&mut self, frame: SyncFrame) -> Result<(), String> {
        let bytes = codec::encode(&frame).map_err(|error| error.to_string())?;
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match timeout(WRITE_MAX, write).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err("the controller reads too slowly".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;
    use tokio::io::DuplexStream;

    const EPOCH: &str = "000102030405060708090a0b0c0d0e0f";
    const QUICK: Pace = Pace { heartbeat: Duration::from_millis(100), dead: Duration::from_millis(450) };

    fn cp(seq: u64) -> Checkpoint {
        format!("{EPOCH}.{seq}").parse().unwrap()
    }

    #[derive(Default)]
    struct Fake {
        have: RefCell<Option<Checkpoint>>,
        taken: RefCell<Vec<Effect>>,
    }

    impl Sink for Fake {
        fn checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
            Ok(*self.have.borrow())
        }

        fn take(&self, effect: Effect) -> Result<(), StoreError> {
            if let Effect::Replace { checkpoint, .. } | Effect::Patch { checkpoint, .. } | Effect::Advance(checkpoint) =
                effect
            {
                *self.have.borrow_mut() = Some(checkpoint);
            }
            self.taken.borrow_mut().push(effect);
            Ok(())
        }

        fn controllers(&self, _: &[String]) -> Result<(), StoreError> {
            Ok(())
        }

        fn wipe(&self) -> Result<(), StoreError> {
            *self.have.borrow_mut() = None;
            Ok(())
        }
    }

    struct Ends {
        endpoints: watch::Sender<Vec<String>>,
        running: watch::Sender<Option<Checkpoint>>,
    }

    fn follow_new() -> (Follow, Ends) {
        let (endpoints, endpoints_rx) = watch::channel(Vec::new());
        let (running, running_rx) = watch::channel(None);
        let door = Door::new(tls::client_config([0; 32], None).unwrap());
        let live = watch::channel(Live::default()).0;
        let follow =
            Follow { door, urls: vec![], tenant: String::new(), endpoints: endpoints_rx, running: running_rx, live };
        (follow, Ends { endpoints, running })
    }

    /// Runs the agent's loop beside `controller`, which has the other end.
    fn check<F: Future<Output = ()>>(
        have: Option<u64>,
        controller: impl FnOnce(Wire<DuplexStream>, Ends) -> F,
    ) -> (Ended, Fake) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let (mut follow, ends) = follow_new();
            let fake = Fake { have: RefCell::new(have.map(cp)), ..Fake::default() };
            let session = Session::new(have.map(cp));
            let frames = follow.frames(session, Wire::new(ours), &fake, QUICK);
            let (ended, ()) = tokio::join!(frames, controller(Wire::new(theirs), ends));
            (ended.unwrap(), fake)
        })
    }

    async fn next(wire: &mut Wire<DuplexStream>) -> Frame {
        loop {
            if let Some(frame) = wire.decoder.next_frame().unwrap() {
                return frame.frame.unwrap();
            }
            wire.read().await.unwrap();
        }
    }

    fn map(seq: u64) -> SyncFrame {
        SyncFrame { frame: Some(Frame::Map(v1::Map { checkpoint: cp(seq).to_string(), ..v1::Map::default() })) }
    }

    #[test]
    fn discovered_controllers_come_after_the_one_in_use() {
        let (mut follow, _ends) = follow_new();
        let urls = |names: &[&str]| names.iter().map(|n| format!("https://{n}:1").parse().unwrap()).collect::<Vec<_>>();
        follow.urls = urls(&["old", "a"]);
        let mut seconds = std::collections::BTreeSet::new();
        for _ in 0..64 {
            follow.urls = urls(&["old", "a"]);
            follow.urls_take(&urls(&["a"])[0], urls(&["b", "a", "c"]));
            let [first, others @ .., last] = follow.urls.as_mut_slice() else { panic!() };
            assert_eq!((first.to_string(), last.to_string()), ("https://a:1".into(), "https://old:1".into()));
            seconds.insert(others[0].to_string());
            others.sort_by_key(ToString::to_string);
            assert_eq!(others, urls(&["b", "c"]));
        }
        assert_eq!(seconds.len(), 2, "machines go on to different ones");
        follow.urls = urls(&["a", "b", "c", "old"]);
        follow.urls_take(&urls(&["b"])[0], Vec::new());
        assert_eq!(follow.urls, urls(&["a", "b", "c", "old"]), "nothing was learned");
        let many: Vec<_> = (0..40).map(|n| format!("https://c{n}:1").parse().unwrap()).collect();
        follow.urls_take(&urls(&["a"])[0], many);
        assert_eq!(follow.urls.len(), URLS_MAX);
    }

    #[test]
    fn it_speaks_in_silence_and_gives_up_on_it() {
        let started = std::time::Instant::now();
        let (ended, _) = check(Some(7), |mut wire, _ends| async move {
            for _ in 0..3 {
                let Frame::Heartbeat(heartbeat) = next(&mut wire).await else { panic!() };
                assert_eq!(heartbeat.checkpoint, cp(7).to_string());
            }
            // Reads on, says nothing.
            while wire.read().await.is_ok() {}
        });
        assert!(matches!(ended, Ended::Broken { heard: false, .. }), "{ended:?}");
        assert!(started.elapsed() >= QUICK.dead);
    }

    #[test]
    fn what_runs_is_acknowledged_once_and_new_endpoints_are_said() {
        let (ended, fake) = check(None, |mut wire, ends| async move {
            wire.send(map(5)).await.unwrap();
            ends.running.send_replace(Some(cp(5)));
            let Frame::Ack(ack) = next(&mut wire).await else { panic!() };
            assert_eq!(ack.checkpoint, cp(5).to_string());
            ends.running.send_replace(None);
            ends.running.send_replace(Some(cp(5)));
            ends.endpoints.send_replace(vec!["192.0.2.1:1".into()]);
            let Frame::Endpoints(endpoints) = next(&mut wire).await else { panic!() };
            assert_eq!(endpoints.endpoints, ["192.0.2.1:1"]);
        });
        assert!(matches!(ended, Ended::Broken { heard: true, .. }), "{ended:?}");
        assert_eq!(fake.taken.borrow().len(), 1);
    }

    #[test]
    fn what_breaks_the_rules_ends_the_stream_and_keeps_what_there_is() {
        let bye = Frame::Bye(v1::Bye { code: "superseded".into(), detail: String::new() });
        let urls = vec!["https://a:1".into(), "nonsense".into()];
        let redirect = Frame::Redirect(v1::Redirect { urls, after_ms: u32::MAX });
        let ends = |frame: Option<SyncFrame>, bytes: &'static [u8]| {
            let (ended, fake) = check(Some(7), |mut wire, _ends| async move {
                match frame {
                    Some(frame) => wire.send(frame).await.unwrap(),
                    None => wire.stream.write_all(bytes).await.unwrap(),
                }
                while wire.read().await.is_ok() {}
            });
            assert_eq!(*fake.have.borrow(), Some(cp(7)));
            ended
        };
        assert!(matches!(ends(None, &[0xff, 0xff, 0xff]), Ended::Broken { heard: false, .. }));
        assert!(matches!(ends(None, &[1, 0x0a]), Ended::Broken { heard: false, .. }));
        assert!(matches!(ends(Some(map(6)), &[]), Ended::Broken { heard: false, .. }));
        assert!(matches!(ends(Some(SyncFrame { frame: Some(bye) }), &[]), Ended::Bye { .. }));
        let Ended::Redirect { urls, after } = ends(Some(SyncFrame { frame: Some(redirect) }), &[]) else { panic!() };
        assert_eq!((urls.len(), after), (1, REDIRECT_MAX));
    }
}

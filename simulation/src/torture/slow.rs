//! A slow way between members: while it is there, what they say to each other goes through the driver, which lets it wait.
//!
//! ```text
//!  member ─ dials 198.18.0.B:8445 ─► redirected to the hub (net.rs) ─► relay of this pair ─► member B
//!                                       each way: pieces in order, each 20 to 200 ms later, or at once
//! ```
//! TCP keeps the order within a connection; between connections, of which each pair has one each way, messages overtake
//! one another.

use super::net::{CLUSTER_PORT, HUB, MEMBERS, Net, Way};
use cvlan_core::grammar::Rng;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// A piece takes so long: from … to, ms.
const TAKES_MS: (u64, u64) = (20, 200);
/// Bytes of a piece, at most.
const PIECE: usize = 16 << 10;
/// Pieces on their way in one direction, at most.
const PIECES: usize = 256;
/// A connection to the member behind is waited for so long.
const CONNECT: Duration = Duration::from_secs(3);
/// After a connection that could not be accepted.
const REST: Duration = Duration::from_millis(50);

/// What is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// Everything that members say to each other.
    All,
    /// What this member says, or is told, or both.
    Of(usize, Way),
}

impl Late {
    fn holds(self, from: usize, to: usize) -> bool {
        match self {
            Self::All => true,
            Self::Of(at, way) => (at == from && way != Way::In) || (at == to && way != Way::Out),
        }
    }
}

/// What went through.
#[derive(Debug, Default)]
struct Carried {
    connections: AtomicU64,
    late: AtomicU64,
}

/// A relay for each ordered pair of members; dropped, it closes all connections.
pub struct Slow {
    ways: Vec<(usize, usize, u16)>,
    carried: Arc<Carried>,
    _relays: JoinSet<()>,
}

impl Slow {
    /// Listens in the hub; nobody is sent there yet.
    pub async fn start(late: Late, mut rng: Rng) -> std::io::Result<Self> {
        let (mut ways, mut relays, carried) = (Vec::new(), JoinSet::new(), Arc::<Carried>::default());
        let pairs = (0..MEMBERS).flat_map(|from| (0..MEMBERS).map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            let listener = TcpListener::bind(SocketAddrV4::new(HUB, 0)).await?;
            ways.push((from, to, listener.local_addr()?.port()));
            let relay = Relay {
                to: Net::address(to, CLUSTER_PORT),
                late: [late.holds(from, to), late.holds(to, from)],
                carried: carried.clone(),
            };
            relays.spawn(relay.serve(listener, Rng(rng.next())));
        }
        Ok(Self { ways, carried, _relays: relays })
    }

    /// From whom, to whom, and the relay's port in the hub.
    pub fn ways(&self) -> &[(usize, usize, u16)] {
        &self.ways
    }

    /// Connections so far, and bytes that came late.
    pub fn carried(&self) -> (u64, u64) {
        (self.carried.connections.load(Relaxed), self.carried.late.load(Relaxed))
    }
}

/// From one member to another.
#[derive(Clone)]
struct Relay {
    to: SocketAddr,
    /// What the dialling one says, what it is answered.
    late: [bool; 2],
    carried: Arc<Carried>,
}

impl Relay {
    async fn serve(self, listener: TcpListener, mut rng: Rng) {
        let mut open = JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((near, _)) => drop(open.spawn(self.clone().connection(near, [Rng(rng.next()), Rng(rng.next())]))),
                Err(_) => sleep(REST).await,
            }
            while open.try_join_next().is_some() {}
        }
    }

    async fn connection(self, near: TcpStream, [there, back]: [Rng; 2]) {
        // Nobody listens: the one that dialled is told by the end of its connection.
        let Ok(Ok(far)) = timeout(CONNECT, TcpStream::connect(self.to)).await else { return };
        if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
            return;
        }
        self.carried.connections.fetch_add(1, Relaxed);
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let [late_there, late_back] = self.late;
        tokio::join!(
            carry(near_in, far_out, late_there.then_some(there), &self.carried.late),
            carry(far_in, near_out, late_back.then_some(back), &self.carried.late)
        );
    }
}

/// One way, until it ends: each piece after what `late` draws, in order.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut late: Option<Rng>, bytes: &AtomicU64) {
    let (tx, mut rx) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let is_late = late.is_some();
    let read = async move {
        let (mut piece, mut last) = (vec![0; PIECE], Instant::now());
        while let Ok(n @ 1..) = from.read(&mut piece).await {
            let takes = late.as_mut().map_or(0, |rng| TAKES_MS.0 + rng.below(TAKES_MS.1 - TAKES_MS.0));
            last = last.max(Instant::now() + Duration::from_millis(takes));
            if tx.send((last, piece.iter().take(n).copied().collect())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, piece)) = rx.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
            if is_late {
                bytes.fetch_add(piece.len() as u64, Relaxed);
            }
        }
        // Whoever has gone is not told.
        let _ = to.shutdown().await;
    };
    // Writing ends after reading has, or where it cannot go on.
    tokio::select! {
        () = write => {}
        () = async { read.await; std::future::pending().await } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_what_the_fault_says() {
        let pairs = [(0, 1), (1, 0), (1, 2)];
        let holds = |late: Late| pairs.map(|(from, to)| late.holds(from, to));
        assert_eq!(holds(Late::All), [true, true, true]);
        assert_eq!(holds(Late::Of(0, Way::Both)), [true, true, false]);
        assert_eq!(holds(Late::Of(0, Way::Out)), [true, false, false]);
        assert_eq!(holds(Late::Of(0, Way::In)), [false, true, false]);
    }

    #[tokio::test]
    async fn bytes_come_in_order_late_one_way_and_at_once_the_other() {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = door.local_addr().unwrap();
        let relay = Relay { to: behind.local_addr().unwrap(), late: [true, false], carried: Arc::default() };
        let carried = relay.carried.clone();
        let serving = tokio::spawn(relay.serve(door, Rng(7)));
        let mut near = TcpStream::connect(here).await.unwrap();
        let (mut far, _) = behind.accept().await.unwrap();
        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let began = Instant::now();
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        assert!(began.elapsed() >= Duration::from_millis(TAKES_MS.0));
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert_eq!((carried.connections.load(Relaxed), carried.late.load(Relaxed)), (1, 100_000));
        serving.abort();
    }
}

//! The data daemon's loop: its socket, its clock, its interfaces.

use super::Daemon;
use cvlan_link::ifaces::{Ifaces, Watch};
use cvlan_link::ipc::{self, Reply, Request};
use cvlan_tunnel::Tunnel;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 8;

type Ask = (Request, oneshot::Sender<Reply>);

/// Serves `daemon` on `listener` until `ended`; then the tunnel is down.
pub async fn serve<T: Tunnel>(
    mut daemon: Daemon<T>,
    listener: UnixListener,
    ifname: &str,
    ended: impl Future<Output = ()>,
) {
    let (asks_tx, mut asks) = mpsc::channel::<Ask>(CONNECTIONS_MAX);
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut watch = Watch::new();
    let mut locals = locals_read(ifname);
    // Before any request: the tunnel then knows where this machine is.
    let mut due = Instant::now() + daemon.tick(std::time::Instant::now(), &locals).await;
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connection_start(stream, &free, &asks_tx),
                Err(error) => {
                    // Out of descriptors, most likely: that passes.
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some((request, answer)) = asks.recv() => {
                let reply = daemon.handle(request, std::time::Instant::now()).await;
                // Nobody waits any more: it is done all the same.
                let _ = answer.send(reply);
                due = Instant::now();
            }
            () = watch.changed() => {
                locals = locals_read(ifname);
                due = Instant::now();
            }
            () = sleep_until(due) => {
                let after = daemon.tick(std::time::Instant::now(), &locals).await;
                due = Instant::now() + after;
            }
        }
    }
    daemon.stop().await;
}

fn locals_read(ifname: &str) -> Vec<ipnet::IpNet> {
    let read = Ifaces::read().inspect_err(|error| tracing::warn!("cannot read the interfaces: {error}"));
    read.unwrap_or_default().networks(ifname)
}

fn connection_start(stream: UnixStream, free: &Arc<Semaphore>, asks: &mpsc::Sender<Ask>) {
    if !ipc::allowed(&stream) {
        tracing::warn!("refused a local connection of another user");
        return;
    }
    let Ok(permit) = free.clone().try_acquire_owned() else {
        tracing::warn!("refused a local connection: {CONNECTIONS_MAX} are open");
        return;
    };
    let asks = asks.clone();
    tokio::spawn(async move {
        if let Err(error) = connection(stream, asks).await {
            tracing::warn!("local connection: {error}");
        }
        drop(permit);
    });
}

async fn connection(mut stream: UnixStream, asks: mpsc::Sender<Ask>) -> Result<(), ipc::IpcError> {
    while let Some(request) = ipc::read(&mut stream).await? {
        let (answer, reply) = oneshot::channel();
        if asks.send((request, answer)).await.is_err() {
            return Ok(());
        }
        let Ok(reply) = reply.await else { return Ok(()) };
        ipc::write(&mut stream, &reply).await?;
    }
    Ok(())
}

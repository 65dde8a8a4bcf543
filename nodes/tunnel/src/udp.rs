//! The UDP transport: gotatun's own, with an eye on the handshakes that leave.
//!
//! gotatun counts bytes, from which nobody can tell a dead path from a quiet peer. The number of handshake initiations
//! sent to an address can: path choice (path.rs) compares it with the age of the session. A relay will be one more
//! kind of address here.

use gotatun::packet::Packet;
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// First byte of a handshake initiation (WireGuard whitepaper, 5.4.2).
const INITIATION: u8 = 1;
/// Addresses counted at a time; beyond it the counts start again, which only delays a search.
const ADDRESSES_MAX: usize = 1 << 18;

/// Handshake initiations sent so far, by address.
#[derive(Clone, Default)]
pub(crate) struct Initiations(Arc<Mutex<BTreeMap<SocketAddr, u64>>>);

impl Initiations {
    pub fn sent(&self, to: SocketAddr) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&to).copied().unwrap_or(0)
    }

    fn note(&self, packet: &Packet, to: SocketAddr) {
        if packet.first() == Some(&INITIATION) {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if counts.len() >= ADDRESSES_MAX {
                counts.clear();
            }
            *counts.entry(to).or_default() += 1;
        }
    }
}

/// Binds sockets that count.
#[derive(Default)]
pub(crate) struct Factory {
    pub inner: UdpSocketFactory,
    pub initiations: Initiations,
}

impl UdpTransportFactory for Factory {
    type Send = Sender;
    type Recv = UdpSocket;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Sender, UdpSocket)> {
        let (inner, receiver) = self.inner.bind(params).await?;
        Ok((Sender { inner, initiations: self.initiations.clone() }, receiver))
    }
}

/// A sending socket that counts.
#[derive(Clone)]
pub(crate) struct Sender {
    inner: UdpSocket,
    initiations: Initiations,
}

impl UdpSend for Sender {
    type SendManyBuf = <UdpSocket as UdpSend>::SendManyBuf;

    async fn send_to(&self, packet: Packet, to: SocketAddr) -> io::Result<()> {
        self.initiations.note(&packet, to);
        self.inner.send_to(packet, to).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.inner.max_number_of_packets_to_send()
    }

    async fn send_many_to(
        &self,
        buf: &mut Self::SendManyBuf,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        for (packet, to) in packets.iter() {
            self.initiations.note(packet, *to);
        }
        self.inner.send_many_to(buf, packets).await
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        UdpSend::local_addr(&self.inner)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        UdpSend::set_fwmark(&self.inner, mark)
    }
}

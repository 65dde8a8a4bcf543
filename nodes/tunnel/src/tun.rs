//! The TUN device, and its addresses.

use crate::{MTU, TunnelError};
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use ipnet::IpNet;
use std::io;
use std::sync::Arc;
use tun_rs::{AsyncDevice, DeviceBuilder};

/// A TUN device; it is gone with its last clone.
#[derive(Clone)]
pub(crate) struct Tun {
    device: Arc<AsyncDevice>,
}

impl Tun {
    pub fn open(ifname: &str) -> Result<Self, TunnelError> {
        let device = DeviceBuilder::new()
            .name(ifname)
            .mtu(MTU)
            .build_async()
            .map_err(|source| TunnelError::Tun { ifname: ifname.to_owned(), source })?;
        Ok(Self { device: Arc::new(device) })
    }

    /// True once the device was taken away from outside: the descriptor is bound to none then.
    pub fn is_gone(&self) -> bool {
        self.device.name().is_err()
    }

    /// Goes from the addresses `before` to those `after`. The kernel routes each one's network into the device.
    pub fn addresses_set(&self, ifname: &str, before: &[IpNet], after: &[IpNet]) -> Result<(), TunnelError> {
        let refused =
            |address: &IpNet, source| TunnelError::Address { ifname: ifname.to_owned(), address: *address, source };
        for address in before.iter().filter(|address| !after.contains(address)) {
            self.device.remove_address(address.addr()).map_err(|error| refused(address, error))?;
        }
        for address in after.iter().filter(|address| !before.contains(address)) {
            let added = match address {
                IpNet::V4(net) => self.device.add_address_v4(net.addr(), net.prefix_len()),
                IpNet::V6(net) => self.device.add_address_v6(net.addr(), net.prefix_len()),
            };
            match (added, address) {
                (Ok(()), _) => {}
                // A machine with IPv6 switched off is still a machine.
                (Err(error), IpNet::V6(_)) => tracing::warn!(%address, %error, "no IPv6 address on {ifname}"),
                (Err(error), IpNet::V4(_)) => return Err(refused(address, error)),
            }
        }
        Ok(())
    }
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.device.send(&packet.into_bytes()).await.map(|_| ())
    }
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        loop {
            let mut packet = pool.get();
            let length = self.device.recv(&mut packet).await?;
            packet.truncate(length);
            // What is no IP packet is dropped: an error here would end the device.
            if let Ok(packet) = packet.try_into_ip() {
                return Ok(std::iter::once(packet));
            }
        }
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(MTU)
    }
}

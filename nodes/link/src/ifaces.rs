//! This machine's network interfaces: where it can be reached, what networks it is on, and when that changes.

use getifaddrs::{Address, InterfaceFlags};
use ipnet::IpNet;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

/// Endpoints that are reported, as many as a controller takes.
pub const ENDPOINTS_MAX: usize = cvlan_core::name::ENDPOINTS_MAX;
/// Addresses that are looked at.
const ADDRESSES_MAX: usize = 1_024;
/// How long changes are gathered: an interface that comes up makes several.
const SETTLE: Duration = Duration::from_millis(300);
/// How often to look where the kernel does not tell.
const POLL: Duration = Duration::from_secs(30);
/// Multicast groups of rtnetlink(7): links, IPv4 and IPv6 addresses.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// The interfaces at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ifaces {
    addresses: Vec<(String, IpNet)>,
    mac: [u8; 6],
}

impl Ifaces {
    /// Reads them.
    pub fn read() -> io::Result<Self> {
        let (mut addresses, mut mac) = (Vec::new(), [0; 6]);
        for iface in getifaddrs::getifaddrs()?.take(ADDRESSES_MAX) {
            if iface.flags.contains(InterfaceFlags::LOOPBACK) {
                continue;
            }
            match iface.address {
                Address::Mac(found) => mac = if mac == [0; 6] { found } else { mac },
                Address::V4(_) | Address::V6(_) if !iface.flags.contains(InterfaceFlags::UP) => {}
                Address::V4(v4) => {
                    let net = v4.netmask.map(|mask| IpNet::with_netmask(v4.address.into(), mask.into()));
                    addresses.extend(net.and_then(Result::ok).map(|net| (iface.name, net)));
                }
                Address::V6(v6) => {
                    let net = v6.netmask.map(|mask| IpNet::with_netmask(v6.address.into(), mask.into()));
                    addresses.extend(net.and_then(Result::ok).map(|net| (iface.name, net)));
                }
            }
        }
        // IPv4 first: where both work, it is the one that more networks carry.
        addresses.sort_by_key(|(_, net)| net.addr().is_ipv6());
        Ok(Self { addresses, mac })
    }

    /// Hardware address of the first interface that has one, as `aa:bb:cc:dd:ee:ff`; zeros where none has.
    pub fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// Where a socket on `port` can be reached: all addresses but loopback, link-local ones and those of `ifname`.
    pub fn endpoints(&self, ifname: &str, port: u16) -> Vec<SocketAddr> {
        let usable = self.addresses.iter().filter(|(name, net)| name != ifname && reachable(net.addr()));
        usable.take(ENDPOINTS_MAX).map(|(_, net)| SocketAddr::new(net.addr(), port)).collect()
    }

    /// The networks that the interfaces are on, but `ifname`'s; sorted.
    pub fn networks(&self, ifname: &str) -> Vec<IpNet> {
        let usable = self.addresses.iter().filter(|(name, net)| name != ifname && reachable(net.addr()));
        let mut networks: Vec<IpNet> = usable.map(|(_, net)| net.trunc()).collect();
        networks.sort();
        networks.dedup();
        networks
    }
}

fn reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified() && !v4.is_multicast(),
        IpAddr::V6(v6) => {
            !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified() && !v6.is_multicast()
        }
    }
}

/// Tells when the interfaces may have changed.
pub struct Watch {
    socket: Option<AsyncFd<OwnedFd>>,
    due: Option<Instant>,
}

impl Watch {
    /// Starts; where the kernel does not tell, it falls back to looking now and then.
    pub fn new() -> Self {
        let socket = subscribe().inspect_err(|error| tracing::debug!(%error, "no rtnetlink; looking now and then"));
        Self { socket: socket.ok(), due: None }
    }

    /// Returns after something changed and settled. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.due.is_none() {
            let after = match &self.socket {
                Some(socket) => match drain(socket).await {
                    Ok(()) => SETTLE,
                    Err(_) => {
                        self.socket = None;
                        POLL
                    }
                },
                None => POLL,
            };
            self.due = Some(Instant::now() + after);
        }
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        self.due = None;
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

// Sound for an `OwnedFd`; the replacement is `unsafe`, which this workspace forbids.
#[allow(deprecated)]
fn subscribe() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUPS))?;
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Waits for a message and throws away all there are: what they say is read from the interfaces.
async fn drain(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = [0u8; 4096];
    let mut ready = socket.readable().await?;
    loop {
        let read = ready.try_io(|socket| {
            let (length, _) = rustix::net::recv(socket.get_ref(), &mut buffer[..], RecvFlags::DONTWAIT)?;
            Ok(length)
        });
        match read {
            Err(_) => return Ok(()),
            // Messages were lost: that is a change too.
            Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ifaces(addresses: &[(&str, &str)]) -> Ifaces {
        let addresses = addresses.iter().map(|(name, net)| ((*name).to_owned(), net.parse().unwrap())).collect();
        Ifaces { addresses, mac: [0, 1, 2, 0xa, 0xb, 0xff] }
    }

    #[test]
    fn endpoints_leave_out_what_nobody_can_reach() {
        let machine = ifaces(&[
            ("eth0", "192.0.2.7/24"),
            ("eth0", "169.254.3.3/16"),
            ("eth0", "fe80::7/64"),
            ("eth0", "2001:db8::7/64"),
            ("cvlan0", "10.0.0.2/24"),
            ("cvlan0", "fd00::2/64"),
        ]);
        let endpoints: Vec<String> = machine.endpoints("cvlan0", 51820).iter().map(ToString::to_string).collect();
        assert_eq!(endpoints, ["192.0.2.7:51820", "[2001:db8::7]:51820"]);
        let networks: Vec<String> = machine.networks("cvlan0").iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["192.0.2.0/24", "2001:db8::/64"]);
        assert_eq!(machine.mac(), "00:01:02:0a:0b:ff");
        let many: Vec<(&str, &str)> = vec![("eth0", "192.0.2.7/24"); 100];
        assert_eq!(ifaces(&many).endpoints("cvlan0", 1).len(), ENDPOINTS_MAX);
        assert_eq!(Ifaces::default().mac(), "00:00:00:00:00:00");
    }

    #[test]
    fn this_machine_can_be_read_and_watched() {
        let read = Ifaces::read().unwrap();
        assert!(read.addresses.iter().all(|(name, _)| !name.is_empty()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watch = Watch::new();
            let nothing = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
            assert!(nothing.is_err() || watch.socket.is_some());
        });
    }
}

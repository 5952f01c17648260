//! The address of a preset: assigned to the loopback device while it is served, unless the machine is in
//! a real cloud.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use vsock_agent_protocol::preset::BOARD_MAKER;

use crate::{rtnetlink::Rtnetlink, sk_lookup::SkLookup};

/// The loopback device, which only this machine can reach.
const LOOPBACK: &str = "lo";

/// Queue of connections that are not yet accepted: the kernel's maximum (`net.core.somaxconn`). TCP
/// retries a connection that does not fit after a second.
const BACKLOG: u32 = 4096;

/// Time for another machine with the address to respond, before it is assigned to this one. A real
/// service is on the next hop, a millisecond away.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// DMI fields of real clouds (`/sys/class/dmi/id`), and how their values begin: those of cloud-init's
/// `ds-identify`, and the vendors.
const CLOUDS: [(&str, &str); 24] = [
    ("sys_vendor", "Amazon EC2"),
    ("bios_vendor", "Amazon EC2"),
    ("bios_version", "4.2.amazon"),
    ("bios_version", "4.11.amazon"),
    ("product_uuid", "ec2"),
    ("product_serial", "ec2"),
    ("sys_vendor", "Alibaba Cloud"),
    ("product_name", "Alibaba Cloud ECS"),
    ("sys_vendor", "OpenStack Foundation"),
    ("product_name", "OpenStack"),
    ("chassis_asset_tag", "OpenTelekomCloud"),
    ("chassis_asset_tag", "HUAWEICLOUD"),
    ("sys_vendor", "Google"),
    ("product_name", "Google Compute Engine"),
    // Azure's.
    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
    ("chassis_asset_tag", "OracleCloud.com"),
    ("sys_vendor", "Hetzner"),
    ("sys_vendor", "DigitalOcean"),
    ("sys_vendor", "Scaleway"),
    ("sys_vendor", "UpCloud"),
    ("sys_vendor", "Vultr"),
    ("sys_vendor", "e24cloud"),
    ("sys_vendor", "3DS Outscale"),
    ("product_name", "CloudStack"),
];

/// The same, with how the values end.
const CLOUDS_BY_END: [(&str, &str); 2] = [
    ("product_serial", ".brightbox.com"),
    ("chassis_asset_tag", ".zstack.io"),
];

/// Why a preset is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It would hide a real one.
    #[error("this is a real cloud by its firmware: {0}")]
    RealCloud(String),
    /// Something answers at the address.
    #[error("{0} is in use by another machine")]
    InUse(IpAddr),
    /// The kernel refuses the address.
    #[error("cannot assign {0} to the loopback device")]
    Address(IpAddr, #[source] io::Error),
    /// The port is in use, or another error of the socket.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
}

/// The number of services of each address: several may use one, at different ports.
static USERS: Mutex<BTreeMap<IpAddr, usize>> = Mutex::new(BTreeMap::new());

/// An address that is assigned to this machine. `Drop` of the last one removes it from the loopback.
#[derive(Debug)]
pub(crate) struct LoopbackAddress(IpAddr);

impl LoopbackAddress {
    /// Assigns the address to the loopback device, unless another machine has it. `root` is the guest's
    /// `/`.
    ///
    /// # Errors
    ///
    /// [`AddressError`].
    pub(crate) async fn acquire(root: &Path, address: SocketAddr) -> Result<Self, AddressError> {
        if let Some(cloud) = real_cloud(root) {
            return Err(AddressError::RealCloud(cloud));
        }
        let ip = address.ip();
        if !is_assigned(ip) && responds(address, PROBE_TIMEOUT).await {
            return Err(AddressError::InUse(ip));
        }
        Self::add(ip).map_err(|error| AddressError::Address(ip, error))
    }

    fn add(ip: IpAddr) -> io::Result<Self> {
        let mut users = users();
        // One that is assigned is the loopback's own or another service's, or is left from an agent
        // that was killed.
        if !is_assigned(ip) {
            change(|kernel, index| kernel.add_address(index, ip))?;
        }
        *users.entry(ip).or_default() += 1;
        Ok(Self(ip))
    }

    /// Listens on the address, bound to the loopback device: Linux accepts packets for any of its
    /// addresses on every device, so other machines could connect otherwise.
    ///
    /// The port stays free for the guest's programs if the kernel supports `sk_lookup`; the redirection
    /// ends when it is dropped.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    pub(crate) fn listen(&self, port: u16) -> io::Result<(TcpListener, Option<SkLookup>)> {
        let address = SocketAddr::new(self.0, port);
        let through_sk_lookup = || {
            let socket = listen(SocketAddr::new(self.0, 0))?;
            let sk_lookup = SkLookup::attach(address, &socket)?;
            io::Result::Ok((socket, Some(sk_lookup)))
        };
        through_sk_lookup().or_else(|error| {
            let socket = listen(address)?;
            tracing::warn!(%address, %error, "this kernel cannot leave the port to other programs");
            Ok((socket, None))
        })
    }
}

/// A socket that listens on the loopback device only.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(Some(LOOPBACK.as_bytes()))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Drop for LoopbackAddress {
    fn drop(&mut self) {
        let mut users = users();
        let others = users.get_mut(&self.0).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if others > 0 {
            return;
        }
        users.remove(&self.0);
        if self.0.is_loopback() {
            return;
        }
        if let Err(error) = change(|kernel, index| kernel.remove_address(index, self.0)) {
            tracing::warn!(address = %self.0, %error, "cannot remove the address from the loopback");
        }
    }
}

fn users() -> MutexGuard<'static, BTreeMap<IpAddr, usize>> {
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change(change: impl FnOnce(&Rtnetlink, u32) -> io::Result<()>) -> io::Result<()> {
    let kernel = Rtnetlink::open()?;
    let links = kernel.links()?;
    let loopback = links.iter().find(|link| link.name == LOOPBACK);
    change(&kernel, loopback.ok_or(io::ErrorKind::NotFound)?.index)
}

/// Whether the address is assigned to this machine.
fn is_assigned(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether the address responds; a refused connection is a response.
async fn responds(address: SocketAddr, limit: Duration) -> bool {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
        ),
        Err(_) => false,
    }
}

/// The DMI field by which this is a cloud, unless our own host has set it.
fn real_cloud(root: &Path) -> Option<String> {
    let folder = root.join("sys/class/dmi/id");
    let read = |name: &str| {
        let bytes = std::fs::read(folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    if read("board_vendor") == BOARD_MAKER {
        return None;
    }
    let begins = |text: &str, with: &str| {
        let start = text.get(..with.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    let by_start = CLOUDS
        .iter()
        .find(|(name, start)| begins(&read(name), start));
    let by_end = CLOUDS_BY_END
        .iter()
        .find(|(name, end)| read(name).ends_with(end));
    let (name, _) = by_start.or(by_end)?;
    Some(format!("{name} is {:?}", read(name)))
}

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpListener, process::Command, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_real_cloud_is_known_by_its_firmware() {
        let root = std::env::temp_dir().join(format!("agent-dmi-{}", std::process::id()));
        let folder = root.join("sys/class/dmi/id");
        for (own, name, text, expected) in [
            (false, "sys_vendor", "QEMU", false),
            (false, "sys_vendor", "Amazon EC2", true),
            (false, "product_uuid", "EC2A1B2C-0000", true),
            (true, "product_uuid", "ec2a1b2c-0000", false),
            (false, "product_name", "OpenStack Nova", true),
            (true, "product_name", "OpenStack Nova", false),
            (false, "product_serial", "srv-1.gb1.brightbox.com", true),
            (true, "sys_vendor", "3DS Outscale", false),
        ] {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), format!("{text}\n")).unwrap();
            if own {
                fs::write(folder.join("board_vendor"), "vsock-agent\n").unwrap();
            }
            let found = real_cloud(&root);
            assert_eq!(found.is_some(), expected, "{name} {text}: {found:?}");
            fs::remove_dir_all(&root).unwrap();
        }
        assert_eq!(real_cloud(&root), None);
    }

    #[tokio::test]
    async fn whoever_answers_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_secs(10);
        assert!(responds(address, limit).await);
        drop(listener);
        assert!(responds(address, limit).await, "a refusal");
    }

    #[test]
    fn the_loopback_is_the_machines_own() {
        assert!(is_assigned("127.0.0.9".parse().unwrap()));
        assert!(!is_assigned("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn an_address_stays_as_long_as_a_service_has_it() {
        let alone = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own: only root has one");
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.expect("ip, of iproute2").success());
            let ip = "192.0.2.1".parse().unwrap();
            let first = LoopbackAddress::add(ip).unwrap();
            drop(LoopbackAddress::add(ip).unwrap());
            assert!(is_assigned(ip), "another service has it");
            let second = LoopbackAddress::add(ip).unwrap();
            drop(first);
            assert!(is_assigned(ip), "another service has it");
            drop(second);
            assert!(!is_assigned(ip));
        };
        thread::spawn(alone).join().unwrap();
    }
}

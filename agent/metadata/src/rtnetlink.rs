//! Lists and changes network devices and addresses by `rtnetlink(7)`.

use std::{io, net::IpAddr};

use nix::sys::socket::SockProtocol;

use crate::netlink::{Netlink, attribute, message, read_u32, split_attribute};

/// Size of `struct ifinfomsg` (`linux/rtnetlink.h`), in bytes.
const LINK_BYTES: usize = 16;

/// Largest part of an answer, in bytes: a dump comes in pieces of at most 32 KiB (`netlink(7)`).
const ANSWER_BYTES: usize = 32 * 1024;

/// A network device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub address: Vec<u8>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Whether it is switched on.
    pub is_up: bool,
}

/// A change of a device.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Only while it is down.
    Name(&'a str),
    /// In bytes.
    Mtu(u32),
    /// Switches it on or off.
    Up(bool),
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Rtnetlink(Netlink);

impl Rtnetlink {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// The errno of `socket(2)`.
    pub fn open() -> io::Result<Self> {
        Netlink::open(SockProtocol::NetlinkRoute, ANSWER_BYTES).map(Self)
    }

    /// All devices.
    ///
    /// # Errors
    ///
    /// The errno of the request.
    pub fn links(&self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        let request = request(libc::RTM_GETLINK, libc::NLM_F_DUMP, 0, None, &[]);
        self.0
            .ask(&request, |body| links.extend(parse_link(body)))?;
        Ok(links)
    }

    /// Changes a device.
    ///
    /// # Errors
    ///
    /// `EBUSY` for the name of a device that is up, `EEXIST` for a name in use, and others of the kernel.
    pub fn change(&self, index: u32, change: Change<'_>) -> io::Result<()> {
        let attribute = match change {
            Change::Name(name) => attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat()),
            Change::Mtu(mtu) => attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()),
            Change::Up(_) => Vec::new(),
        };
        let up = match change {
            Change::Up(up) => Some(up),
            _ => None,
        };
        let flags = libc::NLM_F_ACK;
        let request = request(libc::RTM_NEWLINK, flags, index, up, &attribute);
        self.0.ask(&request, |_| {})
    }

    /// Adds an address to a device, with a prefix of that address alone.
    ///
    /// # Errors
    ///
    /// `EEXIST` if the device has it, `EPERM` without `CAP_NET_ADMIN`.
    pub fn add_address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.0.ask(
            &message(libc::RTM_NEWADDR, flags, &of_address(index, address)),
            |_| {},
        )
    }

    /// Removes an address.
    ///
    /// # Errors
    ///
    /// `EADDRNOTAVAIL` if the device does not have it.
    pub fn remove_address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let flags = libc::NLM_F_ACK;
        self.0.ask(
            &message(libc::RTM_DELADDR, flags, &of_address(index, address)),
            |_| {},
        )
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: read_u32(body.get(4..)?).ok()?,
        is_up: read_u32(body.get(8..)?).ok()? & libc::IFF_UP.cast_unsigned() != 0,
        ..Link::default()
    };
    let mut rest = body.get(LINK_BYTES..)?;
    while let Some((kind, value, after)) = split_attribute(rest) {
        rest = after;
        match kind {
            libc::IFLA_ADDRESS => link.address = value.to_vec(),
            libc::IFLA_IFNAME => {
                let name = value.split(|byte| *byte == 0).next()?;
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            libc::IFLA_MTU => link.mtu = read_u32(value).ok()?,
            _ => {}
        }
    }
    Some(link)
}

/// A message about a device: a change of its state, and attributes.
fn request(kind: u16, flags: i32, index: u32, up: Option<bool>, attributes: &[u8]) -> Vec<u8> {
    let flag = libc::IFF_UP.cast_unsigned();
    let (flags_now, change) = match up {
        None => (0, 0),
        Some(up) => (if up { flag } else { 0 }, flag),
    };
    let mut body = Vec::new();
    // Family, padding, type.
    body.extend([0; 4]);
    body.extend(index.to_ne_bytes());
    body.extend(flags_now.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    body.extend(attributes);
    message(kind, flags, &body)
}

/// `struct ifaddrmsg` (`linux/if_addr.h`) and the address.
fn of_address(index: u32, address: IpAddr) -> Vec<u8> {
    let (family, bits, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 128, address.octets().to_vec()),
    };
    let family = u8::try_from(family).unwrap_or_default();
    let mut body = vec![family, bits, 0, libc::RT_SCOPE_HOST];
    body.extend(index.to_ne_bytes());
    body.extend(attribute(libc::IFA_LOCAL, &bytes));
    body.extend(attribute(libc::IFA_ADDRESS, &bytes));
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::split;

    #[test]
    fn the_loopback_is_found() {
        let links = Rtnetlink::open().unwrap().links().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!(loopback.index, 1);
        assert_eq!(loopback.address, [0; 6]);
        assert!(loopback.mtu > 0);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let kernel = Rtnetlink::open().unwrap();
        let error = kernel.change(u32::MAX / 2, Change::Mtu(1500)).unwrap_err();
        let expected = [libc::ENODEV, libc::EPERM].map(Some);
        assert!(expected.contains(&error.raw_os_error()), "{error}");
    }

    #[test]
    fn what_is_cut_short_is_passed_over() {
        let whole = request(
            libc::RTM_NEWLINK,
            0,
            7,
            Some(true),
            &attribute(libc::IFLA_MTU, &[1; 4]),
        );
        let (kind, body, rest) = split(&whole).unwrap();
        assert_eq!((kind, rest), (libc::RTM_NEWLINK, [].as_slice()));
        let link = parse_link(body).unwrap();
        assert_eq!((link.index, link.mtu, link.is_up), (7, 0x0101_0101, true));
        for length in 0..whole.len() {
            assert!(split(&whole[..length]).is_none(), "{length}");
        }
        for length in 0..body.len() {
            assert_ne!(parse_link(&body[..length]), Some(link.clone()), "{length}");
        }
    }
}

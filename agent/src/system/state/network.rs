//! Network interfaces: addresses, `/proc/net/dev`, `/sys/class/net`.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use nix::net::if_::InterfaceFlags;

use crate::by_insertion::by_insertion;

/// An item of `getifaddrs(3)`: an interface, and perhaps one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) interface: String,
    pub(super) flags: InterfaceFlags,
    /// The address and the length of its prefix.
    pub(super) ip: Option<(IpAddr, u32)>,
}

/// The properties of an interface in sysfs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) hwaddr: String,
    /// In bytes.
    pub(super) mtu: u64,
    /// Whether `operstate` is `up`.
    pub(super) is_operational: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) flags: InterfaceFlags,
    /// Addresses and the lengths of their prefixes.
    pub(super) addresses: Vec<(IpAddr, u32)>,
    pub(super) link: Link,
    pub(super) received: Counters,
    pub(super) sent: Counters,
}

/// Traffic of an interface in one direction since its creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

/// The interfaces by name. `link` returns the properties in sysfs.
pub(super) fn interfaces(
    addresses: Vec<Address>,
    counters: &BTreeMap<String, (Counters, Counters)>,
    link: impl Fn(&str) -> Link,
) -> Vec<Interface> {
    let mut all: BTreeMap<String, Interface> = BTreeMap::new();
    for address in addresses {
        let interface = match all.entry(address.interface.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let name = address.interface;
                let (received, sent) = counters.get(&name).copied().unwrap_or_default();
                entry.insert(Interface {
                    link: link(&name),
                    name,
                    flags: address.flags,
                    addresses: Vec::new(),
                    received,
                    sent,
                })
            }
        };
        interface.addresses.extend(address.ip);
    }
    all.into_values().collect()
}

/// Parses `/proc/net/dev`: received and sent traffic, by name. Invalid lines are skipped.
pub(super) fn parse_counters(text: &str) -> BTreeMap<String, (Counters, Counters)> {
    by_insertion(text.lines().filter_map(parse_line))
}

fn parse_line(line: &str) -> Option<(String, (Counters, Counters))> {
    let (name, rest) = line.split_once(':')?;
    let numbers: Option<Vec<u64>> = rest
        .split_ascii_whitespace()
        .map(|number| number.parse().ok())
        .collect();
    let numbers = numbers?;
    // Bytes, packets, errors, dropped and four more, for each direction.
    let direction = |at| {
        let [bytes, packets, errors, dropped] = *numbers.get(at..)?.first_chunk()?;
        Some(Counters {
            bytes,
            packets,
            errors,
            dropped,
        })
    };
    let both = (direction(0)?, direction(8)?);
    Some((name.trim().to_owned(), both))
}

/// The address in `/sys/class/net/IF/address`. Empty for a loopback, whose address is zero, and for a
/// tunnel, which has an IP address there.
pub(super) fn hardware_address(text: &str) -> String {
    let text = text.trim();
    let bytes = text.split(':').count();
    let is_hardware = matches!(bytes, 6 | 8 | 20);
    let is_zero = text.bytes().all(|byte| matches!(byte, b'0' | b':'));
    if is_hardware && !is_zero {
        text.to_owned()
    } else {
        String::new()
    }
}

/// The number of bits that are set in a netmask.
pub(super) fn prefix_length(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET_DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0
  eth0:705216349   31271    1    2    0     0          0         0  1846611   18174    3    4    0     0       0          0
   bad: 1 2 3
  bad2: 1 2 3 4 5 6 7 8 9 10 11 x 13 14 15 16
";

    fn address(interface: &str, ip: Option<(&str, u32)>) -> Address {
        Address {
            interface: interface.to_owned(),
            flags: InterfaceFlags::IFF_UP,
            ip: ip.map(|(ip, length)| (ip.parse().unwrap(), length)),
        }
    }

    #[test]
    fn proc_net_dev_has_counters_of_both_directions() {
        let counters = parse_counters(NET_DEV);
        assert_eq!(counters.keys().collect::<Vec<_>>(), ["eth0", "lo"]);
        let (received, sent) = counters["eth0"];
        assert_eq!(
            (
                received.bytes,
                received.packets,
                received.errors,
                received.dropped
            ),
            (705_216_349, 31_271, 1, 2)
        );
        assert_eq!(
            (sent.bytes, sent.packets, sent.errors, sent.dropped),
            (1_846_611, 18_174, 3, 4)
        );
    }

    #[test]
    fn an_interface_has_all_its_addresses_or_none() {
        let addresses = vec![
            address("eth1", None),
            address("eth0", None),
            address("eth0", Some(("10.0.0.2", 24))),
            address("eth0", Some(("fe80::1", 64))),
        ];
        let all = interfaces(addresses, &parse_counters(NET_DEV), |_| Link::default());
        assert_eq!((all[0].name.as_str(), all[0].addresses.len()), ("eth0", 2));
        assert_eq!((all[1].name.as_str(), all[1].addresses.len()), ("eth1", 0));
        assert_eq!(all[0].received.dropped, 2);
        assert_eq!(all[1].received, Counters::default());
    }

    #[test]
    fn loopbacks_and_tunnels_have_no_hardware_address() {
        assert_eq!(hardware_address("00:16:3e:12:34:56\n"), "00:16:3e:12:34:56");
        for text in ["00:00:00:00:00:00\n", "c0:a8:01:01", "", "\n"] {
            assert_eq!(hardware_address(text), "", "{text:?}");
        }
    }

    #[test]
    fn a_netmask_has_a_prefix_length() {
        for (mask, length) in [("255.255.255.0", 24), ("ffff:ffff::", 32), ("0.0.0.0", 0)] {
            assert_eq!(prefix_length(mask.parse().unwrap()), length);
        }
    }
}

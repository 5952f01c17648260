//! The guest as LXD's and Incus's hosts show it: `GET /1.0/state`.

use std::net::IpAddr;

use vsock_agent_protocol::{
    by_insertion,
    state::{
        CpuState, InstanceState, MemoryState, NetworkAddress, NetworkCounters, NetworkState, OsInfo,
    },
    version::Family,
};

use super::{network::Interface, sources::Snapshot, system::System};
use crate::system::clock;

/// A count that is not known.
const UNKNOWN: i64 = -1;

/// Converts a snapshot for this host flavour.
pub(super) fn state(snapshot: Snapshot, family: Family) -> InstanceState {
    let memory = MemoryState {
        usage: signed(snapshot.memory.without("MemTotal", "MemFree")),
        usage_peak: signed(snapshot.memory_peak),
        total: signed(snapshot.memory.get("MemTotal")),
        swap_usage: signed(snapshot.memory.without("SwapTotal", "SwapFree")),
        swap_usage_peak: 0,
    };
    let is_incus = family == Family::Incus;
    let interfaces = snapshot.interfaces.into_iter();
    InstanceState {
        status: String::new(),
        status_code: 0,
        disk: serde_json::Value::Null,
        memory,
        network: by_insertion(interfaces.map(network)),
        pid: 1,
        processes: snapshot.processes.map_or(UNKNOWN, |all| signed(all.all)),
        cpu: CpuState {
            usage: snapshot.cpu_usage.map_or(UNKNOWN, signed),
            allocated_time: is_incus.then_some(0),
        },
        started_at: is_incus.then(|| clock::at(snapshot.stat.boot_time)),
        os_info: is_incus.then(|| os_info(&snapshot.system)),
    }
}

fn network(interface: Interface) -> (String, NetworkState) {
    let kind = match interface {
        Interface {
            is_broadcast: true, ..
        } => "broadcast",
        Interface {
            is_loopback: true, ..
        } => "loopback",
        Interface {
            is_point_to_point: true,
            ..
        } => "point-to-point",
        _ => "unknown",
    };
    let state = NetworkState {
        addresses: interface.addresses.into_iter().map(address).collect(),
        counters: NetworkCounters {
            bytes_received: signed(interface.received.bytes),
            bytes_sent: signed(interface.sent.bytes),
            packets_received: signed(interface.received.packets),
            packets_sent: signed(interface.sent.packets),
            errors_received: signed(interface.received.errors),
            errors_sent: signed(interface.sent.errors),
            packets_dropped_outbound: signed(interface.sent.dropped),
            packets_dropped_inbound: signed(interface.received.dropped),
        },
        hwaddr: interface.link.hwaddr,
        host_name: String::new(),
        mtu: signed(interface.link.mtu),
        state: if interface.is_up { "up" } else { "down" }.to_owned(),
        kind: kind.to_owned(),
    };
    (interface.name, state)
}

fn address((ip, prefix): (IpAddr, u32)) -> NetworkAddress {
    NetworkAddress {
        family: if ip.is_ipv4() { "inet" } else { "inet6" }.to_owned(),
        address: ip.to_string(),
        netmask: prefix.to_string(),
        scope: scope(ip).to_owned(),
    }
}

fn scope(ip: IpAddr) -> &'static str {
    let is_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match (ip.is_loopback(), is_link) {
        (true, _) => "local",
        (false, true) => "link",
        (false, false) => "global",
    }
}

fn os_info(system: &System) -> OsInfo {
    OsInfo {
        os: system.release("NAME").to_owned(),
        os_version: system.release("VERSION_ID").to_owned(),
        kernel_version: system.kernel.release.clone(),
        hostname: system.kernel.nodename.clone(),
        fqdn: system.fqdn.clone(),
    }
}

/// Hosts read signed numbers. No counter of a kernel is that large.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            memory,
            network::{Counters, Link},
        },
        *,
    };

    fn interface() -> Interface {
        Interface {
            name: "eth0".to_owned(),
            is_up: true,
            is_broadcast: true,
            is_loopback: false,
            is_point_to_point: false,
            addresses: vec![("10.0.0.2".parse().unwrap(), 24)],
            link: Link {
                hwaddr: "00:16:3e:12:34:56".to_owned(),
                mtu: 1500,
                is_operational: true,
            },
            received: Counters {
                bytes: u64::MAX,
                dropped: 7,
                ..Counters::default()
            },
            sent: Counters {
                errors: 5,
                ..Counters::default()
            },
        }
    }

    #[test]
    fn memory_that_is_not_free_is_in_use() {
        let memory = "MemTotal: 100 kB\nMemFree: 40 kB\nSwapTotal: 10 kB\nSwapFree: 10 kB\n";
        let snapshot = Snapshot {
            memory: memory::parse(memory),
            ..Snapshot::default()
        };
        let state = state(snapshot, Family::Lxd);
        assert_eq!((state.memory.usage, state.memory.total), (61_440, 102_400));
        assert_eq!((state.cpu.usage, state.processes), (-1, -1));
        assert_eq!(state.os_info, None);
    }

    #[test]
    fn an_interface_keeps_its_directions_apart() {
        let (name, state) = network(interface());
        assert_eq!((name.as_str(), state.kind.as_str()), ("eth0", "broadcast"));
        assert_eq!(state.counters.bytes_received, i64::MAX);
        assert_eq!(state.counters.packets_dropped_inbound, 7);
        assert_eq!(state.counters.packets_dropped_outbound, 0);
        assert_eq!(
            (state.counters.errors_received, state.counters.errors_sent),
            (0, 5)
        );
        assert_eq!(state.addresses[0].netmask, "24");
    }

    #[test]
    fn an_address_has_a_scope() {
        for (ip, expected) in [
            ("127.0.0.53", "local"),
            ("::1", "local"),
            ("169.254.1.2", "link"),
            ("fe80::1", "link"),
            ("127::1", "global"),
            ("10.0.0.1", "global"),
            ("2001:db8::1", "global"),
        ] {
            assert_eq!(scope(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    #[test]
    fn incus_hears_of_the_boot_and_the_system() {
        let mut snapshot = Snapshot::default();
        snapshot.stat.boot_time = 1_700_000_000;
        let state = state(snapshot, Family::Incus);
        assert_eq!(state.started_at.as_deref(), Some("2023-11-14T22:13:20Z"));
        assert_eq!(state.cpu.allocated_time, Some(0));
        assert!(state.os_info.is_some());
    }
}

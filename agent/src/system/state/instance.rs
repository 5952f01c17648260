//! The guest as LXD's and Incus's hosts show it: `GET /1.0/state`.

use std::net::IpAddr;

use nix::{net::if_::InterfaceFlags, sys::utsname::UtsName};
use vsock_agent_protocol::{
    state::{
        CpuState, InstanceState, MemoryState, NetworkAddress, NetworkCounters, NetworkState, OsInfo,
    },
    version::Family,
};

use super::{network::Interface, sources::Snapshot, system::System};
use crate::by_insertion::by_insertion;
use crate::system::clock;

/// The value of an unknown count.
const UNKNOWN: i64 = -1;

/// LXD's names for kinds of interfaces, in order of precedence.
const KINDS: [(InterfaceFlags, &str); 3] = [
    (InterfaceFlags::IFF_BROADCAST, "broadcast"),
    (InterfaceFlags::IFF_LOOPBACK, "loopback"),
    (InterfaceFlags::IFF_POINTOPOINT, "point-to-point"),
];

/// Converts a snapshot for this host flavour.
pub(super) fn state(snapshot: Snapshot, family: Family) -> InstanceState {
    let mut memory = MemoryState::default();
    memory.usage = signed(snapshot.memory.without("MemTotal", "MemFree"));
    memory.usage_peak = signed(snapshot.memory_peak);
    memory.total = signed(snapshot.memory.get("MemTotal"));
    memory.swap_usage = signed(snapshot.memory.without("SwapTotal", "SwapFree"));
    let is_incus = family == Family::Incus;
    let mut cpu = CpuState::default();
    cpu.usage = snapshot.cpu_usage.map_or(UNKNOWN, signed);
    cpu.allocated_time = is_incus.then_some(0);
    let interfaces = snapshot.interfaces.into_iter();
    let mut state = InstanceState::default();
    state.memory = memory;
    state.network = by_insertion(interfaces.map(network));
    state.pid = 1;
    state.processes = snapshot.processes.map_or(UNKNOWN, |all| signed(all.all));
    state.cpu = cpu;
    state.started_at = is_incus.then(|| clock::at(snapshot.stat.boot_time));
    state.os_info = is_incus.then(|| os_info(&snapshot.system));
    state
}

fn network(interface: Interface) -> (String, NetworkState) {
    let has = |flag| interface.flags.contains(flag);
    let kind = KINDS.iter().find(|(flag, _)| has(*flag));
    let is_up = has(InterfaceFlags::IFF_UP);
    let mut counters = NetworkCounters::default();
    counters.bytes_received = signed(interface.received.bytes);
    counters.bytes_sent = signed(interface.sent.bytes);
    counters.packets_received = signed(interface.received.packets);
    counters.packets_sent = signed(interface.sent.packets);
    counters.errors_received = signed(interface.received.errors);
    counters.errors_sent = signed(interface.sent.errors);
    counters.packets_dropped_outbound = signed(interface.sent.dropped);
    counters.packets_dropped_inbound = signed(interface.received.dropped);
    let mut state = NetworkState::default();
    state.addresses = interface.addresses.into_iter().map(address).collect();
    state.counters = counters;
    state.hwaddr = interface.link.hwaddr;
    state.mtu = signed(interface.link.mtu);
    state.state = if is_up { "up" } else { "down" }.to_owned();
    state.kind = kind.map_or("unknown", |(_, kind)| kind).to_owned();
    (interface.name, state)
}

fn address((ip, prefix): (IpAddr, u32)) -> NetworkAddress {
    let mut address = NetworkAddress::default();
    address.family = if ip.is_ipv4() { "inet" } else { "inet6" }.to_owned();
    address.address = ip.to_string();
    address.netmask = prefix.to_string();
    address.scope = scope(ip).to_owned();
    address
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
    let mut info = OsInfo::default();
    info.os = system.release("NAME").to_owned();
    info.os_version = system.release("VERSION_ID").to_owned();
    info.kernel_version = system.uname(UtsName::release);
    info.hostname = system.uname(UtsName::nodename);
    info.fqdn = system.fqdn.clone();
    info
}

/// Hosts read signed numbers. No counter of the kernel exceeds them.
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
            flags: InterfaceFlags::IFF_UP | InterfaceFlags::IFF_BROADCAST,
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
    fn memory_usage_is_total_less_free_and_unknown_counts_are_minus_one() {
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
    fn an_interface_has_its_kind_and_counters_of_both_directions() {
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
    fn an_ip_address_has_a_scope() {
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
    fn the_state_for_incus_has_boot_time_and_os_info() {
        let mut snapshot = Snapshot::default();
        snapshot.stat.boot_time = 1_700_000_000;
        let state = state(snapshot, Family::Incus);
        assert_eq!(state.started_at.as_deref(), Some("2023-11-14T22:13:20Z"));
        assert_eq!(state.cpu.allocated_time, Some(0));
        assert!(state.os_info.is_some());
    }
}

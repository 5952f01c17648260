//! The state of the guest, `GET /1.0/state`.
//!
//! The keys are those of LXD's `InstanceState`. Hosts read the numbers as signed 64-bit integers, so they
//! have that type here. Fields of Incus's agent alone are optional, and left out for LXD.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::null::null_as_default;

/// The state of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct InstanceState {
    /// Empty; the host fills it in.
    pub status: String,
    /// 0; the host fills it in.
    pub status_code: u16,
    /// Null; the host fills it in.
    pub disk: serde_json::Value,
    /// Memory in use.
    pub memory: MemoryState,
    /// Interfaces by name, the loopback among them.
    #[serde(deserialize_with = "null_as_default")]
    pub network: BTreeMap<String, NetworkState>,
    /// 1: the guest's first process.
    pub pid: i64,
    /// Number of processes, or -1 if unknown.
    pub processes: i64,
    /// Processor time.
    pub cpu: CpuState,
    /// Time of the boot, in RFC 3339. Incus only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// The operating system. Incus only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_info: Option<OsInfo>,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CpuState {
    /// Used since the boot, in nanoseconds, or -1 if unknown.
    pub usage: i64,
    /// Limit in nanoseconds a second; 0 in agents. Incus only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_time: Option<i64>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MemoryState {
    /// Not free; the page cache counts as used.
    pub usage: i64,
    /// Peak of `usage`, or 0 if unknown.
    pub usage_peak: i64,
    /// Total size. Not in LXD 5.0.2.
    pub total: i64,
    /// Swap in use.
    pub swap_usage: i64,
    /// Peak of `swap_usage`, or 0 if unknown.
    pub swap_usage_peak: i64,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkState {
    /// Its addresses.
    #[serde(deserialize_with = "null_as_default")]
    pub addresses: Vec<NetworkAddress>,
    /// Its traffic.
    pub counters: NetworkCounters,
    /// Hardware address, such as `00:16:3e:12:34:56`, or empty.
    pub hwaddr: String,
    /// Empty: the name of the interface on the host, which the host fills in.
    pub host_name: String,
    /// Largest packet, in bytes.
    pub mtu: i64,
    /// `up` or `down`.
    pub state: String,
    /// `broadcast`, `loopback`, `point-to-point` or `unknown`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// An address of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkAddress {
    /// `inet` or `inet6`.
    pub family: String,
    /// As text.
    pub address: String,
    /// Length of the prefix in bits, as text.
    pub netmask: String,
    /// `local`, `link` or `global`.
    pub scope: String,
}

/// Traffic of an interface since it exists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkCounters {
    /// Bytes received.
    pub bytes_received: i64,
    /// Bytes sent.
    pub bytes_sent: i64,
    /// Packets received.
    pub packets_received: i64,
    /// Packets sent.
    pub packets_sent: i64,
    /// Received packets with errors.
    pub errors_received: i64,
    /// Packets that could not be sent.
    pub errors_sent: i64,
    /// Packets to be sent that were dropped.
    pub packets_dropped_outbound: i64,
    /// Received packets that were dropped.
    pub packets_dropped_inbound: i64,
}

/// The operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct OsInfo {
    /// Its name, such as `Debian GNU/Linux` (`NAME` in `os-release(5)`).
    pub os: String,
    /// Its version, such as `12` (`VERSION_ID`).
    pub os_version: String,
    /// Release of the kernel (`uname -r`).
    pub kernel_version: String,
    /// Host name.
    pub hostname: String,
    /// Host name with its domain.
    pub fqdn: String,
}

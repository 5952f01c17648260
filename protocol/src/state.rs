//! What `GET /1.0/state` says of the guest.
//!
//! The keys are those of LXD's `InstanceState`. Hosts read the numbers as signed 64-bit integers,
//! so they are that here. What only Incus's agent says is optional, and left out for LXD.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::null::null_as_default;

/// The guest, now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceState {
    /// Empty: the host knows.
    pub status: String,
    /// 0: the host knows.
    pub status_code: u16,
    /// Null: the host knows.
    pub disk: serde_json::Value,
    /// Memory in use.
    pub memory: MemoryState,
    /// Interfaces by name, the loopback among them.
    #[serde(deserialize_with = "null_as_default")]
    pub network: BTreeMap<String, NetworkState>,
    /// 1: the guest's first process.
    pub pid: i64,
    /// Number of processes, or -1 if nobody knows.
    pub processes: i64,
    /// Processor time.
    pub cpu: CpuState,
    /// When the guest booted, in RFC 3339. Incus only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// The operating system. Incus only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_info: Option<OsInfo>,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuState {
    /// Used since the boot, in nanoseconds, or -1 if nobody knows.
    pub usage: i64,
    /// Nanoseconds a second there may be; agents say 0. Incus only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_time: Option<i64>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryState {
    /// What is not free; the page cache counts as used.
    pub usage: i64,
    /// The most there was of it, or 0 if nobody knows.
    pub usage_peak: i64,
    /// All there is. Not in LXD 5.0.2.
    pub total: i64,
    /// Swap in use.
    pub swap_usage: i64,
    /// The most there was of it, or 0 if nobody knows.
    pub swap_usage_peak: i64,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkState {
    /// Its addresses.
    #[serde(deserialize_with = "null_as_default")]
    pub addresses: Vec<NetworkAddress>,
    /// Its traffic.
    pub counters: NetworkCounters,
    /// Hardware address, such as `00:16:3e:12:34:56`, or empty.
    pub hwaddr: String,
    /// Empty: the name of its other end, which the host knows.
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
pub struct NetworkCounters {
    /// Bytes that came.
    pub bytes_received: i64,
    /// Bytes that went.
    pub bytes_sent: i64,
    /// Packets that came.
    pub packets_received: i64,
    /// Packets that went.
    pub packets_sent: i64,
    /// Packets that came damaged.
    pub errors_received: i64,
    /// Packets that could not be sent.
    pub errors_sent: i64,
    /// Packets to be sent that were dropped.
    pub packets_dropped_outbound: i64,
    /// Packets that came and were dropped.
    pub packets_dropped_inbound: i64,
}

/// The operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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

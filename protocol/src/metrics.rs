//! The metrics of `GET /1.0/metrics`, which hosts convert to `OpenMetrics`.
//!
//! LXD and Incus have the same metrics in two formats. LXD's groups are maps by device; Incus's are lists
//! whose elements contain the device.
//!
//! ```text
//! LXD    "disk": { "sda": { "disk_read_bytes": 1 } }
//! Incus  "disk": [ { "device": "sda", "disk_read_bytes": 1 } ]
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::null::null_as_default;

/// The metrics in LXD's format.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LxdMetrics {
    /// Processor time by processor: `cpu0`, `cpu1`.
    #[serde(deserialize_with = "null_as_default")]
    pub cpu_seconds_total: BTreeMap<String, CpuMetrics>,
    /// 0: the host knows.
    pub cpus: u64,
    /// Disks, partitions and loop devices, by name.
    #[serde(deserialize_with = "null_as_default")]
    pub disk: BTreeMap<String, DiskMetrics>,
    /// Mounted file systems by device.
    #[serde(deserialize_with = "null_as_default")]
    pub filesystem: BTreeMap<String, FilesystemMetrics>,
    /// Memory.
    pub memory: MemoryMetrics,
    /// Network interfaces by name.
    #[serde(deserialize_with = "null_as_default")]
    pub network: BTreeMap<String, NetworkMetrics>,
    /// Number of processes without the kernel's threads.
    pub procs_total: u64,
}

/// The metrics in Incus's format.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct IncusMetrics {
    /// Seconds since 1970 at which the guest booted.
    pub boot_time_seconds: u64,
    /// Processor time.
    #[serde(deserialize_with = "null_as_default")]
    pub cpu_seconds_total: Vec<OfCpu>,
    /// 0: the host knows.
    pub cpus: u64,
    /// Disks, partitions and loop devices.
    #[serde(deserialize_with = "null_as_default")]
    pub disk: Vec<OfDevice<DiskMetrics>>,
    /// Mounted file systems.
    #[serde(deserialize_with = "null_as_default")]
    pub filesystem: Vec<OfDevice<FilesystemMetrics>>,
    /// Memory.
    pub memory: MemoryMetrics,
    /// Network interfaces.
    #[serde(deserialize_with = "null_as_default")]
    pub network: Vec<OfDevice<NetworkMetrics>>,
    /// Number of processes.
    pub procs_total: u64,
    /// Seconds since 1970 in the guest, now.
    pub time_seconds: u64,
}

/// Metrics of a processor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OfCpu {
    /// The name of the processor: `cpu0`.
    pub cpu: String,
    /// The numbers.
    #[serde(flatten)]
    pub metrics: CpuMetrics,
}

/// Metrics of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OfDevice<T> {
    /// The name of the device.
    pub device: String,
    /// The numbers.
    #[serde(flatten)]
    pub metrics: T,
}

impl OfCpu {
    /// The metrics of the processor `cpu`.
    #[must_use]
    pub const fn new(cpu: String, metrics: CpuMetrics) -> Self {
        Self { cpu, metrics }
    }
}

impl<T> OfDevice<T> {
    /// The metrics of a device.
    #[must_use]
    pub const fn new(device: String, metrics: T) -> Self {
        Self { device, metrics }
    }
}

/// Time of a processor since the boot, in seconds, by what it was spent on (`proc_stat(5)`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CpuMetrics {
    /// On user programs.
    pub cpu_seconds_user: f64,
    /// On user programs with a positive nice value.
    pub cpu_seconds_nice: f64,
    /// In the kernel.
    pub cpu_seconds_system: f64,
    /// Idle.
    pub cpu_seconds_idle: f64,
    /// Idle, while a process waited for a disk.
    pub cpu_seconds_iowait: f64,
    /// On interrupts.
    pub cpu_seconds_irq: f64,
    /// On soft interrupts.
    pub cpu_seconds_softirq: f64,
    /// Stolen by other guests of the host.
    pub cpu_seconds_steal: f64,
}

/// Traffic of a disk since the boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DiskMetrics {
    /// Bytes read.
    pub disk_read_bytes: u64,
    /// Reads done.
    pub disk_reads_completed: u64,
    /// Bytes written.
    pub disk_written_bytes: u64,
    /// Writes done.
    pub disk_writes_completed: u64,
}

/// A mounted file system, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct FilesystemMetrics {
    /// Where it is mounted.
    pub mountpoint: String,
    /// Its type, such as `ext4`.
    pub fstype: String,
    /// Free for unprivileged users.
    pub filesystem_avail_bytes: u64,
    /// Free for root.
    pub filesystem_free_bytes: u64,
    /// Total size.
    pub filesystem_size_bytes: u64,
}

/// Memory, in bytes (`proc_meminfo(5)`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are those of /proc/meminfo")]
#[non_exhaustive]
pub struct MemoryMetrics {
    pub memory_active_anon_bytes: u64,
    pub memory_active_file_bytes: u64,
    pub memory_active_bytes: u64,
    pub memory_cached_bytes: u64,
    pub memory_dirty_bytes: u64,
    pub memory_hugepages_free_bytes: u64,
    pub memory_hugepages_total_bytes: u64,
    pub memory_inactive_anon_bytes: u64,
    pub memory_inactive_file_bytes: u64,
    pub memory_inactive_bytes: u64,
    pub memory_mapped_bytes: u64,
    pub memory_mem_available_bytes: u64,
    pub memory_mem_free_bytes: u64,
    pub memory_mem_total_bytes: u64,
    /// What is not available: `MemTotal` without `MemAvailable`.
    pub memory_rss_bytes: u64,
    pub memory_shmem_bytes: u64,
    pub memory_sreclaimable_bytes: u64,
    /// Swap in use.
    pub memory_swap_bytes: u64,
    pub memory_unevictable_bytes: u64,
    pub memory_writeback_bytes: u64,
    /// Processes killed by the OOM killer.
    pub memory_oom_kills: u64,
}

/// Traffic of a network interface since it exists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkMetrics {
    /// Bytes received.
    pub network_receive_bytes: u64,
    /// Received packets that were dropped.
    pub network_receive_drop: u64,
    /// Received packets with errors.
    pub network_receive_errs: u64,
    /// Packets received.
    pub network_receive_packets: u64,
    /// Bytes sent.
    pub network_transmit_bytes: u64,
    /// Packets to be sent that were dropped.
    pub network_transmit_drop: u64,
    /// Packets that could not be sent.
    pub network_transmit_errs: u64,
    /// Packets sent.
    pub network_transmit_packets: u64,
}

impl From<IncusMetrics> for LxdMetrics {
    /// Converts the lists to maps. A file system whose key is in use gets one with its mount point, unless
    /// it is another mount of the same device.
    fn from(metrics: IncusMetrics) -> Self {
        let cpus = metrics.cpu_seconds_total.into_iter();
        Self {
            cpu_seconds_total: by_name(cpus.map(|of| (of.cpu, of.metrics))),
            cpus: metrics.cpus,
            disk: by_device(metrics.disk),
            filesystem: by_source(metrics.filesystem),
            memory: metrics.memory,
            network: by_device(metrics.network),
            procs_total: metrics.procs_total,
        }
    }
}

fn by_device<T>(list: Vec<OfDevice<T>>) -> BTreeMap<String, T> {
    by_name(list.into_iter().map(|of| (of.device, of.metrics)))
}

fn by_name<T>(pairs: impl Iterator<Item = (String, T)>) -> BTreeMap<String, T> {
    let mut map = BTreeMap::new();
    map.extend(pairs);
    map
}

fn by_source(list: Vec<OfDevice<FilesystemMetrics>>) -> BTreeMap<String, FilesystemMetrics> {
    let mut map = BTreeMap::new();
    for OfDevice { device, metrics } in list {
        let key = if !map.contains_key(&device) {
            device
        } else if device.starts_with('/') {
            continue;
        } else {
            format!("{device}:{}", metrics.mountpoint)
        };
        map.insert(key, metrics);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(device: &str, mountpoint: &str) -> OfDevice<FilesystemMetrics> {
        let metrics = FilesystemMetrics {
            mountpoint: mountpoint.to_owned(),
            ..FilesystemMetrics::default()
        };
        OfDevice {
            device: device.to_owned(),
            metrics,
        }
    }

    #[test]
    fn no_file_system_takes_the_place_of_another() {
        let map = by_source(vec![
            mounted("/dev/vda1", "/"),
            mounted("tmpfs", "/run"),
            mounted("/dev/vda1", "/var/bind"),
            mounted("tmpfs", "/tmp"),
        ]);
        let keys: Vec<_> = map
            .iter()
            .map(|(key, fs)| (key.as_str(), fs.mountpoint.as_str()))
            .collect();
        assert_eq!(
            keys,
            [
                ("/dev/vda1", "/"),
                ("tmpfs", "/run"),
                ("tmpfs:/tmp", "/tmp")
            ]
        );
    }
}

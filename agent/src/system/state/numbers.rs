//! The metrics that LXD's and Incus's hosts collect: `GET /1.0/metrics`.

use vsock_agent_protocol::{
    metrics::{
        CpuMetrics, DiskMetrics, FilesystemMetrics, IncusMetrics, MemoryMetrics, NetworkMetrics,
        OfCpu, OfDevice,
    },
    version::Family,
};

use super::{
    cpu::Cpu, disks::Disk, filesystems::Filesystem, memory::Fields, network::Interface,
    sources::Snapshot,
};

/// Converts a snapshot. `procs_total` counts kernel threads for Incus's hosts, and does not for LXD's.
pub(super) fn metrics(
    snapshot: Snapshot,
    filesystems: Vec<Filesystem>,
    family: Family,
) -> IncusMetrics {
    let processes = snapshot.processes.unwrap_or_default();
    let mut metrics = IncusMetrics::default();
    metrics.boot_time_seconds = snapshot.stat.boot_time;
    metrics.cpu_seconds_total = snapshot.stat.cpus.into_iter().map(cpu).collect();
    metrics.disk = snapshot.disks.into_iter().map(disk).collect();
    metrics.filesystem = filesystems.into_iter().filter_map(filesystem).collect();
    metrics.memory = memory(&snapshot.memory, snapshot.oom_kills);
    metrics.network = snapshot.interfaces.into_iter().map(network).collect();
    metrics.procs_total = match family {
        Family::Lxd => processes.programs,
        Family::Incus => processes.all,
    };
    metrics.time_seconds = whole_seconds(snapshot.time);
    metrics
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "drops the fraction; the time since 1970 is not negative"
)]
const fn whole_seconds(time: f64) -> u64 {
    time as u64
}

fn cpu(cpu: Cpu) -> OfCpu {
    let mut metrics = CpuMetrics::default();
    [
        metrics.cpu_seconds_user,
        metrics.cpu_seconds_nice,
        metrics.cpu_seconds_system,
        metrics.cpu_seconds_idle,
        metrics.cpu_seconds_iowait,
        metrics.cpu_seconds_irq,
        metrics.cpu_seconds_softirq,
        metrics.cpu_seconds_steal,
    ] = cpu.seconds;
    OfCpu::new(format!("cpu{}", cpu.number), metrics)
}

fn disk(disk: Disk) -> OfDevice<DiskMetrics> {
    let mut metrics = DiskMetrics::default();
    metrics.disk_read_bytes = disk.read_bytes;
    metrics.disk_reads_completed = disk.reads;
    metrics.disk_written_bytes = disk.written_bytes;
    metrics.disk_writes_completed = disk.writes;
    OfDevice::new(disk.name, metrics)
}

/// `None` without a known usage.
fn filesystem(filesystem: Filesystem) -> Option<OfDevice<FilesystemMetrics>> {
    let usage = filesystem.usage?;
    let mountpoint = filesystem.mount.mountpoint.to_string_lossy().into_owned();
    let mut metrics = FilesystemMetrics::default();
    metrics.mountpoint = mountpoint;
    metrics.fstype = filesystem.mount.kind;
    metrics.filesystem_avail_bytes = usage.available;
    metrics.filesystem_free_bytes = usage.free;
    metrics.filesystem_size_bytes = usage.size;
    Some(OfDevice::new(filesystem.mount.source, metrics))
}

fn memory(fields: &Fields, oom_kills: Option<u64>) -> MemoryMetrics {
    let bytes = |name| fields.get(name);
    // These are counts of huge pages.
    let huge = |name| fields.get(name).saturating_mul(fields.get("Hugepagesize"));
    let mut metrics = MemoryMetrics::default();
    metrics.memory_active_anon_bytes = bytes("Active(anon)");
    metrics.memory_active_file_bytes = bytes("Active(file)");
    metrics.memory_active_bytes = bytes("Active");
    metrics.memory_cached_bytes = bytes("Cached");
    metrics.memory_dirty_bytes = bytes("Dirty");
    metrics.memory_hugepages_free_bytes = huge("HugePages_Free");
    metrics.memory_hugepages_total_bytes = huge("HugePages_Total");
    metrics.memory_inactive_anon_bytes = bytes("Inactive(anon)");
    metrics.memory_inactive_file_bytes = bytes("Inactive(file)");
    metrics.memory_inactive_bytes = bytes("Inactive");
    metrics.memory_mapped_bytes = bytes("Mapped");
    metrics.memory_mem_available_bytes = bytes("MemAvailable");
    metrics.memory_mem_free_bytes = bytes("MemFree");
    metrics.memory_mem_total_bytes = bytes("MemTotal");
    metrics.memory_rss_bytes = fields.without("MemTotal", "MemAvailable");
    metrics.memory_shmem_bytes = bytes("Shmem");
    metrics.memory_sreclaimable_bytes = bytes("SReclaimable");
    metrics.memory_swap_bytes = fields.without("SwapTotal", "SwapFree");
    metrics.memory_unevictable_bytes = bytes("Unevictable");
    metrics.memory_writeback_bytes = bytes("Writeback");
    metrics.memory_oom_kills = oom_kills.unwrap_or_default();
    metrics
}

fn network(interface: Interface) -> OfDevice<NetworkMetrics> {
    let mut metrics = NetworkMetrics::default();
    metrics.network_receive_bytes = interface.received.bytes;
    metrics.network_receive_drop = interface.received.dropped;
    metrics.network_receive_errs = interface.received.errors;
    metrics.network_receive_packets = interface.received.packets;
    metrics.network_transmit_bytes = interface.sent.bytes;
    metrics.network_transmit_drop = interface.sent.dropped;
    metrics.network_transmit_errs = interface.sent.errors;
    metrics.network_transmit_packets = interface.sent.packets;
    OfDevice::new(interface.name, metrics)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{memory, mounts::Mount, processes::Processes},
        *,
    };

    #[test]
    fn huge_pages_are_converted_to_bytes_and_swap_is_the_used_part() {
        let text = "HugePages_Total: 3\nHugepagesize: 2048 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n\
                    SwapCached: 1 kB\nMemTotal: 8 kB\nMemAvailable: 6 kB\n";
        let metrics = super::memory(&memory::parse(text), Some(2));
        assert_eq!(metrics.memory_hugepages_total_bytes, 3 * 2048 * 1024);
        assert_eq!(metrics.memory_swap_bytes, 6 * 1024);
        assert_eq!(
            (metrics.memory_rss_bytes, metrics.memory_oom_kills),
            (2048, 2)
        );
    }

    #[test]
    fn kernel_threads_are_processes_for_incus_only() {
        let count = |family| {
            let processes = Processes {
                all: 90,
                programs: 30,
            };
            let snapshot = Snapshot {
                processes: Some(processes),
                ..Snapshot::default()
            };
            metrics(snapshot, Vec::new(), family).procs_total
        };
        assert_eq!((count(Family::Lxd), count(Family::Incus)), (30, 90));
    }

    #[test]
    fn a_file_system_without_usage_has_no_metrics() {
        let mount = Mount {
            source: "host:/srv".to_owned(),
            mountpoint: "/mnt".into(),
            kind: "nfs4".to_owned(),
            is_read_only: false,
        };
        assert_eq!(filesystem(Filesystem { mount, usage: None }), None);
    }
}

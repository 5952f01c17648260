//! The guest and the agent for Prometheus: `GET /metrics`. Names and meanings are those of
//! `node_exporter` where it has them.

use super::{
    cpu::{Cpu, Load},
    disks::Disk,
    filesystems::{Filesystem, Usage},
    network::Interface,
    page::{Labels, Page},
    sources::Snapshot,
    system::System,
};

pub(crate) use super::page::CannotWrite;

/// `Content-Type` of the page.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the agent counts of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AgentNumbers {
    pub(crate) version: &'static str,
    pub(crate) family: String,
    pub(crate) connections: usize,
    pub(crate) commands_started: u64,
    pub(crate) commands_ended: u64,
    pub(crate) sftp_sessions: usize,
    pub(crate) port_forwards: usize,
}

/// Writes the page.
pub(super) fn write(
    snapshot: &Snapshot,
    filesystems: &[Filesystem],
    agent: &AgentNumbers,
) -> Result<String, CannotWrite> {
    let mut page = Page::default();
    write_agent(&mut page, agent);
    write_process(&mut page, snapshot);
    write_system(&mut page, snapshot);
    write_cpus(&mut page, &snapshot.stat.cpus);
    write_memory(&mut page, snapshot);
    write_disks(&mut page, &snapshot.disks);
    write_filesystems(&mut page, filesystems);
    write_network(&mut page, &snapshot.interfaces);
    page.write()
}

fn write_agent(page: &mut Page, agent: &AgentNumbers) {
    let build = vec![("version", agent.version), ("family", &agent.family)];
    page.gauges(
        "vsock_agent_build_info",
        "The agent's version, as a label.",
        [(build, 1.0)],
    );
    let running = agent.commands_started.saturating_sub(agent.commands_ended);
    page.gauge(
        "vsock_agent_commands_running",
        "Commands that run, or wait for their sockets.",
        running as f64,
    );
    page.counter(
        "vsock_agent_commands_started_total",
        "Commands since the agent started.",
        agent.commands_started as f64,
    );
    page.gauge(
        "vsock_agent_connections",
        "Connections that speak HTTP, without those that were upgraded.",
        agent.connections as f64,
    );
    page.gauge(
        "vsock_agent_sftp_sessions",
        "SFTP sessions.",
        agent.sftp_sessions as f64,
    );
    page.gauge(
        "vsock_agent_port_forwards",
        "Connections to TCP ports of the guest.",
        agent.port_forwards as f64,
    );
}

fn write_process(page: &mut Page, snapshot: &Snapshot) {
    let own = &snapshot.own;
    page.counter(
        "process_cpu_seconds_total",
        "Processor time of the agent in seconds.",
        own.cpu_seconds,
    );
    for (name, help, value) in [
        (
            "open_fds",
            "Open files of the agent.",
            own.open_files as f64,
        ),
        (
            "resident_memory_bytes",
            "Resident memory of the agent in bytes.",
            own.resident_bytes as f64,
        ),
        (
            "start_time_seconds",
            "Start of the agent in seconds since 1970.",
            own.start_time,
        ),
        ("threads", "Threads of the agent.", own.threads as f64),
        (
            "virtual_memory_bytes",
            "Virtual memory of the agent in bytes.",
            own.virtual_bytes as f64,
        ),
    ] {
        page.gauge(&format!("process_{name}"), help, value);
    }
}

fn write_system(page: &mut Page, snapshot: &Snapshot) {
    let stat = &snapshot.stat;
    page.gauge(
        "node_boot_time_seconds",
        "Boot in seconds since 1970.",
        stat.boot_time as f64,
    );
    page.gauge(
        "node_time_seconds",
        "Time in seconds since 1970.",
        snapshot.time,
    );
    if let Some(Load(averages)) = snapshot.load {
        for (minutes, average) in ["1", "5", "15"].iter().zip(averages) {
            let help = format!("{minutes}m load average.");
            page.gauge(&format!("node_load{minutes}"), &help, average);
        }
    }
    for (name, help, value) in [
        (
            "context_switches",
            "Context switches.",
            stat.context_switches,
        ),
        ("forks", "Processes and threads started.", stat.forks),
        ("intr", "Interrupts served.", stat.interrupts),
    ] {
        page.counter(&format!("node_{name}_total"), help, value as f64);
    }
    page.gauge(
        "node_procs_running",
        "Processes that run or could.",
        stat.running as f64,
    );
    page.gauge(
        "node_procs_blocked",
        "Processes that wait for a disk.",
        stat.blocked as f64,
    );
    if let Some(processes) = snapshot.processes {
        page.gauge(
            "node_processes_pids",
            "Number of process ids in use.",
            processes.all as f64,
        );
    }
    write_names(page, &snapshot.system);
}

fn write_names(page: &mut Page, system: &System) {
    let kernel = &system.kernel;
    let uname = vec![
        ("domainname", kernel.domainname.as_str()),
        ("machine", &kernel.machine),
        ("nodename", &kernel.nodename),
        ("release", &kernel.release),
        ("sysname", &kernel.sysname),
        ("version", &kernel.version),
    ];
    page.gauges(
        "node_uname_info",
        "The kernel, as labels (uname(2)).",
        [(uname, 1.0)],
    );
    let release = vec![
        ("id", system.release("ID")),
        ("name", system.release("NAME")),
        ("pretty_name", system.release("PRETTY_NAME")),
        ("version", system.release("VERSION")),
        ("version_codename", system.release("VERSION_CODENAME")),
        ("version_id", system.release("VERSION_ID")),
    ];
    page.gauges(
        "node_os_info",
        "The operating system, as labels (os-release(5)).",
        [(release, 1.0)],
    );
}

fn write_cpus(page: &mut Page, cpus: &[Cpu]) {
    let samples = cpus.iter().flat_map(|cpu| {
        let modes = [
            ("idle", cpu.idle),
            ("iowait", cpu.iowait),
            ("irq", cpu.irq),
            ("nice", cpu.nice),
            ("softirq", cpu.softirq),
            ("steal", cpu.steal),
            ("system", cpu.system),
            ("user", cpu.user),
        ];
        modes.map(|(mode, seconds)| (vec![("cpu", cpu.number.as_str()), ("mode", mode)], seconds))
    });
    page.counters(
        "node_cpu_seconds_total",
        "Seconds the CPUs spent in each mode.",
        samples,
    );
}

fn write_memory(page: &mut Page, snapshot: &Snapshot) {
    for field in snapshot.memory.iter() {
        // Active(anon) is node_memory_Active_anon_bytes.
        let name: String = field
            .name
            .chars()
            .filter(|sign| *sign != ')')
            .map(|sign| {
                if sign.is_ascii_alphanumeric() {
                    sign
                } else {
                    '_'
                }
            })
            .collect();
        let unit = if field.is_bytes { "_bytes" } else { "" };
        let name = format!("node_memory_{name}{unit}");
        let help = format!("Memory information field {}.", field.name);
        page.gauge(&name, &help, field.value as f64);
    }
    if let Some(kills) = snapshot.oom_kills {
        page.counter(
            "node_vmstat_oom_kill",
            "Processes ended for want of memory.",
            kills as f64,
        );
    }
}

/// Name, help, and where it is.
type Number<T> = (&'static str, &'static str, fn(&T) -> f64);

fn write_disks(page: &mut Page, disks: &[Disk]) {
    const COUNTERS: &[Number<Disk>] = &[
        ("reads_completed", "Reads done.", |d| d.reads as f64),
        ("reads_merged", "Reads merged.", |d| d.reads_merged as f64),
        ("read_bytes", "Bytes read.", |d| d.read_bytes as f64),
        ("read_time_seconds", "Seconds spent by all reads.", |d| {
            seconds(d.read_milliseconds)
        }),
        ("writes_completed", "Writes done.", |d| d.writes as f64),
        ("writes_merged", "Writes merged.", |d| {
            d.writes_merged as f64
        }),
        ("written_bytes", "Bytes written.", |d| {
            d.written_bytes as f64
        }),
        ("write_time_seconds", "Seconds spent by all writes.", |d| {
            seconds(d.write_milliseconds)
        }),
        ("io_time_seconds", "Seconds spent doing I/Os.", |d| {
            seconds(d.busy_milliseconds)
        }),
        (
            "io_time_weighted_seconds",
            "Seconds spent doing I/Os, each of them counted.",
            |d| seconds(d.weighted_milliseconds),
        ),
    ];
    let real: Vec<&Disk> = disks.iter().filter(|disk| disk.is_real()).collect();
    for (name, help, value) in COUNTERS {
        let samples = real.iter().map(|disk| (device(&disk.name), value(disk)));
        page.counters(&format!("node_disk_{name}_total"), help, samples);
    }
    let samples = real
        .iter()
        .map(|disk| (device(&disk.name), disk.in_flight as f64));
    page.gauges("node_disk_io_now", "I/Os being served.", samples);
}

fn write_filesystems(page: &mut Page, filesystems: &[Filesystem]) {
    const GAUGES: &[Number<Usage>] = &[
        ("avail_bytes", "Space for everybody in bytes.", |u| {
            u.available as f64
        }),
        ("files", "File nodes.", |u| u.files as f64),
        ("files_free", "Free file nodes.", |u| u.files_free as f64),
        ("free_bytes", "Free space in bytes.", |u| u.free as f64),
        ("size_bytes", "Size in bytes.", |u| u.size as f64),
    ];
    let paths: Vec<String> = filesystems
        .iter()
        .map(|filesystem| filesystem.mount.mountpoint.to_string_lossy().into_owned())
        .collect();
    let labelled = || {
        filesystems.iter().zip(&paths).map(|(filesystem, path)| {
            let mount = &filesystem.mount;
            let labels = vec![
                ("device", mount.source.as_str()),
                ("fstype", &mount.kind),
                ("mountpoint", path.as_str()),
            ];
            (labels, filesystem)
        })
    };
    for (name, help, value) in GAUGES {
        let samples =
            labelled().filter_map(|(labels, filesystem)| Some((labels, value(&filesystem.usage?))));
        page.gauges(&format!("node_filesystem_{name}"), help, samples);
    }
    let flag = |is: bool| if is { 1.0 } else { 0.0 };
    let samples = labelled().map(|(labels, fs)| (labels, flag(fs.mount.is_read_only)));
    page.gauges(
        "node_filesystem_readonly",
        "Whether it is mounted read-only.",
        samples,
    );
    let samples = labelled().map(|(labels, fs)| (labels, flag(fs.usage.is_none())));
    page.gauges(
        "node_filesystem_device_error",
        "Whether it failed to say how full it is, or hangs.",
        samples,
    );
}

fn write_network(page: &mut Page, interfaces: &[Interface]) {
    const COUNTERS: &[Number<Interface>] = &[
        ("receive_bytes", "Bytes that came.", |i| {
            i.received.bytes as f64
        }),
        ("receive_drop", "Packets that came and were dropped.", |i| {
            i.received.dropped as f64
        }),
        ("receive_errs", "Packets that came damaged.", |i| {
            i.received.errors as f64
        }),
        ("receive_packets", "Packets that came.", |i| {
            i.received.packets as f64
        }),
        ("transmit_bytes", "Bytes that went.", |i| {
            i.sent.bytes as f64
        }),
        (
            "transmit_drop",
            "Packets to be sent that were dropped.",
            |i| i.sent.dropped as f64,
        ),
        ("transmit_errs", "Packets that could not be sent.", |i| {
            i.sent.errors as f64
        }),
        ("transmit_packets", "Packets that went.", |i| {
            i.sent.packets as f64
        }),
    ];
    for (name, help, value) in COUNTERS {
        let samples = interfaces.iter().map(|i| (device(&i.name), value(i)));
        page.counters(&format!("node_network_{name}_total"), help, samples);
    }
    let samples = interfaces
        .iter()
        .map(|i| (device(&i.name), i.link.mtu as f64));
    page.gauges("node_network_mtu_bytes", "Largest packet.", samples);
    let up = |i: &Interface| if i.link.is_operational { 1.0 } else { 0.0 };
    let samples = interfaces.iter().map(|i| (device(&i.name), up(i)));
    page.gauges(
        "node_network_up",
        "Whether its operational state is up.",
        samples,
    );
}

fn device(name: &str) -> Labels<'_> {
    vec![("device", name)]
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::{
        super::{cpu, disks, memory, mounts},
        *,
    };

    fn page(snapshot: &Snapshot, filesystems: &[Filesystem]) -> String {
        write(snapshot, filesystems, &AgentNumbers::default()).unwrap()
    }

    #[test]
    fn names_are_node_exporters() {
        let snapshot = Snapshot {
            stat: cpu::parse_stat("cpu0 10 0 0 300\nbtime 1700000000\n"),
            load: cpu::parse_load("0.5 1 2 1/2 3"),
            memory: memory::parse("MemTotal: 2 kB\nActive(anon): 1 kB\nHugePages_Total: 3\n"),
            disks: disks::parse(
                "254 0 vda 1 0 2 500 0 0 0 0 0 0 0\n7 0 loop0 1 0 2 0 0 0 0 0 0 0 0\n",
            ),
            ..Snapshot::default()
        };
        let page = page(&snapshot, &[]);
        for line in [
            "node_cpu_seconds_total{cpu=\"0\",mode=\"idle\"} 3\n",
            "node_memory_MemTotal_bytes 2048\n",
            "node_memory_Active_anon_bytes 1024\n",
            "node_memory_HugePages_Total 3\n",
            "node_load1 0.5\n",
            "node_boot_time_seconds 1700000000\n",
            "node_disk_read_bytes_total{device=\"vda\"} 1024\n",
            "node_disk_read_time_seconds_total{device=\"vda\"} 0.5\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("loop0"), "{page}");
    }

    #[test]
    fn a_file_system_that_hangs_is_named_and_has_no_numbers() {
        let all = mounts::parse(b"host:/srv /mnt/a\\040b nfs4 ro 0 0\n/dev/vda1 / ext4 rw 0 0\n");
        let filesystems: Vec<Filesystem> = all
            .into_iter()
            .map(|mount| Filesystem {
                usage: mount.is_local().then(|| Usage {
                    size: 7,
                    ..Usage::default()
                }),
                mount,
            })
            .collect();
        let page = page(&Snapshot::default(), &filesystems);
        let nfs = "{device=\"host:/srv\",fstype=\"nfs4\",mountpoint=\"/mnt/a b\"}";
        assert!(
            page.contains(&format!("node_filesystem_device_error{nfs} 1\n")),
            "{page}"
        );
        assert!(
            page.contains(&format!("node_filesystem_readonly{nfs} 1\n")),
            "{page}"
        );
        assert!(
            !page.contains(&format!("node_filesystem_size_bytes{nfs}")),
            "{page}"
        );
        let root = "{device=\"/dev/vda1\",fstype=\"ext4\",mountpoint=\"/\"}";
        assert!(
            page.contains(&format!("node_filesystem_size_bytes{root} 7\n")),
            "{page}"
        );
    }

    #[test]
    fn the_agent_counts_itself() {
        let agent = AgentNumbers {
            version: "1.2.3",
            family: "lxd".to_owned(),
            commands_started: 5,
            commands_ended: 3,
            ..AgentNumbers::default()
        };
        let page = write(&Snapshot::default(), &[], &agent).unwrap();
        assert!(page.contains("vsock_agent_commands_running 2\n"), "{page}");
        assert!(page.contains("vsock_agent_build_info{version=\"1.2.3\",family=\"lxd\"} 1\n"));
    }
}

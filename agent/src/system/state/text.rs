//! The guest and the agent for Prometheus: `GET /metrics`. Names and meanings are those of
//! `node_exporter` where it has them.

use std::io;

use nix::sys::utsname::UtsName;

use super::{
    cpu::{Cpu, Load, MODES},
    disks::Disk,
    filesystems::Filesystem,
    network::Interface,
    page::{Labels, Page},
    sources::Snapshot,
    system::System,
};

/// `Content-Type` of the page.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The agent's counters.
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
) -> io::Result<String> {
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
    let help = "A metric with a constant value of 1, labeled by the agent's version.";
    page.info("vsock_agent_build_info", build, help);
    let running = agent.commands_started.saturating_sub(agent.commands_ended);
    let mut own = page.single("vsock_agent_", agent);
    own.gauge("commands_running", |_| running as f64)
        .help("Number of commands that are running or waiting for their websockets.");
    own.counter("commands_started_total", |a| a.commands_started as f64)
        .help("Total number of commands started.");
    own.gauge("connections", |a| a.connections as f64)
        .help("Number of HTTP connections, without upgraded ones.");
    own.gauge("sftp_sessions", |a| a.sftp_sessions as f64)
        .help("Number of SFTP sessions.");
    own.gauge("port_forwards", |a| a.port_forwards as f64)
        .help("Number of connections that are forwarded to a TCP port of the guest.");
}

fn write_process(page: &mut Page, snapshot: &Snapshot) {
    let mut own = page.single("process_", &snapshot.own);
    own.counter("cpu_seconds_total", |p| p.cpu_seconds)
        .help("Total user and system CPU time spent in seconds.");
    own.gauge("open_fds", |p| p.open_files as f64)
        .help("Number of open file descriptors.");
    own.gauge("resident_memory_bytes", |p| p.resident_bytes as f64)
        .help("Resident memory size in bytes.");
    own.gauge("start_time_seconds", |p| p.start_time)
        .help("Start time of the process since unix epoch in seconds.");
    own.gauge("threads", |p| p.threads as f64)
        .help("Number of OS threads in the process.");
    own.gauge("virtual_memory_bytes", |p| p.virtual_bytes as f64)
        .help("Virtual memory size in bytes.");
}

fn write_system(page: &mut Page, snapshot: &Snapshot) {
    if let Some(Load(averages)) = snapshot.load {
        for (minutes, average) in ["1", "5", "15"].iter().zip(averages) {
            let mut load = page.single("node_load", average);
            load.gauge(minutes, |average| *average)
                .help(&format!("{minutes}m load average."));
        }
    }
    let mut node = page.single("node_", &snapshot.stat);
    node.gauge("boot_time_seconds", |s| s.boot_time as f64)
        .help("Node boot time, in unixtime.");
    node.gauge("time_seconds", |_| snapshot.time)
        .help("System time in seconds since epoch (1970).");
    node.counter("context_switches_total", |s| s.context_switches as f64)
        .help("Total number of context switches.");
    node.counter("forks_total", |s| s.forks as f64)
        .help("Total number of forks.");
    node.counter("intr_total", |s| s.interrupts as f64)
        .help("Total number of interrupts serviced.");
    node.gauge("procs_running", |s| s.running as f64)
        .help("Number of processes in runnable state.");
    node.gauge("procs_blocked", |s| s.blocked as f64)
        .help("Number of processes blocked waiting for I/O to complete.");
    if let Some(processes) = snapshot.processes {
        node.gauge("processes_pids", |_| processes.all as f64)
            .help("Number of PIDs.");
    }
    write_names(page, &snapshot.system);
}

fn write_names(page: &mut Page, system: &System) {
    let uname = [
        ("domainname", system.uname(UtsName::domainname)),
        ("machine", system.uname(UtsName::machine)),
        ("nodename", system.uname(UtsName::nodename)),
        ("release", system.uname(UtsName::release)),
        ("sysname", system.uname(UtsName::sysname)),
        ("version", system.uname(UtsName::version)),
    ];
    let uname = uname.iter().map(|(name, text)| (*name, text.as_str()));
    let help = "Labeled system information as provided by the uname system call.";
    page.info("node_uname_info", uname.collect(), help);
    let release = vec![
        ("id", system.release("ID")),
        ("name", system.release("NAME")),
        ("pretty_name", system.release("PRETTY_NAME")),
        ("version", system.release("VERSION")),
        ("version_codename", system.release("VERSION_CODENAME")),
        ("version_id", system.release("VERSION_ID")),
    ];
    let help = "A metric with a constant value of 1, labeled by the fields of os-release(5).";
    page.info("node_os_info", release, help);
}

fn write_cpus(page: &mut Page, cpus: &[Cpu]) {
    let samples = cpus.iter().flat_map(|cpu| {
        let modes = MODES.iter().zip(cpu.seconds);
        modes.map(|(mode, seconds)| (vec![("cpu", cpu.number.as_str()), ("mode", mode)], seconds))
    });
    page.section("node_cpu_", samples)
        .counter("seconds_total", |seconds| *seconds)
        .help("Seconds the CPUs spent in each mode.");
}

fn write_memory(page: &mut Page, snapshot: &Snapshot) {
    for field in snapshot.memory.iter() {
        // Active(anon) is node_memory_Active_anon_bytes.
        let name = field.name.replace(')', "");
        let name = name.replace(|sign: char| !sign.is_ascii_alphanumeric(), "_");
        let unit = if field.is_bytes { "_bytes" } else { "" };
        page.single("node_memory_", field.value as f64)
            .gauge(&format!("{name}{unit}"), |value| *value)
            .help(&format!("Memory information field {}.", field.name));
    }
    if let Some(kills) = snapshot.oom_kills {
        page.single("node_vmstat_", kills as f64)
            .counter("oom_kill", |kills| *kills)
            .help("/proc/vmstat information field oom_kill.");
    }
}

fn write_disks(page: &mut Page, disks: &[Disk]) {
    let real = disks.iter().filter(|disk| disk.is_real());
    let mut disk = page.section("node_disk_", real.map(|disk| (device(&disk.name), disk)));
    disk.counter("reads_completed_total", |d| d.reads as f64)
        .help("The total number of reads completed successfully.");
    disk.counter("reads_merged_total", |d| d.reads_merged as f64)
        .help("The total number of reads merged.");
    disk.counter("read_bytes_total", |d| d.read_bytes as f64)
        .help("The total number of bytes read successfully.");
    disk.counter("read_time_seconds_total", |d| seconds(d.read_milliseconds))
        .help("The total number of seconds spent by all reads.");
    disk.counter("writes_completed_total", |d| d.writes as f64)
        .help("The total number of writes completed successfully.");
    disk.counter("writes_merged_total", |d| d.writes_merged as f64)
        .help("The number of writes merged.");
    disk.counter("written_bytes_total", |d| d.written_bytes as f64)
        .help("The total number of bytes written successfully.");
    disk.counter("write_time_seconds_total", |d| {
        seconds(d.write_milliseconds)
    })
    .help("This is the total number of seconds spent by all writes.");
    disk.counter("io_time_seconds_total", |d| seconds(d.busy_milliseconds))
        .help("Total seconds spent doing I/Os.");
    disk.counter("io_time_weighted_seconds_total", |d| {
        seconds(d.weighted_milliseconds)
    })
    .help("The weighted number of seconds spent doing I/Os.");
    disk.gauge("io_now", |d| d.in_flight as f64)
        .help("The number of I/Os currently in progress.");
}

fn write_filesystems(page: &mut Page, filesystems: &[Filesystem]) {
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
    let measured = labelled().filter_map(|(labels, fs)| Some((labels, fs.usage?)));
    let mut size = page.section("node_filesystem_", measured);
    size.gauge("avail_bytes", |u| u.available as f64)
        .help("Filesystem space available to non-root users in bytes.");
    size.gauge("files", |u| u.files as f64)
        .help("Filesystem total file nodes.");
    size.gauge("files_free", |u| u.files_free as f64)
        .help("Filesystem total free file nodes.");
    size.gauge("free_bytes", |u| u.free as f64)
        .help("Filesystem free space in bytes.");
    size.gauge("size_bytes", |u| u.size as f64)
        .help("Filesystem size in bytes.");
    let mut all = page.section("node_filesystem_", labelled());
    all.gauge("readonly", |fs| flag(fs.mount.is_read_only))
        .help("Filesystem read-only status.");
    all.gauge("device_error", |fs| flag(fs.usage.is_none()))
        .help("Whether an error occurred while getting statistics for the given device.");
}

/// The name and the value of a metric of an interface.
type NetworkStatistic = (&'static str, fn(&Interface) -> u64);

const NETWORK_STATISTICS: [NetworkStatistic; 8] = [
    ("receive_bytes", |i| i.received.bytes),
    ("receive_drop", |i| i.received.dropped),
    ("receive_errs", |i| i.received.errors),
    ("receive_packets", |i| i.received.packets),
    ("transmit_bytes", |i| i.sent.bytes),
    ("transmit_drop", |i| i.sent.dropped),
    ("transmit_errs", |i| i.sent.errors),
    ("transmit_packets", |i| i.sent.packets),
];

fn write_network(page: &mut Page, interfaces: &[Interface]) {
    let items = interfaces
        .iter()
        .map(|interface| (device(&interface.name), interface));
    let mut net = page.section("node_network_", items);
    for (name, value) in NETWORK_STATISTICS {
        net.counter(&format!("{name}_total"), |i| value(i) as f64)
            .help(&format!("Network device statistic {name}."));
    }
    net.gauge("mtu_bytes", |i| i.link.mtu as f64)
        .help("Network device property: mtu_bytes.");
    net.gauge("up", |i| flag(i.link.is_operational))
        .help("Value is 1 if operstate is 'up', 0 otherwise.");
}

fn device(name: &str) -> Labels<'_> {
    vec![("device", name)]
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::{
        super::{cpu, disks, filesystems::Usage, memory, mounts},
        *,
    };

    fn page(snapshot: &Snapshot, filesystems: &[Filesystem]) -> String {
        write(snapshot, filesystems, &AgentNumbers::default()).unwrap()
    }

    #[test]
    fn metrics_have_the_names_of_node_exporter() {
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
    fn a_file_system_without_usage_has_only_device_error_and_readonly() {
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
    fn running_commands_are_those_started_and_not_ended() {
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

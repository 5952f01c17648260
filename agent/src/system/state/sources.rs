//! Reads the state of the guest, without the usage of file systems. Blocks, but not on a network or a disk.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    sys::{
        socket::SockaddrStorage,
        utsname::{UtsName, uname},
    },
};

use super::{
    cpu::{self, Load, Stat},
    disks::{self, Disk},
    memory::{self, Fields},
    mounts::{self, Mount},
    network::{self, Address, Interface, Link},
    processes::{self, OwnProcess, Processes},
    system::{self, System},
};
use crate::system::names;

/// The directories to read; tests replace them.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    proc: PathBuf,
    sys: PathBuf,
    etc: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            etc: "/etc".into(),
        }
    }
}

/// The state of the guest at one time.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Seconds since 1970.
    pub(super) time: f64,
    pub(super) stat: Stat,
    /// Processor time used since the boot, in nanoseconds.
    pub(super) cpu_usage: Option<u64>,
    pub(super) load: Option<Load>,
    pub(super) memory: Fields,
    /// Peak memory usage, in bytes.
    pub(super) memory_peak: u64,
    /// Processes killed by the OOM killer.
    pub(super) oom_kills: Option<u64>,
    pub(super) disks: Vec<Disk>,
    pub(super) interfaces: Vec<Interface>,
    pub(super) processes: Option<Processes>,
    pub(super) system: System,
    pub(super) own: OwnProcess,
}

impl Sources {
    /// Reads the current state.
    pub(super) fn read(&self) -> Snapshot {
        let stat = cpu::parse_stat(&self.proc("stat"));
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Snapshot {
            // A clock before 1970 counts as 1970.
            time: since_1970.unwrap_or_default().as_secs_f64(),
            cpu_usage: self.cpu_usage(),
            load: cpu::parse_load(&self.proc("loadavg")),
            memory: memory::parse(&self.proc("meminfo")),
            memory_peak: self.memory_peak(),
            oom_kills: memory::parse_oom_kills(&self.proc("vmstat")),
            disks: self.disks(),
            interfaces: self.interfaces(),
            processes: self.processes(),
            system: self.system(),
            own: self.own_process(stat.boot_time),
            stat,
        }
    }

    /// The reported mounts.
    pub(super) fn mounts(&self) -> Vec<Mount> {
        mounts::parse(&fs::read(self.proc.join("self/mounts")).unwrap_or_default())
    }

    fn proc(&self, name: &str) -> String {
        text(&self.proc.join(name))
    }

    fn cgroup(&self, name: &str) -> String {
        text(&self.sys.join("fs/cgroup").join(name))
    }

    /// The processor time of the root control group, of version 2 or 1, in nanoseconds.
    fn cpu_usage(&self) -> Option<u64> {
        cpu::parse_usage(&self.cgroup("cpu.stat"))
            .or_else(|| self.cgroup("cpuacct/cpuacct.usage").trim().parse().ok())
    }

    /// The peak memory usage, as [`Sources::cpu_usage`], in bytes. Version 2 has none for its root group.
    fn memory_peak(&self) -> u64 {
        let version_2 = self.cgroup("memory.peak").trim().parse().ok();
        let version_1 = || self.cgroup("memory/memory.max_usage_in_bytes");
        version_2
            .or_else(|| version_1().trim().parse().ok())
            .unwrap_or_default()
    }

    fn disks(&self) -> Vec<Disk> {
        let mut disks = disks::parse(&self.proc("diskstats"));
        for disk in &mut disks {
            // A slash in a name is an exclamation mark in sysfs.
            let folder = disk.name.replace('/', "!");
            let file = self.sys.join("class/block").join(folder).join("partition");
            disk.is_partition = file.exists();
        }
        disks
    }

    fn interfaces(&self) -> Vec<Interface> {
        let addresses = match getifaddrs() {
            Ok(addresses) => addresses.map(address).collect(),
            Err(error) => {
                tracing::debug!(%error, "cannot list the network's addresses");
                Vec::new()
            }
        };
        let counters = network::parse_counters(&self.proc("net/dev"));
        network::interfaces(addresses, &counters, |name| self.link(name))
    }

    fn link(&self, name: &str) -> Link {
        let folder = self.sys.join("class/net").join(name);
        Link {
            hwaddr: network::hardware_address(&text(&folder.join("address"))),
            mtu: text(&folder.join("mtu")).trim().parse().unwrap_or(0),
            is_operational: text(&folder.join("operstate")).trim() == "up",
        }
    }

    fn processes(&self) -> Option<Processes> {
        let entries = fs::read_dir(&self.proc).ok()?;
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let pids = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let stats = pids.map(|pid| self.proc(&format!("{pid}/stat")));
        Some(processes::count(stats))
    }

    fn own_process(&self, boot_time: u64) -> OwnProcess {
        let open_files = fs::read_dir(self.proc.join("self/fd")).map_or(0, Iterator::count);
        let status = memory::parse(&self.proc("self/status"));
        // One of them is the open directory.
        let open_files = open_files.saturating_sub(1);
        processes::own(&self.proc("self/stat"), &status, open_files, boot_time)
    }

    fn system(&self) -> System {
        let files = [self.etc.join("os-release"), "/usr/lib/os-release".into()];
        let release = files.iter().find_map(|file| fs::read_to_string(file).ok());
        let mut system = System {
            uname: uname().ok(),
            release: system::parse_release(&release.unwrap_or_default()),
            fqdn: String::new(),
        };
        let host = system.uname(UtsName::nodename);
        system.fqdn = names::full_name(&text(&self.etc.join("hosts")), &host);
        system
    }
}

/// A file as text. Empty if it cannot be read: older kernels do not have all files.
fn text(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(%error, path = %path.display(), "cannot read");
            }
            String::new()
        }
    }
}

fn address(from: InterfaceAddress) -> Address {
    let mask = from.netmask.as_ref().and_then(ip);
    let ip = from.address.as_ref().and_then(ip);
    Address {
        flags: from.flags,
        ip: ip.map(|ip| (ip, mask.map_or(0, network::prefix_length))),
        interface: from.interface_name,
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_this_machine_has_memory_processes_and_a_loopback() {
        let snapshot = Sources::default().read();
        assert!(snapshot.memory.get("MemTotal") > 0);
        assert!(snapshot.processes.unwrap().all > 0);
        assert!(snapshot.own.resident_bytes > 0);
        assert!(!snapshot.stat.cpus.is_empty());
        let loopback = snapshot.interfaces.iter().find(|i| i.name == "lo").unwrap();
        let flag = nix::net::if_::InterfaceFlags::IFF_LOOPBACK;
        assert!(loopback.flags.contains(flag));
    }

    #[test]
    fn without_proc_and_sys_values_are_missing() {
        let nowhere = PathBuf::from("/nonexistent");
        let snapshot = Sources {
            proc: nowhere.clone(),
            sys: nowhere.clone(),
            etc: nowhere,
        }
        .read();
        assert_eq!((snapshot.cpu_usage, snapshot.memory_peak), (None, 0));
        assert!(snapshot.processes.is_none() && snapshot.disks.is_empty());
    }
}

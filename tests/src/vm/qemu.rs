//! The two processes of one VM: QEMU and, where the kernel has no vhost-vsock, the vsock device.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    VmError,
    machine::{Accelerator, Device, Machine, QEMU},
    process::{Lifetime, Process},
};
use crate::eventually;

/// Time for the device to listen: milliseconds on an idle computer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What every kernel is told. It tries its timer at the start, and takes one that is late, because
/// this computer is busy, for one that does not work; on KVM it does not try.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 no_timer_check";

/// The program that gives a guest a folder by virtiofs, from the package `qemu-system-common`.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// The address of the network card of a machine with a disk.
pub const MAC: &str = "52:54:00:12:34:56";

/// What to start.
#[derive(Debug)]
pub(super) struct Hardware<'a> {
    pub(super) machine: &'a Machine,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) cmdline: &'a str,
    /// The first disk, and a network card with it.
    pub(super) disk: Option<&'a Path>,
    /// Whether the machine says that its host is LXD's.
    pub(super) looks_like_lxd: bool,
    /// Folders for virtiofs, by their tags.
    pub(super) shares: &'a [(String, PathBuf)],
    /// More arguments.
    pub(super) more: &'a [String],
    pub(super) memory_mib: u32,
    pub(super) cid: u32,
    pub(super) lifetime: Lifetime,
}

/// Where one VM's sockets and logs are.
#[derive(Clone, Debug)]
pub(super) struct VmPaths {
    /// For sockets: short, as a Unix socket's path has 107 bytes at most.
    pub(super) sockets: PathBuf,
    /// For logs: stays when the VM is gone.
    pub(super) logs: PathBuf,
    /// What the logs' names begin with.
    pub(super) name: String,
}

impl VmPaths {
    /// The socket on which guest ports are reached, if the device is in user space.
    pub(super) fn guest(&self) -> PathBuf {
        self.sockets.join("vm.vsock")
    }

    pub(super) fn serial_log(&self) -> PathBuf {
        self.log("serial")
    }

    pub(super) fn log(&self, of: &str) -> PathBuf {
        self.logs.join(format!("{}-{of}.log", self.name))
    }

    /// The socket of QEMU's monitor.
    pub(super) fn monitor(&self) -> PathBuf {
        self.sockets.join("monitor.sock")
    }

    fn device(&self) -> PathBuf {
        self.sockets.join("device.sock")
    }

    /// The socket of a share.
    fn share(&self, number: usize) -> PathBuf {
        self.sockets.join(format!("share-{number}.sock"))
    }
}

/// A VM's processes. `Drop` ends them, unless they are detached.
#[derive(Debug)]
pub(super) struct Qemu {
    // In the order in which they go.
    qemu: Process,
    device: Option<Process>,
    _shares: Vec<Process>,
}

impl Qemu {
    /// Starts the processes; the guest begins to boot.
    pub(super) async fn start(hardware: &Hardware<'_>, paths: &VmPaths) -> Result<Self, VmError> {
        let device = match &hardware.machine.device {
            Device::VhostVsock => None,
            Device::VhostDeviceVsock(program) => {
                Some(start_device(program, hardware, paths).await?)
            }
        };
        let mut shares = Vec::new();
        for (number, (tag, folder)) in hardware.shares.iter().enumerate() {
            shares.push(start_share(number, tag, folder, hardware, paths).await?);
        }
        // Emptied here, for QEMU does it only once it is up, and what the last one said must not
        // count as news.
        let serial = File::create(paths.serial_log());
        serial.map_err(VmError::io(format!(
            "creating {}",
            paths.serial_log().display()
        )))?;
        let log = paths.log("qemu");
        let qemu = Process::start(
            Path::new(QEMU),
            &arguments(hardware, paths),
            &log,
            hardware.lifetime,
        );
        let qemu = qemu.map_err(VmError::io("starting QEMU"))?;
        Ok(Self {
            qemu,
            device,
            _shares: shares,
        })
    }

    /// The ids of the processes.
    pub(super) fn ids(&self) -> Vec<u32> {
        std::iter::once(&self.qemu)
            .chain(&self.device)
            .map(Process::id)
            .collect()
    }

    /// Tells whether the machine is off, or its device broke.
    pub(super) fn has_ended(&mut self) -> Option<&'static str> {
        if self.qemu.has_ended() {
            return Some("QEMU");
        }
        self.device
            .as_mut()
            .is_some_and(Process::has_ended)
            .then_some("vhost-device-vsock")
    }

    /// Takes the processor away from the guest.
    ///
    /// Not by QEMU's own `stop`: no connection through vhost-device-vsock 0.3.0 survives that.
    pub(super) fn pause(&self) -> Result<(), VmError> {
        self.qemu
            .signal(Signal::SIGSTOP)
            .map_err(VmError::io("stopping QEMU"))
    }

    pub(super) fn resume(&self) -> Result<(), VmError> {
        self.qemu
            .signal(Signal::SIGCONT)
            .map_err(VmError::io("continuing QEMU"))
    }
}

async fn start_device(
    program: &Path,
    hardware: &Hardware<'_>,
    paths: &VmPaths,
) -> Result<Process, VmError> {
    let vm = format!(
        "guest-cid={},socket={},uds-path={}",
        hardware.cid,
        paths.device().display(),
        paths.guest().display()
    );
    // Left by the machine's last run.
    for socket in [paths.device(), paths.guest()] {
        let _ = fs::remove_file(socket);
    }
    let log = paths.log("vsock");
    let device = Process::start(program, &["--vm".to_owned(), vm], &log, hardware.lifetime);
    let device = device.map_err(VmError::io("starting vhost-device-vsock"))?;
    until_up(device, "vhost-device-vsock", &paths.device(), log).await
}

async fn start_share(
    number: usize,
    tag: &str,
    folder: &Path,
    hardware: &Hardware<'_>,
    paths: &VmPaths,
) -> Result<Process, VmError> {
    let socket = paths.share(number);
    let _ = fs::remove_file(&socket);
    let arguments = [
        format!("--socket-path={}", socket.display()),
        "-o".to_owned(),
        format!("source={}", folder.display()),
    ];
    let log = paths.log(&format!("share-{tag}"));
    let share = Process::start(Path::new(VIRTIOFSD), &arguments, &log, hardware.lifetime);
    let share = share.map_err(VmError::io("starting virtiofsd"))?;
    until_up(share, "virtiofsd, which needs root,", &socket, log).await
}

/// Waits until a device has its socket.
async fn until_up(
    mut device: Process,
    what: &'static str,
    socket: &Path,
    log: PathBuf,
) -> Result<Process, VmError> {
    let is_up = || socket.exists();
    let settled = eventually(START_TIMEOUT, async || device.has_ended() || is_up()).await;
    if device.has_ended() {
        return Err(VmError::Ended { what, log });
    }
    if !settled {
        return Err(VmError::Timeout {
            what: "the start of a device",
            after: START_TIMEOUT,
            log,
        });
    }
    Ok(device)
}

fn arguments(hardware: &Hardware<'_>, paths: &VmPaths) -> Vec<String> {
    let cpu = match hardware.machine.accelerator {
        Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
        Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
    };
    let memory = hardware.memory_mib;
    let fixed = ["-nodefaults", "-no-reboot", "-display", "none", "-smp", "2"];
    let mut arguments: Vec<String> = cpu.into_iter().chain(fixed).map(str::to_owned).collect();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("-m", memory.to_string());
    add("-kernel", hardware.kernel.display().to_string());
    add("-initrd", hardware.initramfs.display().to_string());
    add("-append", format!("{CMDLINE} {}", hardware.cmdline));
    add("-serial", format!("file:{}", paths.serial_log().display()));
    if let Some(disk) = hardware.disk {
        let drive = format!("file={},if=virtio,format=raw,cache=unsafe", disk.display());
        add("-drive", drive);
        // A network of its own that leads nowhere.
        add("-netdev", "user,id=net,restrict=on".to_owned());
        add("-device", format!("virtio-net-pci,netdev=net,mac={MAC}"));
        let monitor = paths.monitor();
        add(
            "-qmp",
            format!("unix:{},server=on,wait=off", monitor.display()),
        );
    }
    if hardware.looks_like_lxd {
        // cloud-init looks at the first of these up to 25.3, at the second from 26.1.
        add("-smbios", "type=2,manufacturer=Lab,product=LXD".to_owned());
        add("-device", "virtio-serial-pci".to_owned());
        add("-chardev", "null,id=lxd".to_owned());
        let port = "virtserialport,chardev=lxd,name=com.canonical.lxd";
        add("-device", port.to_owned());
    }
    for (number, (tag, _)) in hardware.shares.iter().enumerate() {
        let socket = paths.share(number);
        let socket = format!("socket,id=share-{number},path={}", socket.display());
        add("-chardev", socket);
        let device = format!("vhost-user-fs-pci,chardev=share-{number},tag={tag}");
        add("-device", device);
    }
    let is_in_kernel = hardware.machine.device == Device::VhostVsock;
    if is_in_kernel && hardware.shares.is_empty() {
        add("-machine", "q35".to_owned());
    } else {
        // A device in user space reads the guest's memory, so the processes share it.
        let memory = format!("memory-backend-memfd,id=memory,size={memory}M,share=on");
        add("-object", memory);
        add("-machine", "q35,memory-backend=memory".to_owned());
    }
    if is_in_kernel {
        let device = format!("vhost-vsock-pci,guest-cid={}", hardware.cid);
        add("-device", device);
    } else {
        let socket = format!("socket,id=vsock,path={}", paths.device().display());
        add("-chardev", socket);
        add("-device", "vhost-user-vsock-pci,chardev=vsock".to_owned());
    }
    arguments.extend_from_slice(hardware.more);
    arguments
}

//! What this computer can lend to a VM: its processor, and a vsock device.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use super::{
    VmError,
    image::{self, Busybox},
    kernel::Kernel,
    paths, tools,
};

/// Time the probe has to boot under KVM, which takes less than a second where it works.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// QEMU's program.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU, ten to twenty times slower.
    Tcg,
}

/// Who is the host's half of the vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The kernel: the guest is at an `AF_VSOCK` address.
    VhostVsock,
    /// This program, in user space: the guest is behind a Unix socket.
    VhostDeviceVsock(PathBuf),
}

/// What a VM stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Found by booting a kernel, not by looking for `/dev/kvm`.
    pub accelerator: Accelerator,
    /// Found by opening `/dev/vhost-vsock`.
    pub device: Device,
}

impl Machine {
    /// Looks at this computer; installs the vsock device if it has none.
    pub(super) async fn find(kernel: &Kernel, busybox: &Busybox) -> Result<Self, VmError> {
        Ok(Self {
            accelerator: accelerator(kernel, busybox).await?,
            device: device().await?,
        })
    }

    /// Says in one line what is in use.
    #[must_use]
    pub fn describe(&self) -> String {
        let accelerator = match self.accelerator {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => {
                "software emulation (TCG), as KVM is not there or does not boot a kernel"
            }
        };
        let device = match &self.device {
            Device::VhostVsock => "vhost-vsock of the kernel",
            Device::VhostDeviceVsock(_) => "vhost-device-vsock in user space",
        };
        format!("{accelerator}; {device}")
    }
}

async fn device() -> Result<Device, VmError> {
    if opens("/dev/vhost-vsock") {
        return Ok(Device::VhostVsock);
    }
    tools::install(&tools::VHOST_DEVICE_VSOCK)
        .await
        .map(Device::VhostDeviceVsock)
}

/// Asks KVM once per boot of this computer and remembers the answer.
async fn accelerator(kernel: &Kernel, busybox: &Busybox) -> Result<Accelerator, VmError> {
    if !opens("/dev/kvm") {
        return Ok(Accelerator::Tcg);
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(VmError::io("reading this boot's id"))?;
    let remembered = paths::lab().join("kvm");
    let answer = fs::read_to_string(&remembered).unwrap_or_default();
    let works = match answer.strip_prefix(boot_id.trim()) {
        Some(answer) => answer.trim() == "works",
        None => kvm_boots(kernel, busybox).await?,
    };
    let answer = if works { "works" } else { "fails" };
    fs::write(&remembered, format!("{} {answer}\n", boot_id.trim()))
        .map_err(VmError::io(format!("writing {}", remembered.display())))?;
    Ok(if works {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    })
}

/// Boots a kernel under KVM. `/dev/kvm` alone says little: in a VM of its own it may abort on the
/// first odd register.
async fn kvm_boots(kernel: &Kernel, busybox: &Busybox) -> Result<bool, VmError> {
    let initramfs = paths::lab().join(format!("probe.{}", std::process::id()));
    fs::write(&initramfs, image::probe(busybox))
        .map_err(VmError::io(format!("writing {}", initramfs.display())))?;
    let mut qemu = Command::new(QEMU);
    qemu.args([
        "-machine",
        "q35",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "256",
        "-nodefaults",
    ])
    .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
    .args(["-append", "console=ttyS0 quiet panic=-1"])
    .arg("-kernel")
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(&initramfs)
    .stdin(Stdio::null())
    .kill_on_drop(true);
    let output = timeout(PROBE_TIMEOUT, qemu.output()).await;
    fs::remove_file(&initramfs)
        .map_err(VmError::io(format!("removing {}", initramfs.display())))?;
    match output {
        Ok(Err(_)) => Err(VmError::missing(QEMU)),
        Ok(Ok(output)) => Ok(String::from_utf8_lossy(&output.stdout).contains(image::PROBED)),
        Err(_) => Ok(false),
    }
}

fn opens(path: impl AsRef<Path>) -> bool {
    OpenOptions::new().read(true).write(true).open(path).is_ok()
}

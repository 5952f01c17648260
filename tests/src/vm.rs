//! A real virtual machine with the agent in it as a service.
//!
//! Debian's kernel, an initramfs of busybox and the agent, QEMU, and a vsock device: see `image`,
//! `kernel` and `qemu`. All that can be kept between runs is below `target/lab/`.

mod command;
mod cpio;
mod debian;
mod disk;
mod error;
mod identity;
mod image;
mod kernel;
mod lab;
mod machine;
mod monitor;
mod options;
pub mod paths;
pub(crate) mod process;
mod product;
mod qemu;
mod scratch;
mod serve;
mod stock;
pub mod tools;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{net::UnixStream, process::Command};

use self::{
    debian::Debian,
    disk::Disk,
    identity::Identity,
    image::Guest,
    qemu::{Hardware, Qemu, VmPaths},
};
pub use self::{
    error::VmError,
    lab::Lab,
    machine::{Accelerator, Device, Machine},
    monitor::Monitor,
    options::{Installed, System, VmOptions},
    process::Lifetime,
    product::{Product, build_benchmark, build_for_here},
    qemu::MAC,
    serve::Serve,
    stock::StockAgent,
};
use crate::{HostAddress, eventually};

/// Time a guest has to boot. It needs 3 s under TCG on two idle cores.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// Seconds that all of Debian may need until its agent answers: 40 to 50 under TCG on two cores that
/// have other work too.
const SYSTEM_TIMEOUT: &str = "240";

/// A VM: first prepared, then running, then off. `Drop` ends it, unless it is detached.
#[derive(Debug)]
pub struct TestVm {
    lab: &'static Lab,
    options: VmOptions,
    paths: VmPaths,
    cid: u32,
    identity: Option<Identity>,
    disk: Option<Disk>,
    qemu: Option<Qemu>,
}

impl TestVm {
    /// Boots a VM and waits until its agent answers.
    ///
    /// # Errors
    ///
    /// Any of [`VmError`], with the log that says more.
    pub async fn start(options: VmOptions) -> Result<Self, VmError> {
        let mut vm = Self::prepare(options).await?;
        vm.boot().await?;
        vm.wait_agent().await?;
        Ok(vm)
    }

    /// Gives the VM its place: from here on it has an endpoint, though nobody is there yet.
    ///
    /// # Errors
    ///
    /// Any of [`Lab::prepare`], and a place that cannot be written.
    pub async fn prepare(options: VmOptions) -> Result<Self, VmError> {
        let lab = Lab::prepare().await?;
        let logs = options.logs.clone();
        fs::create_dir_all(&logs).map_err(VmError::io(format!("creating {}", logs.display())))?;
        let sockets = scratch::create(options.lifetime)?;
        let identity = if options.plain {
            None
        } else {
            let folder = options
                .identity
                .clone()
                .unwrap_or_else(|| sockets.join("identity"));
            Some(Identity::open(&lab.product.cli, folder, &options.name).await?)
        };
        let disk = match &options.system {
            Some(system) => {
                let guest = identity.as_ref().map(Identity::guest);
                let path = sockets.join("disk");
                let debian = Debian::prepare().await?;
                Some(Disk::create(debian, path, &lab.product, system, guest).await?)
            }
            None => None,
        };
        let paths = VmPaths {
            sockets,
            logs,
            name: options.name.clone(),
        };
        let vm = Self {
            lab,
            options,
            paths,
            cid: unique_cid(),
            identity,
            disk,
            qemu: None,
        };
        vm.write_config()?;
        Ok(vm)
    }

    /// Boots the guest and waits until its init has started the agent, which may still be on its
    /// way up.
    ///
    /// # Errors
    ///
    /// Any of [`VmError`], with the log that says more.
    pub async fn boot(&mut self) -> Result<(), VmError> {
        if self.disk.is_some() {
            return self.boot_disk().await;
        }
        let guest = Guest {
            kernel: &self.lab.kernel,
            busybox: &self.lab.busybox,
            agent: &self.lab.product.agent,
            cli: &self.lab.product.cli,
            flags: &self.agent_flags(),
            identity: self.identity.as_ref().map(Identity::guest),
            programs: &self.options.programs,
        };
        let initramfs = self.paths.sockets.join("initramfs");
        fs::write(&initramfs, guest.initramfs()?)
            .map_err(VmError::io(format!("writing {}", initramfs.display())))?;
        let hardware = Hardware {
            machine: &self.lab.machine,
            kernel: &self.lab.kernel.image,
            initramfs: &initramfs,
            cmdline: &self.options.cmdline,
            disk: None,
            looks_like_lxd: false,
            shares: &[],
            more: &[],
            memory_mib: self.options.memory_mib,
            cid: self.cid,
            lifetime: self.options.lifetime,
        };
        let qemu = self.qemu.insert(Qemu::start(&hardware, &self.paths).await?);
        let log = self.paths.serial_log();
        let is_up = || fs::read(&log).is_ok_and(|log| contains(&log, image::UP));
        let settled =
            eventually(BOOT_TIMEOUT, async || is_up() || qemu.has_ended().is_some()).await;
        if let Some(what) = qemu.has_ended() {
            return Err(VmError::Ended { what, log });
        }
        if !settled {
            return Err(VmError::Timeout {
                what: "the boot",
                after: BOOT_TIMEOUT,
                log,
            });
        }
        // QEMU has long read it.
        fs::remove_file(&initramfs)
            .map_err(VmError::io(format!("removing {}", initramfs.display())))
    }

    /// Switches a machine with a disk on; what is on the disk stays from boot to boot.
    async fn boot_disk(&mut self) -> Result<(), VmError> {
        let (Some(disk), Some(system)) = (&self.disk, &self.options.system) else {
            return Err(VmError::missing("a disk"));
        };
        let hardware = Hardware {
            machine: &self.lab.machine,
            kernel: &disk.debian.kernel,
            initramfs: &disk.debian.initramfs,
            cmdline: &format!("{} {}", disk::CMDLINE, self.options.cmdline),
            disk: Some(&disk.path),
            looks_like_lxd: system.looks_like_lxd,
            shares: &system.shares,
            more: &system.hardware,
            memory_mib: self.options.memory_mib,
            cid: self.cid,
            lifetime: self.options.lifetime,
        };
        self.qemu = Some(Qemu::start(&hardware, &self.paths).await?);
        Ok(())
    }

    /// Starts `agent-cli serve`, which knows this VM only.
    ///
    /// # Errors
    ///
    /// Any that starting a process has.
    pub fn serve(&self) -> Result<Serve, VmError> {
        Serve::start(
            &self.lab.product.cli,
            &self.config(),
            &self.paths.log("serve"),
        )
    }

    /// Where the host reaches the agent, in the words of the command line.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.endpoint_at(self.options.port)
    }

    /// Where the host reaches a port of the guest, in the words of the command line.
    #[must_use]
    pub fn endpoint_at(&self, port: u32) -> String {
        match self.lab.machine.device {
            Device::VhostVsock => format!("vsock:{}:{port}", self.cid),
            Device::VhostDeviceVsock(_) => {
                format!("hybrid:{}:{port}", self.paths.guest().display())
            }
        }
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    ///
    /// [`VmError::Command`] with the words of `agent-cli`.
    pub async fn wait_agent(&self) -> Result<(), VmError> {
        command::run(&mut self.exec(["true"])).await.map(drop)
    }

    /// Gives a command of `agent-cli`, which knows this VM by its name.
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut cli = Command::new(&self.lab.product.cli);
        cli.args(arguments).env("AGENT_CLI_CONFIG", self.config());
        cli.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        cli.kill_on_drop(true);
        cli
    }

    /// Gives the command of `agent-cli` that runs `words` in the guest.
    pub fn exec<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut exec = self.cli(["exec", self.name()]);
        if self.disk.is_some() {
            exec.args(["--connect-timeout", SYSTEM_TIMEOUT]);
        }
        exec.arg("--").args(words);
        exec
    }

    /// Where the guest reaches a port of the host.
    #[must_use]
    pub fn host_address(&self, port: u32) -> HostAddress {
        match self.lab.machine.device {
            Device::VhostVsock => HostAddress::Vsock(port),
            Device::VhostDeviceVsock(_) => {
                HostAddress::Unix(format!("{}_{port}", self.paths.guest().display()).into())
            }
        }
    }

    /// Connects to the monitor of a VM with a disk, which may just have been switched on.
    ///
    /// # Errors
    ///
    /// Any that a Unix socket has.
    pub async fn monitor(&self) -> Result<Monitor, VmError> {
        let path = self.paths.monitor();
        // What a QEMU before left there refuses.
        let is_up = eventually(BOOT_TIMEOUT, async || {
            UnixStream::connect(&path).await.is_ok()
        });
        let _ = is_up.await;
        let monitor = Monitor::open(&path).await;
        monitor.map_err(VmError::io("connecting to QEMU's monitor"))
    }

    /// What the VM is called, on the command line too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The configuration of `agent-cli` that has this VM's name in it.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.paths.sockets.join("agent-cli.toml")
    }

    /// The host's half of the identity.
    #[must_use]
    pub fn identity(&self) -> Option<&Path> {
        self.identity.as_ref().map(Identity::host)
    }

    /// What the guest and the agent print.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.paths.serial_log()
    }

    /// A folder of its own, readable by its owner only, that goes when the VM does.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.paths.sockets
    }

    /// The ids of its processes.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        self.qemu.as_ref().map(Qemu::ids).unwrap_or_default()
    }

    /// Makes the VM hang, until [`TestVm::resume`].
    ///
    /// # Errors
    ///
    /// [`VmError::Missing`] if the VM is not running.
    pub fn pause(&self) -> Result<(), VmError> {
        self.running()?.pause()
    }

    /// Undoes [`TestVm::pause`].
    ///
    /// # Errors
    ///
    /// [`VmError::Missing`] if the VM is not running.
    pub fn resume(&self) -> Result<(), VmError> {
        self.running()?.resume()
    }

    /// Waits until the guest has switched itself off.
    ///
    /// # Errors
    ///
    /// [`VmError::Timeout`] if it does not.
    pub async fn wait_off(&mut self) -> Result<(), VmError> {
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        if eventually(BOOT_TIMEOUT, async || qemu.has_ended() == Some("QEMU")).await {
            self.qemu = None;
            return Ok(());
        }
        Err(VmError::Timeout {
            what: "the end",
            after: BOOT_TIMEOUT,
            log: self.serial_log(),
        })
    }

    fn agent_flags(&self) -> String {
        let security = if self.options.plain { "--plain" } else { "" };
        format!(
            "--listen vsock:any:{} {security} {}",
            self.options.port, self.options.agent_flags
        )
    }

    fn write_config(&self) -> Result<(), VmError> {
        let security = match self.identity() {
            Some(folder) => format!("identity = {:?}", folder.display().to_string()),
            None => "plain = true".to_owned(),
        };
        let (name, endpoint) = (self.name(), self.endpoint());
        let text = format!("[vms.{name}]\nendpoint = {endpoint:?}\n{security}\n");
        fs::write(self.config(), text)
            .map_err(VmError::io(format!("writing {}", self.config().display())))
    }

    fn running(&self) -> Result<&Qemu, VmError> {
        self.qemu
            .as_ref()
            .ok_or_else(|| VmError::missing("a running VM"))
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        if self.options.lifetime == Lifetime::Owned {
            // The processes first: they have sockets in there.
            self.qemu = None;
            let _ = fs::remove_dir_all(&self.paths.sockets);
        }
    }
}

/// Gives an address that no other VM of this computer has: the process id, and a number within the
/// process.
fn unique_cid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Process ids have 22 bits (Linux `PID_MAX_LIMIT`); 0 to 2 and the all-ones word are reserved.
    (1 << 30) | (std::process::id() << 8) | (NEXT.fetch_add(1, Ordering::Relaxed) & 0xff)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

//! The guest's whole disk: one initramfs, written anew for each VM in a few milliseconds.
//!
//! busybox is init and every tool, so orphans are reaped and the agent is a service that comes
//! back. The files of the recipe are in `tests/image/`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::{VmError, command::run, cpio::Archive, kernel::Kernel};

/// The agent in the guest.
pub(super) const AGENT_PATH: &str = "/usr/bin/vsock-agent";

/// The command line in the guest, for tests that have both ends in there.
pub(super) const CLI_PATH: &str = "/usr/bin/agent-cli";

/// Where the agent looks for its identity by itself.
pub(super) const IDENTITY_PATH: &str = "/etc/vsock-agent";

/// What the guest prints when all is mounted and loaded, just before the agent starts.
pub(super) const UP: &str = "lab: the guest is up";

/// What the KVM probe prints.
pub(super) const PROBED: &str = "lab: the probe is up";

const DIRECTORIES: [(&str, u32, u32); 19] = [
    ("/bin", 0o755, 0),
    ("/dev", 0o755, 0),
    ("/etc", 0o755, 0),
    (IDENTITY_PATH, 0o700, 0),
    ("/home", 0o755, 0),
    ("/home/user", 0o755, 1000),
    ("/lib", 0o755, 0),
    ("/lib/modules", 0o755, 0),
    ("/proc", 0o755, 0),
    ("/root", 0o700, 0),
    ("/run", 0o755, 0),
    ("/sbin", 0o755, 0),
    ("/sys", 0o755, 0),
    ("/tmp", 0o1777, 0),
    ("/usr", 0o755, 0),
    ("/usr/bin", 0o755, 0),
    ("/usr/sbin", 0o755, 0),
    ("/var", 0o755, 0),
    ("/var/log", 0o755, 0),
];

/// busybox of the package `busybox-static`, and the names it answers to.
#[derive(Clone, Debug)]
pub(super) struct Busybox {
    content: Vec<u8>,
    /// Paths without the first slash.
    applets: Vec<String>,
}

impl Busybox {
    pub(super) async fn find() -> Result<Self, VmError> {
        let path = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .find(|path| Path::new(path).exists())
            .ok_or_else(|| VmError::missing("busybox-static"))?;
        let list = run(Command::new(path).arg("--list-full")).await?;
        Ok(Self {
            content: read(Path::new(path))?,
            applets: list.lines().map(str::to_owned).collect(),
        })
    }

    fn install(&self, archive: &mut Archive) {
        archive.file("/bin/busybox", 0o755, &self.content);
        for applet in self
            .applets
            .iter()
            .filter(|applet| *applet != "bin/busybox")
        {
            archive.symlink(applet, "/bin/busybox");
        }
    }
}

/// What is in one guest beyond the tools.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) busybox: &'a Busybox,
    pub(super) agent: &'a Path,
    pub(super) cli: &'a Path,
    /// The agent's command line.
    pub(super) flags: &'a str,
    /// A folder whose files become the agent's identity.
    pub(super) identity: Option<&'a Path>,
    /// More programs, and where they go.
    pub(super) programs: &'a [(PathBuf, String)],
}

impl Guest<'_> {
    /// Gives the initramfs.
    pub(super) fn initramfs(&self) -> Result<Vec<u8>, VmError> {
        let mut archive = Archive::default();
        for (path, mode, owner) in DIRECTORIES {
            archive.directory(path, mode, owner);
        }
        // init's own standard streams: opened before anything is mounted.
        archive.character_device("/dev/console", 0o600, (5, 1));
        archive.symlink("/init", "/bin/busybox");
        self.busybox.install(&mut archive);

        archive.file("/etc/passwd", 0o644, include_bytes!("../../image/passwd"));
        archive.file("/etc/group", 0o644, include_bytes!("../../image/group"));
        archive.file("/etc/rc", 0o755, include_bytes!("../../image/rc"));
        let inittab = include_str!("../../image/inittab").replace("@FLAGS@", self.flags);
        archive.file("/etc/inittab", 0o644, inittab.as_bytes());

        for (number, module) in self.kernel.modules.iter().enumerate() {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.file(
                &format!("/lib/modules/{number:02}-{name}"),
                0o644,
                &read(module)?,
            );
        }
        archive.file(AGENT_PATH, 0o755, &read(self.agent)?);
        archive.file(CLI_PATH, 0o755, &read(self.cli)?);
        if let Some(folder) = self.identity {
            copy_folder(folder, IDENTITY_PATH, &mut archive)?;
        }
        self.add_programs(&mut archive)?;
        Ok(archive.finish())
    }

    fn add_programs(&self, archive: &mut Archive) -> Result<(), VmError> {
        let mut folders: Vec<_> = DIRECTORIES.map(|(path, ..)| Path::new(path)).into();
        for (from, to) in self.programs {
            let above: Vec<_> = Path::new(to).ancestors().skip(1).collect();
            for folder in above.into_iter().rev().skip(1) {
                if !folders.contains(&folder) {
                    archive.directory(&folder.display().to_string(), 0o755, 0);
                    folders.push(folder);
                }
            }
            archive.file(to, 0o755, &read(from)?);
        }
        Ok(())
    }
}

/// Gives an initramfs that prints [`PROBED`] and switches the machine off.
pub(super) fn probe(busybox: &Busybox) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.directory("/bin", 0o755, 0);
    archive.directory("/dev", 0o755, 0);
    archive.character_device("/dev/console", 0o600, (5, 1));
    archive.file("/bin/busybox", 0o755, &busybox.content);
    let script = format!("#!/bin/busybox sh\necho '{PROBED}'\n/bin/busybox poweroff -f\n");
    archive.file("/init", 0o755, script.as_bytes());
    archive.finish()
}

/// Adds the files right in `folder`, readable by root only: keys are among them.
fn copy_folder(folder: &Path, to: &str, archive: &mut Archive) -> Result<(), VmError> {
    let reading = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).map_err(VmError::io(reading()))? {
        let path = entry.map_err(VmError::io(reading()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("{to}/{name}"), 0o600, &read(&path)?);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, VmError> {
    fs::read(path).map_err(VmError::io(format!("reading {}", path.display())))
}

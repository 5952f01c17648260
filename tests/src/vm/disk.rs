//! The disk of one VM: Debian's, with the agent installed as `systemd/README.md` says.
//!
//! debugfs writes into the file system, so nothing is mounted and nobody need be root.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::{Product, System, VmError, command::run, debian::Debian, image, paths};

/// What the kernel is told. A getty would take the console away from the log.
pub(super) const CMDLINE: &str = "root=/dev/vda rw systemd.mask=serial-getty@ttyS0.service";

const UNIT: &str = "/etc/systemd/system/vsock-agent.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/vsock-agent.service";
const RULES: &str = "/etc/udev/rules.d/99-vsock-agent.rules";

/// A disk that is gone with its VM's folder.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) debian: &'static Debian,
    pub(super) path: PathBuf,
}

impl Disk {
    /// Creates the disk at `path`.
    pub(super) async fn create(
        debian: &'static Debian,
        path: PathBuf,
        product: &Product,
        system: &System,
        identity: Option<&Path>,
    ) -> Result<Self, VmError> {
        let mut copy = Command::new("cp");
        run(copy.arg("--sparse=always").arg(&debian.disk).arg(&path)).await?;
        let units = paths::repository().join("systemd");
        let config = path.with_extension("toml");
        fs::write(&config, &system.config).map_err(VmError::io("writing config.toml"))?;
        let mut files = vec![
            (product.agent.clone(), image::AGENT_PATH.to_owned(), 0o755),
            (units.join("vsock-agent.service"), UNIT.to_owned(), 0o644),
            (units.join("99-vsock-agent.rules"), RULES.to_owned(), 0o644),
            (
                config,
                format!("{}/config.toml", image::IDENTITY_PATH),
                0o644,
            ),
        ];
        if let Some(identity) = identity {
            for name in ["agent.crt", "agent.key", "server.crt"] {
                let to = format!("{}/{name}", image::IDENTITY_PATH);
                files.push((identity.join(name), to, 0o600));
            }
        }
        let disk = Self { debian, path };
        disk.install(&files).await?;
        Ok(disk)
    }

    async fn install(&self, files: &[(PathBuf, String, u32)]) -> Result<(), VmError> {
        let folder = image::IDENTITY_PATH;
        let mut script = format!("mkdir {folder}\nset_inode_field {folder} mode 040700\n");
        for (from, to, mode) in files {
            let known = fs::metadata(from).map_err(VmError::io(format!("reading {to}")))?;
            let kind = known.permissions().mode() & !0o7777;
            let lines = format!(
                "write {} {to}\nset_inode_field {to} mode 0{:o}\nset_inode_field {to} uid 0\n\
                 set_inode_field {to} gid 0\n",
                from.display(),
                kind | mode
            );
            script.push_str(&lines);
        }
        let _ = writeln!(script, "symlink {WANTED} {UNIT}");
        let commands = self.path.with_extension("debugfs");
        fs::write(&commands, script).map_err(VmError::io("writing commands for debugfs"))?;
        let mut debugfs = Command::new("debugfs");
        debugfs.arg("-w").arg("-f").arg(&commands).arg(&self.path);
        run(&mut debugfs).await?;
        // Its status says nothing of the commands.
        let mut look = Command::new("debugfs");
        look.args(["-R", &format!("stat {WANTED}")]).arg(&self.path);
        match run(&mut look).await?.contains("symlink") {
            true => Ok(()),
            false => Err(VmError::missing("the agent's unit on the disk")),
        }
    }
}

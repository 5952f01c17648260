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

use super::{
    Installed, Product, StockAgent, System, VmError, command::run, debian::Debian, image, paths,
};

/// What the kernel is told. A getty would take the console away from the log.
pub(super) const CMDLINE: &str = "root=/dev/vda rw systemd.mask=serial-getty@ttyS0.service";

const UNIT: &str = "/etc/systemd/system/vsock-agent.service";
const RULES: &str = "/etc/udev/rules.d/99-vsock-agent.rules";
const GENERATORS: &str = "/etc/systemd/system-generators";

/// LXD's own rule, which its images and its installer have and Debian's package has not. Without it
/// nobody starts the unit, as the boot comes to it before the port is there.
const LXD_RULES: &str = "/usr/lib/udev/rules.d/99-lxd-agent.rules";

/// Where units are that are enabled.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants";

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
        let mut content = Content::default();
        match system.installed {
            Installed::Enabled => content.by_hand(product, identity),
            Installed::Generated => content.generated(product),
            Installed::InPlaceOf(stock) => content.in_place_of(stock, product).await?,
        }
        if !system.config.is_empty() {
            let config = path.with_extension("toml");
            fs::write(&config, &system.config).map_err(VmError::io("writing config.toml"))?;
            content.file(
                config,
                format!("{}/config.toml", image::IDENTITY_PATH),
                0o644,
            );
        }
        let disk = Self { debian, path };
        disk.install(&content).await?;
        Ok(disk)
    }

    async fn install(&self, content: &Content) -> Result<(), VmError> {
        let commands = self.path.with_extension("debugfs");
        fs::write(&commands, content.script()?)
            .map_err(VmError::io("writing commands for debugfs"))?;
        let mut debugfs = Command::new("debugfs");
        debugfs.arg("-w").arg("-f").arg(&commands).arg(&self.path);
        run(&mut debugfs).await?;
        // Its status says nothing of the commands.
        for path in content.paths() {
            let mut look = Command::new("debugfs");
            look.args(["-R", &format!("stat {path}")]).arg(&self.path);
            if !run(&mut look).await?.contains("Type:") {
                return Err(VmError::missing(format!("{path} on the disk")));
            }
        }
        Ok(())
    }
}

/// What is added to a Debian.
#[derive(Debug, Default)]
struct Content {
    /// Paths and modes.
    folders: Vec<(String, u32)>,
    /// What is copied, to where, with which mode.
    files: Vec<(PathBuf, String, u32)>,
    /// Paths, and where they lead.
    links: Vec<(String, String)>,
}

impl Content {
    fn file(&mut self, from: PathBuf, to: impl Into<String>, mode: u32) {
        self.files.push((from, to.into(), mode));
    }

    fn enable(&mut self, name: &str, unit: &str) {
        let link = format!("{WANTED}/{name}.service");
        self.links.push((link, unit.to_owned()));
    }

    fn by_hand(&mut self, product: &Product, identity: Option<&Path>) {
        let units = paths::repository().join("systemd");
        let folder = image::IDENTITY_PATH;
        self.folders.push((folder.to_owned(), 0o700));
        self.file(product.agent.clone(), image::AGENT_PATH, 0o755);
        self.file(units.join("vsock-agent.service"), UNIT, 0o644);
        self.file(units.join("99-vsock-agent.rules"), RULES, 0o644);
        if let Some(identity) = identity {
            for name in ["agent.crt", "agent.key", "server.crt"] {
                self.file(identity.join(name), format!("{folder}/{name}"), 0o600);
            }
        }
        self.enable("vsock-agent", UNIT);
    }

    fn generated(&mut self, product: &Product) {
        let units = paths::repository().join("systemd");
        self.folders.push((GENERATORS.to_owned(), 0o755));
        self.file(product.agent.clone(), image::AGENT_PATH, 0o755);
        self.file(units.join("vsock-agent.service"), UNIT, 0o644);
        let generator = format!("{GENERATORS}/vsock-agent-generator");
        self.file(units.join("vsock-agent-generator"), generator, 0o755);
    }

    async fn in_place_of(&mut self, stock: StockAgent, product: &Product) -> Result<(), VmError> {
        let package = stock.unpacked().await?;
        // One that is there already stays as it is.
        for folder in ["/usr/libexec", "/usr/libexec/incus"] {
            self.folders.push((folder.to_owned(), 0o755));
        }
        for (name, mode) in stock.support() {
            // The folder `lib` is `usr/lib` in a Debian.
            let to = format!("/usr/{}", name.trim_start_matches("usr/"));
            self.file(package.join(name), to, *mode);
        }
        let place = format!("/{}", stock.binary());
        self.file(product.agent.clone(), place, 0o755);
        if stock == StockAgent::Lxd {
            let rules = paths::repository().join("tests/image/99-lxd-agent.rules");
            self.file(rules, LXD_RULES, 0o644);
            // As the package's own script does; that of Incus's leaves it to its rule.
            self.enable("lxd-agent", "/lib/systemd/system/lxd-agent.service");
        }
        Ok(())
    }

    /// The commands for debugfs.
    fn script(&self) -> Result<String, VmError> {
        let mut script = String::new();
        for (path, mode) in &self.folders {
            let _ = writeln!(
                script,
                "mkdir {path}\nset_inode_field {path} mode 040{mode:o}"
            );
        }
        for (from, to, mode) in &self.files {
            let known = fs::metadata(from).map_err(VmError::io(format!("reading {to}")))?;
            let kind = known.permissions().mode() & !0o7777;
            let _ = writeln!(
                script,
                "write {} {to}\nset_inode_field {to} mode 0{:o}\nset_inode_field {to} uid 0\n\
                 set_inode_field {to} gid 0",
                from.display(),
                kind | mode
            );
        }
        for (path, to) in &self.links {
            let _ = writeln!(script, "symlink {path} {to}");
        }
        Ok(script)
    }

    /// What must be there in the end.
    fn paths(&self) -> impl Iterator<Item = &String> {
        let files = self.files.iter().map(|(_, to, _)| to);
        files.chain(self.links.iter().map(|(path, _)| path))
    }
}

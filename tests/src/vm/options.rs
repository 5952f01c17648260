//! What may differ from VM to VM.

use std::path::PathBuf;

use vsock_agent_protocol::address::DEFAULT_PORT;

use super::{Lifetime, StockAgent, paths};

/// What may differ from VM to VM.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// What it is called: on the command line, and in the names of its logs.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// The port of the agent.
    pub port: u32,
    /// Added to the agent's flags.
    pub agent_flags: String,
    /// Without TLS.
    pub plain: bool,
    /// The host's half of the identity, made if it is not there; else one is made for this VM only.
    pub identity: Option<PathBuf>,
    /// Where its logs go. They stay when the VM is gone.
    pub logs: PathBuf,
    /// Whether the VM ends with us.
    pub lifetime: Lifetime,
    /// Programs of this computer that are in the small image too, and where.
    pub programs: Vec<(PathBuf, String)>,
    /// Debian on a disk, in place of the small image.
    pub system: Option<System>,
}

/// What may differ between VMs with all of Debian.
#[derive(Clone, Debug, Default)]
pub struct System {
    /// The agent's `config.toml`. None if it is empty.
    pub config: String,
    /// Whether the VM says that its host is LXD's, by the name of its board and by a virtio port.
    pub looks_like_lxd: bool,
    /// How the agent got onto the disk.
    pub installed: Installed,
    /// Folders of this computer that the VM may mount by virtiofs, by their tags. Needs root.
    pub shares: Vec<(String, PathBuf)>,
    /// More of QEMU's arguments.
    pub hardware: Vec<String>,
}

/// How the agent got onto a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Installed {
    /// By hand, with its identity, and enabled.
    #[default]
    Enabled,
    /// As part of an image for everybody: without an identity, and with the generator instead of
    /// being enabled.
    Generated,
    /// As the binary of somebody else's agent, whose package is installed and enabled.
    InPlaceOf(StockAgent),
}

impl VmOptions {
    /// A VM of 512 MiB with mutual TLS, which ends with us.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            memory_mib: 512,
            cmdline: String::new(),
            port: DEFAULT_PORT,
            agent_flags: String::new(),
            plain: false,
            identity: None,
            logs: paths::lab().join("log"),
            lifetime: Lifetime::Owned,
            programs: Vec::new(),
            system: None,
        }
    }
}

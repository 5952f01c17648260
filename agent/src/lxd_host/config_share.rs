//! The config share: a folder in which LXD's and Incus's hosts provide configuration for the guest. Read
//! once at the start, before the agent listens.
//!
//! ```text
//! agent.conf          the host's address, as in PUT /1.0
//! agent-mounts.json   shares of the host to mount
//! nics/*.json         names and sizes of network devices
//! files/              files for the guest, already rendered, and metadata.yaml with their paths
//! agent.crt, agent.key, server.crt   the identity, which tls.rs reads
//! ```
//!
//! Called by `agent.rs`, and by `api/events.rs` for shares that are added later. Nothing in it prevents
//! the agent from starting: errors are logged, and steps have time limits.

#[cfg(test)]
mod alone;
mod fetch;
mod hotplug;
mod metadata;
mod mounts;
mod nics;
mod templates;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use vsock_agent_protocol::host::HostConnection;

pub(crate) use self::fetch::fetch_config_share;
pub(crate) use self::hotplug::Hotplug;
use crate::system::bounded;

/// The folder of the copy that [`fetch_config_share`] makes.
pub(crate) const FETCHED: &str = "/run/vsock-agent/share";

/// Time for each of the steps before the agent listens; a boot may be waiting for it.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

const CONNECTION_FILE: &str = "agent.conf";

/// A config share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigShare {
    /// The folder. Any of its files may be missing.
    pub folder: PathBuf,
}

impl ConfigShare {
    /// The share in `folder`.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Applies the share before the agent listens: files, names of network devices, mounts if `may_mount`,
    /// all below `guest`. Takes three times [`STEP_TIMEOUT`] at most.
    pub(crate) async fn apply(&self, guest: &Path, may_mount: bool) -> Applied {
        let (folder, root) = (self.folder.clone(), guest.to_owned());
        let files = move || templates::apply(&folder, &root);
        let written = bounded::within(STEP_TIMEOUT, "files of the host", files).await;
        let folder = self.folder.clone();
        bounded::within(STEP_TIMEOUT, "network devices", move || {
            nics::apply(&folder)
        })
        .await;
        if may_mount {
            let (folder, root) = (self.folder.clone(), guest.to_owned());
            let mounts = move || mounts::apply(&folder, &root);
            bounded::within(STEP_TIMEOUT, "shares of the host", mounts).await;
        }
        written.map_or_else(Applied::default, |written| Applied {
            has_seed: written.has_seed(),
            is_seeded: written.is_seeded(),
        })
    }

    /// Where the host listens, by `agent.conf`.
    pub(crate) fn connection(&self) -> Option<HostConnection> {
        let path = self.folder.join(CONNECTION_FILE);
        let text = read_if_there(&path)?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(?path, %error, "invalid announcement of the host"))
            .ok()
    }
}

/// What came of the share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Whether cloud-init was given a new seed, and may have to decide again.
    pub(crate) has_seed: bool,
    /// Whether the host writes cloud-init's seeds, now or when it made the instance. They are its
    /// own then.
    pub(crate) is_seeded: bool,
}

/// A file's content. What cannot be read is logged, what is missing is not.
fn read_if_there(path: &Path) -> Option<Vec<u8>> {
    match fs::read(path) {
        Ok(content) => Some(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(?path, %error, "cannot read this");
            None
        }
    }
}

//! The config share: the directory with which LXD's and Incus's hosts configure the guest. Read once at the
//! start, before the agent listens.
//!
//! ```text
//! agent.conf          the host's address, as in PUT /1.0
//! agent-mounts.json   shared directories of the host to mount
//! nics/*.json         names and MTUs of network devices
//! files/              rendered templates, and metadata.yaml with their targets
//! agent.crt, agent.key, server.crt   the identity, which tls.rs reads
//! ```
//!
//! Called by `agent.rs`, and by `api/events.rs` for shared directories that are added later. Errors are
//! logged and steps have time limits: they do not prevent the agent from starting.

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

/// The directory of the copy that [`fetch_config_share`] makes.
pub(crate) const FETCHED: &str = "/run/vsock-agent/share";

/// Time limit of each step before the agent listens. The boot may be waiting for the agent.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

const CONNECTION_FILE: &str = "agent.conf";

/// A config share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigShare {
    /// The directory. Any of its files may be missing.
    pub folder: PathBuf,
}

impl ConfigShare {
    /// The share in `folder`.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Applies the share: files, network devices, and mounts if `may_mount`. `guest` is the guest's `/`. Takes
    /// three times [`STEP_TIMEOUT`] at most.
    pub(crate) async fn apply(&self, guest: &Path, may_mount: bool) -> Applied {
        let (folder, root) = (self.folder.clone(), guest.to_owned());
        let files = move || templates::apply(&folder, &root);
        let applied = bounded::within(STEP_TIMEOUT, "files of the host", files).await;
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
        applied.unwrap_or_default()
    }

    /// The host's address in `agent.conf`.
    pub(crate) fn connection(&self) -> Option<HostConnection> {
        let path = self.folder.join(CONNECTION_FILE);
        let text = read_if_there(&path)?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(?path, %error, "invalid address of the host"))
            .ok()
    }
}

/// The effect of the config share on cloud-init.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Whether a seed was written. cloud-init may have to detect its datasource again.
    pub(crate) wrote_seed: bool,
    /// Whether the image has templates for seeds, rendered in this boot or not. The agent writes no seed of
    /// its own then.
    pub(crate) image_has_seed_templates: bool,
}

/// The content of a file. `None` if it is missing or, which is logged, cannot be read.
fn read_if_there(path: &Path) -> Option<Vec<u8>> {
    match fs::read(path) {
        Ok(content) => Some(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(?path, %error, "cannot read a file of the config share");
            None
        }
    }
}

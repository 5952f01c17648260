//! The certificates of one VM and its host, as a user makes them: with `agent-cli identity init`.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::{VmError, command::run};

/// Two folders that belong together.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    host: PathBuf,
    guest: PathBuf,
}

impl Identity {
    /// Gives the identity of the host in `host` and of the guest `name`, made if it is not there.
    pub(super) async fn open(cli: &Path, host: PathBuf, name: &str) -> Result<Self, VmError> {
        let guest = host.join(name).join("guest");
        if !guest.exists() {
            run(Command::new(cli)
                .args(["identity", "init", name, "--dir"])
                .arg(&host))
            .await?;
        }
        Ok(Self { host, guest })
    }

    /// The client's key pair, and the agent's certificate to pin.
    pub(super) fn host(&self) -> &Path {
        &self.host
    }

    /// What goes into the guest.
    pub(super) fn guest(&self) -> &Path {
        &self.guest
    }
}

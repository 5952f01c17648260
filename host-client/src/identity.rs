//! The directory of identities for all guests of a host, and how they are created.
//!
//! ```text
//! DIR/client.crt  DIR/client.key       this host's own pair, for every guest: for connections to
//!                                      their agents, and as the server certificate of `serve`
//! DIR/GUEST/agent.crt                  the guest's certificate, pinned. Without it DIR/agent.crt, one
//!                                      for all guests
//! DIR/GUEST/guest/agent.crt agent.key  files for /etc/vsock-agent in the guest,
//! DIR/GUEST/guest/server.crt           with this host's certificate, which the guest pins
//! ```

#[cfg(feature = "identity")]
mod generate;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use vsock_agent_transport::read_secret;

#[cfg(feature = "identity")]
pub use self::generate::{GUEST_FILES, GeneratedIdentity};
use crate::tls::{Identity, IdentityError, IdentityPem};

const CLIENT_CERTIFICATE: &str = "client.crt";
const CLIENT_KEY: &str = "client.key";
const AGENT_CERTIFICATE: &str = "agent.crt";

/// The files of an identity, PEM each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate of this host.
    pub certificate: PathBuf,
    /// Its key. A regular file that belongs to root or the effective user, without permissions for
    /// others.
    pub key: PathBuf,
    /// The certificate of the agent.
    pub agent: PathBuf,
}

impl IdentityFiles {
    /// The files for `guest` in a directory of `agent-cli identity init`: `client.crt`, `client.key`,
    /// and `GUEST/agent.crt` or else `agent.crt`. Only the last one is checked for existence.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Name`] for an invalid guest name.
    pub fn find(directory: &Path, guest: &str) -> Result<Self, IdentityError> {
        let pinned = guest_directory(directory, guest)?.join(AGENT_CERTIFICATE);
        let shared = directory.join(AGENT_CERTIFICATE);
        Ok(Self {
            certificate: directory.join(CLIENT_CERTIFICATE),
            key: directory.join(CLIENT_KEY),
            agent: if !pinned.exists() && shared.exists() {
                shared
            } else {
                pinned
            },
        })
    }

    /// Reads the files. Blocks.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Read`] when a file cannot be read, or when others have permissions for the
    /// key.
    pub fn read(&self) -> Result<IdentityPem, IdentityError> {
        let unread = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| IdentityError::Read { path, source }
        };
        let read = |path: &Path| fs::read(path).map_err(unread(path));
        Ok(IdentityPem {
            peer: read(&self.agent)?,
            key: read_secret(&self.key).map_err(unread(&self.key))?,
            certificate: read(&self.certificate)?,
        })
    }
}

impl Identity {
    /// Reads the identity for `guest` from a directory, as [`IdentityFiles::find`] finds it. Blocks.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]: those of [`IdentityFiles::find`], [`IdentityFiles::read`] and
    /// [`Identity::from_pem`].
    pub fn load(directory: &Path, guest: &str) -> Result<Self, IdentityError> {
        Self::from_pem(&IdentityFiles::find(directory, guest)?.read()?)
    }
}

/// The directory of one guest. The name can be an endpoint, whose slashes become `_`.
fn guest_directory(directory: &Path, guest: &str) -> Result<PathBuf, IdentityError> {
    if guest.is_empty() || guest.starts_with('.') || guest.contains('\0') {
        return Err(IdentityError::Name(guest.to_owned()));
    }
    Ok(directory.join(guest.replace('/', "_")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_name_cannot_leave_the_directory() {
        let directory = Path::new("/nowhere");
        for name in ["", ".", "..", "../x", ".hidden", "a\0b"] {
            IdentityFiles::find(directory, name).unwrap_err();
        }
        let files = IdentityFiles::find(directory, "unix:/a/../b").unwrap();
        assert_eq!(files.certificate, directory.join("client.crt"));
        assert_eq!(files.key, directory.join("client.key"));
        assert_eq!(files.agent, directory.join("unix:_a_.._b/agent.crt"));
    }
}

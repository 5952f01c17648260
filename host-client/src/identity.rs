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

use std::path::{Path, PathBuf};

#[cfg(feature = "identity")]
pub use self::generate::{GUEST_FILES, GeneratedIdentity, host_name};
use crate::tls::{AGENT_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, Identity, IdentityError};

impl Identity {
    /// Reads the identity for `guest` from a directory of `agent-cli identity init`: its
    /// `client.crt` and `client.key`, and `GUEST/agent.crt` or else `agent.crt`, all PEM. Blocks on the
    /// files.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Name`] for an invalid guest name, [`IdentityError::Read`] when a file cannot be
    /// read, and the errors of [`Identity::from_parts`].
    pub fn load(directory: &Path, guest: &str) -> Result<Self, IdentityError> {
        let [certificate, key, agent] = identity_files(directory, guest)?;
        Self::from_files(&certificate, &key, &agent)
    }
}

/// The files of the identity for `guest` in a directory: the certificate and the key of this host,
/// and the agent's certificate. Only the last one is checked for existence.
///
/// # Errors
///
/// [`IdentityError::Name`] for an invalid guest name.
pub fn identity_files(directory: &Path, guest: &str) -> Result<[PathBuf; 3], IdentityError> {
    let pinned = guest_directory(directory, guest)?.join(AGENT_CERTIFICATE);
    let shared = directory.join(AGENT_CERTIFICATE);
    let agent = if !pinned.exists() && shared.exists() {
        shared
    } else {
        pinned
    };
    Ok([
        directory.join(CLIENT_CERTIFICATE),
        directory.join(CLIENT_KEY),
        agent,
    ])
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
            identity_files(directory, name).unwrap_err();
        }
        let [certificate, key, agent] = identity_files(directory, "unix:/a/../b").unwrap();
        assert_eq!(certificate, directory.join("client.crt"));
        assert_eq!(key, directory.join("client.key"));
        assert_eq!(agent, directory.join("unix:_a_.._b/agent.crt"));
    }
}

//! Where identities are kept, one directory for all guests of a host, and how they come to be.
//!
//! ```text
//! DIR/client.crt  DIR/client.key       this host's own pair, for every guest: shown to their agents,
//!                                      and by `serve` to guests that ask
//! DIR/GUEST/agent.crt                  the guest's certificate, pinned. Without it DIR/agent.crt, one
//!                                      for all guests
//! DIR/GUEST/guest/agent.crt agent.key  what the guest is to have in /etc/vsock-agent,
//! DIR/GUEST/guest/server.crt           with this host's certificate, which it pins in turn
//! ```

#[cfg(feature = "identity")]
mod generate;

use std::path::{Path, PathBuf};

#[cfg(feature = "identity")]
pub use self::generate::{GUEST_FILES, GeneratedIdentity, host_name};
use crate::tls::{AGENT_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, Identity, IdentityError};

impl Identity {
    /// Reads the identity for `guest` from a directory as `agent-cli identity init` makes them: its
    /// `client.crt` and `client.key`, and `GUEST/agent.crt` or else `agent.crt`, all PEM. It blocks
    /// on the files.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Name`] when no guest can have this name, [`IdentityError::Read`] when a file
    /// cannot be read, and the errors of [`Identity::from_parts`].
    pub fn load(directory: &Path, guest: &str) -> Result<Self, IdentityError> {
        let [certificate, key, agent] = identity_files(directory, guest)?;
        Self::from_files(&certificate, &key, &agent)
    }
}

/// The files of the identity for `guest` in a directory: the certificate and the key of this host,
/// and the agent's certificate. Only of the last it is looked whether it is there.
///
/// # Errors
///
/// [`IdentityError::Name`] when no guest can have this name.
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

/// Where the files of one guest are. An endpoint can be a name: its slashes become `_`.
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
    fn a_guests_name_leads_nowhere_else() {
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

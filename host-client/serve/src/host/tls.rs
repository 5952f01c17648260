//! The server side of mutual TLS. The host shows each guest the same certificate; a guest shows the
//! certificate of its agent.

use std::sync::Arc;

use rustls::ServerConfig;
use vsock_agent_client::IdentityPem;
use vsock_agent_transport::tls::{self, PemError, PinnedIdentity};

/// The certificates of a host and one guest. The host's pair is the one that it uses as a client of
/// the guest's agent. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestTls {
    pinned: Arc<PinnedIdentity>,
    /// PEM.
    certificate: Arc<str>,
}

impl GuestTls {
    /// Parses the identity by which this host connects to the guest's agent. LXD's agent requires a
    /// DNS name in the host's certificate.
    ///
    /// # Errors
    ///
    /// [`PemError`].
    pub fn from_pem(pem: &IdentityPem) -> Result<Self, PemError> {
        Ok(Self {
            pinned: Arc::new(PinnedIdentity::from_pem(pem)?),
            certificate: String::from_utf8_lossy(&pem.certificate).into(),
        })
    }

    /// The host's certificate, PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The guest's certificate, DER.
    pub(super) fn agent(&self) -> &[u8] {
        &self.pinned.peer
    }
}

/// TLS 1.3 for these guests, with the host's pair of the first one. `None` if there are none.
pub(super) fn for_guests<'a>(
    guests: impl Iterator<Item = &'a GuestTls>,
) -> Option<Arc<ServerConfig>> {
    let mut guests = guests.peekable();
    let own = Arc::clone(&guests.peek()?.pinned.own);
    let agents = guests.map(|guest| guest.pinned.peer.clone()).collect();
    tls::server_config(own, agents).ok()
}

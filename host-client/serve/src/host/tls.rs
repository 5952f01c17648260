//! The server side of mutual TLS. The host shows each guest the same certificate; a guest shows the
//! certificate of its agent.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::SingleCertAndKey,
};
use vsock_agent_transport::tls;

/// The certificates of a host and one guest. The host's pair is the one that it uses as a client of
/// the guest's agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuestTls {
    own: Arc<SingleCertAndKey>,
    /// PEM.
    certificate: Arc<str>,
    /// DER.
    agent: Arc<[u8]>,
}

impl PartialEq for GuestTls {
    fn eq(&self, other: &Self) -> bool {
        (&self.certificate, &self.agent) == (&other.certificate, &other.agent)
    }
}

impl GuestTls {
    /// Reads the host's certificate and key and the agent's certificate, all PEM. LXD's agent requires
    /// a DNS name in the host's certificate.
    ///
    /// # Errors
    ///
    /// [`GuestTlsError::Pem`] for text that is not PEM of the right kind,
    /// [`GuestTlsError::Mismatch`] if the key does not belong to the certificate.
    pub fn from_pem(certificate: &[u8], key: &[u8], agent: &[u8]) -> Result<Self, GuestTlsError> {
        let wrong = |what| {
            move |error: rustls::pki_types::pem::Error| GuestTlsError::Pem {
                what,
                why: error.to_string(),
            }
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(wrong("the host's certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(wrong("the host's key"))?;
        let agent =
            CertificateDer::from_pem_slice(agent).map_err(wrong("the agent's certificate"))?;
        let own = tls::credentials(chain, key)
            .map_err(|error| GuestTlsError::Mismatch(error.to_string()))?;
        Ok(Self {
            own,
            certificate: String::from_utf8_lossy(certificate).into(),
            agent: agent.as_ref().into(),
        })
    }

    /// The host's certificate, PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The guest's certificate, DER.
    pub(super) fn agent(&self) -> &[u8] {
        &self.agent
    }
}

/// TLS 1.3 for these guests, with the host's pair of the first one. `None` if there are none.
pub(super) fn for_guests<'a>(
    guests: impl Iterator<Item = &'a GuestTls>,
) -> Option<Arc<ServerConfig>> {
    let mut guests = guests.peekable();
    let own = Arc::clone(&guests.peek()?.own);
    let agents = guests.map(|guest| guest.agent.to_vec().into()).collect();
    tls::server_config(own, agents).ok()
}

/// Certificates that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestTlsError {
    /// It is not PEM, or not of the right kind.
    #[error("{what} is not usable PEM: {why}")]
    Pem {
        /// Which of the three.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The key is of an unknown kind or does not belong to the certificate.
    #[error("the host's certificate and key do not work together: {0}")]
    Mismatch(String),
}

//! The server's side of mutual TLS: our certificate to every guest, from each guest its agent's own.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::tls::Pinned;

/// The host's own certificate and key.
#[derive(Debug)]
pub(super) struct HostTls {
    own: Arc<SingleCertAndKey>,
    provider: Arc<CryptoProvider>,
}

impl HostTls {
    /// Reads a certificate and its key, both PEM.
    ///
    /// # Errors
    ///
    /// [`HostIdentityError`].
    pub(super) fn new(certificate: &str, key: &str) -> Result<Self, HostIdentityError> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|error| HostIdentityError::Pem(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| HostIdentityError::Pem(error.to_string()))?;
        let provider = Arc::new(ring::default_provider());
        let own = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| HostIdentityError::Mismatch(error.to_string()))?;
        Ok(Self {
            own: Arc::new(own.into()),
            provider,
        })
    }

    /// TLS 1.3 for clients with one of these certificates. `None` if the provider cannot do it,
    /// which it can.
    pub(super) fn for_clients(&self, certificates: Vec<Vec<u8>>) -> Option<Arc<ServerConfig>> {
        let verifier = Arc::new(Pinned {
            certificates,
            provider: Arc::clone(&self.provider),
        });
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .ok()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.own) as Arc<_>);
        // A resumed session would not be compared again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Some(Arc::new(config))
    }
}

impl ClientCertVerifier for Pinned {
    /// Empty: a Go client with a list to choose from would send no certificate at all.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(leaf).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// A host's certificate that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostIdentityError {
    /// It is not PEM, or not of the right kind.
    #[error("the host's certificate or key is not usable PEM: {0}")]
    Pem(String),
    /// The key is of an unknown kind or does not belong to the certificate.
    #[error("the host's certificate and key do not work together: {0}")]
    Mismatch(String),
}

//! Mutual TLS 1.3 with pinned certificates.
//!
//! Each end knows the other's certificate beforehand, so there is no authority, name or date to
//! check: the leaf is compared byte for byte, and the signature over the handshake proves that the
//! peer has the key. Dates are ignored because a guest's clock may be wrong, as after a restore.
//! Sessions are never resumed, because a resumed session would not be compared again.

mod handshake;

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme, SupportedCipherSuite,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        ring::{self, cipher_suite},
        verify_tls13_signature,
    },
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use subtle::ConstantTimeEq;

pub use self::handshake::{HandshakeError, LONG_GRACE, REFUSAL_TIMEOUT, accept};

/// The content of the files of an identity, PEM each.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentityPem {
    /// The certificate of this end.
    pub certificate: Vec<u8>,
    /// Its key: PKCS #8 or SEC 1, ECDSA P-256 or P-384. `Debug` does not show it.
    pub key: Vec<u8>,
    /// The certificate of the other end.
    pub peer: Vec<u8>,
}

impl fmt::Debug for IdentityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityPem(..)")
    }
}

/// An identity that can be used for TLS.
#[derive(Debug, Clone)]
pub struct PinnedIdentity {
    /// The certificate of this end with its key.
    pub own: Arc<SingleCertAndKey>,
    /// The same certificate.
    pub certificate: CertificateDer<'static>,
    /// The certificate of the other end.
    pub peer: CertificateDer<'static>,
}

/// By the certificates: each has one key.
impl PartialEq for PinnedIdentity {
    fn eq(&self, other: &Self) -> bool {
        (&self.certificate, &self.peer) == (&other.certificate, &other.peer)
    }
}

impl Eq for PinnedIdentity {}

/// Why PEM is not an identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// It is not PEM, or not of the right kind.
    #[error("{what} is not usable PEM")]
    Pem {
        /// The expected content.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// The key is of an unknown kind or does not belong to the certificate.
    #[error("the certificate and the key do not work together")]
    Mismatch(#[source] Error),
}

impl PinnedIdentity {
    /// Parses the three files.
    ///
    /// # Errors
    ///
    /// [`PemError`].
    pub fn from_pem(pem: &IdentityPem) -> Result<Self, PemError> {
        let wrong = |what| move |source| PemError::Pem { what, source };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem.certificate)
            .collect::<Result<_, _>>()
            .map_err(wrong("the client's certificate"))?;
        let certificate = chain.first().cloned();
        let certificate = certificate
            .ok_or(pem::Error::NoItemsFound)
            .map_err(wrong("the client's certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(wrong("the client's key"))?;
        let peer = CertificateDer::from_pem_slice(&pem.peer);
        Ok(Self {
            own: credentials(chain, key).map_err(PemError::Mismatch)?,
            certificate,
            peer: peer.map_err(wrong("the agent's certificate"))?,
        })
    }
}

/// A certificate with its key, for either side.
///
/// # Errors
///
/// The key is of a kind that TLS 1.3 does not support, or belongs to another certificate.
pub fn credentials(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<SingleCertAndKey>, Error> {
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
    Ok(Arc::new(certified.into()))
}

/// The server side, for clients that present one of `clients`.
///
/// # Errors
///
/// Those of rustls; none occur with these settings.
pub fn server_config(
    own: Arc<SingleCertAndKey>,
    clients: Vec<CertificateDer<'static>>,
) -> Result<Arc<ServerConfig>, Error> {
    let (provider, verifier) = pinned(clients);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The client side, for a server that presents one of `servers`. `own` is presented if there is
/// one.
///
/// # Errors
///
/// Those of rustls; none occur with these settings.
pub fn client_config(
    own: Option<Arc<SingleCertAndKey>>,
    servers: Vec<CertificateDer<'static>>,
) -> Result<Arc<ClientConfig>, Error> {
    let (provider, verifier) = pinned(servers);
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = if let Some(own) = own {
        config.with_client_cert_resolver(own)
    } else {
        config.with_no_client_auth()
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The cipher suites, the first that both ends have being used. AES with 128 bits is as strong as the keys of
/// the certificates (NIST SP 800-57, part 1, table 2: P-256 has 128 bits), and takes 10 rounds in place of 14.
const CIPHER_SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

fn pinned(certificates: Vec<CertificateDer<'static>>) -> (Arc<CryptoProvider>, Arc<Pinned>) {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: CIPHER_SUITES.to_vec(),
        ..ring::default_provider()
    });
    let verifier = Pinned {
        certificates,
        provider: Arc::clone(&provider),
    };
    (provider, Arc::new(verifier))
}

/// Accepts a peer that presents one of these certificates and has its key.
#[derive(Debug)]
struct Pinned {
    certificates: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// # Errors
    ///
    /// The error whose alert tells the peer that its certificate is not accepted.
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let mut certificates = self.certificates.iter();
        // A certificate is public, but a comparison in constant time costs nothing.
        if certificates.any(|pinned| pinned.as_ref().ct_eq(leaf.as_ref()).into()) {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

/// The two traits ask for the same three things.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _leaf: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, leaf, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let algorithms = &self.provider.signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    };
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
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

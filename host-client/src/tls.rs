//! The identity of a client: its certificate and key, and the pinned certificate of an agent.

use std::{fmt, io, path::PathBuf, sync::Arc};

use rustls::{ClientConfig, pki_types::ServerName};
pub use vsock_agent_transport::tls::IdentityPem;
use vsock_agent_transport::{
    http::{ALPN_HTTP1, ALPN_HTTP2},
    tls::{self, PemError, PinnedIdentity},
};

use crate::{
    connect::Version,
    error::{Cause, ConnectError},
};

/// Name sent to the agent: the one DNS name in the certificates LXD makes for its agents. Our
/// agent ignores it, but LXD's is tested with it.
const SERVER_NAME: &str = "unspecified";

/// How a connection to an agent is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Security {
    /// No TLS: every process that can open the socket has access, on both ends.
    Plain,
    /// Mutual TLS.
    Tls(Identity),
}

/// The certificate and key of this client, and the certificate of the agent it talks to.
///
/// Cheap to clone. Equality is that of the certificates.
#[derive(Clone)]
pub struct Identity {
    config: Arc<ClientConfig>,
    /// The same, which offers HTTP/2.
    http2: Arc<ClientConfig>,
    pinned: Arc<PinnedIdentity>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.pinned == other.pinned
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

impl Identity {
    /// Makes an identity of PEM.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Pem`] when something is not PEM of its kind, [`IdentityError::Unusable`]
    /// when the key is of an unknown kind or belongs to another certificate.
    pub fn from_pem(pem: &IdentityPem) -> Result<Self, IdentityError> {
        let pinned = PinnedIdentity::from_pem(pem).map_err(IdentityError::of_pem)?;
        let config = tls::client_config(Some(Arc::clone(&pinned.own)), vec![pinned.peer.clone()]);
        let config = config.map_err(|error| IdentityError::of_pem(PemError::Mismatch(error)))?;
        let mut http2 = Arc::clone(&config);
        Arc::make_mut(&mut http2).alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        Ok(Self {
            config,
            http2,
            pinned: Arc::new(pinned),
        })
    }

    /// The configuration and the name to connect with.
    pub(crate) fn connector(
        &self,
        version: Version,
    ) -> (tokio_rustls::TlsConnector, ServerName<'static>) {
        #[expect(clippy::expect_used, reason = "the name is a constant and a DNS name")]
        let name = ServerName::try_from(SERVER_NAME).expect("a DNS name");
        let config = match version {
            Version::Http1 => &self.config,
            Version::Http2 => &self.http2,
        };
        (Arc::clone(config).into(), name)
    }
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file of it cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file of it cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// An invalid guest name.
    #[error("{0:?} is no name for a virtual machine")]
    Name(String),
    /// Of a certificate and its key, only one file exists.
    #[error("{} is there without {}", .there.display(), .missing.display())]
    Half {
        /// The file that exists.
        there: PathBuf,
        /// The missing file.
        missing: PathBuf,
    },
    /// The guest already has an identity.
    #[error("{} has a set for this guest already", .directory.display())]
    Exists {
        /// Its file.
        directory: PathBuf,
    },
    /// A key or certificate cannot be generated.
    #[error("cannot make a key and its certificate")]
    Make {
        /// The reason.
        #[source]
        source: Cause,
    },
    /// It is not PEM, or not of the right kind.
    #[error("{what} is not usable PEM")]
    Pem {
        /// The expected content.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// The key is of an unknown kind or does not belong to the certificate.
    #[error("the client's certificate and key do not work")]
    Unusable {
        /// What is wrong with them.
        #[source]
        source: Cause,
    },
}

impl IdentityError {
    fn of_pem(error: PemError) -> Self {
        match error {
            PemError::Pem { what, source } => Self::Pem {
                what,
                source: source.into(),
            },
            other => Self::Unusable {
                source: other.into(),
            },
        }
    }
}

/// The error for a failed handshake.
pub(crate) fn handshake_error(error: io::Error) -> ConnectError {
    match tls_error(&error) {
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::ApplicationVerificationFailure,
        )) => ConnectError::WrongAgent,
        Some(rustls::Error::InvalidMessage(_)) => ConnectError::NotTls(error),
        Some(_) => ConnectError::Handshake(error),
        None => ConnectError::ClosedInHandshake(error),
    }
}

/// Whether `error` is the agent's alert that it refuses our certificate.
///
/// In TLS 1.3 the client's handshake ends before the agent has verified its certificate, so the alert
/// arrives with the first read.
pub(crate) fn is_identity_alert(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
                | Alert::CertificateRequired
        ))
    )
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
    use rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A P-384 key in SEC 1 form and its certificate, as LXD makes them. For this test only.
    const STOCK_KEY: &str = "\
-----BEGIN EC PRIVATE KEY-----
MIGkAgEBBDDTNF/38My5trTC8lKEcWonYR7ffS0e00mrQqwaZyjkn1QpZ3SwbKTG
bIgTPTofN1ygBwYFK4EEACKhZANiAAQ3teHbKoXK8JqzamAD2u1YNSsmghbvvSj/
mbmym9gAcvVgVdOVYPEwwQzlaIEbdCbApOcsm/bsh/x2+/hRgp/krAZ3FaW38ESl
bzXzBIbX/x11STfczjHd9kT+DCOT/SU=
-----END EC PRIVATE KEY-----
";
    const STOCK_CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBtDCCATqgAwIBAgIUP3GgyhAqLnVbjfy9i//d0FFLc+swCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFc3RvY2swIBcNMjYxMTIzMDAwNTE2WhgPMjEyNjEwMzAwMDA1
MTZaMBAxDjAMBgNVBAMMBXN0b2NrMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEN7Xh
2yqFyvCas2pgA9rtWDUrJoIW770o/5m5spvYAHL1YFXTlWDxMMEM5WiBG3QmwKTn
LJv27If8dvv4UYKf5KwGdxWlt/BEpW818wSG1/8ddUk33M4x3fZE/gwjk/0lo1Mw
UTAdBgNVHQ4EFgQUEeT22neKuyXAphLlYSxC5sC22d4wHwYDVR0jBBgwFoAUEeT2
2neKuyXAphLlYSxC5sC22d4wDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNo
ADBlAjEAgyIq8I7hwiEmQLlavMrz4kapbhE7aQ1CZfHJvts+LGlhsfhS2hhYrc7P
zwMfaWfIAjAZy38VaVGy31VBjxk9XlBOR36b0SjZ7b2vpSnS4oaAQ9qT1EUux1fD
CqFpcRfzss8=
-----END CERTIFICATE-----
";

    struct Pair {
        certificate: rcgen::Certificate,
        key: KeyPair,
    }

    fn pair() -> Pair {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let parameters = CertificateParams::new(vec!["example".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        Pair { certificate, key }
    }

    /// Shows `certificate` and signs with `key`, whether or not they belong together.
    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn agent(certificate: &CertificateDer<'static>, key: &PrivateKeyDer<'_>) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let key = ring::sign::any_supported_type(key).unwrap();
        let shown = CertifiedKey::new(vec![certificate.clone()], key);
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shows(Arc::new(shown))));
        Arc::new(config).into()
    }

    async fn handshake(identity: &Identity, agent: &TlsAcceptor) -> Result<(), ConnectError> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (connector, name) = identity.connector(Version::Http1);
        let (connected, _) = tokio::join!(connector.connect(name, near), agent.accept(far));
        connected.map(drop).map_err(handshake_error)
    }

    /// The identity of `certificate` and `key` for an agent with the certificate `peer`.
    fn identity_of(certificate: &str, key: &str, peer: &str) -> Result<Identity, IdentityError> {
        let [certificate, key, peer] =
            [certificate, key, peer].map(|text| text.as_bytes().to_vec());
        Identity::from_pem(&IdentityPem {
            certificate,
            key,
            peer,
        })
    }

    fn identity_for(agent: &Pair) -> Identity {
        let ours = pair();
        let (certificate, key) = (ours.certificate.pem(), ours.key.serialize_pem());
        identity_of(&certificate, &key, &agent.certificate.pem()).unwrap()
    }

    #[tokio::test]
    async fn the_pinned_certificate_is_accepted_with_any_name() {
        let theirs = pair();
        let identity = identity_for(&theirs);
        let key = PrivateKeyDer::from_pem_slice(theirs.key.serialize_pem().as_bytes()).unwrap();
        let agent = agent(theirs.certificate.der(), &key);
        handshake(&identity, &agent).await.unwrap();
    }

    #[tokio::test]
    async fn another_certificate_is_the_wrong_agent() {
        let (theirs, other) = (pair(), pair());
        let identity = identity_for(&other);
        let key = PrivateKeyDer::from_pem_slice(theirs.key.serialize_pem().as_bytes()).unwrap();
        let agent = agent(theirs.certificate.der(), &key);
        assert!(matches!(
            handshake(&identity, &agent).await,
            Err(ConnectError::WrongAgent)
        ));
    }

    #[tokio::test]
    async fn the_pinned_certificate_without_its_key_is_refused() {
        let (theirs, thief) = (pair(), pair());
        let identity = identity_for(&theirs);
        let key = PrivateKeyDer::from_pem_slice(thief.key.serialize_pem().as_bytes()).unwrap();
        let agent = agent(theirs.certificate.der(), &key);
        assert!(matches!(
            handshake(&identity, &agent).await,
            Err(ConnectError::Handshake(_))
        ));
    }

    #[tokio::test]
    async fn keys_of_lxd_work_on_both_ends() {
        let certificate = CertificateDer::from_pem_slice(STOCK_CERTIFICATE.as_bytes()).unwrap();
        let identity = identity_of(STOCK_CERTIFICATE, STOCK_KEY, STOCK_CERTIFICATE).unwrap();
        let key = PrivateKeyDer::from_pem_slice(STOCK_KEY.as_bytes()).unwrap();
        handshake(&identity, &agent(&certificate, &key))
            .await
            .unwrap();
    }

    #[test]
    fn identities_are_equal_by_both_certificates() {
        let (agent, other) = (pair(), pair());
        let identity = identity_for(&agent);
        assert_eq!(identity, identity.clone());
        assert_ne!(identity, identity_for(&agent));
        let ours = pair();
        let with = |agent: &Pair| {
            let (certificate, key) = (ours.certificate.pem(), ours.key.serialize_pem());
            identity_of(&certificate, &key, &agent.certificate.pem()).unwrap()
        };
        assert_eq!(with(&agent), with(&agent));
        assert_ne!(with(&agent), with(&other));
        assert_ne!(Security::Tls(with(&agent)), Security::Plain);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (ours, other) = (pair(), pair());
        let (certificate, key) = (ours.certificate.pem(), other.key.serialize_pem());
        assert!(matches!(
            identity_of(&certificate, &key, &certificate),
            Err(IdentityError::Unusable { .. })
        ));
    }

    #[test]
    fn text_that_is_not_pem_is_refused() {
        assert!(matches!(
            identity_of("nonsense", "nonsense", ""),
            Err(IdentityError::Pem { .. })
        ));
    }
}

//! Mutual TLS with pinned certificates.
//!
//! Both ends know the other's certificate beforehand, so there is no authority, no name and no
//! date to check: the leaf's bytes are compared, and the handshake's signature is verified, which
//! proves that the peer has the key. Dates are ignored because a guest's clock may be wrong, as
//! after a restore. TLS 1.3 only. No session is resumed, because a resumed session would not be
//! compared again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error as TlsError, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, UnixTime,
        pem::{Error as PemError, PemObject},
    },
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use subtle::ConstantTimeEq;

/// The agent's certificate.
pub(crate) const CERTIFICATE_FILE: &str = "agent.crt";
/// The agent's private key.
const KEY_FILE: &str = "agent.key";
/// The certificates the host presents as a client. LXD's name for it, from the host's view.
const CLIENTS_FILE: &str = "server.crt";

/// Why there is no identity to serve with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file is not there, cannot be read, or is not PEM.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PemFileError,
    },
    /// The file of client certificates has none: nobody could ever connect.
    #[error("no certificate in {0}")]
    NoClients(PathBuf),
    /// The key does not belong to the certificate, or is of a kind TLS 1.3 does not know.
    #[error("the certificate and key in {0} do not work together")]
    Mismatch(PathBuf, #[source] TlsError),
}

/// What is wrong with a PEM file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PemFileError {
    /// It cannot be read.
    #[error("cannot open it")]
    Io(#[source] io::Error),
    /// It is not PEM, or what it should have is not in it.
    #[error("it is not the PEM file it should be: {0}")]
    Pem(String),
}

/// Reads the identity in `folder` and makes the server side of mutual TLS of it.
///
/// # Errors
///
/// [`IdentityError`], naming the file.
pub(crate) fn server_config(folder: &Path) -> Result<Arc<ServerConfig>, IdentityError> {
    let certificate = folder.join(CERTIFICATE_FILE);
    let chain = certificates(&certificate)?;
    let key_path = folder.join(KEY_FILE);
    let key =
        PrivateKeyDer::from_pem_file(&key_path).map_err(|error| unreadable(&key_path, error))?;
    let clients_path = folder.join(CLIENTS_FILE);
    let clients = certificates(&clients_path)?;
    if clients.is_empty() {
        return Err(IdentityError::NoClients(clients_path));
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(PinnedClients {
        clients,
        provider: Arc::clone(&provider),
    });
    let mismatch = |error| IdentityError::Mismatch(folder.to_owned(), error);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(mismatch)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(mismatch)?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: PemError) -> IdentityError {
    let source = match error {
        PemError::Io(error) => PemFileError::Io(error),
        other => PemFileError::Pem(other.to_string()),
    };
    IdentityError::File {
        path: path.to_owned(),
        source,
    }
}

/// Accepts a client that presents one of these certificates and has its key.
#[derive(Debug)]
struct PinnedClients {
    clients: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for PinnedClients {
    /// Empty: a Go client with a list to choose from would send no certificate at all.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        // The certificate is public, but there is no reason to tell how much of one was right.
        let known = self
            .clients
            .iter()
            .any(|client| client.as_ref().ct_eq(leaf.as_ref()).into());
        match known {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(rustls::CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

//! Mutual TLS with pinned certificates.
//!
//! Both ends know the other's certificate beforehand, so there is no authority, no name and no
//! date to check: the leaf's bytes are compared, and the handshake's signature is verified, which
//! proves that the peer has the key. Dates are ignored because a guest's clock may be wrong, as
//! after a restore. TLS 1.3 only. No session is resumed, because a resumed session would not be
//! compared again.

mod pinned;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, Error as TlsError, ServerConfig,
    client::Resumption,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
    server::NoServerSessionStorage,
};
use vsock_agent_transport::read_secret;

use self::pinned::Pinned;

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
    /// TLS is on, or off, from the start to the end.
    #[error("TLS is switched on and off only when the agent is started")]
    Switched,
    /// The key does not belong to the certificate, or is of a kind TLS 1.3 does not know.
    #[error("the certificate and key in {0} do not work together")]
    Mismatch(PathBuf, #[source] TlsError),
}

/// What is wrong with a PEM file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PemFileError {
    /// It cannot be opened or read, or it is a key that others have permissions for.
    #[error("cannot use it")]
    Io(#[source] io::Error),
    /// It is not PEM, or what it should have is not in it.
    #[error("it is not the PEM file it should be: {0}")]
    Pem(String),
}

/// Reads the identity in `folder` and makes the server side of mutual TLS of it, for `clients`.
///
/// # Errors
///
/// [`IdentityError`], naming the file.
pub(crate) fn server_config(
    folder: &Path,
    clients: Vec<CertificateDer<'static>>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let (chain, key) = own(folder)?;
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Pinned {
        certificates: clients,
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

/// Makes the client side, for a host that presents one of `hosts`. The agent presents the identity
/// in `folder`, if there is one.
///
/// # Errors
///
/// [`IdentityError`], naming the file.
pub(crate) fn client_config(
    folder: Option<&Path>,
    hosts: Vec<CertificateDer<'static>>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Pinned {
        certificates: hosts,
        provider: Arc::clone(&provider),
    });
    let mismatch =
        |error| IdentityError::Mismatch(folder.unwrap_or(Path::new("")).to_owned(), error);
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(mismatch)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match folder {
        None => config.with_no_client_auth(),
        Some(folder) => {
            let (chain, key) = own(folder)?;
            config.with_client_auth_cert(chain, key).map_err(mismatch)?
        }
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The certificates of the host in `folder`.
///
/// # Errors
///
/// [`IdentityError`], also when there is none.
pub(crate) fn hosts(folder: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let path = folder.join(CLIENTS_FILE);
    let hosts = certificates(&path)?;
    match hosts.is_empty() {
        true => Err(IdentityError::NoClients(path)),
        false => Ok(hosts),
    }
}

/// The agent's certificate and key.
fn own(
    folder: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
    let chain = certificates(&folder.join(CERTIFICATE_FILE))?;
    let path = folder.join(KEY_FILE);
    let key = read_secret(&path)
        .map_err(PemError::Io)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
        .map_err(|error| unreadable(&path, error))?;
    Ok((chain, key))
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

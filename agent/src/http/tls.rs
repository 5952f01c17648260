//! The files of the agent's identity: its certificate and key, and the certificates of its host.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, Error as TlsError, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
    sign::SingleCertAndKey,
};
use vsock_agent_transport::{read_secret, tls};

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
    let mismatch = |error| IdentityError::Mismatch(folder.to_owned(), error);
    tls::server_config(own(folder)?, clients).map_err(mismatch)
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
    let mismatch =
        |error| IdentityError::Mismatch(folder.unwrap_or(Path::new("")).to_owned(), error);
    tls::client_config(folder.map(own).transpose()?, hosts).map_err(mismatch)
}

/// The certificates of the host in `folder`.
///
/// # Errors
///
/// [`IdentityError`], also when there is none.
pub(crate) fn hosts(folder: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let path = folder.join(CLIENTS_FILE);
    let hosts = certificates(&path)?;
    if hosts.is_empty() {
        Err(IdentityError::NoClients(path))
    } else {
        Ok(hosts)
    }
}

/// The agent's certificate and key.
fn own(folder: &Path) -> Result<Arc<SingleCertAndKey>, IdentityError> {
    let chain = certificates(&folder.join(CERTIFICATE_FILE))?;
    let path = folder.join(KEY_FILE);
    let key = read_secret(&path)
        .map_err(PemError::Io)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
        .map_err(|error| unreadable(&path, error))?;
    tls::credentials(chain, key).map_err(|error| IdentityError::Mismatch(folder.to_owned(), error))
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

//! The files of the agent's identity: its certificate and key, and the certificates of its host.
//! `vsock_agent_transport::tls` checks the certificates of connections.

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
use vsock_agent_transport::{
    http::{ALPN_HTTP1, ALPN_HTTP2},
    read_secret, tls,
};

/// The agent's certificate.
pub(crate) const CERTIFICATE_FILE: &str = "agent.crt";
/// The agent's private key.
const KEY_FILE: &str = "agent.key";
/// The host's certificates, which it presents as a client. The name is LXD's.
const HOST_CERTIFICATES_FILE: &str = "server.crt";

/// An error in the identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file is missing, cannot be read, or is not PEM.
    #[error("cannot read {path}")]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: PemFileError,
    },
    /// The file of client certificates has none, so no client could connect.
    #[error("no certificate in {0}")]
    NoHostCertificate(PathBuf),
    /// TLS cannot be switched on or off while the agent runs.
    #[error("TLS is switched on and off only when the agent is started")]
    Switched,
    /// The key does not belong to the certificate, or TLS 1.3 does not support its type.
    #[error("the certificate and key in {0} do not work together")]
    Mismatch(PathBuf, #[source] TlsError),
}

/// An error in a PEM file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PemFileError {
    /// It cannot be opened or read, or it is a key and others have permissions for it.
    #[error("cannot use it")]
    Io(#[source] io::Error),
    /// It is not PEM, or has no item of the required type.
    #[error("it is not the PEM file it should be: {0}")]
    Pem(String),
}

/// Reads the identity in `folder` and builds the server configuration of mutual TLS, for `clients`.
///
/// # Errors
///
/// [`IdentityError`], naming the file.
pub(crate) fn server_config(
    folder: &Path,
    clients: Vec<CertificateDer<'static>>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let mismatch = |error| IdentityError::Mismatch(folder.to_owned(), error);
    let mut config = tls::server_config(own(folder)?, clients).map_err(mismatch)?;
    Arc::make_mut(&mut config).alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    Ok(config)
}

/// Builds the client configuration, for a host that presents one of `hosts`. The agent presents the
/// identity in `folder`, if there is one.
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
pub(crate) fn host_certificates(
    folder: &Path,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let path = folder.join(HOST_CERTIFICATES_FILE);
    let hosts = certificates(&path)?;
    if hosts.is_empty() {
        Err(IdentityError::NoHostCertificate(path))
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

//! The address and certificate that the host has announced.
//!
//! Called by `api/server_info.rs`. Makes no connection.

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::watch;
use vsock_agent_protocol::host::HostConnection;

/// `VMADDR_PORT_ANY` (`include/uapi/linux/vm_sockets.h`): not a port to listen on.
const PORT_ANY: u32 = u32::MAX;

/// The last announcement of the host.
#[derive(Debug, Default)]
pub(crate) struct Host(watch::Sender<Option<HostConnection>>);

/// An error in an announcement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    /// The port is 0 or `VMADDR_PORT_ANY`.
    #[error("{0} is not a valid port")]
    Port(u32),
    /// The text is not PEM, or has no certificate.
    #[error("the certificate is not valid PEM")]
    Certificate,
}

impl Host {
    /// Watches the announcements, repeated ones included.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<HostConnection>> {
        self.0.subscribe()
    }

    /// Stores an announcement.
    ///
    /// # Errors
    ///
    /// [`HostError`]. The last announcement is kept.
    pub(crate) fn set_connection(&self, connection: HostConnection) -> Result<(), HostError> {
        if matches!(connection.port, 0 | PORT_ANY) {
            return Err(HostError::Port(connection.port));
        }
        let fingerprint = fingerprint(&connection.certificate)?;
        let HostConnection {
            cid, port, devlxd, ..
        } = connection;
        let is_new = self.0.borrow().as_ref() != Some(&connection);
        // A repeated announcement may mean that the host has restarted.
        self.0.send_replace(Some(connection));
        if is_new {
            tracing::info!(
                cid,
                port,
                devlxd,
                fingerprint,
                "the host announced its address"
            );
        } else {
            tracing::debug!("the host announced its address again");
        }
        Ok(())
    }
}

#[cfg(test)]
impl Host {
    /// The last announcement.
    pub(crate) fn known(&self) -> Option<HostConnection> {
        self.0.borrow().clone()
    }
}

/// The SHA-256 of the first certificate, empty for an empty text.
fn fingerprint(pem: &str) -> Result<String, HostError> {
    if pem.is_empty() {
        return Ok(String::new());
    }
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| HostError::Certificate)?;
    let first = certificates.first().ok_or(HostError::Certificate)?;
    Ok(HEXLOWER.encode(digest(&SHA256, first).as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";

    fn connection(port: u32, certificate: &str) -> HostConnection {
        let mut connection = HostConnection::new("host:1".parse().unwrap());
        connection.port = port;
        connection.certificate = certificate.to_owned();
        connection
    }

    #[test]
    fn the_last_announcement_of_the_host_is_kept() {
        let host = Host::default();
        host.set_connection(connection(1024, "")).unwrap();
        host.set_connection(connection(1025, PEM)).unwrap();
        assert_eq!(host.known(), Some(connection(1025, PEM)));
    }

    #[test]
    fn an_invalid_announcement_of_the_host_is_refused() {
        let host = Host::default();
        for port in [0, u32::MAX] {
            let refused = host.set_connection(connection(port, PEM));
            assert_eq!(refused, Err(HostError::Port(port)));
        }
        let broken = "-----BEGIN CERTIFICATE-----\nM!A=\n-----END CERTIFICATE-----\n";
        for certificate in ["x", KEY, broken, " "] {
            let refused = host.set_connection(connection(1024, certificate));
            assert_eq!(refused, Err(HostError::Certificate), "{certificate}");
        }
        assert_eq!(host.known(), None);
    }

    #[test]
    fn the_fingerprint_is_that_of_the_first_certificate() {
        // SHA-256 of the two bytes 30 00, an empty sequence.
        let expected = "e4f60d0aa6d7f3d3b6a6494b1c861b99f649c6f9ec51abaf201b20f297327c95";
        assert_eq!(fingerprint(PEM).unwrap(), expected);
        assert_eq!(fingerprint("").unwrap(), "");
    }
}

//! The addresses that the agent listens on and connects to.

mod vsock_module;

use std::{fmt, io, path::PathBuf, str::FromStr, sync::Arc};

use nix::sys::socket::Backlog;
use vsock_agent_protocol::address::{ParseAddressError, VsockAddress};
use vsock_agent_transport::{Listener, Stream, vsock};

use crate::defaults;

/// An address to listen on: `vsock:CID:PORT`, such as `vsock:any:8443`, or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// AF_VSOCK.
    Vsock(VsockAddress),
    /// A Unix socket, created with mode 0600 and removed at the end.
    Unix(PathBuf),
}

/// Text that is not an address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseListenError {
    /// The part before the first colon is neither `vsock` nor `unix`.
    #[error("{0:?} is neither vsock:CID:PORT nor unix:PATH")]
    Scheme(String),
    /// What follows `vsock:` is no vsock address.
    #[error("{0:?} is not a vsock address")]
    Vsock(String, #[source] ParseAddressError),
}

impl FromStr for ListenAddress {
    type Err = ParseListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("vsock", address)) => match address.parse() {
                Ok(address) => Ok(Self::Vsock(address)),
                Err(error) => Err(ParseListenError::Vsock(text.to_owned(), error)),
            },
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(ParseListenError::Scheme(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(address) => write!(f, "vsock:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Binds and listens. Waits [`defaults::BIND_TIMEOUT`] at most for the vsock device.
///
/// # Errors
///
/// For AF_VSOCK `EAFNOSUPPORT` or `ENODEV` when its module is missing, `EADDRINUSE` when the port is
/// in use; for a Unix socket `AddrInUse` also when the path is something else than a stale socket.
pub(crate) async fn bind(address: &ListenAddress) -> io::Result<Listener> {
    // nix limits a backlog to SOMAXCONN of the headers; the kernel's limit may be higher.
    let backlog = Backlog::new(defaults::BACKLOG).unwrap_or(Backlog::MAXALLOWABLE);
    match address {
        ListenAddress::Vsock(address) => {
            let listener = vsock_module::listen(*address, backlog).await?;
            Ok(Listener::Vsock(listener))
        }
        ListenAddress::Unix(path) => {
            let (listener, file) = vsock_agent_transport::listen_blocking(path, backlog)?;
            Ok(Listener::Unix(listener, Arc::new(file)))
        }
    }
}

/// Logs why a connection could not be accepted.
pub(crate) fn log_failure(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
}

/// Connects to an address. For a Unix socket, this blocks while its directory's file system does not
/// answer.
///
/// # Errors
///
/// The errno of `connect(2)`.
pub(crate) async fn connect(address: &ListenAddress) -> io::Result<Stream> {
    match address {
        ListenAddress::Vsock(address) => {
            let stream = vsock::connect(*address, defaults::VSOCK_CONNECT_TIMEOUT).await?;
            Stream::new(stream.into())
        }
        ListenAddress::Unix(path) => vsock_agent_transport::connect(path).await.map(Stream::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["vsock:any:8443", "vsock:3:1024", "unix:/run/agent.sock"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_address_without_a_known_scheme_is_refused() {
        for text in ["", "8443", "tcp:0.0.0.0:80", "unix:", "vsock:any:http"] {
            text.parse::<ListenAddress>().unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_socket_somebody_listens_on_is_not_taken_over() {
        let folder = std::env::temp_dir().join(format!("agent-listen-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let address = ListenAddress::Unix(folder.join("sock"));
        let first = bind(&address).await.unwrap();
        assert_eq!(
            bind(&address).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        bind(&address).await.unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

//! Listening on AF_VSOCK and Unix sockets, with one [`Listener`] and one [`Stream`].

mod module;
mod stream;

use std::{fmt, future::poll_fn, io, path::PathBuf, str::FromStr};

use nix::sys::socket::Backlog;
use tokio::net::UnixListener;
use tokio_vsock::VsockListener;
use vsock_agent_protocol::address::{Cid, ParseAddressError, VsockAddress};
use vsock_agent_transport::{
    SocketFile,
    vsock::{self, is_privileged},
};

pub(crate) use self::stream::{Closer, Stream};
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

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Vsock(VsockListener),
    Unix {
        listener: UnixListener,
        /// Held for its `Drop`.
        _file: SocketFile,
    },
}

/// The peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A machine, by its context id, which a peer cannot forge.
    Vsock(VsockAddress),
    /// A process with permission to connect to the Unix socket.
    Unix,
}

impl Peer {
    /// Whether the peer has a privileged port: its kernel reserves them for root. A VMM that connects for
    /// others does not use one.
    pub(crate) fn is_privileged(self) -> bool {
        match self {
            Self::Vsock(address) => is_privileged(address.port),
            Self::Unix => false,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(address) => write!(f, "vsock:{address}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

impl Listener {
    /// Binds and listens. Waits [`defaults::BIND_TIMEOUT`] at most for the vsock device.
    ///
    /// # Errors
    ///
    /// For AF_VSOCK `EAFNOSUPPORT` or `ENODEV` when its module is missing, `EADDRINUSE` when the port is
    /// in use; for a Unix socket `AddrInUse` also when the path is something else than a stale socket.
    pub(crate) async fn bind(address: &ListenAddress) -> io::Result<Self> {
        // nix limits a backlog to SOMAXCONN of the headers; the kernel's limit may be higher.
        let backlog = Backlog::new(defaults::BACKLOG).unwrap_or(Backlog::MAXALLOWABLE);
        match address {
            ListenAddress::Vsock(address) => {
                module::listen(*address, backlog).await.map(Self::Vsock)
            }
            ListenAddress::Unix(path) => {
                let (listener, file) = vsock_agent_transport::listen_blocking(path, backlog)?;
                Ok(Self::Unix {
                    listener,
                    _file: file,
                })
            }
        }
    }

    /// Accepts the next connection. Cancel safe.
    ///
    /// # Errors
    ///
    /// The errno of `accept(2)`; the listener stays usable.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Vsock(listener) => {
                let (stream, peer) = poll_fn(|cx| listener.poll_accept_std(cx)).await?;
                let peer = VsockAddress {
                    cid: Cid(peer.cid()),
                    port: peer.port(),
                };
                Ok((Stream::new(stream.into())?, Peer::Vsock(peer)))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((stream.into(), Peer::Unix))
            }
        }
    }
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
        let first = Listener::bind(&address).await.unwrap();
        assert_eq!(
            Listener::bind(&address).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        Listener::bind(&address).await.unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

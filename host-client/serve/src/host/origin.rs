//! The address that a guest connects from, and the address that it connects to.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use vsock_agent_client::Endpoint;
use vsock_agent_protocol::address::Cid;
use vsock_agent_transport as transport;

/// Where a connection comes from, as reported by the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// A machine, by its context id.
    Machine(Cid),
    /// The machine whose monitor connects to this Unix socket on behalf of its guest.
    Socket(PathBuf),
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ListenAddress {
    /// The port on AF_VSOCK.
    Vsock,
    /// A Unix socket.
    Unix(PathBuf),
}

impl Origin {
    /// The origin of the guest whose agent is at `endpoint` when it connects to `port`. `None` for
    /// an endpoint of another kind.
    pub(super) fn of(endpoint: &Endpoint, port: u32) -> Option<Self> {
        let beside = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("_{port}"));
            Self::Socket(name.into())
        };
        match endpoint {
            Endpoint::Vsock(address) => Some(Self::Machine(address.cid)),
            Endpoint::Unix(path) | Endpoint::Hybrid { path, .. } => Some(beside(path)),
            _ => None,
        }
    }

    /// The origin of a connection of `peer` at `address`.
    pub(super) fn at(address: &ListenAddress, peer: transport::Peer) -> Option<Self> {
        match (address, peer) {
            (_, transport::Peer::Vsock(peer)) => Some(Self::Machine(peer.cid)),
            (ListenAddress::Unix(path), transport::Peer::Unix) => Some(Self::Socket(path.clone())),
            (ListenAddress::Vsock, transport::Peer::Unix) => None,
        }
    }

    /// The address to listen on for connections from here.
    pub(super) fn listen_address(&self) -> ListenAddress {
        match self {
            Self::Machine(_) => ListenAddress::Vsock,
            Self::Socket(path) => ListenAddress::Unix(path.clone()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock => f.write_str("vsock"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

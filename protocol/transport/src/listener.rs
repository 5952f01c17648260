//! A listening socket that yields connections, of either family.

use std::{fmt, future::poll_fn, io, sync::Arc, time::Duration};

use tokio::{net::UnixListener, time::sleep};
use tokio_vsock::VsockListener;
use vsock_agent_protocol::address::{Cid, VsockAddress};

use crate::{SocketFile, Stream, vsock::is_privileged};

/// Pause after an `accept` that failed, for lack of descriptors or memory: another one at once would
/// fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket. `Drop` closes it.
#[derive(Debug)]
pub enum Listener {
    /// AF_VSOCK.
    Vsock(VsockListener),
    /// A Unix socket, and its file.
    Unix(UnixListener, Arc<SocketFile>),
}

/// The peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A machine, by its context id, which a peer cannot forge.
    Vsock(VsockAddress),
    /// A process with permission to connect to the Unix socket.
    Unix,
}

impl Peer {
    /// Whether the peer has a privileged port: its kernel reserves them for root. A VMM that connects for
    /// others does not use one.
    #[must_use]
    pub const fn is_privileged(self) -> bool {
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
    /// Accepts the next connection, as [`accept`] does. Cancel safe.
    pub async fn accept(&self, failed: impl Fn(&io::Error)) -> (Stream, Peer) {
        accept(|| self.accept_once(), failed).await
    }

    async fn accept_once(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Vsock(listener) => {
                let (stream, peer) = poll_fn(|cx| listener.poll_accept_std(cx)).await?;
                let peer = VsockAddress {
                    cid: Cid(peer.cid()),
                    port: peer.port(),
                };
                Ok((Stream::new(stream.into())?, Peer::Vsock(peer)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((stream.into(), Peer::Unix))
            }
        }
    }
}

/// Accepts the next connection by `once`. After an error it calls `failed`, waits a moment and tries
/// again.
pub async fn accept<T, F: Future<Output = io::Result<T>>>(
    mut once: impl FnMut() -> F,
    failed: impl Fn(&io::Error),
) -> T {
    loop {
        match once().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                failed(&error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

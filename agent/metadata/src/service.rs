//! A service: its socket, and who may use it.

use std::{net::SocketAddr, os::fd::AsRawFd, path::Path, sync::Arc};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
    unistd::geteuid,
};
use tokio::net::{TcpListener, TcpStream};
use vsock_agent_transport::accept;

use crate::{
    Preset,
    loopback::{AddressError, LoopbackAddress},
    peer::{Ends, Peers},
    sk_lookup::SkLookup,
    token::Tokens,
};

/// The reply to a user who is not allowed.
const REFUSAL: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 18\r\nConnection: close\r\n\r\nonly root may ask\n";

/// The metadata services, and who may use them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PresetConfig {
    /// The services.
    pub presets: Vec<Arc<Preset>>,
    /// Whether services with tokens refuse requests without one.
    pub only_with_token: bool,
    /// Whether every user of the guest is allowed, not root alone.
    pub for_all_users: bool,
}

/// A metadata service.
#[derive(Debug)]
pub struct Service {
    pub(crate) preset: Arc<Preset>,
    pub(crate) tokens: Tokens,
    pub(crate) only_with_token: bool,
    for_all_users: bool,
}

/// A service's socket. `Drop` closes it, and removes its address from the loopback device.
#[derive(Debug)]
pub struct ServiceListener {
    socket: TcpListener,
    peers: Peers,
    _sk_lookup: Option<SkLookup>,
    _address: LoopbackAddress,
}

impl Service {
    /// The service of a preset, by the rules of `config`. `None` if the system has no random numbers for
    /// its tokens.
    #[must_use]
    pub fn new(preset: Arc<Preset>, config: &PresetConfig) -> Option<Self> {
        Some(Self {
            preset,
            tokens: Tokens::new()?,
            only_with_token: config.only_with_token,
            for_all_users: config.for_all_users,
        })
    }

    /// Its name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.preset.name()
    }

    /// Assigns its address to the loopback device and listens there. `root` is the guest's `/`.
    ///
    /// # Errors
    ///
    /// [`AddressError`].
    pub async fn listen(&self, root: &Path) -> Result<ServiceListener, AddressError> {
        let address = SocketAddr::from(self.preset.address());
        let assigned = LoopbackAddress::acquire(root, address).await?;
        let wrong = |error| AddressError::Listen(address, error);
        let (socket, sk_lookup) = assigned.listen(address.port()).map_err(wrong)?;
        let peers = Peers::open(socket.local_addr().map_err(wrong)?).await;
        tracing::info!(preset = self.name(), %address, "serving metadata");
        Ok(ServiceListener {
            socket,
            peers,
            _sk_lookup: sk_lookup,
            _address: assigned,
        })
    }

    /// Whether the client of a connection is a program of this machine, run by root or this process's own
    /// user. Another gets a refusal; then the connection is to be closed. Cancel safe.
    pub async fn admits(
        &self,
        listener: &ServiceListener,
        stream: &TcpStream,
        peer: SocketAddr,
    ) -> bool {
        let user = match stream.local_addr() {
            Ok(own) => listener.peers.user(Ends::new(peer, own)).await,
            Err(error) => Err(error),
        };
        match user {
            Ok(Some(_)) if self.for_all_users => return true,
            Ok(Some(user)) if user == 0 || user == geteuid().as_raw() => return true,
            Ok(user) => tracing::debug!(user, "refused a user who is not root"),
            Err(error) => tracing::error!(%error, "cannot find the user of a connection"),
        }
        refuse(stream);
        false
    }
}

impl ServiceListener {
    /// Accepts the next connection; one that its client has closed already is passed over. Errors are
    /// logged. Cancel safe.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            let accepted = accept(
                || self.socket.accept(),
                |error| {
                    tracing::warn!(%error, "cannot accept a connection");
                },
            );
            let (stream, peer) = accepted.await;
            if !is_closed(&stream) {
                return (stream, peer);
            }
        }
    }
}

/// Whether the client has closed its end and sent nothing, or the connection is broken.
fn is_closed(stream: &TcpStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Ok(length) => length == 0,
        Err(errno) => errno != Errno::EAGAIN,
    }
}

/// Sends the refusal without blocking. Does not wait for the socket's readiness either, so it uses the
/// system calls directly.
fn refuse(stream: &TcpStream) {
    let (socket, flags) = (stream.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    // Closing a socket with unread data resets the connection, and the refusal is lost.
    let _ = recv(socket, &mut [0; 1024], flags);
    let _ = send(socket, REFUSAL, flags | MsgFlags::MSG_NOSIGNAL);
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::Ipv4Addr,
    };

    use super::*;

    #[tokio::test]
    async fn a_refusal_is_sent_without_waiting_for_readiness() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        refuse(&stream);
        drop(stream);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, REFUSAL);
    }
}

//! The user at the other end of a TCP connection within this machine.
//!
//! `sock_diag(7)` returns the user of the socket with these two addresses at once. Without that
//! (`CONFIG_INET_DIAG`, a module in many kernels) it is in `/proc/net/tcp` and `tcp6` (`proc(5)`), which
//! have a line for every socket of the machine: one thread reads them, once for all pending lookups. The
//! user is the one that created the socket (`sock_i_uid`): a root program that passes a connected socket
//! to another gives it access.
//!
//! The kernel lists a closed socket as root's, with inode 0; such a socket has no user here. No other
//! socket can have the same two addresses while our own end of the connection is open, so the user
//! cannot change between the lookup and the reply.

mod diag;
mod lists;

use std::{io, net::SocketAddr, path::Path};

use self::{
    diag::SockDiag,
    lists::{LISTS, Lists},
};
use vsock_agent_transport::run_blocking_on;

/// The addresses of both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    peer: SocketAddr,
    own: SocketAddr,
}

/// Looks up the users of peers.
#[derive(Debug)]
pub(crate) enum Peers {
    Diag(SockDiag),
    Lists(Lists),
}

impl Ends {
    /// The ends of a connection. An IPv4-mapped IPv6 address becomes IPv4.
    pub(crate) fn new(peer: SocketAddr, own: SocketAddr) -> Self {
        let plain =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self {
            peer: plain(peer),
            own: plain(own),
        }
    }
}

impl Peers {
    /// Uses `sock_diag`, or `/proc` without it. `listening` is the address of a listening socket of this
    /// machine, for a test lookup.
    pub(crate) async fn open(listening: SocketAddr) -> Self {
        // Blocks while the kernel loads a module.
        let opening = run_blocking_on(Path::new(LISTS[0]), move || SockDiag::open(listening));
        match opening.await {
            Ok(diag) => Self::Diag(diag),
            Err(error) => {
                tracing::info!(%error, "sock_diag is not available: reading /proc/net/tcp instead");
                Self::Lists(Lists::open())
            }
        }
    }

    /// The user of the socket at the peer's end. `None` if it is not in this machine or in another
    /// network namespace. Cancel safe.
    ///
    /// # Errors
    ///
    /// Those of netlink, or of reading the lists.
    pub(crate) async fn user(&self, ends: Ends) -> io::Result<Option<u32>> {
        match self {
            Self::Diag(diag) => diag.user(ends),
            Self::Lists(lists) => lists.user(ends).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::unistd::geteuid;

    use super::*;

    /// A peer that is there, one that has gone, and one that never was, by each way.
    #[tokio::test]
    async fn the_user_at_the_other_end_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = listener.local_addr().unwrap();
        let diag = SockDiag::open(listening).unwrap();
        for peers in [Peers::Diag(diag), Peers::Lists(Lists::open())] {
            for mapped in [false, true] {
                let to = if mapped {
                    SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1], listening.port()))
                } else {
                    listening
                };
                let client = TcpStream::connect(to).unwrap();
                let (served, peer) = listener.accept().unwrap();
                let ends = Ends::new(peer, served.local_addr().unwrap());
                let own = geteuid().as_raw();
                assert_eq!(peers.user(ends).await.unwrap(), Some(own), "{peers:?}");
                drop(client);
                assert_eq!(
                    peers.user(ends).await.unwrap(),
                    None,
                    "{peers:?}: it has gone"
                );
            }
            let absent = Ends::new(([192, 0, 2, 1], 1).into(), listening);
            assert_eq!(peers.user(absent).await.unwrap(), None, "{peers:?}");
        }
    }

    /// What one thread asks must not be answered to another.
    #[test]
    fn several_threads_ask_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = listener.local_addr().unwrap();
        let diag = SockDiag::open(listening).unwrap();
        let own = geteuid().as_raw();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let client = TcpStream::connect(listening).unwrap();
                let ends = Ends::new(client.local_addr().unwrap(), listening);
                let diag = &diag;
                scope.spawn(move || {
                    for _ in 0..500 {
                        assert_eq!(diag.user(ends).unwrap(), Some(own));
                    }
                    drop(client);
                });
            }
        });
    }

    /// The reply for a connection that does not exist must not be that of the listening socket.
    #[test]
    fn a_listener_is_no_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = listener.local_addr().unwrap();
        let diag = SockDiag::open(listening).unwrap();
        let ends = Ends::new(listening, ([127, 0, 0, 1], 1).into());
        assert_eq!(diag.user(ends).unwrap(), None);
    }
}

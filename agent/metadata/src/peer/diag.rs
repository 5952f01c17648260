//! One socket, by the addresses of its two ends (`sock_diag(7)`, `linux/inet_diag.h`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::SockProtocol;

use super::Ends;
use crate::netlink::{Netlink, message, read_u32};

/// The type of the request (`SOCK_DIAG_BY_FAMILY` in `linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;

/// Largest answer, in bytes. An `inet_diag_msg` has 72, and few attributes follow.
const ANSWER_BYTES: usize = 4096;

/// The state of a listening socket (`TCP_LISTEN` in `net/tcp_states.h`).
const LISTENING: u8 = 10;

/// The index of the loopback device, the same in every network namespace: a peer may be bound to it.
const LOOPBACK_INDEX: u32 = 1;

/// No cookie (`INET_DIAG_NOCOOKIE`).
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Offsets in `struct inet_diag_msg`, in bytes.
const PORTS_AT: usize = 4;
const ADDRESSES_AT: usize = 8;
const USER_AT: usize = 64;
const INODE_AT: usize = 68;

/// Proof that the kernel supports `sock_diag`. Each request uses a socket of its own, so several threads
/// may send requests at once.
#[derive(Debug)]
pub(crate) struct SockDiag(());

/// A socket in the kernel's reply.
#[derive(Debug)]
struct Found {
    state: u8,
    ends: Ends,
    user: u32,
    inode: u32,
}

impl SockDiag {
    /// Looks up a listening socket, to find out whether `sock_diag` works.
    ///
    /// # Errors
    ///
    /// `ENOENT` or another errno of netlink if it does not.
    pub(super) fn open(listening: SocketAddr) -> io::Result<Self> {
        let unspecified: IpAddr = match listening {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let found = look_up(Ends::new(listening, (unspecified, 0).into()))?;
        found.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self(()))
    }

    /// As [`super::Peers::user`]. The kernel replies within the call, by a lookup in a hash table.
    ///
    /// # Errors
    ///
    /// The errno of netlink.
    pub(super) fn user(&self, ends: Ends) -> io::Result<Option<u32>> {
        let found = match look_up(ends) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            found => found?,
        };
        // Without a connection, the kernel returns the listening socket.
        let peer = found
            .filter(|found| found.ends == ends && found.state != LISTENING && found.inode != 0);
        Ok(peer.map(|peer| peer.user))
    }
}

/// The socket whose own address is the peer's, and whose peer is ours.
fn look_up(ends: Ends) -> io::Result<Option<Found>> {
    let kernel = Netlink::open(SockProtocol::NetlinkSockDiag, ANSWER_BYTES)?;
    let request = message(BY_FAMILY, libc::NLM_F_ACK, &question(ends));
    let mut found = None;
    kernel.ask(&request, |answer| found = parse(answer))?;
    Ok(found)
}

/// `struct inet_diag_req_v2`.
fn question(ends: Ends) -> Vec<u8> {
    let family = match ends.peer {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let byte = |number: i32| u8::try_from(number).unwrap_or_default();
    // No attributes in the answer, padding; sockets in any state.
    let mut question = vec![byte(family), byte(libc::IPPROTO_TCP), 0, 0];
    question.extend(u32::MAX.to_ne_bytes());
    question.extend(ends.peer.port().to_be_bytes());
    question.extend(ends.own.port().to_be_bytes());
    for address in [ends.peer, ends.own] {
        let mut bytes = match address.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.resize(16, 0);
        question.extend(bytes);
    }
    question.extend(LOOPBACK_INDEX.to_ne_bytes());
    question.extend(NO_COOKIE);
    question
}

/// `struct inet_diag_msg`.
fn parse(answer: &[u8]) -> Option<Found> {
    let is_v4 = i32::from(*answer.first()?) == libc::AF_INET;
    let port = |at: usize| Some(u16::from_be_bytes(*answer.get(at..)?.first_chunk()?));
    let ip = |at: usize| -> Option<IpAddr> {
        let bytes = answer.get(at..)?;
        Some(if is_v4 {
            Ipv4Addr::from(*bytes.first_chunk()?).into()
        } else {
            Ipv6Addr::from(*bytes.first_chunk()?).into()
        })
    };
    let local = SocketAddr::new(ip(ADDRESSES_AT)?, port(PORTS_AT)?);
    let remote = SocketAddr::new(ip(ADDRESSES_AT + 16)?, port(PORTS_AT + 2)?);
    Some(Found {
        state: *answer.get(1)?,
        ends: Ends::new(local, remote),
        user: read_u32(answer.get(USER_AT..)?).ok()?,
        inode: read_u32(answer.get(INODE_AT..)?).ok()?,
    })
}

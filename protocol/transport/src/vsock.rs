//! AF_VSOCK sockets with the options that must be set before they listen or connect.
//!
//! `tokio-vsock` creates its sockets with a backlog of 128 and no way to set a buffer size. So the
//! sockets are created here and passed to it.
#![expect(
    unsafe_code,
    reason = "socket options without a safe wrapper, and registering a socket that is connecting"
)]

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io, iter,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    setsockopt_impl, sockopt_impl,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect as connect_socket,
        getsockopt, listen as listen_socket, setsockopt, socket, sockopt::SocketError,
    },
};
use tokio::io::unix::AsyncFd;
use tokio_vsock::{VsockListener, VsockStream};
use vsock_agent_protocol::address::VsockAddress;

/// Bytes that the peer may send before they are read, per connection. The kernel's default, and its
/// default maximum, is 256 KiB; more keeps a transfer going while a busy reader is late. It costs
/// kernel memory only while that much is waiting.
const BUFFER_BYTES: u64 = 1024 * 1024;

/// The ports that `rresvport(3)` returns. Those below 1024 are root's (`LAST_RESERVED_PORT` in Linux's
/// `net/vmw_vsock/af_vsock.c`), and the lower half is for well-known services.
const PRIVILEGED_PORTS: Range<u32> = 512..1024;

/// Privileged ports that are tried before the kernel chooses a port.
const MAX_PORTS_TRIED: usize = 4;

// `include/uapi/linux/vm_sockets.h`
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
/// The old form, which takes the C library's `timeval`: it exists in every kernel, and on 64-bit
/// systems both forms are the same.
const SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: libc::c_int = 6;

sockopt_impl!(
    /// The receive buffer. Above [`BufferMaxSize`] it is silently reduced to that.
    BufferSize,
    SetOnly,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_BUFFER_SIZE,
    u64
);
sockopt_impl!(
    /// The maximum for [`BufferSize`]; to be set first.
    BufferMaxSize,
    SetOnly,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    u64
);
sockopt_impl!(
    /// How long the kernel waits for the reply to a connect.
    ConnectTimeout,
    SetOnly,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD,
    libc::timeval
);

/// Binds and listens. Needs a tokio runtime.
///
/// # Errors
///
/// Those of `vsock(7)`: `EAFNOSUPPORT` or `ENODEV` without the kernel's modules, `EADDRINUSE`.
pub fn listen(address: VsockAddress, backlog: Backlog) -> io::Result<VsockListener> {
    let socket = new_socket()?;
    bind(
        socket.as_raw_fd(),
        &VsockAddr::new(address.cid.0, address.port),
    )?;
    listen_socket(&socket, backlog)?;
    // Panics outside a runtime, or when epoll has no memory.
    Ok(VsockListener::from(socket))
}

/// Connects. The kernel gives up after `limit`.
///
/// # Errors
///
/// Those of `vsock(7)` and the transport: `ENODEV` when there is no such machine, `ECONNRESET` when
/// nothing listens there, `ETIMEDOUT` when the machine does not reply.
pub async fn connect(address: VsockAddress, limit: Duration) -> io::Result<VsockStream> {
    let socket = new_socket()?;
    let timeout = libc::timeval {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: limit.subsec_micros().into(),
    };
    setsockopt(&socket, ConnectTimeout, &timeout)?;
    bind_privileged_port(&socket);
    let peer = VsockAddr::new(address.cid.0, address.port);
    match connect_socket(socket.as_raw_fd(), &peer) {
        Ok(()) => VsockStream::new(vsock::VsockStream::from(socket)),
        Err(Errno::EINPROGRESS) => finish_connect(socket).await,
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a peer on AF_VSOCK must have been root to have this port.
#[must_use]
pub const fn is_privileged(port: u32) -> bool {
    port < PRIVILEGED_PORTS.end
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    setsockopt(&socket, BufferMaxSize, &BUFFER_BYTES)?;
    setsockopt(&socket, BufferSize, &BUFFER_BYTES)?;
    Ok(socket)
}

/// Binds the socket to a port that only root may use, if this process may and one is free: listeners
/// reserve connections for such peers. Otherwise the kernel chooses a port.
fn bind_privileged_port(socket: &OwnedFd) {
    for port in iter::repeat_with(next_port).take(MAX_PORTS_TRIED) {
        match bind(
            socket.as_raw_fd(),
            &VsockAddr::new(libc::VMADDR_CID_ANY, port),
        ) {
            Err(Errno::EADDRINUSE) => {}
            _ => return,
        }
    }
}

/// The ports in turn, starting at a random one: the peer may still have a connection from the port
/// that was used last, and would reset a new one.
fn next_port() -> u32 {
    static FIRST: OnceLock<u32> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let random = || RandomState::new().build_hasher().finish();
    // Less than 512.
    let random = || u32::try_from(random() % 512).unwrap_or_default();
    let first = FIRST.get_or_init(random);
    let offset = first.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
    PRIVILEGED_PORTS.start + offset % (PRIVILEGED_PORTS.end - PRIVILEGED_PORTS.start)
}

/// Waits for the outcome of a connect that is in progress.
async fn finish_connect(socket: OwnedFd) -> io::Result<VsockStream> {
    // SAFETY: the `AsyncFd` owns the descriptor and hands out no way to close or replace it; it
    // is deregistered by `into_inner` before anything else gets the descriptor.
    let waiting = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
    // Not cleared: a socket that is connecting becomes ready once, when the outcome is known.
    let ready = waiting.writable().await?;
    let outcome = getsockopt(waiting.get_ref(), SocketError)?;
    drop(ready);
    match outcome {
        0 => VsockStream::new(vsock::VsockStream::from(waiting.into_inner())),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_privileged_port_is_used_in_turn() {
        let ports: BTreeSet<u32> = iter::repeat_with(next_port).take(512).collect();
        assert_eq!(ports, PRIVILEGED_PORTS.collect());
    }
}

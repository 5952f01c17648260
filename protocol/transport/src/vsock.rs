//! One AF_VSOCK connection, with the options that must be set before it is made.
//!
//! `tokio_vsock::VsockStream::connect` makes its socket itself and gives no chance to set any, so
//! the socket is made here and handed over once it is connected. Unsafe code sets an option that nix
//! has no name for, and registers a socket with tokio.
#![expect(
    unsafe_code,
    reason = "socket options without a safe wrapper; see the module doc"
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
        AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, getsockopt, setsockopt,
        socket, sockopt::SocketError,
    },
};
use tokio::io::unix::AsyncFd;
use tokio_vsock::VsockStream;

/// Bytes the other end may send before we have read them, per connection. The kernel's default, and
/// its default maximum, is 256 KiB; more keeps a transfer going while a busy end reads late. It costs
/// kernel memory only while that much is waiting.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// The ports that `rresvport(3)` gives. Those below 1024 are root's (`LAST_RESERVED_PORT` in Linux's
/// `net/vmw_vsock/af_vsock.c`), and well-known services have the lower half.
const PRIVILEGED_PORTS: Range<u32> = 512..1024;

/// Ports that are tried before the kernel chooses one.
const MAX_PORTS_TRIED: usize = 4;

// `include/uapi/linux/vm_sockets.h`
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
/// The old form, which takes the C library's `timeval`: it exists in every kernel, and on 64-bit
/// systems both forms are the same.
const SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: libc::c_int = 6;

sockopt_impl!(
    /// Bytes the other end may have in flight. Above the maximum it is silently cut to that.
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
    /// How long the kernel waits for the guest's answer to a connect.
    ConnectTimeout,
    SetOnly,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD,
    libc::timeval
);

/// Connects to a machine, from a port that only root may have if this process can. The kernel gives up
/// after `limit`.
///
/// # Errors
///
/// What `vsock(7)` and the transport give: `ENODEV` when there is no such machine, `ECONNRESET`
/// when nobody listens, `ETIMEDOUT` when it does not answer.
pub async fn connect_vsock(cid: u32, port: u32, limit: Duration) -> io::Result<VsockStream> {
    let fd = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    prepare(&fd, limit)?;
    take_privileged_port(&fd);
    match connect(fd.as_raw_fd(), &VsockAddr::new(cid, port)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => return finish(fd).await,
        Err(errno) => return Err(errno.into()),
    }
    VsockStream::new(::vsock::VsockStream::from(fd))
}

/// Whether a peer on AF_VSOCK must have been root to have this port.
#[must_use]
pub const fn is_privileged(port: u32) -> bool {
    port < PRIVILEGED_PORTS.end
}

/// Binds the socket to a port that only root may have, if this process may and one is free: listeners
/// keep places for such peers. The kernel chooses a port otherwise.
fn take_privileged_port(fd: &OwnedFd) {
    for port in iter::repeat_with(next_port).take(MAX_PORTS_TRIED) {
        match bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port)) {
            Err(Errno::EADDRINUSE) => {}
            _ => return,
        }
    }
}

/// The ports in turn, from a random one on: the other end may still have a connection from the port
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

fn prepare(fd: &OwnedFd, limit: Duration) -> io::Result<()> {
    setsockopt(fd, BufferMaxSize, &WINDOW_BYTES)?;
    setsockopt(fd, BufferSize, &WINDOW_BYTES)?;
    let timeout = libc::timeval {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: limit.subsec_micros().into(),
    };
    setsockopt(fd, ConnectTimeout, &timeout)?;
    Ok(())
}

/// Waits for the outcome of a connect that is under way.
async fn finish(fd: OwnedFd) -> io::Result<VsockStream> {
    // SAFETY: the `AsyncFd` owns the descriptor and hands out no way to close or replace it; it
    // is deregistered by `into_inner` before anything else gets the descriptor.
    let waiting = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
    // Not cleared: a socket that is connecting becomes ready once, when the outcome is known.
    let ready = waiting.writable().await?;
    let outcome = getsockopt(waiting.get_ref(), SocketError)?;
    drop(ready);
    match outcome {
        0 => VsockStream::new(::vsock::VsockStream::from(waiting.into_inner())),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_privileged_port_has_its_turn() {
        let ports: BTreeSet<u32> = iter::repeat_with(next_port).take(512).collect();
        assert_eq!(ports, PRIVILEGED_PORTS.collect());
    }
}

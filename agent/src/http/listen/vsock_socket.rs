//! An AF_VSOCK listener with the options that matter.
//!
//! `tokio-vsock` makes its own sockets, with a backlog of 128 and no way to set a buffer size, so
//! the socket is made here and handed to it; its stream and its accept are sound and do the rest.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    setsockopt_impl, sockopt_impl,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen as nix_listen,
        setsockopt, socket,
    },
};
use tokio::time::{Instant, sleep};
use tokio_vsock::VsockListener;
use vsock_agent_protocol::address::VsockAddress;

use crate::{defaults, system::bounded};

/// The module by which a guest on virtio reaches its host (`net/vmw_vsock/Makefile`).
const TRANSPORT: &str = "vmw_vsock_virtio_transport";

/// Option of level `AF_VSOCK` (`include/uapi/linux/vm_sockets.h`).
const SO_VM_SOCKETS_BUFFER_SIZE: i32 = 0;
/// Option of level `AF_VSOCK` (`include/uapi/linux/vm_sockets.h`).
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: i32 = 2;

sockopt_impl!(
    /// `SO_VM_SOCKETS_BUFFER_SIZE`: the receive window.
    BufferSize,
    SetOnly,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_BUFFER_SIZE,
    u64
);
sockopt_impl!(
    /// `SO_VM_SOCKETS_BUFFER_MAX_SIZE`: what the window is silently cut down to.
    BufferMaxSize,
    SetOnly,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    u64
);

/// Binds and listens.
///
/// # Errors
///
/// What the kernel says; `EAFNOSUPPORT` or `ENODEV` without the modules.
fn listen(address: VsockAddress) -> io::Result<VsockListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    // The maximum first, or the size is cut down to the old one.
    setsockopt(&socket, BufferMaxSize, &defaults::VSOCK_BUFFER_BYTES)?;
    setsockopt(&socket, BufferSize, &defaults::VSOCK_BUFFER_BYTES)?;
    bind(
        socket.as_raw_fd(),
        &VsockAddr::new(address.cid.0, address.port),
    )?;
    // nix caps what it takes for a backlog at SOMAXCONN of the headers; the kernel has its own cap.
    let backlog = Backlog::new(defaults::BACKLOG).unwrap_or(Backlog::MAXALLOWABLE);
    nix_listen(&socket, backlog)?;
    // Panics outside a runtime, or when epoll has no memory; the agent only binds at its start.
    Ok(VsockListener::from(socket))
}

/// Binds and listens, waiting for a kernel that does not know AF_VSOCK yet; its module is loaded
/// first.
///
/// # Errors
///
/// What the kernel says: at once, or for a missing module when [`defaults::BIND_TIMEOUT`] has
/// passed.
pub(super) async fn listen_when_there(address: VsockAddress) -> io::Result<VsockListener> {
    let deadline = Instant::now() + defaults::BIND_TIMEOUT;
    // The core alone lets anybody listen, and nobody in.
    if !Path::new("/sys/module").join(TRANSPORT).exists() {
        load_module().await;
    }
    let mut is_waiting = false;
    loop {
        let error = match listen(address) {
            Err(error) if is_missing(&error) => error,
            other => return other,
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        if !is_waiting {
            is_waiting = true;
            tracing::info!(%error, "no vsock yet: waiting for it");
        }
        sleep(defaults::BIND_PAUSE).await;
    }
}

/// Whether the kernel has no AF_VSOCK, or no transport for it.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::ENODEV)
    )
}

/// Asks for the guest's transport; it brings the core with it. Fails quietly: the module may be
/// built in, and whether the device is there is looked at afterwards.
async fn load_module() {
    let mut modprobe = Command::new("modprobe");
    modprobe
        .args(["-b", TRANSPORT])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let work = move || modprobe.status();
    let status = bounded::within(defaults::MODULE_TIMEOUT, "modprobe", work).await;
    tracing::debug!(?status, module = TRANSPORT, "modprobe");
}

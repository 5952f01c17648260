//! An AF_VSOCK listener with the options that matter.
//!
//! `tokio-vsock` makes its own sockets, with a backlog of 128 and no way to set a buffer size, so
//! the socket is made here and handed to it; its stream and its accept are sound and do the rest.

use std::{
    fs, io,
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

use crate::defaults;

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

/// The device that appears with the kernel's vsock core.
const DEVICE: &str = "/dev/vsock";

/// Binds and listens.
///
/// # Errors
///
/// What the kernel says; `EAFNOSUPPORT` or `ENODEV` without the modules.
pub(super) fn listen(address: VsockAddress) -> io::Result<VsockListener> {
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

/// Waits until the kernel knows AF_VSOCK, loading the module if that helps.
///
/// # Errors
///
/// The last failure, when [`defaults::BIND_TIMEOUT`] has passed.
pub(crate) async fn wait_for_device() -> io::Result<()> {
    if Path::new(DEVICE).exists() {
        return Ok(());
    }
    load_module();
    let deadline = Instant::now() + defaults::BIND_TIMEOUT;
    loop {
        let missing = match fs::metadata(DEVICE) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(missing);
        }
        tracing::debug!(device = DEVICE, "waiting for the vsock device");
        sleep(defaults::BIND_PAUSE).await;
    }
}

/// Asks for the guest's transport; it brings the core with it. Fails quietly: the module may be
/// built in, and whether the device is there is looked at afterwards.
fn load_module() {
    let status = Command::new("modprobe")
        .args(["-b", "vmw_vsock_virtio_transport"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tracing::debug!(?status, "modprobe vmw_vsock_virtio_transport");
}

//! AF_VSOCK in a guest that is still booting: the kernel module may not be loaded yet.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::socket::Backlog;
use tokio::time::{Instant, sleep};
use tokio_vsock::VsockListener;
use vsock_agent_protocol::address::VsockAddress;
use vsock_agent_transport::vsock;

use crate::{defaults, system::bounded};

/// The module by which a guest on virtio reaches its host (`net/vmw_vsock/Makefile`).
const TRANSPORT: &str = "vmw_vsock_virtio_transport";

/// Loads the module, binds and listens. Waits for the device if it is missing.
///
/// # Errors
///
/// The errno of `bind(2)`: at once, or for a missing module after [`defaults::BIND_TIMEOUT`].
pub(super) async fn listen(address: VsockAddress, backlog: Backlog) -> io::Result<VsockListener> {
    let deadline = Instant::now() + defaults::BIND_TIMEOUT;
    // With the core alone, a socket can listen but gets no connections.
    if !Path::new("/sys/module").join(TRANSPORT).exists() {
        load_module().await;
    }
    let mut is_waiting = false;
    loop {
        let error = match vsock::listen(address, backlog) {
            Err(error) if is_missing(&error) => error,
            other => return other,
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        if !is_waiting {
            is_waiting = true;
            tracing::info!(%error, "waiting for the vsock device");
        }
        sleep(defaults::BIND_PAUSE).await;
    }
}

/// Whether the kernel has no AF_VSOCK, or no transport.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::ENODEV)
    )
}

/// Loads the guest's transport, and by it the core. Errors are not reported: the module may be built in,
/// and the caller checks for the device.
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

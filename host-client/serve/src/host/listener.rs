//! Listens on one address: AF_VSOCK for all machines that have it, or a Unix socket for one of the
//! others. Yields connections; the caller finds out whose they are.

use std::{convert::Infallible, ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use nix::{
    fcntl::AtFlags,
    sys::{socket::Backlog, stat::fstatat},
};
use tokio::{
    select,
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use vsock_agent_protocol::address::{Cid, VsockAddress};
use vsock_agent_transport::{Listener, Peer, SocketFile, Stream, listen, run_blocking_on, vsock};

use super::{limits, log_limit::LogLimit, origin::ListenAddress};

/// Listens on an address, and logs the results.
#[derive(Debug)]
struct Opener<'a> {
    address: &'a ListenAddress,
    /// The port on AF_VSOCK.
    port: u32,
    /// Why the last try failed.
    error: Option<String>,
    log: LogLimit,
}

/// Passes connections at `address`, with `port` on AF_VSOCK, to `accepted` until `stop`. A socket that
/// was removed is created again. `tried` is dropped after the first try.
pub(super) async fn run(
    address: &ListenAddress,
    port: u32,
    tried: oneshot::Sender<Infallible>,
    stop: &CancellationToken,
    accepted: impl Fn(Stream, Peer),
) {
    let mut opener = Opener {
        address,
        port,
        error: None,
        log: LogLimit::new(),
    };
    let mut tried = Some(tried);
    while !stop.is_cancelled() {
        let opened = stop.run_until_cancelled(opener.open()).await.flatten();
        drop(tried.take());
        if let Some(listener) = opened {
            let serving = accept_until_removed(&listener, &accepted);
            stop.run_until_cancelled(serving).await;
            close(listener).await;
        } else {
            let pause = sleep(limits::LISTEN_INTERVAL);
            stop.run_until_cancelled(pause).await;
        }
    }
}

impl Opener<'_> {
    /// Tries to listen. `None` after a failure, which is logged.
    async fn open(&mut self) -> Option<Listener> {
        let address = self.address;
        let opening = async {
            match address {
                ListenAddress::Vsock => {
                    let address = VsockAddress {
                        cid: Cid::ANY,
                        port: self.port,
                    };
                    let backlog = Backlog::new(limits::BACKLOG)?;
                    vsock::listen(address, backlog).map(Listener::Vsock)
                }
                ListenAddress::Unix(path) => bind(path).await,
            }
        };
        let opened = timeout(limits::OPEN_TIMEOUT, opening);
        let opened = opened.await.unwrap_or_else(|late| Err(late.into()));
        let error = opened.as_ref().err();
        self.log(error.map(|error| format!("cannot listen on {address}: {error}")));
        opened.ok()
    }

    /// Logs the result of a try if it differs from the last one.
    fn log(&mut self, error: Option<String>) {
        let (address, port) = (self.address, self.port);
        let is_new = error.is_none() || self.error != error;
        match (is_new.then(|| self.log.admit()).flatten(), &error) {
            (None, _) => debug!(%address, error, "tried to listen"),
            (Some(left_out), None) => info!(%address, port, left_out, "listening"),
            (Some(left_out), Some(error)) => warn!(error, left_out, "guests cannot connect"),
        }
        self.error = error;
    }
}

/// Accepts connections until the socket's file is removed or replaced.
async fn accept_until_removed(listener: &Listener, accepted: &impl Fn(Stream, Peer)) {
    let removed = async {
        match listener {
            Listener::Vsock(_) => std::future::pending().await,
            Listener::Unix(_, file) => {
                while let Ok(true) = check(file).await {
                    sleep(limits::LISTEN_INTERVAL).await;
                }
            }
        }
    };
    let log = LogLimit::new();
    let failed = |error: &io::Error| {
        if let Some(left_out) = log.admit() {
            warn!(%error, left_out, "cannot accept a connection");
        }
    };
    let accepting = async {
        loop {
            let (stream, peer) = listener.accept(failed).await;
            accepted(stream, peer);
        }
    };
    select! {
        () = removed => {}
        () = accepting => {}
    }
}

/// Creates a Unix socket beside the monitor's, for the guest's connections to the host. Its mode is 0600
/// and its owner is the monitor's user, who may have no privileges. Its directory may be on a FUSE file
/// system of that user, so every access to the file runs on a thread of its own.
async fn bind(path: &Path) -> io::Result<Listener> {
    let (listener, file) = listen(path, Backlog::new(limits::BACKLOG)?).await?;
    let file = Arc::new(file);
    check(&file).await?;
    Ok(Listener::Unix(listener, file))
}

/// [`is_kept`], on a thread of its own.
async fn check(file: &Arc<SocketFile>) -> io::Result<bool> {
    let own = Arc::clone(file);
    run_blocking_on(file.path(), move || is_kept(&own)).await
}

/// Closes the socket and removes its file.
async fn close(listener: Listener) {
    let Listener::Unix(listener, file) = listener else {
        return;
    };
    drop(listener);
    let path = file.path().to_owned();
    let removed = run_blocking_on(&path, move || {
        drop(file);
        Ok(())
    });
    // One try with a time limit: the file system may never answer.
    let _ = timeout(limits::FIRST_TRY_TIMEOUT, removed).await;
}

/// Whether the file is still this socket. If so, gives it the owner of the monitor's own socket.
fn is_kept(file: &SocketFile) -> io::Result<bool> {
    if !file.is_there() {
        return Ok(false);
    }
    if let Some((uid, gid)) = monitors_owner(file) {
        file.set_owner(uid, gid)?;
    }
    Ok(true)
}

/// The owner of the monitor's own socket. Its name is ours without `_` and the port.
fn monitors_owner(file: &SocketFile) -> Option<(u32, u32)> {
    let name = file.path().file_name()?.as_bytes();
    let end = name.iter().rposition(|byte| *byte == b'_')?;
    let monitor = OsStr::from_bytes(name.get(..end)?);
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    let found = fstatat(file.directory(), monitor, flags).ok()?;
    let is_socket = found.st_mode & libc::S_IFMT == libc::S_IFSOCK;
    is_socket.then_some((found.st_uid, found.st_gid))
}

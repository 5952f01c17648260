//! Listeners: one on AF_VSOCK for all machines that have it, one Unix socket for each of the others.

use std::{
    convert::Infallible,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, PoisonError},
};

use nix::{
    fcntl::AtFlags,
    sys::{socket::Backlog, stat::fstatat},
};
use tokio::{
    net::UnixListener,
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tokio_vsock::VsockListener;
use tracing::{debug, info, warn};
use vsock_agent_transport::{
    SocketFile, listen, run_blocking,
    vsock::{self, is_privileged},
};

use super::{
    HostState, limits,
    log_limit::LogLimit,
    origin::{ListenAddress, Origin},
};
use vsock_agent_protocol::address::{Cid, VsockAddress};

/// The last result of trying to listen on an address.
#[derive(Debug)]
pub(super) struct ListenLog {
    /// Why that failed.
    error: Option<String>,
    limit: LogLimit,
}

/// A bound socket.
#[derive(Debug)]
pub(super) enum Listener {
    Vsock(VsockListener),
    Unix(UnixListener, HybridSocket),
}

/// The file of a Unix socket beside the monitor's, for the guest's connections to the host. Its mode is
/// 0600 and its owner is the monitor's user, who may have no privileges. It is removed on drop. Its
/// directory may be on a FUSE file system of that user, so every access runs on a thread of its own.
#[derive(Debug, Clone)]
pub(super) struct HybridSocket(Arc<SocketFile>);

/// Accepts connections at `address` until `stop`. A socket that was removed is created again.
/// `tried` is dropped after the first try.
pub(super) async fn run(
    address: &ListenAddress,
    host: &Arc<HostState>,
    tried: oneshot::Sender<Infallible>,
    stop: &CancellationToken,
) {
    let open = || async {
        let opened = stop.run_until_cancelled(Listener::open(address, host));
        opened.await.flatten()
    };
    let mut opened = open().await;
    drop(tried);
    loop {
        if let Some(listener) = opened {
            stop.run_until_cancelled(listener.accept_until_removed(host))
                .await;
            listener.close().await;
        } else {
            stop.run_until_cancelled(sleep(limits::LISTEN_INTERVAL))
                .await;
        }
        if stop.is_cancelled() {
            return;
        }
        opened = open().await;
    }
}

/// Stores the result of a try to listen, and logs it if it differs from the last one.
fn log_result(address: &ListenAddress, host: &HostState, error: Option<String>) {
    let mut logs = host
        .listen_logs
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let log = logs.entry(address.clone()).or_insert_with(|| ListenLog {
        error: None,
        limit: LogLimit::new(),
    });
    let is_new = error.is_none() || log.error != error;
    match (is_new.then(|| log.limit.admit()).flatten(), &error) {
        (None, _) => debug!(%address, error, "tried to listen"),
        (Some(left_out), None) => info!(%address, port = host.port, left_out, "listening"),
        (Some(left_out), Some(error)) => warn!(error, left_out, "guests cannot connect"),
    }
    log.error = error;
}

impl Listener {
    /// Tries to listen. `None` after a failure, which is logged.
    async fn open(address: &ListenAddress, host: &HostState) -> Option<Self> {
        let opening = async {
            match address {
                ListenAddress::Vsock => {
                    let address = VsockAddress {
                        cid: Cid::ANY,
                        port: host.port,
                    };
                    let backlog = Backlog::new(limits::BACKLOG)?;
                    vsock::listen(address, backlog).map(Self::Vsock)
                }
                ListenAddress::Unix(path) => HybridSocket::bind(path)
                    .await
                    .map(|(listener, socket)| Self::Unix(listener, socket)),
            }
        };
        let opened = timeout(limits::OPEN_TIMEOUT, opening);
        let opened = opened.await.unwrap_or_else(|late| Err(late.into()));
        let text = opened
            .as_ref()
            .err()
            .map(|error| format!("cannot listen on {address}: {error}"));
        log_result(address, host, text);
        opened.ok()
    }

    /// Accepts connections until the socket's file is removed or replaced.
    async fn accept_until_removed(&self, host: &Arc<HostState>) {
        let removed = async {
            match self {
                Self::Vsock(_) => std::future::pending().await,
                Self::Unix(_, socket) => socket.until_removed().await,
            }
        };
        tokio::select! {
            () = removed => {}
            () = self.accept_all(host) => {}
        }
    }

    /// Removes the socket.
    async fn close(self) {
        if let Self::Unix(listener, socket) = self {
            drop(listener);
            socket.remove().await;
        }
    }

    async fn accept_all(&self, host: &Arc<HostState>) {
        let log = LogLimit::new();
        loop {
            if let Err(error) = self.accept(host).await {
                // Out of descriptors or memory: another try at once would fail too.
                if let Some(left_out) = log.admit() {
                    warn!(%error, left_out, "cannot accept a connection");
                }
                sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }

    async fn accept(&self, host: &Arc<HostState>) -> io::Result<()> {
        match self {
            Self::Vsock(listener) => {
                let (stream, peer) = listener.accept().await?;
                let is_privileged = is_privileged(peer.port());
                match host.peer(&Origin::Machine(Cid(peer.cid()))) {
                    Some(peer) => peer.admit(host, stream, is_privileged),
                    None => debug!(cid = peer.cid(), "connection from an unknown machine"),
                }
            }
            Self::Unix(listener, socket) => {
                let (stream, _) = listener.accept().await?;
                if let Some(peer) = host.peer(&Origin::Socket(socket.0.path().to_owned())) {
                    peer.admit(host, stream, false);
                }
            }
        }
        Ok(())
    }
}

impl HybridSocket {
    async fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        let (listener, file) = listen(path, Backlog::new(limits::BACKLOG)?).await?;
        let socket = Self(Arc::new(file));
        socket.check().await?;
        Ok((listener, socket))
    }

    async fn until_removed(&self) {
        while let Ok(true) = self.check().await {
            sleep(limits::LISTEN_INTERVAL).await;
        }
    }

    /// [`Self::is_kept`], on a thread of its own.
    async fn check(&self) -> io::Result<bool> {
        let own = self.clone();
        run_blocking(self.0.path(), move || own.is_kept()).await
    }

    async fn remove(self) {
        let path = self.0.path().to_owned();
        let removed = run_blocking(&path, move || {
            drop(self);
            Ok(())
        });
        // One try with a time limit: the file system may never answer.
        let _ = timeout(limits::FIRST_TRY_TIMEOUT, removed).await;
    }

    /// Whether the file is still this socket. If so, gives it the owner of the monitor's own socket.
    fn is_kept(&self) -> io::Result<bool> {
        if !self.0.is_there() {
            return Ok(false);
        }
        if let Some((uid, gid)) = self.monitors_owner() {
            self.0.set_owner(uid, gid)?;
        }
        Ok(true)
    }

    /// The owner of the monitor's own socket. Its name is ours without `_` and the port.
    fn monitors_owner(&self) -> Option<(u32, u32)> {
        let name = self.0.path().file_name()?.as_bytes();
        let end = name.iter().rposition(|byte| *byte == b'_')?;
        let monitor = OsStr::from_bytes(name.get(..end)?);
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let found = fstatat(self.0.directory(), monitor, flags).ok()?;
        let is_socket = found.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        is_socket.then_some((found.st_uid, found.st_gid))
    }
}

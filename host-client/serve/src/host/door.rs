//! Listeners: one on AF_VSOCK for all machines that have it, one Unix socket for each of the others.

use std::{
    convert::Infallible,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
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
    SocketFile, apart, listen,
    vsock::{self, is_privileged},
};

use super::{House, limits, log_limit::LogLimit, place::Origin};
use vsock_agent_protocol::address::{Cid, VsockAddress};

/// Where guests come in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Door {
    /// The port on AF_VSOCK.
    Vsock,
    /// A Unix socket.
    Unix(PathBuf),
}

/// What was said of a door.
#[derive(Debug)]
pub(super) struct DoorLog {
    /// Why nobody can listen there.
    error: Option<String>,
    limit: LogLimit,
}

/// A door that is open.
#[derive(Debug)]
pub(super) enum OpenDoor {
    Vsock(VsockListener),
    Unix(UnixListener, OwnSocket),
}

/// A socket of mode 0600 beside a monitor's, for the monitor's user alone: it may have no
/// privileges. It is removed with this. What is done in its directory is done apart, because that may
/// be the user's own file system.
#[derive(Debug, Clone)]
pub(super) struct OwnSocket(Arc<SocketFile>);

impl Door {
    /// Tries to listen.
    async fn open(&self, house: &House) -> Option<OpenDoor> {
        let opening = async {
            match self {
                Self::Vsock => {
                    let address = VsockAddress {
                        cid: Cid::ANY,
                        port: house.port,
                    };
                    let backlog = Backlog::new(limits::BACKLOG)?;
                    vsock::listen(address, backlog).map(OpenDoor::Vsock)
                }
                Self::Unix(path) => OwnSocket::bind(path)
                    .await
                    .map(|(listener, own)| OpenDoor::Unix(listener, own)),
            }
        };
        let opened = timeout(limits::OPEN_TIMEOUT, opening);
        let opened = opened.await.unwrap_or_else(|late| Err(late.into()));
        let text = opened
            .as_ref()
            .err()
            .map(|error| format!("cannot listen on {self}: {error}"));
        self.tell(house, text);
        opened.ok()
    }

    /// Keeps the outcome of the last try, and says it if it is another than before.
    fn tell(&self, house: &House, error: Option<String>) {
        let mut logs = house
            .door_logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let log = logs.entry(self.clone()).or_insert_with(|| DoorLog {
            error: None,
            limit: LogLimit::new(),
        });
        let is_new = error.is_none() || log.error != error;
        match (is_new.then(|| log.limit.admit()).flatten(), &error) {
            (None, _) => debug!(door = %self, error, "tried to listen"),
            (Some(left_out), None) => {
                info!(door = %self, port = house.port, left_out, "listening");
            }
            (Some(left_out), Some(error)) => warn!(error, left_out, "guests cannot ask"),
        }
        log.error = error;
    }

    /// Lets guests in until `stop`. A socket that was taken away is made again. `tried` is dropped when
    /// the first try is over.
    pub(super) async fn attend(
        &self,
        house: &Arc<House>,
        tried: oneshot::Sender<Infallible>,
        stop: &CancellationToken,
    ) {
        let mut open = stop.run_until_cancelled(self.open(house)).await.flatten();
        drop(tried);
        loop {
            if let Some(door) = open {
                stop.run_until_cancelled(door.attend(house)).await;
                door.close().await;
            } else {
                stop.run_until_cancelled(sleep(limits::DOOR_INTERVAL)).await;
            }
            if stop.is_cancelled() {
                return;
            }
            open = stop.run_until_cancelled(self.open(house)).await.flatten();
        }
    }
}

impl std::fmt::Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vsock => f.write_str("vsock"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl OpenDoor {
    /// Accepts until the socket's file is no longer ours.
    async fn attend(&self, house: &Arc<House>) {
        let gone = async {
            match self {
                Self::Vsock(_) => std::future::pending().await,
                Self::Unix(_, own) => own.until_gone().await,
            }
        };
        tokio::select! {
            () = gone => {}
            () = self.accept_all(house) => {}
        }
    }

    /// Removes the socket.
    async fn close(self) {
        if let Self::Unix(listener, own) = self {
            drop(listener);
            own.remove().await;
        }
    }

    async fn accept_all(&self, house: &Arc<House>) {
        let log = LogLimit::new();
        loop {
            if let Err(error) = self.accept(house).await {
                // Out of descriptors or memory: the next try would fail as fast.
                if let Some(left_out) = log.admit() {
                    warn!(%error, left_out, "cannot accept a connection");
                }
                sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }

    async fn accept(&self, house: &Arc<House>) -> io::Result<()> {
        match self {
            Self::Vsock(listener) => {
                let (stream, peer) = listener.accept().await?;
                let is_privileged = is_privileged(peer.port());
                match house.place(&Origin::Machine(Cid(peer.cid()))) {
                    Some(place) => place.admit(house, stream, is_privileged),
                    None => debug!(cid = peer.cid(), "a machine that is not known"),
                }
            }
            Self::Unix(listener, own) => {
                let (stream, _) = listener.accept().await?;
                if let Some(place) = house.place(&Origin::Socket(own.0.path().to_owned())) {
                    place.admit(house, stream, false);
                }
            }
        }
        Ok(())
    }
}

impl OwnSocket {
    async fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        let (listener, file) = listen(path, Backlog::new(limits::BACKLOG)?).await?;
        let own = Self(Arc::new(file));
        own.look().await?;
        Ok((listener, own))
    }

    async fn until_gone(&self) {
        while let Ok(true) = self.look().await {
            sleep(limits::DOOR_INTERVAL).await;
        }
    }

    async fn look(&self) -> io::Result<bool> {
        let own = self.clone();
        apart(self.0.path(), move || own.is_kept()).await
    }

    async fn remove(self) {
        let path = self.0.path().to_owned();
        let removed = apart(&path, move || {
            drop(self);
            Ok(())
        });
        // It is tried once: nobody is kept waiting by somebody else's file system.
        let _ = timeout(limits::FIRST_TRY_TIMEOUT, removed).await;
    }

    /// Whether the socket is still where it was. If so, it belongs to whom the monitor's own socket
    /// belongs to from now on.
    fn is_kept(&self) -> io::Result<bool> {
        if !self.0.is_there() {
            return Ok(false);
        }
        if let Some((uid, gid)) = self.monitors_owner() {
            self.0.give_to(uid, gid)?;
        }
        Ok(true)
    }

    /// The owner of the socket by which the monitor reaches its guest: ours has its name, `_` and
    /// the port.
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

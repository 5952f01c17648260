//! Listeners: one on AF_VSOCK for all machines that have it, one Unix socket for each of the others.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tokio_vsock::{VsockAddr, VsockListener};
use tracing::{debug, info, warn};

use super::{House, limits, place::Origin};
use crate::{MAX_SOCKET_PATH_BYTES, protocol::address::Cid};

/// Where guests come in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Door {
    /// The port on AF_VSOCK.
    Vsock,
    /// A Unix socket.
    Unix(PathBuf),
}

/// A door that is open.
#[derive(Debug)]
pub(super) enum OpenDoor {
    Vsock(VsockListener),
    Unix(UnixListener, OwnSocket),
}

/// The file of a socket. It is removed with this, if it is still the same.
#[derive(Debug)]
pub(super) struct OwnSocket {
    path: PathBuf,
    id: (u64, u64),
}

impl Door {
    /// Tries to listen.
    pub(super) async fn open(&self, house: &House) -> Option<OpenDoor> {
        let opened = match self {
            Self::Vsock => {
                VsockListener::bind(VsockAddr::new(Cid::ANY.0, house.port)).map(OpenDoor::Vsock)
            }
            Self::Unix(path) => bind(path)
                .await
                .map(|(listener, own)| OpenDoor::Unix(listener, own)),
        };
        let text = opened
            .as_ref()
            .err()
            .map(|error| format!("cannot listen on {self}: {error}"));
        self.tell(house, text);
        opened.ok()
    }

    /// Keeps the outcome of the last try, and says it if it is another than before.
    fn tell(&self, house: &House, error: Option<String>) {
        let before = {
            let mut errors = house
                .door_errors
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match error.clone() {
                Some(error) => errors.insert(self.clone(), error),
                None => errors.remove(self),
            }
        };
        match &error {
            None => info!(door = %self, port = house.port, "listening"),
            Some(error) if before.as_ref() != Some(error) => warn!(error, "guests cannot ask"),
            Some(error) => debug!(error, "guests cannot ask"),
        }
    }

    /// Lets guests in until the end. A socket that was taken away is made again.
    pub(super) async fn attend(
        &self,
        house: &Arc<House>,
        first: Option<OpenDoor>,
        stop: &CancellationToken,
    ) {
        let mut open = first;
        loop {
            let Some(door) = open.take() else {
                tokio::select! {
                    () = sleep(limits::DOOR_INTERVAL) => {}
                    () = stop.cancelled() => return,
                }
                open = self.open(house).await;
                continue;
            };
            tokio::select! {
                () = door.accept_all(house) => debug!(door = %self, "the socket is gone"),
                () = stop.cancelled() => return,
            }
            drop(door);
            open = self.open(house).await;
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
    async fn accept_all(&self, house: &Arc<House>) {
        let mut look = interval(limits::DOOR_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(house) => accepted,
                _ = look.tick() => match self {
                    Self::Unix(_, own) if !own.is_there() => return,
                    _ => continue,
                },
            };
            if let Err(error) = accepted {
                // Out of descriptors or memory: the next try would fail as fast.
                warn!(%error, "cannot accept a connection");
                sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }

    async fn accept(&self, house: &Arc<House>) -> io::Result<()> {
        match self {
            Self::Vsock(listener) => {
                let (stream, peer) = listener.accept().await?;
                match house.place(&Origin::Machine(Cid(peer.cid()))) {
                    Some(place) => place.admit(house, stream),
                    None => debug!(cid = peer.cid(), "a machine that is not known"),
                }
            }
            Self::Unix(listener, own) => {
                let (stream, _) = listener.accept().await?;
                if let Some(place) = house.place(&Origin::Socket(own.path.clone())) {
                    place.admit(house, stream);
                }
            }
        }
        Ok(())
    }
}

/// Listens on a Unix socket of mode 0600. It belongs to whom the monitor's own socket belongs to, so
/// that a monitor without privileges can open it.
///
/// The socket is made under another name and renamed: nobody ever sees it with another mode, and one
/// that a crash left behind is replaced.
async fn bind(path: &Path) -> io::Result<(UnixListener, OwnSocket)> {
    refuse_to_take_over(path).await?;
    let mut name = path.as_os_str().to_owned();
    name.push("~");
    if name.len() > MAX_SOCKET_PATH_BYTES {
        let text = format!(
            "the path is longer than {} bytes",
            MAX_SOCKET_PATH_BYTES - 1
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let unfinished = PathBuf::from(name);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unfinished)?;
    let finish = || {
        fs::set_permissions(&unfinished, PermissionsExt::from_mode(0o600))?;
        let own = fs::symlink_metadata(&unfinished)?;
        if let Some(monitor) = monitors_socket(path)
            && (monitor.uid(), monitor.gid()) != (own.uid(), own.gid())
        {
            chown(&unfinished, Some(monitor.uid()), Some(monitor.gid()))?;
        }
        fs::rename(&unfinished, path)?;
        Ok((own.dev(), own.ino()))
    };
    let id = finish().inspect_err(|_: &io::Error| {
        let _ = fs::remove_file(&unfinished);
    })?;
    let path = path.to_owned();
    Ok((listener, OwnSocket { path, id }))
}

/// The socket by which the monitor reaches its guest: ours has its name, `_` and the port.
fn monitors_socket(path: &Path) -> Option<fs::Metadata> {
    let name = path.to_str()?;
    let (monitor, _) = name.rsplit_once('_')?;
    fs::metadata(monitor)
        .ok()
        .filter(|metadata| metadata.file_type().is_socket())
}

/// Only a dead socket is replaced.
async fn refuse_to_take_over(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let is_socket = metadata.file_type().is_socket();
    match is_socket && UnixStream::connect(path).await.is_err() {
        true => Ok(()),
        false => Err(io::ErrorKind::AddrInUse.into()),
    }
}

impl OwnSocket {
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id)
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

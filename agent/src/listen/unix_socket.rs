//! A listening Unix socket that belongs to root alone from its first moment.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen as nix_listen, socket,
    },
    stat::{Mode, fchmod},
};
use tokio::net::{UnixListener, UnixStream};

use crate::defaults;

/// Mode of a Unix socket: whoever can connect is root in the guest, or sees what root sees.
const SOCKET_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Binds and listens. The file goes when what is returned with the listener does.
///
/// # Errors
///
/// What the kernel says, `AddrInUse` also when the path is taken by something that is not a dead
/// socket.
pub(super) async fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    remove_dead_socket(path).await?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the socket's mode (`unix_bind_bsd` in Linux's `net/unix/af_unix.c`), so there
    // is no moment in which others could connect.
    fchmod(socket.as_fd(), SOCKET_MODE)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let file = SocketFile(path.to_owned());
    let backlog = Backlog::new(defaults::BACKLOG).unwrap_or(Backlog::MAXALLOWABLE);
    nix_listen(&socket, backlog)?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

/// Makes room for a socket: a file that nobody answers on is left over from a crash.
async fn remove_dead_socket(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// Removes the socket's file when the listener goes.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the next start removes a dead socket itself.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_file_is_roots_alone_and_goes_with_the_listener() {
        let path = std::env::temp_dir().join(format!("agent-unix-{}", std::process::id()));
        let (listener, file) = listen(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop((listener, file));
        assert!(!path.exists());
    }
}

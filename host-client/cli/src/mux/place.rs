//! Where the socket is: in a directory that only this user can enter.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::{
        socket::{Backlog, getsockopt, sockopt::PeerCredentials},
        stat::{Mode, fstat, mkdirat},
    },
    unistd::geteuid,
};
use tokio::net::UnixListener;
use vsock_agent_transport::{Missing, SocketFile, connect_in, is_our_own, listen, open_directory};

/// The directory in `XDG_RUNTIME_DIR`.
const DIRECTORY: &str = "agent-cli";

/// The socket in it.
const SOCKET: &str = "mux.sock";

/// Calls that wait to be accepted.
const BACKLOG: i32 = 128;

/// The place of the socket.
#[derive(Debug)]
pub(super) struct Place {
    /// `XDG_RUNTIME_DIR`.
    runtime: PathBuf,
}

impl Place {
    /// The place of this user.
    ///
    /// # Errors
    ///
    /// Without `XDG_RUNTIME_DIR` there is none.
    pub(super) fn new() -> anyhow::Result<Self> {
        Self::find().context(
            "XDG_RUNTIME_DIR is not set: the socket has to be in a directory that only this user can \
             enter, as a login makes it with systemd (pam_systemd(8))",
        )
    }

    /// The same; `None` if there is none.
    pub(super) fn find() -> Option<Self> {
        // Relative paths are ignored (XDG Base Directory Specification).
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)?;
        runtime.is_absolute().then_some(Self { runtime })
    }

    /// The directory of the environment.
    pub(super) fn runtime(&self) -> &Path {
        &self.runtime
    }

    fn path(&self) -> PathBuf {
        self.runtime.join(DIRECTORY).join(SOCKET)
    }

    /// What is wrong, for an error.
    pub(super) fn unusable(&self) -> String {
        format!("{} cannot be used", self.path().display())
    }

    /// Connects to the process; `None` if there is none.
    ///
    /// # Errors
    ///
    /// That the directory or the process is not this user's, and those of `connect(2)`.
    pub(super) fn connect(&self) -> io::Result<Option<UnixStream>> {
        let connected = self
            .directory()
            .and_then(|directory| connect_in(&directory, OsStr::new(SOCKET)));
        let socket = match connected {
            Ok(socket) => socket,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        check_user(getsockopt(&socket, PeerCredentials)?.uid())?;
        socket.set_nonblocking(false)?;
        Ok(Some(socket))
    }

    /// Creates the socket, and the directory.
    ///
    /// # Errors
    ///
    /// That the directory is not this user's, that another process listens, and those of `bind(2)`.
    pub(super) async fn listen(&self) -> anyhow::Result<(UnixListener, SocketFile)> {
        let made = self.make();
        made.with_context(|| format!("cannot make {DIRECTORY} in {}", self.runtime.display()))?;
        if !is_our_own(&self.runtime) {
            bail!("{} can be changed by other users", self.runtime.display());
        }
        let (listener, file) = listen(&self.path(), Backlog::new(BACKLOG)?).await?;
        check_directory(file.directory()).with_context(|| self.unusable())?;
        Ok((listener, file))
    }

    fn make(&self) -> io::Result<()> {
        let runtime = self.open_runtime()?;
        match mkdirat(&runtime, DIRECTORY, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(self.open_runtime()?, DIRECTORY, flags, Mode::empty())?;
        check_directory(&directory)?;
        Ok(directory)
    }

    fn open_runtime(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open("/", flags, Mode::empty())?;
        open_directory(root, &self.runtime, Missing::Refuse)
    }
}

/// Whether there is no socket, or no process that listens on it.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn check_directory(directory: impl AsFd) -> io::Result<()> {
    let stat = fstat(directory)?;
    check_user(stat.st_uid)?;
    if stat.st_mode & 0o077 == 0 {
        return Ok(());
    }
    let text = "other users have permissions for its directory";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Checks that a file or process is of this process's user.
pub(super) fn check_user(uid: u32) -> io::Result<()> {
    if uid == geteuid().as_raw() {
        return Ok(());
    }
    let text = format!("it is of user {uid}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

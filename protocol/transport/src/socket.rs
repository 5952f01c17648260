//! Unix sockets: listening, and connecting to one.

use std::{
    ffi::{OsStr, OsString},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind,
            connect as start_connecting, listen as start_listening, socket,
        },
        stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat},
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, linkat, unlinkat},
};
use tokio::net::{UnixListener, UnixStream};

use crate::{
    directory::{Missing, kind, open_directory, open_entry, open_name, system_root},
    run_blocking_on,
};

/// Mode of a socket that [`listen`] creates: for its owner alone.
pub const MODE: u32 = 0o600;

/// The socket's name until it listens, in a directory that only this process's user can enter.
const UNFINISHED: &str = "socket";

/// Most names that are tried for that directory.
const MAX_TRIES: usize = 8;

/// Device and inode number. They are unique as long as the file is open.
type Inode = (u64, u64);

/// The file of a listening socket. Dropping it removes the file, if that is still this one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    file: OwnedFd,
    inode: Inode,
}

/// Creates a Unix socket of mode [`MODE`] and listens on it, with a queue of `backlog` connections. It
/// has no time limit of its own.
///
/// The path's directory is opened by the rules of [`open_directory`](crate::open_directory). The
/// socket is created in a subdirectory that only this process's user can enter, and linked to its name
/// when it listens, so no other process sees it before. A stale socket, which no process listens on,
/// is replaced.
///
/// # Errors
///
/// [`AddrInUse`](io::ErrorKind::AddrInUse) if the name exists and is not a stale socket; a socket with
/// a full queue is not stale. Otherwise those of `bind(2)`, `listen(2)`, `mkdir(2)` and `link(2)`, and
/// those of [`open_directory`](crate::open_directory).
pub async fn listen(path: &Path, backlog: Backlog) -> io::Result<(UnixListener, SocketFile)> {
    let own = path.to_owned();
    let (listener, file) = run_blocking_on(path, move || listen_now(&own, backlog)).await?;
    Ok((UnixListener::from_std(listener)?, file))
}

/// The same on this thread, for a process that listens where the file system is its own, and before
/// it does anything else.
///
/// # Errors
///
/// Those of [`listen`].
pub fn listen_blocking(path: &Path, backlog: Backlog) -> io::Result<(UnixListener, SocketFile)> {
    let (listener, file) = listen_now(path, backlog)?;
    Ok((UnixListener::from_std(listener)?, file))
}

fn listen_now(path: &Path, backlog: Backlog) -> io::Result<(net::UnixListener, SocketFile)> {
    // Fails for a path that is too long for a client's `sockaddr_un`.
    UnixAddr::new(path)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = parent(path)?;
    let stale = find_stale(&directory, name)?;
    let unfinished = Unfinished::new(&directory)?;
    let listener = unfinished.listen(backlog)?;
    let file = open_name(&unfinished.own, UNFINISHED.as_ref(), OFlag::empty())?;
    let inode = inode(&file)?;
    if let Some(stale) = stale {
        remove(&directory, name, stale)?;
    }
    unfinished.link(name)?;
    drop(unfinished);
    let file = SocketFile {
        path: path.to_owned(),
        name: name.to_owned(),
        directory,
        file,
        inode,
    };
    Ok((listener, file))
}

/// Connects to a Unix socket. Its path is looked up by the rules of
/// [`open_directory`](crate::open_directory). It has no time limit of its own.
///
/// # Errors
///
/// Those of `connect(2)` (`EAGAIN` if the listener's queue is full), and those of [`open_directory`](crate::open_directory).
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let own = path.to_owned();
    let connected = run_blocking_on(path, move || {
        connect_now(&open_entry(system_root()?, &std::path::absolute(own)?)?)
    });
    UnixStream::from_std(connected.await?)
}

/// Connects to the socket `name` of an open directory, on this thread: for a program with nothing else to do,
/// and a directory that is its own. A link is not followed.
///
/// # Errors
///
/// Those of `connect(2)` (`EAGAIN` if the listener's queue is full).
pub fn connect_in(directory: impl AsFd, name: &OsStr) -> io::Result<net::UnixStream> {
    connect_now(&open_name(directory, name, OFlag::empty())?)
}

/// Connects to the socket whose file is `entry`. It does not wait while the listener's queue is full:
/// it fails with `EAGAIN`.
fn connect_now(entry: &OwnedFd) -> io::Result<net::UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    start_connecting(socket.as_raw_fd(), &UnixAddr::new(&name_of(entry))?)?;
    Ok(socket.into())
}

impl SocketFile {
    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the socket.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Whether its path still leads to this socket.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let directory = parent(&self.path);
        directory.is_ok_and(|directory| inode_of(&directory, &self.name) == Some(self.inode))
    }

    /// Changes the owner and group of the file, if they differ.
    ///
    /// # Errors
    ///
    /// Those of `fstat(2)` and `fchownat(2)`.
    pub fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        let stat = fstat(&self.file)?;
        if (stat.st_uid, stat.st_gid) == (uid, gid) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchownat(&self.file, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A failure cannot be reported here, and the next start replaces a stale socket.
        let _ = remove(&self.directory, &self.name, self.inode);
    }
}

/// The directory of a socket until it listens.
struct Unfinished<'a> {
    directory: &'a OwnedFd,
    name: OsString,
    /// The subdirectory of `directory` that only this process's user can enter.
    own: OwnedFd,
}

impl<'a> Unfinished<'a> {
    fn new(directory: &'a OwnedFd) -> io::Result<Self> {
        for _ in 0..MAX_TRIES {
            // A new `RandomState` has random keys.
            let number = RandomState::new().build_hasher().finish();
            let name = OsString::from(format!(".vsock-agent-{number:016x}"));
            match mkdirat(directory, name.as_os_str(), Mode::S_IRWXU) {
                Ok(()) => {}
                Err(Errno::EEXIST) => continue,
                Err(error) => return Err(error.into()),
            }
            let own = open_name(directory, &name, OFlag::O_DIRECTORY)?;
            let stat = fstat(&own)?;
            let is_ours = stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0;
            if is_ours {
                return Ok(Self {
                    directory,
                    name,
                    own,
                });
            }
        }
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn listen(&self, backlog: Backlog) -> io::Result<net::UnixListener> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // The file gets the socket's mode (`unix_bind_bsd` in Linux's `net/unix/af_unix.c`).
        fchmod(&socket, Mode::from_bits_truncate(MODE))?;
        let address = UnixAddr::new(&name_of(&self.own).join(UNFINISHED))?;
        bind(socket.as_raw_fd(), &address)?;
        start_listening(&socket, backlog)?;
        Ok(socket.into())
    }

    /// Links the socket to its name, unless that exists.
    fn link(&self, name: &OsStr) -> io::Result<()> {
        let flags = AtFlags::empty();
        match linkat(&self.own, UNFINISHED, self.directory, name, flags) {
            Err(Errno::EEXIST) => Err(io::ErrorKind::AddrInUse.into()),
            other => Ok(other?),
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(&self.own, UNFINISHED, UnlinkatFlags::NoRemoveDir);
        let _ = unlinkat(self.directory, &*self.name, UnlinkatFlags::RemoveDir);
    }
}

/// The directory of a path.
fn parent(path: &Path) -> io::Result<OwnedFd> {
    let path = std::path::absolute(path)?;
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    open_directory(system_root()?, directory, Missing::Refuse)
}

/// The stale socket of that name; `None` if the name does not exist.
///
/// # Errors
///
/// [`AddrInUse`](io::ErrorKind::AddrInUse) if the name is anything else.
fn find_stale(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<Inode>> {
    let entry = match open_name(directory, name, OFlag::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other?,
    };
    let is_socket = kind(&fstat(&entry)?) == SFlag::S_IFSOCK;
    let is_stale = is_socket
        && connect_now(&entry).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_stale {
        inode(&entry).map(Some)
    } else {
        Err(io::ErrorKind::AddrInUse.into())
    }
}

/// Removes a name, if it is still that of `expected`.
fn remove(directory: &OwnedFd, name: &OsStr, expected: Inode) -> io::Result<()> {
    if inode_of(directory, name) == Some(expected) {
        unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

/// A path that leads to the open file, even if its name was changed (`proc_pid_fd(5)`).
fn name_of(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn inode(file: &OwnedFd) -> io::Result<Inode> {
    let stat = fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn inode_of(directory: &OwnedFd, name: &OsStr) -> Option<Inode> {
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{
            fs::{MetadataExt, PermissionsExt, symlink},
            net::{UnixListener as BlockingListener, UnixStream as BlockingStream},
        },
    };

    use super::*;

    const BACKLOG: Backlog = Backlog::MAXCONN;

    /// A folder that is removed in `Drop`.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("transport-socket-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<OsString> {
            let entries = fs::read_dir(&self.0).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_socket_has_mode_0600_and_is_removed_on_drop() {
        let folder = Folder::new("goes");
        let path = folder.0.join("s");
        let (listener, file) = listen(&path, BACKLOG).await.unwrap();
        assert_eq!(folder.names(), ["s"]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        assert!(file.is_there());
        let client = connect(&path);
        let (client, accepted) = tokio::join!(client, listener.accept());
        client.unwrap();
        accepted.unwrap();
        drop(file);
        assert_eq!(folder.names().len(), 0);
    }

    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let folder = Folder::new("dead");
        let path = folder.0.join("s");
        drop(BlockingListener::bind(&path).unwrap());
        let first = listen(&path, BACKLOG).await.unwrap();
        let in_use = async || listen(&path, BACKLOG).await.unwrap_err().kind();
        assert_eq!(in_use().await, io::ErrorKind::AddrInUse);
        drop(first);
        fs::write(&path, "").unwrap();
        assert_eq!(in_use().await, io::ErrorKind::AddrInUse);
        fs::remove_file(&path).unwrap();
        symlink("/nowhere", &path).unwrap();
        assert_eq!(in_use().await, io::ErrorKind::AddrInUse);
        assert_eq!(folder.names(), ["s"]);
    }

    #[tokio::test]
    async fn a_socket_with_a_full_queue_is_not_stale() {
        let folder = Folder::new("full");
        let path = folder.0.join("s");
        let (listener, _file) = listen(&path, Backlog::new(0).unwrap()).await.unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(Errno::EAGAIN as i32));
        let error = listen(&path, BACKLOG).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
    }

    #[tokio::test]
    async fn a_socket_file_that_was_replaced_is_not_removed() {
        let folder = Folder::new("replaced");
        let path = folder.0.join("s");
        let (_listener, file) = listen(&path, BACKLOG).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _other = BlockingListener::bind(&path).unwrap();
        assert!(!file.is_there());
        drop(file);
        BlockingStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_socket_is_not_there_after_its_directory_was_replaced() {
        let folder = Folder::new("moved");
        let (inner, aside) = (folder.0.join("inner"), folder.0.join("aside"));
        fs::create_dir(&inner).unwrap();
        let (_listener, file) = listen(&inner.join("s"), BACKLOG).await.unwrap();
        fs::rename(&inner, &aside).unwrap();
        fs::create_dir(&inner).unwrap();
        assert!(!file.is_there());
        drop(file);
        assert!(!aside.join("s").exists());
    }

    #[tokio::test]
    async fn the_owner_is_set_through_the_descriptor() {
        assert!(geteuid().is_root(), "only root can give files away");
        let folder = Folder::new("given");
        let path = folder.0.join("s");
        let (_listener, file) = listen(&path, BACKLOG).await.unwrap();
        let aside = folder.0.join("aside");
        fs::rename(&path, &aside).unwrap();
        fs::write(&path, "of somebody else").unwrap();
        file.set_owner(65_534, 65_533).unwrap();
        let owner = |path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!(owner(&aside), (65_534, 65_533));
        assert_eq!(owner(&path), (0, 0));
    }
}

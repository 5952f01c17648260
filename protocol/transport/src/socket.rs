//! Unix sockets that listen, and those that are listened on.

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
    apart,
    directory::{Missing, kind, open_directory, open_entry, open_name, system_root},
};

/// Mode of a socket that [`listen`] makes: its owner's alone.
pub const MODE: u32 = 0o600;

/// The socket's name while it is not finished, in a directory that only we can enter.
const UNFINISHED: &str = "socket";

/// Names that are tried for that directory.
const MAX_TRIES: usize = 8;

/// Where an inode is, and which it is. As long as it is open no other has the same.
type Inode = (u64, u64);

/// The file of a socket that listens. Dropping it removes the file, if it is still this one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    file: OwnedFd,
    inode: Inode,
}

/// Makes a Unix socket of mode [`MODE`] and listens on it, with at most `backlog` connections that
/// wait. It takes as long as the file system does.
///
/// The path's directory is opened by the rules of [`open_directory`](crate::open_directory). The
/// socket is made in a directory in there that only this process's user can enter, and gets its name
/// when it listens, so nobody sees it half made. A socket that nobody listens on any more gives way
/// to it.
///
/// # Errors
///
/// [`AddrInUse`](io::ErrorKind::AddrInUse) when something has the name that is not a dead socket; a
/// socket that has too many connections waiting is alive. Else what the kernel says, and the errors
/// of [`open_directory`](crate::open_directory).
pub async fn listen(path: &Path, backlog: Backlog) -> io::Result<(UnixListener, SocketFile)> {
    let own = path.to_owned();
    let (listener, file) = apart(path, move || listen_now(&own, backlog)).await?;
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
    // No client could connect to a path that is too long for `sockaddr_un`.
    UnixAddr::new(path)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = parent(path)?;
    let dead = find_dead(&directory, name)?;
    let unfinished = Unfinished::new(&directory)?;
    let listener = unfinished.listen(backlog)?;
    let file = open_name(&unfinished.own, UNFINISHED.as_ref(), OFlag::empty())?;
    let inode = inode(&file)?;
    if let Some(dead) = dead {
        remove(&directory, name, dead)?;
    }
    unfinished.place(name)?;
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
/// [`open_directory`](crate::open_directory). It takes as long as the file system does.
///
/// # Errors
///
/// What `connect(2)` says, and the errors of [`open_entry`](crate::open_entry).
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let own = path.to_owned();
    let connected = apart(path, move || {
        connect_now(&open_entry(system_root()?, &std::path::absolute(own)?)?)
    });
    UnixStream::from_std(connected.await?)
}

/// Connects to a socket that is open. It does not wait for a place in the listener's queue: `EAGAIN`
/// says that there is none.
fn connect_now(entry: &OwnedFd) -> io::Result<net::UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    start_connecting(socket.as_raw_fd(), &UnixAddr::new(&name_of(entry))?)?;
    Ok(socket.into())
}

impl SocketFile {
    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that it is in.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Whether the socket is what its path leads to.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let directory = parent(&self.path);
        directory.is_ok_and(|directory| inode_of(&directory, &self.name) == Some(self.inode))
    }

    /// Gives the socket to a user and a group, if it is not theirs.
    ///
    /// # Errors
    ///
    /// What `fchownat(2)` says.
    pub fn give_to(&self, uid: u32, gid: u32) -> io::Result<()> {
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
        // A failure cannot be told to anybody, and the next start removes a dead socket itself.
        let _ = remove(&self.directory, &self.name, self.inode);
    }
}

/// The directory of a socket while it is made.
struct Unfinished<'a> {
    directory: &'a OwnedFd,
    name: OsString,
    /// The directory in `directory`, which only we can enter.
    own: OwnedFd,
}

impl<'a> Unfinished<'a> {
    fn new(directory: &'a OwnedFd) -> io::Result<Self> {
        for _ in 0..MAX_TRIES {
            // A fresh `RandomState` is seeded at random.
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

    /// Gives the socket its name, unless somebody has it.
    fn place(&self, name: &OsStr) -> io::Result<()> {
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

/// The socket of that name, if nobody listens on it; `None` if nothing has the name.
fn find_dead(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<Inode>> {
    let entry = match open_name(directory, name, OFlag::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other?,
    };
    let is_socket = kind(&fstat(&entry)?) == SFlag::S_IFSOCK;
    let is_dead = is_socket
        && connect_now(&entry).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_dead {
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

/// A name that leads to the open file, whatever has become of its own (`proc_pid_fd(5)`).
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
    async fn a_socket_is_its_owners_alone_and_goes_with_its_listener() {
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
    async fn a_dead_socket_gives_way_and_nothing_else_does() {
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
    async fn a_socket_with_too_many_connections_waiting_is_alive() {
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
    async fn a_socket_that_another_has_replaced_is_left_to_him() {
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
    async fn a_directory_that_was_replaced_has_the_socket_no_more() {
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
    async fn a_socket_is_given_to_somebody_else_by_its_descriptor() {
        assert!(geteuid().is_root(), "only root can give files away");
        let folder = Folder::new("given");
        let path = folder.0.join("s");
        let (_listener, file) = listen(&path, BACKLOG).await.unwrap();
        let aside = folder.0.join("aside");
        fs::rename(&path, &aside).unwrap();
        fs::write(&path, "of somebody else").unwrap();
        file.give_to(65_534, 65_533).unwrap();
        let owner = |path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!(owner(&aside), (65_534, 65_533));
        assert_eq!(owner(&path), (0, 0));
    }
}

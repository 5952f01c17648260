//! Each request of draft-02, done to real files. Blocking; a session calls it from several threads.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, readlinkat, renameat, renameat2},
    libc,
    poll::{PollFd, PollFlags, poll},
    sys::stat::{FileStat, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};
use std::os::unix::ffi::OsStringExt;
use vsock_agent_protocol::sftp::{
    Attributes, DataRequest, MAX_DATA_BYTES, Reply, Request, open_flags,
};

use super::{
    SftpError,
    attributes::{self, mode},
    extension::Extension,
    handles::{Kind, Open},
    listing::{self, Listing},
    ok,
    part::OpenedFile,
    realpath::real_path,
    request::{Bound, Wanted},
    session::Desk,
    tree::{Spot, Tree},
};

/// Mode of a file nobody gave one, before the creation mask.
const DEFAULT_FILE_MODE: u32 = 0o666;

/// Mode of a directory nobody gave one, before the creation mask.
const DEFAULT_DIRECTORY_MODE: u32 = 0o777;

/// How long a write to a pipe waits before it looks whether its session has ended.
const WAIT_MILLISECONDS: u8 = 100;

/// What a session may reach, and how.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) tree: Tree,
    /// Whether everything that would change something is refused.
    pub(super) read_only: bool,
    /// Set when the session has ended: nobody waits for what takes long any more.
    pub(super) ended: AtomicBool,
}

/// What came of a request.
#[derive(Debug)]
pub(super) enum Done {
    Reply(Reply),
    /// So many bytes were read, and are on the desk.
    Data(usize),
    /// Something is open, and needs a handle.
    Opened(Open),
    /// The same for a file under a temporary name.
    OpenedPart(OpenedFile),
}

impl Files {
    /// Does what is wanted. READ leaves its data on `desk`.
    ///
    /// # Errors
    ///
    /// [`SftpError`], to be told to the client.
    pub(super) fn attempt(
        &self,
        wanted: Wanted<'_>,
        bound: Bound,
        desk: &mut Desk,
    ) -> Result<Done, SftpError> {
        match (wanted, bound) {
            (Wanted::Nonsense(error), _) => Err(error),
            (Wanted::Data(DataRequest::Read { offset, length, .. }), Bound::One(open)) => {
                desk.read(&open, offset, length).map(Done::Data)
            }
            (Wanted::Data(DataRequest::Write { offset, data, .. }), Bound::One(open)) => {
                if open.appends() {
                    append(open.file()?, data, &self.ended)?
                } else {
                    write(&open, offset, data)?
                }
                Ok(Done::Reply(ok()))
            }
            (Wanted::Plain(request), bound) => {
                if self.read_only && changes(&request) {
                    return Err(SftpError::ReadOnly);
                }
                self.attempt_plain(request, bound)
            }
            (Wanted::Extension(extension), bound) => {
                if self.read_only && extension.changes() {
                    return Err(SftpError::ReadOnly);
                }
                match extension {
                    Extension::OpenPart(part) => self.open_part(&part).map(Done::OpenedPart),
                    extension => self.attempt_extension(extension, bound).map(Done::Reply),
                }
            }
            (Wanted::Data(_), _) => Err(SftpError::UnknownHandle),
        }
    }

    fn attempt_plain(&self, request: Request, bound: Bound) -> Result<Done, SftpError> {
        let reply = match (request, bound) {
            (
                Request::Open {
                    path,
                    flags,
                    attributes,
                },
                _,
            ) => {
                return self.open(path, flags, &attributes).map(Done::Opened);
            }
            (Request::Opendir { path }, _) => {
                let listing = Listing::open(&self.tree, &path)?;
                return Ok(Done::Opened(Open {
                    kind: Kind::Directory(Mutex::new(listing)),
                    path,
                }));
            }
            // The last who uses the file closes it, which is us unless the session is ending.
            (Request::Close { .. }, Bound::One(open)) => close(open),
            (Request::Fstat { .. }, Bound::One(open)) => stat(fstat(open.file()?)),
            (Request::Fsetstat { attributes, .. }, Bound::One(open)) => {
                attributes::set(open.file()?, &attributes).map(|()| ok())
            }
            (Request::Readdir { .. }, Bound::One(open)) => readdir(&open),
            (Request::Lstat { path }, _) => {
                let spot = self.tree.look_at(&path)?;
                // What was followed is no link any more, but its descriptor's path is one.
                let flags = if spot.is_followed() {
                    AtFlags::empty()
                } else {
                    AtFlags::AT_SYMLINK_NOFOLLOW
                };
                stat(fstatat(spot.directory(), &*spot.name, flags))
            }
            (Request::Stat { path }, _) => {
                let spot = self.tree.follow(&path)?;
                stat(fstatat(spot.directory(), &*spot.name, AtFlags::empty()))
            }
            (Request::Setstat { path, attributes }, _) => {
                attributes::set(&self.tree.follow(&path)?, &attributes).map(|()| ok())
            }
            (Request::Remove { path }, _) => self.unlink(&path, UnlinkatFlags::NoRemoveDir),
            (Request::Rmdir { path }, _) => self.unlink(&path, UnlinkatFlags::RemoveDir),
            (Request::Mkdir { path, attributes }, _) => {
                let wanted = attributes.permissions.unwrap_or(DEFAULT_DIRECTORY_MODE);
                let spot = self.tree.spot(&path)?;
                done(mkdirat(spot.directory(), &*spot.name, mode(wanted)))
            }
            (Request::Realpath { path }, _) => Ok(Reply::Names {
                names: listing::only(real_path(&self.tree, &path)?),
            }),
            (Request::Rename { from, to }, _) => {
                let (from, to) = (self.tree.spot(&from)?, self.tree.spot(&to)?);
                done(rename_to_free(&from, &to))
            }
            (Request::Readlink { path }, _) => {
                let spot = self.tree.spot(&path)?;
                let target = readlinkat(spot.directory(), &*spot.name)?;
                Ok(Reply::Names {
                    names: listing::only(target.into_vec()),
                })
            }
            // What a link says is not a path of ours: it stays as it is.
            (Request::Symlink { target, link }, _) => {
                let spot = self.tree.spot(&link)?;
                done(symlinkat(&*target, spot.directory(), &*spot.name))
            }
            (Request::Init { .. }, _) => Err(SftpError::BadMessage("INIT comes once, and first")),
            _ => Err(SftpError::UnknownHandle),
        };
        reply.map(Done::Reply)
    }

    fn open(&self, path: Bytes, flags: u32, wanted: &Attributes) -> Result<Open, SftpError> {
        let has = |flag| flags & flag != 0;
        let mut bits = match (has(open_flags::READ), has(open_flags::WRITE)) {
            (true, true) => OFlag::O_RDWR,
            (false, true) => OFlag::O_WRONLY,
            (_, false) => OFlag::O_RDONLY,
        };
        bits.set(OFlag::O_APPEND, has(open_flags::APPEND));
        bits.set(OFlag::O_CREAT, has(open_flags::CREATE));
        bits.set(OFlag::O_TRUNC, has(open_flags::TRUNCATE));
        // Without CREATE, EXCLUSIVE means nothing, and the kernel would not define it either.
        let exclusive = has(open_flags::EXCLUSIVE) && has(open_flags::CREATE);
        bits.set(OFlag::O_EXCL, exclusive);
        // A FIFO without a writer, or a terminal, must not keep anybody waiting.
        bits |= OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mode = mode(wanted.permissions.unwrap_or(DEFAULT_FILE_MODE));
        let file = File::from(self.tree.open(&path, bits, mode)?);
        // What is only appended to needs no offsets.
        let appends_only = has(open_flags::APPEND) && bits.contains(OFlag::O_WRONLY);
        match fstat(&file)?.st_mode & libc::S_IFMT {
            libc::S_IFIFO if !appends_only => Err(SftpError::NoOffsets),
            libc::S_IFSOCK => Err(SftpError::NoOffsets),
            _ => Ok(Open {
                kind: Kind::File {
                    file,
                    writes: has(open_flags::WRITE),
                    appends: has(open_flags::APPEND),
                },
                path,
            }),
        }
    }

    fn unlink(&self, path: &[u8], flag: UnlinkatFlags) -> Result<Reply, SftpError> {
        let spot = self.tree.spot(path)?;
        done(unlinkat(spot.directory(), &*spot.name, flag))
    }
}

/// Whether a request would change something.
fn changes(request: &Request) -> bool {
    match request {
        Request::Open { flags, .. } => {
            let changes =
                open_flags::WRITE | open_flags::APPEND | open_flags::CREATE | open_flags::TRUNCATE;
            flags & changes != 0
        }
        Request::Setstat { .. }
        | Request::Fsetstat { .. }
        | Request::Remove { .. }
        | Request::Mkdir { .. }
        | Request::Rmdir { .. }
        | Request::Rename { .. }
        | Request::Symlink { .. } => true,
        _ => false,
    }
}

/// Reads once. Nothing asked for is nothing read, at the end of the file as well, and of what cannot
/// be read.
///
/// # Errors
///
/// [`SftpError::EndOfFile`] when there is nothing there, or what the kernel says.
pub(super) fn read(
    file: &File,
    offset: u64,
    length: u32,
    data: &mut [u8],
) -> Result<usize, SftpError> {
    if length == 0 {
        return match i64::try_from(offset) {
            Ok(_) => Ok(0),
            Err(_) => Err(Errno::EINVAL.into()),
        };
    }
    let length = usize::try_from(length.min(MAX_DATA_BYTES)).unwrap_or(0);
    let room = data.get_mut(..length).unwrap_or_default();
    loop {
        match file.read_at(room, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => return Err(SftpError::EndOfFile),
            other => return Ok(other?),
        }
    }
}

/// Writes everything.
pub(super) fn write(open: &Open, offset: u64, data: &[u8]) -> Result<(), SftpError> {
    let file = open.file()?;
    write_all(data, |data, written| {
        file.write_at(data, offset.saturating_add(written))
    })
}

/// Writes everything to the end of a file, or into a pipe or a device, which may have to wait for its
/// reader: then not longer than the session.
fn append(mut file: &File, data: &[u8], ended: &AtomicBool) -> Result<(), SftpError> {
    write_all(data, |data, _| {
        loop {
            match file.write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if ended.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut files, WAIT_MILLISECONDS) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    })
}

fn write_all(
    data: &[u8],
    mut write: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> Result<(), SftpError> {
    let mut written = 0;
    loop {
        let before = u64::try_from(written).unwrap_or(u64::MAX);
        match write(&data[written..], before) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) if written < data.len() => {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            other => written += other?,
        }
        if written == data.len() {
            return Ok(());
        }
    }
}

fn close(open: Arc<Open>) -> Result<Reply, SftpError> {
    drop(open);
    Ok(ok())
}

fn readdir(open: &Open) -> Result<Reply, SftpError> {
    match &open.kind {
        Kind::Directory(listing) => {
            // Somebody who panicked has at worst lost some names.
            let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Reply::Names {
                names: listing.next()?,
            })
        }
        Kind::File { .. } => Err(SftpError::UnknownHandle),
    }
}

/// Renames, but never over something: draft-02, section 6.5. Where the file system cannot do that
/// in one step, a second name is given first, as OpenSSH does; what cannot have two is looked at.
fn rename_to_free(from: &Spot<'_>, to: &Spot<'_>) -> nix::Result<()> {
    let (source, target) = (from.directory(), to.directory());
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(source, &*from.name, target, &*to.name, flags) {
        Err(Errno::EINVAL | Errno::ENOSYS) => {}
        other => return other,
    }
    let here = fstatat(source, &*from.name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if attributes::is_regular(&here) {
        match linkat(source, &*from.name, target, &*to.name, AtFlags::empty()) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
            Ok(()) => return unlinkat(source, &*from.name, UnlinkatFlags::NoRemoveDir),
        }
    }
    match fstatat(target, &*to.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => renameat(source, &*from.name, target, &*to.name),
        Err(errno) => Err(errno),
        Ok(_) => Err(Errno::EEXIST),
    }
}

/// The attributes, or why there are none.
fn stat(stat: nix::Result<FileStat>) -> Result<Reply, SftpError> {
    Ok(Reply::Attributes {
        attributes: attributes::from_stat(&stat?),
    })
}

/// "It worked", or why not.
pub(super) fn done(result: nix::Result<()>) -> Result<Reply, SftpError> {
    result?;
    Ok(ok())
}

//! Runs requests on files. Blocking; a session calls it from several threads.

mod extensions;
mod part;
mod whole;

use std::{
    fs::File,
    os::unix::ffi::OsStringExt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, readlinkat, renameat, renameat2},
    libc,
    sys::stat::{FileStat, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};
use vsock_agent_protocol::sftp::{Attributes, DataRequest, Reply, Request, open_flags};

use self::part::OpenedFile;
use super::{
    SftpError,
    attributes::{self, ByPath, mode},
    error::ok,
    extension::Extension,
    file_io::{append, write},
    handles::{BoundHandles, Kind, Open},
    listing::{self, Listing},
    realpath::real_path,
    reply_buffer::ReplyBuffer,
    request::ParsedRequest,
    tree::{Entry, Tree},
};

/// Mode of a file that is created without one, before the creation mask.
const DEFAULT_FILE_MODE: u32 = 0o666;

/// Mode of a directory that is created without one, before the creation mask.
const DEFAULT_DIRECTORY_MODE: u32 = 0o777;

/// The files that a session may reach.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) tree: Tree,
    /// Whether requests that change something are refused.
    pub(super) read_only: bool,
    /// Set when the session has ended: long requests stop.
    pub(super) ended: AtomicBool,
}

/// Result of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Reply(Reply),
    /// Number of bytes that were read into the [`ReplyBuffer`].
    Data(usize),
    /// A file or directory was opened, and needs a handle.
    Opened(Open),
    /// The same for a file under a temporary name.
    OpenedPart(OpenedFile),
}

impl Files {
    /// Runs a request. READ leaves its data in `buffer`.
    ///
    /// # Errors
    ///
    /// [`SftpError`], to be sent to the client.
    pub(super) fn run(
        &self,
        request: ParsedRequest<'_>,
        handles: BoundHandles,
        buffer: &mut ReplyBuffer,
    ) -> Result<Outcome, SftpError> {
        match (request, handles) {
            (ParsedRequest::Invalid(error), _) => Err(error),
            (
                ParsedRequest::Data(DataRequest::Read { offset, length, .. }),
                BoundHandles::One(open),
            ) => buffer.read(&open, offset, length).map(Outcome::Data),
            (
                ParsedRequest::Data(DataRequest::Write { offset, data, .. }),
                BoundHandles::One(open),
            ) => {
                if open.appends() {
                    append(open.file()?, data, &self.ended)?
                } else {
                    write(&open, offset, data)?
                }
                Ok(Outcome::Reply(ok()))
            }
            (ParsedRequest::Plain(request), handles) => {
                if self.read_only && changes(&request) {
                    return Err(SftpError::ReadOnly);
                }
                self.run_plain(request, handles)
            }
            (ParsedRequest::Extension(extension), handles) => {
                if self.read_only && extension.changes() {
                    return Err(SftpError::ReadOnly);
                }
                match extension {
                    Extension::OpenPart(part) => self.open_part(&part).map(Outcome::OpenedPart),
                    extension => self.run_extension(extension, handles).map(Outcome::Reply),
                }
            }
            (ParsedRequest::Data(_), _) => Err(SftpError::UnknownHandle),
        }
    }

    fn run_plain(&self, request: Request, handles: BoundHandles) -> Result<Outcome, SftpError> {
        let reply = match (request, handles) {
            (
                Request::Open {
                    path,
                    flags,
                    attributes,
                },
                _,
            ) => {
                return self.open(path, flags, &attributes).map(Outcome::Opened);
            }
            (Request::Opendir { path }, _) => {
                let listing = Listing::open(&self.tree, &path)?;
                return Ok(Outcome::Opened(Open {
                    kind: Kind::Directory(Mutex::new(listing)),
                    path,
                }));
            }
            // The last user of the file closes it: this thread, unless the session is ending.
            (Request::Close { .. }, BoundHandles::One(open)) => close(open),
            (Request::Fstat { .. }, BoundHandles::One(open)) => stat(fstat(open.file()?)),
            (Request::Fsetstat { attributes, .. }, BoundHandles::One(open)) => {
                attributes::set(open.file()?, &attributes).map(|()| ok())
            }
            (Request::Readdir { .. }, BoundHandles::One(open)) => readdir(&open),
            (Request::Lstat { path }, _) => {
                let entry = self.tree.entry_for_lstat(&path)?;
                // A followed path is no link any more, but `/proc/self/fd/N` is one.
                let flags = if entry.is_followed() {
                    AtFlags::empty()
                } else {
                    AtFlags::AT_SYMLINK_NOFOLLOW
                };
                stat(fstatat(entry.directory(), &*entry.name, flags))
            }
            (Request::Stat { path }, _) => {
                let entry = self.tree.follow(&path)?;
                stat(fstatat(entry.directory(), &*entry.name, AtFlags::empty()))
            }
            (Request::Setstat { path, attributes }, _) => {
                let file = ByPath {
                    entry: self.tree.follow(&path)?,
                    follows: true,
                };
                attributes::set(&file, &attributes).map(|()| ok())
            }
            (Request::Remove { path }, _) => self.unlink(&path, UnlinkatFlags::NoRemoveDir),
            (Request::Rmdir { path }, _) => self.unlink(&path, UnlinkatFlags::RemoveDir),
            (Request::Mkdir { path, attributes }, _) => {
                let permissions = attributes.permissions.unwrap_or(DEFAULT_DIRECTORY_MODE);
                let entry = self.tree.entry(&path)?;
                done(mkdirat(entry.directory(), &*entry.name, mode(permissions)))
            }
            (Request::Realpath { path }, _) => Ok(Reply::Names {
                names: listing::only(real_path(&self.tree, &path)?),
            }),
            (Request::Rename { from, to }, _) => {
                let (from, to) = (self.tree.entry(&from)?, self.tree.entry(&to)?);
                done(rename_to_free(&from, &to))
            }
            (Request::Readlink { path }, _) => {
                let entry = self.tree.entry(&path)?;
                let target = readlinkat(entry.directory(), &*entry.name)?;
                Ok(Reply::Names {
                    names: listing::only(target.into_vec()),
                })
            }
            // The target of a link is stored as it is, also in a session with a root.
            (Request::Symlink { target, link }, _) => {
                let entry = self.tree.entry(&link)?;
                done(symlinkat(&*target, entry.directory(), &*entry.name))
            }
            (Request::Init { .. }, _) => Err(SftpError::BadMessage("INIT comes once, and first")),
            _ => Err(SftpError::UnknownHandle),
        };
        reply.map(Outcome::Reply)
    }

    fn open(&self, path: Bytes, flags: u32, attributes: &Attributes) -> Result<Open, SftpError> {
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
        // The open must not wait for the writer of a FIFO, or for a terminal.
        bits |= OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mode = mode(attributes.permissions.unwrap_or(DEFAULT_FILE_MODE));
        let file = File::from(self.tree.open(&path, bits, mode)?);
        // Appending needs no offsets.
        let appends_only = has(open_flags::APPEND) && bits.contains(OFlag::O_WRONLY);
        match fstat(&file)?.st_mode & libc::S_IFMT {
            libc::S_IFIFO if !appends_only => Err(SftpError::NoOffsets),
            libc::S_IFSOCK => Err(SftpError::NoOffsets),
            _ => Ok(Open {
                kind: Kind::File {
                    file,
                    appends: has(open_flags::APPEND),
                },
                path,
            }),
        }
    }

    fn unlink(&self, path: &[u8], flag: UnlinkatFlags) -> Result<Reply, SftpError> {
        let entry = self.tree.entry(path)?;
        done(unlinkat(entry.directory(), &*entry.name, flag))
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

fn close(open: Arc<Open>) -> Result<Reply, SftpError> {
    drop(open);
    Ok(ok())
}

fn readdir(open: &Open) -> Result<Reply, SftpError> {
    match &open.kind {
        Kind::Directory(listing) => {
            // After a panic some names may be missing, no more.
            let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Reply::Names {
                names: listing.next()?,
            })
        }
        Kind::File { .. } => Err(SftpError::UnknownHandle),
    }
}

/// Renames, but replaces nothing: draft-02, section 6.5. Where the file system cannot do that in one
/// step, this links and unlinks, as OpenSSH does; where it has no links either, it checks first.
fn rename_to_free(from: &Entry<'_>, to: &Entry<'_>) -> nix::Result<()> {
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

/// An ATTRS reply.
fn stat(stat: nix::Result<FileStat>) -> Result<Reply, SftpError> {
    Ok(Reply::Attributes {
        attributes: attributes::from_stat(&stat?),
    })
}

/// The reply to a request without a result.
pub(super) fn done(result: nix::Result<()>) -> Result<Reply, SftpError> {
    result?;
    Ok(ok())
}

//! Files under a temporary name until they are whole: [`OPEN_PART`].
//!
//! Who writes to such a file holds a lock on it (`flock(2)`), so that of two copies to one target
//! neither takes the other's file for something that an earlier one left.
//!
//! [`OPEN_PART`]: vsock_agent_protocol::sftp::extension::OPEN_PART

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstatat},
    unistd::{Uid, UnlinkatFlags, unlinkat},
};
use vsock_agent_protocol::sftp::extension::OpenPart;

use super::{
    SftpError,
    files::Files,
    handles::{Kind, Open},
    whole::component,
};

/// Mode of a file that is not complete.
pub(super) const PART_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Rights that nobody but the owner has to a file that is continued: who could write to it while it
/// is checked could change it afterwards.
const FOREIGN_WRITE: u32 = 0o022;

/// What [`Files::open_part`] opened.
#[derive(Debug)]
pub(super) struct OpenedFile {
    pub(super) open: Open,
    /// Which of the names it has.
    pub(super) name: u32,
    /// Bytes that are in it.
    pub(super) length: u64,
}

impl Files {
    /// Opens a file under one of the names.
    ///
    /// # Errors
    ///
    /// What the kernel says; that it exists when no name is free.
    pub(super) fn open_part(&self, wanted: &OpenPart) -> Result<OpenedFile, SftpError> {
        let directory = self.directory(&wanted.directory)?;
        let remove = |name: &Bytes| unlinkat(&directory, &**name, UnlinkatFlags::NoRemoveDir);
        let mut longest: Option<(usize, File, u64)> = None;
        for (at, name) in wanted.names.iter().enumerate() {
            let Some(left) = abandoned(&directory, component(name)?)? else {
                continue;
            };
            let most = longest.as_ref().map_or(0, |(_, _, most)| *most);
            if wanted.keep && left.is_private && left.length > most {
                if let Some((shorter, ..)) = longest.replace((at, left.file, left.length)) {
                    remove(&wanted.names[shorter])?;
                }
            } else {
                remove(name)?;
            }
        }
        let (at, file, length) = match longest {
            Some(longest) => longest,
            None => create(&directory, &wanted.names)?,
        };
        Ok(OpenedFile {
            open: Open {
                kind: Kind::File {
                    file,
                    writes: true,
                    appends: false,
                },
                path: path(&wanted.directory, &wanted.names[at]),
            },
            name: u32::try_from(at).unwrap_or(u32::MAX),
            length,
        })
    }
}

/// The path of a name in a directory.
pub(super) fn path(directory: &[u8], name: &[u8]) -> Bytes {
    [directory, b"/", name].concat().into()
}

/// Creates a file under the first name that is free.
fn create(directory: &OwnedFd, names: &[Bytes]) -> Result<(usize, File, u64), SftpError> {
    for (at, name) in names.iter().enumerate() {
        match create_part(directory, component(name)?) {
            Ok(Some(file)) => return Ok((at, file, 0)),
            Ok(None) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EEXIST.into())
}

/// Creates a file, locked. `None` when another copy found it before it was locked, and has it now or
/// has removed it.
pub(super) fn create_part(directory: impl AsFd, name: &[u8]) -> nix::Result<Option<File>> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, name, flags, PART_MODE)?);
    // What is locked is removed by nobody else.
    let is_own = is_lockable(&file) && file.metadata().is_ok_and(|metadata| metadata.nlink() == 1);
    Ok(is_own.then_some(file))
}

/// Whether nobody else has the lock, which is ours then. A file system without locks has nobody who
/// asks for them either.
fn is_lockable(file: &File) -> bool {
    !matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock))
}

/// What a copy left that has ended, locked.
struct Abandoned {
    file: File,
    /// Whether it may be continued: it is open for writing, and nobody else could write to it.
    is_private: bool,
    length: u64,
}

/// Opens what a copy left that has ended, and locks it.
fn abandoned(directory: &OwnedFd, name: &[u8]) -> Result<Option<Abandoned>, SftpError> {
    let open = |access| {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        openat(directory, name, access | flags, Mode::empty()).map(File::from)
    };
    let (opened, is_writable) = match open(OFlag::O_RDWR) {
        // One that has its mode already may be for reading only.
        Err(Errno::EACCES) => (open(OFlag::O_RDONLY), false),
        opened => (opened, true),
    };
    let file = match opened {
        Ok(file) => file,
        // Not there, or nothing that a copy left.
        Err(
            Errno::ENOENT
            | Errno::ELOOP
            | Errno::EISDIR
            | Errno::ENXIO
            | Errno::EACCES
            | Errno::EPERM
            | Errno::ETXTBSY
            // Somebody has a lease on it (`F_SETLEASE`, `fcntl(2)`).
            | Errno::EAGAIN,
        ) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let metadata = file.metadata()?;
    let is_ours =
        metadata.is_file() && metadata.uid() == Uid::effective().as_raw() && metadata.nlink() == 1;
    // Who had the lock may have renamed it before giving it up.
    let is_left = is_ours && is_lockable(&file) && has_name(&file, directory, name)?;
    Ok(is_left.then_some(Abandoned {
        length: metadata.len(),
        is_private: is_writable && metadata.mode() & FOREIGN_WRITE == 0,
        file,
    }))
}

/// Whether a name still leads to an open file.
fn has_name(file: &File, directory: impl AsFd, name: &[u8]) -> Result<bool, SftpError> {
    let metadata = file.metadata()?;
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(there) => Ok((there.st_dev, there.st_ino) == (metadata.dev(), metadata.ino())),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

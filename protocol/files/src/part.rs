//! Files under a temporary name until they are complete.
//!
//! Who writes to such a file holds a lock on it (`flock(2)`). One that is not locked is *abandoned*, if
//! it is a regular file of one's own without another name: the copy that made it has ended.

use std::{
    fs::{File, TryLockError},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstatat},
    unistd::{Uid, UnlinkatFlags, setfsuid, unlinkat},
};

/// Mode of a file that is not complete.
pub const PART_MODE: u32 = 0o600;

/// Rights that nobody but the owner has to a file that is continued: who could write to it while it
/// is compared could change it afterwards.
const FOREIGN_WRITE: u32 = 0o022;

/// A file under a temporary name, open and locked.
#[derive(Debug)]
pub struct OpenPart {
    /// For reading and writing.
    pub file: File,
    /// Which of the names it has.
    pub name: usize,
    /// Bytes that are in it.
    pub length: u64,
}

/// What a copy left that has ended, locked.
struct Abandoned {
    file: File,
    /// Whether it may be continued: it is open for writing, and nobody else could write to it.
    is_private: bool,
    length: u64,
}

/// Opens a file under one of the names: with `keep` the longest that is abandoned and private, else a
/// new one under the first that is free. What else is abandoned is removed, if that can be.
///
/// # Errors
///
/// What the kernel says; `EEXIST` when no name is free.
pub fn open_part(directory: impl AsFd, names: &[&[u8]], keep: bool) -> io::Result<OpenPart> {
    let directory = directory.as_fd();
    let mut longest: Option<OpenPart> = None;
    for (at, name) in names.iter().enumerate() {
        let Some(left) = abandoned(directory, name)? else {
            continue;
        };
        let most = longest.as_ref().map_or(0, |part| part.length);
        // What is removed is locked as long. One that cannot be removed is a name that is not free.
        if keep && left.is_private && left.length > most {
            let shorter = longest.replace(OpenPart {
                file: left.file,
                name: at,
                length: left.length,
            });
            if let Some(shorter) = &shorter {
                let _ = remove(directory, names[shorter.name]);
            }
        } else {
            let _ = remove(directory, name);
        }
    }
    match longest {
        Some(longest) => Ok(longest),
        None => create(directory, names),
    }
}

/// Removes what is abandoned.
///
/// # Errors
///
/// What the kernel says first; the others are removed all the same.
pub fn remove_abandoned(directory: impl AsFd, names: &[&[u8]]) -> io::Result<()> {
    let directory = directory.as_fd();
    names
        .iter()
        .map(|name| match abandoned(directory, name)? {
            Some(_locked) => remove(directory, name),
            None => Ok(()),
        })
        .fold(Ok(()), io::Result::and)
}

fn remove(directory: impl AsFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn create(directory: impl AsFd, names: &[&[u8]]) -> io::Result<OpenPart> {
    for (at, name) in names.iter().enumerate() {
        match create_part(&directory, name) {
            Ok(Some(file)) => {
                return Ok(OpenPart {
                    file,
                    name: at,
                    length: 0,
                });
            }
            Ok(None) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EEXIST.into())
}

/// Creates a file, locked. `None` when another copy found it before it was locked, and has it now or
/// has removed it.
///
/// # Errors
///
/// What the kernel says; `EEXIST` when the name is not free.
pub fn create_part(directory: impl AsFd, name: &[u8]) -> nix::Result<Option<File>> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(PART_MODE);
    let file = File::from(openat(directory, name, flags, mode)?);
    Ok(is_own(&file).then_some(file))
}

/// Whether a file that was created is locked now and has its name still: what is locked is removed by
/// nobody else.
pub(super) fn is_own(file: &File) -> bool {
    is_lockable(file) && file.metadata().is_ok_and(|there| there.nlink() == 1)
}

/// Whether nobody else has the lock, which is ours then. A file system without locks has nobody who
/// asks for them either.
fn is_lockable(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Who owns what this thread creates. An id that is none changes nothing (`setfsuid(2)`).
#[must_use]
pub fn user() -> Uid {
    setfsuid(Uid::from_raw(u32::MAX))
}

/// Opens what a copy left that has ended, and locks it.
fn abandoned(directory: impl AsFd, name: &[u8]) -> io::Result<Option<Abandoned>> {
    let open = |access| {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        openat(&directory, name, access | flags, Mode::empty()).map(File::from)
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
    let there = file.metadata()?;
    let is_ours = there.is_file() && there.uid() == user().as_raw() && there.nlink() == 1;
    // Who had the lock may have renamed it before giving it up.
    let is_left = is_ours && is_lockable(&file) && has_name(&there, &directory, name)?;
    Ok(is_left.then_some(Abandoned {
        length: there.len(),
        is_private: is_writable && there.mode() & FOREIGN_WRITE == 0,
        file,
    }))
}

/// Whether a name still leads to an open file.
fn has_name(file: &std::fs::Metadata, directory: impl AsFd, name: &[u8]) -> io::Result<bool> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(there) => Ok((there.st_dev, there.st_ino) == (file.dev(), file.ino())),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

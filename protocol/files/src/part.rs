//! Partial files, which have a temporary name until they are complete.
//!
//! The process that writes a partial file holds a lock on it (`flock(2)`). An unlocked one is
//! *abandoned* if it is a regular file of the same user with one hard link: its copy has ended.

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

/// Mode of a partial file.
pub const PART_MODE: u32 = 0o600;

/// Permissions that a file to be resumed must not have: another user who can write to it could change
/// it after it was compared.
const FOREIGN_WRITE: u32 = 0o022;

/// A partial file, open and locked.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenPart {
    /// Open for reading and writing.
    pub file: File,
    /// Index of its name in the given names.
    pub name: usize,
    /// Its length in bytes.
    pub length: u64,
}

/// An abandoned partial file, locked.
struct Abandoned {
    file: File,
    /// Whether it may be resumed: it is open for writing, and no other user can write to it.
    is_private: bool,
    length: u64,
}

/// Opens a partial file with one of the names: with `keep` the longest abandoned one that may be
/// resumed, else a new one with the first free name. Other abandoned ones are removed, if possible.
///
/// # Errors
///
/// Those of `openat(2)` and `fstatat(2)`; `EEXIST` if no name is free.
pub fn open_part(directory: impl AsFd, names: &[&[u8]], keep: bool) -> io::Result<OpenPart> {
    let directory = directory.as_fd();
    let mut longest: Option<OpenPart> = None;
    for (at, name) in names.iter().enumerate() {
        let Some(found) = abandoned(directory, name)? else {
            continue;
        };
        let most = longest.as_ref().map_or(0, |part| part.length);
        // Each is locked until it is removed. If removing fails, its name is not free.
        if keep && found.is_private && found.length > most {
            let shorter = longest.replace(OpenPart {
                file: found.file,
                name: at,
                length: found.length,
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

/// Removes the abandoned files among the names.
///
/// # Errors
///
/// The first error of `openat(2)`, `fstatat(2)` or `unlinkat(2)`; the other names are still processed.
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

/// Creates a file and locks it. `None` if another copy locked or removed it before that.
///
/// # Errors
///
/// Those of `openat(2)`; `EEXIST` if the name exists.
pub fn create_part(directory: impl AsFd, name: &[u8]) -> nix::Result<Option<File>> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(PART_MODE);
    let file = File::from(openat(directory, name, flags, mode)?);
    Ok(is_own(&file).then_some(file))
}

/// Whether a new file is locked now and still has its name. No other copy removes a locked file.
pub(super) fn is_own(file: &File) -> bool {
    is_lockable(file) && file.metadata().is_ok_and(|there| there.nlink() == 1)
}

/// Takes the lock; false if another process has it. True on a file system without locks, where no
/// other process can have one either.
fn is_lockable(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// The owner of files that this thread creates. An invalid id changes nothing (`setfsuid(2)`).
#[must_use]
pub fn user() -> Uid {
    setfsuid(Uid::from_raw(u32::MAX))
}

/// Opens and locks an abandoned file; `None` if the name is not one.
fn abandoned(directory: impl AsFd, name: &[u8]) -> io::Result<Option<Abandoned>> {
    let open = |access| {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        openat(&directory, name, access | flags, Mode::empty()).map(File::from)
    };
    let (opened, is_writable) = match open(OFlag::O_RDWR) {
        // It may already have its final mode, without the permission to write.
        Err(Errno::EACCES) => (open(OFlag::O_RDONLY), false),
        opened => (opened, true),
    };
    let file = match opened {
        Ok(file) => file,
        // Missing, or not a partial file.
        Err(
            Errno::ENOENT
            | Errno::ELOOP
            | Errno::EISDIR
            | Errno::ENXIO
            | Errno::EACCES
            | Errno::EPERM
            | Errno::ETXTBSY
            // Another process has a lease on it (`F_SETLEASE`, `fcntl(2)`).
            | Errno::EAGAIN,
        ) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let there = file.metadata()?;
    let is_ours = there.is_file() && there.uid() == user().as_raw() && there.nlink() == 1;
    // The process that held the lock may have renamed it before unlocking.
    let is_abandoned = is_ours && is_lockable(&file) && has_name(&there, &directory, name)?;
    Ok(is_abandoned.then_some(Abandoned {
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

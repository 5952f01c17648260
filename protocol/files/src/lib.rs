//! Atomic replacement of local files: a file has a temporary name until it is complete, and is then
//! renamed over another one, whose owner, mode and extended attributes it takes over.
//!
//! Used by the agent's SFTP server and by the client's `pull`. Every access goes through an open
//! descriptor or a name in an open directory. Everything here blocks.

mod part;
mod whole_file;

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
};

use nix::{
    NixPath,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat},
    unistd::{Gid, Uid, fchown},
};
use vsock_agent_protocol::sftp::extension::Replacement;
use xattr::FileExt;

pub use self::part::{OpenPart, PART_MODE, create_part, open_part, remove_abandoned, user};
pub use self::whole_file::{private_directory, write_whole};

/// The ACL of a file (`linux/xattr.h`, `XATTR_NAME_POSIX_ACL_ACCESS`).
const ACL: &str = "system.posix_acl_access";

/// Extended attributes that belong to the content (`linux/xattr.h`) and are not copied to new content.
/// The kernel removes a file's capabilities when it is written to; the others are signatures.
const CONTENT_XATTRS: &[&str] = &["security.capability", "security.evm", "security.ima"];

/// Setuid, setgid and sticky bits.
const SPECIAL_BITS: u32 = 0o7000;

/// Most tries to open the file that `fstatat(2)` found at the target. A try fails each time another
/// copy replaces the target in between, so this many fail only if a process replaces it in a loop.
const MAX_TRIES: u32 = 100;

/// A name in an open directory, or a path from there.
#[derive(Debug)]
pub struct At<'a, P: NixPath + ?Sized> {
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// The name.
    pub name: &'a P,
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A socket, which cannot be opened.
    Socket,
    /// A block device, which is written at offsets.
    BlockDevice,
    /// A character device or a FIFO, which is written without offsets.
    Stream,
}

/// Why a file must be written to instead of being replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InPlace {
    /// Its owner, ACL, extended attributes or security label cannot be given to another file.
    Attributes,
    /// It has other hard links, which would keep the old content.
    HardLinks,
    /// It is a mount point.
    Busy,
    /// It is not a regular file.
    NotRegular,
}

impl Kind {
    /// The type in a mode.
    #[must_use]
    pub fn of(stat: &FileStat) -> Self {
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Self::File,
            SFlag::S_IFDIR => Self::Directory,
            SFlag::S_IFLNK => Self::Link,
            SFlag::S_IFSOCK => Self::Socket,
            SFlag::S_IFBLK => Self::BlockDevice,
            _ => Self::Stream,
        }
    }
}

/// Renames the complete file `part`, which is at `from`, to `to`. It takes over the owner, mode, ACL,
/// extended attributes and security label of a regular file there, except those that `options` keeps.
/// Times are not changed.
///
/// The inner error is the reason why the file at `to` must be written to instead. That file is unchanged then,
/// and `part` keeps its name, but may have other attributes.
///
/// # Errors
///
/// Those of `fstatat(2)`, `fchmod(2)` and `renameat(2)`, such as `EISDIR` for a directory at `to`,
/// which is unchanged then.
pub fn replace<P: NixPath + ?Sized>(
    part: &File,
    from: &At<'_, P>,
    to: &At<'_, P>,
    options: Replacement,
) -> io::Result<Result<(), InPlace>> {
    if let Some(reason) = prepare(part, to, options)? {
        return Ok(Err(reason));
    }
    match renameat(from.directory, from.name, to.directory, to.name) {
        Err(Errno::EBUSY) => Ok(Err(InPlace::Busy)),
        Err(errno) => Err(errno.into()),
        Ok(()) => Ok(Ok(())),
    }
}

/// Copies the attributes of the file at `to` to `part`. `Some` if that file must be written to instead.
fn prepare<P: NixPath + ?Sized>(
    part: &File,
    to: &At<'_, P>,
    options: Replacement,
) -> io::Result<Option<InPlace>> {
    for _ in 0..MAX_TRIES {
        let there = match fstatat(to.directory, to.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(None),
            there => there?,
        };
        match Kind::of(&there) {
            Kind::File if there.st_nlink > 1 => return Ok(Some(InPlace::HardLinks)),
            Kind::File => {}
            Kind::Link if !options.leaves_links => return Ok(None),
            Kind::Directory => return Err(Errno::EISDIR.into()),
            _ => return Ok(Some(InPlace::NotRegular)),
        }
        // Opened only if it is a regular file: opening a device can have side effects.
        match open_old(to) {
            Ok(old) if is_same(&fstat(&old)?, &there) => {
                return keep_attributes(part, &old, options);
            }
            // Another copy replaced the target meanwhile.
            Ok(_) | Err(Errno::ENOENT | Errno::ELOOP) => {}
            Err(_) => return Ok(Some(InPlace::Attributes)),
        }
    }
    Err(io::Error::other("the target was replaced repeatedly"))
}

fn open_old<P: NixPath + ?Sized>(to: &At<'_, P>) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    openat(to.directory, to.name, flags, Mode::empty()).map(File::from)
}

const fn is_same(one: &FileStat, other: &FileStat) -> bool {
    one.st_dev == other.st_dev && one.st_ino == other.st_ino
}

/// Copies the attributes of `old` to `part`. `Some` if that is not possible.
fn keep_attributes(part: &File, old: &File, options: Replacement) -> io::Result<Option<InPlace>> {
    let now = fstat(old)?;
    let own = fstat(part)?.st_mode;
    let kept = keep_owner(part, &now, options).and_then(|()| keep_extended(part, old));
    if kept.is_err() {
        return Ok(Some(InPlace::Attributes));
    }
    // Setuid and setgid give the rights of the old owner, so they are not copied to a new one.
    let mode = match (options.sets_mode, options.sets_owner) {
        (true, _) => own,
        (false, true) => now.st_mode & 0o777,
        (false, false) => now.st_mode,
    };
    // After the owner, because changing it clears special bits, and after the ACL, because setting it
    // changes the group bits.
    fchmod(
        part,
        Mode::from_bits_truncate(mode & (0o777 | SPECIAL_BITS)),
    )?;
    Ok(None)
}

fn keep_owner(part: &File, old: &FileStat, options: Replacement) -> io::Result<()> {
    let new = part.metadata()?;
    if options.sets_owner || (new.uid(), new.gid()) == (old.st_uid, old.st_gid) {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
    Ok(fchown(part.as_fd(), Some(user), Some(group))?)
}

fn keep_extended(part: &File, old: &File) -> io::Result<()> {
    let names = match old.list_xattr() {
        Ok(names) => names,
        // A file system without extended attributes.
        Err(error) if is_unsupported(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut has_acl = false;
    for name in names.filter(|name| !CONTENT_XATTRS.iter().any(|other| name == *other)) {
        has_acl |= name == ACL;
        let value = old.get_xattr(&name)?;
        if let Some(value) = value
            && part.get_xattr(&name)?.as_ref() != Some(&value)
        {
            part.set_xattr(&name, &value)?;
        }
    }
    // An ACL from the default ACL of the directory.
    if !has_acl && part.list_xattr()?.any(|name| name == OsStr::new(ACL)) {
        part.remove_xattr(ACL)?;
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EOPNOTSUPP | Errno::ENOSYS)
    )
}

#[cfg(test)]
mod tests;

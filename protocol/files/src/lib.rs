//! What the agent and its client both do with files of their own system: a file has a temporary name
//! until it is complete, and takes then the name of another one, and all that the other one had but
//! its content.
//!
//! Called by the agent's SFTP server and by the client's `pull`. Every look and every change goes
//! through an open descriptor or a name in an open directory. Blocking.

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

/// Extended attributes that are about the content (`linux/xattr.h`): a new content has none. The
/// kernel takes a file's capabilities away when it is written to; the others are signatures.
const OF_THE_CONTENT: &[&str] = &["security.capability", "security.evm", "security.ima"];

/// Setuid, setgid and sticky bits.
const SPECIAL_BITS: u32 = 0o7000;

/// How often a target is looked at that is another file when it is opened: each time another copy to
/// it has ended. Only who replaces it in a loop gets there.
const MAX_LOOKS: u32 = 100;

/// A name in an open directory, or a path from there.
#[derive(Debug)]
pub struct At<'a, P: NixPath + ?Sized> {
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// The name.
    pub name: &'a P,
}

/// What has a name.
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
    /// A block device, which has offsets.
    BlockDevice,
    /// A character device or a pipe with a name: what is written has no offset.
    Stream,
}

/// Why a file must be written to instead of being replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InPlace {
    /// Its owner, ACL, extended attributes or security label cannot be given to another file.
    Attributes,
    /// It has other names, which would keep the old content.
    HardLinks,
    /// Something is mounted there.
    Busy,
    /// It is no regular file.
    NotRegular,
}

impl Kind {
    /// What a mode says.
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

/// Renames the complete file `part`, which is at `from`, over what is at `to`. A regular file there
/// leaves it its owner, mode, ACL, extended attributes and security label, unless `wanted` says
/// otherwise. Times are not touched.
///
/// If this says that the file must be written to instead, what is at `to` is as it was, and `part`
/// still has its name, but perhaps other attributes.
///
/// # Errors
///
/// What the kernel says, such as `EISDIR` for a directory at `to`. `to` is as it was.
pub fn replace<P: NixPath + ?Sized>(
    part: &File,
    from: &At<'_, P>,
    to: &At<'_, P>,
    wanted: Replacement,
) -> io::Result<Result<(), InPlace>> {
    let refused = refusal(part, to, wanted)?;
    if let Some(reason) = refused {
        return Ok(Err(reason));
    }
    match renameat(from.directory, from.name, to.directory, to.name) {
        Err(Errno::EBUSY) => Ok(Err(InPlace::Busy)),
        Err(errno) => Err(errno.into()),
        Ok(()) => Ok(Ok(())),
    }
}

/// Gives `part` what the file at `to` has. Says why that must be written to instead.
fn refusal<P: NixPath + ?Sized>(
    part: &File,
    to: &At<'_, P>,
    wanted: Replacement,
) -> io::Result<Option<InPlace>> {
    for _ in 0..MAX_LOOKS {
        let there = match fstatat(to.directory, to.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(None),
            there => there?,
        };
        match Kind::of(&there) {
            Kind::File if there.st_nlink > 1 => return Ok(Some(InPlace::HardLinks)),
            Kind::File => {}
            Kind::Link if !wanted.leaves_links => return Ok(None),
            Kind::Directory => return Err(Errno::EISDIR.into()),
            _ => return Ok(Some(InPlace::NotRegular)),
        }
        // Only now: to open a device can do something.
        match open_old(to) {
            Ok(old) if is_same(&fstat(&old)?, &there) => {
                return keep_attributes(part, &old, wanted);
            }
            // Another copy to this target has ended meanwhile.
            Ok(_) | Err(Errno::ENOENT | Errno::ELOOP) => {}
            Err(_) => return Ok(Some(InPlace::Attributes)),
        }
    }
    Err(io::Error::other(
        "the target was replaced again and again meanwhile",
    ))
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

/// Gives `part` what `old` has. Says why not if that cannot be.
fn keep_attributes(part: &File, old: &File, wanted: Replacement) -> io::Result<Option<InPlace>> {
    let now = fstat(old)?;
    let own = fstat(part)?.st_mode;
    let kept = keep_owner(part, &now, wanted).and_then(|()| keep_extended(part, old));
    if kept.is_err() {
        return Ok(Some(InPlace::Attributes));
    }
    // Special bits are rights of the old owner.
    let mode = match (wanted.sets_mode, wanted.sets_owner) {
        (true, _) => own,
        (false, true) => now.st_mode & 0o777,
        (false, false) => now.st_mode,
    };
    // Behind the owner, whose change takes special bits away, and behind the ACL, which has rights of
    // the group too.
    fchmod(
        part,
        Mode::from_bits_truncate(mode & (0o777 | SPECIAL_BITS)),
    )?;
    Ok(None)
}

fn keep_owner(part: &File, old: &FileStat, wanted: Replacement) -> io::Result<()> {
    let new = part.metadata()?;
    if wanted.sets_owner || (new.uid(), new.gid()) == (old.st_uid, old.st_gid) {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
    Ok(fchown(part.as_fd(), Some(user), Some(group))?)
}

fn keep_extended(part: &File, old: &File) -> io::Result<()> {
    let names = match old.list_xattr() {
        Ok(names) => names,
        // A file system without any.
        Err(error) if is_unsupported(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut has_acl = false;
    for name in names.filter(|name| !OF_THE_CONTENT.iter().any(|other| name == *other)) {
        has_acl |= name == ACL;
        let value = old.get_xattr(&name)?;
        if let Some(value) = value
            && part.get_xattr(&name)?.as_ref() != Some(&value)
        {
            part.set_xattr(&name, &value)?;
        }
    }
    // One that the directory gives to what is new.
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

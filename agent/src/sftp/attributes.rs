//! Attributes of files: from `stat(2)` to the wire, and back to the system calls that set them.

use std::{fs::File, os::fd::AsFd};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat,
        },
        time::TimeSpec,
    },
    unistd,
};
pub(super) use vsock_agent_protocol::sftp::PERMISSION_BITS;
use vsock_agent_protocol::sftp::{Attributes, FileType, Owner, Times};

use super::{SftpError, tree::Entry};

/// The bits that the kernel clears when the owner changes.
const SPECIAL_BITS: u32 = 0o7000;

/// Attributes for the wire. Times outside 1970 to 2106 are clamped.
pub(super) fn from_stat(stat: &FileStat) -> Attributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(u64::try_from(stat.st_size).unwrap_or(0)),
        owner: Some(Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
        }),
        permissions: Some(stat.st_mode),
        times: Some(Times {
            accessed: seconds(stat.st_atime),
            modified: seconds(stat.st_mtime),
        }),
        extended: Vec::new(),
    }
}

/// Whether it is a symbolic link.
pub(super) fn is_link(stat: &FileStat) -> bool {
    FileType::of(stat.st_mode) == Some(FileType::Link)
}

/// Whether it is a regular file.
pub(super) fn is_regular(stat: &FileStat) -> bool {
    FileType::of(stat.st_mode) == Some(FileType::Regular)
}

/// A file to set attributes of: open, or by path.
pub(super) trait Settable {
    fn set_size(&self, size: i64) -> nix::Result<()>;
    fn set_mode(&self, mode: Mode) -> nix::Result<()>;
    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()>;
    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()>;
}

impl Settable for File {
    fn set_size(&self, size: i64) -> nix::Result<()> {
        unistd::ftruncate(self, size)
    }

    fn set_mode(&self, mode: Mode) -> nix::Result<()> {
        fchmod(self, mode)
    }

    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()> {
        futimens(self.as_fd(), &accessed, &modified)
    }

    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()> {
        unistd::fchown(self, Some(uid.into()), Some(gid.into()))
    }
}

/// A file by its path.
#[derive(Debug)]
pub(super) struct ByPath<'a> {
    pub(super) entry: Entry<'a>,
    /// Whether a symbolic link is followed.
    pub(super) follows: bool,
}

impl Settable for ByPath<'_> {
    fn set_size(&self, size: i64) -> nix::Result<()> {
        if self.follows {
            unistd::truncate(&self.entry.path(), size)
        } else {
            // "nonsensical for links" (`process_extended_lsetstat`, `sftp-server.c`).
            Err(Errno::EINVAL)
        }
    }

    fn set_mode(&self, mode: Mode) -> nix::Result<()> {
        let flag = if self.follows {
            FchmodatFlags::FollowSymlink
        } else {
            FchmodatFlags::NoFollowSymlink
        };
        fchmodat(self.entry.directory(), &*self.entry.name, mode, flag)
    }

    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()> {
        let flag = if self.follows {
            UtimensatFlags::FollowSymlink
        } else {
            UtimensatFlags::NoFollowSymlink
        };
        let (directory, name) = (self.entry.directory(), &*self.entry.name);
        utimensat(directory, name, &accessed, &modified, flag)
    }

    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()> {
        let flags = if self.follows {
            AtFlags::empty()
        } else {
            AtFlags::AT_SYMLINK_NOFOLLOW
        };
        let (directory, name) = (self.entry.directory(), &*self.entry.name);
        unistd::fchownat(directory, name, Some(uid.into()), Some(gid.into()), flags)
    }
}

/// Sets attributes in OpenSSH's order: size, mode, times, owner. As there, an error does not keep
/// the rest from being set. Special bits that the change of the owner cleared are set again.
///
/// # Errors
///
/// The last error.
pub(super) fn set(file: &impl Settable, attributes: &Attributes) -> Result<(), SftpError> {
    let mut result = Ok(());
    let mut note = |step: nix::Result<()>| {
        let worked = step.is_ok();
        if let Err(errno) = step {
            result = Err(errno.into());
        }
        worked
    };
    if let Some(size) = attributes.size {
        // As `ftruncate(2)` of a negative size.
        let size = i64::try_from(size).map_err(|_| Errno::EINVAL);
        note(size.and_then(|size| file.set_size(size)));
    }
    let mode = attributes.permissions.map(mode);
    if let Some(mode) = mode {
        note(file.set_mode(mode));
    }
    if let Some(Times { accessed, modified }) = attributes.times {
        let time = |seconds: u32| TimeSpec::new(seconds.into(), 0);
        note(file.set_times(time(accessed), time(modified)));
    }
    if let Some(Owner { uid, gid }) = attributes.owner
        && note(file.set_owner(uid, gid))
        && let Some(mode) = mode.filter(|mode| mode.bits() & SPECIAL_BITS != 0)
    {
        note(file.set_mode(mode));
    }
    result
}

/// The permissions of a mode from the wire.
pub(super) fn mode(permissions: u32) -> Mode {
    Mode::from_bits_truncate(permissions & PERMISSION_BITS)
}

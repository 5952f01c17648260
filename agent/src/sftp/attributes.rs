//! Between what the kernel says of a file and what the wire does.

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
use vsock_agent_protocol::sftp::{Attributes, FileType};

use super::{SftpError, tree::Spot};

/// The bits that the kernel takes away when the owner changes.
const SPECIAL_BITS: u32 = 0o7000;

/// All the wire can say of a file. Times outside 1970 to 2106 are clamped to that.
pub(super) fn from_stat(stat: &FileStat) -> Attributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(u64::try_from(stat.st_size).unwrap_or(0)),
        owner: Some((stat.st_uid, stat.st_gid)),
        permissions: Some(stat.st_mode),
        times: Some((seconds(stat.st_atime), seconds(stat.st_mtime))),
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

/// What attributes are set on.
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

/// What a path leads to.
impl Settable for Spot<'_> {
    fn set_size(&self, size: i64) -> nix::Result<()> {
        unistd::truncate(&self.path(), size)
    }

    fn set_mode(&self, mode: Mode) -> nix::Result<()> {
        let flag = FchmodatFlags::FollowSymlink;
        fchmodat(self.directory(), &*self.name, mode, flag)
    }

    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()> {
        let flag = UtimensatFlags::FollowSymlink;
        utimensat(self.directory(), &*self.name, &accessed, &modified, flag)
    }

    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()> {
        let (uid, gid) = (Some(uid.into()), Some(gid.into()));
        let flags = AtFlags::empty();
        unistd::fchownat(self.directory(), &*self.name, uid, gid, flags)
    }
}

/// What a path names, a link itself if it is one.
#[derive(Debug)]
pub(super) struct Unfollowed<'a>(pub(super) Spot<'a>);

impl Settable for Unfollowed<'_> {
    fn set_size(&self, _size: i64) -> nix::Result<()> {
        // "nonsensical for links" (`process_extended_lsetstat`, `sftp-server.c`).
        Err(Errno::EINVAL)
    }

    fn set_mode(&self, mode: Mode) -> nix::Result<()> {
        let flag = FchmodatFlags::NoFollowSymlink;
        fchmodat(self.0.directory(), &*self.0.name, mode, flag)
    }

    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()> {
        let flag = UtimensatFlags::NoFollowSymlink;
        utimensat(
            self.0.directory(),
            &*self.0.name,
            &accessed,
            &modified,
            flag,
        )
    }

    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()> {
        let (uid, gid) = (Some(uid.into()), Some(gid.into()));
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        unistd::fchownat(self.0.directory(), &*self.0.name, uid, gid, flags)
    }
}

/// Sets what is said, in OpenSSH's order: size, mode, times, owner. As there, what fails does not
/// keep the rest from being set. Special bits that the change of the owner took away are set again.
///
/// # Errors
///
/// The last that failed.
pub(super) fn set(on: &impl Settable, wanted: &Attributes) -> Result<(), SftpError> {
    let mut result = Ok(());
    let mut note = |step: nix::Result<()>| {
        let worked = step.is_ok();
        if let Err(errno) = step {
            result = Err(errno.into());
        }
        worked
    };
    if let Some(size) = wanted.size {
        // What `ftruncate(2)` says of a negative size.
        let size = i64::try_from(size).map_err(|_| Errno::EINVAL);
        note(size.and_then(|size| on.set_size(size)));
    }
    let mode = wanted.permissions.map(mode);
    if let Some(mode) = mode {
        note(on.set_mode(mode));
    }
    if let Some((accessed, modified)) = wanted.times {
        let time = |seconds: u32| TimeSpec::new(seconds.into(), 0);
        note(on.set_times(time(accessed), time(modified)));
    }
    if let Some((uid, gid)) = wanted.owner
        && note(on.set_owner(uid, gid))
        && let Some(mode) = mode.filter(|mode| mode.bits() & SPECIAL_BITS != 0)
    {
        note(on.set_mode(mode));
    }
    result
}

/// The permissions of a mode that came by wire.
pub(super) fn mode(permissions: u32) -> Mode {
    Mode::from_bits_truncate(permissions & PERMISSION_BITS)
}

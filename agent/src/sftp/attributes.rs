//! Between what the kernel says of a file and what the wire does.

use std::{
    fs::Metadata,
    io,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
};

use nix::{
    sys::{
        stat::{UtimensatFlags, futimens, utimensat},
        time::TimeSpec,
    },
    unistd,
};
use vsock_agent_protocol::sftp::Attributes;

use super::SftpError;

/// The permission bits of `st_mode`, setuid, setgid and sticky among them.
pub(super) const PERMISSION_BITS: u32 = 0o7777;

/// The bits that the kernel takes away when the owner changes.
const SPECIAL_BITS: u32 = 0o7000;

/// All the wire can say of a file. Times outside 1970 to 2106 are clamped to that.
pub(super) fn from_metadata(metadata: &Metadata) -> Attributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(metadata.size()),
        owner: Some((metadata.uid(), metadata.gid())),
        permissions: Some(metadata.mode()),
        times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
        extended: Vec::new(),
    }
}

/// What attributes are set on.
pub(super) trait Settable {
    fn set_size(&self, size: u64) -> io::Result<()>;
    fn set_mode(&self, mode: u32) -> io::Result<()>;
    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()>;
    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()>;
}

impl Settable for std::fs::File {
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.set_permissions(PermissionsExt::from_mode(mode))
    }

    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()> {
        futimens(self.as_fd(), &accessed, &modified)
    }

    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()> {
        unistd::fchown(self, Some(uid.into()), Some(gid.into()))
    }
}

impl Settable for std::path::Path {
    fn set_size(&self, size: u64) -> io::Result<()> {
        nix::unistd::truncate(self, i64::try_from(size).map_err(io::Error::other)?)?;
        Ok(())
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(self, PermissionsExt::from_mode(mode))
    }

    fn set_times(&self, accessed: TimeSpec, modified: TimeSpec) -> nix::Result<()> {
        utimensat(
            nix::fcntl::AT_FDCWD,
            self,
            &accessed,
            &modified,
            UtimensatFlags::FollowSymlink,
        )
    }

    fn set_owner(&self, uid: u32, gid: u32) -> nix::Result<()> {
        unistd::chown(self, Some(uid.into()), Some(gid.into()))
    }
}

/// Sets what is said, in OpenSSH's order: size, mode, times, owner. Special bits that the change
/// of the owner took away are set again.
///
/// # Errors
///
/// The first that fails; what was set before stays.
pub(super) fn set(on: &(impl Settable + ?Sized), wanted: &Attributes) -> Result<(), SftpError> {
    if let Some(size) = wanted.size {
        on.set_size(size)?;
    }
    let mode = wanted
        .permissions
        .map(|permissions| permissions & PERMISSION_BITS);
    if let Some(mode) = mode {
        on.set_mode(mode)?;
    }
    if let Some((accessed, modified)) = wanted.times {
        on.set_times(
            TimeSpec::new(accessed.into(), 0),
            TimeSpec::new(modified.into(), 0),
        )?;
    }
    if let Some((uid, gid)) = wanted.owner {
        on.set_owner(uid, gid)?;
        if let Some(mode) = mode.filter(|mode| mode & SPECIAL_BITS != 0) {
            on.set_mode(mode)?;
        }
    }
    Ok(())
}

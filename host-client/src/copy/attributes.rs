//! Attributes of files, from one side to the other.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

use super::CopyOptions;
use crate::protocol::sftp::{Attributes, FileType, Owner, PERMISSION_BITS, Times};

/// The bit by which what is made in a directory belongs to its group; new directories get it too.
pub(super) const SETGID: u32 = 0o2000;

/// Mode of a directory while it is filled: what it gets in the end, but that we can write to it and
/// others cannot. Where a copy breaks off this is what stays.
pub(super) const fn filled_mode(attributes: &Attributes) -> u32 {
    match attributes.permissions {
        Some(permissions) => permissions & 0o755 | 0o700,
        None => 0o700,
    }
}

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Special,
}

/// The type of a guest's file, if the guest gives it.
pub(super) fn kind(attributes: &Attributes) -> Option<Kind> {
    Some(match attributes.file_type()? {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Link => Kind::Link,
        _ => Kind::Special,
    })
}

/// Whether a guest's file is a directory.
pub(super) fn is_directory(attributes: &Attributes) -> bool {
    kind(attributes) == Some(Kind::Directory)
}

/// Attributes that are only a mode.
pub(super) fn mode(permissions: u32) -> Attributes {
    Attributes {
        permissions: Some(permissions),
        ..Attributes::default()
    }
}

/// Attributes that are only a size.
pub(super) fn size(bytes: u64) -> Attributes {
    Attributes {
        size: Some(bytes),
        ..Attributes::default()
    }
}

/// The attributes of a local file that are copied.
pub(super) fn of(metadata: &Metadata, options: &CopyOptions) -> Attributes {
    Attributes {
        size: None,
        owner: options.owners.then(|| Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
        }),
        permissions: Some(match options.mode {
            Some(mode) if !metadata.is_dir() => mode,
            _ => metadata.mode() & mode_mask(options),
        }),
        times: Some(Times {
            accessed: seconds(metadata.atime()),
            modified: seconds(metadata.mtime()),
        }),
        extended: Vec::new(),
    }
}

/// The attributes of a guest's file that are copied.
pub(super) fn to_set(attributes: &Attributes, options: &CopyOptions) -> Attributes {
    Attributes {
        size: None,
        owner: attributes.owner.filter(|_| options.owners),
        permissions: match options.mode {
            Some(mode) if !is_directory(attributes) => Some(mode),
            _ => attributes.permissions.map(|mode| mode & mode_mask(options)),
        },
        times: attributes.times,
        extended: Vec::new(),
    }
}

/// Setuid, setgid and sticky bits give rights that belong to the owner.
const fn mode_mask(options: &CopyOptions) -> u32 {
    if options.special_bits {
        PERMISSION_BITS
    } else {
        0o777
    }
}

/// Seconds since 1970, as near as the wire can tell.
pub(super) fn seconds(time: i64) -> u32 {
    u32::try_from(time.max(0)).unwrap_or(u32::MAX)
}

/// Whether two files look the same: their size, and their times as near as the wire can tell. Their
/// content may differ all the same.
pub(super) fn look_same(metadata: &Metadata, attributes: &Attributes) -> bool {
    attributes.size == Some(metadata.size())
        && attributes
            .times
            .is_some_and(|times| seconds(metadata.mtime()) == times.modified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_the_wire_cannot_tell_are_brought_to_its_edges() {
        assert_eq!([-1, 0, 7, 1 << 33].map(seconds), [0, 0, 7, u32::MAX]);
    }

    #[test]
    fn special_bits_are_copied_only_when_asked_for() {
        let special = mode(0o104_755);
        let mut options = CopyOptions::default();
        assert_eq!(to_set(&special, &options).permissions, Some(0o755));
        options.special_bits = true;
        assert_eq!(to_set(&special, &options).permissions, Some(0o4755));
    }
}

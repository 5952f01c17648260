//! Messages of OpenSSH's extensions for limits, file systems, links and copies.

use bytes::Bytes;

use super::{super::Attributes, Field, Reader, Short, field};

/// Answer to [`LIMITS`](super::LIMITS). All in bytes but the last; 0 where there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame.
    pub packet: u64,
    /// Most bytes that one READ gives.
    pub read: u64,
    /// Most bytes that one WRITE takes.
    pub write: u64,
    /// Most handles open at once.
    pub handles: u64,
}

in_order!(Limits: packet, read, write, handles);

/// Answer to [`STATVFS`](super::STATVFS) and [`FSTATVFS`](super::FSTATVFS): the fields of `statvfs(3)`, in its order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Preferred block size, in bytes.
    pub block_size: u64,
    /// Size of the blocks that are counted below, in bytes.
    pub fragment_size: u64,
    /// Blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for users other than root.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Free inodes for users other than root.
    pub files_available: u64,
    /// Id of the file system.
    pub id: u64,
    /// [`Self::READ_ONLY`], [`Self::NO_SETUID`].
    pub flags: u64,
    /// Longest name, in bytes.
    pub name_max: u64,
}

impl FileSystem {
    /// In [`Self::flags`]: nothing can be written.
    pub const READ_ONLY: u64 = 1;
    /// In [`Self::flags`]: setuid and setgid bits have no effect.
    pub const NO_SETUID: u64 = 2;
}

in_order!(FileSystem: block_size, fragment_size, blocks, blocks_free, blocks_available, files, files_free, files_available, id, flags, name_max);

/// Request of [`LSETSTAT`](super::LSETSTAT).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLinkAttributes {
    /// The path, not followed if it is a link.
    pub path: Bytes,
    /// Attributes to change. A size cannot be set.
    pub attributes: Attributes,
}

in_order!(SetLinkAttributes: path, attributes);

/// Request of [`COPY_DATA`](super::COPY_DATA). All in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyData {
    /// Handle of the file that is read.
    pub from: Bytes,
    /// Where reading starts.
    pub from_offset: u64,
    /// Length; 0 is everything to the end.
    pub length: u64,
    /// Handle of the file that is written.
    pub to: Bytes,
    /// Where writing starts.
    pub to_offset: u64,
}

in_order!(CopyData: from, from_offset, length, to, to_offset);

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{bytes, survives},
        *,
    };

    #[test]
    fn messages_of_fixed_size_are_read_as_written_and_refused_when_cut() {
        let limits = Limits {
            packet: 1,
            read: 2,
            write: 3,
            handles: 4,
        };
        survives(limits, limits.encode(), Limits::decode);
        let system = FileSystem {
            block_size: 1,
            fragment_size: 2,
            blocks: 3,
            blocks_free: 4,
            blocks_available: 5,
            files: 6,
            files_free: 7,
            files_available: 8,
            id: 9,
            flags: FileSystem::READ_ONLY,
            name_max: 11,
        };
        survives(system, system.encode(), FileSystem::decode);
    }

    #[test]
    fn requests_are_read_as_written_and_refused_when_cut() {
        let copy = CopyData {
            from: bytes("a"),
            from_offset: 1,
            length: 2,
            to: bytes("b"),
            to_offset: 3,
        };
        survives(copy.clone(), copy.encode(), CopyData::decode);
        let link = SetLinkAttributes {
            path: bytes("/l"),
            attributes: Attributes {
                permissions: Some(0o600),
                ..Attributes::default()
            },
        };
        survives(link.clone(), link.encode(), SetLinkAttributes::decode);
    }
}

//! What EXTENDED requests and their replies say: OpenSSH's extensions (its `PROTOCOL`, section 4)
//! and some of our own.
//!
//! Each message here is what follows the extension's name in [`super::Request::Extended`], or the
//! data of [`super::Reply::Extended`]. Extensions whose arguments are one handle or some paths have
//! no type: [`put_strings`] and [`take_strings`] write and read counted strings.

mod whole;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::whole::{
    Failure, FetchFiles, FetchedFile, FetchedFiles, MAX_FETCHED_BYTES, MAX_WHOLE_FILES, StoreFile,
    StoreFiles, StoredFiles,
};
use super::{
    Attributes,
    codec::{Reader, Short, put_string},
};

/// Rename that replaces the target: `string from, string to`.
pub const POSIX_RENAME: &str = "posix-rename@openssh.com";
/// What the file system of a path has room for: `string path`, answered by [`FileSystem`].
pub const STATVFS: &str = "statvfs@openssh.com";
/// The same for an open file: `string handle`.
pub const FSTATVFS: &str = "fstatvfs@openssh.com";
/// One more name for a file: `string file, string link`.
pub const HARDLINK: &str = "hardlink@openssh.com";
/// Write a file's data to its disk: `string handle`.
pub const FSYNC: &str = "fsync@openssh.com";
/// Set the attributes of a path itself, of a link if it is one: [`SetLinkAttributes`].
pub const LSETSTAT: &str = "lsetstat@openssh.com";
/// What the server can take: nothing, answered by [`Limits`].
pub const LIMITS: &str = "limits@openssh.com";
/// REALPATH that knows `~` and `~user`: `string path`, answered by one name.
pub const EXPAND_PATH: &str = "expand-path@openssh.com";
/// Copy between two open files without the client: [`CopyData`].
pub const COPY_DATA: &str = "copy-data";
/// The home of a user: `string user`, answered by one name.
pub const HOME_DIRECTORY: &str = "home-directory";
/// Names of user and group ids: [`IdLists`], answered by [`NameLists`].
pub const USERS_GROUPS_BY_ID: &str = "users-groups-by-id@openssh.com";

/// Our own: the BLAKE3 hash of a range of an open file. [`HashRange`], answered by [`RangeHash`].
pub const HASH: &str = "hash@vsock-agent";
/// Our own: where an open file has holes. [`HolesFrom`], answered by [`Holes`].
pub const HOLES: &str = "holes@vsock-agent";
/// Our own: puts small files into a directory, each whole under its name or not there.
/// [`StoreFiles`], answered by [`StoredFiles`].
pub const STORE: &str = "store@vsock-agent";
/// Our own: gives small files of a directory. [`FetchFiles`], answered by [`FetchedFiles`].
pub const FETCH: &str = "fetch@vsock-agent";
/// Our own, in VERSION only: under which [`super::SessionOptions`] the session runs, as their query
/// text. A server that does not know the options does not send it.
pub const SESSION: &str = "session@vsock-agent";

/// Most holes in one [`Holes`].
pub const MAX_HOLES: usize = 1000;

/// Data of an extension that ends too early or makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data of the extension is malformed")]
pub struct MalformedExtension;

impl From<Short> for MalformedExtension {
    fn from(Short: Short) -> Self {
        Self
    }
}

/// Writes counted strings, one after the other.
///
/// # Panics
///
/// When a string is longer than 4 GiB.
#[must_use]
pub fn put_strings(values: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::with_capacity(values.iter().map(|value| 4 + value.len()).sum());
    for value in values {
        put_string(&mut out, value);
    }
    out.freeze()
}

/// Reads `N` counted strings; what follows them is ignored.
///
/// # Errors
///
/// [`MalformedExtension`] when there are fewer.
pub fn take_strings<const N: usize>(data: Bytes) -> Result<[Bytes; N], MalformedExtension> {
    let mut reader = Reader(data);
    let mut strings = [const { Bytes::new() }; N];
    for string in &mut strings {
        *string = reader.string()?;
    }
    Ok(strings)
}

/// Answer to [`LIMITS`]. All in bytes but the last; 0 where there is no limit.
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

impl Limits {
    /// The data of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        numbers([self.packet, self.read, self.write, self.handles])
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let [packet, read, write, handles] = take_numbers(data)?;
        Ok(Self {
            packet,
            read,
            write,
            handles,
        })
    }
}

/// Answer to [`STATVFS`] and [`FSTATVFS`]: the fields of `statvfs(3)`, in its order.
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

    /// The data of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        numbers([
            self.block_size,
            self.fragment_size,
            self.blocks,
            self.blocks_free,
            self.blocks_available,
            self.files,
            self.files_free,
            self.files_available,
            self.id,
            self.flags,
            self.name_max,
        ])
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let numbers: [u64; 11] = take_numbers(data)?;
        let [block_size, fragment_size, blocks, blocks_free, ..] = numbers;
        let [.., files_available, id, flags, name_max] = numbers;
        let [_, _, _, _, blocks_available, files, files_free, ..] = numbers;
        Ok(Self {
            block_size,
            fragment_size,
            blocks,
            blocks_free,
            blocks_available,
            files,
            files_free,
            files_available,
            id,
            flags,
            name_max,
        })
    }
}

/// Request of [`LSETSTAT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLinkAttributes {
    /// The path, not followed if it is a link.
    pub path: Bytes,
    /// What to change. A size cannot be set.
    pub attributes: Attributes,
}

impl SetLinkAttributes {
    /// The data of the request.
    ///
    /// # Panics
    ///
    /// When the path is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_string(&mut out, &self.path);
        self.attributes.put(&mut out);
        out.freeze()
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        Ok(Self {
            path: reader.string()?,
            attributes: Attributes::take(&mut reader)?,
        })
    }
}

/// Request of [`COPY_DATA`]. All in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyData {
    /// Handle of the file that is read.
    pub from: Bytes,
    /// Where reading starts.
    pub from_offset: u64,
    /// How much; 0 is everything to the end.
    pub length: u64,
    /// Handle of the file that is written.
    pub to: Bytes,
    /// Where writing starts.
    pub to_offset: u64,
}

impl CopyData {
    /// The data of the request.
    ///
    /// # Panics
    ///
    /// When a handle is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_string(&mut out, &self.from);
        out.put_u64(self.from_offset);
        out.put_u64(self.length);
        put_string(&mut out, &self.to);
        out.put_u64(self.to_offset);
        out.freeze()
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        Ok(Self {
            from: reader.string()?,
            from_offset: reader.u64()?,
            length: reader.u64()?,
            to: reader.string()?,
            to_offset: reader.u64()?,
        })
    }
}

/// Request of [`USERS_GROUPS_BY_ID`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdLists {
    /// User ids.
    pub users: Vec<u32>,
    /// Group ids.
    pub groups: Vec<u32>,
}

impl IdLists {
    /// The data of the request: two counted strings of numbers.
    ///
    /// # Panics
    ///
    /// When a list is longer than 2³⁰.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let list = |ids: &[u32]| {
            ids.iter()
                .flat_map(|id| id.to_be_bytes())
                .collect::<Vec<_>>()
        };
        put_strings(&[&list(&self.users), &list(&self.groups)])
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`], also when a list is no whole number of ids.
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let list = |bytes: Bytes| -> Result<Vec<u32>, MalformedExtension> {
            let (ids, rest) = bytes.as_chunks::<4>();
            match rest {
                [] => Ok(ids.iter().map(|id| u32::from_be_bytes(*id)).collect()),
                _ => Err(MalformedExtension),
            }
        };
        let [users, groups] = take_strings(data)?;
        Ok(Self {
            users: list(users)?,
            groups: list(groups)?,
        })
    }
}

/// Answer to [`USERS_GROUPS_BY_ID`]: a name for each id in its place, empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameLists {
    /// Names of the users.
    pub users: Vec<Bytes>,
    /// Names of the groups.
    pub groups: Vec<Bytes>,
}

impl NameLists {
    /// The data of the reply: two counted strings of counted strings.
    ///
    /// # Panics
    ///
    /// When a list is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let list = |names: &[Bytes]| {
            let names: Vec<&[u8]> = names.iter().map(AsRef::as_ref).collect();
            put_strings(&names)
        };
        put_strings(&[&list(&self.users), &list(&self.groups)])
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let list = |bytes: Bytes| -> Result<Vec<Bytes>, MalformedExtension> {
            let mut reader = Reader(bytes);
            let mut names = Vec::new();
            while !reader.is_empty() {
                names.push(reader.string()?);
            }
            Ok(names)
        };
        let [users, groups] = take_strings(data)?;
        Ok(Self {
            users: list(users)?,
            groups: list(groups)?,
        })
    }
}

/// Request of [`HASH`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashRange {
    /// The file, open for reading or for writing.
    pub handle: Bytes,
    /// Where the range starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; it ends at the end of the file at the latest.
    pub length: u64,
}

impl HashRange {
    /// The data of the request.
    ///
    /// # Panics
    ///
    /// When the handle is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_string(&mut out, &self.handle);
        out.put_u64(self.offset);
        out.put_u64(self.length);
        out.freeze()
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        Ok(Self {
            handle: reader.string()?,
            offset: reader.u64()?,
            length: reader.u64()?,
        })
    }
}

/// Answer to [`HASH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeHash {
    /// Bytes that were there and were hashed.
    pub length: u64,
    /// Their BLAKE3 hash.
    pub hash: [u8; 32],
}

impl RangeHash {
    /// The data of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(8 + self.hash.len());
        out.put_u64(self.length);
        out.put_slice(&self.hash);
        out.freeze()
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let length = reader.u64()?;
        let hash = reader.rest();
        Ok(Self {
            length,
            hash: hash[..].try_into().map_err(|_| MalformedExtension)?,
        })
    }
}

/// Request of [`HOLES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolesFrom {
    /// The file.
    pub handle: Bytes,
    /// Where to start looking, in bytes.
    pub offset: u64,
}

impl HolesFrom {
    /// The data of the request.
    ///
    /// # Panics
    ///
    /// When the handle is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_string(&mut out, &self.handle);
        out.put_u64(self.offset);
        out.freeze()
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        Ok(Self {
            handle: reader.string()?,
            offset: reader.u64()?,
        })
    }
}

/// Answer to [`HOLES`]: the holes between the offset of the request and [`Self::end`], in order.
/// What is not a hole is data. All in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holes {
    /// Up to where this map goes: the size of the file, or less when there were [`MAX_HOLES`] and
    /// more is to be asked for.
    pub end: u64,
    /// The size of the file at that time.
    pub size: u64,
    /// Offset and length of each hole.
    pub holes: Vec<(u64, u64)>,
}

impl Holes {
    /// The data of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16 + 16 * self.holes.len());
        out.put_u64(self.end);
        out.put_u64(self.size);
        for (offset, length) in &self.holes {
            out.put_u64(*offset);
            out.put_u64(*length);
        }
        out.freeze()
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`], also when the holes overlap, are out of order, empty or beyond
    /// `end`, or more than [`MAX_HOLES`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let (end, size) = (reader.u64()?, reader.u64()?);
        let mut holes = Vec::new();
        let mut after = 0;
        while !reader.is_empty() {
            let (offset, length) = (reader.u64()?, reader.u64()?);
            let next = offset.checked_add(length).ok_or(MalformedExtension)?;
            if offset < after || length == 0 || next > end || holes.len() == MAX_HOLES {
                return Err(MalformedExtension);
            }
            after = next;
            holes.push((offset, length));
        }
        match end <= size {
            true => Ok(Self { end, size, holes }),
            false => Err(MalformedExtension),
        }
    }
}

fn numbers<const N: usize>(values: [u64; N]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 * N);
    for value in values {
        out.put_u64(value);
    }
    out.freeze()
}

/// Reads `N` numbers; what follows them is ignored.
fn take_numbers<const N: usize>(data: Bytes) -> Result<[u64; N], Short> {
    let mut reader = Reader(data);
    let mut values = [0; N];
    for value in &mut values {
        *value = reader.u64()?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    /// Reads what was written, and refuses it cut anywhere.
    pub(super) fn survives<T: PartialEq + std::fmt::Debug>(
        value: T,
        data: Bytes,
        decode: impl Fn(Bytes) -> Result<T, MalformedExtension>,
    ) {
        for end in 0..data.len() {
            assert_eq!(decode(data.slice(..end)), Err(MalformedExtension));
        }
        assert_eq!(decode(data), Ok(value));
    }

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
        let hash = RangeHash {
            length: 5,
            hash: [7; 32],
        };
        survives(hash, hash.encode(), RangeHash::decode);
    }

    #[test]
    fn messages_with_strings_are_read_as_written_and_refused_when_cut() {
        let copy = CopyData {
            from: bytes("a"),
            from_offset: 1,
            length: 2,
            to: bytes("b"),
            to_offset: 3,
        };
        survives(copy.clone(), copy.encode(), CopyData::decode);
        let range = HashRange {
            handle: bytes("h"),
            offset: 1,
            length: 2,
        };
        survives(range.clone(), range.encode(), HashRange::decode);
        let from = HolesFrom {
            handle: bytes("h"),
            offset: 1,
        };
        survives(from.clone(), from.encode(), HolesFrom::decode);
        let ids = IdLists {
            users: vec![0, 1000],
            groups: vec![7],
        };
        survives(ids.clone(), ids.encode(), IdLists::decode);
        let names = NameLists {
            users: vec![bytes("root"), Bytes::new()],
            groups: vec![bytes("g")],
        };
        survives(names.clone(), names.encode(), NameLists::decode);
        let link = SetLinkAttributes {
            path: bytes("/l"),
            attributes: Attributes {
                permissions: Some(0o600),
                ..Attributes::default()
            },
        };
        survives(link.clone(), link.encode(), SetLinkAttributes::decode);
    }

    #[test]
    fn a_map_of_holes_is_read_as_written() {
        let holes = Holes {
            end: 100,
            size: 200,
            holes: vec![(0, 10), (20, 30)],
        };
        assert_eq!(Holes::decode(holes.encode()), Ok(holes));
    }

    #[test]
    fn a_map_of_holes_that_lies_is_refused() {
        for holes in [
            vec![(0, 0)],
            vec![(10, 5), (0, 5)],
            vec![(0, 10), (5, 10)],
            vec![(90, 20)],
            vec![(u64::MAX, 2)],
        ] {
            let map = Holes {
                end: 100,
                size: 100,
                holes,
            };
            assert_eq!(Holes::decode(map.encode()), Err(MalformedExtension));
        }
        let beyond = Holes {
            end: 2,
            size: 1,
            holes: Vec::new(),
        };
        assert_eq!(Holes::decode(beyond.encode()), Err(MalformedExtension));
    }
}

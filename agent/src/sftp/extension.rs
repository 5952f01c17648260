//! EXTENDED: OpenSSH's extensions, of its version 9.2, and our own.

use bytes::Bytes;
use vsock_agent_protocol::sftp::extension::{
    self as name, CopyData, FetchFiles, HashRange, HolesFrom, IdLists, MalformedExtension,
    OpenPart, ReplaceFile, SetLinkAttributes, StoreFiles, take_strings,
};

use super::{
    SftpError,
    access::AccessSet,
    handles::{Handles, number},
};

/// Names and versions in VERSION.
pub(super) const ADVERTISED: &[(&str, &str)] = &[
    (name::POSIX_RENAME, "1"),
    (name::STATVFS, "2"),
    (name::FSTATVFS, "2"),
    (name::HARDLINK, "1"),
    (name::FSYNC, "1"),
    (name::LSETSTAT, "1"),
    (name::LIMITS, "1"),
    (name::EXPAND_PATH, "1"),
    (name::COPY_DATA, "1"),
    (name::HOME_DIRECTORY, "1"),
    (name::USERS_GROUPS_BY_ID, "1"),
    (name::HASH, "1"),
    (name::HOLES, "1"),
    (name::REPLACE, "1"),
    (name::STORE, "1"),
    (name::FETCH, "1"),
    (name::OPEN_PART, "1"),
];

/// An EXTENDED request.
#[derive(Debug)]
pub(super) enum Extension {
    PosixRename { from: Bytes, to: Bytes },
    Statvfs { path: Bytes },
    Fstatvfs { handle: Bytes },
    Hardlink { file: Bytes, link: Bytes },
    Fsync { handle: Bytes },
    Lsetstat(SetLinkAttributes),
    Limits,
    ExpandPath { path: Bytes },
    CopyData(CopyData),
    HomeDirectory { user: Bytes },
    NamesById(IdLists),
    Hash(HashRange),
    Holes(HolesFrom),
    Replace(ReplaceFile),
    Store(StoreFiles),
    Fetch(FetchFiles),
    OpenPart(OpenPart),
}

impl From<MalformedExtension> for SftpError {
    fn from(_: MalformedExtension) -> Self {
        Self::BadMessage("the extension's data is malformed")
    }
}

impl Extension {
    /// Decodes a request.
    ///
    /// # Errors
    ///
    /// [`SftpError::Unsupported`] for a name that is not known, [`SftpError::BadMessage`] when the
    /// data do not fit the name.
    pub(super) fn decode(extension: &[u8], data: Bytes) -> Result<Self, SftpError> {
        let Ok(extension) = str::from_utf8(extension) else {
            return Err(SftpError::Unsupported);
        };
        let one = |data| take_strings::<1>(data).map(|[string]| string);
        Ok(match extension {
            name::POSIX_RENAME => {
                let [from, to] = take_strings(data)?;
                Self::PosixRename { from, to }
            }
            name::STATVFS => Self::Statvfs { path: one(data)? },
            name::FSTATVFS => Self::Fstatvfs { handle: one(data)? },
            name::HARDLINK => {
                let [file, link] = take_strings(data)?;
                Self::Hardlink { file, link }
            }
            name::FSYNC => Self::Fsync { handle: one(data)? },
            name::LSETSTAT => Self::Lsetstat(SetLinkAttributes::decode(data)?),
            name::LIMITS => Self::Limits,
            name::EXPAND_PATH => Self::ExpandPath { path: one(data)? },
            name::COPY_DATA => Self::CopyData(CopyData::decode(data)?),
            name::HOME_DIRECTORY => Self::HomeDirectory { user: one(data)? },
            name::USERS_GROUPS_BY_ID => Self::NamesById(IdLists::decode(data)?),
            name::HASH => Self::Hash(HashRange::decode(data)?),
            name::HOLES => Self::Holes(HolesFrom::decode(data)?),
            name::REPLACE => Self::Replace(ReplaceFile::decode(data)?),
            name::STORE => Self::Store(StoreFiles::decode(data)?),
            name::FETCH => Self::Fetch(FetchFiles::decode(data)?),
            name::OPEN_PART => Self::OpenPart(OpenPart::decode(data)?),
            _ => return Err(SftpError::Unsupported),
        })
    }

    /// Whether it changes something.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self,
            Self::PosixRename { .. }
                | Self::Hardlink { .. }
                | Self::Lsetstat(_)
                | Self::CopyData(_)
                | Self::Replace(_)
                | Self::Store(_)
                | Self::OpenPart(_)
        )
    }

    /// Whether its reply gives a handle.
    pub(super) fn opens(&self) -> bool {
        matches!(self, Self::OpenPart(_))
    }

    /// What it uses.
    pub(super) fn access(&self, handles: &Handles) -> AccessSet {
        let reads = |handle: &Bytes, offset, length| {
            AccessSet::default().reads(number(handle), offset, length)
        };
        match self {
            Self::PosixRename { from, to } => AccessSet::changes(from, Some(to)),
            Self::Hardlink { file, link } => AccessSet::changes(file, Some(link)),
            Self::Lsetstat(set) => AccessSet::changes(&set.path, None),
            Self::Replace(replace) => AccessSet::changes(&replace.from, Some(&replace.to)),
            Self::Store(store) => {
                // Copied: a slice would keep the contents of the files in memory while it waits.
                let directory = Bytes::copy_from_slice(&store.directory);
                AccessSet::changes(&directory, None).inside()
            }
            Self::Fetch(fetch) => AccessSet::reads_path(&fetch.directory).inside(),
            // The other names are used only when copies collide.
            Self::OpenPart(part) => match part.names.first() {
                Some(name) => AccessSet::changes(&join(&part.directory, name), None),
                None => AccessSet::default(),
            },
            Self::Statvfs { path } | Self::ExpandPath { path } => AccessSet::reads_path(path),
            Self::Fstatvfs { handle } | Self::Fsync { handle } => reads(handle, 0, u64::MAX),
            Self::Holes(from) => reads(&from.handle, 0, u64::MAX),
            Self::Hash(range) => reads(&range.handle, range.offset, range.length),
            Self::CopyData(copy) => {
                let length = match copy.length {
                    0 => u64::MAX,
                    length => length,
                };
                let read = reads(&copy.from, copy.from_offset, length);
                handles.add_write(read, &copy.to, copy.to_offset, length)
            }
            Self::Limits | Self::HomeDirectory { .. } | Self::NamesById(_) => AccessSet::default(),
        }
    }
}

/// The path of a name in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Bytes {
    [directory, b"/", name].concat().into()
}

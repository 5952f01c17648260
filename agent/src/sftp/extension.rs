//! EXTENDED: OpenSSH's extensions, of its version 9.2, and our own.

use bytes::Bytes;
use vsock_agent_protocol::sftp::extension::{
    self as name, CopyData, FetchFiles, HashRange, HolesFrom, IdLists, MalformedExtension,
    OpenPart, ReplaceFile, SetLinkAttributes, StoreFiles, take_strings,
};

use super::{
    SftpError,
    handles::{Handles, number},
    order::Claim,
    part,
    request::{Bound, writes},
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

/// What an EXTENDED request asks for.
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
    /// Reads a request.
    ///
    /// # Errors
    ///
    /// [`SftpError::Unsupported`] for a name that is not known, [`SftpError::BadMessage`] when the
    /// data are not what the name says.
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

    /// Whether it would change something.
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

    /// Whether it opens something.
    pub(super) fn opens(&self) -> bool {
        matches!(self, Self::OpenPart(_))
    }

    /// What it uses.
    pub(super) fn claim(&self, handles: &Handles) -> Claim {
        let reads = |handle: &Bytes, offset, length| match number(handle) {
            Some(number) => Claim::default().reads(number, offset, length),
            None => Claim::default(),
        };
        match self {
            Self::PosixRename { from, to } => Claim::changes(from, Some(to)),
            Self::Hardlink { file, link } => Claim::changes(file, Some(link)),
            Self::Lsetstat(set) => Claim::changes(&set.path, None),
            Self::Replace(replace) => Claim::changes(&replace.from, Some(&replace.to)),
            Self::Store(store) => {
                // Copied: else it would keep the contents in memory while it waits.
                let directory = Bytes::copy_from_slice(&store.directory);
                Claim::changes(&directory, None).inside()
            }
            Self::Fetch(fetch) => Claim::looks_at(&fetch.directory).inside(),
            // The other names are for copies that get in each other's way.
            Self::OpenPart(part) => match part.names.first() {
                Some(name) => Claim::changes(&part::path(&part.directory, name), None),
                None => Claim::default(),
            },
            Self::Statvfs { path } | Self::ExpandPath { path } => Claim::looks_at(path),
            Self::Fstatvfs { handle } | Self::Fsync { handle } => reads(handle, 0, u64::MAX),
            Self::Holes(from) => reads(&from.handle, 0, u64::MAX),
            Self::Hash(range) => reads(&range.handle, range.offset, range.length),
            Self::CopyData(copy) => {
                let length = match copy.length {
                    0 => u64::MAX,
                    length => length,
                };
                let read = reads(&copy.from, copy.from_offset, length);
                writes(read, &copy.to, copy.to_offset, length, handles)
            }
            Self::Limits | Self::HomeDirectory { .. } | Self::NamesById(_) => Claim::default(),
        }
    }

    /// Looks its handles up.
    ///
    /// # Errors
    ///
    /// When one is not known.
    pub(super) fn bind(&self, handles: &mut Handles) -> Result<Bound, SftpError> {
        match self {
            Self::OpenPart(_) => handles.keep_place().map(|()| Bound::Place),
            Self::Fstatvfs { handle }
            | Self::Hash(HashRange { handle, .. })
            | Self::Holes(HolesFrom { handle, .. }) => handles.find(handle).map(Bound::One),
            Self::Fsync { handle } => {
                let open = handles.find(handle).map_err(|_| SftpError::ClosedHandle);
                open.map(Bound::One)
            }
            Self::CopyData(copy) => {
                let from = handles.find(&copy.from)?;
                Ok(Bound::Two(from, handles.find(&copy.to)?))
            }
            _ => Ok(Bound::Nothing),
        }
    }
}

//! Data of EXTENDED requests and their replies: OpenSSH's extensions (its `PROTOCOL`, section 4)
//! and some of our own.
//!
//! Each message here is what follows the extension's name in [`super::Request::Extended`], or the
//! data of [`super::Reply::Extended`]. Extensions whose arguments are one handle or some paths have
//! no type: [`put_strings`] and [`take_strings`] write and read counted strings.

/// The fields of a value, one after the other.
macro_rules! fields {
    ($message:ident: $($field:tt $(as $codec:ident)?),+) => {
        impl Field for $message {
            fn put(&self, out: &mut bytes::BytesMut) {
                $(field!(put &self.$field, out $(, $codec)?);)+
            }

            fn take(reader: &mut Reader) -> Result<Self, Short> {
                Ok(Self {
                    $($field: field!(take reader $(, $codec)?)),+
                })
            }
        }
    };
}

/// The data of a message: its fields, one after the other; and about how many bytes they take, where they
/// are many.
macro_rules! in_order {
    ($message:ident: $($field:tt $(as $codec:ident)?),+ $(; $capacity:path)?) => {
        fields!($message: $($field $(as $codec)?),+);

        impl $message {
            /// The data of the message.
            ///
            /// # Panics
            ///
            /// When a string is longer than 4 GiB.
            #[must_use]
            pub fn encode(&self) -> Bytes {
                let mut out = bytes::BytesMut::with_capacity(0 $(+ $capacity(self))?);
                self.put(&mut out);
                out.freeze()
            }

            /// Reads the data of a message; what follows it is ignored.
            ///
            /// # Errors
            ///
            /// [`MalformedExtension`](super::MalformedExtension), also when a limit is exceeded.
            pub fn decode(data: Bytes) -> Result<Self, super::MalformedExtension> {
                Ok(Field::take(&mut Reader(data))?)
            }
        }
    };
}

mod openssh;
mod owners;
mod part;
mod ranges;
mod replace;
mod whole;

use std::marker::PhantomData;

use bytes::{Bytes, BytesMut};

pub use self::{
    openssh::{CopyData, FileSystem, Limits, SetLinkAttributes},
    owners::{IdLists, NameLists},
    part::{MAX_PART_NAMES, OpenPart, OpenedPart},
    ranges::{HashRange, Holes, HolesFrom, MAX_HOLES, RangeHash},
    replace::{ReplaceFile, Replaced, Replacement},
    whole::{
        Failure, FetchFiles, FetchedFile, FetchedFiles, MAX_FETCHED_BYTES, MAX_WHOLE_FILES,
        StoreFile, StoreFiles, StoredFiles,
    },
};
use super::codec::{Field, Reader, Short, field, put_string};

/// Rename that replaces the target: `string from, string to`.
pub const POSIX_RENAME: &str = "posix-rename@openssh.com";
/// Size and free space of the file system of a path: `string path`, answered by [`FileSystem`].
pub const STATVFS: &str = "statvfs@openssh.com";
/// The same for an open file: `string handle`.
pub const FSTATVFS: &str = "fstatvfs@openssh.com";
/// One more name for a file: `string file, string link`.
pub const HARDLINK: &str = "hardlink@openssh.com";
/// Write a file's data to its disk: `string handle`.
pub const FSYNC: &str = "fsync@openssh.com";
/// Set the attributes of a path itself, of a link if it is one: [`SetLinkAttributes`].
pub const LSETSTAT: &str = "lsetstat@openssh.com";
/// Limits of the server: no data, answered by [`Limits`].
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
/// Our own: puts small files into a directory, each complete or not at all.
/// [`StoreFiles`], answered by [`StoredFiles`].
pub const STORE: &str = "store@vsock-agent";
/// Our own: reads small files of a directory. [`FetchFiles`], answered by [`FetchedFiles`].
pub const FETCH: &str = "fetch@vsock-agent";
/// Our own: renames a file over another one, whose owner, mode, ACL, extended attributes and security
/// label it gets before. [`ReplaceFile`], answered by [`Replaced`].
pub const REPLACE: &str = "replace@vsock-agent";
/// Our own: opens a file under a temporary name. [`OpenPart`], answered by [`OpenedPart`].
pub const OPEN_PART: &str = "open-part@vsock-agent";
/// Our own, in VERSION only: the [`super::SessionOptions`] of the session, as their query text. A server that does not know the options does not send it.
pub const SESSION: &str = "session@vsock-agent";

/// Data of an extension that end too early or are invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data of the extension is malformed")]
pub struct MalformedExtension;

impl From<Short> for MalformedExtension {
    fn from(Short: Short) -> Self {
        Self
    }
}

impl Field for bool {
    fn put(&self, out: &mut BytesMut) {
        u32::from(*self).put(out);
    }

    fn take(reader: &mut Reader) -> Result<Self, Short> {
        u32::take(reader).map(|number| number != 0)
    }
}

impl Field for Replacement {
    fn put(&self, out: &mut BytesMut) {
        self.bits().put(out);
    }

    fn take(reader: &mut Reader) -> Result<Self, Short> {
        u32::take(reader).map(Self::from_bits)
    }
}

/// A counted list of at most `MAX` values.
struct Limited<T, const MAX: usize>(PhantomData<T>);

impl<T: Field, const MAX: usize> Limited<T, MAX> {
    fn put(values: &[T], out: &mut BytesMut) {
        u32::try_from(values.len()).unwrap_or(u32::MAX).put(out);
        values.iter().for_each(|value| value.put(out));
    }

    fn take(reader: &mut Reader) -> Result<Vec<T>, Short> {
        match usize::try_from(reader.u32()?) {
            Ok(count) if count <= MAX => (0..count).map(|_| T::take(reader)).collect(),
            _ => Err(Short),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn bytes(text: &'static str) -> Bytes {
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
}

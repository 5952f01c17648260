//! Messages of our own extensions [`STORE`](super::STORE) and [`FETCH`](super::FETCH): several small
//! files of one directory in one request.
//!
//! They replace five and four plain requests for each file, and refuse what those would.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    super::{Attributes, MAX_DATA_BYTES, status},
    Field, Limited, Reader, Replacement, Short, field,
};

/// Most files in one request.
pub const MAX_WHOLE_FILES: usize = 256;

/// Most data that one [`FETCH`](super::FETCH) may ask for, in bytes: the attributes of the
/// files must fit in the frame too.
pub const MAX_FETCHED_BYTES: u32 = MAX_DATA_BYTES / 2;

/// Error of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One of [`super::super::status`], but not OK; others may come.
    pub code: u32,
    /// A message for people.
    pub message: Bytes,
}

/// Request of [`STORE`](super::STORE): each file is created under the name of its part, which must
/// be free, gets its data and its attributes, and takes its name as [`REPLACE`](super::REPLACE)
/// does. When a step fails, or the target must be written in place instead, the part is
/// removed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFiles {
    /// The directory of all of them.
    pub directory: Bytes,
    /// At most [`MAX_WHOLE_FILES`].
    pub files: Vec<StoreFile>,
    /// How existing files are replaced. A request that ends before it has the default.
    pub replacement: Replacement,
}

/// A file to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFile {
    /// Its name while it is not complete: one component.
    pub part: Bytes,
    /// Its name: one component.
    pub name: Bytes,
    /// Its attributes, without a size.
    pub attributes: Attributes,
    /// Its content.
    pub data: Bytes,
}

type Files<T> = Limited<T, MAX_WHOLE_FILES>;

type StoreList = Files<StoreFile>;

in_order!(StoreFiles: directory, files as StoreList, replacement as OptionalReplacement; StoreFiles::room);
fields!(StoreFile: part, name, attributes, data);

impl StoreFiles {
    fn room(&self) -> usize {
        self.directory.len() + self.files.iter().map(StoreFile::room).sum::<usize>()
    }
}

struct OptionalReplacement;

impl OptionalReplacement {
    fn put(value: &Replacement, out: &mut BytesMut) {
        value.put(out);
    }

    fn take(reader: &mut Reader) -> Result<Replacement, Short> {
        if reader.is_empty() {
            Ok(Replacement::default())
        } else {
            Field::take(reader)
        }
    }
}

impl StoreFile {
    /// About how many bytes it takes in a request.
    #[must_use]
    pub fn room(&self) -> usize {
        /// Four counts, and attributes with everything but a size.
        const REST: usize = 64;
        self.part.len() + self.name.len() + self.data.len() + REST
    }
}

/// Answer to [`STORE`](super::STORE): a result for each file, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFiles(pub Vec<Result<(), Failure>>);

type StoredList = Files<Result<(), Failure>>;

in_order!(StoredFiles: 0 as StoredList);

/// Request of [`FETCH`](super::FETCH).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchFiles {
    /// The directory of all of them.
    pub directory: Bytes,
    /// Name, which is one component and not followed if it is a link, and how many bytes to read from the
    /// start. At most [`MAX_WHOLE_FILES`], and [`MAX_FETCHED_BYTES`] in all.
    pub files: Vec<(Bytes, u32)>,
}

in_order!(FetchFiles: directory, files as FetchList);

struct FetchList;

impl FetchList {
    fn put(files: &[(Bytes, u32)], out: &mut BytesMut) {
        Files::put(files, out);
    }

    fn take(reader: &mut Reader) -> Result<Vec<(Bytes, u32)>, Short> {
        let files = Files::<(Bytes, u32)>::take(reader)?;
        let mut lengths = files.iter().map(|(_, length)| *length);
        match lengths.try_fold(0, u32::checked_add) {
            Some(..=MAX_FETCHED_BYTES) => Ok(files),
            _ => Err(Short),
        }
    }
}

/// A file that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFile {
    /// Its attributes.
    pub attributes: Attributes,
    /// Its first bytes, as many as were requested or as there are.
    pub data: Bytes,
}

/// Answer to [`FETCH`](super::FETCH): a result for each file, in their order. Only regular files are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFiles(pub Vec<Result<FetchedFile, Failure>>);

type FetchedList = Files<Result<FetchedFile, Failure>>;

in_order!(FetchedFiles: 0 as FetchedList; FetchedFiles::room);
fields!(FetchedFile: attributes, data);

impl FetchedFiles {
    fn room(&self) -> usize {
        /// A code, a count, and attributes with everything.
        const REST: usize = 64;
        let data = self.0.iter().flatten().map(|file| file.data.len() + REST);
        data.sum()
    }
}

impl Field for () {
    fn put(&self, _: &mut BytesMut) {}

    fn take(_: &mut Reader) -> Result<Self, Short> {
        Ok(())
    }
}

/// A status code, and the fields of the value or of the failure.
impl<T: Field> Field for Result<T, Failure> {
    fn put(&self, out: &mut BytesMut) {
        match self {
            Ok(value) => {
                out.put_u32(status::OK);
                value.put(out);
            }
            Err(failure) => {
                out.put_u32(failure.code);
                failure.message.put(out);
            }
        }
    }

    fn take(reader: &mut Reader) -> Result<Self, Short> {
        Ok(match reader.u32()? {
            status::OK => Ok(T::take(reader)?),
            code => Err(Failure {
                code,
                message: reader.string()?,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            MalformedExtension,
            tests::{bytes, survives},
        },
        *,
    };
    use crate::sftp::Times;

    fn attributes() -> Attributes {
        Attributes {
            permissions: Some(0o644),
            times: Some(Times {
                accessed: 1,
                modified: 2,
            }),
            ..Attributes::default()
        }
    }

    #[test]
    fn requests_and_replies_are_read_as_written_and_refused_when_cut() {
        let file = StoreFile {
            part: bytes(".a.part"),
            name: bytes("a"),
            attributes: attributes(),
            data: bytes("content"),
        };
        let store = StoreFiles {
            directory: bytes("/d"),
            files: vec![file.clone(), file],
            replacement: Replacement {
                sets_mode: true,
                ..Replacement::default()
            },
        };
        let data = store.encode();
        // What follows the files is new: there are clients that do not send it.
        let old = data.len() - 4;
        for end in (0..data.len()).filter(|end| *end != old) {
            let decoded = StoreFiles::decode(data.slice(..end));
            assert_eq!(decoded, Err(MalformedExtension));
        }
        let decoded = StoreFiles::decode(data.slice(..old)).unwrap();
        assert_eq!(decoded.replacement, Replacement::default());
        assert_eq!(StoreFiles::decode(data), Ok(store));
        let failure = Failure {
            code: status::FAILURE,
            message: bytes("no"),
        };
        let stored = StoredFiles(vec![Ok(()), Err(failure.clone())]);
        survives(stored.clone(), stored.encode(), StoredFiles::decode);
        let fetch = FetchFiles {
            directory: bytes("/d"),
            files: vec![(bytes("a"), 7), (bytes("b"), MAX_FETCHED_BYTES - 7)],
        };
        survives(fetch.clone(), fetch.encode(), FetchFiles::decode);
        let file = FetchedFile {
            attributes: attributes(),
            data: bytes("content"),
        };
        let fetched = FetchedFiles(vec![Err(failure), Ok(file)]);
        survives(fetched.clone(), fetched.encode(), FetchedFiles::decode);
    }

    #[test]
    fn requests_for_too_much_are_refused() {
        for lengths in [&[MAX_FETCHED_BYTES, 1][..], &[u32::MAX, u32::MAX]] {
            let files = lengths.iter().map(|length| (bytes("a"), *length)).collect();
            let fetch = FetchFiles {
                directory: bytes("/"),
                files,
            };
            assert_eq!(FetchFiles::decode(fetch.encode()), Err(MalformedExtension));
        }
        let fetch = FetchFiles {
            directory: bytes("/"),
            files: vec![(bytes("a"), 0); MAX_WHOLE_FILES + 1],
        };
        assert_eq!(FetchFiles::decode(fetch.encode()), Err(MalformedExtension));
    }
}

//! Messages of our own extensions [`STORE`](super::STORE) and [`FETCH`](super::FETCH): several small
//! files of one directory in one request.
//!
//! They replace five and four plain requests for each file, and refuse what those would.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    super::{Attributes, MAX_DATA_BYTES, codec::put_string, status},
    MalformedExtension, Reader, Replacement,
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

impl StoreFiles {
    /// The data of the request.
    ///
    /// # Panics
    ///
    /// When something is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let bytes: usize = self.files.iter().map(StoreFile::room).sum();
        let mut out = BytesMut::with_capacity(12 + self.directory.len() + bytes);
        put_string(&mut out, &self.directory);
        out.put_u32(count(self.files.len()));
        for file in &self.files {
            put_string(&mut out, &file.part);
            put_string(&mut out, &file.name);
            file.attributes.put(&mut out);
            put_string(&mut out, &file.data);
        }
        out.put_u32(self.replacement.bits());
        out.freeze()
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`], also when there are more than [`MAX_WHOLE_FILES`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let directory = reader.string()?;
        let files = list(&mut reader, |reader| {
            Ok(StoreFile {
                part: reader.string()?,
                name: reader.string()?,
                attributes: Attributes::take(reader)?,
                data: reader.string()?,
            })
        })?;
        let replacement = if reader.is_empty() {
            Replacement::default()
        } else {
            Replacement::from_bits(reader.u32()?)
        };
        Ok(Self {
            directory,
            files,
            replacement,
        })
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

impl StoredFiles {
    /// The data of the reply.
    ///
    /// # Panics
    ///
    /// When a message is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(4 + 4 * self.0.len());
        out.put_u32(count(self.0.len()));
        for stored in &self.0 {
            put_outcome(&mut out, stored.as_ref(), |_, ()| {});
        }
        out.freeze()
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        list(&mut reader, |reader| take_outcome(reader, |_| Ok(()))).map(Self)
    }
}

/// Request of [`FETCH`](super::FETCH).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchFiles {
    /// The directory of all of them.
    pub directory: Bytes,
    /// Name, which is one component and not followed if it is a link, and how many bytes to read from the
    /// start. At most [`MAX_WHOLE_FILES`], and [`MAX_FETCHED_BYTES`] in all.
    pub files: Vec<(Bytes, u32)>,
}

impl FetchFiles {
    /// The data of the request.
    ///
    /// # Panics
    ///
    /// When something is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_string(&mut out, &self.directory);
        out.put_u32(count(self.files.len()));
        for (name, length) in &self.files {
            put_string(&mut out, name);
            out.put_u32(*length);
        }
        out.freeze()
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`], also when a limit is exceeded.
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let directory = reader.string()?;
        let files = list(&mut reader, |reader| Ok((reader.string()?, reader.u32()?)))?;
        let mut lengths = files.iter().map(|(_, length)| *length);
        match lengths.try_fold(0, u32::checked_add) {
            Some(..=MAX_FETCHED_BYTES) => Ok(Self { directory, files }),
            _ => Err(MalformedExtension),
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

impl FetchedFiles {
    /// The data of the reply.
    ///
    /// # Panics
    ///
    /// When something is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        /// A code, a count, and attributes with everything.
        const REST: usize = 64;
        let data = self.0.iter().flatten().map(|file| file.data.len() + REST);
        let mut out = BytesMut::with_capacity(4 + data.sum::<usize>());
        out.put_u32(count(self.0.len()));
        for fetched in &self.0 {
            put_outcome(&mut out, fetched.as_ref(), |out, file| {
                file.attributes.put(out);
                put_string(out, &file.data);
            });
        }
        out.freeze()
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let file = |reader: &mut Reader| {
            Ok(FetchedFile {
                attributes: Attributes::take(reader)?,
                data: reader.string()?,
            })
        };
        list(&mut reader, |reader| take_outcome(reader, file)).map(Self)
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn list<T>(
    reader: &mut Reader,
    mut one: impl FnMut(&mut Reader) -> Result<T, MalformedExtension>,
) -> Result<Vec<T>, MalformedExtension> {
    let count = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
    if count <= MAX_WHOLE_FILES {
        (0..count).map(|_| one(reader)).collect()
    } else {
        Err(MalformedExtension)
    }
}

/// Writes a status code and its fields.
fn put_outcome<T>(
    out: &mut BytesMut,
    outcome: Result<T, &Failure>,
    put: impl FnOnce(&mut BytesMut, T),
) {
    match outcome {
        Ok(value) => {
            out.put_u32(status::OK);
            put(out, value);
        }
        Err(failure) => {
            out.put_u32(failure.code);
            put_string(out, &failure.message);
        }
    }
}

fn take_outcome<T>(
    reader: &mut Reader,
    take: impl Fn(&mut Reader) -> Result<T, MalformedExtension>,
) -> Result<Result<T, Failure>, MalformedExtension> {
    Ok(match reader.u32()? {
        status::OK => Ok(take(reader)?),
        code => Err(Failure {
            code,
            message: reader.string()?,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{bytes, survives},
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

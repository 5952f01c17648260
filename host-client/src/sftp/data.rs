//! Bytes that came from a server.

use std::{fmt, ops::Deref};

use bytes::Bytes;

/// Bytes of a file, or of a reply to [`Sftp::extended`](crate::Sftp::extended). Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct FileData(pub(crate) Bytes);

impl Deref for FileData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for FileData {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for FileData {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<FileData> for Vec<u8> {
    /// Copies them unless they are all of what was received with them.
    fn from(data: FileData) -> Self {
        data.0.into()
    }
}

impl fmt::Debug for FileData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! Paths in the guest: bytes, as on the wire and in its kernel.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::error::ClientError;

/// Longest path sent, in bytes: above the kernel's `PATH_MAX` of 4096, far below a frame.
const MAX_PATH_BYTES: usize = 16 * 1024;

/// A path in the guest. It need not be UTF-8. One that came from the guest can be anything but
/// empty: check it before using it on this side, escape it before printing it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemotePath(Bytes);

impl RemotePath {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as a string of the system.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// This path with `name` below it.
    #[must_use]
    pub fn join(&self, name: impl AsRef<[u8]>) -> Self {
        let mut path = self.0.to_vec();
        if path.last().is_some_and(|last| *last != b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_ref());
        Self(path.into())
    }

    /// What is above the last component: `None` for a bare name or the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let parent = Path::new(self.as_os_str()).parent()?;
        if parent.as_os_str().is_empty() {
            None
        } else {
            Some(Self::from(parent))
        }
    }

    /// The last component; `None` for the root and for paths that end in `..`.
    #[must_use]
    pub fn file_name(&self) -> Option<&OsStr> {
        Path::new(self.as_os_str()).file_name()
    }

    /// A path from a server.
    pub(crate) const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The bytes, if they can be sent.
    pub(super) fn checked(self, action: &'static str) -> Result<Bytes, ClientError> {
        let wrong = match self.0.len() {
            0 => "the path is empty",
            1..=MAX_PATH_BYTES if !self.0.contains(&0) => return Ok(self.0),
            1..=MAX_PATH_BYTES => "the path has a NUL byte",
            _ => "the path is too long",
        };
        Err(ClientError::invalid_argument(action, wrong))
    }
}

impl From<Vec<u8>> for RemotePath {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&[u8]> for RemotePath {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl From<&str> for RemotePath {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

impl From<String> for RemotePath {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&OsStr> for RemotePath {
    fn from(text: &OsStr) -> Self {
        Self::from(text.as_bytes())
    }
}

impl From<OsString> for RemotePath {
    fn from(text: OsString) -> Self {
        Self(text.into_vec().into())
    }
}

impl From<&Path> for RemotePath {
    fn from(path: &Path) -> Self {
        Self::from(path.as_os_str())
    }
}

impl From<PathBuf> for RemotePath {
    fn from(path: PathBuf) -> Self {
        Self::from(path.into_os_string())
    }
}

impl From<&PathBuf> for RemotePath {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

impl From<&String> for RemotePath {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Self> for RemotePath {
    fn from(path: &Self) -> Self {
        path.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_below_with_one_slash() {
        assert_eq!(RemotePath::from("/a").join("b").as_bytes(), b"/a/b");
        assert_eq!(RemotePath::from("/").join("b").as_bytes(), b"/b");
    }

    #[test]
    fn a_path_that_cannot_be_sent_is_refused_here() {
        for path in [&b""[..], b"a\0b", &[b'x'; MAX_PATH_BYTES + 1]] {
            RemotePath::from(path).checked("test").unwrap_err();
        }
        RemotePath::from(&b"\xff"[..]).checked("test").unwrap();
    }
}

//! The open files and directories of a session, by handle.

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::{SftpError, access::AccessSet, listing::Listing};
use crate::defaults;

/// Length of a handle, in bytes.
pub(super) const HANDLE_BYTES: usize = size_of::<u64>();

/// An open file or directory, and the path it was opened by.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) kind: Kind,
    pub(super) path: Bytes,
}

/// Kind of an open file.
#[derive(Debug)]
pub(super) enum Kind {
    File {
        file: File,
        /// Whether every write goes to the end.
        appends: bool,
    },
    Directory(Mutex<Listing>),
}

impl Open {
    /// The file.
    ///
    /// # Errors
    ///
    /// [`SftpError::UnknownHandle`] for a directory.
    pub(super) fn file(&self) -> Result<&File, SftpError> {
        match &self.kind {
            Kind::File { file, .. } => Ok(file),
            Kind::Directory(_) => Err(SftpError::UnknownHandle),
        }
    }

    /// The file, unless every write goes to its end.
    pub(super) fn plain_file(&self) -> Option<&File> {
        match &self.kind {
            Kind::File {
                file,
                appends: false,
                ..
            } => Some(file),
            _ => None,
        }
    }

    /// Whether every write goes to the end.
    pub(super) fn appends(&self) -> bool {
        matches!(self.kind, Kind::File { appends: true, .. })
    }
}

/// The open files that a request's handles stand for.
#[derive(Debug)]
pub(super) enum BoundHandles {
    None,
    One(Arc<Open>),
    Two(Arc<Open>, Arc<Open>),
}

/// The handles of a session. Dropping them closes the files that no thread uses.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<u64, Arc<Open>>,
    last: u64,
    /// Handles reserved for what is being opened.
    reserved: usize,
}

impl Handles {
    /// Reserves a handle. Called before anything is opened, so that a refusal creates no file.
    ///
    /// # Errors
    ///
    /// [`SftpError::TooManyHandles`].
    pub(super) fn reserve(&mut self) -> Result<(), SftpError> {
        if self.open.len() + self.reserved < defaults::MAX_SFTP_HANDLES {
            self.reserved += 1;
            Ok(())
        } else {
            Err(SftpError::TooManyHandles)
        }
    }

    /// Releases a reserved handle.
    pub(super) fn release_reservation(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Uses a reserved handle. A handle is never given out twice.
    pub(super) fn insert(&mut self, open: Open) -> Bytes {
        self.release_reservation();
        self.last += 1;
        self.open.insert(self.last, Arc::new(open));
        Bytes::copy_from_slice(&self.last.to_be_bytes())
    }

    /// Removes a handle; the last user of the file closes it.
    pub(super) fn remove(&mut self, handle: &[u8]) -> Option<Arc<Open>> {
        self.open.remove(&number(handle))
    }

    /// What a handle stands for.
    ///
    /// # Errors
    ///
    /// [`SftpError::UnknownHandle`].
    pub(super) fn find(&self, handle: &[u8]) -> Result<Arc<Open>, SftpError> {
        self.find_number(number(handle))
    }

    fn find_number(&self, number: u64) -> Result<Arc<Open>, SftpError> {
        let open = self.open.get(&number).cloned();
        open.ok_or(SftpError::UnknownHandle)
    }

    /// What the handles of a request stand for.
    ///
    /// # Errors
    ///
    /// [`SftpError::UnknownHandle`].
    pub(super) fn bind(&self, access: &AccessSet) -> Result<BoundHandles, SftpError> {
        let mut bound = access.handles().map(|number| self.find_number(number));
        Ok(
            match (bound.next().transpose()?, bound.next().transpose()?) {
                (None, _) => BoundHandles::None,
                (Some(one), None) => BoundHandles::One(one),
                (Some(first), Some(second)) => BoundHandles::Two(first, second),
            },
        )
    }

    /// Adds a change of an open file to what a request uses. A file that is appended to changes as a
    /// whole: where the write goes depends on those before it.
    pub(super) fn add_write(
        &self,
        access: AccessSet,
        handle: &[u8],
        offset: u64,
        length: u64,
    ) -> AccessSet {
        let number = number(handle);
        match self.open.get(&number) {
            None => access.writes(number, offset, length, None),
            Some(open) if open.appends() => {
                access.writes(number, 0, u64::MAX, Some(open.path.clone()))
            }
            Some(open) => access.writes(number, offset, length, Some(open.path.clone())),
        }
    }
}

/// The number in a handle. One that is not ours has a number that is never given out.
pub(super) fn number(handle: &[u8]) -> u64 {
    handle.try_into().map_or(u64::MAX, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Open {
        Open {
            kind: Kind::File {
                file: File::open("/dev/null").unwrap(),
                appends: false,
            },
            path: Bytes::new(),
        }
    }

    #[test]
    fn a_handle_is_never_given_out_twice() {
        let mut handles = Handles::default();
        let first = handles.insert(file());
        handles.find(&first).unwrap().file().unwrap();
        handles.remove(&first).unwrap();
        assert!(handles.find(&first).is_err());
        assert!(handles.remove(&first).is_none());
        assert_ne!(handles.insert(file()), first);
    }

    #[test]
    fn a_guessed_handle_is_unknown() {
        let handles = Handles::default();
        for guess in [&b""[..], b"1", &[0; 8], &[0xff; 300]] {
            assert!(matches!(handles.find(guess), Err(SftpError::UnknownHandle)));
        }
    }

    #[test]
    fn handles_are_limited_and_reserved_ones_count() {
        let mut handles = Handles::default();
        for _ in 1..defaults::MAX_SFTP_HANDLES {
            handles.reserve().unwrap();
            handles.insert(file());
        }
        handles.reserve().unwrap();
        assert!(matches!(handles.reserve(), Err(SftpError::TooManyHandles)));
        handles.release_reservation();
        handles.reserve().unwrap();
    }
}

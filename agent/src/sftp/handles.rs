//! The open files and directories of a session, by the handles the client knows them by.

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::{SftpError, listing::Listing};
use crate::defaults;

/// Length of our handles.
pub(super) const HANDLE_BYTES: usize = size_of::<u64>();

/// Something open, and where it was found.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) kind: Kind,
    pub(super) path: Bytes,
}

/// What is open.
#[derive(Debug)]
pub(super) enum Kind {
    File {
        file: File,
        /// Whether it may be written to.
        writes: bool,
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

    /// The file, if writes to it go where they say.
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

    /// Whether it may be written to.
    pub(super) fn writes(&self) -> bool {
        matches!(self.kind, Kind::File { writes: true, .. })
    }

    /// Whether every write goes to the end.
    pub(super) fn appends(&self) -> bool {
        matches!(self.kind, Kind::File { appends: true, .. })
    }
}

/// The table. Everything in it is closed when it is dropped, and not used any more.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<u64, Arc<Open>>,
    last: u64,
    /// Places kept for what is being opened.
    kept: usize,
}

impl Handles {
    /// Keeps a place. Asked before anything is opened, so that a refusal creates no file.
    ///
    /// # Errors
    ///
    /// [`SftpError::TooManyHandles`].
    pub(super) fn keep_place(&mut self) -> Result<(), SftpError> {
        if self.open.len() + self.kept < defaults::MAX_SFTP_HANDLES {
            self.kept += 1;
            Ok(())
        } else {
            Err(SftpError::TooManyHandles)
        }
    }

    /// Gives a kept place up.
    pub(super) fn free_place(&mut self) {
        self.kept = self.kept.saturating_sub(1);
    }

    /// Puts something in a kept place. A handle is never given out twice.
    pub(super) fn insert(&mut self, open: Open) -> Bytes {
        self.free_place();
        self.last += 1;
        self.open.insert(self.last, Arc::new(open));
        Bytes::copy_from_slice(&self.last.to_be_bytes())
    }

    /// Takes something out; it is closed when nobody uses it any more.
    pub(super) fn remove(&mut self, handle: &[u8]) -> Option<Arc<Open>> {
        self.open.remove(&number(handle)?)
    }

    /// What a handle stands for.
    ///
    /// # Errors
    ///
    /// [`SftpError::UnknownHandle`].
    pub(super) fn find(&self, handle: &[u8]) -> Result<Arc<Open>, SftpError> {
        number(handle)
            .and_then(|number| self.open.get(&number))
            .cloned()
            .ok_or(SftpError::UnknownHandle)
    }
}

/// The number in a handle, if it can be one of ours.
pub(super) fn number(handle: &[u8]) -> Option<u64> {
    handle.try_into().map(u64::from_be_bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Open {
        Open {
            kind: Kind::File {
                file: File::open("/dev/null").unwrap(),
                writes: false,
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
    fn there_is_room_up_to_the_limit_and_what_is_being_opened_counts() {
        let mut handles = Handles::default();
        for _ in 1..defaults::MAX_SFTP_HANDLES {
            handles.keep_place().unwrap();
            handles.insert(file());
        }
        handles.keep_place().unwrap();
        assert!(matches!(
            handles.keep_place(),
            Err(SftpError::TooManyHandles)
        ));
        handles.free_place();
        handles.keep_place().unwrap();
    }
}

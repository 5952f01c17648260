//! The open files and directories of a session, by the handles the client knows them by.

use std::{collections::HashMap, fs::File};

use bytes::Bytes;

use super::{SftpError, listing::Listing};
use crate::defaults;

/// Something open.
#[derive(Debug)]
pub(super) enum Open {
    File(File),
    Directory(Listing),
}

/// The table. Everything in it is closed when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<u64, Open>,
    last: u64,
}

impl Handles {
    /// Whether there is room for one more. Asked before anything is opened, so that a refusal
    /// creates no file.
    pub(super) fn check_room(&self) -> Result<(), SftpError> {
        match self.open.len() < defaults::MAX_SFTP_HANDLES {
            true => Ok(()),
            false => Err(SftpError::TooManyHandles),
        }
    }

    /// Takes something open in. A handle is never given out twice.
    pub(super) fn insert(&mut self, open: Open) -> Bytes {
        self.last += 1;
        self.open.insert(self.last, open);
        Bytes::copy_from_slice(&self.last.to_be_bytes())
    }

    /// Closes.
    pub(super) fn remove(&mut self, handle: &[u8]) -> Result<(), SftpError> {
        let number = number(handle)?;
        self.open
            .remove(&number)
            .map(drop)
            .ok_or(SftpError::UnknownHandle)
    }

    pub(super) fn file(&self, handle: &[u8]) -> Result<&File, SftpError> {
        match self.open.get(&number(handle)?) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(SftpError::UnknownHandle),
        }
    }

    pub(super) fn directory(&mut self, handle: &[u8]) -> Result<&mut Listing, SftpError> {
        match self.open.get_mut(&number(handle)?) {
            Some(Open::Directory(listing)) => Ok(listing),
            _ => Err(SftpError::UnknownHandle),
        }
    }
}

fn number(handle: &[u8]) -> Result<u64, SftpError> {
    handle
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| SftpError::UnknownHandle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_handle_is_unknown_and_not_used_again() {
        let mut handles = Handles::default();
        let file = || Open::File(File::open("/dev/null").unwrap());
        let first = handles.insert(file());
        handles.file(&first).unwrap();
        handles.remove(&first).unwrap();
        assert!(matches!(
            handles.file(&first),
            Err(SftpError::UnknownHandle)
        ));
        assert_ne!(handles.insert(file()), first);
    }

    #[test]
    fn a_guessed_handle_is_unknown() {
        let handles = Handles::default();
        for guess in [&b""[..], b"1", &[0; 8], &[0xff; 300]] {
            assert!(matches!(handles.file(guess), Err(SftpError::UnknownHandle)));
        }
    }

    #[test]
    fn there_is_room_up_to_the_limit() {
        let mut handles = Handles::default();
        for _ in 0..defaults::MAX_SFTP_HANDLES {
            handles.check_room().unwrap();
            handles.insert(Open::File(File::open("/dev/null").unwrap()));
        }
        assert!(matches!(
            handles.check_room(),
            Err(SftpError::TooManyHandles)
        ));
    }
}

//! Listing a directory, a batch at a time, however long it is.

use std::{
    collections::{HashSet, VecDeque},
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    os::unix::ffi::OsStrExt,
};

use bytes::Bytes;

use super::{Sftp, engine::PendingReply, status};
use crate::{
    error::ClientError,
    protocol::sftp::{Attributes, Name, Reply, Request},
};

/// Empty batches in a row after which the listing fails.
const MAX_EMPTY_BATCHES: u32 = 100;

/// Most names remembered to find those that come twice: what a table of 2²⁰ places holds, which
/// takes 9 MiB. Beyond, a listing is still read, but only checked against these: its reader
/// decides how much of an endless one it wants.
const MAX_REMEMBERED_NAMES: usize = 917_504;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirectoryEntry {
    name: Bytes,
    long_name: Bytes,
    /// Its attributes; those of a link itself.
    pub attributes: Attributes,
}

impl DirectoryEntry {
    /// An entry of this name, for tests of functions that take one. The line of the server is empty.
    #[must_use]
    pub fn new(name: impl Into<Vec<u8>>, attributes: Attributes) -> Self {
        Self {
            name: name.into().into(),
            long_name: Bytes::new(),
            attributes,
        }
    }

    /// The name: one component, never empty, `.` or `..`, without a slash or a NUL. It need not be
    /// UTF-8, and may hold terminal control sequences: escape it before printing it.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// The server's line for it, like that of `ls -l`. To be escaped before it is printed.
    #[must_use]
    pub fn long_name(&self) -> &[u8] {
        &self.long_name
    }
}

/// The entries of a directory as they come, in the server's order, without `.` and `..`.
///
/// Dropping it closes the directory.
#[derive(Debug)]
pub struct DirectoryReader {
    sftp: Sftp,
    handle: Bytes,
    batch: VecDeque<Name>,
    /// What the batch takes in memory, until all of it is gone.
    batch_bytes: usize,
    /// The batch after that, asked for while this one is looked at.
    ahead: Option<PendingReply>,
    seen: Seen,
    ended: bool,
    /// Why there is no more after the batch.
    failed: Option<ClientError>,
}

impl DirectoryReader {
    pub(super) fn new(sftp: Sftp, handle: Bytes) -> Self {
        Self {
            sftp,
            handle,
            batch: VecDeque::new(),
            batch_bytes: 0,
            ahead: None,
            seen: Seen::default(),
            ended: false,
            failed: None,
        }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no entry is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, [`ClientError::Protocol`] for a name that is
    /// none or comes twice, or another [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<DirectoryEntry>, ClientError> {
        let mut empty_batches = 0;
        loop {
            while let Some(name) = self.batch.pop_front() {
                if !matches!(&name.name[..], b"." | b"..") {
                    let entry = self.accept(name).map_err(|error| self.sftp.at(error));
                    return entry.map(Some);
                }
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if self.ended {
                return Ok(None);
            }
            empty_batches += 1;
            if empty_batches > MAX_EMPTY_BATCHES {
                let error = ClientError::protocol("a listing without names or an end");
                return Err(self.sftp.at(error));
            }
            self.fetch().await?;
        }
    }

    async fn fetch(&mut self) -> Result<(), ClientError> {
        if self.ahead.is_none() {
            self.ahead = Some(self.ask().await?);
        }
        // Taken only when it is here, or it would be lost when the caller is dropped.
        if let Some(pending) = &mut self.ahead {
            pending.arrived().await;
        }
        let Some(pending) = self.ahead.take() else {
            return Ok(());
        };
        self.batch = VecDeque::new();
        self.batch_bytes = 0;
        self.take(pending).await?;
        if !self.ended {
            self.ahead = Some(self.ask().await?);
        }
        Ok(())
    }

    /// Bytes of memory that it holds while it is left for another: it takes what it has asked for
    /// and asks for no more.
    pub(crate) async fn settle(&mut self) -> usize {
        if let Some(pending) = self.ahead.take()
            && let Err(error) = self.take(pending).await
        {
            self.failed = Some(error);
        }
        self.batch_bytes
    }

    /// Adds a reply to the batch.
    async fn take(&mut self, pending: PendingReply) -> Result<(), ClientError> {
        match pending.reply().await? {
            Reply::Names { names } => {
                // Each keeps the whole frame.
                let bytes = |name: &Name| name.name.len() + name.long_name.len();
                let text: usize = names.iter().map(bytes).sum();
                self.batch_bytes += text + names.len() * size_of::<Name>();
                self.batch.extend(names);
            }
            reply if status::is_end(&reply) => self.ended = true,
            reply => return Err(self.sftp.at(status::refused(reply, "list the directory"))),
        }
        Ok(())
    }

    async fn ask(&self) -> Result<PendingReply, ClientError> {
        let handle = self.handle.clone();
        self.sftp.engine.submit(Request::Readdir { handle }).await
    }

    fn accept(&mut self, name: Name) -> Result<DirectoryEntry, ClientError> {
        if name.name.is_empty() || name.name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(ClientError::protocol("a listing with a name that is none"));
        }
        if self.seen.is_new(&name.name) {
            Ok(DirectoryEntry {
                name: name.name,
                long_name: name.long_name,
                attributes: name.attributes,
            })
        } else {
            Err(ClientError::protocol("a listing with the same name twice"))
        }
    }
}

/// Names that came already, by a hash whose key the server cannot know. Two of a million names have
/// the same by chance in one of 10⁷ listings.
#[derive(Debug, Default)]
struct Seen {
    key: RandomState,
    hashes: HashSet<u64>,
}

impl Seen {
    fn is_new(&mut self, name: &[u8]) -> bool {
        let hash = self.key.hash_one(name);
        if self.hashes.len() < MAX_REMEMBERED_NAMES {
            self.hashes.insert(hash)
        } else {
            !self.hashes.contains(&hash)
        }
    }
}

impl Drop for DirectoryReader {
    fn drop(&mut self) {
        let handle = self.handle.clone();
        let _ = self.sftp.engine.submit_now(&Request::Close { handle });
    }
}

//! Parts that earlier copies left in a directory.

use std::{
    collections::HashMap,
    os::unix::ffi::OsStrExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::part;
use crate::{
    error::ClientError,
    sftp::{RemotePath, Sftp},
};

/// Most names of parts remembered of one directory.
const MAX_NAMES: usize = 10_000;

/// Most entries of a guest's directory that are looked at.
const MAX_ENTRIES: usize = 1_000_000;

/// Names by their stem.
type ByStem = HashMap<Vec<u8>, Vec<Vec<u8>>>;

/// Names of parts in one directory. The copy to their target takes them.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    by_stem: Mutex<ByStem>,
    count: usize,
}

impl Leftovers {
    /// Those in a directory of the guest. One that cannot be listed can still be written to.
    pub(super) async fn in_guest(sftp: &Sftp, directory: &RemotePath) -> Self {
        Self::list(sftp, directory).await.unwrap_or_default()
    }

    async fn list(sftp: &Sftp, directory: &RemotePath) -> Result<Self, ClientError> {
        let mut found = Self::default();
        let mut reader = sftp.read_dir(directory).await?;
        for _ in 0..MAX_ENTRIES {
            let Some(entry) = reader.next().await? else {
                break;
            };
            found.add(entry.name().as_bytes());
        }
        Ok(found)
    }

    /// Remembers a name, if it is that of a part.
    pub(super) fn add(&mut self, name: &[u8]) {
        if let Some(stem) = part::stem_of(name)
            && self.count < MAX_NAMES
        {
            self.count += 1;
            let mut by_stem = self.by_stem();
            let names = by_stem.entry(stem.to_vec()).or_default();
            names.push(name.to_vec());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_stem().is_empty()
    }

    /// The parts of the target `stem`.
    pub(super) fn take(&self, stem: &[u8]) -> Vec<Vec<u8>> {
        self.by_stem().remove(stem).unwrap_or_default()
    }

    fn by_stem(&self) -> MutexGuard<'_, ByStem> {
        self.by_stem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of the target `stem` in a directory of the guest.
pub(super) async fn find(sftp: &Sftp, directory: &RemotePath, stem: &[u8]) -> Vec<Vec<u8>> {
    Leftovers::in_guest(sftp, directory).await.take(stem)
}

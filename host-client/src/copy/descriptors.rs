//! How many files and directories a copy has open at once: what the process may have open
//! (`RLIMIT_NOFILE`, `getrlimit(2)`) and has not.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::CopyError;

/// Descriptors that are left for others: threads that look at a target, the process itself.
const RESERVE: usize = 24;

/// Most descriptors that a file takes while it is copied: it, its directory behind a link, and once
/// more to compare it.
const EACH_FILE: usize = 3;

/// Most descriptors for one copy; more are not of use.
const MAX: usize = 4096;

/// What a copy may open. A file waits for others to be closed; so does a directory, as long as those
/// that are open are not all above it.
#[derive(Debug)]
pub(super) struct Descriptors {
    files: Arc<Semaphore>,
    directories: Arc<Semaphore>,
    most_directories: usize,
}

/// A file or directory that may be open as long as this lives.
pub(super) type Permit = OwnedSemaphorePermit;

impl Descriptors {
    /// From what the process may open now.
    pub(super) fn new() -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self::of(limit.saturating_sub(open + RESERVE).min(MAX))
    }

    fn of(free: usize) -> Self {
        let files = (free / 3 / EACH_FILE).max(1);
        let most_directories = free.saturating_sub(files * EACH_FILE).max(1);
        Self {
            files: Arc::new(Semaphore::new(files)),
            directories: Arc::new(Semaphore::new(most_directories)),
            most_directories,
        }
    }

    /// Waits until one more file may be open.
    pub(super) async fn file(&self) -> Option<Permit> {
        Arc::clone(&self.files).acquire_owned().await.ok()
    }

    /// Waits until one file may be open; as many as that are free, but not more than `most`.
    pub(super) async fn files(&self, most: usize) -> Vec<Permit> {
        let mut permits: Vec<_> = self.file().await.into_iter().collect();
        let more = || Arc::clone(&self.files).try_acquire_owned().ok();
        permits.extend(std::iter::from_fn(more).take(most.saturating_sub(1)));
        permits
    }

    /// Waits until a directory may be open below `depth` others.
    ///
    /// # Errors
    ///
    /// When those are as many as may be open.
    pub(super) async fn directory(&self, depth: usize) -> Result<Option<Permit>, CopyError> {
        if depth >= self.most_directories {
            return Err(CopyError::Limit {
                what: "the depth of directories that can be open at once (RLIMIT_NOFILE)",
                limit: u64::try_from(self.most_directories).unwrap_or(u64::MAX),
            });
        }
        Ok(Arc::clone(&self.directories).acquire_owned().await.ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_always_one_and_never_more_than_are_free() {
        for free in [0, 1, 10, 216, MAX] {
            let descriptors = Descriptors::of(free);
            let files = descriptors.files(usize::MAX).await.len();
            assert!(files > 0);
            assert!(files * EACH_FILE + descriptors.most_directories <= free.max(4));
        }
    }

    #[tokio::test]
    async fn a_level_without_a_descriptor_is_an_error_and_does_not_wait() {
        let descriptors = Descriptors::of(40);
        let mut levels = Vec::new();
        let error = loop {
            match descriptors.directory(levels.len()).await {
                Ok(level) => levels.push(level),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, CopyError::Limit { .. }), "{error}");
    }
}

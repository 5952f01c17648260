//! Limits how many files and directories a copy has open at once: the process's limit (`RLIMIT_NOFILE`,
//! `getrlimit(2)`) less what it has open.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Descriptors that are left for others: threads that look at a target, the process itself.
const RESERVE: usize = 24;

/// Most descriptors that a file takes while it is copied: it, its directory behind a link, and once
/// more to compare it.
const EACH_FILE: usize = 3;

/// Most descriptors for one copy; more are not of use.
const MAX: usize = 4096;

/// Fewest directories that may be open: two of a walk, the one in which it goes on, and one of files
/// that are copied.
const MIN_DIRECTORIES: usize = 4;

/// What a copy may open. A file or a directory waits for others to be closed.
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
        let most_directories = free.saturating_sub(files * EACH_FILE);
        let most_directories = most_directories.max(MIN_DIRECTORIES);
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

    /// Waits until one more directory may be open. A walk keeps only [`Self::most_levels`] open: else
    /// it could wait for itself.
    pub(super) async fn directory(&self) -> Option<Permit> {
        Arc::clone(&self.directories).acquire_owned().await.ok()
    }

    /// Most directories above each other that a walk keeps open. The others are those of files that
    /// are being copied, which the walk has left.
    pub(super) const fn most_levels(&self) -> usize {
        self.most_directories / 2
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
            assert!(files * EACH_FILE + descriptors.most_directories <= free.max(7));
            // One more is open while the walk goes back to the one above it.
            assert!((2..descriptors.most_directories).contains(&descriptors.most_levels()));
        }
    }
}

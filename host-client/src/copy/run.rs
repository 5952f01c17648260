//! State of one copy: session, options, observer, and counts.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    CopyError, CopyEvent, CopyObserver, CopyOptions, CopySummary, InPlace, SkipReason, attributes,
    descriptors::Descriptors, pool::Pool,
};
use crate::{
    protocol::sftp::{
        Attributes,
        extension::{self, Replacement},
    },
    sftp::Sftp,
};

/// Files copied at once.
const MAX_FILES: usize = 128;

/// Entries that the walk may have found and that have not started.
const QUEUE_DEPTH: usize = 64;

/// Requests in flight for several small files each.
const MAX_WHOLE: usize = 8;

/// Files up to this size are held in memory and sent in one request, in bytes.
pub(super) const SMALL_BYTES: u64 = 64 * 1024;

/// The name under which a source goes into a directory. `.` and `..` have none, and neither has
/// the root: their content goes there.
pub(super) fn own_name(source: &OsStr) -> Option<&OsStr> {
    let mut bytes = source.as_bytes();
    while let Some(shorter) = bytes.strip_suffix(b"/") {
        bytes = shorter;
    }
    if bytes == b"." || bytes.ends_with(b"/.") {
        None
    } else {
        Path::new(source).file_name()
    }
}

/// A running copy.
pub(super) struct Run<'a> {
    pub(super) sftp: &'a Sftp,
    pub(super) options: &'a CopyOptions,
    pub(super) pool: Pool,
    pub(super) descriptors: Descriptors,
    /// Whether files must be on their disk.
    pub(super) fsync: bool,
    /// The umask: permissions that new files do not get.
    pub(super) umask: u32,
    /// Whether there is one file only, whose error is that of the copy.
    single: bool,
    observer: &'a dyn CopyObserver,
    /// For [`MAX_WHOLE`]; nothing where files go one by one.
    whole: Option<Arc<Semaphore>>,
    tally: Mutex<Tally>,
    /// What was copied so far, below the destination, and whether it is a directory; only where two
    /// sources can have the same name.
    names: Option<Mutex<HashMap<Vec<u8>, bool>>>,
}

#[derive(Debug, Default)]
struct Tally {
    summary: CopySummary,
    entries: u64,
    bytes: u64,
    /// Bytes that were copied or will be, counted against [`CopyOptions::max_bytes`].
    reserved: u64,
}

/// Bytes that will be copied, counted against the limit. Dropping it gives back those that were not.
pub(super) struct Reservation<'r, 'a> {
    run: &'r Run<'a>,
    left: u64,
}

impl Reservation<'_, '_> {
    /// Counts copied bytes, also more than were reserved if the limit allows that.
    pub(super) fn copied(&mut self, bytes: u64) -> Result<(), CopyError> {
        let reserved = bytes.min(self.left);
        self.left -= reserved;
        if bytes == 0 {
            return Ok(());
        }
        {
            let summary = &mut self.run.tally().summary;
            summary.bytes = summary.bytes.saturating_add(bytes);
        }
        self.run.observer.observe(CopyEvent::Moved { bytes });
        self.run.reserve_more(bytes - reserved)
    }
}

impl Drop for Reservation<'_, '_> {
    fn drop(&mut self) {
        let mut tally = self.run.tally();
        tally.reserved = tally.reserved.saturating_sub(self.left);
    }
}

/// Events of a file that is complete.
#[derive(Debug, Default)]
pub(super) struct Completed {
    /// Why it was written in place, if the options did not ask for that.
    pub(super) in_place: Option<InPlace>,
    /// Why what earlier copies left is still there.
    pub(super) left: Option<CopyError>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        sftp: &'a Sftp,
        options: &'a CopyOptions,
        observer: &'a dyn CopyObserver,
        single: bool,
    ) -> Self {
        let fsync = options.fsync.unwrap_or(single);
        let extensions = [extension::STORE, extension::FETCH];
        let whole = extensions.iter().all(|name| sftp.has_extension(name));
        // To wait for a disk, or to look at what is there, is for each file by itself.
        let whole = whole && !fsync && !options.resume && !options.in_place;
        Self {
            sftp,
            options,
            pool: Pool::new(),
            descriptors: Descriptors::new(),
            fsync,
            umask: 0,
            single,
            observer,
            whole: whole.then(|| Arc::new(Semaphore::new(MAX_WHOLE))),
            tally: Mutex::default(),
            names: None,
        }
    }

    /// Has [`Self::is_first`] look for the same names in these sources, if there can be any.
    pub(super) fn compare_names<'s>(&mut self, sources: impl Iterator<Item = &'s OsStr>) {
        let mut names = HashSet::new();
        let mut count = 0;
        for source in sources {
            names.insert(own_name(source));
            count += 1;
        }
        // What is in a source without a name goes beside the others.
        if count > 1 && (names.len() < count || names.contains(&None)) {
            self.names = Some(Mutex::default());
        }
    }

    /// Whether nothing else of this copy has the name yet, or both are directories.
    ///
    /// # Errors
    ///
    /// [`CopyError::JustCopied`].
    pub(super) fn is_first(
        &self,
        name: impl FnOnce() -> Vec<u8>,
        is_directory: bool,
    ) -> Result<(), CopyError> {
        let Some(names) = &self.names else {
            return Ok(());
        };
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        match names.entry(name()) {
            Entry::Vacant(free) => {
                free.insert(is_directory);
                Ok(())
            }
            Entry::Occupied(first) if *first.get() && is_directory => Ok(()),
            Entry::Occupied(_) => Err(CopyError::JustCopied),
        }
    }

    /// The attributes that a copy of a guest's file gets.
    pub(super) fn attributes_to_set(&self, attributes: &Attributes) -> Attributes {
        let mut wanted = attributes::to_set(attributes, self.options);
        if self.options.mode.is_none() || attributes::is_directory(attributes) {
            wanted.permissions = wanted.permissions.map(|mode| mode & !self.umask);
        }
        wanted
    }

    /// What existing files keep when they are replaced.
    pub(super) fn replacement(&self) -> Replacement {
        let options = self.options;
        Replacement {
            sets_mode: options.preserve || options.mode.is_some(),
            sets_owner: options.owners,
            leaves_links: !options.no_dereference,
            syncs_directory: self.fsync,
        }
    }

    /// Whether files of the guest must be on their disk, and the server can say that they are.
    pub(super) fn syncs_remote(&self) -> bool {
        self.fsync && self.sftp.has_extension(extension::FSYNC)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn is_single(&self) -> bool {
        self.single
    }

    /// A permit for a request for several small files, if they may be sent together.
    pub(super) async fn whole(&self) -> Option<OwnedSemaphorePermit> {
        let whole = Arc::clone(self.whole.as_ref()?);
        whole.acquire_owned().await.ok()
    }

    /// Whether small files may go together.
    pub(super) const fn has_whole(&self) -> bool {
        self.whole.is_some()
    }

    pub(super) fn summary(&self) -> CopySummary {
        self.tally().summary
    }

    /// One more entry was found; not more than the options allow.
    pub(super) fn found(&self, bytes: u64) -> Result<(), CopyError> {
        {
            let mut tally = self.tally();
            tally.entries += 1;
            tally.bytes = tally.bytes.saturating_add(bytes);
            if tally.entries > self.options.max_entries {
                return Err(CopyError::Limit {
                    what: "the number of entries",
                    limit: self.options.max_entries,
                });
            }
        }
        self.observer
            .observe(CopyEvent::Found { bytes, entries: 1 });
        Ok(())
    }

    /// Whether a directory may be entered below `depth` others.
    pub(super) fn may_enter(&self, depth: usize) -> Result<(), CopyError> {
        if depth < self.options.max_depth {
            Ok(())
        } else {
            Err(CopyError::Limit {
                what: "the depth of directories",
                limit: u64::try_from(self.options.max_depth).unwrap_or(u64::MAX),
            })
        }
    }

    pub(super) fn started(&self, path: &[u8], size: Option<u64>, resumed_at: u64) {
        self.observer.observe(CopyEvent::Started {
            path,
            size,
            resumed_at,
        });
    }

    /// Reserves bytes that will be copied.
    ///
    /// # Errors
    ///
    /// [`CopyError::Limit`].
    pub(super) fn reserve(&self, bytes: u64) -> Result<Reservation<'_, 'a>, CopyError> {
        self.reserve_more(bytes)?;
        Ok(Reservation {
            run: self,
            left: bytes,
        })
    }

    fn reserve_more(&self, bytes: u64) -> Result<(), CopyError> {
        let mut tally = self.tally();
        let reserved = tally.reserved.saturating_add(bytes);
        match self.options.max_bytes {
            Some(limit) if reserved > limit => Err(CopyError::Limit {
                what: "the number of bytes",
                limit,
            }),
            _ => {
                tally.reserved = reserved;
                Ok(())
            }
        }
    }

    /// Counts copied bytes that were not reserved.
    pub(super) fn moved(&self, bytes: u64) -> Result<(), CopyError> {
        self.reserve(0)?.copied(bytes)
    }

    pub(super) fn finished(
        &self,
        path: &[u8],
        bytes: u64,
        count: impl FnOnce(&mut CopySummary) -> &mut u64,
    ) {
        *count(&mut self.tally().summary) += 1;
        self.observer.observe(CopyEvent::Finished { path, bytes });
    }

    /// A source changed while it was copied.
    pub(super) fn changed(&self, path: &[u8]) {
        self.observer.observe(CopyEvent::Changed { path });
    }

    pub(super) fn skipped(&self, path: &[u8], reason: SkipReason) {
        self.tally().summary.skipped += 1;
        self.observer.observe(CopyEvent::Skipped { path, reason });
    }

    /// Reports a file that is written in place although the options do not ask for it.
    pub(super) fn in_place(&self, path: &[u8], reason: InPlace) {
        self.observer.observe(CopyEvent::InPlace { path, reason });
    }

    /// The same, if there is a reason.
    pub(super) fn report_in_place(&self, path: &[u8], reason: Option<InPlace>) {
        if let Some(reason) = reason {
            self.in_place(path, reason);
        }
    }

    /// A file is complete.
    pub(super) fn completed(&self, path: &[u8], completed: Completed) {
        self.report_in_place(path, completed.in_place);
        self.removed(path, completed.left.map_or(Ok(()), Err));
    }

    /// Reports the part of an earlier copy that could not be removed beside a complete file.
    pub(super) fn removed(&self, path: &[u8], removed: Result<(), CopyError>) {
        if let Err(error) = &removed {
            self.observer.observe(CopyEvent::LeftBehind { path, error });
        }
    }

    /// Reports an error. It ends the copy if there is one file only, or the connection or a limit failed.
    pub(super) fn failed(&self, path: &[u8], error: CopyError) -> Result<(), CopyError> {
        if self.single || self.sftp.has_ended() || matches!(error, CopyError::Limit { .. }) {
            return Err(error);
        }
        self.tally().summary.failed += 1;
        self.observer.observe(CopyEvent::Failed {
            path,
            error: &error,
        });
        Ok(())
    }

    /// Copies what `walk` finds, as it finds it. What is asked of the guest at one time is sent at
    /// once.
    pub(super) async fn drive<W, Walk, Each>(
        &self,
        walk: impl FnOnce(mpsc::Sender<W>) -> Walk,
        each: impl Fn(W) -> Each,
    ) -> Result<(), CopyError>
    where
        Walk: Future<Output = Result<(), CopyError>>,
        Each: Future<Output = Result<(), CopyError>>,
    {
        let (sender, mut queue) = mpsc::channel(QUEUE_DEPTH);
        let mut walk = pin!(walk(sender));
        let mut files = FuturesUnordered::new();
        let (mut walked, mut ended) = (false, false);
        let work = async {
            while !(walked && ended && files.is_empty()) {
                tokio::select! {
                    biased;
                    Some(done) = files.next(), if !files.is_empty() => done?,
                    work = queue.recv(), if !ended && files.len() < MAX_FILES => match work {
                        Some(work) => files.push(each(work)),
                        None => ended = true,
                    },
                    result = &mut walk, if !walked => {
                        result?;
                        walked = true;
                    }
                }
            }
            Ok(())
        };
        let mut work = pin!(work);
        std::future::poll_fn(|cx| -> Poll<Result<(), CopyError>> {
            let _cork = self.sftp.cork();
            work.as_mut().poll(cx)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_ends_in_a_dot_has_no_name_of_its_own() {
        let named = |path| own_name(OsStr::new(path)).and_then(OsStr::to_str);
        assert_eq!(
            ["a", "/a/b", "a/", "a/b//", ".a", "a."].map(named),
            ["a", "b", "a", "b", ".a", "a."].map(Some)
        );
        assert_eq!(
            [".", "..", "/", "a/.", "a/./", "a/..", ""].map(named),
            [None; 7]
        );
    }
}

//! A copy that owns its arguments: for tasks and `select!`, and as a stream of what happens.

use std::{
    collections::VecDeque,
    fmt,
    future::IntoFuture,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::{
    FutureExt, Stream,
    future::{BoxFuture, Fuse, FusedFuture},
};

use super::{
    CopyError, CopyEvent, CopyObserver, CopyOptions, CopySummary, InPlace, SkipReason, pull, push,
};
use crate::{
    protocol::printable::with_causes,
    sftp::{RemotePath, Sftp},
};

/// A copy into the guest or out of it, as by [`push()`] or [`pull()`]. It starts when it is awaited, or when
/// its [events](Self::events) are read.
///
/// ```no_run
/// use vsock_agent_client::{Sftp, copy::{CopyError, CopyJob, CopyUpdate}};
///
/// async fn upload(sftp: &Sftp) -> Result<(), CopyError> {
///     let mut events = CopyJob::push(sftp, ["site"], "/srv/").recursive(true).events();
///     while let Some(event) = events.next().await {
///         match event? {
///             CopyUpdate::Finished { bytes, .. } => println!("{bytes} bytes more"),
///             CopyUpdate::Done(summary) => println!("{} bytes in all", summary.bytes),
///             _ => {}
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a copy starts when it is awaited"]
pub struct CopyJob {
    sftp: Sftp,
    paths: Paths,
    options: CopyOptions,
}

#[derive(Debug, Clone)]
enum Paths {
    Push(Vec<PathBuf>, RemotePath),
    Pull(Vec<RemotePath>, PathBuf),
}

impl CopyJob {
    /// A copy into the guest.
    pub fn push<S: Into<PathBuf>>(
        sftp: &Sftp,
        sources: impl IntoIterator<Item = S>,
        destination: impl Into<RemotePath>,
    ) -> Self {
        let sources = sources.into_iter().map(Into::into).collect();
        Self::new(sftp, Paths::Push(sources, destination.into()))
    }

    /// A copy out of the guest.
    pub fn pull<S: Into<RemotePath>>(
        sftp: &Sftp,
        sources: impl IntoIterator<Item = S>,
        destination: impl Into<PathBuf>,
    ) -> Self {
        let sources = sources.into_iter().map(Into::into).collect();
        Self::new(sftp, Paths::Pull(sources, destination.into()))
    }

    fn new(sftp: &Sftp, paths: Paths) -> Self {
        Self {
            sftp: sftp.clone(),
            paths,
            options: CopyOptions::default(),
        }
    }

    /// Copies with these options.
    pub fn options(mut self, options: CopyOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets [`CopyOptions::recursive`].
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.options.recursive = recursive;
        self
    }

    /// Starts it when the stream is read. Dropping the stream ends the copy, as dropping its future does.
    pub fn events(self) -> CopyEvents {
        let updates = Arc::<Updates>::default();
        let observer = Arc::clone(&updates);
        let copy = async move { self.run(&*observer).await };
        CopyEvents {
            updates,
            copy: Mutex::new(copy.boxed().fuse()),
        }
    }

    async fn run(self, observer: &dyn CopyObserver) -> Result<CopySummary, CopyError> {
        let Self {
            sftp,
            paths,
            options,
        } = self;
        match paths {
            Paths::Push(sources, to) => push(&sftp, &sources, &to, &options, observer).await,
            Paths::Pull(sources, to) => pull(&sftp, &sources, &to, &options, observer).await,
        }
    }
}

impl IntoFuture for CopyJob {
    type Output = Result<CopySummary, CopyError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move { self.run(&()).await }.boxed()
    }
}

/// What happens during a copy: a [`CopyEvent`] that owns its path, or the end. Paths are those of the
/// sources; one of a guest may hold terminal control sequences, and so may an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyUpdate {
    /// The walk found more. See [`CopyEvent::Found`].
    Found {
        /// Bytes of files that were found since the last such event.
        bytes: u64,
        /// Files, directories and links that were found since then.
        entries: u64,
    },
    /// A file is being copied.
    Started {
        /// Path of the source.
        path: Vec<u8>,
        /// Its size, as far as known. That of a guest's file may be a lie.
        size: Option<u64>,
        /// Bytes that were there from an earlier copy.
        resumed_at: u64,
    },
    /// Bytes of some file were copied.
    Moved {
        /// How many since the last such event.
        bytes: u64,
    },
    /// A file, directory or link is complete under its name.
    Finished {
        /// Path of the source.
        path: Vec<u8>,
        /// Its bytes; 0 for what is no file.
        bytes: u64,
    },
    /// A source grew or changed while it was copied. See [`CopyEvent::Changed`].
    Changed {
        /// Path of the source.
        path: Vec<u8>,
    },
    /// Something was not copied, and that is no failure.
    Skipped {
        /// Path of the source.
        path: Vec<u8>,
        /// Reason.
        reason: SkipReason,
    },
    /// A file is written to instead of being replaced. See [`CopyEvent::InPlace`].
    InPlace {
        /// Path of the source.
        path: Vec<u8>,
        /// Reason.
        reason: InPlace,
    },
    /// What an earlier copy left beside a file could not be removed.
    LeftBehind {
        /// Path of the source.
        path: Vec<u8>,
        /// Error of the file, with its causes.
        error: String,
    },
    /// Something could not be copied. The rest goes on.
    Failed {
        /// Path of the source.
        path: Vec<u8>,
        /// Error of the file, with its causes.
        error: String,
    },
    /// The copy has ended. Nothing follows.
    Done(CopySummary),
}

impl From<CopyEvent<'_>> for CopyUpdate {
    fn from(event: CopyEvent<'_>) -> Self {
        match event {
            CopyEvent::Found { bytes, entries } => Self::Found { bytes, entries },
            CopyEvent::Started {
                path,
                size,
                resumed_at,
            } => Self::Started {
                path: path.to_vec(),
                size,
                resumed_at,
            },
            CopyEvent::Moved { bytes } => Self::Moved { bytes },
            CopyEvent::Finished { path, bytes } => Self::Finished {
                path: path.to_vec(),
                bytes,
            },
            CopyEvent::Changed { path } => Self::Changed {
                path: path.to_vec(),
            },
            CopyEvent::Skipped { path, reason } => Self::Skipped {
                path: path.to_vec(),
                reason,
            },
            CopyEvent::InPlace { path, reason } => Self::InPlace {
                path: path.to_vec(),
                reason,
            },
            CopyEvent::LeftBehind { path, error } => Self::LeftBehind {
                path: path.to_vec(),
                error: with_causes(error),
            },
            CopyEvent::Failed { path, error } => Self::Failed {
                path: path.to_vec(),
                error: with_causes(error),
            },
        }
    }
}

/// The events of a copy, and its end: [`CopyUpdate::Done`], or an error.
///
/// The copy goes on only while the stream is read.
#[must_use = "a copy starts when its events are read"]
pub struct CopyEvents {
    updates: Arc<Updates>,
    // Only for `Sync`: it is never locked.
    copy: Mutex<Fuse<BoxFuture<'static, Result<CopySummary, CopyError>>>>,
}

/// What happened since the stream was read the last time: at most what one poll of the copy does.
#[derive(Debug, Default)]
struct Updates(Mutex<VecDeque<Result<CopyUpdate, CopyError>>>);

impl Updates {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Result<CopyUpdate, CopyError>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CopyObserver for Updates {
    fn observe(&self, event: CopyEvent<'_>) {
        self.lock().push_back(Ok(event.into()));
    }
}

impl fmt::Debug for CopyEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyEvents").finish_non_exhaustive()
    }
}

impl CopyEvents {
    /// The next event; `None` after the end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no event is lost when the future is dropped, and the copy goes on with the next call.
    ///
    /// # Errors
    ///
    /// As of [`push()`].
    pub async fn next(&mut self) -> Option<Result<CopyUpdate, CopyError>> {
        futures_util::StreamExt::next(self).await
    }
}

impl Stream for CopyEvents {
    type Item = Result<CopyUpdate, CopyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // What is there first: a slow reader holds the copy back.
        if let Some(update) = this.updates.lock().pop_front() {
            return Poll::Ready(Some(update));
        }
        let copy = this.copy.get_mut().unwrap_or_else(PoisonError::into_inner);
        if copy.is_terminated() {
            return Poll::Ready(None);
        }
        let polled = copy.poll_unpin(cx);
        let mut updates = this.updates.lock();
        if let Poll::Ready(end) = polled {
            updates.push_back(end.map(CopyUpdate::Done));
        }
        match updates.pop_front() {
            Some(update) => Poll::Ready(Some(update)),
            None => Poll::Pending,
        }
    }
}

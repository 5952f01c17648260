//! Into the guest: a walk over local directories, and many files at once.

pub(super) mod file;
mod link;
mod stream;
mod whole;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};
use tracing::instrument;

pub use self::stream::{push_stream, push_stream_if};
use super::{
    CopyError, CopyObserver, CopyOptions, CopySummary, SkipReason,
    attributes::{self, Kind, SETGID},
    descriptors::Permit,
    local::shown,
    run::{Run, own_name},
    scan::{self, Found, Scanner},
};
use crate::{
    error::ClientError,
    protocol::sftp::{Attributes, extension},
    sftp::{RemotePath, Sftp},
};

/// How long a guest may take to remove what a failed copy leaves.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// A directory in the guest that is being filled.
#[derive(Debug)]
struct Directory {
    path: RemotePath,
    /// The local one, for people.
    source: Vec<u8>,
    /// Whether it is copied itself, not only what is in it.
    is_copied: bool,
    /// What it gets when it is full; nothing for one that was there.
    attributes: Option<Attributes>,
    /// Whether directories that are made in it get the bit of its group.
    has_setgid: bool,
    parent: Option<Arc<Directory>>,
}

/// Something to be put into a directory.
#[derive(Debug)]
struct Work {
    directory: Arc<Directory>,
    what: What,
}

/// What is to be put there.
#[derive(Debug)]
enum What {
    One {
        name: OsString,
        source: Vec<u8>,
        found: Box<Found>,
    },
    Files(whole::Files),
}

/// A directory that is being walked.
#[derive(Debug)]
struct Level {
    scanner: Arc<Mutex<Scanner>>,
    directory: Arc<Directory>,
    waiting: Vec<OsString>,
    ended: bool,
    /// None while the local directory is closed, as those high above the one that is being walked are:
    /// a deep tree does not need a descriptor for each level.
    open: Option<Permit>,
}

/// Copies into the guest.
///
/// If `destination` is a directory, each source goes into it under its last component. Several
/// sources need one. A directory that is copied to nothing becomes `destination`. With
/// [`CopyOptions::exact`] the source becomes it in any case.
///
/// # Cancel safety
///
/// When the future is dropped, the copy ends. Files that are complete stay; what is unfinished is removed,
/// which [`Sftp::removed`] waits for.
///
/// # Errors
///
/// [`CopyError`] when nothing more can be done: the connection broke, a limit was reached, or the
/// destination is wrong. Also when there is one source and it is no directory and fails. Every
/// other error is reported to `observer` and counted in [`CopySummary::failed`].
#[instrument(level = "debug", name = "copy", skip_all, fields(endpoint = sftp.endpoint().map(display), direction = "push"))]
pub async fn push(
    sftp: &Sftp,
    sources: &[PathBuf],
    destination: &RemotePath,
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> Result<CopySummary, CopyError> {
    let is_tree = matches!(sources, [source] if options.recursive && source.is_dir());
    let is_directory = match options.exact {
        true if sources.len() != 1 => return Err(CopyError::NotADirectory),
        true => false,
        false => {
            let needed = sources.len() > 1 || !is_tree && destination.as_bytes().ends_with(b"/");
            is_directory(sftp, destination, needed).await?
        }
    };
    let single = sources.len() == 1 && !is_tree;
    let mut run = Run::new(sftp, options, observer, single);
    run.compare_names(sources.iter().map(|source| source.as_os_str()));
    let walk = |queue| walk_all(&run, sources, destination, is_directory, queue);
    let driven = run.drive(walk, |work| put(&run, work)).await;
    clean_up(sftp).await;
    driven?;
    Ok(run.summary())
}

/// Waits until nothing is left of what failed. A guest that does not answer is not waited for.
pub(super) async fn clean_up(sftp: &Sftp) {
    let _ = timeout(CLEAN_UP_TIMEOUT, sftp.removed()).await;
}

/// Whether the destination is a directory, as may be `needed`.
async fn is_directory(
    sftp: &Sftp,
    destination: &RemotePath,
    needed: bool,
) -> Result<bool, CopyError> {
    let is_directory = match sftp.stat(destination).await {
        Ok(attributes) => attributes::kind(&attributes) == Some(Kind::Directory),
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(error.into()),
    };
    if !is_directory && needed {
        Err(CopyError::NotADirectory)
    } else {
        Ok(is_directory)
    }
}

async fn walk_all(
    run: &Run<'_>,
    sources: &[PathBuf],
    destination: &RemotePath,
    is_directory: bool,
    queue: mpsc::Sender<Work>,
) -> Result<(), CopyError> {
    let (path, target) = if is_directory {
        (destination.clone(), None)
    } else {
        (
            destination.parent().unwrap_or_else(|| ".".into()),
            Some(destination.file_name().ok_or(CopyError::NoName)?.to_owned()),
        )
    };
    let has_setgid = if run.options.recursive {
        has_setgid(&run.sftp.stat(&path).await.unwrap_or_default())
    } else {
        false
    };
    let root = Arc::new(Directory {
        path,
        source: Vec::new(),
        is_copied: false,
        attributes: None,
        has_setgid,
        parent: None,
    });
    for source in sources {
        let shown = source.as_os_str().as_bytes().to_vec();
        if let Err(error) = walk_one(run, source, &root, target.as_ref(), &queue).await {
            run.failed(&shown, error)?;
        }
    }
    Ok(())
}

async fn walk_one(
    run: &Run<'_>,
    source: &Path,
    root: &Arc<Directory>,
    target: Option<&OsString>,
    queue: &mpsc::Sender<Work>,
) -> Result<(), CopyError> {
    let (path, links) = (source.to_owned(), run.options.recursive);
    let open = run.descriptors.file().await;
    let found = move || scan::top(&path, links, open);
    let found = run.pool.run_long(found).await??;
    let name = match (target, own_name(source.as_os_str())) {
        (Some(target), _) => target.clone(),
        (None, Some(name)) => name.to_owned(),
        // Such as `.` and `..`: their content goes into the destination itself.
        (None, None) if matches!(found, Found::Directory(_)) => OsString::from("."),
        (None, None) => return Err(CopyError::NoName),
    };
    let shown = source.as_os_str().as_bytes().to_vec();
    match found {
        Found::Directory(_) if !run.options.recursive => Err(CopyError::IsADirectory),
        Found::Directory(scanner) => walk_tree(run, scanner, root, name, shown, queue).await,
        found => {
            run.is_first(
                || root.path.join(name.as_bytes()).as_bytes().to_vec(),
                false,
            )?;
            run.found(size(&found))?;
            let what = What::One {
                name,
                source: shown,
                found: Box::new(found),
            };
            send(queue, root, what).await;
            Ok(())
        }
    }
}

fn size(found: &Found) -> u64 {
    match found {
        Found::File(file) => file.metadata.len(),
        _ => 0,
    }
}

async fn send(queue: &mpsc::Sender<Work>, directory: &Arc<Directory>, what: What) {
    let directory = Arc::clone(directory);
    // Fails only if the copy has ended.
    let _ = queue.send(Work { directory, what }).await;
}

async fn walk_tree(
    run: &Run<'_>,
    scanner: Box<Scanner>,
    root: &Arc<Directory>,
    name: OsString,
    source: Vec<u8>,
    queue: &mpsc::Sender<Work>,
) -> Result<(), CopyError> {
    let open = run.descriptors.directory().await;
    let mut levels = vec![Level::make(run, scanner, root, &name, source, open).await?];
    while let (depth, Some(level)) = (levels.len(), levels.last_mut()) {
        if let Some(name) = level.waiting.pop() {
            run.may_enter(depth)?;
            let source = shown(&level.directory.source, &name);
            // The next one is open too.
            if let Some(above) = depth.checked_sub(run.descriptors.most_levels())
                && let Some(above) = levels.get_mut(above)
            {
                above.close(run).await?;
            }
            let Some(level) = levels.last() else { break };
            match enter(run, level, &name, &source).await {
                Ok(next) => levels.push(next),
                Err(error) => run.failed(&source, error)?,
            }
        } else if level.ended {
            if let Some(level) = levels.pop() {
                if let Some(above) = levels.last_mut() {
                    above.reopen(run, &level).await?;
                }
                level.directory.leave(run).await?;
            }
        } else {
            level.next(run, queue).await?;
        }
    }
    Ok(())
}

async fn enter(
    run: &Run<'_>,
    level: &Level,
    name: &OsString,
    source: &[u8],
) -> Result<Level, CopyError> {
    run.found(0)?;
    let permit = run.descriptors.directory().await;
    let (scanner, below) = (Arc::clone(&level.scanner), name.clone());
    let open = move || lock(&scanner).enter(&below);
    match run.pool.run_long(open).await?? {
        Found::Directory(scanner) => {
            let source = source.to_vec();
            Level::make(run, scanner, &level.directory, name, source, permit).await
        }
        // It was a directory a moment ago.
        _ => Err(CopyError::Changed),
    }
}

impl Level {
    /// Makes the directory in the guest.
    async fn make(
        run: &Run<'_>,
        scanner: Box<Scanner>,
        parent: &Arc<Directory>,
        name: &OsString,
        source: Vec<u8>,
        open: Option<Permit>,
    ) -> Result<Self, CopyError> {
        // Into the destination itself, which keeps its own mode.
        let is_parent = name == ".";
        let path = if is_parent {
            parent.path.clone()
        } else {
            parent.path.join(name.as_bytes())
        };
        if !is_parent {
            run.is_first(|| path.as_bytes().to_vec(), true)?;
        }
        let mut attributes = attributes::of(&scanner.metadata, run.options);
        let there = make_directory(run.sftp, &path, &attributes).await?;
        let has_setgid = there.as_ref().map_or(parent.has_setgid, has_setgid);
        if let Some(mode) = &mut attributes.permissions
            && has_setgid
            && !run.options.special_bits
        {
            *mode |= SETGID;
        }
        let directory = Directory {
            path,
            source,
            is_copied: !is_parent,
            attributes: there.is_none().then_some(attributes),
            has_setgid,
            parent: Some(Arc::clone(parent)),
        };
        Ok(Self {
            scanner: Arc::new(Mutex::new(*scanner)),
            directory: Arc::new(directory),
            waiting: Vec::new(),
            ended: false,
            open,
        })
    }

    /// Closes the local directory.
    async fn close(&mut self, run: &Run<'_>) -> Result<(), CopyError> {
        if self.open.is_none() {
            return Ok(());
        }
        let scanner = Arc::clone(&self.scanner);
        let close = move || lock(&scanner).close();
        let closed = run.pool.run_long(close).await?;
        self.open = None;
        match closed {
            Ok(directories) => self.waiting.extend(directories),
            Err(error) => run.failed(&self.directory.source, error)?,
        }
        Ok(())
    }

    /// Opens the local directory again, if it was closed, by one that is in it.
    async fn reopen(&mut self, run: &Run<'_>, below: &Self) -> Result<(), CopyError> {
        if self.open.is_some() {
            return Ok(());
        }
        self.open = run.descriptors.directory().await;
        let (above, below) = (Arc::clone(&self.scanner), Arc::clone(&below.scanner));
        let reopen = move || lock(&above).reopen(&lock(&below));
        run.pool.run_long(reopen).await?
    }

    /// Reads some more of the directory.
    async fn next(&mut self, run: &Run<'_>, queue: &mpsc::Sender<Work>) -> Result<(), CopyError> {
        // A server without the extension to replace files needs a request for each step.
        let permit = if run.sftp.replaces() {
            run.whole().await
        } else {
            None
        };
        let scanner = Arc::clone(&self.scanner);
        let open = run.descriptors.files(scan::BATCH).await;
        let scan = move || lock(&scanner).next(open);
        let batch = match run.pool.run_long(scan).await? {
            Ok(batch) => batch,
            Err(error) => {
                self.ended = true;
                return run.failed(&self.directory.source, error);
            }
        };
        self.ended = batch.ended;
        self.waiting.extend(batch.directories);
        let mut files = Vec::new();
        for (name, found) in batch.found {
            let path = || self.directory.path.join(name.as_bytes());
            if let Err(error) = run.is_first(|| path().as_bytes().to_vec(), false) {
                run.failed(&shown(&self.directory.source, &name), error)?;
                continue;
            }
            run.found(size(&found))?;
            if permit.is_some() && whole::is_fit(&found) {
                files.push((name, found));
                continue;
            }
            let what = What::One {
                source: shown(&self.directory.source, &name),
                name,
                found: Box::new(found),
            };
            send(queue, &self.directory, what).await;
        }
        if let Some(_permit) = permit.filter(|_| !files.is_empty()) {
            let what = What::Files(whole::Files { files, _permit });
            send(queue, &self.directory, what).await;
        }
        Ok(())
    }
}

fn lock(scanner: &Mutex<Scanner>) -> MutexGuard<'_, Scanner> {
    scanner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_setgid(attributes: &Attributes) -> bool {
    attributes
        .permissions
        .is_some_and(|mode| mode & SETGID != 0)
}

/// Makes a directory that is to get `attributes`, or finds it there; then returns its attributes.
async fn make_directory(
    sftp: &Sftp,
    path: &RemotePath,
    attributes: &Attributes,
) -> Result<Option<Attributes>, CopyError> {
    let mode = attributes::mode(attributes::filled_mode(attributes));
    let refused = match sftp.mkdir(path, mode).await {
        Ok(()) => return Ok(None),
        Err(error @ ClientError::File { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    // Servers have no code for "it exists".
    match sftp.lstat(path).await {
        Ok(there) if attributes::is_directory(&there) => Ok(Some(there)),
        Ok(there) if attributes::kind(&there) == Some(Kind::Link) => {
            // The guest's own links to directories are the guest's own affair.
            match sftp.stat(path).await {
                Ok(to) if attributes::is_directory(&to) => Ok(Some(to)),
                _ => Err(CopyError::InTheWay),
            }
        }
        Ok(_) => Err(CopyError::InTheWay),
        Err(_) => Err(refused.into()),
    }
}

impl Directory {
    /// Whether this copy made it: nothing else is in it.
    const fn is_new(&self) -> bool {
        self.attributes.is_some()
    }

    /// One user less. The last one gives the directory its attributes: nothing in it changes any
    /// more.
    async fn leave(self: Arc<Self>, run: &Run<'_>) -> Result<(), CopyError> {
        let mut next = Some(self);
        while let Some(directory) = next.take().and_then(Arc::into_inner) {
            next = directory.parent;
            if !directory.is_copied {
                continue;
            }
            let set = match directory.attributes {
                Some(attributes) => run.sftp.setstat(&directory.path, attributes).await,
                None => Ok(()),
            };
            match set {
                Ok(()) => run.finished(&directory.source, 0, |summary| &mut summary.directories),
                Err(error) => run.failed(&directory.source, error.into())?,
            }
        }
        Ok(())
    }
}

/// Puts one thing into the guest.
async fn put(run: &Run<'_>, work: Work) -> Result<(), CopyError> {
    let Work { directory, what } = work;
    match what {
        What::One {
            name,
            source,
            found,
        } => put_one(run, &directory, name, source, *found).await?,
        What::Files(files) => whole::push(run, &directory, files).await?,
    }
    directory.leave(run).await
}

async fn put_one(
    run: &Run<'_>,
    directory: &Directory,
    name: OsString,
    source: Vec<u8>,
    found: Found,
) -> Result<(), CopyError> {
    let result = match found {
        Found::File(found) => file::push(run, directory, &name, found, &source).await,
        Found::Link { target, metadata } => {
            let attributes = attributes::of(&metadata, run.options);
            let linked = put_link(run, directory, &name, target, attributes).await;
            linked.map(|()| {
                run.finished(&source, 0, |summary| &mut summary.links);
            })
        }
        Found::Failed(error) => Err(error),
        Found::Special | Found::Directory(_) => {
            if run.is_single() {
                Err(CopyError::Special)
            } else {
                run.skipped(&source, SkipReason::Special);
                Ok(())
            }
        }
    };
    if let Err(error) = result {
        run.failed(&source, error)?;
    }
    Ok(())
}

async fn put_link(
    run: &Run<'_>,
    directory: &Directory,
    name: &OsStr,
    target: OsString,
    attributes: Attributes,
) -> Result<(), CopyError> {
    let path = directory.path.join(name.as_bytes());
    if !directory.is_new() {
        file::target::may_become_link(run, &path).await?;
    }
    let attributes = Attributes {
        permissions: None,
        ..attributes
    };
    let has_attributes = run.sftp.has_extension(extension::LSETSTAT);
    let attributes = has_attributes.then_some(&attributes);
    link::put(run.sftp, &path, &target, attributes).await
}

//! Out of the guest: a walk over its listings, and many files at once.
//!
//! Nothing here trusts the guest: names are single components ([`DirectoryReader`] refuses others
//! and those that come twice), local files are reached through open directories only
//! ([`LocalDirectory`]), and depth, entries and bytes have limits.
//!
//! [`DirectoryReader`]: crate::sftp::DirectoryReader

mod ending;
mod file;
mod stream;
mod whole;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;
use tracing::instrument;

pub use self::stream::pull_stream;
pub(super) use self::stream::read_into;
use super::{
    CopyError, CopyObserver, CopyOptions, CopySummary, SkipReason,
    attributes::{self, Kind},
    local::{self, DirectoryId, LocalDirectory},
    run::{Run, own_name},
};
use crate::{
    protocol::sftp::Attributes,
    sftp::{DirectoryReader, RemotePath, Sftp},
};

/// A local directory that is being filled.
#[derive(Debug)]
struct Directory {
    local: Mutex<Local>,
    /// The path it comes from; nothing for one that is not copied itself.
    source: Option<RemotePath>,
    /// What it gets when it is full; nothing for one that was there.
    attributes: Option<Attributes>,
    parent: Option<Arc<Directory>>,
}

/// A local directory. Those high above the one that is being walked are closed, so that a deep tree
/// does not need a descriptor for each level.
#[derive(Debug)]
enum Local {
    Open(Arc<LocalDirectory>),
    Closed(DirectoryId),
}

/// Something to be put into a directory.
#[derive(Debug)]
struct Work {
    directory: Arc<Directory>,
    local: Arc<LocalDirectory>,
    name: OsString,
    source: RemotePath,
    kind: Kind,
    attributes: Attributes,
    /// Whether the caller named it, not only the guest.
    is_named: bool,
}

/// What is to be done at one time.
#[derive(Debug)]
enum Job {
    One(Work),
    Files(Arc<Directory>, Arc<LocalDirectory>, whole::Files),
}

/// Most bytes of entries that wait in the directories above another. A guest chooses how many come at
/// once: OpenSSH's server sends 100, which are some 20 KiB.
const MAX_HELD_BYTES: usize = 24 * 1024 * 1024;

/// A directory of the guest that is being walked.
#[derive(Debug)]
struct Level {
    /// Of the reader, when it was left for a directory in it.
    held_bytes: usize,
    reader: DirectoryReader,
    source: RemotePath,
    directory: Arc<Directory>,
    /// Small files that were found and not handed on.
    files: whole::Files,
}

/// Copies out of the guest, as [`push`](super::push()) does into it.
///
/// Dropped before its end, it waits for the calls that write local files, and removes what is
/// unfinished.
///
/// # Cancel safety
///
/// When the future is dropped, the copy ends. Files that are complete stay; what is unfinished is removed.
///
/// # Errors
///
/// As for [`push`](super::push()).
#[instrument(level = "debug", name = "copy", skip_all, fields(endpoint = sftp.endpoint().map(display), direction = "pull"))]
pub async fn pull(
    sftp: &Sftp,
    sources: &[RemotePath],
    destination: &Path,
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> Result<CopySummary, CopyError> {
    let is_directory = destination.is_dir() && !options.exact;
    if sources.len() > 1 && !is_directory {
        return Err(CopyError::NotADirectory);
    }
    let mut tops = Vec::new();
    for source in sources {
        tops.push((source, top(sftp, source, options.recursive).await));
    }
    let is_tree = matches!(&tops[..], [(_, Ok((Kind::Directory, _)))] if options.recursive);
    if !is_tree && !is_directory && destination.as_os_str().as_bytes().ends_with(b"/") {
        return Err(CopyError::NotADirectory);
    }
    let single = tops.len() == 1 && !is_tree;
    let mut run = Run::new(sftp, options, observer, single);
    run.compare_names(sources.iter().map(RemotePath::as_os_str));
    if !options.preserve {
        run.umask = local::umask();
    }
    let walk = |queue| walk_all(&run, tops, destination, is_directory, queue);
    run.drive(walk, |job| put(&run, job)).await?;
    Ok(run.summary())
}

/// Finds the regular file that `source` leads to, before it is opened: to open a pipe or a device can
/// hang or do something. Returns its attributes.
pub(super) async fn regular_file(
    run: &Run<'_>,
    source: &RemotePath,
) -> Result<Attributes, CopyError> {
    let (kind, attributes) = top(run.sftp, source, false).await?;
    match kind {
        Kind::File => {}
        Kind::Directory => return Err(CopyError::IsADirectory),
        _ => return Err(CopyError::Special),
    }
    run.found(attributes.size.unwrap_or(0))?;
    Ok(attributes)
}

type Top = (Kind, Attributes);

/// What a source is. A link is one if `links`, else what it leads to.
async fn top(sftp: &Sftp, source: &RemotePath, links: bool) -> Result<Top, CopyError> {
    let attributes = if links && !source.as_bytes().ends_with(b"/") {
        sftp.lstat(source).await?
    } else {
        sftp.stat(source).await?
    };
    // Without a type from the server it is taken for a file.
    let kind = attributes::kind(&attributes).unwrap_or(Kind::File);
    Ok((kind, attributes))
}

async fn walk_all(
    run: &Run<'_>,
    tops: Vec<(&RemotePath, Result<Top, CopyError>)>,
    destination: &Path,
    is_directory: bool,
    queue: mpsc::Sender<Job>,
) -> Result<(), CopyError> {
    let (path, target) = if is_directory {
        (destination, None)
    } else {
        let name = destination.file_name().ok_or(CopyError::NotADirectory)?;
        (destination.parent().unwrap_or(Path::new(".")), Some(name))
    };
    let path = path.to_owned();
    let local = run
        .pool
        .run_long(move || LocalDirectory::open(&path))
        .await??;
    let root = Arc::new(Directory {
        local: Mutex::new(Local::Open(Arc::new(local))),
        source: None,
        attributes: None,
        parent: None,
    });
    for (source, top) in tops {
        if let Err(error) = walk_one(run, source, top, &root, target, &queue).await {
            run.failed(source.as_bytes(), error)?;
        }
    }
    Ok(())
}

async fn walk_one(
    run: &Run<'_>,
    source: &RemotePath,
    top: Result<Top, CopyError>,
    root: &Arc<Directory>,
    target: Option<&OsStr>,
    queue: &mpsc::Sender<Job>,
) -> Result<(), CopyError> {
    let (kind, attributes) = top?;
    if kind == Kind::Directory {
        return if run.options.recursive {
            walk_tree(run, source, attributes, root, target, queue).await
        } else {
            Err(CopyError::IsADirectory)
        };
    }
    let name = target
        .or(own_name(source.as_os_str()))
        .ok_or(CopyError::NoName)?;
    run.is_first(|| name.as_bytes().to_vec(), false)?;
    run.found(attributes.size.unwrap_or(0))?;
    let work = Work {
        directory: Arc::clone(root),
        local: root.open()?,
        name: name.to_owned(),
        source: source.clone(),
        kind,
        attributes,
        is_named: true,
    };
    // Fails only if the copy has ended.
    let _ = queue.send(Job::One(work)).await;
    Ok(())
}

async fn walk_tree(
    run: &Run<'_>,
    source: &RemotePath,
    attributes: Attributes,
    root: &Arc<Directory>,
    target: Option<&OsStr>,
    queue: &mpsc::Sender<Job>,
) -> Result<(), CopyError> {
    run.found(0)?;
    // Without a name of its own, such as `/` or `..`, its content goes into the destination.
    let name = target.or(own_name(source.as_os_str()));
    let top_path = source.as_bytes();
    // Its path below the destination.
    let below = |path: &RemotePath| {
        let path = path.as_bytes().strip_prefix(top_path).unwrap_or_default();
        let name = name.map_or(&b""[..], OsStr::as_bytes);
        let parts = [name, trimmed(path)];
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(&b'/')
    };
    if name.is_some() {
        run.is_first(|| below(source), true)?;
    }
    let first = Level::enter(run, root, name, source.clone(), &attributes);
    let mut levels = vec![first.await?];
    while let (depth, Some(level)) = (levels.len(), levels.last_mut()) {
        let entry = match level.reader.next().await {
            Ok(Some(entry)) => entry,
            ended => {
                if let Some(mut level) = levels.pop() {
                    level.hand_on(run, queue).await?;
                    if let Err(error) = ended {
                        run.failed(level.source.as_bytes(), error.into())?;
                    }
                    if let Some(above) = levels.last() {
                        above.directory.reopen(run, &level.directory).await?;
                    }
                    level.directory.leave(run).await?;
                }
                continue;
            }
        };
        let (name, source) = (entry.name(), level.source.join(entry.name().as_bytes()));
        let mut attributes = entry.attributes.clone();
        let kind = match attributes::kind(&attributes) {
            Some(kind) => kind,
            None => match top(run.sftp, &source, true).await {
                Ok((kind, known)) => {
                    attributes = known;
                    kind
                }
                Err(error) => {
                    run.failed(source.as_bytes(), error)?;
                    continue;
                }
            },
        };
        if let Err(error) = run.is_first(|| below(&source), kind == Kind::Directory) {
            run.failed(source.as_bytes(), error)?;
            continue;
        }
        run.found(match kind {
            Kind::File => attributes.size.unwrap_or(0),
            _ => 0,
        })?;
        if kind == Kind::Directory {
            run.may_enter(depth)?;
            level.held_bytes = level.reader.settle().await;
            let directory = Arc::clone(&level.directory);
            may_hold(&levels)?;
            let shown = source.clone();
            // The next one is open too.
            if let Some(above) = depth.checked_sub(run.descriptors.most_levels())
                && let Some(above) = levels.get(above)
            {
                above.directory.close()?;
            }
            let next = Level::enter(run, &directory, Some(name), source, &attributes);
            match next.await {
                Ok(next) => levels.push(next),
                Err(error) => run.failed(shown.as_bytes(), error)?,
            }
            continue;
        }
        if whole::Files::is_fit(kind, &attributes) && run.has_whole() {
            if level.files.is_full_for(&attributes) {
                level.hand_on(run, queue).await?;
            }
            let files = &mut level.files;
            files.add(&level.source, name.to_owned(), attributes);
            continue;
        }
        let work = Work {
            directory: Arc::clone(&level.directory),
            local: level.directory.open()?,
            name: name.to_owned(),
            source,
            kind,
            attributes,
            is_named: false,
        };
        // Fails only if the copy has ended.
        let _ = queue.send(Job::One(work)).await;
    }
    Ok(())
}

/// A path without the slashes at its start.
fn trimmed(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"/") {
        path = rest;
    }
    path
}

/// Whether the entries that wait can be held.
fn may_hold(levels: &[Level]) -> Result<(), CopyError> {
    let bytes: usize = levels.iter().map(|level| level.held_bytes).sum();
    if bytes > MAX_HELD_BYTES {
        return Err(CopyError::Limit {
            what: "the memory for directories below each other",
            limit: u64::try_from(MAX_HELD_BYTES).unwrap_or(u64::MAX),
        });
    }
    Ok(())
}

impl Level {
    /// Opens a directory of the guest, and makes the local one for it.
    async fn enter(
        run: &Run<'_>,
        parent: &Arc<Directory>,
        name: Option<&OsStr>,
        source: RemotePath,
        attributes: &Attributes,
    ) -> Result<Self, CopyError> {
        let reader = run.sftp.read_dir(&source).await?;
        let directory = match name {
            None => Arc::clone(parent),
            Some(name) => {
                let (local, name) = (parent.open()?, name.to_owned());
                let attributes = run.attributes_to_set(attributes);
                let mode = attributes::filled_mode(&attributes);
                let open = run.descriptors.directory().await;
                let (local, made) = run
                    .pool
                    .run_long(move || local.enter(&name, mode, open))
                    .await??;
                Arc::new(Directory {
                    local: Mutex::new(Local::Open(Arc::new(local))),
                    source: Some(source.clone()),
                    attributes: made.then_some(attributes),
                    parent: Some(Arc::clone(parent)),
                })
            }
        };
        Ok(Self {
            held_bytes: 0,
            reader,
            source,
            directory,
            files: whole::Files::default(),
        })
    }

    /// Hands the small files on.
    async fn hand_on(&mut self, run: &Run<'_>, queue: &mpsc::Sender<Job>) -> Result<(), CopyError> {
        if self.files.is_empty() {
            return Ok(());
        }
        let local = self.directory.open()?;
        let mut files = std::mem::take(&mut self.files);
        files.permit = run.whole().await;
        let job = Job::Files(Arc::clone(&self.directory), local, files);
        // Fails only if the copy has ended.
        let _ = queue.send(job).await;
        Ok(())
    }
}

impl Directory {
    /// Whether this copy made it: nothing else is in it.
    const fn is_new(&self) -> bool {
        self.attributes.is_some()
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The local directory. The one that is being walked is open, and so are those that the walk has
    /// left for good.
    fn open(&self) -> Result<Arc<LocalDirectory>, CopyError> {
        match &*self.local() {
            Local::Open(local) => Ok(Arc::clone(local)),
            Local::Closed(_) => Err(CopyError::DirectoryMoved),
        }
    }

    /// Closes it, as soon as no file is copied into it any more.
    fn close(&self) -> Result<(), CopyError> {
        let mut local = self.local();
        if let Local::Open(open) = &*local {
            *local = Local::Closed(open.id()?);
        }
        Ok(())
    }

    /// Opens it again, if it was closed, by one that is in it.
    async fn reopen(&self, run: &Run<'_>, below: &Self) -> Result<(), CopyError> {
        let id = match &*self.local() {
            Local::Closed(id) => *id,
            Local::Open(_) => return Ok(()),
        };
        let below = below.open()?;
        let permit = run.descriptors.directory().await;
        let above = run.pool.run_long(move || below.above(id, permit)).await??;
        *self.local() = Local::Open(Arc::new(above));
        Ok(())
    }

    /// One user less. The last one gives the directory its attributes: nothing in it changes any
    /// more.
    async fn leave(self: Arc<Self>, run: &Run<'_>) -> Result<(), CopyError> {
        let mut next = Some(self);
        while let Some(directory) = next.take().and_then(Arc::into_inner) {
            let local = directory.open();
            next = directory.parent;
            let Some(source) = directory.source else {
                continue;
            };
            let set = match directory.attributes {
                Some(attributes) => {
                    let (local, inherits) = (local?, !run.options.special_bits);
                    let set = move || local.set_attributes(attributes, inherits);
                    run.pool.run(set).await?
                }
                None => Ok(()),
            };
            match set {
                Ok(()) => run.finished(source.as_bytes(), 0, |summary| &mut summary.directories),
                Err(error) => run.failed(source.as_bytes(), error)?,
            }
        }
        Ok(())
    }
}

async fn put(run: &Run<'_>, job: Job) -> Result<(), CopyError> {
    let directory = match job {
        Job::One(work) => {
            let directory = Arc::clone(&work.directory);
            put_one(run, work).await?;
            directory
        }
        Job::Files(directory, local, files) => {
            whole::pull(run, &directory, &local, files).await?;
            directory
        }
    };
    directory.leave(run).await
}

/// Puts one thing into a local directory.
async fn put_one(run: &Run<'_>, work: Work) -> Result<(), CopyError> {
    let shown = work.source.clone();
    let result = match work.kind {
        Kind::File => file::pull(run, work).await,
        Kind::Link => put_link(run, work).await.map(|()| {
            run.finished(shown.as_bytes(), 0, |summary| &mut summary.links);
        }),
        Kind::Directory | Kind::Special => {
            if run.is_single() {
                Err(CopyError::Special)
            } else {
                run.skipped(shown.as_bytes(), SkipReason::Special);
                Ok(())
            }
        }
    };
    if let Err(error) = result {
        run.failed(shown.as_bytes(), error)?;
    }
    Ok(())
}

async fn put_link(run: &Run<'_>, work: Work) -> Result<(), CopyError> {
    let target = run.sftp.readlink(&work.source).await?;
    let attributes = run.attributes_to_set(&work.attributes);
    let local = Arc::clone(&work.local);
    let link = move || {
        let special = local.metadata(&work.name).map(|there| there.file_type());
        if special.is_some_and(|kind| !(kind.is_file() || kind.is_symlink() || kind.is_dir())) {
            return Err(CopyError::InTheWay);
        }
        local.link(target.as_os_str(), &work.name, &attributes)
    };
    run.pool.run(link).await?
}

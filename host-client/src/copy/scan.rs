//! Reading local directories for a push: a batch of files per job of the thread pool, small ones with
//! their content.

#![expect(
    unsafe_code,
    reason = "nix gives the descriptor of a directory that is being read as a number only"
)]

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::{File, Metadata},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use nix::{
    dir::{Dir, OwningIter, Type},
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{Mode, SFlag, fstatat},
        statfs::{FsType, TMPFS_MAGIC, fstatfs},
    },
};

use super::{
    CopyError,
    descriptors::Permit,
    local::{self, DirectoryId},
    run::SMALL_BYTES,
};

/// Most entries in a batch.
pub(super) const BATCH: usize = 64;

/// A batch ends when its files have so many bytes of content, so that it fits in a request.
const BATCH_BYTES: usize = 128 * 1024;

/// The type of a `ramfs` (`linux/magic.h`, `RAMFS_MAGIC`).
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Something local that is to be pushed.
#[derive(Debug)]
pub(super) enum Found {
    File(FoundFile),
    Directory(Box<Scanner>),
    Link {
        target: OsString,
        metadata: Metadata,
    },
    Special,
    Failed(CopyError),
}

impl Found {
    /// Takes a permit for a file that stays open.
    fn hold(&mut self, permits: &mut Vec<Permit>) {
        if let Self::File(found) = self
            && found.file.is_some()
        {
            found.open = permits.pop().map(Arc::new);
        }
    }

    /// Bytes of content that are held in memory.
    fn content_bytes(&self) -> usize {
        match self {
            Self::File(file) => file.content.as_ref().map_or(0, Bytes::len),
            _ => 0,
        }
    }
}

/// A local file, open.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) file: Option<File>,
    pub(super) metadata: Metadata,
    /// All of it, if it is small.
    pub(super) content: Option<Bytes>,
    /// For `file`.
    open: Option<Arc<Permit>>,
}

/// A directory that is being read.
#[derive(Debug)]
pub(super) struct Scanner {
    directory: Listed,
    /// Entries that were read and not looked at.
    names: VecDeque<(OsString, Option<Type>)>,
    ended: bool,
    pub(super) metadata: Metadata,
}

/// The directory of a [`Scanner`].
#[derive(Debug)]
enum Listed {
    Now(OwningIter),
    /// All of it was read.
    Whole(File),
    Closed,
}

/// Some entries of a directory.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) found: Vec<(OsString, Found)>,
    /// Directories, not opened yet: their number must not be that of open descriptors.
    pub(super) directories: Vec<OsString>,
    pub(super) ended: bool,
}

/// What is at a path of the caller's. A link is one if `links`, else what it leads to.
pub(super) fn top(path: &Path, links: bool, permit: Option<Permit>) -> Result<Found, CopyError> {
    let failed = |source| CopyError::local("read the attributes", source);
    // A slash at the end means what a link leads to.
    let links = links && !path.as_os_str().as_bytes().ends_with(b"/");
    let metadata = if links {
        path.symlink_metadata().map_err(failed)?
    } else {
        path.metadata().map_err(failed)?
    };
    if metadata.is_symlink() {
        let target = std::fs::read_link(path)
            .map_err(|source| CopyError::local("read the symbolic link", source))?;
        return Ok(Found::Link {
            target: target.into_os_string(),
            metadata,
        });
    }
    let kind = match metadata.file_type() {
        kind if kind.is_file() => Type::File,
        kind if kind.is_dir() => Type::Directory,
        _ => return Ok(Found::Special),
    };
    let mut found = open(nix::fcntl::AT_FDCWD, path.as_os_str(), kind, links)?;
    found.hold(&mut permit.into_iter().collect());
    Ok(found)
}

fn open(at: impl AsFd, name: &OsStr, kind: Type, nofollow: bool) -> Result<Found, CopyError> {
    let mut flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    flags.set(OFlag::O_NOFOLLOW, nofollow);
    flags.set(OFlag::O_DIRECTORY, kind == Type::Directory);
    let fd = openat(at, name, flags, Mode::empty())
        .map_err(|errno| CopyError::local("open the file", errno.into()))?;
    let file = File::from(fd);
    let metadata = file
        .metadata()
        .map_err(|source| CopyError::local("read the attributes", source))?;
    if metadata.is_dir() {
        let entries = Dir::from_fd(file.into())
            .map_err(|errno| CopyError::local("open the directory", errno.into()))?;
        let scanner = Scanner {
            directory: Listed::Now(entries.into_iter()),
            names: VecDeque::new(),
            ended: false,
            metadata,
        };
        return Ok(Found::Directory(Box::new(scanner)));
    }
    if metadata.is_file() {
        FoundFile::read(file, metadata).map(Found::File)
    } else {
        Ok(Found::Special)
    }
}

/// Whether the kernel makes a file up, so that its size means little: it is on a file system without
/// blocks. Those in memory have none either if they have no limit, but they have sizes.
pub(super) fn is_made_up(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| {
        let is_memory = [TMPFS_MAGIC, RAMFS_MAGIC].contains(&system.filesystem_type());
        system.blocks() == 0 && !is_memory
    })
}

impl FoundFile {
    /// The same once more, to be read from its start.
    pub(super) fn again(&self) -> Option<Self> {
        let file = self.file.as_ref().map(File::try_clone);
        Some(Self {
            file: file.transpose().ok()?,
            metadata: self.metadata.clone(),
            content: self.content.clone(),
            open: self.open.clone(),
        })
    }

    fn read(mut file: File, metadata: Metadata) -> Result<Self, CopyError> {
        // Files that the kernel makes up have the size 0.
        let size = match metadata.size() {
            0 => SMALL_BYTES,
            size if size > SMALL_BYTES => {
                return Ok(Self {
                    file: Some(file),
                    metadata,
                    content: None,
                    open: None,
                });
            }
            size => size,
        };
        let failed = |source| CopyError::local("read the file", source);
        // One more than there should be: a read that gives less is at the end.
        let mut content = vec![0; usize::try_from(size).unwrap_or(0) + 1];
        let there = match file.read(&mut content) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            read => read.map_err(failed)?,
        };
        content.truncate(there);
        if u64::try_from(there) != Ok(metadata.size()) {
            Read::by_ref(&mut file)
                .take((size + 1).saturating_sub(u64::try_from(there).unwrap_or(u64::MAX)))
                .read_to_end(&mut content)
                .map_err(failed)?;
        }
        let is_all = u64::try_from(content.len()).is_ok_and(|length| length <= size);
        Ok(Self {
            file: (!is_all).then_some(file),
            metadata,
            content: is_all.then(|| content.into()),
            open: None,
        })
    }
}

impl Scanner {
    fn directory(&self) -> Result<BorrowedFd<'_>, CopyError> {
        match &self.directory {
            // SAFETY: the descriptor is open as long as the entries, which own it, and `self` is
            // borrowed.
            Listed::Now(entries) => Ok(unsafe { BorrowedFd::borrow_raw(entries.as_raw_fd()) }),
            Listed::Whole(directory) => Ok(directory.as_fd()),
            Listed::Closed => Err(CopyError::DirectoryMoved),
        }
    }

    /// Closes the directory, when the rest of its names is read. Returns those of directories.
    pub(super) fn close(&mut self) -> Result<Vec<OsString>, CopyError> {
        let mut directories = Vec::new();
        let read = self.read_names(&mut directories, usize::MAX);
        self.ended = true;
        self.directory = Listed::Closed;
        read.map(|()| directories)
    }

    /// Opens the directory again, if it was closed, by one that is in it.
    pub(super) fn reopen(&mut self, below: &Self) -> Result<(), CopyError> {
        if let Listed::Closed = self.directory {
            let above = DirectoryId::of(&self.metadata).above(below.directory()?)?;
            self.directory = Listed::Whole(above);
        }
        Ok(())
    }

    /// The next entries, with as many open files as there are permits.
    pub(super) fn next(&mut self, mut permits: Vec<Permit>) -> Result<Batch, CopyError> {
        let mut batch = Batch::default();
        if self.names.is_empty() {
            self.read_names(&mut batch.directories, BATCH)?;
        }
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && !permits.is_empty()
            && let Some((name, kind)) = self.names.pop_front()
        {
            let kind = match kind {
                Some(kind) => Ok(kind),
                None => self.kind(&name),
            };
            match kind.and_then(|kind| self.found(&name, kind)) {
                Ok(None) => batch.directories.push(name),
                Ok(Some(mut found)) => {
                    found.hold(&mut permits);
                    bytes += found.content_bytes();
                    batch.found.push((name, found));
                }
                Err(error) => batch.found.push((name, Found::Failed(error))),
            }
        }
        batch.ended = self.ended && self.names.is_empty();
        Ok(batch)
    }

    fn read_names(
        &mut self,
        directories: &mut Vec<OsString>,
        most: usize,
    ) -> Result<(), CopyError> {
        let Listed::Now(entries) = &mut self.directory else {
            return Ok(());
        };
        while self.names.len() + directories.len() < most {
            let Some(entry) = entries.next() else {
                self.ended = true;
                break;
            };
            let entry =
                entry.map_err(|errno| CopyError::local("list the directory", errno.into()))?;
            let name = entry.file_name().to_bytes();
            match entry.file_type() {
                _ if matches!(name, b"." | b"..") => {}
                Some(Type::Directory) => directories.push(local::os_string(name)),
                kind => self.names.push_back((local::os_string(name), kind)),
            }
        }
        Ok(())
    }

    fn found(&self, name: &OsStr, kind: Type) -> Result<Option<Found>, CopyError> {
        Ok(Some(match kind {
            Type::Directory => return Ok(None),
            Type::File => open(self.directory()?, name, kind, true)?,
            Type::Symlink => Found::Link {
                target: local::read_link(self.directory()?, name)
                    .map_err(|source| CopyError::local("read the symbolic link", source))?,
                metadata: self.link_metadata(name)?,
            },
            _ => Found::Special,
        }))
    }

    fn link_metadata(&self, name: &OsStr) -> Result<Metadata, CopyError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(self.directory()?, name, flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|fd| File::from(fd).metadata())
            .map_err(|source| CopyError::local("read the attributes", source))
    }

    /// For file systems that do not give the type in their listings (`DT_UNKNOWN`).
    fn kind(&self, name: &OsStr) -> Result<Type, CopyError> {
        let stat = fstatat(self.directory()?, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| CopyError::local("read the attributes", errno.into()))?;
        let format = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        Ok(match format {
            SFlag::S_IFREG => Type::File,
            SFlag::S_IFDIR => Type::Directory,
            SFlag::S_IFLNK => Type::Symlink,
            _ => Type::Fifo,
        })
    }

    /// The directory `name` in this one.
    pub(super) fn enter(&self, name: &OsStr) -> Result<Found, CopyError> {
        open(self.directory()?, name, Type::Directory, true)
    }
}

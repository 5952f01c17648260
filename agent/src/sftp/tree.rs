//! Resolves the client's paths: in the whole file system, or beneath one directory.
//!
//! Beneath a directory every look-up is `openat2(2)`'s with `RESOLVE_IN_ROOT`, which no link, no
//! `..` and no concurrent rename leads out of. A last component that must not be followed is used with
//! a descriptor of its parent.

use std::{
    borrow::Cow,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::stat::Mode,
};

/// How often a look-up is repeated after a race with a rename (`EAGAIN`, `openat2(2)`).
const RETRIES: usize = 16;

/// Where paths start.
#[derive(Debug)]
pub(super) enum Tree {
    /// The whole file system; relative paths start at `home`.
    Whole { home: OwnedFd, path: PathBuf },
    /// Only this directory, which is `/` to the client.
    Beneath(OwnedFd),
}

/// Arguments for the `*at` system calls: a directory, and a path from there.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    directory: Directory<'a>,
    pub(super) name: Cow<'a, [u8]>,
    /// The path of the directory.
    base: Option<&'a Path>,
}

#[derive(Debug)]
enum Directory<'a> {
    Borrowed(BorrowedFd<'a>),
    Owned(OwnedFd),
    /// `name` is the path of this descriptor.
    Itself {
        _open: OwnedFd,
    },
}

impl Entry<'_> {
    /// The directory that [`Self::name`] is relative to.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        match &self.directory {
            Directory::Borrowed(directory) => *directory,
            Directory::Owned(directory) => directory.as_fd(),
            Directory::Itself { .. } => AT_FDCWD,
        }
    }

    /// Whether links were followed already.
    pub(super) fn is_followed(&self) -> bool {
        matches!(self.directory, Directory::Itself { .. })
    }

    /// The path, for a system call that takes no directory. Only of an entry from [`Tree::follow`].
    pub(super) fn path(&self) -> PathBuf {
        let name = Path::new(OsStr::from_bytes(&self.name));
        match self.base {
            // The empty path does not exist, and must not become the home.
            Some(base) if !self.name.is_empty() => base.join(name),
            _ => name.to_owned(),
        }
    }
}

impl Tree {
    /// The whole file system; relative paths start at `home`.
    ///
    /// # Errors
    ///
    /// When `home` is no directory, or may not be searched.
    pub(super) fn whole(home: &Path) -> io::Result<Self> {
        Ok(Self::Whole {
            home: open_directory(home)?,
            path: home.to_owned(),
        })
    }

    /// Only what is beneath `root`.
    ///
    /// # Errors
    ///
    /// When it is no directory, or may not be searched; `ENOSYS` without `openat2(2)` (before Linux
    /// 5.6).
    pub(super) fn beneath(root: &Path) -> io::Result<Self> {
        let tree = Self::Beneath(open_directory(root)?);
        tree.open(b"/", OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(tree)
    }

    /// The path where relative ones start.
    pub(super) fn home(&self) -> &Path {
        match self {
            Self::Whole { path, .. } => path,
            Self::Beneath(_) => Path::new("/"),
        }
    }

    /// Opens a path, and follows links.
    ///
    /// # Errors
    ///
    /// The errno of `openat(2)` or `openat2(2)`.
    pub(super) fn open(&self, path: &[u8], flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        match self {
            Self::Whole { home, .. } => openat(home, path, flags, mode),
            Self::Beneath(root) => {
                let creates = flags.contains(OFlag::O_CREAT);
                let how = OpenHow::new()
                    .flags(flags)
                    .mode(if creates { mode } else { Mode::empty() })
                    .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
                let mut tries = 0;
                loop {
                    match openat2(root, path, how) {
                        Err(Errno::EAGAIN) if tries < RETRIES => tries += 1,
                        other => return other,
                    }
                }
            }
        }
    }

    /// Resolves a path, and follows links.
    ///
    /// # Errors
    ///
    /// The errno of `openat2(2)`.
    pub(super) fn follow<'a>(&'a self, path: &'a [u8]) -> nix::Result<Entry<'a>> {
        match self {
            Self::Whole { home, path: base } => Ok(Entry {
                directory: Directory::Borrowed(home.as_fd()),
                name: path.into(),
                base: Some(base),
            }),
            Self::Beneath(_) => {
                let found = self.open(path, OFlag::O_PATH, Mode::empty())?;
                Ok(Entry {
                    name: format!("/proc/self/fd/{}", found.as_raw_fd())
                        .into_bytes()
                        .into(),
                    directory: Directory::Itself { _open: found },
                    base: None,
                })
            }
        }
    }

    /// Resolves a path, but its last component: that is not followed, and need not exist.
    ///
    /// # Errors
    ///
    /// The errno of `openat2(2)`. Beneath a directory `EINVAL` for a path that ends in `..`.
    pub(super) fn entry<'a>(&'a self, path: &'a [u8]) -> nix::Result<Entry<'a>> {
        if let Self::Whole { .. } = self {
            return self.follow(path);
        }
        let (parent, name) = split(path);
        match name {
            b"" if path.is_empty() => Err(Errno::ENOENT),
            b"" | b"." | b".." => Err(Errno::EINVAL),
            _ => {
                let parent = if parent.is_empty() { b"/" } else { parent };
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
                Ok(Entry {
                    directory: Directory::Owned(self.open(parent, flags, Mode::empty())?),
                    name: name.into(),
                    base: None,
                })
            }
        }
    }

    /// As [`Self::entry`], for `lstat(2)`: a path that ends in `..` or in a slash
    /// is followed, as the kernel does.
    ///
    /// # Errors
    ///
    /// The errno of `openat2(2)`.
    pub(super) fn entry_for_lstat<'a>(&'a self, path: &'a [u8]) -> nix::Result<Entry<'a>> {
        match split(path).1 {
            b"" | b"." | b".." => self.follow(path),
            _ if path.ends_with(b"/") => self.follow(path),
            _ => self.entry(path),
        }
    }
}

/// Parent and last component; slashes at the end do not count.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/');
    let path = &path[..end.map_or(0, |end| end + 1)];
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..=slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_at_its_last_component() {
        for (path, parent, name) in [
            ("a", "", "a"),
            ("a/b//", "a/", "b"),
            ("/", "", ""),
            ("", "", ""),
            ("/a", "/", "a"),
            ("a/..", "a/", ".."),
        ] {
            let split = split(path.as_bytes());
            assert_eq!(split, (parent.as_bytes(), name.as_bytes()), "{path}");
        }
    }
}

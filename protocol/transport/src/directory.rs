//! Path lookup that resolves one name after the other with `openat(2)`.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat},
    unistd::geteuid,
};

/// Most symbolic links in one lookup (`MAXSYMLINKS`, Linux `include/linux/namei.h`).
const MAX_LINKS: usize = 40;

/// Mode of a missing directory that is created, less the process's creation mask.
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);

/// What to do about a missing directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Create it, with mode 0755 less the process's creation mask. The target of a dangling link is not
    /// created.
    Create,
    /// Fail with `ENOENT`.
    Refuse,
}

/// Opens a directory below `root` with `O_PATH`. As after `chroot(2)`, `/` and the `..` of `root` lead
/// to `root`. Blocks on the file system.
///
/// A symbolic link is followed if it and the directory it is in both belong to root or to the
/// process's effective user.
///
/// # Errors
///
/// Those of `openat(2)` and `mkdirat(2)`: `ENOTDIR` if a part of the path is no directory, `ELOOP`
/// after 40 links. For a link that belongs to another user, or is in another user's directory, an error
/// of the kind [`PermissionDenied`](io::ErrorKind::PermissionDenied) with the link and the user.
pub fn open_directory(root: impl AsFd, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    let mut walk = Walk::new(root.as_fd().try_clone_to_owned()?, path, missing);
    match walk.run()? {
        None => Ok(walk.into_directory()),
        Some(_) => Err(Errno::ENOTDIR.into()),
    }
}

/// Opens a file of any kind below `root` with `O_PATH`, by the rules of [`open_directory`]. Blocks on
/// the file system.
///
/// # Errors
///
/// Those of [`open_directory`].
pub(crate) fn open_entry(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let mut walk = Walk::new(root.as_fd().try_clone_to_owned()?, path, Missing::Refuse);
    let entry = walk.run()?;
    Ok(entry.unwrap_or_else(|| walk.into_directory()))
}

/// Opens `/`.
pub(crate) fn system_root() -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open("/", flags, Mode::empty())?)
}

/// Opens a name in a directory with `O_PATH`, without following a link.
pub(crate) fn open_name(directory: impl AsFd, name: &OsStr, more: OFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | more;
    openat(directory, name, flags, Mode::empty())
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

struct Walk {
    root: OwnedFd,
    /// The directories from below `root` to the current one.
    below: Vec<OwnedFd>,
    /// The names still to be looked up, and what to do if one is missing.
    pending: VecDeque<(OsString, Missing)>,
    links: usize,
}

impl Walk {
    fn new(root: OwnedFd, path: &Path, missing: Missing) -> Self {
        Self {
            root,
            below: Vec::new(),
            pending: names(path).map(|name| (name, missing)).collect(),
            links: 0,
        }
    }

    fn directory(&self) -> &OwnedFd {
        self.below.last().unwrap_or(&self.root)
    }

    fn into_directory(mut self) -> OwnedFd {
        self.below.pop().unwrap_or(self.root)
    }

    /// Resolves the whole path. Returns its last entry if that is not a directory.
    fn run(&mut self) -> io::Result<Option<OwnedFd>> {
        while let Some((name, missing)) = self.pending.pop_front() {
            if name == ".." {
                self.below.pop();
            } else if let Some(entry) = self.enter(&name, missing)? {
                return if self.pending.is_empty() {
                    Ok(Some(entry))
                } else {
                    Err(Errno::ENOTDIR.into())
                };
            }
        }
        Ok(None)
    }

    /// Resolves one name. Returns the entry if it is neither a directory nor a link.
    fn enter(&mut self, name: &OsStr, missing: Missing) -> io::Result<Option<OwnedFd>> {
        // `O_PATH` alone does not trigger autofs; with `O_DIRECTORY` it does.
        match open_name(self.directory(), name, OFlag::O_DIRECTORY) {
            Ok(directory) => {
                self.below.push(directory);
                return Ok(None);
            }
            Err(Errno::ENOTDIR) => {}
            Err(Errno::ENOENT) if missing == Missing::Create => return self.create(name),
            Err(error) => return Err(error.into()),
        }
        let entry = open_name(self.directory(), name, OFlag::empty())?;
        let stat = fstat(&entry)?;
        if kind(&stat) != SFlag::S_IFLNK {
            return Ok(Some(entry));
        }
        self.follow(name, &entry, &stat)?;
        Ok(None)
    }

    fn create(&mut self, name: &OsStr) -> io::Result<Option<OwnedFd>> {
        match mkdirat(self.directory(), name, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let created = open_name(self.directory(), name, OFlag::O_DIRECTORY)?;
        self.below.push(created);
        Ok(None)
    }

    fn follow(&mut self, name: &OsStr, link: &OwnedFd, stat: &FileStat) -> io::Result<()> {
        let owners = [fstat(self.directory())?.st_uid, stat.st_uid];
        let is_foreign = |uid: &u32| *uid != 0 && *uid != geteuid().as_raw();
        if let Some(owner) = owners.into_iter().find(is_foreign) {
            let text = format!("{name:?} is a symbolic link of user {owner}, it is not followed");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        let target = readlinkat(link, "")?;
        let target = Path::new(&target);
        if target.has_root() {
            self.below.clear();
        }
        for name in names(target).collect::<Vec<_>>().into_iter().rev() {
            self.pending.push_front((name, Missing::Refuse));
        }
        Ok(())
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, lchown, symlink},
        path::PathBuf,
    };

    use super::*;

    /// A folder that is removed in `Drop`, open as a root.
    struct Folder(PathBuf, OwnedFd);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("transport-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("a/b")).unwrap();
            let root = open_name(system_root().unwrap(), path.as_os_str(), OFlag::O_DIRECTORY);
            Self(path, root.unwrap())
        }

        fn id(&self, path: &str) -> (u64, u64) {
            let found = fs::symlink_metadata(self.0.join(path)).unwrap();
            (found.dev(), found.ino())
        }

        fn open(&self, path: &str) -> io::Result<(u64, u64)> {
            let stat = fstat(&open_entry(&self.1, Path::new(path))?)?;
            Ok((stat.st_dev, stat.st_ino))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_path_is_resolved_as_by_the_kernel_and_never_above_the_root() {
        let folder = Folder::new("ends");
        fs::write(folder.0.join("a/file"), "").unwrap();
        for (target, link) in [
            ("../a/b", "a/relative"),
            ("/a", "absolute"),
            ("b", "a/short"),
        ] {
            symlink(target, folder.0.join(link)).unwrap();
        }
        for (path, end) in [
            ("a/b", "a/b"),
            ("/a//./b/", "a/b"),
            ("a/b/..", "a"),
            ("../../a", "a"),
            ("..", ""),
            ("a/relative", "a/b"),
            ("absolute/b", "a/b"),
            ("absolute/short/../file", "a/file"),
        ] {
            assert_eq!(folder.open(path).unwrap(), folder.id(end), "{path}");
        }
        for (path, errno) in [("a/file/x", Errno::ENOTDIR), ("a/none", Errno::ENOENT)] {
            let error = folder.open(path).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno as i32), "{path}");
        }
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let folder = Folder::new("circle");
        symlink("circle", folder.0.join("circle")).unwrap();
        let error = folder.open("circle").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ELOOP as i32));
    }

    #[test]
    fn missing_directories_are_created_on_request() {
        let folder = Folder::new("made");
        let path = Path::new("a/new/er");
        open_directory(&folder.1, path, Missing::Refuse).unwrap_err();
        open_directory(&folder.1, path, Missing::Create).unwrap();
        assert!(folder.0.join(path).is_dir());
        symlink("nowhere", folder.0.join("link")).unwrap();
        open_directory(&folder.1, Path::new("link/new"), Missing::Create).unwrap_err();
        fs::write(folder.0.join("file"), "").unwrap();
        let error = open_directory(&folder.1, Path::new("file"), Missing::Create).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENOTDIR as i32));
    }

    #[test]
    fn a_link_of_another_user_or_in_their_directory_is_not_followed() {
        assert!(geteuid().is_root(), "only root can give files away");
        let folder = Folder::new("foreign");
        let (theirs, users) = (folder.0.join("theirs"), folder.0.join("users"));
        fs::create_dir(&users).unwrap();
        lchown(&users, Some(65_534), None).unwrap();
        symlink("/a", users.join("link")).unwrap();
        symlink("/a", &theirs).unwrap();
        assert_eq!(folder.open("theirs/b").unwrap(), folder.id("a/b"));
        lchown(&theirs, Some(65_534), None).unwrap();
        for path in ["theirs", "theirs/b", "users/link/b"] {
            let error = folder.open(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
            assert!(error.to_string().contains("user 65534"), "{error}");
        }
        assert!(folder.open("users").is_ok());
    }
}

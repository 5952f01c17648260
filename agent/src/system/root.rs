//! File access below a root directory. No path, `..` or symlink leads out of it, and symlinks that an
//! unprivileged user may have created are not followed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, unlinkat},
};
use vsock_agent_transport::{Missing, open_directory};

/// An open root directory.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// Attributes of a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// Whether an existing file is left unchanged.
    pub(crate) create_only: bool,
}

impl Root {
    /// Opens a directory as a root.
    ///
    /// # Errors
    ///
    /// The errno of `open(2)`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(open(path, folder_flags(), Mode::empty())?))
    }

    /// Opens a directory below it as a root of its own. Creates missing ones.
    ///
    /// # Errors
    ///
    /// As [`Root::make_folder`].
    pub(crate) fn below(&self, path: &Path) -> io::Result<Self> {
        Ok(Self(self.make_folder(path)?))
    }

    /// The first `limit` bytes of a file.
    ///
    /// # Errors
    ///
    /// `ELOOP` if it is a symlink, and others of `openat(2)` and `read(2)`.
    pub(crate) fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let (folder, name) = split(path)?;
        let folder = self.folder(folder)?;
        // Opening a FIFO must not block.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(folder, name, flags, Mode::empty())?);
        let mut content = Vec::new();
        file.take(u64::try_from(limit).unwrap_or(u64::MAX))
            .read_to_end(&mut content)?;
        Ok(content)
    }

    /// Opens an existing directory.
    ///
    /// # Errors
    ///
    /// As [`Root::make_folder`], and `ENOENT`.
    pub(crate) fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        open_directory(self, path, Missing::Refuse)
    }

    /// Opens a directory. Creates missing ones with mode 0755.
    ///
    /// # Errors
    ///
    /// `ENOTDIR` when a part of the path is not a directory, `PermissionDenied` for a symlink of an
    /// unprivileged user.
    pub(crate) fn make_folder(&self, path: &Path) -> io::Result<OwnedFd> {
        open_directory(self, path, Missing::Create)
    }

    /// Replaces a file atomically, and never through a symlink. An existing file keeps its owner and mode.
    /// True if it was written.
    ///
    /// # Errors
    ///
    /// As [`Root::make_folder`], and the errno of `openat(2)`, `write(2)` or `renameat(2)`.
    pub(crate) fn write(&self, path: &Path, content: &[u8], how: Attributes) -> io::Result<bool> {
        let (folder, name) = split(path)?;
        let folder = self.make_folder(folder)?;
        let old = match fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) if how.create_only => return Ok(false),
            Ok(old) => Some(old).filter(is_file),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let new = NewFile::create(&folder, name)?;
        new.fill(content, how, old.as_ref())?;
        new.rename(name, how.create_only)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn folder_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

/// Splits a path into its directory and its file name.
///
/// # Errors
///
/// `InvalidInput` for a path that ends with `..` or has no file name.
pub(crate) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((path.parent().unwrap_or(Path::new("")), name))
}

fn is_file(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

/// A temporary file in the directory of its target. Removed on drop unless it was renamed.
struct NewFile<'a> {
    folder: &'a OwnedFd,
    name: OsString,
    file: File,
}

impl<'a> NewFile<'a> {
    fn create(folder: &'a OwnedFd, target: &OsStr) -> io::Result<Self> {
        let mut name = OsString::from(".");
        name.push(target);
        name.push(".vsock-agent");
        // Left over from a crash.
        let _ = unlinkat(folder, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(
            folder,
            name.as_os_str(),
            flags,
            Mode::S_IRUSR | Mode::S_IWUSR,
        )?;
        Ok(Self {
            folder,
            name,
            file: file.into(),
        })
    }

    fn fill(&self, content: &[u8], how: Attributes, old: Option<&FileStat>) -> io::Result<()> {
        let (uid, gid, mode) = match old {
            Some(old) => (Some(old.st_uid), Some(old.st_gid), old.st_mode),
            None => (how.uid, how.gid, how.mode),
        };
        (&self.file).write_all(content)?;
        if uid.is_some() || gid.is_some() {
            fchown(&self.file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
        }
        fchmod(&self.file, Mode::from_bits_truncate(mode))?;
        self.file.sync_data()
    }

    fn rename(self, target: &OsStr, create_only: bool) -> io::Result<bool> {
        if !create_only {
            renameat(self.folder, self.name.as_os_str(), self.folder, target)?;
            return Ok(true);
        }
        match linkat(
            self.folder,
            self.name.as_os_str(),
            self.folder,
            target,
            AtFlags::empty(),
        ) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        // Fails after a rename.
        let _ = unlinkat(
            self.folder,
            self.name.as_os_str(),
            UnlinkatFlags::NoRemoveDir,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    };

    use super::*;

    const PLAIN: Attributes = Attributes {
        mode: 0o644,
        uid: None,
        gid: None,
        create_only: false,
    };

    fn in_folder(name: &str, test: impl FnOnce(&Path, &Root)) {
        let outside =
            std::env::temp_dir().join(format!("agent-root-{name}-{}", std::process::id()));
        let inside = outside.join("root");
        fs::create_dir_all(&inside).unwrap();
        test(&inside, &Root::open(&inside).unwrap());
        let left: Vec<_> = fs::read_dir(&outside).unwrap().collect();
        assert_eq!(left.len(), 1, "something was written outside: {left:?}");
        fs::remove_dir_all(&outside).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn missing_directories_of_a_new_file_are_created() {
        in_folder("new", |folder, root| {
            assert!(root.write(Path::new("/a/b/c"), b"1", PLAIN).unwrap());
            let path = folder.join("a/b/c");
            assert_eq!(fs::read(&path).unwrap(), b"1");
            assert_eq!(mode(&path), 0o644);
            assert_eq!(mode(&folder.join("a/b")), 0o755);
            let others = fs::read_dir(folder.join("a/b")).unwrap();
            assert_eq!(others.count(), 1);
        });
    }

    #[test]
    fn an_existing_file_keeps_its_mode_or_is_left_unchanged() {
        in_folder("old", |folder, root| {
            let path = folder.join("file");
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            let only = Attributes {
                create_only: true,
                ..PLAIN
            };
            assert!(!root.write(Path::new("file"), b"new", only).unwrap());
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert!(root.write(Path::new("file"), b"new", PLAIN).unwrap());
            assert_eq!(fs::read(&path).unwrap(), b"new");
            assert_eq!(mode(&path), 0o600);
            assert!(root.write(Path::new("other"), b"", only).unwrap());
            assert_eq!(fs::read_dir(folder).unwrap().count(), 2);
        });
    }

    #[test]
    fn no_path_or_symlink_leads_out_of_the_root() {
        in_folder("out", |folder, root| {
            for path in ["../up", "/../../up", "a/../../../up"] {
                root.write(Path::new(path), b"1", PLAIN).unwrap();
                assert!(folder.join("up").exists(), "{path}");
                fs::remove_file(folder.join("up")).unwrap();
            }
            symlink("/", folder.join("absolute")).unwrap();
            symlink("../../..", folder.join("relative")).unwrap();
            for path in ["absolute/up", "relative/up"] {
                root.write(Path::new(path), b"1", PLAIN).unwrap();
                assert!(folder.join("up").exists(), "{path}");
                fs::remove_file(folder.join("up")).unwrap();
            }
        });
    }

    #[test]
    fn a_symlink_of_an_unprivileged_user_is_not_followed() {
        in_folder("user", |folder, root| {
            assert!(
                nix::unistd::geteuid().is_root(),
                "only root can give files away"
            );
            fs::create_dir(folder.join("precious")).unwrap();
            fs::create_dir(folder.join("home")).unwrap();
            let link = folder.join("home/.ssh");
            symlink("../precious", &link).unwrap();
            let write = || root.write(Path::new("/home/.ssh/keys"), b"1", PLAIN);
            // Root's own link is as good as a folder.
            write().unwrap();
            fs::remove_file(folder.join("precious/keys")).unwrap();
            for whose in ["home/.ssh", "home"] {
                lchown(folder.join(whose), Some(1000), None).unwrap();
                assert_eq!(write().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                let read = root.read(Path::new("/home/.ssh/keys"), 1);
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                lchown(&link, Some(0), None).unwrap();
            }
            assert_eq!(fs::read_dir(folder.join("precious")).unwrap().count(), 0);
        });
    }

    #[test]
    fn a_symlink_at_the_target_is_replaced() {
        in_folder("link", |folder, root| {
            fs::write(folder.join("precious"), "1").unwrap();
            symlink("precious", folder.join("link")).unwrap();
            root.write(Path::new("link"), b"2", PLAIN).unwrap();
            assert_eq!(fs::read(folder.join("precious")).unwrap(), b"1");
            assert_eq!(fs::read(folder.join("link")).unwrap(), b"2");
        });
    }

    #[test]
    fn a_file_in_place_of_a_directory_is_an_error() {
        in_folder("way", |folder, root| {
            fs::write(folder.join("file"), "1").unwrap();
            let error = root.write(Path::new("file/x"), b"2", PLAIN).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
            fs::create_dir(folder.join("folder")).unwrap();
            root.write(Path::new("folder"), b"2", PLAIN).unwrap_err();
            assert_eq!(fs::read_dir(folder).unwrap().count(), 2);
        });
    }
}

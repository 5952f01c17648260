//! Directories and files on this side, reached only through open directories and by one component
//! at a time: whatever a guest says, and whatever link lies in the way, nothing outside is touched.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, TryLockError},
    io::{self, Seek},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileExt, MetadataExt},
        },
    },
    path::Path,
    sync::Arc,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::{
        stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat},
};

use vsock_agent_files::At;

use super::{
    CopyError, InPlace,
    attributes::{PART_MODE, SETGID},
    leftovers::Leftovers,
    part,
    pull::target::{Finish, Target},
};
use crate::protocol::sftp::Attributes;

/// A directory that is open.
#[derive(Debug)]
pub(super) struct LocalDirectory(File);

impl LocalDirectory {
    /// Opens the directory at a path of the caller's, links followed.
    pub(super) fn open(path: &Path) -> Result<Self, CopyError> {
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty())
            .map(|fd| Self(fd.into()))
            .map_err(|errno| match errno {
                Errno::ENOENT | Errno::ENOTDIR => CopyError::NotADirectory,
                errno => CopyError::local("open the directory", errno.into()),
            })
    }

    /// The directory `name` in this one, made with `permissions` if there is none; and whether it was
    /// made. A link is in the way.
    pub(super) fn enter(&self, name: &OsStr, permissions: u32) -> Result<(Self, bool), CopyError> {
        let made = match mkdirat(&self.0, name, mode(permissions)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(CopyError::local("create the directory", errno.into())),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.0, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ELOOP | Errno::ENOTDIR => CopyError::InTheWay,
            errno => CopyError::local("open the directory", errno.into()),
        })?;
        Ok((Self(fd.into()), made))
    }

    /// A new empty part for the target `name`.
    pub(super) fn create_part(self: &Arc<Self>, name: &OsStr) -> Result<Part, CopyError> {
        let part = part::name(name);
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.0, &*part, flags, mode(PART_MODE))
            .map_err(|errno| CopyError::local("create a file", errno.into()))?;
        Ok(Part {
            directory: Arc::clone(self),
            file: Arc::new(fd.into()),
            name: Some(part),
        })
    }

    /// Makes `old`, which an earlier copy left, a part of this copy; `None` if another copy that
    /// still runs has it.
    pub(super) fn adopt_part(
        self: &Arc<Self>,
        old: &OsStr,
        name: &OsStr,
    ) -> Result<Option<Part>, CopyError> {
        let Some(file) = self.lock_part(old, OFlag::O_RDWR)? else {
            return Ok(None);
        };
        let part = part::name(name);
        match renameat(&self.0, old, &self.0, &*part) {
            Ok(()) => {}
            // Its copy was about to end, and has.
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => {
                return Err(CopyError::local("take over what was left", errno.into()));
            }
        }
        Ok(Some(Part {
            directory: Arc::clone(self),
            file: Arc::new(file),
            name: Some(part),
        }))
    }

    /// Removes what earlier copies left, but for files that another copy that still runs has.
    pub(super) fn remove_parts(&self, old: &[Vec<u8>]) -> Result<(), CopyError> {
        for name in old {
            let name = os_string(name);
            let is_link = self.metadata(&name).is_some_and(|there| there.is_symlink());
            let lock = match is_link {
                true => None,
                false => self.lock_part(&name, OFlag::O_RDONLY)?,
            };
            if !is_link && lock.is_none() {
                continue;
            }
            match unlinkat(&self.0, &*name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(CopyError::local("remove what was left", errno.into())),
            }
        }
        Ok(())
    }

    /// Opens a part, if no copy that still runs has it.
    fn lock_part(&self, old: &OsStr, access: OFlag) -> Result<Option<File>, CopyError> {
        let flags = access | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file: File = match openat(&self.0, old, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            // Gone meanwhile, nothing that a copy left, or somebody else's. One that has its mode
            // already may be for reading only: then it is complete but for its name.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::EISDIR | Errno::ENXIO | Errno::EACCES) => {
                return Ok(None);
            }
            Err(errno) => return Err(CopyError::local("open what was left", errno.into())),
        };
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Ok((is_file && file.try_lock().is_ok()).then_some(file))
    }

    /// Parts in here.
    pub(super) fn leftovers(&self) -> Result<Leftovers, CopyError> {
        let failed = |errno: Errno| CopyError::local("list the directory", errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = Dir::openat(&self.0, ".", flags, Mode::empty()).map_err(failed)?;
        let mut found = Leftovers::default();
        for entry in directory.iter() {
            let entry = entry.map_err(failed)?;
            found.add(entry.file_name().to_bytes());
        }
        Ok(found)
    }

    /// Puts a symbolic link at `name`, over what is there if that is no directory.
    pub(super) fn link(
        &self,
        target: &OsStr,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<(), CopyError> {
        let part = part::name(name);
        symlinkat(target, &self.0, &*part)
            .map_err(|errno| CopyError::local("create the symbolic link", errno.into()))?;
        let placed = self
            .set_link_attributes(&part, attributes)
            .and_then(|()| self.publish(&part, name));
        if placed.is_err() {
            let _ = unlinkat(&self.0, &*part, UnlinkatFlags::NoRemoveDir);
        }
        placed
    }

    fn set_link_attributes(&self, name: &OsStr, attributes: &Attributes) -> Result<(), CopyError> {
        if let Some((user, group)) = attributes.owner {
            let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            fchownat(&self.0, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|errno| CopyError::local("set the owner", errno.into()))?;
        }
        if let Some((accessed, modified)) = attributes.times {
            let (accessed, modified) = (time(accessed), time(modified));
            let flags = UtimensatFlags::NoFollowSymlink;
            utimensat(&self.0, name, &accessed, &modified, flags)
                .map_err(|errno| CopyError::local("set the times", errno.into()))?;
        }
        Ok(())
    }

    fn publish(&self, part: &OsStr, name: &OsStr) -> Result<(), CopyError> {
        renameat(&self.0, part, &self.0, name).map_err(|errno| not_renamed(errno.into()))
    }

    /// Sets attributes of this directory itself, which was made. With `inherits` it keeps the bit of
    /// its group that it has from the one above.
    pub(super) fn set_attributes(
        &self,
        mut attributes: Attributes,
        inherits: bool,
    ) -> Result<(), CopyError> {
        let made = self.0.metadata();
        let made = made.map_err(|source| CopyError::local("read the attributes", source))?;
        if let Some(permissions) = attributes.permissions.as_mut().filter(|_| inherits) {
            *permissions |= made.mode() & SETGID;
        }
        set_attributes(&self.0, &attributes)
    }

    /// What is at `name`, open as a mere path, and its attributes; nothing if there is nothing.
    pub(super) fn at(
        &self,
        name: &OsStr,
        follow: OFlag,
    ) -> Result<Option<(File, std::fs::Metadata)>, CopyError> {
        let failed = |source| CopyError::local("look at the target", source);
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | follow;
        let file: File = match openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        let there = file.metadata().map_err(failed)?;
        Ok(Some((file, there)))
    }

    /// What is at `name`, of a link itself.
    pub(super) fn metadata(&self, name: &OsStr) -> Option<std::fs::Metadata> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file: File = openat(&self.0, name, flags, Mode::empty()).ok()?.into();
        file.metadata().ok()
    }
}

impl AsFd for LocalDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file that is being written. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Part {
    directory: Arc<LocalDirectory>,
    pub(super) file: Arc<File>,
    name: Option<OsString>,
}

impl Part {
    /// Holds others off while this takes long; false if another one was faster.
    pub(super) fn lock(&self) -> bool {
        // A file system without locks has nobody who asks for them either.
        !matches!(self.file.try_lock(), Err(TryLockError::WouldBlock))
    }

    pub(super) fn write(&self, data: &[u8]) -> Result<(), CopyError> {
        self.file
            .write_all_at(data, 0)
            .map_err(|source| CopyError::local("write the file", source))
    }

    /// What is there itself, to be written to. Dropping it leaves it.
    pub(super) fn in_place(target: &Target) -> Result<Self, CopyError> {
        let file = target.open();
        let file = file.map_err(|source| CopyError::local("write to the target", source))?;
        Ok(Self {
            directory: Arc::clone(&target.directory),
            file: Arc::new(file),
            name: None,
        })
    }

    /// Gives the file its attributes and its name. What must not be replaced gets its content; then
    /// this says why.
    pub(super) fn complete(
        mut self,
        target: &Target,
        attributes: &Attributes,
        finish: Finish,
    ) -> Result<Option<InPlace>, CopyError> {
        let Some(part) = &self.name else {
            complete_in_place(&self.file, target, attributes, finish)?;
            return Ok(None);
        };
        set_attributes(&*self.file, attributes)?;
        if finish.fsync {
            sync(&self.file)?;
        }
        let [from, to] = [(&self.directory, part), (&target.directory, &target.name)];
        let [from, to] = [from, to].map(|(directory, name)| At {
            directory: directory.as_fd(),
            name: name.as_os_str(),
        });
        match vsock_agent_files::replace(&self.file, &from, &to, finish.replacement) {
            Ok(Ok(())) => {}
            Ok(Err(reason)) if target.has_file() => {
                let into = Self::in_place(target)?;
                copy(&self.file, &into.file)
                    .map_err(|source| CopyError::local("write to the target", source))?;
                complete_in_place(&into.file, target, attributes, finish)?;
                return Ok(Some(reason.into()));
            }
            // Something else is there by now.
            Ok(Err(_)) => return Err(CopyError::InTheWay),
            Err(error) => return Err(not_renamed(error)),
        }
        self.name = None;
        if finish.fsync {
            sync(&target.directory.0)?;
        }
        Ok(None)
    }

    /// Lets the file stay, for the next copy to continue with.
    pub(super) fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Another copy may have taken it over.
            let _ = unlinkat(&self.directory.0, &**name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Why a part did not get its name.
fn not_renamed(error: io::Error) -> CopyError {
    match error.kind() {
        io::ErrorKind::NotFound => CopyError::TakenOver,
        io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::AlreadyExists => CopyError::InTheWay,
        _ => CopyError::local("rename over the target", error),
    }
}

fn sync(file: &File) -> Result<(), CopyError> {
    file.sync_all()
        .map_err(|source| CopyError::local("write the file to its disk", source))
}

/// Copies all of a file over an empty one.
fn copy(mut from: &File, mut to: &File) -> io::Result<()> {
    from.rewind()?;
    io::copy(&mut from, &mut to).map(drop)
}

/// Gives a file that was written to its attributes. One that was there need not get the times.
fn complete_in_place(
    file: &File,
    target: &Target,
    attributes: &Attributes,
    finish: Finish,
) -> Result<(), CopyError> {
    let told = finish.replacement;
    let mut attributes = attributes.clone();
    if target.has_file() {
        attributes.permissions = attributes.permissions.filter(|_| told.sets_mode);
    }
    let set = set_attributes(file, &attributes);
    if !target.has_file() || told.sets_mode || told.sets_owner {
        set?;
    }
    match finish.fsync {
        true => sync(file),
        false => Ok(()),
    }
}

/// The owner first: to change it clears bits of the mode.
fn set_attributes(file: impl AsFd, attributes: &Attributes) -> Result<(), CopyError> {
    if let Some((user, group)) = attributes.owner {
        fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
            .map_err(|errno| CopyError::local("set the owner", errno.into()))?;
    }
    if let Some(permissions) = attributes.permissions {
        fchmod(&file, mode(permissions))
            .map_err(|errno| CopyError::local("set the mode", errno.into()))?;
    }
    if let Some((accessed, modified)) = attributes.times {
        futimens(&file, &time(accessed), &time(modified))
            .map_err(|errno| CopyError::local("set the times", errno.into()))?;
    }
    Ok(())
}

/// The bits that this process takes from the mode of what it makes (`umask(2)`). To ask by the
/// system call would change it for a moment, for all threads.
pub(super) fn umask() -> u32 {
    /// That of most systems, where the kernel does not say (before Linux 4.7).
    const USUAL: u32 = 0o022;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .unwrap_or(USUAL)
}

const fn mode(permissions: u32) -> Mode {
    Mode::from_bits_truncate(permissions)
}

fn time(seconds: u32) -> TimeSpec {
    TimeSpec::new(seconds.into(), 0)
}

/// What a local link says.
pub(super) fn read_link(directory: impl AsFd, name: &OsStr) -> io::Result<OsString> {
    Ok(nix::fcntl::readlinkat(directory, name)?)
}

/// Bytes of a name, as the system has them.
pub(super) fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// `directory/name`, for people.
pub(super) fn shown(directory: &[u8], name: &OsStr) -> Vec<u8> {
    let mut shown = Vec::with_capacity(directory.len() + 1 + name.len());
    shown.extend_from_slice(directory);
    if !directory.is_empty() && !directory.ends_with(b"/") {
        shown.push(b'/');
    }
    shown.extend_from_slice(name.as_bytes());
    shown
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use nix::unistd::setfsuid;

    use super::*;

    /// Who owns nothing (`nobody`).
    const NOBODY: u32 = 65534;

    #[test]
    fn a_part_that_is_for_reading_only_is_not_continued_and_goes() {
        let path = std::env::temp_dir().join(format!("read-only-part-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let part = OsStr::new(".a.0123456789abcdef.part");
        let (open, kept) = std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                // Root may write to everything; this thread is not root any more.
                setfsuid(Uid::from_raw(NOBODY));
                fs::write(path.join(part), "text").unwrap();
                let mode = fs::Permissions::from_mode(0o444);
                fs::set_permissions(path.join(part), mode).unwrap();
                let directory = Arc::new(LocalDirectory::open(&path).unwrap());
                let adopted = directory.adopt_part(part, OsStr::new("a"));
                directory.remove_parts(&[part.as_bytes().to_vec()]).unwrap();
                (adopted.unwrap().is_some(), path.join(part).exists())
            });
            work.join().unwrap()
        });
        fs::remove_dir_all(&path).unwrap();
        assert_eq!((open, kept), (false, false));
    }
}

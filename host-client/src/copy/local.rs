//! Local directories and files, reached only through open directories and by one component at a
//! time: neither a name from the guest nor a link leads outside.

pub(super) mod target;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
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
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::{
        stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat},
};

use vsock_agent_files::{At, user};

use self::target::{Finish, Target};
use super::{CopyError, attributes::SETGID, descriptors::Permit, part, run::Completed};
use crate::protocol::sftp::{Attributes, Owner, Times};

/// A directory that is open.
#[derive(Debug)]
pub(super) struct LocalDirectory {
    file: File,
    _permit: Option<Permit>,
}

/// The directory that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirectoryId(u64, u64);

impl DirectoryId {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }

    /// Opens this directory again as the parent of one in it, and checks that it is the same. Blocking.
    ///
    /// # Errors
    ///
    /// When one of both was moved, or cannot be opened.
    pub(super) fn above(self, below: impl AsFd) -> Result<File, CopyError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let above = openat(below, "..", flags, Mode::empty()).map(File::from);
        let above = above.map_err(|errno| CopyError::local("open the directory", errno.into()))?;
        let there = above.metadata();
        let there = there.map_err(|source| CopyError::local("read the attributes", source))?;
        if Self::of(&there) == self {
            Ok(above)
        } else {
            Err(CopyError::DirectoryMoved)
        }
    }
}

impl LocalDirectory {
    const fn new(file: File, permit: Option<Permit>) -> Self {
        Self {
            file,
            _permit: permit,
        }
    }

    /// Opens the directory at a path of the caller's, links followed.
    pub(super) fn open(path: &Path) -> Result<Self, CopyError> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty())
            .map(|fd| Self::new(fd.into(), None))
            .map_err(|errno| match errno {
                Errno::ENOTDIR => CopyError::NotADirectory,
                errno => CopyError::local("open the directory", errno.into()),
            })
    }

    /// The directory `name` in this one, made with `permissions` if there is none; and whether it was
    /// made. A link is in the way.
    pub(super) fn enter(
        &self,
        name: &OsStr,
        permissions: u32,
        permit: Option<Permit>,
    ) -> Result<(Self, bool), CopyError> {
        let made = match mkdirat(&self.file, name, mode(permissions)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(CopyError::local("create the directory", errno.into())),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.file, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ELOOP | Errno::ENOTDIR => CopyError::InTheWay,
            errno => CopyError::local("open the directory", errno.into()),
        })?;
        Ok((Self::new(fd.into(), permit), made))
    }

    /// Its device and inode.
    pub(super) fn id(&self) -> Result<DirectoryId, CopyError> {
        let there = self.file.metadata();
        there
            .map(|there| DirectoryId::of(&there))
            .map_err(|source| CopyError::local("read the attributes", source))
    }

    /// Opens the directory above this one again.
    pub(super) fn above(&self, id: DirectoryId, permit: Option<Permit>) -> Result<Self, CopyError> {
        id.above(&self.file).map(|above| Self::new(above, permit))
    }

    /// A part for the target `name`, locked, and how many bytes are in it: with `keep` the longest that
    /// an earlier copy left, if it is private, else a new one. What else earlier copies left is
    /// removed.
    pub(super) fn open_part(
        self: &Arc<Self>,
        name: &OsStr,
        keep: bool,
    ) -> Result<(Part, u64), CopyError> {
        let mut names = part::names(name);
        let opened = vsock_agent_files::open_part(&self.file, &as_bytes(&names), keep)
            .map_err(|source| CopyError::local("create a file", source))?;
        let part = Part {
            directory: Arc::clone(self),
            file: Arc::new(opened.file),
            name: Some(names.swap_remove(opened.name)),
            keep,
        };
        Ok((part, opened.length))
    }

    /// Removes what earlier copies to the target `name` left.
    pub(super) fn remove_parts(&self, name: &OsStr) -> Result<(), CopyError> {
        vsock_agent_files::remove_abandoned(&self.file, &as_bytes(&part::names(name)))
            .map_err(|source| CopyError::local("remove what was left", source))
    }

    fn remove(&self, name: &OsStr) -> Result<(), CopyError> {
        match unlinkat(&self.file, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(CopyError::local("remove what was left", errno.into())),
        }
    }

    /// Puts a symbolic link at `name`, over what is there if that is no directory.
    pub(super) fn link(
        &self,
        target: &OsStr,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<(), CopyError> {
        let mut names = part::names(name);
        let random = names.pop().unwrap_or_default();
        // Links use the first and the random name only.
        let part = names.swap_remove(0);
        let is_own_link = |there: std::fs::Metadata| {
            there.is_symlink() && there.uid() == user().as_raw() && there.nlink() == 1
        };
        if self.metadata(&part).is_some_and(is_own_link) {
            self.remove(&part)?;
        }
        match self.link_by(&part, target, name, attributes) {
            // Something else has that name, or another copy to this target has removed it.
            Err(CopyError::Local { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(CopyError::PartGone) => {}
            linked => return linked,
        }
        self.link_by(&random, target, name, attributes)
    }

    fn link_by(
        &self,
        part: &OsStr,
        target: &OsStr,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<(), CopyError> {
        symlinkat(target, &self.file, part)
            .map_err(|errno| CopyError::local("create the symbolic link", errno.into()))?;
        let placed = self
            .set_link_attributes(part, attributes)
            .and_then(|()| self.publish(part, name));
        if placed.is_err() {
            let _ = unlinkat(&self.file, part, UnlinkatFlags::NoRemoveDir);
        }
        placed
    }

    fn set_link_attributes(&self, name: &OsStr, attributes: &Attributes) -> Result<(), CopyError> {
        if let Some((user, group)) = owner(attributes)? {
            fchownat(
                &self.file,
                name,
                Some(user),
                Some(group),
                AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .map_err(|errno| CopyError::local("set the owner", errno.into()))?;
        }
        if let Some(Times { accessed, modified }) = attributes.times {
            let (accessed, modified) = (time(accessed), time(modified));
            let flags = UtimensatFlags::NoFollowSymlink;
            utimensat(&self.file, name, &accessed, &modified, flags)
                .map_err(|errno| CopyError::local("set the times", errno.into()))?;
        }
        Ok(())
    }

    fn publish(&self, part: &OsStr, name: &OsStr) -> Result<(), CopyError> {
        renameat(&self.file, part, &self.file, name).map_err(|errno| not_renamed(errno.into()))
    }

    /// Sets attributes of this directory itself, which was made. With `inherits` it keeps the bit of
    /// its group that it has from the one above.
    pub(super) fn set_attributes(
        &self,
        mut attributes: Attributes,
        inherits: bool,
    ) -> Result<(), CopyError> {
        let made = self.file.metadata();
        let made = made.map_err(|source| CopyError::local("read the attributes", source))?;
        if let Some(permissions) = attributes.permissions.as_mut().filter(|_| inherits) {
            *permissions |= made.mode() & SETGID;
        }
        set_attributes(&self.file, &attributes)
    }

    /// What is at `name`, open as a mere path, and its attributes; nothing if there is nothing.
    pub(super) fn at(
        &self,
        name: &OsStr,
        follow: OFlag,
    ) -> Result<Option<(File, std::fs::Metadata)>, CopyError> {
        let failed = |source| CopyError::local("look at the target", source);
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | follow;
        let file: File = match openat(&self.file, name, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        let there = file.metadata().map_err(failed)?;
        Ok(Some((file, there)))
    }

    /// Opens the file at `name` for reading; no link is followed.
    pub(super) fn open_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(openat(&self.file, name, flags, Mode::empty())?.into())
    }

    /// What is at `name`, of a link itself.
    pub(super) fn metadata(&self, name: &OsStr) -> Option<std::fs::Metadata> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file: File = openat(&self.file, name, flags, Mode::empty()).ok()?.into();
        file.metadata().ok()
    }
}

impl AsFd for LocalDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn as_bytes(names: &[OsString]) -> Vec<&[u8]> {
    names.iter().map(|name| name.as_bytes()).collect()
}

/// A file that is being written, locked. Dropping it removes it, unless it is to be kept.
#[derive(Debug)]
pub(super) struct Part {
    directory: Arc<LocalDirectory>,
    pub(super) file: Arc<File>,
    name: Option<OsString>,
    /// Whether what is in it stays, for the next copy to continue with.
    keep: bool,
}

impl Part {
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
            keep: false,
        })
    }

    /// Gives the file its attributes and its name. What must not be replaced gets its content; then
    /// this returns the reason.
    pub(super) fn complete(
        mut self,
        target: &Target,
        attributes: &Attributes,
        finish: Finish,
    ) -> Result<Completed, CopyError> {
        let Some(part) = &self.name else {
            complete_in_place(&self.file, target, attributes, finish)?;
            return Ok(Completed::default());
        };
        let mut first = attributes.clone();
        if let Some(old) = target.old().filter(|_| !finish.replacement.sets_mode) {
            // It gets the mode of the old file. Until then it grants no rights that the old one does not.
            first.permissions = first.permissions.map(|mode| mode & old.mode());
        }
        set_attributes(&*self.file, &first)?;
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
                let length = self.file.metadata().map(|part| part.len());
                if !length.is_ok_and(|length| target.fits(length)) {
                    return Err(CopyError::OnlyInPlace(reason.into()));
                }
                self.keep = false;
                let into = Self::in_place(target)?;
                copy(&self.file, &into.file)
                    .map_err(|source| CopyError::local("write to the target", source))?;
                complete_in_place(&into.file, target, attributes, finish)?;
                return Ok(Completed {
                    in_place: Some(reason.into()),
                    left: None,
                });
            }
            // Something else is there by now.
            Ok(Err(_)) => return Err(CopyError::InTheWay),
            Err(error) => return Err(not_renamed(error)),
        }
        let is_second = self.is_second(&target.name);
        self.name = None;
        if finish.fsync {
            sync(&target.directory.file)?;
        }
        // Another copy was at the first name when this began, and may have ended since.
        let removed = is_second.then(|| self.directory.remove_parts(&target.name));
        Ok(Completed {
            in_place: None,
            left: removed.and_then(Result::err),
        })
    }

    /// Whether the first name was not free: another copy writes there, or did.
    pub(super) fn is_second(&self, target: &OsStr) -> bool {
        self.name
            .as_ref()
            .is_some_and(|name| *name != part::part_name(target))
    }

    /// Lets the file stay, for the next copy to continue with.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let has_content = || self.file.metadata().is_ok_and(|there| there.len() > 0);
        if let Some(name) = &self.name
            && !(self.keep && has_content())
        {
            // It may be gone.
            let _ = unlinkat(&self.directory.file, &**name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Why a part did not get its name.
fn not_renamed(error: io::Error) -> CopyError {
    match error.kind() {
        io::ErrorKind::NotFound => CopyError::PartGone,
        io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::AlreadyExists => CopyError::InTheWay,
        _ => CopyError::local("rename over the target", error),
    }
}

fn sync(file: &File) -> Result<(), CopyError> {
    file.sync_all().map_err(unsynced)
}

fn unsynced(error: io::Error) -> CopyError {
    CopyError::local("write the file to its disk", error)
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
    let replacement = finish.replacement;
    let mut attributes = attributes.clone();
    if target.has_file() {
        attributes.permissions = attributes.permissions.filter(|_| replacement.sets_mode);
    }
    let set = set_attributes(file, &attributes);
    if !target.has_file() || replacement.sets_mode || replacement.sets_owner {
        set?;
    }
    match finish.fsync.then(|| file.sync_all()) {
        // A file of `/proc` or `/sys` cannot be synced.
        Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => Err(unsynced(error)),
        _ => Ok(()),
    }
}

/// The owner that is to be set. The id -1 would leave what is there (`chown(2)`).
fn owner(attributes: &Attributes) -> Result<Option<(Uid, Gid)>, CopyError> {
    let Some(Owner { uid, gid }) = attributes.owner else {
        return Ok(None);
    };
    if [uid, gid].contains(&u32::MAX) {
        let source = io::Error::other("4294967295 is no user and no group");
        return Err(CopyError::local("set the owner", source));
    }
    Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid))))
}

/// The owner first: to change it clears bits of the mode.
fn set_attributes(file: impl AsFd, attributes: &Attributes) -> Result<(), CopyError> {
    if let Some((user, group)) = owner(attributes)? {
        fchown(&file, Some(user), Some(group))
            .map_err(|errno| CopyError::local("set the owner", errno.into()))?;
    }
    if let Some(permissions) = attributes.permissions {
        fchmod(&file, mode(permissions))
            .map_err(|errno| CopyError::local("set the mode", errno.into()))?;
    }
    if let Some(Times { accessed, modified }) = attributes.times {
        futimens(&file, &time(accessed), &time(modified))
            .map_err(|errno| CopyError::local("set the times", errno.into()))?;
    }
    Ok(())
}

/// The bits that this process takes from the mode of what it makes (`umask(2)`). To ask by the
/// system call would change it for a moment, for all threads.
pub(super) fn umask() -> u32 {
    /// The usual one, where `/proc/self/status` has none (before Linux 4.7).
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

/// The target of a local link.
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
mod tests;

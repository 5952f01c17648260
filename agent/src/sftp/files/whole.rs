//! Replacing files, and storing and fetching several small files in one request: what the plain
//! requests do, without their round trips and handles.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::Path,
    sync::atomic::Ordering,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};
use vsock_agent_files::{At, InPlace, create_part, replace};
use vsock_agent_protocol::sftp::extension::{
    Failure, FetchFiles, FetchedFile, FetchedFiles, ReplaceFile, Replaced, Replacement, StoreFile,
    StoreFiles, StoredFiles,
};

use super::{
    super::{SftpError, attributes, file_io::read, tree::Entry},
    Files,
};

impl Files {
    /// Renames a complete file over another one, whose attributes it gets.
    ///
    /// # Errors
    ///
    /// Errors of the file system; the target is unchanged then.
    pub(super) fn replace(&self, request: &ReplaceFile) -> Result<Replaced, SftpError> {
        let (from, to) = (
            self.tree.entry(&request.from)?,
            self.tree.entry(&request.to)?,
        );
        let flags = OFlag::O_RDONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        let part = File::from(openat(from.directory(), &*from.name, flags, Mode::empty())?);
        let stat = fstat(&part)?;
        if !attributes::is_regular(&stat) {
            return Err(SftpError::NoOffsets);
        }
        if stat.st_nlink != 1 {
            // The other link may be a file of another user: it must not get these attributes.
            return Err(Errno::EMLINK.into());
        }
        let (from, to) = (at(&from), at(&to));
        Ok(match replace(&part, &from, &to, request.replacement)? {
            Ok(()) => {
                if request.replacement.syncs_directory {
                    self.sync_directory_of(&request.to)?;
                }
                Replaced::Done
            }
            Err(InPlace::Attributes) => Replaced::Attributes,
            Err(InPlace::HardLinks) => Replaced::HardLinks,
            Err(InPlace::Busy) => Replaced::Busy,
            Err(InPlace::NotRegular) => Replaced::NotRegular,
        })
    }

    fn sync_directory_of(&self, path: &Bytes) -> Result<(), SftpError> {
        let parent = Path::new(OsStr::from_bytes(path)).parent();
        let parent = parent.map_or(&b"."[..], |parent| match parent.as_os_str().as_bytes() {
            b"" => b".",
            parent => parent,
        });
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let directory = match self.tree.open(parent, flags, Mode::empty()) {
            Ok(directory) => File::from(directory),
            // A directory may be writable and not readable.
            Err(Errno::EACCES) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        match directory.sync_all() {
            // Not every file system can sync directories.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => Ok(synced?),
        }
    }

    /// Writes files into a directory.
    ///
    /// # Errors
    ///
    /// When the directory cannot be opened. Errors of single files are in the result.
    pub(super) fn store(&self, request: &StoreFiles) -> Result<StoredFiles, SftpError> {
        let directory = self.directory(&request.directory)?;
        let replacement = request.replacement;
        let store = |file| self.unless_ended(|| store(&directory, file, replacement));
        Ok(StoredFiles(request.files.iter().map(store).collect()))
    }

    /// Reads files of a directory.
    ///
    /// # Errors
    ///
    /// When the directory cannot be opened. Errors of single files are in the result.
    pub(super) fn fetch(&self, request: &FetchFiles) -> Result<FetchedFiles, SftpError> {
        let directory = self.directory(&request.directory)?;
        let fetch =
            |(name, length): &(Bytes, u32)| self.unless_ended(|| fetch(&directory, name, *length));
        Ok(FetchedFiles(request.files.iter().map(fetch).collect()))
    }

    pub(super) fn directory(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        self.tree.open(path, flags, Mode::empty())
    }

    fn unless_ended<T>(&self, work: impl FnOnce() -> Result<T, SftpError>) -> Result<T, Failure> {
        let result = if self.ended.load(Ordering::Relaxed) {
            Err(SftpError::BadMessage("the session has ended"))
        } else {
            work()
        };
        result.map_err(|error| Failure {
            code: error.code() as u32,
            message: Bytes::from(error.to_string()),
        })
    }
}

fn at<'a>(entry: &'a Entry<'_>) -> At<'a, [u8]> {
    At {
        directory: entry.directory(),
        name: &entry.name,
    }
}

fn store(directory: &OwnedFd, file: &StoreFile, replacement: Replacement) -> Result<(), SftpError> {
    let (part, name) = (component(&file.part)?, component(&file.name)?);
    // `None`: another copy locked it first.
    let open = create_part(directory, part)?.ok_or(Errno::EEXIST)?;
    let [from, to] = [part, name].map(|name| At {
        directory: directory.as_fd(),
        name,
    });
    let stored = fill(&open, directory, file, replacement).and_then(|()| {
        replace(&open, &from, &to, replacement)?.map_err(|_| SftpError::NotReplaced)
    });
    if stored.is_err() {
        // Best effort: it may be gone, or the file system read-only.
        let _ = unlinkat(directory, part, UnlinkatFlags::NoRemoveDir);
    }
    stored
}

fn fill(
    open: &File,
    directory: &OwnedFd,
    file: &StoreFile,
    replacement: Replacement,
) -> Result<(), SftpError> {
    open.write_all_at(&file.data, 0)?;
    let mut attributes = file.attributes.clone();
    let there = fstatat(directory, &*file.name, AtFlags::AT_SYMLINK_NOFOLLOW);
    if let Ok(there) = there
        && attributes::is_regular(&there)
        && !replacement.sets_mode
    {
        // It gets the mode of the old file. Until then it grants no rights that the old one does not.
        attributes.permissions = attributes.permissions.map(|mode| mode & there.st_mode);
    }
    attributes::set(open, &attributes)
}

fn fetch(directory: impl AsFd, name: &[u8], length: u32) -> Result<FetchedFile, SftpError> {
    // The open must not wait for the writer of a FIFO.
    let flags = OFlag::O_RDONLY
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, component(name)?, flags, Mode::empty())?);
    let stat = fstat(&file)?;
    if !attributes::is_regular(&stat) {
        return Err(SftpError::NoOffsets);
    }
    let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
    let there = match read(&file, 0, length, &mut data) {
        Err(SftpError::EndOfFile) => 0,
        other => other?,
    };
    data.truncate(there);
    Ok(FetchedFile {
        attributes: attributes::from_stat(&stat),
        data: data.into(),
    })
}

/// Checks that a name is one component.
pub(super) fn component(name: &[u8]) -> Result<&[u8], SftpError> {
    match name {
        b"" | b"." | b".." => Err(SftpError::BadMessage("not the name of a file")),
        name if name.contains(&b'/') => Err(SftpError::BadMessage("a path where a name is due")),
        name => Ok(name),
    }
}

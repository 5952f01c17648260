//! What is at the name that a file of the guest is to have here.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::Mode,
        statfs::{EXT4_SUPER_MAGIC, FsType, MSDOS_SUPER_MAGIC, TMPFS_MAGIC, fstatfs},
        statvfs::fstatvfs,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::sleep,
};

use super::{
    super::{
        CopyError, InPlace,
        run::{Completed, Run},
    },
    LocalDirectory, Part,
};
use crate::protocol::sftp::{Attributes, extension::Replacement};

/// How often a pipe or a device is tried that takes no more.
const INTERVAL: Duration = Duration::from_millis(20);

/// First and longest pause before a pipe is opened again that has no reader.
const READER_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Bytes that are written at once to what is no regular file.
const STREAM_BYTES: usize = 64 * 1024;

/// File systems that never share blocks between files (`linux/magic.h`): ext2 to ext4, tmpfs, F2FS,
/// FAT.
const OWN_BLOCKS: [FsType; 4] = [
    EXT4_SUPER_MAGIC,
    TMPFS_MAGIC,
    FsType(0xf2f5_2010),
    MSDOS_SUPER_MAGIC,
];

/// How targets are looked at.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Look {
    /// Whether the caller named it. What only the guest names leads through no link and into no
    /// device.
    pub(in super::super) is_named: bool,
    /// Whether a link is replaced.
    pub(in super::super) no_dereference: bool,
}

/// Where a file goes.
#[derive(Debug, Clone)]
pub(in super::super) struct Target {
    pub(in super::super) directory: Arc<LocalDirectory>,
    pub(in super::super) name: OsString,
    there: Existing,
}

/// What is there.
#[derive(Debug, Clone)]
enum Existing {
    Nothing,
    /// A link that is replaced.
    Link,
    File(Metadata),
    /// A file behind a link to what has no name, or none that is known.
    Linked(Metadata),
    /// A device or a pipe.
    Special(Metadata),
}

impl Target {
    /// A name where nothing is.
    pub(in super::super) fn new(directory: &Arc<LocalDirectory>, name: &OsStr) -> Self {
        Self {
            directory: Arc::clone(directory),
            name: name.to_owned(),
            there: Existing::Nothing,
        }
    }

    /// Looks at what has the name. Blocking.
    ///
    /// # Errors
    ///
    /// When it is nothing that a file could be written to.
    pub(in super::super) fn look(
        directory: &Arc<LocalDirectory>,
        name: &OsStr,
        how: Look,
    ) -> Result<Self, CopyError> {
        let mut target = Self::new(directory, name);
        let Some((_, there)) = directory.at(name, OFlag::O_NOFOLLOW)? else {
            return Ok(target);
        };
        if !there.is_symlink() {
            target.there = Existing::of(there, how)?;
            return Ok(target);
        }
        let end = if how.no_dereference {
            None
        } else {
            directory.at(name, OFlag::empty())?
        };
        let (end, there) = match end {
            Some((_, there)) if there.is_dir() => return Err(CopyError::InTheWay),
            Some(end) if how.is_named => end,
            None if how.is_named && !how.no_dereference => return Err(CopyError::DanglingLink),
            _ => {
                target.there = Existing::Link;
                return Ok(target);
            }
        };
        target.there = match Existing::of(there, how)? {
            Existing::File(there) => match named_by(directory, name, &end, &there) {
                Some((directory, name)) => {
                    return Ok(Self {
                        directory: Arc::new(directory),
                        name,
                        there: Existing::File(there),
                    });
                }
                None => Existing::Linked(there),
            },
            there => there,
        };
        Ok(target)
    }

    /// The file that is there.
    pub(in super::super) const fn old(&self) -> Option<&Metadata> {
        match &self.there {
            Existing::File(old) | Existing::Linked(old) => Some(old),
            Existing::Nothing | Existing::Link | Existing::Special(_) => None,
        }
    }

    /// Whether a file is there.
    pub(in super::super) const fn has_file(&self) -> bool {
        self.old().is_some()
    }

    /// Whether it is a device or a pipe.
    pub(in super::super) const fn is_special(&self) -> bool {
        matches!(self.there, Existing::Special(_))
    }

    /// Opens what is there for writing, without waiting for the reader of a pipe; or creates it. A
    /// file is emptied.
    ///
    /// # Errors
    ///
    /// Errors of the file system, or when another file is there by now.
    pub(in super::super) fn open(&self) -> io::Result<File> {
        let mut flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let looked = match &self.there {
            Existing::Nothing | Existing::Link => {
                flags |= OFlag::O_CREAT | OFlag::O_EXCL;
                let mode = Mode::from_bits_truncate(0o600);
                return Ok(openat(&*self.directory, &*self.name, flags, mode)?.into());
            }
            Existing::File(looked) => {
                flags |= OFlag::O_NOFOLLOW;
                looked
            }
            Existing::Linked(looked) | Existing::Special(looked) => looked,
        };
        let file: File = openat(&*self.directory, &*self.name, flags, Mode::empty())?.into();
        let there = file.metadata()?;
        // Another copy to this target may have ended meanwhile.
        let is_next = matches!(self.there, Existing::File(_)) && there.is_file();
        if !(is_next || is_same(&there, looked)) {
            return Err(io::Error::other(
                "the target was replaced by another process meanwhile",
            ));
        }
        if looked.is_file() {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Whether the disk has no space for so many bytes beside the existing file, but in its place.
    fn needs_room(&self, bytes: u64) -> bool {
        self.space()
            .is_some_and(|(free, old)| free < bytes && bytes <= free.saturating_add(old))
    }

    /// Whether the disk has space for so many bytes in place of the existing file, as far as is known.
    pub(in super::super) fn fits(&self, bytes: u64) -> bool {
        self.space()
            .is_none_or(|(free, old)| bytes <= free.saturating_add(old))
    }

    /// How many bytes are free, and how many the file that is there takes. None if there is no file,
    /// or it is on a file system without blocks.
    fn space(&self) -> Option<(u64, u64)> {
        let old = self.old()?;
        let mut follow = OFlag::empty();
        follow.set(
            OFlag::O_NOFOLLOW,
            !matches!(self.there, Existing::Linked(_)),
        );
        // Of the file, not of its directory: something else may be mounted there.
        let (file, _) = self.directory.at(&self.name, follow).ok()??;
        let system = fstatvfs(&file).ok()?;
        let free = system
            .blocks_available()
            .saturating_mul(system.fragment_size());
        let old = match has_own_blocks(&file) {
            true => old.blocks().saturating_mul(512),
            // How much truncating it would free is not known.
            false => 0,
        };
        (system.blocks() > 0).then_some((free, old))
    }
}

impl Existing {
    fn of(there: Metadata, how: Look) -> Result<Self, CopyError> {
        let kind = there.file_type();
        match kind {
            _ if kind.is_file() => Ok(Self::File(there)),
            _ if kind.is_dir() => Err(CopyError::InTheWay),
            _ if kind.is_socket() => Err(CopyError::Socket),
            _ if how.is_named => Ok(Self::Special(there)),
            _ => Err(CopyError::SpecialTarget),
        }
    }
}

/// The directory and the name of the file that a link leads to. None if they are not known, or if
/// the link is one of the kernel's (`/proc/self/fd/1`): what that leads to is open already, and must
/// stay the same file.
fn named_by(
    directory: &LocalDirectory,
    link: &OsStr,
    end: &File,
    there: &Metadata,
) -> Option<(LocalDirectory, OsString)> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    if let Err(Errno::ELOOP) = openat2(directory.as_fd(), link, how) {
        return None;
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd())).ok()?;
    let parent = LocalDirectory::open(path.parent()?).ok()?;
    let name = path.file_name()?.to_owned();
    let (_, found) = parent.at(&name, OFlag::O_NOFOLLOW).ok()??;
    is_same(&found, there).then_some((parent, name))
}

/// Whether the blocks of a file are its own: it is on a file system that never shares them between
/// files (reflinks, snapshots, layers).
fn has_own_blocks(file: &File) -> bool {
    let system = fstatfs(file).map(|system| system.filesystem_type());
    system.is_ok_and(|system| OWN_BLOCKS.contains(&system))
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Writes what `source` gives into a device or a pipe. A pipe waits for its reader.
pub(in super::super) async fn write_special<R>(
    run: &Run<'_>,
    target: Target,
    source: &mut R,
) -> Result<(), CopyError>
where
    R: AsyncRead + Unpin,
{
    let failed = |source| CopyError::local("write to the target", source);
    let is_block =
        matches!(&target.there, Existing::Special(looked) if looked.file_type().is_block_device());
    let target = Arc::new(target);
    let mut pause = READER_PAUSE.0;
    let file = loop {
        let target = Arc::clone(&target);
        match run.pool.run_long(move || target.open()).await? {
            // To wait in the call of the kernel could not be ended.
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
                sleep(pause).await;
                pause = (pause * 2).min(READER_PAUSE.1);
            }
            opened => break Arc::new(opened.map_err(failed)?),
        }
    };
    loop {
        let mut data = vec![0; STREAM_BYTES];
        let count = source.read(&mut data).await.map_err(failed)?;
        if count == 0 {
            break;
        }
        data.truncate(count);
        while !data.is_empty() {
            let into = Arc::clone(&file);
            let write = move || {
                let written = io::Write::write(&mut &*into, &data);
                (data, written)
            };
            let (rest, written) = run.pool.run_long(write).await?;
            data = rest;
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(INTERVAL).await,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                written => drop(data.drain(..written.map_err(failed)?)),
            }
        }
    }
    if run.fsync && is_block {
        run.pool
            .run_long(move || file.sync_all())
            .await?
            .map_err(failed)
    } else {
        Ok(())
    }
}

/// What a target gets when it is written, from the copy's options.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Finish {
    pub(in super::super) fsync: bool,
    pub(in super::super) in_place: bool,
    pub(in super::super) replacement: Replacement,
}

impl Finish {
    pub(in super::super) fn of(run: &Run<'_>) -> Self {
        Self {
            fsync: run.fsync,
            in_place: run.options.in_place,
            replacement: Replacement {
                // `Target::look` has resolved the links already.
                leaves_links: false,
                ..run.replacement()
            },
        }
    }
}

/// The file that is written, with its length; and why it is not a part, if the options did not ask for
/// that.
pub(in super::super) type OpenedTarget = ((Part, u64), Option<InPlace>);

/// Opens the file to write `bytes` bytes to: a part, with `keep` the one of an earlier copy, or the target
/// itself. Blocking.
pub(in super::super) fn begin(
    target: &Target,
    bytes: u64,
    finish: Finish,
    keep: bool,
) -> Result<OpenedTarget, CopyError> {
    let write_to = |reason| Ok(((Part::in_place(target)?, 0), reason));
    match &target.there {
        Existing::Linked(_) => return write_to(Some(InPlace::Link)),
        Existing::Nothing | Existing::File(_) if finish.in_place => return write_to(None),
        // Not when resuming: the kept part may hold most of the bytes already.
        Existing::File(_) if !keep && target.needs_room(bytes) => {
            return write_to(Some(InPlace::NoRoom));
        }
        _ => {}
    }
    match target.directory.open_part(&target.name, keep) {
        // If the disk is full, truncating the target helps only if the new content then fits.
        Err(CopyError::Local { .. }) if target.old().is_some() && target.fits(bytes) => {
            write_to(Some(InPlace::NoPart))
        }
        part => Ok((part?, None)),
    }
}

/// Writes a small file. Blocking.
pub(in super::super) fn save(
    target: &Target,
    data: &[u8],
    attributes: &Attributes,
    finish: Finish,
) -> Result<Completed, CopyError> {
    let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
    let ((part, _), reason) = begin(target, bytes, finish, false)?;
    part.write(data)?;
    let completed = part.complete(target, attributes, finish)?;
    Ok(Completed {
        in_place: reason.or(completed.in_place),
        ..completed
    })
}

#[cfg(test)]
mod tests;

//! Each request, done to real files. Blocking; called from a thread that may block.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt},
    path::{Component, Path, PathBuf},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    unistd,
};
use russh_sftp::protocol::OpenFlags;
use vsock_agent_protocol::sftp::{Attributes, MAX_DATA_BYTES, MAX_FRAME_BYTES, Reply, Request};

use super::{
    SftpError,
    attributes::{self, PERMISSION_BITS},
    handles::{Handles, Open},
    listing::{self, Listing, path_of},
    ok,
};
use crate::defaults;

/// Mode of a file nobody gave one, before the creation mask.
const DEFAULT_FILE_MODE: u32 = 0o666;

/// Mode of a directory nobody gave one, before the creation mask.
const DEFAULT_DIRECTORY_MODE: u32 = 0o777;

/// Names and versions of the extensions in VERSION.
pub(super) const EXTENSIONS: &[(&str, &str)] = &[
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("limits@openssh.com", "1"),
];

/// The files of one session.
#[derive(Debug)]
pub(super) struct Files {
    handles: Handles,
    /// Where a relative path starts.
    home: PathBuf,
}

impl Files {
    /// A session with nothing open; relative paths start at `home`.
    pub(super) fn new(home: PathBuf) -> Self {
        Self {
            handles: Handles::default(),
            home,
        }
    }

    /// Does what is asked.
    pub(super) fn answer(&mut self, request: Request) -> Reply {
        self.attempt(request).unwrap_or_else(Reply::from)
    }

    fn attempt(&mut self, request: Request) -> Result<Reply, SftpError> {
        match request {
            Request::Init { .. } => Err(SftpError::BadMessage("INIT comes once, and first")),
            Request::Open {
                path,
                flags,
                attributes,
            } => self.open(&path, flags, &attributes),
            Request::Close { handle } => self.handles.remove(&handle).map(|()| ok()),
            Request::Read {
                handle,
                offset,
                length,
            } => self.read(&handle, offset, length),
            Request::Write {
                handle,
                offset,
                data,
            } => {
                self.handles.file(&handle)?.write_all_at(&data, offset)?;
                Ok(ok())
            }
            Request::Lstat { path } => stat(fs::symlink_metadata(self.path(&path))),
            Request::Stat { path } => stat(fs::metadata(self.path(&path))),
            Request::Fstat { handle } => stat(self.handles.file(&handle)?.metadata()),
            Request::Setstat { path, attributes } => {
                attributes::set(self.path(&path).as_path(), &attributes).map(|()| ok())
            }
            Request::Fsetstat { handle, attributes } => {
                attributes::set(self.handles.file(&handle)?, &attributes).map(|()| ok())
            }
            Request::Opendir { path } => {
                self.handles.check_room()?;
                let listing = Listing::open(&self.path(&path))?;
                Ok(Reply::Handle {
                    handle: self.handles.insert(Open::Directory(listing)),
                })
            }
            Request::Readdir { handle } => Ok(Reply::Names {
                names: self.handles.directory(&handle)?.next()?,
            }),
            Request::Remove { path } => done(unistd::unlink(&self.path(&path))),
            Request::Mkdir { path, attributes } => self.make_directory(&path, &attributes),
            Request::Rmdir { path } => done(fs::remove_dir(self.path(&path))),
            Request::Realpath { path } => Ok(Reply::Names {
                names: listing::only(real_path(&self.path(&path))?),
            }),
            Request::Rename { from, to } => rename_to_free(&self.path(&from), &self.path(&to)),
            Request::Readlink { path } => Ok(Reply::Names {
                names: listing::only(fs::read_link(self.path(&path))?),
            }),
            // What a link says is not a path of ours: it stays as it is.
            Request::Symlink { target, link } => done(std::os::unix::fs::symlink(
                path_of(&target),
                self.path(&link),
            )),
            Request::Extended { name, data } => self.extended(&name, data),
        }
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        self.home.join(path_of(name))
    }

    fn open(&mut self, path: &[u8], flags: u32, wanted: &Attributes) -> Result<Reply, SftpError> {
        self.handles.check_room()?;
        let flags = OpenFlags::from_bits_truncate(flags);
        let mode = wanted.permissions.unwrap_or(DEFAULT_FILE_MODE) & PERMISSION_BITS;
        let access = match (
            flags.contains(OpenFlags::READ),
            flags.contains(OpenFlags::WRITE),
        ) {
            (true, true) => libc::O_RDWR,
            (false, true) => libc::O_WRONLY,
            (_, false) => libc::O_RDONLY,
        };
        let mut bits = access;
        for (flag, bit) in [
            (OpenFlags::APPEND, libc::O_APPEND),
            (OpenFlags::CREATE, libc::O_CREAT),
            (OpenFlags::TRUNCATE, libc::O_TRUNC),
            (OpenFlags::EXCLUDE, libc::O_EXCL),
        ] {
            bits |= if flags.contains(flag) { bit } else { 0 };
        }
        // Without CREATE, EXCLUSIVE means nothing, and the kernel would not define it either.
        if !flags.contains(OpenFlags::CREATE) {
            bits &= !libc::O_EXCL;
        }
        let file = open_file(&self.path(path), bits, mode)?;
        let kind = file.metadata()?.file_type();
        if kind.is_fifo() || kind.is_socket() {
            return Err(SftpError::Io(io::Error::other(
                "not a file that can be read or written at an offset",
            )));
        }
        Ok(Reply::Handle {
            handle: self.handles.insert(Open::File(file)),
        })
    }

    fn read(&self, handle: &[u8], offset: u64, length: u32) -> Result<Reply, SftpError> {
        let file = self.handles.file(handle)?;
        let length = usize::try_from(length.min(MAX_DATA_BYTES)).unwrap_or(0);
        let mut data = vec![0; length];
        let read = loop {
            match file.read_at(&mut data, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if read == 0 {
            return Err(SftpError::EndOfFile);
        }
        data.truncate(read);
        Ok(Reply::Data { data: data.into() })
    }

    fn make_directory(&self, path: &[u8], wanted: &Attributes) -> Result<Reply, SftpError> {
        let mode = wanted.permissions.unwrap_or(DEFAULT_DIRECTORY_MODE) & PERMISSION_BITS;
        done(fs::DirBuilder::new().mode(mode).create(self.path(path)))
    }

    fn extended(&self, name: &[u8], mut data: Bytes) -> Result<Reply, SftpError> {
        match name {
            b"posix-rename@openssh.com" => {
                let (from, to) = (string(&mut data)?, string(&mut data)?);
                done(fs::rename(self.path(&from), self.path(&to)))
            }
            b"hardlink@openssh.com" => {
                let (from, to) = (string(&mut data)?, string(&mut data)?);
                done(fs::hard_link(self.path(&from), self.path(&to)))
            }
            b"fsync@openssh.com" => done(self.handles.file(&string(&mut data)?)?.sync_all()),
            b"limits@openssh.com" => Ok(Reply::Extended { data: limits() }),
            _ => Err(SftpError::Unsupported),
        }
    }
}

/// Opens without waiting for anybody: a FIFO without a writer, or a terminal, must not stop the
/// session.
fn open_file(path: &Path, bits: i32, mode: u32) -> io::Result<File> {
    let flags = bits | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let flags = nix::fcntl::OFlag::from_bits_retain(flags);
    let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
    Ok(File::from(nix::fcntl::open(path, flags, mode)?))
}

/// Renames, but never over something: draft-02, section 6.5. File systems that cannot do that in
/// one step (`EINVAL`) are looked at first.
fn rename_to_free(from: &Path, to: &Path) -> Result<Reply, SftpError> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL | Errno::ENOSYS) if fs::symlink_metadata(to).is_ok() => {
            Err(Errno::EEXIST.into())
        }
        Err(Errno::EINVAL | Errno::ENOSYS) => done(fs::rename(from, to)),
        other => done(other),
    }
}

/// The path without links and dots. Its last part need not exist, and if others do not either, it
/// is cleaned as text, so that a client can ask for a place it is going to create.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let parent = clean
        .parent()
        .and_then(|parent| fs::canonicalize(parent).ok());
    Ok(match (parent, clean.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => clean,
    })
}

fn stat(metadata: io::Result<fs::Metadata>) -> Result<Reply, SftpError> {
    Ok(Reply::Attributes {
        attributes: attributes::from_metadata(&metadata?),
    })
}

fn done<E: Into<SftpError>>(result: Result<(), E>) -> Result<Reply, SftpError> {
    result.map(|()| ok()).map_err(Into::into)
}

/// Takes a counted string off an extension's data.
fn string(data: &mut Bytes) -> Result<Bytes, SftpError> {
    const SHORT: SftpError = SftpError::BadMessage("the extension's data is too short");
    let length = data.try_get_u32().map_err(|_| SHORT)?;
    match usize::try_from(length) {
        Ok(length) if length <= data.len() => Ok(data.split_to(length)),
        _ => Err(SHORT),
    }
}

/// `limits@openssh.com` (OpenSSH `PROTOCOL`, section 4.8): packet, read, write, handles.
fn limits() -> Bytes {
    let mut data = BytesMut::new();
    let handles = u64::try_from(defaults::MAX_SFTP_HANDLES).unwrap_or(u64::MAX);
    for limit in [
        MAX_FRAME_BYTES.into(),
        MAX_DATA_BYTES.into(),
        MAX_DATA_BYTES.into(),
        handles,
    ] {
        data.put_u64(limit);
    }
    data.freeze()
}

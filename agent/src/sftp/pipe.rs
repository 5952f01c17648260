//! A pipe through which pages of a file are spliced to a connection.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    libc::c_int,
    unistd::pipe2,
};
use vsock_agent_protocol::sftp::MAX_DATA_BYTES;

/// Size of the pipe, in bytes: holds the pages of the largest READ, which need not start at a page.
/// The kernel rounds it up to a power of two.
const PIPE_BYTES: c_int = MAX_DATA_BYTES.cast_signed() + 64 * 1024;

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `ENFILE`; `EPERM` when the user may not have pipes of this size.
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES))?;
        Ok(Self {
            read,
            write,
            held: 0,
        })
    }

    /// How many bytes are in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Takes `length` bytes of a file, at most [`MAX_DATA_BYTES`], or fewer at its end. It must be
    /// empty.
    ///
    /// # Errors
    ///
    /// The errno of `splice(2)` when nothing was read: [`Errno::EINVAL`] for a file that it cannot
    /// splice.
    pub(super) fn fill(&mut self, file: &File, offset: u64, length: u32) -> Result<usize, Errno> {
        let mut at = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let length = usize::try_from(length.min(MAX_DATA_BYTES)).unwrap_or(0);
        while self.held < length {
            let flags = SpliceFFlags::SPLICE_F_MOVE;
            let wanted = length - self.held;
            match splice(file, Some(&mut at), &self.write, None, wanted, flags) {
                Ok(0) => break,
                Ok(count) => self.held += count,
                Err(Errno::EINTR) => {}
                Err(_) if self.held > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(self.held)
    }

    /// Empties it into a socket or another pipe.
    ///
    /// # Errors
    ///
    /// The errno of `splice(2)`.
    pub(super) fn empty_into(&mut self, target: impl AsFd) -> io::Result<()> {
        while self.held > 0 {
            let flags = SpliceFFlags::SPLICE_F_MOVE;
            match splice(&self.read, None, target.as_fd(), None, self.held, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.held = self.held.saturating_sub(count),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

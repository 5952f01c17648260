//! Reading and writing the data of a file.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use vsock_agent_protocol::sftp::MAX_DATA_BYTES;

use super::{SftpError, handles::Open};

/// Interval at which a write to a pipe checks whether its session has ended.
const WAIT_MILLISECONDS: u8 = 100;

/// Reads once. A length of 0 reads nothing, also at the end of the file, and of a file that cannot be
/// read.
///
/// # Errors
///
/// [`SftpError::EndOfFile`], or the errno of `pread(2)`.
pub(super) fn read(
    file: &File,
    offset: u64,
    length: u32,
    data: &mut [u8],
) -> Result<usize, SftpError> {
    if length == 0 {
        return match i64::try_from(offset) {
            Ok(_) => Ok(0),
            Err(_) => Err(Errno::EINVAL.into()),
        };
    }
    let length = usize::try_from(length.min(MAX_DATA_BYTES)).unwrap_or(0);
    let room = data.get_mut(..length).unwrap_or_default();
    loop {
        match file.read_at(room, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) => return Err(SftpError::EndOfFile),
            other => return Ok(other?),
        }
    }
}

/// Writes everything.
pub(super) fn write(open: &Open, offset: u64, data: &[u8]) -> Result<(), SftpError> {
    let file = open.file()?;
    write_all(data, |data, written| {
        file.write_at(data, offset.saturating_add(written))
    })
}

/// Writes everything to the end of a file, or to a pipe or a device. Waits for the reader of a pipe,
/// until the session ends.
pub(super) fn append(mut file: &File, data: &[u8], ended: &AtomicBool) -> Result<(), SftpError> {
    write_all(data, |data, _| {
        loop {
            match file.write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if ended.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut files, WAIT_MILLISECONDS) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    })
}

fn write_all(
    data: &[u8],
    mut write: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> Result<(), SftpError> {
    let mut written = 0;
    loop {
        let before = u64::try_from(written).unwrap_or(u64::MAX);
        match write(&data[written..], before) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) if written < data.len() => {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            other => written += other?,
        }
        if written == data.len() {
            return Ok(());
        }
    }
}

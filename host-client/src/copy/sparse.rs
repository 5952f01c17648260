//! Where files have data and where holes, so that holes stay holes.

use std::{fs::File, sync::Arc};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek64},
};

use super::{CopyError, run::Run};
use crate::{error::ClientError, protocol::sftp::extension::Holes, sftp::RemoteFile};

/// The next range of a local file at or behind `offset` that has data, in bytes.
pub(super) async fn next_data(
    run: &Run<'_>,
    file: &Arc<File>,
    offset: u64,
    size: u64,
) -> Result<Option<(u64, u64)>, CopyError> {
    let file = Arc::clone(file);
    run.pool
        .run_long(move || find_data(&file, offset, size))
        .await?
        .map_err(|errno| CopyError::local("find the holes of the file", errno.into()))
}

fn find_data(file: &File, offset: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    if offset >= size {
        return Ok(None);
    }
    let signed = |offset: u64| i64::try_from(offset).map_err(|_| Errno::EOVERFLOW);
    let start = match lseek64(file, signed(offset)?, Whence::SeekData) {
        Ok(start) => u64::try_from(start).unwrap_or(size),
        // Nothing but a hole.
        Err(Errno::ENXIO) => return Ok(None),
        // A file system that knows no holes.
        Err(Errno::EINVAL) => return Ok(Some((offset, size))),
        Err(errno) => return Err(errno),
    };
    let end = lseek64(file, signed(start)?, Whence::SeekHole)?;
    let end = u64::try_from(end).unwrap_or(size).min(size);
    Ok((start < end).then_some((start, end)))
}

/// How many bytes of a file in the guest are no holes.
pub(super) async fn data_bytes(file: &RemoteFile) -> Result<u64, CopyError> {
    let mut data = RemoteData::start(file, 0).await?;
    let mut bytes: u64 = 0;
    while let Some((from, to)) = data.next().await? {
        bytes = bytes.saturating_add(to.saturating_sub(from));
    }
    Ok(bytes)
}

/// The data of a file in the guest, range by range.
#[derive(Debug)]
pub(super) struct RemoteData<'a> {
    file: &'a RemoteFile,
    map: Holes,
    next: usize,
    offset: u64,
}

impl<'a> RemoteData<'a> {
    /// Asks for the first part of the map.
    pub(super) async fn start(file: &'a RemoteFile, offset: u64) -> Result<Self, ClientError> {
        Ok(Self {
            file,
            map: file.holes(offset).await?,
            next: 0,
            offset,
        })
    }

    /// Whether there is no hole.
    pub(super) fn is_dense(&self) -> bool {
        self.map.holes.is_empty() && self.map.end == self.map.size
    }

    /// The next range that has data.
    pub(super) async fn next(&mut self) -> Result<Option<(u64, u64)>, ClientError> {
        loop {
            let start = self.offset;
            if let Some((hole, length)) = self.map.holes.get(self.next).copied() {
                self.next += 1;
                self.offset = hole.saturating_add(length).max(start);
                if start < hole {
                    return Ok(Some((start, hole)));
                }
            } else if start < self.map.end {
                self.offset = self.map.end;
                return Ok(Some((start, self.map.end)));
            } else if start < self.map.size {
                let map = self.file.holes(start).await?;
                // A map that goes no further would never end.
                if map.end <= start {
                    let error = ClientError::protocol("a map of holes that does not go on");
                    return Err(self.file.sftp().at(error));
                }
                (self.map, self.next) = (map, 0);
            } else {
                return Ok(None);
            }
        }
    }
}

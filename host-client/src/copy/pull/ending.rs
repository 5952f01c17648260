//! Checks the end of a file's data against the size from the guest.
//!
//! A file that grows is copied as long as it was at the start. One that shrinks, or whose data are
//! not as many as it says, is an error. A file of `/proc` or `/sys` often
//! tells no length or a wrong one: it is known by a file system without blocks (`f_blocks` is 0 in
//! `statvfs(3)`; `simple_statfs` in Linux's `fs/libfs.c` leaves it so) together with a length that
//! is the same before and after, and is read to its end.

use super::super::{CopyError, run::Run};
use crate::{
    error::ClientError,
    protocol::sftp::{Attributes, extension},
    sftp::RemoteFile,
};

/// Where the data of a file ended that is read up to one byte behind its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// At its size, or where the kernel ended it.
    Whole,
    /// Existing is more than at the start, or something else.
    Changed,
    /// A file of `/proc` or `/sys` that is longer than its size: it must be read on.
    GoOn,
}

/// Up to where a file is read at first, in bytes: one byte more tells whether there is more.
pub(super) fn limit(before: &Attributes) -> u64 {
    match before.size {
        None | Some(0) => u64::MAX,
        Some(size) => size.saturating_add(1),
    }
}

/// Checks a file that had the attributes `before`, and whose data ended at `end`. Also returns its
/// attributes now.
pub(super) async fn check_end(
    run: &Run<'_>,
    file: &RemoteFile,
    before: &Attributes,
    end: u64,
) -> Result<(Ending, Attributes), CopyError> {
    let after = file.stat().await?;
    let modified = |attributes: &Attributes| attributes.times.map(|times| times.modified);
    let is_touched = modified(before) != modified(&after);
    let (size, now) = (before.size.unwrap_or(0), after.size.unwrap_or(0));
    if size == 0 {
        // Its length was only known by reading it.
        let is_changed = now != 0 && (now != end || is_touched);
        let ending = if is_changed {
            Ending::Changed
        } else {
            Ending::Whole
        };
        return Ok((ending, after));
    }
    if now < size {
        return Err(CopyError::Changed);
    }
    if end == size || end > size && now > size {
        let is_same = end == size && now == size && !is_touched;
        let ending = if is_same {
            Ending::Whole
        } else {
            Ending::Changed
        };
        return Ok((ending, after));
    }
    if now != size || !is_made_up(run, file).await {
        return Err(CopyError::Client(ClientError::SizeChanged {
            endpoint: run.sftp.endpoint().cloned(),
            size: now,
            transferred: end,
        }));
    }
    let ending = if end > size {
        Ending::GoOn
    } else {
        Ending::Whole
    };
    Ok((ending, after))
}

async fn is_made_up(run: &Run<'_>, file: &RemoteFile) -> bool {
    run.sftp.has_extension(extension::FSTATVFS)
        && file.statvfs().await.is_ok_and(|system| system.blocks == 0)
}

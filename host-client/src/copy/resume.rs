//! How far two files are the same: the beginning of each is hashed where the file is.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use super::{CopyError, run::Run};
use crate::{error::ClientError, protocol::sftp::extension, sftp::RemoteFile};

/// Bytes compared at once: where the first difference is found, this much at most is copied again.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes read at once.
const BUFFER_BYTES: usize = 128 * 1024;

/// How many of the first `length` bytes are the same, in whole pieces.
pub(super) async fn same_prefix(
    run: &Run<'_>,
    local: &Arc<File>,
    remote: &RemoteFile,
    length: u64,
) -> Result<u64, CopyError> {
    let mut offset = 0;
    while offset < length {
        let bytes = PIECE_BYTES.min(length - offset);
        let file = Arc::clone(local);
        let here = run.pool.run_long(move || hash(&file, offset, bytes));
        let (here, there) = tokio::join!(here, remote_hash(run, remote, offset, bytes));
        let here = match here? {
            Ok(here) => here,
            // Shorter than it was.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(source) => return Err(CopyError::local("read the file", source)),
        };
        if there? != Some(here) {
            break;
        }
        offset += bytes;
    }
    Ok(offset)
}

/// Whether a file in the guest has this content, and nothing else.
pub(super) async fn is_content(
    run: &Run<'_>,
    content: &[u8],
    remote: &RemoteFile,
) -> Result<bool, CopyError> {
    let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if length == 0 {
        return Ok(true);
    }
    let there = remote_hash(run, remote, 0, length).await?;
    Ok(there == Some(blake3::hash(content).into()))
}

fn hash(file: &File, mut offset: u64, mut bytes: u64) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    while bytes > 0 {
        let length = usize::try_from(bytes).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
        file.read_exact_at(&mut buffer[..length], offset)?;
        hasher.update(&buffer[..length]);
        let length = u64::try_from(length).unwrap_or(bytes);
        offset += length;
        bytes -= length;
    }
    Ok(hasher.finalize().into())
}

/// The hash of a range in the guest, by extension or by reading it. `None` if not all of
/// the range is there.
async fn remote_hash(
    run: &Run<'_>,
    remote: &RemoteFile,
    offset: u64,
    bytes: u64,
) -> Result<Option<[u8; 32]>, ClientError> {
    if run.sftp.has_extension(extension::HASH) {
        let range = remote.hash(offset, bytes).await?;
        return Ok((range.length == bytes).then_some(range.hash));
    }
    let mut hasher = blake3::Hasher::new();
    let mut reads = remote.reads(offset, offset + bytes, None);
    while let Some(chunk) = reads.next().await? {
        hasher.update(&chunk.data);
    }
    let is_all = reads.position() == offset + bytes;
    Ok(is_all.then(|| hasher.finalize().into()))
}

//! Out of one file of the guest, to whatever takes bytes.

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tracing::instrument;

use super::{
    super::{CopyError, CopyObserver, CopyOptions, CopySummary, run::Run},
    ending::{self, Ending},
    regular_file,
};
use crate::{
    protocol::sftp::Attributes,
    sftp::{OpenOptions, RemoteFile, RemotePath, Sftp},
};

/// Writes one file of the guest into `sink`, which is flushed but not shut down.
///
/// # Cancel safety
///
/// When the future is dropped, `sink` has a part of the file.
///
/// # Errors
///
/// As for [`push`](super::super::push()).
#[instrument(level = "debug", name = "copy", skip_all, fields(endpoint = sftp.endpoint().map(display), direction = "pull"))]
pub async fn pull_stream<W>(
    sftp: &Sftp,
    source: &RemotePath,
    sink: &mut W,
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> Result<CopySummary, CopyError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let run = Run::new(sftp, options, observer, true);
    let attributes = regular_file(&run, source).await?;
    let transferred = read_into(&run, source, &attributes, sink).await?;
    run.finished(source.as_bytes(), transferred, |summary| &mut summary.files);
    Ok(run.summary())
}

/// Writes a file that was found into `sink`, and flushes it. Returns the number of bytes.
pub(in super::super) async fn read_into<W>(
    run: &Run<'_>,
    source: &RemotePath,
    attributes: &Attributes,
    sink: &mut W,
) -> Result<u64, CopyError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let size = attributes.size.filter(|size| *size > 0);
    run.started(source.as_bytes(), size, 0);
    let file = run.sftp.open(source, OpenOptions::new().read(true)).await?;
    let end = copy(run, &file, (0, ending::limit(attributes)), size, sink).await?;
    let (ending, _) = ending::check_end(run, &file, attributes, end).await?;
    let bytes = match (ending, size) {
        (Ending::GoOn, Some(size)) => copy(run, &file, (size, u64::MAX), None, sink).await?,
        (_, Some(size)) => end.min(size),
        _ => end,
    };
    let failed = |source| CopyError::local("write what was read", source);
    sink.flush().await.map_err(failed)?;
    if ending == Ending::Changed {
        run.changed(source.as_bytes());
    }
    Ok(bytes)
}

/// Writes a range of a file into `sink`, but not what is behind the `size` that it is said to have.
/// Returns where the range ended.
async fn copy<W>(
    run: &Run<'_>,
    file: &RemoteFile,
    (from, to): (u64, u64),
    size: Option<u64>,
    sink: &mut W,
) -> Result<u64, CopyError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let failed = |source| CopyError::local("write what was read", source);
    let mut reads = file.reads(from, to, size);
    while let Some(chunk) = reads.next().await? {
        let left = size.map_or(u64::MAX, |size| size.saturating_sub(chunk.offset));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let data = chunk.data.get(..left).unwrap_or(&chunk.data);
        sink.write_all(data).await.map_err(failed)?;
        run.moved(u64::try_from(data.len()).unwrap_or(u64::MAX))?;
    }
    Ok(reads.position())
}

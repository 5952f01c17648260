//! Out of one file of the guest, to whatever takes bytes.

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{
    super::{CopyError, CopyObserver, CopyOptions, CopySummary, attributes::Kind, run::Run},
    top,
};
use crate::{
    error::ClientError,
    protocol::sftp::Attributes,
    sftp::{OpenFlags, RemotePath, Sftp},
};

/// Writes one file of the guest into `sink`, which is flushed but not shut down.
///
/// # Errors
///
/// As for [`push`](super::super::push()).
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
    // Before it is opened: to open a pipe or a device can hang or do something.
    let (kind, attributes) = top(sftp, source, false).await?;
    match kind {
        Kind::File => {}
        Kind::Directory => return Err(CopyError::IsADirectory),
        _ => return Err(CopyError::Special),
    }
    run.found(attributes.size.unwrap_or(0))?;
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
    let file = run
        .sftp
        .open(source, OpenFlags::READ, Attributes::default())
        .await?;
    let failed = |source| CopyError::local("write what was read", source);
    let mut reads = file.reads(0, u64::MAX, size);
    while let Some(chunk) = reads.next().await? {
        sink.write_all(&chunk.data).await.map_err(failed)?;
        run.moved(u64::try_from(chunk.data.len()).unwrap_or(u64::MAX))?;
    }
    sink.flush().await.map_err(failed)?;
    let transferred = reads.position();
    match file.stat().await?.size {
        Some(size) if size != 0 && size != transferred => {
            return Err(ClientError::SizeChanged { size, transferred }.into());
        }
        _ => {}
    }
    Ok(transferred)
}

//! Into one file of the guest, from whatever gives bytes.

use tokio::io::AsyncRead;
use tracing::instrument;

use super::{
    super::{CopyError, CopyObserver, CopyOptions, CopySummary, attributes, run::Run},
    file::{self, Output, target::Target},
    is_directory,
};
use crate::sftp::{RemotePath, Sftp};

/// Mode of a new file.
const DEFAULT_MODE: u32 = 0o644;

/// Writes what `source` gives, to its end, into one file of the guest. An old file keeps its
/// mode and its owner, as with [`push`](super::push()).
///
/// # Cancel safety
///
/// When the future is dropped, the copy ends. Files that are complete stay; what is unfinished is removed,
/// which [`Sftp::removed`] waits for. A part of `source` is read.
///
/// # Errors
///
/// As for [`push`](super::push()).
pub async fn push_stream<R>(
    sftp: &Sftp,
    source: &mut R,
    destination: &RemotePath,
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> Result<CopySummary, CopyError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let always = async || true;
    push_stream_if(sftp, source, destination, options, observer, always).await
}

/// The same, if the file that is there is `unchanged`, which is asked before the first byte is
/// written, and once more when all are and the old file is about to be replaced.
///
/// # Cancel safety
///
/// When the future is dropped, the copy ends. Files that are complete stay; what is unfinished is removed,
/// which [`Sftp::removed`] waits for. A part of `source` is read.
///
/// # Errors
///
/// As for [`push`](super::push()); [`CopyError::TargetChanged`].
#[instrument(level = "debug", name = "copy", skip_all, fields(endpoint = sftp.endpoint().map(display), direction = "push"))]
pub async fn push_stream_if<R>(
    sftp: &Sftp,
    source: &mut R,
    destination: &RemotePath,
    options: &CopyOptions,
    observer: &dyn CopyObserver,
    unchanged: impl AsyncFn() -> bool,
) -> Result<CopySummary, CopyError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let run = Run::new(sftp, options, observer, true);
    if destination.file_name().is_none() {
        return Err(CopyError::NoName);
    }
    if is_directory(sftp, destination, destination.as_bytes().ends_with(b"/")).await? {
        return Err(CopyError::IsADirectory);
    }
    let target = Target::look(&run, destination.clone()).await?;
    let mode = options.mode.unwrap_or(DEFAULT_MODE);
    let attributes = attributes::mode(mode);
    run.started(b"-", None, 0);
    // What a stream left cannot be continued.
    let output = Output::new(&run, target, b"-");
    let streamed = file::stream_if(output, source, attributes, unchanged).await;
    super::clean_up(sftp).await;
    let bytes = streamed?;
    run.finished(b"-", bytes, |summary| &mut summary.files);
    Ok(run.summary())
}

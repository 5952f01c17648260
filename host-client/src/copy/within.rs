//! Copies within the guest.

use super::{
    CopyError, CopyObserver, CopyOptions, CopySummary, InPlace, attributes,
    pull::{read_into, regular_file},
    push::file::{COPY_BYTES, Output, needs_room, target::Target},
    run::Run,
};
use tracing::instrument;

use crate::{
    error::ClientError,
    protocol::sftp::{Attributes, status},
    sftp::{OpenOptions, RemoteFile, RemotePath, Sftp},
};

/// Bytes on their way through this side.
const PIPE_BYTES: usize = 256 * 1024;

/// Copies one file of the guest to another path in it; its content does not leave the guest, unless
/// it goes into a device or a pipe. `destination` is no directory. Times are not copied.
///
/// # Cancel safety
///
/// When the future is dropped, the copy ends. Files that are complete stay; what is unfinished is removed,
/// which [`Sftp::removed`] waits for.
///
/// # Errors
///
/// As for [`push`](super::push()).
#[instrument(level = "debug", name = "copy", skip_all, fields(endpoint = sftp.endpoint().map(display), direction = "within"))]
pub async fn copy_within(
    sftp: &Sftp,
    source: &RemotePath,
    destination: &RemotePath,
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> Result<CopySummary, CopyError> {
    let run = Run::new(sftp, options, observer, true);
    let found = regular_file(&run, source).await?;
    let target = Target::look(&run, destination.clone()).await?;
    let output = Output::new(&run, target.clone(), source.as_bytes());
    let mut copied = attempt(&run, source, &found, output).await;
    super::push::clean_up(sftp).await;
    if let Err(CopyError::Client(ClientError::File { .. })) = &copied
        && needs_room(&run, &target, found.size.unwrap_or(0)).await
    {
        let mut output = Output::new(&run, target, source.as_bytes());
        output.write_in_place(InPlace::NoRoom);
        copied = attempt(&run, source, &found, output).await;
    }
    let bytes = copied?;
    run.finished(source.as_bytes(), bytes, |summary| &mut summary.files);
    Ok(run.summary())
}

async fn attempt(
    run: &Run<'_>,
    source: &RemotePath,
    found: &Attributes,
    mut output: Output<'_, '_>,
) -> Result<u64, CopyError> {
    let from = run.sftp.open(source, OpenOptions::new().read(true));
    let from = from.await?;
    output.keep_content();
    let to = output.create(false, found.size.unwrap_or(0)).await?.file;
    if output.is_in_place() && !output.is_special() {
        are_different(&from, &to, found.size.unwrap_or(0)).await?;
        to.setstat(attributes::size(0)).await?;
    }
    let bytes = if output.is_special() {
        through(run, source, found, &output, &to).await?
    } else {
        copy_data(&from, &to, found.size.unwrap_or(0)).await?
    };
    let wanted = Attributes {
        times: None,
        ..run.attributes_to_set(found)
    };
    output.complete(to, &wanted, bytes).await?;
    Ok(bytes)
}

/// Fails if both are the same file: to empty one would empty the other. The server finds out when it is
/// asked to copy what is behind the end.
async fn are_different(from: &RemoteFile, to: &RemoteFile, size: u64) -> Result<(), CopyError> {
    if size == 0 {
        // It has nothing to lose, or the kernel makes it up.
        return Ok(());
    }
    match from.copy_data(size, 1, to, size).await {
        Err(ClientError::File { source, .. }) if source.code() == status::EOF => Ok(()),
        answered => Ok(answered?),
    }
}

/// Returns how many bytes arrived.
async fn copy_data(from: &RemoteFile, to: &RemoteFile, size: u64) -> Result<u64, CopyError> {
    let mut offset = 0;
    while size - offset > COPY_BYTES {
        from.copy_data(offset, COPY_BYTES, to, offset).await?;
        offset += COPY_BYTES;
    }
    // To the end, also of what has grown, and of what the kernel makes up.
    from.copy_data(offset, 0, to, offset).await?;
    Ok(to.stat().await?.size.unwrap_or(0))
}

async fn through(
    run: &Run<'_>,
    source: &RemotePath,
    found: &Attributes,
    output: &Output<'_, '_>,
    to: &RemoteFile,
) -> Result<u64, CopyError> {
    let (mut near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let reading = async move { read_into(run, source, found, &mut near).await };
    let writing = async {
        let written = output.put(to, &mut far).await;
        drop(far);
        written
    };
    let (read, written) = tokio::join!(reading, writing);
    // A write error also ends the reader, so the write error is reported first.
    let written = written?;
    read?;
    Ok(written)
}

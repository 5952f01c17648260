//! From one place in the guest to another one.

use super::{
    CopyError, CopyObserver, CopyOptions, CopySummary, attributes,
    pull::{read_into, top},
    push::file::{COPY_BYTES, Output, target::Target},
    run::Run,
};
use crate::{
    protocol::sftp::Attributes,
    sftp::{OpenFlags, RemoteFile, RemotePath, Sftp},
};

/// Bytes on their way through this side.
const PIPE_BYTES: usize = 256 * 1024;

/// Copies one file of the guest to another path in it; its content does not leave the guest, unless
/// it goes into a device or a pipe. `destination` is no directory. Times are not copied.
///
/// # Errors
///
/// As for [`push`](super::push()).
pub async fn copy_within(
    sftp: &Sftp,
    source: &RemotePath,
    destination: &RemotePath,
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> Result<CopySummary, CopyError> {
    let run = Run::new(sftp, options, observer, true);
    let (kind, found) = top(sftp, source, false).await?;
    match kind {
        attributes::Kind::File => {}
        attributes::Kind::Directory => return Err(CopyError::IsADirectory),
        _ => return Err(CopyError::Special),
    }
    run.found(found.size.unwrap_or(0))?;
    let target = Target::look(&run, destination.clone()).await?;
    let goes_through = target.is_special();
    let mut output = Output::new(&run, target, source.as_bytes());
    let from = sftp
        .open(source, OpenFlags::READ, Attributes::default())
        .await?;
    let copied = async {
        let to = output.create(false).await?.file;
        let bytes = match goes_through {
            true => through(&run, source, &found, &output, &to).await?,
            false => copy_data(&from, &to, found.size.unwrap_or(0)).await?,
        };
        let wanted = Attributes {
            times: None,
            ..run.wanted(&found)
        };
        output.complete(to, &wanted, bytes).await?;
        Ok::<u64, CopyError>(bytes)
    };
    let copied = copied.await;
    super::push::clean_up(sftp).await;
    let bytes = copied?;
    run.finished(source.as_bytes(), bytes, |summary| &mut summary.files);
    Ok(run.summary())
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
    // A target that takes no more is also why nothing could be read any more.
    let written = written?;
    read?;
    Ok(written)
}

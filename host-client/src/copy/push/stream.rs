//! Into one file of the guest, from whatever gives bytes.

use tokio::io::AsyncRead;

use super::{
    super::{
        CopyError, CopyObserver, CopyOptions, CopySummary,
        attributes::{self, Kind},
        leftovers, part,
        run::Run,
    },
    file::{self, RemotePart},
};
use crate::{
    protocol::sftp::Attributes,
    sftp::{RemotePath, Sftp},
};

/// Mode of a new file.
const DEFAULT_MODE: u32 = 0o644;

/// Writes what `source` gives, to its end, into one file of the guest. An old file keeps its mode.
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
    let run = Run::new(sftp, options, observer, true);
    let name = destination.file_name().ok_or(CopyError::NoName)?;
    let old = sftp.stat(destination).await.ok();
    if old.as_ref().and_then(attributes::kind) == Some(Kind::Directory) {
        return Err(CopyError::IsADirectory);
    }
    let mode = old.and_then(|old| old.permissions).unwrap_or(DEFAULT_MODE);
    let attributes = attributes::wanted(&attributes::mode(mode), options);
    run.started(b"-", None, 0);
    let part = RemotePart::new(sftp, destination);
    let directory = destination.parent().unwrap_or_else(|| ".".into());
    // Before the first byte: what a stream left cannot be continued.
    for name in leftovers::find(sftp, &directory, &part::stem(name)).await {
        sftp.remove_now(&directory.join(name));
    }
    let attributes = Attributes {
        times: None,
        ..attributes
    };
    let streamed = file::stream(&run, part, destination, source, attributes).await;
    super::clean_up(sftp).await;
    let bytes = streamed?;
    run.finished(b"-", bytes, |summary| &mut summary.files);
    Ok(run.summary())
}

//! One file into the guest.

use std::{
    ffi::OsStr,
    fs::Metadata,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    sync::Arc,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncSeekExt};

use super::{
    super::{
        CopyError, SkipReason,
        attributes::{self, Kind, PART_MODE},
        leftovers, part, resume,
        run::Run,
        scan::FoundFile,
        sparse,
    },
    Directory,
};
use crate::{
    error::ClientError,
    protocol::sftp::{Attributes, extension},
    sftp::{LocalSource, OpenFlags, RemoteFile, RemotePath, Sftp},
};

/// Bytes that the guest copies in one request: it must answer before it is taken to be silent.
const COPY_BYTES: u64 = 64 * 1024 * 1024;

/// A file of the guest that is being written. Dropping it removes it.
pub(super) struct RemotePart<'a> {
    sftp: &'a Sftp,
    pub(super) path: RemotePath,
    live: bool,
}

impl<'a> RemotePart<'a> {
    /// A name for a part of `target`; nothing is there yet.
    pub(super) fn new(sftp: &'a Sftp, target: &RemotePath) -> Self {
        let name = part::name(target.file_name().unwrap_or_default());
        let directory = target.parent().unwrap_or_else(|| ".".into());
        Self {
            sftp,
            path: directory.join(name.as_bytes()),
            live: true,
        }
    }

    /// Creates the file.
    pub(super) async fn create(&self) -> Result<RemoteFile, ClientError> {
        self.create_for(OpenFlags::WRITE).await
    }

    async fn create_for(&self, access: OpenFlags) -> Result<RemoteFile, ClientError> {
        let flags = access | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        self.sftp
            .open(&self.path, flags, attributes::mode(PART_MODE))
            .await
    }

    /// Renames it over the target.
    pub(super) async fn publish(mut self, target: &RemotePath) -> Result<(), CopyError> {
        self.sftp
            .replace(&self.path, target)
            .await
            .map_err(|error| match error.is_not_found() {
                true => CopyError::TakenOver,
                false => error.into(),
            })?;
        self.live = false;
        Ok(())
    }
}

impl Drop for RemotePart<'_> {
    fn drop(&mut self) {
        if self.live {
            self.sftp.remove_now(&self.path);
        }
    }
}

pub(super) async fn push(
    run: &Run<'_>,
    directory: &Directory,
    name: &OsStr,
    found: FoundFile,
    source: &[u8],
) -> Result<(), CopyError> {
    let target = directory.path.join(name.as_bytes());
    let is_complete = run.options.resume && is_complete(run, &target, &found).await;
    let part = RemotePart::new(run.sftp, &target);
    let stem = part::stem(name);
    let look = async {
        match run.is_single() {
            true => leftovers::find(run.sftp, &directory.path, &stem).await,
            false => directory.take_leftovers(&stem),
        }
    };
    if is_complete {
        remove_all(run, directory, &look.await).await?;
        run.skipped(source, SkipReason::Complete);
        return Ok(());
    }
    let (bytes, old) = match run.options.resume {
        true => {
            let old = look.await;
            (write(run, part, &target, found, source, &old).await?, old)
        }
        false => {
            let (bytes, old) = tokio::join!(write(run, part, &target, found, source, &[]), look);
            (bytes?, old)
        }
    };
    remove_all(run, directory, &old).await?;
    run.finished(source, bytes, |summary| &mut summary.files);
    Ok(())
}

/// Removes what earlier copies left, and what others began that are still at it.
pub(super) async fn remove_all(
    run: &Run<'_>,
    directory: &Directory,
    old: &[Vec<u8>],
) -> Result<(), CopyError> {
    for name in old {
        match run.sftp.remove(directory.path.join(name)).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

async fn is_complete(run: &Run<'_>, target: &RemotePath, found: &FoundFile) -> bool {
    match run.sftp.lstat(target).await {
        Ok(there) => {
            attributes::kind(&there) == Some(Kind::File)
                && attributes::look_same(&found.metadata, &there)
        }
        Err(_) => false,
    }
}

async fn write(
    run: &Run<'_>,
    part: RemotePart<'_>,
    target: &RemotePath,
    found: FoundFile,
    source: &[u8],
    old: &[Vec<u8>],
) -> Result<u64, CopyError> {
    let attributes = attributes::of(&found.metadata, run.options);
    match found {
        FoundFile {
            content: Some(content),
            ..
        } => {
            let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
            run.started(source, Some(bytes), 0);
            small(run, part, target, content, attributes).await?;
            run.moved(bytes)?;
            Ok(bytes)
        }
        FoundFile {
            file: Some(file),
            metadata,
            ..
        } if metadata.size() > 0 => {
            let local = Arc::new(LocalSource::new(file));
            large(run, part, target, &local, &metadata, source, old).await
        }
        // The kernel makes it up, and only reading it tells how long it is.
        FoundFile { file, .. } => {
            run.started(source, None, 0);
            let file = file.ok_or(CopyError::Changed)?;
            let mut file = tokio::fs::File::from_std(file);
            file.rewind()
                .await
                .map_err(|source| CopyError::local("read the file", source))?;
            stream(run, part, target, &mut file, attributes).await
        }
    }
}

/// A file whose content is here: three trips, however many requests.
async fn small(
    run: &Run<'_>,
    part: RemotePart<'_>,
    target: &RemotePath,
    content: Bytes,
    attributes: Attributes,
) -> Result<(), CopyError> {
    let file = part.create().await?;
    let written = match content.is_empty() {
        true => None,
        false => Some(file.write_small(content).await?),
    };
    let set = file.start_setstat(attributes).await?;
    let synced = match run.fsync {
        true => file.start_sync().await?,
        false => None,
    };
    let closed = file.start_close().await?;
    for pending in [written, Some(set), synced, Some(closed)]
        .into_iter()
        .flatten()
    {
        pending.done().await?;
    }
    part.publish(target).await
}

/// A file that is read while it is sent.
async fn large(
    run: &Run<'_>,
    part: RemotePart<'_>,
    target: &RemotePath,
    local: &Arc<LocalSource>,
    metadata: &Metadata,
    source: &[u8],
    old: &[Vec<u8>],
) -> Result<u64, CopyError> {
    let size = metadata.size();
    let is_sparse = metadata.blocks() * 512 < size;
    let left = longest(run, &part, old).await?;
    let (file, start) = match left {
        Some(left) => {
            let file = part.create_for(OpenFlags::READ | OpenFlags::WRITE).await?;
            let start = begin_with(run, &left, &file, local, size, is_sparse).await?;
            (file, start)
        }
        None => (part.create().await?, 0),
    };
    run.started(source, Some(size), start);
    if is_sparse {
        let mut offset = start;
        while let Some((from, to)) = sparse::next_data(run, &local.file, offset, size).await? {
            file.send(local, from, to, |bytes| run.moved(bytes)).await?;
            offset = to;
        }
    } else {
        file.send(local, start, size, |bytes| run.moved(bytes))
            .await?;
    }
    let now = local
        .file
        .metadata()
        .map_err(|source| CopyError::local("read the attributes", source))?;
    let stamp = |metadata: &Metadata| (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
    if local.is_broken() || stamp(&now) != stamp(metadata) {
        return Err(CopyError::Changed);
    }
    if is_sparse {
        // The last hole.
        file.setstat(attributes::size(size)).await?;
    }
    if start > 0 && resume::same_prefix(run, &local.file, &file, size).await? != size {
        return Err(CopyError::Differs);
    }
    let attributes = attributes::of(metadata, run.options);
    complete(run, part, target, file, attributes, size).await?;
    Ok(size)
}

/// Sends what `source` gives.
pub(super) async fn stream<R>(
    run: &Run<'_>,
    part: RemotePart<'_>,
    target: &RemotePath,
    source: &mut R,
    attributes: Attributes,
) -> Result<u64, CopyError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let file = part.create().await?;
    let bytes = file.put_told(source, |bytes| run.moved(bytes)).await?;
    complete(run, part, target, file, attributes, bytes).await?;
    Ok(bytes)
}

/// Gives a file that was written its attributes and its name.
async fn complete(
    run: &Run<'_>,
    part: RemotePart<'_>,
    target: &RemotePath,
    file: RemoteFile,
    attributes: Attributes,
    bytes: u64,
) -> Result<(), CopyError> {
    file.setstat(attributes).await?;
    if run.fsync {
        file.sync().await?;
    }
    match file.stat().await?.size {
        Some(size) if size != bytes => {
            return Err(CopyError::Client(ClientError::SizeChanged {
                size,
                transferred: bytes,
            }));
        }
        _ => {}
    }
    file.close().await?;
    part.publish(target).await
}

/// Copies the beginning of what was left, as far as it is that of the local file, within the guest.
/// What was left is not itself continued: who began it may still write to it. Returns where the
/// rest begins.
async fn begin_with(
    run: &Run<'_>,
    left: &RemoteFile,
    file: &RemoteFile,
    local: &LocalSource,
    size: u64,
    is_sparse: bool,
) -> Result<u64, CopyError> {
    let length = left.stat().await?.size.unwrap_or(0);
    let same = resume::same_prefix(run, &local.file, left, length.min(size)).await?;
    let mut offset = 0;
    while offset < same {
        let data = match is_sparse {
            true => sparse::next_data(run, &local.file, offset, same).await?,
            false => Some((offset, same)),
        };
        let Some((from, to)) = data else {
            break;
        };
        let to = to.min(from.saturating_add(COPY_BYTES));
        left.copy_data(from, to - from, file, from).await?;
        offset = to;
    }
    Ok(same)
}

/// The longest part that an earlier copy left. Without `copy-data` the guest cannot begin with it,
/// and to compare it would take longer than to send it again.
async fn longest(
    run: &Run<'_>,
    part: &RemotePart<'_>,
    old: &[Vec<u8>],
) -> Result<Option<RemoteFile>, CopyError> {
    if !run.sftp.has_extension(extension::COPY_DATA) {
        return Ok(None);
    }
    let directory = part.path.parent().unwrap_or_else(|| ".".into());
    let mut longest = None;
    for name in old {
        let path = directory.join(name);
        if let Ok(there) = run.sftp.lstat(&path).await
            && attributes::kind(&there) == Some(Kind::File)
            && let Some(length) = there.size.filter(|length| *length > 0)
            && longest.as_ref().is_none_or(|(_, most)| length > *most)
        {
            longest = Some((path, length));
        }
    }
    let Some((path, _)) = longest else {
        return Ok(None);
    };
    match run
        .sftp
        .open(&path, OpenFlags::READ, Attributes::default())
        .await
    {
        Ok(left) => Ok(Some(left)),
        // Somebody else removed it.
        Err(ClientError::File { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

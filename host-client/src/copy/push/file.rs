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
    protocol::sftp::Attributes,
    sftp::{LocalSource, OpenFlags, RemoteFile, RemotePath, Sftp},
};

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
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
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
    if run.options.resume && is_complete(run, &target, &found).await {
        run.skipped(source, SkipReason::Complete);
        return Ok(());
    }
    let part = RemotePart::new(run.sftp, &target);
    let own = part.path.clone();
    let stem = part::stem(name);
    let look = async {
        match run.is_single() {
            true => leftovers::find(run.sftp, &directory.path, &stem).await,
            false => directory.take_leftovers(&stem),
        }
    };
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
    for name in old {
        let path = directory.path.join(name);
        if path != own {
            // One that was continued has another name now.
            match run.sftp.remove(&path).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
    }
    run.finished(source, bytes, |summary| &mut summary.files);
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
    mut part: RemotePart<'_>,
    target: &RemotePath,
    local: &Arc<LocalSource>,
    metadata: &Metadata,
    source: &[u8],
    old: &[Vec<u8>],
) -> Result<u64, CopyError> {
    let size = metadata.size();
    let (file, start) = match adopt(run, &mut part, old).await? {
        Some((file, length)) => {
            let same = resume::same_prefix(run, &local.file, &file, length.min(size)).await?;
            file.setstat(attributes::size(same)).await?;
            (file, same)
        }
        None => (part.create().await?, 0),
    };
    run.started(source, Some(size), start);
    let is_sparse = metadata.blocks() * 512 < size;
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

/// Takes over the longest part that an earlier copy left; returns it with its length.
async fn adopt(
    run: &Run<'_>,
    part: &mut RemotePart<'_>,
    old: &[Vec<u8>],
) -> Result<Option<(RemoteFile, u64)>, CopyError> {
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
    let Some((old, _)) = longest else {
        return Ok(None);
    };
    match run.sftp.rename(&old, &part.path).await {
        Ok(()) => {}
        // Somebody else took it, or removed it.
        Err(ClientError::File { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let flags = OpenFlags::READ | OpenFlags::WRITE;
    let file = run
        .sftp
        .open(&part.path, flags, Attributes::default())
        .await?;
    let length = file.stat().await?.size.unwrap_or(0);
    Ok(Some((file, length)))
}

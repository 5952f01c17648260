//! One file into the guest.

mod output;
mod remote_part;
pub(in super::super) mod target;

use std::{
    ffi::OsStr,
    fs::Metadata,
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    sync::Arc,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncSeekExt};

pub(in super::super) use self::output::Output;
pub(super) use self::remote_part::RemotePart;
use self::target::Target;
use super::{
    super::{
        CopyError, InPlace, SkipReason,
        attributes::{self, Kind},
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
    sftp::{LocalSource, OpenFlags, RemoteFile, RemotePath},
};

/// Bytes that the guest copies in one request: it must answer before it is taken to be silent.
pub(in super::super) const COPY_BYTES: u64 = 64 * 1024 * 1024;

pub(super) async fn push(
    run: &Run<'_>,
    directory: &Directory,
    name: &OsStr,
    found: FoundFile,
    source: &[u8],
) -> Result<(), CopyError> {
    let target = directory.path.join(name.as_bytes());
    let target = match directory.is_new() {
        true => Target::new(target),
        false => Target::look(run, target).await?,
    };
    let is_complete = run.options.resume && is_complete(&target, &found);
    let look = async {
        match run.is_single() {
            true => Left::find(run, &target.path).await,
            false => Left {
                directory: directory.path.clone(),
                names: directory.take_leftovers(&part::stem(name)),
            },
        }
    };
    if is_complete {
        look.await.remove(run).await?;
        run.skipped(source, SkipReason::Complete);
        return Ok(());
    }
    let (bytes, old) = match run.options.resume {
        true => {
            let old = look.await;
            (write(run, &target, found, source, &old.names).await?, old)
        }
        false => {
            let (bytes, old) = tokio::join!(write(run, &target, found, source, &[]), look);
            (bytes?, old)
        }
    };
    old.remove(run).await?;
    run.finished(source, bytes, |summary| &mut summary.files);
    Ok(())
}

/// What earlier copies to one target left, and what others began that are still at it.
pub(super) struct Left {
    pub(super) directory: RemotePath,
    pub(super) names: Vec<Vec<u8>>,
}

impl Left {
    async fn find(run: &Run<'_>, target: &RemotePath) -> Self {
        let directory = target.parent().unwrap_or_else(|| ".".into());
        let stem = part::stem(target.file_name().unwrap_or_default());
        Self {
            names: leftovers::find(run.sftp, &directory, &stem).await,
            directory,
        }
    }

    /// Removes all of it.
    pub(super) async fn remove(&self, run: &Run<'_>) -> Result<(), CopyError> {
        for name in &self.names {
            match run.sftp.remove(self.directory.join(name)).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_complete(target: &Target, found: &FoundFile) -> bool {
    let old = target.old();
    old.is_some_and(|old| attributes::look_same(&found.metadata, old))
}

/// Writes the file. Where there is no room for it beside what is there, it is written in place, if
/// there is room for it then.
async fn write(
    run: &Run<'_>,
    target: &Target,
    found: FoundFile,
    source: &[u8],
    old: &[Vec<u8>],
) -> Result<u64, CopyError> {
    let again = match target.old() {
        Some(_) => found.again(),
        None => None,
    };
    let output = Output::new(run, target.clone(), source);
    let was_in_place = output.is_in_place();
    let error = match attempt(run, output, found, source, old).await {
        Err(error @ CopyError::Client(ClientError::File { .. })) if !was_in_place => error,
        written => return written,
    };
    let Some(again) = again else {
        return Err(error);
    };
    run.sftp.removed().await;
    if !needs_room(run, target, again.metadata.size()).await {
        return Err(error);
    }
    let mut output = Output::new(run, target.clone(), source);
    output.write_in_place(InPlace::NoRoom);
    attempt(run, output, again, source, &[]).await
}

/// Whether a new file of so many bytes has no room beside the one that is there, but in its place.
async fn needs_room(run: &Run<'_>, target: &Target, bytes: u64) -> bool {
    let Ok(system) = run.sftp.statvfs(&target.path).await else {
        return false;
    };
    let free = system.blocks_available.saturating_mul(system.fragment_size);
    let old = target.old().and_then(|old| old.size).unwrap_or(0);
    free < bytes && bytes <= free.saturating_add(old)
}

async fn attempt(
    run: &Run<'_>,
    output: Output<'_, '_>,
    found: FoundFile,
    source: &[u8],
    old: &[Vec<u8>],
) -> Result<u64, CopyError> {
    let attributes = attributes::of(&found.metadata, run.options);
    match found {
        FoundFile {
            content: Some(content),
            ..
        } if output.target.is_special() => {
            run.started(source, None, 0);
            let mut content = io::Cursor::new(content);
            stream(output, &mut content, attributes).await
        }
        FoundFile {
            content: Some(content),
            ..
        } => {
            let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
            run.started(source, Some(bytes), 0);
            let mut claim = run.claim(bytes)?;
            small(run, output, content, attributes).await?;
            claim.copied(bytes)?;
            Ok(bytes)
        }
        FoundFile {
            file: Some(file),
            metadata,
            ..
        } if metadata.size() > 0 && !output.target.is_special() => {
            let local = Arc::new(LocalSource::new(file));
            large(run, output, &local, &metadata, source, old).await
        }
        // The kernel makes it up, and only reading it tells how long it is; or it goes into a device,
        // piece by piece.
        FoundFile { file, .. } => {
            run.started(source, None, 0);
            let file = file.ok_or(CopyError::Changed)?;
            let mut file = tokio::fs::File::from_std(file);
            file.rewind()
                .await
                .map_err(|source| CopyError::local("read the file", source))?;
            stream(output, &mut file, attributes).await
        }
    }
}

/// A file whose content is here: three trips, however many requests; four where the order of what is
/// under way is not known to be kept.
async fn small(
    run: &Run<'_>,
    mut output: Output<'_, '_>,
    content: Bytes,
    attributes: Attributes,
) -> Result<(), CopyError> {
    let file = output.create(OpenFlags::WRITE).await?;
    let mut written = match content.is_empty() {
        true => None,
        false => Some(file.write_small(content).await?),
    };
    if !run.sftp.keeps_order()
        && let Some(written) = written.take()
    {
        written.done().await?;
    }
    let set = match output.attributes(&attributes) {
        Some(attributes) => Some(file.start_setstat(attributes).await?),
        None => None,
    };
    let synced = match run.fsync {
        true => file.start_sync().await?,
        false => None,
    };
    let closed = file.start_close().await?;
    if let Some(written) = written {
        written.done().await?;
    }
    let set = match set {
        Some(set) => set.done().await,
        None => Ok(()),
    };
    for pending in [synced, Some(closed)].into_iter().flatten() {
        pending.done().await?;
    }
    output.publish(set, &attributes).await
}

/// A file that is read while it is sent.
async fn large(
    run: &Run<'_>,
    mut output: Output<'_, '_>,
    local: &Arc<LocalSource>,
    metadata: &Metadata,
    source: &[u8],
    old: &[Vec<u8>],
) -> Result<u64, CopyError> {
    let size = metadata.size();
    let is_sparse = metadata.blocks() * 512 < size;
    let left = match output.part() {
        Some(part) => longest(run, part, old).await?,
        None => None,
    };
    let (file, start) = match left {
        Some(left) => {
            let file = output.create(OpenFlags::READ | OpenFlags::WRITE).await?;
            let start = match output.is_in_place() {
                true => 0,
                false => begin_with(run, &left, &file, local, size, is_sparse).await?,
            };
            (file, start)
        }
        None => (output.create(OpenFlags::WRITE).await?, 0),
    };
    run.started(source, Some(size), start);
    let mut offset = start;
    while let Some((from, to)) = match is_sparse {
        true => sparse::next_data(run, &local.file, offset, size).await?,
        false => (offset < size).then_some((offset, size)),
    } {
        let mut claim = run.claim(to - from)?;
        file.send(local, from, to, |bytes| claim.copied(bytes))
            .await?;
        offset = to;
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
    output.complete(file, &attributes, size).await?;
    Ok(size)
}

/// Sends what `source` gives.
async fn stream<R>(
    output: Output<'_, '_>,
    source: &mut R,
    attributes: Attributes,
) -> Result<u64, CopyError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    stream_if(output, source, attributes, async || true).await
}

/// The same, if what is there is `unchanged`: before anything is created or opened, and once more
/// before it is replaced.
pub(super) async fn stream_if<R>(
    mut output: Output<'_, '_>,
    source: &mut R,
    attributes: Attributes,
    unchanged: impl AsyncFn() -> bool,
) -> Result<u64, CopyError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    if !unchanged().await {
        return Err(CopyError::TargetChanged);
    }
    let file = output.create(OpenFlags::WRITE).await?;
    let bytes = output.put(&file, source).await?;
    if !output.is_in_place() && !unchanged().await {
        return Err(CopyError::TargetChanged);
    }
    output.complete(file, &attributes, bytes).await?;
    Ok(bytes)
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

#[cfg(test)]
mod tests;

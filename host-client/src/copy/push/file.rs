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
pub(super) use self::remote_part::PartName;
use self::{
    remote_part::{Opened, remove_left},
    target::Target,
};
use super::{
    super::{
        CopyError, InPlace, SkipReason, attributes, part, resume,
        run::Run,
        scan::{FoundFile, is_made_up},
        sparse,
    },
    Directory,
};
use crate::{
    error::ClientError,
    protocol::sftp::Attributes,
    sftp::{LocalSource, OpenOptions, RemoteFile},
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
    let target = if directory.is_new() {
        Target::new(target)
    } else {
        Target::look(run, target).await?
    };
    if run.options.resume && is_complete(run, &target, &found).await? {
        let left = directory.path.join(part::part_name(name).as_bytes());
        if run.sftp.lstat(&left).await.is_ok() {
            let removed = remove_left(run.sftp, &target.path).await;
            run.removed(source, removed);
        }
        run.skipped(source, SkipReason::Complete);
        return Ok(());
    }
    let bytes = write(run, &target, found, source).await?;
    run.finished(source, bytes, |summary| &mut summary.files);
    Ok(())
}

/// Whether what is there is the same already. The wire knows no fractions of a second, so what looks
/// the same is compared.
async fn is_complete(run: &Run<'_>, target: &Target, found: &FoundFile) -> Result<bool, CopyError> {
    let old = target.old();
    if !old.is_some_and(|old| attributes::look_same(&found.metadata, old)) {
        return Ok(false);
    }
    let opened = run.sftp.open(&target.path, OpenOptions::new().read(true));
    let there = match opened.await {
        Ok(there) => there,
        // Then it cannot be told.
        Err(ClientError::File { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match found.again() {
        Some(FoundFile {
            content: Some(content),
            ..
        }) => resume::is_content(run, &content, &there).await,
        Some(FoundFile {
            file: Some(file), ..
        }) => {
            let size = found.metadata.size();
            Ok(resume::same_prefix(run, &Arc::new(file), &there, size).await? == size)
        }
        _ => Ok(false),
    }
}

/// Writes the file. Without disk space for it beside the existing one, it is written in place, if
/// there is space for it then.
async fn write(
    run: &Run<'_>,
    target: &Target,
    found: FoundFile,
    source: &[u8],
) -> Result<u64, CopyError> {
    let again = match target.old() {
        Some(_) => found.again(),
        None => None,
    };
    let output = Output::new(run, target.clone(), source);
    let was_in_place = output.is_in_place();
    let error = match attempt(run, output, found, source).await {
        Err(error @ CopyError::Client(ClientError::File { .. })) if !was_in_place => error,
        written => return written,
    };
    let Some(again) = again else {
        return Err(error);
    };
    if run.options.resume {
        // The part of an earlier copy takes space. If it cannot be removed, there is none.
        let _ = remove_left(run.sftp, &target.path).await;
    }
    run.sftp.removed().await;
    if !needs_room(run, target, again.metadata.size()).await {
        return Err(error);
    }
    let mut output = Output::new(run, target.clone(), source);
    output.write_in_place(InPlace::NoRoom);
    attempt(run, output, again, source).await
}

/// Whether the disk has no space for so many bytes beside the existing file, but in its place.
pub(in super::super) async fn needs_room(run: &Run<'_>, target: &Target, bytes: u64) -> bool {
    let Ok(system) = run.sftp.statvfs(&target.path).await else {
        return false;
    };
    let free = system.blocks_available.saturating_mul(system.fragment_size);
    free < bytes && bytes <= free.saturating_add(target.data_bytes(run).await)
}

async fn attempt(
    run: &Run<'_>,
    output: Output<'_, '_>,
    found: FoundFile,
    source: &[u8],
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
            let mut reservation = run.reserve(bytes)?;
            small(run, output, content, attributes).await?;
            reservation.copied(bytes)?;
            Ok(bytes)
        }
        FoundFile {
            file: Some(file),
            metadata,
            ..
        } if metadata.size() > 0 && !output.target.is_special() && !is_made_up(&file) => {
            let local = Arc::new(LocalSource::new(file));
            large(run, output, &local, &metadata, source).await
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
    let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
    let file = output.create(false, bytes).await?.file;
    if output.is_in_place() {
        file.write_bytes_at(0, content).await?;
        return output.complete(file, &attributes, bytes).await;
    }
    let mut written = if content.is_empty() {
        None
    } else {
        Some(file.write_small(content).await?)
    };
    if !run.sftp.keeps_order()
        && let Some(written) = written.take()
    {
        written.done().await?;
    }
    let mut set = Vec::new();
    let attributes_in_order = output.attributes(&attributes);
    for attributes in attributes_in_order
        .into_iter()
        .flat_map(|all| run.sftp.in_order(all))
    {
        set.push(file.start_setstat(attributes).await?);
    }
    let synced = if run.syncs_remote() {
        Some(file.start_sync().await?)
    } else {
        None
    };
    if let Some(written) = written {
        written.done().await?;
    }
    let mut is_set = Ok(());
    for set in set {
        is_set = is_set.and(set.done().await);
    }
    if let Some(synced) = synced {
        synced.done().await?;
    }
    output.publish(file, is_set, &attributes).await
}

/// A file that is read while it is sent.
async fn large(
    run: &Run<'_>,
    mut output: Output<'_, '_>,
    local: &Arc<LocalSource>,
    metadata: &Metadata,
    source: &[u8],
) -> Result<u64, CopyError> {
    let size = metadata.size();
    let is_sparse = metadata.blocks() * 512 < size;
    let opened = output.create(run.options.resume, size).await?;
    let start = begin(run, &mut output, &opened, local, size, is_sparse).await?;
    let file = opened.file;
    run.started(source, Some(size), start);
    let mut offset = start;
    while let Some((from, to)) = if is_sparse {
        sparse::next_data(run, &local.file, offset, size).await?
    } else {
        (offset < size).then_some((offset, size))
    } {
        let mut reservation = run.reserve(to - from)?;
        file.send(local, from, to, |bytes| {
            output.keep(run.options.resume);
            reservation.copied(bytes)
        })
        .await?;
        offset = to;
    }
    let now = local
        .file
        .metadata()
        .map_err(|source| CopyError::local("read the attributes", source))?;
    let stamp = |metadata: &Metadata| (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
    if local.is_broken() || now.size() < size {
        return Err(CopyError::Changed);
    }
    if stamp(&now) != stamp(metadata) {
        run.changed(source);
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
    let file = output.create(false, 1).await?.file;
    let bytes = output.put(&file, source).await?;
    if !output.is_in_place() && !unchanged().await {
        return Err(CopyError::TargetChanged);
    }
    output.complete(file, &attributes, bytes).await?;
    Ok(bytes)
}

/// Keeps of what an earlier copy left as much as is the beginning of the local file. Returns where the
/// rest begins.
async fn begin(
    run: &Run<'_>,
    output: &mut Output<'_, '_>,
    opened: &Opened,
    local: &LocalSource,
    size: u64,
    is_sparse: bool,
) -> Result<u64, CopyError> {
    let file = &opened.file;
    let start = if let Some(left) = &opened.left {
        let start = begin_with(run, &left.file, file, local, size, is_sparse).await?;
        // The part has all of it.
        run.sftp.remove(&left.path).await?;
        start
    } else if opened.length > 0 {
        let length = opened.length.min(size);
        let same = resume::same_prefix(run, &local.file, file, length).await?;
        file.setstat(attributes::size(same)).await?;
        same
    } else {
        0
    };
    output.keep(start > 0);
    Ok(start)
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
        let data = if is_sparse {
            sparse::next_data(run, &local.file, offset, same).await?
        } else {
            Some((offset, same))
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

#[cfg(test)]
mod tests;

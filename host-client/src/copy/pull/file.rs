//! One file out of the guest.

use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt, pin::Pin, sync::Arc};

use super::{
    super::{
        CopyError, SkipReason, attributes,
        local::target::{self, Finish, Look, OpenedTarget, Target},
        part::{BUSY_INTERVAL, BUSY_TRIES},
        resume,
        run::{Run, SMALL_BYTES},
        sparse::RemoteData,
    },
    Work,
    ending::{self, Ending},
    stream,
};
use crate::{
    error::ClientError,
    protocol::sftp::{Attributes, extension},
    sftp::{BATCH, OpenOptions, RemoteFile, RemotePath},
};

/// Bytes on their way into a device or a pipe.
const PIPE_BYTES: usize = 256 * 1024;

/// Writes of one file at a time: one that is done and one that waits.
const MAX_WRITES: usize = 2;

pub(super) async fn pull(run: &Run<'_>, work: Work) -> Result<(), CopyError> {
    let source = work.source.clone();
    let _open = run.descriptors.file().await;
    let target = look(run, &work).await?;
    if target.is_special() {
        let bytes = special(run, &work, target).await?;
        run.finished(source.as_bytes(), bytes, |summary| &mut summary.files);
        return Ok(());
    }
    if run.options.resume && is_complete(run, &target, &work).await? {
        let removed = remove_left(run, &target).await;
        run.removed(source.as_bytes(), removed);
        run.skipped(source.as_bytes(), SkipReason::Complete);
        return Ok(());
    }
    let size = work.attributes.size.unwrap_or(0);
    let small = if (1..=SMALL_BYTES).contains(&size) {
        small(run, &work, &target, size).await?
    } else {
        None
    };
    let bytes = match small {
        Some(bytes) => bytes,
        None => large(run, &work, &target).await?,
    };
    run.finished(source.as_bytes(), bytes, |summary| &mut summary.files);
    Ok(())
}

async fn remove_left(run: &Run<'_>, target: &Target) -> Result<(), CopyError> {
    let target = target.clone();
    let remove = move || target.directory.remove_parts(&target.name);
    run.pool.run(remove).await?
}

/// Looks at what has the name of the target.
async fn look(run: &Run<'_>, work: &Work) -> Result<Target, CopyError> {
    let (directory, name) = (Arc::clone(&work.local), work.name.clone());
    if work.directory.is_new() {
        return Ok(Target::new(&directory, &name));
    }
    let how = Look {
        is_named: work.is_named,
        no_dereference: run.options.no_dereference,
    };
    run.pool
        .run(move || Target::look(&directory, &name, how))
        .await?
}

/// Into a device or a pipe. Returns the number of bytes.
async fn special(run: &Run<'_>, work: &Work, target: Target) -> Result<u64, CopyError> {
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let reading = async move {
        let mut near = near;
        stream::read_into(run, &work.source, &work.attributes, &mut near).await
    };
    let writing = async {
        let written = target::write_special(run, target, &mut far).await;
        // Who reads must not wait for ever.
        drop(far);
        written
    };
    let (read, written) = tokio::join!(reading, writing);
    // A write error also ends the reader, so the write error is reported first.
    written?;
    read
}

/// Whether the target is the same already. SFTP has no fractions of a second, so files with equal
/// attributes are compared.
async fn is_complete(run: &Run<'_>, target: &Target, work: &Work) -> Result<bool, CopyError> {
    let old = target.old();
    let Some(old) = old.filter(|old| attributes::look_same(old, &work.attributes)) else {
        return Ok(false);
    };
    let (size, target) = (old.len(), target.clone());
    let open = move || target.directory.open_file(&target.name);
    // An unreadable local file counts as not complete.
    let Ok(there) = run.pool.run(open).await? else {
        return Ok(false);
    };
    let file = match open_source(run, work).await {
        Ok(file) => file,
        Err(ClientError::File { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    Ok(resume::same_prefix(run, &Arc::new(there), &file, size).await? == size)
}

/// A file that is small by its attributes: two round trips, however many requests. `None` if it was not.
async fn small(
    run: &Run<'_>,
    work: &Work,
    target: &Target,
    size: u64,
) -> Result<Option<u64>, CopyError> {
    let source = work.source.as_bytes();
    let file = open_source(run, work).await?;
    let length = u32::try_from(size + 1).unwrap_or(u32::MAX);
    let read = file.start_read(length).await?;
    let stat = file.start_stat().await?;
    let closed = file.start_close().await?;
    let (data, now) = (read.data().await?, stat.attributes().await?);
    closed.done().await?;
    let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
    if now.size != Some(bytes) {
        return Ok(None);
    }
    run.started(source, Some(bytes), 0);
    let mut reservation = run.reserve(bytes)?;
    let attributes = run.attributes_to_set(&now);
    let (target, finish) = (target.clone(), Finish::of(run));
    let write = move || target::save(&target, &data, &attributes, finish);
    let completed = if finish.fsync {
        run.pool.run_long(write).await??
    } else {
        run.pool.run(write).await??
    };
    run.completed(source, completed);
    reservation.copied(bytes)?;
    Ok(Some(bytes))
}

async fn open_source(run: &Run<'_>, work: &Work) -> Result<RemoteFile, ClientError> {
    run.sftp
        .open(&work.source, OpenOptions::new().read(true))
        .await
}

/// A file that is written while it is read.
async fn large(run: &Run<'_>, work: &Work, target: &Target) -> Result<u64, CopyError> {
    let (source, finish) = (&work.source, Finish::of(run));
    let file = open_source(run, work).await?;
    let before = file.stat().await?;
    let bytes = before.size.unwrap_or(0);
    let ((part, length), in_place) = begin(run, target, bytes, finish).await?;
    run.report_in_place(source.as_bytes(), in_place);
    let size = before.size.filter(|size| *size > 0);
    let start = match length {
        0 => 0,
        length => {
            let length = length.min(size.unwrap_or(0));
            let same = resume::same_prefix(run, &part.file, &file, length).await?;
            cut(run, &part.file, same).await?;
            same
        }
    };
    run.started(source.as_bytes(), size, start);
    let fetched = receive(run, source, file, &part.file, start, before).await;
    let (bytes, attributes) = match fetched {
        Ok(fetched) => fetched,
        Err(error) => {
            if run.sftp.has_ended() {
                // What is there can be continued with.
                part.keep();
            }
            return Err(error);
        }
    };
    let attributes = run.attributes_to_set(&attributes);
    let target = target.clone();
    let complete = move || part.complete(&target, &attributes, finish);
    let completed = run.pool.run_long(complete).await??;
    run.completed(source.as_bytes(), completed);
    Ok(bytes)
}

async fn begin(
    run: &Run<'_>,
    target: &Target,
    bytes: u64,
    finish: Finish,
) -> Result<OpenedTarget, CopyError> {
    let keep = run.options.resume;
    let begin = || {
        let target = target.clone();
        run.pool
            .run_long(move || target::begin(&target, bytes, finish, keep))
    };
    for _ in 0..BUSY_TRIES {
        let opened = begin().await??;
        let ((part, length), _) = &opened;
        if !(keep && *length == 0 && part.is_second(&target.name)) {
            return Ok(opened);
        }
        drop(opened);
        tokio::time::sleep(BUSY_INTERVAL).await;
    }
    begin().await?
}

/// Reads the file from `start` and closes it; returns its length and its attributes.
async fn receive(
    run: &Run<'_>,
    source: &RemotePath,
    file: RemoteFile,
    local: &Arc<File>,
    start: u64,
    before: Attributes,
) -> Result<(u64, Attributes), CopyError> {
    let size = before.size.filter(|size| *size > 0);
    let limit = ending::limit(&before);
    let end = fetch(run, &file, local, (start, limit), size).await?;
    let (ending, after) = ending::check_end(run, &file, &before, end).await?;
    let bytes = match (ending, size) {
        (Ending::GoOn, _) => fetch_range(run, &file, local, (end, u64::MAX), None).await?,
        (Ending::Changed, Some(size)) if end > size => {
            cut(run, local, size).await?;
            size
        }
        _ => end,
    };
    if start > 0 && resume::same_prefix(run, local, &file, bytes).await? != bytes {
        return Err(CopyError::Differs);
    }
    file.close().await?;
    if ending != Ending::Changed {
        return Ok((bytes, after));
    }
    run.changed(source.as_bytes());
    // Keep the time from before the change, so that `--resume` compares the file again.
    Ok((bytes, before))
}

async fn cut(run: &Run<'_>, local: &Arc<File>, size: u64) -> Result<(), CopyError> {
    let local = Arc::clone(local);
    run.pool
        .run_long(move || local.set_len(size))
        .await?
        .map_err(|source| CopyError::local("write the file", source))
}

/// Reads the file from `start` to `limit`, all of it or what is no hole, into the local one. Returns
/// where it ended.
async fn fetch(
    run: &Run<'_>,
    file: &RemoteFile,
    local: &Arc<File>,
    (start, limit): (u64, u64),
    size: Option<u64>,
) -> Result<u64, CopyError> {
    let mut holes = match size {
        Some(_) if run.sftp.has_extension(extension::HOLES) => {
            Some(RemoteData::start(file, start).await?).filter(|holes| !holes.is_dense())
        }
        _ => None,
    };
    let Some(holes) = &mut holes else {
        return fetch_range(run, file, local, (start, limit), size).await;
    };
    let size = size.unwrap_or(0);
    while let Some((from, to)) = holes.next().await?
        && from < size
    {
        let to = to.min(size);
        if fetch_range(run, file, local, (from, to), Some(to)).await? != to {
            return Err(CopyError::Changed);
        }
    }
    cut(run, local, size).await?;
    Ok(size)
}

/// A write that is under way.
type Write = Pin<Box<dyn Future<Output = Result<io::Result<u64>, CopyError>> + Send>>;

/// Reads a range; returns where it ended.
async fn fetch_range(
    run: &Run<'_>,
    file: &RemoteFile,
    local: &Arc<File>,
    (from, to): (u64, u64),
    guess: Option<u64>,
) -> Result<u64, CopyError> {
    let failed = |source| CopyError::local("write the file", source);
    let known = guess.map_or(0, |size| size.min(to).saturating_sub(from));
    let mut reservation = run.reserve(known)?;
    let mut reads = file.reads(from, to, guess);
    let mut writes: VecDeque<Write> = VecDeque::new();
    loop {
        if writes.len() >= MAX_WRITES
            && let Some(write) = writes.pop_front()
        {
            reservation.copied(write.await?.map_err(failed)?)?;
        }
        let Some(chunk) = reads.next().await? else {
            break;
        };
        // What has arrived meanwhile is one write: each wakes a thread.
        let mut chunks = vec![chunk];
        while chunks.len() < BATCH && reads.is_here() {
            chunks.extend(reads.next().await?);
        }
        let local = Arc::clone(local);
        writes.push_back(Box::pin(run.pool.run_long(move || {
            let mut bytes = 0;
            for chunk in chunks {
                local.write_all_at(&chunk.data, chunk.offset)?;
                bytes += u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
            }
            Ok(bytes)
        })));
    }
    for write in writes {
        reservation.copied(write.await?.map_err(failed)?)?;
    }
    Ok(reads.position())
}

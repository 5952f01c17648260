//! A file of the guest that is being written: under a temporary name, which it gives up for that of
//! the target in the end, or in place.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::sleep,
};

use super::{
    super::super::{CopyError, InPlace, run::Run},
    COPY_BYTES,
    remote_part::{Opened, RemotePart, close, remove_left},
    target::{Existing, Target},
};
use crate::{
    error::ClientError,
    protocol::sftp::{Attributes, FileType, extension, status},
    sftp::{OpenOptions, RemoteFile},
};

/// First and longest pause before a pipe is opened again that has no reader.
const READER_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Most bytes that are written at once to what has no offsets.
const STREAM_BYTES: usize = 64 * 1024;

/// How often a server that waits for the reader of a pipe is asked for something else: one that says
/// nothing for long counts as gone.
const SILENCE_INTERVAL: Duration = Duration::from_secs(60);

/// Special bits of a mode, which belong to the owner.
const SPECIAL_BITS: u32 = 0o7000;

/// A file of the guest that is being written. Dropping it removes what has a temporary name.
pub(in super::super::super) struct Output<'r, 'a> {
    run: &'r Run<'a>,
    pub(super) target: Target,
    /// Nothing if it is written in place.
    part: Option<RemotePart<'a>>,
    /// Path of the source, for the observer.
    source: &'r [u8],
    /// Whether what is there is not emptied when it is opened.
    keeps_content: bool,
}

impl<'r, 'a> Output<'r, 'a> {
    /// Nothing is created or changed yet.
    pub(in super::super::super) fn new(run: &'r Run<'a>, target: Target, source: &'r [u8]) -> Self {
        let in_place = run.options.in_place || target.is_special();
        let part = (!in_place).then(|| RemotePart::new(run.sftp, &target.path));
        let mut output = Self {
            run,
            target,
            part,
            source,
            keeps_content: false,
        };
        if matches!(output.target.there, Existing::Linked) {
            output.write_in_place(InPlace::Link);
        }
        output
    }

    /// Writes in place from now on, and reports it.
    pub(in super::super::super) fn write_in_place(&mut self, reason: InPlace) {
        if self.part.take().is_some() {
            self.run.in_place(self.source, reason);
        }
    }

    /// What is there is not emptied by [`Self::create`]: it may be what is copied.
    pub(in super::super::super) fn keep_content(&mut self) {
        self.keeps_content = true;
    }

    /// Whether it is written in place.
    pub(in super::super::super) const fn is_in_place(&self) -> bool {
        self.part.is_none()
    }

    /// Whether what has a temporary name stays when this is dropped.
    pub(super) fn keep(&mut self, keep: bool) {
        if let Some(part) = &mut self.part {
            part.keep(keep);
        }
    }

    /// Whether it is a device or a pipe.
    pub(in super::super::super) const fn is_special(&self) -> bool {
        self.target.is_special()
    }

    /// Opens the file to write at least `bytes` bytes to: a part, with `resume` the one of an earlier copy,
    /// or the target itself if no part can be created.
    pub(in super::super::super) async fn create(
        &mut self,
        resume: bool,
        bytes: u64,
    ) -> Result<Opened, CopyError> {
        if let Some(part) = &mut self.part {
            match part.open(resume).await {
                Err(error @ CopyError::Client(ClientError::File { .. }))
                    if self.target.old().is_some() =>
                {
                    // If the disk is full, truncating the target helps only if the new content then fits.
                    if !self.target.fits(self.run, bytes).await {
                        return Err(error);
                    }
                    self.write_in_place(InPlace::NoPart);
                }
                opened => return opened,
            }
        }
        Ok(Opened {
            file: Arc::new(self.open_target(self.keeps_content).await?),
            length: 0,
            left: None,
        })
    }

    async fn open_target(&self, keeps_content: bool) -> Result<RemoteFile, CopyError> {
        let options = OpenOptions::new().write(true);
        let options = match self.target.there {
            Existing::Nothing => options.create(true).truncate(!keeps_content),
            Existing::File(_) | Existing::Linked => options.truncate(!keeps_content),
            Existing::BlockDevice => options,
            Existing::CharacterDevice | Existing::Fifo => options.append(true),
        };
        let sftp = self.run.sftp;
        // Ours does not wait for a reader in one request.
        let waits = matches!(self.target.there, Existing::Fifo) && sftp.replaces();
        let mut pause = READER_PAUSE.0;
        loop {
            let opened = sftp.open(&self.target.path, options.clone());
            match opened.await {
                Err(ClientError::File { source, .. })
                    if waits && source.code() == status::FAILURE =>
                {
                    // Existing is no code for "there is no reader".
                    let there = sftp.stat(&self.target.path).await?;
                    if there.file_type() != Some(FileType::Fifo) {
                        return Err(CopyError::TargetChanged);
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(READER_PAUSE.1);
                }
                opened => return Ok(opened?),
            }
        }
    }

    /// Writes what `source` gives, to its end. Returns the number of bytes.
    pub(in super::super::super) async fn put<R>(
        &self,
        file: &RemoteFile,
        source: &mut R,
    ) -> Result<u64, CopyError>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        if !matches!(
            self.target.there,
            Existing::CharacterDevice | Existing::Fifo
        ) {
            return file
                .put_with_progress(source, |bytes| self.run.moved(bytes))
                .await;
        }
        let mut written = 0;
        let mut buffer = vec![0; STREAM_BYTES];
        loop {
            let read = source.read(&mut buffer).await;
            let count = read.map_err(|source| CopyError::local("read the file", source))?;
            let Some(data @ [_, ..]) = buffer.get(..count) else {
                return Ok(written);
            };
            tokio::select! {
                written = file.write_at(written, data.to_vec()) => written?,
                () = self.stay_heard() => {}
            }
            let bytes = u64::try_from(count).unwrap_or(u64::MAX);
            self.run.moved(bytes)?;
            written += bytes;
        }
    }

    /// Sends a request from time to time, so that the server is not taken for silent.
    async fn stay_heard(&self) {
        loop {
            sleep(SILENCE_INTERVAL).await;
            if self.run.sftp.realpath("/").await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// What the open file gets of `wanted`, and of what is there; nothing if it stays as it is.
    pub(super) fn attributes(&self, wanted: &Attributes) -> Option<Attributes> {
        let replacement = self.run.replacement();
        let mut attributes = wanted.clone();
        match &self.target.there {
            Existing::Nothing => {}
            Existing::BlockDevice | Existing::CharacterDevice | Existing::Fifo => return None,
            Existing::Linked | Existing::File(_) if self.is_in_place() => {
                attributes.permissions = wanted.permissions.filter(|_| replacement.sets_mode);
            }
            // The server sets them. Until then the part grants no rights that the old file does not.
            Existing::File(old) if self.run.sftp.replaces() => {
                if let Some(old) = old.permissions.filter(|_| !replacement.sets_mode) {
                    attributes.permissions = wanted.permissions.map(|mode| mode & old);
                }
            }
            Existing::File(old) => {
                let kept = if replacement.sets_owner {
                    0o777
                } else {
                    0o777 | SPECIAL_BITS
                };
                if !replacement.sets_mode {
                    attributes.permissions = old.permissions.map(|mode| mode & kept);
                }
                attributes.owner = wanted.owner.or(old.owner);
            }
            Existing::Linked => {}
        }
        (attributes != Attributes::default()).then_some(attributes)
    }

    /// Gives a file that was written its attributes and its name, and closes it.
    pub(in super::super::super) async fn complete(
        self,
        file: Arc<RemoteFile>,
        attributes: &Attributes,
        bytes: u64,
    ) -> Result<(), CopyError> {
        let set = self.finish(&file, attributes, bytes).await?;
        self.publish(file, set, attributes).await
    }

    /// Whether a file that was written has its attributes.
    async fn finish(
        &self,
        file: &RemoteFile,
        attributes: &Attributes,
        bytes: u64,
    ) -> Result<Result<(), ClientError>, CopyError> {
        let set = match self.attributes(attributes) {
            Some(attributes) => file.setstat(attributes).await,
            None => Ok(()),
        };
        if self.target.is_special() {
            return Ok(set);
        }
        let size = file.stat().await?.size;
        // What the kernel makes up has the size 0, and is on no disk.
        let is_made_up = self.is_in_place() && size == Some(0);
        if self.run.syncs_remote() && !is_made_up {
            file.sync().await?;
        }
        match size {
            Some(size) if size != bytes && !is_made_up => {
                return Err(CopyError::Client(ClientError::SizeChanged {
                    endpoint: file.sftp().endpoint().cloned(),
                    size,
                    transferred: bytes,
                }));
            }
            _ => {}
        }
        Ok(set)
    }

    /// Gives a file that is complete its name, and closes it. It was tried to set its attributes.
    pub(super) async fn publish(
        mut self,
        file: Arc<RemoteFile>,
        set: Result<(), ClientError>,
        attributes: &Attributes,
    ) -> Result<(), CopyError> {
        let Some(mut part) = self.part.take() else {
            close(file).await?;
            return self.unless_needed(set);
        };
        let replacement = self.run.replacement();
        let (sftp, target) = (self.run.sftp, &self.target);
        let reason = match set {
            Ok(()) => part.publish(file, replacement).await,
            Err(error) => Err(error.into()),
        };
        let reason = match reason {
            Ok(None) => {
                if part.is_second() {
                    let removed = remove_left(sftp, &target.path).await;
                    self.run.removed(self.source, removed);
                }
                return Ok(());
            }
            Ok(Some(reason)) => reason,
            // A server that gives no reason.
            Err(CopyError::Client(ClientError::File { .. }))
                if target.old().is_some() && !sftp.replaces() =>
            {
                InPlace::Other
            }
            Err(error) => return Err(error),
        };
        if matches!(target.there, Existing::Nothing) {
            // Something else is there by now.
            return Err(CopyError::InTheWay);
        }
        self.copy_in_place(&part, reason, attributes).await
    }

    /// Copies what has the temporary name over the content of what is there, within the guest.
    async fn copy_in_place(
        &self,
        part: &RemotePart<'_>,
        reason: InPlace,
        attributes: &Attributes,
    ) -> Result<(), CopyError> {
        let sftp = self.run.sftp;
        if !sftp.has_extension(extension::COPY_DATA) {
            return Err(CopyError::OnlyInPlace(reason));
        }
        let path = part.path().ok_or(CopyError::PartGone)?;
        let from = sftp.open(path, OpenOptions::new().read(true));
        let from = from.await?;
        let size = from.stat().await?.size.unwrap_or(0);
        if !self.target.fits(self.run, size).await {
            return Err(CopyError::OnlyInPlace(reason));
        }
        self.run.in_place(self.source, reason);
        let to = self.open_target(false).await?;
        let mut offset = 0;
        while offset < size {
            let length = COPY_BYTES.min(size - offset);
            from.copy_data(offset, length, &to, offset).await?;
            offset += length;
        }
        let set = self.finish(&to, attributes, size).await?;
        to.close().await?;
        self.unless_needed(set)
    }

    /// What is written in place need not get the times of the source.
    fn unless_needed(&self, set: Result<(), ClientError>) -> Result<(), CopyError> {
        let replacement = self.run.replacement();
        let is_new = matches!(self.target.there, Existing::Nothing);
        match set {
            Err(ClientError::File { .. })
                if !(is_new || replacement.sets_mode || replacement.sets_owner) =>
            {
                Ok(())
            }
            set => Ok(set?),
        }
    }
}

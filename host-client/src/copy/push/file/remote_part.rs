//! A file of the guest under its temporary name.

use std::{
    os::unix::ffi::{OsStrExt, OsStringExt},
    sync::Arc,
};

use vsock_agent_files::PART_MODE;

use super::super::super::{
    CopyError, InPlace,
    attributes::{self, Kind},
    part::{self, BUSY_INTERVAL, BUSY_TRIES},
};
use crate::{
    error::ClientError,
    protocol::sftp::extension::{self, OpenPart, Replaced, Replacement},
    sftp::{OpenOptions, RemoteFile, RemotePath, Sftp},
};

/// A file of the guest that is being written. Dropping it removes it, unless it is to be kept.
///
/// A server with `open-part@vsock-agent` locks it. On others nobody can tell the part of a copy that
/// still runs from one that an earlier copy left: the next copy to the same target removes both.
#[derive(Debug)]
pub(super) struct RemotePart<'a> {
    sftp: &'a Sftp,
    target: RemotePath,
    // Removed before it is closed: as long as it is open, no other copy takes it.
    name: Option<PartName<'a>>,
    file: Option<Arc<RemoteFile>>,
    /// Whether the first name was not free: another copy writes there, or did.
    is_second: bool,
}

/// A file that is open under its temporary name, or in place.
#[derive(Debug)]
pub(in super::super::super) struct Opened {
    pub(in super::super::super) file: Arc<RemoteFile>,
    /// Bytes that an earlier copy left in it.
    pub(super) length: u64,
    /// What an earlier copy left beside it, on a server that cannot continue that.
    pub(super) left: Option<Left>,
}

/// What an earlier copy left, open for reading.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) path: RemotePath,
    pub(super) file: RemoteFile,
}

/// The temporary path of a file or link. Dropping it removes that file.
#[derive(Debug)]
pub(in super::super) struct PartName<'a> {
    sftp: &'a Sftp,
    pub(in super::super) path: RemotePath,
    /// Whether it stays when this is dropped.
    keep: bool,
}

impl<'a> RemotePart<'a> {
    /// A part of `target`; nothing is there yet.
    pub(super) fn new(sftp: &'a Sftp, target: &RemotePath) -> Self {
        Self {
            sftp,
            target: target.clone(),
            name: None,
            file: None,
            is_second: false,
        }
    }

    /// Its path, if it is there.
    pub(super) fn path(&self) -> Option<&RemotePath> {
        self.name.as_ref().map(|name| &name.path)
    }

    /// From now on what is in it stays, for the next copy to continue with.
    pub(super) fn keep(&mut self, keep: bool) {
        if let Some(name) = &mut self.name {
            name.keep = keep;
        }
    }

    /// Opens it; with `resume` what an earlier copy left, if there is something.
    pub(super) async fn open(&mut self, resume: bool) -> Result<Opened, CopyError> {
        if !is_locked(self.sftp) {
            return self.open_unlocked(resume).await;
        }
        for _ in 0..BUSY_TRIES {
            let opened = self.open_locked(resume).await?;
            if !(resume && self.is_second && opened.length == 0) {
                return Ok(opened);
            }
            (self.name, self.file) = (None, None);
            tokio::time::sleep(BUSY_INTERVAL).await;
        }
        self.open_locked(resume).await
    }

    async fn open_locked(&mut self, resume: bool) -> Result<Opened, CopyError> {
        let names = part::names(self.target.file_name().unwrap_or_default());
        let names = names.into_iter().map(|name| name.into_vec().into());
        let request = OpenPart {
            directory: directory(&self.target).as_bytes().to_vec().into(),
            names: names.collect(),
            keep: resume,
        };
        let opened = self.sftp.open_part(request).await?;
        self.is_second = opened.is_second;
        let opened_file = self.opened(opened.path, opened.file, opened.length, None);
        self.keep(opened.length > 0);
        Ok(opened_file)
    }

    fn opened(
        &mut self,
        path: RemotePath,
        file: RemoteFile,
        length: u64,
        left: Option<Left>,
    ) -> Opened {
        let file = Arc::new(file);
        self.name = Some(PartName::new(self.sftp, path));
        self.file = Some(Arc::clone(&file));
        Opened { file, length, left }
    }

    /// Opens it on a server that knows no parts: under one of two names, of which the other may have
    /// what an earlier copy left.
    async fn open_unlocked(&mut self, resume: bool) -> Result<Opened, CopyError> {
        let (sftp, directory) = (self.sftp, directory(&self.target));
        let names = part::names(self.target.file_name().unwrap_or_default());
        let [one, other] = [0, 1].map(|at: usize| directory.join(names[at].as_bytes()));
        let left = if resume && sftp.has_extension(extension::COPY_DATA) {
            longest(sftp, &[&one, &other]).await?
        } else {
            None
        };
        let path = match &left {
            Some(left) if left.path == one => other,
            _ => one,
        };
        let create = || {
            let options = OpenOptions::new().read(true).write(true).create_new(true);
            sftp.open(&path, options.mode(PART_MODE))
        };
        let file = match create().await {
            // Existing is no code for "it exists".
            Err(refused @ ClientError::File { .. }) => {
                match sftp.lstat(&path).await.as_ref().map(attributes::kind) {
                    Ok(Some(Kind::File)) => sftp.remove(&path).await?,
                    _ => return Err(refused.into()),
                }
                create().await?
            }
            created => created?,
        };
        Ok(self.opened(path, file, 0, left))
    }

    /// Renames it over the target, and closes it. If the target must be written to instead, that is as
    /// it was, and this has still its name.
    pub(super) async fn publish(
        &mut self,
        file: Arc<RemoteFile>,
        replacement: Replacement,
    ) -> Result<Option<InPlace>, CopyError> {
        self.file = None;
        let Some(name) = &mut self.name else {
            return Err(CopyError::PartGone);
        };
        if is_locked(self.sftp) {
            let published = name.publish(&self.target, replacement);
            // The lock is given up when it has its name.
            let (published, closed) = tokio::join!(published, close(file));
            let published = published?;
            closed?;
            Ok(published)
        } else {
            close(file).await?;
            name.publish(&self.target, replacement).await
        }
    }

    /// Whether the first name was not free: another copy wrote there, and may have left something.
    pub(super) const fn is_second(&self) -> bool {
        self.is_second
    }
}

/// Closes a file that has no other user.
pub(super) async fn close(file: Arc<RemoteFile>) -> Result<(), ClientError> {
    match Arc::into_inner(file) {
        Some(file) => file.close().await,
        None => Ok(()),
    }
}

/// Removes what earlier copies to `target` left: opening a part does, and dropping it removes that.
pub(super) async fn remove_left(sftp: &Sftp, target: &RemotePath) -> Result<(), CopyError> {
    for _ in 0..BUSY_TRIES {
        let mut part = RemotePart::new(sftp, target);
        part.open(false).await?;
        if !part.is_second {
            return Ok(());
        }
        drop(part);
        tokio::time::sleep(BUSY_INTERVAL).await;
    }
    Ok(())
}

impl<'a> PartName<'a> {
    pub(in super::super) const fn new(sftp: &'a Sftp, path: RemotePath) -> Self {
        Self {
            sftp,
            path,
            keep: false,
        }
    }

    async fn publish(
        &mut self,
        target: &RemotePath,
        replacement: Replacement,
    ) -> Result<Option<InPlace>, CopyError> {
        if !self.sftp.replaces() {
            return self.rename(target).await.map(|()| None);
        }
        let replaced = self.sftp.replace_file(&self.path, target, replacement);
        let replaced = replaced.await.map_err(renamed)?;
        self.keep = replaced == Replaced::Done;
        Ok(InPlace::from_reply(replaced))
    }

    /// Renames the temporary file over the target, of whatever type.
    pub(in super::super) async fn rename(&mut self, target: &RemotePath) -> Result<(), CopyError> {
        let replaced = self.sftp.replace(&self.path, target).await;
        replaced.map_err(renamed)?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for PartName<'_> {
    fn drop(&mut self) {
        if !self.keep {
            self.sftp.remove_now(&self.path);
        }
    }
}

/// Whether the server locks parts.
fn is_locked(sftp: &Sftp) -> bool {
    sftp.has_extension(extension::OPEN_PART)
}

fn directory(path: &RemotePath) -> RemotePath {
    path.parent().unwrap_or_else(|| ".".into())
}

/// Why it could not be renamed.
fn renamed(error: ClientError) -> CopyError {
    if error.is_not_found() {
        CopyError::PartGone
    } else {
        error.into()
    }
}

/// The longest of what was left.
async fn longest(sftp: &Sftp, paths: &[&RemotePath]) -> Result<Option<Left>, CopyError> {
    let mut longest = None;
    for path in paths {
        if let Ok(there) = sftp.lstat(*path).await
            && attributes::kind(&there) == Some(Kind::File)
            && let Some(length) = there.size.filter(|length| *length > 0)
            && longest.as_ref().is_none_or(|(_, most)| length > *most)
        {
            longest = Some((*path, length));
        }
    }
    let Some((path, _)) = longest else {
        return Ok(None);
    };
    match sftp.open(path, OpenOptions::new().read(true)).await {
        Ok(file) => Ok(Some(Left {
            path: path.clone(),
            file,
        })),
        // Another process removed it.
        Err(ClientError::File { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

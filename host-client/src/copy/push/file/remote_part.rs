//! A file of the guest under its temporary name.

use std::os::unix::ffi::OsStrExt;

use super::super::super::{
    CopyError,
    attributes::{self, PART_MODE},
    part,
};
use crate::{
    error::ClientError,
    sftp::{OpenFlags, RemoteFile, RemotePath, Sftp},
};

/// A file of the guest that is being written. Dropping it removes it.
pub(in super::super) struct RemotePart<'a> {
    sftp: &'a Sftp,
    pub(in super::super) path: RemotePath,
    live: bool,
}

impl<'a> RemotePart<'a> {
    /// A name for a part of `target`; nothing is there yet.
    pub(in super::super) fn new(sftp: &'a Sftp, target: &RemotePath) -> Self {
        let name = part::name(target.file_name().unwrap_or_default());
        let directory = target.parent().unwrap_or_else(|| ".".into());
        Self {
            sftp,
            path: directory.join(name.as_bytes()),
            live: true,
        }
    }

    /// Creates the file.
    pub(in super::super) async fn create(&self) -> Result<RemoteFile, ClientError> {
        self.create_for(OpenFlags::WRITE).await
    }

    pub(super) async fn create_for(&self, access: OpenFlags) -> Result<RemoteFile, ClientError> {
        let flags = access | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        self.sftp
            .open(&self.path, flags, attributes::mode(PART_MODE))
            .await
    }

    /// Renames it over the target.
    pub(in super::super) async fn publish(mut self, target: &RemotePath) -> Result<(), CopyError> {
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

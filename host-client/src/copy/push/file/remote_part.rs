//! A file of the guest under its temporary name.

use std::os::unix::ffi::OsStrExt;

use super::super::super::{
    CopyError, InPlace,
    attributes::{self, PART_MODE},
    part,
};
use crate::{
    error::ClientError,
    protocol::sftp::extension::{Replaced, Replacement},
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
    pub(super) async fn create_for(&self, access: OpenFlags) -> Result<RemoteFile, ClientError> {
        let flags = access | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        self.sftp
            .open(&self.path, flags, attributes::mode(PART_MODE))
            .await
    }

    /// Renames it over the target. If the target must be written to instead, that is as it was, and
    /// so is this.
    pub(in super::super) async fn publish(
        &mut self,
        target: &RemotePath,
        replacement: Replacement,
    ) -> Result<Option<InPlace>, CopyError> {
        if !self.sftp.replaces() {
            return self.rename(target).await.map(|()| None);
        }
        let replaced = self.sftp.replace_file(&self.path, target, replacement);
        let replaced = replaced.await.map_err(renamed)?;
        self.live = replaced != Replaced::Done;
        Ok(InPlace::told(replaced))
    }

    /// Renames it over the target, whatever that is.
    pub(in super::super) async fn rename(&mut self, target: &RemotePath) -> Result<(), CopyError> {
        let replaced = self.sftp.replace(&self.path, target).await;
        replaced.map_err(renamed)?;
        self.live = false;
        Ok(())
    }
}

/// Why it could not be renamed.
fn renamed(error: ClientError) -> CopyError {
    match error.is_not_found() {
        true => CopyError::TakenOver,
        false => error.into(),
    }
}

impl Drop for RemotePart<'_> {
    fn drop(&mut self) {
        if self.live {
            self.sftp.remove_now(&self.path);
        }
    }
}

//! A symbolic link of the guest under its temporary name.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use super::{
    super::{
        CopyError,
        attributes::{self, Kind},
        part,
    },
    file::PartName,
};
use crate::{
    error::ClientError,
    protocol::sftp::Attributes,
    sftp::{RemotePath, Sftp},
};

/// Creates a symbolic link to `text` at `path`, over what is there if that is no directory.
pub(super) async fn put(
    sftp: &Sftp,
    path: &RemotePath,
    text: &OsStr,
    attributes: Option<&Attributes>,
) -> Result<(), CopyError> {
    let directory = path.parent().unwrap_or_else(|| ".".into());
    let names = part::names(path.file_name().unwrap_or_default());
    let parts = [names.first(), names.last()];
    let mut parts = parts
        .into_iter()
        .flatten()
        .map(|name| directory.join(name.as_bytes()));
    let (first, random) = (parts.next(), parts.next());
    if let Some(first) = first {
        match put_by(sftp, first.clone(), path, text, attributes).await {
            // Another copy to this target has removed it.
            Err(CopyError::PartGone) => {}
            // Something has that name: what an earlier copy left, or another one's file.
            Err(CopyError::Client(ClientError::File { .. })) => {
                let there = sftp.lstat(&first).await;
                if let Ok(Some(Kind::Link)) = there.as_ref().map(attributes::kind) {
                    sftp.remove(&first).await?;
                }
            }
            put => return put,
        }
    }
    match random {
        Some(random) => put_by(sftp, random, path, text, attributes).await,
        None => Err(CopyError::NoName),
    }
}

async fn put_by(
    sftp: &Sftp,
    part: RemotePath,
    path: &RemotePath,
    text: &OsStr,
    attributes: Option<&Attributes>,
) -> Result<(), CopyError> {
    sftp.symlink(text, &part).await?;
    let mut part = PartName::new(sftp, part);
    if let Some(attributes) = attributes {
        sftp.lsetstat(&part.path, attributes.clone()).await?;
    }
    part.rename(path).await
}

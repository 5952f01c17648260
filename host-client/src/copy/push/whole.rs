//! Small files into the guest, several in one request.

use std::{ffi::OsString, os::unix::ffi::OsStrExt, sync::Arc};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    super::{CopyError, attributes, local::shown, part, run::Run, scan::Found},
    Directory, put_one,
};
use crate::{error::ClientError, protocol::sftp::extension::StoreFile};

/// Small files of one directory, with their content.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) files: Vec<(OsString, Found)>,
    /// Bounds how many are in memory at once.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// Whether a file can go together with others.
pub(super) fn is_fit(found: &Found) -> bool {
    matches!(found, Found::File(file) if file.content.is_some())
}

pub(super) async fn push(
    run: &Run<'_>,
    directory: &Arc<Directory>,
    files: Files,
) -> Result<(), CopyError> {
    let Files { files, _permit } = files;
    let mut request = Vec::with_capacity(files.len());
    for (name, found) in &files {
        let Found::File(file) = found else { continue };
        let data = file.content.clone().unwrap_or_default();
        let source = shown(&directory.source, name);
        run.started(&source, Some(length(&data)), 0);
        request.push(StoreFile {
            part: part::name(name).as_bytes().to_vec().into(),
            name: Bytes::copy_from_slice(name.as_bytes()),
            attributes: attributes::of(&file.metadata, run.options),
            data,
        });
    }
    let stored = match run.sftp.store(&directory.path, request).await {
        Ok(stored) => stored,
        Err(ClientError::File { .. }) => {
            // Each hears for itself why.
            for (name, found) in files {
                let source = shown(&directory.source, &name);
                put_one(run, directory, name, source, found).await?;
            }
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for ((name, found), stored) in files.iter().zip(stored) {
        let source = shown(&directory.source, name);
        let bytes = match found {
            Found::File(file) => file.content.as_ref().map_or(0, length),
            _ => 0,
        };
        match stored {
            Ok(()) => {
                run.moved(bytes)?;
                run.finished(&source, bytes, |summary| &mut summary.files);
            }
            Err(error) => run.failed(&source, error.into())?,
        }
    }
    Ok(())
}

fn length(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

//! Small files into the guest, several in one request.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    sync::Arc,
};

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
    let mut reservation = run.reserve(files.iter().map(|(_, found)| bytes_of(found)).sum())?;
    let mut request = Vec::with_capacity(files.len());
    for (name, found) in &files {
        let Found::File(file) = found else { continue };
        let data = file.content.clone().unwrap_or_default();
        let source = shown(&directory.source, name);
        run.started(&source, Some(length(&data)), 0);
        request.push(StoreFile {
            part: part::part_name(name).into_vec().into(),
            name: Bytes::copy_from_slice(name.as_bytes()),
            attributes: attributes::of(&file.metadata, run.options),
            data,
        });
    }
    let replacement = run.replacement();
    let stored = run.sftp.store(&directory.path, request, replacement).await;
    let stored = match stored {
        Ok(stored) => stored.into_iter().map(|stored| stored.is_ok()).collect(),
        Err(ClientError::File { .. }) => vec![false; files.len()],
        Err(error) => return Err(error.into()),
    };
    let mut rest = Vec::new();
    for ((name, found), is_stored) in files.into_iter().zip(stored) {
        if !is_stored {
            rest.push((name, found));
            continue;
        }
        let (source, bytes) = (shown(&directory.source, &name), bytes_of(&found));
        reservation.copied(bytes)?;
        run.finished(&source, bytes, |summary| &mut summary.files);
    }
    drop(reservation);
    // What must be written to instead of being replaced goes by itself, and so does what finds that an
    // earlier copy left something. The others get the error.
    for (name, found) in rest {
        let source = shown(&directory.source, &name);
        put_one(run, directory, name, source, found).await?;
    }
    Ok(())
}

fn bytes_of(found: &Found) -> u64 {
    match found {
        Found::File(file) => file.content.as_ref().map_or(0, length),
        _ => 0,
    }
}

fn length(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

//! Parts that earlier copies left in directories of the guest.

use std::os::unix::ffi::OsStrExt;

use super::{
    part,
    run::{Leftovers, MAX_LEFTOVERS},
};
use crate::{
    error::ClientError,
    sftp::{RemotePath, Sftp},
};

/// Most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 1_000_000;

/// All parts in a directory.
pub(super) async fn list(sftp: &Sftp, directory: &RemotePath) -> Result<Leftovers, ClientError> {
    let mut found = Leftovers::new();
    let mut count = 0;
    let mut reader = sftp.read_dir(directory).await?;
    for _ in 0..MAX_ENTRIES {
        let Some(entry) = reader.next().await? else {
            break;
        };
        let name = entry.name().as_bytes();
        if let Some(stem) = part::stem_of(name)
            && count < MAX_LEFTOVERS
        {
            count += 1;
            found.entry(stem.to_vec()).or_default().push(name.to_vec());
        }
    }
    Ok(found)
}

/// The parts of one target. A directory that cannot be listed has none that could be used.
pub(super) async fn find(sftp: &Sftp, directory: &RemotePath, stem: &[u8]) -> Vec<Vec<u8>> {
    let found = list(sftp, directory).await;
    found
        .ok()
        .and_then(|mut found| found.remove(stem))
        .unwrap_or_default()
}

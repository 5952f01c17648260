//! What is at the name that a file of the guest is to have.

use super::super::super::{CopyError, attributes, run::Run, sparse};
use crate::{
    protocol::sftp::{Attributes, FileType, extension},
    sftp::{OpenOptions, RemotePath},
};

/// Where a file goes.
#[derive(Debug, Clone)]
pub(in super::super::super) struct Target {
    /// The path with links followed, if they are to be and the server resolves them.
    pub(super) path: RemotePath,
    pub(super) there: Existing,
}

/// What is there.
#[derive(Debug, Clone)]
pub(in super::super::super) enum Existing {
    /// Nothing, or a link that is replaced.
    Nothing,
    File(Attributes),
    /// A file, behind a link that the server does not resolve.
    Linked,
    BlockDevice,
    CharacterDevice,
    Fifo,
}

impl Target {
    /// A name in a directory that was made by this copy.
    pub(in super::super::super) const fn new(path: RemotePath) -> Self {
        Self {
            path,
            there: Existing::Nothing,
        }
    }

    /// Looks at what has the name.
    ///
    /// # Errors
    ///
    /// When it is nothing that a file could be written to, or cannot be looked at.
    pub(in super::super::super) async fn look(
        run: &Run<'_>,
        path: RemotePath,
    ) -> Result<Self, CopyError> {
        let (sftp, replaces_links) = (run.sftp, run.options.no_dereference);
        let there = match sftp.lstat(&path).await {
            Err(error) if error.is_not_found() => return Ok(Self::new(path)),
            other => other?,
        };
        if there.file_type() != Some(FileType::Link) {
            let there = Existing::of(there)?;
            return Ok(Self { path, there });
        }
        if replaces_links {
            return Ok(Self::new(path));
        }
        let there = match sftp.stat(&path).await {
            Err(error) if error.is_not_found() => return Err(CopyError::DanglingLink),
            other => Existing::of(other?)?,
        };
        if !matches!(there, Existing::File(_)) {
            return Ok(Self { path, there });
        }
        // Not every server resolves links, and some lead to what has no name.
        if let Ok(real) = sftp.realpath(&path).await
            && let Ok(end) = sftp.lstat(&real).await
            && end.file_type() == Some(FileType::Regular)
        {
            let there = Existing::File(end);
            return Ok(Self { path: real, there });
        }
        let there = Existing::Linked;
        Ok(Self { path, there })
    }

    /// The attributes of the file that is there.
    pub(super) const fn old(&self) -> Option<&Attributes> {
        match &self.there {
            Existing::File(old) => Some(old),
            _ => None,
        }
    }

    /// Whether the disk has space for so many bytes in place of the existing file, as far as the
    /// server reports.
    pub(super) async fn fits(&self, run: &Run<'_>, bytes: u64) -> bool {
        let Ok(system) = run.sftp.statvfs(&self.path).await else {
            return true;
        };
        let free = system.blocks_available.saturating_mul(system.fragment_size);
        // What the kernel makes up is on a file system without blocks.
        system.blocks == 0
            || bytes <= free
            || bytes <= free.saturating_add(self.data_bytes(run).await)
    }

    /// How many bytes of the file that is there are no holes, as far as the server reports: about what
    /// emptying it gives back, unless it shares them with other files.
    pub(super) async fn data_bytes(&self, run: &Run<'_>) -> u64 {
        let size = self.old().and_then(|old| old.size).unwrap_or(0);
        if size == 0 || !run.sftp.has_extension(extension::HOLES) {
            return size;
        }
        let opened = run.sftp.open(&self.path, OpenOptions::new().read(true));
        match opened.await {
            Ok(file) => sparse::data_bytes(&file).await.unwrap_or(0),
            // It can be written to and not read.
            Err(_) => size,
        }
    }

    /// Whether it is no regular file: then it is written to as it is.
    pub(in super::super::super) const fn is_special(&self) -> bool {
        matches!(
            self.there,
            Existing::BlockDevice | Existing::CharacterDevice | Existing::Fifo
        )
    }
}

impl Existing {
    /// Without a type from the server it is taken for a file.
    fn of(attributes: Attributes) -> Result<Self, CopyError> {
        Ok(match attributes.file_type() {
            None | Some(FileType::Regular) => Self::File(attributes),
            Some(FileType::BlockDevice) => Self::BlockDevice,
            Some(FileType::CharacterDevice) => Self::CharacterDevice,
            Some(FileType::Fifo) => Self::Fifo,
            Some(FileType::Socket) => return Err(CopyError::Socket),
            Some(FileType::Directory | FileType::Link | FileType::Other) => {
                return Err(CopyError::InTheWay);
            }
        })
    }
}

/// Whether a link of the copy may take the place of what is there.
///
/// # Errors
///
/// When it is a device, a pipe or a socket.
pub(in super::super) async fn may_become_link(
    run: &Run<'_>,
    path: &RemotePath,
) -> Result<(), CopyError> {
    match run.sftp.lstat(path).await {
        Ok(there) if attributes::kind(&there) == Some(attributes::Kind::Special) => {
            Err(CopyError::InTheWay)
        }
        _ => Ok(()),
    }
}

//! Files under a temporary name until they are complete: [`OPEN_PART`].
//!
//! [`OPEN_PART`]: vsock_agent_protocol::sftp::extension::OPEN_PART

use bytes::Bytes;
use vsock_agent_files::open_part;
use vsock_agent_protocol::sftp::extension::OpenPart;

use super::{
    SftpError,
    files::Files,
    handles::{Kind, Open},
    whole::component,
};

/// What [`Files::open_part`] opened.
#[derive(Debug)]
pub(super) struct OpenedFile {
    pub(super) open: Open,
    /// Which of the names it has.
    pub(super) name: u32,
    /// Bytes that are in it.
    pub(super) length: u64,
}

impl Files {
    /// Opens a file under one of the names.
    ///
    /// # Errors
    ///
    /// What the kernel says; that it exists when no name is free.
    pub(super) fn open_part(&self, wanted: &OpenPart) -> Result<OpenedFile, SftpError> {
        let directory = self.directory(&wanted.directory)?;
        let names = wanted.names.iter().map(|name| component(name));
        let names: Vec<&[u8]> = names.collect::<Result<_, _>>()?;
        let part = open_part(&directory, &names, wanted.keep)?;
        Ok(OpenedFile {
            open: Open {
                kind: Kind::File {
                    file: part.file,
                    writes: true,
                    appends: false,
                },
                path: path(&wanted.directory, names[part.name]),
            },
            name: u32::try_from(part.name).unwrap_or(u32::MAX),
            length: part.length,
        })
    }
}

/// The path of a name in a directory.
pub(super) fn path(directory: &[u8], name: &[u8]) -> Bytes {
    [directory, b"/", name].concat().into()
}

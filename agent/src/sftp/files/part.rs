//! Files under a temporary name until they are complete: [`OPEN_PART`].
//!
//! [`OPEN_PART`]: vsock_agent_protocol::sftp::extension::OPEN_PART

use vsock_agent_files::open_part;
use vsock_agent_protocol::sftp::extension::OpenPart;

use super::{
    super::{
        SftpError,
        extension::join,
        handles::{Kind, Open},
    },
    Files,
    whole::component,
};

/// What [`Files::open_part`] opened.
#[derive(Debug)]
pub(in crate::sftp) struct OpenedFile {
    pub(in crate::sftp) open: Open,
    /// Index of the name it has.
    pub(in crate::sftp) name: u32,
    /// Its length, in bytes.
    pub(in crate::sftp) length: u64,
}

impl Files {
    /// Opens a file under one of the names.
    ///
    /// # Errors
    ///
    /// Errors of the file system; `EEXIST` when no name is free.
    pub(in crate::sftp) fn open_part(&self, request: &OpenPart) -> Result<OpenedFile, SftpError> {
        let directory = self.directory(&request.directory)?;
        let names = request.names.iter().map(|name| component(name));
        let names: Vec<&[u8]> = names.collect::<Result<_, _>>()?;
        let part = open_part(&directory, &names, request.keep)?;
        Ok(OpenedFile {
            open: Open {
                kind: Kind::File {
                    file: part.file,
                    appends: false,
                },
                path: join(&request.directory, names[part.name]),
            },
            name: u32::try_from(part.name).unwrap_or(u32::MAX),
            length: part.length,
        })
    }
}

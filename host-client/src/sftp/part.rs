//! Files under a temporary name until they are complete, by extension.

use super::{RemoteFile, RemotePath, Sftp, engine::PendingReply, extended, file, status};
use crate::{
    error::ClientError,
    protocol::sftp::{
        Reply,
        extension::{self, OpenPart, OpenedPart},
    },
};

/// A file under a temporary name, open for reading and writing. It is locked until it is closed.
#[derive(Debug)]
pub(crate) struct OpenedFile {
    pub(crate) file: RemoteFile,
    pub(crate) path: RemotePath,
    /// Bytes that are in it already.
    pub(crate) length: u64,
    /// Whether it has another name than the first that was asked for.
    pub(crate) is_second: bool,
}

/// A file that is being opened. Dropping this leaves it to [`Sftp::removed`] to remove it.
struct Opening<'a> {
    sftp: &'a Sftp,
    request: OpenPart,
    pending: Option<PendingReply>,
}

/// What is still to be removed.
#[derive(Debug)]
pub(super) enum Removal {
    /// The request to remove or close it was sent.
    Asked(PendingReply),
    /// The file that is being opened.
    Opening(OpenPart, PendingReply),
}

impl Sftp {
    /// Opens a file under one of several names.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, [`ClientError::Unsupported`] when it cannot, or
    /// another [`ClientError`].
    pub(crate) async fn open_part(&self, request: OpenPart) -> Result<OpenedFile, ClientError> {
        self.needs(extension::OPEN_PART, "open the file")?;
        let data = request.encode();
        let pending = self.engine.submit(extended(extension::OPEN_PART, data));
        let mut opening = Opening {
            sftp: self,
            request,
            pending: Some(pending.await?),
        };
        if let Some(pending) = &mut opening.pending {
            pending.arrived().await;
        }
        match opening.pending.take() {
            Some(pending) => {
                pending
                    .read(|reply| self.opened(&opening.request, reply))
                    .await
            }
            None => Err(ClientError::protocol("no reply")),
        }
    }

    fn opened(&self, request: &OpenPart, reply: Reply) -> Result<OpenedFile, ClientError> {
        const ACTION: &str = "open the file";
        let opened = match reply {
            Reply::Extended { data } => OpenedPart::decode(data).map_err(|error| {
                ClientError::protocol_because(format!("cannot {ACTION}"), error)
            })?,
            reply => return Err(status::refused(reply, ACTION)),
        };
        let file = RemoteFile::new(self.clone(), file::checked_handle(opened.handle)?).part();
        let name = usize::try_from(opened.name).ok();
        let name = name.and_then(|name| request.names.get(name));
        let name = name.ok_or_else(|| ClientError::protocol("a name that was not requested"))?;
        Ok(OpenedFile {
            file,
            path: RemotePath::from_bytes(request.directory.clone()).join(name),
            length: opened.length,
            is_second: opened.name > 0,
        })
    }

    /// Waits until what is removed without waiting is, or could not be: the unfinished files of copies
    /// that failed or were dropped. A session that is dropped before may not remove them. A
    /// guest that does not answer is waited for as long as for any other reply.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: when the future is dropped, files that were being opened may stay.
    pub async fn removed(&self) {
        let removals = std::mem::take(&mut *self.removals());
        for removal in removals {
            // The error of the copy was reported already.
            match removal {
                Removal::Asked(pending) => {
                    let _ = pending.reply().await;
                }
                Removal::Opening(request, pending) => {
                    if let Ok(reply) = pending.reply().await
                        && let Ok(opened) = self.opened(&request, reply)
                    {
                        let _ = self.remove(&opened.path).await;
                    }
                }
            }
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            let request = self.request.clone();
            let removal = Removal::Opening(request, pending);
            self.sftp.removals().push(removal);
        }
    }
}

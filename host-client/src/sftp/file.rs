//! An open file in the guest.

use bytes::Bytes;

use super::{
    FileData, Sftp,
    engine::{Credit, Payload, PendingReply},
    extended, status,
};
use crate::{
    error::ClientError,
    protocol::sftp::{
        Attributes, MAX_HANDLE_BYTES, Reply, Request,
        extension::{self, put_strings},
    },
};

/// An open file. Reads and writes have an offset, so that many can be in flight at once.
///
/// Dropping it closes it and ignores errors: after writing use
/// [`close`](Self::close).
#[derive(Debug)]
pub struct RemoteFile {
    sftp: Sftp,
    handle: Bytes,
    open: bool,
    /// Whether [`Sftp::removed`] waits until it is closed: the space of a removed file is free only then.
    is_part: bool,
}

impl RemoteFile {
    pub(super) const fn new(sftp: Sftp, handle: Bytes) -> Self {
        Self {
            sftp,
            handle,
            open: true,
            is_part: false,
        }
    }

    pub(super) const fn part(mut self) -> Self {
        self.is_part = true;
        self
    }

    pub(crate) const fn sftp(&self) -> &Sftp {
        &self.sftp
    }

    pub(super) const fn handle(&self) -> &Bytes {
        &self.handle
    }

    /// Reads at most `length` bytes from `offset`; nothing at the end of the file. It may be less
    /// than there is.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, [`ClientError::Protocol`] when it sends more
    /// than asked for, or another [`ClientError`].
    pub async fn read_at(&self, offset: u64, length: u32) -> Result<FileData, ClientError> {
        let length = length.min(self.sftp.sizes.read);
        let credit = self.sftp.engine.credit(length).await;
        let pending = self.start_read_at(offset, length, credit).await?;
        let read = pending.read(|reply| read_data(reply, length));
        read.await.map(FileData)
    }

    /// Writes all of `data` at `offset`, in as many requests as it takes.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, any part may have been written.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, in which case a part may have been written,
    /// or another [`ClientError`].
    pub async fn write_at(&self, offset: u64, data: impl Into<Vec<u8>>) -> Result<(), ClientError> {
        self.write_bytes_at(offset, data.into().into()).await
    }

    /// The same without a copy.
    pub(crate) async fn write_bytes_at(
        &self,
        offset: u64,
        mut data: Bytes,
    ) -> Result<(), ClientError> {
        let mut offset = offset;
        while !data.is_empty() {
            let length = usize::try_from(self.sftp.sizes.write).unwrap_or(usize::MAX);
            let piece = data.split_to(length.min(data.len()));
            let next = offset.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            let payload = Payload::Bytes(piece);
            let credit = self.sftp.engine.credit(payload.len()).await;
            let pending = self.start_write(offset, payload, credit).await?;
            pending
                .read(|reply| status::done(reply, "write to the file"))
                .await?;
            offset = next;
        }
        Ok(())
    }

    /// Asks for `length` bytes from `offset`; without a credit, for the rest of a short reply.
    pub(super) async fn start_read_at(
        &self,
        offset: u64,
        length: u32,
        credit: Option<Credit>,
    ) -> Result<PendingReply, ClientError> {
        let request = Request::Read {
            handle: self.handle.clone(),
            offset,
            length,
        };
        self.sftp.engine.submit_with(request, credit).await
    }

    pub(super) async fn start_write(
        &self,
        offset: u64,
        payload: Payload,
        credit: Option<Credit>,
    ) -> Result<PendingReply, ClientError> {
        let handle = self.handle.clone();
        let engine = &self.sftp.engine;
        engine.submit_write(handle, offset, payload, credit).await
    }

    /// Attributes of the open file.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn stat(&self) -> Result<Attributes, ClientError> {
        let handle = self.handle.clone();
        self.sftp
            .attributes(Request::Fstat { handle }, "read the attributes")
            .await
    }

    /// Sets attributes of the open file. What is `None` stays.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn setstat(&self, attributes: Attributes) -> Result<(), ClientError> {
        let mut set = Ok(());
        for attributes in self.sftp.in_order(attributes) {
            let request = Request::Fsetstat {
                handle: self.handle.clone(),
                attributes,
            };
            set = set.and(self.sftp.done(request, "set the attributes").await);
        }
        set
    }

    /// Waits until the file's data is on its disk.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the agent goes on when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] without `fsync@openssh.com`; [`ClientError::File`] when it failed:
    /// what was written may be lost; or another [`ClientError`].
    pub async fn sync(&self) -> Result<(), ClientError> {
        self.start_sync().await?.done().await
    }

    /// Sets attributes; the reply is still to come.
    pub(crate) async fn start_setstat(
        &self,
        attributes: Attributes,
    ) -> Result<Pending, ClientError> {
        let handle = self.handle.clone();
        let request = Request::Fsetstat { handle, attributes };
        self.start(request, "set the attributes").await
    }

    /// Asks for the attributes; the reply is still to come.
    pub(crate) async fn start_stat(&self) -> Result<PendingAttributes, ClientError> {
        let handle = self.handle.clone();
        let pending = self.sftp.engine.submit(Request::Fstat { handle }).await?;
        Ok(PendingAttributes(pending))
    }

    /// Asks for the data to be on its disk; the reply is still to come.
    pub(crate) async fn start_sync(&self) -> Result<Pending, ClientError> {
        const ACTION: &str = "write the file to its disk";
        self.sftp.needs(extension::FSYNC, ACTION)?;
        let request = extended(extension::FSYNC, put_strings(&[&self.handle]));
        self.start(request, ACTION).await
    }

    /// Closes the file behind what was asked before; the reply is still to come.
    pub(crate) async fn start_close(mut self) -> Result<Pending, ClientError> {
        let handle = self.handle.clone();
        let pending = self
            .start(Request::Close { handle }, "close the file")
            .await?;
        self.open = false;
        Ok(pending)
    }

    async fn start(&self, request: Request, action: &'static str) -> Result<Pending, ClientError> {
        Ok(Pending(self.sftp.engine.submit(request).await?, action))
    }

    /// Asks for the first `length` bytes; the reply is still to come.
    pub(crate) async fn start_read(&self, length: u32) -> Result<PendingRead, ClientError> {
        let length = length.min(self.sftp.sizes.read);
        let credit = self.sftp.engine.credit(length).await;
        let pending = self.start_read_at(0, length, credit).await?;
        Ok(PendingRead { pending, length })
    }

    /// Closes the file.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the file is closed all the same. Whether what was written could be kept
    /// is not known.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent could not keep what was written, or another
    /// [`ClientError`].
    pub async fn close(mut self) -> Result<(), ClientError> {
        let handle = self.handle.clone();
        let request = Request::Close { handle };
        let pending = self.start(request, "close the file").await?;
        self.open = false;
        pending.done().await
    }
}

impl Drop for RemoteFile {
    fn drop(&mut self) {
        if self.open {
            let handle = self.handle.clone();
            let close = Request::Close { handle };
            if self.is_part {
                self.sftp.clean_up(&close);
            } else {
                let _ = self.sftp.engine.submit_now(&close);
            }
        }
    }
}

/// A request of which only the success matters.
#[derive(Debug)]
pub(crate) struct Pending(PendingReply, &'static str);

impl Pending {
    pub(super) const fn new(reply: PendingReply, action: &'static str) -> Self {
        Self(reply, action)
    }

    /// Waits for the reply.
    pub(crate) async fn done(self) -> Result<(), ClientError> {
        self.0.read(|reply| status::done(reply, self.1)).await
    }
}

/// Attributes that are on their way.
#[derive(Debug)]
pub(crate) struct PendingAttributes(PendingReply);

impl PendingAttributes {
    /// Waits for them.
    pub(crate) async fn attributes(self) -> Result<Attributes, ClientError> {
        self.0
            .read(|reply| match reply {
                Reply::Attributes { attributes } => Ok(attributes),
                reply => Err(status::refused(reply, "read the attributes")),
            })
            .await
    }
}

/// Data that is on its way.
#[derive(Debug)]
pub(crate) struct PendingRead {
    pending: PendingReply,
    length: u32,
}

impl PendingRead {
    /// Waits for it; nothing at the end of the file.
    pub(crate) async fn data(self) -> Result<Bytes, ClientError> {
        self.pending
            .read(|reply| read_data(reply, self.length))
            .await
    }
}

/// Checks the length of a handle from the server.
pub(super) fn checked_handle(handle: Bytes) -> Result<Bytes, ClientError> {
    match handle.len() {
        1..=MAX_HANDLE_BYTES => Ok(handle),
        bytes => Err(ClientError::protocol(format!("a handle of {bytes} bytes"))),
    }
}

/// The data in a reply to a read of `length` bytes; nothing at the end of the file.
pub(super) fn read_data(reply: Reply, length: u32) -> Result<Bytes, ClientError> {
    match reply {
        Reply::Data { data } => match u32::try_from(data.len()) {
            Ok(bytes) if bytes <= length => Ok(data),
            _ => Err(ClientError::protocol(format!(
                "{} bytes where {length} were asked for",
                data.len()
            ))),
        },
        reply if status::is_end(&reply) => Ok(Bytes::new()),
        reply => Err(status::refused(reply, "read from the file")),
    }
}

//! The WRITEs that are written behind: their data, and the thread that writes them.

use std::sync::Arc;

use vsock_agent_protocol::sftp::MAX_DATA_BYTES;

use super::{
    super::{
        SessionError, access::AccessSet, budget::Reserved, error::ok, file_io::write,
        handles::Open, input::PartialWrite, output::lock, reply_buffer::ReplyBuffer,
    },
    Shared,
};

/// Replies that are sent together while more writes are queued: the client wakes less often, and has
/// more of its processor left.
const GATHERED_REPLIES: usize = 4;

/// A WRITE in the queue.
#[derive(Debug)]
pub(super) struct QueuedWrite {
    ticket: u64,
    id: u32,
    open: Arc<Open>,
    offset: u64,
    /// [`MAX_DATA_BYTES`], of which the first `length` are its data.
    buffer: Vec<u8>,
    length: usize,
    _reserved: Reserved,
}

impl QueuedWrite {
    /// Where its data are read to.
    pub(super) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }
}

impl Shared {
    /// Prepares a WRITE whose data are not read yet, if it may be queued now.
    pub(super) fn reserve_write(self: &Arc<Self>, partial: &PartialWrite) -> Option<QueuedWrite> {
        let length = usize::try_from(partial.length).ok()?;
        if self.files.read_only || length > MAX_DATA_BYTES as usize {
            return None;
        }
        let handle = &partial.handle;
        let access = lock(&self.handles).add_write(
            AccessSet::default(),
            handle,
            partial.offset,
            partial.length.into(),
        );
        let (ticket, mut buffer) = self.followers.reserve_write(handle, access)?;
        // From now on no other request closes it.
        let open = lock(&self.handles).find(handle).ok();
        let Some(open) = open.filter(|open| open.plain_file().is_some()) else {
            self.followers.finish_write(ticket, buffer, self);
            return None;
        };
        // An old one has this length.
        buffer.resize(MAX_DATA_BYTES as usize, 0);
        Some(QueuedWrite {
            ticket,
            id: partial.id,
            open,
            offset: partial.offset,
            buffer,
            length,
            _reserved: self.budget.take(MAX_DATA_BYTES as usize),
        })
    }

    /// Writes what is queued, until the queue is empty.
    pub(super) fn write_queued(self: &Arc<Self>) -> Result<(), SessionError> {
        let mut result = Ok(());
        let mut buffer = ReplyBuffer::default();
        let mut gathered = 0;
        while let Some(queued) = self.followers.next_write() {
            let data = &queued.buffer[..queued.length];
            let reply = match write(&queued.open, queued.offset, data) {
                Ok(()) => ok(),
                Err(error) => error.into(),
            };
            let sent = self.output.gather(buffer.reply(queued.id, &reply));
            result = result.and(sent);
            gathered += 1;
            let has_more = self.finish_write(queued);
            if gathered == GATHERED_REPLIES || !has_more {
                // Data that arrived completely are written, also when the client is gone.
                result = result.and(self.output.send(&[]));
                gathered = 0;
            }
        }
        Ok(result?)
    }

    /// Finishes a WRITE whose reply is gathered, or that has none. Returns whether more are queued.
    pub(super) fn finish_write(self: &Arc<Self>, write: QueuedWrite) -> bool {
        // Before the request is finished: a CLOSE that waits for it must be the last user.
        drop(write.open);
        self.followers
            .finish_write(write.ticket, write.buffer, self)
    }
}

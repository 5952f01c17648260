//! A reply, until it is sent or gathered.

use bytes::{BufMut, BytesMut};
use vsock_agent_protocol::sftp::{FrameHead, MAX_DATA_BYTES, Reply};

use super::{SftpError, file_io::read, handles::Open};

/// Bytes of a DATA reply before its data: length, type, id, and the length of the data.
const DATA_HEAD_BYTES: usize = FrameHead::BYTES + 1 + 4 + 4;

/// The type of DATA (draft-02, section 3).
const DATA: u8 = 103;

/// The last reply of one thread.
#[derive(Debug, Default)]
pub(super) struct ReplyBuffer {
    /// The head of a DATA reply, and its data. Allocated at the first READ.
    data: Vec<u8>,
    other: BytesMut,
}

impl ReplyBuffer {
    /// Reads from a file; [`ReplyBuffer::data`] gives the reply.
    ///
    /// # Errors
    ///
    /// [`SftpError::EndOfFile`], or the errno of `read(2)`.
    pub(super) fn read(
        &mut self,
        open: &Open,
        offset: u64,
        length: u32,
    ) -> Result<usize, SftpError> {
        let file = open.file()?;
        if self.data.is_empty() {
            self.data = vec![0; DATA_HEAD_BYTES + MAX_DATA_BYTES as usize];
        }
        read(file, offset, length, &mut self.data[DATA_HEAD_BYTES..])
    }

    /// The DATA reply with the `length` bytes that were read last.
    pub(super) fn data(&mut self, id: u32, length: usize) -> &[u8] {
        let count = u32::try_from(length).unwrap_or(u32::MAX);
        let mut head = &mut self.data[..DATA_HEAD_BYTES];
        head.put_u32(count.saturating_add(1 + 4 + 4));
        head.put_u8(DATA);
        head.put_u32(id);
        head.put_u32(count);
        &self.data[..DATA_HEAD_BYTES + length]
    }

    /// Any other reply.
    pub(super) fn reply(&mut self, id: u32, reply: &Reply) -> &[u8] {
        self.other.clear();
        reply.encode(id, &mut self.other);
        &self.other
    }
}

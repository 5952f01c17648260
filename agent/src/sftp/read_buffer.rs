//! The data of a READ, until they are sent.

use bytes::BufMut;
use vsock_agent_protocol::sftp::{FrameHead, MAX_DATA_BYTES};

use super::{SftpError, file_io::read, handles::Open};

/// Bytes of a DATA reply before its data: length, type, id, and the length of the data.
const DATA_HEAD_BYTES: usize = FrameHead::BYTES + 1 + 4 + 4;

/// The type of DATA (draft-02, section 3).
const DATA: u8 = 103;

/// Read buffer of one thread: the head of a DATA reply, and its data. Allocated at the first READ.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer(Vec<u8>);

impl ReadBuffer {
    /// Reads from a file; [`ReadBuffer::frame`] gives the data.
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
        if self.0.is_empty() {
            self.0 = vec![0; DATA_HEAD_BYTES + MAX_DATA_BYTES as usize];
        }
        read(file, offset, length, &mut self.0[DATA_HEAD_BYTES..])
    }

    /// The DATA reply with the `length` bytes that were read last.
    pub(super) fn frame(&mut self, id: u32, length: usize) -> &[u8] {
        let count = u32::try_from(length).unwrap_or(u32::MAX);
        let mut head = &mut self.0[..DATA_HEAD_BYTES];
        head.put_u32(count.saturating_add(1 + 4 + 4));
        head.put_u8(DATA);
        head.put_u32(id);
        head.put_u32(count);
        &self.0[..DATA_HEAD_BYTES + length]
    }
}

//! The data of a READ, until they are sent.

use bytes::BufMut;
use vsock_agent_protocol::sftp::{FrameHead, MAX_DATA_BYTES};

use super::{SftpError, file_io::read, handles::Open, pipe::Pipe, stream::Outgoing};

/// Bytes of a DATA reply before its data: length, type, id, and the length of the data.
const DATA_HEAD_BYTES: usize = FrameHead::BYTES + 1 + 4 + 4;

/// The type of DATA (draft-02, section 3).
const DATA: u8 = 103;

/// Reads of fewer bytes are copied: to splice their pages would cost more.
const MIN_SPLICE_BYTES: u32 = 64 * 1024;

/// Read buffer of one thread.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    /// The head of a DATA reply, and its data if they are not in the pipe.
    data: Vec<u8>,
    pipe: SplicePipe,
}

/// The pipe to splice with.
#[derive(Debug)]
enum SplicePipe {
    Never,
    /// Created on first use.
    Untried,
    Ready(Pipe),
}

impl ReadBuffer {
    /// An empty buffer. `splices`: whether the connection takes spliced pages.
    pub(super) fn new(splices: bool) -> Self {
        Self {
            data: Vec::new(),
            pipe: if splices {
                SplicePipe::Untried
            } else {
                SplicePipe::Never
            },
        }
    }

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
        // A page that was spliced shows later writes until the client has taken it. Of the same open
        // file it must not; other writers are not known.
        if length >= MIN_SPLICE_BYTES
            && !open.writes()
            && let Some(pipe) = self.pipe.ready()
            // Otherwise it is read.
            && let Ok(count) = pipe.fill(file, offset, length)
        {
            return match count {
                0 => Err(SftpError::EndOfFile),
                count => Ok(count),
            };
        }
        read(
            file,
            offset,
            length,
            &mut self.bytes_mut()[DATA_HEAD_BYTES..],
        )
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        if self.data.is_empty() {
            self.data = vec![0; DATA_HEAD_BYTES + MAX_DATA_BYTES as usize];
        }
        &mut self.data
    }

    /// The DATA reply with the `length` bytes that were read last.
    pub(super) fn frame(&mut self, id: u32, length: usize) -> Outgoing<'_> {
        let count = u32::try_from(length).unwrap_or(u32::MAX);
        let mut head = &mut self.bytes_mut()[..DATA_HEAD_BYTES];
        head.put_u32(count.saturating_add(1 + 4 + 4));
        head.put_u8(DATA);
        head.put_u32(id);
        head.put_u32(count);
        match &mut self.pipe {
            SplicePipe::Ready(pipe) if pipe.held() > 0 => Outgoing {
                bytes: &self.data[..DATA_HEAD_BYTES],
                spliced: Some(pipe),
            },
            _ => Outgoing::from(&self.data[..DATA_HEAD_BYTES + length]),
        }
    }
}

impl SplicePipe {
    fn ready(&mut self) -> Option<&mut Pipe> {
        if matches!(self, Self::Untried) {
            *self = Pipe::new().map_or(Self::Never, Self::Ready);
        }
        match self {
            Self::Ready(pipe) => Some(pipe),
            _ => None,
        }
    }
}

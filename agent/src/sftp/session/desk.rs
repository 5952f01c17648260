//! A thread's own place: what it has read from a file and not sent yet.

use bytes::BufMut;
use vsock_agent_protocol::sftp::{FrameHead, MAX_DATA_BYTES};

use super::super::{SftpError, files::read, handles::Open, pipe::Pipe, stream::Outgoing};

/// Bytes of a DATA reply before its data: length, type, id, and the length of the data.
const DATA_HEAD_BYTES: usize = FrameHead::BYTES + 1 + 4 + 4;

/// The type of DATA (draft-02, section 3).
const DATA: u8 = 103;

/// Reads of fewer bytes are copied: to lend their pages would cost more.
const LENT_BYTES: u32 = 64 * 1024;

/// What a thread reads from files.
#[derive(Debug)]
pub(in crate::sftp) struct Desk {
    /// The head of a DATA reply, and its data if they are not in the pipe.
    data: Vec<u8>,
    pipe: Lender,
}

/// Whether pages are lent to the connection.
#[derive(Debug)]
enum Lender {
    Never,
    /// As soon as there is a reason.
    Wanted,
    Ready(Pipe),
}

impl Desk {
    /// An empty one.
    pub(super) fn new(lends: bool) -> Self {
        Self {
            data: Vec::new(),
            pipe: if lends { Lender::Wanted } else { Lender::Never },
        }
    }

    /// Reads from a file; what was read stays here for [`Desk::frame`].
    ///
    /// # Errors
    ///
    /// [`SftpError::EndOfFile`] when there is nothing there, or what the kernel says.
    pub(in crate::sftp) fn read(
        &mut self,
        open: &Open,
        offset: u64,
        length: u32,
    ) -> Result<usize, SftpError> {
        let file = open.file()?;
        // What is lent shows what is written before the client takes it; of one open file it must
        // not. Who else writes to the file is not known.
        if length >= LENT_BYTES
            && !open.writes()
            && let Some(pipe) = self.pipe.ready()
            // What cannot be lent is read.
            && let Ok(count) = pipe.fill(file, offset, length)
        {
            return match count {
                0 => Err(SftpError::EndOfFile),
                count => Ok(count),
            };
        }
        read(file, offset, length, &mut self.room()[DATA_HEAD_BYTES..])
    }

    fn room(&mut self) -> &mut [u8] {
        if self.data.is_empty() {
            self.data = vec![0; DATA_HEAD_BYTES + MAX_DATA_BYTES as usize];
        }
        &mut self.data
    }

    /// The DATA reply with the `length` bytes that were read last.
    pub(super) fn frame(&mut self, id: u32, length: usize) -> Outgoing<'_> {
        let count = u32::try_from(length).unwrap_or(u32::MAX);
        let mut head = &mut self.room()[..DATA_HEAD_BYTES];
        head.put_u32(count.saturating_add(1 + 4 + 4));
        head.put_u8(DATA);
        head.put_u32(id);
        head.put_u32(count);
        match &mut self.pipe {
            Lender::Ready(pipe) if pipe.held() > 0 => Outgoing {
                bytes: &self.data[..DATA_HEAD_BYTES],
                lent: Some(pipe),
            },
            _ => Outgoing::from(&self.data[..DATA_HEAD_BYTES + length]),
        }
    }
}

impl Lender {
    fn ready(&mut self) -> Option<&mut Pipe> {
        if matches!(self, Self::Wanted) {
            *self = Pipe::new().map_or(Self::Never, Self::Ready);
        }
        match self {
            Self::Ready(pipe) => Some(pipe),
            _ => None,
        }
    }
}

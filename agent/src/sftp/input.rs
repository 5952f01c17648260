//! Frames, read from a connection without copying them.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use vsock_agent_protocol::sftp::{DecodeError, FrameHead, MAX_FRAME_BYTES, WriteHead};

use super::{SessionError, handles::HANDLE_BYTES, output::Output, stream::Source};

/// How much is read at a time beyond the frame that is needed, in bytes: requests that arrived with
/// it take no further system call.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// Size of a buffer, in bytes: the largest frame, and some that follow it.
const BUFFER_BYTES: usize = FrameHead::BYTES + MAX_FRAME_BYTES as usize + READ_AHEAD_BYTES;

/// A WRITE of which at least so many bytes were not read yet may be written behind.
const MIN_WRITE_BEHIND_BYTES: usize = 64 * 1024;

/// Size of the head of a WRITE with one of our handles, in bytes. No more is read behind data that are
/// written behind: the data of the next WRITE need not be copied then.
const WRITE_HEAD_BYTES: usize = FrameHead::BYTES + 1 + 4 + (4 + HANDLE_BYTES) + 8 + 4;

/// The right to read a session's next request. One thread has it at a time.
#[derive(Debug)]
pub(super) struct Input {
    source: Source,
    output: Arc<Output>,
    /// Shared with the [`Frame`]s that are still in use.
    buffer: Arc<Vec<u8>>,
    filled: Range<usize>,
    after_write_behind: bool,
}

/// What was read.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    /// The caller must read the rest: [its data](Input::read_data), or [the frame](Input::next_frame).
    Write(PartialWrite),
}

/// A WRITE whose data were not all read yet.
#[derive(Debug)]
pub(super) struct PartialWrite {
    pub(super) id: u32,
    pub(super) handle: Bytes,
    pub(super) offset: u64,
    /// Length of its data, in bytes.
    pub(super) length: u32,
    /// Bytes of them that were read, at the end of the buffer.
    here: usize,
}

/// The body of a frame, in the buffer that it was read to.
#[derive(Debug)]
pub(super) struct Frame {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl std::ops::Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Input {
    /// `read_ahead` came before what `source` gives. The replies in `output` are sent before it waits.
    pub(super) fn new(source: Source, output: Arc<Output>, read_ahead: &[u8]) -> Self {
        let mut buffer = vec![0; BUFFER_BYTES.max(read_ahead.len())];
        buffer[..read_ahead.len()].copy_from_slice(read_ahead);
        Self {
            source,
            output,
            buffer: Arc::new(buffer),
            filled: 0..read_ahead.len(),
            after_write_behind: false,
        }
    }

    /// The next frame, or a large WRITE whose data are left to be read. Sends the gathered replies before
    /// it waits. `None` when the client has closed the connection between two frames.
    ///
    /// # Errors
    ///
    /// [`SessionError`]: the rest of the stream cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Next>, SessionError> {
        loop {
            let missing = match self.take_frame()? {
                Ok(frame) => return Ok(Some(Next::Frame(frame))),
                Err(missing) => missing,
            };
            if missing >= MIN_WRITE_BEHIND_BYTES
                && let Some(partial) = self.partial_write()
            {
                self.output.flush()?;
                return Ok(Some(Next::Write(partial)));
            }
            if !self.fill(missing)? {
                return Ok(None);
            }
        }
    }

    /// The next frame, whatever it is. `None` when the client has closed the connection before it.
    ///
    /// # Errors
    ///
    /// [`SessionError`]: the rest of the stream cannot be read.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, SessionError> {
        loop {
            match self.take_frame()? {
                Ok(frame) => return Ok(Some(frame)),
                Err(missing) if !self.fill(missing)? => return Ok(None),
                Err(_) => {}
            }
        }
    }

    /// Reads up to `missing` bytes, or more. False when the client has closed the connection
    /// between two frames.
    fn fill(&mut self, missing: usize) -> Result<bool, SessionError> {
        self.output.flush()?;
        let room = self.make_room(missing);
        let read = {
            let buffer = writable(&mut self.buffer)?;
            self.source.read(&mut buffer[room], &self.output)?
        };
        if read == 0 {
            return if self.filled.is_empty() {
                Ok(false)
            } else {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            };
        }
        self.filled.end += read;
        Ok(true)
    }

    /// The WRITE at the front of the buffer, if it is one.
    fn partial_write(&self) -> Option<PartialWrite> {
        let there = &self.buffer[self.filled.clone()];
        let (head, front) = there.split_first_chunk()?;
        let body = FrameHead::parse(*head).ok()?.body_bytes;
        let (head, here) = WriteHead::decode(front, usize::try_from(body).ok()?)?;
        Some(PartialWrite {
            id: head.id,
            handle: Bytes::copy_from_slice(head.handle),
            offset: head.offset,
            length: head.length,
            here: here.len(),
        })
    }

    /// Reads the data of a WRITE into `data`, which has their length.
    ///
    /// # Errors
    ///
    /// [`SessionError`]: the rest of the stream cannot be read.
    pub(super) fn read_data(
        &mut self,
        partial: &PartialWrite,
        data: &mut [u8],
    ) -> Result<(), SessionError> {
        let here = &self.buffer[self.filled.end - partial.here..self.filled.end];
        data[..here.len()].copy_from_slice(here);
        self.filled = 0..0;
        self.after_write_behind = true;
        let mut filled = partial.here;
        while filled < data.len() {
            match self.source.read(&mut data[filled..], &self.output)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Takes a whole frame off the front, or returns how many bytes are missing.
    fn take_frame(&mut self) -> Result<Result<Frame, usize>, DecodeError> {
        let there = &self.buffer[self.filled.clone()];
        let Some(head) = there.first_chunk() else {
            return Ok(Err(FrameHead::BYTES - there.len()));
        };
        let head = FrameHead::parse(*head)?;
        let body = usize::try_from(head.body_bytes).unwrap_or(usize::MAX);
        let whole = FrameHead::BYTES.saturating_add(body);
        if there.len() < whole {
            return Ok(Err(whole - there.len()));
        }
        let start = self.filled.start + FrameHead::BYTES;
        self.filled.start += whole;
        Ok(Ok(Frame {
            buffer: Arc::clone(&self.buffer),
            range: start..self.filled.start,
        }))
    }

    /// Where to read to: at least `missing` bytes, in a buffer that no frame uses.
    fn make_room(&mut self, missing: usize) -> Range<usize> {
        let there = self.filled.len();
        match Arc::get_mut(&mut self.buffer) {
            // A frame in it is still in use by a former leader.
            None => {
                let mut buffer = vec![0; BUFFER_BYTES];
                buffer[..there].copy_from_slice(&self.buffer[self.filled.clone()]);
                self.buffer = Arc::new(buffer);
                self.filled = 0..there;
            }
            Some(buffer) if there == 0 || self.filled.end + missing > buffer.len() => {
                buffer.copy_within(self.filled.clone(), 0);
                self.filled = 0..there;
            }
            Some(_) => {}
        }
        // Of a large frame, no more than its end is read: what follows would have to be moved.
        let wanted = if std::mem::take(&mut self.after_write_behind) {
            missing.max(WRITE_HEAD_BYTES)
        } else {
            missing.max(READ_AHEAD_BYTES)
        };
        let end = self.buffer.len().min(self.filled.end + wanted);
        self.filled.end..end
    }
}

fn writable(buffer: &mut Arc<Vec<u8>>) -> io::Result<&mut [u8]> {
    // `make_room` has just replaced a shared buffer.
    Arc::get_mut(buffer)
        .map(Vec::as_mut_slice)
        .ok_or_else(|| io::Error::other("the buffer is in use"))
}

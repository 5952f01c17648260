//! Frames, taken off a connection without copying them, and the replies that wait to go out.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use vsock_agent_protocol::sftp::{DecodeError, FrameHead, MAX_FRAME_BYTES, WriteHead};

use super::{
    handles::HANDLE_BYTES,
    session::{SessionError, lock},
    stream::{Outgoing, Sink, Source},
};

/// How much is read at a time beyond the frame that is needed, in bytes: what has arrived with it
/// is done without another system call.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// Size of a buffer, in bytes: the largest frame, and some that follow it.
const BUFFER_BYTES: usize = FrameHead::BYTES + MAX_FRAME_BYTES as usize + READ_AHEAD_BYTES;

/// Size of the gathered replies, in bytes, at which they are sent without waiting for more.
const GATHER_BYTES: usize = 64 * 1024;

/// Data of a WRITE of which at least so many bytes are not here yet are read to where another thread
/// writes them from, in bytes.
const LANDED_BYTES: usize = 64 * 1024;

/// What is read at once behind data that landed, in bytes: the head of another WRITE, with one of
/// our handles. Its data need not be copied then.
const BEHIND_LANDED_BYTES: usize = FrameHead::BYTES + 1 + 4 + (4 + HANDLE_BYTES) + 8 + 4;

/// The right to read a session's next request. One thread has it at a time.
#[derive(Debug)]
pub(super) struct Input {
    source: Source,
    /// Shared with the [`Frame`]s that somebody still works on.
    buffer: Arc<Vec<u8>>,
    filled: Range<usize>,
    after_landing: bool,
    /// Replies that were not sent yet, because more requests were there already.
    pub(super) replies: BytesMut,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    /// A WRITE whose data are still to come: they are to be [read](Input::read_data), or
    /// [with all of it](Input::read_begun).
    Write(Begun),
}

/// A WRITE whose data are still to come.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: u32,
    pub(super) handle: Bytes,
    pub(super) offset: u64,
    /// Length of its data, in bytes.
    pub(super) length: u32,
    /// Bytes of them that are here, at the end of the buffer.
    here: usize,
}

/// The body of a frame, where it was read.
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
    /// A new session's. `read_ahead` came before what `source` gives.
    pub(super) fn new(source: Source, read_ahead: &[u8]) -> Self {
        let mut buffer = vec![0; BUFFER_BYTES.max(read_ahead.len())];
        buffer[..read_ahead.len()].copy_from_slice(read_ahead);
        Self {
            source,
            buffer: Arc::new(buffer),
            filled: 0..read_ahead.len(),
            after_landing: false,
            replies: BytesMut::new(),
        }
    }

    /// The next frame. Sends the gathered replies before it waits for one. `None` when the client
    /// has closed the connection between two frames.
    ///
    /// # Errors
    ///
    /// Whatever makes the rest of the stream unreadable.
    pub(super) fn next_frame(&mut self, sink: &Mutex<Sink>) -> Result<Option<Frame>, SessionError> {
        loop {
            match self.take_frame()? {
                Ok(frame) => return Ok(Some(frame)),
                Err(missing) => {
                    if !self.fill(missing, sink)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The same, but the data of a large WRITE may be left on the connection.
    ///
    /// # Errors
    ///
    /// Whatever makes the rest of the stream unreadable.
    pub(super) fn next(&mut self, sink: &Mutex<Sink>) -> Result<Option<Next>, SessionError> {
        loop {
            match self.take_frame()? {
                Ok(frame) => return Ok(Some(Next::Frame(frame))),
                Err(missing) => {
                    if missing >= LANDED_BYTES
                        && let Some(begun) = self.begun()
                    {
                        self.flush(sink)?;
                        return Ok(Some(Next::Write(begun)));
                    }
                    if !self.fill(missing, sink)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Reads what there is of the `missing` bytes. False when the client has closed the connection
    /// between two frames.
    fn fill(&mut self, missing: usize, sink: &Mutex<Sink>) -> Result<bool, SessionError> {
        self.flush(sink)?;
        let room = self.make_room(missing);
        let read = {
            let buffer = writable(&mut self.buffer)?;
            self.source.read(&mut buffer[room], sink)?
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

    /// The large WRITE that has begun.
    fn begun(&self) -> Option<Begun> {
        let there = &self.buffer[self.filled.clone()];
        let (head, front) = there.split_first_chunk()?;
        let body = FrameHead::parse(*head).ok()?.body_bytes;
        let (head, here) = WriteHead::decode(front, usize::try_from(body).ok()?)?;
        Some(Begun {
            id: head.id,
            handle: Bytes::copy_from_slice(head.handle),
            offset: head.offset,
            length: head.length,
            here: here.len(),
        })
    }

    /// Reads a WRITE that has begun whole.
    ///
    /// # Errors
    ///
    /// Whatever makes the rest of the stream unreadable.
    pub(super) fn read_begun(&mut self, sink: &Mutex<Sink>) -> Result<Frame, SessionError> {
        let frame = self.next_frame(sink)?;
        frame.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }

    /// Reads the data of a WRITE that has begun; `data` is as long as they are.
    ///
    /// # Errors
    ///
    /// Whatever makes the rest of the stream unreadable.
    pub(super) fn read_data(
        &mut self,
        begun: &Begun,
        data: &mut [u8],
        sink: &Mutex<Sink>,
    ) -> Result<(), SessionError> {
        let here = &self.buffer[self.filled.end - begun.here..self.filled.end];
        data[..here.len()].copy_from_slice(here);
        self.filled = 0..0;
        self.after_landing = true;
        let mut filled = begun.here;
        while filled < data.len() {
            match self.source.read(&mut data[filled..], sink)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Takes a whole frame off the front, or tells how many bytes are missing to one.
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

    /// Where to read to: room for `missing` bytes at least, in a buffer nobody else looks at.
    fn make_room(&mut self, missing: usize) -> Range<usize> {
        let there = self.filled.len();
        match Arc::get_mut(&mut self.buffer) {
            // A frame is still worked on by who is late.
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
        // A large frame is read as it is: what follows it would have to be moved.
        let wanted = if std::mem::take(&mut self.after_landing) {
            missing.max(BEHIND_LANDED_BYTES)
        } else {
            missing.max(READ_AHEAD_BYTES)
        };
        let end = self.buffer.len().min(self.filled.end + wanted);
        self.filled.end..end
    }

    /// Sends the gathered replies.
    ///
    /// # Errors
    ///
    /// What the connection says.
    pub(super) fn flush(&mut self, sink: &Mutex<Sink>) -> io::Result<()> {
        self.send(Outgoing::EMPTY, sink)
    }

    /// Sends the gathered replies once there are many.
    ///
    /// # Errors
    ///
    /// What the connection says.
    pub(super) fn flush_if_many(&mut self, sink: &Mutex<Sink>) -> io::Result<()> {
        if self.replies.len() < GATHER_BYTES {
            Ok(())
        } else {
            self.flush(sink)
        }
    }

    /// Sends the gathered replies, and `last` after them.
    ///
    /// # Errors
    ///
    /// What the connection says.
    pub(super) fn send(&mut self, last: Outgoing<'_>, sink: &Mutex<Sink>) -> io::Result<()> {
        if !self.replies.is_empty() || !last.bytes.is_empty() {
            lock(sink).write(&self.replies, last)?;
            self.replies.clear();
        }
        Ok(())
    }
}

fn writable(buffer: &mut Arc<Vec<u8>>) -> io::Result<&mut [u8]> {
    // `make_room` has just seen to it.
    Arc::get_mut(buffer)
        .map(Vec::as_mut_slice)
        .ok_or_else(|| io::Error::other("the buffer is in use"))
}

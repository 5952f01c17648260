//! Write-behind: the leader reads the data of large WRITEs, and another thread writes them, so that a
//! copy into a file uses two processors.
//!
//! ```text
//! leader ──reads──► buffer, one of BUFFERS ──► writer ──writes──► file
//!    ▲                                            │ └──► reply
//!    └───────────────── free ◄────────────────────┘
//! ```
//!
//! Queued writes are done one after the other, and all are to one open file. So they need no order
//! but that of the queue, and a slow file does not delay writes to another one.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use vsock_agent_protocol::sftp::MAX_DATA_BYTES;

use super::{
    super::{
        SftpError, access::AccessSet, error::ok, file_io::write, files::Outcome, handles::Open,
        input::PartialWrite,
    },
    Budget, Response, SessionError, Shared, State,
};

/// Buffers of a session. With fewer, leader and writer wait for each other: with six, a push of 1 GiB
/// took 6 % longer.
const BUFFERS: usize = 8;

/// Replies that are sent together while more writes are queued: the client wakes less often, and has
/// more of its processor left.
const GATHERED_REPLIES: usize = 4;

/// How long the leader waits for a free buffer. A write that takes longer is slow, and waits with the
/// other requests.
const BUFFER_TIMEOUT: Duration = Duration::from_millis(4);

/// How long one request may take after the client has closed its sending side.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The same when the client is gone and no write is queued: the replies have no receiver.
const HUNG_UP_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The queued writes of a session.
#[derive(Debug, Default)]
pub(super) struct WriteBehind {
    queue: VecDeque<QueuedWrite>,
    writer: Writer,
    /// Writes that have a buffer: being read, queued, or being written.
    unfinished: usize,
    /// The handle that they all write to.
    handle: Bytes,
    /// Whether the leader has waited in vain since a write was done.
    slow: bool,
    free: Vec<Vec<u8>>,
}

/// Whether a thread writes what is queued.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    None,
    /// A follower was woken for it.
    Requested,
    Running,
}

/// A WRITE in the queue.
#[derive(Debug)]
pub(super) struct QueuedWrite {
    ticket: u64,
    id: u32,
    open: Arc<Open>,
    offset: u64,
    buffer: Buffer,
}

/// Its data. Takes [`MAX_DATA_BYTES`] of the budget until it is dropped.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    budget: Arc<Budget>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.budget.give_back(MAX_DATA_BYTES as usize);
    }
}

impl WriteBehind {
    /// Whether a follower was woken to write the queue.
    pub(super) fn wants_writer(&self) -> bool {
        self.writer == Writer::Requested
    }

    /// Takes that request, if there is one: the caller must [write](Shared::write_queued) then.
    pub(super) fn take_writer_request(&mut self) -> bool {
        let wanted = self.wants_writer();
        if wanted {
            self.writer = Writer::Running;
        }
        wanted
    }

    /// Frees the buffers that are not in use.
    pub(super) fn free_buffers(&mut self) {
        self.free = Vec::new();
    }

    /// Removes all writes that have not started.
    pub(super) fn take_queue(&mut self) -> VecDeque<QueuedWrite> {
        std::mem::take(&mut self.queue)
    }

    fn accepts(&self, handle: &Bytes) -> bool {
        self.unfinished == 0 || self.handle == handle
    }

    fn is_full(&self) -> bool {
        self.unfinished >= BUFFERS
    }

    fn finish(&mut self, mut buffer: Buffer) {
        self.unfinished -= 1;
        self.slow = false;
        self.free.push(std::mem::take(&mut buffer.bytes));
    }
}

impl QueuedWrite {
    /// Where its data are read to.
    pub(super) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes[..self.buffer.length]
    }

    fn write(&self) -> Result<Outcome, (SftpError, bool)> {
        let data = &self.buffer.bytes[..self.buffer.length];
        match write(&self.open, self.offset, data) {
            Ok(()) => Ok(Outcome::Reply(ok())),
            Err(error) => Err((error, false)),
        }
    }
}

impl Shared {
    /// A buffer for a WRITE, if it may be queued now. Waits up to [`BUFFER_TIMEOUT`] for a free one.
    pub(super) fn begin_write(&self, partial: &PartialWrite) -> Option<QueuedWrite> {
        let length = usize::try_from(partial.length).ok()?;
        if self.files.read_only || length > MAX_DATA_BYTES as usize {
            return None;
        }
        let mut state = self.lock();
        if state.write_behind.is_full() && state.write_behind.accepts(&partial.handle) {
            state = self.wait_for_buffer(state);
        }
        let write_behind = &state.write_behind;
        if state.ended || write_behind.is_full() || !write_behind.accepts(&partial.handle) {
            return None;
        }
        if self.budget.is_spent() && write_behind.unfinished > 0 {
            return None;
        }
        let open = state.handles.find(&partial.handle).ok()?;
        let access = state.handles.add_write(
            AccessSet::default(),
            &partial.handle,
            partial.offset,
            partial.length.into(),
        );
        if open.plain_file().is_none() || !state.scheduler.may_write_behind(&access) {
            return None;
        }
        let ticket = state.scheduler.start_write_behind(access);
        state.write_behind.unfinished += 1;
        state.write_behind.handle = partial.handle.clone();
        let free = state.write_behind.free.pop();
        drop(state);
        self.budget.take(MAX_DATA_BYTES as usize);
        Some(QueuedWrite {
            ticket,
            id: partial.id,
            open,
            offset: partial.offset,
            buffer: Buffer {
                bytes: free.unwrap_or_else(|| vec![0; MAX_DATA_BYTES as usize]),
                length,
                budget: Arc::clone(&self.budget),
            },
        })
    }

    /// Queues a WRITE whose data were read. False if no other thread writes: the caller must
    /// [write](Self::write_queued) then.
    pub(super) fn queue_write(self: &Arc<Self>, write: QueuedWrite) -> bool {
        let mut state = self.lock();
        state.write_behind.queue.push_back(write);
        if state.write_behind.writer != Writer::None {
            return true;
        }
        let woken = self.wake_follower(&mut state);
        state.write_behind.writer = if woken {
            Writer::Requested
        } else {
            Writer::Running
        };
        woken
    }

    /// Drops a WRITE whose data could not be read.
    pub(super) fn abandon(&self, write: QueuedWrite) {
        let mut state = self.lock();
        state.write_behind.finish(write.buffer);
        state.scheduler.finish(write.ticket);
    }

    /// Writes what is queued, until the queue is empty.
    pub(super) fn write_queued(self: &Arc<Self>) -> Result<(), SessionError> {
        let mut state = self.lock();
        let mut result = Ok(());
        let mut unsent = 0;
        while let Some(write) = state.write_behind.queue.pop_front() {
            drop(state);
            self.write_one(write);
            unsent += 1;
            state = self.lock();
            if unsent == GATHERED_REPLIES || state.write_behind.queue.is_empty() {
                drop(state);
                // Data that arrived completely are written, also when the client is gone.
                result = result.and(self.send_unsent_and(&[]));
                unsent = 0;
                state = self.lock();
            }
        }
        state.write_behind.writer = Writer::None;
        self.progress.notify_all();
        Ok(result?)
    }

    /// Writes, and adds the reply to the unsent ones.
    fn write_one(self: &Arc<Self>, write: QueuedWrite) {
        let outcome = write.write();
        let QueuedWrite {
            ticket,
            id,
            open,
            buffer,
            ..
        } = write;
        // Before the request is finished: a CLOSE that waits for it must be the last user.
        drop(open);
        let (mut state, response) = self.store_outcome(outcome);
        if let Response::Reply(reply) = response {
            reply.encode(id, &mut state.unsent);
        }
        state.write_behind.finish(buffer);
        state.scheduler.finish(ticket);
        self.progress.notify_all();
        if state.scheduler.has_ready() {
            self.wake_follower(&mut state);
        }
    }

    /// Waits until all requests that arrived completely are answered, or the session has ended. Stops
    /// when none is done within a timeout.
    pub(super) fn drain(&self) {
        let mut state = self.lock();
        let left = |state: &State| (state.scheduler.waiting(), state.scheduler.running());
        while !state.ended && (left(&state) != (0, 0) || state.write_behind.writer != Writer::None)
        {
            let before = left(&state);
            let limit = if state.write_behind.unfinished == 0 && self.closer.is_hung_up() {
                HUNG_UP_DRAIN_TIMEOUT
            } else {
                DRAIN_TIMEOUT
            };
            let waited = self.progress.wait_timeout(state, limit);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && left(&state) == before {
                return;
            }
        }
    }

    fn wait_for_buffer<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.write_behind.slow {
            return state;
        }
        let full = |state: &mut State| state.write_behind.is_full() && !state.ended;
        let waited = self
            .progress
            .wait_timeout_while(state, BUFFER_TIMEOUT, full);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.write_behind.slow = state.write_behind.is_full();
        state
    }
}

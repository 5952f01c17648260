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

use std::collections::VecDeque;

use bytes::Bytes;

/// Buffers of a session. With fewer, leader and writer wait for each other: with six, a push of 1 GiB
/// took 6 % longer.
const BUFFERS: usize = 8;

/// The queued writes of a session, as part of the state of its [`Followers`](super::followers).
#[derive(Debug)]
pub(super) struct WriteBehind<W> {
    queue: VecDeque<W>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    None,
    /// A follower was woken for it.
    Requested,
    Running,
}

impl<W> Default for WriteBehind<W> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            writer: Writer::None,
            unfinished: 0,
            handle: Bytes::new(),
            slow: false,
            free: Vec::new(),
        }
    }
}

impl<W> WriteBehind<W> {
    /// Whether a WRITE to this handle may be queued. A spent budget of all sessions leaves one.
    pub(super) fn accepts(&self, handle: &Bytes, budget_is_spent: bool) -> bool {
        self.unfinished == 0 || self.handle == handle && !self.is_full() && !budget_is_spent
    }

    /// Whether all buffers are in use, by a file that is not slow and has this handle.
    pub(super) fn is_worth_waiting_for(&self, handle: &Bytes) -> bool {
        self.is_full() && self.handle == handle && !self.slow
    }

    /// Whether all buffers are in use.
    pub(super) fn is_full(&self) -> bool {
        self.unfinished >= BUFFERS
    }

    /// The leader has waited for a buffer.
    pub(super) fn note_waited(&mut self) {
        self.slow = self.is_full();
    }

    /// Counts a WRITE whose data are about to be read. Gives it a buffer that was used
    /// before, or an empty one.
    pub(super) fn reserve(&mut self, handle: &Bytes) -> Vec<u8> {
        self.unfinished += 1;
        self.handle = handle.clone();
        self.free.pop().unwrap_or_default()
    }

    /// A reserved WRITE is done, or is not to be queued.
    pub(super) fn release(&mut self, buffer: Vec<u8>) {
        self.unfinished -= 1;
        self.slow = false;
        self.free.push(buffer);
    }

    /// Queues a reserved WRITE.
    pub(super) fn push(&mut self, write: W) {
        self.queue.push_back(write);
    }

    /// The next one to write. Without one, the caller does not write any more.
    pub(super) fn pop(&mut self) -> Option<W> {
        let next = self.queue.pop_front();
        if next.is_none() {
            self.writer = Writer::None;
        }
        next
    }

    /// Whether writes are queued.
    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether no WRITE has a buffer.
    pub(super) fn is_idle(&self) -> bool {
        self.unfinished == 0
    }

    /// Whether a thread writes the queue, or was woken for it.
    pub(super) fn has_writer(&self) -> bool {
        self.writer != Writer::None
    }

    /// Sets the writer: a follower that was woken, or else the thread that calls.
    pub(super) fn set_writer(&mut self, woken: bool) {
        self.writer = if woken {
            Writer::Requested
        } else {
            Writer::Running
        };
    }

    /// Whether a follower was woken to write the queue, and has not run yet.
    pub(super) fn wants_writer(&self) -> bool {
        self.writer == Writer::Requested
    }

    /// Makes the caller the writer, if one is wanted.
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
    pub(super) fn take_queue(&mut self) -> Vec<W> {
        std::mem::take(&mut self.queue).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Bytes = Bytes::from_static(b"1");
    const OTHER: Bytes = Bytes::from_static(b"2");

    #[test]
    fn all_queued_writes_are_to_one_file() {
        let mut queue = WriteBehind::<()>::default();
        assert!(queue.accepts(&FILE, false));
        queue.reserve(&FILE);
        assert!(queue.accepts(&FILE, false));
        assert!(!queue.accepts(&OTHER, false));
        queue.release(Vec::new());
        assert!(queue.accepts(&OTHER, false));
    }

    #[test]
    fn a_spent_budget_leaves_one_write() {
        let mut queue = WriteBehind::<()>::default();
        assert!(queue.accepts(&FILE, true));
        queue.reserve(&FILE);
        assert!(!queue.accepts(&FILE, true));
    }

    #[test]
    fn a_slow_file_is_waited_for_once() {
        let mut queue = WriteBehind::<()>::default();
        for _ in 0..BUFFERS {
            assert!(!queue.is_worth_waiting_for(&FILE));
            queue.reserve(&FILE);
        }
        assert!(!queue.accepts(&FILE, false));
        assert!(queue.is_worth_waiting_for(&FILE));
        assert!(!queue.is_worth_waiting_for(&OTHER));
        queue.note_waited();
        assert!(!queue.is_worth_waiting_for(&FILE));
        queue.release(Vec::new());
        assert!(queue.accepts(&FILE, false));
        queue.reserve(&FILE);
        assert!(queue.is_worth_waiting_for(&FILE), "it made progress");
    }

    #[test]
    fn a_queue_has_one_writer_until_it_is_empty() {
        let mut queue = WriteBehind::default();
        queue.reserve(&FILE);
        queue.push("first");
        assert!(!queue.has_writer());
        queue.set_writer(true);
        assert!(queue.take_writer_request());
        assert!(!queue.take_writer_request(), "only one thread writes");
        assert_eq!(queue.pop(), Some("first"));
        assert!(queue.has_writer());
        assert_eq!(queue.pop(), None);
        assert!(!queue.has_writer());
    }
}

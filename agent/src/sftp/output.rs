//! The replies of a session: gathered while more requests are there already, and sent in order.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::BytesMut;
use vsock_agent_protocol::sftp::Reply;

use super::stream::Sink;

/// Size of the gathered replies, in bytes, at which they are sent without waiting for more.
const GATHER_BYTES: usize = 64 * 1024;

/// The sending half of a connection. A lock of its own for the replies: they are gathered also while a
/// thread waits for the client to receive.
#[derive(Debug)]
pub(super) struct Output {
    sink: Mutex<Sink>,
    unsent: Mutex<BytesMut>,
}

impl Output {
    pub(super) fn new(sink: Sink) -> Self {
        Self {
            sink: Mutex::new(sink),
            unsent: Mutex::default(),
        }
    }

    /// Gathers a reply.
    pub(super) fn gather(&self, id: u32, reply: &Reply) {
        reply.encode(id, &mut lock(&self.unsent));
    }

    /// Gathers an encoded reply.
    pub(super) fn gather_frame(&self, frame: &[u8]) {
        lock(&self.unsent).extend_from_slice(frame);
    }

    /// Sends the gathered replies, and `frame` after them. Returns when also those that another thread
    /// sends are sent.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut sink = lock(&self.sink);
        let unsent = std::mem::take(&mut *lock(&self.unsent));
        sink.write(&unsent, frame)
    }

    /// Sends the gathered replies, if there are any. Does not wait for another thread that sends.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(super) fn flush(&self) -> io::Result<()> {
        self.flush_from(1)
    }

    /// The same once there are many.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(super) fn flush_if_many(&self) -> io::Result<()> {
        self.flush_from(GATHER_BYTES)
    }

    fn flush_from(&self, bytes: usize) -> io::Result<()> {
        if lock(&self.unsent).len() < bytes {
            Ok(())
        } else {
            self.send(&[])
        }
    }

    /// Sends what TLS has to send: the answer to a key update, or an alert. If another thread sends, it
    /// sends that too.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(super) fn answer_tls(&self) -> io::Result<()> {
        match self.sink.try_lock() {
            Ok(mut sink) => sink.write(&[], &[]),
            Err(_) => Ok(()),
        }
    }

    /// Sends `close_notify`, unless that would wait.
    pub(super) fn close(&self) {
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.send_close_notify();
        }
    }
}

/// Locks, also after a panic: it ends the session, and leaves nothing half done behind a lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

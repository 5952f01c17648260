//! The replies of a session: gathered while more requests are there already, and sent in order.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::BytesMut;

use super::Sink;

/// Size of the gathered replies, in bytes, at which they are sent without waiting for more.
const GATHER_BYTES: usize = 64 * 1024;

/// Replies up to this size, in bytes, are gathered; a larger one is sent at once.
const SMALL_BYTES: usize = 4 * 1024;

/// The sending half of a connection. A lock of its own for the replies: they are gathered also while a
/// thread waits for the client to receive.
#[derive(Debug)]
pub(in crate::sftp) struct Output {
    sink: Mutex<Sink>,
    unsent: Mutex<BytesMut>,
}

impl Output {
    pub(in crate::sftp) fn new(sink: Sink) -> Self {
        Self {
            sink: Mutex::new(sink),
            unsent: Mutex::default(),
        }
    }

    /// Gathers a small reply, and sends a large one, or the gathered ones when they are many.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(in crate::sftp) fn gather(&self, reply: &[u8]) -> io::Result<()> {
        if reply.len() > SMALL_BYTES {
            return self.send(reply);
        }
        let mut unsent = lock(&self.unsent);
        unsent.extend_from_slice(reply);
        let is_large = unsent.len() >= GATHER_BYTES;
        drop(unsent);
        if is_large { self.send(&[]) } else { Ok(()) }
    }

    /// Sends the gathered replies, and `frame` after them. Returns when also those that another thread
    /// sends are sent.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(in crate::sftp) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut sink = lock(&self.sink);
        let unsent = std::mem::take(&mut *lock(&self.unsent));
        sink.write(&unsent, frame)
    }

    /// Sends the gathered replies, if there are any. Does not wait for another thread that sends.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(in crate::sftp) fn flush(&self) -> io::Result<()> {
        let is_empty = lock(&self.unsent).is_empty();
        if is_empty { Ok(()) } else { self.send(&[]) }
    }

    /// Sends what TLS has to send: the answer to a key update, or an alert. If another thread sends, it
    /// sends that too.
    ///
    /// # Errors
    ///
    /// As [`Sink::write`].
    pub(in crate::sftp) fn answer_tls(&self) -> io::Result<()> {
        match self.sink.try_lock() {
            Ok(mut sink) => sink.write(&[], &[]),
            Err(_) => Ok(()),
        }
    }

    /// Sends `close_notify`, unless that would wait.
    pub(in crate::sftp) fn close(&self) {
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.send_close_notify();
        }
    }
}

/// Locks, also after a panic: it ends the session, and leaves nothing half done behind a lock.
pub(in crate::sftp) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream};

    use super::{super::Channel, *};

    #[test]
    fn small_replies_wait_and_are_sent_before_a_large_one() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let output = Output::new(Channel::plain(ours.into()).sink);
        output.gather(b"first").unwrap();
        let mut received = [0; 2 * SMALL_BYTES];
        client.read(&mut received).unwrap_err();
        output.gather(&[b'x'; SMALL_BYTES + 1]).unwrap();
        let count = client.read(&mut received).unwrap();
        assert_eq!(count, b"first".len() + SMALL_BYTES + 1);
        assert!(received.starts_with(b"firstx"));
    }

    #[test]
    fn many_gathered_replies_are_sent() {
        let (ours, mut client) = UnixStream::pair().unwrap();
        let output = Output::new(Channel::plain(ours.into()).sink);
        for _ in 0..GATHER_BYTES / SMALL_BYTES {
            output.gather(&[b'x'; SMALL_BYTES]).unwrap();
        }
        client.read_exact(&mut vec![0; GATHER_BYTES]).unwrap();
        output.gather(b"y").unwrap();
        output.flush().unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
}

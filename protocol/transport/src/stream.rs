//! A connected socket, with a handle that watches it and one that closes it.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, Shutdown, recv, send, shutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
    time::sleep,
};

/// First and longest pause between two looks at a peer of which something is left unread.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A connected stream socket of any family. `Drop` closes it.
///
/// `recv(2)`, `send(2)` and `shutdown(2)` are the same for all families, so tokio's type for one of them
/// serves the others, and generic code is compiled once.
#[derive(Debug)]
pub struct Stream(Arc<UnixStream>);

impl Stream {
    /// Takes a connected stream socket, of `AF_VSOCK`, `AF_UNIX`, `AF_INET` or `AF_INET6`.
    ///
    /// # Errors
    ///
    /// The errno of `fcntl(2)` or `epoll_ctl(2)`.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket).map(Self::from)
    }

    /// The user of a Unix socket's peer at the time when it connected.
    ///
    /// # Errors
    ///
    /// The errno of `getsockopt(2)`.
    pub fn peer_uid(&self) -> io::Result<u32> {
        self.0.peer_cred().map(|peer| peer.uid())
    }

    /// Whether the first bytes of the peer are `text`. Waits until there are enough to tell, and leaves them
    /// to be read. Cancel safe.
    ///
    /// # Errors
    ///
    /// The errno of `recv(2)`.
    pub async fn starts_with(&self, text: &[u8]) -> io::Result<bool> {
        let mut begin = vec![0; text.len()];
        loop {
            let is_closed = self.0.ready(Interest::READABLE).await?.is_read_closed();
            let looked = self.0.try_io(Interest::READABLE, || {
                let count = recv(self.0.as_raw_fd(), &mut begin, MsgFlags::MSG_PEEK)?;
                let is_alike = begin[..count] == text[..count];
                if is_closed || !is_alike || count == 0 || count == text.len() {
                    return Ok(is_alike && count == text.len());
                }
                // Waits for more.
                Err(io::ErrorKind::WouldBlock.into())
            });
            match looked {
                Err(error) if is_temporary(&error) => {}
                looked => return looked,
            }
        }
    }

    /// A handle that waits for the peer to close. It keeps the socket open.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.0))
    }

    /// A handle that closes the connection.
    pub fn closer(&self) -> Closer {
        Closer(Arc::downgrade(&self.0))
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self(Arc::new(socket))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            let mut taken = None;
            let read = self.0.try_io(Interest::READABLE, || {
                let count = recv(self.0.as_raw_fd(), unfilled, MsgFlags::empty())?;
                taken = Some(count);
                // A short read has emptied the buffer (`epoll(7)`): the next read would return EAGAIN.
                if count > 0 && count < unfilled.len() {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    Ok(())
                }
            });
            match (taken, read) {
                (Some(count), _) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                (None, Err(error)) if !is_temporary(&error) => return Poll::Ready(Err(error)),
                (None, _) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(data) {
                Err(error) if is_temporary(&error) => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.0.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Waits for the peer to close. Reads nothing.
#[derive(Debug)]
pub struct Watch(Arc<UnixStream>);

impl Watch {
    /// Waits until the peer has closed the connection in both directions. Shutting down its writes
    /// (`shutdown(2)`) is not enough.
    ///
    /// Returns at once, or within a second if unread data of the peer are in the buffer.
    pub async fn closed(&self) {
        let mut pause = PAUSE.0;
        while self.0.ready(Interest::READABLE).await.is_ok() {
            let peeked = self.0.try_io(Interest::READABLE, || {
                let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
                Ok(recv(self.0.as_raw_fd(), &mut [0], flags)?)
            });
            match peeked {
                Err(error) if is_temporary(&error) => {
                    pause = PAUSE.0;
                    continue;
                }
                Err(_) => return,
                Ok(_) if self.cannot_receive() => return,
                Ok(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Shuts down our writes, and discards what the peer still sends until it closes: closing a socket with
    /// unread data resets the connection, and the peer may lose what was sent to it.
    pub async fn drain(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Write);
        let mut nowhere = [0; 4096];
        while self.0.readable().await.is_ok() {
            match self.0.try_read(&mut nowhere) {
                Ok(1..) => {}
                Err(error) if is_temporary(&error) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Whether the peer has closed its reads, by sending no bytes: the kernel returns `EPIPE` before it
    /// checks the length (`net/unix/af_unix.c`, `net/vmw_vsock/af_vsock.c`). TCP detects it only after data
    /// were sent.
    fn cannot_receive(&self) -> bool {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match send(self.0.as_raw_fd(), &[], flags) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => false,
            Err(_) => true,
        }
    }
}

/// Closes a connection, if it is still open. It does not keep the socket open.
#[derive(Debug, Clone)]
pub struct Closer(Weak<UnixStream>);

impl Closer {
    /// Whether the connection is still in use.
    pub fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Shuts it down at once, in both directions; pending reads and writes end.
    pub fn close(&self) {
        if let Some(socket) = self.0.upgrade() {
            // Fails if it is closed already.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_is_seen() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(b"question").await.unwrap();
        let mut text = [0; 8];
        ours.read_exact(&mut text).await.unwrap();
        ours.write_all(b"answer").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        assert_eq!((&text, answer.as_str()), (b"question", "answer"));
        drop(theirs);
        assert_eq!(ours.read(&mut text).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_peer_that_closes_has_left() {
        let (ours, theirs) = pair();
        let watch = ours.watch();
        let (left, ()) = tokio::join!(timeout(LONG, watch.closed()), async { drop(theirs) });
        left.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_says_something_and_closes_has_left() {
        let (ours, mut theirs) = pair();
        theirs.write_all(b"bye").await.unwrap();
        drop(theirs);
        timeout(LONG, ours.watch().closed()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_only_ends_its_side_is_still_there() {
        let (ours, mut theirs) = pair();
        theirs.write_all(b"last word").await.unwrap();
        theirs.shutdown().await.unwrap();
        let watch = ours.watch();
        timeout(LONG, watch.closed()).await.unwrap_err();
        drop(theirs);
        timeout(LONG, watch.closed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_is_closed_from_elsewhere() {
        let (mut ours, mut theirs) = pair();
        let closer = ours.closer();
        let read = async { ours.read(&mut [0]).await.unwrap() };
        let close = async { closer.close() };
        assert_eq!(tokio::join!(read, close).0, 0);
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        drop(ours);
        closer.close();
    }
}

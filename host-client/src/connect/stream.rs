//! A connection over any kind of socket, with or without TLS.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_vsock::VsockStream;
use vsock_agent_transport::http::ALPN_HTTP2;

use super::Version;
use crate::tls;

use crate::counters::Tally;

/// A connected socket.
///
/// It is never closed in one direction only: the monitors' proxies turn that into a full close, and
/// data from the guest would be lost. Shutting it down flushes it; dropping it closes it.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Either<VsockStream, UnixStream>,
    tally: Arc<Tally>,
}

impl Socket {
    pub(super) fn new(stream: Either<VsockStream, UnixStream>, tally: &Arc<Tally>) -> Self {
        tally.opened();
        Self {
            stream,
            tally: Arc::clone(tally),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.tally.closed();
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.tally.received(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buffer);
        if let Poll::Ready(Ok(bytes)) = &written {
            self.tally.sent(*bytes);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// A connection to an agent, as bytes, or a stream of its HTTP/2 connection.
///
/// `shutdown` ends the direction to the agent of a stream. A connection of its own is not closed in one
/// direction: drop it to close it.
#[derive(Debug)]
pub struct AgentStream {
    /// Bytes that the agent sent right after the reply that upgraded the connection, to be read first.
    pub(crate) early: Bytes,
    /// The alert by which the agent refused this identity. HTTP/2 keeps only the text of an error.
    alert: Arc<OnceLock<String>>,
    /// What the caller without TLS asked for, and TLS agreed on.
    version: Version,
    socket: Transport,
}

/// What an agent's bytes go over.
#[derive(Debug)]
enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
    /// A stream of an HTTP/2 connection. Its directions are closed one by one.
    Stream(Box<dyn Duplex>),
}

/// Both directions of a stream.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin + fmt::Debug {}

impl Transport {
    fn reader(&mut self) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        match self {
            Self::Plain(socket) => Pin::new(socket),
            Self::Tls(stream) => Pin::new(stream),
            Self::Stream(stream) => Pin::new(stream),
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self {
            Self::Plain(socket) => Pin::new(socket),
            Self::Tls(stream) => Pin::new(stream),
            Self::Stream(stream) => Pin::new(stream),
        }
    }
}

impl AgentStream {
    pub(super) fn plain(socket: Socket, version: Version) -> Self {
        Self {
            early: Bytes::new(),
            alert: Arc::default(),
            version,
            socket: Transport::Plain(socket),
        }
    }

    pub(super) fn tls(stream: TlsStream<Socket>) -> Self {
        let version = match stream.get_ref().1.alpn_protocol() {
            Some(ALPN_HTTP2) => Version::Http2,
            _ => Version::Http1,
        };
        Self {
            early: Bytes::new(),
            alert: Arc::default(),
            version,
            socket: Transport::Tls(Box::new(stream)),
        }
    }

    /// A stream of an HTTP/2 connection.
    pub(crate) fn stream(stream: Box<dyn Duplex>) -> Self {
        Self {
            early: Bytes::new(),
            alert: Arc::default(),
            version: Version::Http1,
            socket: Transport::Stream(stream),
        }
    }

    /// Whether HTTP/2 is to be spoken on it.
    pub(crate) fn is_http2(&self) -> bool {
        self.version == Version::Http2
    }

    /// The alert by which the agent refuses this identity, once it is received.
    pub(crate) fn alert(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.alert)
    }

    fn note_alert(&self, error: &io::Error) {
        if tls::is_identity_alert(error) {
            let _ = self.alert.set(error.to_string());
        }
    }

    /// The reason of a failed write, which may still have to be read: an agent that refuses our
    /// certificate sends an alert and closes the connection, perhaps while we write.
    fn write_error(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        let Transport::Tls(stream) = &mut self.socket else {
            return error;
        };
        let mut scratch = [0; 1];
        match Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut scratch)) {
            Poll::Ready(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => {
                self.note_alert(&reason);
                reason
            }
            _ => error,
        }
    }
}

#[cfg(test)]
impl From<UnixStream> for AgentStream {
    fn from(socket: UnixStream) -> Self {
        Self::plain(
            Socket::new(Either::Right(socket), &Arc::default()),
            Version::Http1,
        )
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            let read = ready!(self.socket.reader().poll_read(cx, buffer));
            return Poll::Ready(read.inspect_err(|error| self.note_alert(error)));
        }
        let count = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.socket.writer().poll_write(cx, buffer));
        Poll::Ready(written.map_err(|error| self.write_error(cx, error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(self.socket.writer().poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| self.write_error(cx, error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.writer().poll_shutdown(cx)
    }
}

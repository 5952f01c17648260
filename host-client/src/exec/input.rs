//! Standard input: from the caller's writer to the socket `0`.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use futures_util::{Sink, SinkExt};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, DuplexStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;

use super::stream::StreamStdin;
use crate::ws;

/// Most bytes of input buffered for a command that does not read it, and in one message: one vsock
/// packet, less the frame header of the message.
const BUFFER_BYTES: usize = 64 * 1024 - 64;

/// The byte that ends the input of a terminal in canonical mode: Ctrl-D.
const TERMINAL_END: u8 = 4;

/// Time limit for closing the socket of a terminal.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Standard input of a command.
///
/// `shutdown` ends the input, and so does dropping it; with a terminal this sends Ctrl-D. A caller that
/// cannot provide the rest of the input [aborts](Self::abort) it. Writing fails with
/// [`io::ErrorKind::BrokenPipe`] when the command has closed its input.
#[derive(Debug)]
pub struct ExecStdin(To);

#[derive(Debug)]
enum To {
    /// To the task that feeds a websocket.
    Pipe {
        pipe: DuplexStream,
        aborted: CancellationToken,
    },
    /// To the frames of one stream.
    Stream(StreamStdin),
}

impl ExecStdin {
    /// Ends the input as incomplete. The agent ends the command, which sees no end of its input, and
    /// [`wait`](super::ExecSession::wait) fails with
    /// [`ClientError::IncompleteInput`](crate::ClientError::IncompleteInput).
    ///
    /// LXD's agent does not support this and treats it as the end of the input: with it, drop the
    /// session instead.
    pub fn abort(self) {
        match self.0 {
            To::Pipe { aborted, .. } => aborted.cancel(),
            To::Stream(mut stream) => stream.abort(),
        }
    }

    pub(super) const fn of_stream(stream: StreamStdin) -> Self {
        Self(To::Stream(stream))
    }
}

/// The session's end of [`ExecStdin`].
#[derive(Debug)]
pub(super) struct Input {
    pipe: DuplexStream,
    aborted: CancellationToken,
    sent: Arc<Sent>,
}

/// The amount of input that was sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    bytes: AtomicU64,
    ended: AtomicBool,
}

impl Sent {
    /// Bytes that were written to the connection.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Counts bytes that are sent.
    pub(super) fn add(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The end was sent.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// The same, if the end of the input was sent too.
    pub(super) fn all(&self) -> Option<u64> {
        self.ended.load(Ordering::Acquire).then(|| self.bytes())
    }
}

impl AsyncWrite for ExecStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            To::Pipe { pipe, .. } => Pin::new(pipe).poll_write(cx, buffer),
            To::Stream(stream) => stream.poll_write(cx, buffer),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            To::Pipe { pipe, .. } => Pin::new(pipe).poll_flush(cx),
            To::Stream(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            To::Pipe { pipe, .. } => Pin::new(pipe).poll_shutdown(cx),
            To::Stream(stream) => {
                stream.end();
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// A writer, and the session's end of its pipe.
pub(super) fn pipe() -> (ExecStdin, Input, Arc<Sent>) {
    let (pipe, ours) = tokio::io::duplex(BUFFER_BYTES);
    let (aborted, sent) = (CancellationToken::new(), Arc::<Sent>::default());
    let input = Input {
        pipe: ours,
        aborted: aborted.clone(),
        sent: Arc::clone(&sent),
    };
    (ExecStdin(To::Pipe { pipe, aborted }), input, sent)
}

/// Sends `input` and its end, until `finished`.
///
/// With a terminal the socket is closed at the end: LXD's agent waits for that.
pub(super) async fn feed<S>(
    mut input: Input,
    mut socket: S,
    terminal: bool,
    finished: CancellationToken,
) where
    S: Sink<Message> + Unpin,
{
    let feeding = async {
        let mut buffer = BytesMut::new();
        let mut line_is_open = false;
        loop {
            buffer.reserve(BUFFER_BYTES);
            let read = tokio::select! {
                biased;
                () = input.aborted.cancelled() => {
                    let _ = socket.send(aborted()).await;
                    return;
                }
                read = input.pipe.read_buf(&mut buffer) => read,
            };
            match read {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    line_is_open = leaves_line_open(&buffer);
                    let message = Message::Binary(buffer.split().freeze());
                    if socket.send(message).await.is_err() {
                        return;
                    }
                    input.sent.add(length);
                }
            }
        }
        let end = if terminal {
            Message::binary(end_of_input(line_is_open))
        } else {
            ws::end_of_stream()
        };
        if socket.send(end).await.is_ok() {
            input.sent.end();
        }
        // The socket stays open: closing it early could overtake the end of the input in a proxy, and
        // would end a terminal.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = feeding => {}
        () = finished.cancelled() => {}
    }
    drop(input);
    if terminal {
        // A partly sent message does not matter: the command has ended.
        let _ = timeout(CLOSE_TIMEOUT, socket.close()).await;
    }
}

/// Whether the input of a terminal that ends with `data` is within a line.
pub(super) fn leaves_line_open(data: &[u8]) -> bool {
    !data.ends_with(b"\n") && !data.ends_with(b"\r") && !data.ends_with(&[TERMINAL_END])
}

/// Largest number of bytes that end the input of a terminal.
pub(super) const MAX_END_BYTES: u32 = 2;

/// The bytes that end the input of a terminal. In a partial line, the first Ctrl-D only passes on that
/// line (`VEOF` in termios(3)).
pub(super) fn end_of_input(line_is_open: bool) -> Vec<u8> {
    vec![TERMINAL_END; if line_is_open { 2 } else { 1 }]
}

/// Closes the websocket with an error code (1011, RFC 6455, section 7.4.1).
fn aborted() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Error,
        reason: "the input cannot be read".into(),
    }))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use futures_util::sink;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// The bytes sent to a terminal when `typed` is all of the input.
    async fn fed(typed: &[u8]) -> Vec<u8> {
        let (mut stdin, input, sent) = pipe();
        stdin.write_all(typed).await.unwrap();
        drop(stdin);
        let messages = Mutex::new(Vec::new());
        let socket = Box::pin(sink::unfold((), async |(), message: Message| {
            messages.lock().unwrap().extend(message.into_data());
            Ok::<(), Infallible>(())
        }));
        let finished = CancellationToken::new();
        let stop = async {
            while sent.all().is_none() {
                tokio::task::yield_now().await;
            }
            finished.cancel();
        };
        tokio::join!(feed(input, socket, true, finished.clone()), stop);
        assert_eq!(sent.bytes(), typed.len() as u64);
        messages.into_inner().unwrap()
    }

    #[tokio::test]
    async fn the_end_of_a_terminals_input_ends_a_partial_line_first() {
        assert_eq!(fed(b"abc").await, b"abc\x04\x04");
        assert_eq!(fed(b"abc\n").await, b"abc\n\x04");
        assert_eq!(fed(b"abc\r").await, b"abc\r\x04");
        assert_eq!(fed(b"").await, b"\x04");
    }
}

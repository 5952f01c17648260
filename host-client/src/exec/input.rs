//! Standard input: from the caller's writer to socket `0`.

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

use crate::ws;

/// Bytes of input held for a command that does not read it yet, and at most in one message: one
/// vsock packet less the head of the message, so that both fit in one.
const BUFFER_BYTES: usize = 64 * 1024 - 64;

/// The byte by which a terminal in its usual mode is told that there is no more input: Ctrl-D.
const TERMINAL_END: u8 = 4;

/// How long the socket of a terminal may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Standard input of a command.
///
/// `shutdown` ends the input, and so does dropping it; with a terminal that types Ctrl-D. Who cannot
/// read what was to be the input [aborts](Self::abort) it. Writing fails with
/// [`io::ErrorKind::BrokenPipe`] once the command takes no more.
#[derive(Debug)]
pub struct ExecStdin {
    pipe: DuplexStream,
    aborted: CancellationToken,
}

impl ExecStdin {
    /// Says that there is more input, and that it will not come. The agent ends the command, which
    /// sees no end of its input, and [`wait`](super::ExecSession::wait) fails with
    /// [`ClientError::IncompleteInput`](crate::ClientError::IncompleteInput).
    ///
    /// LXD's agents know no such thing and take it for the end of the input: with them, drop the
    /// session.
    pub fn abort(self) {
        self.aborted.cancel();
    }
}

/// The end of [`ExecStdin`] that the session reads.
#[derive(Debug)]
pub(super) struct Input {
    pipe: DuplexStream,
    aborted: CancellationToken,
    sent: Arc<Sent>,
}

/// How much of the input was sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    bytes: AtomicU64,
    ended: AtomicBool,
}

impl Sent {
    /// Bytes that were handed to the connection.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// The same, if they are the whole input, whose end was sent too.
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
        Pin::new(&mut self.pipe).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// A writer, and the end of its pipe that the session reads.
pub(super) fn pipe() -> (ExecStdin, Input, Arc<Sent>) {
    let (pipe, ours) = tokio::io::duplex(BUFFER_BYTES);
    let (aborted, sent) = (CancellationToken::new(), Arc::<Sent>::default());
    let input = Input {
        pipe: ours,
        aborted: aborted.clone(),
        sent: Arc::clone(&sent),
    };
    (ExecStdin { pipe, aborted }, input, sent)
}

/// Sends what comes out of `input`, and its end, until `finished`.
///
/// With a terminal the socket is closed at the end: LXD's agents wait for that.
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
                    line_is_open = !buffer.ends_with(b"\n")
                        && !buffer.ends_with(b"\r")
                        && !buffer.ends_with(&[TERMINAL_END]);
                    let message = Message::Binary(buffer.split().freeze());
                    if socket.send(message).await.is_err() {
                        return;
                    }
                    let length = u64::try_from(length).unwrap_or(u64::MAX);
                    input.sent.bytes.fetch_add(length, Ordering::AcqRel);
                }
            }
        }
        let end = if terminal {
            Message::binary(end_of_typing(line_is_open))
        } else {
            ws::end_of_stream()
        };
        if socket.send(end).await.is_ok() {
            input.sent.ended.store(true, Ordering::Release);
        }
        // The socket stays open: closing it early could overtake the end on its way through a
        // proxy, and would end a terminal.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = feeding => {}
        () = finished.cancelled() => {}
    }
    drop(input);
    if terminal {
        // A message cut off half way has no meaning any more: the command is over.
        let _ = timeout(CLOSE_TIMEOUT, socket.close()).await;
    }
}

/// What tells a terminal that there is no more input. In a line that has begun, the first Ctrl-D
/// only hands over what was typed of it (`VEOF` in termios(3)).
fn end_of_typing(line_is_open: bool) -> Vec<u8> {
    vec![TERMINAL_END; if line_is_open { 2 } else { 1 }]
}

/// Closes the websocket as somebody does who cannot go on (RFC 6455, section 7.4.1).
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

    /// What a terminal is told when `typed` is all of the input.
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
    async fn the_end_of_typing_ends_a_line_that_has_begun_first() {
        assert_eq!(fed(b"abc").await, b"abc\x04\x04");
        assert_eq!(fed(b"abc\n").await, b"abc\n\x04");
        assert_eq!(fed(b"abc\r").await, b"abc\r\x04");
        assert_eq!(fed(b"").await, b"\x04");
    }
}

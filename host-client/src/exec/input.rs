//! Standard input: from the caller's writer to socket `0`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use futures_util::{Sink, SinkExt};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, DuplexStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;
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
/// `shutdown` ends the input, and so does dropping it; with a terminal that types Ctrl-D. Writing
/// fails with [`io::ErrorKind::BrokenPipe`] once the command takes no more.
#[derive(Debug)]
pub struct ExecStdin {
    pipe: DuplexStream,
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
pub(super) fn pipe() -> (ExecStdin, DuplexStream) {
    let (pipe, ours) = tokio::io::duplex(BUFFER_BYTES);
    (ExecStdin { pipe }, ours)
}

/// Sends what comes out of `pipe`, and its end, until `finished`.
///
/// With a terminal the socket is closed at the end: LXD's agents wait for that.
pub(super) async fn feed<S>(
    mut pipe: DuplexStream,
    mut socket: S,
    terminal: bool,
    finished: CancellationToken,
) where
    S: Sink<Message> + Unpin,
{
    let feeding = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BUFFER_BYTES);
            match pipe.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    let message = Message::Binary(buffer.split().freeze());
                    if socket.send(message).await.is_err() {
                        return;
                    }
                }
            }
        }
        let end = match terminal {
            true => Message::Binary(vec![TERMINAL_END].into()),
            false => ws::end_of_stream(),
        };
        let _ = socket.send(end).await;
        // The socket stays open: closing it early could overtake the end on its way through a
        // proxy, and would end a terminal.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = feeding => {}
        () = finished.cancelled() => {}
    }
    drop(pipe);
    if terminal {
        // A message cut off half way has no meaning any more: the command is over.
        let _ = timeout(CLOSE_TIMEOUT, socket.close()).await;
    }
}

//! One direction of one stream: from the command to a socket, or from a socket to the command.

use std::{cell::RefCell, future::Future, io, sync::Arc};

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    select,
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{
    Error as WsError, Message, Utf8Bytes,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;

use super::{pty::Pty, session::InputLost};
use crate::defaults;

/// Capacity of a pipe or terminal at most, in bytes: what a command may have written and the
/// agent not read when the command ends (`/proc/sys/fs/pipe-max-size`).
const MAX_BACKLOG_BYTES: u64 = 1024 * 1024;

thread_local! {
    /// What is read goes through here, so that an idle stream holds no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; defaults::MAX_OUTPUT_BYTES]);
}

/// Where output comes from.
pub(super) trait Source: Send {
    /// Waits until there is something, or the end. May be wrong; safe to drop.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Takes what is there. Zero is the end; `WouldBlock` means that there is nothing yet.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Source for pipe::Receiver {
    async fn readable(&self) -> io::Result<()> {
        Self::readable(self).await
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::try_read(self, buffer)
    }
}

impl Source for Arc<Pty> {
    async fn readable(&self) -> io::Result<()> {
        Pty::readable(self).await
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Pty::try_read(self, buffer)
    }
}

/// Where input goes.
pub(super) trait Target: Send {
    fn deliver(&mut self, data: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

impl Target for pipe::Sender {
    async fn deliver(&mut self, data: &[u8]) -> io::Result<()> {
        AsyncWriteExt::write_all(self, data).await
    }
}

impl Target for Arc<Pty> {
    async fn deliver(&mut self, data: &[u8]) -> io::Result<()> {
        Pty::write_all(self, data).await
    }
}

/// What became of an output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pumped {
    /// Bytes sent.
    pub(super) bytes: u64,
    /// Why it sends no more.
    pub(super) end: StreamEnd,
}

/// Why an output stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// Nobody can write to it any more.
    Complete,
    /// The command has ended, and something that it left behind can still write.
    Held,
    /// The client has closed its socket, or is gone.
    ClientLeft,
}

/// Whether output gets anywhere. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<Notify>);

impl Progress {
    /// Resolves when nothing was sent for [`defaults::STALL_TIMEOUT`].
    pub(super) async fn stalled(&self) {
        while timeout(defaults::STALL_TIMEOUT, self.0.notified())
            .await
            .is_ok()
        {}
    }
}

/// Sends what the command writes, until the end of the stream. The caller tells the client of the
/// end, with [`end_output`], and closes the stream or not.
///
/// After `exited`, a stream that something else still holds ends too: what the command itself had
/// written is sent, then the stream ends when it is quiet for [`defaults::DRAIN_QUIET`], at the
/// latest after [`defaults::DRAIN_TIMEOUT`].
pub(super) async fn pump_output<S, W>(
    source: &S,
    socket: &mut W,
    exited: &CancellationToken,
    client_left: &CancellationToken,
    progress: &Progress,
) -> Pumped
where
    S: Source,
    W: Sink<Message, Error = WsError> + Unpin + Send,
{
    let mut bytes = 0;
    let mut drain = None;
    let end = loop {
        match take(source) {
            Ok(data) if data.is_empty() => break StreamEnd::Complete,
            Ok(data) => {
                if Drain::is_over(&mut drain, exited, data.len()) {
                    break StreamEnd::Held;
                }
                let length = data.len();
                if socket.send(Message::binary(data)).await.is_err() {
                    break StreamEnd::ClientLeft;
                }
                bytes += length as u64;
                progress.0.notify_one();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let waited = select! {
                    ready = source.readable() => ready.map_err(|_| StreamEnd::Complete),
                    () = client_left.cancelled() => Err(StreamEnd::ClientLeft),
                    () = Drain::quiet(&mut drain, exited) => Err(StreamEnd::Held),
                };
                if let Some(drain) = &mut drain {
                    drain.caught_up = true;
                }
                if let Err(end) = waited {
                    break end;
                }
            }
            // A terminal or pipe that cannot be read any more has nothing more to say.
            Err(_) => break StreamEnd::Complete,
        }
    };
    Pumped { bytes, end }
}

/// Tells the client that an output stream has ended. A client that has left needs no telling.
pub(super) async fn end_output<W>(socket: &mut W, end: StreamEnd)
where
    W: Sink<Message, Error = WsError> + Unpin + Send,
{
    if end != StreamEnd::ClientLeft {
        let _ = socket.send(Message::text("")).await;
    }
}

/// The time after the command's end, in which only what it left behind can still write.
#[derive(Debug, Clone, Copy)]
struct Drain {
    deadline: Instant,
    /// Bytes read since. What the command itself had written is within the first
    /// [`MAX_BACKLOG_BYTES`], and no deadline cuts it off, however slow the client is.
    bytes: u64,
    /// Whether all of what the command had written is read.
    caught_up: bool,
}

impl Drain {
    fn start() -> Self {
        let deadline = Instant::now() + defaults::DRAIN_TIMEOUT;
        Self {
            deadline,
            bytes: 0,
            caught_up: false,
        }
    }

    /// Whether what was just read, `length` bytes, is not to be sent any more.
    fn is_over(drain: &mut Option<Self>, exited: &CancellationToken, length: usize) -> bool {
        if drain.is_none() && exited.is_cancelled() {
            *drain = Some(Self::start());
        }
        drain.as_mut().is_some_and(|drain| {
            let own = !drain.caught_up && drain.bytes < MAX_BACKLOG_BYTES;
            drain.bytes += length as u64;
            !own && Instant::now() >= drain.deadline
        })
    }

    /// Resolves when there was nothing to read for long enough after the command's end.
    async fn quiet(drain: &mut Option<Self>, exited: &CancellationToken) {
        exited.cancelled().await;
        let drain = drain.get_or_insert_with(Self::start);
        let wait = Instant::now() + defaults::DRAIN_QUIET;
        if drain.caught_up {
            sleep_until(wait.min(drain.deadline)).await;
        } else {
            // The first time: a slow client may have used up the deadline.
            sleep_until(wait).await;
        }
    }
}

/// Reads what is there, and discards it; false at the end of the stream.
pub(super) fn discard(source: &impl Source) -> bool {
    match SCRATCH.with_borrow_mut(|scratch| source.try_read(scratch)) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Takes what is there, in a piece of memory of its own size.
fn take(source: &impl Source) -> io::Result<Bytes> {
    SCRATCH.with_borrow_mut(|scratch| {
        let length = source.try_read(scratch)?;
        Ok(Bytes::copy_from_slice(&scratch[..length]))
    })
}

/// What became of the input of a command.
#[derive(Debug)]
pub(super) struct Fed {
    /// Bytes the command was given.
    pub(super) bytes: u64,
    /// Why it gets no more.
    pub(super) end: InputEnd,
}

impl Fed {
    /// What was lost, if the input came to no end.
    pub(super) fn lost(self) -> Result<Self, InputLost> {
        match self.end {
            InputEnd::Lost(reason) => Err(InputLost {
                after: self.bytes,
                reason,
            }),
            _ => Ok(self),
        }
    }
}

/// How the input of a command ended.
#[derive(Debug)]
pub(super) enum InputEnd {
    /// The client said so, with a text message or by closing the websocket.
    Client,
    /// The command reads no more.
    Command,
    /// It was told to stop.
    Stopped,
    /// The connection was lost, or something came on it that is no websocket's: more may have been
    /// meant to come.
    Lost(Loss),
}

/// How the input broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Loss {
    /// The connection was lost, or what came on it is no websocket.
    #[error("{0}")]
    Broken(#[source] WsError),
    /// The client closed the websocket, with a code that says that something went wrong.
    #[error("{0} {1}")]
    Closed(CloseCode, Utf8Bytes),
    /// What the command wrote cannot be sent on the same connection.
    #[error("its connection takes no output")]
    Unsendable,
}

/// Whether a websocket is closed as it should be: 1000, 1001 or without a code (RFC 6455, section
/// 7.4.1).
fn is_orderly(code: CloseCode) -> bool {
    matches!(
        code,
        CloseCode::Normal | CloseCode::Away | CloseCode::Status
    )
}

/// Hands what the client sends to the command, until a text message, the end of the socket, or
/// `stop`. The caller decides when the command sees the end.
pub(super) async fn pump_input<T, R>(
    socket: &mut R,
    target: &mut T,
    stop: &CancellationToken,
) -> Fed
where
    T: Target,
    R: Stream<Item = Result<Message, WsError>> + Unpin + Send,
{
    let mut bytes = 0;
    let end = loop {
        let message = select! {
            message = socket.next() => message,
            () = stop.cancelled() => break InputEnd::Stopped,
        };
        match message {
            Some(Ok(Message::Binary(data))) => {
                let written = select! {
                    written = target.deliver(&data) => written,
                    () = stop.cancelled() => break InputEnd::Stopped,
                };
                if written.is_err() {
                    break InputEnd::Command;
                }
                bytes += data.len() as u64;
            }
            Some(Ok(Message::Text(_))) => break InputEnd::Client,
            // Who closes the websocket has said that there is no more, unless something went wrong.
            Some(Ok(Message::Close(close))) => {
                break match close {
                    Some(CloseFrame { code, reason }) if !is_orderly(code) => {
                        InputEnd::Lost(Loss::Closed(code, reason))
                    }
                    _ => InputEnd::Client,
                };
            }
            Some(Err(error)) => break InputEnd::Lost(Loss::Broken(error)),
            None => break InputEnd::Lost(Loss::Broken(WsError::ConnectionClosed)),
            // Pings are answered by tungstenite.
            Some(Ok(_)) => {}
        }
    };
    Fed { bytes, end }
}

/// Resolves when the client has closed the socket. What it sends until then means nothing.
pub(super) async fn closed<R>(socket: &mut R)
where
    R: Stream<Item = Result<Message, WsError>> + Unpin + Send,
{
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
        time::Duration,
    };

    use tokio::time::sleep;

    use super::*;

    /// A socket that keeps what it is sent.
    #[derive(Default)]
    struct Sent(Vec<Message>);

    impl Sink<Message> for Sent {
        type Error = WsError;

        fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), WsError>> {
            Poll::Ready(Ok(()))
        }

        fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), WsError> {
            self.0.push(message);
            Ok(())
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), WsError>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), WsError>> {
            Poll::Ready(Ok(()))
        }
    }

    fn no_tokens() -> (CancellationToken, CancellationToken) {
        (CancellationToken::new(), CancellationToken::new())
    }

    #[tokio::test]
    async fn output_ends_with_an_empty_text() -> Result<(), Infallible> {
        let (mut writer, reader) = pipe::pipe().unwrap();
        writer.write_all(b"hello").await.unwrap();
        drop(writer);
        let (exited, left) = no_tokens();
        let mut sent = Sent::default();
        let pumped = pump_output(&reader, &mut sent, &exited, &left, &Progress::default()).await;
        assert_eq!(
            pumped,
            Pumped {
                bytes: 5,
                end: StreamEnd::Complete
            }
        );
        end_output(&mut sent, pumped.end).await;
        assert_eq!(sent.0, [Message::binary(&b"hello"[..]), Message::text("")]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_moves_however_slowly_is_not_stalled() {
        let progress = Progress::default();
        let start = Instant::now();
        let slow = async {
            for _ in 0..10 {
                sleep(defaults::STALL_TIMEOUT - Duration::from_secs(1)).await;
                progress.0.notify_one();
            }
            start.elapsed()
        };
        let ((), moved) = tokio::join!(progress.stalled(), slow);
        assert!(start.elapsed() >= moved + defaults::STALL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_something_else_holds_ends_when_it_is_quiet() {
        let (mut writer, reader) = pipe::pipe().unwrap();
        writer.write_all(b"hello").await.unwrap();
        let (exited, left) = no_tokens();
        exited.cancel();
        let start = Instant::now();
        let mut sent = Sent::default();
        let pumped = pump_output(&reader, &mut sent, &exited, &left, &Progress::default()).await;
        assert_eq!(
            pumped,
            Pumped {
                bytes: 5,
                end: StreamEnd::Held
            }
        );
        assert_eq!(start.elapsed().as_secs(), defaults::DRAIN_QUIET.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_never_quiet_ends_after_its_time() {
        let (mut writer, reader) = pipe::pipe().unwrap();
        let (exited, left) = no_tokens();
        exited.cancel();
        let chatter = async {
            loop {
                if writer.write_all(b"x").await.is_err() {
                    break;
                }
                tokio::time::sleep(defaults::DRAIN_QUIET / 2).await;
            }
        };
        let start = Instant::now();
        let mut sent = Sent::default();
        let pump = async move {
            pump_output(&reader, &mut sent, &exited, &left, &Progress::default()).await
        };
        let (pumped, ()) = tokio::join!(pump, chatter);
        assert_eq!(pumped.end, StreamEnd::Held);
        assert!(start.elapsed() <= defaults::DRAIN_TIMEOUT + defaults::DRAIN_QUIET);
    }
}

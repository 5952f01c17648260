//! Output: from a socket to the caller's reader. Counts the bytes, and distinguishes the end of the
//! stream from a lost connection.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;
use vsock_agent_transport::{Piece, PieceReceiver};

use super::{reported_end::ReportedEnd, stream::Credit};

/// Length of the queue to the reader, in messages. The backlog before it is limited in bytes.
const QUEUE_DEPTH: usize = 2;

/// Most bytes buffered for a slow reader while the command runs. Beyond that the socket is not read,
/// and eventually the command blocks.
const MAX_BACKLOG_BYTES: usize = 256 * 1024;

/// Most bytes buffered for a slow reader after the command has ended. At most the buffers of the
/// sockets are left then, so the result does not wait for the reader.
const MAX_LAST_BACKLOG_BYTES: usize = 8 * 1024 * 1024;

/// Time limit for the next message after the command has ended.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(30);

/// Standard output or standard error of a command, or both if it has a terminal.
///
/// The end of the file means that the command closed its output, or could not be started. If the
/// connection is lost before, or the agent stops answering, reading fails with
/// [`io::ErrorKind::UnexpectedEof`]. Dropping the reader discards the rest of the output, without an
/// effect on the command.
#[derive(Debug)]
pub struct ExecReader {
    queue: Queue,
    current: Bytes,
    stream_end: Arc<OnceLock<StreamEnd>>,
}

/// Where a reader gets its bytes.
#[derive(Debug)]
enum Queue {
    /// From a task that receives from a websocket.
    Task {
        queue: mpsc::Receiver<Bytes>,
        /// The task, shared with the session.
        _task: Arc<JoinSet<()>>,
    },
    /// From the frames of one stream, bounded by the window that the credit keeps open.
    Frames {
        queue: PieceReceiver<()>,
        credit: Credit,
    },
}

impl Queue {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self {
            Self::Task { queue, .. } => queue.poll_recv(cx),
            Self::Frames { queue, credit } => Poll::Ready(match ready!(queue.poll_next(cx)) {
                Some(Piece::Data(bytes)) => {
                    credit.take(bytes.len());
                    Some(bytes)
                }
                Some(Piece::End(())) | None => None,
            }),
        }
    }
}

impl Drop for Queue {
    /// Grants what is not read, so that the rest of the output can be discarded.
    fn drop(&mut self) {
        if let Self::Frames { queue, credit } = self {
            credit.take(queue.close());
            credit.grant();
        }
    }
}

impl ExecReader {
    /// The reader of an output whose frames are put into `queue`.
    pub(super) const fn of_stream(
        queue: PieceReceiver<()>,
        stream_end: Arc<OnceLock<StreamEnd>>,
        credit: Credit,
    ) -> Self {
        Self {
            queue: Queue::Frames { queue, credit },
            current: Bytes::new(),
            stream_end,
        }
    }
}

impl ExecReader {
    /// The next bytes as they arrived; `None` at the end of the file. Cancel safe.
    pub(super) async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if !self.current.is_empty() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        match poll_fn(|cx| self.queue.poll_recv(cx)).await {
            Some(bytes) => Ok(Some(bytes)),
            None => self.end().map(|()| None),
        }
    }

    /// How the stream ended, after everything was read.
    fn end(&self) -> io::Result<()> {
        match self.stream_end.get() {
            Some(StreamEnd::Complete { .. }) => Ok(()),
            Some(StreamEnd::Broken { .. }) | None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection was lost before the end of the output",
            )),
        }
    }
}

impl AsyncRead for ExecReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.current.is_empty() {
            match ready!(this.queue.poll_recv(cx)) {
                Some(bytes) => this.current = bytes,
                None => return Poll::Ready(this.end()),
            }
        }
        let count = this.current.len().min(buffer.remaining());
        buffer.put_slice(&this.current[..count]);
        this.current.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// How an output stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// With its end marker.
    Complete {
        /// Bytes received before it.
        received: u64,
    },
    /// Without one.
    Broken {
        /// Bytes received before.
        received: u64,
        /// How the connection ended.
        reason: String,
    },
}

/// An output stream and the task that receives it.
#[derive(Debug)]
pub(super) struct OutputStream {
    pub(super) reader: ExecReader,
    /// Sent when the end was received, even if the caller has not read up to it.
    pub(super) end: oneshot::Receiver<StreamEnd>,
    pub(super) task: Arc<JoinSet<()>>,
}

/// The state of a command that its streams need.
#[derive(Debug, Clone, Default)]
pub(super) struct CommandState {
    /// Cancelled when the command has ended and only the rest of its output is to come.
    pub(super) ended: CancellationToken,
    /// Cancelled when the agent has stopped answering.
    pub(super) lost: CancellationToken,
    pub(super) reported: ReportedEnd,
}

/// Starts a task that receives from `socket`, whose number is `name`.
pub(super) fn start<S>(socket: S, name: &'static str, state: &CommandState) -> OutputStream
where
    S: Stream<Item = Result<Message, WsError>> + Send + Unpin + 'static,
{
    let (sender, queue) = mpsc::channel(QUEUE_DEPTH);
    let (end_sender, end) = oneshot::channel();
    let stream_end = Arc::new(OnceLock::new());
    let mut receiver = Receiver {
        socket,
        sender,
        ended: state.ended.clone(),
        backlog: Backlog::default(),
        reader_gone: false,
        received: 0,
    };
    let reader_end = Arc::clone(&stream_end);
    let CommandState { lost, reported, .. } = state.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let received = lost.run_until_cancelled(receiver.receive()).await;
        let outcome = received.unwrap_or_else(|| StreamEnd::Broken {
            received: receiver.received,
            reason: "the agent does not answer any more".to_owned(),
        });
        // Fails if the session is gone.
        let _ = end_sender.send(outcome.clone());
        let sender = receiver.deliver_rest().await;
        let outcome = match outcome {
            StreamEnd::Broken { received, .. } if reported.covers(name, received).await => {
                StreamEnd::Complete { received }
            }
            other => other,
        };
        let _ = reader_end.set(outcome);
        // The closed queue makes the reader use the end.
        drop(sender);
    });
    let task = Arc::new(task);
    OutputStream {
        reader: ExecReader {
            queue: Queue::Task {
                queue,
                _task: Arc::clone(&task),
            },
            current: Bytes::new(),
            stream_end,
        },
        end,
        task,
    }
}

#[derive(Debug)]
struct Receiver<S> {
    socket: S,
    sender: mpsc::Sender<Bytes>,
    ended: CancellationToken,
    backlog: Backlog,
    reader_gone: bool,
    received: u64,
}

/// One step of a stream.
#[derive(Debug)]
enum Step {
    Delivered,
    ReaderGone,
    Received(Option<Result<Message, WsError>>),
}

impl<S> Receiver<S>
where
    S: Stream<Item = Result<Message, WsError>> + Unpin,
{
    /// Receives until the end, and passes messages on to the reader.
    async fn receive(&mut self) -> StreamEnd {
        loop {
            let ended = self.ended.is_cancelled();
            let limit = if ended {
                MAX_LAST_BACKLOG_BYTES
            } else {
                MAX_BACKLOG_BYTES
            };
            let step = tokio::select! {
                biased;
                permit = self.sender.reserve(), if !self.backlog.is_empty() => match permit {
                    Ok(permit) => {
                        permit.send(self.backlog.pop());
                        Step::Delivered
                    }
                    Err(_) => Step::ReaderGone,
                },
                message = next(&mut self.socket, ended), if self.backlog.bytes < limit => {
                    Step::Received(message)
                }
                // The limit has changed.
                () = self.ended.cancelled(), if !ended => Step::Delivered,
            };
            match step {
                Step::Delivered => {}
                Step::ReaderGone => {
                    self.reader_gone = true;
                    self.backlog = Backlog::default();
                }
                Step::Received(message) => {
                    if let Some(end) = self.accept(message) {
                        return end;
                    }
                }
            }
        }
    }

    /// Handles one message. `Some` if it ends the stream.
    fn accept(&mut self, message: Option<Result<Message, WsError>>) -> Option<StreamEnd> {
        let broken = |received, reason: &str| {
            Some(StreamEnd::Broken {
                received,
                reason: reason.to_owned(),
            })
        };
        match message {
            Some(Ok(Message::Binary(data))) => {
                self.received += u64::try_from(data.len()).unwrap_or(u64::MAX);
                if !self.reader_gone && !data.is_empty() {
                    self.backlog.push(data);
                }
                None
            }
            Some(Ok(Message::Text(_))) => Some(StreamEnd::Complete {
                received: self.received,
            }),
            Some(Ok(Message::Close(_))) => broken(self.received, "the agent closed the stream"),
            Some(Ok(_)) => None,
            Some(Err(error)) => broken(self.received, &error.to_string()),
            None => broken(self.received, "the connection closed"),
        }
    }

    /// Passes the backlog on to the reader, and returns the queue. Drops the socket first: with a
    /// terminal the agent waits until it is closed.
    async fn deliver_rest(self) -> mpsc::Sender<Bytes> {
        let Self {
            socket,
            sender,
            mut backlog,
            ..
        } = self;
        drop(socket);
        while !backlog.is_empty() && sender.send(backlog.pop()).await.is_ok() {}
        sender
    }
}

/// The next message. After the end of the command there is a time limit.
async fn next<S>(socket: &mut S, ended: bool) -> Option<Result<Message, WsError>>
where
    S: Stream<Item = Result<Message, WsError>> + Unpin,
{
    if !ended {
        return socket.next().await;
    }
    match timeout(LAST_OUTPUT_TIMEOUT, socket.next()).await {
        Ok(message) => message,
        Err(_) => Some(Err(WsError::Io(io::ErrorKind::TimedOut.into()))),
    }
}

#[derive(Debug, Default)]
struct Backlog {
    messages: VecDeque<Bytes>,
    bytes: usize,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn push(&mut self, message: Bytes) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    fn pop(&mut self) -> Bytes {
        let message = self.messages.pop_front().unwrap_or_default();
        self.bytes -= message.len();
        message
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::json;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::protocol::exec::STDOUT;

    fn data(byte: u8, bytes: usize) -> Result<Message, WsError> {
        Ok(Message::Binary(vec![byte; bytes].into()))
    }

    fn end() -> Result<Message, WsError> {
        Ok(Message::text(""))
    }

    #[tokio::test]
    async fn output_is_read_and_counted() {
        let socket = stream::iter([data(1, 3), data(2, 0), data(3, 2), end()]);
        let mut output = start(socket, STDOUT, &CommandState::default());
        let mut bytes = Vec::new();
        output.reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, [1, 1, 1, 3, 3]);
        assert_eq!(output.end.await, Ok(StreamEnd::Complete { received: 5 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_is_never_an_end_of_file() {
        let socket = stream::iter([data(1, 3)]);
        let mut output = start(socket, STDOUT, &CommandState::default());
        let mut bytes = Vec::new();
        let error = output.reader.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(bytes, [1, 1, 1]);
        assert!(matches!(
            output.end.await,
            Ok(StreamEnd::Broken { received: 3, .. })
        ));
    }

    #[tokio::test]
    async fn a_dropped_reader_discards_and_the_stream_still_ends() {
        let messages = (0..100).map(|_| data(0, 64 * 1024)).chain([end()]);
        let output = start(stream::iter(messages), STDOUT, &CommandState::default());
        drop(output.reader);
        let received = 100 * 64 * 1024;
        assert_eq!(output.end.await, Ok(StreamEnd::Complete { received }));
    }

    #[tokio::test]
    async fn a_slow_reader_blocks_the_stream_until_the_command_has_ended() {
        let sent = 4 * 1024 * 1024;
        let messages = (0..64).map(|_| data(7, 64 * 1024)).chain([end()]);
        let state = CommandState::default();
        let mut output = start(stream::iter(messages), STDOUT, &state);
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(output.end.try_recv().is_err());
        state.ended.cancel();
        assert_eq!(
            (&mut output.end).await,
            Ok(StreamEnd::Complete { received: sent })
        );
        let mut bytes = Vec::new();
        output.reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes.len(), 4 * 1024 * 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_stops_after_the_end_of_the_command_is_broken() {
        let state = CommandState::default();
        state.ended.cancel();
        let output = start(stream::pending(), STDOUT, &state);
        assert!(matches!(output.end.await, Ok(StreamEnd::Broken { .. })));
    }

    #[tokio::test]
    async fn a_silent_agent_ends_the_reading() {
        let state = CommandState::default();
        let mut output = start(stream::pending(), STDOUT, &state);
        drop(state.reported.pending());
        state.lost.cancel();
        let error = output.reader.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_stream_of_a_command_that_was_not_started_ends_cleanly() {
        for (code, metadata, is_clean) in [
            (400, json!({"return": 127}), true),
            (400, json!(null), true),
            (200, json!({"return": 0, "bytes": {"1": 3}}), true),
            (200, json!({"return": 0, "bytes": {"1": 4}}), false),
            (200, json!({"return": 0}), false),
        ] {
            let state = CommandState::default();
            let pending = state.reported.pending();
            let mut output = start(stream::iter([data(1, 3)]), STDOUT, &state);
            let mut bytes = Vec::new();
            let reading = output.reader.read_to_end(&mut bytes);
            let operation = json!({
                "id": "01234567-89ab-4cde-8f01-23456789abcd",
                "status_code": code,
                "metadata": metadata,
            });
            let reporting = async {
                tokio::task::yield_now().await;
                let operation = serde_json::from_value(operation.clone()).unwrap();
                state.reported.set(&operation);
                drop(pending);
            };
            let (read, ()) = tokio::join!(reading, reporting);
            assert_eq!(read.is_ok(), is_clean, "{operation}");
            assert_eq!(bytes, [1, 1, 1]);
        }
    }
}

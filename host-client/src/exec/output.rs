//! Output: from a socket to the caller's reader, counted, and with its end told from a break.

use std::{
    collections::VecDeque,
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

use super::verdict::Verdict;

/// Messages handed over but not read yet. What else waits is counted in bytes.
const QUEUE_DEPTH: usize = 2;

/// Bytes held for a reader that is behind while the command runs; then the agent is not read from,
/// and in the end the command waits.
const MAX_BACKLOG_BYTES: usize = 256 * 1024;

/// Bytes held for a reader that is behind when the command has ended. Everything is on its way
/// then, at most what the sockets hold, so that the result need not wait for the reader.
const MAX_LAST_BACKLOG_BYTES: usize = 8 * 1024 * 1024;

/// How long the rest of the output may be silent after the agent said that it was all sent.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(30);

/// Standard output or standard error of a command, or both if it has a terminal.
///
/// The end of the file is the command's own, or that of a command that could not be started. If
/// the connection breaks before, or the agent falls silent, reading fails with
/// [`io::ErrorKind::UnexpectedEof`]. Dropping the reader discards what is still to come; the
/// command does not notice.
#[derive(Debug)]
pub struct ExecReader {
    queue: mpsc::Receiver<Bytes>,
    current: Bytes,
    fate: Arc<OnceLock<StreamEnd>>,
    /// The task behind the queue, shared with the session.
    _taker: Arc<JoinSet<()>>,
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
                None => {
                    return Poll::Ready(match this.fate.get() {
                        Some(StreamEnd::Complete { .. }) => Ok(()),
                        Some(StreamEnd::Broken { .. }) | None => Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the connection was lost before the end of the output",
                        )),
                    });
                }
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
    /// With its own end.
    Complete {
        /// Bytes that came before it.
        received: u64,
    },
    /// With the connection.
    Broken {
        /// Bytes that came before.
        received: u64,
        /// How.
        reason: String,
    },
}

/// A stream being taken from its socket.
#[derive(Debug)]
pub(super) struct Taking {
    pub(super) reader: ExecReader,
    /// Told when the end was received, whether or not it was read.
    pub(super) end: oneshot::Receiver<StreamEnd>,
    pub(super) taker: Arc<JoinSet<()>>,
}

/// What a stream has to know of its command.
#[derive(Debug, Clone, Default)]
pub(super) struct Course {
    /// Cancelled when the command has ended, so that what comes now is the rest.
    pub(super) ended: CancellationToken,
    /// Cancelled when the agent has fallen silent.
    pub(super) lost: CancellationToken,
    pub(super) verdict: Verdict,
}

/// Starts taking messages from `socket`, whose number is `name`.
pub(super) fn take<S>(socket: S, name: &'static str, course: &Course) -> Taking
where
    S: Stream<Item = Result<Message, WsError>> + Send + Unpin + 'static,
{
    let (sender, queue) = mpsc::channel(QUEUE_DEPTH);
    let (tell, end) = oneshot::channel();
    let fate = Arc::new(OnceLock::new());
    let taker = Taker {
        socket,
        sender,
        ended: course.ended.clone(),
        backlog: Backlog::default(),
        reader_gone: false,
        received: 0,
    };
    let told = Arc::clone(&fate);
    let Course { lost, verdict, .. } = course.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut taker = taker;
        let silent = lost.run_until_cancelled(taker.receive()).await;
        let outcome = silent.unwrap_or_else(|| StreamEnd::Broken {
            received: taker.received,
            reason: "the agent does not answer any more".to_owned(),
        });
        // The session may be gone already; the reader learns it from `fate`.
        let _ = tell.send(outcome.clone());
        let sender = taker.deliver_rest().await;
        let outcome = match outcome {
            StreamEnd::Broken { received, .. } if verdict.excuses(name, received).await => {
                StreamEnd::Complete { received }
            }
            other => other,
        };
        let _ = told.set(outcome);
        // Now the reader looks.
        drop(sender);
    });
    let taker = Arc::new(task);
    Taking {
        reader: ExecReader {
            queue,
            current: Bytes::new(),
            fate,
            _taker: Arc::clone(&taker),
        },
        end,
        taker,
    }
}

#[derive(Debug)]
struct Taker<S> {
    socket: S,
    sender: mpsc::Sender<Bytes>,
    ended: CancellationToken,
    backlog: Backlog,
    reader_gone: bool,
    received: u64,
}

/// What happened next to a stream.
#[derive(Debug)]
enum Step {
    Delivered,
    ReaderGone,
    Received(Option<Result<Message, WsError>>),
}

impl<S> Taker<S>
where
    S: Stream<Item = Result<Message, WsError>> + Unpin,
{
    /// Receives until the end, delivering meanwhile.
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
                // The limit is another now.
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

    /// Takes one message in; returns the end if it is one.
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

    /// Hands over what has not been read yet, and gives back the way to the reader. The socket goes
    /// first: it is over, and with a terminal the agent waits for that.
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

/// The next message. Once the command has ended, silence is a break.
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
    async fn what_was_sent_is_read_and_counted() {
        let socket = stream::iter([data(1, 3), data(2, 0), data(3, 2), end()]);
        let mut taking = take(socket, STDOUT, &Course::default());
        let mut bytes = Vec::new();
        taking.reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, [1, 1, 1, 3, 3]);
        assert_eq!(taking.end.await, Ok(StreamEnd::Complete { received: 5 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_is_never_an_end_of_file() {
        let socket = stream::iter([data(1, 3)]);
        let mut taking = take(socket, STDOUT, &Course::default());
        let mut bytes = Vec::new();
        let error = taking.reader.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(bytes, [1, 1, 1]);
        assert!(matches!(
            taking.end.await,
            Ok(StreamEnd::Broken { received: 3, .. })
        ));
    }

    #[tokio::test]
    async fn a_dropped_reader_discards_and_the_stream_still_ends() {
        let messages = (0..100).map(|_| data(0, 64 * 1024)).chain([end()]);
        let taking = take(stream::iter(messages), STDOUT, &Course::default());
        drop(taking.reader);
        let received = 100 * 64 * 1024;
        assert_eq!(taking.end.await, Ok(StreamEnd::Complete { received }));
    }

    #[tokio::test]
    async fn a_late_reader_holds_up_the_stream_until_the_command_has_ended() {
        let sent = 4 * 1024 * 1024;
        let messages = (0..64).map(|_| data(7, 64 * 1024)).chain([end()]);
        let course = Course::default();
        let mut taking = take(stream::iter(messages), STDOUT, &course);
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(taking.end.try_recv().is_err());
        course.ended.cancel();
        assert_eq!(
            (&mut taking.end).await,
            Ok(StreamEnd::Complete { received: sent })
        );
        let mut bytes = Vec::new();
        taking.reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes.len(), 4 * 1024 * 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_after_the_end_of_the_command_is_a_break() {
        let course = Course::default();
        course.ended.cancel();
        let taking = take(stream::pending(), STDOUT, &course);
        assert!(matches!(taking.end.await, Ok(StreamEnd::Broken { .. })));
    }

    #[tokio::test]
    async fn a_silent_agent_ends_the_reading() {
        let course = Course::default();
        let mut taking = take(stream::pending(), STDOUT, &course);
        drop(course.verdict.pending());
        course.lost.cancel();
        let error = taking.reader.read(&mut [0; 1]).await.unwrap_err();
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
            let course = Course::default();
            let pending = course.verdict.pending();
            let mut taking = take(stream::iter([data(1, 3)]), STDOUT, &course);
            let mut bytes = Vec::new();
            let reading = taking.reader.read_to_end(&mut bytes);
            let operation = json!({
                "id": "01234567-89ab-4cde-8f01-23456789abcd",
                "status_code": code,
                "metadata": metadata,
            });
            let telling = async {
                tokio::task::yield_now().await;
                let operation = serde_json::from_value(operation.clone()).unwrap();
                course.verdict.tell(&operation);
                drop(pending);
            };
            let (read, ()) = tokio::join!(reading, telling);
            assert_eq!(read.is_ok(), is_clean, "{operation}");
            assert_eq!(bytes, [1, 1, 1]);
        }
    }
}

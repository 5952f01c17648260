//! Copies one stream: from the command to its client, or from the client to the command.

use std::{cell::RefCell, future::Future, io, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    select,
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{
    Error as WsError, Utf8Bytes, protocol::frame::coding::CloseCode,
};
use tokio_util::sync::CancellationToken;

use super::{pty::Pty, stream::RequestError};
use crate::defaults;

/// Largest capacity of a pipe or terminal, in bytes (`/proc/sys/fs/pipe-max-size`): the most that a
/// command can have written and the agent not read when the command exits.
const MAX_BACKLOG_BYTES: u64 = 1024 * 1024;

thread_local! {
    /// Shared read buffer, so that an idle stream holds no memory.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; defaults::MAX_OUTPUT_BYTES]);
}

/// A source of output.
pub(super) trait Source: Send {
    /// Waits until [`try_read`](Self::try_read) may succeed. Can return too early. Cancel safe.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Reads without blocking. Zero is the end of the stream; `WouldBlock` means no data yet.
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

/// A destination of input.
pub(super) trait Target: Send {
    fn write_input(&mut self, data: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

impl Target for pipe::Sender {
    async fn write_input(&mut self, data: &[u8]) -> io::Result<()> {
        AsyncWriteExt::write_all(self, data).await
    }
}

impl Target for Arc<Pty> {
    async fn write_input(&mut self, data: &[u8]) -> io::Result<()> {
        Pty::write_all(self, data).await
    }
}

/// The client is lost, or has closed the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// The client's end of an output.
pub(super) trait OutputSink: Send {
    /// Bytes that [`send`](Self::send) needs before the data.
    const HEAD_BYTES: usize;

    /// Sends `data`, whose first [`HEAD_BYTES`](Self::HEAD_BYTES) are not data. Waits for a slow client.
    fn send(&mut self, data: BytesMut) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Reports the end of the output.
    fn end(&mut self) -> impl Future<Output = ()> + Send;
}

/// Observes the client of an output.
pub(super) trait ClientWatch: Send {
    /// Resolves when the client has closed the stream, or is lost.
    fn left(&mut self) -> impl Future<Output = ()> + Send;
}

/// What a client sends as input.
#[derive(Debug)]
pub(super) enum Received {
    /// Bytes for the command.
    Data(Bytes),
    /// The end of the input.
    End,
    /// The connection failed.
    Lost(Loss),
}

/// The client's end of the input.
pub(super) trait InputSource: Send {
    /// What the client sends next. Cancel safe. Not called after an end.
    fn next(&mut self) -> impl Future<Output = Received> + Send;

    /// Tells the client that the command takes no more.
    fn refuse_more(&mut self) -> impl Future<Output = ()> + Send;
}

/// How an output stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutputResult {
    /// Bytes sent.
    pub(super) bytes: u64,
    pub(super) end: StreamEnd,
}

/// Why an output stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// End of file: all writers have closed it.
    Complete,
    /// The command has exited, and another process still has it open for writing.
    StillOpen,
    /// The client closed its socket or disconnected.
    ClientLeft,
}

/// Observes whether output is being sent. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<Notify>);

impl Progress {
    /// Resolves when nothing is sent for [`defaults::STALL_TIMEOUT`].
    pub(super) async fn stalled(&self) {
        while timeout(defaults::STALL_TIMEOUT, self.0.notified())
            .await
            .is_ok()
        {}
    }
}

/// Sends the command's output until the stream ends. The caller reports the end to the client with
/// [`end_output`].
///
/// After `exited`, a stream that another process still has open ends too: everything the command
/// itself wrote is sent, then the stream ends after [`defaults::DRAIN_QUIET`] without output, or after
/// [`defaults::DRAIN_TIMEOUT`].
pub(super) async fn pump_output<S: Source, W: OutputSink>(
    source: &S,
    sink: &mut W,
    exited: &CancellationToken,
    client_left: &CancellationToken,
    progress: &Progress,
) -> OutputResult {
    let mut bytes = 0;
    let mut drain = None;
    let end = loop {
        match read_available(source, W::HEAD_BYTES) {
            Ok(data) if data.len() == W::HEAD_BYTES => break StreamEnd::Complete,
            Ok(data) => {
                let length = data.len() - W::HEAD_BYTES;
                if Drain::is_over(&mut drain, exited, length) {
                    break StreamEnd::StillOpen;
                }
                if sink.send(data).await.is_err() {
                    break StreamEnd::ClientLeft;
                }
                bytes += length as u64;
                progress.0.notify_one();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let waited = select! {
                    ready = source.readable() => ready.map_err(|_| StreamEnd::Complete),
                    () = client_left.cancelled() => Err(StreamEnd::ClientLeft),
                    () = Drain::quiet(&mut drain, exited) => Err(StreamEnd::StillOpen),
                };
                if let Some(drain) = &mut drain {
                    drain.caught_up = true;
                }
                if let Err(end) = waited {
                    break end;
                }
            }
            // A terminal or pipe that cannot be read has ended.
            Err(_) => break StreamEnd::Complete,
        }
    };
    OutputResult { bytes, end }
}

/// Reports the end of an output stream to the client, unless it has disconnected.
pub(super) async fn end_output(sink: &mut impl OutputSink, end: StreamEnd) {
    if end != StreamEnd::ClientLeft {
        sink.end().await;
    }
}

/// The time after the command's exit, in which only other processes can still write.
#[derive(Debug, Clone, Copy)]
struct Drain {
    deadline: Instant,
    /// Bytes read since. The command's own output is within the first [`MAX_BACKLOG_BYTES`], and is
    /// sent regardless of the deadline.
    bytes: u64,
    /// Whether all output of the command itself has been read.
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

    /// Whether the `length` bytes just read are too late to be sent.
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

    /// Resolves when there was no output for long enough after the command's exit.
    async fn quiet(drain: &mut Option<Self>, exited: &CancellationToken) {
        exited.cancelled().await;
        let drain = drain.get_or_insert_with(Self::start);
        let wait = Instant::now() + defaults::DRAIN_QUIET;
        if drain.caught_up {
            sleep_until(wait.min(drain.deadline)).await;
        } else {
            // A slow client may have used up the deadline.
            sleep_until(wait).await;
        }
    }
}

/// Reads and discards available data; false at the end of the stream.
pub(super) fn discard(source: &impl Source) -> bool {
    match SCRATCH.with_borrow_mut(|scratch| source.try_read(scratch)) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Reads available data into a buffer of exactly its size, after `head_bytes` zeros.
fn read_available(source: &impl Source, head_bytes: usize) -> io::Result<BytesMut> {
    SCRATCH.with_borrow_mut(|scratch| {
        let length = source.try_read(scratch)?;
        let mut data = BytesMut::with_capacity(head_bytes + length);
        data.resize(head_bytes, 0);
        data.extend_from_slice(&scratch[..length]);
        Ok(data)
    })
}

/// How the input of a command ended.
#[derive(Debug)]
pub(super) struct InputResult {
    /// Bytes written to the command.
    pub(super) bytes: u64,
    pub(super) end: InputEnd,
}

impl InputResult {
    /// # Errors
    ///
    /// [`InputLost`] if the input ended because its connection failed.
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

/// Why the input of a command ended.
#[derive(Debug)]
pub(super) enum InputEnd {
    /// The client sent a text message or closed the websocket.
    Client,
    /// The command closed its input.
    Command,
    /// `stop` was cancelled.
    Stopped,
    /// The connection failed; the input may be incomplete.
    Lost(Loss),
}

/// The input's connection failed before the end of the input.
#[derive(Debug)]
pub(crate) struct InputLost {
    /// Bytes written to the command before that.
    pub(crate) after: u64,
    /// Why it failed.
    pub(crate) reason: Loss,
}

/// How the input's connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Loss {
    /// A transport or websocket protocol error.
    #[error("{0}")]
    Broken(#[source] WsError),
    /// The client closed the websocket with an error code.
    #[error("{0} {1}")]
    Closed(CloseCode, Utf8Bytes),
    /// The client cannot send the rest.
    #[error("the client gave it up")]
    Aborted,
    /// The HTTP/2 stream of the command failed.
    #[error("{0}")]
    Stream(#[source] RequestError),
    /// Output cannot be sent on the same connection.
    #[error("its connection takes no output")]
    Unsendable,
}

/// Writes what the client sends to the command until the end of the input, or `stop`. The caller closes the
/// command's input.
pub(super) async fn pump_input<T: Target, R: InputSource>(
    source: &mut R,
    target: &mut T,
    stop: &CancellationToken,
) -> InputResult {
    let mut bytes = 0;
    let end = loop {
        let received = select! {
            received = source.next() => received,
            () = stop.cancelled() => break InputEnd::Stopped,
        };
        match received {
            Received::Data(data) => {
                let written = select! {
                    written = target.write_input(&data) => written,
                    () = stop.cancelled() => break InputEnd::Stopped,
                };
                if written.is_err() {
                    break InputEnd::Command;
                }
                bytes += data.len() as u64;
            }
            Received::End => break InputEnd::Client,
            Received::Lost(loss) => break InputEnd::Lost(loss),
        }
    };
    InputResult { bytes, end }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use tokio::time::sleep;

    use super::*;

    /// Records what is sent, and the end as no bytes.
    #[derive(Default)]
    struct Sent(Vec<Bytes>);

    impl OutputSink for Sent {
        const HEAD_BYTES: usize = 2;

        async fn send(&mut self, data: BytesMut) -> Result<(), Gone> {
            self.0.push(data.freeze().slice(Self::HEAD_BYTES..));
            Ok(())
        }

        async fn end(&mut self) {
            self.0.push(Bytes::new());
        }
    }

    fn no_tokens() -> (CancellationToken, CancellationToken) {
        (CancellationToken::new(), CancellationToken::new())
    }

    #[tokio::test]
    async fn output_is_sent_with_its_end() -> Result<(), Infallible> {
        let (mut writer, reader) = pipe::pipe().unwrap();
        writer.write_all(b"hello").await.unwrap();
        drop(writer);
        let (exited, left) = no_tokens();
        let mut sent = Sent::default();
        let pumped = pump_output(&reader, &mut sent, &exited, &left, &Progress::default()).await;
        assert_eq!(
            pumped,
            OutputResult {
                bytes: 5,
                end: StreamEnd::Complete
            }
        );
        end_output(&mut sent, pumped.end).await;
        assert_eq!(sent.0, [&b"hello"[..], b""]);
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
            OutputResult {
                bytes: 5,
                end: StreamEnd::StillOpen
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
        assert_eq!(pumped.end, StreamEnd::StillOpen);
        assert!(start.elapsed() <= defaults::DRAIN_TIMEOUT + defaults::DRAIN_QUIET);
    }
}

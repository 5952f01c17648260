//! A command's streams on one HTTP/2 stream ([`vsock_agent_protocol::exec::stream`]).
//!
//! ```text
//! request body ─► Requests ─► Input ─────► stdin        one task reads all frames, so that an input that
//!                     │└────► signals, sizes             is not read delays no signal
//! reply's body ◄─ BodyQueue ◄─ Output ◄─ stdout, stderr, credit, pongs, and last the status
//! ```
//!
//! The client is lost when the body of the request fails or the body of the reply is dropped: hyper does both
//! when the stream is reset or its connection ends. The end of the request's body is the end of the input.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{select, time::timeout};
use vsock_agent_protocol::exec::{
    ControlMessage, MAX_SIGNAL,
    stream::{
        DataChannel, Decoder, Frame, FrameError, HEAD_BYTES, INPUT_WINDOW_BYTES,
        OUTPUT_WINDOW_BYTES, data_head,
    },
};
use vsock_agent_transport::{
    Piece, PieceReceiver, PieceSender,
    http::{BodyQueue, QueuedBody, Window},
    pieces,
};

use super::pump::{ClientWatch, Gone, InputSource, Loss, OutputSink, Received};
use crate::defaults;

/// Bytes of a command's output that wait for the connection. Twice the capacity of a pipe, so that one read
/// is made while the other is sent. There may be a thousand commands.
const MAX_QUEUED_BYTES: usize = 128 * 1024;

/// Bytes above [`MAX_QUEUED_BYTES`] at which a ping is an error. The outputs stop at that limit, and exceed it
/// by one read of each; hundreds of pongs are in the rest.
const MAX_EXCESS_BYTES: usize = 4 * defaults::MAX_OUTPUT_BYTES;

/// Why the frames of a client end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The stream or its connection was lost.
    #[error("the connection was lost")]
    Lost(#[source] hyper::Error),
    /// Bytes that are no frame, or a body that ends within one.
    #[error("the client broke the protocol: {0}")]
    Protocol(String),
}

impl From<FrameError> for RequestError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// The frames of a request's body.
#[derive(Debug)]
pub(crate) struct Requests {
    body: Incoming,
    decoder: Decoder,
    chunk: Bytes,
}

impl Requests {
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            body,
            decoder: Decoder::default(),
            chunk: Bytes::new(),
        }
    }

    /// The next frame; `None` at the end of the body. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`RequestError`]. There are no more frames then.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, RequestError> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.chunk)? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Err(RequestError::Lost(error)),
                None if self.decoder.is_within_frame() => {
                    let text = "the body ends within a frame";
                    return Err(RequestError::Protocol(text.to_owned()));
                }
                None => return Ok(None),
            }
        }
    }
}

/// The client's ends of a command's streams.
#[derive(Debug)]
pub(crate) struct StreamEnds {
    pub(super) control: ControlFrames,
    pub(super) stdin: Input,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
}

impl StreamEnds {
    /// The streams of a command whose request was read from `requests`. Returns the body of the reply, and
    /// what ends it.
    pub(crate) fn new(requests: Requests) -> (Self, QueuedBody, Finish) {
        let (queue, body) = BodyQueue::new(MAX_QUEUED_BYTES);
        let finish = Finish(queue.clone());
        let outgoing = Arc::new(Outgoing {
            queue,
            windows: [const { Window::new(OUTPUT_WINDOW_BYTES) }; 2],
            granted: AtomicU32::new(0),
        });
        let (input, received) = pieces();
        let output = |channel| Output {
            outgoing: Arc::clone(&outgoing),
            channel,
        };
        let ends = Self {
            control: ControlFrames {
                requests,
                outgoing: Arc::clone(&outgoing),
                input: Some(input),
                window: INPUT_WINDOW_BYTES,
            },
            stdin: Input {
                received,
                outgoing: Arc::clone(&outgoing),
                consumed: 0,
            },
            stdout: output(DataChannel::Stdout),
            stderr: output(DataChannel::Stderr),
        };
        (ends, body, finish)
    }
}

/// Reads all frames of the client: passes on the input, and returns control messages.
#[derive(Debug)]
pub(super) struct ControlFrames {
    requests: Requests,
    outgoing: Arc<Outgoing>,
    /// `None` after the end of the input.
    input: Option<PieceSender<Option<Loss>>>,
    /// Bytes of input that the client may still send, as of what has arrived.
    window: u32,
}

impl ControlFrames {
    /// The next message. `None` when the client is lost. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<ControlMessage> {
        loop {
            let frame = match self.requests.next().await {
                Ok(Some(frame)) => frame,
                // The client sends no more, and still reads.
                Ok(None) => {
                    self.end_input(None);
                    self.outgoing.queue.closed().await;
                    return None;
                }
                Err(error) => return self.lose(error),
            };
            match self.take(frame) {
                Ok(None) => {}
                Ok(message) => return message,
                Err(what) => return self.lose(RequestError::Protocol(what.to_owned())),
            }
        }
    }

    /// Discards what comes until the client ends its direction. Dropped before that, the stream would be reset,
    /// and h2 ends a connection after many frames on streams that it has forgotten.
    pub(super) async fn drain(mut self) {
        let reading = async { while let Ok(Some(_)) = self.requests.next().await {} };
        let _ = timeout(defaults::LINGER_TIMEOUT, reading).await;
    }

    /// Ends both directions: the client gets no more either, as nobody reads its credit.
    fn lose<T>(&mut self, error: RequestError) -> Option<T> {
        tracing::debug!(%error, "the frames of a client ended");
        self.end_input(Some(Loss::Stream(error)));
        self.outgoing.queue.abandon();
        None
    }

    /// Handles a frame. Returns it if it is a control message.
    fn take(&mut self, frame: Frame) -> Result<Option<ControlMessage>, &'static str> {
        match frame {
            Frame::Data(DataChannel::Stdin, data) => self.take_input(data)?,
            Frame::Close(DataChannel::Stdin) => self.end_input(None),
            Frame::Abort => self.end_input(Some(Loss::Aborted)),
            Frame::Resize { columns, lines } => {
                return Ok(Some(ControlMessage::WindowResize {
                    width: columns,
                    height: lines,
                }));
            }
            // Others are ignored, as on a control socket.
            Frame::Signal(number) if (1..=MAX_SIGNAL).contains(&number.into()) => {
                return Ok(Some(ControlMessage::Signal(number.into())));
            }
            Frame::Signal(_) => {}
            Frame::Credit(channel, bytes) => self.outgoing.add_credit(channel, bytes)?,
            Frame::Ping(payload) => self.outgoing.pong(payload)?,
            _ => return Err("a frame that no client sends after the first"),
        }
        Ok(None)
    }

    fn take_input(&mut self, data: Bytes) -> Result<(), &'static str> {
        let granted = self.outgoing.granted.swap(0, Ordering::AcqRel);
        let window = self.window.saturating_add(granted);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.window = window
            .checked_sub(length)
            .ok_or("more input than was granted")?;
        if let Some(input) = &self.input {
            // False if the command has closed its input.
            let _ = input.send(data);
        }
        Ok(())
    }

    fn end_input(&mut self, loss: Option<Loss>) {
        if let Some(input) = self.input.take() {
            input.end(loss);
        }
    }
}

/// The input of a command.
#[derive(Debug)]
pub(super) struct Input {
    /// Bounded by the window of the input.
    received: PieceReceiver<Option<Loss>>,
    outgoing: Arc<Outgoing>,
    /// Bytes that the command has taken and the client may not replace yet.
    consumed: u32,
}

impl InputSource for Input {
    /// The bytes before count as taken by the command.
    async fn next(&mut self) -> Received {
        if self.consumed >= INPUT_WINDOW_BYTES / 2 {
            self.outgoing.grant(std::mem::take(&mut self.consumed));
        }
        match self.received.next().await {
            Some(Piece::Data(data)) => {
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                self.consumed = self.consumed.saturating_add(length);
                Received::Data(data)
            }
            Some(Piece::End(None)) => Received::End,
            Some(Piece::End(Some(loss))) => Received::Lost(loss),
            None => Received::Lost(Loss::Unsendable),
        }
    }

    async fn refuse_more(&mut self) {
        self.outgoing.push(&Frame::Close(DataChannel::Stdin));
    }
}

/// An output of a command.
#[derive(Debug)]
pub(super) struct Output {
    outgoing: Arc<Outgoing>,
    channel: DataChannel,
}

impl Output {
    /// Resolves when the client is lost.
    pub(super) fn watch(&self) -> OutputWatch {
        OutputWatch(self.outgoing.queue.clone())
    }
}

impl OutputSink for Output {
    const HEAD_BYTES: usize = HEAD_BYTES;

    async fn send(&mut self, mut data: BytesMut) -> Result<(), Gone> {
        loop {
            let length = data.len() - HEAD_BYTES;
            let allowed = self.outgoing.take(self.channel, length).await?;
            // The head of the rest is written over what has been sent.
            let rest = (allowed < length).then(|| BytesMut::from(&data[allowed..]));
            data.truncate(HEAD_BYTES + allowed);
            data[..HEAD_BYTES].copy_from_slice(&data_head(self.channel, allowed));
            self.outgoing.queue.push(data.freeze());
            match rest {
                None => return Ok(()),
                Some(rest) => data = rest,
            }
        }
    }

    async fn end(&mut self) {
        self.outgoing.push(&Frame::Close(self.channel));
    }
}

/// Whether the client of an output is lost.
#[derive(Debug)]
pub(super) struct OutputWatch(BodyQueue);

impl ClientWatch for OutputWatch {
    async fn left(&mut self) {
        self.0.closed().await;
    }
}

/// Sends the last frame. Dropped without it, the client sees an error.
#[derive(Debug)]
pub(crate) struct Finish(BodyQueue);

impl Finish {
    /// Sends the ended operation, as JSON, and ends the body of the reply.
    pub(crate) fn finish(self, operation: Vec<u8>) {
        self.0.push(Frame::Status(operation.into()).to_bytes());
        self.0.finish();
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// What is sent to the client, and the windows.
#[derive(Debug)]
struct Outgoing {
    queue: BodyQueue,
    /// Of standard output and standard error.
    windows: [Window; 2],
    /// Credit of the input that was sent and not counted in its window.
    granted: AtomicU32,
}

impl Outgoing {
    fn push(&self, frame: &Frame) {
        self.queue.push(frame.to_bytes());
    }

    fn window(&self, channel: DataChannel) -> Option<&Window> {
        match channel {
            DataChannel::Stdin => None,
            DataChannel::Stdout => Some(&self.windows[0]),
            DataChannel::Stderr => Some(&self.windows[1]),
        }
    }

    /// Takes up to `wanted` bytes of an output's window. Waits until there are some and the queue has room.
    async fn take(&self, channel: DataChannel, wanted: usize) -> Result<usize, Gone> {
        let taken = async {
            self.queue.room().await;
            self.window(channel)?.take(wanted).await
        };
        let taken = select! {
            taken = taken => taken,
            () = self.queue.closed() => None,
        };
        taken.filter(|_| !self.queue.is_closed()).ok_or(Gone)
    }

    fn add_credit(&self, channel: DataChannel, bytes: u32) -> Result<(), &'static str> {
        let window = self.window(channel).ok_or("credit for its own channel")?;
        if window.grant(bytes) {
            Ok(())
        } else {
            Err("more credit than there can be")
        }
    }

    /// Lets the client send this many bytes of input more.
    fn grant(&self, bytes: u32) {
        self.granted.fetch_add(bytes, Ordering::AcqRel);
        self.push(&Frame::Credit(DataChannel::Stdin, bytes));
    }

    /// Pongs are not part of any window, so a client that does not read them is cut off.
    fn pong(&self, payload: Bytes) -> Result<(), &'static str> {
        if self.queue.bytes() > MAX_QUEUED_BYTES + MAX_EXCESS_BYTES {
            return Err("pings whose answers are not read");
        }
        self.push(&Frame::Pong(payload));
        Ok(())
    }
}

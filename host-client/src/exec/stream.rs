//! A command on one HTTP/2 stream ([`crate::protocol::exec::stream`]).
//!
//! One task reads the frames of the agent. What the caller writes goes from its own task to the body of the
//! request: input within the window of the agent, window sizes, signals and credit at once.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Response, StatusCode, header::LOCATION};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{sync::oneshot, task::JoinSet};
use vsock_agent_transport::{
    PieceSender,
    http::{BodyQueue, Window},
    pieces,
};

use super::{
    Exec, ExecControl, ExecReader, ExecSession, ExecStdin,
    input::{MAX_END_BYTES, Sent, end_of_input, leaves_line_open},
    output::{CommandState, StreamEnd},
    session::{DURING, Output, Parts, STARTING},
};
use crate::{
    agent::Agent,
    error::ClientError,
    http::{Call, check_values, http2::Http2, http2_request},
    protocol::{
        exec::{
            ControlMessage, STDERR, STDOUT,
            stream::{
                DataChannel, Decoder, Frame, HEAD_BYTES, INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES,
                data_head,
            },
        },
        operation::{Operation, OperationId},
        path,
    },
};

/// Bytes of input that wait for the connection, and in one frame. Measured with `bench exec`.
const MAX_QUEUED_BYTES: usize = 256 * 1024;

/// Largest frame of input, in bytes.
const MAX_INPUT_BYTES: usize = 64 * 1024;

/// Starts a command. `None` if the agent does not know this way.
///
/// Without TLS the caller knows that the agent speaks HTTP/2.
pub(super) async fn start(
    agent: &Arc<Agent>,
    exec: &Exec,
    mut connection: Http2,
) -> Result<Option<ExecSession>, ClientError> {
    let request = exec.request(&agent.http2_info())?;
    let json = serde_json::to_vec(&request)
        .map_err(|error| ClientError::protocol_because("the request cannot be written", error))?;
    let (queue, body) = BodyQueue::new(MAX_QUEUED_BYTES);
    // Without a session, the stream is reset.
    let mut guard = Abandon(Some(queue.clone()));
    queue.push(Frame::Request(json.into()).to_bytes());
    let call = Call::change(Method::POST, path::EXEC_STREAM, None, STARTING);
    let request = http2_request(&call).map(|_| body.boxed_unsync());
    let response = agent
        .http
        .send_http2(
            &mut connection,
            request,
            STARTING,
            agent.http.answer_timeout(),
        )
        .await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        _ => {
            return match agent.http.read_reply(response, STARTING).await {
                Err(error) => Err(error),
                Ok(_) => Err(ClientError::protocol("a command without a stream")),
            };
        }
    }
    let id = operation_id(&response)?;
    guard.0 = None;
    let end = |outgoing| SessionEnd {
        outgoing,
        _connection: connection,
    };
    let parts = session(response, queue, exec.terminal.is_some(), end);
    Ok(Some(ExecSession::new(Arc::clone(agent), id, parts)))
}

/// Resets the stream when it is dropped.
struct Abandon(Option<BodyQueue>);

impl Drop for Abandon {
    fn drop(&mut self) {
        if let Some(queue) = &self.0 {
            queue.abandon();
        }
    }
}

fn operation_id(response: &Response<Incoming>) -> Result<OperationId, ClientError> {
    let location = response.headers().get(LOCATION);
    let id = location.and_then(|location| location.to_str().ok()?.rsplit('/').next()?.parse().ok());
    id.ok_or_else(|| ClientError::protocol("a command without its operation"))
}

/// The session of a command that was started, and the task that reads its frames.
fn session(
    response: Response<Incoming>,
    queue: BodyQueue,
    terminal: bool,
    end: impl FnOnce(Arc<Outgoing>) -> SessionEnd,
) -> Parts {
    let outgoing = Arc::new(Outgoing::new(queue, terminal));
    let state = CommandState::default();
    let names: &[_] = if terminal {
        &[(DataChannel::Stdout, STDOUT, "the terminal's output")]
    } else {
        &[
            (DataChannel::Stdout, STDOUT, "standard output"),
            (DataChannel::Stderr, STDERR, "standard error"),
        ]
    };
    let (mut readers, mut channels, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for (channel, socket, name) in names {
        let (sender, received) = pieces();
        let (end_sender, end) = oneshot::channel();
        let stream_end = Arc::new(OnceLock::new());
        let credit = Credit::new(&outgoing, *channel);
        readers.push(ExecReader::of_stream(
            received,
            Arc::clone(&stream_end),
            credit,
        ));
        channels.push(OutputChannel {
            channel: *channel,
            socket,
            sender: Some(sender),
            end: Some(end_sender),
            stream_end,
            received: 0,
            discarded: 0,
            window: OUTPUT_WINDOW_BYTES,
        });
        ends.push(Output {
            socket,
            name,
            end,
            _task: None,
        });
    }
    let reader = FrameReader {
        body: response.into_body(),
        decoder: Decoder::default(),
        outgoing: Arc::clone(&outgoing),
        channels,
        state: state.clone(),
    };
    let (sender, result) = oneshot::channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // Fails if the session is gone.
        let _ = sender.send(reader.run().await);
    });
    let sent = Arc::<Sent>::default();
    let stdin = StreamStdin {
        outgoing: Arc::clone(&outgoing),
        sent: Arc::clone(&sent),
        terminal,
        line_is_open: false,
        is_ended: false,
    };
    Parts {
        control: ExecControl::of_stream(Arc::clone(&outgoing)),
        stdin: ExecStdin::of_stream(stdin),
        readers,
        ends,
        result,
        state,
        sent,
        terminal,
        stream: Some(end(outgoing)),
        tasks,
    }
}

/// Ends the command when the session is dropped before its end.
#[derive(Debug)]
pub(super) struct SessionEnd {
    outgoing: Arc<Outgoing>,
    /// Keeps the connection.
    _connection: Http2,
}

impl Drop for SessionEnd {
    fn drop(&mut self) {
        self.outgoing.end();
    }
}

/// What is sent to the agent.
#[derive(Debug)]
pub(super) struct Outgoing {
    queue: BodyQueue,
    /// Of the input.
    input: Window,
    /// Credit of standard output and standard error that was sent and not counted in their windows.
    granted: [AtomicU32; 2],
    /// The callers that wait for a pong, by the payload of their ping.
    pongs: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    next_ping: AtomicU64,
}

impl Outgoing {
    fn new(queue: BodyQueue, terminal: bool) -> Self {
        // The end of a terminal's input is data, and must not wait for credit.
        let reserved = if terminal { MAX_END_BYTES } else { 0 };
        Self {
            queue,
            input: Window::new(INPUT_WINDOW_BYTES - reserved),
            granted: Default::default(),
            pongs: Mutex::default(),
            next_ping: AtomicU64::new(0),
        }
    }

    fn push(&self, frame: &Frame) {
        self.queue.push(frame.to_bytes());
    }

    /// Ends the stream: as complete if it was finished, else with a reset.
    fn end(&self) {
        self.queue.abandon();
        self.input.close();
        self.pongs().clear();
    }

    fn pongs(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<()>>> {
        self.pongs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a control message. False if the command has ended or its agent is lost.
    pub(super) async fn control(&self, message: ControlMessage) -> bool {
        self.queue.room().await;
        let frame = match message {
            ControlMessage::WindowResize { width, height } => Frame::Resize {
                columns: width,
                lines: height,
            },
            ControlMessage::Signal(number) => Frame::Signal(u8::try_from(number).unwrap_or(0)),
            _ => return false,
        };
        self.queue.try_push(frame.to_bytes())
    }

    /// Waits for a pong. False if the command has ended or its agent is lost.
    pub(super) async fn ping(&self) -> bool {
        self.queue.room().await;
        let number = self.next_ping.fetch_add(1, Ordering::Relaxed);
        let (pong, answered) = oneshot::channel();
        self.pongs().insert(number, pong);
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        self.queue.try_push(Frame::Ping(payload).to_bytes()) && answered.await.is_ok()
    }

    fn granted(&self, channel: DataChannel) -> Option<&AtomicU32> {
        match channel {
            DataChannel::Stdin => None,
            DataChannel::Stdout => Some(&self.granted[0]),
            DataChannel::Stderr => Some(&self.granted[1]),
        }
    }

    /// Lets the agent send this many bytes of an output more.
    fn grant(&self, channel: DataChannel, bytes: u32) {
        if let Some(granted) = self.granted(channel).filter(|_| bytes > 0) {
            granted.fetch_add(bytes, Ordering::AcqRel);
            self.push(&Frame::Credit(channel, bytes));
        }
    }
}

/// Credit for what a reader has taken.
#[derive(Debug)]
pub(super) struct Credit {
    outgoing: Arc<Outgoing>,
    channel: DataChannel,
    taken: u32,
}

impl Credit {
    fn new(outgoing: &Arc<Outgoing>, channel: DataChannel) -> Self {
        Self {
            outgoing: Arc::clone(outgoing),
            channel,
            taken: 0,
        }
    }

    /// Counts bytes that were taken.
    pub(super) fn take(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(bytes);
        if self.taken >= OUTPUT_WINDOW_BYTES / 2 {
            self.grant();
        }
    }

    /// Grants the bytes that were taken.
    pub(super) fn grant(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        self.outgoing.grant(self.channel, taken);
    }
}

/// Standard input of a command on one stream.
#[derive(Debug)]
pub(super) struct StreamStdin {
    outgoing: Arc<Outgoing>,
    sent: Arc<Sent>,
    terminal: bool,
    /// Whether the input of a terminal does not end with the end of a line.
    line_is_open: bool,
    is_ended: bool,
}

impl StreamStdin {
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let closed = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.outgoing.queue.poll_room(cx));
        if self.is_ended || self.outgoing.queue.is_closed() {
            return closed();
        }
        let wanted = data.len().min(MAX_INPUT_BYTES);
        let Some(length) = ready!(self.outgoing.input.poll_take(cx, wanted)) else {
            return closed();
        };
        let data = &data[..length];
        self.line_is_open = leaves_line_open(data);
        self.push(data);
        self.sent.add(length);
        Poll::Ready(Ok(length))
    }

    fn push(&self, data: &[u8]) {
        let mut frame = BytesMut::with_capacity(HEAD_BYTES + data.len());
        frame.put_slice(&data_head(DataChannel::Stdin, data.len()));
        frame.put_slice(data);
        self.outgoing.queue.push(frame.freeze());
    }

    /// Ends the input, once.
    pub(super) fn end(&mut self) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        if self.terminal {
            self.push(&end_of_input(self.line_is_open));
        } else {
            self.outgoing.push(&Frame::Close(DataChannel::Stdin));
        }
        self.sent.end();
    }

    /// Ends the input as incomplete.
    pub(super) fn abort(&mut self) {
        self.is_ended = true;
        self.outgoing.push(&Frame::Abort);
    }
}

impl Drop for StreamStdin {
    fn drop(&mut self) {
        self.end();
    }
}

/// An output as the agent sends it.
#[derive(Debug)]
struct OutputChannel {
    channel: DataChannel,
    socket: &'static str,
    /// `None` after the end. Bounded by the window.
    sender: Option<PieceSender<()>>,
    end: Option<oneshot::Sender<StreamEnd>>,
    stream_end: Arc<OnceLock<StreamEnd>>,
    received: u64,
    /// Bytes that were discarded and not granted again.
    discarded: u32,
    /// Bytes that the agent may still send, as of what has arrived.
    window: u32,
}

impl OutputChannel {
    /// Passes on data. The rest of an output whose reader is gone is discarded.
    fn receive(&mut self, outgoing: &Outgoing, data: Bytes) -> Result<(), &'static str> {
        let granted = outgoing.granted(self.channel);
        let granted = granted.map_or(0, |granted| granted.swap(0, Ordering::AcqRel));
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.received += u64::from(length);
        self.window = self
            .window
            .saturating_add(granted)
            .checked_sub(length)
            .ok_or("more output than was granted")?;
        let sender = self.sender.as_ref().ok_or("output after its end")?;
        if !sender.send(data) {
            self.discarded += length;
        }
        // An agent may send one byte at a time, and not read the credit for it.
        if self.discarded >= OUTPUT_WINDOW_BYTES / 2 {
            outgoing.grant(self.channel, std::mem::take(&mut self.discarded));
        }
        Ok(())
    }

    /// Reports the end to the session and to the reader, which may know better.
    fn end(&mut self, outcome: StreamEnd, for_reader: StreamEnd) {
        if let Some(end) = self.end.take() {
            // Fails if the session is gone.
            let _ = end.send(outcome);
        }
        let _ = self.stream_end.set(for_reader);
        // The closed queue makes the reader use the end.
        self.sender = None;
    }
}

/// Reads the frames of the agent.
#[derive(Debug)]
struct FrameReader {
    body: Incoming,
    decoder: Decoder,
    outgoing: Arc<Outgoing>,
    channels: Vec<OutputChannel>,
    state: CommandState,
}

impl FrameReader {
    /// Reads to the end, and returns the ended operation.
    async fn run(mut self) -> Result<Operation, ClientError> {
        let pending = self.state.reported.pending();
        let ended = self.read().await;
        let reason = match &ended {
            Ok(operation) => {
                self.state.reported.set(operation);
                self.outgoing.queue.finish();
                "the agent closed the stream".to_owned()
            }
            Err(error) => error.to_string(),
        };
        self.outgoing.end();
        drop(pending);
        for output in &mut self.channels {
            let received = output.received;
            let broken = StreamEnd::Broken {
                received,
                reason: reason.clone(),
            };
            let is_covered = self.state.reported.covers(output.socket, received).await;
            let for_reader = if is_covered {
                StreamEnd::Complete { received }
            } else {
                broken.clone()
            };
            output.end(broken, for_reader);
        }
        ended
    }

    async fn read(&mut self) -> Result<Operation, ClientError> {
        loop {
            let frame = self.body.frame().await;
            let frame =
                frame.ok_or_else(|| ClientError::lost(DURING, "the agent closed the stream"))?;
            let frame = frame.map_err(|error| ClientError::lost(DURING, error))?;
            let mut chunk = frame.into_data().unwrap_or_default();
            while let Some(frame) = self
                .decoder
                .next(&mut chunk)
                .map_err(|error| ClientError::protocol_because("a frame is wrong", error))?
            {
                if let Some(operation) = self.take(frame)? {
                    return Ok(operation);
                }
            }
        }
    }

    /// Handles a frame. Returns the operation of the last one.
    fn take(&mut self, frame: Frame) -> Result<Option<Operation>, ClientError> {
        match frame {
            Frame::Data(channel, data) => {
                let outgoing = Arc::clone(&self.outgoing);
                let output = self.channel(channel)?;
                output
                    .receive(&outgoing, data)
                    .map_err(ClientError::protocol)?;
            }
            Frame::Close(DataChannel::Stdin) => self.outgoing.input.close(),
            Frame::Close(channel) => {
                let output = self.channel(channel)?;
                let received = output.received;
                let end = StreamEnd::Complete { received };
                output.end(end.clone(), end);
            }
            Frame::Credit(DataChannel::Stdin, bytes) => {
                if !self.outgoing.input.grant(bytes) {
                    return Err(ClientError::protocol("more credit than there can be"));
                }
            }
            Frame::Pong(payload) => {
                let number = payload.as_ref().try_into().map(u64::from_be_bytes);
                let pong = number.ok().and_then(|n| self.outgoing.pongs().remove(&n));
                if let Some(pong) = pong {
                    // The caller may have stopped waiting.
                    let _ = pong.send(());
                }
            }
            Frame::Status(json) => {
                check_values(StatusCode::OK, &json)?;
                return serde_json::from_slice(&json).map(Some).map_err(|error| {
                    ClientError::protocol_because("the ended operation is wrong", error)
                });
            }
            _ => return Err(ClientError::protocol("a frame that no agent sends")),
        }
        Ok(None)
    }

    fn channel(&mut self, channel: DataChannel) -> Result<&mut OutputChannel, ClientError> {
        let mut channels = self.channels.iter_mut();
        channels
            .find(|output| output.channel == channel)
            .ok_or_else(|| ClientError::protocol("data on a channel that the command has not"))
    }
}

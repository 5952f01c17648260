//! A running command: starts it on one stream or joins its sockets, and combines the ends of its streams
//! with the operation's result.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::{try_join, try_join_all},
};
use http::Method;
use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug};
use vsock_agent_transport::http::Connection;

use super::{
    Exec, ExecControl, ExecEvents, ExecReader, ExecStdin, ExitStatus, GRACE_TIMEOUT, control,
    input,
    input::Sent,
    output,
    output::{CommandState, OutputStream, StreamEnd},
    stream::{self, SessionEnd},
};
use crate::{
    agent::Agent,
    error::{ClientError, bounded},
    http::{Call, http2::SILENCE_TIMEOUT, metadata},
    operation::{self, Watch},
    protocol::{
        event,
        exec::{CONTROL, ExecEnded, ExecRequest, ExecStarted, STDERR, STDIN, STDOUT, Secret},
        operation::{Operation, OperationId, OperationStatus},
        path,
        printable::with_causes,
    },
    ws::{self, Socket},
};

/// LXD's API extension for `GET …/wait`.
const OPERATION_WAIT: &str = "operation_wait";

/// A running command.
///
/// Streams that are taken must be read while it runs: a command whose output is not read blocks
/// eventually. Dropping the session ends the command.
#[derive(Debug)]
pub struct ExecSession {
    id: OperationId,
    control: ExecControl,
    stdin: Option<ExecStdin>,
    stdout: Option<ExecReader>,
    stderr: Option<ExecReader>,
    ends: Ends,
    result: oneshot::Receiver<Result<Operation, ClientError>>,
    /// The result, when it has come.
    operation: Option<Operation>,
    /// When to stop waiting for the result, after a stream broke.
    deadline: Option<Instant>,
    /// What was returned for the end of the command; of an error its text.
    outcome: Option<Result<ExitStatus, String>>,
    state: CommandState,
    /// The amount of input that was sent.
    sent: Arc<Sent>,
    terminal: bool,
    agent: Arc<Agent>,
    span: Span,
    /// Ends a command on one stream.
    _stream: Option<SessionEnd>,
    /// The tasks that read and write. Dropping those of websockets ends the command.
    tasks: JoinSet<()>,
}

/// The end of an output stream.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) socket: &'static str,
    pub(super) name: &'static str,
    pub(super) end: oneshot::Receiver<StreamEnd>,
    /// The task of its websocket.
    pub(super) _task: Option<Arc<JoinSet<()>>>,
}

/// Starts a command and joins its sockets.
///
/// After the request, a background task goes on even if this future is dropped: it then ends the
/// command, whose agent would otherwise wait for its sockets.
pub(super) async fn start(exec: Exec) -> Result<ExecSession, ClientError> {
    let agent = Arc::clone(&exec.agent);
    if let Some(connection) = agent.http2().await?
        && let Some(session) = stream::start(&agent, &exec, connection).await?
    {
        return Ok(session);
    }
    let info = agent.known_info().await?;
    let request = exec.request(&info)?;
    // Before the command exists, or its end could be missed.
    let watch = if info.has(OPERATION_WAIT) {
        Watch::LongPoll
    } else {
        Watch::Events(Box::new(agent.event_socket(&[event::OPERATION]).await?))
    };
    let connection = agent.http.connect_for_change().await?;
    let (sender, receiver) = oneshot::channel();
    let background = agent.background.clone();
    background.spawn(create_and_join(agent, connection, request, watch, sender));
    receiver
        .await
        .unwrap_or_else(|_| Err(ClientError::lost_somehow(STARTING)))
}

/// The action in errors while it runs.
pub(super) const DURING: &str = "the command was running";

/// The action in errors while starting.
pub(super) const STARTING: &str = "starting the command";

/// Creates the command and joins its sockets, as long as the caller waits for the session.
async fn create_and_join(
    agent: Arc<Agent>,
    connection: Connection,
    request: ExecRequest,
    watch: Watch,
    mut sender: oneshot::Sender<Result<ExecSession, ClientError>>,
) {
    let (id, secrets) = match create(&agent, connection, &request).await {
        Ok(created) => created,
        Err(error) => {
            let _ = sender.send(Err(error));
            return;
        }
    };
    let terminal = request.interactive;
    let joined = tokio::select! {
        joined = join_all(&agent, id, &secrets, terminal) => joined,
        () = sender.closed() => Err(ClientError::lost_somehow(STARTING)),
    };
    match joined {
        // If the caller is gone, dropping the session ends the command.
        Ok((control, streams)) => {
            let session = start_tasks(agent, id, watch, terminal, control, streams);
            drop(sender.send(Ok(session)));
        }
        Err(error) => {
            // LXD's agent cannot cancel a command, but drops it after seconds without sockets.
            let _ = agent.cancel_operation(id).await;
            // Streams may have been joined, and the command started.
            let _ = sender.send(Err(error.after_start(STARTING)));
        }
    }
}

/// Creates the command. Returns its operation and the secrets of its sockets.
async fn create(
    agent: &Agent,
    connection: Connection,
    request: &ExecRequest,
) -> Result<(OperationId, BTreeMap<String, Secret>), ClientError> {
    let body = serde_json::to_vec(request)
        .map_err(|error| ClientError::protocol_because("the request cannot be written", error))?;
    let call = Call::change(Method::POST, path::EXEC, body, STARTING);
    let answer = agent.http.call_on(connection, &call).await?;
    let operation: Operation = metadata(answer, "the operation")?;
    let started: ExecStarted = serde_json::from_value(operation.metadata).map_err(|error| {
        ClientError::protocol_because(
            "the secrets of the command's sockets are missing or wrong",
            error,
        )
    })?;
    Ok((operation.id, started.fds))
}

/// Joins the control socket and the streams concurrently: an agent waits only seconds for them.
///
/// Our agent starts a command without a terminal when its streams are joined. It may have ended before
/// the control socket is joined, which is then refused with status 400. LXD's agent waits for the
/// control socket, and the operation fails without it.
async fn join_all(
    agent: &Agent,
    id: OperationId,
    secrets: &BTreeMap<String, Secret>,
    terminal: bool,
) -> Result<(Option<Socket>, Vec<Socket>), ClientError> {
    let streams: &[&str] = if terminal {
        &[STDIN]
    } else {
        &[STDIN, STDOUT, STDERR]
    };
    let streams = try_join_all(streams.iter().map(|name| join(agent, id, secrets, name)));
    let control = async {
        match join(agent, id, secrets, CONTROL).await {
            Err(ClientError::Agent { status: 400, .. }) if !terminal => Ok(None),
            joined => joined.map(Some),
        }
    };
    try_join(control, streams).await
}

async fn join(
    agent: &Agent,
    id: OperationId,
    secrets: &BTreeMap<String, Secret>,
    name: &str,
) -> Result<Socket, ClientError> {
    let secret = secrets
        .get(name)
        .ok_or_else(|| ClientError::protocol(format!("no secret for the socket {name:?}")))?;
    let buffer = match name {
        CONTROL => ws::SMALL_BUFFER_BYTES,
        _ => ws::DATA_BUFFER_BYTES,
    };
    let path = path::operation_websocket(id, secret);
    ws::open(&agent.http, &path, buffer, "joining the command's streams").await
}

/// Starts the tasks of a session. `streams` are in the order of their numbers.
fn start_tasks(
    agent: Arc<Agent>,
    id: OperationId,
    watch: Watch,
    terminal: bool,
    control: Option<Socket>,
    streams: Vec<Socket>,
) -> ExecSession {
    let owner = Arc::clone(&agent);
    let state = CommandState::default();
    let mut tasks = JoinSet::new();
    let (handle, commands) = control::queue();
    let (stdin, input, sent) = input::pipe();
    let mut readers = Vec::new();
    let mut ends = Vec::new();
    let mut collect = |output_stream: OutputStream, socket, name| {
        readers.push(output_stream.reader);
        ends.push(Output {
            socket,
            name,
            end: output_stream.end,
            _task: Some(output_stream.task),
        });
    };
    if let Some(socket) = control {
        let silence = agent.timeouts.silence_or(SILENCE_TIMEOUT);
        tasks.spawn(control::run_control(
            socket,
            commands,
            silence,
            state.lost.clone(),
        ));
    }
    let mut streams = streams.into_iter();
    if let Some(socket) = streams.next() {
        let (sink, stream) = socket.split();
        // The end of a terminal's output also ends its input.
        let finished = CancellationToken::new();
        let over = finished.clone().drop_guard();
        if terminal {
            let output_stream = output::start(
                Guarded {
                    stream,
                    _over: over,
                },
                STDIN,
                &state,
            );
            collect(output_stream, STDIN, "the terminal's output");
        } else {
            tasks.spawn(async move {
                let mut stream = stream;
                while let Some(Ok(_)) = stream.next().await {}
                drop(over);
            });
        }
        tasks.spawn(input::feed(input, sink, terminal, finished));
    }
    for (socket, (number, name)) in
        streams.zip([(STDOUT, "standard output"), (STDERR, "standard error")])
    {
        collect(output::start(socket, number, &state), number, name);
    }
    let (sender, result) = oneshot::channel();
    let reported = state.reported.clone();
    tasks.spawn(async move {
        let _pending = reported.pending();
        let operation = operation::end(&agent, id, watch).await;
        if let Ok(operation) = &operation {
            reported.set(operation);
        }
        // Fails if the session is gone.
        let _ = sender.send(operation);
    });
    let parts = Parts {
        control: handle,
        stdin,
        readers,
        ends,
        result,
        state,
        sent,
        terminal,
        stream: None,
        tasks,
    };
    ExecSession::new(owner, id, parts)
}

/// What a session is made of, however the command was started.
pub(super) struct Parts {
    pub(super) control: ExecControl,
    pub(super) stdin: ExecStdin,
    /// Standard output, and standard error unless there is a terminal.
    pub(super) readers: Vec<ExecReader>,
    pub(super) ends: Vec<Output>,
    pub(super) result: oneshot::Receiver<Result<Operation, ClientError>>,
    pub(super) state: CommandState,
    pub(super) sent: Arc<Sent>,
    pub(super) terminal: bool,
    pub(super) stream: Option<SessionEnd>,
    pub(super) tasks: JoinSet<()>,
}

impl ExecSession {
    pub(super) fn new(agent: Arc<Agent>, id: OperationId, parts: Parts) -> Self {
        let mut readers = parts.readers.into_iter();
        Self {
            id,
            control: parts.control,
            stdin: Some(parts.stdin),
            stdout: readers.next(),
            stderr: readers.next(),
            ends: Ends::new(parts.ends),
            result: parts.result,
            operation: None,
            deadline: None,
            outcome: None,
            state: parts.state,
            sent: parts.sent,
            terminal: parts.terminal,
            agent,
            span: Span::none(),
            _stream: parts.stream,
            tasks: parts.tasks,
        }
    }

    /// The operation of this command.
    #[must_use]
    pub const fn operation(&self) -> OperationId {
        self.id
    }

    /// A handle for window sizes and signals.
    #[must_use]
    pub fn control(&self) -> ExecControl {
        self.control.clone().of(self.agent.endpoint())
    }

    /// Standard input; `None` if it was taken before.
    pub const fn take_stdin(&mut self) -> Option<ExecStdin> {
        self.stdin.take()
    }

    /// Standard output, or all output of a terminal; `None` if it was taken before.
    pub const fn take_stdout(&mut self) -> Option<ExecReader> {
        self.stdout.take()
    }

    /// Standard error; `None` with a terminal, or if it was taken before.
    pub const fn take_stderr(&mut self) -> Option<ExecReader> {
        self.stderr.take()
    }

    /// Everything that the command does from now on in one stream, which ends with its exit status. What
    /// was taken before is not in it. Standard input that was not taken ends.
    #[must_use]
    pub fn into_events(mut self) -> ExecEvents {
        self.stdin = None;
        ExecEvents::new(self)
    }

    /// Sets the span of the command.
    pub(super) fn trace(&mut self, span: Span) {
        span.record("operation", tracing::field::display(self.id));
        self.span = span;
    }

    /// Writes all of standard input in the background, and ends it. Fails, without an effect, when the
    /// command has closed it.
    pub(super) fn feed(&mut self, bytes: Vec<u8>) {
        if let Some(mut stdin) = self.stdin.take() {
            self.tasks.spawn(async move {
                if stdin.write_all(&bytes).await.is_ok() {
                    let _ = stdin.shutdown().await;
                }
            });
        }
    }

    /// Waits for the end of the command and of its output. Later calls return the same status.
    ///
    /// Streams that were not taken are dropped first: the input ends, output is discarded. Output that
    /// was taken must be read or dropped. Up to 1 MiB of each stream may be read after this returned, and
    /// with LXD's protocol 8 MiB; while more is unread, this waits.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: when the future is dropped, the command goes on, and another call waits for the rest.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] when the agent, its machine or a stream was lost, so that the
    /// exit status is unknown; [`ClientError::IncompleteOutput`] when bytes are missing;
    /// [`ClientError::IncompleteInput`] when the command did not get all of its input;
    /// [`ClientError::Failed`] when the agent could not run the command for reasons of its own.
    /// After one of these, later calls fail with [`ClientError::ConnectionLost`].
    pub async fn wait(&mut self) -> Result<ExitStatus, ClientError> {
        drop((self.stdin.take(), self.stdout.take(), self.stderr.take()));
        self.outcome().await
    }

    /// The exit status if the command and its output have ended, without waiting. No stream is dropped.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, ClientError> {
        self.outcome().now_or_never().transpose()
    }

    /// Sends `SIGKILL` and waits for the end. A command that has ended before has its own status. What the
    /// signal reaches is as for [`ExecControl::signal`].
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the signal may or may not be sent. Nothing else is lost.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub async fn kill(&mut self) -> Result<ExitStatus, ClientError> {
        // Fails when the command has ended or the agent is gone; the end tells which.
        let _ = self.control.signal(libc::SIGKILL).await;
        self.wait().await
    }

    /// Sends `SIGTERM`, and `SIGKILL` if the command has not ended after `grace`, and waits for the end.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, each of the signals may or may not be sent. Nothing else is lost.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub async fn terminate(&mut self, grace: Duration) -> Result<ExitStatus, ClientError> {
        // As for `kill`.
        let _ = self.control.signal(libc::SIGTERM).await;
        match timeout(grace, self.wait()).await {
            Ok(end) => end,
            Err(_) => self.kill().await,
        }
    }

    /// Waits for the end, once. Cancel safe.
    async fn outcome(&mut self) -> Result<ExitStatus, ClientError> {
        let at = |error: ClientError, agent: &Agent| error.after_start(DURING).at(agent.endpoint());
        if let Some(earlier) = self.outcome.clone() {
            return earlier.map_err(|text| at(ClientError::lost(DURING, text), &self.agent));
        }
        let span = self.span.clone();
        let end = self.end().instrument(span.clone()).await;
        let end = end.map_err(|error| at(error, &self.agent));
        span.in_scope(|| match &end {
            Ok(status) => debug!(status.code, "the command ended"),
            Err(error) => debug!(
                error = with_causes(error),
                "the end of the command is not known"
            ),
        });
        let kept = end.as_ref().map(ExitStatus::clone);
        self.outcome = Some(kept.map_err(|error| with_causes(error)));
        end
    }

    async fn end(&mut self) -> Result<ExitStatus, ClientError> {
        let operation = match self.operation.take() {
            Some(operation) => operation,
            None => self.operation_end().await?,
        };
        let operation = self.operation.insert(operation).clone();
        self.state.ended.cancel();
        self.check_input(&operation)?;
        self.ends.all().await;
        exit_status(operation, std::mem::take(&mut self.ends.known))
    }

    /// Checks that the command got all of its input, or closed it.
    fn check_input(&self, operation: &Operation) -> Result<(), ClientError> {
        let Ok(ended) = ExecEnded::deserialize(&operation.metadata) else {
            return Ok(());
        };
        if let Some(received) = ended.input_lost {
            let sent = self.sent.bytes().max(received);
            return Err(ClientError::IncompleteInput {
                endpoint: None,
                sent,
                received,
            });
        }
        // For a terminal, the agent counts the output of this socket.
        let counted = ended.bytes.as_ref().filter(|_| !self.terminal);
        let received = counted.and_then(|bytes| bytes.get(STDIN).copied());
        match (self.sent.all(), received) {
            (Some(sent), Some(received)) if sent != received => Err(ClientError::IncompleteInput {
                endpoint: None,
                sent,
                received,
            }),
            _ => Ok(()),
        }
    }

    /// Waits for the operation's end, or for an error that makes it unknowable.
    async fn operation_end(&mut self) -> Result<Operation, ClientError> {
        tokio::select! {
            operation = &mut self.result => return flatten(operation),
            () = self.state.lost.cancelled() => return Err(ClientError::lost(DURING, "the agent does not answer any more")),
            reason = self.ends.broken() => debug!(reason, "a stream broke"),
        }
        // The streams of a command that could not be started break too, shortly before its result.
        let reason = self.ends.first_break().unwrap_or_default();
        let deadline = Instant::now() + GRACE_TIMEOUT;
        timeout_at(*self.deadline.get_or_insert(deadline), &mut self.result)
            .await
            .map_err(|_| ClientError::lost(DURING, reason))
            .and_then(flatten)
    }
}

fn flatten(
    result: Result<Result<Operation, ClientError>, oneshot::error::RecvError>,
) -> Result<Operation, ClientError> {
    result.unwrap_or(Err(ClientError::lost_somehow(
        "waiting for the command to end",
    )))
}

/// Collects the ends of the output streams.
#[derive(Debug)]
struct Ends {
    pending: Vec<Output>,
    known: Vec<(&'static str, &'static str, StreamEnd)>,
}

impl Ends {
    const fn new(pending: Vec<Output>) -> Self {
        Self {
            pending,
            known: Vec::new(),
        }
    }

    /// Waits for the next end; false when all are known. Cancel safe.
    async fn next(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let waiting = self.pending.iter_mut().map(|output| &mut output.end);
        let (end, index, _) = futures_util::future::select_all(waiting).await;
        let output = self.pending.swap_remove(index);
        let end = end.unwrap_or_else(|_| StreamEnd::Broken {
            received: 0,
            reason: "the stream was dropped".to_owned(),
        });
        self.known.push((output.socket, output.name, end));
        true
    }

    /// Waits for a stream to break; for ever if all are complete.
    async fn broken(&mut self) -> String {
        loop {
            if let Some(reason) = self.first_break() {
                return reason;
            }
            if !self.next().await {
                std::future::pending::<()>().await;
            }
        }
    }

    fn first_break(&self) -> Option<String> {
        self.known.iter().find_map(|(_, name, end)| match end {
            StreamEnd::Broken { reason, .. } => Some(format!("{name} broke off: {reason}")),
            StreamEnd::Complete { .. } => None,
        })
    }

    /// Waits until all are known. Cancel safe.
    async fn all(&mut self) {
        while self.next().await {}
    }
}

/// Combines the operation's result with the ends of the streams.
fn exit_status(
    operation: Operation,
    ends: Vec<(&'static str, &'static str, StreamEnd)>,
) -> Result<ExitStatus, ClientError> {
    let ended: Option<ExecEnded> = serde_json::from_value(operation.metadata).ok();
    if operation.status_code != OperationStatus::Success.code() {
        // Never started, or ended by the agent: the streams may end without a marker.
        let text = if operation.err.is_empty() {
            bounded(&operation.status)
        } else {
            bounded(&operation.err)
        };
        return match ended {
            Some(ended) => Ok(ExitStatus {
                code: ended.exit_code,
                signal: ended.signal,
                output_complete: ended.output_complete.unwrap_or(false),
                timed_out: ended.timed_out,
                failure: Some(text),
            }),
            None => Err(ClientError::Failed {
                endpoint: None,
                status: operation.status_code,
                text,
            }),
        };
    }
    let ended =
        ended.ok_or_else(|| ClientError::protocol("a command that ended without a result"))?;
    for (socket, name, end) in ends {
        let expected = ended.bytes.as_ref().and_then(|bytes| bytes.get(socket));
        check(name, end, expected.copied())?;
    }
    Ok(ExitStatus {
        code: ended.exit_code,
        signal: ended.signal,
        output_complete: ended.output_complete.unwrap_or(true),
        timed_out: ended.timed_out,
        failure: None,
    })
}

/// Checks that everything the agent sent on a stream has arrived.
fn check(stream: &'static str, end: StreamEnd, expected: Option<u64>) -> Result<(), ClientError> {
    match (end, expected) {
        (StreamEnd::Complete { .. }, None) => Ok(()),
        (StreamEnd::Complete { received } | StreamEnd::Broken { received, .. }, Some(expected))
            if received == expected =>
        {
            Ok(())
        }
        (StreamEnd::Complete { received }, Some(expected)) => Err(ClientError::IncompleteOutput {
            endpoint: None,
            stream,
            expected,
            received,
        }),
        (StreamEnd::Broken { reason, .. }, _) => Err(ClientError::lost("reading output", reason)),
    }
}

/// A stream that cancels a token when it is dropped.
#[derive(Debug)]
struct Guarded<S> {
    stream: S,
    _over: tokio_util::sync::DropGuard,
}

impl<S: futures_util::Stream + Unpin> futures_util::Stream for Guarded<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn operation(code: u16, metadata: serde_json::Value) -> Operation {
        serde_json::from_value(json!({
            "id": "01234567-89ab-4cde-8f01-23456789abcd",
            "status_code": code,
            "err": "words",
            "metadata": metadata,
        }))
        .unwrap()
    }

    fn complete(received: u64) -> (&'static str, &'static str, StreamEnd) {
        (STDOUT, "standard output", StreamEnd::Complete { received })
    }

    fn broken(received: u64) -> (&'static str, &'static str, StreamEnd) {
        let reason = "gone".to_owned();
        (
            STDOUT,
            "standard output",
            StreamEnd::Broken { received, reason },
        )
    }

    #[test]
    fn the_result_of_an_lxd_agent_is_not_checked_against_byte_counts() {
        let status = exit_status(operation(200, json!({"return": 7})), vec![complete(3)]).unwrap();
        assert_eq!(status.code, 7);
        assert!(status.output_complete);
    }

    #[test]
    fn missing_bytes_are_an_error_whatever_the_exit_status() {
        let operation = operation(200, json!({"return": 0, "bytes": {"1": 4}}));
        assert!(matches!(
            exit_status(operation, vec![complete(3)]),
            Err(ClientError::IncompleteOutput {
                expected: 4,
                received: 3,
                ..
            })
        ));
    }

    #[test]
    fn a_stream_without_its_end_is_an_error_unless_every_byte_is_there() {
        let stock = operation(200, json!({"return": 0}));
        assert!(matches!(
            exit_status(stock, vec![broken(3)]),
            Err(ClientError::ConnectionLost { .. })
        ));
        let ours = operation(200, json!({"return": 0, "bytes": {"1": 3}}));
        exit_status(ours, vec![broken(3)]).unwrap();
    }

    #[test]
    fn a_command_that_was_not_found_has_its_status_and_the_agents_error() {
        let status = exit_status(operation(400, json!({"return": 127})), vec![broken(0)]).unwrap();
        assert_eq!(status.code, 127);
        assert_eq!(status.failure.as_deref(), Some("words"));
        assert!(!status.success());
    }

    #[test]
    fn a_failure_without_an_exit_status_may_have_run() {
        assert!(matches!(
            exit_status(operation(400, json!(null)), vec![]),
            Err(ClientError::Failed { status: 400, .. })
        ));
    }

    #[test]
    fn success_without_a_result_breaks_the_protocol() {
        assert!(matches!(
            exit_status(operation(200, json!({})), vec![]),
            Err(ClientError::Protocol { .. })
        ));
    }

    /// A session whose result comes from the sender, if ever, and whose standard output has ended.
    fn session(end: StreamEnd) -> (ExecSession, oneshot::Sender<Result<Operation, ClientError>>) {
        let endpoint = crate::Endpoint::Unix("/nowhere".into());
        let (sender, result) = oneshot::channel();
        let (ended, stdout) = oneshot::channel();
        ended.send(end).unwrap();
        let output = Output {
            socket: STDOUT,
            name: "standard output",
            end: stdout,
            _task: None,
        };
        let session = ExecSession {
            id: OperationId::from_random_bytes([1; 16]),
            control: control::queue().0,
            stdin: None,
            stdout: None,
            stderr: None,
            ends: Ends::new(vec![output]),
            result,
            operation: None,
            deadline: None,
            outcome: None,
            state: CommandState::default(),
            sent: Arc::default(),
            terminal: false,
            agent: crate::Client::new(endpoint, crate::Security::Plain).agent,
            span: Span::none(),
            _stream: None,
            tasks: JoinSet::new(),
        };
        (session, sender)
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_in_pieces_for_the_result_of_a_broken_command_ends_in_time() {
        let (mut session, _sender) = session(broken(0).2);
        let start = Instant::now();
        let error = loop {
            if let Ok(end) = timeout(GRACE_TIMEOUT / 4, session.wait()).await {
                break end.unwrap_err();
            }
            assert!(start.elapsed() < GRACE_TIMEOUT * 2);
        };
        assert!(matches!(error, ClientError::ConnectionLost { .. }));
        let again = session.wait().await.unwrap_err();
        let cause = std::error::Error::source(&again).unwrap();
        assert_eq!(cause.to_string(), with_causes(&error));
    }

    #[tokio::test]
    async fn the_result_stays_when_waiting_for_the_output_is_given_up() {
        let (mut session, sender) = session(complete(3).2);
        let (ended, stderr) = oneshot::channel();
        session.ends.pending.push(Output {
            socket: STDERR,
            name: "standard error",
            end: stderr,
            _task: None,
        });
        let ran = operation(200, json!({"return": 7, "bytes": {"1": 3, "2": 0}}));
        sender.send(Ok(ran)).unwrap();
        for _ in 0..3 {
            assert_eq!(session.try_wait().unwrap(), None);
        }
        ended.send(StreamEnd::Complete { received: 0 }).unwrap();
        assert_eq!(session.try_wait().unwrap().unwrap().code, 7);
        assert_eq!(session.wait().await.unwrap().code, 7);
    }
}

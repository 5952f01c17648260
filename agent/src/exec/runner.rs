//! Runs one command: from the client's streams to the exit status.
//!
//! ```text
//! fork ─► exec ─► command runs ─► exits ─► output drains ─► Exited
//!  │       │           │             ▲          │
//!  │       │           │ must end    │          └ must end: process tree ends ─► Exited
//!  │       │           └─► SIGHUP, 5 s, SIGTERM, 5 s, SIGKILL ─► unkillable ─► Failed
//!  │       └ must end: SIGKILL ─► Failed
//!  └ program not found, … ─► Failed
//! ```
//!
//! A command must end when its client disconnects, when it is cancelled, when its time limit expires,
//! and when its input connection fails: it never reads an incomplete input as end of file. This holds
//! from `fork` on, because a file system that does not respond can delay `exec` for ever. With
//! `on-disconnect`, a client's disconnect sends SIGHUP only, or has no effect. When the agent stops, the
//! command ends or is detached, as configured.
//!
//! Each stream has a task of its own, so that none waits for another. Output waits for a slow client
//! without limit. Once the agent has ended the command, it waits only while the client reads
//! ([`defaults::STALL_TIMEOUT`]), so that the operation becomes final.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{
    StreamExt,
    future::{self, Either, OptionFuture},
};
use nix::{fcntl::OFlag, sys::signal::Signal, unistd::pipe2};
use tokio::{
    net::unix::pipe,
    select,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::exec::{self, OnDisconnect};

use super::{
    ExecSpec,
    background::BackgroundOutputs,
    cgroup::Cgroups,
    child::{Child, ExitStatus, RunError, Seed, Stdio, signal_group},
    control,
    process_tree::{END_SIGNALS, ProcessTree},
    pty::Pty,
    pump::{
        self, ClientWatch, InputEnd, InputLost, InputResult, InputSource, Loss, OutputResult,
        OutputSink, Progress, StreamEnd,
    },
    stream::{ControlFrames, StreamEnds},
    websocket::{MessageSink, MessageSource},
};
use crate::{defaults, http::ws::WebSocket, shutdown::Shutdown, system::reaper};

/// The client's ends of a command's streams.
#[derive(Debug)]
pub(crate) enum ClientIo {
    /// One websocket each.
    Websockets(Box<Sockets>),
    /// One HTTP/2 stream for all.
    Stream(Box<StreamEnds>),
}

impl ClientIo {
    /// The sockets, to be closed.
    fn into_sockets(self) -> Vec<WebSocket> {
        match self {
            Self::Websockets(sockets) => {
                let outputs = sockets.outputs.into_iter().flat_map(<[WebSocket; 2]>::from);
                std::iter::once(sockets.stdin)
                    .chain(sockets.control)
                    .chain(outputs)
                    .collect()
            }
            Self::Stream(_) => Vec::new(),
        }
    }
}

/// The sockets of a command.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Without it, the client counts as connected while standard output's socket is open.
    pub(crate) control: Option<WebSocket>,
    /// Yields the control socket if it is joined later.
    pub(crate) later: mpsc::Receiver<(String, WebSocket)>,
    pub(crate) stdin: WebSocket,
    /// Standard output and standard error; a command with a terminal has none.
    pub(crate) outputs: Option<(WebSocket, WebSocket)>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It ran.
    Exited {
        /// The exit status as a shell reports it: 128 + signal for a signal.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// Whether every output stream was read to its end.
        output_complete: bool,
        /// Bytes sent on each output socket, and received on the input socket if the input is complete.
        bytes: BTreeMap<&'static str, u64>,
        /// Set if the agent ended the command because its input connection failed.
        input_lost: Option<InputLost>,
        /// Whether its time limit expired.
        timed_out: bool,
    },
    /// It continues without the agent, for this reason.
    Detached(&'static str),
    /// It has no exit status.
    Failed {
        error: RunError,
        /// Whether its time limit expired.
        timed_out: bool,
    },
}

/// Runs the agent's commands. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CommandRunner {
    spawns: Arc<Semaphore>,
    cgroups: Cgroups,
    background: BackgroundOutputs,
}

/// The events that end or detach a command.
#[derive(Debug, Clone)]
pub(crate) struct StopTokens {
    /// The operation is cancelled.
    pub(crate) cancel: CancellationToken,
    /// The agent stops.
    pub(crate) stopping: CancellationToken,
    /// Whether the command ends then; otherwise it is detached.
    pub(crate) end_on_stop: bool,
}

impl StopTokens {
    /// Resolves when the command must end, with the reason.
    async fn end(&self) -> EndReason {
        select! {
            () = self.cancel.cancelled() => EndReason::Cancelled,
            () = self.stopping.cancelled(), if self.end_on_stop => EndReason::AgentStops,
        }
    }

    /// Resolves when the command must be detached.
    async fn detached(&self) {
        if self.end_on_stop {
            std::future::pending::<()>().await;
        }
        self.stopping.cancelled().await;
    }
}

/// Why the agent ends a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndReason {
    Disconnected,
    InputLost,
    Cancelled,
    AgentStops,
    Timeout,
}

impl EndReason {
    const fn describe(self) -> &'static str {
        match self {
            Self::Disconnected => "its client is gone",
            Self::InputLost => "its input was lost",
            Self::Cancelled => "it was cancelled",
            Self::AgentStops => "the agent stops",
            Self::Timeout => "its time is over",
        }
    }
}

impl CommandRunner {
    pub(crate) fn new(shutdown: Shutdown) -> Self {
        Self {
            spawns: Arc::new(Semaphore::new(defaults::MAX_SPAWNS)),
            cgroups: Cgroups::open(),
            background: BackgroundOutputs::new(shutdown),
        }
    }

    /// Removes control groups and reaps processes that outlive their commands. Never returns.
    pub(crate) async fn clean_up(&self) {
        tokio::join!(self.cgroups.clean_up(), reaper::watch());
    }

    /// Runs a command until it exits or `stops` ends it. `name` names its control group. The caller closes
    /// the returned sockets, whose streams have ended.
    ///
    /// Dropping the future kills the command, but not the processes it started.
    pub(crate) async fn run(
        &self,
        name: &str,
        spec: Arc<ExecSpec>,
        client: ClientIo,
        stops: StopTokens,
    ) -> (Ended, Vec<WebSocket>) {
        // A time limit beyond the clock's range is none.
        let deadline = spec
            .timeout
            .and_then(|time| Instant::now().checked_add(time));
        let forked = select! {
            forked = self.fork(name, Arc::clone(&spec)) => forked,
            why = stops.end() => Err(RunError::Ended(why.describe())),
            () = stops.detached() => Err(RunError::Ended(EndReason::AgentStops.describe())),
            () = passed(deadline) => Err(RunError::Ended(EndReason::Timeout.describe())),
        };
        match forked {
            Ok(forked) => {
                let background = self.background.clone();
                Running::new(forked, client, background, spec.on_disconnect)
                    .finish(spec.wait_for_eof, deadline, stops)
                    .await
            }
            Err(error) => {
                let timed_out = deadline.is_some_and(|deadline| deadline <= Instant::now());
                (Ended::Failed { error, timed_out }, client.into_sockets())
            }
        }
    }

    async fn fork(&self, name: &str, spec: Arc<ExecSpec>) -> Result<Forked, RunError> {
        let failed = |step| move |source| RunError::System { step, source };
        // Never closed, so this only waits.
        let permit = Arc::clone(&self.spawns)
            .acquire_owned()
            .await
            .map_err(io::Error::other)
            .map_err(failed("start"))?;
        let (streams, stdio) = Streams::open(&spec).map_err(failed("make the streams"))?;
        let (cgroup, signal_delay) = (self.cgroups.create(name), spec.signal_delay);
        let directory = cgroup.as_ref().and_then(|cgroup| cgroup.directory().ok());
        let seed = Seed {
            spec,
            stdio,
            cgroup: directory,
        };
        let child = Arc::new(Child::start(seed).await?);
        let processes = ProcessTree::new(Arc::clone(&child), cgroup, signal_delay);
        Ok(Forked {
            child,
            processes,
            streams,
            permit,
        })
    }
}

/// A forked command whose streams are not read yet.
struct Forked {
    processes: ProcessTree,
    child: Arc<Child>,
    streams: Streams,
    permit: OwnedSemaphorePermit,
}

/// The agent's ends of a command's streams.
#[derive(Debug)]
enum Streams {
    Terminal(Arc<Pty>),
    Pipes {
        stdin: pipe::Sender,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    },
}

impl Streams {
    fn open(spec: &ExecSpec) -> io::Result<(Self, Stdio)> {
        if let Some(size) = spec.terminal {
            let (pty, stdin) = Pty::open(size, spec.uid)?;
            let (stdout, stderr) = (stdin.try_clone()?, stdin.try_clone()?);
            return Ok((
                Self::Terminal(Arc::new(pty)),
                Stdio {
                    stdin,
                    stdout,
                    stderr,
                },
            ));
        }
        let (stdin, stdin_ours) = new_pipe(spec.uid)?;
        let (stdout_ours, stdout) = new_pipe(spec.uid)?;
        let (stderr_ours, stderr) = new_pipe(spec.uid)?;
        let streams = Self::Pipes {
            stdin: pipe::Sender::from_owned_fd(stdin_ours)?,
            stdout: pipe::Receiver::from_owned_fd(stdout_ours)?,
            stderr: pipe::Receiver::from_owned_fd(stderr_ours)?,
        };
        Ok((
            streams,
            Stdio {
                stdin,
                stdout,
                stderr,
            },
        ))
    }
}

/// A pipe as (reader, writer). The user owns it, and so can open `/dev/stdout`.
fn new_pipe(uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    nix::unistd::fchown(&writer, Some(uid.into()), None)?;
    Ok((reader, writer))
}

/// A forked command and the tasks of its streams.
struct Running {
    processes: ProcessTree,
    child: Arc<Child>,
    /// Limits how many commands start at once.
    permit: Option<OwnedSemaphorePermit>,
    /// The pumps of the output.
    outputs: JoinSet<OutputEnd>,
    /// The pump of the input.
    input: JoinSet<(InputResult, Option<WebSocket>)>,
    input_lost_sender: Option<mpsc::Sender<InputLost>>,
    /// Set if a lost input ends the command. Closed once the command has ended.
    input_lost: Option<mpsc::Receiver<InputLost>>,
    /// The reader of the control socket.
    control: JoinSet<Option<WebSocket>>,
    /// Whether there is a control socket, or was.
    has_control: Arc<AtomicBool>,
    background: BackgroundOutputs,
    on_disconnect: OnDisconnect,
    /// Of all output streams together.
    progress: Progress,
    /// Cancelled when the command has ended.
    exited: CancellationToken,
    /// Cancelled when the control socket is lost, or without one standard output's.
    control_lost: CancellationToken,
    /// Cancelled when all output streams have ended.
    stop: CancellationToken,
}

impl Running {
    fn new(
        forked: Forked,
        client: ClientIo,
        background: BackgroundOutputs,
        on_disconnect: OnDisconnect,
    ) -> Self {
        let (input_lost_sender, input_lost) = mpsc::channel(1);
        let mut running = Self {
            processes: forked.processes,
            child: forked.child,
            permit: Some(forked.permit),
            outputs: JoinSet::new(),
            input: JoinSet::new(),
            input_lost: (on_disconnect == OnDisconnect::End).then_some(input_lost),
            input_lost_sender: Some(input_lost_sender),
            control: JoinSet::new(),
            has_control: Arc::default(),
            background,
            on_disconnect,
            progress: Progress::default(),
            exited: CancellationToken::new(),
            control_lost: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        match client {
            ClientIo::Websockets(sockets) => running.start_websockets(forked.streams, *sockets),
            ClientIo::Stream(ends) => running.start_stream(forked.streams, *ends),
        }
        running
    }

    fn start_websockets(&mut self, streams: Streams, sockets: Sockets) {
        let has_control = sockets.control.is_some();
        self.has_control.store(has_control, Ordering::Release);
        match streams {
            Streams::Terminal(pty) => {
                self.read_control(sockets.control, sockets.later, Some(Arc::clone(&pty)));
                let (sink, source) = sockets.stdin.split();
                let ends = (MessageSink(sink), MessageSource(source));
                // One socket carries both directions. It ends when the output ends.
                self.pump_terminal(exec::STDIN, pty, ends, |sink, source| {
                    sink.0.reunite(source.0).ok()
                });
            }
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                self.read_control(sockets.control, sockets.later, None);
                self.pump_stdin(stdin, sockets.stdin, Some);
                let outputs = sockets.outputs.into_iter().flat_map(<[WebSocket; 2]>::from);
                let sources = [(exec::STDOUT, stdout), (exec::STDERR, stderr)];
                for ((name, output), socket) in sources.into_iter().zip(outputs) {
                    let (sink, source) = socket.split();
                    let ends = (MessageSink(sink), MessageSource(source));
                    self.pump_output(name, output, ends, |sink, source| {
                        sink.0.reunite(source.0).ok()
                    });
                }
            }
        }
    }

    fn start_stream(&mut self, streams: Streams, ends: StreamEnds) {
        self.has_control.store(true, Ordering::Release);
        let StreamEnds {
            control,
            stdin: input,
            stdout: output,
            stderr: errors,
        } = ends;
        match streams {
            Streams::Terminal(pty) => {
                self.read_frames(control, Some(Arc::clone(&pty)));
                self.pump_terminal(exec::STDOUT, pty, (output, input), |_, _| None);
            }
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                self.read_frames(control, None);
                self.pump_stdin(stdin, input, |_| None);
                for (name, source, sink) in [
                    (exec::STDOUT, stdout, output),
                    (exec::STDERR, stderr, errors),
                ] {
                    let watch = sink.watch();
                    self.pump_output(name, source, (sink, watch), |_, _| None);
                }
            }
        }
    }

    /// Reads the frames of a stream. Keeps the terminal open, as [`read_control`](Self::read_control) does.
    fn read_frames(&mut self, mut frames: ControlFrames, pty: Option<Arc<Pty>>) {
        let (pid, lost, stop) = (
            self.child.pid(),
            self.control_lost.clone(),
            self.stop.clone(),
        );
        let background = self.background.clone();
        self.control.spawn(async move {
            select! {
                () = control::run_stream(&mut frames, pid, pty.as_ref()) => lost.cancel(),
                () = stop.cancelled() => background.spawn(frames.drain()),
            }
            None
        });
    }

    /// Reads the control socket. Keeps the terminal open: closing it would send SIGHUP to a program that has
    /// closed its side and is about to exit.
    fn read_control(
        &mut self,
        socket: Option<WebSocket>,
        mut later: mpsc::Receiver<(String, WebSocket)>,
        pty: Option<Arc<Pty>>,
    ) {
        let (pid, lost, stop) = (
            self.child.pid(),
            self.control_lost.clone(),
            self.stop.clone(),
        );
        let has_control = Arc::clone(&self.has_control);
        self.control.spawn(async move {
            let mut socket = match socket {
                Some(socket) => socket,
                None => {
                    let (_, socket) = stop.run_until_cancelled(later.recv()).await??;
                    has_control.store(true, Ordering::Release);
                    socket
                }
            };
            select! {
                () = control::run(&mut socket, pid, pty.as_ref()) => lost.cancel(),
                () = stop.cancelled() => {}
            }
            Some(socket)
        });
    }

    /// `into_socket` makes the socket of the client's end.
    fn pump_stdin<R: InputSource + 'static>(
        &mut self,
        mut target: pipe::Sender,
        mut source: R,
        into_socket: impl FnOnce(R) -> Option<WebSocket> + Send + 'static,
    ) {
        let (stop, sender) = (self.stop.clone(), self.input_lost_sender.take());
        self.input.spawn(async move {
            let input = pump::pump_input(&mut source, &mut target, &stop).await;
            let input = match input.lost() {
                Ok(input) => input,
                Err(lost) => {
                    let after = lost.after;
                    sender.map(|sender| sender.try_send(lost));
                    // Keep the pipe open until the command has ended: it must not read end of file.
                    stop.cancelled().await;
                    InputResult {
                        bytes: after,
                        end: InputEnd::Stopped,
                    }
                }
            };
            drop(target);
            if matches!(input.end, InputEnd::Command) {
                // A client that does not read may never receive this.
                let _ = stop.run_until_cancelled(source.refuse_more()).await;
            }
            (input, into_socket(source))
        });
    }

    /// `reunite` makes the socket of the client's ends.
    fn pump_output<W: OutputSink + 'static, R: ClientWatch + 'static>(
        &mut self,
        name: &'static str,
        source: pipe::Receiver,
        (mut sink, mut watch): (W, R),
        reunite: impl FnOnce(W, R) -> Option<WebSocket> + Send + 'static,
    ) {
        let (exited, background) = (self.exited.clone(), self.background.clone());
        let (lost, has_control) = (self.control_lost.clone(), Arc::clone(&self.has_control));
        let keeps = self.on_disconnect == OnDisconnect::Keep;
        let progress = self.progress.clone();
        self.outputs.spawn(async move {
            let client_left = CancellationToken::new();
            let left = async {
                watch.left().await;
                client_left.cancel();
                std::future::pending().await
            };
            let pump = async {
                let pumped =
                    pump::pump_output(&source, &mut sink, &exited, &client_left, &progress).await;
                match pumped.end {
                    StreamEnd::StillOpen => background.keep(source),
                    StreamEnd::ClientLeft if keeps => background.keep(source),
                    StreamEnd::Complete | StreamEnd::ClientLeft => drop(source),
                }
                pump::end_output(&mut sink, pumped.end).await;
                pumped
            };
            let pumped = select! {
                pumped = pump => pumped,
                never = left => never,
            };
            let left = pumped.end == StreamEnd::ClientLeft && name == exec::STDOUT;
            if left && !has_control.load(Ordering::Acquire) {
                lost.cancel();
            }
            (name, pumped, reunite(sink, watch))
        });
    }

    /// `name` is the stream whose bytes the output counts as.
    fn pump_terminal<W: OutputSink + 'static, R: InputSource + 'static>(
        &mut self,
        name: &'static str,
        pty: Arc<Pty>,
        (mut sink, mut source): (W, R),
        reunite: impl FnOnce(W, R) -> Option<WebSocket> + Send + 'static,
    ) {
        let (exited, sender) = (self.exited.clone(), self.input_lost_sender.take());
        let background = self.background.clone();
        let keeps = self.on_disconnect == OnDisconnect::Keep;
        let progress = self.progress.clone();
        self.outputs.spawn(async move {
            let client_left = CancellationToken::new();
            let mut target = Arc::clone(&pty);
            let input = async {
                let mut input = pump::pump_input(&mut source, &mut target, &client_left).await;
                if matches!(input.end, InputEnd::Stopped) {
                    input.end = InputEnd::Lost(Loss::Unsendable);
                }
                tracing::debug!(?input, "terminal input ended");
                if let (Err(lost), Some(sender)) = (input.lost(), sender) {
                    // Keep the terminal open until the command has ended: it must not read end of file.
                    if sender.try_send(lost).is_ok() {
                        sender.closed().await;
                    }
                }
            };
            let output = async {
                let pumped =
                    pump::pump_output(&pty, &mut sink, &exited, &client_left, &progress).await;
                if keeps && pumped.end == StreamEnd::ClientLeft {
                    background.keep(pty);
                } else {
                    drop(pty);
                }
                pump::end_output(&mut sink, pumped.end).await;
                pumped
            };
            let pumped = match future::select(pin!(output), pin!(input)).await {
                Either::Left((pumped, input)) => {
                    // The read side may not have noticed that the connection is lost.
                    if pumped.end == StreamEnd::ClientLeft {
                        client_left.cancel();
                        input.await;
                    }
                    pumped
                }
                Either::Right(((), output)) => output.await,
            };
            drop(target);
            (name, pumped, reunite(sink, source))
        });
    }

    async fn finish(
        mut self,
        waits_for_eof: bool,
        deadline: Option<Instant>,
        stops: StopTokens,
    ) -> (Ended, Vec<WebSocket>) {
        let lost = if self.on_disconnect == OnDisconnect::Keep {
            CancellationToken::new()
        } else {
            self.control_lost.clone()
        };
        let to_end = async {
            select! {
                () = lost.cancelled() => EndReason::Disconnected,
                why = stops.end() => why,
                () = passed(deadline) => EndReason::Timeout,
            }
        };
        tokio::pin!(to_end);
        let mut why = None;
        let mut input_lost = None;
        let mut input_loss = self.input_lost.take();
        let permit = self.permit.take();
        let status = select! {
            // If the command has exited, that wins over an event that is ready at the same time.
            biased;
            status = self.run(permit) => status,
            () = stops.detached() => return self.detach(EndReason::AgentStops),
            ended = &mut to_end => {
                why = Some(ended);
                if ended == EndReason::Disconnected && self.on_disconnect == OnDisconnect::Hangup {
                    match self.hang_up().await {
                        Some(status) => status,
                        None => return self.detach(ended),
                    }
                } else {
                    self.end(ended).await
                }
            }
            Some(Some(lost)) = OptionFuture::from(input_loss.as_mut().map(mpsc::Receiver::recv)) => {
                input_lost = Some(lost);
                why = Some(EndReason::InputLost);
                self.end(EndReason::InputLost).await
            }
        };
        drop(input_loss);
        if !waits_for_eof || why.is_some() {
            self.exited.cancel();
        }
        let mut drained = Drained {
            complete: true,
            ..Drained::default()
        };
        let progress = self.progress.clone();
        while !self.outputs.is_empty() {
            select! {
                biased;
                Some(output) = self.outputs.join_next() => drained.add(output),
                () = stops.detached() => return self.detach(EndReason::AgentStops),
                () = lost.cancelled(), if self.on_disconnect == OnDisconnect::Hangup => {
                    self.outputs.shutdown().await;
                    drained.complete = false;
                }
                () = lost.cancelled(), if why.is_some() => self.cut_off(&mut drained).await,
                () = progress.stalled(), if why.is_some() => self.cut_off(&mut drained).await,
                ended = &mut to_end, if why.is_none() => {
                    why = Some(ended);
                    tracing::info!(pid = self.child.pid().as_raw(), ?ended, "ending what a command left");
                    self.processes.end(&END_SIGNALS).await;
                    self.exited.cancel();
                }
            }
        }
        self.stop.cancel();
        drained
            .sockets
            .extend(self.control.join_all().await.into_iter().flatten());
        for (input, socket) in self.input.join_all().await {
            if matches!(input.end, InputEnd::Client) {
                drained.bytes.insert(exec::STDIN, input.bytes);
            }
            drained.sockets.extend(socket);
        }
        let timed_out = why == Some(EndReason::Timeout);
        let ended = match status {
            Ok(status) => Ended::Exited {
                code: status.code(),
                signal: status.signal(),
                output_complete: drained.complete,
                bytes: drained.bytes,
                input_lost,
                timed_out,
            },
            Err(error) => Ended::Failed { error, timed_out },
        };
        (ended, drained.sockets)
    }

    /// Waits until the command exits. `permit` is released once it has started, or after
    /// [`defaults::SPAWN_TIMEOUT`].
    async fn run(&self, permit: Option<OwnedSemaphorePermit>) -> Result<ExitStatus, RunError> {
        let started = timeout(defaults::SPAWN_TIMEOUT, self.child.started()).await;
        drop(permit);
        match started {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(_) => self.child.wait().await,
        }
    }

    /// Lets the command continue without the agent.
    fn detach(self, why: EndReason) -> (Ended, Vec<WebSocket>) {
        self.child.detach();
        (Ended::Detached(why.describe()), Vec::new())
    }

    /// Sends SIGHUP and closes the streams, as when a terminal is lost. `None` if the command continues.
    async fn hang_up(&mut self) -> Option<Result<ExitStatus, RunError>> {
        let pid = self.child.pid();
        tracing::info!(pid = pid.as_raw(), "hanging up a command");
        let _ = signal_group(pid, Signal::SIGHUP as i32);
        self.stop.cancel();
        self.outputs.shutdown().await;
        timeout(defaults::KILL_PAUSE, self.child.wait()).await.ok()
    }

    /// Ends the process tree. Before `exec` there is no program that could clean up, so SIGKILL is enough.
    async fn end(&self, why: EndReason) -> Result<ExitStatus, RunError> {
        let why = why.describe();
        tracing::info!(pid = self.child.pid().as_raw(), why, "ending a command");
        let had_started = self.child.is_started();
        let signals: &[Signal] = if had_started {
            &END_SIGNALS
        } else {
            &[Signal::SIGKILL]
        };
        self.processes.end(signals).await;
        match timeout(defaults::SPAWN_TIMEOUT, self.child.wait()).await {
            Ok(Err(RunError::Killed(_))) => Err(RunError::Ended(why)),
            Ok(status) => status,
            Err(_) if had_started => Err(RunError::Unkillable(why)),
            Err(_) => Err(RunError::Ended(why)),
        }
    }

    /// The client is gone or stalled: ends what still writes.
    async fn cut_off(&mut self, drained: &mut Drained) {
        self.processes.end(&END_SIGNALS).await;
        self.outputs.shutdown().await;
        drained.complete = false;
    }
}

/// Resolves at the deadline, if there is one.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// An output stream that has ended: the name of its socket, how it ended, and the socket.
type OutputEnd = (&'static str, OutputResult, Option<WebSocket>);

/// The output streams that have ended.
#[derive(Debug, Default)]
struct Drained {
    bytes: BTreeMap<&'static str, u64>,
    complete: bool,
    sockets: Vec<WebSocket>,
}

impl Drained {
    fn add(&mut self, output: Result<OutputEnd, JoinError>) {
        match output {
            Ok((name, pumped, socket)) => {
                self.bytes.insert(name, pumped.bytes);
                self.complete &= pumped.end != StreamEnd::StillOpen;
                self.sockets.extend(socket);
            }
            Err(error) => {
                tracing::error!(%error, "an output task failed");
                self.complete = false;
            }
        }
    }
}

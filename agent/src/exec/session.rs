//! From the joined sockets to the exit status.
//!
//! ```text
//! Session::run ─► fork ─► not started ─► command runs ─► it ends ──► output drains ─► Exited
//!                           │    │          │                ▲           │ or it is to end:
//!                           │    │          │ to end:        │           └─► all of it ends ─► Exited
//!                           │    │          │                │
//!                           │    │          └─► HUP, 5 s, TERM, 5 s, KILL ─► lives on ─► Failed
//!                           │    └ to end: KILL ─► Failed
//!                           └ no such program, … ─► Failed
//! ```
//!
//! A command is to end when its client is gone, when it is cancelled, and when its time is over, from
//! the fork on: a program or a directory on a file system that does not answer may never start. It is
//! also to end when the connection of its input breaks off, and never sees that as an end of file. When
//! the agent stops, what is not to end then is Left. A request can say that the loss of its client hangs
//! it up, or means nothing. Each stream is pumped by a task of its own, so
//! that none waits for another.
//!
//! What a command wrote waits for its client, however slowly that reads. Of a command that was ended it
//! waits as long as the client reads anything ([`defaults::STALL_TIMEOUT`]), or the operation would never
//! be final.

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
    cgroup::Cgroups,
    child::{Child, ExitStatus, RunError, Stdio, signal_group},
    control,
    family::{ENDING, Family},
    leftovers::Leftovers,
    pty::Pty,
    pump::{self, Fed, InputEnd, Loss, Progress, Pumped, StreamEnd},
};
use crate::{
    defaults,
    http::ws::WebSocket,
    shutdown::Shutdown,
    system::{blocking::run_blocking, reaper},
};

/// The sockets of a command.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Without it the client is there as long as standard output's socket is.
    pub(crate) control: Option<WebSocket>,
    /// Brings the control socket if it is joined later.
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
        /// The number a shell would give.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// Whether every output stream was read to its end.
        output_complete: bool,
        /// Bytes sent on each output socket, and received on that of the input if it came to its
        /// end.
        bytes: BTreeMap<&'static str, u64>,
        /// Set if the command was ended because its input was lost.
        input_lost: Option<InputLost>,
        /// Whether it was ended because its time was over.
        timed_out: bool,
    },
    /// It goes on without the agent, for this reason.
    Left(&'static str),
    /// It has no exit status.
    Failed {
        /// Why.
        error: RunError,
        /// Whether it was ended because its time was over.
        timed_out: bool,
    },
}

/// The connection that brought the input broke off before the end of the input.
#[derive(Debug)]
pub(crate) struct InputLost {
    /// Bytes the command had been given.
    pub(crate) after: u64,
    /// How it broke off.
    pub(crate) reason: Loss,
}

/// What runs commands: one for the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    spawns: Arc<Semaphore>,
    cgroups: Cgroups,
    leftovers: Leftovers,
}

/// Why a command is to end before it does by itself.
#[derive(Debug, Clone)]
pub(crate) struct Stops {
    /// Somebody asked for its end.
    pub(crate) cancel: CancellationToken,
    /// The agent stops.
    pub(crate) stopping: CancellationToken,
    /// Whether the command is to end then, or goes on without the agent.
    pub(crate) end_on_stop: bool,
}

impl Stops {
    /// Resolves when the command is to end, with the reason.
    async fn end(&self) -> Why {
        select! {
            () = self.cancel.cancelled() => Why::Cancelled,
            () = self.stopping.cancelled(), if self.end_on_stop => Why::AgentStops,
        }
    }

    /// Resolves when the command is to go on without the agent.
    async fn leave(&self) {
        if self.end_on_stop {
            std::future::pending::<()>().await;
        }
        self.stopping.cancelled().await;
    }
}

/// Why a command was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    ClientGone,
    InputLost,
    Cancelled,
    AgentStops,
    TimeOver,
}

impl Why {
    const fn describe(self) -> &'static str {
        match self {
            Self::ClientGone => "its client is gone",
            Self::InputLost => "its input was lost",
            Self::Cancelled => "it was cancelled",
            Self::AgentStops => "the agent stops",
            Self::TimeOver => "its time is over",
        }
    }
}

impl Session {
    pub(crate) fn new(shutdown: Shutdown) -> Self {
        Self {
            spawns: Arc::new(Semaphore::new(defaults::MAX_SPAWNS)),
            cgroups: Cgroups::open(),
            leftovers: Leftovers::new(shutdown),
        }
    }

    /// Looks after what commands leave behind, until it is dropped.
    pub(crate) async fn tidy(&self) {
        tokio::join!(self.cgroups.tidy(), reaper::watch());
    }

    /// Runs a command to its end, or to one of `stops`. `name` is its control group's. Returns the
    /// sockets too, all streams ended, for the caller to close.
    ///
    /// Dropping the future kills the command and leaves what it started.
    pub(crate) async fn run(
        &self,
        name: &str,
        spec: Arc<ExecSpec>,
        sockets: Sockets,
        stops: Stops,
    ) -> (Ended, Vec<WebSocket>) {
        // What is too far away to be told is no limit.
        let deadline = spec
            .timeout
            .and_then(|time| Instant::now().checked_add(time));
        let forked = select! {
            forked = self.fork(name, Arc::clone(&spec)) => forked,
            why = stops.end() => Err(RunError::Ended(why.describe())),
            () = stops.leave() => Err(RunError::Ended(Why::AgentStops.describe())),
            () = passed(deadline) => Err(RunError::Ended(Why::TimeOver.describe())),
        };
        match forked {
            Ok(forked) => {
                let leftovers = self.leftovers.clone();
                Running::new(forked, sockets, leftovers, spec.on_disconnect)
                    .finish(spec.wait_for_eof, deadline, stops)
                    .await
            }
            Err(error) => {
                let outputs = sockets.outputs.into_iter().flat_map(<[WebSocket; 2]>::from);
                let all = std::iter::once(sockets.stdin)
                    .chain(sockets.control)
                    .chain(outputs)
                    .collect();
                let timed_out = deadline.is_some_and(|deadline| deadline <= Instant::now());
                (Ended::Failed { error, timed_out }, all)
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
        let (cgroup, pause) = (self.cgroups.create(name), spec.kill_pause);
        let entrance = cgroup.as_ref().and_then(|cgroup| cgroup.entrance().ok());
        let child = run_blocking(move || Child::fork(spec, stdio, entrance))
            .await
            .map_err(failed("start"))??;
        let child = Arc::new(child);
        let family = Family::new(Arc::clone(&child), cgroup, pause);
        Ok(Forked {
            child,
            family,
            streams,
            permit,
        })
    }
}

/// The process of a command, not listened to yet.
struct Forked {
    family: Family,
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

/// A pipe, its end to read first. It belongs to the user, who may open `/dev/stdout` again.
fn new_pipe(uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    nix::unistd::fchown(&writer, Some(uid.into()), None)?;
    Ok((reader, writer))
}

/// A command at work.
struct Running {
    family: Family,
    child: Arc<Child>,
    /// Its place among those that start.
    permit: Option<OwnedSemaphorePermit>,
    /// The pumps of the output.
    outputs: JoinSet<OutputEnd>,
    /// The pump of the input.
    input: JoinSet<(Fed, WebSocket)>,
    tell_input_lost: Option<mpsc::Sender<InputLost>>,
    /// Told when the input is lost, if the command is to end then. Closed when it has ended.
    input_lost: Option<mpsc::Receiver<InputLost>>,
    /// The reader of the control socket.
    control: JoinSet<Option<WebSocket>>,
    /// Whether there is a control socket, or was.
    has_control: Arc<AtomicBool>,
    leftovers: Leftovers,
    on_disconnect: OnDisconnect,
    /// Of all output streams.
    progress: Progress,
    /// Cancelled when the command has ended.
    exited: CancellationToken,
    /// Cancelled when the control socket is lost, or without one standard output's.
    control_lost: CancellationToken,
    /// Cancelled when everything is over.
    stop: CancellationToken,
}

impl Running {
    fn new(
        forked: Forked,
        sockets: Sockets,
        leftovers: Leftovers,
        on_disconnect: OnDisconnect,
    ) -> Self {
        let (tell_input_lost, input_lost) = mpsc::channel(1);
        let mut running = Self {
            family: forked.family,
            child: forked.child,
            permit: Some(forked.permit),
            outputs: JoinSet::new(),
            input: JoinSet::new(),
            input_lost: (on_disconnect == OnDisconnect::End).then_some(input_lost),
            tell_input_lost: Some(tell_input_lost),
            control: JoinSet::new(),
            has_control: Arc::new(AtomicBool::new(sockets.control.is_some())),
            leftovers,
            on_disconnect,
            progress: Progress::default(),
            exited: CancellationToken::new(),
            control_lost: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        match (forked.streams, sockets.outputs) {
            (Streams::Terminal(pty), _) => {
                // It keeps the terminal: one that is closed would hang up on a program that has closed
                // its own side, and is about to end.
                let pty_for_control = Some(Arc::clone(&pty));
                running.read_control(sockets.control, sockets.later, pty_for_control);
                running.pump_terminal(pty, sockets.stdin);
            }
            (
                Streams::Pipes {
                    stdin,
                    stdout,
                    stderr,
                },
                outputs,
            ) => {
                running.read_control(sockets.control, sockets.later, None);
                running.pump_stdin(stdin, sockets.stdin);
                if let Some((stdout_socket, stderr_socket)) = outputs {
                    running.pump_output(exec::STDOUT, stdout, stdout_socket);
                    running.pump_output(exec::STDERR, stderr, stderr_socket);
                }
            }
        }
        running
    }

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
                () = control::obey(&mut socket, pid, pty.as_ref()) => lost.cancel(),
                () = stop.cancelled() => {}
            }
            Some(socket)
        });
    }

    fn pump_stdin(&mut self, mut target: pipe::Sender, mut socket: WebSocket) {
        let (stop, tell) = (self.stop.clone(), self.tell_input_lost.take());
        self.input.spawn(async move {
            let fed = pump::pump_input(&mut socket, &mut target, &stop).await;
            let fed = match fed.lost() {
                Ok(fed) => fed,
                Err(lost) => {
                    let after = lost.after;
                    tell.map(|tell| tell.try_send(lost));
                    // The command is ended, and must not take this for the end of its input.
                    stop.cancelled().await;
                    Fed {
                        bytes: after,
                        end: InputEnd::Stopped,
                    }
                }
            };
            drop(target);
            if matches!(fed.end, InputEnd::Command) {
                // The client need not send what nobody will read. One that reads nothing itself may
                // never take this.
                let _ = stop.run_until_cancelled(socket.close(None)).await;
            }
            (fed, socket)
        });
    }

    fn pump_output(&mut self, name: &'static str, source: pipe::Receiver, socket: WebSocket) {
        let (exited, leftovers) = (self.exited.clone(), self.leftovers.clone());
        let (lost, has_control) = (self.control_lost.clone(), Arc::clone(&self.has_control));
        let keeps = self.on_disconnect == OnDisconnect::Keep;
        let progress = self.progress.clone();
        self.outputs.spawn(async move {
            let (mut sink, mut stream) = socket.split();
            let client_left = CancellationToken::new();
            let watch = async {
                pump::closed(&mut stream).await;
                client_left.cancel();
                std::future::pending().await
            };
            let pump = async {
                let pumped =
                    pump::pump_output(&source, &mut sink, &exited, &client_left, &progress).await;
                match pumped.end {
                    StreamEnd::Held => leftovers.keep(source),
                    StreamEnd::ClientLeft if keeps => leftovers.keep(source),
                    StreamEnd::Complete | StreamEnd::ClientLeft => drop(source),
                }
                pump::end_output(&mut sink, pumped.end).await;
                pumped
            };
            let pumped = select! {
                pumped = pump => pumped,
                never = watch => never,
            };
            let left = pumped.end == StreamEnd::ClientLeft && name == exec::STDOUT;
            if left && !has_control.load(Ordering::Acquire) {
                lost.cancel();
            }
            (name, pumped, sink.reunite(stream).ok())
        });
    }

    /// One socket carries both directions, and ends with the output.
    fn pump_terminal(&mut self, pty: Arc<Pty>, socket: WebSocket) {
        let (exited, tell) = (self.exited.clone(), self.tell_input_lost.take());
        let leftovers = self.leftovers.clone();
        let keeps = self.on_disconnect == OnDisconnect::Keep;
        let progress = self.progress.clone();
        self.outputs.spawn(async move {
            let (mut sink, mut stream) = socket.split();
            let client_left = CancellationToken::new();
            let mut target = Arc::clone(&pty);
            let input = async {
                let mut fed = pump::pump_input(&mut stream, &mut target, &client_left).await;
                if matches!(fed.end, InputEnd::Stopped) {
                    fed.end = InputEnd::Lost(Loss::Unsendable);
                }
                // An end the client says is the end of what it types, not of what it sees.
                tracing::debug!(?fed, "terminal input ended");
                if let (Err(lost), Some(tell)) = (fed.lost(), tell) {
                    // A command that is ended must not take the end of its terminal for that of its input.
                    if tell.try_send(lost).is_ok() {
                        tell.closed().await;
                    }
                }
            };
            let output = async {
                let pumped =
                    pump::pump_output(&pty, &mut sink, &exited, &client_left, &progress).await;
                if keeps && pumped.end == StreamEnd::ClientLeft {
                    leftovers.keep(pty);
                } else {
                    drop(pty);
                }
                pump::end_output(&mut sink, pumped.end).await;
                pumped
            };
            let pumped = match future::select(pin!(output), pin!(input)).await {
                Either::Left((pumped, input)) => {
                    // What cannot be written is lost, whether or not that is seen yet where it is read.
                    if pumped.end == StreamEnd::ClientLeft {
                        client_left.cancel();
                        input.await;
                    }
                    pumped
                }
                Either::Right(((), output)) => output.await,
            };
            drop(target);
            (exec::STDIN, pumped, sink.reunite(stream).ok())
        });
    }

    async fn finish(
        mut self,
        waits_for_eof: bool,
        deadline: Option<Instant>,
        stops: Stops,
    ) -> (Ended, Vec<WebSocket>) {
        let lost = match self.on_disconnect {
            OnDisconnect::End | OnDisconnect::Hangup => self.control_lost.clone(),
            OnDisconnect::Keep => CancellationToken::new(),
        };
        let to_end = async {
            select! {
                () = lost.cancelled() => Why::ClientGone,
                why = stops.end() => why,
                () = passed(deadline) => Why::TimeOver,
            }
        };
        tokio::pin!(to_end);
        let mut why = None;
        let mut input_lost = None;
        let mut input_loss = self.input_lost.take();
        let permit = self.permit.take();
        let status = select! {
            // What has ended by itself was ended by nothing else that is known at the same time.
            biased;
            status = self.run(permit) => status,
            () = stops.leave() => return self.leave(Why::AgentStops),
            ended = &mut to_end => {
                why = Some(ended);
                if ended == Why::ClientGone && self.on_disconnect == OnDisconnect::Hangup {
                    match self.hang_up().await {
                        Some(status) => status,
                        None => return self.leave(ended),
                    }
                } else {
                    self.end(ended).await
                }
            }
            Some(Some(lost)) = OptionFuture::from(input_loss.as_mut().map(mpsc::Receiver::recv)) => {
                input_lost = Some(lost);
                why = Some(Why::InputLost);
                self.end(Why::InputLost).await
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
                () = stops.leave() => return self.leave(Why::AgentStops),
                () = lost.cancelled(), if self.on_disconnect == OnDisconnect::Hangup => {
                    self.outputs.shutdown().await;
                    drained.complete = false;
                }
                () = lost.cancelled(), if why.is_some() => self.cut_off(&mut drained).await,
                () = progress.stalled(), if why.is_some() => self.cut_off(&mut drained).await,
                ended = &mut to_end, if why.is_none() => {
                    why = Some(ended);
                    tracing::info!(pid = self.child.pid().as_raw(), ?ended, "ending what a command left");
                    self.family.end(&ENDING).await;
                    self.exited.cancel();
                }
            }
        }
        self.stop.cancel();
        drained
            .sockets
            .extend(self.control.join_all().await.into_iter().flatten());
        for (fed, socket) in self.input.join_all().await {
            if matches!(fed.end, InputEnd::Client) {
                drained.bytes.insert(exec::STDIN, fed.bytes);
            }
            drained.sockets.push(socket);
        }
        let timed_out = why == Some(Why::TimeOver);
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

    /// Waits for the command's end. One that is slow to start gives `permit` back before that: others
    /// may be quicker.
    async fn run(&self, permit: Option<OwnedSemaphorePermit>) -> Result<ExitStatus, RunError> {
        let started = timeout(defaults::SPAWN_PATIENCE, self.child.started()).await;
        drop(permit);
        match started {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(_) => self.child.wait().await,
        }
    }

    /// Lets the command go on without us.
    fn leave(self, why: Why) -> (Ended, Vec<WebSocket>) {
        self.child.leave();
        (Ended::Left(why.describe()), Vec::new())
    }

    /// Does what the loss of a terminal does, and closes the streams. `None` if the command goes on.
    async fn hang_up(&mut self) -> Option<Result<ExitStatus, RunError>> {
        let pid = self.child.pid();
        tracing::info!(pid = pid.as_raw(), "hanging up a command");
        // It may have ended just now.
        let _ = signal_group(pid, Signal::SIGHUP as i32);
        self.stop.cancel();
        self.outputs.shutdown().await;
        timeout(defaults::KILL_PAUSE, self.child.wait()).await.ok()
    }

    /// Ends the command and what it started. One that is not a program yet has nothing to put in order.
    async fn end(&self, why: Why) -> Result<ExitStatus, RunError> {
        let why = why.describe();
        tracing::info!(pid = self.child.pid().as_raw(), why, "ending a command");
        let had_started = self.child.is_started();
        let signals: &[Signal] = if had_started {
            &ENDING
        } else {
            &[Signal::SIGKILL]
        };
        self.family.end(signals).await;
        // Its end is known at once, if it has ended.
        match timeout(defaults::SPAWN_PATIENCE, self.child.wait()).await {
            Ok(Err(RunError::Killed(_))) => Err(RunError::Ended(why)),
            Ok(status) => status,
            Err(_) if had_started => Err(RunError::Unkillable(why)),
            Err(_) => Err(RunError::Ended(why)),
        }
    }

    /// The client is gone, or takes nothing: so goes what still writes.
    async fn cut_off(&mut self, drained: &mut Drained) {
        self.family.end(&ENDING).await;
        self.outputs.shutdown().await;
        drained.complete = false;
    }
}

/// Resolves when a command's time is over, if it has one.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The name of an output socket, what became of the stream, and the socket.
type OutputEnd = (&'static str, Pumped, Option<WebSocket>);

/// What is left of the output streams.
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
                self.complete &= pumped.end != StreamEnd::Held;
                self.sockets.extend(socket);
            }
            Err(error) => {
                tracing::error!(%error, "an output task failed");
                self.complete = false;
            }
        }
    }
}

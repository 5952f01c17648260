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
//! the fork on: a program or a directory on a file system that does not answer may never start. When
//! the agent stops, what is not to end then is Left. Each stream is pumped by a task of its own, so
//! that none waits for another.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc};

use futures_util::StreamExt;
use nix::{fcntl::OFlag, sys::signal::Signal, unistd::pipe2};
use tokio::{
    net::unix::pipe,
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::exec;

use super::{
    ExecSpec,
    cgroup::Cgroups,
    child::{Child, ExitStatus, RunError, Stdio},
    control,
    family::{ENDING, Family},
    pty::Pty,
    pump::{self, InputEnd, Pumped},
};
use crate::{defaults, reaper, ws::WebSocket};

/// The sockets of a command.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) control: WebSocket,
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
        /// Bytes sent on each output socket.
        bytes: BTreeMap<&'static str, u64>,
        /// Whether it was ended because its time was over.
        timed_out: bool,
    },
    /// The agent stops, and leaves it running.
    Left,
    /// It has no exit status.
    Failed {
        /// Why.
        error: RunError,
        /// Whether it was ended because its time was over.
        timed_out: bool,
    },
}

/// What runs commands: one for the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    spawns: Arc<Semaphore>,
    cgroups: Cgroups,
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
    Cancelled,
    AgentStops,
    TimeOver,
}

impl Why {
    const fn describe(self) -> &'static str {
        match self {
            Self::ClientGone => "its client is gone",
            Self::Cancelled => "it was cancelled",
            Self::AgentStops => "the agent stops",
            Self::TimeOver => "its time is over",
        }
    }
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            spawns: Arc::new(Semaphore::new(defaults::MAX_SPAWNS)),
            cgroups: Cgroups::open(),
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
        let deadline = spec.timeout.map(|time| Instant::now() + time);
        let forked = select! {
            forked = self.fork(name, Arc::clone(&spec)) => forked,
            why = stops.end() => Err(RunError::Ended(why.describe())),
            () = stops.leave() => Err(RunError::Ended(Why::AgentStops.describe())),
            () = passed(deadline) => Err(RunError::Ended(Why::TimeOver.describe())),
        };
        match forked {
            Ok(forked) => {
                let waits_for_eof = spec.wait_for_eof;
                Running::new(forked, sockets)
                    .finish(waits_for_eof, deadline, stops)
                    .await
            }
            Err(error) => {
                let outputs = sockets.outputs.into_iter().flat_map(<[WebSocket; 2]>::from);
                let all = [sockets.control, sockets.stdin]
                    .into_iter()
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
        let child = spawn_blocking(move || Child::fork(spec, stdio, entrance))
            .await
            .map_err(io::Error::from)
            .map_err(failed("start"))??;
        let family = Family::new(child.pid(), cgroup, pause);
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
    /// Before the child: it must be gone when that is reaped.
    family: Family,
    child: Child,
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
    /// Before the child: it must be gone when that is reaped.
    family: Family,
    child: Child,
    /// Its place among those that start.
    permit: Option<OwnedSemaphorePermit>,
    /// The pumps of the output.
    outputs: JoinSet<OutputEnd>,
    /// The pump of the input, and the reader of the control socket.
    inputs: JoinSet<WebSocket>,
    /// Cancelled when the command has ended.
    exited: CancellationToken,
    /// Cancelled when the control socket is.
    control_lost: CancellationToken,
    /// Cancelled when everything is over.
    stop: CancellationToken,
}

impl Running {
    fn new(forked: Forked, sockets: Sockets) -> Self {
        let mut running = Self {
            family: forked.family,
            child: forked.child,
            permit: Some(forked.permit),
            outputs: JoinSet::new(),
            inputs: JoinSet::new(),
            exited: CancellationToken::new(),
            control_lost: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        match (forked.streams, sockets.outputs) {
            (Streams::Terminal(pty), _) => {
                running.read_control(sockets.control, Some(Arc::clone(&pty)));
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
                running.read_control(sockets.control, None);
                running.pump_stdin(stdin, sockets.stdin);
                if let Some((stdout_socket, stderr_socket)) = outputs {
                    running.pump_output(exec::STDOUT, stdout, stdout_socket);
                    running.pump_output(exec::STDERR, stderr, stderr_socket);
                }
            }
        }
        running
    }

    fn read_control(&mut self, mut socket: WebSocket, pty: Option<Arc<Pty>>) {
        let (pid, lost, stop) = (
            self.child.pid(),
            self.control_lost.clone(),
            self.stop.clone(),
        );
        self.inputs.spawn(async move {
            select! {
                () = control::obey(&mut socket, pid, pty.as_ref()) => lost.cancel(),
                () = stop.cancelled() => {}
            }
            socket
        });
    }

    fn pump_stdin(&mut self, mut target: pipe::Sender, mut socket: WebSocket) {
        let stop = self.stop.clone();
        self.inputs.spawn(async move {
            let end = pump::pump_input(&mut socket, &mut target, &stop).await;
            drop(target);
            if end == InputEnd::Command {
                // The client need not send what nobody will read.
                let _ = socket.close(None).await;
            }
            socket
        });
    }

    fn pump_output(&mut self, name: &'static str, source: pipe::Receiver, socket: WebSocket) {
        let exited = self.exited.clone();
        self.outputs.spawn(async move {
            let (mut sink, mut stream) = socket.split();
            let client_left = CancellationToken::new();
            let watch = async {
                pump::closed(&mut stream).await;
                client_left.cancel();
                std::future::pending().await
            };
            let pumped = select! {
                pumped = pump::pump_output(source, &mut sink, &exited, &client_left) => pumped,
                never = watch => never,
            };
            (name, pumped, sink.reunite(stream).ok())
        });
    }

    /// One socket carries both directions, and ends with the output.
    fn pump_terminal(&mut self, pty: Arc<Pty>, socket: WebSocket) {
        let exited = self.exited.clone();
        self.outputs.spawn(async move {
            let (mut sink, mut stream) = socket.split();
            let client_left = CancellationToken::new();
            let stop = CancellationToken::new();
            let mut target = Arc::clone(&pty);
            let input = async {
                let end = pump::pump_input(&mut stream, &mut target, &stop).await;
                // An end the client says is the end of what it types, not of what it sees.
                tracing::debug!(?end, "terminal input ended");
                std::future::pending().await
            };
            let pumped = select! {
                pumped = pump::pump_output(pty, &mut sink, &exited, &client_left) => pumped,
                never = input => never,
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
        let lost = self.control_lost.clone();
        let to_end = async {
            select! {
                () = lost.cancelled() => Why::ClientGone,
                why = stops.end() => why,
                () = passed(deadline) => Why::TimeOver,
            }
        };
        tokio::pin!(to_end);
        let mut why = None;
        let permit = self.permit.take();
        let status = select! {
            status = self.run(permit) => status,
            () = stops.leave() => return self.leave(),
            ended = &mut to_end => {
                why = Some(ended);
                self.end(ended).await
            }
        };
        if !waits_for_eof || why.is_some() {
            self.exited.cancel();
        }
        let mut drained = Drained {
            complete: true,
            ..Drained::default()
        };
        while !self.outputs.is_empty() {
            select! {
                biased;
                Some(output) = self.outputs.join_next() => drained.add(output),
                () = stops.leave() => return self.leave(),
                () = lost.cancelled(), if why.is_some() => self.cut_off(&mut drained).await,
                ended = &mut to_end, if why.is_none() => {
                    why = Some(ended);
                    tracing::info!(pid = self.child.pid().as_raw(), ?ended, "ending what a command left");
                    self.family.end(&ENDING).await;
                    self.exited.cancel();
                }
            }
        }
        self.stop.cancel();
        drained.sockets.extend(self.inputs.join_all().await);
        let timed_out = why == Some(Why::TimeOver);
        let ended = match status {
            Ok(status) => Ended::Exited {
                code: status.code(),
                signal: status.signal(),
                output_complete: drained.complete,
                bytes: drained.bytes,
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
    fn leave(self) -> (Ended, Vec<WebSocket>) {
        self.child.leave();
        (Ended::Left, Vec::new())
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

    /// The client is gone: so goes what still writes.
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
                self.complete &= pumped.complete;
                self.sockets.extend(socket);
            }
            Err(error) => {
                tracing::error!(%error, "an output task failed");
                self.complete = false;
            }
        }
    }
}

//! From the joined sockets to the exit status.
//!
//! ```text
//! Session::run ─► start ─► command runs ──────► it ends ──► output drains ─► Exited
//!                   │           │ client gone,      ▲           │ client gone
//!                   │           │ cancelled,        │           └─► all of it ends ─► Exited
//!                   │           │ out of time       │
//!                   │           ├─► HUP, 5 s, TERM, 5 s, KILL
//!                   │           └ agent stops ─► Left, running
//!                   └─► NotStarted
//! ```
//!
//! Each stream is pumped by a task of its own, so that none waits for another.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use futures_util::StreamExt;
use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{
    net::unix::pipe,
    select,
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::exec;

use super::{
    ExecSpec,
    cgroup::Cgroups,
    child::{Child, ExitStatus, StartError, Stdio},
    control,
    family::Family,
    pty::Pty,
    pump::{self, InputEnd, Pumped},
};
use crate::{defaults, ws::WebSocket};

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
    /// It did not start.
    NotStarted(StartError),
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
    /// Resolves when the command is to end.
    async fn end(&self) {
        if self.end_on_stop {
            select! {
                () = self.cancel.cancelled() => {}
                () = self.stopping.cancelled() => {}
            }
        } else {
            self.cancel.cancelled().await;
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

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            spawns: Arc::new(Semaphore::new(defaults::MAX_SPAWNS)),
            cgroups: Cgroups::open(),
        }
    }

    /// Looks after what commands leave behind, until it is dropped.
    pub(crate) async fn tidy(&self) {
        self.cgroups.tidy().await;
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
        match self.start(name, Arc::clone(&spec)).await {
            Ok(started) => Running::new(started, sockets).finish(&spec, stops).await,
            Err(error) => {
                let outputs = sockets.outputs.into_iter().flat_map(<[WebSocket; 2]>::from);
                let all = [sockets.control, sockets.stdin]
                    .into_iter()
                    .chain(outputs)
                    .collect();
                (Ended::NotStarted(error), all)
            }
        }
    }

    async fn start(&self, name: &str, spec: Arc<ExecSpec>) -> Result<Started, StartError> {
        let failed = |step| move |source| StartError::System { step, source };
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        // Never closed, so this only waits.
        let _permit = self
            .spawns
            .acquire()
            .await
            .map_err(closed)
            .map_err(failed("start"))?;
        let (streams, stdio) = Streams::open(&spec).map_err(failed("make the streams"))?;
        let cgroup = self.cgroups.create(name);
        let entrance = cgroup.as_ref().and_then(|cgroup| cgroup.entrance().ok());
        let child = spawn_blocking(move || Child::start(&spec, stdio, entrance))
            .await
            .map_err(|error| StartError::System {
                step: "start",
                source: error.into(),
            })??;
        let family = Family::new(child.pid(), cgroup);
        Ok(Started {
            child,
            family,
            streams,
        })
    }
}

/// A command that runs, and is not listened to yet.
struct Started {
    child: Child,
    family: Family,
    streams: Streams,
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
    /// The pumps of the output.
    outputs: JoinSet<(&'static str, Pumped, Option<WebSocket>)>,
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
    fn new(started: Started, sockets: Sockets) -> Self {
        let mut running = Self {
            family: started.family,
            child: started.child,
            outputs: JoinSet::new(),
            inputs: JoinSet::new(),
            exited: CancellationToken::new(),
            control_lost: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        match (started.streams, sockets.outputs) {
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

    async fn finish(mut self, spec: &ExecSpec, stops: Stops) -> (Ended, Vec<WebSocket>) {
        let mut timed_out = false;
        let status = select! {
            status = self.child.wait() => status,
            () = stops.leave() => return self.leave(),
            () = self.control_lost.cancelled() => self.end("its client is gone").await,
            () = stops.end() => self.end("it was cancelled").await,
            () = out_of_time(spec.timeout) => {
                timed_out = true;
                self.end("its time is over").await
            }
        };
        if !spec.wait_for_eof {
            self.exited.cancel();
        }
        let mut drained = select! {
            drained = self.drain() => drained,
            () = stops.leave() => return self.leave(),
        };
        self.stop.cancel();
        drained.sockets.extend(self.inputs.join_all().await);
        let ended = match status {
            Ok(status) => Ended::Exited {
                code: status.code(),
                signal: status.signal(),
                output_complete: drained.complete,
                bytes: drained.bytes,
                timed_out,
            },
            Err(source) => Ended::NotStarted(StartError::System {
                step: "wait for the command",
                source,
            }),
        };
        (ended, drained.sockets)
    }

    /// Lets the command go on without us.
    fn leave(self) -> (Ended, Vec<WebSocket>) {
        self.child.leave();
        (Ended::Left, Vec::new())
    }

    /// Ends the command and what it started.
    async fn end(&self, why: &'static str) -> io::Result<ExitStatus> {
        tracing::info!(pid = self.child.pid().as_raw(), why, "ending a command");
        self.family.end().await;
        self.child.wait().await
    }

    /// Waits for the output to end. If the client goes meanwhile, so does what still writes.
    async fn drain(&mut self) -> Drained {
        let mut drained = Drained {
            complete: true,
            ..Drained::default()
        };
        loop {
            select! {
                biased;
                output = self.outputs.join_next() => match output {
                    None => return drained,
                    Some(Ok((name, pumped, socket))) => drained.add(name, pumped, socket),
                    Some(Err(error)) => {
                        tracing::error!(%error, "an output task failed");
                        drained.complete = false;
                    }
                },
                () = self.control_lost.cancelled() => {
                    self.family.end().await;
                    self.outputs.shutdown().await;
                    drained.complete = false;
                    return drained;
                }
            }
        }
    }
}

/// Resolves when a command's time is over, if it has one.
async fn out_of_time(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => sleep(timeout).await,
        None => std::future::pending().await,
    }
}

/// What is left of the output streams.
#[derive(Debug, Default)]
struct Drained {
    bytes: BTreeMap<&'static str, u64>,
    complete: bool,
    sockets: Vec<WebSocket>,
}

impl Drained {
    fn add(&mut self, name: &'static str, pumped: Pumped, socket: Option<WebSocket>) {
        self.bytes.insert(name, pumped.bytes);
        self.complete &= pumped.complete;
        self.sockets.extend(socket);
    }
}

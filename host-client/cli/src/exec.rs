//! `exec` and `shell`: a command in the guest, with the local standard streams and signals.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use vsock_agent_client::{ClientError, Exec, ExecControl, ExecSession, ExecStdin, ExitStatus};

use crate::{
    args::{ExecArgs, ShellArgs},
    config::Settings,
    exit, output,
    signals::Signals,
    stdio::{self, Sink},
    terminal::{self, RawMode},
};

/// Time for a command to end after our own terminal hung up: there is no user to send a second
/// signal.
const HANGUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The signals that are forwarded to the command.
const FORWARDED: [i32; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Starts the login shell of the user. Our agent sets SHELL to it. With LXD's agent, `su` looks it up
/// for root; other users would need a password for that. A user without an entry in `/etc/passwd` has
/// `/bin/sh`, as with login(1).
const LOGIN: &str = r#"if [ -z "$SHELL" ] && [ "$(id -u)" = 0 ]; then exec su -l; fi
[ -n "$SHELL" ] || SHELL=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f7)
export SHELL="${SHELL:-/bin/sh}"
exec "$SHELL" -l"#;

/// `agent-cli exec`.
pub(crate) async fn run(settings: &Settings, args: ExecArgs) -> anyhow::Result<u8> {
    let client = settings.client(&args.vm)?;
    let terminal = match (args.tty, args.no_tty) {
        (true, _) => true,
        (_, true) => false,
        // A terminal is of no use without input.
        _ => !args.no_stdin && io::stdin().is_terminal() && io::stdout().is_terminal(),
    };
    let mut words = args.command.into_iter().map(text);
    let program = words.next().context("no command was given")??;
    let arguments = words.collect::<anyhow::Result<Vec<_>>>()?;
    let mut exec = client.exec(program, arguments);
    if let Some(directory) = args.cwd {
        exec = exec.cwd(directory);
    }
    if let Some(user) = args.user {
        exec = exec.user(user);
    }
    if let Some(group) = args.group {
        exec = exec.group(group);
    }
    if let Some(seconds) = args.timeout {
        exec = exec.timeout(Duration::from_secs(seconds.into()));
    }
    if args.wait_for_eof {
        exec = exec.wait_for_eof();
    }
    exec = exec.on_disconnect(args.on_disconnect.into());
    let exec = with_terminal(exec, terminal);
    let exec = args
        .env
        .into_iter()
        .fold(exec, |exec, (name, value)| exec.env(name, value));
    let input = !args.no_stdin;
    attach(exec, terminal, input).await
}

/// `agent-cli shell`.
pub(crate) async fn shell(settings: &Settings, args: ShellArgs) -> anyhow::Result<u8> {
    let terminal = !args.no_tty;
    if terminal && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        bail!("a shell needs a terminal: use -T for a shell on pipes, or agent-cli exec");
    }
    let client = settings.client(&args.vm)?;
    let mut exec = client.exec("sh", ["-c", LOGIN]);
    if let Some(user) = args.user {
        exec = exec.user(user);
    }
    exec = exec.on_disconnect(args.on_disconnect.into());
    attach(with_terminal(exec, terminal), terminal, true).await
}

fn text(word: OsString) -> anyhow::Result<String> {
    word.into_string()
        .map_err(|word| anyhow!("{word:?} is not UTF-8: the words of a command are sent as JSON"))
}

/// Requests a terminal of the size and type of ours.
fn with_terminal(exec: Exec, terminal: bool) -> Exec {
    if !terminal {
        return exec;
    }
    let exec = exec.tty(terminal::size());
    match std::env::var("TERM") {
        Ok(kind) if !kind.is_empty() => exec.env("TERM", kind),
        _ => exec,
    }
}

/// How the session ended.
#[derive(Debug)]
enum Ending {
    /// The command ended.
    Status(ExitStatus),
    /// Our output is closed, as with SIGPIPE.
    BrokenPipe,
    /// This signal ended agent-cli.
    Signal(i32),
}

async fn attach(exec: Exec, terminal: bool, input: bool) -> anyhow::Result<u8> {
    let session = exec.start().await?;
    // Before raw mode, so that no signal can end the process while the terminal is raw.
    let signals = Signals::of(&FORWARDED)?;
    // Without input, Ctrl-C and Ctrl-Z keep their local meaning.
    let raw = if terminal && input {
        RawMode::enter().context("cannot prepare the terminal")?
    } else {
        None
    };
    let ending = run_interactive(session, signals, terminal, input).await;
    drop(raw);
    match ending? {
        Ending::Status(status) => {
            if let Some(reason) = &status.failure {
                output::eprint_error(&output::escape(reason.as_bytes()));
            } else if status.timed_out {
                output::eprint_error("the command was ended: it exceeded its time limit");
            } else if !status.output_complete {
                tracing::info!("a background process of the command still had its output open");
            }
            Ok(exit::of_child(&status))
        }
        Ending::BrokenPipe => Ok(exit::BROKEN_PIPE),
        Ending::Signal(signal) => Ok(exit::after_signal(signal)),
    }
}

/// Forwards data and signals until the command ends, or a signal ends us.
async fn run_interactive(
    mut session: ExecSession,
    mut signals: Signals,
    terminal: bool,
    input: bool,
) -> anyhow::Result<Ending> {
    let control = session.control();
    let mut feeding = JoinSet::new();
    match (session.take_stdin(), input) {
        (Some(stdin), true) => {
            feeding.spawn(feed(stdio::stdin()?, stdin));
        }
        (stdin, _) => drop(stdin),
    }
    let mut feeding = std::pin::pin!(failure_of(feeding));
    let stdout = session.take_stdout();
    let stderr = session.take_stderr();
    let ending = async {
        let outcome = tokio::try_join!(
            async {
                stdio::copy_out(stdout, Sink::Stdout)
                    .await
                    .map_err(Stop::Local)
            },
            async {
                stdio::copy_out(stderr, Sink::Stderr)
                    .await
                    .map_err(Stop::Local)
            },
            async { session.wait().await.map_err(Stop::Agent) },
        );
        match outcome {
            Ok(((), (), status)) => Ok(Ending::Status(status)),
            Err(Stop::Local(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Ok(Ending::BrokenPipe)
            }
            Err(Stop::Local(error)) => Err(anyhow!(error).context("cannot write the output")),
            Err(Stop::Agent(error)) => Err(error.into()),
        }
    };
    tokio::pin!(ending);
    let mut relay = Relay::new(control);
    if terminal {
        relay.resize();
    }
    loop {
        tokio::select! {
            ending = &mut ending => return ending,
            number = signals.next() => {
                if let Some(ending) = relay.handle(number, terminal) {
                    return Ok(ending);
                }
            }
            ending = relay.outcome() => return Ok(ending),
            // Returning ends the command, so that it does not take this for the end of its input.
            error = &mut feeding => {
                return Err(anyhow!(error).context("cannot read standard input"));
            }
        }
    }
}

/// Why forwarding stopped.
#[derive(Debug)]
enum Stop {
    Local(io::Error),
    Agent(ClientError),
}

/// Copies our stdin to the command's.
///
/// # Errors
///
/// Those of reading it. The command's input is not ended then.
async fn feed(
    mut ours: mpsc::Receiver<io::Result<bytes::Bytes>>,
    mut theirs: ExecStdin,
) -> io::Result<()> {
    while let Some(piece) = ours.recv().await {
        match piece {
            Ok(piece) => {
                if theirs.write_all(&piece).await.is_err() {
                    // The command closed its input; its output goes on.
                    return Ok(());
                }
            }
            Err(error) => {
                theirs.abort();
                return Err(error);
            }
        }
    }
    let _ = theirs.shutdown().await;
    Ok(())
}

/// Resolves when the input cannot be read.
async fn failure_of(mut feeding: JoinSet<io::Result<()>>) -> io::Error {
    match feeding.join_next().await {
        Some(Ok(Err(error))) => error,
        _ => std::future::pending().await,
    }
}

/// Forwards signals, and decides when to end without the command.
///
/// A command may survive many signals, so that alone is no reason to end. An agent that did not even
/// confirm the last signal is.
#[derive(Debug)]
struct Relay {
    control: ExecControl,
    /// Signals being sent.
    tasks: JoinSet<Forwarded>,
    /// How many of them ask the command to end.
    unconfirmed: usize,
    resizes: JoinSet<()>,
    leave_at: Option<(Instant, i32)>,
}

/// A signal that was sent, or lost.
#[derive(Debug)]
struct Forwarded {
    number: i32,
    asks_to_end: bool,
    lost: bool,
}

impl Relay {
    fn new(control: ExecControl) -> Self {
        Self {
            control,
            tasks: JoinSet::new(),
            unconfirmed: 0,
            resizes: JoinSet::new(),
            leave_at: None,
        }
    }

    /// Handles a signal to us. `Some` if it ends the session.
    fn handle(&mut self, number: i32, terminal: bool) -> Option<Ending> {
        if number == libc::SIGWINCH {
            if terminal {
                self.resize();
            }
            return None;
        }
        let asks_to_end = !matches!(number, libc::SIGUSR1 | libc::SIGUSR2);
        if asks_to_end && self.unconfirmed > 0 {
            return Some(Ending::Signal(number));
        }
        if number == libc::SIGHUP {
            self.leave_at = Some((Instant::now() + HANGUP_TIMEOUT, number));
        }
        self.unconfirmed += usize::from(asks_to_end);
        let control = self.control.clone();
        self.tasks.spawn(async move {
            let sent = async {
                control.signal(number).await?;
                control.ping().await
            };
            Forwarded {
                number,
                asks_to_end,
                lost: sent.await.is_err(),
            }
        });
        None
    }

    /// Sends the size of our terminal to the guest.
    fn resize(&mut self) {
        while self.resizes.try_join_next().is_some() {}
        let control = self.control.clone();
        self.resizes.spawn(async move {
            // Fails if the command has ended.
            let _ = control.resize(terminal::size()).await;
        });
    }

    /// Waits until a signal was lost, or until the time limit after SIGHUP. Cancel safe.
    async fn outcome(&mut self) -> Ending {
        loop {
            let leave_at = self.leave_at;
            tokio::select! {
                Some(Ok(passed)) = self.tasks.join_next() => {
                    self.unconfirmed -= usize::from(passed.asks_to_end);
                    if passed.asks_to_end && passed.lost {
                        return Ending::Signal(passed.number);
                    }
                }
                number = hang_up(leave_at) => return Ending::Signal(number),
            }
        }
    }
}

async fn hang_up(at: Option<(Instant, i32)>) -> i32 {
    match at {
        None => std::future::pending().await,
        Some((at, number)) => {
            sleep_until(at).await;
            number
        }
    }
}

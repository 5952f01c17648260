//! `exec` and `shell`: a command in the guest, as if it ran here.

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

/// How long a command may take to end after our own terminal went away: nobody is there to send
/// a second signal.
const HANGUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The signals to us that are passed on to the command.
const PASSED_ON: [i32; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Starts the login shell of the user. Our agent says in SHELL which one that is. With others, `su`
/// looks it up for root; of anybody else it would ask a password. A user without an entry in
/// `/etc/passwd` has `/bin/sh`, as login(1) has it.
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
        // Without input there is nothing to type into a terminal.
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
    word.into_string().map_err(|word| {
        anyhow!("{word:?} is not UTF-8: the words of a command travel as JSON text")
    })
}

/// Gives the command a terminal like ours.
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

/// How it ended.
#[derive(Debug)]
enum Ending {
    /// The command ended.
    Status(ExitStatus),
    /// Our output is closed: as if the command had got SIGPIPE.
    BrokenPipe,
    /// We leave because of a signal.
    Left(i32),
}

async fn attach(exec: Exec, terminal: bool, input: bool) -> anyhow::Result<u8> {
    let session = exec.start().await?;
    // Before the terminal is raw, so that no signal can end us while it is.
    let signals = Signals::of(&PASSED_ON)?;
    // Without input the keys mean what they always do here: Ctrl-C, Ctrl-Z.
    let raw = if terminal && input {
        RawMode::enter().context("cannot prepare the terminal")?
    } else {
        None
    };
    let ending = converse(session, signals, terminal, input).await;
    drop(raw);
    match ending? {
        Ending::Status(status) => {
            if let Some(reason) = &status.failure {
                output::complain(&output::escape(reason.as_bytes()));
            } else if status.timed_out {
                output::complain("the command was ended: its time was over");
            } else if !status.output_complete {
                tracing::info!("a process the command left behind still held its output");
            }
            Ok(exit::of_child(&status))
        }
        Ending::BrokenPipe => Ok(exit::BROKEN_PIPE),
        Ending::Left(signal) => Ok(exit::after_signal(signal)),
    }
}

/// Moves bytes and signals until the command ends or we leave.
async fn converse(
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
                if let Some(ending) = relay.take(number, terminal) {
                    return Ok(ending);
                }
            }
            ending = relay.outcome() => return Ok(ending),
            // Leaving ends the command: it must not take this for the end of its input.
            error = &mut feeding => {
                return Err(anyhow!(error).context("cannot read standard input"));
            }
        }
    }
}

/// Why a conversation stopped.
#[derive(Debug)]
enum Stop {
    Local(io::Error),
    Agent(ClientError),
}

/// Types our stdin to the command.
///
/// # Errors
///
/// When it cannot be read. The command is not told of an end of its input then.
async fn feed(
    mut ours: mpsc::Receiver<io::Result<bytes::Bytes>>,
    mut theirs: ExecStdin,
) -> io::Result<()> {
    while let Some(piece) = ours.recv().await {
        match piece {
            Ok(piece) => {
                if theirs.write_all(&piece).await.is_err() {
                    // The command takes no more; what it writes goes on.
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

/// Passes signals on, and decides when to leave without the command.
///
/// A command may take many signals and live, so a signal that it survives is no reason to leave.
/// An agent that does not even confirm the last one is.
#[derive(Debug)]
struct Relay {
    control: ExecControl,
    /// Signals on their way.
    tasks: JoinSet<Passed>,
    /// Those among them that ask the command to end.
    unconfirmed: usize,
    resizes: JoinSet<()>,
    leave_at: Option<(Instant, i32)>,
}

/// A signal that was passed on, or could not be.
#[derive(Debug)]
struct Passed {
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

    /// Deals with a signal to us; returns the ending if it is one.
    fn take(&mut self, number: i32, terminal: bool) -> Option<Ending> {
        if number == libc::SIGWINCH {
            if terminal {
                self.resize();
            }
            return None;
        }
        let asks_to_end = !matches!(number, libc::SIGUSR1 | libc::SIGUSR2);
        if asks_to_end && self.unconfirmed > 0 {
            return Some(Ending::Left(number));
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
            Passed {
                number,
                asks_to_end,
                lost: sent.await.is_err(),
            }
        });
        None
    }

    /// Tells the guest's terminal our size, unless it is being told already.
    fn resize(&mut self) {
        while self.resizes.try_join_next().is_some() {}
        let control = self.control.clone();
        self.resizes.spawn(async move {
            // A command that has ended has no terminal any more.
            let _ = control.resize(terminal::size()).await;
        });
    }

    /// Waits until a signal turns out to be lost, or it is time to leave. It may be dropped and
    /// asked again.
    async fn outcome(&mut self) -> Ending {
        loop {
            let leave_at = self.leave_at;
            tokio::select! {
                Some(Ok(passed)) = self.tasks.join_next() => {
                    self.unconfirmed -= usize::from(passed.asks_to_end);
                    if passed.asks_to_end && passed.lost {
                        return Ending::Left(passed.number);
                    }
                }
                number = hang_up(leave_at) => return Ending::Left(number),
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

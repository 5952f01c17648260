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
use vsock_agent_client::{Exec, ExecControl, ExecSession, ExecStdin, ExitStatus};

use crate::{
    args::{ExecArgs, ShellArgs},
    config::Settings,
    exit, output,
    signals::Signals,
    stdio::{self, Sink},
    terminal::{self, RawMode},
};

/// Time for a command to end after the local terminal hung up, when no user can send a second signal.
const HANGUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The signals that are handled: all but SIGWINCH are forwarded to the command.
const FORWARDED: [i32; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Starts the login shell of the user. vsock-agent sets SHELL to it. With LXD's agent, `su` looks it
/// up for root; other users would need a password for that. A user without an entry in `/etc/passwd`
/// gets `/bin/sh`, as with login(1).
const LOGIN: &str = r#"if [ -z "$SHELL" ] && [ "$(id -u)" = 0 ]; then exec su -l; fi
[ -n "$SHELL" ] || SHELL=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f7)
export SHELL="${SHELL:-/bin/sh}"
exec "$SHELL" -l"#;

/// `agent-cli exec`.
pub(crate) async fn run(settings: &Settings, args: ExecArgs) -> anyhow::Result<u8> {
    let client = settings.caller(&args.vm).await?;
    let terminal = args.tty || (!args.no_tty && !args.no_stdin && is_interactive());
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
    exec = with_terminal(exec.on_disconnect(args.on_disconnect), terminal);
    for (name, value) in args.env {
        exec = exec.env(name, value);
    }
    attach(exec, terminal, !args.no_stdin).await
}

/// `agent-cli shell`.
pub(crate) async fn shell(settings: &Settings, args: ShellArgs) -> anyhow::Result<u8> {
    let terminal = !args.no_tty;
    if terminal && !is_interactive() {
        bail!("a shell needs a terminal: use -T for a shell on pipes, or agent-cli exec");
    }
    let client = settings.caller(&args.vm).await?;
    let mut exec = client.exec("sh", ["-c", LOGIN]);
    if let Some(user) = args.user {
        exec = exec.user(user);
    }
    exec = exec.on_disconnect(args.on_disconnect);
    attach(with_terminal(exec, terminal), terminal, true).await
}

fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

fn text(word: OsString) -> anyhow::Result<String> {
    word.into_string()
        .map_err(|word| anyhow!("{word:?} is not UTF-8: the words of a command are sent as JSON"))
}

/// Requests a terminal with the size and type of the local terminal.
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
    Status(ExitStatus),
    /// This signal ended agent-cli.
    Signal(i32),
}

async fn attach(exec: Exec, terminal: bool, input: bool) -> anyhow::Result<u8> {
    let session = exec.start().await?;
    // Before raw mode, so that no signal ends the process while the terminal is raw.
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
                output::eprint_error(reason);
            } else if status.timed_out {
                output::eprint_error("the command was ended: it exceeded its time limit");
            } else if !status.output_complete {
                tracing::info!("a background process of the command still had its output open");
            }
            Ok(exit::of_command(&status))
        }
        Ending::Signal(signal) => Ok(exit::after_signal(signal)),
    }
}

/// Forwards data and signals until the command ends, or a signal ends agent-cli.
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
    let copy_out = async |stream, sink| {
        let copied = stdio::copy_out(stream, sink).await;
        copied.context("cannot write the output")
    };
    let ending = async {
        let ((), (), status) = tokio::try_join!(
            copy_out(stdout, Sink::Stdout),
            copy_out(stderr, Sink::Stderr),
            async { Ok(session.wait().await?) },
        )?;
        Ok(Ending::Status(status))
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
            // Returning ends the command. It must not take this for the end of its input.
            error = &mut feeding => {
                return Err(anyhow!(error).context("cannot read standard input"));
            }
        }
    }
}

/// Copies local stdin to the command's.
///
/// # Errors
///
/// The error of reading stdin. The command's input is aborted then.
async fn feed(
    mut local: mpsc::Receiver<io::Result<bytes::Bytes>>,
    mut remote: ExecStdin,
) -> io::Result<()> {
    while let Some(piece) = local.recv().await {
        match piece {
            Ok(piece) => {
                if remote.write_all(&piece).await.is_err() {
                    // The command closed its input. Its output continues.
                    return Ok(());
                }
            }
            Err(error) => {
                remote.abort();
                return Err(error);
            }
        }
    }
    let _ = remote.shutdown().await;
    Ok(())
}

/// Resolves when `feeding` fails.
async fn failure_of(mut feeding: JoinSet<io::Result<()>>) -> io::Error {
    match feeding.join_next().await {
        Some(Ok(Err(error))) => error,
        _ => std::future::pending().await,
    }
}

/// Forwards signals, and decides when agent-cli ends before the command.
///
/// A command may survive many signals. So agent-cli ends only if the agent did not confirm a signal
/// before the next one, or if the command survives SIGHUP for [`HANGUP_TIMEOUT`].
#[derive(Debug)]
struct Relay {
    control: ExecControl,
    /// Requests under way.
    tasks: JoinSet<Option<Forwarded>>,
    /// How many of `tasks` send a signal that asks the command to end.
    unconfirmed: usize,
    hangup_deadline: Option<Instant>,
}

/// A forwarded signal that asks the command to end.
#[derive(Debug)]
struct Forwarded {
    number: i32,
    is_confirmed: bool,
}

impl Relay {
    fn new(control: ExecControl) -> Self {
        Self {
            control,
            tasks: JoinSet::new(),
            unconfirmed: 0,
            hangup_deadline: None,
        }
    }

    /// Handles a signal to agent-cli. Returns `Some` if it ends the session.
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
            self.hangup_deadline = Some(Instant::now() + HANGUP_TIMEOUT);
        }
        self.unconfirmed += usize::from(asks_to_end);
        let control = self.control.clone();
        self.tasks.spawn(async move {
            let sent = async {
                control.signal(number).await?;
                control.ping().await
            };
            let is_confirmed = sent.await.is_ok();
            asks_to_end.then_some(Forwarded {
                number,
                is_confirmed,
            })
        });
        None
    }

    /// Sends the size of the local terminal to the guest.
    fn resize(&mut self) {
        let control = self.control.clone();
        self.tasks.spawn(async move {
            // Fails if the command has ended.
            let _ = control.resize(terminal::size()).await;
            None
        });
    }

    /// Waits for a signal that the agent did not confirm, or for the time limit after SIGHUP. Cancel
    /// safe.
    async fn outcome(&mut self) -> Ending {
        loop {
            let deadline = self.hangup_deadline;
            tokio::select! {
                Some(Ok(task)) = self.tasks.join_next() => match task {
                    Some(Forwarded { number, is_confirmed: false }) => {
                        return Ending::Signal(number);
                    }
                    Some(_) => self.unconfirmed -= 1,
                    None => {}
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Ending::Signal(libc::SIGHUP);
                }
                else => std::future::pending().await,
            }
        }
    }
}

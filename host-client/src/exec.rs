//! Running a command: the builder, the session, and how it ends.
//!
//! With an agent that speaks HTTP/2, a command is one stream of the client's connection (`stream`). With
//! others:
//!
//! ```text
//! POST exec ──► operation ──► one websocket per stream, all joined at once ──► it runs
//!
//!   ExecStdin ─► feed ─► "0"                 a task per stream, each with its own bounded buffer,
//!   ExecReader ◄─ receive ◄─ "1", "2"        so that none of them blocks another
//!   ExecControl ─► run_control ─► "control"  losing it ends the command
//!   wait ◄─ watch ◄─ GET …/wait, or events
//! ```
//!
//! A command succeeded only if the agent reports it *and* every output stream has its end marker: a
//! closed connection is not an end, because a virtual machine that stops closes all of them.

mod control;
mod event;
mod input;
mod output;
mod reported_end;
mod request;
mod session;
mod stream;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt, io,
    os::unix::ffi::OsStrExt,
    sync::Arc,
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::{Instrument, Span, debug_span, field::Empty};

pub use crate::protocol::exec::OnDisconnect;

pub use self::{
    control::ExecControl,
    event::{ExecEvent, ExecEvents},
    input::ExecStdin,
    output::ExecReader,
    session::ExecSession,
};
use crate::{
    agent::Agent,
    error::ClientError,
    protocol::{
        exec::EXIT_SIGNAL_BASE,
        printable::{LOG_CHARS, escape, excerpt},
    },
};

/// Default of [`Exec::output_limit`], in bytes.
const DEFAULT_OUTPUT_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// A command to run in the guest. [`start`](Self::start) or [`output`](Self::output) runs it.
#[derive(Debug, Clone)]
#[must_use = "a command runs when it is started"]
pub struct Exec {
    agent: Arc<Agent>,
    command: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    directory: OsString,
    input: Option<Vec<u8>>,
    user: Option<Account>,
    group: Option<Account>,
    terminal: Option<TerminalSize>,
    output_limit: usize,
    timeout: Option<Duration>,
    kill_pause: Option<Duration>,
    wait_for_eof: bool,
    on_disconnect: OnDisconnect,
}

/// Size of a terminal, in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Lines.
    pub lines: u16,
}

/// A user or a group of the guest, by name or by number.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Account {
    /// By name. LXD's agent supports numbers only.
    Name(String),
    /// By number. 4294967295, which system calls treat as "unchanged", is refused.
    Id(u32),
}

impl From<u32> for Account {
    fn from(id: u32) -> Self {
        Self::Id(id)
    }
}

impl From<&str> for Account {
    /// A text of digits is a number.
    fn from(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Name(text.to_owned()), Self::Id)
    }
}

impl From<String> for Account {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitStatus {
    /// Its exit status; `128 + n` after signal `n`; 126 if it could not be run and 127 if it was
    /// not found. LXD's agent reports −1 for some failures to start.
    pub code: i32,
    /// The signal that ended it, if the agent reports it.
    pub signal: Option<i32>,
    /// False if a background process still had an output stream open, so that the agent ended the
    /// stream. True also if the agent does not report it.
    pub output_complete: bool,
    /// Whether it was ended because it exceeded its [timeout](Exec::timeout).
    pub timed_out: bool,
    /// The agent's error if it was never started, or was cancelled by the agent. Escape it before
    /// printing it to a terminal.
    pub failure: Option<String>,
}

impl ExitStatus {
    /// The status of a command that ended with this exit status, for tests of functions that take one. Other
    /// fields can be assigned.
    #[must_use]
    pub const fn exited(code: i32) -> Self {
        Self {
            code,
            signal: None,
            output_complete: true,
            timed_out: false,
            failure: None,
        }
    }

    /// The same of a command that a signal ended.
    #[must_use]
    pub const fn signaled(signal: i32) -> Self {
        let mut status = Self::exited(EXIT_SIGNAL_BASE + signal);
        status.signal = Some(signal);
        status
    }

    /// Whether it ran to its own end and returned 0.
    #[must_use]
    pub const fn success(&self) -> bool {
        self.code == 0 && self.failure.is_none() && !self.timed_out
    }
}

impl fmt::Display for ExitStatus {
    /// As `exit status 3` or `signal 9`, with the agent's error escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal {
            Some(signal) => write!(f, "signal {signal}")?,
            None => write!(f, "exit status {}", self.code)?,
        }
        if self.timed_out {
            f.write_str(" after its time limit")?;
        }
        match &self.failure {
            Some(failure) => write!(f, ": {}", escape(failure.as_bytes())),
            None => Ok(()),
        }
    }
}

/// The result of [`Exec::output`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output, or to its terminal.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error; nothing with a terminal.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The result of a command, for tests of functions that take one.
    #[must_use]
    pub fn new(status: ExitStatus, stdout: impl Into<Vec<u8>>, stderr: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }
}

impl Exec {
    pub(crate) fn new(agent: Arc<Agent>, program: &OsStr) -> Self {
        Self {
            agent,
            command: vec![program.to_owned()],
            environment: BTreeMap::new(),
            directory: OsString::new(),
            input: None,
            user: None,
            group: None,
            terminal: None,
            output_limit: DEFAULT_OUTPUT_LIMIT_BYTES,
            timeout: None,
            kill_pause: None,
            wait_for_eof: false,
            on_disconnect: OnDisconnect::End,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        let arguments = arguments.into_iter();
        self.command
            .extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable, in addition to those that the agent sets for every command.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let (name, value) = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.insert(name, value);
        self
    }

    /// Sets environment variables, as [`env`](Self::env) does one.
    pub fn envs<N, V>(self, variables: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let variables = variables.into_iter();
        variables.fold(self, |exec, (name, value)| exec.env(name, value))
    }

    /// Gives it these bytes as its whole standard input. [`ExecSession::take_stdin`] returns `None` then.
    /// It need not read them.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Starts it in `directory` instead of the home directory.
    pub fn cwd(mut self, directory: impl AsRef<OsStr>) -> Self {
        self.directory = directory.as_ref().to_owned();
        self
    }

    /// Runs it as this user instead of root.
    pub fn user(mut self, user: impl Into<Account>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Runs it with this group instead of the user's.
    pub fn group(mut self, group: impl Into<Account>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Gives it a terminal of this size in place of three pipes: input, output and errors share
    /// one stream, and bytes such as Ctrl-C mean something. Never for binary data.
    pub fn tty(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
        self
    }

    /// Ends it, and all processes that it started, after this time, in milliseconds. For agents without
    /// [`EXEC_TIMES`](crate::protocol::version::EXEC_TIMES) it is rounded up to whole seconds. With
    /// [`wait_for_eof`](Self::wait_for_eof) the time is over only when the output is. Zero is no
    /// limit. Not known to LXD's agents, and an error with them.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// When the agent ends it, because its time is over, it is cancelled or its client has gone, it
    /// gets SIGHUP, then SIGTERM and in the end SIGKILL, each this long after the one before if
    /// anything of it still lives. The default is 5 s, the resolution a millisecond. Zero is SIGKILL
    /// at once. An error with agents that do not say
    /// [`EXEC_TIMES`](crate::protocol::version::EXEC_TIMES), as LXD's.
    pub fn kill_pause(mut self, time: Duration) -> Self {
        self.kill_pause = Some(time);
        self
    }

    /// Waits for the end of its output as long as anything holds it, and not only a moment longer
    /// than for the command itself. LXD's agents always do, unless it has a terminal.
    pub fn wait_for_eof(mut self) -> Self {
        self.wait_for_eof = true;
        self
    }

    /// What becomes of it when this client is gone, or drops the session; the default is
    /// [`OnDisconnect::End`]. Its operation has the exit status afterwards
    /// ([`ExecSession::operation`], `GET /1.0/operations/ID/wait`). Anything but `End` is not known to
    /// LXD's agents, and an error with them.
    pub fn on_disconnect(mut self, what: OnDisconnect) -> Self {
        self.on_disconnect = what;
        self
    }

    /// Most bytes that [`output`](Self::output) keeps of each stream; the default is 64 MiB. A command
    /// that writes more is ended.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// The span of the command. Its arguments may be secret.
    fn span(&self) -> Span {
        let endpoint = self.agent.endpoint();
        let program = self.command.first().map(OsString::as_os_str);
        let program = excerpt(program.unwrap_or_default().as_bytes(), LOG_CHARS);
        debug_span!("exec", %endpoint, program, operation = Empty)
    }

    /// Starts it. The session's streams work at once; dropping the session ends the command.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the command is not started, or is ended in the background.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] for a user by name with an agent that knows numbers only;
    /// [`ClientError::Local`] with [`io::ErrorKind::InvalidInput`] for an argument, a variable or a
    /// directory that is not UTF-8, which the agent does not take; and any other [`ClientError`]. A program that does not exist is no error here: it is the exit
    /// status 127.
    pub async fn start(self) -> Result<ExecSession, ClientError> {
        let agent = Arc::clone(&self.agent);
        let mut exec = self;
        let input = exec.input.take();
        let span = exec.span();
        let start = agent.run("exec", session::start(exec));
        let mut session = start.instrument(span.clone()).await?;
        agent.tally().command();
        session.trace(span);
        if let Some(input) = input {
            session.feed(input);
        }
        Ok(session)
    }

    /// Runs it to its end, without input unless there is [some](Self::stdin), and keeps what it writes.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the command is ended.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start) and [`ExecSession::wait`], and [`ClientError::OutputLimit`] as
    /// soon as there is more output than [`output_limit`](Self::output_limit) allows: the command
    /// is ended then.
    pub async fn output(self) -> Result<Output, ClientError> {
        let agent = Arc::clone(&self.agent);
        let limit = self.output_limit;
        let output = collect_all(self.start().await?, limit);
        output.await.map_err(|error| error.at(agent.endpoint()))
    }
}

/// Reads the output of a command until it ends, at most `limit` bytes of each stream.
async fn collect_all(mut session: ExecSession, limit: usize) -> Result<Output, ClientError> {
    if let Some(mut stdin) = session.take_stdin() {
        // Fails if the command has closed its input, which is not an error.
        let _ = stdin.shutdown().await;
    }
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let read = tokio::try_join!(
        collect(session.take_stdout(), limit, &mut stdout, "standard output"),
        collect(session.take_stderr(), limit, &mut stderr, "standard error"),
        async { session.wait().await.map_err(Stop::Failed) }
    );
    match read {
        Ok((Ok(()), Ok(()), status)) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        Ok((Err(error), _, _) | (_, Err(error), _)) => {
            Err(ClientError::lost("reading output", error))
        }
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Limit(stream)) => Err(ClientError::OutputLimit {
            endpoint: None,
            stream,
            limit: u64::try_from(limit).unwrap_or(u64::MAX),
            stdout,
            stderr,
        }),
    }
}

/// Why output is not read to its end.
#[derive(Debug)]
enum Stop {
    /// There is more than is to be kept on this stream.
    Limit(&'static str),
    /// The command or its agent failed.
    Failed(ClientError),
}

/// Reads a stream into `bytes`. A broken stream is not an error here: `wait` reports it with more
/// detail.
async fn collect(
    reader: Option<ExecReader>,
    limit: usize,
    bytes: &mut Vec<u8>,
    stream: &'static str,
) -> Result<io::Result<()>, Stop> {
    let Some(reader) = reader else {
        return Ok(Ok(()));
    };
    let over = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = reader.take(over).read_to_end(bytes).await;
    if bytes.len() > limit {
        bytes.truncate(limit);
        return Err(Stop::Limit(stream));
    }
    Ok(read.map(drop))
}

/// Time for an agent to report the result after a stream broke, and to close the streams after the
/// result.
const GRACE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::{
        fmt::{Debug, Write as _},
        sync::Mutex,
    };

    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    use super::*;
    use crate::{Client, Endpoint, Security};

    /// Keeps the text of all spans.
    #[derive(Debug, Clone, Default)]
    struct Spans(Arc<Mutex<String>>);

    impl Visit for Spans {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            writeln!(self.0.lock().unwrap(), "{field}={value:?}").unwrap();
        }
    }

    impl Subscriber for Spans {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
            span.record(&mut self.clone());
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, values: &span::Record<'_>) {
            values.record(&mut self.clone());
        }

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, _: &Event<'_>) {}

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn results_can_be_made_for_tests() {
        assert!(ExitStatus::exited(0).success());
        assert!(!ExitStatus::exited(1).success());
        let killed = ExitStatus::signaled(9);
        assert_eq!((killed.code, killed.signal), (137, Some(9)));
        let mut failed = ExitStatus::exited(127);
        failed.failure = Some("not\x1b found".to_owned());
        assert_eq!(failed.to_string(), "exit status 127: not\\x1b found");
        let mut late = killed.clone();
        late.timed_out = true;
        assert_eq!(late.to_string(), "signal 9 after its time limit");
        let output = Output::new(killed, "out", b"err");
        assert_eq!(
            (&output.stdout[..], &output.stderr[..]),
            (&b"out"[..], &b"err"[..])
        );
    }

    #[test]
    fn the_span_of_a_command_has_its_program_and_none_of_its_secrets() {
        let client = Client::new(Endpoint::Unix("/nowhere".into()), Security::Plain);
        let exec = client
            .exec("login\n", ["secret"])
            .env("A", "secret")
            .stdin("secret");
        let spans = Spans::default();
        tracing::subscriber::with_default(spans.clone(), || {
            exec.span().record("operation", tracing::field::display(7));
        });
        let text = spans.0.lock().unwrap();
        assert_eq!(
            *text,
            "endpoint=unix:/nowhere\nprogram=\"login\\\\x0a\"\noperation=7\n"
        );
    }
}

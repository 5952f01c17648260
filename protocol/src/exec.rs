//! Commands: the request, the control messages, and the result.
//!
//! ```text
//! POST /1.0/exec ──► operation, metadata ExecStarted { fds: name → secret }
//! GET  …/websocket?secret=… for each fd, within 30 s (5 s in LXD's agent); then it starts
//!      "0"        stdin; with a terminal both directions
//!      "1" "2"    stdout and stderr, without a terminal only
//!      "control"  ControlMessage, client to agent; losing it ends the command. May be left out
//!                 without a terminal; then losing "1" ends the command
//! binary message = data, text message or a closing handshake = end of that direction; a connection
//! that is lost before its end is a failure
//! end: metadata ExecEnded { return, … }, status Success; Failure if it never started
//! ```

pub mod stream;

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::null::{null_as_default, without_nulls};

/// Name of the socket that carries [`ControlMessage`]s.
pub const CONTROL: &str = "control";
/// Name of the socket for standard input, and with a terminal for both directions.
pub const STDIN: &str = "0";
/// Name of the socket for standard output.
pub const STDOUT: &str = "1";
/// Name of the socket for standard error.
pub const STDERR: &str = "2";

/// Exit status of a command that was found but could not be run (POSIX `sh`, 2.8.2).
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Exit status of a command that was not found (POSIX `sh`, 2.8.2).
pub const EXIT_NOT_FOUND: i32 = 127;
/// A command ended by signal `n` has exit status `128 + n`, as in a shell.
pub const EXIT_SIGNAL_BASE: i32 = 128;

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ExecRequest {
    /// The program and its arguments. Must not be empty.
    #[serde(default, deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// Must be true: an agent sends output to sockets only.
    #[serde(default)]
    pub wait_for_websocket: bool,
    /// True for a terminal, false for three pipes.
    #[serde(default)]
    pub interactive: bool,
    /// Variables on top of the agent's defaults. One that is `null` is not set.
    #[serde(default, deserialize_with = "without_nulls")]
    pub environment: BTreeMap<String, String>,
    /// Columns of the terminal; with `height`, if both are above 0, else 80 by 25.
    #[serde(default)]
    pub width: i64,
    /// Lines of the terminal.
    #[serde(default)]
    pub height: i64,
    /// For hosts that record output themselves; an agent ignores it.
    #[serde(default)]
    pub record_output: bool,
    /// User id, unless `user_name` says more. Not [`UNCHANGED`](crate::id::UNCHANGED). An agent that
    /// is not root runs commands as its own user, and takes 0 for that.
    #[serde(default)]
    pub user: u32,
    /// Group id, unless `group_name` or `user_name` say more. As for `user`.
    #[serde(default)]
    pub group: u32,
    /// Directory to start in, or empty for the home directory.
    #[serde(default, deserialize_with = "null_as_default")]
    pub cwd: String,
    /// User by name or number, with that user's own groups
    /// ([`EXEC_USER_NAME`](crate::version::EXEC_USER_NAME)).
    #[serde(default, rename = "user_name", skip_serializing_if = "Option::is_none")]
    pub user_name: Option<String>,
    /// Group by name or number ([`EXEC_USER_NAME`](crate::version::EXEC_USER_NAME)).
    #[serde(
        default,
        rename = "group_name",
        skip_serializing_if = "Option::is_none"
    )]
    pub group_name: Option<String>,
    /// Seconds after which the command and all it started are ended, counted from when its sockets are
    /// joined, and to the end of its output; 0 is no limit, as for `timeout(1)`
    /// ([`EXEC_OPTIONS`](crate::version::EXEC_OPTIONS)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<u32>,
    /// The same in milliseconds, in place of `timeout` ([`EXEC_TIMES`](crate::version::EXEC_TIMES)).
    #[serde(
        default,
        rename = "timeout_ms",
        skip_serializing_if = "Option::is_none"
    )]
    timeout_ms: Option<u64>,
    /// Milliseconds from each of the signals that end the command to the next: SIGHUP, SIGTERM,
    /// SIGKILL. The agent's own choice unless it is there
    /// ([`EXEC_TIMES`](crate::version::EXEC_TIMES)).
    #[serde(
        default,
        rename = "kill_pause_ms",
        skip_serializing_if = "Option::is_none"
    )]
    kill_pause_ms: Option<u64>,
    /// Whether the output goes on as long as anything holds it, as in LXD's agent, and not only a
    /// moment longer than the command ([`EXEC_OPTIONS`](crate::version::EXEC_OPTIONS)).
    #[serde(default, rename = "wait_for_eof", skip_serializing_if = "is_false")]
    pub wait_for_eof: bool,
    /// What happens to the command when its client disconnects
    /// ([`EXEC_ON_DISCONNECT`](crate::version::EXEC_ON_DISCONNECT)).
    #[serde(
        default,
        rename = "vsock_agent_on_disconnect",
        skip_serializing_if = "OnDisconnect::is_default"
    )]
    pub on_disconnect: OnDisconnect,
}

/// What happens to a command when its client disconnects: when its control socket, its input or, without a
/// control socket, its standard output is lost. A time limit and cancelling the operation end it in any
/// case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnDisconnect {
    /// The command and all it started are ended.
    #[default]
    End,
    /// The command's process group gets `SIGHUP`, and its streams are closed, as when a connection of
    /// ssh's breaks off. What ignores the signal or has left the group goes on. The operation ends with
    /// the command, or fails when that is not over five seconds later; a time limit has no meaning then.
    Hangup,
    /// The command goes on. Its output is discarded, its input brings nothing more and no end, and the
    /// operation ends with it.
    Keep,
}

impl OnDisconnect {
    /// Whether it is the default, which is left out of a request.
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ExecRequest {
    /// A request to run `command`, without a terminal, as the agent's user, in the home directory.
    #[must_use]
    pub fn new(command: Vec<String>) -> Self {
        Self {
            command,
            ..Self::default()
        }
    }

    /// Sets the time after which the command and all that it started are ended, counted from when its
    /// sockets are joined. Zero is no limit. It is rounded up to milliseconds; agents without
    /// [`EXEC_TIMES`](crate::version::EXEC_TIMES) round it up to seconds.
    pub fn set_time_limit(&mut self, limit: Duration) {
        self.timeout = Some(whole_seconds(limit));
        self.timeout_ms = (limit.subsec_nanos() > 0).then(|| milliseconds(limit));
    }

    /// Sets the time between the signals that end the command. It is rounded up to milliseconds.
    pub fn set_kill_pause(&mut self, pause: Duration) {
        self.kill_pause_ms = Some(milliseconds(pause));
    }

    /// The time limit of the command, if there is one.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        let seconds = || Some(Duration::from_secs(self.timeout?.into()));
        let time = self.timeout_ms.map(Duration::from_millis);
        time.or_else(seconds).filter(|time| !time.is_zero())
    }

    /// The time between the signals that end it, if the request sets one.
    #[must_use]
    pub fn kill_pause(&self) -> Option<Duration> {
        self.kill_pause_ms.map(Duration::from_millis)
    }
}

/// Rounded up: a limit of half a second is not none.
pub(crate) fn whole_seconds(time: Duration) -> u32 {
    let seconds = time.as_nanos().div_ceil(1_000_000_000);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Rounded up.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The secret that joins one socket of a command, once: letters and digits. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret(String);

impl Secret {
    /// Makes a secret of random bytes, as long as LXD's: 64 hexadecimal digits.
    #[must_use]
    pub fn from_random_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes.map(|byte| format!("{byte:02x}")).concat())
    }

    /// The secret as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PartialEq<&str> for Secret {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.0
    }
}

impl TryFrom<String> for Secret {
    type Error = ParseSecretError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // It becomes part of a request line.
        let is_safe = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_safe.then_some(Self(text)).ok_or(ParseSecretError)
    }
}

/// Text that is not a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret is not letters and digits")]
pub struct ParseSecretError;

/// Metadata of a command's operation from its creation on.
///
/// Only the reply to the `POST` has the secrets; later replies have empty `fds`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecStarted {
    /// The secrets that join the sockets, by the names of the sockets.
    #[serde(default, deserialize_with = "null_as_default")]
    pub fds: BTreeMap<String, Secret>,
    /// As requested.
    #[serde(default, deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// The complete environment of the command. Left out of later replies.
    #[serde(default, deserialize_with = "null_as_default")]
    pub environment: BTreeMap<String, String>,
    /// As requested.
    #[serde(default)]
    pub interactive: bool,
}

impl ExecStarted {
    /// The metadata without secrets and without the environment.
    #[must_use]
    pub fn new(command: Vec<String>, interactive: bool) -> Self {
        Self {
            command,
            interactive,
            ..Self::default()
        }
    }
}

/// Metadata of a command's operation at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecEnded {
    /// Exit status, `128 + n` after signal `n`, 126 or 127 if it could not be started. LXD's own
    /// agents say −1 after a signal and for some failures to start.
    #[serde(rename = "return")]
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// False if a process the command left behind still held an output stream, so that the agent
    /// ended it. Absent from other agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_complete: Option<bool>,
    /// Bytes the agent sent on each output socket, by its name, so that the client can tell that
    /// it got them all; and bytes it received on [`STDIN`] of a command without a terminal, if it
    /// received the end of the input. Absent from other agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<BTreeMap<String, u64>>,
    /// The reason why the command did not start: `not-found`, `not-executable`, `bad-cwd`, `too-long`,
    /// `identity`, `system`, or `killed` by a signal or by the agent. Absent from other agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_error: Option<String>,
    /// True if the command was ended because its `timeout` was over.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed_out: bool,
    /// Bytes of input the command had been given when it was ended because the connection of its
    /// input was lost before the end of the input. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_lost: Option<u64>,
}

/// A message of the client on the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "ControlWire", try_from = "ControlWire")]
#[non_exhaustive]
pub enum ControlMessage {
    /// The terminal has a new size, in character cells.
    WindowResize {
        /// Columns.
        width: u16,
        /// Lines.
        height: u16,
    },
    /// Send this signal: 1 to 64.
    Signal(i32),
}

/// [`ControlMessage`] as LXD writes it: sizes are strings, all three keys are always there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct ControlWire {
    command: String,
    #[serde(default)]
    args: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default)]
    signal: i64,
}

/// An error in a control message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlMessageError {
    /// The command is not known.
    #[error("unknown control command {0:?}")]
    UnknownCommand(String),
    /// A size is missing, not a number, or above 65535.
    #[error("window-resize without a usable {0}")]
    BadSize(&'static str),
    /// No signal has this number.
    #[error("signal {0} is not between 1 and 64")]
    BadSignal(i64),
}

/// Number of the last real-time signal on Linux (`_NSIG`, `include/uapi/asm-generic/signal.h`).
pub const MAX_SIGNAL: i32 = 64;

impl From<ControlMessage> for ControlWire {
    fn from(message: ControlMessage) -> Self {
        match message {
            ControlMessage::WindowResize { width, height } => Self {
                command: "window-resize".to_owned(),
                args: Some(BTreeMap::from([
                    ("width".to_owned(), width.to_string().into()),
                    ("height".to_owned(), height.to_string().into()),
                ])),
                signal: 0,
            },
            ControlMessage::Signal(signal) => Self {
                command: "signal".to_owned(),
                args: None,
                signal: signal.into(),
            },
        }
    }
}

impl TryFrom<ControlWire> for ControlMessage {
    type Error = ControlMessageError;

    fn try_from(wire: ControlWire) -> Result<Self, Self::Error> {
        match wire.command.as_str() {
            "window-resize" => {
                let args = wire.args.unwrap_or_default();
                Ok(Self::WindowResize {
                    width: cells(&args, "width")?,
                    height: cells(&args, "height")?,
                })
            }
            "signal" => match i32::try_from(wire.signal) {
                Ok(signal @ 1..=MAX_SIGNAL) => Ok(Self::Signal(signal)),
                _ => Err(ControlMessageError::BadSignal(wire.signal)),
            },
            _ => Err(ControlMessageError::UnknownCommand(wire.command)),
        }
    }
}

/// Reads a size that LXD writes as a string and other clients as a number.
fn cells(
    args: &BTreeMap<String, serde_json::Value>,
    name: &'static str,
) -> Result<u16, ControlMessageError> {
    let value = args.get(name).ok_or(ControlMessageError::BadSize(name))?;
    let number = match value {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        other => other.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    number.ok_or(ControlMessageError::BadSize(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_is_written_with_strings() {
        let text = serde_json::to_string(&ControlMessage::WindowResize {
            width: 120,
            height: 40,
        })
        .unwrap();
        assert_eq!(
            text,
            r#"{"command":"window-resize","args":{"height":"40","width":"120"},"signal":0}"#
        );
    }

    #[test]
    fn a_resize_with_numbers_is_read() {
        let text = r#"{"command":"window-resize","args":{"height":40,"width":120}}"#;
        assert_eq!(
            serde_json::from_str::<ControlMessage>(text).unwrap(),
            ControlMessage::WindowResize {
                width: 120,
                height: 40
            }
        );
    }

    #[test]
    fn a_signal_no_system_has_is_refused() {
        for signal in [0, -1, 65, i64::MAX] {
            let text = format!(r#"{{"command":"signal","signal":{signal}}}"#);
            serde_json::from_str::<ControlMessage>(&text).unwrap_err();
        }
    }

    #[test]
    fn null_stands_for_empty() {
        let request: ExecRequest =
            serde_json::from_str(r#"{"command":null,"environment":null,"cwd":null}"#).unwrap();
        assert_eq!(request, ExecRequest::default());
        let request: ExecRequest =
            serde_json::from_str(r#"{"environment":{"A":null,"B":"b"}}"#).unwrap();
        assert_eq!(
            request.environment,
            BTreeMap::from([("B".to_owned(), "b".to_owned())])
        );
    }
}

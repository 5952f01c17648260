//! Exit codes and error messages.

use std::{error::Error, io, process::ExitCode};

use vsock_agent_client::{ClientError, ConnectError, ExitStatus};

use crate::output;

/// agent-cli itself failed. Shells and ordinary commands do not use this code.
const FAILURE: u8 = 125;

/// The exit code that a shell shows for a program that wrote to a closed pipe: 128 + SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// Some operands failed, the others succeeded.
pub(crate) const PARTLY: u8 = 1;

/// The command exceeded its time limit, as with `timeout(1)`.
const TIMED_OUT: u8 = 124;

/// The exit code after a signal that ended agent-cli: 128 + the signal, as in a shell.
pub(crate) fn after_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(FAILURE)
}

/// The exit code for a command's status: its low eight bits, as with `exit`.
pub(crate) fn of_command(status: &ExitStatus) -> u8 {
    if status.timed_out {
        return TIMED_OUT;
    }
    u8::try_from(status.code.rem_euclid(256)).unwrap_or(FAILURE)
}

/// Prints a usage error, or the requested help. Returns the exit code.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // A failure to print cannot be reported.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { FAILURE } else { 0 })
}

/// Prints the error that ends agent-cli. Returns the exit code. A closed stdout is not reported, as
/// with SIGPIPE.
pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        ExitCode::from(BROKEN_PIPE)
    } else {
        ExitCode::from(print_error(error))
    }
}

/// Prints an error with a hint. Returns its exit code.
pub(crate) fn print_error(error: &anyhow::Error) -> u8 {
    output::eprint_error(&message(error.chain()));
    let mut causes = error.chain();
    if let Some(hint) = causes.find_map(|cause| hint(cause.downcast_ref::<ClientError>()?)) {
        output::eprint_error(hint);
    }
    FAILURE
}

/// An error with its causes, shortened to [`output::MAX_ERROR_CHARS`]. Not escaped: it may contain
/// text from a guest.
pub(crate) fn message<'a>(causes: impl Iterator<Item = &'a (dyn Error + 'static)>) -> String {
    let message = dedup(causes.map(ToString::to_string)).join(": ");
    message.chars().take(output::MAX_ERROR_CHARS).collect()
}

/// Removes causes that only repeat the end of the previous cause.
fn dedup(causes: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for cause in causes {
        if !kept.last().is_some_and(|last| last.ends_with(&cause)) {
            kept.push(cause);
        }
    }
    kept
}

/// Whether stdout was closed, as by `| head`.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<io::Error>(),
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe
    )
}

const fn hint(error: &ClientError) -> Option<&'static str> {
    Some(match error {
        ClientError::Connect { source, .. } => match source {
            ConnectError::WrongAgent => {
                "the guest's certificate is not the pinned agent.crt: use the --identity made for \
                 this guest, or make a new set with `agent-cli identity init --force VM` and copy \
                 it into the guest"
            }
            ConnectError::NotTls(_) => {
                "if the agent was started with --plain, use --plain here too"
            }
            ConnectError::NotHybrid(_) => {
                "is this the vsock socket of the virtual machine monitor? the socket of an agent \
                 itself is unix:PATH"
            }
            _ => {
                "is the virtual machine running, and the agent (vsock-agent.service) started in \
                 it? --connect-timeout sets how long to try"
            }
        },
        ClientError::IdentityRefused { .. } => {
            "server.crt in the guest's /etc/vsock-agent must be a copy of this host's client.crt: \
             see `agent-cli identity init`"
        }
        ClientError::ConnectionLost { .. } => "the virtual machine or its agent may have stopped",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_repeats_the_message_is_left_out() {
        let causes = ["a: b", "b", "c"].map(str::to_owned).into_iter();
        assert_eq!(dedup(causes), ["a: b", "c"]);
    }

    #[test]
    fn the_exit_code_after_a_signal_is_that_of_a_shell() {
        assert_eq!(after_signal(2), 130);
        assert_eq!(after_signal(15), 143);
    }
}

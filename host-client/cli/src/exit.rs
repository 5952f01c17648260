//! Exit codes and error messages.

use std::{io, process::ExitCode};

use vsock_agent_client::{ClientError, ConnectError, ExitStatus};

use crate::output;

/// agent-cli itself failed. Shells and ordinary commands do not use this code.
const OURS: u8 = 125;

/// What a shell shows for a program that wrote to a closed pipe: 128 + SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Some operands failed, the others succeeded.
pub(crate) const PARTLY: u8 = 1;

/// The exit code after a signal that ended us, as a shell reports it.
pub(crate) fn after_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(OURS)
}

/// The command exceeded its time limit, as with `timeout(1)`.
const TIMED_OUT: u8 = 124;

/// The exit code for a command's status: its low eight bits, as with `exit`.
pub(crate) fn of_child(status: &ExitStatus) -> u8 {
    if status.timed_out {
        return TIMED_OUT;
    }
    u8::try_from(status.code.rem_euclid(256)).unwrap_or(OURS)
}

/// Prints an error of clap, or the help, which is not a failure.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // There is nowhere to report a failure to print.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(OURS)
    } else {
        ExitCode::SUCCESS
    }
}

/// Prints the final error with a hint. Returns the exit code.
pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        ExitCode::from(BROKEN_PIPE)
    } else {
        ExitCode::from(print_error(error))
    }
}

/// Prints an error with a hint. Returns its exit code.
pub(crate) fn print_error(error: &anyhow::Error) -> u8 {
    output::eprint_error(&output::escape(words(error.chain()).as_bytes()));
    let advice = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>().and_then(hint));
    if let Some(advice) = advice {
        output::eprint_error(advice);
    }
    OURS
}

/// An error with its causes, shortened to the length that is printed. Not escaped: it may contain text
/// from a guest.
pub(crate) fn words(causes: anyhow::Chain<'_>) -> String {
    let words = dedup(causes.map(ToString::to_string).collect()).join(": ");
    words.chars().take(output::MAX_ERROR_CHARS).collect()
}

/// Removes causes that only repeat the end of the text before.
fn dedup(words: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for word in words {
        if !kept.last().is_some_and(|last| last.ends_with(&word)) {
            kept.push(word);
        }
    }
    kept
}

/// Whether our own stdout was closed, as by `| head`.
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
        let words = ["a: b", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(dedup(words), ["a: b", "c"]);
    }

    #[test]
    fn the_exit_code_after_a_signal_is_that_of_a_shell() {
        assert_eq!(after_signal(2), 130);
        assert_eq!(after_signal(15), 143);
    }
}

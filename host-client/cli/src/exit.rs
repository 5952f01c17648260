//! Exit codes, and the last words on stderr.

use std::{io, process::ExitCode};

use vsock_agent_client::{ClientError, ConnectError, ExitStatus};

use crate::output;

/// When agent-cli itself failed: not a code that shells or ordinary commands use.
const OURS: u8 = 125;

/// What a shell shows for a program that wrote to a closed pipe: 128 + SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// When a part of what was to be done failed, and the rest was done.
pub(crate) const PARTLY: u8 = 1;

/// The code for a command that we left because of a signal to ourselves.
pub(crate) fn after_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(OURS)
}

/// When the command's time was over: as `timeout(1)` does it.
const TIMED_OUT: u8 = 124;

/// The child's code as ours: its low eight bits, as `exit` does it.
pub(crate) fn of_child(status: &ExitStatus) -> u8 {
    if status.timed_out {
        return TIMED_OUT;
    }
    u8::try_from(status.code.rem_euclid(256)).unwrap_or(OURS)
}

/// Prints what clap has to say; help is no failure.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do if not even this can be printed.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(OURS)
    } else {
        ExitCode::SUCCESS
    }
}

/// Says why we failed, and what to do about it.
pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        ExitCode::from(BROKEN_PIPE)
    } else {
        ExitCode::from(tell(error))
    }
}

/// Says what went wrong, and what to do about it. Returns the code for it, if we go on.
pub(crate) fn tell(error: &anyhow::Error) -> u8 {
    output::complain(&output::escape(words(error.chain()).as_bytes()));
    let advice = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>().and_then(hint));
    if let Some(advice) = advice {
        output::complain(advice);
    }
    OURS
}

/// An error with its causes, at most as long as what is printed of it. Not escaped: words in them
/// can be a guest's.
pub(crate) fn words(causes: anyhow::Chain<'_>) -> String {
    let words = dedup(causes.map(ToString::to_string).collect()).join(": ");
    words.chars().take(output::MAX_COMPLAINT_CHARS).collect()
}

/// Leaves out causes that only repeat what was said.
fn dedup(words: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for word in words {
        if !kept.last().is_some_and(|said| said.ends_with(&word)) {
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
                 it? --connect-timeout says how long to try"
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
    fn a_cause_that_repeats_its_effect_is_left_out() {
        let words = ["a: b", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(dedup(words), ["a: b", "c"]);
    }

    #[test]
    fn a_signal_is_told_as_a_shell_tells_it() {
        assert_eq!(after_signal(2), 130);
        assert_eq!(after_signal(15), 143);
    }
}

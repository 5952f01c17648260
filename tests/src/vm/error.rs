//! What can go wrong on the way to a running VM.

use std::{io, path::PathBuf, time::Duration};

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// A program or a file that the lab stands on is not there.
    #[error("{what} is missing: run `make setup`, which installs it")]
    Missing {
        /// Its name.
        what: String,
    },
    /// A file or a process could not be handled.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its status and what it wrote to standard error.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s; see {}", after.as_secs(), log.display())]
    Timeout {
        /// What was being waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
        /// Where to look.
        log: PathBuf,
    },
    /// A process of the VM ended by itself.
    #[error("{what} ended by itself; see {}", log.display())]
    Ended {
        /// Which one.
        what: &'static str,
        /// Where to look.
        log: PathBuf,
    },
}

impl VmError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(super) fn missing(what: impl Into<String>) -> Self {
        Self::Missing { what: what.into() }
    }
}

//! What can go wrong between a caller and an agent, told apart by what the caller can do about it.

mod file_status;

use std::{error::Error, io, time::Duration};

pub use self::file_status::FileStatus;
use crate::endpoint::Endpoint;

/// A cause whose type is nobody's business: it is printed, and found by `source`.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// Longest text of an agent's that is kept in an error or a status, in characters.
pub(crate) const MAX_TEXT_CHARS: usize = 1000;

/// The beginning of what an agent says.
pub(crate) fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

/// Why something asked of an agent did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection came about: the machine, its agent or the way to it is not there, or the
    /// other end is not the agent it should be.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Where to.
        endpoint: Endpoint,
        /// How often it was tried.
        attempts: u32,
        /// What the last attempt ended with.
        #[source]
        source: ConnectError,
    },
    /// The agent closed the connection because it does not trust this client's certificate.
    #[error("the agent at {endpoint} refused this identity")]
    IdentityRefused {
        /// Which agent.
        endpoint: Endpoint,
        /// The alert it sent.
        #[source]
        source: io::Error,
    },
    /// The agent understood and said no.
    #[error("the agent said no ({status}): {text}")]
    Agent {
        /// The HTTP status.
        status: u16,
        /// Its words, at most 1,000 characters. They come from the guest: escape them before they
        /// reach a terminal.
        text: String,
    },
    /// The connection ended too early. What was asked may have happened or not.
    #[error("the connection was lost while {during}")]
    ConnectionLost {
        /// What was going on.
        during: &'static str,
        /// How it ended, if that is known.
        #[source]
        source: Option<Cause>,
    },
    /// The agent did not answer in time. What was asked may have happened or not.
    #[error("no answer within {} s while {during}", .after.as_secs())]
    Silent {
        /// What was going on.
        during: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The other end does not speak the protocol, or not correctly.
    #[error("the agent broke the protocol: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
        /// Where the reading of it stopped.
        #[source]
        source: Option<Cause>,
    },
    /// The agent sent more than this client is ready to hold.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What it was.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A command ended and the agent says that it wrote more than arrived.
    #[error("{stream} is incomplete: {received} of {expected} bytes arrived")]
    IncompleteOutput {
        /// Which stream.
        stream: &'static str,
        /// Bytes the agent sent.
        expected: u64,
        /// Bytes that arrived.
        received: u64,
    },
    /// A command wrote more than [`Exec::output`](crate::Exec::output) was to keep of a stream, and
    /// is being ended for it.
    #[error("{stream} is longer than {limit} bytes, and the command was ended")]
    OutputLimit {
        /// Which stream.
        stream: &'static str,
        /// The limit, in bytes.
        limit: u64,
        /// What was read of standard output, at most the limit.
        stdout: Vec<u8>,
        /// What was read of standard error, at most the limit.
        stderr: Vec<u8>,
    },
    /// The connection of a command's input was lost before the end of the input, or the input was
    /// [aborted](crate::ExecStdin::abort). The agent has ended the command.
    #[error("standard input is incomplete: {received} of {sent} bytes or more reached the command")]
    IncompleteInput {
        /// Bytes that were sent. There may have been more to send.
        sent: u64,
        /// Bytes that the command was given.
        received: u64,
    },
    /// This agent is not able to do what was asked.
    #[error("this agent cannot {what}")]
    Unsupported {
        /// What it cannot do.
        what: &'static str,
    },
    /// The agent said no to an operation on a file.
    #[error("cannot {action}: {status}")]
    File {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        status: FileStatus,
    },
    /// Reading or writing on this side of a transfer failed.
    #[error("cannot {action}")]
    Local {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file had another length at the end of its transfer than the bytes that were transferred.
    #[error("the file has {size} bytes but {transferred} were transferred")]
    SizeChanged {
        /// Length of the file, in bytes.
        size: u64,
        /// Bytes transferred.
        transferred: u64,
    },
}

impl ClientError {
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol {
            what: what.into(),
            source: None,
        }
    }

    pub(crate) fn protocol_because(what: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Protocol {
            what: what.into(),
            source: Some(source.into()),
        }
    }

    pub(crate) fn lost(during: &'static str, source: impl Into<Cause>) -> Self {
        Self::ConnectionLost {
            during,
            source: Some(source.into()),
        }
    }

    /// Whether the agent said that the file or path is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::File { status, .. } if status.is_not_found())
    }
}

/// Why one attempt to connect failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The system says why.
    #[error("{}", describe(.0))]
    Io(#[source] io::Error),
    /// Nothing happened for this long.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The monitor of the virtual machine closed the connection instead of saying `OK`: nobody
    /// listens on that port in the guest, or not yet.
    #[error(
        "the virtual machine monitor closed the connection: nothing listens on port {port} in the guest"
    )]
    NobodyListens {
        /// The port asked for.
        port: u32,
    },
    /// The socket answers `CONNECT` with something else than `OK`.
    #[error("the socket does not speak the CONNECT handshake: it says {0:?}")]
    NotHybrid(String),
    /// The certificate at the other end is not the one that was pinned.
    #[error("the certificate at the other end is not this agent's")]
    WrongAgent,
    /// The other end does not speak TLS.
    #[error("the other end does not speak TLS (an agent started with --plain does not)")]
    NotTls(#[source] io::Error),
    /// TLS could not be agreed on.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The connection closed in the middle of the TLS handshake.
    #[error("the connection closed during the TLS handshake")]
    ClosedInHandshake(#[source] io::Error),
    /// Something accepted the connection and closed it without an answer, as monitors do that map
    /// ports to sockets while nobody listens in the guest.
    #[error("the connection was accepted, and closed without an answer")]
    ClosedUnanswered(#[source] Cause),
}

/// What an error of the system means for a connection to a virtual machine.
fn describe(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::ENODEV) => "no running virtual machine has this context id",
        Some(libc::ECONNRESET) => "nobody listens on that port in the guest, or the agent is full",
        Some(libc::ETIMEDOUT) => "the guest does not answer",
        Some(libc::ECONNREFUSED) => "nobody listens on that socket",
        Some(libc::ENOENT) => "that socket is not there",
        Some(libc::EAFNOSUPPORT) => "this kernel has no vsock support loaded",
        Some(libc::ENETUNREACH) => "no virtual machine can have this context id",
        _ => return "the connection could not be made".to_owned(),
    };
    hint.to_owned()
}

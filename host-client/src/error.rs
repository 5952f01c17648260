//! The errors of the library, with a variant for each way to handle them.

mod class;
mod sftp;

use std::{error::Error, io, time::Duration};

pub use self::{class::ErrorKind, sftp::SftpError};
use crate::endpoint::Endpoint;

/// An opaque cause, for [`source`](std::error::Error::source).
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// Longest text from an agent in an error or a status, in characters.
pub(crate) const MAX_TEXT_CHARS: usize = 1000;

/// The beginning of a text from an agent.
pub(crate) fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

/// Why a request to an agent failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection: the machine or its agent is not running or not reachable, or the other end is
    /// not the expected agent.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// The endpoint.
        endpoint: Endpoint,
        /// The number of attempts.
        attempts: u32,
        /// The error of the last attempt.
        #[source]
        source: ConnectError,
    },
    /// The agent closed the connection because it does not trust this client's certificate.
    #[error("the agent at {endpoint} refused this identity")]
    IdentityRefused {
        /// The endpoint of the agent.
        endpoint: Endpoint,
        /// The alert it sent.
        #[source]
        source: io::Error,
    },
    /// The agent answered with an error.
    #[error("the agent refused ({status}): {text}")]
    Agent {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The HTTP status.
        status: u16,
        /// Its message, at most 1,000 characters. It comes from the guest: escape it before printing it
        /// to a terminal.
        text: String,
    },
    /// The operation of a command failed, and the agent did not say how the command ended, if it was
    /// started.
    #[error("the agent could not run the command ({status}): {text}")]
    Failed {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The status of the operation: one of
        /// [`OperationStatus`](crate::protocol::operation::OperationStatus).
        status: u16,
        /// The agent's error, at most 1,000 characters. Escape it before printing it to a terminal.
        text: String,
    },
    /// The connection was lost. The request may or may not have been executed.
    #[error("the connection was lost while {during}")]
    ConnectionLost {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The action.
        during: &'static str,
        /// The cause, if it is known.
        #[source]
        source: Option<Cause>,
    },
    /// The agent did not answer in time. The request may or may not have been executed.
    #[error("no answer within {} s while {during}", .after.as_secs())]
    Silent {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The action.
        during: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// The other end violated the protocol.
    #[error("the agent broke the protocol: {what}")]
    Protocol {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The violation.
        what: String,
        /// The error of parsing, if there is one.
        #[source]
        source: Option<Cause>,
    },
    /// The agent sent more than a limit of this client.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// What exceeded the limit.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A command ended, and less of its output arrived than the agent counted.
    #[error("{stream} is incomplete: {received} of {expected} bytes arrived")]
    IncompleteOutput {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The stream.
        stream: &'static str,
        /// Bytes the agent sent.
        expected: u64,
        /// Bytes that arrived.
        received: u64,
    },
    /// A command wrote more than the limit of [`Exec::output`](crate::Exec::output), and is being
    /// ended.
    #[error("{stream} is longer than {limit} bytes, and the command was ended")]
    OutputLimit {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The stream.
        stream: &'static str,
        /// The limit, in bytes.
        limit: u64,
        /// Standard output up to the limit.
        stdout: Vec<u8>,
        /// Standard error up to the limit.
        stderr: Vec<u8>,
    },
    /// The connection of a command's input was lost before the end of the input, or the input was
    /// [aborted](crate::ExecStdin::abort). The agent has ended the command.
    #[error("standard input is incomplete: {received} of {sent} bytes or more reached the command")]
    IncompleteInput {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// Bytes that were sent. There may have been more to send.
        sent: u64,
        /// Bytes that the command got.
        received: u64,
    },
    /// This agent does not support the request.
    #[error("this agent cannot {what}")]
    Unsupported {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// What it does not support.
        what: &'static str,
    },
    /// The agent refused an operation on a file.
    #[error("cannot {action}")]
    File {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The action.
        action: &'static str,
        /// The reason that the server gave.
        #[source]
        source: SftpError,
    },
    /// Reading or writing on this side of a transfer failed.
    #[error("cannot {action}")]
    Local {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// The action.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The length of a file after its transfer differs from the number of bytes transferred.
    #[error("the file has {size} bytes but {transferred} were transferred")]
    SizeChanged {
        /// The endpoint of the agent, if it is known.
        endpoint: Option<Endpoint>,
        /// Length of the file, in bytes.
        size: u64,
        /// Bytes transferred.
        transferred: u64,
    },
}

impl ClientError {
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol {
            endpoint: None,
            what: what.into(),
            source: None,
        }
    }

    pub(crate) fn protocol_because(what: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Protocol {
            endpoint: None,
            what: what.into(),
            source: Some(source.into()),
        }
    }

    /// An argument of the caller that makes no sense.
    pub(crate) fn invalid_argument(action: &'static str, reason: impl Into<Cause>) -> Self {
        Self::Local {
            endpoint: None,
            action,
            source: io::Error::new(io::ErrorKind::InvalidInput, reason),
        }
    }

    pub(crate) fn lost(during: &'static str, source: impl Into<Cause>) -> Self {
        Self::ConnectionLost {
            endpoint: None,
            during,
            source: Some(source.into()),
        }
    }

    /// A connection that was lost for a reason that is not known.
    pub(crate) const fn lost_somehow(during: &'static str) -> Self {
        Self::ConnectionLost {
            endpoint: None,
            during,
            source: None,
        }
    }

    pub(crate) const fn silent(during: &'static str, after: Duration) -> Self {
        Self::Silent {
            endpoint: None,
            during,
            after,
        }
    }

    pub(crate) const fn unsupported(what: &'static str) -> Self {
        Self::Unsupported {
            endpoint: None,
            what,
        }
    }
}

/// Why one attempt to connect failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// An error of the operating system.
    #[error("{}", describe(.0))]
    Io(#[source] io::Error),
    /// No answer within this time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The virtual machine monitor closed the connection instead of sending `OK`: nothing listens on
    /// that port in the guest, or not yet.
    #[error(
        "the virtual machine monitor closed the connection: nothing listens on port {port} in the guest"
    )]
    NobodyListens {
        /// The requested port.
        port: u32,
    },
    /// The socket answered `CONNECT` with something other than `OK`.
    #[error("the socket does not support the CONNECT handshake: it answered {0:?}")]
    NotHybrid(String),
    /// The certificate at the other end is not the pinned one.
    #[error("the certificate at the other end is not this agent's")]
    WrongAgent,
    /// The other end does not use TLS.
    #[error("the other end does not speak TLS (an agent started with --plain does not)")]
    NotTls(#[source] io::Error),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The connection closed during the TLS handshake.
    #[error("the connection closed during the TLS handshake")]
    ClosedInHandshake(#[source] io::Error),
    /// The connection was accepted, and closed without an answer. Monitors that map ports to sockets do
    /// this while nothing listens in the guest.
    #[error("the connection was accepted, and closed without an answer")]
    ClosedUnanswered(#[source] Cause),
}

/// The meaning of an errno for a connection to a virtual machine.
fn describe(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::ENODEV) => "no running virtual machine has this context id",
        Some(libc::ECONNRESET) => {
            "nothing listens on that port in the guest, or the agent has too many connections"
        }
        Some(libc::ETIMEDOUT) => "the guest does not answer",
        Some(libc::ECONNREFUSED) => "nothing listens on that socket",
        Some(libc::ENOENT) => "that socket does not exist",
        Some(libc::EAFNOSUPPORT) => "this kernel has no vsock support loaded",
        Some(libc::ENETUNREACH) => "no virtual machine can have this context id",
        _ => return "the connection could not be made".to_owned(),
    };
    hint.to_owned()
}

//! What a caller can do about an error.

use std::io;

use super::{ClientError, ConnectError};
use crate::endpoint::Endpoint;

/// The kind of a [`ClientError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no connection: the machine or its agent does not run, or not yet.
    Unreachable,
    /// One end does not trust the other, or the other end is no agent.
    Untrusted,
    /// The agent refused the request, or could not do it.
    Refused,
    /// The connection was lost, or the agent did not answer in time.
    Lost,
    /// The other end violated the protocol.
    Protocol,
    /// A limit of this client was exceeded.
    Limit,
    /// This agent does not support the request.
    Unsupported,
    /// An argument is invalid, or reading or writing on this side failed.
    Local,
}

impl ClientError {
    /// The endpoint of the agent that the request was for; `None` if the request was refused before there
    /// was one, as for an invalid path.
    #[must_use]
    pub const fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Connect { endpoint, .. } | Self::IdentityRefused { endpoint, .. } => {
                Some(endpoint)
            }
            Self::Agent { endpoint, .. }
            | Self::Failed { endpoint, .. }
            | Self::ConnectionLost { endpoint, .. }
            | Self::Silent { endpoint, .. }
            | Self::Protocol { endpoint, .. }
            | Self::TooLarge { endpoint, .. }
            | Self::IncompleteOutput { endpoint, .. }
            | Self::OutputLimit { endpoint, .. }
            | Self::IncompleteInput { endpoint, .. }
            | Self::Unsupported { endpoint, .. }
            | Self::File { endpoint, .. }
            | Self::Local { endpoint, .. }
            | Self::SizeChanged { endpoint, .. } => endpoint.as_ref(),
        }
    }

    /// The same error of the agent at `of`, unless it says already which.
    pub(crate) fn at(mut self, of: &Endpoint) -> Self {
        match &mut self {
            Self::Connect { .. } | Self::IdentityRefused { .. } => {}
            Self::Agent { endpoint, .. }
            | Self::Failed { endpoint, .. }
            | Self::ConnectionLost { endpoint, .. }
            | Self::Silent { endpoint, .. }
            | Self::Protocol { endpoint, .. }
            | Self::TooLarge { endpoint, .. }
            | Self::IncompleteOutput { endpoint, .. }
            | Self::OutputLimit { endpoint, .. }
            | Self::IncompleteInput { endpoint, .. }
            | Self::Unsupported { endpoint, .. }
            | Self::File { endpoint, .. }
            | Self::Local { endpoint, .. }
            | Self::SizeChanged { endpoint, .. } => {
                endpoint.get_or_insert_with(|| of.clone());
            }
        }
        self
    }

    /// The kind of error.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { source, .. } if source.is_untrusted() => ErrorKind::Untrusted,
            Self::Connect { .. } => ErrorKind::Unreachable,
            Self::IdentityRefused { .. } => ErrorKind::Untrusted,
            Self::Agent { .. } | Self::Failed { .. } | Self::File { .. } => ErrorKind::Refused,
            Self::ConnectionLost { .. }
            | Self::Silent { .. }
            | Self::IncompleteOutput { .. }
            | Self::IncompleteInput { .. } => ErrorKind::Lost,
            Self::Protocol { .. } | Self::SizeChanged { .. } => ErrorKind::Protocol,
            Self::TooLarge { .. } | Self::OutputLimit { .. } => ErrorKind::Limit,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Local { .. } => ErrorKind::Local,
        }
    }

    /// Whether the same request can succeed later, without a change to it, to this client or to the guest's
    /// configuration: the machine boots, the agent is busy, or a connection was lost. A command that
    /// [may have run](Self::may_have_run) may run twice then.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.is_retryable(),
            // Too many requests (RFC 6585, section 4), service unavailable (RFC 9110, section 15.6.4).
            Self::Agent { status, .. } => matches!(status, 429 | 503),
            _ => self.kind() == ErrorKind::Lost,
        }
    }

    /// For the error of a command: false only if the command was certainly not started.
    #[must_use]
    pub const fn may_have_run(&self) -> bool {
        !matches!(
            self,
            Self::Connect { .. }
                | Self::IdentityRefused { .. }
                | Self::Agent { .. }
                | Self::Unsupported { .. }
                | Self::Local { .. }
        )
    }

    /// The error of a command that exists already: one that would mean that it was never started becomes
    /// that of a lost connection.
    pub(crate) fn after_start(self, during: &'static str) -> Self {
        if self.may_have_run() {
            self
        } else {
            Self::lost(during, self)
        }
    }

    /// Whether the agent reported that the file or path does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.is_not_found())
    }
}

impl ConnectError {
    /// Whether another attempt may succeed: a booting machine or a busy agent can be the reason.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Io(error) => is_temporary(error),
            Self::TimedOut(_)
            | Self::NobodyListens { .. }
            | Self::ClosedInHandshake(_)
            | Self::ClosedUnanswered(_) => true,
            Self::NotHybrid(_) | Self::WrongAgent | Self::NotTls(_) | Self::Handshake(_) => false,
        }
    }

    const fn is_untrusted(&self) -> bool {
        matches!(
            self,
            Self::NotHybrid(_) | Self::WrongAgent | Self::NotTls(_) | Self::Handshake(_)
        )
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNRESET
                | libc::ETIMEDOUT
                | libc::ENODEV
                | libc::EADDRNOTAVAIL
                | libc::ECONNREFUSED
                | libc::ENOENT
                | libc::EAGAIN
                | libc::EPIPE
        )
    ) || error.kind() == io::ErrorKind::UnexpectedEof
}

#[cfg(test)]
mod tests {
    use std::{mem, time::Duration};

    use super::*;
    use crate::error::SftpError;

    fn connect(source: ConnectError) -> ClientError {
        ClientError::Connect {
            endpoint: Endpoint::Unix("/a".into()),
            attempts: 1,
            source,
        }
    }

    fn os(code: i32) -> ConnectError {
        ConnectError::Io(io::Error::from_raw_os_error(code))
    }

    fn agent(status: u16) -> ClientError {
        ClientError::Agent {
            endpoint: None,
            status,
            text: String::new(),
        }
    }

    /// An error of each variant, and of those whose source or status matters several.
    fn errors() -> Vec<(ClientError, ErrorKind, bool, bool)> {
        use ErrorKind::{
            Limit, Local, Lost, Protocol, Refused, Unreachable, Unsupported, Untrusted,
        };
        let io = || io::Error::from(io::ErrorKind::InvalidData);
        let endpoint = None;
        let (sent, received, expected, limit) = (2, 1, 2, 1);
        let (stream, what) = ("standard output", "x");
        // error, kind, is_retryable, may_have_run
        vec![
            (connect(os(libc::ECONNREFUSED)), Unreachable, true, false),
            (connect(os(libc::EACCES)), Unreachable, false, false),
            (
                connect(ConnectError::TimedOut(Duration::ZERO)),
                Unreachable,
                true,
                false,
            ),
            (
                connect(ConnectError::NobodyListens { port: 1 }),
                Unreachable,
                true,
                false,
            ),
            (
                connect(ConnectError::ClosedInHandshake(io())),
                Unreachable,
                true,
                false,
            ),
            (
                connect(ConnectError::ClosedUnanswered("x".into())),
                Unreachable,
                true,
                false,
            ),
            (
                connect(ConnectError::NotHybrid(String::new())),
                Untrusted,
                false,
                false,
            ),
            (connect(ConnectError::WrongAgent), Untrusted, false, false),
            (connect(ConnectError::NotTls(io())), Untrusted, false, false),
            (
                connect(ConnectError::Handshake(io())),
                Untrusted,
                false,
                false,
            ),
            (
                ClientError::IdentityRefused {
                    endpoint: Endpoint::Unix("/a".into()),
                    source: io(),
                },
                Untrusted,
                false,
                false,
            ),
            (agent(400), Refused, false, false),
            (agent(404), Refused, false, false),
            (agent(429), Refused, true, false),
            (agent(500), Refused, false, false),
            (agent(503), Refused, true, false),
            (
                ClientError::Failed {
                    endpoint: None,
                    status: 400,
                    text: String::new(),
                },
                Refused,
                false,
                true,
            ),
            (ClientError::lost("x", "y"), Lost, true, true),
            (ClientError::lost_somehow("x"), Lost, true, true),
            (ClientError::silent("x", Duration::ZERO), Lost, true, true),
            (ClientError::protocol("x"), Protocol, false, true),
            (
                ClientError::TooLarge {
                    endpoint: None,
                    what,
                    limit,
                },
                Limit,
                false,
                true,
            ),
            (
                ClientError::IncompleteOutput {
                    endpoint: None,
                    stream,
                    expected,
                    received,
                },
                Lost,
                true,
                true,
            ),
            (
                ClientError::OutputLimit {
                    endpoint: None,
                    stream,
                    limit,
                    stdout: Vec::new(),
                    stderr: Vec::new(),
                },
                Limit,
                false,
                true,
            ),
            (
                ClientError::IncompleteInput {
                    endpoint: None,
                    sent,
                    received,
                },
                Lost,
                true,
                true,
            ),
            (ClientError::unsupported("x"), Unsupported, false, false),
            (
                ClientError::File {
                    endpoint: None,
                    action: "x",
                    source: SftpError::new(2, b""),
                },
                Refused,
                false,
                true,
            ),
            (ClientError::invalid_argument("x", "y"), Local, false, false),
            (
                ClientError::SizeChanged {
                    endpoint,
                    size: 1,
                    transferred: 2,
                },
                Protocol,
                false,
                true,
            ),
        ]
    }

    #[test]
    fn every_error_says_what_can_be_done_about_it() {
        for (error, kind, is_retryable, may_have_run) in errors() {
            let said = (error.kind(), error.is_retryable(), error.may_have_run());
            assert_eq!(said, (kind, is_retryable, may_have_run), "{error:?}");
        }
    }

    #[test]
    fn every_error_of_a_command_that_exists_says_that_it_may_have_run() {
        for (error, ..) in errors() {
            let before = mem::discriminant(&error);
            let was = error.may_have_run();
            let error = error.after_start("x");
            assert!(error.may_have_run(), "{error:?}");
            assert_eq!(before == mem::discriminant(&error), was, "{error:?}");
        }
    }

    #[test]
    fn every_error_says_of_which_agent_it_is_and_keeps_saying_it() {
        let first = Endpoint::Unix("/a".into());
        for (error, ..) in errors() {
            let error = error.at(&first).at(&Endpoint::Unix("/b".into()));
            assert_eq!(error.endpoint(), Some(&first), "{error:?}");
        }
    }
}

//! Errors of sessions and of requests, and their status codes.

use std::io;

use bytes::Bytes;
use nix::errno::Errno;
use russh_sftp::protocol::StatusCode;
use vsock_agent_protocol::sftp::{DecodeError, Reply};

/// Why a session ended before its client closed the connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client does not speak SFTP")]
    Decode(#[from] DecodeError),
    #[error("the client did not start with INIT")]
    NoInit,
    #[error("a thread panicked")]
    Panic,
}

/// Why one request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SftpError {
    /// The handle was never given out, or is closed, or is one of a directory (or of a file).
    #[error("no such handle")]
    UnknownHandle,
    /// The same, where OpenSSH answers `NO_SUCH_FILE`.
    #[error("no such handle")]
    ClosedHandle,
    /// The limit of open handles is reached.
    #[error(
        "too many open files: {} in this session",
        crate::defaults::MAX_SFTP_HANDLES
    )]
    TooManyHandles,
    /// There is nothing more to read.
    #[error("end of file")]
    EndOfFile,
    /// No user has this name.
    #[error("no such user")]
    UnknownUser,
    /// A pipe or a socket.
    #[error("not a file that can be read or written at an offset")]
    NoOffsets,
    /// The file must not be replaced by another one.
    #[error("it must be written to, not replaced")]
    NotReplaced,
    /// Source and target of a copy are one file.
    #[error("a file cannot be copied onto itself")]
    SameFile,
    /// The client asked for a read-only session.
    #[error("the session is read-only")]
    ReadOnly,
    /// Not a request of this protocol, or an unknown extension.
    #[error("operation unsupported")]
    Unsupported,
    /// The request is invalid.
    #[error("{0}")]
    BadMessage(&'static str),
    /// A system call failed.
    #[error("{}", describe(.0))]
    Io(#[from] io::Error),
}

impl SftpError {
    /// The status code. For errnos it is OpenSSH's (`errno_to_portable`), except `EROFS`, which is
    /// `PERMISSION_DENIED` here.
    pub(super) fn code(&self) -> StatusCode {
        match self {
            Self::UnknownHandle
            | Self::TooManyHandles
            | Self::NoOffsets
            | Self::NotReplaced
            | Self::SameFile => StatusCode::Failure,
            Self::ClosedHandle | Self::UnknownUser => StatusCode::NoSuchFile,
            Self::EndOfFile => StatusCode::Eof,
            Self::ReadOnly => StatusCode::PermissionDenied,
            Self::Unsupported => StatusCode::OpUnsupported,
            Self::BadMessage(_) => StatusCode::BadMessage,
            Self::Io(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                Errno::ENOENT | Errno::ENOTDIR | Errno::EBADF | Errno::ELOOP => {
                    StatusCode::NoSuchFile
                }
                Errno::EPERM | Errno::EACCES | Errno::EFAULT | Errno::EROFS => {
                    StatusCode::PermissionDenied
                }
                Errno::ENAMETOOLONG | Errno::EINVAL => StatusCode::BadMessage,
                Errno::ENOSYS => StatusCode::OpUnsupported,
                // The standard library refuses an offset beyond `i64::MAX`.
                _ if error.kind() == io::ErrorKind::InvalidInput => StatusCode::BadMessage,
                _ => StatusCode::Failure,
            },
        }
    }
}

impl From<Errno> for SftpError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<SftpError> for Reply {
    fn from(error: SftpError) -> Self {
        status(error.code(), Bytes::from(error.to_string()))
    }
}

/// A STATUS reply that the request succeeded.
pub(super) fn ok() -> Reply {
    status(StatusCode::Ok, Bytes::from_static(b"success"))
}

fn status(code: StatusCode, message: Bytes) -> Reply {
    Reply::Status {
        code: code as u32,
        message,
    }
}

/// The message of an error, without Rust's "(os error 2)".
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

//! Files, by SFTP version 3.
//!
//! Called by `api/sftp.rs` with a connection, and by the sub-command with its standard streams.
//! Owns the open files of a session and its threads; knows nothing of HTTP.
//!
//! `russh-sftp` gives the words of status codes. Its server loop is not used: after an over-long
//! frame it reads the file's contents as requests, it retries a dead connection for ever, it takes
//! one request at a time, and names that are not UTF-8 lose their bytes.
//!
//! ```text
//! stream ─► input ─► session ─► request ─► order      may it run now?
//!                       │                └► handles    what its handles stand for
//!                       └► files, extensions ─► tree   what its paths lead to
//! ```

mod as_user;
mod attributes;
mod extension;
mod extensions;
mod files;
mod handles;
mod input;
mod listing;
mod order;
mod part;
mod pipe;
mod ranges;
mod realpath;
mod request;
mod session;
mod stdio;
mod stream;
mod tree;
mod whole;

use std::io;

use bytes::Bytes;
use nix::errno::Errno;
use russh_sftp::protocol::StatusCode;
use vsock_agent_protocol::sftp::Reply;

pub(crate) use as_user::SUB_COMMAND;
pub(crate) use as_user::UserSession;
pub(crate) use session::{Budget, Session, SessionError, Setup};
pub use stdio::{SftpServerError, serve_sftp_on_stdio};
pub(crate) use stdio::{blocking, find_user};
pub(crate) use stream::Channel;

/// Why one request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SftpError {
    /// The handle was never given out, or is closed, or is of the other kind.
    #[error("no such handle")]
    UnknownHandle,
    /// The same, where OpenSSH says that there is no such file.
    #[error("no such handle")]
    ClosedHandle,
    /// As many handles are open as may be.
    #[error(
        "too many open files: {} in this session",
        crate::defaults::MAX_SFTP_HANDLES
    )]
    TooManyHandles,
    /// There is nothing more to read.
    #[error("end of file")]
    EndOfFile,
    /// Nobody is called that.
    #[error("no such user")]
    UnknownUser,
    /// A pipe or a socket.
    #[error("not a file that can be read or written at an offset")]
    NoOffsets,
    /// Another file must not take its place.
    #[error("it must be written to, not replaced")]
    NotReplaced,
    /// Source and target of a copy.
    #[error("a file cannot be copied onto itself")]
    SameFile,
    /// The session was asked for in this way.
    #[error("the session is read-only")]
    ReadOnly,
    /// Not a request of this protocol, or not one of ours.
    #[error("operation unsupported")]
    Unsupported,
    /// The request makes no sense.
    #[error("{0}")]
    BadMessage(&'static str),
    /// The file system refused.
    #[error("{}", describe(.0))]
    Io(#[from] io::Error),
}

impl SftpError {
    /// The one table of status codes. That of the errnos is OpenSSH's (`errno_to_portable`), but
    /// that a read-only file system is a matter of permission.
    fn code(&self) -> StatusCode {
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
                // An offset that no file has never reaches the kernel.
                _ if error.kind() == io::ErrorKind::InvalidInput => StatusCode::BadMessage,
                _ => StatusCode::Failure,
            },
        }
    }
}

impl From<SftpError> for Reply {
    fn from(error: SftpError) -> Self {
        status(error.code(), Bytes::from(error.to_string()))
    }
}

/// "It worked."
fn ok() -> Reply {
    status(StatusCode::Ok, Bytes::from_static(b"success"))
}

fn status(code: StatusCode, message: Bytes) -> Reply {
    Reply::Status {
        code: code as u32,
        message,
    }
}

/// The kernel's words for an error, without Rust's "(os error 2)".
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

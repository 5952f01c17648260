//! Files, by SFTP version 3.
//!
//! Called by `api/sftp.rs` with an upgraded connection. Owns the open files of a session; knows
//! nothing of HTTP.
//!
//! `russh-sftp` gives the words, status codes and open flags. Its server loop is not used: after
//! an over-long frame it reads the file's contents as requests, it retries a dead connection for
//! ever, it takes one request at a time, and names that are not UTF-8 lose their bytes.

mod attributes;
mod files;
mod handles;
mod listing;
mod server;

use std::io;

use bytes::Bytes;
use nix::errno::Errno;
use russh_sftp::protocol::StatusCode;
use vsock_agent_protocol::sftp::Reply;

pub(crate) use server::serve;

/// Why one request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SftpError {
    /// The handle was never given out, or is closed, or is of the other kind.
    #[error("no such handle")]
    UnknownHandle,
    /// As many handles are open as may be.
    #[error(
        "too many open files: {} in this session",
        crate::defaults::MAX_SFTP_HANDLES
    )]
    TooManyHandles,
    /// There is nothing more to read.
    #[error("end of file")]
    EndOfFile,
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

impl From<Errno> for SftpError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl SftpError {
    /// The one table of status codes. That of the errnos is OpenSSH's (`errno_to_portable`).
    fn code(&self) -> StatusCode {
        match self {
            Self::UnknownHandle | Self::TooManyHandles => StatusCode::Failure,
            Self::EndOfFile => StatusCode::Eof,
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
                Errno::ENOSYS | Errno::EOPNOTSUPP => StatusCode::OpUnsupported,
                // A path with a NUL byte never reaches the kernel.
                _ if error.kind() == io::ErrorKind::InvalidInput => StatusCode::BadMessage,
                _ => StatusCode::Failure,
            },
        }
    }
}

impl From<SftpError> for Reply {
    fn from(error: SftpError) -> Self {
        status(error.code(), error.to_string())
    }
}

/// "It worked."
fn ok() -> Reply {
    status(StatusCode::Ok, "success".to_owned())
}

fn status(code: StatusCode, message: String) -> Reply {
    Reply::Status {
        code: code as u32,
        message: Bytes::from(message),
    }
}

/// The kernel's words for an error, without Rust's "(os error 2)".
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}
